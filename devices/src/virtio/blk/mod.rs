//! virtio-blk: disks (VIRTIO 5.2).
//!
//! Data moves between guest memory and the [`Disk`] without a copy of ours. All of a queue is taken before the disk
//! is asked to run what it queued, and the driver is interrupted once per batch, so a request that the disk answers
//! on the spot costs one system call and one interrupt.

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, Chain, ConfigSpace, Device, Interest, VirtQueue, Watch};
use crate::block::keep::Keep;
use crate::block::luks::{DiskError, LuksDisk, LuksError, LuksOpenError};
use crate::block::raw::{EngineChoice, RawFile, RawOptions, Spare};
use crate::block::{Completion, Disk, Note, OpenError};
use crate::secret::Passphrase;

mod config;
mod request;
pub mod spec;
mod work;

pub use spec::{BlkSpec, Cache, Discard, Format, Lock, Luks, Policy, SpecError, SyncMode};

use config::WRITEBACK;
use request::Limits;
use spec::SERIAL_MAX;
use work::Work;

/// Requests and bytes served in one go before the other devices of the loop get a turn: about 10 ms.
const TURN_REQUESTS: u32 = 1024;
const TURN_BYTES: u64 = 64 << 20;
/// Bytes after which the driver hears of what is done, though the batch is not: it can work meanwhile.
const NOTIFY_BYTES: u64 = 4 << 20;

const COMPLETIONS: u32 = 0;
const AGAIN: u32 = 1;

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The spec is wrong in itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The encrypted image cannot be used.
    #[error(transparent)]
    Luks(#[from] DiskError),
}

impl From<LuksOpenError> for BlkError {
    fn from(error: LuksOpenError) -> Self {
        match error {
            LuksOpenError::Open(e) => Self::Open(e),
            LuksOpenError::Luks(e) => Self::Luks(e),
        }
    }
}

/// What is not of the machine but of how this process runs it.
#[derive(Clone)]
pub struct BlkOptions {
    /// How long to look for further requests after a batch, before the loop sleeps. Burns a host CPU: only when
    /// the host has more of them than there are vCPUs.
    pub poll: Duration,
    /// Where the first failure of the disk is reported, and the absence of io_uring.
    pub note: Note,
    /// How to run what cannot be answered on the spot.
    pub engine: EngineChoice,
    /// What opens the disk, if it is encrypted.
    pub passphrase: Option<Arc<Passphrase>>,
    /// A ring made for it beforehand.
    pub spare: Spare,
    /// The image's open file, over the lives of the machine.
    pub keep: Keep,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            poll: Duration::ZERO,
            note: Arc::new(|_| {}),
            engine: EngineChoice::Auto,
            passphrase: None,
            spare: Spare::default(),
            keep: Keep::default(),
        }
    }
}

/// What a disk has done so far. Written with relaxed atomics by its loop.
#[derive(Debug, Default)]
pub struct BlkCounters {
    /// Requests completed, of any kind and end.
    pub requests: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Requests that the host failed (full file system, I/O error); those that the guest got wrong are not counted.
    pub errors: AtomicU64,
    /// Requests that have begun, and queues that wait for their turn.
    pub busy: AtomicU64,
}

impl BlkCounters {
    /// Whether nothing is left of what the guest has asked for, as far as the loop has heard of it.
    pub fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }
}

/// A disk.
pub struct Blk {
    name: String,
    sizes: Vec<u16>,
    queues: Vec<Option<VirtQueue>>,
    work: Work,
    poll: Duration,
    watched: bool,
    again: Option<EventFd>,
    /// Queues whose turn was cut short.
    waiting: Vec<u16>,
}

