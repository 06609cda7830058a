//! A virtqueue in use: popping chains, returning them, and deciding when to interrupt.
//!
//! Only split virtqueues (VIRTIO 2.7). Everything in the rings comes from the guest and is checked before a device
//! sees it. What the checks refuse is never skipped: the queue breaks, the device asks for a reset
//! (VIRTIO 2.1.2), and nothing more is taken from the queue or put on it.
//!
//! The usual shape of a device's `kick`:
//! ```
//! # use vsc_devices::virtio::{Chain, VirtQueue};
//! fn kick(queue: &mut VirtQueue, chain: &mut Chain) {
//!     queue.suppress();
//!     loop {
//!         while queue.pop(chain) {
//!             let written = queue.write_to(&chain.writable, 0, b"what was asked for");
//!             queue.push(chain.head, written as u32);
//!         }
//!         queue.notify();
//!         if !queue.rearm() {
//!             break;
//!         }
//!     }
//! }
//! ```

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error as RingError, Queue, QueueT};
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
    VolatileSlice,
};

use super::Interrupt;
use crate::Memory;

/// Longest chain accepted, descriptors, when the queue itself is shorter: as many as one `preadv` takes (`IOV_MAX`,
/// `UIO_MAXIOV` in linux/uio.h) and QEMU's `VIRTQUEUE_MAX_SIZE`. VIRTIO 2.7.5.3.1 limits chains to the queue size,
/// which Linux exceeds with indirect descriptors on short queues.
pub const MAX_SEGMENTS: usize = 1024;

/// Size of a descriptor, bytes (VIRTIO 2.7.5).
const DESCRIPTOR: u32 = 16;

/// A physically contiguous part of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in guest memory.
    pub addr: GuestAddress,
    /// Its length in bytes, never 0.
    pub len: u32,
}

/// A buffer the driver made available: guest memory to read from, then guest memory to write to.
///
/// Reusable: [`VirtQueue::pop`] clears and refills it, so a device that keeps its `Chain`s does not allocate per
/// request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index to return the buffer under. A hostile driver may have the same head in flight twice.
    pub head: u16,
    /// Device-readable parts, in order.
    pub readable: Vec<Segment>,
    /// Device-writable parts, in order.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Bytes the device may read; below 2^32.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes the device may write; below 2^32.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    fn clear(&mut self) {
        self.head = 0;
        self.readable.clear();
        self.writable.clear();
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// A descriptor table, direct or indirect, wholly in guest RAM.
struct Table<'a> {
    addr: GuestAddress,
    entries: u32,
    /// The whole of it, unless it spans memory regions.
    slice: Option<VolatileSlice<'a>>,
}

/// A queue that the driver has set up, with everything needed to serve it.
pub struct VirtQueue {
    queue: Queue,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    index: u16,
    /// Popped and not pushed yet.
    in_flight: u16,
    /// Something was pushed since the last `notify`.
    pushed: bool,
    broken: bool,
}

impl VirtQueue {
    /// Takes over a queue whose size and addresses were validated ([`QueueT::is_valid`]).
    pub fn new(queue: Queue, memory: Memory, interrupt: Arc<dyn Interrupt>, index: u16) -> Self {
        Self {
            queue,
            memory,
            interrupt,
            index,
            in_flight: 0,
            pushed: false,
            broken: false,
        }
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Which of the device's queues this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries, a power of two from 1 to 32768.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available buffer into `chain`.
    ///
    /// Returns false, with `chain` empty, when there is none or the queue is broken. Every segment of a returned
    /// chain lies wholly in guest RAM, readable ones came before writable ones, indirect tables are resolved, and
    /// there are at most `max(size, MAX_SEGMENTS)` segments.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        chain.clear();
        if self.broken {
            return false;
        }
        match self.take(chain) {
            Ok(found) => found,
            Err(reason) => {
                chain.clear();
                self.fail(reason);
                false
            }
        }
    }

