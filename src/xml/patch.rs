//! Changes to one place of a document: the `xml:` key and `--xml-set PATH=VALUE`.
//!
//! The path is a subset of XPath 1.0. It is absolute (`/domain/devices/disk[1]/driver/@cache`) or starts below the
//! root (`devices/disk[1]/driver/@cache`). Steps are names of elements with their prefix as written; a step may have
//! predicates, applied in order: `[2]` counts from 1 among what matched so far under one parent, `[@dev='vda']`
//! compares an attribute, `[name='x']` the text of a child. The last step is an element (its text is meant),
//! `text()` or `@attribute`. There is no `//`, `..`, `*`, axis, function or `|`.
//!
//! A change is of one place: a path that names several is refused. Setting makes what is missing at the end of the
//! path, with the attributes that predicates demand, but no device on the way to something in it: that would be half
//! a device. `devices/hostdev[@type='pci']/@managed` makes one. Deleting never makes anything.

#![forbid(unsafe_code)]

use super::element::{Element, legal};
use super::parse::is_name;
use crate::diag::shown;

/// What to do at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Give it this text.
    Set(String),
    /// Remove it.
    Delete,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Changed {
    /// The place, unambiguous.
    pub path: String,
    /// What was there: a text, or an element as XML.
    pub old: Option<String>,
    /// What is there now.
    pub new: Option<String>,
}

