//! What all virtio transports have in common: status, features, queue set-up, activation and reset (VIRTIO 2.1, 2.2,
//! 3.1). A transport decodes registers and calls this; it adds how the driver is interrupted ([`Signal`]).

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Log, Wiring};
use crate::virtio::stats::{Counters, count};
use crate::virtio::worker::{Residence, Worker};
use crate::virtio::{Activation, ConfigSpace, Device, Interrupt, VirtQueue};

#[cfg(test)]
mod tests;

/// Kicks of one queue that may exit before an ioeventfd is registered for it. Registration costs an SRCU grace
/// period and most queues never get hot.
pub const HOT_KICKS: u32 = 32;

/// Times that a device's need for a reset is explained; a driver could otherwise fill the log.
const EXPLAINED_RESETS: u64 = 8;

/// Status bits a driver may set (VIRTIO 2.1); DEVICE_NEEDS_RESET is the device's.
const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// Features of every device here (VIRTIO 6).
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// How a transport interrupts the driver. Called on any thread.
pub trait Signal: Send + Sync + 'static {
    /// Used buffer notification for queue `index` (VIRTIO 2.3).
    fn queue(&self, index: u16);
    /// Configuration change notification (VIRTIO 2.3).
    fn config(&self);
    /// Forgets what was not acknowledged: the device was reset.
    fn clear(&self);
}

/// The part of a port that the device's thread shares with vCPU threads.
#[derive(Debug)]
pub struct Link<S> {
    name: String,
    status: AtomicU32,
    counters: Arc<Counters>,
    log: LogCell,
    /// The transport's way to the driver.
    pub signal: S,
}

/// [`Log`] with a `Debug` that says nothing.
struct LogCell(Log);

impl std::fmt::Debug for LogCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl<S: Signal> Interrupt for Link<S> {
    fn queue(&self, index: u16) {
        count(&self.counters.interrupts);
        self.signal.queue(index);
    }

    fn config(&self) {
        count(&self.counters.config_changes);
        self.signal.config();
    }

    fn needs_reset(&self, reason: &str) {
        let times = count(&self.counters.needs_reset);
        let before = self
            .status
            .fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        if before & VIRTIO_CONFIG_S_NEEDS_RESET == 0 {
            if times < EXPLAINED_RESETS {
                (self.log.0)(&format!(
                    "{} needs a reset by its driver: {reason}",
                    self.name
                ));
            }
            // VIRTIO 2.1.2: a notification is due if, and only if, the driver got as far as DRIVER_OK.
            if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                self.config();
            }
        }
    }
}

/// Which of a queue's three addresses (VIRTIO 2.6) a register sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Descriptor Area.
    Descriptors,
    /// Driver Area: the available ring.
    Driver,
    /// Device Area: the used ring.
    Device,
}

/// Which half of a 64-bit value a 32-bit register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// A queue as the driver has described it so far.
#[derive(Debug, Clone, Default)]
struct Setup {
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
    ready: bool,
}

/// A queue's doorbell. Made with the port and kept across resets, so that no driver can meet a lack of descriptors.
struct Kick {
    fd: Arc<EventFd>,
    /// The queue was in use when the device was last activated, or before.
    used: bool,
    exits: u32,
    registered: bool,
}

/// One device as its driver sees it, whatever the transport.
pub struct Port<S> {
    /// Here while the driver is not active and the loop was not lost.
    device: Option<Box<dyn Device>>,
    /// Where the device is while it is active.
    residence: Option<Residence>,
    id: u32,
    offered: u64,
    sizes: Vec<u16>,
    config: Arc<ConfigSpace>,
    wiring: Wiring,
    link: Arc<Link<S>>,
    kicks: Vec<Kick>,

    device_page: u32,
    driver_page: u32,
    accepted: u64,
    /// The driver accepted a bit that no 64-bit set holds.
    accepted_beyond: bool,
    selected: u32,
    queues: Vec<Setup>,
}

