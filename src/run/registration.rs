//! A registered run (`register: true`) in systemd-machined: `machinectl` lists it (org.freedesktop.machine1(5)).
//!
//! The monitor itself talks to no bus and, once confined, starts no program. A child that was started before that has
//! `busctl` do both: the registration, and at the end, however the run ends, its opposite. The machine stays in the
//! cgroup of its caller (RegisterMachine, not CreateMachine).

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::poll::Poll;

/// The word by which this program knows that it is to be that child. Nobody needs to type it.
pub(crate) const REGISTRAR: &str = "__registrar";
/// How machined calls whoever registered a machine.
pub(crate) const SERVICE: &str = "vsc";
/// How long the bus may take, seconds.
const BUS_SECONDS: u32 = 5;
/// How long the end of a run waits for the opposite of the registration.
const PATIENCE: Duration = Duration::from_secs(6);
/// Longest name of a machine (HOST_NAME_MAX of Linux; machine_name_is_valid of systemd).
const NAME_MAX: usize = 64;

/// A machine that machined knows, as long as this lives.
#[derive(Debug)]
pub(crate) struct Registration {
    hold: Option<PipeWriter>,
    answer: PipeReader,
    child: Child,
}

impl Registration {
    /// Registers the machine `name`, which this process runs.
    ///
    /// # Errors
    /// Why machined does not know it.
    pub(crate) fn start(name: &str) -> Result<Self, String> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Err("systemd does not run here".to_owned());
        }
        let failed = |e: io::Error| format!("cannot start what asks systemd-machined: {e}");
        let (stdin, hold) = io::pipe().map_err(failed)?;
        let (mut answer, stdout) = io::pipe().map_err(failed)?;
        let pid = std::process::id();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("vsc-run")
            .args([REGISTRAR, &machine(name, pid), &pid.to_string()])
            .current_dir("/")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::null())
            // What the terminal's keys send is not for it: it ends after the run.
            .process_group(0);
        let child = command.spawn().map_err(failed)?;
        // Its ends are its own from here on.
        drop(command);
        let mut first = [0];
        let mut registration = Self {
            hold: Some(hold),
            answer: answer.try_clone().map_err(failed)?,
            child,
        };
        match answer.read(&mut first) {
            Ok(1) if first == [b'+'] => Ok(registration),
            _ => {
                let mut why = String::new();
                // It says why, and ends.
                let read = answer.read_to_string(&mut why);
                registration.hold = None;
                Err(match read {
                    Ok(n) if n > 0 => why.trim().to_owned(),
                    _ => "what asks systemd-machined ended without a word".to_owned(),
                })
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The child sees the end of the run in this.
        self.hold = None;
        let until = Instant::now() + PATIENCE;
        loop {
            let mut poll = Poll::new();
            let ended = poll.read(self.answer.as_raw_fd());
            if poll.wait(Some(until)).is_ok_and(|ready| ready.is(ended)) {
                let _ = self.child.wait();
                return;
            }
            if Instant::now() >= until {
                return;
            }
        }
    }
}

/// A name that machined takes, and that no other run has.
fn machine(name: &str, pid: u32) -> String {
    let end = format!("-{pid}");
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let start: String = name.chars().map(fit).take(NAME_MAX - end.len()).collect();
    // Labels of a host name neither begin nor end with these.
    let start = start.trim_matches(['-', '.']).replace("..", ".");
    format!("{start}{end}")
}

fn busctl(words: &[&str]) -> Result<(), String> {
    let output = Command::new("busctl")
        .args(["--system", "--allow-interactive-authorization=no"])
        .arg(format!("--timeout={BUS_SECONDS}"))
        .args([
            "call",
            "org.freedesktop.machine1",
            "/org/freedesktop/machine1",
            "org.freedesktop.machine1.Manager",
        ])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot start busctl: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(match said.lines().last() {
        Some(last) => last.to_owned(),
        None => format!("busctl: {}", output.status),
    })
}

/// Has machined forget a machine.
///
/// # Errors
/// What the bus says.
pub(crate) fn forget(machine: &str) -> Result<(), String> {
    busctl(&["UnregisterMachine", "s", machine])
}

/// The life of that child; `words` are what follows [`REGISTRAR`].
pub(crate) fn registrar(words: &[OsString]) -> u8 {
    let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
    let [machine, pid] = words[..] else {
        return crate::FAILED;
    };
    let registered = busctl(&[
        "RegisterMachine",
        "sayssus",
        machine,
        "0",
        SERVICE,
        "vm",
        pid,
        "",
    ]);
    let mut stdout = io::stdout();
    let answer = match &registered {
        Ok(()) => "+".to_owned(),
        Err(why) => format!("-{why}"),
    };
    // Whoever asked may be gone already; what was registered goes all the same.
    let _ = stdout
        .write_all(answer.as_bytes())
        .and_then(|()| stdout.flush());
    if registered.is_err() {
        return crate::FAILED;
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
    match forget(machine) {
        Ok(()) => 0,
        Err(_) => crate::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machined_takes_the_names() {
        assert_eq!(machine("lab_1:x", 7), "lab-1-x-7");
        assert_eq!(machine("--a..b--", 7), "a.b-7");
        assert_eq!(machine(&"x".repeat(80), 12345).len(), NAME_MAX);
    }
}
