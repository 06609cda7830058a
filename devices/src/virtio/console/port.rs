//! One port: bytes between the guest's buffers and the host's descriptors, without a copy.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::console_log::ConsoleLog;
use crate::source::Stop;
use crate::stream::{InputFilter, Link};
use crate::virtio::{Chain, VirtQueue, Watch};

/// Buffers served by one system call.
const BATCH: usize = 16;
/// Most bytes moved before other clients of the loop get their turn.
const TURN: usize = 1 << 20;
/// Copied at once where a copy is needed: to the log, through a filter.
const PIECE: usize = 4096;

/// How a pump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more to do until an event or a kick.
    Rest,
    /// There is more to do: the turn was over.
    More,
    /// The host's end was closed: no more input, or nobody reads the output.
    Ended,
}

/// Buffers of one direction, popped and not returned yet.
#[derive(Default)]
struct Side {
    queue: Option<VirtQueue>,
    chains: VecDeque<Chain>,
    spare: Vec<Chain>,
    /// Bytes of the first chain that are done.
    offset: u64,
    /// The driver was asked not to kick.
    quiet: bool,
}

impl Side {
    /// Pops until there is a batch. False: there is no buffer at all.
    fn fill(&mut self) -> bool {
        let Some(queue) = &mut self.queue else {
            return false;
        };
        if !std::mem::replace(&mut self.quiet, true) {
            queue.suppress();
        }
        loop {
            while self.chains.len() < BATCH {
                let mut chain = self.spare.pop().unwrap_or_default();
                if !queue.pop(&mut chain) {
                    self.spare.push(chain);
                    break;
                }
                self.chains.push_back(chain);
            }
            if !self.chains.is_empty() {
                return true;
            }
            queue.notify();
            if !queue.rearm() {
                self.quiet = false;
                return false;
            }
            queue.suppress();
        }
    }

    /// Gives the first chain back.
    fn finish_first(&mut self, written: u32) {
        if let (Some(chain), Some(queue)) = (self.chains.pop_front(), &mut self.queue) {
            queue.push(chain.head, written);
            self.spare.push(chain);
        }
        self.offset = 0;
    }

    fn notify(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.notify();
        }
    }

    fn restart(&mut self, queue: Option<VirtQueue>) {
        self.queue = queue;
        self.chains.clear();
        self.offset = 0;
        self.quiet = false;
    }

    /// The host memory of all chains, without the first `offset` bytes, at most [`TURN`] bytes of it.
    fn vectors(&self, writable: bool, vectors: &mut Vec<libc::iovec>) {
        let Some(queue) = &self.queue else { return };
        for chain in &self.chains {
            let parts = if writable {
                &chain.writable
            } else {
                &chain.readable
            };
            if vectors.len() + parts.len() > libc::UIO_MAXIOV as usize && !vectors.is_empty() {
                break;
            }
            queue.iovecs(parts, vectors);
        }
        let (mut skip, mut room) = (self.offset as usize, TURN);
        vectors.retain_mut(|vector| {
            let skipped = skip.min(vector.iov_len);
            skip -= skipped;
            vector.iov_base = vector.iov_base.wrapping_byte_add(skipped);
            vector.iov_len = (vector.iov_len - skipped).min(room);
            room -= vector.iov_len;
            vector.iov_len > 0
        });
    }
}

/// A port with both its ends.
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) console: bool,
    pub(super) link: Link,
    pub(super) filter: Option<Box<dyn InputFilter>>,
    log: Option<ConsoleLog>,
    /// Filtered input that waits for guest buffers.
    staged: Vec<u8>,
    to_guest: Side,
    from_guest: Side,
    /// The driver knows the port (PORT_READY).
    pub(super) ready: bool,
    /// A process in the guest has it open; without MULTIPORT always true.
    pub(super) guest_open: bool,
    /// What the driver was last told of the host's end.
    pub(super) told_open: bool,
    /// The input ended and a guest reader is to be told by PORT_OPEN 0.
    pub(super) ended: bool,
    /// The guest is told by PORT_OPEN 0 when the output breaks.
    pub(super) breaks: bool,
    /// It broke and was told: output is neither taken nor dropped until the guest has closed the port.
    pub(super) holds: bool,
    /// Output bytes that nobody was there to take.
    pub(super) dropped: u64,
}

impl Port {
    pub(super) fn new(
        name: Option<String>,
        console: bool,
        link: Link,
        log: Option<ConsoleLog>,
    ) -> Self {
        Self {
            name,
            console,
            link,
            filter: None,
            log,
            staged: Vec::new(),
            to_guest: Side::default(),
            from_guest: Side::default(),
            ready: false,
            guest_open: false,
            told_open: false,
            ended: false,
            breaks: false,
            holds: false,
            dropped: 0,
        }
    }

    /// Takes or, with `None`, gives up the queues.
    pub(super) fn restart(&mut self, to_guest: Option<VirtQueue>, from_guest: Option<VirtQueue>) {
        self.to_guest.restart(to_guest);
        self.from_guest.restart(from_guest);
        self.ready = false;
        self.guest_open = false;
        self.told_open = false;
        self.holds = false;
    }

