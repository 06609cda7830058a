//! What the monitor of this build cannot do. What the scenario itself asks for is an error; what a preset or the
//! settings recommend is left out, and said.

#![forbid(unsafe_code)]

use crate::diag::{Diagnostic, Span, quoted};
use crate::scenario::Parsed;
use crate::scenario::keys::{Kind, Word};
use crate::scenario::tree::{self, Body, Entry, Leaf};

use super::Problems;

/// Looks at everything that was written. The keys that are left out come back.
pub(super) fn gate(parsed: &Parsed, problems: &mut Problems) -> Vec<String> {
    let mut gate = Gate {
        parsed,
        problems,
        left_out: Vec::new(),
        first: Span::NONE,
    };
    gate.map(&parsed.tree, "");
    let Gate {
        left_out, first, ..
    } = gate;
    if !left_out.is_empty() {
        let d = Diagnostic::warning(
            "W-LEFT-OUT",
            first,
            format!(
                "The monitor of this build leaves out {}",
                left_out.join(", ")
            ),
        );
        problems.push(
            d.why("It has no such devices yet, and nobody but a preset asked for them")
                .help("--export-xml has them; --on HOST runs that with libvirt"),
        );
    }
    left_out
}

struct Gate<'a> {
    parsed: &'a Parsed,
    problems: &'a mut Problems,
    left_out: Vec<String>,
    first: Span,
}

impl Gate<'_> {
    fn map(&mut self, entry: &Entry, path: &str) {
        let Body::Map(entries) = &entry.body else {
            return;
        };
        for entry in entries {
            let here = match path {
                "" => entry.key.name.to_owned(),
                above => format!("{above}.{}", entry.key.name),
            };
            // Encryption is no device that can be left out: without it the machine is another.
            if here == "security" && security(entry) {
                let text = "Memory encryption is not in this build's monitor yet, and without it this machine would not be what it is for";
                let span = entry.get("type").map_or(entry.span, |t| t.span);
                let d = Diagnostic::error("E-LATER", span, text);
                self.problems
                    .push(d.help("--export-xml has it, for virsh; `security: none` gives it up"));
                continue;
            }
            match &entry.body {
                Body::Map(_) if switched_off(entry) => {}
                Body::Map(_) => self.map(entry, &here),
                Body::List(members) => {
                    for (index, member) in members.iter().enumerate() {
                        if here == "disks"
                            && member.get("path").is_none()
                            && self.parsed.is_written("storage")
                        {
                            // The disk to boot from, which firmware would have to find.
                            self.leave_out(member, "disks");
                        } else if !switched_off(member) {
                            self.list_member(member, &here, index);
                        }
                    }
                }
                Body::Leaf(leaf) => self.leaf(entry, leaf, &here),
                Body::Member(..) | Body::Wrong => {}
            }
        }
    }

    fn list_member(&mut self, member: &Entry, list: &str, index: usize) {
        let before = (self.problems.len(), self.left_out.len());
        self.map(member, &format!("{list}[{index}]"));
        // A member without a key of its own, such as `nets: [{}]`, is one all the same.
        let Kind::List { keys, .. } = member.key.kind else {
            return;
        };
        let alien = keys.iter().all(|k| k.elsewhere.is_some());
        if alien
            && before == (self.problems.len(), self.left_out.len())
            && let Some(why) = keys.first().and_then(|k| k.elsewhere)
        {
            self.tell("E-LATER", member, list, why);
        }
    }

    fn leaf(&mut self, entry: &Entry, leaf: &Leaf, path: &str) {
        let text = tree::text(entry);
        if let Some(why) = entry.key.elsewhere
            && !entry.key.as_is.iter().any(|v| *v == "*" || *v == text)
        {
            self.tell("E-LATER", entry, path, why);
            return;
        }
        let words: &[Word] = match &entry.key.kind {
            Kind::Word(words) | Kind::Set(words) => words,
            _ => return,
        };
        let chosen: Vec<&str> = match leaf {
            Leaf::Word(word) => vec![word],
            Leaf::Words(words) => words.iter().map(|w| w.value.as_str()).collect(),
            _ => return,
        };
        for word in words.iter().filter(|w| chosen.contains(&w.name)) {
            if let Some(why) = word.elsewhere {
                // What `storage` says has been put into each disk; leases of sanlock can be lost.
                let leases = path == "events.on_lockfailure"
                    && self
                        .parsed
                        .scenario
                        .locking
                        .driver
                        .is_some_and(|d| d.value == "sanlock");
                if !path.starts_with("storage.") && !leases {
                    self.refuse_word(entry, path, word.name, why);
                }
            }
        }
    }

    fn refuse_word(&mut self, entry: &Entry, path: &str, word: &str, why: &str) {
        if self.parsed.sources.is_advice(entry.span) {
            self.leave_out(entry, path);
            return;
        }
        let d = Diagnostic::error(
            "E-UNSUPPORTED",
            entry.span,
            format!(
                "`{path}` cannot be {} in this build's monitor",
                quoted(word)
            ),
        );
        self.problems.push(d.why(capital(why)).help(format!(
            "Give {}; --export-xml has it as it is, and --on HOST runs that with libvirt",
            entry.key.kind.here()
        )));
    }

    fn tell(&mut self, code: &'static str, entry: &Entry, path: &str, why: &str) {
        if self.parsed.sources.is_advice(entry.span) {
            self.leave_out(entry, path);
            return;
        }
        let again = |d: &Diagnostic| d.code == code && d.message == why;
        if !self.problems.iter().any(again) {
            let d = Diagnostic::error(code, entry.key_span, why);
            self.problems
                .push(d.help("--export-xml has it; --on HOST runs that with libvirt"));
        }
    }

    fn leave_out(&mut self, entry: &Entry, path: &str) {
        if self.first.is_none() {
            self.first = entry.span;
        }
        // Of a device its name is enough.
        let device = path.split(['.', '[']).next().unwrap_or(path);
        let whole = !matches!(
            device,
            "cpu" | "memory" | "timers" | "features" | "events" | "disks" | "storage" | "clock"
        );
        let shown = if whole { device } else { path };
        if !self.left_out.iter().any(|s| s == shown) {
            self.left_out.push(shown.to_owned());
        }
    }
}

/// Whether a group's own word says that there is nothing: `watchdog: none`, `rng: false`.
fn switched_off(entry: &Entry) -> bool {
    let (Kind::Map {
        scalar: Some(scalar),
        ..
    }
    | Kind::List { scalar, .. }) = entry.key.kind
    else {
        return false;
    };
    let Some(Entry {
        body: Body::Leaf(leaf),
        ..
    }) = entry.get(scalar)
    else {
        return false;
    };
    matches!(leaf, Leaf::Word("none") | Leaf::Bool(false))
        && !matches!(entry.key.name, "disks" | "firmware")
}

/// Whether the machine's memory is to be encrypted, which has its own message here.
pub(super) fn is_encrypted(parsed: &Parsed) -> bool {
    parsed.tree.get("security").is_some_and(security)
}

fn security(entry: &Entry) -> bool {
    !matches!(
        entry.get("type").map(|t| &t.body),
        None | Some(Body::Leaf(Leaf::Word("none")))
    )
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}
