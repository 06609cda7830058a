//! Processes that cannot be mistaken for others: a number is used again, a number with the time of its start and the
//! boot that this time is counted from is not.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys;

/// Which process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, clock ticks after boot: field 22 of /proc/PID/stat.
    pub started: u64,
    /// /proc/sys/kernel/random/boot_id
    pub boot_id: String,
}

impl Process {
    /// This one; `None` without /proc.
    pub fn current() -> Option<Self> {
        let pid = std::process::id();
        let proc = Path::new("/proc");
        Some(Self {
            pid,
            started: Stat::of(proc, pid)?.started,
            boot_id: boot_id(proc)?,
        })
    }

    /// How long it has been running, if it still is; `proc` is where procfs is mounted.
    pub fn uptime(&self, proc: &Path) -> Option<Duration> {
        let stat = Stat::of(proc, self.pid)?;
        let same = stat.started == self.started && boot_id(proc)? == self.boot_id;
        if same && !stat.ended {
            Some(stat.uptime(proc).unwrap_or_default())
        } else {
            None
        }
    }

    /// A handle on it, if it still runs.
    ///
    /// # Errors
    /// The system's reason why there is no handle on a process that runs.
    pub fn open(&self) -> io::Result<Option<Handle>> {
        let fd = match sys::pidfd_open(self.pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Looked at after the handle was had: what has it now keeps it.
        Ok(self.uptime(Path::new("/proc")).map(|_| Handle(fd)))
    }
}

/// A process, held: its number cannot become another's for whoever has this.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Sends a signal; false: it has ended already.
    ///
    /// # Errors
    /// The system's reason, usually that the process is another user's.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        match sys::pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits for its end, until `until` at most; returns whether it has ended.
    ///
    /// # Errors
    /// The system's reason.
    pub fn wait(&self, until: Option<Instant>) -> io::Result<bool> {
        sys::wait_readable(&self.0, until)
    }
}

/// What /proc/PID/stat says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Start, clock ticks after boot.
    pub started: u64,
    /// It has ended, and nobody has asked how yet.
    pub ended: bool,
}

impl Stat {
    /// Reads it; `None` where there is no such process.
    pub fn of(proc: &Path, pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        // The command name may hold anything, so count from its closing parenthesis, after which field 3 comes.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X" | "x");
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { started, ended })
    }

    /// How long ago the start was.
    pub fn uptime(&self, proc: &Path) -> Option<Duration> {
        let up = fs::read_to_string(proc.join("uptime")).ok()?;
        let up: f64 = up.split(' ').next()?.parse().ok()?;
        let started = self.started as f64 / sys::ticks_per_second() as f64;
        Duration::try_from_secs_f64((up - started).max(0.0)).ok()
    }
}

fn boot_id(proc: &Path) -> Option<String> {
    let id = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_is_found_and_its_namesakes_are_not() {
        let this = Process::current().unwrap();
        let proc = Path::new("/proc");
        assert!(this.uptime(proc).unwrap() < Duration::from_secs(24 * 3600));
        for other in [
            Process {
                started: this.started + 1,
                ..this.clone()
            },
            Process {
                boot_id: "x".into(),
                ..this.clone()
            },
            Process {
                pid: u32::MAX,
                ..this.clone()
            },
        ] {
            assert_eq!(other.uptime(proc), None);
            assert!(!matches!(other.open(), Ok(Some(_))));
        }
    }

    #[test]
    fn an_end_is_waited_for_and_a_zombie_is_no_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process {
            pid: child.id(),
            started: Stat::of(Path::new("/proc"), child.id()).unwrap().started,
            ..Process::current().unwrap()
        };
        let handle = process.open().unwrap().unwrap();
        assert!(!handle.wait(Some(Instant::now())).unwrap());
        assert!(handle.signal(libc::SIGKILL).unwrap());
        assert!(handle.wait(None).unwrap());
        assert_eq!(process.uptime(Path::new("/proc")), None, "a zombie");
        child.wait().unwrap();
        assert!(!handle.signal(libc::SIGKILL).unwrap());
        assert!(process.open().unwrap().is_none());
    }
}