    /// Moves input to the guest.
    pub(super) fn pump_input(&mut self, watch: &mut dyn Watch) -> Pumped {
        let mut moved = 0;
        let end = loop {
            if !self.guest_open || !self.to_guest.fill() {
                self.link.want_input(false, watch);
                break Pumped::Rest;
            }
            let taken = match self.filter.is_some() || self.link.direct_input().is_none() {
                true => self.read_copied(watch),
                false => self.read_direct(watch),
            };
            match taken {
                Ok(0) => break Pumped::Ended,
                Ok(n) => moved += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.link.want_input(true, watch);
                    break Pumped::Rest;
                }
            }
            if moved >= TURN {
                break Pumped::More;
            }
            self.to_guest.notify();
        };
        self.to_guest.notify();
        end
    }

    fn read_direct(&mut self, watch: &mut dyn Watch) -> io::Result<usize> {
        let mut vectors = Vec::with_capacity(BATCH);
        self.to_guest.vectors(true, &mut vectors);
        if vectors.is_empty() {
            return self.return_empty();
        }
        let Some(input) = self.link.direct_input() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        // SAFETY: the vectors are guest memory of the chains in `to_guest`, checked by `VirtQueue::pop`, which the
        // queue's `Memory` keeps mapped; the guest changing it meanwhile is as with any DMA.
        let read = unsafe { input.readv(&vectors) };
        let n = self.link.after_read(read, watch)?;
        let mut left = n as u64;
        while left > 0 {
            let Some(chain) = self.to_guest.chains.front() else {
                break;
            };
            let part = chain.writable_len().min(left);
            left -= part;
            // No more than TURN bytes were read.
            self.to_guest.finish_first(part as u32);
        }
        Ok(n)
    }

    /// Through a buffer: input that goes through a filter, or that an earlier client left behind.
    fn read_copied(&mut self, watch: &mut dyn Watch) -> io::Result<usize> {
        if self.staged.is_empty() {
            let mut piece = [0; PIECE];
            let n = self.link.read(&mut piece, watch)?;
            if n == 0 {
                return Ok(0);
            }
            self.staged.extend_from_slice(&piece[..n]);
            if let Some(filter) = &mut self.filter {
                filter.filter(&mut self.staged);
            }
            if self.staged.is_empty() {
                return Ok(n);
            }
        }
        let side = &mut self.to_guest;
        let (Some(queue), Some(chain)) = (&side.queue, side.chains.front()) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let n = queue.write_to(&chain.writable, 0, &self.staged);
        side.finish_first(n as u32);
        self.staged.drain(..n);
        // Not 0, which would be the end of the input: an empty buffer is progress too.
        Ok(n.max(1))
    }

    /// The driver offered buffers without room.
    fn return_empty(&mut self) -> io::Result<usize> {
        self.to_guest.finish_first(0);
        Ok(1)
    }

    /// Moves output to the host.
    pub(super) fn pump_output(&mut self, watch: &mut dyn Watch) -> Pumped {
        let mut moved = 0;
        let end = loop {
            if self.output_done() {
                self.link.want_output(false, watch);
                break Pumped::Rest;
            }
            let mut vectors = Vec::with_capacity(BATCH);
            self.from_guest.vectors(false, &mut vectors);
            let offered: usize = vectors.iter().map(|v| v.iov_len).sum();
            let written = match self.link.output() {
                _ if offered == 0 => Ok(0),
                // SAFETY: the vectors are guest memory of the chains in `from_guest`, checked by `VirtQueue::pop`,
                // which the queue's `Memory` keeps mapped; the guest changing it meanwhile is as with any DMA.
                Some(output) => unsafe { output.writev(&vectors) },
                None => {
                    self.dropped += offered as u64;
                    Ok(offered)
                }
            };
            match written {
                Ok(n) => {
                    self.advance(n as u64);
                    moved += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.link.want_output(true, watch);
                    break Pumped::Rest;
                }
                Err(_) => {
                    // What is left is dropped from now on.
                    self.link.output_gone(watch);
                    break Pumped::Ended;
                }
            }
            if moved >= TURN {
                break Pumped::More;
            }
        };
        self.from_guest.notify();
        end
    }

    /// Whether the host has all output that the driver has offered, or will have no more of it.
    pub(super) fn output_done(&mut self) -> bool {
        self.holds || !self.from_guest.fill()
    }

    /// Moves all output to the host, waiting for its reader, until `stop` is raised.
    pub(super) fn drain_output(&mut self, stop: &Stop, watch: &mut dyn Watch) {
        while !self.output_done() && !stop.is_raised() {
            if self.pump_output(watch) != Pumped::Rest || self.output_done() {
                continue;
            }
            let Some(output) = self.link.output() else {
                continue;
            };
            let pollfd = |fd, events| libc::pollfd {
                fd,
                events,
                revents: 0,
            };
            let mut ends = [
                pollfd(output.as_raw_fd(), libc::POLLOUT),
                pollfd(stop.fd(), libc::POLLIN),
            ];
            // SAFETY: two pollfds that outlive the call.
            unsafe { libc::poll(ends.as_mut_ptr(), 2, -1) };
        }
    }

    /// `n` bytes of output are done: logs them and gives back the chains they complete.
    fn advance(&mut self, mut n: u64) {
        let side = &mut self.from_guest;
        while let (Some(chain), Some(queue)) = (side.chains.front(), &side.queue) {
            let left = chain.readable_len().saturating_sub(side.offset);
            let part = left.min(n);
            if let Some(log) = &self.log {
                let (mut at, end) = (side.offset, side.offset + part);
                let mut piece = [0; PIECE];
                while at < end {
                    let want = PIECE.min((end - at) as usize);
                    let got = queue.read_from(&chain.readable, at, &mut piece[..want]);
                    if got == 0 {
                        break;
                    }
                    log.push(&piece[..got]);
                    at += got as u64;
                }
            }
            n -= part;
            if part < left {
                side.offset += part;
                return;
            }
            side.finish_first(0);
            if n == 0 {
                return;
            }
        }
    }
}
