//! Runs one job on a machine in this process: the main thread's loop, from built to ended.
//!
//! The main thread owns signals, the terminal, the control port and the time limits; the guest's data never passes
//! through it, except what a person types (for the escape key).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use vsc_devices::stream::{self, HostEnds};
use vsc_vmm::builder;
use vsc_vmm::control::Stop;
use vsc_vmm::resources::{Action, Events, Payload, VmResources};
use vsc_vmm::vm::{Report, Vm};

use crate::say;

pub(crate) mod command;
mod diagnosis;
pub(crate) mod ending;
mod guest;
mod limits;
pub(crate) mod poll;
pub(crate) mod result;
pub(crate) mod signals;
pub(crate) mod terminal;

use ending::Ending;
use guest::{GuestControl, Said};
use poll::Poll;
use result::{Moments, Summary};
use signals::{Parent, Signals};
use terminal::{Escape, EscapeFilter, RawTerminal};

/// A second signal within this time is not one more message for the command: it insists.
const INSISTENCE: Duration = Duration::from_secs(2);
/// How long init has to end the machine once it is told to.
const INIT_GRACE: Duration = Duration::from_secs(1);
/// Errors of init that are shown.
const COMPLAINTS: u32 = 20;
/// Typed bytes that wait for a guest which does not read, before no more are read: then the terminal holds what is
/// typed, the escape key too. More than anybody types, and than most people paste.
const TYPED_MAX: usize = 1 << 20;

/// What to run, and how to tell about it.
pub(crate) struct Job<'a> {
    /// The machine. With a command, its control port and initrd are part of it already ([`command::prepare`]).
    pub resources: VmResources,
    /// A command runs under our init: its status is awaited on the control port.
    pub command: bool,
    /// Descriptors of this process that streams of the scenario name: (name of the end, number).
    pub descriptors: &'a [(String, u32)],
    /// The guest owns the terminal, if there is one.
    pub interactive: bool,
    /// Says more or less on standard error.
    pub verbosity: Verbosity,
    /// Reads KVM's counters at the end.
    pub count_exits: bool,
    /// When the program started.
    pub started: Instant,
}

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// What went wrong, and the guest's last words then.
    Normal,
    /// Everything.
    Verbose,
}

/// Runs the job to its end, restarts included.
pub(crate) fn run(mut job: Job<'_>, parent: Parent) -> Summary {
    let mut moments = Moments::default();
    let mut restarts = 0;
    let mut host = match Host::take(&job, parent) {
        Ok(host) => host,
        Err(e) => return Summary::failed(format!("cannot set up signals or the terminal: {e}")),
    };
    loop {
        let (ending, report) = match once(&mut job, &mut host, &mut moments) {
            Ok(end) => end,
            Err(message) => return Summary::failed(message),
        };
        let again = match follow_up(&job.resources, &ending, &report) {
            Action::Restart => restarts < job.resources.events.max_restarts,
            Action::Destroy => false,
        };
        if !again || host.told_to_end {
            drop(host);
            return Summary::new(ending, report, restarts, moments);
        }
        restarts += 1;
        if job.verbosity >= Verbosity::Verbose {
            say::err(&format!("restart {restarts} of at most {}", job.resources.events.max_restarts));
        }
    }
}

/// Whether the machine might be built again.
fn may_restart(job: &Job<'_>) -> bool {
    let Events { on_poweroff, on_reboot, on_crash, max_restarts } = job.resources.events;
    max_restarts > 0 && [on_poweroff, on_reboot, on_crash].contains(&Action::Restart)
}

/// What the events table says about the way this machine ended.
fn follow_up(resources: &VmResources, ending: &Ending, report: &Report) -> Action {
    let events = &resources.events;
    match (ending, &report.stop) {
        (Ending::Panicked { .. }, _) | (Ending::Hung { .. }, Stop::TripleFault { .. }) => events.on_crash,
        (Ending::PoweredOff | Ending::NoStatus { .. }, Stop::PowerOff) => events.on_poweroff,
        (Ending::Rebooted | Ending::NoStatus { .. }, Stop::Reset) => events.on_reboot,
        _ => Action::Destroy,
    }
}

/// The host's side of a run, kept over restarts.
struct Host {
    signals: Signals,
    parent: Parent,
    terminal: Option<RawTerminal>,
    told_to_end: bool,
}

impl Host {
    fn take(job: &Job<'_>, parent: Parent) -> io::Result<Self> {
        limits::raise_open_files();
        let signals = Signals::take()?;
        parent.watch();
        let terminal = if job.interactive { RawTerminal::claim()? } else { None };
        Ok(Self {
            signals,
            parent,
            terminal,
            told_to_end: false,
        })
    }
}

