//! Lists of texts, paths and words, and the environment.

#![forbid(unsafe_code)]

use super::super::keys::{Key, Word};
use super::super::tree::Leaf;
use super::super::value::{self, Fault};
use super::super::yaml::{Node, Value};
use super::{Decoder, scalar};
use crate::diag::{Diagnostic, Spanned, quoted};

impl Decoder<'_> {
    /// The text of each member of a list of single values.
    fn texts(
        &mut self,
        key: &'static Key,
        items: &[Node],
        path: &[&'static str],
    ) -> Option<Vec<Spanned<String>>> {
        let mut out = Vec::with_capacity(items.len());
        let mut good = true;
        for item in items {
            match scalar(item) {
                Some(text) if text.contains('\0') => {
                    good = false;
                    let fault = Fault {
                        from: 0,
                        to: text.len(),
                        message: "a NUL character".into(),
                    };
                    self.fault::<()>(key, item, path, fault);
                }
                Some(text) => out.push(Spanned::new(text.to_owned(), item.span)),
                None => {
                    good = false;
                    let message = format!(
                        "A member of `{}` is a single value, not {}",
                        path.join("."),
                        item.kind()
                    );
                    self.problems.push(
                        Diagnostic::error("E-TYPE", item.span, message)
                            .help("Put it in quotes if it is text"),
                    );
                }
            }
        }
        good.then_some(out)
    }

    pub(super) fn words(
        &mut self,
        key: &'static Key,
        items: &[Node],
        path: &[&'static str],
    ) -> Option<Leaf> {
        self.texts(key, items, path).map(Leaf::Words)
    }

    pub(super) fn paths(
        &mut self,
        key: &'static Key,
        items: &[Node],
        path: &[&'static str],
    ) -> Option<Leaf> {
        let mut out = Vec::with_capacity(items.len());
        let mut good = true;
        for (text, item) in self.texts(key, items, path)?.into_iter().zip(items) {
            match value::path(&text.value, self.base) {
                Ok(value) => out.push(Spanned::new(value, text.span)),
                Err(fault) => {
                    good = false;
                    self.fault::<()>(key, item, path, fault);
                }
            }
        }
        good.then_some(Leaf::Paths(out))
    }

    /// A map of names to texts, or to words of `words`.
    pub(super) fn pairs(
        &mut self,
        key: &'static Key,
        words: Option<&'static [Word]>,
        node: &Node,
        path: &[&'static str],
    ) -> Option<Leaf> {
        let Value::Map(entries) = &node.value else {
            return self.mistyped(key, node, path);
        };
        let mut out = Vec::with_capacity(entries.len());
        let mut good = true;
        for (name, value) in entries.iter() {
            let text = match (scalar(value), words) {
                (None, _) => self.mistyped(key, value, path),
                (Some(text), None) if !text.contains('\0') => Some(text.to_owned()),
                (Some(_), None) => {
                    let fault = Fault {
                        from: 0,
                        to: 1,
                        message: "a NUL character".into(),
                    };
                    self.fault(key, value, path, fault)
                }
                (Some(text), Some(words)) => {
                    self.word(key, words, text, value, path).map(str::to_owned)
                }
            };
            let name_is_good = value::name(&name.value, 64).is_ok();
            if !name_is_good {
                let message = format!(
                    "{} is no name for a member of `{}`",
                    quoted(&name.value),
                    path.join(".")
                );
                self.problems.push(
                    Diagnostic::error("E-VALUE", name.span, message)
                        .help("A name has 1 to 64 letters, digits, `-`, `_`, `.`, `+`, `:`"),
                );
            }
            match text {
                Some(text) if name_is_good => {
                    out.push((Spanned::new(name.value.to_string(), name.span), text))
                }
                _ => good = false,
            }
        }
        good.then_some(Leaf::Env(out))
    }

    pub(super) fn env(
        &mut self,
        key: &'static Key,
        node: &Node,
        path: &[&'static str],
    ) -> Option<Leaf> {
        let mut out: Vec<(Spanned<String>, String)> = Vec::new();
        let mut pairs: Vec<(Spanned<String>, String)> = Vec::new();
        match &node.value {
            Value::Map(entries) => {
                for (name, value) in entries.iter() {
                    let text = match &value.value {
                        Value::Null => "",
                        _ => match scalar(value) {
                            Some(text) => text,
                            None => return self.mistyped(key, value, path),
                        },
                    };
                    pairs.push((
                        Spanned::new(name.value.to_string(), name.span),
                        text.to_owned(),
                    ));
                }
            }
            Value::Seq(items) => {
                for item in self.texts(key, items, path)? {
                    let Some((name, value)) = item.value.split_once('=') else {
                        let message = format!("{} has no `=`", quoted(&item.value));
                        let d = Diagnostic::error("E-VALUE", item.span, message);
                        self.problems.push(d.help(format!(
                            "Write NAME=value; `{}=` is an empty one",
                            item.value
                        )));
                        return None;
                    };
                    pairs.push((Spanned::new(name.to_owned(), item.span), value.to_owned()));
                }
            }
            _ => {}
        }
        for (name, value) in pairs {
            if !value::variable(&name.value) || value.contains('\0') {
                let message = format!("{} is no environment variable", quoted(&name.value));
                let d = Diagnostic::error("E-VALUE", name.span, message);
                self.problems
                    .push(d.help("A name has no blanks, no `=`, and no NUL; a value has no NUL"));
                return None;
            }
            match out.iter_mut().find(|(other, _)| other.value == name.value) {
                Some(present) => *present = (name, value),
                None => out.push((name, value)),
            }
        }
        Some(Leaf::Env(out))
    }
}
