//! What a parser of somebody else's bytes may do: read, write, ask for memory, end.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// System calls that the child makes once it is set up. None of them names a file, makes a process, or reaches
/// another one; descriptors are those that it has: the image, for reading, and the pipe.
const ALLOWED: [i64; 26] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_poll,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Most memory, bytes: the program itself, a table of a large image, a frame.
const MEMORY: u64 = 1 << 30;

/// Confines this process for good. `seconds` of the processor are what it gets.
///
/// # Errors
/// It is not confined.
pub(super) fn enter(seconds: u64) -> io::Result<()> {
    let limits = [
        (Resource::As, MEMORY),
        (Resource::Cpu, seconds),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
    ];
    for (resource, most) in limits {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    crate::sys::close_from(3)?;
    let rules: BTreeMap<_, _> = ALLOWED.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into();
    let filter = arch.and_then(|arch| {
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            arch,
        )?;
        BpfProgram::try_from(filter)
    });
    // It also takes the way to new privileges.
    apply_filter_all_threads(&filter.map_err(io::Error::other)?).map_err(io::Error::other)
}
