//! Old files turned into scenarios, and told apart.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::{SECTIONS, check, settings};
use crate::diag::{Diagnostic, Diagnostics, Severity, Sources};
use crate::facts::Facts;
use crate::scenario::tree::{Body, Leaf};
use crate::scenario::value::{Base, directory_of};
use crate::scenario::yaml::{self, Node, Value};
use crate::scenario::{json, keys};

/// What a file is, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// libvirt's XML.
    Xml,
    /// A settings file, `virtscenario.yaml`.
    Settings,
    /// A list of hypervisors, `virthosts.yaml`.
    Hosts,
    /// A scenario in our own language.
    Scenario,
    /// Nothing of these, as far as its first look goes.
    Other,
}

/// Tells old files apart by their content alone.
pub fn kind(bytes: &[u8]) -> Kind {
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if first == Some(&b'<') {
        return Kind::Xml;
    }
    let node = yaml::decode(bytes)
        .ok()
        .and_then(|text| yaml::parse(&text, 0, 0, &mut Vec::new()));
    node.as_ref().map_or(Kind::Other, of_node)
}

fn of_node(node: &Node) -> Kind {
    let Value::Map(pairs) = &node.value else {
        return Kind::Other;
    };
    let host = |value: &Node| match &value.value {
        Value::Map(keys) => keys
            .iter()
            .any(|(k, _)| matches!(&*k.value, "url" | "sev-cert")),
        _ => false,
    };
    let ours = |name: &str| keys::find(keys::KEYS, name).is_some() && !section(name);
    // Some of its sections are keys of ours too, but none of these is a list of maps.
    let listed = |name: &str, value: &Node| match &value.value {
        Value::Seq(items) => {
            section(name)
                && matches!(
                    items.first(),
                    Some(Node {
                        value: Value::Map(_),
                        ..
                    })
                )
        }
        _ => false,
    };
    if pairs.iter().any(|(_, value)| host(value)) {
        Kind::Hosts
    } else if pairs.iter().any(|(name, value)| listed(&name.value, value)) {
        Kind::Settings
    } else if pairs.iter().any(|(name, _)| ours(&name.value)) {
        Kind::Scenario
    } else if pairs.iter().any(|(name, _)| section(&name.value)) {
        Kind::Settings
    } else {
        Kind::Other
    }
}

/// Files and directories that a settings file names and that matter without a machine too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// `vm-config-store`: the directory of saved machines.
    pub store: Option<PathBuf>,
    /// `hvconf`: the list of hypervisors.
    pub hosts: Option<PathBuf>,
}

/// What the settings file `file` names. What is wrong with it is said where it is read for a machine.
pub(crate) fn named(bytes: &[u8], file: &Path, home: Option<&Path>) -> Named {
    let base = Base {
        dir: directory_of(file),
        home: home.map(Path::to_owned),
    };
    let mut unsaid = Vec::new();
    let node = yaml::decode(bytes)
        .ok()
        .and_then(|text| yaml::parse(&text, 0, 0, &mut unsaid));
    let read = node.and_then(|node| settings(&node, &base, &mut unsaid));
    let path = |key: &str| match &read.as_ref()?.tree.get(key)?.body {
        Body::Leaf(Leaf::Path(path)) => Some(path.clone()),
        _ => None,
    };
    Named {
        store: path("store"),
        hosts: path("hosts"),
    }
}

fn section(name: &str) -> bool {
    SECTIONS.iter().any(|s| s.name == name)
}

/// Turns a settings file into a scenario: our keys as data, and what there is to say about it. Relative paths in it
/// start from `directory`.
///
/// # Errors
/// All messages, when at least one is an error.
pub fn import(
    name: &str,
    bytes: &[u8],
    directory: PathBuf,
    home: Option<PathBuf>,
    facts: &dyn Facts,
) -> Result<(Json, Diagnostics), Diagnostics> {
    let base = Base {
        dir: directory,
        home,
    };
    let mut sources = Sources::default();
    let mut problems: Vec<Diagnostic> = Vec::new();
    let mut scenario = None;
    match yaml::decode(bytes) {
        Err((text, problem)) => problems.push(problem.diagnostic(sources.add_file(name, text))),
        Ok(text) => {
            let source = sources.add_file(name, text.clone());
            let node = yaml::parse(&text, source, 0, &mut problems);
            let pairs = match node.as_ref().map(|n| &n.value) {
                Some(Value::Map(pairs)) => pairs.as_slice(),
                _ => &[],
            };
            if let Some(node) = &node
                && !pairs.iter().any(|(name, _)| section(&name.value))
            {
                let message = "There is no section of virtscenario.yaml in this file";
                let d = Diagnostic::error("E-IMPORT", node.span.part(0, 0), message);
                problems.push(d.help(format!(
                    "Its sections are {}; virthosts.yaml has names with `url:` below them, and XML begins with `<`",
                    super::sections()
                )));
            }
            // Names that are none may be nearly some.
            let node = node.as_ref().filter(|_| !pairs.is_empty());
            let read = node.and_then(|node| settings(node, &base, &mut problems));
            if let Some(read) = read {
                problems.extend(check(&read.places, facts));
                scenario = Some(json::of(&read.tree));
            }
        }
    }
    problems.sort_by_key(|d| d.span.start());
    let failed = problems.iter().any(|d| d.severity == Severity::Error);
    let messages = Diagnostics::new(problems, Arc::new(sources));
    match scenario {
        Some(scenario) if !failed => Ok((scenario, messages)),
        _ => Err(messages),
    }
}
