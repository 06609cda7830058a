//! Virtio 1.x devices ("VIRTIO" below: the OASIS Virtual I/O Device specification, version 1.3).
//!
//! A [`Device`] knows its features, its configuration space and what to do with a queue. It knows neither how the
//! guest reaches it ([`transport`]) nor which thread and event loop it runs on ([`worker`]).

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::Memory;

pub mod blk;
pub mod config;
pub mod console;
pub mod queue;
pub mod rng;
pub mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod worker;

pub use config::ConfigSpace;
pub use queue::{Chain, Segment, VirtQueue};
pub use stats::{CounterSnapshot, Counters};

/// How a device tells the driver that something happened. Implemented by each transport.
pub trait Interrupt: Send + Sync {
    /// Used buffers were added to queue `index` (VIRTIO 2.3).
    fn queue(&self, index: u16);
    /// The configuration space changed (VIRTIO 2.3).
    fn config(&self);
    /// The device cannot go on until it is reset: sets DEVICE_NEEDS_RESET (VIRTIO 2.1.2), counts it, and logs the
    /// reason once.
    fn needs_reset(&self, reason: &str);
}

/// All that a device gets when the driver sets DRIVER_OK.
pub struct Activation {
    /// Guest RAM.
    pub memory: Memory,
    /// Feature bits both sides agreed on.
    pub features: u64,
    /// One entry per queue the device offers; `None` where the driver left it unused.
    pub queues: Vec<Option<VirtQueue>>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// What a device wants to hear of a descriptor it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Readable, or peer closed.
    pub readable: bool,
    /// Writable.
    pub writable: bool,
}

/// The loop, as far as a device may see it.
pub trait Watch {
    /// Starts or changes watching `fd`; events arrive at [`Device::event`] with `token`. Level-triggered. An
    /// interest in neither direction keeps it registered for hang-ups only.
    ///
    /// # Errors
    /// `EPERM` for regular files, which are always ready: treat them so.
    fn watch(&mut self, fd: RawFd, token: u32, interest: Interest) -> std::io::Result<()>;
    /// Stops watching `fd`. Harmless when it is not watched.
    fn unwatch(&mut self, fd: RawFd);
}

/// A virtio device. Created on the main thread, moved to its loop by the first DRIVER_OK, and back by a reset.
pub trait Device: Send {
    /// Device type (VIRTIO 5).
    fn id(&self) -> u32;
    /// Name for messages: `disk0`, `rng`, `console`.
    fn name(&self) -> &str;
    /// Feature bits of this device type; the transport adds VERSION_1, EVENT_IDX and INDIRECT_DESC.
    fn features(&self) -> u64;
    /// Largest size of each queue, entries.
    fn queue_sizes(&self) -> &[u16];
    /// The configuration space, shared with the transport.
    fn config(&self) -> Arc<ConfigSpace>;
    /// Takes the queues. Called on the loop's thread.
    ///
    /// # Errors
    /// A reason in words; the device then goes to DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation, watch: &mut dyn Watch) -> Result<(), String>;
    /// The driver kicked queue `index`. Serve it until [`VirtQueue::rearm`] says that nothing is left, or come back
    /// to it on an event: this is not called again for buffers that were there already.
    fn kick(&mut self, index: u16, watch: &mut dyn Watch);
    /// A watched descriptor is ready. `hangup` is set when its peer is gone.
    fn event(&mut self, token: u32, ready: Interest, hangup: bool, watch: &mut dyn Watch) {
        let _ = (token, ready, hangup, watch);
    }
    /// Finishes or cancels what is in flight, forgets the queues, stops watching. Afterwards nothing writes to
    /// guest memory until the next activation.
    fn reset(&mut self, watch: &mut dyn Watch);
}
