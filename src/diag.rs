//! Messages about what the user wrote: one place, one caret, what is wrong, why, and what to do.
//!
//! A [`Span`] is three numbers and names a place in one of the texts of a [`Sources`]: a file, or a flag of the
//! command line. [`Diagnostics`] carries the texts along, so it can be printed anywhere.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Widest piece of a source line that is shown, terminal columns.
const EXCERPT: usize = 110;

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
}

#[derive(Debug, Clone)]
struct Source {
    kind: SourceKind,
    name: String,
    text: Arc<str>,
}

/// The texts that spans point into.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<Source>);

impl Sources {
    pub(crate) fn add_file(&mut self, name: &str, text: Arc<str>) -> u16 {
        self.add(SourceKind::File, name, text)
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
            SourceKind::File => {
                let (line, column, _, _) = locate(&source.text, span.start as usize);
                Origin::File {
                    file: source.name.clone(),
                    line,
                    column,
                }
            }
        }
    }

    fn place(&self, span: Span, label: &str) -> Option<Place> {
        let source = self.0.get(usize::from(span.source))?;
        let (line, column, text, start) = locate(&source.text, span.start as usize);
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
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line, .. } => write!(f, "{}:{line}", shown(file)),
            Origin::Flag { text } => f.write_str(&shown(text)),
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
        for diagnostic in &self.list {
            render_one(&mut out, diagnostic, &self.sources, color);
        }
        out
    }

    /// The messages as plain data, for `--json`.
    pub fn records(&self) -> Vec<Record> {
        self.list
            .iter()
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

/// Line and column (from 1), the line's text without its end, and the offset in it.
fn locate(text: &str, at: usize) -> (usize, usize, &str, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    // The end of a text that ends in a newline is shown on the line that was written last.
    if at == text.len() && at > 0 && text.ends_with('\n') {
        at -= 1;
    }
    let head = text.get(..at).unwrap_or_default();
    let begin = head.rfind('\n').map_or(0, |n| n + 1);
    let line = head.bytes().filter(|b| *b == b'\n').count() + 1;
    let rest = text.get(begin..).unwrap_or_default();
    let rest = rest.split('\n').next().unwrap_or_default();
    let rest = rest.strip_suffix('\r').unwrap_or(rest);
    let offset = (at - begin).min(rest.len());
    let column = rest.get(..offset).map_or(0, |s| s.chars().count()) + 1;
    (line, column, rest, offset)
}

/// Cuts a line to [`EXCERPT`] columns so that the mark stays in sight.
fn clip_around(line: &str, start: usize, length: usize) -> Excerpt {
    let end = start.saturating_add(length).min(line.len());
    let part = |from: usize, to: usize| line.get(from..to).unwrap_or_default();
    let (before, marked, after) = (part(0, start), part(start, end), part(end, line.len()));
    let marked = head(marked, EXCERPT * 2 / 3);
    let left = EXCERPT.saturating_sub(columns(&marked));
    let before = tail(before, left * 2 / 3);
    let after = head(
        after,
        EXCERPT.saturating_sub(columns(&marked) + columns(&before)),
    );
    Excerpt {
        before,
        marked,
        after,
    }
}

/// As much of the start of `text`, escaped, as `room` columns take.
fn head(text: &str, room: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let before = out.len();
        push_shown(&mut out, c);
        used += columns(out.get(before..).unwrap_or_default());
        if used > room {
            out.truncate(before);
            out.push('…');
            break;
        }
    }
    out
}

/// As much of the end of `text`, escaped, as `room` columns take.
fn tail(text: &str, room: usize) -> String {
    let mut used = 0;
    let mut from = text.len();
    for (at, c) in text.char_indices().rev() {
        let mut one = String::new();
        push_shown(&mut one, c);
        used += columns(&one);
        if used > room {
            break;
        }
        from = at;
    }
    let mut out = String::new();
    if from > 0 {
        out.push('…');
    }
    text.get(from..)
        .unwrap_or_default()
        .chars()
        .for_each(|c| push_shown(&mut out, c));
    out
}

/// Appends one character so that no terminal obeys it: tabs widen, controls and direction marks are escaped.
fn push_shown(out: &mut String, c: char) {
    match c {
        '\t' => out.push_str("    "),
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => {
            let _ = write!(out, "{}", c.escape_unicode());
        }
        c if c.is_control() => {
            let _ = write!(out, "{}", c.escape_default());
        }
        c => out.push(c),
    }
}

/// Text from outside, made safe to print on one line.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_shown(&mut out, c));
    out
}

/// Text from outside, made safe, cut to a readable length and put between backquotes.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", head(text, 60))
}

