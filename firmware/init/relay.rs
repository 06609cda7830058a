//! One direction of a standard stream: from a port to the command's pipe, or back. Nothing here ever blocks.
//!
//! The command gets pipes and not the ports themselves: a port can be opened only once, so `/dev/stderr` would fail in
//! every shell script, and its end could not be told from a pause.

use alloc::boxed::Box;
use alloc::vec;

use crate::ports::{GRACE, INPUT_GRACE, Liveness};
use crate::sys::{self, EAGAIN, EINTR, Fd, POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, PollFd};

/// The port's driver takes at most 32 KiB with one write (drivers/char/virtio_console.c, port_fops_write).
const CHUNK: usize = 32 << 10;

pub struct Relay {
    from: Fd,
    to: Fd,
    to_port: bool,
    open: bool,
    host: Liveness,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Relay {
    /// A relay between two non-blocking files, one of which is a port: the second if `to_port`.
    pub fn new(from: Fd, to: Fd, to_port: bool) -> Self {
        let buffer = vec![0; CHUNK].into_boxed_slice();
        Self {
            from,
            to,
            to_port,
            open: true,
            host: Liveness::new(if to_port { GRACE } else { INPUT_GRACE }),
            buffer,
            start: 0,
            end: 0,
        }
    }

    pub fn finished(&self) -> bool {
        !self.open
    }

    /// Closes both files: the other side of the pipe sees its end or a broken pipe, the host a closed port.
    pub fn close(&mut self) {
        if core::mem::take(&mut self.open) {
            sys::close(self.from);
            sys::close(self.to);
        }
    }

    /// Moves what can be moved now; ends with the input, or when nobody takes the output.
    pub fn pump(&mut self, timeout: &mut i32) {
        let port = if self.to_port { self.to } else { self.from };
        if !self.open {
            return;
        }
        if !self.host.check(port) {
            if self.host.expired() {
                self.close();
            } else {
                *timeout = 1;
            }
            return;
        }
        // Bounded: other streams and the host's requests have their turn.
        for _ in 0..64 {
            if self.start == self.end {
                match sys::read(self.from, &mut self.buffer) {
                    Ok(0) => return self.close(),
                    Ok(count) => (self.start, self.end) = (0, count),
                    Err(EINTR) => continue,
                    Err(EAGAIN) => return,
                    Err(_) => return self.close(),
                }
            }
            match sys::write(self.to, &self.buffer[self.start..self.end]) {
                Ok(count) => self.start += count,
                Err(EINTR) => {}
                Err(EAGAIN) => return,
                Err(_) => return self.close(),
            }
        }
        *timeout = 0;
    }

    /// What to wait for: something to read, with an eye on the other end; or room to write.
    pub fn interest(&self) -> [Option<PollFd>; 2] {
        let watch = |fd: Fd, events| {
            Some(PollFd {
                fd: fd.0,
                events,
                revents: 0,
            })
        };
        if !self.open || !self.host.seen() {
            [None, None]
        } else if self.start == self.end {
            [watch(self.from, POLLIN), watch(self.to, 0)]
        } else {
            [None, watch(self.to, POLLOUT)]
        }
    }

    /// Takes note of what [`Self::interest`]'s second entry brought: nobody reads any more.
    pub fn noticed(&mut self, revents: i16) {
        if revents & (POLLERR | POLLHUP | POLLNVAL) != 0 {
            self.close();
        }
    }
}
