//! The domain: a scenario with every open question answered.
//!
//! It is a JSON object in the words of the key table ([`crate::scenario::keys`]): lists are arrays of objects, sizes
//! are bytes, times are seconds (`null`: no limit), paths are absolute, everything else is text, a number or a
//! boolean. Exporters read it and know nothing of where a value came from.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A scenario with every open question answered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Domain(pub Value);

impl Domain {
    /// The value at a path of canonical names, such as `cpu.topology.cores`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        get(&self.0, path)
    }

    /// The text at a path.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// Whether there is a `true` at a path.
    pub fn flag(&self, path: &str) -> bool {
        self.get(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The number at a path.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.get(path)?.as_u64()
    }

    /// The members of a list; none where there is no list.
    pub fn list(&self, path: &str) -> &[Value] {
        self.get(path)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }
}

/// The value below `value` at a path of names.
pub fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(value, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_path_and_kind() {
        let domain = Domain(serde_json::json!({
            "cpu": {"count": 2, "migratable": true}, "name": "a", "disks": [{"id": "x"}]
        }));
        assert_eq!(domain.number("cpu.count"), Some(2));
        assert!(domain.flag("cpu.migratable") && !domain.flag("cpu.count"));
        assert_eq!(domain.text("name"), Some("a"));
        assert_eq!(domain.list("disks").len(), 1);
        assert!(domain.list("nets").is_empty() && domain.get("cpu.count.x").is_none());
    }
}
