//! Pages of hugetlbfs: as many as the machine's memory needs and the pool has not got to spare.
//!
//! The pool is that of the NUMA nodes that the memory is to come from (`memory.numa_nodes`), or those of the host CPUs
//! that the vCPUs are pinned to, or the machine's as a whole. Pages that nobody uses or has reserved count,
//! but for those that other runs have added and may not have used yet.

#![forbid(unsafe_code)]

use crate::diag::Diagnostic;
use crate::scenario::value::size_text;
use crate::tune::Act;

use super::super::Problems;
use super::{HostChange, Planner};

const WHAT: &str = "memory.hugepages";
const POOLS: &str = "/sys/kernel/mm/hugepages";
const NODES: &str = "/sys/devices/system/node";

pub(super) fn plan(planner: &mut Planner<'_>, problems: &mut Problems) {
    let domain = planner.machine.domain;
    let page = match domain.text(WHAT) {
        Some("2M") => 2u64 << 20,
        Some("1G") => 1 << 30,
        _ => return,
    };
    if planner.machine.left_out.iter().any(|key| key == WHAT) {
        return;
    }
    let memory = domain.number("memory.size").unwrap_or(0);
    let pages = memory.div_ceil(page);
    let span = planner.parsed.span_of(WHAT);
    // Nobody but a preset asked for them: then ordinary pages do.
    let advice = planner.parsed.sources.is_advice(span);
    let pools = pools(planner, page);
    let free = pools
        .iter()
        .fold(0u64, |sum, pool| sum.saturating_add(pool.free));
    let missing = pages.saturating_sub(free);
    let rooms: Vec<u64> = pools.iter().map(|pool| pool.room / page).collect();
    let room = rooms
        .iter()
        .fold(0u64, |sum, room| sum.saturating_add(*room));
    let bytes = pools
        .iter()
        .fold(0u64, |sum, pool| sum.saturating_add(pool.room));
    let shares = shares(missing, &rooms);
    let each = pools.iter().zip(shares);
    let mut changes: Vec<HostChange> = each
        .map(|(pool, by)| change(planner, pool, by, !advice))
        .collect();
    let needed = missing.saturating_mul(page);
    if pools.is_empty() {
        let path = format!("{POOLS}/hugepages-{}kB/nr_hugepages", page >> 10);
        let mut none = planner.bare(WHAT, &path, None, pages.to_string());
        none.skipped = Some(format!("this host has no pages of {}", size_text(page)));
        changes.push(none);
    }
    let what = || {
        format!(
            "{} of memory in pages of {} needs {pages} of them",
            size_text(memory),
            size_text(page)
        )
    };
    let refused = refused(planner, &pools, pages, missing);
    let mut skipped = "the host has not the memory for them".to_owned();
    let mut help = "Give less memory, smaller pages, or `hugepages: none`";
    let message = if pools.is_empty() {
        Some(format!("This host has no pages of {}", size_text(page)))
    } else if let Some(Refused { free, why, remedy }) = refused {
        skipped.clone_from(&why);
        help = remedy;
        Some(format!(
            "{}, {free} are free, and no more can be had: {why}",
            what()
        ))
    } else if missing > room {
        Some(format!(
            "{}, {free} are free, and the host has not the memory for {missing} more: {} MiB of it can be had, {} MiB are needed",
            what(),
            bytes >> 20,
            needed >> 20,
        ))
    } else {
        None
    };
    if let Some(message) = message {
        for change in &mut changes {
            change.act = None;
            change.skipped.get_or_insert_with(|| skipped.clone());
        }
        problems.push(match advice {
            true => Diagnostic::warning("W-HUGEPAGES", span, message)
                .why("A preset recommends them, so ordinary pages do"),
            false => Diagnostic::error("E-HUGEPAGES", span, message).help(help),
        });
    }
    planner.changes.extend(changes);
}

