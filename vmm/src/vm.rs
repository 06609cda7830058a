//! A built machine: start it, watch it, end it.
//!
//! Nothing here blocks or owns a loop: the caller polls [`Vm::wake`] together with whatever else it waits for, and
//! calls [`Vm::check`] when it is readable or when the time that `check` gave has come.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vsc_devices::console_log::ConsoleLog;
use vsc_devices::legacy::acpi_pm::AcpiPm;
use vsc_devices::legacy::serial::Serial;
use vsc_devices::virtio::blk::BlkCounters;
use vsc_devices::virtio::console::ConsoleHandle;
use vsc_devices::virtio::stats::{CounterSnapshot, Counters};

use crate::control::{Control, Stop};
use crate::io_thread::IoThread;
use crate::kvm::{KvmVcpu, Machine, VcpuStats};
use crate::placement::Seat;
use crate::sandbox::Confinement;
use crate::vcpu::{CpuSnapshot, Question, Shared, Sleep, VcpuThread};

/// First and last interval between looks at a machine that makes no exits.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_LAST: Duration = Duration::from_secs(2);
/// How long a kernel may go on after it printed that it panicked (it may reboot by itself, or dump).
const AFTER_PANIC: Duration = Duration::from_secs(1);
/// How long a vCPU has to answer before it counts as busy.
const PATIENCE: Duration = Duration::from_millis(20);

/// A virtual machine in this process.
pub struct Vm {
    // Fields drop in this order: no vCPU runs when the loops end, no loop when memory goes.
    threads: Vec<VcpuThread>,
    pub(crate) waiting: Vec<KvmVcpu>,
    pub(crate) shared: Arc<Shared>,
    io: Vec<IoThread>,
    pub(crate) console: ConsoleLog,
    pub(crate) serials: Vec<Arc<Mutex<Serial>>>,
    pub(crate) consoles: Vec<ConsoleHandle>,
    pub(crate) power: AcpiPm,
    pub(crate) counters: Vec<(String, Arc<Counters>)>,
    pub(crate) disks: Vec<Arc<BlkCounters>>,
    pub(crate) stats: Vec<VcpuStats>,
    pub(crate) boot_deadline: Option<Duration>,
    /// Since when it stands still.
    stood: Option<Instant>,
    pub(crate) marks: Marks,
    pub(crate) seats: Vec<Seat>,
    pub(crate) notes: Vec<String>,
    pub(crate) mark: Option<OwnedFd>,
    look: Look,
    /// Last: interrupt lines of the devices hold on to it, and its memory must outlive it.
    pub(crate) machine: Machine,
}

/// Moments of a start, for `--timing`.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// The builder began.
    pub build: Instant,
    /// KVM was open and memory mapped.
    pub machine: Instant,
    /// The kernel was in memory.
    pub kernel: Instant,
    /// All devices and vCPUs existed.
    pub built: Instant,
    /// The vCPU threads were started.
    pub started: Option<Instant>,
}

struct Look {
    next: Option<Instant>,
    interval: Duration,
    exits: u64,
    /// Questions to all vCPUs, sent at the last look.
    asked: Option<Vec<Question>>,
    panicked: Option<Instant>,
    alive: bool,
}

/// Where a run ended, in numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Why it stopped.
    pub stop: Stop,
    /// Registers of each vCPU at the end, where they could be had.
    pub vcpus: Vec<Option<CpuSnapshot>>,
    /// Exits to this process.
    pub exits: u64,
    /// KVM's own counters summed over the vCPUs, when they were asked for.
    pub kvm: Vec<(String, u64)>,
    /// Each virtio device's counters.
    pub devices: Vec<(String, CounterSnapshot)>,
    /// Whether the guest showed any sign of life.
    pub alive: bool,
    /// The kernel's panic message, when one was seen on a console.
    pub panic: Option<String>,
    /// Last lines of the console.
    pub console_tail: Vec<String>,
}

