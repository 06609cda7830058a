//! A driver for tests: lays out rings in guest memory and works a device through the registers of the real MMIO
//! transport, as a guest does.
//!
//! ```
//! use vsc_devices::virtio::rng::{Rng, RngSpec};
//! use vsc_devices::virtio::testing::Driver;
//!
//! let mut driver = Driver::inline(Box::new(Rng::new(&RngSpec::default())));
//! driver.start(!0); // all features that are offered, all queues, DRIVER_OK
//! let reply = driver.request(0, &[], &[16]); // queue, readable parts, lengths of writable parts
//! assert_eq!(reply.written, 16);
//! assert_eq!(reply.data.len(), 16);
//! ```
//!
//! - [`Driver::inline`] runs the device on the test's own thread whenever the driver waits: nothing happens behind
//!   the test's back. [`Driver::threaded`] gives it a real loop on a thread; the same calls then block on the
//!   interrupt, at most [`PATIENCE`]. [`Driver::new`] takes memory and interrupt mode too.
//! - The driver behaves: it obeys EVENT_IDX and the suppression flags, acknowledges interrupts, and uses indirect
//!   descriptors when they were negotiated and a chain has more than one part. Turn those off by negotiating
//!   less: `driver.start(0)`.
//! - Several requests in flight: [`Driver::submit`] each, then [`Driver::wait`] or [`Driver::poll`].
//! - To misbehave, use the parts: [`Driver::write32`], [`Driver::ring`] for addresses, [`Driver::describe`],
//!   [`Driver::offer`], [`Driver::notify`]; then look at [`Driver::needs_reset`] and [`Driver::log`].

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as regs;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::stats::CounterSnapshot;
use super::transport::{KickRegistry, MmioTransport, Trigger, Wiring};
use super::worker::{EventLoop, InlineLoop, ThreadLoop};
use super::{Device, Segment};
use crate::Memory;
use crate::bus::BusDevice as _;
use crate::irq::IrqLine;

/// How long a threaded device may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where the device's registers are said to be.
pub const ADDRESS: u64 = 0xd000_0000;

/// Set in a descriptor's flags: another follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// Set in a descriptor's flags: device-writable.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Set in a descriptor's flags: refers to a table.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// 64 MiB from address 0, in two regions that touch at 32 MiB.
pub fn memory() -> Memory {
    const HALF: usize = 32 << 20;
    Memory::from_ranges(&[(GuestAddress(0), HALF), (GuestAddress(HALF as u64), HALF)])
        .expect("memory for a test")
}

/// An interrupt line that remembers.
#[derive(Debug, Default)]
pub struct TestLine {
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct LineState {
    pulses: u64,
    high: bool,
    /// Pulses and rises that [`TestLine::wait`] has reported.
    seen: u64,
    rises: u64,
}

impl TestLine {
    /// Edges so far.
    pub fn pulses(&self) -> u64 {
        lock(&self.state).pulses
    }

    /// The level.
    pub fn is_high(&self) -> bool {
        lock(&self.state).high
    }

    /// Times the level went from low to high.
    pub fn rises(&self) -> u64 {
        lock(&self.state).rises
    }

    /// Waits for an edge or a high level that no wait reported yet; false at `deadline`.
    fn wait(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while state.pulses + state.rises == state.seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.seen = state.pulses + state.rises;
        true
    }
}

impl IrqLine for TestLine {
    fn pulse(&self) {
        lock(&self.state).pulses += 1;
        self.changed.notify_all();
    }

    fn set_level(&self, high: bool) {
        let mut state = lock(&self.state);
        assert_ne!(
            state.high, high,
            "a source may only report changes of its level"
        );
        state.high = high;
        state.rises += u64::from(high);
        self.changed.notify_all();
    }
}

/// A doorbell registered with a [`TestRegistry`]: address, queue, eventfd.
pub type Doorbell = (u64, u16, EventFd);

/// Remembers doorbells and rings them as the kernel would.
#[derive(Debug, Default)]
pub struct TestRegistry {
    doorbells: Mutex<Vec<Doorbell>>,
}

impl TestRegistry {
    /// Which queues are registered, in order.
    pub fn queues(&self) -> Vec<u16> {
        lock(&self.doorbells).iter().map(|d| d.1).collect()
    }

