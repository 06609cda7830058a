//! Runs one job on a machine in this process: the main thread's loop, from built to ended.
//!
//! The main thread owns signals, the terminal, the control port and the time limits; the guest's data never passes
//! through it, except what a person types (for the escape key).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use vsc::images::Handed;
use vsc::locks::sanlock::Leases;
use vsc::tune::Witness;
use vsc_devices::block::OpenError;
use vsc_devices::block::keep::Keep;
use vsc_devices::block::luks::{DiskError, LuksError};
use vsc_devices::stream::{self, HostEnds};
use vsc_devices::virtio::blk::BlkError;
use vsc_vmm::builder::{self, BuildError, DeviceError};
use vsc_vmm::control::Stop;
use vsc_vmm::resources::{Action, Events, LockAction, Payload, VmResources};
use vsc_vmm::sandbox::{self, Confinement, Thread};
use vsc_vmm::vm::Report;

use crate::say;

pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod confine;
pub(crate) mod control;
pub(crate) mod detach;
mod diagnosis;
pub(crate) mod ending;
mod guest;
pub(crate) mod leases;
pub(crate) mod leftovers;
mod limits;
pub(crate) mod mark;
pub(crate) mod outside;
pub(crate) mod poll;
pub(crate) mod ready;
pub(crate) mod registration;
pub(crate) mod result;
mod session;
pub(crate) mod signals;
pub(crate) mod terminal;
mod typist;

use control::ControlSocket;
use ending::Ending;
use guest::GuestControl;
use leases::LockFailure;
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
    /// Passphrases of encrypted disks.
    pub secrets: Vec<DiskSecret>,
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
    /// The run listens on a control socket: where directories of runs are, and the name of this one's.
    pub control_in: Option<(PathBuf, String)>,
    /// The process is not confined.
    pub unconfined: bool,
    /// Another process removes the sockets that the run made, and its directory.
    pub swept: bool,
    /// Told when what the run would leave is there: that of each life.
    pub witness: Option<Witness>,
    /// Directories in which something of the run's own is removed after its end.
    pub removes: Vec<PathBuf>,
    /// Leases of its images.
    pub leases: Option<Leases>,
}

/// The passphrase of a disk.
pub(crate) struct DiskSecret {
    /// Name of the end that the monitor reads it from.
    pub end: String,
    /// The file that has it.
    pub handed: Handed,
    /// Where the scenario says where it comes from.
    pub place: String,
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
    if job.unconfined {
        say::warning(confine::UNCONFINED);
    }
    let mut host = match Host::take(&mut job, parent) {
        Ok(host) => host,
        Err(e) => return Summary::failed(format!("cannot set up signals or the terminal: {e}")),
    };
    // After signals are ours: one that comes from now on does not end the process with this lying around.
    let control = job.control_in.as_ref();
    match control.map(|(base, id)| ControlSocket::open(base, id, &job.resources.name)) {
        Some(Ok(control)) => host.control = Some(control),
        Some(Err(e)) => return Summary::failed(e.to_string()),
        None => {}
    }
    let mut summary = lives(&mut job, &mut host, &mut moments);
    summary.confinement = confine::Facts::of(&host.confinement);
    summary.lock_failure = host.lock_failure;
    if let Some(control) = host.control.take() {
        control.tell_end(&summary.value());
    }
    summary
}

/// One life of the machine after the other.
fn lives(job: &mut Job<'_>, host: &mut Host, moments: &mut Moments) -> Summary {
    loop {
        let (ending, report) = match once(job, host, moments) {
            Ok(end) => end,
            Err(message) => return Summary::failed(message),
        };
        if host.reclaim {
            host.reclaim = false;
            match reclaim(job, host) {
                Ok(true) => continue,
                Ok(false) => return Summary::new(ending, report, host.restarts, *moments),
                Err(why) => {
                    return Summary::new(
                        Ending::LeasesLost { why },
                        report,
                        host.restarts,
                        *moments,
                    );
                }
            }
        }
        let again = match follow_up(&job.resources, &ending, &report) {
            Action::Restart => host.restarts < job.resources.events.max_restarts,
            Action::Destroy => false,
        };
        if !again || host.told_to_end {
            return Summary::new(ending, report, host.restarts, *moments);
        }
        host.restarts += 1;
        if job.verbosity >= Verbosity::Verbose {
            say::note(&format!(
                "restart {} of at most {}",
                host.restarts, job.resources.events.max_restarts
            ));
        }
    }
}

/// A machine that has lost its leases, and ended for that, is to start again: whether it may.
fn reclaim(job: &Job<'_>, host: &mut Host) -> Result<bool, String> {
    if host.told_to_end || host.restarts >= job.resources.events.max_restarts {
        return Ok(false);
    }
    let Some(leases) = &mut host.leases else {
        return Err("sanlock's daemon has gone".to_owned());
    };
    if let Err(e) = leases.give_up() {
        return Err(chain(&e));
    }
    if let Some(failure) = &mut host.lock_failure {
        failure.released = true;
    }
    leases::take_again(leases, &mut host.signals)?;
    host.restarts += 1;
    if let Some(failure) = &mut host.lock_failure {
        failure.recovered = true;
    }
    say::note("the leases are back: the machine starts again");
    Ok(true)
}

