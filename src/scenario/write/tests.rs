use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::write;
use crate::scenario::keys::{self, KEYS, Key, Kind};
use crate::scenario::{Input, Layer, Override, parse, value, yaml};

/// What a text says as a scenario, with the flags on top.
fn read(text: &str, flags: &[String]) -> Value {
    let file = Some((Path::new("s.yaml"), text.as_bytes()));
    let layers = flags
        .iter()
        .map(|f| Layer::Option(Override::option(f)))
        .collect();
    let home = Some("/home/u".into());
    #[allow(clippy::needless_update, reason = "inputs get more fields")]
    let parsed = parse(&Input {
        file,
        layers,
        home,
        ..Input::default()
    });
    let codes: Vec<_> = parsed.problems.iter().map(|d| &d.message).collect();
    assert!(codes.is_empty(), "{text}{flags:?}: {codes:?}");
    parsed.data()
}

/// Every key that takes a value, as `-o` names it, with a value that is right.
fn examples(keys: &'static [Key], path: &str, out: &mut Vec<String>) {
    for key in keys {
        let here = format!("{path}{}", key.name);
        match key.kind {
            Kind::Map { keys, .. } => examples(keys, &format!("{here}."), out),
            Kind::List { keys, .. } => examples(keys, &format!("{here}.0."), out),
            Kind::Word(words) => {
                let allowed = words.iter().filter(|w| w.refused.is_none());
                out.extend(allowed.map(|w| format!("{here}={}", w.name)));
            }
            Kind::Bool => out.extend([format!("{here}=on"), format!("{here}=off")]),
            Kind::Time => out.extend([format!("{here}=none"), format!("{here}={}", key.example)]),
            _ => out.push(format!("{here}={}", key.example)),
        }
    }
}

#[test]
fn every_key_of_the_table_comes_back() {
    let mut all = Vec::new();
    examples(KEYS, "", &mut all);
    assert!(all.len() > 80, "{}", all.len());
    for flag in all {
        let said = read("", std::slice::from_ref(&flag));
        assert_ne!(said, json!({}), "{flag} says nothing");
        let text = write(&said);
        assert_eq!(read(&text, &[]), said, "{flag}:\n{text}");
        assert_eq!(write(&read(&text, &[])), text, "{flag}");
    }
}

#[test]
fn a_scenario_reads_as_a_person_would_write_it() {
    let scenario = json!({
        "zebra": 1,
        "memory": {"size": 2u64 << 30},
        "name": "web",
        "cpu": {"count": 4, "topology": {"sockets": 1, "cores": 2, "threads": 2}},
        "limits": {"timeout": null, "boot_deadline": 1.5, "stop_grace": 10},
        "command": ["sh", "-c", "a, b"],
        "env": {"LANG": "C", "EMPTY": "", "NUM": "1"},
        "kernel": {"initrd": ["/a", "/b"], "cmdline": "quiet  root=/dev/vda1"},
        "disks": [{"path": "/a.img", "cache": "none", "read_only": true}, {"path": "/b: c.img"}],
        "serials": [],
        "irqchip": null,
    });
    let text = "\
name: web
cpu:
  count: 4
  topology:
    sockets: 1
    cores: 2
    threads: 2
memory: 2G
kernel:
  initrd: [/a, /b]
  cmdline: quiet  root=/dev/vda1
command: [sh, -c, \"a, b\"]
env:
  EMPTY: \"\"
  LANG: C
  NUM: \"1\"
disks:
  - path: /a.img
    read_only: true
    cache: none
  - path: \"/b: c.img\"
serials: []
limits:
  timeout: none
  boot_deadline: 1500ms
  stop_grace: 10s
zebra: 1
";
    assert_eq!(write(&scenario), text);
    assert_eq!(write(&json!({})), "{}\n");
}

#[test]
fn sizes_are_as_short_as_they_can_be() {
    for (bytes, text) in [
        (2u64 << 30, "memory: 2G\n"),
        (3 << 29, "memory: 1536M\n"),
        (64 << 10, "memory: 64K\n"),
        (1 << 40, "memory: 1T\n"),
        (1025, "memory: 1025B\n"),
    ] {
        let scenario = json!({"memory": {"size": bytes}});
        assert_eq!(write(&scenario), text);
        assert_eq!(read(text, &[]), scenario);
    }
}

#[test]
fn quotes_are_where_a_reader_needs_them() {
    for text in [
        "",
        "~",
        "y",
        "No",
        "oN",
        "OFF",
        "null",
        "True",
        "0",
        "007",
        "0o17",
        "0x1F",
        "0b11",
        "1_000",
        "-1",
        "+1.5",
        "1e3",
        ".5",
        "1.",
        "-.inf",
        ".NaN",
        "12:30:45",
        "52:54:00:12:34:56",
        "2026-11-20",
        "2026-1-2T03:04:05Z",
        " a",
        "a ",
        "a: b",
        "a #b",
        "a:",
        "- a",
        "-",
        "?a",
        "#a",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "'a",
        "\"a",
        "%a",
        "@a",
        "`a",
        "[a",
        "{a",
        ",a",
        "---",
        "...",
        "=",
        "<<",
        "a\nb",
        "a\tb",
        "\u{85}",
        "a\u{2028}b",
        "\u{feff}a",
        "\u{7f}",
        "a\u{202e}b",
        "\u{a0}a",
        "0x",
    ] {
        let written = write(&json!({"kernel": {"cmdline": text}}));
        assert!(
            written.starts_with("kernel:\n  cmdline: \""),
            "{text:?}: {written}"
        );
    }
    for text in [
        "a",
        "a b",
        "-a",
        "--a=b",
        "a:b",
        "http://a/b?c#d",
        "a#b",
        "127.0.0.1",
        "2G",
        "1.2.3",
        "52:54:00:aa:bb:cc",
        "a\"b",
        "it's",
        "é",
        "日本",
        "😀",
        "2-3",
        "e3",
        ".a",
        "1e",
        "12345678-1234-1234-1234-123456789abc",
        "2026-11",
        "a, [b]",
        "yesterday",
        "0xfg",
        "12:345",
    ] {
        assert_eq!(
            write(&json!({"kernel": {"cmdline": text}})),
            format!("kernel:\n  cmdline: {text}\n")
        );
    }
    assert_eq!(
        write(&json!({"command": ["a, [b]", "c"]})),
        "command: [\"a, [b]\", c]\n"
    );
}

/// A dash before a bracket: a parser reads it as the start of a list's member.
#[test]
fn a_dash_at_the_end_of_a_word_comes_back() {
    let scenario = json!({"command": ["A -"]});
    assert_eq!(read(&write(&scenario), &[]), scenario);
}

#[test]
fn a_long_list_and_a_long_key_are_cut_into_lines() {
    let words: Vec<String> = (0..30).map(|n| format!("word{n}")).collect();
    let text = write(&json!({ "command": words }));
    assert!(
        text.starts_with("command:\n  - word0\n  - word1\n"),
        "{text}"
    );
    assert_eq!(read(&text, &[]), json!({ "command": words }));
    let scenario = json!({"env": {"K".repeat(2000): "v", "a": "b"}});
    assert_eq!(read(&write(&scenario), &[]), scenario);
}

/// The same data, every single value as text: what a reader without the key table sees.
fn untyped(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(untyped).collect(),
        Value::Object(map) => {
            let told = map.iter().filter(|(_, v)| !v.is_null());
            Value::Object(told.map(|(k, v)| (k.clone(), untyped(v))).collect())
        }
        Value::Null => Value::Null,
        Value::String(text) => text.clone().into(),
        other => other.to_string().into(),
    }
}

