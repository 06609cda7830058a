use serde_json::{Value, json};

use super::*;
use crate::domain::{Domain, get};

/// Every key of the language, in one domain.
pub(super) fn full() -> Value {
    serde_json::from_str(include_str!("tests/full.json")).unwrap()
}

/// What comes back of a domain, without a word of complaint.
#[track_caller]
pub(super) fn back(domain: &Value) -> Value {
    let text = export(&Domain(domain.clone())).text;
    let imported = import("d.xml", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(imported.notes.list.is_empty(), "{}\n{text}", imported.notes);
    imported.scenario
}

/// Removes what XML says by leaving it out, and the keys of `unsaid`.
pub(super) fn sayable(mut domain: Value, absent: &[&str]) -> Value {
    let unsaid = export(&Domain(domain.clone())).unsaid;
    let silent = absent.iter().map(|s| (*s).to_owned());
    for path in unsaid.into_iter().chain(silent) {
        remove(&mut domain, &path);
    }
    prune(&mut domain);
    domain
}

fn remove(value: &mut Value, path: &str) {
    let mut at = value;
    for step in path.split('.') {
        let (name, index) = match step.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        let Some(next) = at.get_mut(name) else { return };
        at = match index {
            Some(index) => &mut next[index],
            None => next,
        };
    }
    *at = Value::Null;
}

/// Nulls and what is empty without them.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, v| !v.is_null());
            if map.is_empty() {
                *value = Value::Null;
            }
        }
        Value::Array(list) => {
            list.iter_mut().for_each(prune);
            list.retain(|v| !v.is_null());
            if list.is_empty() {
                *value = Value::Null;
            }
        }
        _ => {}
    }
}

#[test]
fn everything_that_xml_can_say_comes_back() {
    let absent = [
        "console.implicit",
        "console.iommu",
        "disks[1].encryption",
        "disks[2].iommu",
        "firmware.format",
        "iommu",
        "shares[1].read_only",
    ];
    let mut want = sayable(full(), &absent);
    // A port that cannot be said is there, with nobody at its other end.
    want["serials"]
        .as_array_mut()
        .unwrap()
        .push(json!({"to": "null"}));
    assert_eq!(back(&full()), want);
}

#[test]
fn what_xml_cannot_say_is_listed_by_key() {
    let unsaid = export(&Domain(full())).unsaid;
    let want = [
        "command[0]",
        "cpu.ht",
        "cpu.nested",
        "disks[0].cluster_size",
        "disks[0].compression_type",
        "disks[0].direct_io",
        "disks[0].lazy_refcounts",
        "disks[0].preallocation",
        "disks[0].secret_file",
        "disks[0].size",
        "disks[0].sync",
        "env.A",
        "events.max_restarts",
        "firmware.descriptors",
        "firmware.features[0]",
        "host.thp",
        "kernel.format",
        "kernel.initrd[1]",
        "limits.stop_grace",
        "serials[0].log",
        "serials[1].to",
    ];
    assert_eq!(unsaid, want);
    for key in ["disks", "cpu.count"] {
        assert!(get(&full(), key).is_some());
    }
}

#[test]
fn an_exported_document_is_a_fixed_point() {
    let first = export(&Domain(full()));
    let second = export(&Domain(back(&full())));
    assert_eq!(second.text, first.text);
    assert!(second.unsaid.is_empty(), "{:?}", second.unsaid);
}

mod attacks;
mod host;
mod notes;
mod patches;
mod random;
mod sev;