    /// What KVM does on a guest's write. False: nobody listens, the write exits.
    fn ring(&self, address: u64, value: u32) -> bool {
        let doorbells = lock(&self.doorbells);
        let bell = doorbells
            .iter()
            .find(|d| d.0 == address && u32::from(d.1) == value);
        bell.inspect(|d| d.2.write(1).expect("an eventfd takes a write"))
            .is_some()
    }
}

impl KickRegistry for TestRegistry {
    fn register(&self, address: u64, queue: u16, fd: &EventFd) -> io::Result<()> {
        lock(&self.doorbells).push((address, queue, fd.try_clone()?));
        Ok(())
    }

    fn unregister(&self, address: u64, queue: u16, _fd: &EventFd) -> io::Result<()> {
        lock(&self.doorbells).retain(|d| (d.0, d.1) != (address, queue));
        Ok(())
    }
}

enum Loop {
    Inline(Arc<InlineLoop>),
    Thread(ThreadLoop),
}

/// What [`Driver::new`] lets a test choose.
pub struct Options {
    /// Guest RAM. The first MiB and what follows it must be there for rings and buffers.
    pub memory: Memory,
    /// How the device interrupts.
    pub trigger: Trigger,
    /// Runs the device on a thread of its own.
    pub thread: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: memory(),
            trigger: Trigger::Edge,
            thread: false,
        }
    }
}

/// What came back of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Head it was submitted under.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub written: u32,
    /// All of the writable parts, one after the other, also what was not written.
    pub data: Vec<u8>,
}

/// A queue from the driver's side.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Entries.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Buffers made available so far, as the ring counts.
    pub offered: u16,
    /// Used buffers taken so far, as the ring counts.
    pub taken: u16,
    /// [`Ring::offered`] when the last kick was considered.
    considered: u16,
    free: Vec<u16>,
    pending: HashMap<u16, (Vec<u16>, Vec<Segment>)>,
}

/// The driver. See the module's documentation.
pub struct Driver {
    /// Guest RAM.
    pub memory: Memory,
    /// The device's interrupt line.
    pub line: Arc<TestLine>,
    /// Doorbells the transport asked for.
    pub registry: Arc<TestRegistry>,
    transport: Arc<Mutex<MmioTransport>>,
    events: Loop,
    log: Arc<Mutex<Vec<String>>>,
    features: u64,
    rings: Vec<Ring>,
    heap: u64,
    heap_base: u64,
}

impl Driver {
    /// A driver for `device`, which runs on the calling thread.
    pub fn inline(device: Box<dyn Device>) -> Self {
        Self::new(device, Options::default())
    }

    /// A driver for `device`, which runs on a thread of its own.
    pub fn threaded(device: Box<dyn Device>) -> Self {
        Self::new(
            device,
            Options {
                thread: true,
                ..Options::default()
            },
        )
    }

    /// A driver for `device` as `options` say.
    pub fn new(device: Box<dyn Device>, options: Options) -> Self {
        let Options {
            memory,
            trigger,
            thread,
        } = options;
        let events = if thread {
            Loop::Thread(ThreadLoop::start())
        } else {
            Loop::Inline(Arc::default())
        };
        let line = Arc::new(TestLine::default());
        let registry = Arc::new(TestRegistry::default());
        let log = Arc::new(Mutex::new(Vec::new()));
        let wiring = Wiring {
            memory: memory.clone(),
            events: match &events {
                Loop::Inline(inline) => Arc::<InlineLoop>::clone(inline) as Arc<dyn EventLoop>,
                Loop::Thread(thread) => Arc::new(thread.handle()),
            },
            registry: Some(Arc::<TestRegistry>::clone(&registry)),
            log: {
                let log = Arc::clone(&log);
                Arc::new(move |message| lock(&log).push(message.to_owned()))
            },
        };
        let transport = MmioTransport::new(
            device,
            ADDRESS,
            Arc::<TestLine>::clone(&line),
            trigger,
            wiring,
        );
        Self {
            memory,
            line,
            registry,
            transport: Arc::new(Mutex::new(transport)),
            events,
            log,
            features: 0,
            rings: Vec::new(),
            heap: 0x1000,
            heap_base: 0x1000,
        }
    }

    // Registers.

    /// Reads a 32-bit register.
    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        lock(&self.transport).read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn write32(&self, offset: u64, value: u32) {
        if self.registry.ring(ADDRESS + offset, value) {
            return;
        }
        lock(&self.transport).write(offset, &value.to_le_bytes());
    }

    fn read_reg(&self, offset: u32) -> u32 {
        self.read32(offset.into())
    }

    fn write_reg(&self, offset: u32, value: u32) {
        self.write32(offset.into(), value);
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        lock(&self.transport).read(u64::from(regs::VIRTIO_MMIO_CONFIG) + offset, data);
    }

