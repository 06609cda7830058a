//! Text to tree. No DTD, no entities of its own, bounded in size and depth.

#![forbid(unsafe_code)]

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::element::{Attribute, Element, Place, legal_char};

/// Largest document: far above any domain that libvirt writes (a machine of 100 devices is 60 KiB).
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting; libvirt's own documents stay below 10.
const MAX_DEPTH: usize = 64;
/// Most attributes of one element; the parser compares each with every other.
const MAX_ATTRIBUTES: usize = 128;

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Malformed {
    pub(super) message: String,
    pub(super) place: Place,
    pub(super) help: &'static str,
}

fn wrong(at: usize, message: impl Into<String>) -> Malformed {
    Malformed {
        message: message.into(),
        place: Place {
            start: at,
            end: at + 1,
        },
        help: "",
    }
}

/// Parses a document.
///
/// # Errors
/// The text is not well-formed XML, or it needs what is refused here: a DTD, entities of its own, more than
/// [`MAX_BYTES`].
pub fn parse(text: &str) -> Result<Element, Malformed> {
    if text.len() > MAX_BYTES {
        let message = format!(
            "The document has {} bytes; at most {MAX_BYTES} are read",
            text.len()
        );
        return Err(wrong(0, message));
    }
    // A byte order mark is not part of the document.
    let (skipped, body) = match text.strip_prefix('\u{feff}') {
        Some(body) => (3, body),
        None => (0, text),
    };
    if let Some((at, c)) = body.char_indices().find(|(_, c)| !legal_char(*c)) {
        let message = format!("XML cannot carry the character U+{:04X}", c as u32);
        return Err(shift(wrong(at, message), skipped));
    }
    Parser::new(body).run().map_err(|e| shift(e, skipped))
}

fn shift(mut error: Malformed, by: usize) -> Malformed {
    error.place.start += by;
    error.place.end += by;
    error
}

