//! The domain: what was written, with every open question answered. Pure: facts are asked for, nothing is run.
//!
//! The tree of the scenario becomes data ([`crate::scenario::json`]); then each family of keys is completed in place,
//! and what QEMU or libvirt would refuse is said with the place that asked for it.

#![forbid(unsafe_code)]

mod checks;
mod cpu;
mod disks;
mod firmware;
mod ident;
mod images;
mod nets;
mod platform;
mod screens;

use std::cell::RefCell;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::diag::{Diagnostic, Span};
use crate::domain::{Domain, get};
use crate::facts::{Facts, FileKind};
use crate::scenario::keys::KEYS;
use crate::scenario::{Parsed, json as tree_json};

use super::{Problems, Target};

/// What the domain needs of the machine that was compiled for the monitor.
pub(super) struct Around<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// vCPUs and how the guest sees them.
    pub(super) cpus: vsc_vmm::resources::Cpus,
    /// Guest RAM, bytes.
    pub(super) memory: u64,
    /// The whole command line of the kernel that was named.
    pub(super) cmdline: Option<String>,
    /// A command will run: consoles are the runner's.
    pub(super) command: bool,
    /// Who it is for.
    pub(super) target: Target,
}

/// Completes a scenario.
pub(super) fn build(
    parsed: &Parsed,
    around: &Around<'_>,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> (Domain, Vec<GaveWay>) {
    let mut root = match tree_json::of(&parsed.tree) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let mut written = Value::Object(std::mem::take(&mut root));
    // The domain means the same wherever it is read.
    tree_json::absolute(&mut written, KEYS, &facts.directory());
    if let Value::Object(map) = written {
        root = map;
    }
    let storage = root.remove("storage").unwrap_or_default();
    for key in [
        "preset", "feature", "store", "hosts", "on", "host", "control", "register", "sandbox",
    ] {
        root.remove(key);
    }
    let mut cx = Cx {
        root,
        parsed,
        facts,
        target: around.target,
        problems,
        gave_way: RefCell::default(),
    };
    cx.identity(around);
    cx.cpu(around);
    cx.memory(around);
    cx.time_and_events();
    cx.security();
    cx.consoles(around);
    cx.disks(&storage, around);
    cx.nets(around);
    cx.devices();
    cx.kernel(around);
    if around.target == Target::Libvirt {
        cx.firmware(around);
    }
    cx.iommu();
    cx.checks();
    let gave_way = cx.gave_way.take();
    let mut domain = Value::Object(cx.root);
    prune(&mut domain);
    let gave_way = gave_way
        .into_iter()
        .map(|(key, to)| GaveWay { key, to })
        .collect();
    (Domain(domain), gave_way)
}

/// A recommendation that somebody's wish may have made impossible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GaveWay {
    pub(super) key: String,
    pub(super) to: String,
}

/// What the parts of the compiler share.
struct Cx<'a> {
    root: Map<String, Value>,
    parsed: &'a Parsed,
    facts: &'a dyn Facts,
    target: Target,
    problems: &'a mut Problems,
    /// Recommendations that may have given way, each with the wish that it gave way to.
    gave_way: RefCell<Vec<(String, String)>>,
}

impl Cx<'_> {
    /// The value at a path of names.
    fn get(&self, path: &str) -> Option<&Value> {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let value = self.root.get(first)?;
        if rest.is_empty() {
            Some(value)
        } else {
            get(value, rest)
        }
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    fn flag(&self, path: &str) -> bool {
        self.get(path).and_then(Value::as_bool).unwrap_or(false)
    }

    fn members(&self, list: &str) -> &[Value] {
        self.root
            .get(list)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// The map below a name; an empty one is made.
    fn map(&mut self, name: &str) -> &mut Map<String, Value> {
        let value = self.root.entry(name).or_insert_with(|| json!({}));
        if !value.is_object() {
            *value = json!({});
        }
        match value {
            Value::Object(map) => map,
            _ => unreachable!("it was made an object"),
        }
    }

    /// Sets a value that nobody gave.
    fn default(&mut self, group: &str, name: &str, value: impl Into<Value>) {
        self.map(group).entry(name).or_insert_with(|| value.into());
    }

    /// Where a key such as `disks[0].cache` was written; where its group was, else.
    fn span(&self, path: &str) -> Span {
        self.parsed.span_of(path)
    }

    /// Whether a value is advice of a preset or of the settings, not asked for in this scenario.
    fn is_advice(&self, path: &str) -> bool {
        self.parsed.sources.is_advice(self.span(path))
    }

    fn error(
        &mut self,
        code: &'static str,
        path: &str,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.tell(Diagnostic::error(code, self.span(path), message))
    }

    fn warn(
        &mut self,
        code: &'static str,
        path: &str,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.tell(Diagnostic::warning(code, self.span(path), message))
    }

    fn tell(&mut self, problem: Diagnostic) -> &mut Diagnostic {
        self.problems.push(problem);
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    /// Two values that do not go together.
    fn conflict(
        &mut self,
        path: &str,
        other: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let other = self.span(other);
        let d = self.error("E-CONFLICT", path, message);
        d.help = Some(help.into());
        if d.span != other {
            d.also.push((other, "the other one".into()));
        }
    }

    /// Whether a recommendation gives way: nobody asked for the one, somebody asked for the other.
    fn yields(&self, path: &str, other: &str) -> bool {
        let yields = self.is_advice(path) && !self.is_advice(other);
        if yields {
            self.gave_way
                .borrow_mut()
                .push((path.to_owned(), other.to_owned()));
        }
        yields
    }

    /// A key of a member that does not go with another key: a recommendation is taken out, a wish is an error.
    fn over(
        &mut self,
        member: &mut Map<String, Value>,
        (here, key): (&str, &str),
        other: &str,
        message: String,
        help: &str,
    ) {
        let path = format!("{here}.{key}");
        if self.yields(&path, other) {
            member.remove(key);
        } else {
            self.conflict(&path, other, message, help);
        }
    }

    /// A device whose own word says that there is none, while something of it is asked for: a recommendation gives
    /// way to the usual word, a wish is an error.
    fn not_nothing(&mut self, device: &str, key: &str, nothing: Value, usual: Value) {
        let switch = format!("{device}.{key}");
        if self.get(&switch) != Some(&nothing) {
            return;
        }
        let keys = self.get(device).and_then(Value::as_object);
        let asked = keys
            .into_iter()
            .flat_map(Map::keys)
            .filter(|k| *k != key)
            .map(|k| format!("{device}.{k}"))
            .find(|path| !self.is_advice(path));
        let Some(asked) = asked else { return };
        if self.yields(&switch, &asked) {
            self.map(device).insert(key.to_owned(), usual);
        } else {
            self.conflict(
                &asked,
                &switch,
                format!("`{asked}` is of a device that is not there"),
                "Keep one of the two",
            );
        }
    }

    fn is_block_device(&self, path: &str) -> bool {
        match self.facts.file(Path::new(path)) {
            Ok(file) => file.kind == FileKind::BlockDevice,
            Err(_) => path.starts_with("/dev/"),
        }
    }
}

/// Takes out maps and lists that have become empty.
fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(prune);
        map.retain(|_, v| match v {
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests;
