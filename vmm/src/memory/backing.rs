//! What stands behind guest RAM: pages of hugetlbfs, NUMA nodes, pages that are there before the guest starts, and
//! pages that stay in RAM.

use std::fs;
use std::io;
use std::num::NonZero;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vsc_devices::Memory;

use super::MemoryError;
use crate::resources::{Backing, Pages};

/// Places of guest RAM in this process: (address, bytes).
fn places(memory: &Memory) -> Vec<(usize, usize)> {
    memory
        .iter()
        .filter_map(|region| {
            let slice = region.as_volatile_slice().ok()?;
            Some((slice.ptr_guard_mut().as_ptr() as usize, slice.len()))
        })
        .collect()
}

/// Binds guest RAM to the nodes of `backing`. Before any page of it exists: pages do not move.
pub(super) fn bind(memory: &Memory, backing: &Backing) -> Result<(), MemoryError> {
    /// include/uapi/linux/mempolicy.h
    const MPOL_BIND: libc::c_ulong = 2;
    let Some(last) = backing.nodes.iter().max() else {
        return Ok(());
    };
    let mut mask = vec![0u64; *last as usize / 64 + 1];
    for node in &backing.nodes {
        mask[*node as usize / 64] |= 1 << (node % 64);
    }
    for (address, len) in places(memory) {
        // SAFETY: the range is a mapping of guest memory, the mask outlives the call; a policy changes no content.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                address,
                len,
                MPOL_BIND,
                mask.as_ptr(),
                // The kernel takes one bit less than it is told (man mbind, "maxnode").
                mask.len() * 64 + 1,
                0,
            )
        };
        if result != 0 {
            return Err(MemoryError::Nodes {
                nodes: backing.nodes.clone(),
                there: read("/sys/devices/system/node/has_memory").unwrap_or_else(|| "?".into()),
                source: io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}

/// Least that is worth a thread of its own, bytes.
const SHARE: usize = 64 << 20;
/// More threads only wait for the memory bus.
const MOST_THREADS: usize = 16;
/// include/uapi/asm-generic/mman-common.h; Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;

/// Makes every page of guest RAM be there, on all CPUs that this process may use. A page that the host cannot give is
/// an error here, and no SIGBUS later.
pub(super) fn populate(memory: &Memory, backing: &Backing) -> Result<(), MemoryError> {
    let places = places(memory);
    let size: usize = places.iter().map(|(_, len)| len).sum();
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cpus.min(MOST_THREADS).min(size.div_ceil(SHARE)).max(1);
    let step = size
        .div_ceil(threads)
        .next_multiple_of(backing.pages.bytes().max(super::HUGE) as usize);
    let shares: Vec<(usize, usize)> = places
        .into_iter()
        .flat_map(|(address, len)| {
            (0..len)
                .step_by(step)
                .map(move |at| (address + at, step.min(len - at)))
        })
        .collect();
    let one = |(address, len): (usize, usize)| {
        if backing.pages == Pages::Normal {
            // A tenth of the time, where the host has whole ones to give.
            super::collapse(address, len);
        }
        // SAFETY: a part of a mapping of guest memory, which nobody else uses yet; the advice changes no content.
        match unsafe { libc::madvise(address as *mut _, len, MADV_POPULATE_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let (last, others) = shares.split_last().unwrap_or((&(0, 0), &[]));
    let outcome = std::thread::scope(|scope| {
        let threads: Vec<_> = others
            .iter()
            // No thread to be had: then here, in turn.
            .map(|share| (share, crate::thread().spawn_scoped(scope, || one(*share))))
            .collect();
        let mut outcome = one(*last);
        for (share, thread) in threads {
            let theirs = match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => one(*share),
            };
            outcome = outcome.and(theirs);
        }
        outcome
    });
    outcome.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => MemoryError::NoPopulate,
        // What would have been a SIGBUS: the reservation is there, the pages are not.
        Some(libc::EFAULT) if backing.pages != Pages::Normal => {
            MemoryError::HugePages(shortage(size as u64, backing))
        }
        _ => MemoryError::Populate {
            size: size as u64,
            source,
        },
    })
}

/// Keeps the pages of guest RAM in RAM, each from its first use on. Those of hugetlbfs are never swapped anyway.
///
/// # Errors
/// [`MemoryError::Lock`].
pub(crate) fn lock(memory: &Memory, backing: &Backing) -> Result<(), MemoryError> {
    if !backing.locked || backing.pages != Pages::Normal {
        return Ok(());
    }
    let places = places(memory);
    let size: usize = places.iter().map(|(_, len)| len).sum();
    raise_limit();
    for (address, len) in places {
        // SAFETY: the range is a mapping of guest memory; locking changes no content.
        let result = unsafe { libc::mlock2(address as *const _, len, libc::MLOCK_ONFAULT) };
        if result != 0 {
            let source = io::Error::last_os_error();
            return Err(MemoryError::Lock {
                size: size as u64,
                allowed: allowed_to_lock(),
                source,
            });
        }
    }
    Ok(())
}

/// Raises `RLIMIT_MEMLOCK` as far as this process may without any rights. Whether that is enough, mlock2 tells.
fn raise_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
        }
    }
}

/// `RLIMIT_MEMLOCK` in words.
fn allowed_to_lock() -> String {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } {
        0 if limit.rlim_cur == libc::RLIM_INFINITY => "any amount".into(),
        0 => format!("{} bytes", limit.rlim_cur),
        _ => "an unknown amount".into(),
    }
}

/// Why there are not enough pages of hugetlbfs, and how to get them.
pub(super) fn shortage(size: u64, backing: &Backing) -> String {
    let page = backing.pages;
    let pages = size / page.bytes();
    let human = page.text();
    let dir = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB",
        page.bytes() >> 10
    );
    let number = |name: &str| read(&format!("{dir}/{name}"))?.parse::<u64>().ok();
    let (Some(all), Some(free), Some(promised)) = (
        number("nr_hugepages"),
        number("free_hugepages"),
        number("resv_hugepages"),
    ) else {
        return format!("guest memory in pages of {human}, and this host has none of that size");
    };
    let mut text = format!(
        "{pages} pages of {human} for guest memory, and this host has {} free (of {all}; {promised} are promised to \
         others)",
        free.saturating_sub(promised)
    );
    if !backing.nodes.is_empty() {
        let nodes = backing.nodes.iter().map(|node| {
            let path = format!(
                "/sys/devices/system/node/node{node}/hugepages/hugepages-{}kB/free_hugepages",
                page.bytes() >> 10
            );
            let free = read(&path).unwrap_or_else(|| "?".into());
            format!("node {node}: {free} free")
        });
        text += &format!("; {}", nodes.collect::<Vec<_>>().join(", "));
    }
    text += &format!(
        ": as root of the host, not of a container, `vsc-run host apply SCENARIO` reserves them, and so does: echo {} >{dir}/nr_hugepages",
        all + pages.saturating_sub(free.saturating_sub(promised))
    );
    text
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Lets KSM merge pages of anonymous memory, or keeps it from that. A memfd's pages are never merged.
pub(super) fn advise_merging(memory: &Memory, backing: &Backing) {
    let advice = if backing.unmerged {
        libc::MADV_UNMERGEABLE
    } else {
        libc::MADV_MERGEABLE
    };
    for (address, len) in places(memory) {
        // SAFETY: the range is a mapping of guest memory; merging is not seen by who uses it. A kernel without KSM
        // refuses, and merges nothing.
        unsafe { libc::madvise(address as *mut _, len, advice) };
    }
}
