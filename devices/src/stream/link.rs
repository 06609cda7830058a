//! A byte stream's host end on an event loop: who is connected, and what is watched for.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

use super::{Ends, Listener, ReadEnd, WriteEnd};
use crate::virtio::{Interest, Watch};

/// What a client that left had sent and the guest did not want yet: this much is kept, more than a socket buffers
/// (net.core.wmem_default is 208 KiB).
const SPILL_MAX: usize = 1 << 20;

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const LISTENER: u32 = 2;

/// What an event at the host end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// There may be input.
    Readable,
    /// There may be room for output.
    Writable,
    /// Clients came or left: the output end is another one now.
    Changed,
    /// Nothing to do.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unwatched,
    Watched(Interest),
    /// epoll refuses it: files and /dev/null are always ready.
    Always,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Link {
    input: Option<ReadEnd>,
    output: Option<Arc<WriteEnd>>,
    listener: Option<Listener>,
    /// The client on the listener's socket; its output end tells when it leaves.
    client: Option<Arc<WriteEnd>>,
    spill: Vec<u8>,
    /// Tokens `token` to `token + 2` are this link's.
    token: u32,
    input_state: State,
    output_state: State,
    listening: bool,
}

impl Link {
    /// Tokens a link needs.
    pub(crate) const TOKENS: u32 = 3;

    pub(crate) fn new(ends: Ends, token: u32) -> Self {
        Self {
            input: ends.input,
            output: ends.output.map(Arc::new),
            listener: ends.listener,
            client: None,
            spill: Vec::new(),
            token,
            input_state: State::Unwatched,
            output_state: State::Unwatched,
            listening: false,
        }
    }

    /// Nothing will ever be read from or written to it.
    pub(crate) fn is_null(&self) -> bool {
        self.input.is_none() && self.output.is_none() && self.listener.is_none()
    }

    /// The output end, if there is one now.
    pub(crate) fn output(&self) -> Option<&Arc<WriteEnd>> {
        self.output.as_ref()
    }

    /// An event will come when there is input.
    pub(crate) fn awaits_input(&self) -> bool {
        matches!(self.input_state, State::Watched(_))
    }

    /// Input may come, or has been left behind.
    pub(crate) fn has_input(&self) -> bool {
        self.input.is_some() || !self.spill.is_empty()
    }

    /// Whether a client is connected to the listener.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Whether the other end is whoever connects.
    pub(crate) fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// Starts, or starts again after [`Self::stop`].
    pub(crate) fn start(&mut self, watch: &mut dyn Watch) {
        if let Some(client) = &self.client {
            let fd = client.as_raw_fd();
            self.output_state = set(watch, fd, self.token + OUTPUT, Interest::default());
        } else {
            self.listen(watch);
        }
    }

    /// Stops watching everything; clients stay connected.
    pub(crate) fn stop(&mut self, watch: &mut dyn Watch) {
        self.want_input(false, watch);
        if let Some(fd) = self.output_fd() {
            watch.unwatch(fd);
        }
        self.output_state = State::Unwatched;
        if let (Some(listener), true) = (&self.listener, self.listening) {
            watch.unwatch(listener.as_raw_fd());
        }
        self.listening = false;
    }

    /// Says whether input is wanted. True: it is always ready and no event will come, so read now.
    pub(crate) fn want_input(&mut self, wanted: bool, watch: &mut dyn Watch) -> bool {
        let Some(fd) = self.input.as_ref().map(|i| i.as_raw_fd()) else {
            return wanted && !self.spill.is_empty();
        };
        match (self.input_state, wanted) {
            (State::Always, _) => return wanted,
            (State::Unwatched, true) => {
                let interest = Interest {
                    readable: true,
                    writable: false,
                };
                self.input_state = set(watch, fd, self.token + INPUT, interest);
            }
            // Not merely without interest: a hang-up would wake the loop for ever.
            (State::Watched(_), false) => {
                watch.unwatch(fd);
                self.input_state = State::Unwatched;
            }
            _ => {}
        }
        wanted && (self.input_state == State::Always || !self.spill.is_empty())
    }

    /// Says whether room for output is waited for. True: it is always ready and no event will come, so write now.
    pub(crate) fn want_output(&mut self, wanted: bool, watch: &mut dyn Watch) -> bool {
        let Some(fd) = self.output_fd() else {
            return false;
        };
        let interest = Interest {
            readable: false,
            writable: wanted && self.output.is_some(),
        };
        match self.output_state {
            State::Always => return wanted,
            State::Watched(now) if now == interest => {}
            State::Unwatched if !wanted => {}
            State::Watched(_) if !interest.writable && self.client.is_none() => {
                watch.unwatch(fd);
                self.output_state = State::Unwatched;
            }
            _ => self.output_state = set(watch, fd, self.token + OUTPUT, interest),
        }
        wanted && self.output_state == State::Always
    }

