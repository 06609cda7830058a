//! A tree of typed values as plain data: canonical keys, sizes in bytes, times in seconds (`null` for no limit).

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::tree::{Body, Entry, Leaf};
use super::value;

/// What is written in a tree, without defaults and without what was wrong.
pub(crate) fn of(entry: &Entry) -> Value {
    body(&entry.body).unwrap_or_default()
}

fn body(body: &Body) -> Option<Value> {
    Some(match body {
        Body::Wrong => return None,
        Body::Leaf(leaf) => self::leaf(leaf),
        Body::Member(_, member) => Value::Array(vec![self::body(&member.body)?]),
        Body::List(members) => members.iter().filter_map(|m| self::body(&m.body)).collect(),
        Body::Map(entries) => {
            let named = |e: &Entry| Some((e.key.name.to_owned(), self::body(&e.body)?));
            Value::Object(entries.iter().filter_map(named).collect())
        }
    })
}

fn leaf(leaf: &Leaf) -> Value {
    match leaf {
        Leaf::Bool(flag) => (*flag).into(),
        Leaf::Count(number) | Leaf::Bytes(number) => (*number).into(),
        Leaf::Time(None) => Value::Null,
        Leaf::Time(Some(time)) if time.subsec_nanos() == 0 => time.as_secs().into(),
        Leaf::Time(Some(time)) => time.as_secs_f64().into(),
        Leaf::Text(text) => text.as_str().into(),
        Leaf::Path(path) => path.to_string_lossy().into(),
        Leaf::Paths(paths) => paths
            .iter()
            .map(|p| Value::from(p.value.to_string_lossy()))
            .collect(),
        Leaf::Endpoint(end) => value::endpoint_text(end).into(),
        Leaf::Word(word) => (*word).into(),
        Leaf::Words(words) => words
            .iter()
            .map(|w| Value::from(w.value.as_str()))
            .collect(),
        Leaf::Env(pairs) => {
            let named = pairs
                .iter()
                .map(|(name, value)| (name.value.clone(), value.as_str().into()));
            Value::Object(named.collect::<Map<_, _>>())
        }
    }
}
