//! Scenarios: YAML text and `-o key=value` flags to one typed tree in which every value knows where it was written.
//!
//! Nothing here touches the host: the caller hands in bytes, and paths are only joined.

#![forbid(unsafe_code)]

mod decode;
pub mod explain;
pub(crate) mod json;
pub mod keys;
pub mod old;
pub mod presets;
pub mod schema;
mod storage;
pub(crate) mod suggest;
pub(crate) mod tree;
mod types;
pub(crate) mod value;
mod write;
pub(crate) mod yaml;

pub(crate) use yaml::MAX_BYTES;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Origin, Sources, Span, Spanned};
use decode::Decoder;
use tree::{Body, Entry, Leaf};
use types::Reader;

pub use suggest::nearest;
pub use types::{
    Backing, Console, ConsolePort, Cpu, Disk, Events, Given, IoMax, Kernel, Limits, Locking, Pin,
    Root, Scenario, Serial,
};
pub use write::write;

/// One option of the command line that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    text: String,
    key: (usize, usize),
    value: usize,
}

impl Override {
    /// `-o key=value`. A text without `=` is kept and reported by [`parse`].
    pub fn option(assignment: &str) -> Self {
        let text = format!("-o {assignment}");
        let end = text.find('=').unwrap_or(text.len());
        Override {
            key: (3, end),
            value: (end + 1).min(text.len()),
            text,
        }
    }

    /// An option of its own, such as `--memory 2G`, that stands for a key.
    pub fn flag(flag: &str, key: &'static str, value: &str) -> Flag {
        Flag {
            text: format!("{flag} {value}"),
            key,
            value: flag.len() + 1,
        }
    }
}

/// An option such as `--memory 2G` that stands for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    text: String,
    key: &'static str,
    value: usize,
}

/// One thing that goes on top of the file, in the order of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// `-o key=value`
    Option(Override),
    /// `--memory 2G`
    Flag(Flag),
    /// `-- CMD ARG…`
    Command(Vec<String>),
}

impl Layer {
    /// What it says, as far as it can name a key.
    pub(crate) fn text(&self) -> &str {
        match self {
            Layer::Option(option) => &option.text,
            Layer::Flag(flag) => flag.key,
            Layer::Command(_) => "",
        }
    }
}

/// Everything that [`parse`] reads.
#[derive(Debug, Clone, Default)]
pub struct Input<'a> {
    /// The scenario file: its name as the user gave it, and its content.
    pub file: Option<(&'a Path, &'a [u8])>,
    /// The settings that go between presets and scenario, where a scenario has a preset: a `virtscenario.yaml`.
    pub settings: Option<(&'a Path, &'a [u8])>,
    /// What the command line adds; later wins.
    pub layers: Vec<Layer>,
    /// `$HOME`, for `~`.
    pub home: Option<PathBuf>,
}

/// A parsed scenario with what was found wrong in it.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// What it says. Where a value was wrong it is left out here.
    pub scenario: Scenario,
    /// What is wrong, in the order of discovery.
    pub problems: Vec<Diagnostic>,
    /// The texts that spans point into.
    pub sources: Arc<Sources>,
    /// The file, as the user named it.
    pub file: Option<PathBuf>,
    /// The presets and feature sets that it starts from.
    pub presets: Vec<&'static str>,
    /// Everything that was said, the later on top of the earlier.
    pub(crate) tree: Arc<Entry>,
    /// What the scenario and the command line say, without presets and settings.
    pub(crate) alone: Arc<Entry>,
    /// The settings file that goes between presets and scenario, where there is one.
    pub settings: Option<PathBuf>,
    /// What the settings file expects to be on the host.
    pub(crate) places: Vec<old::Place>,
    /// What presets and feature sets alone say.
    pub(crate) recommended: Arc<Entry>,
}

