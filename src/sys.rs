//! The system calls that the standard library has no words for.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use vsc_devices::secret::Passphrase;
use zeroize::Zeroize;

use crate::sev::host::Firmware;

/// Whether this process is root of a system: /run is root's. In a user namespace that somebody without rights made
/// (`unshare -r`), it is not.
pub(crate) fn is_system() -> bool {
    use std::os::unix::fs::MetadataExt;
    user() == 0 && std::fs::metadata("/run").map_or(true, |run| run.uid() == 0)
}

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

/// Closes every descriptor from this one on: close_range(2).
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: whoever calls gives up what owns these descriptors; this process has no other use of them.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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

/// `struct sev_issue_cmd` of linux/psp-sev.h, which is packed.
#[repr(C, packed)]
struct SevIssueCommand {
    command: u32,
    data: u64,
    error: u32,
}

/// `struct sev_user_data_status` of linux/psp-sev.h, which is packed.
#[repr(C, packed)]
#[derive(Default)]
struct SevStatus {
    api_major: u8,
    api_minor: u8,
    state: u8,
    flags: u32,
    build: u8,
    guests: u32,
}

/// `SEV_ISSUE_CMD` of linux/psp-sev.h: `_IOWR('S', 0, struct sev_issue_cmd)`.
const SEV_ISSUE_CMD: libc::Ioctl =
    (3 << 30 | size_of::<SevIssueCommand>() << 16 | (b'S' as usize) << 8) as libc::Ioctl;
/// `SEV_PLATFORM_STATUS`, the second of the commands.
const SEV_PLATFORM_STATUS: u32 = 1;

/// Asks the security processor what it is; `device` is /dev/sev.
pub(crate) fn sev_firmware(device: &impl AsRawFd) -> io::Result<Firmware> {
    let mut status = SevStatus::default();
    let mut command = SevIssueCommand {
        command: SEV_PLATFORM_STATUS,
        data: std::ptr::from_mut(&mut status) as u64,
        error: 0,
    };
    // SAFETY: the command is as long as its number says, and what it points to is as long as what the kernel writes
    // for this command; both live until the call is over.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SEV_ISSUE_CMD, &raw mut command) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Firmware {
        api_major: status.api_major,
        api_minor: status.api_minor,
        build: status.build,
        guests: status.guests,
    })
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

/// A time of the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// Year, month, day.
    pub(crate) date: (i32, i32, i32),
    /// 0 to 23.
    pub(crate) hour: i32,
    /// 0 to 59.
    pub(crate) minute: i32,
}

/// Seconds since 1970 as the local clock shows them; `None` where the C library cannot say.
pub(crate) fn local_time(seconds: u64) -> Option<LocalTime> {
    let seconds = libc::time_t::try_from(seconds).ok()?;
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both live through the call, which fills the second; all zeroes is a valid one anyway.
    let parts = unsafe {
        if libc::localtime_r(&raw const seconds, parts.as_mut_ptr()).is_null() {
            return None;
        }
        parts.assume_init()
    };
    Some(LocalTime {
        date: (parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday),
        hour: parts.tm_hour,
        minute: parts.tm_min,
    })
}

/// Takes a descriptor of this process over, whoever opened it; it is closed with what comes back.
///
/// Nobody else here may own it: what this program opens itself is close-on-exec, and a descriptor that was handed to
/// it is not.
pub(crate) fn take_descriptor(number: u32) -> io::Result<File> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    let number = i32::try_from(number).map_err(|_| bad())?;
    // SAFETY: a plain system call; a number that is no descriptor is its error.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(bad());
    }
    if number <= libc::STDERR_FILENO {
        // Closed, its number would be the next file's, which is no stream to talk to.
        // SAFETY: as above.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
        return Ok(unsafe { File::from_raw_fd(copy) });
    }
    // SAFETY: it is open, and by the flag it is not one that this program has opened.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// The value of a variable of the environment; the text itself is wiped, also where /proc/PID/environ shows it.
/// `Some(None)`: it has one that is no passphrase.
pub(crate) fn take_variable(name: &str) -> io::Result<Option<Option<Passphrase>>> {
    let name = CString::new(name)?;
    // SAFETY: the name ends in a zero. Nothing in this program sets variables, so that what is found stays where it is;
    // what reads one at the same time reads its old or its wiped value.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return Ok(None);
    }
    // SAFETY: the text of a variable ends in a zero, and is memory of this process that can be written (environ(7)).
    let text = unsafe {
        let length = libc::strlen(value);
        std::slice::from_raw_parts_mut(value.cast::<u8>(), length)
    };
    let mut from: &[u8] = text;
    let passphrase = Passphrase::read(&mut from);
    text.zeroize();
    passphrase.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_processor_is_asked_in_its_own_words() {
        // Linux 6.12, include/uapi/linux/psp-sev.h.
        assert_eq!(SEV_ISSUE_CMD, 0xc010_5300);
        assert_eq!(
            (size_of::<SevIssueCommand>(), size_of::<SevStatus>()),
            (16, 12)
        );
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = sev_firmware(&null).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