impl<S: Signal> Port<S> {
    /// A port for `device`, which has not seen a driver yet.
    ///
    /// # Errors
    /// Of eventfd(2), of which each queue needs one.
    pub fn new(device: Box<dyn Device>, signal: S, wiring: Wiring) -> io::Result<Self> {
        let sizes = device.queue_sizes().to_vec();
        let kick = |_: &u16| {
            Ok(Kick {
                fd: Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?),
                used: false,
                exits: 0,
                registered: false,
            })
        };
        let kicks = sizes.iter().map(kick).collect::<io::Result<_>>()?;
        let mut port = Self {
            residence: None,
            id: device.id(),
            offered: device.features() | COMMON_FEATURES,
            config: device.config(),
            link: Arc::new(Link {
                name: device.name().to_owned(),
                status: AtomicU32::new(0),
                counters: Arc::default(),
                log: LogCell(Arc::clone(&wiring.log)),
                signal,
            }),
            wiring,
            kicks,
            device: Some(device),
            device_page: 0,
            driver_page: 0,
            accepted: 0,
            accepted_beyond: false,
            selected: 0,
            queues: Vec::new(),
            sizes,
        };
        port.forget();
        Ok(port)
    }

    /// Device type (VIRTIO 5).
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Event counts, shared.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.link.counters)
    }

    /// The transport's signal.
    pub fn signal(&self) -> &S {
        &self.link.signal
    }

    /// The device's configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Chooses which 32 feature bits [`Self::offered_page`] shows.
    pub fn select_offered(&mut self, page: u32) {
        self.device_page = page;
    }

    /// 32 of the offered feature bits; bits past 63 are 0.
    pub fn offered_page(&self) -> u32 {
        match self.device_page {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    /// Chooses which 32 feature bits [`Self::accept`] sets.
    pub fn select_accepted(&mut self, page: u32) {
        self.driver_page = page;
    }

    /// The driver accepts features. Not after FEATURES_OK (VIRTIO 3.1.1 step 5).
    pub fn accept(&mut self, bits: u32) {
        if self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let bits = u64::from(bits);
        match self.driver_page {
            0 => self.accepted = self.accepted & !0xffff_ffff | bits,
            1 => self.accepted = self.accepted & 0xffff_ffff | bits << 32,
            _ => self.accepted_beyond |= bits != 0,
        }
    }

    /// Features both sides agreed on, once FEATURES_OK is set; 0 before.
    pub fn features(&self) -> u64 {
        if self.status() & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            0
        } else {
            self.accepted
        }
    }

    /// Chooses the queue that the following calls are about.
    pub fn select_queue(&mut self, index: u32) {
        self.selected = index;
    }

    /// Largest size of the selected queue, 0 if there is none.
    pub fn queue_max(&self) -> u16 {
        self.at(&self.sizes).copied().unwrap_or(0)
    }

    /// Sets the size of the selected queue, entries. Checked when the queue becomes ready.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(setup) = self.editable() {
            setup.size = size;
        }
    }

    /// Sets half an address of the selected queue. Checked when the queue becomes ready.
    pub fn set_queue_address(&mut self, area: Area, half: Half, value: u32) {
        if let Some(setup) = self.editable() {
            let address = match area {
                Area::Descriptors => &mut setup.descriptors,
                Area::Driver => &mut setup.driver,
                Area::Device => &mut setup.device,
            };
            *address = match half {
                Half::Low => *address & !0xffff_ffff | u64::from(value),
                Half::High => *address & 0xffff_ffff | u64::from(value) << 32,
            };
        }
    }

    /// Whether the selected queue is ready.
    pub fn queue_ready(&self) -> bool {
        self.at(&self.queues).is_some_and(|setup| setup.ready)
    }

    /// The driver says that the selected queue is set up (1), or that it stops using it (0). Other values mean
    /// nothing (VIRTIO 4.2.2, 4.1.4.3.2).
    pub fn set_queue_ready(&mut self, value: u32) {
        match value {
            0 => self.close_queue(),
            1 => self.open_queue(),
            _ => {}
        }
    }

    fn open_queue(&mut self) {
        // Also refuses a second time: what the device uses is what was checked.
        if self.editable().is_none() {
            return;
        }
        let checked = self
            .at(&self.queues)
            .map(|setup| self.check(setup, self.queue_max()));
        match checked {
            Some(Ok(_)) => {
                let selected = self.selected;
                if let Some(setup) = usize::try_from(selected)
                    .ok()
                    .and_then(|i| self.queues.get_mut(i))
                {
                    setup.ready = true;
                }
            }
            Some(Err(reason)) => self
                .link
                .needs_reset(&format!("queue {}: {reason}", self.selected)),
            None => {}
        }
    }

    fn close_queue(&mut self) {
        if !self.queue_ready() {
            return;
        }
        // VIRTIO 4.2.2.1: the device must not touch the queue from here on. Without RING_RESET no device can give
        // up a single queue, so all of it stops.
        if self.residence.is_some() {
            self.take_back();
            self.link
                .needs_reset(&format!("queue {} was closed while in use", self.selected));
        }
        if let Some(setup) = usize::try_from(self.selected)
            .ok()
            .and_then(|i| self.queues.get_mut(i))
        {
            setup.ready = false;
        }
    }

    /// The queue described by `setup`, if the device can use it.
    fn check(&self, setup: &Setup, max: u16) -> Result<Queue, String> {
        // VIRTIO 2.7: a power of two, at most what the device offers.
        let size = u16::try_from(setup.size)
            .ok()
            .filter(|&n| n <= max && n.is_power_of_two());
        let size =
            size.ok_or_else(|| format!("{} is no size for a queue of at most {max}", setup.size))?;
        if [setup.descriptors, setup.driver, setup.device].contains(&0) {
            return Err("a ring has no address".to_owned());
        }
        let queue = Queue::try_from(QueueState {
            max_size: max,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            size,
            ready: true,
            desc_table: setup.descriptors,
            avail_ring: setup.driver,
            used_ring: setup.device,
        })
        .map_err(|e| e.to_string())?;
        if queue.is_valid(&self.wiring.memory) {
            Ok(queue)
        } else {
            Err("a ring lies outside of memory".to_owned())
        }
    }

    /// The selected queue if it may be changed now: after FEATURES_OK and before DRIVER_OK (VIRTIO 3.1.1 step 7),
    /// and not while it is ready (VIRTIO 4.2.2.2).
    fn editable(&mut self) -> Option<&mut Setup> {
        let status = self.status();
        let phase = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if status & phase != VIRTIO_CONFIG_S_FEATURES_OK || status & VIRTIO_CONFIG_S_FAILED != 0 {
            return None;
        }
        let index = usize::try_from(self.selected).ok()?;
        self.queues.get_mut(index).filter(|setup| !setup.ready)
    }

    fn at<'a, T>(&self, list: &'a [T]) -> Option<&'a T> {
        list.get(usize::try_from(self.selected).ok()?)
    }

    /// The driver rang for queue `queue` by writing to `doorbell`, a guest physical address. Queues that never were
    /// in use have no bell: a driver must not ring before DRIVER_OK (VIRTIO 3.1.1).
    #[inline]
    pub fn notify(&mut self, queue: u32, doorbell: u64) {
        let index = queue as usize;
        let Some(kick) = self.kicks.get_mut(index).filter(|kick| kick.used) else {
            return;
        };
        // Fails only if 2^64 kicks were not looked at.
        let _ = kick.fd.write(1);
        count(&self.link.counters.notify_exits);
        kick.exits = kick.exits.saturating_add(1);
        if kick.exits == HOT_KICKS
            && let Some(registry) = &self.wiring.registry
        {
            // If the kernel refuses, kicks go on arriving here.
            kick.registered = registry.register(doorbell, index as u16, &kick.fd).is_ok();
        }
    }

    /// Takes all doorbells back from the kernel, before `doorbell` comes to mean something else.
    ///
    /// # Errors
    /// The first refusal of the kernel; the others are tried nevertheless.
    pub fn unregister_kicks(&mut self, doorbell: u64) -> io::Result<()> {
        let Some(registry) = &self.wiring.registry else {
            return Ok(());
        };
        let mut result = Ok(());
        for (index, kick) in (0..).zip(&mut self.kicks) {
            if kick.registered {
                kick.registered = false;
                kick.exits = 0;
                result = result.and(registry.unregister(doorbell, index, &kick.fd));
            }
        }
        result
    }

    /// The status (VIRTIO 2.1).
    pub fn status(&self) -> u32 {
        self.link.status.load(Ordering::Acquire)
    }

    /// The driver writes the status: 0 resets, bits are set one after the other and never cleared (VIRTIO 2.1.1),
    /// and those that come too early are not taken.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.status();
        let mut new = value & DRIVER_STATUS & !old;
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.agreed() {
            // VIRTIO 2.2.2: the driver reads the bit back and sees that it cannot go on.
            new &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        let begun =
            VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        let blocked = VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
        if (old | new) & begun != begun || (old | new) & blocked != 0 {
            // VIRTIO 3.1.1: DRIVER_OK comes after all of these; VIRTIO 2.1.1: FAILED ends it.
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.link.status.fetch_or(new, Ordering::AcqRel);
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    /// Whether the driver's choice of features can be used (VIRTIO 2.2.2, 6.1, 6.2).
    fn agreed(&self) -> bool {
        !self.accepted_beyond
            && self.accepted & !self.offered == 0
            && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        count(&self.link.counters.activations);
        if let Err(reason) = self.try_activate() {
            self.link.needs_reset(&reason);
        }
    }

    fn try_activate(&mut self) -> Result<(), String> {
        let interrupt: Arc<dyn Interrupt> = Arc::<Link<S>>::clone(&self.link);
        let mut queues = Vec::with_capacity(self.queues.len());
        let mut kicks = Vec::with_capacity(self.queues.len());
        for (index, setup) in (0..).zip(&self.queues) {
            let kick = self.kicks.get_mut(usize::from(index));
            let (Some(kick), true) = (kick, setup.ready) else {
                queues.push(None);
                kicks.push(None);
                continue;
            };
            kick.used = true;
            kicks.push(Some(Arc::clone(&kick.fd)));
            let max = self.sizes.get(usize::from(index)).copied().unwrap_or(0);
            let queue = self.check(setup, max)?;
            let memory = self.wiring.memory.clone();
            queues.push(Some(VirtQueue::new(
                queue,
                memory,
                Arc::clone(&interrupt),
                index,
            )));
        }
        let device = self.device.take().ok_or("its event loop has ended")?;
        let activation = Activation {
            memory: self.wiring.memory.clone(),
            features: self.accepted,
            queues,
            interrupt,
        };
        let worker = Worker::from_device(device, activation, kicks, self.counters());
        self.residence = Some(self.wiring.events.add(worker).map_err(|e| e.to_string())?);
        Ok(())
    }

    fn reset(&mut self) {
        count(&self.link.counters.resets);
        self.take_back();
        self.forget();
        self.link.signal.clear();
        self.link.status.store(0, Ordering::Release);
    }

    /// Takes the device out of its loop. Afterwards nothing of it runs, touches guest memory or interrupts.
    fn take_back(&mut self) {
        if let Some(residence) = self.residence.take() {
            self.device = self
                .wiring
                .events
                .remove(residence)
                .and_then(Worker::into_device);
        }
    }

    /// Back to what a driver finds first (VIRTIO 2.4).
    fn forget(&mut self) {
        self.device_page = 0;
        self.driver_page = 0;
        self.accepted = 0;
        self.accepted_beyond = false;
        self.selected = 0;
        self.queues = self
            .sizes
            .iter()
            .map(|&max| Setup {
                size: u32::from(max),
                ..Setup::default()
            })
            .collect();
    }
}
