//! How the guest reaches a device: register decoders over one [`port::Port`] state machine.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::worker::EventLoop;
use crate::Memory;

pub mod mmio;
pub mod port;

pub use mmio::{MmioTransport, Trigger};

/// Lets the kernel turn writes to a doorbell register into eventfd writes (KVM_IOEVENTFD).
pub trait KickRegistry: Send + Sync {
    /// From now on a 4-byte write of `queue` to the guest physical `address` signals `fd` and does not exit.
    ///
    /// # Errors
    /// As the kernel says; kicks then go on arriving as exits.
    fn register(&self, address: u64, queue: u16, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`Self::register`].
    ///
    /// # Errors
    /// As the kernel says.
    fn unregister(&self, address: u64, queue: u16, fd: &EventFd) -> io::Result<()>;
}

/// Takes messages about a device that misbehaves or is misused: a line without its newline.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What every transport needs from the machine.
#[derive(Clone)]
pub struct Wiring {
    /// Guest RAM.
    pub memory: Memory,
    /// The loop the device runs on.
    pub events: Arc<dyn EventLoop>,
    /// Turns kicks of busy queues into eventfd writes; `None`: each kick is an exit.
    pub registry: Option<Arc<dyn KickRegistry>>,
    /// Gets the reason the first times that the device needs a reset.
    pub log: Log,
}