/// One life of the machine.
fn once(job: &mut Job<'_>, host: &mut Host, moments: &mut Moments) -> Result<(Ending, Report), String> {
    let mut ends = given(job.descriptors)?;
    let control = if job.command {
        let (ours, device) = GuestControl::pair().map_err(|e| format!("cannot make the control port: {e}"))?;
        ends.insert(command::CONTROL_END.to_owned(), device);
        Some(ours)
    } else {
        None
    };
    let typist = match &host.terminal {
        Some(_) => {
            let (typist, end) = Typist::new().map_err(|e| format!("cannot read the terminal: {e}"))?;
            ends.insert(stream::STDIN.to_owned(), end);
            Some(typist)
        }
        None => None,
    };
    let mut vm = builder::build(&job.resources, ends).map_err(|e| chain(&e))?;
    if !may_restart(job)
        && let Payload::Kernel(kernel) = &mut job.resources.payload
    {
        // The guest has its copy; nobody needs ours again.
        kernel.initrd = Vec::new();
    }
    if job.count_exits {
        vm.count_exits();
    }
    if let Some(terminal) = &host.terminal {
        // Not before there is a machine to type to: until then Ctrl-C is ours.
        terminal.enter().map_err(|e| format!("cannot make the terminal raw: {e}"))?;
    }
    vm.start().map_err(|e| format!("cannot start a vCPU thread: {e}"))?;
    moments.note_start(job.started, &vm.marks());
    let mut session = Session {
        job,
        vm,
        control,
        typist,
        status: None,
        asked: None,
        insist_at: None,
        told_to_power_off: false,
        limit: job.resources.limits.timeout.map(|limit| job.started + limit),
        timed_out: false,
        quit: false,
        forced: false,
        cut: None,
        complaints: 0,
        moments,
    };
    if host.terminal.is_some() {
        session.tell_size();
    }
    session.attend(host).map_err(|e| format!("cannot wait for events: {e}"))?;
    session.drain(host).map_err(|e| format!("cannot wait for events: {e}"))?;
    Ok(session.end())
}

/// Copies of the descriptors that the scenario names, for this life of the machine.
fn given(descriptors: &[(String, u32)]) -> Result<HostEnds, String> {
    let mut ends = HostEnds::new();
    for (name, number) in descriptors {
        let number = i32::try_from(*number).map_err(|_| format!("there is no descriptor {number}"))?;
        // SAFETY: a plain system call; a number that is no descriptor is its error.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(format!("descriptor {number} ({name}): {}", io::Error::last_os_error()));
        }
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        ends.insert(name.clone(), unsafe { OwnedFd::from_raw_fd(copy) });
    }
    Ok(ends)
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text += &format!(": {e}");
        cause = e.source();
    }
    text
}

/// What was typed, on its way to the guest.
struct Typist {
    stdin: File,
    pipe: File,
    waiting: Vec<u8>,
    filter: EscapeFilter,
    open: bool,
}

impl Typist {
    fn new() -> io::Result<(Self, OwnedFd)> {
        let (end, pipe) = io::pipe()?;
        let pipe = File::from(OwnedFd::from(pipe));
        // SAFETY: plain system call on a descriptor we own; the flag is on our end only.
        if unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let typist = Self {
            stdin: File::from(io::stdin().as_fd().try_clone_to_owned()?),
            pipe,
            waiting: Vec::new(),
            filter: EscapeFilter::default(),
            open: true,
        };
        Ok((typist, end.into()))
    }

    /// What to wait for input on, while the terminal is the guest's.
    fn input(&self) -> Option<RawFd> {
        (self.has_room() && terminal::is_raw()).then(|| self.stdin.as_raw_fd())
    }

    fn has_room(&self) -> bool {
        self.open && self.waiting.len() < TYPED_MAX
    }

    fn read(&mut self) -> Vec<Escape> {
        let mut chunk = [0u8; 1024];
        match self.stdin.read(&mut chunk) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Vec::new(),
            // EIO, but not because it hung up.
            Err(_) if terminal::lost() => Vec::new(),
            Ok(0) | Err(_) => {
                self.open = false;
                Vec::new()
            }
            Ok(n) => {
                let (bytes, asked) = self.filter.filter(&chunk[..n]);
                self.waiting.extend(bytes);
                self.write();
                asked
            }
        }
    }

    fn write(&mut self) {
        while !self.waiting.is_empty() {
            match self.pipe.write(&self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.waiting.clear(),
            }
        }
    }
}

struct Session<'a, 'b> {
    job: &'a Job<'a>,
    vm: Vm,
    control: Option<GuestControl>,
    typist: Option<Typist>,
    /// The command's end, once init has told.
    status: Option<Ending>,
    /// The last signal to us, and when it came.
    asked: Option<(i32, Instant)>,
    /// When asking is over.
    insist_at: Option<Instant>,
    told_to_power_off: bool,
    limit: Option<Instant>,
    timed_out: bool,
    quit: bool,
    /// The machine was ended without regard for what it had to say.
    forced: bool,
    /// The signal that came while the last output was on its way.
    cut: Option<i32>,
    /// Errors that init reported.
    complaints: u32,
    moments: &'b mut Moments,
}