/// Why a document cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The path is not in the subset.
    #[error("the path is not understood at byte {at}: {expected}")]
    Path {
        /// Byte of the path.
        at: usize,
        /// What would be right there, or what is not done.
        expected: String,
    },
    /// The path starts at another root.
    #[error(
        "the document is a <{}>, and the path starts at <{}>",
        shown(root),
        shown(path)
    )]
    Root {
        /// Name of the root element.
        root: String,
        /// First name of the path.
        path: String,
    },
    /// Nothing to delete.
    #[error("nothing matches {}", shown(path))]
    Nothing {
        /// The part of the path that matches nothing.
        path: String,
    },
    /// Missing, and the path does not say how to make it.
    #[error(
        "nothing matches {}, and it cannot be made from this path: {reason}",
        shown(path)
    )]
    Unmakable {
        /// The part of the path that matches nothing.
        path: String,
        /// What stands in the way.
        reason: &'static str,
    },
    /// More than one place.
    #[error(
        "{} matches {count} places; add a predicate, such as [1] or [@name='…']",
        shown(path)
    )]
    Several {
        /// The part of the path that is ambiguous.
        path: String,
        /// How many match.
        count: usize,
    },
    /// An element with elements in it has no text.
    #[error("{} holds elements, not text", shown(path))]
    Elements {
        /// The element.
        path: String,
    },
    /// The root stays.
    #[error("the root element cannot be deleted")]
    Whole,
    /// Neither or both.
    #[error("a patch has either `value: TEXT` or `delete: true`")]
    Unclear,
    /// XML cannot carry the value.
    #[error("the value holds a character that XML cannot carry (U+{code:04X})")]
    Value {
        /// The character.
        code: u32,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Predicate {
    Index(usize),
    Attribute(String, String),
    Child(String, String),
}

#[derive(Debug, Clone, PartialEq)]
struct Step {
    name: String,
    predicates: Vec<Predicate>,
    /// Where it ends in the path, for messages.
    end: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Last {
    Element,
    Text,
    Attribute(String),
}

struct Path {
    absolute: bool,
    steps: Vec<Step>,
    last: Last,
}

/// Longest path and most steps that are read.
const MAX_PATH: usize = 4096;

/// Changes one place below `root`.
///
/// # Errors
/// The path is not understood, names nothing (to delete, or nothing that can be made) or several places.
pub fn apply(root: &mut Element, path: &str, change: Change) -> Result<Vec<Changed>, PatchError> {
    let parsed = Reader::new(path).path()?;
    if let Change::Set(value) = &change
        && let Some(c) = value.chars().find(|c| !legal(c.encode_utf8(&mut [0; 4])))
    {
        return Err(PatchError::Value { code: c as u32 });
    }
    let mut steps = parsed.steps.as_slice();
    if parsed.absolute
        && let Some((first, rest)) = steps.split_first()
    {
        if first.name != root.name {
            return Err(PatchError::Root {
                root: root.name.clone(),
                path: first.name.clone(),
            });
        }
        steps = rest;
    }
    // Looked for in full before anything is made: a change that fails changes nothing.
    let known = locate(root, steps, path)?;
    match change {
        Change::Delete => delete(root, steps, &known, &parsed.last, path),
        Change::Set(value) => set(root, steps, known, &parsed.last, value, path),
    }
    .map(|changed| changed.into_iter().collect())
}

/// The children to follow from the root, as far as the steps match.
fn locate(root: &Element, steps: &[Step], path: &str) -> Result<Vec<usize>, PatchError> {
    let mut known = Vec::new();
    let mut at = root;
    for step in steps {
        let found = matches(at, step);
        match found.as_slice() {
            [] => break,
            [one] => {
                known.push(*one);
                at = &at.children[*one];
            }
            several => {
                return Err(PatchError::Several {
                    path: path[..step.end].to_owned(),
                    count: several.len(),
                });
            }
        }
    }
    Ok(known)
}

fn matches(parent: &Element, step: &Step) -> Vec<usize> {
    let named = |i: &usize| parent.children[*i].name == step.name;
    let mut found: Vec<usize> = (0..parent.children.len()).filter(named).collect();
    for predicate in &step.predicates {
        match predicate {
            Predicate::Index(n) => found = found.get(n - 1).copied().into_iter().collect(),
            Predicate::Attribute(name, value) => {
                found.retain(|i| parent.children[*i].get(name) == Some(value));
            }
            Predicate::Child(name, value) => found.retain(|i| {
                parent.children[*i]
                    .children
                    .iter()
                    .any(|c| c.name == *name && c.text == *value)
            }),
        }
    }
    found
}

fn delete(
    root: &mut Element,
    steps: &[Step],
    known: &[usize],
    last: &Last,
    path: &str,
) -> Result<Option<Changed>, PatchError> {
    let nothing = |end: usize| PatchError::Nothing {
        path: path[..end].to_owned(),
    };
    if let Some(missing) = steps.get(known.len()) {
        return Err(nothing(missing.end));
    }
    let place = name_of(root, known);
    if *last == Last::Element {
        let Some((index, parents)) = known.split_last() else {
            return Err(PatchError::Whole);
        };
        let removed = follow(root, parents).children.remove(*index);
        return Ok(Some(Changed {
            path: place,
            old: Some(removed.write()),
            new: None,
        }));
    }
    let element = follow(root, known);
    let (path, old) = match last {
        Last::Attribute(name) => {
            let at = element.attributes.iter().position(|a| a.name == *name);
            let at = at.ok_or_else(|| nothing(path.len()))?;
            (
                format!("{place}/@{name}"),
                element.attributes.remove(at).value,
            )
        }
        _ if !element.children.is_empty() => return Err(PatchError::Elements { path: place }),
        _ if element.text.is_empty() => return Err(nothing(path.len())),
        _ => (format!("{place}/text()"), std::mem::take(&mut element.text)),
    };
    Ok(Some(Changed {
        path,
        old: Some(old),
        new: None,
    }))
}

fn set(
    root: &mut Element,
    steps: &[Step],
    mut known: Vec<usize>,
    last: &Last,
    value: String,
    path: &str,
) -> Result<Option<Changed>, PatchError> {
    let missing = &steps[known.len()..];
    if let ([device, _, ..], Some("devices")) = (missing, parent_name(root, &known)) {
        return Err(PatchError::Unmakable {
            path: path[..device.end].to_owned(),
            reason: "a device is made by setting an attribute of it first",
        });
    }
    for step in missing {
        makable(follow(root, &known), step, step.end == missing[0].end).map_err(|reason| {
            PatchError::Unmakable {
                path: path[..step.end].to_owned(),
                reason,
            }
        })?;
    }
    for step in missing {
        let parent = follow(root, &known);
        let mut element = Element::new(&step.name);
        for predicate in &step.predicates {
            match predicate {
                Predicate::Attribute(name, value) => {
                    element.set(name, value.as_str());
                }
                Predicate::Child(name, value) => {
                    element.need(name).text.clone_from(value);
                }
                Predicate::Index(_) => {}
            }
        }
        // Beside its like, so that the order of the document stays libvirt's.
        let like = parent.children.iter().rposition(|c| c.name == step.name);
        let at = like.map_or(parent.children.len(), |i| i + 1);
        parent.children.insert(at, element);
        known.push(at);
    }
    let place = name_of(root, &known);
    let element = follow(root, &known);
    let (path, old) = match last {
        Last::Attribute(name) => (
            format!("{place}/@{name}"),
            element.set(name, value.as_str()),
        ),
        Last::Element | Last::Text => {
            if !element.children.is_empty() {
                return Err(PatchError::Elements { path: place });
            }
            let old = std::mem::replace(&mut element.text, value.clone());
            (place, Some(old).filter(|o| !o.is_empty()))
        }
    };
    if old.as_deref() == Some(value.as_str()) {
        return Ok(None);
    }
    Ok(Some(Changed {
        path,
        old,
        new: Some(value),
    }))
}

/// The name of the element that the first missing step would stand in.
fn parent_name<'a>(root: &'a Element, known: &[usize]) -> Option<&'a str> {
    let parent = known
        .iter()
        .try_fold(root, |at, index| at.children.get(*index))?;
    Some(parent.name.as_str())
}

