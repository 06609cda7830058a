//! Signals as a descriptor: blocked in all threads, read by the main loop.
//!
//! Of those that stop a background process which touches its terminal, none ever comes: a machine goes on, reading
//! then fails and writing does not.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::poll::Poll;
use super::terminal;

/// Signals that the main loop handles.
const HANDLED: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Signals that are merely blocked.
const SILENT: [i32; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// The signal descriptor. Signals stay blocked after it is dropped: the process is about to end then.
#[derive(Debug)]
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread and those it will start. What whoever started us wants ignored (`nohup`, a
    /// script's `command &`) stays so.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) fn take() -> io::Result<Self> {
        Self::take_with(None)
    }

    /// The same with one signal more.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) fn take_with(besides: Option<i32>) -> io::Result<Self> {
        // SAFETY: all-zero is a valid set, and the calls fill in what they are given.
        let fd = unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            for signal in HANDLED.into_iter().chain(besides) {
                if !is_ignored(signal) {
                    libc::sigaddset(&mut set, signal);
                }
            }
            let mut blocked = set;
            for signal in SILENT {
                libc::sigaddset(&mut blocked, signal);
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Does work that cannot be interrupted. A signal that would end a machine ends this process meanwhile, after
    /// `before`.
    ///
    /// # Errors
    /// There is no thread or pipe to be had; then nothing was done.
    pub(crate) fn end_during<T>(
        &mut self,
        before: impl FnOnce(i32) + Send,
        work: impl FnOnce() -> T,
    ) -> io::Result<T> {
        let (over, working) = io::pipe()?;
        std::thread::scope(|scope| {
            let watch = move || {
                let signal = loop {
                    let mut poll = Poll::new();
                    poll.read(self.fd());
                    let end = poll.closed(over.as_raw_fd());
                    // Without it, signals wait for the end of the work.
                    let Ok(ready) = poll.wait(None) else { return };
                    let mut signals = std::iter::from_fn(|| self.next());
                    if let Some(signal) = signals.find(|s| *s != libc::SIGWINCH) {
                        break signal;
                    }
                    if ready.is(end) {
                        return;
                    }
                };
                before(signal);
                die_of(signal);
            };
            let named = std::thread::Builder::new().name("signals".into());
            named.spawn_scoped(scope, watch)?;
            let result = work();
            drop(working);
            Ok(result)
        })
    }

    /// The descriptor to poll.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The next pending signal. Stops of this process are dealt with here; the terminal may have another size
    /// afterwards, so what comes of them is SIGWINCH.
    pub(crate) fn next(&mut self) -> Option<i32> {
        loop {
            let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
            self.0.read_exact(&mut info).ok()?;
            // ssi_signo is the first field, a u32 (man signalfd).
            match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                libc::SIGTSTP => {
                    terminal::restore();
                    stop();
                }
                libc::SIGCONT => {}
                signal => return Some(signal),
            }
            // A terminal that refuses now has gone: reading will tell.
            let _ = terminal::resume();
            if terminal::is_raw() {
                return Some(libc::SIGWINCH);
            }
        }
    }
}

/// Ends this process as a signal does that nobody handles.
fn die_of(signal: i32) -> ! {
    terminal::restore();
    // SAFETY: all-zero is a valid set; the action is the default one, which ends the process, unless it is the first one
    // of a container. No destructor of another thread has to run.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
        libc::_exit(128 + signal)
    }
}

