//! The key table: every word a scenario can say, with its type, unit, range, default, meaning and where it ends.
//!
//! Decoding, spelling advice, `explain`, the JSON schema and the reference all read this one table.

#![forbid(unsafe_code)]

mod devices;
mod hardware;
mod machine;
mod platform;
mod table;
mod words;

use serde::Serialize;

pub(crate) use table::FOREIGN;
pub use table::KEYS;

/// One key. `disks[].cache` is the key `cache` of the list `disks`.
#[derive(Debug, Serialize)]
pub struct Key {
    /// The word.
    pub name: &'static str,
    /// Other spellings that mean the same.
    pub aliases: &'static [&'static str],
    /// What its value is.
    pub kind: Kind,
    /// What holds when nobody says otherwise; empty where that is nothing.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Why the default or the range is as it is.
    pub reason: &'static str,
    /// A value that is right.
    pub example: &'static str,
    /// The register, table or command line word that it ends in.
    pub register: &'static str,
    /// The element of libvirt's domain XML that says the same.
    pub xml: &'static str,
    /// Why the monitor of this build cannot do it, where only the domain XML can say it.
    pub elsewhere: Option<&'static str>,
    /// Values, as text, that describe the monitor of this build as it is, in spite of `elsewhere`; `*` is every one.
    pub as_is: &'static [&'static str],
}

/// What the value of a key is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `true`, `false`, `yes`, `no`, `on`, `off`.
    Bool,
    /// A whole number within a range.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// An amount of memory; a bare number is MiB.
    Size,
    /// A span of time: `1500ms`, `10s`, `2m`, `1h`; a bare number is seconds; `none` is no limit.
    Time,
    /// One line of text.
    Text,
    /// A name: letters, digits, `-`, `_`, `.`, `+`, `:`; at most `max` bytes.
    Name {
        /// Longest, bytes.
        max: usize,
    },
    /// A file of the host, relative to the scenario's directory; `~` is the home directory.
    Path,
    /// One path or a list of them.
    Paths,
    /// A host end of a byte stream.
    Endpoint,
    /// One of these words.
    Word(&'static [Word]),
    /// A command: text split as a shell splits it, or a list.
    Words,
    /// Names and values: a map, or a list of `NAME=value`.
    Env,
    /// Names and values: a map; each value one of these words, or any text.
    Pairs(Option<&'static [Word]>),
    /// One of these words, or a list of them.
    Set(&'static [Word]),
    /// One text, or a list of them.
    Texts,
    /// Permission bits, octal with or without a leading 0: `644`, `0644`, `0o644`.
    Mode,
    /// Keys below this one. `scalar` names the key that a bare value is for.
    Map {
        /// The keys.
        keys: &'static [Key],
        /// The key that a bare value is for.
        scalar: Option<&'static str>,
    },
    /// A list of maps. `scalar` names the key that a bare value is for.
    List {
        /// The keys of each member.
        keys: &'static [Key],
        /// The key that a bare value is for.
        scalar: &'static str,
        /// Most members.
        max: usize,
    },
    /// Another place for the key of this path.
    Alias(&'static [&'static str]),
}

/// One allowed word.
#[derive(Debug, Serialize)]
pub struct Word {
    /// The word.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Why it is refused, where the word is known elsewhere but cannot be done.
    pub refused: Option<&'static str>,
    /// Why the monitor of this build cannot do it, where only the domain XML can say it.
    pub elsewhere: Option<&'static str>,
}

const fn word(name: &'static str, meaning: &'static str) -> Word {
    Word {
        name,
        meaning,
        refused: None,
        elsewhere: None,
    }
}

/// A word that only the domain XML can say.
const fn elsewhere(name: &'static str, meaning: &'static str, why: &'static str) -> Word {
    Word {
        name,
        meaning,
        refused: None,
        elsewhere: Some(why),
    }
}

const fn refused(name: &'static str, why: &'static str) -> Word {
    Word {
        name,
        meaning: "",
        refused: Some(why),
        elsewhere: None,
    }
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        aliases: &[],
        kind,
        default,
        meaning,
        reason: "",
        example,
        register: "",
        xml: "",
        elsewhere: None,
        as_is: &[],
    }
}

