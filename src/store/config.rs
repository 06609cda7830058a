//! `config.yaml` of an entry, in the predecessor's form: four keys, sorted, plain YAML that a YAML 1.1 reader takes.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::diag::{Diagnostics, Sources};
use crate::scenario::value::boolean;
use crate::scenario::yaml::{self, Node, Value};

/// What the predecessor keeps of a saved VM beside its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `attestation`: the VM's memory is encrypted, and its start is attested.
    pub attestation: bool,
    /// `domain-config`: the file with the domain XML, absolute.
    pub domain_config: PathBuf,
    /// `host`: the hypervisor, by its name in the list of hypervisors.
    pub host: String,
    /// `name`: the VM.
    pub name: String,
}

impl Config {
    /// The file's text; `None` where a path is no text.
    pub fn text(&self) -> Option<String> {
        Some(format!(
            "attestation: {}\ndomain-config: {}\nhost: {}\nname: {}\n",
            self.attestation,
            scalar(self.domain_config.to_str()?),
            scalar(&self.host),
            scalar(&self.name)
        ))
    }

    /// Reads the file. Keys that are not the predecessor's are left alone, as it does.
    ///
    /// # Errors
    /// One sentence on what is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = yaml::decode(text.as_bytes()).map_err(|(_, problem)| {
            let problem = problem.diagnostic(u16::MAX);
            problem.message
        })?;
        let mut problems = Vec::new();
        let node = yaml::parse(&text, u16::MAX, 0, &mut problems);
        let problems = Diagnostics::new(problems, Sources::default().into());
        if let Some(first) = problems.list.into_iter().next() {
            return Err(first.message);
        }
        let Some(Value::Map(pairs)) = node.map(|n| n.value) else {
            return Err("it is no map of keys and values".into());
        };
        let find = |key: &str| -> Result<&str, String> {
            let pair = pairs.iter().find(|(name, _)| &*name.value == key);
            match pair {
                Some((
                    _,
                    Node {
                        value: Value::Scalar { text, .. },
                        ..
                    },
                )) => Ok(text),
                Some((_, node)) => Err(format!("`{key}` is {}", node.kind())),
                None => Err(format!("`{key}` is missing")),
            }
        };
        let attestation = find("attestation")?;
        let domain_config = PathBuf::from(find("domain-config")?);
        if !domain_config.is_absolute() {
            return Err("`domain-config` is no absolute path".into());
        }
        Ok(Self {
            attestation: boolean(attestation)
                .ok_or("`attestation` is neither true nor false".to_owned())?,
            domain_config,
            host: find("host")?.to_owned(),
            name: find("name")?.to_owned(),
        })
    }
}

/// A text as a YAML scalar that YAML 1.1 and 1.2 both read as this text.
fn scalar(text: &str) -> String {
    // The only words that YAML 1.1 takes for something else and that are spelled with these characters alone
    // (yaml.org/type/bool.html, null.html).
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '+'))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        text.to_owned()
    } else {
        // A JSON string is a double-quoted YAML scalar; what YAML wants escaped beyond JSON follows.
        let json = serde_json::to_string(text).unwrap_or_default();
        json.chars()
            .map(|c| match c {
                '\u{7f}'..='\u{9f}' => format!("\\x{:02x}", c as u32),
                '\u{2028}' | '\u{2029}' | '\u{feff}' => format!("\\u{:04x}", c as u32),
                c => c.to_string(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(name: &str) -> Config {
        Config {
            attestation: false,
            domain_config: "/store/a/domain.xml".into(),
            host: "localhost".into(),
            name: name.into(),
        }
    }

    #[test]
    fn the_predecessors_file_is_read() {
        let text =
            "attestation: false\ndomain-config: /store/a/domain.xml\nhost: localhost\nname: a\n";
        assert_eq!(config("a").text().as_deref(), Some(text));
        assert_eq!(Config::read(text), Ok(config("a")));
        let more = "# by hand\nsev-cert: x\nname: 'a'\nhost: localhost\nattestation: no\n\
                    domain-config: \"/store/a/domain.xml\"\n";
        assert_eq!(Config::read(more), Ok(config("a")));
    }

    #[test]
    fn what_yaml_would_take_for_something_else_is_quoted() {
        for (name, written) in [
            ("off", "\"off\""),
            ("NULL", "\"NULL\""),
            ("12", "\"12\""),
            ("1e5", "\"1e5\""),
            ("a:b", "\"a:b\""),
            ("-a", "\"-a\""),
            ("offline", "offline"),
        ] {
            let text = config(name).text().unwrap();
            assert!(text.ends_with(&format!("name: {written}\n")), "{text}");
        }
    }

    #[test]
    fn a_broken_file_is_one_sentence() {
        for (text, needle) in [
            ("", "no map"),
            ("- a", "no map"),
            ("name: a\n", "`attestation` is missing"),
            (
                "attestation: 7\nname: a\nhost: h\ndomain-config: /x\n",
                "neither true nor false",
            ),
            (
                "attestation: no\nname: [a]\nhost: h\ndomain-config: /x\n",
                "`name` is a list",
            ),
            (
                "attestation: no\nname: a\nhost: h\ndomain-config: x\n",
                "no absolute path",
            ),
            ("attestation: [", ""),
            ("a: !!python/object:os.system x", ""),
            ("\u{1}", "U+0001"),
        ] {
            let problem = Config::read(text).unwrap_err();
            assert!(
                problem.contains(needle) && !problem.is_empty(),
                "{text:?}: {problem}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_config_comes_back(name in "\\PC{1,20}", path in "/[^\0\u{fffe}\u{ffff}]{0,20}", attestation: bool) {
            let config = Config { attestation, domain_config: path.into(), host: name.clone(), name };
            let text = config.text().unwrap();
            prop_assert_eq!(Config::read(&text), Ok(config), "{}", text);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = Config::read(&text);
        }
    }
}
