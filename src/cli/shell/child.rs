//! What the shell starts and waits for: this program's other verbs, and the user's own shell commands.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::{Outcome, Session};
use crate::run::ending::SIGNAL_BASE;
use crate::run::signals::Deaf;
use crate::say;

/// The exit code of a process, as shells count.
fn code(status: ExitStatus) -> u8 {
    let of_signal = || {
        let signal = status.signal().unwrap_or_default();
        SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or_default())
    };
    match status.code() {
        Some(code) => u8::try_from(code).unwrap_or(crate::FAILED),
        None => of_signal(),
    }
}

impl Session {
    /// Runs this program with these words and the options of this shell; the verb comes first, if there is one.
    pub(super) fn again(&self, verb: Option<&str>, words: Vec<String>) -> Outcome {
        let mut command = match std::env::current_exe() {
            Ok(program) => Command::new(program),
            Err(e) => return self.no_start(&e),
        };
        let common = &self.common;
        // Before the verb they would be those of a run.
        command.args(verb);
        for (flag, given) in [
            ("--json", common.json),
            ("--quiet", common.quiet),
            ("--verbose", common.verbose),
        ] {
            command.args(given.then_some(flag));
        }
        command.arg("--host-root").arg(&common.host_root);
        if let Some(file) = &common.settings {
            command.arg("--settings").arg(file);
        }
        command.args(words);
        match self.wait(&mut command) {
            Ok(crate::FAILED) => Outcome::Failed,
            Ok(code) => Outcome::Code(code),
            Err(e) => self.no_start(&e),
        }
    }

    fn no_start(&self, error: &io::Error) -> Outcome {
        self.refuse(format!("This program cannot be started again: {error}"), "")
    }

    /// `shell CMD`, `!CMD`: what the user's shell makes of it.
    pub(super) fn shell(&self, text: &str) -> Outcome {
        if text.is_empty() {
            return self.refuse(
                "There is no command",
                "For example `!ls /var/lib/libvirt/images`",
            );
        }
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(text);
        match self.wait(&mut command) {
            Ok(code) => {
                self.note(&format!("exit code {code}"));
                if code == 0 {
                    Outcome::Done
                } else {
                    Outcome::Failed
                }
            }
            Err(e) => self.refuse(format!("/bin/sh cannot be started: {e}"), ""),
        }
    }

    /// Runs a program to its end; the terminal is then as it was.
    fn wait(&self, command: &mut Command) -> io::Result<u8> {
        let stdin = std::io::stdin();
        let before = self.interactive.then(|| tcgetattr(&stdin).ok()).flatten();
        if self.reads_stdin && !self.interactive {
            // There are the next commands.
            command.stdin(Stdio::null());
        }
        let status = if self.interactive {
            // Ctrl-C is for the child.
            let (_deaf, mut child) = Deaf::start(command)?;
            child.wait()
        } else {
            command.status()
        };
        if let Some(before) = before
            && tcsetattr(&stdin, OptionalActions::Drain, &before).is_err()
        {
            say::warning("the terminal's settings cannot be put back");
        }
        status.map(code)
    }
}
