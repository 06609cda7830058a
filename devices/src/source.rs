//! Clients of an event loop that are not virtio devices.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::{Interest, Watch};

/// Something that waits for descriptors on an I/O loop, without queues: a serial line's host end, a clock.
pub trait Source: Send {
    /// Starts watching. Called once on the loop's thread.
    fn start(&mut self, watch: &mut dyn Watch);
    /// A watched descriptor is ready; as for [`crate::virtio::Device::event`].
    fn event(&mut self, token: u32, ready: Interest, hangup: bool, watch: &mut dyn Watch);
    /// Stops watching. Called on the loop's thread before the source is taken off the loop.
    fn stop(&mut self, watch: &mut dyn Watch);
}

/// Tells threads that wait inside a register access that the machine is about to stop. Clones share one state.
#[derive(Debug, Clone)]
pub struct Stop {
    inner: Arc<(AtomicBool, EventFd)>,
}

impl Stop {
    /// A flag that is not raised.
    ///
    /// # Errors
    /// Of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inner: Arc::new((AtomicBool::new(false), EventFd::new(EFD_NONBLOCK)?)),
        })
    }

    /// Ends every wait, now and in future. Callable from any thread, not from a signal handler.
    pub fn raise(&self) {
        self.inner.0.store(true, Ordering::Release);
        // The counter cannot overflow by this: a failure leaves it readable all the same.
        let _ = self.inner.1.write(1);
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.inner.0.load(Ordering::Acquire)
    }

    /// Readable for ever once the flag is raised.
    pub(crate) fn fd(&self) -> RawFd {
        self.inner.1.as_raw_fd()
    }
}
