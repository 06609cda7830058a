//! poll(2) over a handful of descriptors that change from round to round.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

/// One round.
#[derive(Debug, Default)]
pub(crate) struct Poll(Vec<libc::pollfd>);

/// Which descriptor of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(usize);

/// What became ready.
#[derive(Debug)]
pub(crate) struct Ready(Vec<libc::pollfd>);

impl Poll {
    /// Nothing to wait for yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Waits for `fd` to be readable or closed.
    pub(crate) fn read(&mut self, fd: RawFd) -> Token {
        self.add(fd, libc::POLLIN)
    }

    /// Waits for `fd` to be writable or closed.
    pub(crate) fn write(&mut self, fd: RawFd) -> Token {
        self.add(fd, libc::POLLOUT)
    }

    /// Waits for `fd` to be closed by its other end.
    pub(crate) fn closed(&mut self, fd: RawFd) -> Token {
        self.add(fd, 0)
    }

    fn add(&mut self, fd: RawFd, events: i16) -> Token {
        self.0.push(libc::pollfd {
            fd,
            events,
            revents: 0,
        });
        Token(self.0.len() - 1)
    }

    /// Waits until one is ready or `until` has come. A signal ends the wait too.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) fn wait(mut self, until: Option<Instant>) -> io::Result<Ready> {
        let timeout = until.map_or(-1, |at| {
            // Rounded up, so that the time has really come afterwards.
            let millis = at
                .saturating_duration_since(Instant::now())
                .as_micros()
                .div_ceil(1000);
            i32::try_from(millis).unwrap_or(i32::MAX)
        });
        // SAFETY: the array and its length belong together.
        let n = unsafe { libc::poll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, timeout) };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
            self.0.iter_mut().for_each(|p| p.revents = 0);
        }
        Ok(Ready(self.0))
    }
}

impl Ready {
    /// Whether this one is ready (or closed, or broken: the next call on it will tell).
    pub(crate) fn is(&self, token: Token) -> bool {
        self.0[token.0].revents != 0
    }
}
