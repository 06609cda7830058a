//! From places to lines of text with a caret.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::{Diagnostic, Excerpt, Place, Severity, Sources};

/// Widest piece of a source line that is shown, terminal columns.
const EXCERPT: usize = 110;

/// Line and column (from 1), the line's text without its end, and the offset in it.
pub(super) fn locate<'a>(
    text: &'a str,
    lines: &[u32],
    at: usize,
) -> (usize, usize, &'a str, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    // The end of a text that ends in a newline is shown on the line that was written last.
    if at == text.len() && at > 0 && text.ends_with('\n') {
        at -= 1;
    }
    let line = lines.partition_point(|start| *start as usize <= at);
    let begin = lines
        .get(line.wrapping_sub(1))
        .map_or(0, |start| *start as usize);
    let rest = text.get(begin..).unwrap_or_default();
    let rest = rest.split('\n').next().unwrap_or_default();
    let rest = rest.strip_suffix('\r').unwrap_or(rest);
    let offset = (at - begin).min(rest.len());
    let column = rest.get(..offset).map_or(0, |s| s.chars().count()) + 1;
    (line, column, rest, offset)
}

/// Where the lines of a text begin; the first is at 0.
pub(super) fn line_starts(text: &str) -> Vec<u32> {
    let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    let starts = breaks.filter_map(|(at, _)| u32::try_from(at + 1).ok());
    [0].into_iter().chain(starts).collect()
}

/// Cuts a line to [`EXCERPT`] columns so that the mark stays in sight.
pub(super) fn clip_around(line: &str, start: usize, length: usize) -> Excerpt {
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
pub(super) fn head(text: &str, room: usize) -> String {
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
pub fn columns(text: &str) -> usize {
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

/// Not the end of a line in any message: no character at all.
const NO_END: char = '\u{10ffff}';

/// A message without a place.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    /// Error or warning.
    pub severity: Severity,
    /// Stable name, `E-…` or `W-…`.
    pub code: &'a str,
    /// What is wrong. Lines after the first are details of it.
    pub message: &'a str,
    /// Why it matters.
    pub why: Option<&'a str>,
    /// What to do.
    pub help: Option<&'a str>,
}

impl Words<'_> {
    /// As [`super::Diagnostics::render`] does.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        let paints = Paints::of(self.severity, color);
        self.head(&mut out, '\n', &paints);
        self.advice(&mut out, 1, '\n', &paints);
        out
    }

    /// `end` ends a line of the message: none in messages that quote what the user wrote.
    fn head(&self, out: &mut String, end: char, paints: &Paints) {
        let Paints {
            word,
            tint,
            bold,
            off,
            ..
        } = paints;
        let mut lines = self.message.trim_end_matches(end).split(end);
        let first = shown(lines.next().unwrap_or_default());
        let _ = writeln!(out, "{tint}{word}[{}]{off}{bold}: {first}{off}", self.code);
        for line in lines {
            let indent = if line.starts_with(' ') { "" } else { "  " };
            let _ = writeln!(out, "{indent}{}", shown(line));
        }
    }

    fn advice(&self, out: &mut String, gutter: usize, end: char, paints: &Paints) {
        let Paints {
            bold, blue, off, ..
        } = paints;
        for (name, text) in [("why", self.why), ("help", self.help)] {
            let Some(text) = text else { continue };
            let mut lines = text.trim_end_matches(end).split(end);
            let first = shown(lines.next().unwrap_or_default());
            let _ = writeln!(
                out,
                "{:gutter$} {blue}={off} {bold}{name}{off}: {first}",
                ""
            );
            for line in lines {
                let _ = writeln!(out, "{:gutter$}   {}", "", shown(line));
            }
        }
    }
}

struct Paints {
    word: &'static str,
    tint: &'static str,
    bold: &'static str,
    blue: &'static str,
    off: &'static str,
}

impl Paints {
    fn of(severity: Severity, color: bool) -> Self {
        let (word, tint) = match severity {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Warning => ("warning", "\x1b[1;33m"),
        };
        let (tint, bold, blue, off) = if color {
            (tint, "\x1b[1m", "\x1b[1;34m", "\x1b[0m")
        } else {
            ("", "", "", "")
        };
        Self {
            word,
            tint,
            bold,
            blue,
            off,
        }
    }
}

pub(super) fn render_one(out: &mut String, d: &Diagnostic, sources: &Sources, color: bool) {
    let words = Words {
        severity: d.severity,
        code: d.code,
        message: &d.message,
        why: d.why.as_deref(),
        help: d.help.as_deref(),
    };
    let paints = Paints::of(d.severity, color);
    words.head(out, NO_END, &paints);
    let Paints {
        tint, blue, off, ..
    } = paints;
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
    words.advice(out, gutter, NO_END, &paints);
}