/// Whether an element that answers to the step can be made, so that the step would find it.
fn makable(parent: &Element, step: &Step, first: bool) -> Result<(), &'static str> {
    let mut indexed = false;
    for (n, predicate) in step.predicates.iter().enumerate() {
        match predicate {
            Predicate::Index(index) => {
                let before = Step {
                    predicates: step.predicates[..n].to_vec(),
                    ..step.clone()
                };
                let there = if first {
                    matches(parent, &before).len()
                } else {
                    0
                };
                if *index != there + 1 {
                    return Err("the number is not the next one");
                }
                indexed = true;
            }
            Predicate::Child(..) => return Err("a predicate compares the text of a child"),
            Predicate::Attribute(name, value) => {
                if indexed {
                    return Err("a predicate follows a number");
                }
                let other = |p: &Predicate| matches!(p, Predicate::Attribute(n, v) if n == name && v != value);
                if step.predicates.iter().any(other) {
                    return Err("two predicates demand different values of one attribute");
                }
            }
        }
    }
    Ok(())
}

fn follow<'a>(root: &'a mut Element, known: &[usize]) -> &'a mut Element {
    known.iter().fold(root, |at, i| &mut at.children[*i])
}

/// A path to an element, with a number wherever a name is not unique.
fn name_of(root: &Element, known: &[usize]) -> String {
    let mut out = format!("/{}", root.name);
    let mut at = root;
    for index in known {
        let child = &at.children[*index];
        out.push('/');
        out.push_str(&child.name);
        let like = |c: &&Element| c.name == child.name;
        if at.children.iter().filter(like).count() > 1 {
            let number = at.children[..=*index].iter().filter(like).count();
            out.push_str(&format!("[{number}]"));
        }
        at = child;
    }
    out
}

