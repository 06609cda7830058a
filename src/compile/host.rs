//! The host's side of a scenario: what would be changed for it, from which value to which. Nothing is changed here.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diag::Origin;
use crate::domain::Domain;
use crate::facts::Facts;
use crate::scenario::Parsed;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const KSM: &str = "/sys/kernel/mm/ksm/run";
const MERGE: &str = "/sys/kernel/mm/ksm/merge_across_nodes";
const SWAPPINESS: &str = "/proc/sys/vm/swappiness";

/// What would be changed on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPlan {
    /// Each knob, in the order in which it would be set.
    pub changes: Vec<HostChange>,
    /// Why nothing of it can be done here.
    pub skipped_all: Option<String>,
}

/// One knob of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// The scenario's key.
    pub what: String,
    /// The file that sets it.
    pub path: PathBuf,
    /// Its value now; `None` where the host has no such knob.
    pub old: Option<String>,
    /// Its value for the scenario.
    pub new: String,
    /// Who wants it.
    pub origin: Origin,
    /// Why it would not be set; `None`: it would.
    pub skipped: Option<String>,
}

/// What the scenario wants of the host.
pub(super) fn plan(parsed: &Parsed, domain: &Domain, facts: &dyn Facts) -> HostPlan {
    let settings = crate::scenario::json::of(&parsed.tree);
    let host = |key: &str| settings.get("host").and_then(|h| h.get(key));
    let mut plan = HostPlan::default();
    let mut knob = |key: &str, path: &str, new: String| {
        let what = format!("host.{key}");
        let now = facts.text(Path::new(path));
        let (old, offered) = match now.as_deref() {
            Some(text) if text.contains('[') => (
                chosen(text),
                text.split_whitespace()
                    .any(|w| w.trim_matches(['[', ']']) == new),
            ),
            Some(text) => (Some(text.to_owned()), true),
            None => (None, true),
        };
        let skipped = match (&old, offered) {
            (None, _) => Some(format!("this host has no {path}")),
            (Some(_), false) => Some(format!("not offered: {}", now.unwrap_or_default())),
            (Some(old), true) if *old == new => Some("already so".to_owned()),
            _ => None,
        };
        let origin = parsed.sources.origin(parsed.span_of(&what));
        plan.changes.push(HostChange {
            what,
            path: path.into(),
            old,
            new,
            origin,
            skipped,
        });
    };
    let bit = |flag: bool| if flag { "1" } else { "0" }.to_owned();
    if let Some(thp) = host("thp").and_then(|v| v.as_str()) {
        knob("thp", THP, thp.to_owned());
    }
    // merge_across_nodes can only be changed while nothing is merged.
    if let Some(merge) = host("ksm_merge_across_nodes").and_then(|v| v.as_bool()) {
        knob("ksm_merge_across_nodes", MERGE, bit(merge));
    }
    if let Some(ksm) = host("ksm").and_then(|v| v.as_bool()) {
        knob("ksm", KSM, bit(ksm));
    }
    if let Some(swappiness) = host("swappiness").and_then(|v| v.as_u64()) {
        knob("swappiness", SWAPPINESS, swappiness.to_string());
    }
    if let Some(scheduler) = host("io_scheduler").and_then(|v| v.as_str()) {
        let mut devices: Vec<String> = Vec::new();
        for disk in domain.list("disks") {
            let image = disk
                .get("path")
                .and_then(|p| p.as_str())
                .unwrap_or_default();
            if let Some(device) = facts.device_of(Path::new(image))
                && !devices.contains(&device)
            {
                knob(
                    "io_scheduler",
                    &format!("/sys/block/{device}/queue/scheduler"),
                    scheduler.to_owned(),
                );
                devices.push(device);
            }
        }
        if devices.is_empty() {
            plan.changes.push(HostChange {
                what: "host.io_scheduler".into(),
                path: "/sys/block".into(),
                old: None,
                new: scheduler.to_owned(),
                origin: parsed.sources.origin(parsed.span_of("host.io_scheduler")),
                skipped: Some("no disk of this host holds its images".to_owned()),
            });
        }
    }
    let page = match domain.text("memory.hugepages") {
        Some("2M") => Some(2u64 << 20),
        Some("1G") => Some(1 << 30),
        _ => None,
    };
    if let Some(page) = page {
        let pages = domain.number("memory.size").unwrap_or(0).div_ceil(page);
        let path = format!(
            "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
            page >> 10
        );
        let free = path.replace("nr_hugepages", "free_hugepages");
        let number = |path: &str| {
            facts
                .text(Path::new(path))
                .and_then(|t| t.parse::<u64>().ok())
        };
        let (have, free) = (number(&path), number(&free).unwrap_or(0));
        let new = have.map_or(pages, |have| {
            have.saturating_add(pages.saturating_sub(free))
        });
        let skipped = match have {
            None => Some(format!("this host has no pages of {} KiB", page >> 10)),
            Some(_) if free >= pages => {
                Some(format!("{free} pages are free, and {pages} are needed"))
            }
            Some(_) => None,
        };
        plan.changes.push(HostChange {
            what: "memory.hugepages".into(),
            path: path.into(),
            old: have.map(|h| h.to_string()),
            new: new.to_string(),
            origin: parsed.sources.origin(parsed.span_of("memory.hugepages")),
            skipped,
        });
    }
    if !plan.changes.is_empty()
        && let Some(container) = facts.container()
    {
        plan.skipped_all = Some(format!(
            "in a container ({container}): host tuning disabled"
        ));
    }
    plan
}

/// The word in brackets of a file of sysfs that offers several.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}
