//! Requests from the queue to the disk and back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};

use super::config::WRITEBACK;
use super::request::{self, Command, HEADER, Limits, Range};
use super::spec::{Policy, SERIAL_MAX};
use super::{BlkCounters, Chain, ConfigSpace, VirtQueue};
use crate::block::{Completion, Disk, Iovecs, Note, Op, Request};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// One request from pop to push.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) queue: u16,
    chain: Chain,
    iovecs: Iovecs,
    /// For the used ring and the counters.
    command: Option<Command>,
    ranges: Vec<Range>,
    /// Ranges begun.
    next: usize,
    durable: bool,
}

/// Everything but the queues.
pub(super) struct Work {
    pub(super) disk: Box<dyn Disk>,
    pub(super) config: Arc<ConfigSpace>,
    pub(super) features: u64,
    pub(super) negotiated: u64,
    pub(super) limits: Limits,
    pub(super) policy: Policy,
    pub(super) serial: [u8; SERIAL_MAX],
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) in_flight: usize,
    pub(super) done: Vec<Completion>,
    pub(super) counters: Arc<BlkCounters>,
    pub(super) note: Note,
    pub(super) name: String,
}

impl Work {
    /// Takes a request off the queue, into a slot.
    pub(super) fn pop(&mut self, queue: &mut VirtQueue) -> Option<u32> {
        if self.free.is_empty() {
            self.free.push(u32::try_from(self.slots.len()).ok()?);
            self.slots.push(Slot::default());
        }
        let tag = *self.free.last()?;
        let slot = self.slots.get_mut(tag as usize)?;
        if !queue.pop(&mut slot.chain) {
            return None;
        }
        self.free.pop();
        self.in_flight += 1;
        Some(tag)
    }

    /// Waits for a request for a while, unless the disk has something to say first.
    pub(super) fn spin(&mut self, queue: &mut VirtQueue, time: Duration) -> Option<u32> {
        let start = Instant::now();
        loop {
            let popped = self.pop(queue);
            if popped.is_some() || self.in_flight > 0 || start.elapsed() >= time {
                return popped;
            }
            std::hint::spin_loop();
        }
    }

    /// Starts a request; it may end at once. Returns the bytes it moves.
    pub(super) fn begin(&mut self, queue: &mut VirtQueue, tag: u32, alone: bool) -> u64 {
        let durable = self.durable();
        let Some(slot) = self.slots.get_mut(tag as usize) else {
            return 0;
        };
        slot.queue = queue.index();
        slot.command = None;
        slot.next = 0;
        slot.durable = durable;
        slot.iovecs.clear();
        if slot.chain.writable.is_empty() {
            queue.fail("a disk request has no room for its status");
            self.release(tag);
            return 0;
        }
        let command = match request::parse(queue, &slot.chain, &self.limits, &mut slot.ranges) {
            Ok(command) => command,
            Err(status) => {
                self.finish(queue, tag, status);
                return 0;
            }
        };
        slot.command = Some(command);
        let request = |op, offset, len| Request {
            tag,
            op,
            offset,
            len,
            alone,
        };
        let (request, moved) = match command {
            Command::Read { offset, len } => {
                queue.iovecs(&slot.chain.writable, slot.iovecs.inner());
                slot.iovecs.trim_back(1);
                (request(Op::Read, offset, len), len)
            }
            Command::Write { offset, len } => {
                queue.iovecs(&slot.chain.readable, slot.iovecs.inner());
                slot.iovecs.skip_front(HEADER);
                (request(Op::Write { durable }, offset, len), len)
            }
            Command::Flush if self.policy.no_flush || self.limits.read_only => {
                self.finish(queue, tag, OK);
                return 0;
            }
            Command::Flush => (request(Op::Flush, 0, 0), 0),
            Command::Id => {
                let room = slot.chain.writable_len().saturating_sub(1);
                let room = usize::try_from(room).unwrap_or(SERIAL_MAX).min(SERIAL_MAX);
                let serial = self.serial.get(..room).unwrap_or_default();
                queue.write_to(&slot.chain.writable, 0, serial);
                self.finish(queue, tag, OK);
                return 0;
            }
            Command::Discard | Command::WriteZeroes => {
                self.ranges(queue, tag, alone);
                return 0;
            }
        };
        if matches!(command, Command::Read { .. } | Command::Write { .. }) {
            if moved == 0 {
                self.finish(queue, tag, OK);
                return 0;
            }
            if slot.iovecs.len() != moved {
                queue.fail("a disk request's buffer cannot be mapped");
                self.release(tag);
                return 0;
            }
        }
        // SAFETY: the vectors point to guest memory, which `queue` keeps mapped; `Device::reset` waits for all
        // requests before it lets the queues go.
        if let Some(result) = unsafe { self.disk.start(request, &mut slot.iovecs) } {
            self.ended(queue, tag, result);
        }
        moved
    }

