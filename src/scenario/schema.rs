//! The JSON Schema (draft 2020-12) of the scenario language, made from the key table.
//!
//! It says what a scenario is as data, the way a YAML 1.2 parser hands it to a validator or an editor: every key and
//! every other spelling of it, types, ranges, words with their meanings, defaults, examples, short forms. Each key is
//! one definition, named by its path without indices (`disks.cache`); `disks.*` is a member of the list `disks`, and `type:size` a kind of value.

#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use super::keys::{self, KEYS, Key, Kind};
use super::{value, yaml};

/// The dialect, as `$schema` names it.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// How YAML writes the two truths, 1.1 and 1.2 (as [`value::boolean`] reads them).
const SPELLINGS: [(bool, &str); 18] = [
    (true, "true"),
    (true, "True"),
    (true, "TRUE"),
    (true, "yes"),
    (true, "Yes"),
    (true, "YES"),
    (true, "on"),
    (true, "On"),
    (true, "ON"),
    (false, "false"),
    (false, "False"),
    (false, "FALSE"),
    (false, "no"),
    (false, "No"),
    (false, "NO"),
    (false, "off"),
    (false, "Off"),
    (false, "OFF"),
];

/// The schema of a whole scenario.
pub fn schema() -> Value {
    let mut definitions = Map::new();
    let mut root = object(KEYS, "");
    define(KEYS, "", &mut definitions);
    for (name, definition) in kinds() {
        definitions.insert(format!("type:{name}"), definition);
    }
    let extra = json!({
        "$schema": DIALECT,
        "$id": "urn:vsc:schema:scenario",
        "title": "vsc scenario",
        "description": "One virtual machine: what it is made of, what it runs, and how long. Every key is optional.",
        "$defs": definitions,
    });
    join(&mut root, extra);
    root
}

/// A YAML text as the data that a validator of [`schema()`] sees: plain scalars by the core schema of YAML 1.2
/// (section 10.3.2), quoted ones as text. `None` where the text is not YAML.
pub fn instance(text: &str) -> Option<Value> {
    let mut problems = Vec::new();
    let node = yaml::parse(text, 0, 0, &mut problems)?;
    problems.is_empty().then(|| plain(&node))
}

fn plain(node: &yaml::Node) -> Value {
    match &node.value {
        yaml::Value::Null => Value::Null,
        yaml::Value::Scalar { text, plain: false } => Value::from(&**text),
        yaml::Value::Scalar { text, plain: true } => core(text),
        yaml::Value::Seq(items) => items.iter().map(plain).collect(),
        yaml::Value::Map(pairs) => Value::Object(
            pairs
                .iter()
                .map(|(name, node)| (name.value.to_string(), plain(node)))
                .collect(),
        ),
    }
}

/// A plain scalar by YAML's core schema.
fn core(text: &str) -> Value {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = match text {
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ if text.starts_with("0x") || text.starts_with("0o") => {
            value::count(text).map(Value::from)
        }
        _ if digits(unsigned) && text.starts_with('-') => text.parse().ok().map(i64::into),
        _ if digits(unsigned) => unsigned.parse().ok().map(u64::into),
        // No exponents: a scenario has none, and no infinity either.
        _ => match unsigned.split_once('.') {
            Some((whole, part)) if digits(&format!("{whole}{part}")) => {
                text.parse().ok().map(f64::into)
            }
            _ => None,
        },
    };
    number.unwrap_or_else(|| text.into())
}

