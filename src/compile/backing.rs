//! `memory`, without its size: what stands behind guest RAM.

#![forbid(unsafe_code)]

use std::path::Path;

use vsc_vmm::resources::{Backing, MemorySource, Pages};

use crate::facts::Facts;
use crate::scenario::value::size_text;
use crate::scenario::{self, Parsed};

use super::rights::{Lacks, Right, allowed, lack, limit, listed, numbers};

/// What stands behind `size` bytes of guest RAM.
pub(super) fn compile(
    given: &scenario::Backing,
    size: u64,
    parsed: &Parsed,
    facts: &dyn Facts,
    lacks: &mut Lacks,
) -> Backing {
    let scenario::Backing {
        source,
        hugepages,
        locked,
        nosharepages,
        allocation,
        numa_nodes,
        // The limit of the whole process is `limits`'s.
        hard_limit: _,
    } = given;
    let pages = match hugepages.map(|h| h.value) {
        Some("2M") => Pages::Huge2M,
        Some("1G") => Pages::Huge1G,
        _ => Pages::Normal,
    };
    let or_small_pages =
        pages != Pages::Normal && hugepages.is_some_and(|h| parsed.sources.is_advice(h.span));
    let mut backing = Backing {
        // Huge pages come from a memfd, whatever a preset recommends.
        source: match source.map(|s| s.value) {
            Some("anonymous") if pages == Pages::Normal => MemorySource::Anonymous,
            _ => MemorySource::Memfd,
        },
        pages,
        or_small_pages,
        locked: locked.is_some_and(|l| l.value),
        immediate: allocation.is_some_and(|a| a.value == "immediate"),
        unmerged: nosharepages.is_some_and(|n| n.value),
        nodes: Vec::new(),
    };
    // Pages of hugetlbfs are never swapped, and count against no limit.
    let counted = pages == Pages::Normal || or_small_pages;
    if let (true, Some(span)) = (backing.locked && counted, locked.map(|l| l.span))
        && let Some(most) = limit(Right::Lock, facts)
        && most < size
    {
        let message = format!(
            "{} of guest memory cannot be locked: this process may lock {}",
            size_text(size),
            size_text(most)
        );
        let mut d = lack("E-MEMLOCK", span, message);
        d.why = Some(format!(
            "RLIMIT_MEMLOCK is {most} bytes, and {size} bytes are needed; the process has no CAP_IPC_LOCK"
        ));
        d.help = Some(format!(
            "`ulimit -l {kib}` needs a hard limit that allows it: as root echo \"USER - memlock {kib}\" \
             >/etc/security/limits.d/vsc.conf, and log in again; a service has LimitMEMLOCK=; or `memory: {{locked: false}}`",
            kib = size.div_ceil(1024)
        ));
        backing.locked = !lacks.push(parsed, "memory.locked", d);
    }
    if let Some(nodes) = numa_nodes
        // What is no set is an error of its own.
        && let Some(wanted) = numbers(&nodes.value)
    {
        let there = facts
            .text(Path::new("/sys/devices/system/node/has_memory"))
            .and_then(|text| numbers(&text));
        let there = match (there, allowed("Mems_allowed_list", facts)) {
            (Some(there), Some(allowed)) => {
                Some(there.into_iter().filter(|n| allowed.contains(n)).collect())
            }
            (there, allowed) => there.or(allowed),
        };
        backing.nodes = wanted;
        let missing = there.as_ref().map(|there: &Vec<u32>| {
            let missing = backing.nodes.iter().filter(|n| !there.contains(n));
            missing.copied().collect::<Vec<_>>()
        });
        if let (Some(there), Some(missing)) = (&there, missing)
            && !missing.is_empty()
        {
            let message = format!(
                "This process has no memory of NUMA node {} (it has that of {})",
                listed(&missing),
                listed(there)
            );
            let mut d = lack("E-NODE-HOST", nodes.span, message);
            d.help = Some(format!("For example `numa_nodes: \"{}\"`", listed(there)));
            if lacks.push(parsed, "memory.numa_nodes", d) {
                backing.nodes = Vec::new();
            }
        }
    }
    backing
}
