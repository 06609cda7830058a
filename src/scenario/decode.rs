//! Decoding by the key table: [`Node`]s to typed values. Every text (the file, each flag) becomes one tree in canonical
//! form: aliases resolved, short forms spelled out, values typed.

#![forbid(unsafe_code)]

mod lists;

use super::keys::{self, FOREIGN, KEYS, Key, Kind};
use super::suggest::nearest;
use super::tree::{Body, Entry, Leaf, empty};
use super::value::{self, Base, Fault};
use super::yaml::{Node, Value};
use crate::diag::{Diagnostic, Span, Spanned, quoted};

/// Decodes one text.
pub(crate) struct Decoder<'a> {
    pub(crate) base: &'a Base,
    pub(crate) problems: &'a mut Vec<Diagnostic>,
}

impl Decoder<'_> {
    /// The tree of a whole file.
    pub(crate) fn file(&mut self, node: &Node) -> Entry {
        let mut root = empty();
        root.span = node.span;
        match &node.value {
            Value::Null => {}
            Value::Map(_) => root.body = Body::Map(self.map(node, KEYS, &[])),
            _ => {
                let message = format!("A scenario is a map of keys, and this is {}", node.kind());
                let d = Diagnostic::error("E-TYPE", node.span, message);
                self.problems
                    .push(d.help("Write keys and values: `memory: 256M`"));
            }
        }
        root
    }

    /// The tree of one flag: `path` are the words between the dots, each with its place.
    pub(crate) fn flag(&mut self, path: &[Spanned<&str>], node: &Node) -> Option<Entry> {
        let mut root = empty();
        root.body = Body::Map(vec![self.step(path, &[], KEYS, node)?]);
        Some(root)
    }

    fn step(
        &mut self,
        path: &[Spanned<&str>],
        above: &[&'static str],
        keys: &'static [Key],
        node: &Node,
    ) -> Option<Entry> {
        let (word, rest) = path.split_first()?;
        let Some(key) = keys::find(keys, word.value) else {
            self.unknown(word.value, word.span, keys, above);
            return None;
        };
        if let Kind::Alias(target) = key.kind {
            let mut full: Vec<Spanned<&str>> = target
                .iter()
                .map(|name| Spanned::new(*name, word.span))
                .collect();
            full.extend(rest.iter().copied());
            return self.step(&full, &[], KEYS, node);
        }
        if rest.is_empty() {
            return self.entry(key, word.span, node, above);
        }
        let path: Vec<&'static str> = above.iter().copied().chain([key.name]).collect();
        let body = match (&key.kind, rest.split_first()) {
            (Kind::Map { keys, .. }, _) => Body::Map(vec![self.step(rest, &path, keys, node)?]),
            // `disk.cache` is that of the first.
            (Kind::List { keys, .. }, Some((name, _)))
                if keys::find(keys, name.value).is_some() =>
            {
                let body = Body::Map(vec![self.step(rest, &path, keys, node)?]);
                let member = Entry {
                    key,
                    key_span: name.span,
                    span: node.span,
                    body,
                };
                Body::Member(0, Box::new(member))
            }
            (Kind::List { keys, .. }, Some((index, rest))) => {
                let Some(number) = value::count(index.value).and_then(|n| usize::try_from(n).ok())
                else {
                    let message = format!(
                        "{} is a list, and {} is not an index",
                        quoted(key.name),
                        quoted(index.value)
                    );
                    let d = Diagnostic::error("E-INDEX", index.span, message);
                    self.problems
                        .push(d.help(format!("Count from 0: `{}.0.{}=…`", key.name, index.value)));
                    return None;
                };
                let member = match rest.is_empty() {
                    true => self.member(key, keys, node, &path)?,
                    false => {
                        let body = Body::Map(vec![self.step(rest, &path, keys, node)?]);
                        Entry {
                            key,
                            key_span: index.span,
                            span: node.span,
                            body,
                        }
                    }
                };
                Body::Member(number, Box::new(member))
            }
            // One of several pairs: `cpu.features.svm=disable`.
            (Kind::Pairs(words), Some((name, []))) => {
                let pair = (Spanned::new(name.value.into(), name.span), node.clone());
                let map = Node {
                    value: Value::Map(vec![pair].into()),
                    span: node.span,
                };
                Body::Leaf(self.pairs(key, *words, &map, &path)?)
            }
            _ => {
                let next = rest.first()?;
                let message = format!("{} has no keys below it", quoted(&path.join(".")));
                let d = Diagnostic::error("E-UNKNOWN-KEY", next.span, message);
                self.problems
                    .push(d.help(format!("It is {}", key.kind.expected())));
                return None;
            }
        };
        Some(Entry {
            key,
            key_span: word.span,
            span: node.span,
            body,
        })
    }

    /// The members of a map, each decoded; unknown ones are reported.
    fn map(&mut self, node: &Node, keys: &'static [Key], above: &[&'static str]) -> Vec<Entry> {
        let Value::Map(pairs) = &node.value else {
            return Vec::new();
        };
        let mut out: Vec<Entry> = Vec::new();
        for (name, node) in pairs.iter() {
            let Some(key) = keys::find(keys, &name.value) else {
                self.unknown(&name.value, name.span, keys, above);
                continue;
            };
            let entry = match key.kind {
                Kind::Alias(target) => self.step(
                    &target
                        .iter()
                        .map(|word| Spanned::new(*word, name.span))
                        .collect::<Vec<_>>(),
                    &[],
                    KEYS,
                    node,
                ),
                _ => self.entry(key, name.span, node, above),
            };
            if let Some(mut entry) = entry {
                if let Body::Member(_, member) = entry.body {
                    entry.body = Body::List(vec![*member]);
                }
                self.join(&mut out, entry);
            }
        }
        out
    }

    /// Adds an entry of the same text: maps of two spellings join, the same value twice is an error.
    fn join(&mut self, out: &mut Vec<Entry>, entry: Entry) {
        let Some(present) = out.iter_mut().find(|e| e.key.name == entry.key.name) else {
            return out.push(entry);
        };
        match (&mut present.body, entry.body) {
            (Body::Map(into), Body::Map(from)) => from.into_iter().for_each(|e| self.join(into, e)),
            (_, Body::Wrong) => {}
            _ => {
                let message = format!(
                    "{} is given twice, in two spellings",
                    quoted(entry.key.name)
                );
                let d =
                    Diagnostic::error("E-DUPLICATE-KEY", entry.key_span, message).label("again");
                self.problems.push(
                    d.also(present.key_span, "first here")
                        .help("Keep one of the two"),
                );
            }
        }
    }

    fn unknown(&mut self, word: &str, span: Span, keys: &'static [Key], above: &[&'static str]) {
        let place = if above.is_empty() {
            "A scenario".to_owned()
        } else {
            quoted(&above.join("."))
        };
        let mut d = Diagnostic::error(
            "E-UNKNOWN-KEY",
            span,
            format!("{place} has no key {}", quoted(word)),
        );
        let spellings = keys
            .iter()
            .flat_map(|k| [k.name].into_iter().chain(k.aliases.iter().copied()));
        let foreign = FOREIGN
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, advice)| *advice);
        d.help = Some(if let Some(advice) = foreign {
            format!("Instead, {advice}")
        } else if let Some(near) = nearest(word, spellings) {
            d.label = format!("did you mean `{near}`?");
            listed(keys)
        } else if let Some(paths) = elsewhere(word) {
            format!("There is {paths}: write it there")
        } else {
            listed(keys)
        });
        self.problems.push(d);
    }

    /// One key and its value. `None` when there is no such thing in this build; that has been reported then.
    fn entry(
        &mut self,
        key: &'static Key,
        key_span: Span,
        node: &Node,
        above: &[&'static str],
    ) -> Option<Entry> {
        let body = self.body(key, key_span, node, above).unwrap_or(Body::Wrong);
        Some(Entry {
            key,
            key_span,
            span: node.span,
            body,
        })
    }

    /// The value of a key. `None` when it is wrong; that has been reported then.
    fn body(
        &mut self,
        key: &'static Key,
        key_span: Span,
        node: &Node,
        above: &[&'static str],
    ) -> Option<Body> {
        let path: Vec<&'static str> = above.iter().copied().chain([key.name]).collect();
        let stream = match &key.kind {
            Kind::List { keys, scalar, .. } => keys::find(keys, scalar).map(|k| k.kind),
            kind => Some(*kind),
        };
        // `null` is a word where a stream leads.
        let null = node.span.len() > 0 && matches!(stream, Some(Kind::Endpoint));
        if matches!(node.value, Value::Null) && !null {
            let span = if node.span.len() == 0 {
                key_span
            } else {
                node.span
            };
            let d = Diagnostic::error(
                "E-TYPE",
                span,
                format!("{} has no value", quoted(&path.join("."))),
            );
            self.problems.push(d.help(format!(
                "Give {}, for example `{}: {}`",
                key.kind.expected(),
                key.name,
                key.example
            )));
            return None;
        }
        Some(match &key.kind {
            Kind::Map { keys, scalar } => match (&node.value, scalar) {
                (Value::Map(_), _) => Body::Map(self.map(node, keys, &path)),
                (Value::Scalar { .. }, Some(name)) => {
                    let key = keys::find(keys, name)?;
                    Body::Map(vec![self.entry(key, key_span, node, &path)?])
                }
                _ => return self.mistyped(key, node, &path),
            },
            Kind::List { keys, max, .. } => {
                let members = match &node.value {
                    Value::Seq(items) => items
                        .iter()
                        .filter_map(|item| self.member(key, keys, item, &path))
                        .collect(),
                    // `nets: none`, where none is not one of their words.
                    _ if scalar(node) == Some("none") && !has_none(key) => Vec::new(),
                    _ => vec![self.member(key, keys, node, &path)?],
                };
                if members.len() > *max {
                    let message = format!(
                        "{} members in `{}`, and there can be {max}",
                        members.len(),
                        path.join(".")
                    );
                    self.problems
                        .push(Diagnostic::error("E-RANGE", key_span, message));
                    return None;
                }
                Body::List(members)
            }
            _ => Body::Leaf(self.leaf(key, node, &path)?),
        })
    }

    /// One member of a list of maps.
    fn member(
        &mut self,
        key: &'static Key,
        keys: &'static [Key],
        node: &Node,
        path: &[&'static str],
    ) -> Option<Entry> {
        let Kind::List { scalar, .. } = key.kind else {
            return None;
        };
        let body = match &node.value {
            Value::Map(_) => Body::Map(self.map(node, keys, path)),
            Value::Scalar { .. } | Value::Null => {
                let inner = keys::find(keys, scalar)?;
                Body::Map(vec![self.entry(inner, node.span, node, path)?])
            }
            Value::Seq(_) => {
                let message = format!(
                    "A member of `{}` is a map or a single value, not a list",
                    path.join(".")
                );
                self.problems
                    .push(Diagnostic::error("E-TYPE", node.span, message));
                return None;
            }
        };
        Some(Entry {
            key,
            key_span: node.span,
            span: node.span,
            body,
        })
    }

    fn mistyped<T>(&mut self, key: &'static Key, node: &Node, path: &[&'static str]) -> Option<T> {
        let message = format!(
            "`{}` is {}, not {}",
            path.join("."),
            key.kind.expected(),
            node.kind()
        );
        let d = Diagnostic::error("E-TYPE", node.span, message);
        self.problems
            .push(d.help(format!("For example `{}: {}`", key.name, key.example)));
        None
    }

    fn leaf(&mut self, key: &'static Key, node: &Node, path: &[&'static str]) -> Option<Leaf> {
        let Some(text) = scalar(node) else {
            return match (&key.kind, &node.value) {
                (Kind::Paths, Value::Seq(items)) => self.paths(key, items, path),
                (Kind::Words | Kind::Texts, Value::Seq(items)) => self.words(key, items, path),
                (Kind::Set(words), Value::Seq(items)) => {
                    let found: Vec<_> = items
                        .iter()
                        .map(|item| match scalar(item) {
                            Some(text) => self
                                .word(key, words, text, item, path)
                                .map(|w| (w, item.span)),
                            None => self.mistyped(key, item, path),
                        })
                        .collect();
                    let found: Option<Vec<_>> = found.into_iter().collect();
                    Some(Leaf::Words(
                        found?
                            .into_iter()
                            .map(|(w, span)| Spanned::new(w.to_owned(), span))
                            .collect(),
                    ))
                }
                (Kind::Pairs(words), Value::Map(_)) => self.pairs(key, *words, node, path),
                (Kind::Env, Value::Map(_) | Value::Seq(_)) => self.env(key, node, path),
                _ => self.mistyped(key, node, path),
            };
        };
        if let Some(at) = text.find('\0') {
            let fault = Fault {
                from: at,
                to: at + 1,
                message: "a NUL character".into(),
            };
            return self.fault(key, node, path, fault);
        }
        let parsed = match &key.kind {
            Kind::Bool => value::boolean(text)
                .map(Leaf::Bool)
                .ok_or_else(|| self.other(key, text)),
            Kind::Count { min, max } => match value::count(text) {
                Some(n) if n < *min || n > *max => {
                    let message = format!(
                        "`{}` is {}, not {}",
                        path.join("."),
                        key.kind.expected(),
                        quoted(text)
                    );
                    self.problems
                        .push(Diagnostic::error("E-RANGE", node.span, message));
                    return None;
                }
                Some(n) => Ok(Leaf::Count(n)),
                None => Err(self.other(key, text)),
            },
            Kind::Size => value::size(text).map(Leaf::Bytes),
            Kind::Time => value::time(text).map(Leaf::Time),
            Kind::Text => Ok(Leaf::Text(text.to_owned())),
            Kind::Name { max } => value::name(text, *max).map(Leaf::Text),
            Kind::Path => value::path(text, self.base).map(Leaf::Path),
            Kind::Paths => {
                value::path(text, self.base).map(|p| Leaf::Paths(vec![Spanned::new(p, node.span)]))
            }
            Kind::Endpoint => value::endpoint(text, self.base).map(Leaf::Endpoint),
            Kind::Word(words) => return self.word(key, words, text, node, path).map(Leaf::Word),
            Kind::Set(words) => {
                let word = self.word(key, words, text, node, path)?;
                Ok(Leaf::Words(vec![Spanned::new(word.to_owned(), node.span)]))
            }
            Kind::Texts => Ok(Leaf::Words(vec![Spanned::new(text.to_owned(), node.span)])),
            Kind::Mode => value::mode(text)
                .map(Leaf::Text)
                .ok_or_else(|| self.other(key, text)),
            Kind::Words => value::words(text).map(|words| {
                Leaf::Words(
                    words
                        .into_iter()
                        .map(|w| Spanned::new(w, node.span))
                        .collect(),
                )
            }),
            _ => return self.mistyped(key, node, path),
        };
        parsed.map_or_else(|fault| self.fault(key, node, path, fault), Some)
    }

    fn other(&self, key: &'static Key, text: &str) -> Fault {
        Fault {
            from: 0,
            to: text.len(),
            message: format!("expected {}", key.kind.expected()),
        }
    }

    fn fault<T>(
        &mut self,
        key: &'static Key,
        node: &Node,
        path: &[&'static str],
        fault: Fault,
    ) -> Option<T> {
        // The caret can point into the text only where it was written as it is read.
        let exact = matches!(&node.value, Value::Scalar { text, plain: true } if text.len() == node.span.len());
        let span = if exact {
            node.span.part(fault.from, fault.to)
        } else {
            node.span
        };
        let text = scalar(node).unwrap_or_default();
        let message = format!(
            "{} is no value for `{}`: {}",
            quoted(text),
            path.join("."),
            fault.message
        );
        let d = Diagnostic::error("E-VALUE", span, message);
        self.problems
            .push(d.help(format!("For example `{}: {}`", key.name, key.example)));
        None
    }

    fn word(
        &mut self,
        key: &'static Key,
        words: &'static [keys::Word],
        text: &str,
        node: &Node,
        path: &[&'static str],
    ) -> Option<&'static str> {
        let text = value::boolean(text)
            .and_then(|flag| keys::boolean_word(words, flag))
            .unwrap_or(text);
        let found = words
            .iter()
            .find(|w| w.name == text)
            .or_else(|| words.iter().find(|w| w.name.eq_ignore_ascii_case(text)));
        let path = path.join(".");
        let Some(found) = found else {
            let mut d = Diagnostic::error(
                "E-VALUE",
                node.span,
                format!("{} is no value for `{path}`", quoted(text)),
            );
            let allowed = words.iter().filter(|w| w.refused.is_none());
            if let Some(near) = nearest(text, allowed.clone().map(|w| w.name)) {
                d = d.label(format!("did you mean `{near}`?"));
            }
            let table: Vec<String> = allowed
                .map(|w| format!("{} ({})", w.name, w.meaning))
                .collect();
            self.problems
                .push(d.help(format!("Allowed: {}", table.join("; "))));
            return None;
        };
        if let Some(why) = found.refused {
            let d = Diagnostic::error(
                "E-UNSUPPORTED",
                node.span,
                format!("`{path}` cannot be {} here", quoted(found.name)),
            );
            self.problems
                .push(d.why(why).help(format!("Give {}", key.kind.expected())));
            return None;
        }
        Some(found.name)
    }
}

fn scalar(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        // `to: null` is the word null.
        Value::Null if node.span.len() > 0 => Some("null"),
        _ => None,
    }
}

