//! Settings files of virt-scenario, `virtscenario.yaml`, as it reads them: a map of sections, each a list of maps of
//! one key, in YAML 1.1. Each value becomes one of a key of ours and keeps its place, so that whatever is said about it
//! later points into the old file.
//!
//! What virt-scenario takes, this takes; what it ignores, drops or passes on unread is reported.

#![forbid(unsafe_code)]

mod import;
mod places;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decode::Decoder;
use super::suggest::nearest;
use super::tree::{self, Body, Entry};
use super::value::{self, Base};
use super::yaml::{Node, Value};
use crate::diag::{Diagnostic, Severity, Span, Spanned, quoted};
use crate::facts::Root;

pub(crate) use import::named;
pub use import::{Kind, Named, import, kind};
pub(crate) use places::{Place, Want, check};
use table::{OldKey, SECTIONS, Section, To};

/// Names of the files and of the directory of machines that virt-scenario looks for in [`search_path`].
pub const SETTINGS: &str = "virtscenario.yaml";
/// The list of hypervisors.
pub const HOSTS: &str = "virthosts.yaml";
/// The directory of saved machines.
pub const STORE: &str = "vmconfig";

/// Where virt-scenario looks for its files, in its order: here, at home, on this host.
pub fn search_path(home: Option<&Path>, root: &Root) -> Vec<PathBuf> {
    let own = home.map(|home| root.at(home.join(".local/virt-scenario")));
    [PathBuf::from(".")]
        .into_iter()
        .chain(own)
        .chain(["/etc/virt-scenario", "/etc"].map(|dir| root.at(dir)))
        .collect()
}

/// The settings of an old file.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What they set, to be merged over presets.
    pub(crate) tree: Entry,
    /// What must be there on the host for them to work: see [`check`].
    pub(crate) places: Vec<Place>,
}

/// Reads a settings file that is parsed already. `None` when nothing in it can be used; that has been reported.
pub(crate) fn settings(
    node: &Node,
    base: &Base,
    problems: &mut Vec<Diagnostic>,
) -> Option<Settings> {
    let mut reader = Old {
        base,
        problems,
        found: Vec::new(),
        places: Vec::new(),
    };
    reader.file(node)?;
    Some(reader.finish(node.span))
}

/// One value of the old file with the key it is for.
struct Found {
    /// Path in our table.
    to: &'static [&'static str],
    /// The old key.
    key: &'static OldKey,
    key_span: Span,
    node: Node,
}

struct Old<'a> {
    base: &'a Base,
    problems: &'a mut Vec<Diagnostic>,
    found: Vec<Found>,
    places: Vec<Place>,
}