/// Parses a scenario and everything under and on top of it: presets, feature sets, settings, the file, the command
/// line. All that is wrong is found in one pass.
pub fn parse(input: &Input<'_>) -> Parsed {
    let mut sources = Sources::default();
    let mut problems = Vec::new();
    let mut places = Vec::new();
    let own = input
        .file
        .map(|(path, bytes)| file_tree(path, bytes, input, None, &mut sources, &mut problems));
    let base = value::Base {
        dir: PathBuf::new(),
        home: input.home.clone(),
    };
    let overs: Vec<Entry> = input
        .layers
        .iter()
        .filter_map(|layer| decode_layer(layer, &base, &mut sources, &mut problems))
        .collect();
    let asked: Vec<&Entry> = own.iter().chain(&overs).collect();
    let base = presets::base(&asked, &mut sources, &mut problems);
    let mut tree = base.tree.clone();
    let mut alone = tree::empty();
    if let Some((path, bytes)) = input.settings
        && !base.names.is_empty()
    {
        let settings = file_tree(
            path,
            bytes,
            input,
            Some(&mut places),
            &mut sources,
            &mut problems,
        );
        let settings = without_shares(settings, &tree, &mut problems);
        tree::merge(&mut tree, settings, &mut problems);
    }
    for layer in own.into_iter().chain(overs) {
        // What goes wrong here goes wrong in the same way below.
        tree::merge(&mut alone, layer.clone(), &mut Vec::new());
        tree::merge(&mut tree, layer, &mut problems);
    }
    storage::apply(&mut tree, !base.names.is_empty(), &|span| {
        sources.is_advice(span)
    });
    let file = input.file.map(|(path, _)| path.to_owned());
    let settings = input.settings.filter(|_| !base.names.is_empty());
    let scenario = Reader(&tree).scenario();
    Parsed {
        scenario,
        problems,
        sources: Arc::new(sources),
        file,
        presets: base.names,
        settings: settings.map(|(path, _)| path.to_owned()),
        places,
        tree: Arc::new(tree),
        alone: Arc::new(alone),
        recommended: Arc::new(base.tree),
    }
}

/// Settings for all machines put no directory of the host into a machine whose preset has none: virt-scenario did so
/// for the desktop only.
fn without_shares(mut settings: Entry, under: &Entry, problems: &mut Vec<Diagnostic>) -> Entry {
    if let Body::Map(entries) = &mut settings.body
        && under.get("shares").is_none()
        && let Some(at) = entries.iter().position(|e| e.key.name == "shares")
    {
        let shares = entries.remove(at);
        let message = "This preset shares no directory of the host with the guest, so the one of the settings is left out";
        let d = Diagnostic::warning("W-UNUSED", shares.key_span, message);
        problems.push(
            d.help("Say `shares: [{source: DIR, target: TAG, read_only: true}]` in the scenario"),
        );
    }
    settings
}

/// The tree of a file: of a scenario, or, where there is a list for what it expects of the host, of a settings file.
fn file_tree(
    path: &Path,
    bytes: &[u8],
    input: &Input<'_>,
    settings: Option<&mut Vec<old::Place>>,
    sources: &mut Sources,
    problems: &mut Vec<Diagnostic>,
) -> Entry {
    let name = path.display().to_string();
    let base = value::Base {
        dir: value::directory_of(path),
        home: input.home.clone(),
    };
    let old = settings.is_some();
    let add = |sources: &mut Sources, text| match old {
        false => sources.add_file(&name, text),
        true => sources.add_settings(&name, text),
    };
    match yaml::decode(bytes) {
        Err((shown, problem)) => {
            problems.push(problem.diagnostic(add(sources, shown)));
            tree::empty()
        }
        Ok(text) => {
            let source = add(sources, text.clone());
            let Some(node) = yaml::parse(&text, source, 0, problems) else {
                return tree::empty();
            };
            let Some(places) = settings else {
                return Decoder {
                    base: &base,
                    problems,
                }
                .file(&node);
            };
            match old::settings(&node, &base, problems) {
                Some(read) => {
                    places.extend(read.places);
                    read.tree
                }
                None => tree::empty(),
            }
        }
    }
}

