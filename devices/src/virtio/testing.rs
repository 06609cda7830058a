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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as regs;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes as _, GuestAddress};

use super::stats::CounterSnapshot;
use super::transport::{MmioTransport, Trigger, Wiring};
use super::worker::{EventLoop, InlineLoop, ThreadLoop};
use super::{Device, Segment};
use crate::Memory;
use crate::bus::BusDevice as _;

mod echo;
mod hooks;
mod requests;

pub use echo::{Echo, Probe};
pub use hooks::{Doorbell, TestLine, TestRegistry};

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
        )
        .expect("descriptors for a test");
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
        // VIRTIO 4.2.3.2 step 4: an earlier driver may have used this memory.
        let len = (ring.used + 6 + 8 * n - ring.descriptors) as usize;
        let start = GuestAddress(ring.descriptors);
        self.memory
            .write_slice(&vec![0; len], start)
            .expect("memory for a queue");
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
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
