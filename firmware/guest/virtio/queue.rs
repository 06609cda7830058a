//! A split virtqueue (VIRTIO 2.7), driver side. Bounded: every wait has an end, every answer is checked.

use core::sync::atomic::{Ordering, fence};

use super::{Device, EVENT_IDX, INDIRECT, NEEDS_RESET, QUEUE_NOTIFY, SECOND_OR_SO};
use crate::arena;
use crate::out::{Problem, ensure, fail};
use crate::sys::{pause, read, tsc, write};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_FLAG: u16 = 4;
pub const MAX_QUEUE: usize = 256;

/// A piece of a request.
#[derive(Clone, Copy)]
pub struct Segment {
    pub address: u64,
    pub length: u32,
    /// The device writes it.
    pub writable: bool,
}

/// The device reads it.
pub const fn from(address: u64, length: u32) -> Segment {
    Segment {
        address,
        length,
        writable: false,
    }
}
/// The device writes it.
pub const fn into(address: u64, length: u32) -> Segment {
    Segment {
        address,
        length,
        writable: true,
    }
}

pub struct Queue {
    notify: u64,
    status: u64,
    pub index: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Indirect tables, one of `segments` entries for each head; 0 without the feature.
    tables: u64,
    segments: u16,
    event_idx: bool,
    free: [u16; MAX_QUEUE],
    free_count: u16,
    /// Chain length of a head in flight, 0 when it is not; 0x8000: indirect.
    flight: [u16; MAX_QUEUE],
    pub avail_index: u16,
    kicked: u16,
    seen: u16,
    pub kicks: u64,
}

impl Queue {
    pub fn new(device: &Device, index: u16, size: u16, segments: u16) -> Option<Self> {
        if size == 0 || usize::from(size) > MAX_QUEUE {
            return None;
        }
        let n = u64::from(size);
        let desc = arena::take(n * 16, 16)?;
        let avail = arena::take(6 + n * 2, 2)?;
        let used = arena::take(6 + n * 8, 4)?;
        let tables = match device.has(INDIRECT) && segments > 1 {
            true => arena::take(n * u64::from(segments) * 16, 16)?,
            false => 0,
        };
        let mut queue = Self {
            notify: device.base + QUEUE_NOTIFY,
            status: device.base + super::STATUS,
            index,
            size,
            desc,
            avail,
            used,
            tables,
            segments,
            event_idx: device.has(EVENT_IDX),
            free: [0; MAX_QUEUE],
            free_count: size,
            flight: [0; MAX_QUEUE],
            avail_index: 0,
            kicked: 0,
            seen: 0,
            kicks: 0,
        };
        for (i, slot) in queue.free.iter_mut().take(size.into()).enumerate() {
            *slot = size - 1 - i as u16;
        }
        queue.interrupts(false);
        Some(queue)
    }

    /// Asks for an interrupt with the next used buffer, or for none (VIRTIO 2.7.7).
    pub fn interrupts(&mut self, wanted: bool) {
        if self.event_idx {
            // An event index just passed is 65535 buffers away.
            let event = if wanted {
                self.seen
            } else {
                self.seen.wrapping_sub(1)
            };
            write(self.avail + 4 + u64::from(self.size) * 2, event);
        } else {
            write(self.avail, u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }

    pub fn descriptor(&self, table: u64, at: u16, segment: Segment, flags: u16, next: u16) {
        let address = table + u64::from(at) * 16;
        write(address, segment.address);
        write(address + 8, segment.length);
        write(
            address + 12,
            flags | if segment.writable { WRITE } else { 0 },
        );
        write(address + 14, next);
    }

    /// Puts a chain on the ring without telling the device. `None`: no room.
    pub fn add(&mut self, request: &[Segment], indirect: bool) -> Option<u16> {
        let count = u16::try_from(request.len()).ok().filter(|&n| n > 0)?;
        let indirect = indirect && self.tables != 0 && count <= self.segments;
        let needed = if indirect { 1 } else { count };
        if self.free_count < needed {
            return None;
        }
        let head = self.free[usize::from(self.free_count) - 1];
        if indirect {
            let table = self.tables + u64::from(head) * u64::from(self.segments) * 16;
            for (i, &segment) in (0_u16..).zip(request) {
                let more = if i + 1 < count { NEXT } else { 0 };
                self.descriptor(table, i, segment, more, i + 1);
            }
            self.descriptor(
                self.desc,
                head,
                from(table, u32::from(count) * 16),
                INDIRECT_FLAG,
                0,
            );
            self.free_count -= 1;
        } else {
            for (i, &segment) in (0_u16..).zip(request) {
                self.free_count -= 1;
                let this = self.free[usize::from(self.free_count)];
                let (flags, next) = match i + 1 < count {
                    true => (NEXT, self.free[usize::from(self.free_count) - 1]),
                    false => (0, 0),
                };
                self.descriptor(self.desc, this, segment, flags, next);
            }
        }
        self.flight[usize::from(head)] = count | if indirect { 0x8000 } else { 0 };
        self.publish(head);
        Some(head)
    }

    /// Puts a head on the available ring, whatever it is.
    pub fn publish(&mut self, head: u16) {
        write(
            self.avail + 4 + u64::from(self.avail_index % self.size) * 2,
            head,
        );
        self.avail_index = self.avail_index.wrapping_add(1);
        fence(Ordering::SeqCst);
        write(self.avail + 2, self.avail_index);
    }

    /// Tells the device, if it wants to know.
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event: u16 = read(self.used + 4 + u64::from(self.size) * 8);
            // vring_need_event of VIRTIO 2.7.10.2: did we step over the index it waits for?
            self.avail_index.wrapping_sub(event).wrapping_sub(1)
                < self.avail_index.wrapping_sub(self.kicked)
        } else {
            read::<u16>(self.used) & 1 == 0
        };
        self.kicked = self.avail_index;
        if wanted {
            self.kick_always();
        }
    }
    pub fn kick_always(&mut self) {
        self.kicks += 1;
        write(self.notify, u32::from(self.index));
    }