impl Blk {
    /// Opens the image that `spec` names. `name` is for messages: `disk0`.
    ///
    /// # Errors
    /// [`BlkError`].
    pub fn open(name: &str, spec: &BlkSpec, options: BlkOptions) -> Result<Self, BlkError> {
        spec.validate()?;
        let raw = RawOptions {
            read_only: spec.read_only,
            direct: spec.policy().direct,
            block: spec.logical_block_size,
            lock: spec.lock,
            lockspace: spec.lockspace,
            engine: options.engine,
            spare: options.spare.clone(),
            keep: options.keep.clone(),
            note: Arc::clone(&options.note),
        };
        let disk: Box<dyn Disk> = match (&spec.encryption, &options.passphrase) {
            (None, _) => Box::new(RawFile::open(&spec.path, raw)?),
            (Some(_), Some(passphrase)) => Box::new(LuksDisk::open(&spec.path, &raw, passphrase)?),
            (Some(_), None) => {
                let path = spec.path.clone();
                let source = LuksError::NoPassphrase;
                return Err(DiskError { path, source }.into());
            }
        };
        Ok(Self::with_disk(name, spec, disk, options)?)
    }

    /// A device in front of any [`Disk`]; of `spec`, what concerns the image is not looked at.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn with_disk(
        name: &str,
        spec: &BlkSpec,
        disk: Box<dyn Disk>,
        options: BlkOptions,
    ) -> Result<Self, SpecError> {
        spec.validate()?;
        let geometry = *disk.geometry();
        let mut serial = [0; SERIAL_MAX];
        for (to, from) in serial.iter_mut().zip(spec.id.bytes()) {
            *to = from;
        }
        Ok(Self {
            name: name.to_owned(),
            sizes: vec![spec.queue_size; spec.num_queues.into()],
            queues: Vec::new(),
            work: Work {
                config: Arc::new(config::space(spec, &geometry)),
                features: config::features(spec, &geometry),
                negotiated: 0,
                limits: Limits {
                    size: geometry.size,
                    read_only: geometry.read_only,
                    discard: false,
                    write_zeroes: false,
                },
                policy: spec.policy(),
                serial,
                disk,
                slots: Vec::new(),
                free: Vec::new(),
                in_flight: 0,
                done: Vec::new(),
                counters: Arc::default(),
                note: options.note,
                name: name.to_owned(),
            },
            poll: options.poll,
            watched: false,
            again: None,
            waiting: Vec::new(),
        })
    }

    /// The disk's counters, to be read while it runs.
    pub fn counters(&self) -> Arc<BlkCounters> {
        Arc::clone(&self.work.counters)
    }

    fn serve(&mut self, index: u16, watch: &mut dyn Watch) {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let work = &mut self.work;
        let (mut requests, mut bytes) = (0, 0);
        let mut spotted = None;
        queue.suppress();
        loop {
            let mut unheard = 0;
            let mut popped = spotted.take().or_else(|| work.pop(queue));
            while let Some(tag) = popped {
                // One look ahead tells whether the request has company.
                popped = work.pop(queue);
                let alone = popped.is_none() && work.in_flight == 1;
                let moved = work.begin(queue, tag, alone);
                requests += 1;
                bytes += moved;
                unheard += moved;
                if unheard >= NOTIFY_BYTES && popped.is_some() {
                    unheard = 0;
                    work.disk.submit();
                    queue.notify();
                }
                if (requests >= TURN_REQUESTS || bytes >= TURN_BYTES) && popped.is_some() {
                    // The one that was looked ahead to is still ours to begin.
                    if let Some(tag) = popped.take() {
                        work.begin(queue, tag, false);
                    }
                    bytes = TURN_BYTES;
                }
            }
            work.disk.submit();
            queue.notify();
            if bytes >= TURN_BYTES || requests >= TURN_REQUESTS {
                if !self.waiting.contains(&index) {
                    self.waiting.push(index);
                }
                break;
            }
            if !self.poll.is_zero() {
                spotted = work.spin(queue, self.poll);
            }
            if spotted.is_none() && !queue.rearm() {
                break;
            }
        }
        if self.work.in_flight > 0 {
            self.collect(watch);
        }
        if !self.waiting.is_empty() {
            self.again(watch);
        }
        self.note_busy();
    }

    fn note_busy(&self) {
        let busy = self.work.in_flight + self.waiting.len();
        self.work
            .counters
            .busy
            .store(busy as u64, Ordering::Release);
    }

    /// Takes what the disk has finished, and sees to it that the rest will be heard of.
    fn collect(&mut self, watch: &mut dyn Watch) {
        let work = &mut self.work;
        let mut done = std::mem::take(&mut work.done);
        work.disk.reap(&mut done);
        for Completion { tag, result } in done.drain(..) {
            let queue = work
                .slots
                .get(tag as usize)
                .map(|slot| usize::from(slot.queue));
            if let Some(Some(queue)) = queue.and_then(|q| self.queues.get_mut(q)) {
                work.ended(queue, tag, result);
            }
        }
        work.done = done;
        // Short transfers and further ranges were begun anew.
        work.disk.submit();
        for queue in self.queues.iter_mut().flatten() {
            queue.notify();
        }
        if !self.watched
            && let Some(fd) = self.work.disk.ready_fd()
        {
            self.watched = self.watch(fd, COMPLETIONS, watch);
        }
    }

    fn watch(&mut self, fd: RawFd, token: u32, watch: &mut dyn Watch) -> bool {
        let readable = Interest {
            readable: true,
            writable: false,
        };
        match watch.watch(fd, token, readable) {
            Ok(()) => true,
            Err(why) => {
                for queue in self.queues.iter_mut().flatten() {
                    queue.fail(&format!("cannot wait for the disk: {why}"));
                }
                false
            }
        }
    }

    /// Asks the loop for another turn.
    fn again(&mut self, watch: &mut dyn Watch) {
        if self.again.is_none() {
            match EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK) {
                Ok(fd) if self.watch(fd.as_raw_fd(), AGAIN, watch) => self.again = Some(fd),
                Ok(_) => {}
                Err(why) => {
                    for queue in self.queues.iter_mut().flatten() {
                        queue.fail(&format!("no eventfd for the disk: {why}"));
                    }
                }
            }
        }
        if let Some(again) = &self.again {
            // Fails only when the counter would overflow: then it is readable.
            let _ = again.write(1);
        }
    }
}

