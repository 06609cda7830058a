//! A small element tree, and how it is written down.

#![forbid(unsafe_code)]

/// Where something stood in the text that was parsed: byte offsets, `0..0` for what was built here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// One attribute.
#[derive(Debug, Clone, Default)]
pub struct Attribute {
    /// Its name, with prefix.
    pub name: String,
    /// Its value, unescaped.
    pub value: String,
    pub(super) place: Place,
    pub(super) seen: bool,
}

/// One element.
#[derive(Debug, Clone, Default)]
pub struct Element {
    /// Its name, with prefix.
    pub name: String,
    /// Its attributes, in order.
    pub attributes: Vec<Attribute>,
    /// The elements in it, in order.
    pub children: Vec<Element>,
    /// The text in it, unescaped; of an element that has children nothing but text that stands between them.
    pub text: String,
    pub(super) place: Place,
    pub(super) seen: bool,
    pub(super) text_seen: bool,
}

/// Two trees are equal wherever they were written.
impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.text == other.text
            && self.attributes.len() == other.attributes.len()
            && self
                .attributes
                .iter()
                .zip(&other.attributes)
                .all(|(a, b)| a.name == b.name && a.value == b.value)
            && self.children == other.children
    }
}

impl Element {
    /// An empty element.
    pub fn new(name: &str) -> Self {
        Element {
            name: name.to_owned(),
            ..Element::default()
        }
    }

    /// The value of an attribute.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|a| a.name == name)
            .map(|a| a.value.as_str())
    }

    /// The first child of a name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }

    /// Sets an attribute; says what it was before.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> Option<String> {
        let value = value.into();
        if let Some(old) = self.attributes.iter_mut().find(|a| a.name == name) {
            return Some(std::mem::replace(&mut old.value, value));
        }
        self.attributes.push(Attribute {
            name: name.to_owned(),
            value,
            ..Attribute::default()
        });
        None
    }

    /// The same with an attribute.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// Appends a child and returns it.
    pub fn push(&mut self, child: Element) -> &mut Element {
        self.children.push(child);
        let last = self.children.len() - 1;
        &mut self.children[last]
    }

    /// The first child of a name, made when there is none.
    pub fn need(&mut self, name: &str) -> &mut Element {
        let at = self.children.iter().position(|c| c.name == name);
        let at = at.unwrap_or_else(|| {
            self.children.push(Element::new(name));
            self.children.len() - 1
        });
        &mut self.children[at]
    }

    pub(super) fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.children.iter_mut().find(|c| c.name == name)
    }

    /// The tree as text, in the manner of libvirt: two spaces per level, single quotes.
    pub fn write(&self) -> String {
        let mut out = String::with_capacity(4096);
        self.write_at(&mut out, 0);
        out
    }

    fn write_at(&self, out: &mut String, depth: usize) {
        let indent = |out: &mut String| (0..depth).for_each(|_| out.push_str("  "));
        indent(out);
        out.push('<');
        out.push_str(&self.name);
        for a in &self.attributes {
            out.push(' ');
            out.push_str(&a.name);
            out.push_str("='");
            escape(out, &a.value, true);
            out.push('\'');
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        if self.children.is_empty() {
            escape(out, &self.text, false);
        } else {
            escape(out, self.text.trim(), false);
            out.push('\n');
            for c in &self.children {
                c.write_at(out, depth + 1);
            }
            indent(out);
        }
        out.push_str("</");
        out.push_str(&self.name);
        out.push_str(">\n");
    }
}

/// Whether XML 1.0 can carry the character (section 2.2, production Char).
pub(super) fn legal_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether XML 1.0 can carry the text.
pub(super) fn legal(text: &str) -> bool {
    text.chars().all(legal_char)
}

/// Appends text so that a parser reads back exactly it. What XML cannot carry must have been refused before; here it
/// becomes U+FFFD, so that no writer can be talked into a document that is not well-formed.
fn escape(out: &mut String, text: &str, attribute: bool) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' if attribute => out.push_str("&apos;"),
            '"' if attribute => out.push_str("&quot;"),
            // A parser turns a bare one into a space (attribute) or a line feed (text).
            '\r' => out.push_str("&#13;"),
            '\n' if attribute => out.push_str("&#10;"),
            '\t' if attribute => out.push_str("&#9;"),
            c if legal_char(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
}
