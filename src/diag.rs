//! Messages about what the user wrote: one place, one caret, what is wrong, why, and what to do.
//!
//! A [`Span`] is three numbers and names a place in one of the texts of a [`Sources`]: a file, or a flag of the
//! command line. [`Diagnostics`] carries the texts along, so it can be printed anywhere.

#![forbid(unsafe_code)]

mod render;

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

pub(crate) use render::quoted;
pub use render::{Words, columns, shown};
use render::{clip_around, line_starts, locate, render_one};

/// Most messages that are shown: whoever has more starts with these.
const MOST_SHOWN: usize = 200;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is built.
    Error,
    /// Legal, but unwise.
    Warning,
}

/// A place in a source text: `start..end` are byte offsets. The default is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    source: u16,
    start: u32,
    end: u32,
}

impl Span {
    /// No place: a default, or something the program itself decided.
    pub const NONE: Span = Span {
        source: u16::MAX,
        start: 0,
        end: 0,
    };

    pub(crate) fn new(source: u16, start: usize, end: usize) -> Self {
        let clip = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Span {
            source,
            start: clip(start),
            end: clip(end.max(start)),
        }
    }

    /// Whether this names a place at all.
    pub fn is_none(&self) -> bool {
        self.source == u16::MAX
    }

    /// The smaller place `from..to`, counted in bytes from the start of this one.
    pub(crate) fn part(self, from: usize, to: usize) -> Self {
        if self.is_none() {
            return self;
        }
        let at = |n: usize| {
            (self.start as usize)
                .saturating_add(n)
                .min(self.end as usize)
        };
        Span::new(self.source, at(from), at(to))
    }

    /// Byte offset of its start.
    pub(crate) fn start(self) -> usize {
        self.start as usize
    }

    /// Length in bytes.
    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

impl Default for Span {
    fn default() -> Self {
        Span::NONE
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it was written; [`Span::NONE`] for a default.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Puts value and place together.
    pub fn new(value: T, span: Span) -> Self {
        Spanned { value, span }
    }
}

/// Two values are equal wherever they were written.
impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

/// What kind of text a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SourceKind {
    File,
    Flag,
    Preset,
    Settings,
}

#[derive(Debug, Clone)]
struct Source {
    kind: SourceKind,
    name: String,
    text: Arc<str>,
    /// Where its lines begin, once somebody has asked for one.
    lines: OnceLock<Vec<u32>>,
}

impl Source {
    /// Line and column from 1, the line's text, and the place in it.
    fn locate(&self, at: usize) -> (usize, usize, &str, usize) {
        let lines = self.lines.get_or_init(|| line_starts(&self.text));
        locate(&self.text, lines, at)
    }
}

/// The texts that spans point into.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<Source>);

impl Sources {
    pub(crate) fn add_file(&mut self, name: &str, text: Arc<str>) -> u16 {
        self.add(SourceKind::File, name, text)
    }

    /// A preset or feature set of this program: `name` is `preset desktop` or `feature cpu_perf`.
    pub(crate) fn add_preset(&mut self, name: &str, text: Arc<str>) -> u16 {
        self.add(SourceKind::Preset, name, text)
    }

    /// The user's settings, which hold for every machine.
    pub(crate) fn add_settings(&mut self, name: &str, text: Arc<str>) -> u16 {
        self.add(SourceKind::Settings, name, text)
    }

    /// Whether a value is somebody's advice, not what was asked for in this scenario: a default, a preset's, or one
    /// of the settings for all machines.
    pub(crate) fn is_advice(&self, span: Span) -> bool {
        let source = self.0.get(usize::from(span.source));
        source.is_none_or(|s| matches!(s.kind, SourceKind::Preset | SourceKind::Settings))
    }

    /// The whole line of the text that a place is on.
    pub(crate) fn line(&self, span: Span) -> Option<&str> {
        let source = self.0.get(usize::from(span.source))?;
        let (_, _, text, _) = source.locate(span.start as usize);
        Some(text)
    }

    pub(crate) fn add_flag(&mut self, text: Arc<str>) -> u16 {
        self.add(SourceKind::Flag, "", text)
    }

    fn add(&mut self, kind: SourceKind, name: &str, text: Arc<str>) -> u16 {
        let id = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        if id != u16::MAX {
            self.0.push(Source {
                kind,
                name: name.to_owned(),
                text,
                lines: OnceLock::new(),
            });
        }
        id
    }

