//! `schema`: the JSON Schema of the language, judged by a validator of others (python3-jsonschema).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{TempDir, expect_code, run, skip, text, vsc};
use serde_json::{Value, json};
use vsc::scenario::keys::{KEYS, Key, Kind};
use vsc::scenario::{presets, schema};

/// Lines under a key or a dash.
fn block(mark: &str, inner: &str) -> String {
    let indented = inner.lines().enumerate().map(|(number, line)| {
        let before = if number == 0 { mark } else { "  " };
        format!("{before}{line}\n")
    });
    indented.collect()
}

/// Every way to write a key with a value: the texts of whole scenarios.
fn scenarios(keys: &'static [Key], around: &dyn Fn(&str) -> String, out: &mut Vec<String>) {
    for key in keys {
        for name in [key.name].iter().chain(key.aliases) {
            for value in [key.example, key.default] {
                let sentence = value.is_empty() || value.contains("disk0");
                if !sentence {
                    out.push(around(&format!("{name}: {value}")));
                }
            }
        }
        match key.kind {
            Kind::Map { keys, .. } => {
                let name = key.name;
                let map = |inner: &str| around(&format!("{name}:\n{}", block("  ", inner)));
                scenarios(keys, &map, out);
            }
            Kind::List { keys, .. } => {
                let name = key.name;
                let one = |inner: &str| around(&format!("{name}:\n{}", block("  ", inner)));
                scenarios(keys, &one, out);
                let two = |inner: &str| {
                    let member = block("- ", inner);
                    around(&format!("{name}:\n{member}{member}"))
                };
                scenarios(keys, &two, out);
            }
            Kind::Word(words) => {
                let allowed = words.iter().filter(|w| w.refused.is_none());
                out.extend(allowed.map(|w| around(&format!("{}: {}", key.name, w.name))));
            }
            _ => {}
        }
    }
}

/// What no validator may let through.
const WRONG: &[&str] = &[
    "memroy: 1G",
    "[memory]",
    "memory: {size: 12MB}",
    "memory: {sise: 1G}",
    "memory: {hugepages: 4M}",
    "memory: [1G]",
    "iothreads: 65",
    "iothreads: -1",
    "iothreads: 1.5",
    "cpu: {topology: {threads: 3}}",
    "cpu: {features: {svm: maybe}}",
    "cpu: {ht: perhaps}",
    "disks: [{path: a, cache: fast}]",
    "disks: [{path: a, format: auto}]",
    "disks: [[a]]",
    "disks: {path: a, nothing: b}",
    "name: \"a b\"",
    "name: ..",
    "name: []",
    "uuid: 6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b0",
    "limits: {timeout: 5 days}",
    "limits: {timeout: 0}",
    "serials: [tcp:1]",
    "env: LANG=C",
    "env: [LANG]",
    "shares: {source: /a, fmode: 0999}",
    "boot: {devices: [hd, tape]}",
    "boot: [hd]",
    "host: {swappiness: 201}",
    "xml: [{path: a, valeu: b}]",
    "kernel: {path: ~bob/vmlinuz}",
    "root: null",
];

/// A Python that has a validator other than ours: python3-jsonschema.
fn validator() -> Option<&'static str> {
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let probe = Command::new(python)
            .args(["-c", "from jsonschema import Draft202012Validator"])
            .output();
        probe.is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        skip("python3-jsonschema is not installed");
    }
    found
}

const VALIDATE: &str = r#"
import json, sys
from jsonschema import Draft202012Validator
given = json.load(sys.stdin)
Draft202012Validator.check_schema(given["schema"])
validator = Draft202012Validator(given["schema"])
for text, data in given["good"]:
    for error in validator.iter_errors(data):
        print("refused:", text, "--", error.message[:200], list(error.absolute_path))
for text, data in given["wrong"]:
    if validator.is_valid(data):
        print("accepted:", text)
"#;

#[test]
fn the_schema_takes_what_is_right_and_refuses_what_is_wrong() {
    let output = run(vsc().arg("schema"));
    expect_code(&output, 0);
    let same = run(vsc().args(["schema", "--json"]));
    assert_eq!(output.stdout, same.stdout);
    let language: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Some(python) = validator() else { return };
    let mut good = Vec::new();
    scenarios(KEYS, &|inner| inner.to_owned(), &mut good);
    assert!(good.len() > 700, "{}", good.len());
    let all = presets::PRESETS.iter().chain(presets::FEATURES);
    good.extend(all.map(|preset| preset.text.to_owned()));
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            good.push(std::fs::read_to_string(path).unwrap());
        }
    }
    let data = |texts: &[String]| -> Vec<Value> {
        texts
            .iter()
            .map(|t| {
                json!([
                    t,
                    schema::instance(t).unwrap_or_else(|| panic!("no YAML: {t}"))
                ])
            })
            .collect()
    };
    let wrong: Vec<String> = WRONG.iter().map(|t| (*t).to_owned()).collect();
    let given = json!({ "schema": language, "good": data(&good), "wrong": data(&wrong) });
    let dir = TempDir::new("schema");
    let input = dir.write("input.json", given.to_string());
    let output = run(Command::new(python)
        .args(["-c", VALIDATE])
        .stdin(std::fs::File::open(input).unwrap()));
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "");
}

/// The schema is no stricter than the program.
#[test]
fn what_the_schema_refuses_the_program_refuses() {
    let dir = TempDir::new("wrong");
    for text in WRONG {
        let parsed = vsc::load(
            Some(&dir.write("s.yaml", text)),
            Vec::new(),
            None,
            vsc::SettingsFrom::Nowhere,
        )
        .unwrap();
        assert!(!parsed.problems.is_empty(), "{text}");
    }
}
