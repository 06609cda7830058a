//! Device models: buses, legacy ports, virtio over MMIO.
//!
//! A device here knows guest memory, file descriptors and its own registers. It knows neither KVM nor scenarios:
//! interrupts leave through [`irq::IrqLine`], requests that end or restart the machine through [`event::EventSink`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod block;
pub mod bus;
pub mod console_log;
pub mod event;
pub mod irq;
pub mod legacy;
pub mod secret;
pub mod source;
pub mod stream;
pub mod virtio;

/// Guest RAM as every device sees it. Cloning it copies a few pointers.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
