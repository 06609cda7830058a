//! What the domain says and nobody wrote: the answers to the questions that a scenario leaves open.

#![forbid(unsafe_code)]

use serde_json::Value;

use crate::diag::Origin;
use crate::domain::Domain;
use crate::scenario::Setting;
use crate::scenario::keys::{self, Kind};
use crate::scenario::value::size_text;

/// Every value of a domain that is none of `settings`, each as it could be written, in the order of the key table.
pub fn answers(settings: &[Setting], domain: &Domain) -> Vec<Setting> {
    let mut found = Vec::new();
    walk(&domain.0, &mut Vec::new(), String::new(), &mut found);
    found.retain(|(_, answer)| !settings.iter().any(|s| s.key == answer.key));
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.into_iter().map(|(_, answer)| answer).collect()
}

/// Where a value stands in the key table: the place of each key on the way to it.
type Place = Vec<usize>;

fn walk<'a>(
    value: &'a Value,
    names: &mut Vec<&'a str>,
    path: String,
    out: &mut Vec<(Place, Setting)>,
) {
    match value {
        Value::Object(map) if !is_leaf(names) => {
            for (name, value) in map {
                names.push(name);
                let path = match path.is_empty() {
                    true => name.clone(),
                    false => format!("{path}.{name}"),
                };
                walk(value, names, path, out);
                names.pop();
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (number, item) in items.iter().enumerate() {
                walk(item, names, format!("{path}[{number}]"), out);
            }
        }
        _ => {
            let kind = keys::at(names).map(|key| key.kind);
            let answer = Setting {
                key: path,
                value: text(value, kind),
                origin: Origin::Default,
            };
            out.push((place(names), answer));
        }
    }
}

/// Whether the value at this path is a map of the user's own names.
fn is_leaf(names: &[&str]) -> bool {
    keys::at(names).is_some_and(|key| keys::below(&key.kind).is_none())
}

fn place(names: &[&str]) -> Place {
    let mut keys = keys::KEYS;
    let mut out = Vec::new();
    for name in names {
        let at = keys.iter().position(|key| key.name == *name);
        out.push(at.unwrap_or(usize::MAX));
        keys = at
            .and_then(|at| keys::below(&keys.get(at)?.kind))
            .unwrap_or_default();
    }
    out
}

fn text(value: &Value, kind: Option<Kind>) -> String {
    match (value, kind) {
        (Value::Number(number), Some(Kind::Size)) => match number.as_u64() {
            Some(bytes) => size_text(bytes),
            None => number.to_string(),
        },
        (Value::Null, _) => "none".to_owned(),
        (Value::String(text), _) => text.clone(),
        (Value::Array(items), _) => {
            let items: Vec<String> = items.iter().map(|item| text(item, None)).collect();
            format!("[{}]", items.join(", "))
        }
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_nobody_wrote_is_told_in_the_order_of_the_table() {
        let domain = Domain(json!({
            "machine": "q35",
            "cpu": {"count": 2, "features": {"svm": "disable"}},
            "memory": {"size": 268435456, "hard_limit": 1024},
            "boot": {"devices": ["hd", "cdrom"]},
            "disks": [{"path": "/a", "target": "vda"}, {"path": "/b"}],
            "limits": {"timeout": null},
        }));
        let written = ["cpu.count", "disks[0].path", "machine"].map(|key| Setting {
            key: key.into(),
            value: String::new(),
            origin: Origin::Default,
        });
        let lines: Vec<String> = answers(&written, &domain)
            .into_iter()
            .map(|a| format!("{}={}", a.key, a.value))
            .collect();
        assert_eq!(
            lines,
            [
                "cpu.features={\"svm\":\"disable\"}",
                "memory.size=256 MiB",
                "memory.hard_limit=1 KiB",
                "disks[1].path=/b",
                "disks[0].target=vda",
                "limits.timeout=none",
                "boot.devices=[hd, cdrom]",
            ]
        );
    }
}
