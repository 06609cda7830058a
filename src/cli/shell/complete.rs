//! Completion: commands, keys, values, files, hypervisors, saved VMs.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use vsc::scenario::keys::{self, KEYS, Kind};
use vsc::scenario::presets::{FEATURES, PRESETS};

use super::hypervisor::MACHINES;
use super::settings::{COMMANDS, OWN, canonical, key_at};
use super::{Session, commands};

/// What the line editor asks.
pub(super) struct Guide {
    pub(super) session: Rc<RefCell<Session>>,
    files: FilenameCompleter,
}

impl Guide {
    pub(super) fn new(session: Rc<RefCell<Session>>) -> Self {
        let files = FilenameCompleter::new();
        Self { session, files }
    }
}

impl Hinter for Guide {
    type Hint = String;
}
impl Highlighter for Guide {}
impl Validator for Guide {}
impl Helper for Guide {}

/// What may stand at a place of a line.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// One of these.
    Words(Vec<String>),
    /// A file.
    File,
}

impl Completer for Guide {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..pos).unwrap_or_default();
        let blank = before.rmatch_indices(char::is_whitespace).next();
        let start = blank.map_or(0, |(at, blank)| at + blank.len());
        let word = before.get(start..).unwrap_or_default();
        let wanted = match self.session.try_borrow() {
            Ok(session) => session.wanted(before.get(..start).unwrap_or_default(), word),
            Err(_) => Wanted::Words(Vec::new()),
        };
        match wanted {
            Wanted::File => self.files.complete_path(line, pos),
            Wanted::Words(words) => {
                let pairs = words.into_iter().filter(|w| w.starts_with(word));
                let pairs = pairs.map(|w| Pair {
                    replacement: match self.ends_word(before, start, &w) {
                        true => format!("{w} "),
                        false => w.clone(),
                    },
                    display: w,
                });
                Ok((start, pairs.collect()))
            }
        }
    }
}

impl Guide {
    /// Whether more words follow this one, so that a blank does.
    fn ends_word(&self, before: &str, start: usize, word: &str) -> bool {
        let front = before.get(..start).unwrap_or_default().trim();
        match front {
            "" => commands::TABLE
                .iter()
                .any(|c| c.name == word && c.takes_words()),
            "set" => !word.ends_with('.'),
            _ => false,
        }
    }
}

fn owned<'a>(words: impl IntoIterator<Item = &'a str>) -> Wanted {
    Wanted::Words(words.into_iter().map(str::to_owned).collect())
}

impl Session {
    /// What may follow `before` where `word` is being typed.
    fn wanted(&self, before: &str, word: &str) -> Wanted {
        if before.trim_start().starts_with('!') {
            return Wanted::File;
        }
        let mut words = before.split_whitespace();
        let Some(command) = words.next() else {
            return owned(commands::names());
        };
        let first = words.next();
        match (command, first) {
            ("set", None) => Wanted::Words(key_paths(word)),
            ("set", Some(key)) => self.value_of(key),
            ("explain", None) => Wanted::Words(key_paths(word)),
            ("unset", None) => owned(self.settings.0.iter().map(|s| s.label())),
            ("help" | "?", None) => owned(commands::names()),
            ("start" | "status" | "stop" | "delete", _) => Wanted::Words(self.saved_names()),
            ("plan" | "xml" | "check" | "run" | "save", None)
                if !word.contains(['/', '.', '~']) =>
            {
                owned(PRESETS.iter().map(|p| p.name))
            }
            ("run" | "shell" | "source" | "plan" | "xml" | "check" | "save", _) => Wanted::File,
            ("bootdev", _) | (_, None) => self.value_of(command),
            _ => owned([]),
        }
    }

    /// What a key, or what a command sets, can be.
    fn value_of(&self, word: &str) -> Wanted {
        match word {
            "mode" => return owned(["guest", "host", "both"]),
            "overwrite" | "force_sev" | "encryption" => return owned(["on", "off"]),
            _ if OWN.contains(&word) => return Wanted::File,
            _ => {}
        }
        let of_command = COMMANDS.iter().find(|(command, _)| *command == word);
        let id = match of_command {
            Some((_, key)) => Some((*key).to_owned()),
            None => canonical(word, ""),
        };
        match id.as_deref() {
            Some("preset") => return owned(PRESETS.iter().map(|p| p.name)),
            Some("feature") => return owned(FEATURES.iter().map(|p| p.name)),
            Some("machine") => {
                let offered = self.offered("machine").map(Wanted::Words);
                return offered.unwrap_or_else(|| owned(MACHINES));
            }
            Some("nets.0.source") => {
                return Wanted::Words(self.offered("network").unwrap_or_default());
            }
            Some("on") => return Wanted::Words(self.host_names()),
            _ => {}
        }
        let Some(key) = id.as_deref().and_then(key_at) else {
            return owned([]);
        };
        match &key.kind {
            Kind::Bool => owned(["true", "false"]),
            Kind::Word(words) | Kind::Set(words) => {
                owned(words.iter().filter(|w| w.refused.is_none()).map(|w| w.name))
            }
            Kind::Path | Kind::Paths => Wanted::File,
            _ if key.default.is_empty() => owned([]),
            _ => owned([key.default]),
        }
    }

    fn saved_names(&self) -> Vec<String> {
        let entries = self.store.entries(&self.common);
        entries.into_iter().flatten().map(|e| e.name).collect()
    }
}

/// The keys that can stand where `typed` begins; keys with others below them end in a dot.
fn key_paths(typed: &str) -> Vec<String> {
    let (front, _) = typed.rsplit_once('.').unwrap_or(("", ""));
    let mut keys = KEYS;
    for word in front
        .split('.')
        .filter(|w| !w.is_empty() && w.parse::<u32>().is_err())
    {
        match keys::find(keys, word).and_then(|key| keys::below(&key.kind)) {
            Some(below) => keys = below,
            None => return Vec::new(),
        }
    }
    let prefix = if front.is_empty() {
        String::new()
    } else {
        format!("{front}.")
    };
    let path = |key: &keys::Key| {
        let dot = if keys::below(&key.kind).is_some() {
            "."
        } else {
            ""
        };
        format!("{prefix}{}{dot}", key.name)
    };
    keys.iter()
        .filter(|key| !matches!(key.kind, Kind::Alias(_)))
        .map(path)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|[a-z.]){0,40}") {
            key_paths(&text);
            canonical(&text, &text).as_deref().and_then(key_at);
            super::super::line::commands(&text);
            let _ = super::super::line::words(&text);
        }
    }

    #[test]
    fn keys_are_completed_level_by_level() {
        assert!(key_paths("").contains(&"memory.".to_owned()));
        assert!(
            key_paths("mem").contains(&"machine".to_owned()),
            "the editor filters"
        );
        assert!(key_paths("memory.s").contains(&"memory.size".to_owned()));
        assert!(key_paths("disks.1.").contains(&"disks.1.cache".to_owned()));
        assert!(key_paths("cpu.topology.").contains(&"cpu.topology.cores".to_owned()));
        assert_eq!(key_paths("name.x"), [""; 0]);
        assert_eq!(key_paths("nonsense.x"), [""; 0]);
    }
}
