//! What each virtio device counts, readable while it runs.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Event counts of one device. Written with relaxed atomics by its transport and its loop.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) notify_exits: AtomicU64,
    pub(crate) kicks: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) config_changes: AtomicU64,
    pub(crate) needs_reset: AtomicU64,
    pub(crate) activations: AtomicU64,
    pub(crate) resets: AtomicU64,
}

/// [`Counters`] at one moment; fields read one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterSnapshot {
    /// Writes to QueueNotify that left the guest: kicks that no ioeventfd took.
    pub notify_exits: u64,
    /// Times the device was woken by a kick. Kicks that arrive close together count once.
    pub kicks: u64,
    /// Used buffer notifications sent.
    pub interrupts: u64,
    /// Configuration change notifications sent.
    pub config_changes: u64,
    /// Faults of the driver, or failures of the device, that only a reset mends.
    pub needs_reset: u64,
    /// Times the driver set DRIVER_OK.
    pub activations: u64,
    /// Times the driver wrote 0 to the status.
    pub resets: u64,
}

impl Counters {
    /// The counts now.
    pub fn snapshot(&self) -> CounterSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterSnapshot {
            notify_exits: get(&self.notify_exits),
            kicks: get(&self.kicks),
            interrupts: get(&self.interrupts),
            config_changes: get(&self.config_changes),
            needs_reset: get(&self.needs_reset),
            activations: get(&self.activations),
            resets: get(&self.resets),
        }
    }
}

/// Adds one; returns the count before.
pub(crate) fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}
