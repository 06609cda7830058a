//! Tells whoever waits that the guest lives: one byte through a pipe, whose other end is closed by the end of the run
//! when nothing came.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What is written.
pub(crate) const LIFE: u8 = b'L';

/// The pipe, and the event that a sign of life raises.
#[derive(Debug)]
pub(crate) struct Ready {
    pipe: File,
    event: EventFd,
}

impl Ready {
    /// # Errors
    /// The system's reason.
    pub(crate) fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pipe: pipe.into(),
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// What to raise.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn event(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Readable once it was raised.
    pub(super) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// The guest lives.
    pub(super) fn tell(mut self) {
        // Whoever does not wait any more needs not be told.
        let _ = self.pipe.write_all(&[LIFE]);
    }
}
