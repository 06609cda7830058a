//! The only room that speaks to KVM.

mod cpuid;
mod error;
mod irq;
mod machine;
mod msrs;
pub mod probe;
mod regs;
mod stats;
mod vcpu;

pub(crate) use cpuid::apic_id;
pub use error::KvmError;
pub use irq::Lines;
pub use machine::Machine;
pub use probe::{Host, HostKind};
pub use stats::VcpuStats;
pub use vcpu::KvmVcpu;
