//! What the host gives the machine, in words: memory, CPUs, priorities.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use vsc_vmm::resources::{Backing, MemorySource, Pages, Placement, Policy, VmResources};

use crate::scenario::value::size_text;

use super::rights::listed;

/// Something that the host gives the machine, where it is not as usual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What it is for: `memory`, `vcpu0`, `other threads`.
    pub what: String,
    /// What it is.
    pub how: String,
}

/// What the scenario decides of it; nothing where all is as usual.
pub fn shares(resources: &VmResources) -> Vec<Share> {
    let share = |what: &str, how: String| Share {
        what: what.to_owned(),
        how,
    };
    let mut out = Vec::new();
    if resources.backing != Backing::default() {
        out.push(share("memory", memory(resources)));
    }
    let Placement {
        vcpus,
        others,
        policy,
    } = &resources.placement;
    let scheduled = |policy: &Policy| match policy {
        Policy::Inherited => None,
        Policy::Fifo(priority) => Some(format!("fifo, priority {priority}")),
        Policy::RoundRobin(priority) => Some(format!("rr, priority {priority}")),
        Policy::Batch => Some("batch".to_owned()),
        Policy::Idle => Some("idle".to_owned()),
    };
    let on = |cpus: &[u32]| {
        (!cpus.is_empty()).then(|| {
            let word = if cpus.len() == 1 { "CPU" } else { "CPUs" };
            format!("{word} {}", listed(cpus))
        })
    };
    let line = |cpus: &[u32], how: Option<String>| {
        let parts: Vec<String> = on(cpus).into_iter().chain(how).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    };
    for index in 0..resources.cpus.count as usize {
        let cpus = vcpus.get(index).map_or(&[][..], Vec::as_slice);
        if let Some(how) = line(cpus, scheduled(policy)) {
            out.push(share(&format!("vcpu{index}"), how));
        }
    }
    let above = policy
        .priority()
        .map(|priority| format!("fifo, priority {}", priority.saturating_add(1)));
    if let Some(how) = line(others, above) {
        out.push(share("other threads", how));
    }
    out
}

fn memory(resources: &VmResources) -> String {
    let Backing {
        source,
        pages,
        or_small_pages,
        locked,
        immediate,
        unmerged,
        nodes,
    } = &resources.backing;
    let mut parts = vec![match source {
        MemorySource::Memfd => format!("{} in a memfd", size_text(resources.memory)),
        MemorySource::Anonymous => {
            format!("{} of the process's own", size_text(resources.memory))
        }
    }];
    let huge = *pages != Pages::Normal;
    if huge {
        let other = match or_small_pages {
            true => " (ordinary ones where there are too few)",
            false => "",
        };
        parts.push(format!("pages of {}{other}", pages.text()));
    }
    if *immediate || huge {
        parts.push("all there before the start".to_owned());
    }
    if *locked {
        parts.push("never swapped out".to_owned());
    }
    if *source == MemorySource::Anonymous {
        parts.push(match unmerged {
            true => "not merged by KSM".to_owned(),
            false => "KSM may merge it".to_owned(),
        });
    }
    if !nodes.is_empty() {
        parts.push(format!("from NUMA nodes {}", listed(nodes)));
    }
    parts.join(", ")
}
