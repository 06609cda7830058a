//! Presets and feature sets: scenarios of this program that others start from. They are data in the same language;
//! the text behind `#` on a line is the reason of its value, then `| risk: …`, then `| see: …`.

#![forbid(unsafe_code)]

use crate::diag::{Diagnostic, Diagnostics, Severity, Sources, Span, Spanned, quoted};

use super::decode::Decoder;
use super::suggest::nearest;
use super::tree::{self, Body, Entry, Leaf};
use super::{value, yaml};

/// A scenario to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! files {
    ($dir:literal: $($name:literal),*) => {
        &[$(Preset { name: $name, text: include_str!(concat!($dir, "/", $name, ".yaml")) }),*]
    };
}

/// Whole machines, in the order in which they are listed.
pub const PRESETS: &[Preset] = files!("presets": "desktop", "computation", "securevm", "testing-os", "easy-migration", "soft-rt");

/// Sets of settings to put on top of them.
pub const FEATURES: &[Preset] = files!("features":
    "cpu_perf", "system_perf", "security", "memory_perf", "storage_perf", "video_perf", "network_perf", "clock_perf",
    "host_hardware", "host_fs", "sev", "firmware");

/// The preset of a name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}

/// The feature set of a name.
pub fn feature(name: &str) -> Option<&'static Preset> {
    FEATURES.iter().find(|p| p.name == name)
}

impl Preset {
    /// What it is, in one line.
    pub fn about(&self) -> &'static str {
        let said = self
            .text
            .lines()
            .find_map(|l| l.strip_prefix("description: "));
        let said = said.map(|l| l.split("  #").next().unwrap_or(l));
        let comment = || {
            self.text
                .lines()
                .find_map(|l| l.split_once("# ").map(|(_, c)| c))
        };
        said.or_else(comment).unwrap_or_default().trim()
    }
}

/// Why a value of a preset is as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// Why.
    pub why: String,
    /// What may go wrong with it.
    pub risk: String,
    /// Where to read more.
    pub see: String,
}

/// The reason that stands behind a value on its line of a preset.
pub fn reason(line: &str) -> Option<Reason> {
    let at = line.find(" # ").map(|at| at + 3)?;
    let mut reason = Reason::default();
    for part in line.get(at..)?.split('|').map(str::trim) {
        match (part.strip_prefix("risk: "), part.strip_prefix("see: ")) {
            (Some(risk), _) => reason.risk = risk.to_owned(),
            (_, Some(see)) => reason.see = see.to_owned(),
            _ => reason.why = part.to_owned(),
        }
    }
    Some(reason)
}

/// What the presets and feature sets of a scenario say together.
pub(super) struct Base {
    pub(super) tree: Entry,
    pub(super) names: Vec<&'static str>,
}

/// Finds and joins them. `asked` are the trees that go on top, the last one wins: what they say cannot be in conflict.
pub(super) fn base(
    asked: &[&Entry],
    sources: &mut Sources,
    problems: &mut Vec<Diagnostic>,
) -> Base {
    let names = |key: &str| {
        let given = asked
            .iter()
            .rev()
            .find_map(|tree| match &tree.get(key)?.body {
                Body::Leaf(Leaf::Words(words)) => Some(words.as_slice()),
                _ => None,
            });
        given.unwrap_or_default()
    };
    let mut base = Base {
        tree: tree::empty(),
        names: Vec::new(),
    };
    for (key, list, known) in [
        ("preset", names("preset"), PRESETS),
        ("feature", names("feature"), FEATURES),
    ] {
        let mut level: Option<Entry> = None;
        for name in list {
            let Some(preset) = known.iter().find(|p| p.name == name.value) else {
                problems.push(unknown(key, name, known));
                continue;
            };
            if base.names.contains(&preset.name) {
                continue;
            }
            base.names.push(preset.name);
            let tree = read(key, preset, sources, problems);
            match &mut level {
                None => level = Some(tree),
                Some(level) => {
                    conflicts(level, &tree, asked, &mut Vec::new(), problems);
                    tree::merge(level, tree, problems);
                }
            }
        }
        if let Some(level) = level {
            tree::merge(&mut base.tree, level, problems);
        }
    }
    base
}