impl Device for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.work.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.work.config)
    }

    fn activate(&mut self, activation: Activation, _watch: &mut dyn Watch) -> Result<(), String> {
        let Activation {
            memory: _,
            features,
            queues,
            interrupt: _,
        } = activation;
        let has = |bit: u32| features & 1 << bit != 0;
        self.work.negotiated = features;
        self.work.limits.discard = has(VIRTIO_BLK_F_DISCARD);
        self.work.limits.write_zeroes = has(VIRTIO_BLK_F_WRITE_ZEROES);
        self.queues = queues;
        Ok(())
    }

    fn kick(&mut self, index: u16, watch: &mut dyn Watch) {
        self.serve(index, watch);
    }

    fn event(&mut self, token: u32, _ready: Interest, _hangup: bool, watch: &mut dyn Watch) {
        if token == AGAIN {
            if let Some(again) = &self.again {
                // Nonblocking; nothing to read means that an earlier turn was enough.
                let _ = again.read();
            }
            for index in std::mem::take(&mut self.waiting) {
                self.serve(index, watch);
            }
        } else {
            self.collect(watch);
            self.note_busy();
        }
    }

    fn reset(&mut self, watch: &mut dyn Watch) {
        let work = &mut self.work;
        // What is in flight ends as the host's I/O ends; nobody hears of it.
        work.disk.drain(&mut work.done);
        work.done.clear();
        if let Some(fd) = work.disk.ready_fd() {
            watch.unwatch(fd);
        }
        if let Some(again) = self.again.take() {
            watch.unwatch(again.as_raw_fd());
        }
        self.watched = false;
        self.waiting.clear();
        self.queues.clear();
        work.slots.clear();
        work.free.clear();
        work.in_flight = 0;
        work.counters.busy.store(0, Ordering::Release);
        // A new driver finds the cache as the host's user set it.
        let writeback = u8::from(work.policy.writeback);
        if work.config.byte(WRITEBACK) != writeback {
            work.config.update(WRITEBACK, &[writeback]);
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        // Fields are dropped in order, queues first: their memory must outlive what is in flight.
        self.work.disk.drain(&mut self.work.done);
    }
}

#[cfg(test)]
mod tests;