/// Whether a bare `none` is a member of a list, such as `video: none`.
fn has_none(key: &'static Key) -> bool {
    let Kind::List { keys, scalar, .. } = key.kind else {
        return false;
    };
    keys::find(keys, scalar).is_some_and(|k| match k.kind {
        Kind::Word(words) => words.iter().any(|w| w.name == "none"),
        _ => false,
    })
}

/// Where else in the table a word is a key.
pub(super) fn elsewhere(word: &str) -> Option<String> {
    fn look(keys: &'static [Key], word: &str, path: &str, found: &mut Vec<String>) {
        for key in keys {
            let Some(keys) = keys::below(&key.kind) else {
                continue;
            };
            let list = if matches!(key.kind, Kind::List { .. }) {
                "[]"
            } else {
                ""
            };
            let here = format!("{path}{}{list}.", key.name);
            if let Some(key) = keys.iter().find(|k| k.is(word)) {
                found.push(format!("`{here}{}`", key.name));
            }
            look(keys, word, &here, found);
        }
    }
    let mut found = Vec::new();
    look(KEYS, word, "", &mut found);
    (!found.is_empty()).then(|| found.join(", "))
}

/// The keys of a group, where they are few enough to be read.
pub(super) fn listed(keys: &[Key]) -> String {
    if keys.len() > 30 {
        return "`vsc-run explain --all` lists the keys".into();
    }
    let names: Vec<&str> = keys.iter().map(|k| k.name).collect();
    format!("The keys are {}", names.join(", "))
}