fn of_node(node: &yaml::Node) -> Value {
    match &node.value {
        yaml::Value::Null => Value::Null,
        yaml::Value::Scalar { text, .. } => (&**text).into(),
        yaml::Value::Seq(items) => items.iter().map(of_node).collect(),
        yaml::Value::Map(pairs) => {
            let pairs = pairs.iter().map(|(k, v)| (k.value.to_string(), of_node(v)));
            Value::Object(pairs.collect())
        }
    }
}

/// Texts that are likely to be misread.
fn tricky() -> impl Strategy<Value = String> {
    let marks = "[-:#?,\\[\\]{}&*!|>'\"%@` \\n\\t\\\\~=<.0-9a-zA-Z_+é\u{85}\u{a0}\u{2028}\u{feff}\u{1}]{0,12}";
    prop_oneof![marks, "\\PC{0,20}", any::<String>()]
}

fn anything() -> impl Strategy<Value = Value> {
    let single = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        tricky().prop_map(Value::from)
    ];
    single.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(tricky(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_text_comes_back(line in tricky(), words in proptest::collection::vec(tricky(), 0..5), at in tricky()) {
        let clean = |t: &str| t.replace('\0', "0");
        let words: Vec<String> = words.iter().map(|w| clean(w)).collect();
        let scenario = json!({
            "kernel": {"cmdline": clean(&line)},
            "command": words,
            "env": {"A": clean(&line)},
            "disks": [{"path": format!("/{}", clean(&at))}],
        });
        let text = write(&scenario);
        prop_assert_eq!(read(&text, &[]), scenario, "{}", text);
    }

    #[test]
    fn any_data_is_yaml_that_says_the_same(data in proptest::collection::btree_map("[a-z]{3}", anything(), 0..5)) {
        let data = Value::Object(data.into_iter().filter(|(k, _)| keys::find(KEYS, k).is_none()).collect());
        let text = write(&data);
        prop_assert!(yaml::decode(text.as_bytes()).is_ok(), "{}", text);
        let mut problems = Vec::new();
        let node = yaml::parse(&text, 0, 0, &mut problems);
        prop_assert!(problems.is_empty(), "{}\n{:?}", text, problems);
        prop_assert_eq!(node.as_ref().map(of_node), Some(untyped(&data)), "{}", text);
    }

    #[test]
    fn every_amount_comes_back(bytes in any::<u64>(), shift in 0..50u32, micros in 1..u64::from(u32::MAX)) {
        let bytes = bytes >> shift;
        prop_assert_eq!(read(&write(&json!({"memory": {"size": bytes}})), &[]), json!({"memory": {"size": bytes}}));
        let time = std::time::Duration::from_micros(micros);
        let text = write(&json!({"limits": {"timeout": time.as_secs_f64()}}));
        prop_assert!(text.ends_with(&format!("timeout: {}\n", value::time_text(Some(time)))), "{}", text);
    }
}
