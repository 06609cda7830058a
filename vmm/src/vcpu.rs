//! What a vCPU thread does: run the guest, serve its exits, stop when told.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};
use vsc_devices::bus::Bus;
use vsc_devices::legacy::ioapic::IoApic;

use crate::control::{Control, Stop};
use crate::exit::{Exit, ExitCounters};
use crate::placement::Seat;
use crate::sandbox::{Confinement, Thread};

/// A vCPU as the loop sees it; KVM's is one, tests have another.
pub trait RunVcpu: Send {
    /// Number of the vCPU, from 0.
    fn index(&self) -> u32;
    /// A way for other threads to keep the next run from entering the guest. Used only while the vCPU exists.
    fn interrupter(&mut self) -> Box<dyn Interrupter>;
    /// Enters the guest until it needs this process.
    ///
    /// # Errors
    /// The system's reason when the vCPU cannot run at all.
    fn run(&mut self) -> io::Result<Exit<'_>>;
    /// Registers, for diagnoses.
    fn snapshot(&self) -> CpuSnapshot;
}

/// See [`RunVcpu::interrupter`].
pub trait Interrupter: Send + Sync {
    /// Turns it on or off.
    fn set(&self, on: bool);
}

/// Whether a vCPU sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sleep {
    /// Runs.
    Running,
    /// `hlt`, until an interrupt.
    Halted,
    /// `hlt` with interrupts masked: nothing but an NMI or INIT wakes it.
    Forever,
    /// Waits for INIT or SIPI.
    NotStarted,
}

/// Where a vCPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSnapshot {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// EFER.
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Whether it sleeps.
    pub sleep: Sleep,
}

/// What all vCPU threads of a machine share.
pub struct Shared {
    /// Port I/O.
    pub ports: Bus,
    /// MMIO.
    pub mmio: Bus,
    /// The I/O APIC, when it is in this process.
    pub ioapic: Option<IoApic>,
    /// Stop requests and events.
    pub control: Arc<Control>,
}

/// The main thread's end of a vCPU thread.
pub struct VcpuThread {
    thread: Option<JoinHandle<()>>,
    mailbox: Arc<Mailbox>,
    /// Exits to this process, by kind.
    pub counters: Arc<ExitCounters>,
}

/// A question to a running vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question(u32);

/// Questions to a running vCPU thread, and how to make it look.
struct Mailbox {
    asked: AtomicU32,
    answer: Mutex<Answer>,
    ended: AtomicBool,
}

#[derive(Default)]
struct Answer {
    number: u32,
    snapshot: Option<CpuSnapshot>,
    /// Present while the vCPU exists.
    interrupter: Option<Box<dyn Interrupter>>,
}

