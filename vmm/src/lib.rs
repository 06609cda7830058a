//! The monitor: [`resources::VmResources`] in, a running KVM virtual machine and its [`outcome::Outcome`] out.
//!
//! Follow one start-up: [`builder::build`] reads top to bottom; [`vm::Vm::run`] is the main thread's loop;
//! [`vcpu`] is what each vCPU thread does. KVM itself is named only under [`kvm`].

pub mod resources;
