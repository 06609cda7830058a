//! Trees of typed values, one for each text, and how a later one goes on top of an earlier one.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use vsc_devices::stream::Endpoint;

use super::keys::{self, KEYS, Key, Kind};
use super::value;
use crate::diag::{Diagnostic, Span, Spanned};

/// A typed value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Leaf {
    Bool(bool),
    Count(u64),
    Bytes(u64),
    Time(Option<Duration>),
    Text(String),
    Path(PathBuf),
    Paths(Vec<Spanned<PathBuf>>),
    Endpoint(Endpoint),
    Word(&'static str),
    Words(Vec<Spanned<String>>),
    Env(Vec<(Spanned<String>, String)>),
}

/// A value, a map or a list, and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: &'static Key,
    pub(crate) key_span: Span,
    pub(crate) span: Span,
    pub(crate) body: Body,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Leaf(Leaf),
    Map(Vec<Entry>),
    List(Vec<Entry>),
    /// A change to one member of a list, from a flag.
    Member(usize, Box<Entry>),
    /// A value that was wrong; that has been reported.
    Wrong,
}

impl Entry {
    /// The member of a map with this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        match &self.body {
            Body::Map(entries) => entries.iter().find(|e| e.key.name == name),
            _ => None,
        }
    }

    /// Whether one of the values directly below was written at this place.
    pub(crate) fn holds(&self, span: Span) -> bool {
        matches!(&self.body, Body::Map(entries) if entries.iter().any(|e| e.span == span))
    }

    /// Whether a value directly below was wrong.
    pub(crate) fn broken(&self) -> bool {
        matches!(&self.body, Body::Map(entries) if entries.iter().any(|e| matches!(e.body, Body::Wrong)))
    }
}

/// The key of the whole tree.
pub(crate) static ROOT: Key = Key {
    name: "scenario",
    aliases: &[],
    kind: Kind::Map {
        keys: KEYS,
        scalar: None,
    },
    default: "",
    meaning: "The scenario.",
    reason: "",
    example: "memory: 256M",
    register: "",
    xml: "domain",
    elsewhere: None,
    as_is: &[],
};

/// An empty tree.
pub(crate) fn empty() -> Entry {
    Entry {
        key: &ROOT,
        key_span: Span::NONE,
        span: Span::NONE,
        body: Body::Map(Vec::new()),
    }
}

/// Puts `over` on top of `under`: maps join key by key, everything else is replaced.
pub(crate) fn merge(under: &mut Entry, over: Entry, problems: &mut Vec<Diagnostic>) {
    if matches!(over.body, Body::Member(..)) && !matches!(under.body, Body::List(_)) {
        under.body = Body::List(Vec::new());
    }
    match (&mut under.body, over.body) {
        (Body::Map(into), Body::Map(from)) => {
            for entry in from {
                match into.iter_mut().find(|e| e.key.name == entry.key.name) {
                    Some(present) => merge(present, entry, problems),
                    None => place(into, entry, problems),
                }
            }
        }
        (Body::List(members), Body::Member(index, member)) => match members.len() {
            length if index < length => {
                if let Some(present) = members.get_mut(index) {
                    merge(present, *member, problems);
                }
            }
            length if index == length => members.push(*member),
            length => {
                let message = format!("There is no member {index} in `{}`", over.key.name);
                let d = Diagnostic::error("E-INDEX", over.key_span, message);
                problems.push(d.help(format!("The next free index is {length}")));
            }
        },
        (Body::Leaf(Leaf::Env(into)), Body::Leaf(Leaf::Env(from)))
            if matches!(under.key.kind, Kind::Pairs(_)) =>
        {
            for (name, value) in from {
                match into.iter_mut().find(|(other, _)| other.value == name.value) {
                    Some(present) => *present = (name, value),
                    None => into.push((name, value)),
                }
            }
        }
        (_, body) => {
            *under = Entry {
                key: over.key,
                key_span: over.key_span,
                span: over.span,
                body,
            }
        }
    }
}

