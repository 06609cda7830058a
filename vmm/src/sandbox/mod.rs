//! Confinement: after set-up the process keeps only what it uses.
//!
//! In the order in which it happens, once the machine is built and before it runs:
//! 1. The main thread: no new privileges, limits, a handler for what will be blocked, and Landlock; all threads that
//!    it starts inherit these, and share one Landlock domain (two domains could not signal each other).
//! 2. Each thread, once it has set itself up: no capabilities, and the filter of system calls of its kind.
//! 3. The main thread: the same for itself.
//!
//! What is not done, and why: the process stays dumpable (PR_SET_DUMPABLE), because `ps` finds machines of the same
//! user by their descriptors in /proc; guest memory and secrets are in no core dump by themselves (MADV_DONTDUMP), and
//! no core is written. A blocked call is trapped, not killed, so that somebody says why the machine ended; code that
//! took over a thread can replace the handler, and then its forbidden calls are merely not made.
//!
//! A machine that may start again is built again in the confined process: then the main thread keeps what that needs
//! ([`Spec::rebuild`]).
#![deny(missing_docs)]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

mod filter;
mod landlock;
mod limits;
mod names;
mod privilege;
mod tables;
mod trap;

pub use landlock::abi as landlock_abi;
pub use limits::Limits;
pub use privilege::close_on_exec;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thread {
    /// Runs a vCPU.
    Vcpu,
    /// Runs an event loop of devices, or the calls of a disk.
    Loop,
    /// Waits for the machine.
    Main,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Vcpu, Self::Loop, Self::Main];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Loop => "loop",
            Self::Main => "main",
        }
    }
}

/// What may be done with a path that stays open to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// A file, or what is below a directory, is read.
    Read,
    /// A file or a device is read and written.
    ReadWrite,
    /// Sockets are made, and whatever is there removed, in a directory.
    Sockets,
    /// What is in a directory is removed.
    Remove,
}

/// What Landlock lets through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowed {
    /// A path; nothing, where it does not exist.
    Path(PathBuf, Access),
    /// What an open descriptor is of, to be opened again through /proc/self/fd.
    Descriptor(i32),
}

/// What a machine needs after its set-up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// It may be built again.
    pub rebuild: bool,
    /// It removes listening sockets, or a directory of its own, at its end.
    pub unlink: bool,
    /// Threads that it starts, at most.
    pub threads: u32,
    /// Disks that it has.
    pub disks: u32,
    /// Paths that are opened after set-up.
    pub allowed: Vec<Allowed>,
}

/// Why a machine could not be confined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// No seccomp, or not this one.
    #[error("this kernel cannot filter system calls (seccomp, CONFIG_SECCOMP_FILTER)")]
    NoSeccomp(#[source] io::Error),
    /// A step failed.
    #[error("Confine the process: {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Step { step, source }
}

/// What is in force: facts, not wishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Kinds of threads with a filter of system calls.
    pub seccomp: Vec<String>,
    /// The version of Landlock that holds; none: this kernel has no Landlock.
    pub landlock: Option<u32>,
    /// Paths that can still be opened.
    pub paths: Vec<PathBuf>,
    /// No new privileges.
    pub no_new_privileges: bool,
    /// Capabilities that are left.
    pub capabilities: Vec<String>,
    /// Limits.
    pub limits: Option<Limits>,
}

/// The confinement of one process. Cheap to share.
#[derive(Debug)]
pub struct Sandbox {
    spec: Spec,
    filters: [OnceLock<filter::Program>; Thread::ALL.len()],
    in_force: Mutex<InForce>,
}

/// A process may do without: then threads are not confined.
pub type Confinement = Option<Arc<Sandbox>>;

impl Sandbox {
    /// What `spec` says. Nothing is confined yet.
    ///
    /// # Errors
    /// [`SandboxError::NoSeccomp`].
    pub fn new(spec: Spec) -> Result<Arc<Self>, SandboxError> {
        seccomp_works().map_err(SandboxError::NoSeccomp)?;
        Ok(Arc::new(Self {
            spec,
            filters: [const { OnceLock::new() }; Thread::ALL.len()],
            in_force: Mutex::default(),
        }))
    }