/// Whether the machine might be built again.
pub(crate) fn may_restart(resources: &VmResources) -> bool {
    let Events {
        on_poweroff,
        on_reboot,
        on_crash,
        on_lockfailure,
        max_restarts,
    } = resources.events;
    let restarts = [on_poweroff, on_reboot, on_crash].contains(&Action::Restart);
    max_restarts > 0 && (restarts || on_lockfailure == Some(LockAction::Restart))
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
    control: Option<ControlSocket>,
    restarts: u32,
    /// Images of a machine that may start again, so that nobody else gets them meanwhile.
    images: Vec<Keep>,
    /// In force from the first machine's start.
    confinement: Confinement,
    /// After the images: they are closed when the leases go.
    leases: Option<Leases>,
    lock_failure: Option<LockFailure>,
    /// The machine has ended because its leases are lost, and starts again with new ones.
    reclaim: bool,
}

impl Host {
    fn take(job: &mut Job<'_>, parent: Parent) -> io::Result<Self> {
        limits::raise_open_files();
        let leases = job.leases.take();
        let signals = Signals::take_with(leases.as_ref().map(|_| leases::SIGNAL))?;
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
            control: None,
            restarts: 0,
            images: match may_restart(&job.resources)
                || job.resources.events.on_lockfailure.is_some()
            {
                true => job
                    .resources
                    .disks
                    .iter()
                    .map(|_| Keep::over_restarts())
                    .collect(),
                false => Vec::new(),
            },
            confinement: None,
            leases,
            lock_failure: None,
            reclaim: false,
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
    for secret in &job.secrets {
        let end = secret.handed.descriptor();
        let end = end.map_err(|e| format!("cannot hand over a passphrase: {e}"))?;
        ends.insert(secret.end.clone(), end.into());
    }
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
    let (resources, images) = (&job.resources, &host.images);
    let build = || builder::build(resources, ends, images);
    let vm = if job.secrets.is_empty() || host.restarts > 0 {
        build()
    } else {
        // What a key costs is what its header says: minutes.
        let control = &mut host.control;
        let before = |signal| {
            let why = format!("ended by signal {signal} while a passphrase was tried");
            say::warning(&why);
            drop(control.take());
        };
        let done = host.signals.end_during(before, build);
        done.map_err(|e| format!("cannot wait for signals: {e}"))?
    };
    let mut vm = vm.map_err(|e| why(&e, &job.resources, &job.secrets))?;
    if let Some(witness) = &job.witness {
        witness.made();
    }
    if job.verbosity >= Verbosity::Verbose {
        for note in vm.notes() {
            say::note(note);
        }
    }
    if !may_restart(&job.resources) {
        // The disks are open; nobody needs the passphrases again.
        job.secrets.clear();
    }
    if !may_restart(&job.resources)
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
    sandbox::close_on_exec();
    if !job.unconfined && host.confinement.is_none() {
        let control_in = job.control_in.as_ref().filter(|_| !job.swept);
        let control_in = control_in.map(|(base, _)| base.as_path());
        let removes = job.removes.iter().map(PathBuf::as_path);
        let spec = confine::spec(
            &job.resources,
            may_restart(&job.resources),
            job.swept,
            control_in.into_iter().chain(removes),
            job.descriptors,
        );
        let confined = confine::begin(spec);
        host.confinement = confined.map_err(|e| chain(&e) + "; --no-sandbox runs without")?;
        let rebuild = may_restart(&job.resources);
        if job.verbosity >= Verbosity::Verbose {
            say::note(&confine::sentence(&host.confinement, rebuild));
        } else if rebuild && sandbox::landlock_abi().is_none() {
            say::warning(confine::ANY_PATH);
        }
    }
    vm.start(&host.confinement)
        .map_err(|e| format!("cannot start a thread: {e}"))?;
    if let Some(sandbox) = &host.confinement {
        sandbox
            .enter(Thread::Main, false)
            .map_err(|e| format!("cannot confine the main thread: {e}"))?;
    }
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

/// Why there is no machine. Of an image that is in use, who uses it; a passphrase that does not open a disk has a code of
/// its own, for scripts.
fn why(error: &BuildError, resources: &VmResources, secrets: &[DiskSecret]) -> String {
    if let BuildError::Device(DeviceError::Disk(BlkError::Luks(DiskError {
        source: LuksError::Passphrase,
        path,
    }))) = error
    {
        let disk = resources.disks.iter().find(|disk| disk.path == *path);
        let end = disk.and_then(|disk| Some(&disk.encryption.as_ref()?.secret));
        let its = secrets.iter().find(|secret| Some(&secret.end) == end);
        let place = its.map(|secret| format!("{}: ", secret.place));
        return format!(
            "E-SECRET: {}{} (one newline at the end of a file does not count here, and does for cryptsetup's --key-file)",
            place.unwrap_or_default(),
            chain(error)
        );
    }
    let BuildError::Device(DeviceError::Disk(BlkError::Open(open))) = error else {
        return chain(error);
    };
    let proc = Path::new("/proc");
    let (path, read_only) = match open {
        OpenError::Locked {
            path, read_only, ..
        } => (path, *read_only),
        // A device that another machine claims; one that is mounted nobody holds.
        OpenError::Busy { path }
            if vsc::locks::file_holders(proc, path).is_ok_and(|h| !h.seen.is_empty()) =>
        {
            (path, false)
        }
        _ => return chain(error),
    };
    let disks = resources.disks.iter();
    let named: Vec<_> = disks.map(|d| (d.id.clone(), d.path.clone())).collect();
    vsc::locks::held_by(proc, path, read_only, &named)
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
