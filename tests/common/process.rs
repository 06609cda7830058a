//! Machines and other processes of a test: started, signalled, waited for.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{finish, text, vsc};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a busy machine; what is awaited takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
pub struct Running(pub Child);

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The built-in guest, told what to do.
pub fn guest(parameters: &str) -> Command {
    let mut command = vsc();
    command
        .arg("-o")
        .arg(format!("guest.parameters={parameters}"));
    command
}

/// Starts a built-in guest that greets, and waits until it has.
#[track_caller]
pub fn spinning(command: &mut Command) -> Child {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    greeted(child.spawn().unwrap())
}

/// Waits for the greeting of a built-in guest; when none comes, shows what was said instead.
#[track_caller]
pub fn greeted(mut child: Child) -> Child {
    let mut greeting = [0; 10];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut greeting);
    if read.is_err() || &greeting != b"vsc guest\n" {
        assert!(child.stderr.is_some(), "no greeting");
        let output = finish(child);
        panic!("no greeting: {}, {}", output.status, text(&output.stderr));
    }
    child
}

#[track_caller]
pub fn kill(pid: u32, signal: i32) {
    let process = Pid::from_raw(pid as i32).unwrap();
    kill_process(process, Signal::from_named_raw(signal).unwrap()).unwrap();
}

/// Kills a process and what it started, and what that started: whoever reads from them comes to an end.
pub fn kill_all(pid: u32) {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let started = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                started
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        at += 1;
    }
    for pid in all {
        let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
    }
}

/// Stops a process, and waits until it has.
#[track_caller]
pub fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    let stat = format!("/proc/{pid}/stat");
    soon(|| fs::read_to_string(&stat).unwrap().contains(") T "));
}

/// Waits until `what` is so.
#[track_caller]
pub fn soon(mut what: impl FnMut() -> bool) {
    awaited(|| what().then_some(()));
}

/// Waits until `what` gives something.
#[track_caller]
pub fn awaited<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Processes that the first thread of `pid` started.
pub fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether a process has a thread that lives. Who waits for a dead one is somebody else's business.
pub fn alive(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.any(|task| !is_dead(&task.path()))
}

/// Whether a thread has ended, as its directory in /proc says.
fn is_dead(task: &Path) -> bool {
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    // proc_pid_stat(5): the state follows the name.
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.starts_with(" Z") || rest.starts_with(" X"))
}

/// How long a thread was ready to run and had no processor, as the scheduler counts it (the second number, in ns; see
/// the kernel's Documentation/scheduler/sched-stats.rst). Zero where it does not count.
fn delay(task: &Path) -> Duration {
    let counts = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let waited = counts.split(' ').nth(1).and_then(|ns| ns.parse().ok());
    Duration::from_nanos(waited.unwrap_or(0))
}

/// Waits until a process has ended because of what is done by `cause`, and says how long that took; what it, or this
/// thread, waited meanwhile for a processor that others had is not counted. Of its threads the first one counts, which
/// decides that it ends, and after that one's end the others, which can only be hindered from ending too.
#[track_caller]
pub fn time_to_end(pid: u32, cause: impl FnOnce()) -> Duration {
    let first = format!("/proc/{pid}/task/{pid}");
    let first = Path::new(&first);
    let this = Path::new("/proc/thread-self");
    let (ours, theirs) = (delay(this), delay(first));
    let begin = Instant::now();
    cause();
    let (mut decided, mut others) = (Duration::ZERO, BTreeMap::new());
    soon(|| {
        if !is_dead(first) {
            decided = decided.max(delay(first).saturating_sub(theirs));
            return false;
        }
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let now = delay(&task.path());
            let seen = others.entry(task.path()).or_insert((now, now));
            seen.1 = seen.1.max(now);
        }
        !alive(pid)
    });
    let others = others.values().map(|(from, to)| *to - *from).sum();
    let not_ours = (delay(this) - ours) + decided + others;
    begin.elapsed().saturating_sub(not_ours)
}
