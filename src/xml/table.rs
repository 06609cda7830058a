//! One table for both directions: a row says which key of the scenario is which place of an element.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::element::{Element, legal};

/// How a value is spelled in XML.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// As it is.
    Text,
    /// As it is; XML has room for one line only.
    Line,
    /// One of these words, the same on both sides.
    Words(&'static [&'static str]),
    /// A word of ours and the word for it in XML.
    Pairs(&'static [(&'static str, &'static str)]),
    /// `true` and `false` as these words.
    Flag(&'static str, &'static str),
    /// An element with `state`, which is `on` when left out.
    State,
    /// `true` is an element, `false` is none.
    Present,
    /// A whole number.
    Number,
    /// Bytes, with a unit beside them.
    Size,
    /// A whole number, written in hexadecimal, read in base 16 as libvirt reads it.
    Hex,
    /// What libvirt writes anyway: read without a word, never written.
    Expect(&'static str),
}

/// `key` of the object is at `at` of the element: `a/b` is the text of an element, `a/@b` an attribute,
/// `a[b=c]/@d` picks the `a` whose `b` is `c`, `.` is the element itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) key: &'static str,
    pub(super) at: &'static str,
    pub(super) form: Form,
}

pub(super) const fn row(key: &'static str, at: &'static str, form: Form) -> Row {
    Row { key, at, form }
}

pub(super) const YES: Form = Form::Flag("yes", "no");
pub(super) const ON: Form = Form::Flag("on", "off");

enum Spelled {
    Text(String),
    Nothing,
}

/// The value at a dotted path, still unsaid.
pub(super) fn peek<'a>(from: &'a Value, key: &str) -> Option<&'a Value> {
    crate::domain::get(from, key).filter(|v| !v.is_null())
}

/// The text at a dotted path, still unsaid.
pub(super) fn peek_text<'a>(from: &'a Value, key: &str) -> Option<&'a str> {
    peek(from, key)?.as_str()
}

/// Takes a value out because it is said now; `null` stays behind.
pub(super) fn take(from: &mut Value, key: &str) -> Option<Value> {
    let slot = slot(from, key)?;
    (!slot.is_null()).then(|| slot.take())
}

pub(super) fn slot<'a>(from: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    key.split('.')
        .try_fold(from, |value, name| value.get_mut(name))
}

/// Takes a text that XML can carry; any other stays behind, unsaid. An empty one is as good as none.
pub(super) fn take_text(from: &mut Value, key: &str) -> Option<String> {
    if !legal(peek_text(from, key)?) {
        return None;
    }
    match take(from, key) {
        Some(Value::String(text)) => Some(text).filter(|t| !t.is_empty()),
        _ => None,
    }
}

/// Takes a word that says the same as leaving something out.
pub(super) fn take_if(from: &mut Value, key: &str, word: &str) -> bool {
    let same = peek_text(from, key) == Some(word);
    if same {
        take(from, key);
    }
    same
}

/// The members of a list.
pub(super) fn members<'a>(from: &'a mut Value, key: &str) -> &'a mut [Value] {
    slot(from, key)
        .and_then(Value::as_array_mut)
        .map_or(&mut [], Vec::as_mut_slice)
}

/// Makes an element of an object; when it comes to nothing, nothing of the object was said.
pub(super) fn whole(
    from: &mut Value,
    make: impl FnOnce(&mut Value) -> Option<Element>,
) -> Option<Element> {
    let before = from.clone();
    let made = make(from);
    if made.is_none() {
        *from = before;
    }
    made
}

/// Stores a value at a dotted path.
pub(super) fn put(into: &mut Value, key: &str, value: Value) {
    let mut at = into;
    for name in key.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(map) = at else { return };
        at = map.entry(name).or_insert(Value::Null);
    }
    *at = value;
}