/// The signal that takes a vCPU out of KVM_RUN. Its handler does nothing: the interruption is the message.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// A parent may have blocked the signal for this process; blocked, it would not take a vCPU out of the guest.
fn accept_kicks() {
    // SAFETY: plain calls on a set of our own.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl VcpuThread {
    /// Starts the thread. The guest runs as soon as it is scheduled.
    ///
    /// # Errors
    /// The system's reason when there is no thread to be had, or it cannot have its seat.
    pub fn spawn(
        mut vcpu: Box<dyn RunVcpu>,
        shared: Arc<Shared>,
        seat: Seat,
        confinement: Confinement,
    ) -> io::Result<Self> {
        let index = vcpu.index();
        register_signal_handler(kick_signal(), on_kick)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        let mailbox = Arc::new(Mailbox {
            asked: AtomicU32::new(0),
            answer: Mutex::new(Answer {
                interrupter: Some(vcpu.interrupter()),
                ..Answer::default()
            }),
            ended: AtomicBool::new(false),
        });
        let counters = Arc::new(ExitCounters::default());
        let seated = (!seat.is_any()).then(mpsc::channel);
        let (tell, told) = match seated {
            Some((tell, told)) => (Some(tell), Some(told)),
            None => (None, None),
        };
        let thread = crate::thread().name(format!("vcpu{index}")).spawn({
            let (mailbox, counters) = (mailbox.clone(), counters.clone());
            move || {
                accept_kicks();
                let mut guard = Guard {
                    control: shared.control.clone(),
                    mailbox,
                    stop: None,
                    bug: true,
                };
                let mut seated = true;
                if let Some(tell) = tell {
                    let outcome = seat.take();
                    seated = outcome.is_ok();
                    let _ = tell.send(outcome);
                }
                if seated {
                    let confined = confinement.map_or(Ok(()), |s| s.enter(Thread::Vcpu, false));
                    guard.stop = match confined {
                        Ok(()) => run(vcpu.as_mut(), &shared, &guard.mailbox, &counters),
                        Err(e) => Some(Stop::not_confined(Thread::Vcpu, &e)),
                    };
                }
                guard.bug = false;
                // The interrupter goes before the vCPU does.
                guard.mailbox.close();
            }
        })?;
        if let Some(told) = told
            // Silence is a panic there, which ends the machine.
            && let Ok(Err(e)) = told.recv()
        {
            let _ = thread.join();
            let text = format!("Place the thread of vCPU {index}: {e}");
            return Err(io::Error::new(e.kind(), text));
        }
        Ok(Self {
            thread: Some(thread),
            mailbox,
            counters,
        })
    }

    /// Makes the thread look at [`Control`].
    pub fn kick(&self) {
        let answer = self.mailbox.lock();
        if let (Some(interrupter), Some(thread)) = (&answer.interrupter, &self.thread) {
            interrupter.set(true);
            // The thread holds the vCPU while the interrupter is there, so it has not been joined.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Asks a running vCPU for its registers; [`VcpuThread::answer`] has them soon after.
    pub fn ask(&self) -> Question {
        let number = self.mailbox.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.kick();
        Question(number)
    }

    /// The registers when the question was answered, or of the moment when the vCPU ended; `None` while it has not
    /// looked: it is waiting inside a device, or the host is busy.
    pub fn answer(&self, question: Question) -> Option<CpuSnapshot> {
        let answer = self.mailbox.lock();
        let there = answer.number >= question.0 || self.mailbox.ended.load(Ordering::Acquire);
        answer.snapshot.filter(|_| there)
    }

    /// The registers of the moment when the vCPU ended; `None` while it runs.
    pub fn last(&self) -> Option<CpuSnapshot> {
        self.mailbox
            .lock()
            .snapshot
            .filter(|_| self.mailbox.ended.load(Ordering::Acquire))
    }

    /// Waits for the thread after [`Control::stop`].
    pub fn join(&mut self) {
        self.kick();
        if let Some(thread) = self.thread.take() {
            // A panic on that thread has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Ends the machine when the thread does, even by a panic: a machine with a missing vCPU must not go on.
struct Guard {
    control: Arc<Control>,
    mailbox: Arc<Mailbox>,
    stop: Option<Stop>,
    bug: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.mailbox.close();
        if self.bug {
            self.control.stop(Stop::Bug);
        } else if let Some(stop) = self.stop.take() {
            self.control.stop(stop);
        }
    }
}

impl Mailbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a question, if there is one, and re-arms the interrupter.
    fn serve(&self, vcpu: &dyn RunVcpu) {
        let mut answer = self.lock();
        let asked = self.asked.load(Ordering::Acquire);
        if let Some(interrupter) = &answer.interrupter {
            interrupter.set(false);
        }
        if answer.number != asked {
            answer.snapshot = Some(vcpu.snapshot());
            answer.number = asked;
        }
    }

    fn close(&self) {
        let mut answer = self.lock();
        answer.interrupter = None;
        self.ended.store(true, Ordering::Release);
    }
}

/// The loop. Returns why the machine must stop, or `None` when it was told to.
fn run(
    vcpu: &mut dyn RunVcpu,
    shared: &Shared,
    mailbox: &Mailbox,
    counters: &ExitCounters,
) -> Option<Stop> {
    let index = vcpu.index();
    let stop = loop {
        if shared.control.stopping() {
            break None;
        }
        if shared.control.paused() {
            shared.control.park();
            continue;
        }
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(source) => {
                break Some(Stop::VcpuError {
                    vcpu: index,
                    errno: source.raw_os_error().unwrap_or(0),
                });
            }
        };
        match exit {
            Exit::PortIn { port, size, data } => {
                counters.port_in.add();
                for access in data.chunks_mut(size) {
                    shared.ports.read(port.into(), access);
                }
            }
            Exit::PortOut { port, size, data } => {
                counters.port_out.add();
                for access in data.chunks(size) {
                    shared.ports.write(port.into(), access);
                }
            }
            Exit::MmioRead { address, data } => {
                counters.mmio_read.add();
                shared.mmio.read(address, data);
            }
            Exit::MmioWrite { address, data } => {
                counters.mmio_write.add();
                shared.mmio.write(address, data);
            }
            Exit::Eoi(vector) => {
                counters.other.add();
                if let Some(ioapic) = &shared.ioapic {
                    ioapic.eoi(vector);
                }
            }
            Exit::Interrupted => {
                counters.other.add();
                mailbox.serve(vcpu);
            }
            Exit::Halt => break Some(Stop::Halted),
            Exit::Shutdown => break Some(Stop::TripleFault { vcpu: index }),
            Exit::InternalError {
                suberror,
                instruction,
            } => {
                break Some(Stop::InternalError {
                    vcpu: index,
                    suberror,
                    instruction,
                });
            }
            Exit::FailEntry(reason) => {
                break Some(Stop::FailEntry {
                    vcpu: index,
                    reason,
                });
            }
            Exit::Unexpected(what) => {
                break Some(Stop::Unexpected {
                    vcpu: index,
                    what: what.into(),
                });
            }
        }
    };
    let snapshot = vcpu.snapshot();
    mailbox.lock().snapshot = Some(snapshot);
    stop
}

#[cfg(test)]
mod tests;