fn decode_layer(
    layer: &Layer,
    base: &value::Base,
    sources: &mut Sources,
    problems: &mut Vec<Diagnostic>,
) -> Option<Entry> {
    match layer {
        Layer::Command(words) => {
            let mut text = String::from("--");
            let mut places = Vec::with_capacity(words.len());
            for word in words {
                text.push(' ');
                places.push((text.len(), text.len() + word.len()));
                text.push_str(word);
            }
            let whole = (3.min(text.len()), text.len());
            let source = sources.add_flag(text.into());
            let words = words
                .iter()
                .zip(places)
                .map(|(w, (a, b))| Spanned::new(w.clone(), Span::new(source, a, b)));
            let key = keys::at(&["command"])?;
            let span = Span::new(source, whole.0, whole.1);
            let body = Body::Leaf(Leaf::Words(words.collect()));
            let mut root = tree::empty();
            root.body = Body::Map(vec![Entry {
                key,
                key_span: span,
                span,
                body,
            }]);
            Some(root)
        }
        Layer::Option(Override { text, key, value }) => {
            let source = sources.add_flag(text.as_str().into());
            let name = text.get(key.0..key.1).unwrap_or_default();
            if *value == text.len() && !text.ends_with('=') {
                let d = Diagnostic::error(
                    "E-OPTION",
                    Span::new(source, key.0, key.1),
                    "This option has no `=`",
                );
                problems.push(d.help("Write `-o key=value`, for example `-o memory=2G`"));
                return None;
            }
            let mut from = key.0;
            let mut path = Vec::new();
            for word in name.split('.') {
                // `disks[0]` is `disks.0`, as plan and messages write it.
                let (list, index) = match word.strip_suffix(']').and_then(|w| w.split_once('[')) {
                    Some((list, index)) => (list, Some(index)),
                    None => (word, None),
                };
                let mut part = |text, at: usize| {
                    path.push(Spanned::new(
                        text,
                        Span::new(source, at, at + str::len(text)),
                    ));
                };
                part(list, from);
                index
                    .into_iter()
                    .for_each(|index| part(index, from + list.len() + 1));
                from += word.len() + 1;
            }
            flag_value(text, *value, source, &path, base, problems)
        }
        Layer::Flag(Flag { text, key, value }) => {
            let source = sources.add_flag(text.as_str().into());
            let span = Span::new(source, 0, value.saturating_sub(1));
            let path: Vec<Spanned<&str>> = key
                .split('.')
                .map(|word| Spanned::new(word, span))
                .collect();
            flag_value(text, *value, source, &path, base, problems)
        }
    }
}

fn flag_value(
    text: &str,
    at: usize,
    source: u16,
    path: &[Spanned<&str>],
    base: &value::Base,
    problems: &mut Vec<Diagnostic>,
) -> Option<Entry> {
    let value = text.get(at..).unwrap_or_default();
    let node = if value.starts_with(['[', '{', '"', '\'']) {
        yaml::parse(value, source, at, problems)?
    } else {
        yaml::plain(value, Span::new(source, at, text.len()))
    };
    Decoder { base, problems }.flag(path, &node)
}

/// A word of the key table as the type that a spec has for it.
pub(crate) fn word<T: for<'de> Deserialize<'de>>(given: Given<&'static str>) -> Option<T> {
    let word: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        given?.value.into_deserializer();
    T::deserialize(word).ok()
}

/// A time of the command line, as times in scenarios: 1500ms, 10s, 2m, 1h.
///
/// # Errors
/// One sentence.
pub fn time(text: &str) -> Result<std::time::Duration, String> {
    match value::time(text) {
        Ok(Some(time)) => Ok(time),
        Ok(None) => Err("a time is needed here".into()),
        Err(fault) => Err(fault.message),
    }
}

/// One value with its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its path, such as `disks[0].cache`.
    pub key: String,
    /// The value, as it could be written in a scenario.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Keys that no preset could recommend anything for.
const NOT_RECOMMENDED: [&str; 8] = [
    "preset",
    "feature",
    "name",
    "store",
    "hosts",
    "on",
    "firmware.descriptors",
    "uuid",
];

impl Parsed {
    /// The entry at a path such as `disks[0].cache`, or the nearest one above it that was written.
    fn nearest(&self, path: &str) -> (&Entry, bool) {
        let mut entry: &Entry = &self.tree;
        for name in path.split(['.', '[', ']']).filter(|n| !n.is_empty()) {
            let next = match (&entry.body, name.parse::<usize>()) {
                (Body::List(members), Ok(index)) => members.get(index),
                _ => entry.get(name),
            };
            match next {
                Some(next) => entry = next,
                None => return (entry, false),
            }
        }
        (entry, true)
    }

    /// Where a key such as `disks[0].cache` was written, or what it belongs to.
    pub fn span_of(&self, path: &str) -> Span {
        self.nearest(path).0.span
    }

    /// Whether a key of which `wanted` says so has its value from this very place.
    pub fn names(&self, span: Span, wanted: impl Fn(&str) -> bool) -> bool {
        let mut found = false;
        tree::settings(&self.tree, String::new(), &mut |key, _, at| {
            found |= at == span && wanted(&key);
        });
        found && !span.is_none()
    }

