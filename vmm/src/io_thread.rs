//! I/O threads: each runs one event loop for the devices that were given to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::EventManager;
use vsc_devices::block::raw::Spare;
use vsc_devices::virtio::worker::{LoopHandle, Worker};

use crate::control::{Control, Stop};
use crate::sandbox::{Confinement, Thread};

/// Why an I/O thread could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// No epoll or eventfd.
    #[error("Create an event loop: {0}")]
    Loop(String),
}

/// Ends the machine when a loop ends without being told to: its devices would never answer again.
struct Guard {
    control: Arc<Control>,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            self.control.stop(Stop::Bug);
        }
    }
}

type Manager = EventManager<Worker>;

/// An I/O thread: before its start, a loop that takes in what will run on it.
pub struct IoThread {
    index: u32,
    control: Arc<Control>,
    handle: LoopHandle,
    stop: Arc<AtomicBool>,
    spares: Vec<Spare>,
    /// Some disk of the machine works on threads of its own.
    disk_threads: bool,
    /// Before the start.
    manager: Option<Manager>,
    /// Gives the loop back, so that whatever is in it ends on the main thread, which may do more.
    thread: Option<JoinHandle<Manager>>,
}

impl IoThread {
    /// Makes a loop.
    ///
    /// # Errors
    /// [`IoThreadError`].
    pub fn new(index: u32, control: Arc<Control>) -> Result<Self, IoThreadError> {
        let manager =
            Manager::new_with_capacity(32).map_err(|e| IoThreadError::Loop(e.to_string()))?;
        Ok(Self {
            index,
            control,
            handle: manager.remote_endpoint(),
            stop: Arc::new(AtomicBool::new(false)),
            spares: Vec::new(),
            disk_threads: false,
            manager: Some(manager),
            thread: None,
        })
    }

    /// A disk will run here.
    pub fn expect_disk(&mut self, spare: Spare) {
        self.spares.push(spare);
    }

    /// Disks of the machine start threads; to be said to all loops or none.
    pub fn expect_disk_threads(&mut self) {
        self.disk_threads = true;
    }

    /// Starts the thread; once.
    ///
    /// # Errors
    /// The system's reason when there is no thread to be had.
    pub fn start(&mut self, confinement: &Confinement) -> std::io::Result<()> {
        let Some(mut manager) = self.manager.take() else {
            return Ok(());
        };
        let confinement = confinement.clone();
        let spares = std::mem::take(&mut self.spares);
        let disk_threads = self.disk_threads;
        let stop = self.stop.clone();
        let control = self.control.clone();
        let run = move || {
            let mut guard = Guard {
                control,
                ended: false,
            };
            if let Some(sandbox) = confinement {
                let rings = spares.iter().filter(|spare| spare.make()).count();
                if let Err(e) = sandbox.enter(Thread::Loop, disk_threads || rings < spares.len()) {
                    guard.control.stop(Stop::not_confined(Thread::Loop, &e));
                    return manager;
                }
            }
            while !stop.load(Ordering::Acquire) {
                // An error of epoll_wait other than EINTR, which the manager hides, is a broken process.
                if manager.run().is_err() {
                    return manager;
                }
            }
            guard.ended = true;
            manager
        };
        let name = format!("io{}", self.index);
        self.thread = Some(crate::thread().name(name).spawn(run)?);
        Ok(())
    }

    /// Waits until the loop has begun whatever was asked of its devices before this call: what an epoll_wait has
    /// reported is served before the next one, which has the second call. False: it does not run.
    pub fn settle(&self) -> bool {
        let turn = || {
            let called = self
                .handle
                .call_blocking(|_| Ok::<_, event_manager::Error>(()));
            called.is_ok()
        };
        self.thread.is_some() && turn() && turn()
    }

    /// The loop's remote control.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.handle.kick();
        if let Some(thread) = self.thread.take() {
            // A panic on that thread has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}
