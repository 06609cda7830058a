//! YAML text to a tree of scalars, lists and maps, each with its place. The only file that names the YAML crate.
//!
//! YAML 1.2, less what a scenario has no use for: one document, no tags, no keys that are lists or maps. Scalars stay
//! text: `on`, `0644` and `1024k` mean what the key they are given to says. Work and memory are bounded before the
//! text is looked at closely: [`MAX_BYTES`], [`MAX_NODES`] (aliases counted as what they expand to), [`MAX_DEPTH`].

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::diag::{Diagnostic, Span, Spanned, quoted};

/// Longest text, bytes: more than [`MAX_NODES`] values take, and the worst text of this length is refused in 15 ms.
pub(crate) const MAX_BYTES: usize = 256 << 10;
/// Most scalars, lists and maps in one text, every alias counted as what it stands for.
pub(crate) const MAX_NODES: u32 = 10_000;
/// Deepest nesting.
pub(crate) const MAX_DEPTH: u32 = 64;

/// One value of a YAML text.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

/// What a [`Node`] is. Lists and maps are shared, so that an alias costs nothing until it is looked into.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text; `plain` when it was written without quotes.
    Scalar {
        text: Arc<str>,
        plain: bool,
    },
    Seq(Arc<Vec<Node>>),
    Map(Arc<Vec<(Spanned<Arc<str>>, Node)>>),
}

impl Node {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// Bytes to text: UTF-8 with or without a byte order mark, nothing that YAML forbids.
///
/// # Errors
/// The text as far as it can be shown, with the message that says what is wrong with it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Arc<str>, (Arc<str>, Box<Problem>)> {
    if bytes.len() > MAX_BYTES {
        let message = format!(
            "The text is longer than the {} KiB that a scenario may have",
            MAX_BYTES >> 10
        );
        return Err((Arc::from(""), Problem::new("E-YAML-SIZE", 0, 0, message)));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let problem = Problem::new("E-ENCODING", 0, 0, "The text is UTF-16, not UTF-8".into());
        return Err((
            Arc::from(""),
            problem.help("Convert it: iconv -f UTF-16 -t UTF-8"),
        ));
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let byte = bytes.get(at).copied().unwrap_or(0);
            let problem = Problem::new(
                "E-ENCODING",
                at,
                at,
                format!("Byte 0x{byte:02x} is not UTF-8 text"),
            );
            return Err((String::from_utf8_lossy(bytes).into(), problem));
        }
    };
    let bad = |c: &char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{84}' | '\u{86}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    let suspect =
        |b: &u8| (*b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r')) || *b == 0x7f || *b >= 0xc2;
    if text.as_bytes().iter().any(suspect)
        && let Some((at, c)) = text.char_indices().find(|(_, c)| bad(c))
    {
        let message = format!("The character U+{:04X} may not stand in YAML", c as u32);
        return Err((
            text.into(),
            Problem::new("E-YAML", at, at + c.len_utf8(), message),
        ));
    }
    Ok(text.into())
}

/// A fault found before or while parsing: byte offsets in the text, and the message.
#[derive(Debug)]
pub(crate) struct Problem {
    code: &'static str,
    from: usize,
    to: usize,
    message: String,
    help: Option<&'static str>,
}

impl Problem {
    fn new(code: &'static str, from: usize, to: usize, message: String) -> Box<Self> {
        Box::new(Problem {
            code,
            from,
            to,
            message,
            help: None,
        })
    }

    fn help(mut self: Box<Self>, text: &'static str) -> Box<Self> {
        self.help = Some(text);
        self
    }

    /// The message, once the text has a number.
    pub(crate) fn diagnostic(self, source: u16) -> Diagnostic {
        let mut d = Diagnostic::error(
            self.code,
            Span::new(source, self.from, self.to),
            self.message,
        );
        d.help = self.help.map(str::to_owned);
        d
    }
}

/// Parses one document. An empty text is [`Value::Null`]. `base` shifts every place: the text is a part of a longer
/// one (a flag) that starts there.
pub(crate) fn parse(
    text: &str,
    source: u16,
    base: usize,
    problems: &mut Vec<Diagnostic>,
) -> Option<Node> {
    let mut builder = Builder {
        text,
        offsets: offsets(text),
        source,
        base,
        nodes: 0,
        anchors: HashMap::new(),
        problems,
    };
    match builder.document() {
        Ok(node) => Some(node),
        Err(diagnostic) => {
            problems.push(*diagnostic);
            None
        }
    }
}

/// A scalar as it stands, without YAML's rules: the value of a flag.
pub(crate) fn plain(text: &str, span: Span) -> Node {
    let value = if text.is_empty() {
        Value::Null
    } else {
        Value::Scalar {
            text: text.into(),
            plain: true,
        }
    };
    Node { value, span }
}