    /// Says in plain data where a place is.
    pub fn origin(&self, span: Span) -> Origin {
        let Some(source) = self.0.get(usize::from(span.source)) else {
            return Origin::Default;
        };
        match source.kind {
            SourceKind::Flag => Origin::Flag {
                text: source.text.to_string(),
            },
            SourceKind::File | SourceKind::Settings => {
                let (line, column, _, _) = source.locate(span.start as usize);
                let file = source.name.clone();
                match source.kind {
                    SourceKind::Settings => Origin::Settings { file, line, column },
                    _ => Origin::File { file, line, column },
                }
            }
            SourceKind::Preset => {
                let (line, _, _, _) = source.locate(span.start as usize);
                Origin::Preset {
                    name: source.name.clone(),
                    line,
                }
            }
        }
    }

    fn place(&self, span: Span, label: &str) -> Option<Place> {
        let source = self.0.get(usize::from(span.source))?;
        let (line, column, text, start) = source.locate(span.start as usize);
        let length = span.len().min(text.len().saturating_sub(start));
        let flag = source.kind == SourceKind::Flag;
        Some(Place {
            file: if flag {
                None
            } else {
                Some(source.name.clone())
            },
            flag: if flag {
                Some(source.text.to_string())
            } else {
                None
            },
            line,
            column,
            text: clip_around(text, start, length),
            label: label.to_owned(),
        })
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// A line of a file.
    File {
        /// Name of the file as the user gave it.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1, in characters.
        column: usize,
    },
    /// An option of the command line.
    Flag {
        /// The option as written.
        text: String,
    },
    /// A preset or a feature set of this program.
    Preset {
        /// `preset NAME` or `feature NAME`.
        name: String,
        /// Line of its file, from 1.
        line: usize,
    },
    /// A line of the settings file.
    Settings {
        /// Name of the file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1, in characters.
        column: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line, .. } => write!(f, "{}:{line}", shown(file)),
            Origin::Flag { text } => f.write_str(&shown(text)),
            Origin::Preset { name, line } => write!(f, "{name}:{line}"),
            Origin::Settings { file, line, .. } => write!(f, "settings {}:{line}", shown(file)),
        }
    }
}

/// One message.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// Stable name, `E-…` or `W-…`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, one line.
    pub message: String,
    /// Where.
    pub span: Span,
    /// A word or two under the caret.
    pub label: String,
    /// Other places that matter, each with what it is.
    pub also: Vec<(Span, String)>,
    /// Why it matters.
    pub why: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, span, message.into())
    }

    /// A warning at a place.
    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Warning, span, message.into())
    }

    fn new(code: &'static str, severity: Severity, span: Span, message: String) -> Self {
        let (label, also, why, help) = (String::new(), Vec::new(), None, None);
        Diagnostic {
            code,
            severity,
            message,
            span,
            label,
            also,
            why,
            help,
        }
    }

    /// Adds what stands under the caret.
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = text.into();
        self
    }

    /// Adds another place.
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.also.push((span, text.into()));
        self
    }

    /// Adds the reason.
    pub fn why(mut self, text: impl Into<String>) -> Self {
        self.why = Some(text.into());
        self
    }

    /// Adds the advice.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

/// Messages together with the texts they point into.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    /// The messages, in the order of their discovery.
    pub list: Vec<Diagnostic>,
    /// The texts.
    pub sources: Arc<Sources>,
}

impl Diagnostics {
    /// Messages about these texts.
    pub fn new(list: Vec<Diagnostic>, sources: Arc<Sources>) -> Self {
        Diagnostics { list, sources }
    }

    /// Whether any message is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The messages as text, in the manner of rustc. Control characters of the input come out escaped.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for diagnostic in self.list.iter().take(MOST_SHOWN) {
            render_one(&mut out, diagnostic, &self.sources, color);
        }
        if let Some(more @ 1..) = self.list.len().checked_sub(MOST_SHOWN) {
            out.push_str(&format!("… and {more} more\n"));
        }
        out
    }

    /// The messages as plain data, for `--json`.
    pub fn records(&self) -> Vec<Record> {
        self.list
            .iter()
            .take(MOST_SHOWN)
            .map(|d| Record {
                code: d.code.to_owned(),
                severity: d.severity,
                message: d.message.clone(),
                place: self.sources.place(d.span, &d.label),
                also: d
                    .also
                    .iter()
                    .filter_map(|(s, label)| self.sources.place(*s, label))
                    .collect(),
                why: d.why.clone(),
                help: d.help.clone(),
            })
            .collect()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// A [`Diagnostic`] with its places spelled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Stable name, `E-…` or `W-…`.
    pub code: String,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Other places that matter.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub also: Vec<Place>,
    /// Why it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// A place, spelled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file; absent for a flag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The flag; absent for a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flag: Option<String>,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// The line, and the marked part of it.
    pub text: Excerpt,
    /// What this place is.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub label: String,
}

/// A piece of a source line in three parts, the middle one marked. Escaped for showing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    /// Before the mark.
    pub before: String,
    /// The marked part; may be empty.
    pub marked: String,
    /// After the mark.
    pub after: String,
}

#[cfg(test)]
mod tests;
