//! The conversation: prompt, history, line editor.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use super::complete::Guide;
use super::{Outcome, Session, settings};
use crate::run::signals;
use crate::say;

/// Most lines that are remembered.
const LINES: usize = 1000;

/// Talks to whoever sits at the terminal, until they have enough.
pub(super) fn converse(session: Session) -> u8 {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(false)
        .history_ignore_space(true);
    let sized = config
        .max_history_size(LINES)
        .and_then(|c| c.history_ignore_dups(true));
    let editor = sized.and_then(|c| Editor::<Guide, FileHistory>::with_config(c.build()));
    let mut editor = match editor {
        Ok(editor) => editor,
        Err(e) => {
            say::error(&format!("the terminal cannot be read: {e}"));
            return crate::FAILED;
        }
    };
    if let Err(e) = keep_terminal() {
        say::warning(&format!("signals cannot be waited for: {e}"));
    }
    let history = history_file();
    if let Some(file) = &history
        && let Err(e) = open(file).and_then(|()| editor.load_history(file).map_err(other))
    {
        say::warning(&format!(
            "the history {} cannot be read: {e}",
            file.display()
        ));
    }
    let session = Rc::new(RefCell::new(session));
    editor.set_helper(Some(Guide::new(session.clone())));
    if !session.borrow().common.quiet {
        say::out("`help` lists the commands, TAB completes, Ctrl-D ends.\n");
    }
    let mut told = false;
    loop {
        say::out(&session.borrow().settings.block());
        let line = match editor.readline("> ") {
            Ok(line) => line,
            // What was typed is not meant.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => {
                // The cursor is behind the prompt.
                say::out("\n");
                return 0;
            }
            Err(e) => {
                say::error(&format!("the terminal cannot be read: {e}"));
                return crate::FAILED;
            }
        };
        if is_kept(&line) {
            let added = editor.add_history_entry(line.as_str());
            let kept = match (&history, added) {
                (Some(file), Ok(true)) => editor
                    .append_history(file)
                    .map_err(other)
                    .and_then(|()| protect(file)),
                _ => Ok(()),
            };
            if let (Err(e), false) = (kept, told) {
                told = true;
                say::warning(&format!("the history is not kept: {e}"));
            }
        }
        // Lines that were pasted come as one.
        for line in line.split(['\n', '\r']) {
            let outcome = session.borrow_mut().execute(line);
            drop(say::kept());
            match outcome {
                Outcome::Quit => return 0,
                Outcome::Code(code) if code != 0 => {
                    session.borrow().note(&format!("exit code {code}"));
                }
                Outcome::Code(_) | Outcome::Answer(_) | Outcome::Done | Outcome::Failed => {}
            }
        }
    }
}

/// The terminal as it is now is how it shall be left, also by a signal that ends this program.
fn keep_terminal() -> io::Result<()> {
    let before = tcgetattr(io::stdin())?;
    signals::before_the_end(move || {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    })
}

/// Whether a line may be remembered: the environment of a command and a scenario's texts for the SEV owner may be
/// secret, and so is what somebody puts behind a blank.
fn is_kept(line: &str) -> bool {
    const SECRET: [&str; 3] = ["env", "security", "metadata"];
    let mut words = line.split([' ', '\t', '=']).filter(|w| !w.is_empty());
    let (command, key) = (words.next(), words.next().unwrap_or_default());
    if command.is_none() || line.starts_with(' ') {
        return false;
    }
    let id = settings::canonical(key, "{").unwrap_or_default();
    let root = id.split('.').next().unwrap_or_default();
    command != Some("set") || !SECRET.contains(&root)
}

/// $XDG_STATE_HOME/vsc/history, ~/.local/state/vsc/history.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| {
        let value = std::env::var_os(name).filter(|v| !v.is_empty());
        value.map(PathBuf::from).filter(|p| p.is_absolute())
    };
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("vsc/history"))
}

fn other(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(e) => e,
        e => io::Error::other(e),
    }
}

/// Makes the file, for its owner alone.
fn open(file: &Path) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    fs::File::options().append(true).create(true).open(file)?;
    protect(file)
}

fn protect(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, Permissions::from_mode(0o600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_remembered() {
        for line in ["name x", "set memory 2G", "!ls", "unset env", "plan"] {
            assert!(is_kept(line), "{line}");
        }
        for line in [
            "",
            " name x",
            "set env {A: b}",
            "set environment=A=b",
            "set security.session x",
            "\t",
        ] {
            assert!(!is_kept(line), "{line}");
        }
    }
}
