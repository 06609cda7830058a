//! Where devices and sources run: on an event loop, woken by kicks and by the descriptors they watch.
//!
//! Kicks are eventfds watched edge-triggered and never read. Linux queues an edge for every write to an eventfd,
//! also when its count was not 0, and takes the edge off the list before it reports it. So a kick that arrives
//! while the device serves the queue is reported by the next wait, and one that arrives before the loop watches
//! the eventfd is reported at once. In return [`Device::kick`] must serve its queue until [`VirtQueue::rearm`]
//! says that nothing is left, or come back to it by itself: there is no second report.
//!
//! [`VirtQueue::rearm`]: super::VirtQueue::rearm

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{
    Error as LoopError, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint,
    SubscriberId, SubscriberOps,
};
use vmm_sys_util::eventfd::EventFd;

use super::stats::{Counters, count};
use super::{Activation, Device, Interest, Interrupt, Watch};
use crate::source::Source;

/// The way to an event loop from other threads.
pub type LoopHandle = RemoteEndpoint<Worker>;

/// The loop does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The event loop has ended")]
pub struct LoopGone;

/// Where workers live while their driver is active.
pub trait EventLoop: Send + Sync {
    /// Moves `worker` in. The loop activates its device or starts its source, perhaps after this returns.
    ///
    /// # Errors
    /// [`LoopGone`]; the worker is lost.
    fn add(&self, worker: Worker) -> Result<Residence, LoopGone>;

    /// Moves a worker out: its device is reset, or its source stopped, on the loop's thread. `None` when the loop has ended. Must
    /// not be called on the loop's thread.
    fn remove(&self, residence: Residence) -> Option<Worker>;
}

impl EventLoop for LoopHandle {
    fn add(&self, worker: Worker) -> Result<Residence, LoopGone> {
        let residence = Residence::default();
        let slot = residence.clone();
        // Not `call_blocking`: requests are handled in order, so a later `remove` finds the worker there, and the
        // vCPU that sets DRIVER_OK need not wait for the loop to wake up.
        self.fire(move |ops| slot.set(ops.add_subscriber(worker)))
            .map_err(|_| LoopGone)?;
        Ok(residence)
    }

    fn remove(&self, residence: Residence) -> Option<Worker> {
        self.call_blocking(move |ops| Ok::<_, LoopError>(residence.evict(ops)))
            .ok()
            .flatten()
    }
}

/// Where in a loop a worker is.
#[derive(Debug, Clone, Default)]
pub struct Residence(Arc<Mutex<Option<SubscriberId>>>);

impl Residence {
    fn set(&self, id: SubscriberId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    fn evict(&self, ops: &mut dyn SubscriberOps<Subscriber = Worker>) -> Option<Worker> {
        let id = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        // First out of the loop, so that it may close what it watched.
        let mut worker = ops.remove_subscriber(id).ok()?;
        worker.watched.clear();
        match &mut worker.tenant {
            Tenant::Device(active) => active.device.reset(&mut Unwatched),
            Tenant::Source(source) => source.stop(&mut Unwatched),
        }
        Some(worker)
    }
}

/// What lives on an event loop: a virtio device with the eventfds its driver kicks, or a [`Source`].
pub struct Worker {
    tenant: Tenant,
    watched: Vec<RawFd>,
}

enum Tenant {
    Device(Box<Active>),
    Source(Box<dyn Source>),
}

struct Active {
    device: Box<dyn Device>,
    activation: Option<Activation>,
    interrupt: Arc<dyn Interrupt>,
    kicks: Vec<Option<Arc<EventFd>>>,
    counters: Arc<Counters>,
}

impl Worker {
    /// A source, to be started once it is in a loop.
    pub fn from_source(source: Box<dyn Source>) -> Self {
        Self {
            tenant: Tenant::Source(source),
            watched: Vec::new(),
        }
    }