/// A section's values, the last of each key: its key, where it stands, its value.
type Values = Vec<(&'static OldKey, Span, Node)>;

impl Old<'_> {
    fn file(&mut self, node: &Node) -> Option<()> {
        let pairs = match &node.value {
            Value::Map(pairs) => pairs,
            Value::Null => {
                let d = Diagnostic::warning(
                    "W-OLD-EMPTY",
                    node.span,
                    "This settings file has nothing in it",
                );
                self.problems
                    .push(d.help(format!("Its sections are {}", sections())));
                return Some(());
            }
            _ => {
                let message = format!(
                    "A settings file is a map of sections, and this is {}",
                    node.kind()
                );
                let d = Diagnostic::error("E-TYPE", node.span, message);
                self.problems
                    .push(d.help("Write `STORAGE_DATA:`, and below it `- format: qcow2`"));
                return None;
            }
        };
        for (name, value) in pairs.iter() {
            match SECTIONS.iter().find(|s| s.name == &*name.value) {
                Some(section) => {
                    let values = self.section(section, name.span, value);
                    self.take(values);
                }
                None => self.unknown_section(name),
            }
        }
        Some(())
    }

    fn unknown_section(&mut self, name: &Spanned<Arc<str>>) {
        let message = format!("{} is no section of a settings file", quoted(&name.value));
        let mut d = Diagnostic::warning("W-OLD-UNKNOWN", name.span, message)
            .why("virt-scenario passes over it too: nothing below it is used");
        let names = SECTIONS.iter().map(|s| s.name);
        if let Some(near) = nearest(&name.value, names) {
            d = d.label(format!("did you mean `{near}`?"));
        }
        let home = SECTIONS
            .iter()
            .find(|s| s.keys.iter().any(|k| k.name == &*name.value));
        self.problems.push(d.help(match home {
            Some(section) => format!(
                "It is a key of `{}`: write `- {}: …` below `{}:`",
                section.name, name.value, section.name
            ),
            None => format!("The sections are {}", sections()),
        }));
    }

    /// The values of a section: of a list of maps, and of a map too.
    fn section(&mut self, section: &'static Section, at: Span, node: &Node) -> Values {
        let mut values = Values::new();
        let example = || format!("Write `- {}`", section.example);
        match &node.value {
            Value::Seq(items) if !items.is_empty() => {
                for item in items.iter() {
                    self.item(section, item, &mut values);
                }
            }
            Value::Map(pairs) if !pairs.is_empty() => {
                let message = format!("The section `{}` is a map", section.name);
                let d = Diagnostic::warning("W-OLD-FORM", at, message)
                    .why("virt-scenario needs a list of maps of one key; here both are read");
                self.problems.push(d.help(example()));
                self.item(section, node, &mut values);
            }
            Value::Null | Value::Seq(_) | Value::Map(_) => {
                let message = format!("The section `{}` is empty", section.name);
                let d = Diagnostic::warning("W-OLD-EMPTY", at, message);
                self.problems.push(d.help(example()));
            }
            Value::Scalar { .. } => {
                let message = format!(
                    "The section `{}` is a list of keys with values, not a single value",
                    section.name
                );
                let d = Diagnostic::error("E-TYPE", node.span, message);
                self.problems.push(d.help(example()));
            }
        }
        values
    }

    fn item(&mut self, section: &'static Section, item: &Node, values: &mut Values) {
        let Value::Map(pairs) = &item.value else {
            let message = format!(
                "A member of the section `{}` is a key with a value, not {}",
                section.name,
                item.kind()
            );
            let d = Diagnostic::error("E-TYPE", item.span, message);
            self.problems
                .push(d.help(format!("Write `- {}`", section.example)));
            return;
        };
        for (name, node) in pairs.iter() {
            let Some(key) = section.keys.iter().find(|k| k.name == &*name.value) else {
                self.unknown_key(section, name);
                continue;
            };
            match values
                .iter_mut()
                .find(|(other, _, _)| other.name == key.name)
            {
                None => values.push((key, name.span, node.clone())),
                Some(earlier) => {
                    let message = format!("`{}` is given twice", key.name);
                    let d = Diagnostic::warning("W-OLD-TWICE", name.span, message).label("used");
                    let d = d.also(earlier.1, "not used");
                    self.problems
                        .push(d.why("the last one counts, as in virt-scenario"));
                    *earlier = (key, name.span, node.clone());
                }
            }
        }
    }

    fn unknown_key(&mut self, section: &'static Section, name: &Spanned<Arc<str>>) {
        let message = format!(
            "The section `{}` has no key {}",
            section.name,
            quoted(&name.value)
        );
        let mut d = Diagnostic::warning("W-OLD-UNKNOWN", name.span, message)
            .why("virt-scenario passes over it too: its value is not used");
        let names = section.keys.iter().map(|k| k.name);
        if let Some(near) = nearest(&name.value, names.clone()) {
            d = d.label(format!("did you mean `{near}`?"));
        }
        let home = SECTIONS
            .iter()
            .find(|s| s.keys.iter().any(|k| k.name == &*name.value));
        self.problems.push(d.help(match home {
            Some(other) => format!("It belongs below `{}:`", other.name),
            None => format!("Its keys are {}", names.collect::<Vec<_>>().join(", ")),
        }));
    }

    /// Turns the values of one section into ours.
    fn take(&mut self, values: Values) {
        let unit = values.iter().find(|(k, _, _)| matches!(k.to, To::Unit));
        let unit = unit.map(|(_, _, node)| node.clone());
        let counted = values
            .iter()
            .any(|(k, _, _)| matches!(k.to, To::Capacity(_)));
        for (key, key_span, mut node) in values {
            if let Value::Scalar { text, .. } = &mut node.value {
                // YAML 1.1 has three spellings of each boolean; some files have others.
                let lower = text.to_ascii_lowercase();
                if value::boolean(&lower).is_some() {
                    *text = lower.into();
                }
            }
            let to = match key.to {
                To::Same(path) => path,
                To::Place(path, want) => {
                    self.place(key, want, &node);
                    path
                }
                To::Kib(path) => {
                    // `1024` and `1024k` are both so many KiB.
                    rewrite(&mut node, |text| {
                        text.bytes()
                            .all(|b| b.is_ascii_digit())
                            .then(|| format!("{text}K"))
                    });
                    path
                }
                To::Capacity(path) => {
                    if !self.capacity(unit.as_ref(), &mut node) {
                        continue;
                    }
                    path
                }
                To::Unit => {
                    if !counted {
                        let d = Diagnostic::warning(
                            "W-UNUSED",
                            key_span,
                            "`unit` without `capacity` says nothing",
                        );
                        self.problems.push(d.help("Add `- capacity: 20`"));
                    }
                    continue;
                }
                To::Only(word) => {
                    self.only(key, word, &node);
                    continue;
                }
                To::Unused(why) => {
                    let message = format!("`{}` is not used", key.name);
                    self.problems
                        .push(Diagnostic::warning("W-UNUSED", key_span, message).why(why));
                    continue;
                }
            };
            self.found.push(Found {
                to,
                key,
                key_span,
                node,
            });
        }
    }

    /// A value that must be this word.
    fn only(&mut self, key: &OldKey, word: &str, node: &Node) {
        let text = match &node.value {
            Value::Scalar { text, .. } => text,
            _ => "",
        };
        if text != word {
            let what = if text.is_empty() {
                node.kind().to_owned()
            } else {
                quoted(text)
            };
            let message = format!("{what} is no value for `{}`", key.name);
            let d = Diagnostic::error("E-VALUE", node.span, message);
            self.problems.push(d.help(format!(
                "Allowed: {word}. Leave the key out, or give a disk of a scenario another `path`"
            )));
        }
    }

    fn place(&mut self, key: &'static OldKey, want: Want, node: &Node) {
        if let Value::Scalar { text, .. } = &node.value
            && let Ok(path) = value::path(text, self.base)
        {
            let path = Spanned::new(path, node.span);
            self.places.push(Place {
                key: key.name,
                path,
                want,
            });
        }
    }

    /// A number and its unit as one amount; without a unit it is in GiB, as in virt-scenario's own settings. Whether
    /// there is an amount.
    fn capacity(&mut self, unit: Option<&Node>, node: &mut Node) -> bool {
        let Value::Scalar { text, .. } = &node.value else {
            return true;
        };
        let allowed = format!("Allowed: {}", UNITS.join(", "));
        let suffix = match unit.map(|u| (&u.value, u.span)) {
            None => "G",
            Some((Value::Scalar { text, .. }, span)) => {
                let known = UNITS.iter().find(|u| u.eq_ignore_ascii_case(text));
                let Some(known) = known else {
                    let message = format!("{} is no value for `unit`", quoted(text));
                    let d = Diagnostic::error("E-VALUE", span, message);
                    self.problems.push(d.help(allowed));
                    return false;
                };
                known
            }
            Some((_, span)) => {
                let d = Diagnostic::error("E-TYPE", span, "`unit` needs a single value");
                self.problems.push(d.help(allowed));
                return false;
            }
        };
        if value::count(text) == Some(0) {
            let d = Diagnostic::error("E-RANGE", node.span, "A `capacity` of nothing at all");
            self.problems.push(d.help("For example `- capacity: 20`"));
            return false;
        }
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            rewrite(node, |text| Some(format!("{text}{suffix}")));
        } else if let (Some(unit), Ok(_)) = (unit, value::size(text)) {
            let message = format!("`capacity` has a unit of its own: {}", quoted(text));
            let d = Diagnostic::warning("W-OLD-FORM", node.span, message).label("used");
            let d = d.also(unit.span, "not used");
            self.problems
                .push(d.help("Write the number in `capacity`, and its unit in `unit`"));
        }
        true
    }

    /// Everything that was found, by our table.
    fn finish(mut self, span: Span) -> Settings {
        let mut tree = tree::empty();
        tree.span = span;
        let found = std::mem::take(&mut self.found);
        let mut share: Option<Entry> = None;
        for one in &found {
            let path: Vec<Spanned<&str>> = one
                .to
                .iter()
                .map(|word| Spanned::new(*word, one.key_span))
                .collect();
            let before = self.problems.len();
            let mut decoder = Decoder {
                base: self.base,
                problems: self.problems,
            };
            let entry = decoder.flag(&path, &one.node);
            for problem in self.problems.iter_mut().skip(before) {
                explain(problem, one);
            }
            let Some(entry) = entry else { continue };
            match (&mut share, member(&entry)) {
                (Some(share), true) => join(share, entry),
                (None, true) => share = Some(entry),
                (_, false) => tree::merge(&mut tree, entry, self.problems),
            }
        }
        // The keys of a share change the first one of a preset, and do not take its place.
        if let (
            Some(Entry {
                body: Body::Map(share),
                ..
            }),
            Body::Map(all),
        ) = (share, &mut tree.body)
        {
            all.extend(share);
        }
        Settings {
            tree,
            places: self.places,
        }
    }
}

