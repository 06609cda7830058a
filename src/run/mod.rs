//! Runs one job on a machine in this process: the main thread's loop, from built to ended.
//!
//! The main thread owns signals, the terminal, the control port and the time limits; the guest's data never passes
//! through it, except what a person types (for the escape key).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use vsc_devices::stream::{self, HostEnds};
use vsc_vmm::builder;
use vsc_vmm::control::Stop;
use vsc_vmm::resources::{Action, Events, Payload, VmResources};
use vsc_vmm::vm::Report;

use crate::say;

pub(crate) mod command;
pub(crate) mod detach;
mod diagnosis;
pub(crate) mod ending;
mod guest;
mod limits;
pub(crate) mod poll;
pub(crate) mod ready;
pub(crate) mod result;
mod session;
pub(crate) mod signals;
pub(crate) mod terminal;
mod typist;

use ending::Ending;
use guest::GuestControl;
use ready::Ready;
use result::{Moments, Summary};
use session::Session;
use signals::{Parent, Signals};
use terminal::RawTerminal;
use typist::Typist;

/// What to run, and how to tell about it.
pub(crate) struct Job<'a> {
    /// The machine. With a command, its control port and initrd are part of it already ([`command::prepare`]).
    pub resources: VmResources,
    /// A command runs under our init: its status is awaited on the control port.
    pub command: bool,
    /// The machine has a control port; init may tell a status there.
    pub control: bool,
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
    /// Told of the guest's first sign of life.
    pub ready: Option<Ready>,
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
    let mut host = match Host::take(&mut job, parent) {
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
            say::err(&format!(
                "restart {restarts} of at most {}",
                job.resources.events.max_restarts
            ));
        }
    }
}

/// Whether the machine might be built again.
fn may_restart(job: &Job<'_>) -> bool {
    let Events {
        on_poweroff,
        on_reboot,
        on_crash,
        max_restarts,
    } = job.resources.events;
    max_restarts > 0 && [on_poweroff, on_reboot, on_crash].contains(&Action::Restart)
}

/// What the events table says about the way this machine ended.
fn follow_up(resources: &VmResources, ending: &Ending, report: &Report) -> Action {
    let events = &resources.events;
    match (ending, &report.stop) {
        (Ending::Panicked { .. }, _) | (Ending::Hung { .. }, Stop::TripleFault { .. }) => {
            events.on_crash
        }
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
    ready: Option<Ready>,
}

impl Host {
    fn take(job: &mut Job<'_>, parent: Parent) -> io::Result<Self> {
        limits::raise_open_files();
        let signals = Signals::take()?;
        parent.watch();
        let terminal = if job.interactive {
            RawTerminal::claim()?
        } else {
            None
        };
        Ok(Self {
            signals,
            parent,
            terminal,
            told_to_end: false,
            ready: job.ready.take(),
        })
    }
}

/// One life of the machine.
fn once(
    job: &mut Job<'_>,
    host: &mut Host,
    moments: &mut Moments,
) -> Result<(Ending, Report), String> {
    let mut ends = given(job.descriptors)?;
    let control = if job.control {
        let (ours, device) =
            GuestControl::pair().map_err(|e| format!("cannot make the control port: {e}"))?;
        ends.insert(command::CONTROL_END.to_owned(), device);
        Some(ours)
    } else {
        None
    };
    let typist = match &host.terminal {
        Some(_) => {
            let (typist, end) =
                Typist::new().map_err(|e| format!("cannot read the terminal: {e}"))?;
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
        terminal
            .enter()
            .map_err(|e| format!("cannot make the terminal raw: {e}"))?;
    }
    vm.start()
        .map_err(|e| format!("cannot start a vCPU thread: {e}"))?;
    moments.note_start(job.started, &vm.marks());
    if let Some(ready) = &host.ready {
        let event = ready.event();
        vm.console()
            .tell_first_byte(event.map_err(|e| format!("cannot wait for the guest: {e}"))?);
    }
    let mut session = Session::new(job, vm, control, typist, moments);
    if host.terminal.is_some() {
        session.tell_size();
    }
    session
        .attend(host)
        .map_err(|e| format!("cannot wait for events: {e}"))?;
    session
        .drain(host)
        .map_err(|e| format!("cannot wait for events: {e}"))?;
    Ok(session.end())
}

/// Copies of the descriptors that the scenario names, for this life of the machine.
fn given(descriptors: &[(String, u32)]) -> Result<HostEnds, String> {
    let mut ends = HostEnds::new();
    for (name, number) in descriptors {
        let number =
            i32::try_from(*number).map_err(|_| format!("there is no descriptor {number}"))?;
        // SAFETY: a plain system call; a number that is no descriptor is its error.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(format!(
                "descriptor {number} ({name}): {}",
                io::Error::last_os_error()
            ));
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