    /// Writes the configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        lock(&self.transport).write(u64::from(regs::VIRTIO_MMIO_CONFIG) + offset, data);
    }

    /// The transport, for accesses of any width or from other threads.
    pub fn transport(&self) -> Arc<Mutex<MmioTransport>> {
        Arc::clone(&self.transport)
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.read_reg(regs::VIRTIO_MMIO_STATUS)
    }

    /// Whether the device gave up until it is reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// What was logged so far.
    pub fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    /// The device's counters now.
    pub fn counters(&self) -> CounterSnapshot {
        lock(&self.transport).counters().snapshot()
    }

    // Initialization (VIRTIO 3.1.1), whole and in steps.

    /// Resets and starts the device with those of the offered features that are in `wanted`, and VERSION_1, and
    /// with all its queues at their largest size. Returns the features.
    ///
    /// # Panics
    /// When the device does not accept that.
    pub fn start(&mut self, wanted: u64) -> u64 {
        self.begin();
        let features = self.offered() & (wanted | 1 << VIRTIO_F_VERSION_1);
        assert!(
            self.negotiate(features),
            "the device refuses a subset of its features"
        );
        for index in 0.. {
            match self.queue_max(index) {
                0 => break,
                max => self.setup_queue(index, max),
            }
        }
        self.driver_ok();
        features
    }

    /// Resets, and says that there is a driver.
    pub fn begin(&mut self) {
        self.reset();
        self.write_reg(regs::VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.write_reg(
            regs::VIRTIO_MMIO_STATUS,
            VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER,
        );
    }

    /// Writes 0 to the status and forgets rings and buffers.
    pub fn reset(&mut self) {
        self.write_reg(regs::VIRTIO_MMIO_STATUS, 0);
        self.rings.clear();
        self.features = 0;
        self.heap = 0x1000;
        self.heap_base = self.heap;
    }

    /// The offered features.
    pub fn offered(&self) -> u64 {
        let page = |n| {
            self.write_reg(regs::VIRTIO_MMIO_DEVICE_FEATURES_SEL, n);
            u64::from(self.read_reg(regs::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        page(0) | page(1) << 32
    }

    /// Accepts `features` and sets FEATURES_OK. Returns whether the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        for (page, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write_reg(regs::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.write_reg(regs::VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        self.features = features;
        self.write_reg(
            regs::VIRTIO_MMIO_STATUS,
            self.status() | VIRTIO_CONFIG_S_FEATURES_OK,
        );
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Largest size of a queue, 0 if there is none.
    pub fn queue_max(&self, index: u16) -> u16 {
        self.write_reg(regs::VIRTIO_MMIO_QUEUE_SEL, index.into());
        self.read_reg(regs::VIRTIO_MMIO_QUEUE_NUM_MAX) as u16
    }

    /// Lays out queue `index` and makes it ready.
    pub fn setup_queue(&mut self, index: u16, size: u16) {
        let n = u64::from(size);
        let ring = Ring {
            size,
            descriptors: self.alloc(16 * n, 16),
            avail: self.alloc(6 + 2 * n, 2),
            used: self.alloc(6 + 8 * n, 4),
            free: (0..size).rev().collect(),
            ..Ring::default()
        };
        self.declare_queue(
            index,
            size.into(),
            [ring.descriptors, ring.avail, ring.used],
        );
        self.rings
            .resize_with(self.rings.len().max(usize::from(index) + 1), Ring::default);
        self.rings[usize::from(index)] = ring;
        self.heap_base = self.heap;
    }

    /// Tells the device of a queue, sensible or not, and makes it ready. Addresses: descriptors, available, used.
    pub fn declare_queue(&self, index: u16, size: u32, addresses: [u64; 3]) {
        self.write_reg(regs::VIRTIO_MMIO_QUEUE_SEL, index.into());
        self.write_reg(regs::VIRTIO_MMIO_QUEUE_NUM, size);
        let [descriptors, avail, used] = addresses;
        for (low, address) in [
            (regs::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
            (regs::VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (regs::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write_reg(low, address as u32);
            self.write_reg(low + 4, (address >> 32) as u32);
        }
        self.write_reg(regs::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Sets DRIVER_OK.
    pub fn driver_ok(&self) {
        self.write_reg(
            regs::VIRTIO_MMIO_STATUS,
            self.status() | VIRTIO_CONFIG_S_DRIVER_OK,
        );
    }

    // Requests.

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

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