    /// What holds for all threads; on the main thread, before it starts any. `on_blocked` is called when a system call
    /// was blocked, before the process ends, and must be async-signal-safe. Once is enough: nothing is done again.
    ///
    /// # Errors
    /// [`SandboxError::Step`]; some of it may be in force then.
    pub fn begin(&self, on_blocked: fn()) -> Result<(), SandboxError> {
        if self.lock().no_new_privileges {
            return Ok(());
        }
        let Spec {
            rebuild, allowed, ..
        } = &self.spec;
        let limits = limits::set(&self.spec).map_err(step("set its limits"))?;
        trap::install(on_blocked).map_err(step("handle SIGSYS"))?;
        privilege::no_new().map_err(step("give up new privileges"))?;
        privilege::no_implied_execution().map_err(step("give up execution that is implied"))?;
        let abi = landlock_abi();
        if let Some(abi) = abi {
            landlock::restrict(abi, allowed).map_err(step("restrict its paths (Landlock)"))?;
        }
        let paths = allowed.iter().filter_map(|a| match a {
            Allowed::Path(path, _) => Some(path.clone()),
            Allowed::Descriptor(_) => None,
        });
        let mut in_force = self.lock();
        in_force.limits = Some(limits);
        in_force.no_new_privileges = true;
        in_force.landlock = abi;
        in_force.paths = paths.collect();
        in_force.capabilities = privilege::kept(*rebuild);
        Ok(())
    }

    /// Confines the calling thread for good, to what its kind does; it has done everything else before.
    /// `disk_threads`: it may start threads like itself, which is the same for all loops of a host. Filters add up, so the main thread's second time has nothing to add.
    ///
    /// # Errors
    /// The system's reason. The thread must not go on then.
    pub fn enter(&self, thread: Thread, disk_threads: bool) -> io::Result<()> {
        let word = thread.word();
        if thread == Thread::Main && self.lock().seccomp.iter().any(|w| w == word) {
            return Ok(());
        }
        privilege::drop_capabilities(thread == Thread::Main && self.spec.rebuild)?;
        trap::mark(thread);
        install(self.filter(thread, disk_threads))?;
        let mut in_force = self.lock();
        if !in_force.seccomp.iter().any(|w| w == word) {
            in_force.seccomp.push(word.to_owned());
            in_force.seccomp.sort_unstable();
        }
        Ok(())
    }

    fn filter(&self, thread: Thread, disk_threads: bool) -> &filter::Program {
        self.filters[thread as usize].get_or_init(|| {
            let needs = tables::Needs {
                rebuild: self.spec.rebuild,
                unlink: self.spec.unlink,
                disk_threads,
            };
            compile(thread, needs)
        })
    }

    /// What is in force now.
    pub fn in_force(&self) -> InForce {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compile(thread: Thread, needs: tables::Needs) -> filter::Program {
    let groups = tables::groups(thread, needs);
    // The guest waits for the vCPU's ioctl only.
    let first = (thread == Thread::Vcpu).then_some(libc::SYS_ioctl);
    filter::program(&groups, tables::REFUSALS, first, std::process::id())
}

/// How many system calls a kind of thread may make, of a machine that may be built again or not.
pub fn system_calls(thread: Thread, rebuild: bool) -> usize {
    let needs = tables::Needs {
        rebuild,
        unlink: false,
        disk_threads: false,
    };
    let groups = tables::groups(thread, needs);
    let mut numbers: Vec<i64> = groups
        .iter()
        .flat_map(|g| g.calls)
        .map(|c| c.number)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

/// Capabilities that the main thread of a machine keeps, where it has them.
pub fn kept_capabilities(rebuild: bool) -> Vec<&'static str> {
    let all = privilege::FOR_REBUILD.iter().map(|(_, name)| *name);
    all.filter(|_| rebuild).collect()
}

/// What private memory may grow by after set-up, bytes.
pub fn heap(spec: &Spec) -> u64 {
    limits::heap(spec)
}

/// How many descriptors may be opened after set-up, besides those that are open.
pub fn files(spec: &Spec) -> u64 {
    limits::files(spec)
}

/// Whether this kernel can filter system calls the way it is done here.
///
/// # Errors
/// The system's reason why not.
pub fn seccomp_works() -> io::Result<()> {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: a plain system call on a number that outlives it.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        ) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Installs a filter for the calling thread.
fn install(program: &filter::Program) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which outlives the call, and does not write to it.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        ) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