impl Key {
    const fn aka(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn why(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    const fn ends(mut self, register: &'static str, xml: &'static str) -> Self {
        self.register = register;
        self.xml = xml;
        self
    }

    /// The monitor of this build cannot do it; only the domain XML can say it.
    const fn not_here(mut self, why: &'static str) -> Self {
        self.elsewhere = Some(why);
        self
    }

    /// Values that describe the monitor of this build as it is.
    const fn but(mut self, values: &'static [&'static str]) -> Self {
        self.as_is = values;
        self
    }

    /// Whether `word` is this key or another spelling of it.
    pub fn is(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }
}

/// Finds a key by one of its spellings.
pub fn find(keys: &'static [Key], word: &str) -> Option<&'static Key> {
    keys.iter().find(|k| k.is(word))
}

/// The key of a path of canonical names; list indices are left out.
pub fn at(path: &[&str]) -> Option<&'static Key> {
    let (last, front) = path.split_last()?;
    let mut keys = KEYS;
    for name in front {
        keys = below(&find(keys, name)?.kind)?;
    }
    find(keys, last)
}

/// The default of a key such as `disks[0].cache`, where it has one.
pub(crate) fn default_of(path: &str) -> Option<String> {
    let names: Vec<&str> = path
        .split('.')
        .map(|name| name.split('[').next().unwrap_or(name))
        .collect();
    let key = at(&names)?;
    (!key.default.is_empty()).then(|| key.default.to_owned())
}

/// The keys below a map or a list.
pub fn below(kind: &Kind) -> Option<&'static [Key]> {
    match kind {
        Kind::Map { keys, .. } | Kind::List { keys, .. } => Some(keys),
        _ => None,
    }
}

impl Kind {
    /// What of it the monitor of this build can do, in words.
    pub fn here(&self) -> String {
        match self {
            Kind::Word(words) | Kind::Set(words) => {
                let names: Vec<&str> = words
                    .iter()
                    .filter(|w| w.refused.is_none() && w.elsewhere.is_none())
                    .map(|w| w.name)
                    .collect();
                if names.is_empty() {
                    "nothing".into()
                } else {
                    names.join(" or ")
                }
            }
            other => other.expected(),
        }
    }

    /// What is expected, in words.
    pub fn expected(&self) -> String {
        match self {
            Kind::Bool => "true or false (also yes, no, on, off)".into(),
            Kind::Count { min: 0, max } if *max == u64::from(u32::MAX) => "a whole number".into(),
            Kind::Count { min, max } if *max == u64::from(u32::MAX) => {
                format!("a whole number from {min}")
            }
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Size => {
                "an amount of memory: a number of MiB, or one with K, M, G, T, KiB, MiB, GiB, TiB"
                    .into()
            }
            Kind::Time => "a time: a number of seconds, or one with ms, s, m, h; or `none`".into(),
            Kind::Text => "text".into(),
            Kind::Name { max } => {
                format!("a name of 1 to {max} letters, digits, `-`, `_`, `.`, `+`, `:`")
            }
            Kind::Path => "a file name".into(),
            Kind::Paths => "a file name or a list of them".into(),
            Kind::Endpoint => {
                "one of stdio, stdin, stdout, stderr, null, file:PATH, unix:PATH, fd:NUMBER".into()
            }
            Kind::Word(words) => format!("one of {}", list(words)),
            Kind::Words => "a command line, or a list of its words".into(),
            Kind::Env => "a map of names to values, or a list of NAME=value".into(),
            Kind::Pairs(None) => "a map of names to values".into(),
            Kind::Pairs(Some(words)) => format!("a map of names to one of {}", list(words)),
            Kind::Set(words) => format!("one or a list of {}", list(words)),
            Kind::Texts => "text, or a list of texts".into(),
            Kind::Mode => "permission bits in octal, 0000 to 0777".into(),
            Kind::Map {
                scalar: Some(_), ..
            } => "a single value or a map".into(),
            Kind::Map { .. } => "a map of keys".into(),
            Kind::List { .. } => "a list".into(),
            Kind::Alias(_) => String::new(),
        }
    }
}

fn list(words: &[Word]) -> String {
    words
        .iter()
        .filter(|w| w.refused.is_none())
        .map(|w| w.name)
        .collect::<Vec<_>>()
        .join(", ")
}

const ANY: u64 = u32::MAX as u64;

/// The word that a boolean stands for (YAML 1.1 reads `on`, `off`, `yes`, `no` as such): `true` or `false` where they
/// are words, else `on` or `off`, else `none` and the only other word.
pub(crate) fn boolean_word(words: &'static [Word], flag: bool) -> Option<&'static str> {
    let find = |name: &str| words.iter().map(|w| w.name).find(|w| *w == name);
    match flag {
        false => find("false")
            .or_else(|| find("off"))
            .or_else(|| find("none")),
        true => find("true").or_else(|| find("on")).or_else(|| match words {
            [a, b] if a.name == "none" => Some(b.name),
            _ => None,
        }),
    }
}
