//! What a guest starts from: kernels, command lines, boot tables, initrds, the built-in guest.
//!
//! Knows neither devices nor KVM: everything here turns bytes and plain data into bytes and plain data.

pub mod acpi;
pub mod boot;
mod bytes;
pub mod cmdline;
pub mod guest;
pub mod init;
pub mod initrd;
pub mod kernel;
pub mod layout;

/// Guest RAM; the same type as `vsc_devices::Memory`.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