impl Session<'_, '_> {
    /// The main loop: until the machine has stopped.
    fn attend(&mut self, host: &mut Host) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.enforce(now);
            let Some(look) = self.vm.check(now) else {
                return Ok(());
            };
            let limit = self.limit.filter(|_| self.status.is_none());
            let until = [Some(look), limit, self.insist_at].into_iter().flatten().min();
            let mut poll = Poll::new();
            poll.read(self.vm.wake());
            let signal = poll.read(host.signals.fd());
            let orphaned = host.parent.fd().filter(|_| !self.forced).map(|fd| poll.read(fd));
            let control = self.control.as_ref().and_then(GuestControl::fd).map(|fd| poll.read(fd));
            let typed = self.typist.as_ref().and_then(Typist::input).map(|fd| poll.read(fd));
            let untyped =
                self.typist.as_ref().filter(|t| !t.waiting.is_empty()).map(|t| poll.write(t.pipe.as_raw_fd()));
            let ready = poll.wait(until)?;
            if control.is_some_and(|c| ready.is(c)) {
                self.listen();
            }
            if ready.is(signal) {
                while let Some(signal) = host.signals.next() {
                    self.on_signal(signal, host);
                }
            }
            if orphaned.is_some_and(|o| ready.is(o)) {
                self.on_signal(libc::SIGHUP, host);
            }
            if let Some(typist) = self.typist.as_mut().filter(|_| untyped.is_some_and(|u| ready.is(u))) {
                typist.write();
            }
            if let Some(typist) = self.typist.as_mut().filter(|_| typed.is_some_and(|t| ready.is(t))) {
                for escape in typist.read() {
                    self.on_escape(escape, host);
                }
            }
        }
    }

    /// What the guest wrote is the host's to read, however slowly; only the user, or the time limit, cuts it off.
    fn drain(&mut self, host: &mut Host) -> io::Result<()> {
        const SLICE: Duration = Duration::from_millis(100);
        self.vm.stop();
        while !self.forced && !self.vm.drain(SLICE) {
            let now = Instant::now();
            if self.limit.is_some_and(|at| now >= at) {
                self.timed_out = true;
                break;
            }
            // Whoever asked for the end gets it, read or not.
            let grace = self.job.resources.limits.stop_grace;
            if let Some((signal, _)) = self.asked.filter(|(_, at)| host.told_to_end && now >= *at + grace) {
                self.cut = Some(signal);
                break;
            }
            // A vCPU that waits for the reader is not waited for by the call above.
            let mut poll = Poll::new();
            let told = poll.read(host.signals.fd());
            let orphaned = host.parent.fd().map(|fd| poll.read(fd));
            let ready = poll.wait(Some(now + SLICE / 5))?;
            if orphaned.is_some_and(|o| ready.is(o)) {
                host.told_to_end = true;
                self.cut = Some(libc::SIGHUP);
                return Ok(());
            }
            if !ready.is(told) {
                continue;
            }
            while let Some(signal) = host.signals.next() {
                if signal != libc::SIGWINCH {
                    host.told_to_end = true;
                    self.cut = Some(signal);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn enforce(&mut self, now: Instant) {
        if self.status.is_none() && self.limit.is_some_and(|at| now >= at) {
            self.timed_out = true;
            self.force();
        }
        if self.insist_at.is_some_and(|at| now >= at) {
            self.insist_at = None;
            match self.control.as_mut().filter(|_| self.status.is_none() && !self.told_to_power_off) {
                // The command did not end: now its init is told to end the machine.
                Some(control) => {
                    control.power_off();
                    self.told_to_power_off = true;
                    self.insist_at = Some(now + self.job.resources.limits.stop_grace.min(INIT_GRACE));
                }
                // Its status is known: the machine has had its time, its output has as much as its reader takes.
                None if self.status.is_some() => self.vm.stop(),
                None => self.force(),
            }
        }
    }

    /// Ends the machine and whatever waits for it.
    fn force(&mut self) {
        self.forced = true;
        self.vm.stop();
        self.vm.abandon();
    }

    fn listen(&mut self) {
        let said = self.control.as_mut().map(GuestControl::read).unwrap_or_default();
        for said in said {
            let end = match said {
                Said::Ready => {
                    self.moments.ready.get_or_insert_with(Instant::now);
                    continue;
                }
                Said::Started(_) => {
                    self.moments.command.get_or_insert_with(Instant::now);
                    continue;
                }
                Said::Error(text) => {
                    self.complaints += 1;
                    match self.complaints {
                        ..COMPLAINTS => say::err(&format!("guest: {}", text.escape_debug())),
                        COMPLAINTS => say::err("guest: more errors, which are not shown"),
                        _ => {}
                    }
                    continue;
                }
                Said::Exit(status) => Ending::Exited { status },
                Said::Signal(signal) => Ending::Signalled { signal },
                Said::NoExec(errno, path) => Ending::NotExecuted { errno, path },
            };
            self.status.get_or_insert(end);
            // Init powers off next; a guest that cannot is not waited for.
            self.insist_at = Some(Instant::now() + self.job.resources.limits.stop_grace);
        }
    }

    /// By our init where it runs. The device's own message is for other guests only: which of its numbers comes
    /// first depends on the kernel (Linux before 6.15, from 6.17, and its stable branches differ).
    fn tell_size(&mut self) {
        if let Some((rows, columns)) = terminal::size() {
            match &mut self.control {
                Some(control) => control.winsize(rows, columns),
                None => self.vm.resize_consoles(rows, columns),
            }
        }
    }

    fn on_signal(&mut self, signal: i32, host: &mut Host) {
        if signal == libc::SIGWINCH {
            self.tell_size();
            return;
        }
        let now = Instant::now();
        let again = self.asked.replace((signal, now)).is_some_and(|(_, before)| now - before < INSISTENCE);
        if signal == libc::SIGHUP || again {
            host.told_to_end = true;
            self.force();
            return;
        }
        let running = self.moments.command.is_some();
        match &mut self.control {
            // An interrupt is the command's to handle, whatever comes of it; another one soon after insists.
            Some(control) if running && signal == libc::SIGINT => control.signal(signal),
            Some(control) => {
                host.told_to_end = true;
                control.signal(signal);
                self.insist_at.get_or_insert(now + self.job.resources.limits.stop_grace);
            }
            None => {
                host.told_to_end = true;
                if self.vm.press_power_button() {
                    self.insist_at.get_or_insert(now + self.job.resources.limits.stop_grace);
                } else {
                    self.force();
                }
            }
        }
    }

    fn on_escape(&mut self, escape: Escape, host: &mut Host) {
        match escape {
            Escape::Quit => {
                host.told_to_end = true;
                self.quit = true;
                self.force();
            }
            Escape::PowerButton if self.vm.press_power_button() => {}
            Escape::PowerButton => say::err_raw("\r\nvsc-run: the guest does not listen to the power button\r\n"),
            Escape::Help => say::err_raw(&format!("\r\n{}\r\n", terminal::KEYS)),
        }
    }

    /// The machine has stopped: who said what, and in which order it counts.
    fn end(mut self) -> (Ending, Report) {
        let report = self.vm.finish();
        // The last lines may still be in the socket.
        self.listen();
        self.moments.note_end(&self.vm);
        let machine = Ending::of_machine(&report, self.job.command);
        let asked = self.asked.filter(|_| self.forced || self.insist_at.is_some() || self.told_to_power_off);
        let interrupted = |signal: i32| Ending::Interrupted { signal: signal as u8 };
        let ending = match (self.status, asked) {
            _ if self.quit => Ending::Quit,
            _ if self.timed_out => Ending::TimedOut {
                seconds: self.job.resources.limits.timeout.unwrap_or(Duration::ZERO).as_secs_f64(),
            },
            _ if self.cut.is_some() => self.cut.map_or(machine, interrupted),
            // Its init killed it because we had to insist: the signal that we were sent is what ended it.
            (Some(Ending::Signalled { .. }), Some((signal, _))) if self.told_to_power_off => interrupted(signal),
            (Some(status), _) => status,
            (None, Some((signal, _))) if !matches!(machine, Ending::Panicked { .. } | Ending::Failed { .. }) => {
                interrupted(signal)
            }
            (None, _) => machine,
        };
        (ending, report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_reads_late_gets_all_that_was_typed() {
        let (typed, mut keyboard) = io::pipe().unwrap();
        let (mut typist, guest) = Typist::new().unwrap();
        typist.stdin = File::from(OwnedFd::from(typed));
        let pasted: Vec<u8> = (0..2 * TYPED_MAX as u32).map(|n| (n / 7 % 100) as u8 + 32).collect();
        let expected = pasted.clone();
        let person = std::thread::spawn(move || keyboard.write_all(&pasted));
        while typist.has_room() {
            typist.read();
        }
        assert!(typist.open && typist.waiting.len() < TYPED_MAX + 1024);
        let mut guest = File::from(guest);
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            guest.read_to_end(&mut got).map(|_| got)
        });
        while typist.open || !typist.waiting.is_empty() {
            if typist.has_room() {
                typist.read();
            }
            typist.write();
        }
        drop(typist);
        person.join().unwrap().unwrap();
        assert!(reader.join().unwrap().unwrap() == expected);
    }
}
