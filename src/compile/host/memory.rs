//! Transparent huge pages and swapping.
//!
//! `thp` alone does nothing for RAM that is a memfd, as our monitor's is (and QEMU's with `memory.source: memfd`):
//! the kernel asks `shmem_enabled` there (mm/shmem.c, shmem_is_huge), which most distributions leave at `never`. Our
//! monitor and QEMU both call madvise(MADV_HUGEPAGE) on guest RAM, so `advise` is enough and touches nobody else's
//! shared memory.

#![forbid(unsafe_code)]

use super::Planner;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const DEFRAG: &str = "/sys/kernel/mm/transparent_hugepage/defrag";
const SWAPPINESS: &str = "/proc/sys/vm/swappiness";

pub(super) fn huge_pages(planner: &mut Planner<'_>) {
    if let Some(thp) = planner.word("thp") {
        let mut change = planner.knob("host.thp", THP, thp);
        let memfd = planner.machine.domain.text("memory.source") == Some("memfd");
        if change.new != "never" && memfd && planner.wish("thp_shmem").is_none() {
            let shmem = planner.text(SHMEM);
            let shmem = shmem.as_deref().map(crate::tune::value);
            if let Some(now @ ("never" | "deny")) = shmem {
                change.note = Some(format!(
                    "this machine's RAM is a memfd, for which host.thp_shmem decides: {now} now"
                ));
            }
        }
        planner.push(change);
    }
    for (key, path) in [("thp_shmem", SHMEM), ("thp_defrag", DEFRAG)] {
        if let Some(word) = planner.word(key) {
            let change = planner.knob(&format!("host.{key}"), path, word);
            planner.push(change);
        }
    }
}

pub(super) fn swapping(planner: &mut Planner<'_>) {
    if let Some(swappiness) = planner.wish("swappiness").and_then(|v| v.as_u64()) {
        let mut change = planner.knob("host.swappiness", SWAPPINESS, swappiness.to_string());
        // Kernels before 5.8 take no more; they tell so by refusing it.
        if swappiness > 100 && change.act.is_some() {
            change.note = Some("more than 100 needs Linux 5.8".into());
        }
        planner.push(change);
    }
}
