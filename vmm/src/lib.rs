//! The monitor: [`resources::VmResources`] in, a running KVM virtual machine and its [`vm::Report`] out.
//!
//! Follow one start-up: [`builder::build`] reads top to bottom; [`vm::Vm`] is the main thread's end of the machine;
//! [`vcpu`] is what each vCPU thread does. KVM itself is named only under [`kvm`], the event loop only in
//! [`io_thread`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod builder;
pub mod control;
mod devices;
pub mod exit;
pub mod io_thread;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod placement;
pub mod resources;
pub mod sandbox;
pub mod vcpu;
pub mod vm;

/// A thread with a stack that holds what ours need, and that no huge page fits into: with transparent huge pages
/// `always`, the first touch of a 2 MiB stack would clear 2 MiB (4 ms of counted instructions, and as much memory).
fn thread() -> std::thread::Builder {
    std::thread::Builder::new().stack_size(512 << 10)
}
