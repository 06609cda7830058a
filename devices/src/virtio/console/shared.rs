//! What a console shares with other threads: its size, early output, and the end of its output.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::CONFIG_COLS;
use crate::console_log::ConsoleLog;
use crate::stream::WriteEnd;
use crate::virtio::ConfigSpace;

pub(super) struct Shared {
    pub(super) config: Arc<ConfigSpace>,
    pub(super) wake: EventFd,
    /// Rows and columns, once they are known.
    pub(super) size: Mutex<Option<(u16, u16)>>,
    pub(super) resized: AtomicBool,
    pub(super) dropped: AtomicU64,
    pub(super) drain: Mutex<Drain>,
    pub(super) drained: Condvar,
}

/// The last output of a machine that has stopped, on its way to the host.
#[derive(Default)]
pub(super) struct Drain {
    /// A driver is at work, so there may be output.
    pub(super) active: bool,
    /// Somebody waits for the end of it.
    pub(super) wanted: bool,
    /// The device went away while its driver was at work: what was left will never be with the host.
    pub(super) lost: bool,
}

/// Where early output goes: the first console port's.
#[derive(Clone, Default)]
pub(super) struct Emergency {
    pub(super) log: Option<ConsoleLog>,
    pub(super) end: Arc<Mutex<Option<Arc<WriteEnd>>>>,
}

impl Emergency {
    pub(super) fn put(&self, byte: u8) {
        if let Some(log) = &self.log {
            log.push(&[byte]);
        }
        if let Some(end) = &*self.end.lock().unwrap_or_else(PoisonError::into_inner) {
            // Must not wait: this is a register access. The log has the byte in any case.
            let _ = end.write(&[byte]);
        }
    }

    pub(super) fn connect(&self, end: Option<Arc<WriteEnd>>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

/// The device as other threads may use it.
#[derive(Clone)]
pub struct ConsoleHandle {
    pub(super) shared: Arc<Shared>,
}

impl ConsoleHandle {
    /// Tells the guest the size of the terminal on all console ports.
    pub fn resize(&self, rows: u16, cols: u16) {
        *self.shared.size() = Some((rows, cols));
        let [c0, c1] = cols.to_le_bytes();
        let [r0, r1] = rows.to_le_bytes();
        self.shared.config.update(CONFIG_COLS, &[c0, c1, r0, r1]);
        self.shared.resized.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Waits until the host has taken all output that the guest had offered, `patience` at most; returns whether it
    /// has. For a machine whose vCPUs have stopped: one that runs may go on offering.
    pub fn finish(&self, patience: Duration) -> bool {
        let mut drain = self.shared.drain();
        drain.wanted = drain.active;
        self.shared.wake();
        let (drain, _) = self
            .shared
            .drained
            .wait_timeout_while(drain, patience, |drain| drain.wanted)
            .unwrap_or_else(PoisonError::into_inner);
        !drain.wanted && !drain.lost
    }

    /// Bytes of output that nobody was there to take.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    pub(super) fn size(&self) -> MutexGuard<'_, Option<(u16, u16)>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn drain(&self) -> MutexGuard<'_, Drain> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_active(&self, active: bool) {
        let mut drain = self.drain();
        drain.active = active;
        drain.wanted &= active;
        self.drained.notify_all();
    }

    pub(super) fn wake(&self) {
        // The counter cannot overflow by this: a failure leaves it readable all the same.
        let _ = self.wake.write(1);
    }
}
