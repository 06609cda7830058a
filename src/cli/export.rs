//! `--export-xml`: a scenario as libvirt domain XML on standard output, and networks and storage pools likewise.

use vsc::compile::Description;
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::xml;

use super::Common;
use super::run::{Source, report};
use crate::say;

/// Keys of disks that say how an image is made.
const IMAGE_KEYS: [&str; 6] = [
    ".size",
    ".preallocation",
    ".cluster_size",
    ".lazy_refcounts",
    ".compression_type",
    ".secret_file",
];

/// Reads a scenario and describes it, for those who look at it or hand it over. `None`: errors were printed.
pub(super) fn describe(source: Source<'_>, common: &Common) -> Option<Description> {
    let variables = Variables::of_process();
    let home = variables.home.clone();
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root.clone(), variables);
    let parsed = vsc::load(source.file, source.layers, home, common.settings(&root));
    match parsed.and_then(|parsed| vsc::describe(parsed, &facts)) {
        Ok(description) => {
            report(&description.warnings, common);
            Some(description)
        }
        Err(messages) => {
            report(&messages, common);
            None
        }
    }
}

/// The XML of a description, with the scenario's own changes and those of `--xml-set`. `None`: errors were printed.
pub(super) fn domain_xml(
    description: &Description,
    _sets: &[String],
    _common: &Common,
) -> Option<xml::Exported> {
    Some(xml::export(&description.domain))
}

/// `--export-xml SCENARIO`.
pub(super) fn domain(source: Source<'_>, sets: &[String], common: &Common) -> u8 {
    let Some(description) = describe(source, common) else {
        return crate::FAILED;
    };
    let Some(exported) = domain_xml(&description, sets, common) else {
        return crate::FAILED;
    };
    // How an image is made is not lost: it is made before the domain starts.
    let made =
        |key: &String| key.starts_with("disks[") && IMAGE_KEYS.iter().any(|k| key.ends_with(k));
    let lost: Vec<&str> = exported
        .unsaid
        .iter()
        .filter(|k| !made(k))
        .map(String::as_str)
        .collect();
    if !lost.is_empty() && !common.quiet && !common.json {
        say::err(&format!("domain XML cannot say {}", lost.join(", ")));
    }
    if common.json {
        let answer = serde_json::json!({
            "xml": exported.text,
            "unsaid": exported.unsaid,
            "domain": description.domain,
        });
        say::out(&(serde_json::to_string_pretty(&answer).unwrap_or_default() + "\n"));
    } else {
        say::out(&exported.text);
    }
    0
}
