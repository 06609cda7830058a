//! A tree of typed values as plain data: canonical keys, sizes in bytes, times in seconds (`null` for no limit).

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::{self, Key, Kind};
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

/// Makes every path in a scenario absolute, `base` being where relative ones start.
pub(crate) fn absolute(data: &mut Value, keys: &'static [Key], base: &Path) {
    let Value::Object(map) = data else { return };
    for (name, value) in map {
        let Some(key) = keys::find(keys, name) else {
            continue;
        };
        match (&key.kind, value) {
            (Kind::Path | Kind::Paths, Value::String(path)) => *path = joined(base, path),
            (Kind::Paths, Value::Array(paths)) => {
                for path in paths {
                    if let Value::String(path) = path {
                        *path = joined(base, path);
                    }
                }
            }
            (Kind::Endpoint, Value::String(end)) => {
                if let Some((kind @ ("file" | "unix"), path)) = end.split_once(':') {
                    *end = format!("{kind}:{}", joined(base, path));
                }
            }
            (Kind::Map { keys, .. }, value) => absolute(value, keys, base),
            (Kind::List { keys, .. }, Value::Array(members)) => {
                for member in members {
                    absolute(member, keys, base);
                }
            }
            _ => {}
        }
    }
}

fn joined(base: &Path, path: &str) -> String {
    base.join(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_every_kind_become_absolute_and_nothing_else_does() {
        let mut data = serde_json::json!({
            "name": "a", "kernel": {"path": "k", "initrd": ["i", "/j"], "cmdline": "x=y"},
            "disks": [{"path": "d/e", "id": "d"}, {"path": "/f"}],
            "serials": [{"to": "unix:s"}, {"to": "stdio"}], "consoles": [{"in": "file:/q", "out": "file:o", "tty": "fd:3"}],
            "command": ["cat", "d/e"], "unknown": "u"
        });
        absolute(&mut data, keys::KEYS, Path::new("/w"));
        assert_eq!(
            data,
            serde_json::json!({
                "name": "a", "kernel": {"path": "/w/k", "initrd": ["/w/i", "/j"], "cmdline": "x=y"},
                "disks": [{"path": "/w/d/e", "id": "d"}, {"path": "/f"}],
                "serials": [{"to": "unix:/w/s"}, {"to": "stdio"}], "consoles": [{"in": "file:/q", "out": "file:/w/o", "tty": "fd:3"}],
                "command": ["cat", "d/e"], "unknown": "u"
            })
        );
    }
}
