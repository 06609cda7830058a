//! `vsc-run shell`: the commands of virt-scenario's shell, and the rest of this program, one line each; for people
//! and for scripts.

#![forbid(unsafe_code)]

mod child;
mod commands;
mod complete;
mod editor;
mod hypervisor;
mod line;
mod scenario;
mod set;
mod settings;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use vsc::diag::{Diagnostic, Diagnostics, Sources, Span, shown};

use super::Common;
use super::machines::StoreArgs;
use super::run::report;
use crate::say;
use settings::Settings;

/// Longest line that is read, bytes; as long as a whole scenario.
const LINE_MAX: u64 = 1 << 20;
/// How deep `source` may lead.
const DEPTH_MAX: usize = 16;

/// Arguments of `shell`.
#[derive(Debug, Args)]
pub(super) struct ShellArgs {
    /// Scripts to run, one command in each line; without one, commands come from standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Runs these commands, `;` between them.
    #[arg(short = 'c', value_name = "COMMANDS", conflicts_with = "files")]
    commands: Option<String>,
    /// Goes on after a command that failed; the exit code is 125 at the end.
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It did what it was to do.
    Done,
    /// A run is over, and this is its exit code.
    Code(u8),
    /// A question is answered, the exit code being part of the answer.
    Answer(u8),
    /// Why not has been said.
    Failed,
    /// There is to be no other one.
    Quit,
}

/// Where a line stands, for messages.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    of: &'a str,
    number: usize,
}

/// Names by hypervisor and by what they name; none where it did not answer.
type Offers = RefCell<HashMap<(String, &'static str), Option<Vec<String>>>>;

/// What lasts from one command to the next.
struct Session {
    common: Common,
    store: StoreArgs,
    settings: Settings,
    /// What hypervisors had when TAB was pressed.
    offers: Offers,
    /// The settings file of the command line.
    given: Option<PathBuf>,
    /// Somebody types, and reads the answers.
    interactive: bool,
    keep_going: bool,
    /// Standard input is where the commands are.
    reads_stdin: bool,
    depth: usize,
    /// A command failed, and it was gone on.
    failed: bool,
    /// The exit code of the last command that has one.
    code: u8,
}

pub(super) fn run(args: ShellArgs, common: &Common) -> u8 {
    let scripted = args.commands.is_some() || !args.files.is_empty();
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut session = Session {
        common: Common {
            json: common.json,
            host_root: common.host_root.clone(),
            settings: common.settings.clone(),
            quiet: common.quiet,
            verbose: common.verbose,
        },
        store: args.store,
        settings: Settings::default(),
        offers: Offers::default(),
        given: common.settings.clone(),
        interactive: terminal && !scripted,
        keep_going: args.keep_going,
        reads_stdin: !scripted,
        depth: 0,
        failed: false,
        code: 0,
    };
    if session.interactive {
        return editor::converse(session);
    }
    let outcome = if let Some(text) = &args.commands {
        session.script(&line::commands(text), "command")
    } else if scripted {
        let mut outcome = Outcome::Done;
        for file in &args.files {
            outcome = session.file(file);
            if outcome != Outcome::Done {
                break;
            }
        }
        outcome
    } else {
        session.lines(std::io::stdin().lock(), "standard input")
    };
    match outcome {
        Outcome::Failed => crate::FAILED,
        _ if session.failed => crate::FAILED,
        _ => session.code,
    }
}

impl Session {
    /// Says why a command is refused.
    fn refuse(&self, message: impl Into<String>, help: impl Into<String>) -> Outcome {
        let d = Diagnostic::error("E-SHELL", Span::NONE, message).help(help);
        self.refuse_with(d)
    }

    fn refuse_with(&self, d: Diagnostic) -> Outcome {
        let messages = Diagnostics::new(vec![d], Arc::new(Sources::default()));
        report(&messages, &self.common);
        Outcome::Failed
    }

    /// Something to know, for people.
    fn note(&self, text: &str) {
        if !self.common.quiet {
            say::note(text);
        }
    }

    /// The commands of a file.
    fn file(&mut self, path: &Path) -> Outcome {
        let name = shown(&path.display().to_string());
        if self.depth >= DEPTH_MAX {
            let message = format!("{name} is one file too many within files");
            return self.refuse(message, format!("Files within files go {DEPTH_MAX} deep"));
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => {
                return self.refuse(
                    format!("{name} cannot be read: {e}"),
                    "Name a file of commands",
                );
            }
        };
        self.depth += 1;
        let outcome = self.lines(BufReader::new(file), &name);
        self.depth -= 1;
        outcome
    }

    /// The commands of a stream, each done before the next is read.
    fn lines(&mut self, mut from: impl BufRead, name: &str) -> Outcome {
        for number in 1.. {
            let place = Place { of: name, number };
            let mut bytes = Vec::new();
            let read = (&mut from).take(LINE_MAX + 1).read_until(b'\n', &mut bytes);
            let wrong = match read {
                Ok(0) => return Outcome::Done,
                Err(e) => Some(format!("it cannot be read: {e}")),
                Ok(n) if n as u64 > LINE_MAX => {
                    Some(format!("a line has {LINE_MAX} bytes at most"))
                }
                Ok(_) => None,
            };
            let text = match (wrong, String::from_utf8(bytes)) {
                (Some(wrong), _) => Err(wrong),
                (None, Err(_)) => Err("it is not UTF-8 text".to_owned()),
                (None, Ok(text)) => Ok(text),
            };
            let text = match text {
                Ok(text) => text,
                Err(why) => {
                    // What follows a line that cannot be read is no command.
                    let _ = self.refuse(format!("{name}:{number}: {why}"), "A line is one command");
                    return Outcome::Failed;
                }
            };
            match self.step(text.trim_end_matches(['\n', '\r']), place) {
                Outcome::Done => {}
                end => return end,
            }
        }
        Outcome::Done
    }

    fn script(&mut self, commands: &[String], name: &str) -> Outcome {
        for (at, text) in commands.iter().enumerate() {
            let place = Place {
                of: name,
                number: at + 1,
            };
            match self.step(text, place) {
                Outcome::Done => {}
                end => return end,
            }
        }
        Outcome::Done
    }

    /// One command of a script. `Done`: the next one may follow.
    fn step(&mut self, text: &str, place: Place<'_>) -> Outcome {
        let outcome = self.execute(text);
        // What was said is nobody's result.
        drop(say::kept());
        let Place { of, number } = place;
        match outcome {
            Outcome::Done => {
                self.code = 0;
                Outcome::Done
            }
            Outcome::Quit => Outcome::Quit,
            Outcome::Answer(code) => {
                self.code = code;
                Outcome::Done
            }
            Outcome::Code(code) => {
                self.code = code;
                if code == 0 || self.keep_going {
                    return Outcome::Done;
                }
                say::note(&format!("{of}:{number}: the exit code is {code}"));
                Outcome::Code(code)
            }
            Outcome::Failed => {
                self.code = crate::FAILED;
                say::error(&format!(
                    "{of}:{number}: this command failed: {}",
                    shown(text.trim())
                ));
                self.failed = true;
                if self.keep_going {
                    Outcome::Done
                } else {
                    Outcome::Failed
                }
            }
        }
    }
}
