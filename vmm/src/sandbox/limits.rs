//! Limits of the process from set-up to its end.

use std::io;

use serde::{Deserialize, Serialize};

use super::Spec;

/// What the heap may grow by while the guest runs, bytes. What a guest can make this process keep is bounded by
/// design (64 KiB of console, a queue's worth of requests, 1 MiB of what was typed); measured is less than 2 MiB. A
/// machine that needs more than this has found a leak, and ends, instead of the host's other processes.
pub(super) const HEAP: u64 = 64 << 20;
/// Besides, where the machine may be built again: the kernel, decompressed, and an initrd.
const HEAP_TO_REBUILD: u64 = 1 << 30;
/// Besides, for each thread: its stack, that for signals, and the first of its heap.
const HEAP_OF_THREAD: u64 = 1 << 20;
/// Descriptors that may be opened besides those that are: clients of sockets.
pub(super) const FILES: u64 = 128;
/// Besides, for each disk: its ring, or what tells of its threads.
const FILES_OF_DISK: u64 = 2;
/// Size of a core file. 1 is less than the least that is written (a page), and the one value that also keeps a
/// core_pattern with a program from getting the memory (fs/coredump.c); 0 does not.
const CORE: u64 = 1;

/// Limits in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// RLIMIT_DATA: private writable memory, bytes. Guest memory is shared memory, and does not count.
    pub data: u64,
    /// RLIMIT_NOFILE.
    pub files: u64,
    /// RLIMIT_CORE, bytes.
    pub core: u64,
}

/// What the heap may grow by, bytes.
pub(super) fn heap(spec: &Spec) -> u64 {
    let again = if spec.rebuild { HEAP_TO_REBUILD } else { 0 };
    HEAP + u64::from(spec.threads) * HEAP_OF_THREAD + again
}

/// How many descriptors may be opened besides.
pub(super) fn files(spec: &Spec) -> u64 {
    FILES + u64::from(spec.disks) * FILES_OF_DISK
}

/// Sets them, hard and soft, from what is used now.
pub(super) fn set(spec: &Spec) -> io::Result<Limits> {
    let more = heap(spec);
    Ok(Limits {
        data: lower(
            libc::RLIMIT_DATA,
            data_in_use().unwrap_or(IN_USE).saturating_add(more),
        )?,
        files: lower(
            libc::RLIMIT_NOFILE,
            lowest_free()?.saturating_add(files(spec)),
        )?,
        core: core()?,
    })
}

/// Lowers a limit to `to`; one that is lower already stays.
fn lower(resource: libc::__rlimit_resource_t, to: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        if libc::getrlimit(resource, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let to = to.min(limit.rlim_cur);
        limit.rlim_cur = to;
        limit.rlim_max = to;
        if libc::setrlimit(resource, &limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(to)
    }
}

/// [`CORE`], wherever that is allowed: a limit of 0 that was inherited protects less.
fn core() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_CORE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let to = CORE.min(limit.rlim_max);
        limit.rlim_cur = to;
        limit.rlim_max = to;
        if libc::setrlimit(libc::RLIMIT_CORE, &limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(to)
    }
}

/// Where there is no /proc to ask: more than a start uses.
const IN_USE: u64 = 1 << 30;

/// What counts for RLIMIT_DATA, bytes, and the stacks: field 6 of /proc/self/statm, in pages (man proc_pid_statm).
fn data_in_use() -> Option<u64> {
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(5)?.parse().ok()?;
    Some(pages * PAGE)
}

/// The number that the next descriptor gets: all below are in use.
fn lowest_free() -> io::Result<u64> {
    // SAFETY: plain system calls; the descriptor was just made, and is nobody else's.
    let fd = unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd >= 0 {
            libc::close(fd);
        }
        fd
    };
    u64::try_from(fd).map_err(|_| io::Error::last_os_error())
}