/// Adds an entry that is not there yet; a member of a list that is not there makes the list.
fn place(into: &mut Vec<Entry>, mut entry: Entry, problems: &mut Vec<Diagnostic>) {
    if let Body::Member(..) = entry.body {
        let mut list = Entry {
            body: Body::List(Vec::new()),
            ..entry.clone()
        };
        merge(&mut list, entry, problems);
        into.push(list);
        return;
    }
    if let Body::Map(inner) = &mut entry.body {
        for nested in std::mem::take(inner) {
            place(inner, nested, problems);
        }
    }
    into.push(entry);
}

/// Walks over every value, and over the defaults of keys that nobody wrote, in the order of the table.
pub(crate) fn settings(entry: &Entry, path: String, out: &mut dyn FnMut(String, String, Span)) {
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match &entry.body {
        Body::Wrong => {}
        Body::Leaf(leaf) => out(path, leaf_text(leaf), entry.span),
        Body::List(members) => {
            for (index, member) in members.iter().enumerate() {
                settings(member, format!("{path}[{index}]"), out);
            }
        }
        Body::Member(index, member) => settings(member, format!("{path}[{index}]"), out),
        Body::Map(entries) => {
            for key in keys::below(&entry.key.kind).unwrap_or_default() {
                match (entries.iter().find(|e| e.key.name == key.name), &key.kind) {
                    (Some(entry), _) => settings(entry, join(key.name), out),
                    (None, Kind::Map { .. }) => {
                        let body = Body::Map(Vec::new());
                        let nothing = Entry {
                            key,
                            key_span: Span::NONE,
                            span: Span::NONE,
                            body,
                        };
                        settings(&nothing, join(key.name), out);
                    }
                    // A device that nobody asked for has no settings.
                    (None, _) if !key.default.is_empty() && key.elsewhere.is_none() => {
                        out(join(key.name), key.default.to_owned(), Span::NONE)
                    }
                    (None, _) => {}
                }
            }
        }
    }
}

/// A value as text: a leaf as it could be written, a list or a map as its members.
pub(crate) fn text(entry: &Entry) -> String {
    let mut parts = Vec::new();
    settings_written(entry, String::new(), &mut |key, value, _| {
        let key = key.trim_start_matches("[0].");
        parts.push(if key.is_empty() {
            value
        } else {
            format!("{key}: {value}")
        });
    });
    parts.join(", ")
}

/// Walks over every value that was written.
pub(crate) fn settings_written(
    entry: &Entry,
    path: String,
    out: &mut dyn FnMut(String, String, Span),
) {
    let join = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    match &entry.body {
        Body::Wrong => {}
        Body::Leaf(leaf) => out(path, leaf_text(leaf), entry.span),
        Body::List(members) => {
            for (index, member) in members.iter().enumerate() {
                settings_written(member, format!("{path}[{index}]"), out);
            }
        }
        Body::Member(index, member) => settings_written(member, format!("{path}[{index}]"), out),
        Body::Map(entries) => {
            for entry in entries {
                settings_written(entry, join(entry.key.name), out);
            }
        }
    }
}

fn leaf_text(leaf: &Leaf) -> String {
    let spelled = |words: &mut dyn Iterator<Item = String>| {
        format!("[{}]", words.collect::<Vec<_>>().join(", "))
    };
    match leaf {
        Leaf::Bool(b) => b.to_string(),
        Leaf::Count(n) => n.to_string(),
        Leaf::Bytes(n) => value::size_text(*n),
        Leaf::Time(t) => value::time_text(*t),
        Leaf::Text(t) => t.clone(),
        Leaf::Path(p) => p.display().to_string(),
        Leaf::Paths(p) => spelled(&mut p.iter().map(|p| p.value.display().to_string())),
        Leaf::Endpoint(e) => value::endpoint_text(e),
        Leaf::Word(w) => (*w).to_owned(),
        Leaf::Words(w) => spelled(&mut w.iter().map(|w| format!("{:?}", w.value))),
        Leaf::Env(e) => spelled(
            &mut e
                .iter()
                .map(|(name, value)| format!("{:?}", format!("{}={value}", name.value))),
        ),
    }
}