    /// Reads input, what an earlier client left behind first. `Ok(0)`: it ended; the link has taken note.
    pub(crate) fn read(&mut self, buf: &mut [u8], watch: &mut dyn Watch) -> io::Result<usize> {
        if !self.spill.is_empty() {
            let n = buf.len().min(self.spill.len());
            buf[..n].copy_from_slice(&self.spill[..n]);
            self.spill.drain(..n);
            return Ok(n);
        }
        let Some(input) = &self.input else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let read = input.read(buf);
        self.after_read(read, watch)
    }

    /// The input end for a vectored read, unless an earlier client left something to be read by [`Self::read`].
    pub(crate) fn direct_input(&self) -> Option<&ReadEnd> {
        self.input.as_ref().filter(|_| self.spill.is_empty())
    }

    /// Takes note of the outcome of a read from [`Self::direct_input`]. Errors other than `WouldBlock` and
    /// `Interrupted` end the input.
    pub(crate) fn after_read(
        &mut self,
        read: io::Result<usize>,
        watch: &mut dyn Watch,
    ) -> io::Result<usize> {
        match read {
            Ok(n) if n > 0 => Ok(n),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Err(e)
            }
            // End of input, or a read error: a terminal that hung up says EIO.
            _ => {
                self.want_input(false, watch);
                self.input = None;
                self.input_state = State::Unwatched;
                self.release(watch);
                Ok(0)
            }
        }
    }

    /// Nobody reads the output any more. A client that left altogether is let go.
    pub(crate) fn output_gone(&mut self, watch: &mut dyn Watch) {
        if self.client.is_some() {
            self.drain(watch);
            // Left over only if the client closed one direction in a way nobody does: it has left all the same.
            self.want_input(false, watch);
            self.input = None;
            self.input_state = State::Unwatched;
        }
        if let Some(fd) = self.output_fd() {
            watch.unwatch(fd);
        }
        self.output_state = State::Unwatched;
        self.output = None;
        self.client = None;
        self.release(watch);
    }

    /// Handles an event of one of this link's tokens.
    pub(crate) fn event(&mut self, token: u32, hangup: bool, watch: &mut dyn Watch) -> LinkEvent {
        match token.wrapping_sub(self.token) {
            INPUT => LinkEvent::Readable,
            OUTPUT if hangup && self.client.is_some() => {
                self.output_gone(watch);
                LinkEvent::Changed
            }
            OUTPUT => LinkEvent::Writable,
            LISTENER => self.accept(watch),
            _ => LinkEvent::Nothing,
        }
    }

    /// Keeps what a client that left had sent, if the guest is not reading: the next client must not wait for it.
    fn drain(&mut self, watch: &mut dyn Watch) {
        let mut piece = [0; 4096];
        while let Some(input) = &self.input {
            let read = input.read(&mut piece);
            match self.after_read(read, watch) {
                Ok(n) => {
                    let room = SPILL_MAX.saturating_sub(self.spill.len());
                    self.spill.extend_from_slice(&piece[..n.min(room)]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn accept(&mut self, watch: &mut dyn Watch) -> LinkEvent {
        let Some(listener) = self.listener.as_ref().filter(|_| self.listening) else {
            return LinkEvent::Nothing;
        };
        // A client that gave up in between, or no descriptors left: the next event tries again.
        let Ok(ends) = listener.accept() else {
            return LinkEvent::Nothing;
        };
        watch.unwatch(listener.as_raw_fd());
        self.listening = false;
        let takes_output = listener.takes_output();
        if ends.input.is_some() {
            self.input = ends.input;
        }
        self.client = ends.output.map(Arc::new);
        if takes_output {
            self.output = self.client.clone();
        }
        self.start(watch);
        LinkEvent::Changed
    }

    /// Listens again once the client has neither input nor output.
    fn release(&mut self, watch: &mut dyn Watch) {
        if self.client.is_none() {
            self.listen(watch);
        }
    }

    fn listen(&mut self, watch: &mut dyn Watch) {
        if let Some(listener) = &self.listener
            && !self.listening
        {
            let interest = Interest {
                readable: true,
                writable: false,
            };
            let state = set(watch, listener.as_raw_fd(), self.token + LISTENER, interest);
            self.listening = state == State::Watched(interest);
        }
    }

    fn output_fd(&self) -> Option<RawFd> {
        let end = self.client.as_ref().or(self.output.as_ref())?;
        Some(end.as_raw_fd())
    }
}

fn set(watch: &mut dyn Watch, fd: RawFd, token: u32, interest: Interest) -> State {
    match watch.watch(fd, token, interest) {
        Ok(()) => State::Watched(interest),
        Err(_) => State::Always,
    }
}