    /// The source, if it is one.
    pub fn into_source(self) -> Option<Box<dyn Source>> {
        match self.tenant {
            Tenant::Source(source) => Some(source),
            Tenant::Device(_) => None,
        }
    }

    /// A device to be activated with `activation` once it is in a loop. `kicks` has one entry per queue, `None`
    /// for unused ones.
    pub(crate) fn from_device(
        device: Box<dyn Device>,
        activation: Activation,
        kicks: Vec<Option<Arc<EventFd>>>,
        counters: Arc<Counters>,
    ) -> Self {
        let active = Active {
            device,
            interrupt: Arc::clone(&activation.interrupt),
            activation: Some(activation),
            kicks,
            counters,
        };
        Self {
            tenant: Tenant::Device(Box::new(active)),
            watched: Vec::new(),
        }
    }

    /// The device, to be activated again later, if it is one.
    pub(crate) fn into_device(self) -> Option<Box<dyn Device>> {
        match self.tenant {
            Tenant::Device(active) => Some(active.device),
            Tenant::Source(_) => None,
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = LoopWatch {
            ops,
            watched: &mut self.watched,
        };
        match &mut self.tenant {
            Tenant::Source(source) => source.start(&mut watch),
            Tenant::Device(active) => active.start(&mut watch),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut watch = LoopWatch {
            ops,
            watched: &mut self.watched,
        };
        match &mut self.tenant {
            Tenant::Device(active) if active.kicked(&events) => {
                count(&active.counters.kicks);
                // A queue index, which is a u16.
                active.device.kick(events.data() as u16, &mut watch);
            }
            Tenant::Device(active) => {
                let (ready, hangup) = readiness(&events);
                active
                    .device
                    .event(events.data(), ready, hangup, &mut watch);
            }
            Tenant::Source(source) => {
                let (ready, hangup) = readiness(&events);
                source.event(events.data(), ready, hangup, &mut watch);
            }
        }
    }
}

fn readiness(events: &Events) -> (Interest, bool) {
    let set = events.event_set();
    let ready = Interest {
        readable: set.contains(EventSet::IN),
        writable: set.contains(EventSet::OUT),
    };
    (ready, set.intersects(EventSet::HANG_UP | EventSet::ERROR))
}

impl Active {
    fn start(&mut self, watch: &mut LoopWatch) {
        if let Some(activation) = self.activation.take()
            && let Err(reason) = self.activate(activation, watch)
        {
            self.interrupt.needs_reset(&reason);
        }
    }

    fn activate(&mut self, activation: Activation, watch: &mut LoopWatch) -> Result<(), String> {
        self.device.activate(activation, watch)?;
        for (index, kick) in (0..).zip(&self.kicks) {
            if let Some(kick) = kick {
                let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
                let added = watch.ops.add(Events::with_data(&**kick, index, set));
                added.map_err(|e| format!("cannot watch the kicks of queue {index}: {e}"))?;
            }
        }
        Ok(())
    }

    /// Devices choose their tokens freely; the descriptor tells a kick from their events.
    fn kicked(&self, events: &Events) -> bool {
        let index = usize::try_from(events.data()).ok();
        let kick = index.and_then(|index| self.kicks.get(index)?.as_ref());
        kick.is_some_and(|kick| kick.as_raw_fd() == events.fd())
    }
}

/// [`Watch`] for a worker in a loop.
struct LoopWatch<'a, 'b> {
    ops: &'a mut EventOps<'b>,
    watched: &'a mut Vec<RawFd>,
}

impl Watch for LoopWatch<'_, '_> {
    fn watch(&mut self, fd: RawFd, token: u32, interest: Interest) -> io::Result<()> {
        let mut set = EventSet::empty();
        set.set(EventSet::IN, interest.readable);
        set.set(EventSet::OUT, interest.writable);
        let events = Events::with_data_raw(fd, token, set);
        if self.watched.contains(&fd) {
            return self.ops.modify(events).map_err(io_error);
        }
        self.ops.add(events).map_err(io_error)?;
        self.watched.push(fd);
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd) {
        if let Some(at) = self.watched.iter().position(|&w| w == fd) {
            self.watched.swap_remove(at);
            // Fails when the descriptor was closed before: then the kernel has dropped it already.
            let _ = self.ops.remove(Events::empty_raw(fd));
        }
    }
}

/// [`Watch`] for what has left its loop.
struct Unwatched;

impl Watch for Unwatched {
    fn watch(&mut self, _: RawFd, _: u32, _: Interest) -> io::Result<()> {
        Err(io::Error::other(
            "The event loop watches nothing for what is leaving it",
        ))
    }

    fn unwatch(&mut self, _: RawFd) {}
}

fn io_error(error: LoopError) -> io::Error {
    match error {
        LoopError::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        LoopError::FdAlreadyRegistered => io::Error::from_raw_os_error(libc::EEXIST),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "testing"))]
pub use test_loops::{InlineLoop, ThreadLoop};

#[cfg(any(test, feature = "testing"))]
mod test_loops {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::JoinHandle;

