//! A scenario as data to a scenario as text: YAML that this program, and any other reader of YAML 1.1 or 1.2, reads
//! back as the same values.

#![forbid(unsafe_code)]

use std::time::Duration;

use serde_json::{Map, Number, Value};

use super::keys::{self, KEYS, Key, Kind};
use super::value;

/// Longest list that stays on one line, with its brackets.
const ONE_LINE: usize = 80;
/// Longest key that may stand before its colon without a `?` (YAML 1.2.2, 8.2.2).
const SIMPLE_KEY: usize = 1024;

/// The text of a scenario given as data: canonical keys, sizes in bytes, times in seconds. Keys come in the order of
/// the key table, names that it does not have behind them.
pub fn write(scenario: &Value) -> String {
    let mut out = String::new();
    match scenario {
        Value::Object(map) if !pairs(map, Some(KEYS)).is_empty() => {
            block_map(&mut out, map, Some(KEYS), 0);
        }
        Value::Object(_) | Value::Null => out.push_str("{}\n"),
        other => {
            node(&mut out, other, None, 0);
            out = out.trim_start().to_owned();
        }
    }
    out
}

/// One member of a map: its name, its value, its key where the table has one.
type Pair<'a> = (&'a str, &'a Value, Option<&'static Key>);

/// The members of a map in their order. `null` is a value of times only; elsewhere it says what leaving out says.
fn pairs<'a>(map: &'a Map<String, Value>, keys: Option<&'static [Key]>) -> Vec<Pair<'a>> {
    let keys = keys.unwrap_or_default();
    let known = keys
        .iter()
        .filter_map(|key| Some((key.name, map.get(key.name)?, Some(key))));
    let unknown = map
        .iter()
        .filter(|(name, _)| keys.iter().all(|key| key.name != name.as_str()))
        .map(|(name, value)| (name.as_str(), value, keys::find(keys, name)));
    let mut out: Vec<Pair<'a>> = known.chain(unknown).collect();
    out.retain(|(_, value, key)| !value.is_null() || is_time(key.map(|k| &k.kind)));
    out
}

fn is_time(kind: Option<&Kind>) -> bool {
    matches!(kind, Some(Kind::Time))
}

/// The members of a map, one below the other; the first line is taken to be indented already.
fn block_map(
    out: &mut String,
    map: &Map<String, Value>,
    keys: Option<&'static [Key]>,
    indent: usize,
) {
    for (number, (name, value, key)) in pairs(map, keys).into_iter().enumerate() {
        if number > 0 {
            blanks(out, indent);
        }
        let name = text(name, false);
        if name.len() > SIMPLE_KEY {
            out.push_str("? ");
            out.push_str(&name);
            out.push('\n');
            blanks(out, indent);
        } else {
            out.push_str(&name);
        }
        out.push(':');
        node(out, value, key.map(|k| &k.kind), indent);
    }
}

/// What stands behind a `:` or a `-`, to the end of its last line.
fn node(out: &mut String, value: &Value, kind: Option<&'static Kind>, indent: usize) {
    if let Some(line) = one_line(value, kind) {
        out.push(' ');
        out.push_str(&line);
        out.push('\n');
        return;
    }
    let keys = kind.and_then(keys::below);
    out.push('\n');
    match value {
        Value::Array(items) => {
            for item in items {
                blanks(out, indent + 2);
                out.push('-');
                match item {
                    Value::Object(map) if !pairs(map, keys).is_empty() => {
                        out.push(' ');
                        block_map(out, map, keys, indent + 4);
                    }
                    _ => node(out, item, None, indent + 2),
                }
            }
        }
        Value::Object(map) => {
            blanks(out, indent + 2);
            block_map(out, map, keys, indent + 2);
        }
        _ => {}
    }
}

