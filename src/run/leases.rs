//! Leases of sanlock while a machine runs: what its daemon says when they are lost, and what is done then.
//!
//! The daemon cannot call this process; it starts a program instead (its killpath), which is this one with the word
//! [`LOST`], the number of the process and its start. That sends [`SIGNAL`] to the process, if it still is that one.
//! From then on the daemon gives some time (its option -g, 40 s), then it kills the process, unless the leases have
//! been given up.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use serde::Serialize;
use vsc::locks::sanlock::{HELPER, Leases, OnLoss};
use vsc::store::Process;
use vsc_vmm::resources::LockAction;

use super::poll::Poll;
use super::signals::Signals;
use crate::say;

/// The word by which this program knows that it is to tell a run that its leases are lost. Nobody needs to type it.
pub(crate) const LOST: &str = "__leases-lost";
/// What a run hears then.
pub(super) const SIGNAL: i32 = libc::SIGUSR1;
/// How long a machine that is to stand still may take to finish what it has asked of its disks; then sanlock ends it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a machine that is to start again waits for leases, and how often it tries.
const AGAIN_MAX: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_secs(2);

/// What was done about lost leases, in the result as `lock_failure`; the last time, where there were several.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LockFailure {
    /// `on_lockfailure`; none: the run ended as after SIGTERM.
    pub(super) action: Option<LockAction>,
    /// The leases were given up.
    pub(super) released: bool,
    /// The machine has gone on with its leases since: it started again, or was resumed.
    pub(super) recovered: bool,
    /// How often leases were lost.
    pub(super) times: u32,
}

/// What sanlock is to run when the leases of this process are lost.
pub(crate) fn on_loss() -> Option<OnLoss> {
    let this = Process::current()?;
    let fits = |path: &str| path.len() < HELPER && !path.contains(char::is_whitespace);
    let program = std::env::current_exe().ok();
    let program = program
        .filter(|path| path.exists())
        .and_then(|path| Some(path.to_str()?.to_owned()))
        .filter(|path| fits(path));
    Some(OnLoss {
        // A longer path, or one that has been removed, leads there too.
        program: program.unwrap_or_else(|| format!("/proc/{}/exe", this.pid)),
        arguments: format!("{LOST} {} {}", this.pid, this.started),
    })
}

/// The life of the program that sanlock starts; `words` are what follows [`LOST`].
pub(crate) fn tell_lost(words: &[OsString]) -> u8 {
    let number = |word: Option<&OsString>| word?.to_str()?.parse::<u64>().ok();
    let told = || {
        let process = Process {
            pid: u32::try_from(number(words.first())?).ok()?,
            started: number(words.get(1))?,
            ..Process::current()?
        };
        process.open().ok()??.signal(SIGNAL).ok()
    };
    match told() {
        Some(true) => 0,
        _ => crate::FAILED,
    }
}

/// Takes leases once more for a machine that is to start again, for as long as the storage may take to come back;
/// a signal ends the wait.
///
/// # Errors
/// Why there are none.
pub(super) fn take_again(leases: &mut Leases, signals: &mut Signals) -> Result<(), String> {
    let until = Instant::now() + AGAIN_MAX;
    loop {
        let why = match leases.take_again(&mut say::note) {
            Ok(()) => return Ok(()),
            Err(e) => super::chain(&e),
        };
        if Instant::now() >= until {
            return Err(why);
        }
        let mut poll = Poll::new();
        poll.read(signals.fd());
        let waited = poll.wait(Some(Instant::now() + AGAIN));
        waited.map_err(|e| format!("cannot wait for events: {e}"))?;
        while let Some(signal) = signals.next() {
            if ![libc::SIGWINCH, SIGNAL].contains(&signal) {
                return Err(format!(
                    "ended by signal {signal} while it waited for its leases: {why}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sanlock_runs_fits_into_its_bytes() {
        let run = on_loss().unwrap();
        assert!(run.program.len() < HELPER && run.arguments.len() < HELPER);
        assert!(std::path::Path::new(&run.program).exists());
        let words: Vec<&str> = run.arguments.split(' ').collect();
        assert_eq!(words[..2], [LOST, &std::process::id().to_string()]);
        // A process that has this number and another start is another process.
        let other = ["1", "0"].map(OsString::from);
        assert_eq!(tell_lost(&other), crate::FAILED);
        assert_eq!(tell_lost(&[]), crate::FAILED);
    }
}