    /// A value as it was written, under a key such as `disks[0].cache`.
    pub(crate) fn text_of(&self, path: &str) -> Option<String> {
        let (entry, written) = self.nearest(path);
        written.then(|| tree::text(entry))
    }

    /// Whether anybody wrote a key such as `disks[0].cache`.
    pub fn is_written(&self, path: &str) -> bool {
        self.nearest(path).1
    }

    /// The text at a key such as `on`, a name or a path, if somebody wrote it.
    pub fn text(&self, key: &str) -> Option<String> {
        match &self.tree.get(key)?.body {
            Body::Leaf(Leaf::Text(text)) => Some(text.clone()),
            Body::Leaf(Leaf::Path(path)) => Some(path.to_str()?.to_owned()),
            _ => None,
        }
    }

    /// Every value that was written, as [`write()`] takes it.
    pub fn data(&self) -> serde_json::Value {
        json::of(&self.tree)
    }

    /// What the scenario and the command line say, with absolute paths, `base` being where relative ones start: a
    /// scenario that means the same wherever its text is put. Presets stay presets: what they recommend is advice, and
    /// would be an order if it were written out.
    pub fn portable(&self, base: &Path) -> serde_json::Value {
        let mut data = json::of(&self.alone);
        json::absolute(&mut data, keys::KEYS, base);
        data
    }

    /// Every value that was written over what the presets recommend, and differs from it.
    pub(crate) fn differences(&self) -> Vec<crate::compile::Difference> {
        let written = |tree: &Entry| {
            let mut all = Vec::new();
            tree::settings_written(tree, String::new(), &mut |key, value, span| {
                all.push((key, value, span))
            });
            all
        };
        let advice = written(&self.recommended);
        let recommended = |key: &str| {
            let find = |key: &str| {
                advice
                    .iter()
                    .find(|(k, _, _)| k == key)
                    .map(|(_, v, _)| v.clone())
            };
            let of_storage = || {
                let (list, rest) = key.split_once("].")?;
                find(&format!("storage.{rest}")).filter(|_| list.starts_with("disks["))
            };
            find(key)
                .or_else(of_storage)
                .or_else(|| keys::default_of(key))
        };
        let mut out = Vec::new();
        for (key, value, span) in written(&self.tree) {
            let from_preset = matches!(self.sources.origin(span), Origin::Preset { .. });
            // What `storage` puts into disks is told once.
            let from_storage = || {
                key.starts_with("disks[") && self.tree.get("storage").is_some_and(|s| s.holds(span))
            };
            let recommended = recommended(&key);
            if from_preset
                || from_storage()
                || recommended.as_deref() == Some(&value)
                || NOT_RECOMMENDED.contains(&key.as_str())
            {
                continue;
            }
            out.push(crate::compile::Difference {
                key: self.short(&key),
                recommended,
                current: value,
                origin: self.sources.origin(span),
                gave_way_to: None,
            });
        }
        out
    }

    /// `disk.cache` for `disks[0].cache` where there is one disk only.
    fn short(&self, key: &str) -> String {
        let short = || {
            let (list, rest) = key.split_once("[0]")?;
            let Body::List(members) = &self.tree.get(list)?.body else {
                return None;
            };
            let singular = list.strip_suffix('s')?;
            let key = keys::find(keys::KEYS, list)?;
            let alias = key.aliases.iter().find(|alias| **alias == singular)?;
            (members.len() == 1).then(|| format!("{alias}{rest}"))
        };
        short().unwrap_or_else(|| key.to_owned())
    }

    /// Every value that was written, and the default of every key of the table that has one.
    pub fn settings(&self) -> Vec<Setting> {
        let mut out = Vec::new();
        tree::settings(&self.tree, String::new(), &mut |key, value, span| {
            out.push(Setting {
                key,
                value,
                origin: self.sources.origin(span),
            });
        });
        out
    }
}

/// The preset or feature set whose name is nearest to that of a scenario that is not there.
pub(crate) fn near_preset(path: &std::path::Path) -> Option<&'static str> {
    let sets = presets::PRESETS.iter().chain(presets::FEATURES);
    suggest::nearest(path.to_str()?, sets.map(|preset| preset.name))
}

#[cfg(test)]
mod tests;
