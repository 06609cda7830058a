//! `--export-xml`: a scenario as libvirt domain XML on standard output, and networks and storage pools likewise.

use std::ffi::OsString;
use std::path::Path;

use vsc::compile::Description;
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::scenario::Parsed;
use vsc::xml;
use vsc::xml::network::{self, NetworkSpec};
use vsc::xml::pool::{self, PoolSpec};

use super::Common;
use super::run::{Source, or_report, read, report};
use crate::{run, say};

/// Keys of disks that say how an image is made, checked and opened here.
const IMAGE_KEYS: [&str; 11] = [
    ".size",
    ".preallocation",
    ".cluster_size",
    ".lazy_refcounts",
    ".compression_type",
    ".secret_file",
    ".secret.file",
    ".secret.fd",
    ".secret.credential",
    ".secret.env",
    ".max_virtual_size",
];

/// Reads a scenario and describes it, for those who look at it or hand it over. `None`: errors were printed.
pub(super) fn describe(source: Source<'_>, common: &Common) -> Option<Description> {
    describe_parsed(read(source, common)?, common)
}

/// The same for what was read already.
pub(super) fn describe_parsed(parsed: Parsed, common: &Common) -> Option<Description> {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root, Variables::of_process());
    or_report(vsc::describe(parsed, &facts), common)
        .inspect(|description| report(&description.warnings, common))
}

/// The same as [`describe`], for those who look at what is wanted of the host: warnings about anything else are left
/// out.
pub(super) fn describe_host(source: Source<'_>, common: &Common) -> Option<Description> {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root, Variables::of_process());
    or_report(vsc::describe(read(source, common)?, &facts), common).inspect(|description| {
        let mut warnings = description.warnings.clone();
        let is_about = |key: &str| {
            let top = key.split(['.', '[']).next();
            key.starts_with("memory.hugepages") || matches!(top, Some("host" | "limits"))
        };
        let parsed = description.parsed();
        warnings.list.retain(|d| parsed.names(d.span, is_about));
        report(&warnings, common);
    })
}

/// The XML of a description, with the scenario's own changes and those of `--xml-set`. `None`: errors were printed.
pub(super) fn domain_xml(
    description: &Description,
    sets: &[String],
    common: &Common,
) -> Option<xml::Exported> {
    or_report(vsc::export(description, sets), common)
}

/// Whether a key says how an image is made, which is not lost: it is made before the domain starts.
pub(super) fn is_made(key: &str) -> bool {
    key.starts_with("disks[") && IMAGE_KEYS.iter().any(|k| key.ends_with(k))
}

/// `--export-xml SCENARIO`.
pub(super) fn domain(source: Source<'_>, sets: &[String], common: &Common) -> u8 {
    let Some(description) = describe(source, common) else {
        return crate::FAILED;
    };
    let Some(exported) = domain_xml(&description, sets, common) else {
        return crate::FAILED;
    };
    let lost: Vec<&str> = exported
        .unsaid
        .iter()
        .filter(|k| !is_made(k))
        .map(String::as_str)
        .collect();
    if !lost.is_empty() && !common.quiet && !common.json {
        say::warning(&format!("domain XML cannot say {}", lost.join(", ")));
    }
    if common.json {
        let answer = serde_json::json!({
            "xml": exported.text,
            "unsaid": exported.unsaid,
            "changed": exported.changed,
            "domain": description.domain,
        });
        say::out(&(serde_json::to_string_pretty(&answer).unwrap_or_default() + "\n"));
    } else {
        say::out(&exported.text);
    }
    0
}

/// `--export-xml network KEY=VALUE…` and `--export-xml pool KEY=VALUE…`; `None` where `kind` is a scenario.
pub(super) fn other(kind: &Path, words: &[OsString], common: &Common) -> Option<u8> {
    if kind.exists() {
        return None;
    }
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let made = match kind.to_str()? {
        "network" => NetworkSpec::parse(&words)
            .and_then(|spec| network::export(&spec))
            .map_err(|e| run::chain(&e)),
        "pool" => PoolSpec::parse(&words)
            .and_then(|spec| pool::export(&spec))
            .map_err(|e| run::chain(&e)),
        _ => return None,
    };
    Some(match made {
        Ok(text) if common.json => {
            say::out(&format!("{:#}\n", serde_json::json!({ "xml": text })));
            0
        }
        Ok(text) => {
            say::out(&text);
            0
        }
        Err(why) => say::error(&why),
    })
}