    /// Takes one answer: the head and how many bytes were written.
    pub fn poll(&mut self) -> Result<Option<(u16, u32)>, Problem> {
        if read::<u16>(self.used + 2) == self.seen {
            return Ok(None);
        }
        fence(Ordering::SeqCst);
        let at = self.used + 4 + u64::from(self.seen % self.size) * 8;
        let (head, length): (u32, u32) = (read(at), read(at + 4));
        self.seen = self.seen.wrapping_add(1);
        let state = usize::try_from(head)
            .ok()
            .and_then(|h| self.flight.get_mut(h));
        let Some(state) = state.filter(|s| **s != 0) else {
            fail!(
                "queue {}: head {head} came back, which was not in flight",
                self.index
            )
        };
        let count = *state & 0x7fff;
        let indirect = *state & 0x8000 != 0;
        *state = 0;
        let head = head as u16;
        // The chain is still in the table; freed from its tail, so that it is taken again in the same order.
        let mut chain = [0_u16; MAX_QUEUE];
        let length_of_chain = if indirect { 1 } else { usize::from(count) };
        let mut at = head;
        for slot in chain.iter_mut().take(length_of_chain) {
            *slot = at;
            at = read(self.desc + u64::from(at) * 16 + 14);
        }
        for &slot in chain[..length_of_chain].iter().rev() {
            self.free[usize::from(self.free_count)] = slot;
            self.free_count += 1;
        }
        Ok(Some((head, length)))
    }

    /// Waits for an answer, at most for some seconds.
    pub fn wait(&mut self) -> Result<(u16, u32), Problem> {
        self.wait_for(SECOND_OR_SO * 10)
    }
    pub fn wait_for(&mut self, cycles: u64) -> Result<(u16, u32), Problem> {
        let start = tsc();
        loop {
            for _ in 0..64 {
                if let Some(answer) = self.poll()? {
                    return Ok(answer);
                }
                pause();
            }
            if tsc().wrapping_sub(start) > cycles {
                let status: u32 = read(self.status);
                ensure!(
                    status & NEEDS_RESET == 0,
                    "queue {}: the device needs a reset",
                    self.index
                );
                fail!("queue {}: no answer, status {status:#x}", self.index)
            }
        }
    }

    /// One request and its answer.
    pub fn run(&mut self, request: &[Segment], indirect: bool) -> Result<u32, Problem> {
        let Some(head) = self.add(request, indirect) else {
            fail!("queue {}: no room", self.index)
        };
        self.kick();
        let (got, length) = self.wait()?;
        ensure!(got == head, "queue {}: head {got} for {head}", self.index);
        Ok(length)
    }

    /// The head that the next request gets. Only while there is room.
    pub fn next_head(&self) -> u16 {
        self.free[usize::from(self.free_count).saturating_sub(1)]
    }
    pub fn in_flight(&self) -> usize {
        self.flight.iter().filter(|&&s| s != 0).count()
    }
    pub fn room(&self) -> u16 {
        self.free_count
    }
}
