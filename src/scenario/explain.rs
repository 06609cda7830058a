//! What there is to say about a key: its entry of the key table spelled out, and what a scenario says of it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::Serialize;

use super::decode::{elsewhere, listed};
use super::keys::{self, FOREIGN, KEYS, Key, Kind};
use super::presets::{FEATURES, PRESETS, Reason, reason};
use super::suggest::nearest;
use super::{Parsed, tree, value};
use crate::diag::{Diagnostic, Diagnostics, Origin, Sources, Span, quoted};

/// One key, explained. Fields are added, never renamed; what there is nothing to say about is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Article {
    /// Its path: `disks[].cache` is the key `cache` of each member of `disks`.
    pub key: String,
    /// Other spellings, as whole paths.
    pub aliases: Vec<String>,
    /// Other places where the same can be said.
    pub short: Vec<String>,
    /// Kind of its value, one word.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What its value is, in words.
    pub expected: String,
    /// Smallest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// Largest number; of a name most bytes, of a list most members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The words that it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Choice>,
    /// What holds when nobody says otherwise.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Why the default or the range is as it is.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    /// The register, table or command line word that it ends in.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub register: &'static str,
    /// The element of libvirt's domain XML that says the same.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub xml: &'static str,
    /// Whether the monitor of this build has it.
    pub here: bool,
    /// Why it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<&'static str>,
    /// Values that the monitor of this build takes all the same, because it is as they say; `*` is every one.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub as_is: &'static [&'static str],
    /// How it could stand in a scenario.
    pub example: String,
    /// The same as an option of the command line, after `-o`; a map or a list has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// The keys below it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// Where `settings` of a scenario are looked for.
    #[serde(skip)]
    place: String,
}

/// A word that a key takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The word.
    pub word: &'static str,
    /// What it means.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub meaning: &'static str,
    /// Why the monitor of this build cannot do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<&'static str>,
    /// Why nothing can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'static str>,
}

/// A key below another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its path.
    pub key: String,
    /// What it means.
    pub meaning: &'static str,
}

/// What a scenario says of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The key, with the numbers of members: `disks[0].cache`.
    pub key: String,
    /// The value, as it could be written.
    pub value: String,
    /// Who says so.
    pub origin: Origin,
    /// What stands behind it on its line of a preset or feature set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Explains the key that `text` names, as `disks.cache`, `disks[0].cache` or `disks.0.cache`, in any spelling.
///
/// # Errors
/// There is no such key.
pub fn explain(text: &str) -> Result<Article, Diagnostics> {
    match walk(text) {
        Ok((path, place)) => Ok(article(&path, place)),
        Err(unknown) => {
            let mut sources = Sources::default();
            let source = sources.add_flag(text.into());
            let span = Span::new(source, unknown.from, unknown.from + unknown.word.len());
            let problem = unknown.diagnostic(span);
            Err(Diagnostics::new(vec![problem], Arc::new(sources)))
        }
    }
}

/// The message for a word that names neither a file nor a key, a preset or a feature set.
pub fn neither(text: &str) -> Diagnostics {
    if let Err(mut messages) = explain(text)
        && walk(text).is_err_and(|unknown| !unknown.above.is_empty())
    {
        for message in &mut messages.list {
            message.why = Some(format!("There is no file {} either", quoted(text)));
        }
        return messages;
    }
    let mut sources = Sources::default();
    let source = sources.add_flag(text.into());
    let message = format!(
        "{} is neither a file nor a key of the language",
        quoted(text)
    );
    let span = Span::new(source, 0, text.len());
    let mut d = Diagnostic::error("E-UNKNOWN-KEY", span, message)
        .why("No preset and no feature set has this name either");
    // Groups of keys first: between `host` and `hosts`, and before the feature set `host_fs`, a typo means the group.
    let keys = spellings(KEYS);
    let sets = PRESETS.iter().chain(FEATURES).map(|p| p.name);
    if let Some(near) = nearest(text, keys.chain(sets)) {
        d.label = format!("did you mean `{near}`?");
    } else if let Some(advice) = walk(text).err().map(|unknown| unknown.diagnostic(span)) {
        d.label = advice.label;
        d.help = advice.help;
    }
    Diagnostics::new(vec![d], Arc::new(sources))
}