impl Vm {
    #[allow(
        clippy::too_many_arguments,
        reason = "one caller, the builder, and each part is a different thing"
    )]
    pub(crate) fn new(
        waiting: Vec<KvmVcpu>,
        shared: Arc<Shared>,
        io: Vec<IoThread>,
        machine: Machine,
        console: ConsoleLog,
        power: AcpiPm,
        boot_deadline: Option<Duration>,
        marks: Marks,
    ) -> Self {
        Self {
            threads: Vec::with_capacity(waiting.len()),
            waiting,
            shared,
            io,
            machine,
            console,
            serials: Vec::new(),
            consoles: Vec::new(),
            power,
            counters: Vec::new(),
            disks: Vec::new(),
            stats: Vec::new(),
            boot_deadline,
            stood: None,
            marks,
            seats: Vec::new(),
            notes: Vec::new(),
            mark: None,
            look: Look {
                next: None,
                interval: LOOK_FIRST,
                exits: 0,
                asked: None,
                panicked: None,
                alive: false,
            },
        }
    }

    /// Opens KVM's counters, to appear in the report. Before [`Vm::start`].
    pub fn count_exits(&mut self) {
        self.stats = self.waiting.iter().filter_map(KvmVcpu::stats).collect();
    }

    /// Starts the loops of the devices, then the vCPUs, each thread confined as said before it does anything.
    ///
    /// # Errors
    /// The system's reason when a thread cannot be had or cannot run where it shall; the machine is then stopped.
    pub fn start(&mut self, confinement: &Confinement) -> std::io::Result<()> {
        for io in &mut self.io {
            if let Err(e) = io.start(confinement) {
                self.shared.control.stop(Stop::Requested);
                return Err(e);
            }
        }
        for (index, vcpu) in self.waiting.drain(..).enumerate() {
            let seat = self.seats.get(index).cloned().unwrap_or_default();
            let shared = self.shared.clone();
            match VcpuThread::spawn(Box::new(vcpu), shared, seat, confinement.clone()) {
                Ok(thread) => self.threads.push(thread),
                Err(e) => {
                    self.shared.control.stop(Stop::Requested);
                    return Err(e);
                }
            }
        }
        let now = Instant::now();
        self.marks.started = Some(now);
        self.look.next = Some(now + self.look.interval);
        Ok(())
    }

    /// Readable when the machine has stopped.
    pub fn wake(&self) -> RawFd {
        self.shared.control.wake().as_raw_fd()
    }

    /// Looks after the machine: notices silence, panics and sleep without end. Returns when to look again, or `None`
    /// once the machine has stopped.
    pub fn check(&mut self, now: Instant) -> Option<Instant> {
        let control = self.shared.control.clone();
        if control.stopping() {
            return None;
        }
        if control.paused() {
            return Some(now + LOOK_LAST);
        }
        self.watch_panic(now, &control);
        self.watch_life(now, &control);
        if self.look.next.is_some_and(|at| at <= now) {
            self.look.next = Some(now + self.watch_sleep(&control));
        }
        if control.stopping() {
            return None;
        }
        let deadline = self.life_deadline().filter(|_| !self.look.alive);
        [
            self.look.next,
            deadline,
            self.look.panicked.map(|t| t + AFTER_PANIC),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn watch_panic(&mut self, now: Instant, control: &Control) {
        if self.look.panicked.is_none() && self.console.panic().is_some() {
            self.look.panicked = Some(now);
        }
        if self.look.panicked.is_some_and(|t| now >= t + AFTER_PANIC) {
            control.stop(Stop::Panic);
        }
    }

    fn life_deadline(&self) -> Option<Instant> {
        Some(self.marks.started? + self.boot_deadline?)
    }

    fn watch_life(&mut self, now: Instant, control: &Control) {
        if !self.look.alive {
            self.look.alive = self.console.total() > 0
                || self
                    .counters
                    .iter()
                    .any(|(_, c)| c.snapshot().activations > 0);
        }
        if !self.look.alive && self.life_deadline().is_some_and(|at| now >= at) {
            control.stop(Stop::NoLife);
        }
    }

    /// A look is two steps, so that nobody waits for a vCPU: ask, and a moment later read the answers. Returns when
    /// the next step is due.
    fn watch_sleep(&mut self, control: &Control) -> Duration {
        if let Some(asked) = self.look.asked.take() {
            let asleep = |(thread, question): (&VcpuThread, Question)| {
                thread
                    .answer(question)
                    .is_some_and(|s| matches!(s.sleep, Sleep::Forever | Sleep::NotStarted))
            };
            if self.threads.iter().zip(asked).all(asleep) {
                control.stop(Stop::Halted);
            }
            // The look itself made exits.
            self.look.exits = self.exits();
        } else {
            let exits = self.exits();
            if std::mem::replace(&mut self.look.exits, exits) == exits {
                self.look.asked = Some(self.threads.iter().map(VcpuThread::ask).collect());
                return PATIENCE;
            }
        }
        let interval = self.look.interval;
        self.look.interval = (interval * 2).min(LOOK_LAST);
        interval
    }

    /// Exits of the guest to this process so far.
    pub fn exits(&self) -> u64 {
        self.threads.iter().map(|t| t.counters.total()).sum()
    }

    /// The guest's console so far.
    pub fn console(&self) -> &ConsoleLog {
        &self.console
    }

    /// Whether the guest has shown a sign of life, as far as the last [`Vm::check`] has seen.
    pub fn alive(&self) -> bool {
        self.look.alive
    }

    /// What was recommended and could not be had.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Moments of the start.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Presses the power button. Returns whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        self.power.press_power_button();
        self.power.listens()
    }

    /// Tells the guest the size of its terminal, in characters.
    pub fn resize_consoles(&self, rows: u16, columns: u16) {
        for console in &self.consoles {
            console.resize(rows, columns);
        }
    }

    /// Lets the machine stand still: its vCPUs, and then what they have asked of the disks comes to its end. Returns
    /// whether it has, within `patience`. The guest's clocks go on.
    pub fn pause(&mut self, patience: Duration) -> bool {
        /// How often disks are looked at whose last requests are on their way.
        const LOOK: Duration = Duration::from_millis(2);
        let now = Instant::now();
        let until = now + patience;
        self.stood.get_or_insert(now);
        let control = &self.shared.control;
        control.pause(true);
        for thread in &self.threads {
            thread.kick();
        }
        if !control.all_parked(self.threads.len(), patience)
            || !self.io.iter().all(IoThread::settle)
        {
            return false;
        }
        loop {
            if self.disks.iter().all(|disk| disk.is_idle()) {
                return true;
            }
            if Instant::now() >= until || control.stopping() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets it go on. The time until its first sign of life does not count the time that it stood still.
    pub fn resume(&mut self) {
        if let Some(since) = self.stood.take() {
            self.boot_deadline = self.boot_deadline.map(|limit| limit + since.elapsed());
        }
        self.shared.control.pause(false);
    }

    /// Stops the vCPUs; the reason is [`Stop::Requested`] unless there was another already. What the guest wrote may
    /// still be on its way to the host ([`Vm::drain`]).
    pub fn stop(&self) {
        self.shared.control.stop(Stop::Requested);
        for thread in &self.threads {
            thread.kick();
        }
    }

    /// Gives up what the host's readers have not taken, so that nothing of the machine waits for them any more.
    pub fn abandon(&self) {
        self.shared.control.abandon();
    }

    /// Waits until the host has taken what a stopped machine had written, `patience` at most; returns whether it has.
    pub fn drain(&self, patience: Duration) -> bool {
        if self.shared.control.reason() == Some(Stop::Bug) {
            // A loop may be missing that would deliver it.
            return true;
        }
        let end = Instant::now() + patience;
        let left = || end.saturating_duration_since(Instant::now());
        let taken = self.consoles.iter().all(|console| console.finish(left()));
        taken
            && self.serials.iter().all(|serial| match serial.try_lock() {
                Ok(serial) => serial.finish(left()),
                Err(TryLockError::Poisoned(serial)) => serial.into_inner().finish(left()),
                // A vCPU waits in there for the reader.
                Err(TryLockError::WouldBlock) => false,
            })
    }

    /// Joins the vCPU threads of a stopped machine and reports. What was not drained is lost.
    pub fn finish(&mut self) -> Report {
        self.end_threads();
        let alive = self.look.alive || self.console.total() > 0;
        Report {
            stop: self.shared.control.reason().unwrap_or(Stop::Requested),
            vcpus: self.threads.iter().map(VcpuThread::last).collect(),
            exits: self.exits(),
            kvm: self.kvm_counters(),
            devices: self
                .counters
                .iter()
                .map(|(name, c)| (name.clone(), c.snapshot()))
                .collect(),
            alive,
            panic: self.console.panic(),
            console_tail: self
                .console
                .last_lines(20)
                .iter()
                .map(|line| printable(line))
                .collect(),
        }
    }

    fn end_threads(&mut self) {
        self.stop();
        self.abandon();
        for thread in &mut self.threads {
            thread.join();
        }
    }

    fn kvm_counters(&self) -> Vec<(String, u64)> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for (name, value) in self.stats.iter().filter_map(|s| s.read().ok()).flatten() {
            match sums.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        sums
    }

    /// The machine's memory, for embedders.
    pub fn memory(&self) -> &vsc_devices::Memory {
        self.machine.memory()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end_threads();
    }
}

/// A line of the guest as a terminal may show it: control characters are the guest's way into it.
fn printable(line: &str) -> String {
    line.chars()
        .flat_map(|c| {
            let harmless = !c.is_control() || c == '\t';
            let escaped = (!harmless).then(|| c.escape_default());
            harmless
                .then_some(c)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}
