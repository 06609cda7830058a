//! What stands in for the interrupt controller and for KVM's ioeventfds.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::lock;
use crate::irq::IrqLine;
use crate::virtio::transport::KickRegistry;

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
    pub(super) fn wait(&self, deadline: Instant) -> bool {
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
    pub(super) fn ring(&self, address: u64, value: u32) -> bool {
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