/// Stops this process as SIGTSTP does; returns when it is continued, or at once where nobody could continue it (in an
/// orphaned process group).
fn stop() {
    // SAFETY: all-zero is a valid set; the pending signal is this thread's own, and its action is the default one.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTSTP);
        libc::raise(libc::SIGTSTP);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// A write over the limit of file sizes (`ulimit -f`) is an error like any other, EFBIG.
pub(crate) fn no_signal_for_file_size() {
    // SAFETY: a plain system call; ignoring needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero is a valid action; nothing is changed, and the call fills in what it is given.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// From now on, SIGTERM and SIGHUP end this process as ever, but `before` is done first. Programs started by
/// [`Deaf::start`] are not concerned.
///
/// # Errors
/// The system's reason.
pub(crate) fn before_the_end(before: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // SAFETY: all-zero is a valid set, and the calls fill in what they are given.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            if !is_ignored(signal) {
                libc::sigaddset(&mut set, signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    let wait = move || {
        let mut signal = 0;
        // SAFETY: all-zero is a valid set; all outlive the calls. What else comes is for the other threads.
        let failed = unsafe {
            let mut all = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
            libc::sigwait(&set, &mut signal) != 0
        };
        if failed {
            return;
        }
        before();
        // SAFETY: plain system calls; the action is the default one, which ends the process.
        unsafe {
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::raise(signal);
        }
    };
    let named = std::thread::Builder::new().name("signals".into());
    named.spawn(wait).map(drop)
}

/// While this lives, what the terminal's keys for interrupting and quitting send is for others in the foreground: a
/// child that this process waits for.
pub(crate) struct Deaf([libc::sigaction; 2]);

/// What those keys send.
const KEYS: [i32; 2] = [libc::SIGINT, libc::SIGQUIT];

impl Deaf {
    /// Starts a program that hears what this process does not from now on.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Self, Child)> {
        // SAFETY: all-zero is a valid action, here that of ignoring with SIG_IGN put in; the calls fill in the rest.
        let before = unsafe {
            let mut ignore = std::mem::zeroed::<libc::sigaction>();
            ignore.sa_sigaction = libc::SIG_IGN;
            KEYS.map(|key| {
                let mut before = std::mem::zeroed::<libc::sigaction>();
                libc::sigaction(key, &ignore, &mut before);
                before
            })
        };
        let deaf = Self(before);
        // SAFETY: all-zero is a valid set, here the empty one; only system calls that may be made between fork and
        // exec.
        unsafe {
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            command.pre_exec(move || {
                put_back(&before);
                libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
                Ok(())
            });
        }
        command.spawn().map(|child| (deaf, child))
    }
}

fn put_back(before: &[libc::sigaction; 2]) {
    for (key, before) in KEYS.iter().zip(before) {
        // SAFETY: an action that was in force before.
        unsafe { libc::sigaction(*key, before, std::ptr::null_mut()) };
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        put_back(&self.0);
    }
}

/// The process that started this one: the machine dies with it, however it ends. Who had it started without SIGHUP
/// (nohup(1), `trap '' HUP`) has said that it is to go on, as does `start --detach`.
///
/// A parent that dies in the moment between its fork and the first instructions of this program cannot be told from
/// whoever adopts its children: then the machine goes on, too.
///
/// PR_SET_PDEATHSIG alone would not do: it is about the thread that called fork, which may end long before its
/// process, and it is not told of a death before it was asked for.
#[derive(Debug)]
pub(crate) struct Parent {
    /// None: a machine that is to outlive whoever started it.
    pid: Option<libc::pid_t>,
    process: Option<OwnedFd>,
}

impl Parent {
    /// Notes who the parent is; a death before this call is nobody's to see, so it comes first.
    pub(crate) fn of_process() -> Self {
        if is_ignored(libc::SIGHUP) {
            return Self::nobody();
        }
        // SAFETY: plain system calls.
        let (pid, fd) = unsafe {
            let pid = libc::getppid();
            (pid, libc::syscall(libc::SYS_pidfd_open, pid, 0))
        };
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        let process = i32::try_from(fd)
            .ok()
            .filter(|&fd| fd >= 0)
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Self {
            pid: Some(pid),
            process,
        }
    }

    /// No parent: the machine goes on whoever ends.
    pub(crate) fn nobody() -> Self {
        Self {
            pid: None,
            process: None,
        }
    }

    /// Where no descriptor can tell (Linux before 5.3, a filter of system calls, a parent in an outer PID namespace),
    /// asks the kernel for a SIGHUP instead, which must be handled already.
    pub(crate) fn watch(&self) {
        if self.process.is_some() || self.pid.is_none() {
            return;
        }
        // SAFETY: plain system calls.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP);
            if self.gone() {
                libc::raise(libc::SIGHUP);
            }
        }
    }

    /// A descriptor that is readable once the parent is gone, where there is one.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.process.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether the parent is gone: this process has been given to another.
    pub(crate) fn gone(&self) -> bool {
        // SAFETY: a plain system call.
        self.pid
            .is_some_and(|pid| unsafe { libc::getppid() != pid })
    }
}
