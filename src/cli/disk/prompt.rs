//! A passphrase from the terminal, twice, not shown.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use vsc::images::Secret;

use crate::run::poll::Poll;
use crate::run::signals::Signals;

/// How often two that differ may be typed.
const ATTEMPTS: u32 = 3;
/// More than a line of a terminal has (N_TTY's 4096 bytes).
const LINE: usize = 4097;

/// Why there is none.
#[derive(Debug)]
pub(super) enum Failure {
    /// A signal came.
    Signal(i32),
    /// Something else, as a sentence.
    Error(String),
}

/// Asks for the passphrase of the image at `path`.
pub(super) fn passphrase(path: &Path, signals: &mut Signals) -> Result<Secret, Failure> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let terminal = terminal.map_err(|e| {
        Failure::Error(format!(
            "there is no terminal to ask for the passphrase on ({e}): use --secret-file or --secret-fd"
        ))
    })?;
    let mut silent = Silent::new(terminal).map_err(broken)?;
    let name = vsc::diag::shown(&path.to_string_lossy());
    for _ in 0..ATTEMPTS {
        let first = silent.ask(&format!("Passphrase for {name}: "), signals)?;
        let second = silent.ask("The same again: ", signals)?;
        if first == second {
            return Ok(first);
        }
        silent.say("They differ.\n").map_err(broken)?;
    }
    Err(Failure::Error("no passphrase was typed twice".into()))
}

fn broken(error: io::Error) -> Failure {
    Failure::Error(format!(
        "the terminal cannot be asked for a passphrase: {error}"
    ))
}

/// A terminal that shows nothing of what is typed but the newline; as it was when this goes.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: File) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent
            .local_modes
            .insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        // Stopped and continued, it would find the shell's settings, which show what is typed. 0 disables the key.
        silent.special_codes[SpecialCodeIndex::VSUSP] = 0;
        // What was typed before the question is no answer to it.
        tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.terminal.write_all(text.as_bytes())
    }

    fn ask(&mut self, question: &str, signals: &mut Signals) -> Result<Secret, Failure> {
        self.say(question).map_err(broken)?;
        let mut typed = vec![0; LINE];
        let mut length = 0;
        loop {
            let mut poll = Poll::new();
            let line = poll.read(self.terminal.as_raw_fd());
            poll.read(signals.fd());
            let ready = poll.wait(None).map_err(broken)?;
            while let Some(signal) = signals.next() {
                if signal != libc::SIGWINCH {
                    // The cursor is behind the question.
                    let _ = self.say("\n");
                    return Err(Failure::Signal(signal));
                }
            }
            if !ready.is(line) {
                continue;
            }
            let room = typed.get_mut(length..).unwrap_or_default();
            let read = self.terminal.read(room).map_err(broken)?;
            length += read;
            let ends = typed.get(..length).is_some_and(|t| t.ends_with(b"\n"));
            // Nothing read: Ctrl-D, the end of what is typed, or no room.
            if ends || read == 0 {
                typed.truncate(length - usize::from(ends));
                if !ends {
                    let _ = self.say("\n");
                }
                return Secret::typed(typed).map_err(|e| Failure::Error(e.to_string()));
            }
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
