//! The host's side of a scenario: what would be changed for it, from which value to which. Nothing is changed here.

#![forbid(unsafe_code)]

mod disks;
mod hugepages;
mod ksm;
mod kvm;
mod memory;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vsc_vmm::resources::VmResources;

use crate::diag::Origin;
use crate::domain::Domain;
use crate::facts::Facts;
use crate::scenario::Parsed;
use crate::tune::{Act, Change, value};

use super::Problems;

/// What is so already. It is held all the same: see [`HostChange::act`].
const ALREADY: &str = "already so";

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
    /// The file that sets it; of a unit of systemd, the unit's file.
    pub path: PathBuf,
    /// Its value now; `None` where the host has no such knob.
    pub old: Option<String>,
    /// Its value for the scenario.
    pub new: String,
    /// Who wants it.
    pub origin: Origin,
    /// Why it would not be set; `None`: it would.
    pub skipped: Option<String>,
    /// What else is to be known of it.
    #[serde(default)]
    pub note: Option<String>,
    /// What does it; `None` where it cannot be done. What is so already has one: another run may have made it so, and
    /// would take it back.
    #[serde(default)]
    pub act: Option<Act>,
    /// Without it there is no run.
    #[serde(default)]
    pub required: bool,
}

impl HostPlan {
    /// What is to be done to the host, in order.
    pub fn wanted(&self) -> Vec<Change> {
        if self.skipped_all.is_some() {
            return Vec::new();
        }
        let act = |change: &HostChange| {
            Some(Change {
                what: change.what.clone(),
                act: change.act.clone()?,
                required: change.required,
            })
        };
        self.changes.iter().filter_map(act).collect()
    }
}

/// What the machine is, as far as the host's knobs depend on it.
pub(super) struct Machine<'a> {
    /// The machine with every open question answered.
    pub(super) domain: &'a Domain,
    /// Its images.
    pub(super) images: Vec<PathBuf>,
    /// Recommended keys that it does without.
    pub(super) left_out: &'a [String],
}

impl<'a> Machine<'a> {
    /// As the monitor of this program runs it.
    pub(super) fn of_monitor(
        domain: &'a Domain,
        resources: Option<&VmResources>,
        left_out: &'a [String],
    ) -> Self {
        let disks = resources.map_or(&[][..], |resources| &resources.disks);
        Self {
            domain,
            images: disks.iter().map(|disk| disk.path.clone()).collect(),
            left_out,
        }
    }

    /// As libvirt runs it.
    pub(super) fn of_libvirt(domain: &'a Domain) -> Self {
        let disks = domain.list("disks").iter();
        let path = |disk: &Value| Some(disk.get("path")?.as_str()?.into());
        Self {
            domain,
            images: disks.filter_map(path).collect(),
            left_out: &[],
        }
    }
}

/// What the scenario wants of the host.
pub(super) fn plan(
    parsed: &Parsed,
    machine: &Machine<'_>,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> HostPlan {
    let settings = match parsed.is_written("host") {
        true => crate::scenario::json::of(&parsed.tree),
        false => Value::Null,
    };
    let mut planner = Planner {
        parsed,
        machine,
        facts,
        wishes: settings.get("host").cloned().unwrap_or_default(),
        changes: Vec::new(),
    };
    memory::huge_pages(&mut planner);
    ksm::plan(&mut planner);
    memory::swapping(&mut planner);
    disks::plan(&mut planner);
    kvm::plan(&mut planner);
    hugepages::plan(&mut planner, problems);
    let mut changes = planner.changes;
    // A container is looked for only where that matters.
    let container = (!changes.is_empty()).then(|| facts.container()).flatten();
    if container.is_none() {
        changes.iter_mut().for_each(|change| denied(change, facts));
    }
    HostPlan {
        changes,
        skipped_all: container.map(|c| format!("in container: host tuning disabled ({c})")),
    }
}

/// Says where only root could make a change.
fn denied(change: &mut HostChange, facts: &dyn Facts) {
    let writes = matches!(change.act, Some(Act::Write { .. })) && change.skipped.is_none();
    if writes && !facts.may_write(&change.path) {
        let why = "this user may not write it: as root";
        change.note = Some(match change.note.take() {
            Some(note) => format!("{note}; {why}"),
            None => why.to_owned(),
        });
    }
}

struct Planner<'a> {
    parsed: &'a Parsed,
    machine: &'a Machine<'a>,
    facts: &'a dyn Facts,
    /// What stands under `host`.
    wishes: Value,
    changes: Vec<HostChange>,
}

impl Planner<'_> {
    fn wish(&self, key: &str) -> Option<&Value> {
        crate::domain::get(&self.wishes, key)
    }

    fn word(&self, key: &str) -> Option<String> {
        self.wish(key)?.as_str().map(str::to_owned)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.wish(key)?.as_bool()
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        self.facts.text(path.as_ref())
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A change as yet without anything that does it.
    fn bare(&self, what: &str, path: &str, old: Option<String>, new: String) -> HostChange {
        let origin = self.parsed.sources.origin(self.parsed.span_of(what));
        HostChange {
            what: what.to_owned(),
            path: path.into(),
            old,
            new,
            origin,
            skipped: None,
            note: None,
            act: None,
            required: false,
        }
    }

    /// A file of sysfs or procfs that is to get a value.
    fn knob(&self, what: &str, path: &str, new: String) -> HostChange {
        let now = self.text(path);
        let old = now.as_deref().map(|text| value(text).to_owned());
        let mut change = self.bare(what, path, old.clone(), new.clone());
        let Some((now, old)) = now.zip(old) else {
            change.skipped = Some(format!("this host has no {path}"));
            return change;
        };
        if !offers(&now, &new) {
            change.skipped = Some(format!("not offered: {now}"));
            return change;
        }
        if old == new {
            change.skipped = Some(ALREADY.to_owned());
        }
        change.act = Some(Act::Write {
            path: path.into(),
            old,
            new,
        });
        change
    }

    fn push(&mut self, change: HostChange) {
        self.changes.push(change);
    }
}

/// Whether a file of sysfs that lists what it takes lists this word; one that lists nothing takes anything.
fn offers(text: &str, word: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    !text.contains('[') || words.any(|w| w.trim_matches(['[', ']']) == word)
}

/// What the kernel writes for a boolean in sysfs.
fn bit(flag: bool) -> String {
    if flag { "1" } else { "0" }.to_owned()
}

#[cfg(test)]
mod tests;