    /// Goes on with the ranges of a discard or write-zeroes until one has to be waited for.
    fn ranges(&mut self, queue: &mut VirtQueue, tag: u32, alone: bool) {
        loop {
            let Some(slot) = self.slots.get_mut(tag as usize) else {
                return;
            };
            let Some(range) = slot.ranges.get(slot.next).copied() else {
                self.finish(queue, tag, OK);
                return;
            };
            slot.next += 1;
            let op = match slot.command {
                Some(Command::Discard) => Op::Discard,
                _ => Op::WriteZeroes {
                    unmap: range.unmap,
                    durable: slot.durable,
                },
            };
            let Range { offset, len, .. } = range;
            let request = Request {
                tag,
                op,
                offset,
                len,
                alone,
            };
            // SAFETY: there are no vectors.
            match unsafe { self.disk.start(request, &mut slot.iovecs) } {
                None => return,
                Some(Ok(())) => {}
                Some(Err(why)) => return self.failed(queue, tag, &why),
            }
        }
    }

    /// The disk is done with a request, or with one range of it.
    pub(super) fn ended(&mut self, queue: &mut VirtQueue, tag: u32, result: io::Result<()>) {
        let command = self.slots.get(tag as usize).and_then(|slot| slot.command);
        let counters = &self.counters;
        let add = |counter: &AtomicU64, n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        match (result, command) {
            (Err(why), _) => self.failed(queue, tag, &why),
            (Ok(()), Some(Command::Discard | Command::WriteZeroes)) => {
                self.ranges(queue, tag, false)
            }
            (Ok(()), command) => {
                match command {
                    Some(Command::Read { len, .. }) => add(&counters.read_bytes, len),
                    Some(Command::Write { len, .. }) => add(&counters.written_bytes, len),
                    _ => {}
                }
                self.finish(queue, tag, OK);
            }
        }
    }

    fn failed(&mut self, queue: &mut VirtQueue, tag: u32, why: &io::Error) {
        if self.counters.errors.fetch_add(1, Ordering::Relaxed) == 0 {
            let command = self.slots.get(tag as usize).and_then(|slot| slot.command);
            let what = match command {
                Some(Command::Read { offset, .. }) => format!("a read at byte {offset}"),
                Some(Command::Write { offset, .. }) => format!("a write at byte {offset}"),
                Some(Command::Flush) => "a flush".to_owned(),
                _ => "a discard".to_owned(),
            };
            let (note, name) = (&self.note, &self.name);
            note(&format!(
                "{name}: the host failed {what}: {why}; the guest sees an I/O error, further ones are only counted"
            ));
        }
        self.finish(queue, tag, IOERR);
    }

    /// Writes the status and returns the buffer.
    fn finish(&mut self, queue: &mut VirtQueue, tag: u32, status: u8) {
        if let Some(slot) = self.slots.get(tag as usize) {
            let room = slot.chain.writable_len();
            let data = room.saturating_sub(1);
            queue.write_to(&slot.chain.writable, data, &[status]);
            // The used length may only count bytes from the start that were all written (VIRTIO 2.7.8.2).
            let filled = match slot.command {
                Some(Command::Read { .. }) if status == OK => data,
                Some(Command::Id) => data.min(SERIAL_MAX as u64),
                _ => 0,
            };
            let written = if filled == data { room } else { filled };
            // Chains are shorter than 4 GiB.
            queue.push(slot.chain.head, u32::try_from(written).unwrap_or(0));
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            self.release(tag);
        }
    }

    fn release(&mut self, tag: u32) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.free.push(tag);
    }

    /// Whether a write must be stable when it completes (VIRTIO 5.2.6.2).
    fn durable(&self) -> bool {
        let has = |bit: u32| self.negotiated & 1 << bit != 0;
        if self.policy.no_flush {
            false
        } else if has(VIRTIO_BLK_F_CONFIG_WCE) {
            self.config.byte(WRITEBACK) == 0
        } else {
            !(has(VIRTIO_BLK_F_FLUSH) && self.policy.writeback)
        }
    }
}