fn unknown(key: &str, name: &Spanned<String>, known: &[Preset]) -> Diagnostic {
    let what = if key == "preset" {
        "preset"
    } else {
        "feature set"
    };
    let mut d = Diagnostic::error(
        "E-PRESET",
        name.span,
        format!("There is no {what} {}", quoted(&name.value)),
    );
    if let Some(near) = nearest(&name.value, known.iter().map(|p| p.name)) {
        d = d.label(format!("did you mean `{near}`?"));
    }
    let names: Vec<&str> = known.iter().map(|p| p.name).collect();
    d.help(format!("There are {}", names.join(", ")))
}

fn read(
    key: &str,
    preset: &Preset,
    sources: &mut Sources,
    problems: &mut Vec<Diagnostic>,
) -> Entry {
    let source = sources.add_preset(&format!("{key} {}", preset.name), preset.text.into());
    let base = value::Base::default();
    match yaml::parse(preset.text, source, 0, problems) {
        Some(node) => Decoder {
            base: &base,
            problems,
        }
        .file(&node),
        None => tree::empty(),
    }
}

/// Values that two presets disagree on, and that nothing on top decides.
fn conflicts(
    a: &Entry,
    b: &Entry,
    asked: &[&Entry],
    path: &mut Vec<&'static str>,
    problems: &mut Vec<Diagnostic>,
) {
    if path.as_slice() == ["description"] {
        return;
    }
    if let (Body::Map(ours), Body::Map(theirs)) = (&a.body, &b.body) {
        for one in ours {
            if let Some(other) = theirs.iter().find(|e| e.key.name == one.key.name) {
                path.push(one.key.name);
                conflicts(one, other, asked, path, problems);
                path.pop();
            }
        }
        return;
    }
    let decided = asked.iter().any(|tree| {
        path.iter()
            .try_fold(*tree, |entry, name| entry.get(name))
            .is_some()
    });
    let (ours, theirs) = (tree::text(a), tree::text(b));
    if ours == theirs || decided {
        return;
    }
    let message = format!("The presets disagree on `{}`", path.join("."));
    problems.push(
        Diagnostic::error("E-PRESET-CONFLICT", b.span, message)
            .label(theirs)
            .also(a.span, ours)
            .help(format!(
                "Say `{}` in the scenario, or keep one of the two",
                path.join(".")
            )),
    );
}

/// The messages that reading every preset and feature set brings; there are none.
pub fn check_all() -> Diagnostics {
    let mut sources = Sources::default();
    let mut problems = Vec::new();
    for (key, list) in [("preset", PRESETS), ("feature", FEATURES)] {
        for preset in list {
            read(key, preset, &mut sources, &mut problems);
        }
    }
    debug_assert!(
        problems
            .iter()
            .all(|d| d.severity == Severity::Error && d.span != Span::NONE)
    );
    Diagnostics::new(problems, std::sync::Arc::new(sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_say_what_the_language_knows_and_why() {
        assert_eq!(check_all().render(false), "");
        for preset in PRESETS.iter().chain(FEATURES) {
            assert!(preset.about().len() > 10, "{}", preset.name);
            for line in preset
                .text
                .lines()
                .filter(|l| !l.starts_with('#') && !l.trim_end().ends_with(':'))
            {
                let trivial = [
                    "tpm: none",
                    "sound: none",
                    "dir: /var",
                    "fmode",
                    "dmode",
                    "target: host",
                ];
                assert!(
                    reason(line).is_some() || trivial.iter().any(|t| line.contains(t)),
                    "{}: {line}",
                    preset.name
                );
            }
        }
    }

    #[test]
    fn a_reason_has_three_parts() {
        let reason =
            reason("  ksm: true  # saves memory | risk: timing tells | see: ksm.rst").unwrap();
        assert_eq!(
            (
                reason.why.as_str(),
                reason.risk.as_str(),
                reason.see.as_str()
            ),
            ("saves memory", "timing tells", "ksm.rst")
        );
    }
}
