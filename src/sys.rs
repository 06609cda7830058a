//! The system calls that the standard library has no words for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// How [`rename`] treats what is at the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rename {
    /// There must be nothing.
    New,
    /// The two change places.
    Exchange,
}

/// renameat2(2).
pub(crate) fn rename(from: &Path, to: &Path, how: Rename) -> io::Result<()> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (from, to) = (text(from)?, text(to)?);
    let flags = match how {
        Rename::New => libc::RENAME_NOREPLACE,
        Rename::Exchange => libc::RENAME_EXCHANGE,
    };
    // SAFETY: both are texts that end in a zero, and live until the call is over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether an error of [`rename`] says that the file system has no such flags (NFS, some FUSE ones).
pub(crate) fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

/// The program dies with the thread that starts it.
pub(crate) fn end_with_this_thread(command: &mut Command) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: plain system calls, which may be made between fork and exec.
        let (result, now) = unsafe {
            let result = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            (result, libc::getppid())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // It died before it could be watched.
        if u32::try_from(now) != Ok(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?;
    // SAFETY: a plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a plain system call; no information is passed with the signal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until `fd` is readable or `until` has come; returns whether it is.
pub(crate) fn wait_readable(fd: &impl AsRawFd, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = until.map_or(-1, |at| {
            let millis = at.saturating_duration_since(Instant::now()).as_micros();
            i32::try_from(millis.div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which the call fills in.
        match unsafe { libc::poll(&mut poll, 1, timeout) } {
            0 if until.is_none_or(|at| Instant::now() < at) => {}
            0 => return Ok(false),
            n if n > 0 => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    // SAFETY: a plain system call that cannot fail.
    unsafe { libc::geteuid() }
}

/// Clock ticks in a second, the unit of times in /proc/PID/stat (proc_pid_stat(5)).
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: a plain question to the C library.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|&n| n > 0).unwrap_or(100)
}
