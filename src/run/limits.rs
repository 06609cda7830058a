//! Limits of this process.

/// Raises the soft limit of open files to the hard one: a machine needs a descriptor for each queue of each device,
/// and the usual 1024 is there for programs that call select(2), which this one does not.
pub(crate) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls. A refusal leaves the limit as it is, and what then cannot be opened
    // says so.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