/// How many of `missing` pages each pool gets: as many as the others, but no more than it has room for. The first get
/// what does not divide; what has no room anywhere is shared out all the same.
fn shares(missing: u64, rooms: &[u64]) -> Vec<u64> {
    let mut given = vec![0u64; rooms.len()];
    let mut left = missing;
    while left > 0 {
        let has_room = |(index, room): (usize, &u64)| {
            given
                .get(index)
                .is_some_and(|given| given < room)
                .then_some(index)
        };
        let mut open: Vec<usize> = rooms.iter().enumerate().filter_map(has_room).collect();
        let full = open.is_empty();
        if full {
            open = (0..rooms.len()).collect();
        }
        let count = open.len() as u64;
        if count == 0 {
            break;
        }
        let (each, more) = (left / count, left % count);
        for (at, index) in (0u64..).zip(open) {
            let (Some(given), Some(room)) = (given.get_mut(index), rooms.get(index)) else {
                continue;
            };
            let share = each + u64::from(at < more);
            let share = if full {
                share
            } else {
                share.min(room - *given)
            };
            *given += share;
            left -= share;
        }
    }
    given
}

/// Why the pools stay as they are, though they have not enough.
struct Refused {
    /// Pages that a run would find.
    free: u64,
    why: String,
    remedy: &'static str,
}

/// Whether this process cannot make the pools grow: then what they have is all there is, whoever has claimed it.
fn refused(planner: &Planner<'_>, pools: &[Pool], pages: u64, missing: u64) -> Option<Refused> {
    let free = pools
        .iter()
        .fold(0u64, |sum, pool| sum.saturating_add(pool.unused));
    if missing == 0 || pages <= free {
        return None;
    }
    if let Some(container) = planner.facts.container() {
        return Some(Refused {
            free,
            why: format!("this is a container ({container}), which does not change its host"),
            remedy: "Reserve them on the host of the container, or say `hugepages: none`",
        });
    }
    let shut = |pool: &&Pool| !planner.facts.may_write(pool.path.as_ref());
    let pool = pools.iter().find(shut)?;
    Some(Refused {
        free,
        why: format!("{} cannot be written by this user", pool.path),
        remedy: "`vsc-run host apply SCENARIO` as root reserves them; or say `hugepages: none`",
    })
}

/// A pool of pages of one size.
struct Pool {
    /// The counter that makes it grow.
    path: String,
    have: u64,
    /// Pages that nobody uses, has reserved or has claimed.
    free: u64,
    /// Those that somebody may have claimed as well.
    unused: u64,
    /// Memory of which more could be made, bytes.
    room: u64,
    place: String,
}

fn pools(planner: &Planner<'_>, page: u64) -> Vec<Pool> {
    let directory = format!("hugepages-{}kB", page >> 10);
    let whole = format!("{POOLS}/{directory}");
    let reserved = planner
        .number(format!("{whole}/resv_hugepages"))
        .unwrap_or(0);
    let all = nodes(planner);
    let mut reserved_here = reserved;
    let claimed = |path: &str| planner.facts.claimed(path.as_ref());
    // Of pages in use or reserved nobody tells whose they are: at worst they are not those that runs have claimed.
    let spare = |have: u64, free: u64, claimed: u64| have.saturating_sub(claimed).min(free);
    let each = wanted_nodes(planner, &all).into_iter().filter_map(|node| {
        let base = format!("{NODES}/node{node}");
        let path = format!("{base}/hugepages/{directory}/nr_hugepages");
        let free = planner.number(format!("{base}/hugepages/{directory}/free_hugepages"))?;
        // Reservations are not those of a node: what is reserved may be taken from any of them.
        let taken = free.min(reserved_here);
        reserved_here -= taken;
        let have = planner.number(&path)?;
        Some(Pool {
            have,
            free: spare(have, free - taken, claimed(&path)),
            unused: free - taken,
            room: node_room(planner, node),
            place: format!("node {node}"),
            path,
        })
    });
    let pools: Vec<Pool> = each.collect();
    if !pools.is_empty() {
        return pools;
    }
    let path = format!("{whole}/nr_hugepages");
    let Some(have) = planner.number(&path) else {
        return Vec::new();
    };
    let free = planner
        .number(format!("{whole}/free_hugepages"))
        .unwrap_or(0);
    let of_nodes = all.iter().map(|node| {
        claimed(&format!(
            "{NODES}/node{node}/hugepages/{directory}/nr_hugepages"
        ))
    });
    let claims = of_nodes.fold(claimed(&path), u64::saturating_add);
    vec![Pool {
        free: spare(have, free.saturating_sub(reserved), claims),
        unused: free.saturating_sub(reserved),
        path,
        have,
        room: planner.facts.memory().map_or(u64::MAX, |m| m.available),
        place: "the host".into(),
    }]
}