/// Byte offset of every character, or nothing where they are the same.
fn offsets(text: &str) -> Vec<u32> {
    if text.is_ascii() {
        return Vec::new();
    }
    text.char_indices()
        .map(|(at, _)| u32::try_from(at).unwrap_or(u32::MAX))
        .collect()
}

/// A list or map that is not closed yet.
struct Open {
    anchor: usize,
    start: Span,
    nodes_before: u32,
    height: u32,
    body: Body,
}

enum Body {
    Seq(Vec<Node>),
    Map {
        pairs: Vec<(Spanned<Arc<str>>, Node)>,
        key: Option<Spanned<Arc<str>>>,
        seen: Option<HashMap<Arc<str>, Span>>,
    },
}

/// A finished value that an alias may repeat: what it is, how many nodes, how deep.
#[derive(Clone)]
struct Anchored {
    node: Node,
    nodes: u32,
    height: u32,
}

struct Builder<'a> {
    text: &'a str,
    offsets: Vec<u32>,
    source: u16,
    base: usize,
    nodes: u32,
    anchors: HashMap<usize, Anchored>,
    problems: &'a mut Vec<Diagnostic>,
}

type Step<T> = Result<T, Box<Diagnostic>>;

impl Builder<'_> {
    fn byte(&self, index: usize) -> usize {
        if self.offsets.is_empty() {
            return index.min(self.text.len());
        }
        self.offsets
            .get(index)
            .map_or(self.text.len(), |at| *at as usize)
    }

    fn span(&self, span: &saphyr_parser::Span) -> Span {
        let (from, to) = (self.byte(span.start.index()), self.byte(span.end.index()));
        Span::new(self.source, self.base + from, self.base + to.max(from))
    }

    fn document(&mut self) -> Step<Node> {
        let text = self.text;
        let mut parser = Parser::new_from_str(text);
        let mut stack: Vec<Open> = Vec::new();
        let mut root: Option<Node> = None;
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, place) = event.map_err(|e| self.syntax(&e, &stack))?;
            let span = self.span(&place);
            let (node, nodes, height, anchor) = match event {
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {
                    continue;
                }
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        let d = Diagnostic::error("E-YAML", span, "A second document starts here");
                        return Err(Box::new(d.help("Keep one scenario in one file")));
                    }
                    continue;
                }
                Event::Alias(id) => {
                    let Some(anchored) = self.anchors.get(&id).cloned() else {
                        let d = Diagnostic::error(
                            "E-YAML",
                            span,
                            "This alias stands inside the value it repeats",
                        );
                        return Err(Box::new(d));
                    };
                    (anchored.node, anchored.nodes, anchored.height, 0)
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.no_tag(tag.is_some(), span)?;
                    let plain = style == ScalarStyle::Plain;
                    let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                    let value = if null {
                        Value::Null
                    } else {
                        Value::Scalar {
                            text: text.as_ref().into(),
                            plain,
                        }
                    };
                    let span = self.trim(span, if plain { &text } else { "" });
                    (Node { value, span }, 1, 0, anchor)
                }
                Event::SequenceStart(anchor, ref tag) | Event::MappingStart(anchor, ref tag) => {
                    self.no_tag(tag.is_some(), span)?;
                    if stack.len() as u32 >= MAX_DEPTH {
                        return Err(too_deep(span));
                    }
                    let body = match event {
                        Event::SequenceStart(..) => Body::Seq(Vec::new()),
                        _ => Body::Map {
                            pairs: Vec::new(),
                            key: None,
                            seen: None,
                        },
                    };
                    stack.push(Open {
                        anchor,
                        start: span,
                        nodes_before: self.nodes,
                        height: 0,
                        body,
                    });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(open) = stack.pop() else { continue };
                    let value = match open.body {
                        Body::Seq(items) => Value::Seq(Arc::new(items)),
                        Body::Map { pairs, .. } => Value::Map(Arc::new(pairs)),
                    };
                    let span = self.first_line(open.start);
                    let nodes = 1 + self.nodes.saturating_sub(open.nodes_before);
                    // Its members are counted already.
                    self.nodes = open.nodes_before;
                    (Node { value, span }, nodes, open.height + 1, open.anchor)
                }
            };
            self.nodes = self.nodes.saturating_add(nodes);
            if self.nodes > MAX_NODES {
                let message = format!(
                    "The scenario has more than {MAX_NODES} values, aliases counted as what they repeat"
                );
                return Err(Box::new(Diagnostic::error("E-YAML-BOMB", span, message)));
            }
            if stack.len() as u32 + height > MAX_DEPTH {
                return Err(too_deep(span));
            }
            if anchor != 0 {
                self.anchors.insert(
                    anchor,
                    Anchored {
                        node: node.clone(),
                        nodes,
                        height,
                    },
                );
            }
            match stack.last_mut() {
                None => root = Some(node),
                Some(open) => {
                    open.height = open.height.max(height);
                    add(&mut open.body, node, self.problems)?;
                }
            }
        }
        let end = Span::new(self.source, self.base, self.base);
        Ok(root.unwrap_or(Node {
            value: Value::Null,
            span: end,
        }))
    }

    fn no_tag(&self, tagged: bool, span: Span) -> Step<()> {
        if !tagged {
            return Ok(());
        }
        let d = Diagnostic::error("E-YAML-TAG", span, "A scenario has no use for YAML tags");
        Err(Box::new(d.help(
            "Remove the word that starts with `!`: each key knows the type of its value",
        )))
    }

    /// The place of a scalar alone: a block scalar's runs on to the next line that is not its own, and one with an
    /// anchor starts there.
    fn trim(&self, span: Span, scalar: &str) -> Span {
        let written = self.slice(span).trim_end_matches([' ', '\t', '\n', '\r']);
        let from = if written.ends_with(scalar) && !scalar.is_empty() {
            written.len() - scalar.len()
        } else {
            0
        };
        span.part(from, written.len())
    }

    /// The place of a list or map: what stands on its first line.
    fn first_line(&self, start: Span) -> Span {
        let at = self.slice(start).len();
        if at > 0 { start } else { start.part(0, 0) }
    }

    fn slice(&self, span: Span) -> &str {
        let from = span.start().saturating_sub(self.base);
        self.text.get(from..from + span.len()).unwrap_or_default()
    }

    fn syntax(&self, error: &saphyr_parser::ScanError, stack: &[Open]) -> Box<Diagnostic> {
        let at = self.byte(error.marker().index());
        let line_start = self
            .text
            .get(..at)
            .and_then(|t| t.rfind('\n'))
            .map_or(0, |n| n + 1);
        let line = self.text.get(line_start..).unwrap_or_default();
        let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
        let indent = line.get(..blank).unwrap_or_default();
        if let Some(tab) = indent.find('\t') {
            let from = self.base + line_start + tab;
            let d = Diagnostic::error(
                "E-YAML",
                Span::new(self.source, from, from + 1),
                "A tab indents this line",
            );
            return Box::new(
                d.why("YAML indents by spaces only")
                    .help("Replace the tab by spaces"),
            );
        }
        let end = at
            + self
                .text
                .get(at..)
                .and_then(|t| t.chars().next())
                .filter(|c| *c != '\n')
                .map_or(0, char::len_utf8);
        let span = Span::new(self.source, self.base + at, self.base + end);
        let d = Diagnostic::error(
            "E-YAML",
            span,
            format!("This is not YAML: {}", error.info()),
        );
        let bracket = stack
            .iter()
            .rev()
            .find(|o| self.slice(o.start).starts_with(['[', '{']));
        Box::new(match bracket {
            Some(open) => d.also(open.start, "opened here, and not closed yet"),
            None => d,
        })
    }
}

