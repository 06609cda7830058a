//! Waiting for a journal's lock: for so long, and then with a word about who has it.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long one waits for a lock whose holder is at work: it may be making thousands of huge pages.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long where its holder is stopped, and would not let go of it in an hour either.
const PATIENCE_WITH_THE_STOPPED: Duration = Duration::from_secs(2);
/// From the first to the longest pause between two looks. flock(2) knows no time limit, and tells nobody of its end.
const PAUSES: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(50)];

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locker {
    /// Its process.
    pub pid: u32,
    /// What that is called, as the kernel has it.
    pub name: String,
    /// It is stopped, or held by a debugger.
    pub stopped: bool,
}

impl fmt::Display for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Locker { pid, name, stopped } = self;
        let name = name.escape_debug();
        match stopped {
            true => write!(
                f,
                "process {pid} ({name}), which is stopped: `kill -CONT {pid}` lets it go on, `kill -KILL {pid}` ends \
                 it, and what it leaves is put back next time"
            ),
            false => write!(
                f,
                "process {pid} ({name}): wait for it, or `kill -KILL {pid}`, and what it leaves is put back next time"
            ),
        }
    }
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum Unlocked {
    /// Somebody else has it; by now it is not known who, or that is not told here.
    Busy(Duration, Option<Locker>),
    System(io::Error),
}

/// Locks a directory. `patience`: for how long somebody else may have it; `None`: for good.
pub(super) fn lock(directory: &File, patience: Option<Duration>) -> Result<(), Unlocked> {
    let Some(patience) = patience else {
        loop {
            match directory.lock() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map_err(Unlocked::System),
            }
        }
    };
    let start = Instant::now();
    let [mut pause, longest] = PAUSES;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(Unlocked::System(e)),
        }
        let waited = start.elapsed();
        if waited >= patience.min(PATIENCE_WITH_THE_STOPPED) {
            let holder = holder(directory);
            let stopped = holder.as_ref().is_some_and(|holder| holder.stopped);
            if stopped || waited >= patience {
                return Err(Unlocked::Busy(waited, holder));
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

/// Who has the lock, as /proc/locks tells (proc_locks(5)).
fn holder(directory: &File) -> Option<Locker> {
    let inode = directory.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF`; those that wait have `->` after the number.
    let pid = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words.as_slice() else {
            return None;
        };
        // Of some file systems the kernel names another device here than to stat(2).
        (file.rsplit(':').next() == Some(inode.as_str())).then(|| pid.parse().ok())?
    })?;
    let process = Path::new("/proc").join(u32::to_string(&pid));
    let stat = fs::read(process.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let (before, after) = stat.rsplit_once(')')?;
    let state = after.split_ascii_whitespace().next()?;
    Some(Locker {
        pid,
        name: before.split_once('(')?.1.to_owned(),
        // proc_pid_stat(5): stopped on a signal, stopped by a tracer.
        stopped: matches!(state, "T" | "t"),
    })
}