/// Says what the rows can say of an object; what was said is taken out of it.
pub(super) fn write(from: &mut Value, rows: &[Row], element: &mut Element) {
    for row in rows {
        if row.key.is_empty() {
            continue;
        }
        let Some(value) = peek(from, row.key) else {
            continue;
        };
        // An empty element says as much as none.
        let empty = value.as_str() == Some("") && split(row.at).1.is_none();
        match spell(row.form, value) {
            Some(_) if empty => {}
            Some(Spelled::Nothing) => {}
            Some(Spelled::Text(text)) => place(element, row.at, row.form, text),
            None => continue,
        }
        take(from, row.key);
    }
}

fn spell(form: Form, value: &Value) -> Option<Spelled> {
    let text = match (form, value) {
        (Form::Text, Value::String(text)) => text.clone(),
        (Form::Line, Value::String(text)) if !text.contains('\n') => text.clone(),
        (Form::Words(words), Value::String(text)) => {
            words.contains(&text.as_str()).then(|| text.clone())?
        }
        (Form::Pairs(pairs), Value::String(text)) => {
            pairs.iter().find(|p| p.0 == text)?.1.to_owned()
        }
        (Form::Flag(yes, no), Value::Bool(on)) => if *on { yes } else { no }.to_owned(),
        (Form::State, Value::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
        (Form::Present, Value::Bool(false)) => return Some(Spelled::Nothing),
        (Form::Present, Value::Bool(true)) => String::new(),
        (Form::Number | Form::Size, Value::Number(n)) => n.as_u64()?.to_string(),
        (Form::Hex, Value::Number(n)) => format!("{:#06x}", n.as_u64()?),
        _ => return None,
    };
    legal(&text).then_some(Spelled::Text(text))
}

fn place(element: &mut Element, at: &str, form: Form, text: String) {
    let (path, attribute) = split(at);
    let mut element = element;
    for (name, pick) in steps(path) {
        let found = element
            .children
            .iter()
            .position(|c| c.name == name && pick.is_none_or(|(a, v)| c.get(a) == Some(v)));
        let found = found.unwrap_or_else(|| {
            let mut new = Element::new(name);
            if let Some((a, v)) = pick {
                new.set(a, v);
            }
            element.children.push(new);
            element.children.len() - 1
        });
        element = &mut element.children[found];
    }
    match (form, attribute) {
        (Form::Present, _) => {}
        (Form::State, _) => {
            element.set("state", text);
        }
        (Form::Size, _) => {
            let (amount, unit) = amount(text);
            element.set("unit", unit);
            element.text = amount;
        }
        (_, Some(name)) => {
            element.set(name, text);
        }
        (_, None) => element.text = text,
    }
}

/// Reads what the rows can read of an element; what was read is marked as seen.
pub(super) fn read(element: &mut Element, rows: &[Row], into: &mut Value) {
    for row in rows {
        read_row(element, row, into);
    }
}

fn read_row(element: &mut Element, row: &Row, into: &mut Value) -> Option<()> {
    let (path, attribute) = split(row.at);
    let value = {
        let target = find(element, path)?;
        match (row.form, attribute) {
            (Form::Present, _) => Value::Bool(true),
            (Form::State, _) => match target.get("state") {
                None | Some("on") => Value::Bool(true),
                Some("off") => Value::Bool(false),
                Some(_) => return None,
            },
            (Form::Size, _) => bytes(&target.text, target.get("unit"))?.into(),
            (form, Some(name)) => understand(form, target.get(name)?)?,
            (Form::Text | Form::Line, None) if target.text.is_empty() => Value::Null,
            (form, None) => understand(form, &target.text)?,
        }
    };
    mark(element, path, row.form, attribute);
    if !row.key.is_empty() && !value.is_null() {
        put(into, row.key, value);
    }
    Some(())
}

fn understand(form: Form, text: &str) -> Option<Value> {
    Some(match form {
        Form::Text | Form::Line => text.into(),
        Form::Words(words) => words.contains(&text).then(|| text.into())?,
        Form::Pairs(pairs) => pairs.iter().find(|p| p.1 == text)?.0.into(),
        Form::Flag(yes, _) if text == yes => true.into(),
        Form::Flag(_, no) if text == no => false.into(),
        Form::Number => text.trim().parse::<u64>().ok()?.into(),
        Form::Hex => {
            let digits = text.trim();
            let digits = digits.strip_prefix("0x").unwrap_or(digits);
            let digits = digits.strip_prefix("0X").unwrap_or(digits);
            if digits.starts_with('+') {
                return None;
            }
            u64::from_str_radix(digits, 16).ok()?.into()
        }
        Form::Expect(word) if text == word => Value::Null,
        _ => return None,
    })
}

fn find<'a>(element: &'a Element, path: &str) -> Option<&'a Element> {
    steps(path).try_fold(element, |element, (name, pick)| {
        element
            .children
            .iter()
            .find(|c| c.name == name && pick.is_none_or(|(a, v)| c.get(a) == Some(v)))
    })
}