struct Parser<'a> {
    text: &'a str,
    open: Vec<Element>,
    root: Option<Element>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser {
            text,
            open: Vec::new(),
            root: None,
        }
    }

    fn run(mut self) -> Result<Element, Malformed> {
        let mut reader = Reader::from_str(self.text);
        reader.config_mut().check_comments = true;
        loop {
            let start = offset(reader.buffer_position());
            let event = match reader.read_event() {
                Ok(event) => event,
                Err(error) => {
                    let at = offset(reader.error_position());
                    return Err(wrong(at, format!("This is not well-formed XML: {error}")));
                }
            };
            let end = offset(reader.buffer_position());
            match event {
                Event::Start(tag) => {
                    let element = self.element(&tag, start, end)?;
                    if self.open.len() >= MAX_DEPTH {
                        let message = format!("Elements are nested deeper than {MAX_DEPTH}");
                        return Err(wrong(start, message));
                    }
                    self.open.push(element);
                }
                Event::Empty(tag) => {
                    let element = self.element(&tag, start, end)?;
                    self.close(element, start)?;
                }
                Event::End(_) => {
                    let Some(element) = self.open.pop() else {
                        return Err(wrong(start, "An element ends here that never began"));
                    };
                    self.close(element, start)?;
                }
                Event::Text(piece) => self.text(&piece.xml10_content(), start)?,
                Event::CData(piece) => self.text(&piece.xml10_content(), start)?,
                Event::GeneralRef(reference) => {
                    let c = resolve(&reference).ok_or_else(|| entity(start, end, &reference))?;
                    self.text(c.encode_utf8(&mut [0; 4]), start)?;
                }
                Event::DocType(_) => {
                    let mut error = wrong(start, "A document type is not read");
                    error.place.end = end;
                    error.help = "Domain XML needs none; remove the <!DOCTYPE …>";
                    return Err(error);
                }
                Event::Decl(_) if start != 0 => {
                    return Err(wrong(start, "The XML declaration must be the first thing"));
                }
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        if let Some(open) = self.open.last() {
            let mut error = wrong(0, format!("The element <{}> is never closed", open.name));
            error.place = open.place;
            return Err(error);
        }
        self.root
            .ok_or_else(|| wrong(0, "There is no element in this text"))
    }

    fn text(&mut self, text: &str, at: usize) -> Result<(), Malformed> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => {
                return Err(wrong(
                    at,
                    "This is not well-formed XML: text stands outside of the element",
                ));
            }
        }
        Ok(())
    }

    fn close(&mut self, element: Element, at: usize) -> Result<(), Malformed> {
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if self.root.is_none() => self.root = Some(element),
            None => {
                return Err(wrong(
                    at,
                    "This is not well-formed XML: there is a second root element",
                ));
            }
        }
        Ok(())
    }

    fn element(
        &self,
        tag: &BytesStart<'_>,
        start: usize,
        end: usize,
    ) -> Result<Element, Malformed> {
        let name = tag.name();
        let mut element = Element::new(name.as_ref());
        element.place = Place { start, end };
        if !is_name(&element.name) {
            return Err(wrong(
                start,
                "This is not well-formed XML: an element has no proper name",
            ));
        }
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|error| {
                let mut wrong = wrong(start, format!("This is not well-formed XML: {error}"));
                wrong.place.end = end;
                wrong
            })?;
            let name = attribute.key.into_inner();
            if element.attributes.len() >= MAX_ATTRIBUTES {
                let message = format!("An element has more than {MAX_ATTRIBUTES} attributes");
                return Err(wrong(start, message));
            }
            // Both are slices of the text, so their addresses tell where.
            let at = self.position(name).unwrap_or(start);
            let value_at = self.position(&attribute.value).unwrap_or(at);
            let place = Place {
                start: at,
                end: value_at + attribute.value.len() + 1,
            };
            if !is_name(name) || attribute.value.contains('<') {
                let mut error = wrong(at, "This is not well-formed XML: an attribute is malformed");
                error.place = place;
                return Err(error);
            }
            element.attributes.push(Attribute {
                name: name.to_owned(),
                value: unescape(&attribute.value, value_at)?,
                place,
                seen: false,
            });
        }
        Ok(element)
    }

    fn position(&self, part: &str) -> Option<usize> {
        let at = part
            .as_ptr()
            .addr()
            .checked_sub(self.text.as_ptr().addr())?;
        (at + part.len() <= self.text.len()).then_some(at)
    }
}

fn offset(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}

/// A name in the sense of XML, as far as it matters here: it can be written back.
pub(super) fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'))
}

fn entity(start: usize, end: usize, name: &str) -> Malformed {
    Malformed {
        message: format!("`&{name};` is not a character of XML"),
        place: Place { start, end },
        help: "Only &amp; &lt; &gt; &apos; &quot; and &#NUMBER; are read",
    }
}

fn resolve(name: &str) -> Option<char> {
    let number = match name {
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "amp" => return Some('&'),
        "apos" => return Some('\''),
        "quot" => return Some('"'),
        _ => name.strip_prefix('#')?,
    };
    let (digits, base) = match number.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    if !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let c = char::from_u32(u32::from_str_radix(digits, base).ok()?)?;
    legal_char(c).then_some(c)
}

/// The value of an attribute: references resolved, bare white space turned into spaces (XML 1.0, 3.3.3).
fn unescape(raw: &str, at: usize) -> Result<String, Malformed> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(found) = rest.find(['&', '\t', '\n', '\r']) {
        let (before, from) = rest.split_at(found);
        out.push_str(before);
        let here = at + (raw.len() - from.len());
        let Some(reference) = from.strip_prefix('&') else {
            out.push(' ');
            rest = from.strip_prefix("\r\n").unwrap_or(&from[1..]);
            continue;
        };
        let Some((name, after)) = reference.split_once(';') else {
            return Err(wrong(
                here,
                "This is not well-formed XML: a bare `&`; write &amp;",
            ));
        };
        let end = here + name.len() + 2;
        out.push(resolve(name).ok_or_else(|| entity(here, end, name))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}
