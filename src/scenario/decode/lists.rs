//! Lists of texts, paths and words, and the environment.

#![forbid(unsafe_code)]

use super::super::keys::Key;
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