/// Splits `PATH=VALUE` at the first `=` that is not in a predicate.
pub fn assignment(text: &str) -> Option<(&str, &str)> {
    let (mut quote, mut depth) = (None, 0_usize);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') if depth > 0 => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => depth = depth.saturating_sub(1),
            (None, '=') if depth == 0 => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Reader { text, at: 0 }
    }

    fn wrong<T>(&self, expected: impl Into<String>) -> Result<T, PatchError> {
        Err(PatchError::Path {
            at: self.at,
            expected: expected.into(),
        })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn name(&mut self) -> Result<String, PatchError> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':')))
            .unwrap_or(rest.len());
        let name = &rest[..end];
        if name.contains("::") {
            return self.wrong("axes are not understood; name the elements from the root");
        }
        if name == ".." || name == "." {
            return self.wrong("`.` and `..` are not understood; name the elements from the root");
        }
        if !is_name(name) {
            return self.wrong(match rest.chars().next() {
                None => "the name of an element, `@attribute` or `text()` is missing",
                Some('*') => "`*` is not understood; name the element",
                Some('/') => "`//` is not understood; name every element from the root",
                Some(_) => "a name belongs here",
            });
        }
        self.at += end;
        Ok(name.to_owned())
    }

    fn path(mut self) -> Result<Path, PatchError> {
        if self.text.len() > MAX_PATH {
            self.at = MAX_PATH;
            return self.wrong(format!("a path has at most {MAX_PATH} bytes"));
        }
        let absolute = self.eat("/");
        let mut steps = Vec::new();
        loop {
            if self.eat("@") {
                let name = self.name()?;
                return self.finish(absolute, steps, Last::Attribute(name));
            }
            if self.rest().starts_with("text()") {
                self.at += "text()".len();
                return self.finish(absolute, steps, Last::Text);
            }
            let name = self.name()?;
            if self.rest().starts_with('(') {
                return self.wrong("functions are not understood, except `text()` at the end");
            }
            let mut predicates = Vec::new();
            while self.eat("[") {
                predicates.push(self.predicate()?);
            }
            steps.push(Step {
                name,
                predicates,
                end: self.at,
            });
            if !self.eat("/") {
                return self.finish(absolute, steps, Last::Element);
            }
        }
    }

    fn finish(self, absolute: bool, steps: Vec<Step>, last: Last) -> Result<Path, PatchError> {
        if !self.rest().is_empty() {
            return self.wrong(match last {
                Last::Element => "`/`, `[` or the end belongs here",
                _ => "the path ends after `@attribute` or `text()`",
            });
        }
        if absolute && steps.is_empty() {
            return Err(PatchError::Path {
                at: 1,
                expected: "the name of the root element belongs here".into(),
            });
        }
        if absolute && steps.first().is_some_and(|s| !s.predicates.is_empty()) {
            return Err(PatchError::Path {
                at: steps[0].name.len() + 1,
                expected: "there is one root, so it takes no predicate".into(),
            });
        }
        Ok(Path {
            absolute,
            steps,
            last,
        })
    }

    fn predicate(&mut self) -> Result<Predicate, PatchError> {
        let digits = self.rest().find(|c: char| !c.is_ascii_digit());
        let digits = &self.rest()[..digits.unwrap_or(self.rest().len())];
        if !digits.is_empty() {
            let Some(index) = digits.parse::<usize>().ok().filter(|n| *n > 0) else {
                return self.wrong("numbers count from 1");
            };
            self.at += digits.len();
            self.close()?;
            return Ok(Predicate::Index(index));
        }
        let attribute = self.eat("@");
        let name = self.name()?;
        if !self.eat("=") {
            return self.wrong("`='value'` belongs here");
        }
        let quote = match self.rest().chars().next() {
            Some(q @ ('\'' | '"')) => q,
            _ => return self.wrong("a value in quotes belongs here"),
        };
        self.at += 1;
        let Some(end) = self.rest().find(quote) else {
            return self.wrong(format!("the closing {quote} is missing"));
        };
        let value = self.rest()[..end].to_owned();
        if !legal(&value) {
            return self.wrong("XML cannot carry this value");
        }
        self.at += end + 1;
        self.close()?;
        Ok(if attribute {
            Predicate::Attribute(name, value)
        } else {
            Predicate::Child(name, value)
        })
    }

    fn close(&mut self) -> Result<(), PatchError> {
        if self.eat("]") {
            return Ok(());
        }
        self.wrong("`]` belongs here")
    }
}