fn blanks(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// The value on one line, where it has room there: single values, empty ones, short lists of single values, and maps
/// that a single value stands for.
fn one_line(value: &Value, kind: Option<&'static Kind>) -> Option<String> {
    match value {
        Value::Array(items) => {
            let words: Option<Vec<String>> = items
                .iter()
                .map(|item| match item {
                    Value::Array(list) if list.is_empty() => Some("[]".into()),
                    Value::Object(map) if map.is_empty() => Some("{}".into()),
                    _ => scalar(item, None, true),
                })
                .collect();
            let line = format!("[{}]", words?.join(", "));
            (items.is_empty() || line.chars().count() <= ONE_LINE).then_some(line)
        }
        Value::Object(map) => {
            let pairs = pairs(map, kind.and_then(keys::below));
            match (pairs.as_slice(), kind) {
                ([], _) => Some("{}".into()),
                (
                    [(name, value, Some(key))],
                    Some(Kind::Map {
                        scalar: Some(short),
                        ..
                    }),
                ) if name == short => scalar(value, Some(&key.kind), false),
                _ => None,
            }
        }
        _ => scalar(value, kind, false),
    }
}

/// A single value; `flow` when it stands between brackets.
fn scalar(value: &Value, kind: Option<&Kind>, flow: bool) -> Option<String> {
    Some(match (value, kind) {
        (Value::Null, Some(Kind::Time)) => value::time_text(None),
        (Value::Null, _) => "null".into(),
        (Value::Bool(flag), _) => flag.to_string(),
        (Value::Number(number), Some(Kind::Size)) => size(number),
        (Value::Number(number), Some(Kind::Time)) => time(number),
        (Value::Number(number), _) => number.to_string(),
        (Value::String(string), _) => text(string, flow),
        (Value::Array(_) | Value::Object(_), _) => return None,
    })
}

/// `2 GiB` as `2G`.
fn size(number: &Number) -> String {
    let Some(bytes) = number.as_u64() else {
        return number.to_string();
    };
    let long = value::size_text(bytes);
    match long.split_once(' ') {
        Some((amount, "bytes")) => format!("{amount}B"),
        Some((amount, unit)) => format!("{amount}{}", unit.trim_end_matches("iB")),
        None => long,
    }
}

fn time(number: &Number) -> String {
    let whole = number.as_u64().map(Duration::from_secs);
    let parts = || Duration::try_from_secs_f64(number.as_f64()?).ok();
    match whole.or_else(parts) {
        Some(time) => value::time_text(Some(time)),
        None => number.to_string(),
    }
}

/// A text, in quotes where a reader would take it for something else.
fn text(text: &str, flow: bool) -> String {
    if plain(text, flow) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            _ if !hidden(c) => out.push(c),
            _ => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push('"');
    out
}

/// Characters that a text file must not have, or that a reader does not see: controls, the line ends of Unicode, marks
/// of writing direction, the byte order mark, what is no character.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || (0xfdd0..=0xfdef).contains(&u32::from(c))
        || u32::from(c) & 0xfffe == 0xfffe
}

/// Whether a text without quotes is read as itself.
fn plain(text: &str, flow: bool) -> bool {
    let mut chars = text.chars();
    let (Some(first), second) = (chars.next(), chars.next()) else {
        return false;
    };
    let indicator = match first {
        '-' => second.is_none_or(char::is_whitespace),
        _ => "?:,[]{}#&*!|>'\"%@`".contains(first),
    };
    let separates = |c: char| flow && ",[]{}".contains(c);
    // Legal between brackets too, but not every parser thinks so.
    let odd = flow && [" -", " ?", " :"].iter().any(|mark| text.contains(mark));
    !(indicator
        || odd
        || text.starts_with(char::is_whitespace)
        || text.ends_with(char::is_whitespace)
        || text.ends_with(':')
        || text.starts_with("---")
        || text.starts_with("...")
        || [": ", " #"].iter().any(|mark| text.contains(mark))
        || text.chars().any(|c| hidden(c) || separates(c))
        || special(text)
        || numeric(text))
}

/// Words that stand for a boolean, nothing, or a key of their own in YAML 1.1 or 1.2.
fn special(text: &str) -> bool {
    const WORDS: [&str; 12] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", "=", "<<",
    ];
    WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Whether YAML 1.1 or 1.2 reads a number or a date.
fn numeric(text: &str) -> bool {
    let unsigned = text
        .strip_prefix(['+', '-'])
        .unwrap_or(text)
        .to_ascii_lowercase();
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let spaced = |t: &str| t.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if [".inf", ".nan"].contains(&unsigned.as_str()) {
        return true;
    }
    if let Some(rest) = ["0x", "0o", "0b"]
        .iter()
        .find_map(|p| unsigned.strip_prefix(p))
    {
        return rest.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_');
    }
    let mut date = text.splitn(3, '-');
    if let (Some(year), Some(month), Some(rest)) = (date.next(), date.next(), date.next()) {
        let day = rest
            .find(|c: char| !c.is_ascii_digit())
            .map_or(rest, |end| rest.split_at(end).0);
        let short = |t: &str| digits(t) && t.len() <= 2;
        if year.len() == 4 && digits(year) && short(month) && short(day) {
            return true;
        }
    }
    if let Some((head, tail)) = unsigned.split_once(':') {
        // Base 60 of YAML 1.1: `190:20:30`, `190:20:30.15`.
        let (tail, fraction) = tail.split_once('.').unwrap_or((tail, ""));
        return head.starts_with(|c: char| c.is_ascii_digit())
            && spaced(head)
            && spaced(fraction)
            && tail.split(':').all(|t| t.len() <= 2 && digits(t));
    }
    let (mantissa, exponent) = match unsigned.split_once('e') {
        Some((mantissa, exponent)) => (
            mantissa,
            exponent.strip_prefix(['+', '-']).unwrap_or(exponent),
        ),
        None => (unsigned.as_str(), "0"),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let begins = if whole.is_empty() { fraction } else { whole };
    begins.starts_with(|c: char| c.is_ascii_digit())
        && spaced(whole)
        && spaced(fraction)
        && digits(exponent)
}

#[cfg(test)]
mod tests;
