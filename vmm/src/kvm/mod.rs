//! The only room that speaks to KVM.

mod cpuid;
mod error;
mod irq;
pub mod leaves;
mod machine;
mod msrs;
pub mod probe;
mod regs;
mod stats;
mod vcpu;

pub(crate) use cpuid::apic_id;
pub use error::KvmError;
pub use irq::Lines;
pub use leaves::Leaf;
pub use machine::{EmptyMachine, Machine};
pub use probe::{Capabilities, Host, HostKind, Missing};
pub use stats::VcpuStats;
pub use vcpu::KvmVcpu;
