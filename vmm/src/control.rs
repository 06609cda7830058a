//! The one place where threads agree that a machine ends, and why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vsc_devices::event::{EventSink, GuestEvent};
use vsc_devices::source;

use crate::sandbox::Thread;

/// Why a machine stopped. The first reason stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Stop {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote a status to the exit port.
    Exit {
        /// The status.
        status: u8,
    },
    /// The guest's kernel reported a panic.
    Panic,
    /// A triple fault.
    TripleFault {
        /// The vCPU.
        vcpu: u32,
    },
    /// All vCPUs sleep with interrupts masked.
    Halted,
    /// No sign of life within the boot deadline.
    NoLife,
    /// KVM gave up.
    InternalError {
        /// The vCPU.
        vcpu: u32,
        /// KVM_INTERNAL_ERROR_*; 1 is an instruction that KVM cannot emulate.
        suberror: u32,
        /// The instruction's bytes, if known.
        instruction: Vec<u8>,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// The vCPU.
        vcpu: u32,
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM_RUN failed.
    VcpuError {
        /// The vCPU.
        vcpu: u32,
        /// errno.
        errno: i32,
    },
    /// An exit that nobody asked for.
    Unexpected {
        /// The vCPU.
        vcpu: u32,
        /// Which.
        what: String,
    },
    /// A thread of the monitor panicked; its message is on standard error.
    Bug,
    /// A thread could not be confined, and did not run.
    NotConfined {
        /// Its kind.
        thread: String,
        /// errno.
        errno: i32,
    },
    /// The caller asked.
    Requested,
}

impl Stop {
    pub(crate) fn not_confined(thread: Thread, error: &std::io::Error) -> Self {
        Self::NotConfined {
            thread: thread.word().to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
        }
    }
}

/// Stop flag, reason, and the descriptor that wakes the main thread.
pub struct Control {
    stopping: AtomicBool,
    reason: Mutex<Option<Stop>>,
    wake: EventFd,
    waits: source::Stop,
    paused: AtomicBool,
    /// vCPUs that stand still.
    parked: Mutex<usize>,
    moved: Condvar,
}

impl Control {
    /// A machine that runs.
    ///
    /// # Errors
    /// The system's reason when there is no eventfd to be had.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            stopping: AtomicBool::new(false),
            reason: Mutex::new(None),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            waits: source::Stop::new()?,
            paused: AtomicBool::new(false),
            parked: Mutex::new(0),
            moved: Condvar::new(),
        })
    }

    /// Stops the machine: vCPU threads leave their loops at their next exit. Only the first reason is kept. Output that
    /// a device still waits to deliver is not given up by this.
    pub fn stop(&self, why: Stop) {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_none() {
            *reason = Some(why);
        }
        self.stopping.store(true, Ordering::Release);
        // Between a look at the flag and the wait that follows it, nobody else is.
        drop(self.parked());
        self.moved.notify_all();
        // A counter that is full is a reader that will wake anyway.
        let _ = self.wake.write(1);
    }

    /// Whether the machine is to stop.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets vCPUs stand still at their next exit, or go on.
    pub fn pause(&self, paused: bool) {
        let parked = self.parked();
        self.paused.store(paused, Ordering::Release);
        drop(parked);
        self.moved.notify_all();
    }

    /// Whether vCPUs are to stand still.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// A vCPU stands still until it is to go on, or the machine stops.
    pub fn park(&self) {
        let mut parked = self.parked();
        *parked += 1;
        self.moved.notify_all();
        while self.paused() && !self.stopping() {
            let woken = self.moved.wait(parked);
            parked = woken.unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
    }

    /// Waits until so many vCPUs stand still, `patience` at most; returns whether they do.
    pub fn all_parked(&self, count: usize, patience: Duration) -> bool {
        let waits = |parked: &mut usize| *parked < count && !self.stopping();
        let (parked, _) = self
            .moved
            .wait_timeout_while(self.parked(), patience, waits)
            .unwrap_or_else(PoisonError::into_inner);
        *parked >= count
    }

    /// Why, once it is.
    pub fn reason(&self) -> Option<Stop> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends every wait of a device for its host's reader: what that has not taken is lost from now on.
    pub fn abandon(&self) {
        self.waits.raise();
    }

    /// Raised by [`Control::abandon`], for devices that wait inside a register access or a reset.
    pub fn waits(&self) -> source::Stop {
        self.waits.clone()
    }

    /// Readable when the machine stops.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

impl EventSink for Control {
    fn notify(&self, event: GuestEvent) {
        match event {
            GuestEvent::Reset => self.stop(Stop::Reset),
            GuestEvent::PowerOff => self.stop(Stop::PowerOff),
            GuestEvent::Exit(status) => self.stop(Stop::Exit { status }),
            GuestEvent::Panicked { loaded: false } => self.stop(Stop::Panic),
            // The crash kernel runs next; how that ends is what counts.
            GuestEvent::Panicked { loaded: true } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_stand_still_until_they_go_on_or_stop() {
        let control = Control::new().unwrap();
        let long = Duration::from_secs(60);
        control.pause(true);
        std::thread::scope(|scope| {
            let parked = [(); 2].map(|()| scope.spawn(|| control.park()));
            assert!(control.all_parked(2, long));
            assert!(!control.all_parked(3, Duration::from_millis(1)));
            control.pause(false);
            for thread in parked {
                thread.join().unwrap();
            }
            control.pause(true);
            let parked = scope.spawn(|| control.park());
            assert!(control.all_parked(1, long) && control.paused());
            control.stop(Stop::Requested);
            parked.join().unwrap();
        });
        assert!(
            !control.all_parked(1, long),
            "a machine that stops is not waited for"
        );
    }

    #[test]
    fn the_first_reason_stands_and_wakes_the_main_thread() {
        let control = Control::new().unwrap();
        assert!(!control.stopping() && control.reason().is_none());
        control.notify(GuestEvent::Panicked { loaded: true });
        assert!(!control.stopping());
        control.notify(GuestEvent::Exit(3));
        control.notify(GuestEvent::Reset);
        assert!(control.stopping());
        assert_eq!(control.reason(), Some(Stop::Exit { status: 3 }));
        assert!(control.wake().read().unwrap() > 0);
    }
}
