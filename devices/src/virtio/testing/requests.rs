//! The driver's work on rings: requests, whole and in parts.

use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use virtio_bindings::virtio_mmio as regs;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Completion, Driver, INDIRECT, Loop, NEXT, PATIENCE, Ring, WRITE};
use crate::virtio::Segment;

impl Driver {
    /// Submits a buffer and waits until it comes back (and none other is in flight before it).
    ///
    /// # Panics
    /// When it does not come back.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Completion {
        let head = self.submit(queue, readable, writable);
        let done = self.wait(queue);
        assert_eq!(done.head, head, "another buffer came back first");
        done
    }

    /// Makes a buffer available and kicks if the device wants that. Returns its head.
    pub fn submit(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.add(queue, readable, writable);
        self.kick(queue);
        head
    }

    /// Makes a buffer available, without a kick. Writable parts are filled with 0xee. Returns its head.
    ///
    /// # Panics
    /// When the ring has not enough free descriptors.
    pub fn add(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        if self.rings.iter().all(|ring| ring.pending.is_empty()) {
            self.heap = self.heap_base;
        }
        let mut parts = Vec::new();
        for bytes in readable {
            let addr = self.alloc(bytes.len() as u64, 1);
            self.memory
                .write_slice(bytes, GuestAddress(addr))
                .expect("guest memory for a buffer");
            parts.push((addr, bytes.len() as u32, 0));
        }
        for &len in writable {
            let addr = self.alloc(len.into(), 1);
            self.memory
                .write_slice(&vec![0xee; len as usize], GuestAddress(addr))
                .expect("memory for a buffer");
            parts.push((addr, len, WRITE));
        }
        let indirect = self.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0 && parts.len() > 1;
        let table = if indirect {
            self.alloc(16 * parts.len() as u64, 16)
        } else {
            0
        };

        let needed = if indirect { 1 } else { parts.len() };
        let ring = self.ring_mut(queue);
        assert!(ring.free.len() >= needed, "queue {queue} is full");
        let ids: Vec<u16> = ring.free.split_off(ring.free.len() - needed);
        let segments = parts.iter().filter(|p| p.2 & WRITE != 0);
        let segments = segments
            .map(|&(addr, len, _)| Segment {
                addr: GuestAddress(addr),
                len,
            })
            .collect();
        ring.pending.insert(ids[0], (ids.clone(), segments));
        let descriptors = ring.descriptors;

        let last = parts.len().saturating_sub(1);
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let flags = if i < last { flags | NEXT } else { flags };
            if indirect {
                self.describe(table, i as u16, addr, len, flags, i as u16 + 1);
            } else {
                let next = ids.get(i + 1).copied().unwrap_or(0);
                self.describe(descriptors, ids[i], addr, len, flags, next);
            }
        }
        if indirect {
            self.describe(
                descriptors,
                ids[0],
                table,
                16 * parts.len() as u32,
                INDIRECT,
                0,
            );
        }
        self.offer(queue, ids[0]);
        ids[0]
    }

    /// Kicks, unless the device said that it needs none.
    pub fn kick(&mut self, queue: u16) {
        fence(Ordering::SeqCst);
        let ring = self.ring(queue);
        let (new, old) = (ring.offered, ring.considered);
        let wanted = if self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0 {
            let event = self.read16(ring.used + 4 + 8 * u64::from(ring.size));
            // VIRTIO 2.7.10.2: avail_event lies within what was added.
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.read16(ring.used)) & VRING_USED_F_NO_NOTIFY == 0
        };
        self.ring_mut(queue).considered = new;
        if wanted {
            self.notify(queue.into());
        }
    }

    /// Takes a buffer that came back, if there is one now. Runs an inline device first.
    pub fn poll(&mut self, queue: u16) -> Option<Completion> {
        self.run();
        self.acknowledge();
        self.take(queue)
    }

    /// Waits for a buffer to come back.
    ///
    /// # Panics
    /// When none does within [`PATIENCE`], or ever (inline).
    pub fn wait(&mut self, queue: u16) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = self.poll(queue) {
                return done;
            }
            let waiting = matches!(self.events, Loop::Thread(_)) && self.line.wait(deadline);
            assert!(
                waiting,
                "no buffer comes back on queue {queue}; status {:#x}, {:?}",
                self.status(),
                self.log()
            );
        }
    }

    /// Lets an inline device do all it can. Returns the number of events it handled; 0 for a threaded one.
    pub fn run(&self) -> usize {
        match &self.events {
            Loop::Inline(inline) => inline.pump(),
            Loop::Thread(_) => 0,
        }
    }

    /// Waits for the interrupt of a threaded device; false after [`PATIENCE`].
    pub fn wait_interrupt(&self) -> bool {
        self.line.wait(Instant::now() + PATIENCE)
    }

    /// Reads and acknowledges InterruptStatus. Returns what it was.
    pub fn acknowledge(&self) -> u32 {
        let status = self.read_reg(regs::VIRTIO_MMIO_INTERRUPT_STATUS);
        if status != 0 {
            self.write_reg(regs::VIRTIO_MMIO_INTERRUPT_ACK, status);
        }
        status
    }

    /// Ends a threaded device's loop under its feet.
    pub fn stop_loop(&mut self) {
        if let Loop::Thread(thread) = &mut self.events {
            thread.stop();
        }
    }

    // Rings, raw.

    /// A queue's addresses and state.
    pub fn ring(&self, queue: u16) -> &Ring {
        &self.rings[usize::from(queue)]
    }

    /// Whether [`Driver::setup_queue`] laid out this queue since the last reset.
    pub fn has_ring(&self, queue: u16) -> bool {
        self.rings
            .get(usize::from(queue))
            .is_some_and(|ring| ring.size > 0)
    }

    fn ring_mut(&mut self, queue: u16) -> &mut Ring {
        &mut self.rings[usize::from(queue)]
    }

    /// Guest memory that nothing else uses, until no buffer is in flight.
    pub fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let start = self.heap.next_multiple_of(align);
        self.heap = start + len;
        start
    }

    /// Writes entry `index` of the descriptor table at `table`.
    pub fn describe(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&addr.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory
            .write_slice(&entry, at)
            .expect("guest memory for a descriptor");
    }

    /// Puts `head` on the available ring, whatever it is.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let ring = self.ring_mut(queue);
        let slot = ring.avail + 4 + 2 * u64::from(ring.offered % ring.size);
        ring.offered = ring.offered.wrapping_add(1);
        let (index, offered) = (ring.avail + 2, ring.offered);
        self.write16(slot, head);
        fence(Ordering::Release);
        self.write16(index, offered);
    }

    /// Rings QueueNotify, wanted or not.
    pub fn notify(&self, queue: u32) {
        self.write_reg(regs::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Takes the next entry of the used ring, and asks for an interrupt for the one after it.
    fn take(&mut self, queue: u16) -> Option<Completion> {
        let event_idx = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let ring = self.rings.get(usize::from(queue))?;
        if event_idx {
            self.write16(ring.avail + 4 + 2 * u64::from(ring.size), ring.taken);
            fence(Ordering::SeqCst);
        }
        if self.read16(ring.used + 2) == ring.taken {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = ring.used + 4 + 8 * u64::from(ring.taken % ring.size);
        let word = |at| {
            self.memory
                .read_obj::<u32>(GuestAddress(at))
                .expect("the used ring")
        };
        let (id, written) = (word(entry), word(entry + 4));
        let head = u16::try_from(id).expect("a head");
        let ring = self.ring_mut(queue);
        ring.taken = ring.taken.wrapping_add(1);
        let (ids, segments) = ring.pending.remove(&head).unwrap_or_default();
        ring.free.extend(ids);
        let mut data = Vec::new();
        for segment in segments {
            let start = data.len();
            data.resize(start + segment.len as usize, 0);
            self.memory
                .read_slice(&mut data[start..], segment.addr)
                .expect("a buffer");
        }
        Some(Completion {
            head,
            written,
            data,
        })
    }

    /// Reads 16 bits of guest memory.
    pub fn read16(&self, addr: u64) -> u16 {
        let value = self
            .memory
            .load::<u16>(GuestAddress(addr), Ordering::Relaxed);
        u16::from_le(value.expect("guest memory"))
    }

    /// Writes 16 bits of guest memory.
    pub fn write16(&self, addr: u64, value: u16) {
        let stored = self
            .memory
            .store(value.to_le(), GuestAddress(addr), Ordering::Relaxed);
        stored.expect("guest memory");
    }
}