    fn take(&mut self, chain: &mut Chain) -> Result<bool, &'static str> {
        const UNREADABLE: &str = "the available ring cannot be read";
        let (size, next) = (self.queue.size(), self.queue.next_avail());
        let available = self.queue.avail_idx(&self.memory, Ordering::Acquire);
        let available = available.map_err(|_| UNREADABLE)?.0;
        if available == next {
            return Ok(false);
        }
        if available.wrapping_sub(next) > size {
            return Err("the available index is further ahead than the queue is long");
        }
        if self.in_flight >= size {
            return Err("more buffers in flight than the queue has entries");
        }
        // VIRTIO 2.7.6: two u16, then the ring.
        let slot = self.queue.avail_ring() + 4 + 2 * u64::from(next % size);
        let head = self.memory.load(GuestAddress(slot), Ordering::Relaxed);
        chain.head = u16::from_le(head.map_err(|_| UNREADABLE)?);
        self.queue.set_next_avail(next.wrapping_add(1));
        self.walk(chain)?;
        self.in_flight += 1;
        Ok(true)
    }

    /// Collects the descriptors from `chain.head` on (VIRTIO 2.7.5). `virtio_queue::DescriptorChain` ends at a
    /// fault as if the chain ended there, and looks up guest memory for every descriptor.
    fn walk(&self, chain: &mut Chain) -> Result<(), &'static str> {
        let size = self.queue.size();
        let mut table = self.table(self.queue.desc_table(), u32::from(size))?;
        let mut index = chain.head;
        let mut indirect = false;
        let mut bytes = 0u32;
        for _ in 0..usize::from(size).max(MAX_SEGMENTS) {
            let mut descriptor = self.entry(&table, index)?;
            if descriptor.refers_to_indirect_table() {
                if indirect {
                    return Err("an indirect table refers to another");
                }
                if descriptor.has_next() {
                    return Err("a descriptor both refers to a table and has a next one");
                }
                let len = descriptor.len();
                if !len.is_multiple_of(DESCRIPTOR) {
                    return Err("the length of an indirect table is not that of descriptors");
                }
                indirect = true;
                table = self.table(descriptor.addr().0, len / DESCRIPTOR)?;
                descriptor = self.entry(&table, 0)?;
                if descriptor.refers_to_indirect_table() {
                    return Err("an indirect table refers to another");
                }
            }
            self.collect(descriptor, chain)?;
            let sum = bytes.checked_add(descriptor.len());
            // VIRTIO 2.7.5.2.
            bytes = sum.ok_or("a descriptor chain is longer than 4 GiB")?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err("a descriptor chain loops or is too long")
    }

    fn table(&self, addr: u64, entries: u32) -> Result<Table<'_>, &'static str> {
        let addr = GuestAddress(addr);
        let len = entries as usize * DESCRIPTOR as usize;
        let slice = self.memory.get_slice(addr, len).ok();
        // Not in one region: perhaps in several.
        if slice.is_none() && !self.memory.check_range(addr, len) {
            return Err("a descriptor table lies outside of memory");
        }
        Ok(Table {
            addr,
            entries,
            slice,
        })
    }

    fn entry(&self, table: &Table, index: u16) -> Result<Descriptor, &'static str> {
        if u32::from(index) >= table.entries {
            return Err("a descriptor index leads out of its table");
        }
        let offset = usize::from(index) * DESCRIPTOR as usize;
        match &table.slice {
            Some(slice) => slice.read_obj(offset).ok(),
            None => table
                .addr
                .checked_add(offset as u64)
                .and_then(|addr| self.memory.read_obj(addr).ok()),
        }
        .ok_or("a descriptor table cannot be read")
    }

    fn collect(&self, descriptor: Descriptor, chain: &mut Chain) -> Result<(), &'static str> {
        let segment = Segment {
            addr: descriptor.addr(),
            len: descriptor.len(),
        };
        if segment.len == 0 {
            return Err("a descriptor has length 0");
        }
        if !self.in_memory(segment) {
            return Err("a descriptor lies outside of memory");
        }
        if descriptor.is_write_only() {
            chain.writable.push(segment);
        } else if chain.writable.is_empty() {
            chain.readable.push(segment);
        } else {
            // VIRTIO 2.7.4.2.
            return Err("a device-readable descriptor follows a device-writable one");
        }
        Ok(())
    }

    fn in_memory(&self, segment: Segment) -> bool {
        let Some(region) = self.memory.find_region(segment.addr) else {
            return false;
        };
        let rest = region.last_addr().0 - segment.addr.0;
        u64::from(segment.len - 1) <= rest
            || self.memory.check_range(segment.addr, segment.len as usize)
    }

    /// Returns the buffer with this head, `written` bytes of which (counted from its first writable byte) were
    /// written. No interrupt yet: see [`Self::notify`].
    pub fn push(&mut self, head: u16, written: u32) {
        if self.broken {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.pushed = true;
        if self.queue.add_used(&self.memory, head, written).is_err() {
            self.fail("the used ring cannot be written");
        }
    }

    /// Interrupts the driver if buffers were pushed since the last call and it wants to know (VIRTIO 2.7.7).
    pub fn notify(&mut self) {
        if self.broken || !self.pushed {
            return;
        }
        self.pushed = false;
        match self.wants_interrupt() {
            Ok(true) => self.interrupt.queue(self.index),
            Ok(false) => {}
            Err(_) => self.fail("the available ring cannot be read"),
        }
    }

    fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        // Holds the fence between publishing the used index and reading the driver's wish.
        let wanted = self.queue.needs_notification(&self.memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(RingError::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to kick while the device is busy with the queue anyway (VIRTIO 2.7.10). With EVENT_IDX
    /// nothing needs to be said: a driver kicks once per [`Self::rearm`].
    pub fn suppress(&mut self) {
        if !self.broken && self.queue.disable_notification(&self.memory).is_err() {
            self.fail("the used ring cannot be written");
        }
    }

    /// Asks the driver for kicks again. True: buffers arrived meanwhile, perhaps without a kick, so pop again.
    pub fn rearm(&mut self) -> bool {
        if self.broken {
            return false;
        }
        self.queue
            .enable_notification(&self.memory)
            .unwrap_or_else(|_| {
                self.fail("the rings cannot be accessed");
                false
            })
    }

    /// Gives the queue up: the driver broke a rule that leaves no other way.
    pub fn fail(&mut self, reason: &str) {
        if !self.broken {
            self.broken = true;
            self.interrupt
                .needs_reset(&format!("queue {}: {reason}", self.index));
        }
    }

    /// Whether the queue was given up.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The host memory behind `segments`. A segment that crosses from one memory region to the next gives two
    /// slices.
    pub fn slices<'a>(
        &'a self,
        segments: &'a [Segment],
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        segments.iter().flat_map(|s| {
            self.memory
                .get_slices(s.addr, s.len as usize)
                .map_while(Result::ok)
        })
    }

    /// Appends the host memory behind `segments` to `out`, for system calls that take an I/O vector. The pointers
    /// are good as long as [`Self::memory`] or a clone of it lives.
    pub fn iovecs(&self, segments: &[Segment], out: &mut Vec<libc::iovec>) {
        let mut append = |slice: VolatileSlice<'_>| {
            out.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        };
        for segment in segments {
            match self.memory.get_slice(segment.addr, segment.len as usize) {
                Ok(slice) => append(slice),
                Err(_) => self
                    .slices(std::slice::from_ref(segment))
                    .for_each(&mut append),
            }
        }
    }

    /// Copies from `segments`, starting `offset` bytes into them, to `buf`. Returns how much there was.
    pub fn read_from(&self, segments: &[Segment], offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        self.span(segments, offset, buf.len(), |addr, len| {
            let part = buf.get_mut(done..done + len)?;
            self.memory.read_slice(part, addr).ok()?;
            done += len;
            Some(())
        });
        done
    }

    /// Copies `buf` to `segments`, starting `offset` bytes into them. Returns how much had room.
    pub fn write_to(&self, segments: &[Segment], offset: u64, buf: &[u8]) -> usize {
        let mut done = 0;
        self.span(segments, offset, buf.len(), |addr, len| {
            let part = buf.get(done..done + len)?;
            self.memory.write_slice(part, addr).ok()?;
            done += len;
            Some(())
        });
        done
    }

    /// Visits the contiguous parts of `offset..offset + len` within `segments`, in order, until `visit` says `None`.
    fn span(
        &self,
        segments: &[Segment],
        offset: u64,
        len: usize,
        mut visit: impl FnMut(GuestAddress, usize) -> Option<()>,
    ) {
        let (mut skip, mut left) = (offset, len);
        for segment in segments {
            let size = u64::from(segment.len);
            if left == 0 {
                return;
            }
            if skip >= size {
                skip -= size;
                continue;
            }
            let part = usize::try_from(size - skip).unwrap_or(usize::MAX).min(left);
            let Some(addr) = segment.addr.checked_add(skip) else {
                return;
            };
            if visit(addr, part).is_none() {
                return;
            }
            skip = 0;
            left -= part;
        }
    }
}

#[cfg(test)]
mod tests;