    use event_manager::{EventManager, SubscriberOps as _};

    use super::{EventLoop, LoopGone, LoopHandle, Residence, Worker};

    /// A loop that turns only when [`InlineLoop::pump`] is called, on the calling thread.
    pub struct InlineLoop(Mutex<EventManager<Worker>>);

    impl InlineLoop {
        /// An empty loop.
        ///
        /// # Panics
        /// When the kernel gives no epoll descriptor.
        pub fn new() -> Self {
            Self(Mutex::new(
                EventManager::new().expect("an epoll descriptor"),
            ))
        }

        /// Handles everything that is ready and what follows from it. Returns the number of events handled.
        ///
        /// # Panics
        /// When there is no end to it, which means that a device does not unwatch what stays ready.
        pub fn pump(&self) -> usize {
            let mut manager = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut handled = 0;
            for _ in 0..100_000 {
                match manager.run_with_timeout(0).expect("epoll_wait") {
                    0 => return handled,
                    n => handled += n,
                }
            }
            panic!("a device never comes to rest");
        }
    }

    impl Default for InlineLoop {
        fn default() -> Self {
            Self::new()
        }
    }

    impl EventLoop for InlineLoop {
        fn add(&self, worker: Worker) -> Result<Residence, LoopGone> {
            let residence = Residence::default();
            residence.set(self.0.lock().map_err(|_| LoopGone)?.add_subscriber(worker));
            Ok(residence)
        }

        fn remove(&self, residence: Residence) -> Option<Worker> {
            residence.evict(&mut *self.0.lock().ok()?)
        }
    }

    /// A loop on a thread of its own, stopped by [`ThreadLoop::stop`] or by dropping it.
    pub struct ThreadLoop {
        handle: LoopHandle,
        stop: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl ThreadLoop {
        /// Starts the thread.
        ///
        /// # Panics
        /// When the kernel gives no epoll descriptor or thread.
        pub fn start() -> Self {
            let (sender, receiver) = mpsc::channel();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                let mut manager = EventManager::<Worker>::new().expect("an epoll descriptor");
                sender
                    .send(manager.remote_endpoint())
                    .expect("the starting thread waits");
                while !stopped.load(Ordering::Acquire) {
                    manager.run().expect("epoll_wait");
                }
            });
            let handle = receiver.recv().expect("the loop starts");
            Self {
                handle,
                stop,
                thread: Some(thread),
            }
        }

        /// The loop as transports want it.
        pub fn handle(&self) -> LoopHandle {
            self.handle.clone()
        }

        /// Ends the loop and drops the workers in it.
        pub fn stop(&mut self) {
            self.stop.store(true, Ordering::Release);
            let _ = self.handle.kick();
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }

    impl Drop for ThreadLoop {
        fn drop(&mut self) {
            self.stop();
        }
    }
}