fn change(planner: &Planner<'_>, pool: &Pool, by: u64, required: bool) -> HostChange {
    let Pool {
        path,
        have,
        free,
        unused: _,
        room: _,
        place,
    } = pool;
    let new = have.saturating_add(by);
    let mut change = planner.bare(WHAT, path, Some(have.to_string()), new.to_string());
    change.note = (*free > 0 && by > 0).then(|| format!("{free} of {place} are free and count"));
    if by == 0 {
        change.skipped = Some(format!("{free} of {place} are free, no more are needed"));
    } else {
        change.required = required;
        change.act = Some(Act::Add {
            path: path.into(),
            by,
        });
    }
    change
}

/// The nodes of this host.
fn nodes(planner: &Planner<'_>) -> Vec<u32> {
    let names = planner.facts.names(NODES.as_ref());
    let number = |name: &String| name.strip_prefix("node")?.parse().ok();
    names.iter().filter_map(number).collect()
}

/// The nodes that the memory comes from, where the machine says so; of all nodes the pool as a whole does.
fn wanted_nodes(planner: &Planner<'_>, all: &[u32]) -> Vec<u32> {
    let domain = planner.machine.domain;
    let mut wanted = match domain.text("memory.numa_nodes") {
        Some(text) => set(text),
        None => {
            let pins = domain.list("cpu.pin").iter();
            let cpus: Vec<u32> = pins
                .filter_map(|pin| pin.get("cpus")?.as_str())
                .flat_map(set)
                .collect();
            let has_one = |node: &u32| {
                let list = planner.text(format!("{NODES}/node{node}/cpulist"));
                set(&list.unwrap_or_default())
                    .iter()
                    .any(|cpu| cpus.contains(cpu))
            };
            all.iter().copied().filter(has_one).collect()
        }
    };
    wanted.retain(|node| all.contains(node));
    if wanted.len() == all.len() {
        wanted.clear();
    }
    wanted
}

/// Numbers as the kernel and taskset(1) list them: `0-3,8`, `^2` for one to leave out.
fn set(text: &str) -> Vec<u32> {
    /// Most CPUs of an x86 Linux.
    const MOST: u32 = 8192;
    let mut out = Vec::new();
    let mut without = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (to, part) = match part.strip_prefix('^') {
            Some(part) => (&mut without, part),
            None => (&mut out, part),
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            to.extend(first..=last.min(first.saturating_add(MOST)));
        }
    }
    out.retain(|number| !without.contains(number));
    out.sort_unstable();
    out.dedup();
    out
}

/// Memory of a node that is free, or in file pages and slabs that can be dropped, bytes.
fn node_room(planner: &Planner<'_>, node: u32) -> u64 {
    let Some(text) = planner.text(format!("{NODES}/node{node}/meminfo")) else {
        return u64::MAX;
    };
    let field = |name: &str| {
        let line = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(name)?;
            rest.strip_prefix(':')
        });
        let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    ["MemFree", "Active(file)", "Inactive(file)", "SReclaimable"]
        .into_iter()
        .fold(0u64, |sum, name| sum.saturating_add(field(name)))
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn pools_get_what_they_have_room_for() {
        for (missing, rooms, wanted) in [
            (5, &[10, 10][..], &[3, 2][..]),
            (5, &[1, 10], &[1, 4]),
            (8, &[2, 3, 9], &[2, 3, 3]),
            (7, &[0, 7], &[0, 7]),
            (0, &[7], &[0]),
            (4, &[1, 1], &[2, 2]),
            (3, &[], &[]),
        ] {
            assert_eq!(shares(missing, rooms), wanted, "{missing} {rooms:?}");
        }
        assert_eq!(shares(u64::MAX, &[u64::MAX]), [u64::MAX]);
    }
}
