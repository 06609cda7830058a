//! The line protocol with the host on the port `vsc.ctl`, and the kernel log for those who have no such port.

use alloc::format;
use alloc::vec::Vec;
use core::fmt::Display;

use crate::ports::{GRACE, Liveness};
use crate::sys::{self, EINTR, Errno, Fd, POLLHUP, POLLIN, POLLOUT, PollFd};

/// The longest line the host sends, with room to spare: `winsize 65535 65535`.
const LINE: usize = 64;

/// What the host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Signal(u32),
    WindowSize(u16, u16),
    PowerOff,
}

pub struct Control {
    port: Option<(Fd, Liveness)>,
    pending: Vec<u8>,
    line: [u8; LINE],
    length: usize,
}

impl Control {
    pub const fn new() -> Self {
        Self {
            port: None,
            pending: Vec::new(),
            line: [0; LINE],
            length: 0,
        }
    }

    pub fn attach(&mut self, port: Fd) {
        self.port = Some((port, Liveness::new(GRACE)));
        self.flush();
    }

    pub fn attached(&self) -> bool {
        self.port.is_some()
    }

    /// Queues one line for the host and writes what can be written without waiting.
    pub fn say(&mut self, line: impl Display) {
        // A line stays one, whatever a file name in it contains.
        let text = format!("{line}");
        self.pending.extend(
            text.bytes()
                .map(|byte| if byte < b' ' { b'?' } else { byte }),
        );
        self.pending.push(b'\n');
        self.flush();
    }

    /// Says on the kernel log and to the host that something failed.
    pub fn error(&mut self, text: impl Display) {
        log(&text);
        self.say(format_args!("error {text}"));
    }

    pub fn flush(&mut self) {
        let Some((port, _)) = self.port else { return };
        while !self.pending.is_empty() {
            match sys::write(port, &self.pending) {
                Ok(count) if count > 0 => drop(self.pending.drain(..count)),
                Err(EINTR) => {}
                _ => break,
            }
        }
    }

    /// What to poll: nothing without a port. Shortens `timeout` while the host has not opened its side yet.
    pub fn interest(&mut self, timeout: &mut i32) -> Option<PollFd> {
        let (port, liveness) = self.port.as_mut()?;
        if !liveness.check(*port) {
            if liveness.expired() {
                self.port = None;
            } else {
                *timeout = 1;
            }
            return None;
        }
        let output = if self.pending.is_empty() { 0 } else { POLLOUT };
        Some(PollFd {
            fd: port.0,
            events: POLLIN | output,
            revents: 0,
        })
    }

    /// Reads what the host sent and calls `obey` for each request. A host that closed its side says no more.
    pub fn receive(&mut self, revents: i16, mut obey: impl FnMut(Request)) {
        let Some((port, _)) = self.port else { return };
        let mut buffer = [0_u8; 256];
        if revents & POLLIN != 0 {
            while let Ok(count @ 1..) = sys::read(port, &mut buffer) {
                for &byte in &buffer[..count] {
                    if byte != b'\n' {
                        if let Some(place) = self.line.get_mut(self.length) {
                            *place = byte;
                        }
                        self.length = (self.length + 1).min(LINE + 1);
                        continue;
                    }
                    let length = core::mem::take(&mut self.length);
                    match self.line.get(..length).and_then(parse) {
                        Some(request) => obey(request),
                        None => log(&"unknown request on vsc.ctl"),
                    }
                }
            }
        } else if revents & POLLHUP != 0 {
            sys::close(port);
            self.port = None;
        }
    }

    /// Writes what is pending, waiting at most `wait` milliseconds for the host, and closes the port: the driver
    /// returns from that only when the host has seen it.
    pub fn finish(&mut self, wait: u64) {
        let deadline = sys::now() + wait;
        loop {
            self.flush();
            if self.pending.is_empty() || sys::now() >= deadline {
                break;
            }
            let mut timeout = 100;
            match self.interest(&mut timeout) {
                Some(PollFd { fd, .. }) => sys::poll(
                    &mut [PollFd {
                        fd,
                        events: POLLOUT,
                        revents: 0,
                    }],
                    timeout,
                ),
                None if self.port.is_some() => sys::poll(&mut [], timeout),
                None => break,
            };
        }
        if let Some((port, _)) = self.port.take() {
            sys::close(port);
        }
    }
}

fn parse(line: &[u8]) -> Option<Request> {
    let mut words = core::str::from_utf8(line).ok()?.split(' ');
    let request = match words.next()? {
        "signal" => Request::Signal(
            words
                .next()?
                .parse()
                .ok()
                .filter(|signal| (1..=64).contains(signal))?,
        ),
        "winsize" => Request::WindowSize(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        "poweroff" => Request::PowerOff,
        _ => return None,
    };
    words.next().is_none().then_some(request)
}

/// One line on the kernel log, of priority "error".
fn log(text: &dyn Display) {
    if let Ok(kmsg) = sys::open(c"/dev/kmsg", sys::O_WRONLY) {
        let _: Result<usize, Errno> = sys::write(kmsg, format!("<3>vsc-init: {text}\n").as_bytes());
        sys::close(kmsg);
    }
}