fn too_deep(span: Span) -> Box<Diagnostic> {
    let message = format!("Lists and maps are nested more than {MAX_DEPTH} deep");
    Box::new(Diagnostic::error("E-YAML-DEPTH", span, message))
}

/// Puts a finished value into the list or map it belongs to.
fn add(body: &mut Body, node: Node, problems: &mut Vec<Diagnostic>) -> Step<()> {
    match body {
        Body::Seq(items) => items.push(node),
        Body::Map { pairs, key, seen } => match key.take() {
            None => {
                let text = match &node.value {
                    Value::Scalar { text, .. } => text.clone(),
                    _ => {
                        let d = Diagnostic::error(
                            "E-YAML-KEY",
                            node.span,
                            format!("A key cannot be {}", node.kind()),
                        );
                        return Err(Box::new(d.help("Keys are words: `name: value`")));
                    }
                };
                *key = Some(Spanned::new(text, node.span));
            }
            Some(name) => {
                let first = match seen {
                    Some(seen) => seen.get(&name.value).copied(),
                    None => pairs
                        .iter()
                        .find(|(k, _)| k.value == name.value)
                        .map(|(k, _)| k.span),
                };
                if let Some(first) = first {
                    let message = format!("The key {} is given twice", quoted(&name.value));
                    let d = Diagnostic::error("E-DUPLICATE-KEY", name.span, message).label("again");
                    problems.push(d.also(first, "first here").help("Keep one of the two"));
                    return Ok(());
                }
                if let Some(seen) = seen {
                    seen.insert(name.value.clone(), name.span);
                }
                pairs.push((name, node));
                if seen.is_none() && pairs.len() > 16 {
                    *seen = Some(
                        pairs
                            .iter()
                            .map(|(k, _)| (k.value.clone(), k.span))
                            .collect(),
                    );
                }
            }
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests;
