//! One timer that wakes the loop: at once, or soon.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::stream::StreamError;

const IDLE: u8 = 0;
const LATER: u8 = 1;
const NOW: u8 = 2;

/// A timer shared by the vCPUs, which set it, and the loop, which clears it. Setting it twice costs one call.
pub(super) struct Alarm {
    timer: Option<OwnedFd>,
    state: AtomicU8,
}

impl Alarm {
    pub(super) fn new() -> Result<Self, StreamError> {
        // SAFETY: no memory is passed.
        let fd = unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(StreamError::Create {
                what: "a timer for a serial line",
                source: io::Error::last_os_error(),
            });
        }
        Ok(Self {
            // SAFETY: timerfd_create() just returned it, nobody else has it.
            timer: Some(unsafe { OwnedFd::from_raw_fd(fd) }),
            state: AtomicU8::new(IDLE),
        })
    }

    /// An alarm that nobody hears.
    pub(super) fn silent() -> Self {
        Self {
            timer: None,
            state: AtomicU8::new(IDLE),
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.timer.as_ref().map_or(-1, |timer| timer.as_raw_fd())
    }

    /// Wakes the loop at once.
    pub(super) fn now(&self) {
        if self.state.swap(NOW, Ordering::AcqRel) != NOW {
            self.set(Duration::from_nanos(1));
        }
    }

    /// Wakes the loop after `delay`, if it would not wake earlier anyway.
    pub(super) fn within(&self, delay: Duration) {
        let idle = self
            .state
            .compare_exchange(IDLE, LATER, Ordering::AcqRel, Ordering::Acquire);
        if idle.is_ok() {
            self.set(delay);
            // now() may have come between the exchange and set(): its earlier time must win.
            if self.state.load(Ordering::Acquire) == NOW {
                self.set(Duration::from_nanos(1));
            }
        }
    }

    /// The loop woke up; it must now look at everything anybody may have set the alarm for.
    pub(super) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: `count` is 8 bytes, which is what a timerfd gives. An early call finds nothing, which is fine:
        // the descriptor does not block.
        unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
        // Only after the read, which would otherwise swallow an alarm set in between and leave NOW behind.
        self.state.store(IDLE, Ordering::Release);
    }

    fn set(&self, delay: Duration) {
        let Some(timer) = &self.timer else { return };
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: delay.as_secs() as libc::time_t,
                tv_nsec: delay.subsec_nanos().into(),
            },
        };
        // SAFETY: `spec` outlives the call, no old value is asked for. It cannot fail with these arguments.
        unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    }
}