/// Every key, each after the one it belongs to, in the order of the table. What is only short for another key has no
/// article of its own.
pub fn all() -> Vec<Article> {
    fn collect(above: &[&'static Key], keys: &'static [Key], out: &mut Vec<Article>) {
        for key in keys.iter().filter(|k| !matches!(k.kind, Kind::Alias(_))) {
            let path: Vec<&'static Key> = above.iter().copied().chain([key]).collect();
            out.push(article(&path, named(&path)));
            collect(&path, keys::below(&key.kind).unwrap_or_default(), out);
        }
    }
    let mut out = Vec::new();
    collect(&[], KEYS, &mut out);
    out
}

impl Parsed {
    /// What this scenario says of a key and of those below it; the default where nobody says anything.
    pub fn said(&self, article: &Article) -> Vec<Said> {
        let mut out = Vec::new();
        tree::settings(&self.tree, String::new(), &mut |key, value, span| {
            if below(&article.place, &key) {
                out.push(self.saying(key, value, span));
            }
        });
        out
    }

    /// Everything that this scenario, its presets and its feature sets say; no defaults.
    pub fn sayings(&self) -> Vec<Said> {
        let mut out = Vec::new();
        tree::settings_written(&self.tree, String::new(), &mut |key, value, span| {
            out.push(self.saying(key, value, span));
        });
        out
    }

    fn saying(&self, key: String, value: String, span: Span) -> Said {
        let origin = self.sources.origin(span);
        let reason = match origin {
            Origin::Preset { .. } => self.sources.line(span).and_then(reason),
            _ => None,
        };
        Said {
            key,
            value,
            origin,
            reason,
        }
    }
}

/// Whether the setting `key` is the one at `place` or below it; `[]` stands for every member.
fn below(place: &str, key: &str) -> bool {
    let mut rest = key;
    for (number, part) in place.split("[]").enumerate() {
        if number > 0 {
            let Some((_, after)) = rest.split_once(']') else {
                return false;
            };
            rest = after;
        }
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty() || rest.starts_with(['.', '['])
}

/// A word on the way to a key that is none.
struct Unknown {
    word: String,
    from: usize,
    above: Vec<&'static Key>,
    keys: &'static [Key],
}

/// The keys on the way, and the path in the form of settings.
fn walk(text: &str) -> Result<(Vec<&'static Key>, String), Unknown> {
    let mut path: Vec<&'static Key> = Vec::new();
    let mut place = String::new();
    let mut keys = KEYS;
    let mut from = 0;
    for word in text.split(['.', '[']) {
        let start = from;
        from += word.len() + 1;
        let bracket = text.get(..start).is_some_and(|t| t.ends_with('['));
        let index = match (bracket, word.strip_suffix(']')) {
            (true, Some(inside)) => Some(inside),
            (true, None) => None,
            (false, _) => Some(word).filter(|w| !w.is_empty()),
        };
        let index = index.filter(|i| i.is_empty() || value::count(i).is_some());
        let in_list = matches!(path.last(), Some(key) if matches!(key.kind, Kind::List { .. }));
        if let Some(index) = index
            && in_list
            && !place.ends_with(']')
        {
            place += &format!("[{index}]");
            continue;
        }
        let Some(key) = keys::find(keys, word).filter(|_| !bracket) else {
            return Err(Unknown {
                word: word.to_owned(),
                from: start,
                above: path,
                keys,
            });
        };
        if let Kind::Alias(target) = key.kind {
            path.clear();
            place.clear();
            keys = KEYS;
            for name in target {
                let key = keys::find(keys, name);
                step(&mut path, &mut place, &mut keys, key);
            }
        } else {
            step(&mut path, &mut place, &mut keys, Some(key));
        }
    }
    Ok((path, place))
}

fn step(
    path: &mut Vec<&'static Key>,
    place: &mut String,
    keys: &mut &'static [Key],
    key: Option<&'static Key>,
) {
    let Some(key) = key else { return };
    if let Some(last) = path.last() {
        if matches!(last.kind, Kind::List { .. }) && !place.ends_with(']') {
            place.push_str("[]");
        }
        place.push('.');
    }
    place.push_str(key.name);
    path.push(key);
    *keys = keys::below(&key.kind).unwrap_or_default();
}

impl Unknown {
    fn diagnostic(self, span: Span) -> Diagnostic {
        let Unknown {
            word, above, keys, ..
        } = self;
        let place = match above.is_empty() {
            true => "A scenario".to_owned(),
            false => quoted(&named(&above)),
        };
        let message = format!("{place} has no key {}", quoted(&word));
        let mut d = Diagnostic::error("E-UNKNOWN-KEY", span, message);
        if keys.is_empty() {
            return d.help("No keys are below it");
        }
        let spellings = spellings(keys);
        let advice = FOREIGN.iter().find(|(name, _)| *name == word);
        if let Some((_, advice)) = advice {
            return d.help(format!("Instead, {advice}"));
        }
        if let Some(others) = elsewhere(&word) {
            return d.help(format!("There is {others}"));
        }
        if let Some(near) = nearest(&word, spellings) {
            d = d.label(format!("did you mean `{near}`?"));
        } else if let Some(near) = far(&word) {
            return d.label(format!("did you mean `{near}`?"));
        }
        d.help(listed(keys))
    }
}

/// Every word that names one of `keys`.
fn spellings(keys: &'static [Key]) -> impl Iterator<Item = &'static str> {
    keys.iter()
        .flat_map(|k| [k.name].into_iter().chain(k.aliases.iter().copied()))
}

/// The key anywhere in the table whose own name is nearest to `word`.
fn far(word: &str) -> Option<String> {
    let all = all();
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let names: Vec<String> = all.iter().map(|article| last(&article.key)).collect();
    let near = nearest(word, names.iter().map(String::as_str))?;
    let found = all.into_iter().zip(&names).find(|(_, name)| *name == near);
    found.map(|(article, _)| article.key)
}

/// The path of keys in the form of settings, for every member of lists.
fn named(path: &[&'static Key]) -> String {
    let mut out = String::new();
    for (number, key) in path.iter().enumerate() {
        if number > 0 {
            out.push('.');
        }
        out.push_str(key.name);
        if number + 1 < path.len() && matches!(key.kind, Kind::List { .. }) {
            out.push_str("[]");
        }
    }
    out
}

fn article(path: &[&'static Key], place: String) -> Article {
    let Some((key, above)) = path.split_last() else {
        return article(&[&tree::ROOT], place);
    };
    let full = named(path);
    let front = full.strip_suffix(key.name).unwrap_or_default();
    let target: Vec<&str> = path.iter().map(|k| k.name).collect();
    let mut short: Vec<String> = KEYS
        .iter()
        .filter(|k| matches!(k.kind, Kind::Alias(t) if t == target))
        .flat_map(|k| [k.name].into_iter().chain(k.aliases.iter().copied()))
        .map(str::to_owned)
        .collect();
    match above.last().map(|k| &k.kind) {
        Some(Kind::Map {
            scalar: Some(name), ..
        }) if *name == key.name => {
            short.push(format!("a bare value of {}", named(above)));
        }
        Some(Kind::List { scalar, .. }) if *scalar == key.name => {
            short.push(format!("a bare member of {}", named(above)));
        }
        _ => {}
    }
    let (min, max) = range(&key.kind);
    let words = match key.kind {
        Kind::Word(words) | Kind::Set(words) | Kind::Pairs(Some(words)) => words,
        _ => &[],
    };
    let choice = |w: &'static keys::Word| Choice {
        word: w.name,
        meaning: w.meaning,
        elsewhere: w.elsewhere,
        refused: w.refused,
    };
    let members = keys::below(&key.kind).unwrap_or_default().iter();
    let member = |k: &'static Key| {
        let path: Vec<&'static Key> = path.iter().copied().chain([k]).collect();
        Member {
            key: named(&path),
            meaning: k.meaning,
        }
    };
    let leaf = keys::below(&key.kind).is_none();
    Article {
        aliases: key.aliases.iter().map(|a| format!("{front}{a}")).collect(),
        short,
        kind: kind(&key.kind),
        expected: key.kind.expected(),
        min,
        max,
        words: words.iter().map(choice).collect(),
        default: key.default,
        meaning: key.meaning,
        reason: key.reason,
        register: key.register,
        xml: key.xml,
        here: key.elsewhere.is_none(),
        elsewhere: key.elsewhere,
        as_is: key.as_is,
        example: example(path),
        option: leaf.then(|| format!("{}={}", full.replace("[]", ".0"), key.example)),
        members: members.map(member).collect(),
        key: full,
        place,
    }
}

/// A scenario that has nothing but this key.
fn example(path: &[&'static Key]) -> String {
    let mut out = String::new();
    let mut indent = String::new();
    for (number, key) in path.iter().enumerate() {
        let last = number + 1 == path.len();
        out += &format!("{indent}{}:", key.name);
        match (last, &key.kind) {
            (true, _) => out += &format!(" {}", key.example),
            (_, Kind::List { .. }) => {
                indent = " ".repeat(indent.len() + 2);
                out += &format!("\n{}", indent);
                out += "- ";
                // The first key of the member stands behind the dash.
                let rest = example(path.get(number + 1..).unwrap_or_default());
                let inner = " ".repeat(indent.len() + 2);
                out += &rest.replace('\n', &format!("\n{inner}"));
                return out;
            }
            _ => {
                indent = " ".repeat(indent.len() + 2);
                out.push('\n');
            }
        }
    }
    out
}

fn range(kind: &Kind) -> (Option<u64>, Option<u64>) {
    match kind {
        Kind::Count { min, max } => (Some(*min), (*max < u64::from(u32::MAX)).then_some(*max)),
        Kind::Name { max } | Kind::List { max, .. } => (None, u64::try_from(*max).ok()),
        _ => (None, None),
    }
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Count { .. } => "count",
        Kind::Size => "size",
        Kind::Time => "time",
        Kind::Text => "text",
        Kind::Name { .. } => "name",
        Kind::Path => "path",
        Kind::Paths => "paths",
        Kind::Endpoint => "endpoint",
        Kind::Word(_) => "word",
        Kind::Words => "words",
        Kind::Env => "env",
        Kind::Pairs(_) => "pairs",
        Kind::Set(_) => "set",
        Kind::Texts => "texts",
        Kind::Mode => "mode",
        Kind::Map { .. } => "map",
        Kind::List { .. } => "list",
        Kind::Alias(_) => "alias",
    }
}

#[cfg(test)]
mod tests;