fn join(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// A reference to one of [`kinds`].
fn kind(name: &str) -> Value {
    reference(&format!("type:{name}"))
}

fn path_of(above: &str, name: &str) -> String {
    match above {
        "" => name.to_owned(),
        _ => format!("{above}.{name}"),
    }
}

/// Definitions of these keys and of all below them.
fn define(keys: &'static [Key], above: &str, out: &mut Map<String, Value>) {
    for key in keys {
        let path = path_of(above, key.name);
        out.insert(path.clone(), definition(key, &path));
        if let Some(below) = keys::below(&key.kind) {
            define(below, &path, out);
        }
        if let Kind::List { keys, scalar, .. } = key.kind {
            let member = json!({ "anyOf": [object(keys, &path), single(keys, scalar, &path)] });
            out.insert(format!("{path}.*"), member);
        }
    }
}

/// A map of these keys: each spelling is a property.
fn object(keys: &'static [Key], path: &str) -> Value {
    let mut properties = Map::new();
    for key in keys {
        for name in [key.name].iter().chain(key.aliases) {
            let mut value = reference(&path_of(path, key.name));
            // Editors offer one spelling of each key, and take the others.
            if *name != key.name
                && let Value::Object(map) = &mut value
            {
                map.insert("deprecated".into(), true.into());
                map.insert(
                    "description".into(),
                    format!("Another spelling of {}.", key.name).into(),
                );
            }
            properties.insert((*name).to_owned(), value);
        }
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// The bare value that stands for a map with only the key `scalar`.
fn single(keys: &'static [Key], scalar: &str, path: &str) -> Value {
    match keys::find(keys, scalar) {
        // Where the key takes a list, too, a list is not meant here.
        Some(Key {
            kind: Kind::Set(words),
            ..
        }) => word(words),
        Some(key) => reference(&path_of(path, key.name)),
        None => json!(false),
    }
}

fn definition(key: &'static Key, path: &str) -> Value {
    let mut out = match key.kind {
        Kind::Alias(target) => reference(&target.join(".")),
        Kind::Map { keys, scalar: None } => object(keys, path),
        Kind::Map {
            keys,
            scalar: Some(name),
        } => json!({ "anyOf": [object(keys, path), single(keys, name, path)] }),
        Kind::List { max, .. } => {
            let member = reference(&format!("{path}.*"));
            let list = json!({ "type": "array", "items": member, "maxItems": max });
            json!({ "anyOf": [list, reference(&format!("{path}.*"))] })
        }
        other => leaf(&other),
    };
    let mut about = key.meaning.to_owned();
    if !key.reason.is_empty() {
        about += &format!(" ({})", key.reason);
    }
    match (key.elsewhere, key.as_is) {
        (None, _) | (_, ["*"]) => {}
        (Some(why), []) => about += &format!(" Only in the domain XML: {why}."),
        (Some(why), values) => {
            let values = values.join(", ");
            about += &format!(" Other than {values} only in the domain XML: {why}.");
        }
    }
    let mut more = json!({ "description": about });
    match default(key) {
        Some(value) => join(&mut more, json!({ "default": value })),
        None if key.default.is_empty() => {}
        None => {
            let about = format!("{about} Default: {}.", key.default);
            more = json!({ "description": about });
        }
    }
    if let Some(example) = instance(key.example) {
        join(&mut more, json!({ "examples": [example] }));
    }
    let ends: Vec<String> = [("", key.register), ("domain XML: ", key.xml)]
        .into_iter()
        .filter(|(_, place)| !place.is_empty())
        .map(|(what, place)| format!("{what}{place}"))
        .collect();
    if !ends.is_empty() {
        join(&mut more, json!({ "$comment": ends.join("; ") }));
    }
    join(&mut out, more);
    out
}

/// The default as data, where the table has a value and not a sentence about it.
fn default(key: &Key) -> Option<Value> {
    match (key.default, key.kind) {
        ("", _) => None,
        (text, Kind::Name { max }) if value::name(text, max).is_err() => None,
        // A word that looks like a number is a word.
        (text, Kind::Word(_)) => Some(text.into()),
        (text, _) => instance(text),
    }
}

/// What single values are, by kind.
fn kinds() -> [(&'static str, Value); 11] {
    let (yes, no): (Vec<_>, Vec<_>) = SPELLINGS.iter().partition(|(truth, _)| *truth);
    let spelled = |truth: bool, words: Vec<&(bool, &str)>| {
        let words = words.iter().map(|(_, word)| Value::from(*word));
        let all: Vec<Value> = [Value::from(truth)].into_iter().chain(words).collect();
        json!({ "enum": all })
    };
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let described = |mut schema: Value, text: &str| {
        join(&mut schema, json!({ "description": text }));
        schema
    };
    let words = [
        ("null", "nothing"),
        ("stdio", "standard input and output, or the terminal"),
        ("stdin", "standard input"),
        ("stdout", "standard output"),
        ("stderr", "standard error"),
        ("none", "nothing"),
    ]
    .map(|(word, meaning)| json!({ "const": word, "description": meaning }));
    let mut ends = vec![
        json!({ "type": "null", "description": "nothing" }),
        json!({ "type": "string", "pattern": "^file:.", "description": "a file" }),
        json!({ "type": "string", "pattern": "^unix:.", "description": "a socket that is listened at" }),
        json!({ "type": "string", "pattern": "^fd:(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+)$", "description": "an open descriptor of this process" }),
    ];
    ends.extend(words);
    [
        ("yes", spelled(true, yes)),
        ("no", spelled(false, no)),
        (
            "bool",
            described(
                json!({ "anyOf": [kind("yes"), kind("no")] }),
                "true or false, also yes, no, on, off",
            ),
        ),
        (
            "size",
            json!({
                "anyOf": [
                    { "type": "number", "minimum": 0, "description": "MiB" },
                    { "type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,9})? *([KkMmGgTtBb]|[KMGT]i|[KMGT]iB|bytes)?$",
                      "description": "with K, M, G, T or KiB, MiB, GiB, TiB: powers of 1024" },
                ],
            }),
        ),
        (
            "time",
            json!({
                "anyOf": [
                    { "type": "number", "exclusiveMinimum": 0, "maximum": 366 * 24 * 3600, "description": "seconds" },
                    { "type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,9})? *(us|µs|ms|s|sec|m|min|h)?$",
                      "description": "with ms, s, m or h" },
                    { "enum": ["none", "never"], "description": "no limit" },
                ],
            }),
        ),
        (
            "scalar",
            described(scalar.clone(), "a single value, read as text"),
        ),
        ("text", described(scalar, "text")),
        (
            "path",
            json!({
                "type": ["string", "number", "boolean"], "pattern": "^(?!~[^/])[^\\u0000]+$",
                "description": "a file of the host, relative to the scenario's directory; ~ is the home directory",
            }),
        ),
        ("end", json!({ "anyOf": ends })),
        (
            "mode",
            json!({
                "anyOf": [
                    { "type": "integer", "minimum": 0, "maximum": 777 },
                    { "type": "string", "pattern": "^(0o)?0*[0-7]{1,3}$" },
                ],
                "description": "permission bits, octal",
            }),
        ),
        (
            "variable",
            json!({
                "type": ["string", "number", "boolean", "null"], "description": "value of an environment variable",
            }),
        ),
    ]
}

fn leaf(of: &Kind) -> Value {
    let or_list = |one: Value| json!({ "anyOf": [one, { "type": "array", "items": one }] });
    match of {
        Kind::Bool => kind("bool"),
        Kind::Count { min, max } => json!({
            "anyOf": [
                { "type": "integer", "minimum": min, "maximum": max },
                { "type": "string", "pattern": "^\\+?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+)$" },
            ],
        }),
        Kind::Size => kind("size"),
        Kind::Time => kind("time"),
        Kind::Text => kind("text"),
        Kind::Name { max } => json!({
            "type": ["string", "number", "boolean"],
            "pattern": "^(?!\\.+$)[A-Za-z0-9_.+:-]+$", "maxLength": max,
        }),
        Kind::Path => kind("path"),
        Kind::Paths => or_list(kind("path")),
        Kind::Endpoint => kind("end"),
        Kind::Word(words) => word(words),
        Kind::Words | Kind::Texts => or_list(kind("scalar")),
        Kind::Env => json!({
            "anyOf": [
                { "type": "object", "propertyNames": { "pattern": "^[^=\\s\\u0000]+$" },
                  "additionalProperties": kind("variable") },
                { "type": "array", "items": { "type": "string", "pattern": "^[^=\\s\\u0000]+=" } },
            ],
        }),
        Kind::Pairs(words) => json!({
            "type": "object",
            "propertyNames": { "pattern": "^(?!\\.+$)[A-Za-z0-9_.+:-]{1,64}$" },
            "additionalProperties": words.map_or_else(|| kind("scalar"), word),
        }),
        Kind::Set(words) => or_list(word(words)),
        Kind::Mode => kind("mode"),
        // They have definitions of their own.
        Kind::Map { .. } | Kind::List { .. } | Kind::Alias(_) => json!({}),
    }
}

/// One of these words, each with its meaning; what YAML makes of a word that is a number or a truth as well.
fn word(words: &'static [keys::Word]) -> Value {
    let mut forms = Vec::new();
    for word in words.iter().filter(|w| w.refused.is_none()) {
        let about = match word.elsewhere {
            Some(why) => format!("{} (only in the domain XML: {why})", word.meaning),
            None => word.meaning.to_owned(),
        };
        forms.push(json!({ "const": word.name, "description": about }));
        let data = core(word.name);
        if data.is_number() {
            forms.push(json!({ "const": data, "description": about }));
        }
        for (truth, name) in [(true, "yes"), (false, "no")] {
            if keys::boolean_word(words, truth) == Some(word.name) {
                let mut form = kind(name);
                join(&mut form, json!({ "description": about }));
                forms.push(form);
            }
        }
    }
    json!({ "anyOf": forms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_spelling_is_a_property() {
        fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    out.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|v| references(v, out));
                }
                Value::Array(items) => items.iter().for_each(|v| references(v, out)),
                _ => {}
            }
        }
        let schema = schema();
        let mut all = Vec::new();
        references(&schema, &mut all);
        assert!(all.len() > 300);
        for target in all {
            let name = target.strip_prefix("#/$defs/").unwrap();
            assert!(schema["$defs"].get(name).is_some(), "{target}");
        }
        for key in KEYS {
            for name in [key.name].iter().chain(key.aliases) {
                assert!(schema["properties"].get(*name).is_some(), "{name}");
            }
        }
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn plain_scalars_are_what_the_core_schema_makes_of_them() {
        for (text, data) in [
            ("true", json!(true)),
            ("yes", json!("yes")),
            ("0x33", json!(51)),
            ("0o644", json!(420)),
            ("0644", json!(644)),
            ("-3", json!(-3)),
            ("1.5", json!(1.5)),
            ("1.5G", json!("1.5G")),
            ("1.2.3", json!("1.2.3")),
            ("\"4\"", json!("4")),
            ("~", json!(null)),
            ("[1, a]", json!([1, "a"])),
            ("{a: 'b'}", json!({"a": "b"})),
            ("-", json!([null])),
        ] {
            assert_eq!(instance(text), Some(data), "{text}");
        }
        assert_eq!(instance("[a"), None);
    }

    #[test]
    fn spellings_are_those_that_are_read() {
        for (truth, text) in SPELLINGS {
            assert_eq!(value::boolean(text), Some(truth));
        }
    }

    #[test]
    fn defaults_are_data() {
        let schema = schema();
        assert_eq!(schema["$defs"]["memory.size"]["default"], "256M");
        assert_eq!(schema["$defs"]["iothreads"]["default"], 1);
        assert_eq!(schema["$defs"]["tpm.version"]["default"], "2.0");
        assert!(schema["$defs"]["disks.id"].get("default").is_none());
    }
}