/// Units that `qemu-img` and [`value::size`] both know.
const UNITS: [&str; 4] = ["K", "M", "G", "T"];

fn rewrite(node: &mut Node, change: impl FnOnce(&str) -> Option<String>) {
    if let Value::Scalar { text, plain } = &mut node.value
        && let Some(new) = change(text)
    {
        (*text, *plain) = (new.into(), false);
    }
}

/// Whether a tree sets a member of a list.
fn member(root: &Entry) -> bool {
    matches!(&root.body, Body::Map(entries) if entries.iter().any(|e| matches!(e.body, Body::Member(..))))
}

/// Puts the keys of one change to a member of a list into another.
fn join(into: &mut Entry, from: Entry) {
    match (&mut into.body, from.body) {
        (Body::Map(into), Body::Map(from)) => {
            for entry in from {
                match into.iter_mut().find(|e| e.key.name == entry.key.name) {
                    Some(present) => join(present, entry),
                    None => into.push(entry),
                }
            }
        }
        (Body::Member(_, into), Body::Member(_, from)) => join(into, *from),
        (into, from) => *into = from,
    }
}

/// Says in a message about our key which key of the old file it is about.
fn explain(problem: &mut Diagnostic, found: &Found) {
    if problem.severity != Severity::Error {
        return;
    }
    let ours = found.to.last().copied().unwrap_or_default();
    let example = format!("For example `{ours}: ");
    if let Some(value) = problem.help.as_ref().and_then(|h| h.strip_prefix(&example)) {
        problem.help = Some(format!("For example `- {}: {value}", found.key.name));
    }
    if problem.why.is_none() {
        let to: Vec<&str> = found.to.iter().copied().filter(|w| *w != "0").collect();
        problem.why = Some(format!(
            "`{}` of a settings file is `{}` of a scenario",
            found.key.name,
            to.join(".")
        ));
    }
}

fn sections() -> String {
    SECTIONS
        .iter()
        .map(|s| s.name)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