fn mark(element: &mut Element, path: &str, form: Form, attribute: Option<&str>) {
    let mut element = element;
    element.seen = true;
    for (name, pick) in steps(path) {
        let next = element
            .children
            .iter_mut()
            .find(|c| c.name == name && pick.is_none_or(|(a, v)| c.get(a) == Some(v)));
        let Some(next) = next else { return };
        next.seen = true;
        if let Some((name, _)) = pick {
            next.see(name);
        }
        element = next;
    }
    match (form, attribute) {
        (Form::Present, _) => {}
        (Form::State, _) => element.see("state"),
        (Form::Size, _) => {
            element.see("unit");
            element.text_seen = true;
        }
        (_, Some(name)) => element.see(name),
        (_, None) => element.text_seen = true,
    }
}

impl Element {
    /// Marks an attribute as understood.
    pub(super) fn see(&mut self, name: &str) {
        self.seen = true;
        if let Some(a) = self.attributes.iter_mut().find(|a| a.name == name) {
            a.seen = true;
        }
    }

    /// Marks an attribute as understood if it has this value.
    pub(super) fn see_if(&mut self, name: &str, value: &str) -> bool {
        let same = self.get(name) == Some(value);
        if same {
            self.see(name);
        }
        same
    }

    /// Marks everything in it as understood.
    pub(super) fn see_all(&mut self) {
        self.seen = true;
        self.text_seen = true;
        self.attributes.iter_mut().for_each(|a| a.seen = true);
        self.children.iter_mut().for_each(Element::see_all);
    }
}

fn split(at: &str) -> (&str, Option<&str>) {
    if let Some(name) = at.strip_prefix('@') {
        return ("", Some(name));
    }
    match at.rsplit_once("/@") {
        Some((path, name)) => (path, Some(name)),
        None if at == "." => ("", None),
        None => (at, None),
    }
}

type Step<'a> = (&'a str, Option<(&'a str, &'a str)>);

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split('/')
        .filter(|s| !s.is_empty())
        .map(|step| match step.split_once('[') {
            None => (step, None),
            Some((name, pick)) => (name, pick.trim_end_matches(']').split_once('=')),
        })
}

/// Bytes as KiB where they divide, else as bytes.
fn amount(text: String) -> (String, &'static str) {
    match text.parse::<u64>() {
        Ok(n) if n % 1024 == 0 => ((n / 1024).to_string(), "KiB"),
        _ => (text, "b"),
    }
}

/// An amount of memory in libvirt's spellings (virScaleInteger): no unit is KiB; `K` and `KiB` are 1024, `KB` is
/// 1000; letter case does not matter.
pub(super) fn bytes(text: &str, unit: Option<&str>) -> Option<u64> {
    let number: u64 = text.trim().parse().ok()?;
    let unit = unit.unwrap_or("KiB").to_ascii_lowercase();
    let unit = match unit.as_str() {
        "b" | "byte" | "bytes" => return Some(number),
        "" => "kib",
        unit => unit,
    };
    let (letter, rest) = unit.split_at_checked(1)?;
    let base: u64 = match rest {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return None,
    };
    let power = "kmgtpe".find(letter)? as u32 + 1;
    base.checked_pow(power)?.checked_mul(number)
}
