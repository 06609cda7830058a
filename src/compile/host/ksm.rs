//! Merging of equal pages.
//!
//! `merge_across_nodes` changes only while nothing is merged: the kernel answers EBUSY otherwise (mm/ksm.c). Then the
//! tuner separates what is merged, sets it, and lets merging go on, here and when it is undone; what stays apart
//! needs memory, so that this is not planned where there is too little.
//!
//! The services that distributions bring go with it for as long as it holds, started and stopped, never enabled or
//! disabled: a boot finds the host as its owner set it up. `ksm.service` sets the owner's limits and starts merging;
//! `ksmtuned.service` writes `run` by itself as memory gets scarce, so it is stopped where nothing may be merged, and
//! never started.

#![forbid(unsafe_code)]

use crate::tune::{Act, UnitState};

use super::{ALREADY, HostChange, Planner, bit};

const RUN: &str = "/sys/kernel/mm/ksm/run";
const MERGE: &str = "/sys/kernel/mm/ksm/merge_across_nodes";
const SHARED: &str = "/sys/kernel/mm/ksm/pages_shared";
const SHARING: &str = "/sys/kernel/mm/ksm/pages_sharing";
/// Pages that KSM merges, bytes.
const PAGE: u64 = 4096;

/// Where systemd looks for units, the first that has one (systemd.unit(5)).
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) fn plan(planner: &mut Planner<'_>) {
    let ksm = planner.flag("ksm");
    if let Some(ksm) = ksm {
        // It would merge again what is being stopped.
        if !ksm {
            unit(planner, "ksmtuned.service", false);
        }
        unit(planner, "ksm.service", ksm);
    }
    if let Some(merge) = planner.flag("ksm_merge_across_nodes") {
        let change = across_nodes(planner, merge);
        planner.push(change);
    }
    if let Some(ksm) = ksm {
        let mut change = planner.knob("host.ksm", RUN, bit(ksm));
        if ksm && change.act.is_some() {
            change.note = whom(planner);
        }
        planner.push(change);
    }
}

fn across_nodes(planner: &Planner<'_>, merge: bool) -> HostChange {
    let mut change = planner.knob("host.ksm_merge_across_nodes", MERGE, bit(merge));
    let merged = planner.number(SHARED).unwrap_or(0) > 0;
    if change.skipped.is_some() || !merged {
        return change;
    }
    let needed = planner.number(SHARING).unwrap_or(0).saturating_mul(PAGE);
    let free = planner.facts.memory().map_or(u64::MAX, |m| m.available);
    let needed_mib = needed.div_ceil(1 << 20);
    if needed > free {
        change.act = None;
        change.skipped = Some(format!(
            "it changes only while nothing is merged, and to separate what is takes {needed_mib} MiB, with {} MiB free",
            free >> 20
        ));
    } else {
        change.note = Some(format!(
            "merged pages are separated for it, which takes up to {needed_mib} MiB"
        ));
    }
    change
}

/// Whose memory is merged. The kernel takes private memory that asks for it (mm/ksm.c: VM_SHARED is left out).
fn whom(planner: &Planner<'_>) -> Option<String> {
    let domain = planner.machine.domain;
    let never = domain.flag("memory.nosharepages")
        || domain
            .text("memory.hugepages")
            .is_some_and(|pages| pages != "none");
    let shared = domain.text("memory.access") == Some("shared");
    let private = domain.text("memory.source") == Some("anonymous");
    let note = match (never, shared, private) {
        (true, _, _) => "merges others' memory: this machine's does not take part",
        (_, true, _) => {
            "merges others' memory: this machine's RAM is shared, and only private memory is merged"
        }
        (_, false, true) => return None,
        (_, false, false) => {
            "merges this machine's RAM under libvirt only: our monitor's is a shared memfd unless memory.source is \
             anonymous"
        }
    };
    Some(note.into())
}

/// A service of the host, where it has it.
fn unit(planner: &mut Planner<'_>, name: &str, start: bool) {
    let file = UNIT_DIRECTORIES
        .iter()
        .map(|dir| format!("{dir}/{name}"))
        .find(|file| planner.facts.exists(file.as_ref()));
    // A masked one is a link to /dev/null, no file.
    let Some(file) = file.filter(|file| planner.text(file).is_some()) else {
        return;
    };
    // systemd keeps such a link for each unit that is active (unit.c, unit_export_invocation_id).
    let link = format!("/run/systemd/units/invocation:{name}");
    let active = planner.facts.exists(link.as_ref());
    let state = |active: bool| if active { "started" } else { "stopped" }.to_owned();
    let mut change: HostChange = planner.bare("host.ksm", &file, Some(state(active)), state(start));
    // sd_booted(3)
    if !planner.facts.exists("/run/systemd/system".as_ref()) {
        change.skipped = Some("systemd does not run here".into());
    } else {
        if active == start {
            change.skipped = Some(ALREADY.into());
        }
        let of = |active| UnitState {
            active: Some(active),
            enabled: None,
        };
        change.act = Some(Act::Unit {
            name: name.into(),
            was: of(active),
            now: of(start),
        });
    }
    planner.push(change);
}