/// Terminal columns of escaped text. East Asian wide forms and emoji take two, combining marks none.
fn columns(text: &str) -> usize {
    text.chars()
        .map(|c| match c as u32 {
            0x0300..=0x036f | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
            0x1100..=0x115f
            | 0x2e80..=0xa4cf
            | 0xac00..=0xd7a3
            | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f
            | 0xff00..=0xff60
            | 0xffe0..=0xffe6
            | 0x1f300..=0x1faff
            | 0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

fn render_one(out: &mut String, d: &Diagnostic, sources: &Sources, color: bool) {
    let (word, tint) = match d.severity {
        Severity::Error => ("error", "\x1b[1;31m"),
        Severity::Warning => ("warning", "\x1b[1;33m"),
    };
    let (tint, bold, blue, off) = if color {
        (tint, "\x1b[1m", "\x1b[1;34m", "\x1b[0m")
    } else {
        ("", "", "", "")
    };
    let _ = writeln!(
        out,
        "{tint}{word}[{}]{off}{bold}: {}{off}",
        d.code,
        shown(&d.message)
    );
    let main = sources.place(d.span, &d.label);
    let others = d
        .also
        .iter()
        .filter_map(|(span, label)| sources.place(*span, label));
    let places: Vec<(Place, bool)> = main
        .map(|p| (p, true))
        .into_iter()
        .chain(others.map(|p| (p, false)))
        .collect();
    let gutter = places
        .iter()
        .map(|(p, _)| p.line.to_string().len())
        .max()
        .unwrap_or(1);
    for (place, primary) in &places {
        let arrow = if *primary { "-->" } else { ":::" };
        match (&place.file, &place.flag) {
            (Some(file), _) => {
                let _ = writeln!(
                    out,
                    "{:gutter$}{blue}{arrow}{off} {}:{}:{}",
                    "",
                    shown(file),
                    place.line,
                    place.column
                );
            }
            _ => {
                let _ = writeln!(out, "{:gutter$}{blue}{arrow}{off} command line", "");
            }
        }
        let Excerpt {
            before,
            marked,
            after,
        } = &place.text;
        let number = if place.file.is_some() {
            place.line.to_string()
        } else {
            String::new()
        };
        let _ = writeln!(out, "{blue}{:gutter$} |{off}", "");
        let _ = writeln!(
            out,
            "{blue}{number:>gutter$} |{off} {before}{marked}{after}"
        );
        let (sign, paint) = if *primary { ("^", tint) } else { ("-", blue) };
        let marks = sign.repeat(columns(marked).max(1));
        let label = shown(&place.label);
        let gap = if label.is_empty() { "" } else { " " };
        let indent = columns(before);
        let _ = writeln!(
            out,
            "{blue}{:gutter$} |{off} {:indent$}{paint}{marks}{gap}{label}{off}",
            "", ""
        );
    }
    for (name, text) in [("why", &d.why), ("help", &d.help)] {
        if let Some(text) = text {
            let _ = writeln!(
                out,
                "{:gutter$} {blue}={off} {bold}{name}{off}: {}",
                "",
                shown(text)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str, from: usize, to: usize) -> Diagnostics {
        let mut sources = Sources::default();
        let id = sources.add_file("a.yaml", text.into());
        let d = Diagnostic::error("E-TEST", Span::new(id, from, to), "Wrong")
            .label("here")
            .help("Mend it");
        Diagnostics::new(vec![d], Arc::new(sources))
    }

    #[test]
    fn caret_stands_under_the_marked_text() {
        let text = "cpu:\n  count: 0\n";
        let shown = one(text, 14, 15).render(false);
        let want = "error[E-TEST]: Wrong\n --> a.yaml:2:10\n  |\n2 |   count: 0\n  |          ^ here\n  = help: Mend it\n";
        assert_eq!(shown, want);
    }

    #[test]
    fn tabs_wide_characters_and_controls_keep_the_caret_in_place() {
        let text = "\tname: 漢字\u{1b}[2J x";
        let at = text.find('x').unwrap();
        let shown = one(text, at, at + 1).render(false);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[3].contains("    name: 漢字\\u{1b}[2J x"), "{shown}");
        assert_eq!(
            columns(&lines[3][..lines[3].rfind('x').unwrap()]),
            columns(&lines[4][..lines[4].find('^').unwrap()])
        );
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let text = format!("{}MARK{}", "a".repeat(5000), "b".repeat(5000));
        let shown = one(&text, 5000, 5004).render(false);
        assert!(
            shown.contains("MARK") && shown.lines().all(|l| columns(l) < 140),
            "{shown}"
        );
    }

    #[test]
    fn end_of_file_is_on_the_last_line() {
        let shown = one("a: [\n", 5, 5).render(false);
        assert!(shown.contains("a.yaml:1:5"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_and_no_place_panics(text in any::<String>(), from in 0usize..300, to in 0usize..300) {
            let shown = one(&text, from, to);
            prop_assert!(!shown.render(false).chars().any(|c| c.is_control() && c != '\n'));
            prop_assert_eq!(shown.records().len(), 1);
        }
    }
}
