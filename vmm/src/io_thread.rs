//! I/O threads: each runs one event loop for the devices that were given to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::EventManager;
use vsc_devices::virtio::worker::{LoopHandle, Worker};

use crate::control::{Control, Stop};

/// Why an I/O thread could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// No epoll or eventfd.
    #[error("Create an event loop: {0}")]
    Loop(String),
    /// No thread.
    #[error("Start an I/O thread")]
    Spawn(#[source] std::io::Error),
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

/// A running I/O thread.
pub struct IoThread {
    handle: LoopHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a loop.
    ///
    /// # Errors
    /// [`IoThreadError`].
    pub fn spawn(index: u32, control: Arc<Control>) -> Result<Self, IoThreadError> {
        let mut manager = EventManager::<Worker>::new_with_capacity(32)
            .map_err(|e| IoThreadError::Loop(e.to_string()))?;
        let handle = manager.remote_endpoint();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = crate::thread()
            .name(format!("io{index}"))
            .spawn({
                let stop = stop.clone();
                move || {
                    let mut guard = Guard {
                        control,
                        ended: false,
                    };
                    while !stop.load(Ordering::Acquire) {
                        // An error of epoll_wait other than EINTR, which the manager hides, is a broken process.
                        if manager.run().is_err() {
                            return;
                        }
                    }
                    guard.ended = true;
                }
            })
            .map_err(IoThreadError::Spawn)?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
        })
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
            let _ = thread.join();
        }
    }
}
