//! Locks on images: nobody starts on an image that another machine uses.
//!
//! Advisory locks of the open file (`F_OFD_SETLK`, man 2 fcntl) on the bytes that QEMU uses, so that QEMU refuses our
//! images and we refuse its: byte 100 + n says "I use permission n", byte 200 + n "I do not share permission n"
//! (QEMU `block/file-posix.c`, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE). All of them are read locks; who has taken
//! his looks with `F_OFD_GETLK` whether somebody holds the opposite byte. libvirt's virtlockd has byte 0 of the same
//! files, and nothing here touches that one.
//!
//! Two more, which QEMU does not see:
//! * [`GATE`]: a write lock for the only writer, a read lock for everybody else. Of two machines that start at once one
//!   gets it, where QEMU's way can refuse both; and a whole-file reader such as cloud-hypervisor is kept off by it.
//! * `flock`, for programs that use that (crosvm, `flock(1)`, `mkfs --lock`), where it is not an fcntl lock in disguise.
//!
//! The kernel gives all of them up with the last descriptor of the open file, whatever ends the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use serde::{Deserialize, Serialize};

/// First of QEMU's bytes "I use permission n".
pub const USED: u64 = 100;
/// First of QEMU's bytes "I do not share permission n".
pub const UNSHARED: u64 = 200;
/// BLK_PERM_CONSISTENT_READ.
pub const READ: u64 = 0;
/// BLK_PERM_WRITE.
pub const WRITE: u64 = 1;
/// BLK_PERM_RESIZE; images that grow (qcow2) use it.
pub const RESIZE: u64 = 3;
/// The byte that decides between machines of ours that start at once. QEMU and libvirt do not use it.
pub const GATE: u64 = 99;

/// How an image is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lock {
    /// Who writes is alone; readers are among themselves.
    #[default]
    Exclusive,
    /// Any number may write, if all of them say so: a cluster file system.
    Shared,
    /// Not at all.
    Off,
}

/// What is going to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// It is written.
    pub write: bool,
    /// It grows: qcow2, not raw.
    pub resize: bool,
    /// With whom.
    pub lock: Lock,
    /// It is a block device, of which udev has a shared `flock` now and then (systemd: "Locking Block Device Access").
    pub device: bool,
    /// `flock` means something of its own on its file system (see [`flock_is_separate`]).
    pub flock: bool,
}

/// Ranges of bytes: start and length.
pub type Ranges = Vec<(u64, u64)>;

impl Access {
    /// Permissions that are used, and those that are not shared, as numbers n.
    fn permissions(&self) -> (&'static [u64], &'static [u64]) {
        let used: &[u64] = match (self.write, self.resize) {
            (true, true) => &[READ, WRITE, RESIZE],
            (true, false) => &[READ, WRITE],
            (false, _) => &[READ],
        };
        let unshared: &[u64] = match (self.lock, self.resize) {
            (Lock::Exclusive, true) => &[WRITE, RESIZE],
            (Lock::Exclusive, false) => &[WRITE],
            (Lock::Shared | Lock::Off, _) => &[],
        };
        (used, unshared)
    }

    /// Whether the gate is taken for this one alone.
    fn alone(&self) -> bool {
        self.write && self.lock == Lock::Exclusive
    }

    /// The bytes that are locked, the gate included.
    pub fn locked(&self) -> Ranges {
        if self.lock == Lock::Off {
            return Ranges::new();
        }
        let (used, unshared) = self.permissions();
        let bytes = used.iter().map(|n| USED + n);
        joined(
            std::iter::once(GATE)
                .chain(bytes)
                .chain(unshared.iter().map(|n| UNSHARED + n)),
        )
    }

    /// The bytes that nobody else may hold.
    fn opposite(&self) -> Ranges {
        let (used, unshared) = self.permissions();
        let bytes = unshared.iter().map(|n| USED + n);
        joined(bytes.chain(used.iter().map(|n| UNSHARED + n)))
    }
}

/// Ascending bytes as ranges.
fn joined(bytes: impl Iterator<Item = u64>) -> Ranges {
    let mut out = Ranges::new();
    for byte in bytes {
        match out.last_mut() {
            Some((start, len)) if *start + *len == byte => *len += 1,
            _ => out.push((byte, 1)),
        }
    }
    out
}

/// A lock of somebody else that is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// First byte.
    pub start: u64,
    /// Bytes; 0: to the end of the file, wherever that is.
    pub len: u64,
    /// A write lock.
    pub write: bool,
    /// Whose, where the kernel tells: POSIX locks belong to a process, the others to an open file (`None`).
    pub pid: Option<u32>,
}

impl Held {
    /// Whether somebody locks the file as a whole for reading, as cloud-hypervisor does; QEMU's bytes are all covered
    /// by it, and mean nothing then.
    fn reads_the_whole(&self) -> bool {
        let end = self.start.saturating_add(self.len);
        !self.write && self.start == 0 && (self.len == 0 || end > UNSHARED + RESIZE)
    }
}

/// Why an image is not locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else has it. `None`: by `flock`, of which the kernel tells nothing here.
    Held(Option<Held>),
    /// The file system has no locks.
    Unsupported(io::Error),
    /// Anything else.
    Failed(io::Error),
}

/// What the kernel is asked for; tests answer in its place.
pub(crate) trait Calls {
    /// `F_OFD_SETLK`; false: somebody else has a part of it.
    fn set(&self, fd: RawFd, write: bool, range: (u64, u64)) -> io::Result<bool>;
    /// `F_OFD_GETLK` for a write lock: what would be in the way.
    fn test(&self, fd: RawFd, range: (u64, u64)) -> io::Result<Option<Held>>;
    /// `flock` without waiting; false: somebody else has it.
    fn flock(&self, fd: RawFd, alone: bool) -> io::Result<bool>;
    /// /proc/locks, which shows what [`Self::test`] hides behind its first find.
    fn table(&self) -> io::Result<String>;
}

/// The kernel itself.
pub(crate) struct Kernel;

fn fcntl(
    fd: RawFd,
    command: libc::c_int,
    kind: libc::c_int,
    (start, len): (u64, u64),
) -> io::Result<libc::flock> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: plain numbers, of which all zeroes is a valid value; OFD locks want l_pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start.try_into().map_err(invalid)?;
    lock.l_len = len.try_into().map_err(invalid)?;
    // SAFETY: the structure lives through the call, which may write to it.
    match unsafe { libc::fcntl(fd, command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}

/// False where the reason is somebody else's lock.
fn taken(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Calls for Kernel {
    fn set(&self, fd: RawFd, write: bool, range: (u64, u64)) -> io::Result<bool> {
        let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
        taken(fcntl(fd, libc::F_OFD_SETLK, kind, range).map(drop))
    }

    fn test(&self, fd: RawFd, range: (u64, u64)) -> io::Result<Option<Held>> {
        let found = fcntl(fd, libc::F_OFD_GETLK, libc::F_WRLCK, range)?;
        if i32::from(found.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        Ok(Some(Held {
            start: found.l_start.try_into().unwrap_or(0),
            len: found.l_len.try_into().unwrap_or(0),
            write: i32::from(found.l_type) == libc::F_WRLCK,
            pid: u32::try_from(found.l_pid).ok().filter(|pid| *pid > 0),
        }))
    }

    fn flock(&self, fd: RawFd, alone: bool) -> io::Result<bool> {
        let how = if alone { libc::LOCK_EX } else { libc::LOCK_SH };
        // SAFETY: a plain system call.
        let result = match unsafe { libc::flock(fd, how | libc::LOCK_NB) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        taken(result)
    }

    fn table(&self) -> io::Result<String> {
        std::fs::read_to_string("/proc/locks")
    }
}

/// Locks `file`, which is open as `access` says; the locks live as long as the open file.
///
/// # Errors
/// [`LockError`]. Locks that were taken until then stay: the file is of no use and is closed.
pub fn take(file: &File, access: Access) -> Result<(), LockError> {
    take_with(&Kernel, file.as_raw_fd(), access, || inode(file))
}

fn inode(file: &File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    file.metadata().ok().map(|m| m.ino())
}

fn refuse(error: io::Error) -> LockError {
    match error.raw_os_error() {
        // EINVAL: a kernel before 3.15, or a file system that takes it for such.
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => {
            LockError::Unsupported(error)
        }
        _ => LockError::Failed(error),
    }
}

fn take_with(
    calls: &impl Calls,
    fd: RawFd,
    access: Access,
    inode: impl Fn() -> Option<u64>,
) -> Result<(), LockError> {
    if access.lock == Lock::Off {
        return Ok(());
    }
    let set = |write: bool, range: (u64, u64)| match calls.set(fd, write, range) {
        Ok(true) => Ok(()),
        // For a read lock only a write lock can be in the way, and that is what the test finds first or hides.
        Ok(false) => Err(LockError::Held(calls.test(fd, range).ok().flatten())),
        Err(e) => Err(refuse(e)),
    };
    let mut ranges = access.locked();
    if access.alone()
        && let Some((start, len)) = ranges.first_mut()
    {
        set(true, (GATE, 1))?;
        (*start, *len) = (GATE + 1, *len - 1);
    }
    for range in ranges {
        set(false, range)?;
    }
    for range in access.opposite() {
        if let Some(held) = calls.test(fd, range).map_err(refuse)? {
            let harmless = !access.write
                && held.reads_the_whole()
                && inode().is_some_and(|inode| no_other(calls, inode, range));
            if !harmless {
                return Err(LockError::Held(Some(held)));
            }
        }
    }
    if access.flock {
        // Without flock on its file system there is nobody who uses it.
        if let Ok(false) = calls.flock(fd, access.alone() && !access.device) {
            return Err(LockError::Held(None));
        }
    }
    Ok(())
}

/// Whether nobody but readers of the whole file holds a part of `range` of the file with this inode number. What
/// cannot be read or understood counts as somebody.
fn no_other(calls: &impl Calls, inode: u64, range: (u64, u64)) -> bool {
    let Ok(table) = calls.table() else {
        return false;
    };
    // `1: OFDLCK ADVISORY  READ -1 fd:00:42 100 101`; waiting ones have `->` (proc_locks(5)).
    table.lines().all(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(kind), _, Some(access), _, Some(file), Some(start), Some(end)) = (
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next(),
        ) else {
            return line.trim().is_empty();
        };
        if !file.ends_with(&format!(":{inode}")) || kind == "FLOCK" {
            return true;
        }
        let last = end.parse().unwrap_or(u64::MAX);
        let Ok(start) = start.parse::<u64>() else {
            return false;
        };
        let outside = last < range.0 || start >= range.0 + range.1;
        outside || (access == "READ" && start == 0 && last > UNSHARED + RESIZE)
    })
}

/// Whether `flock` on a file system of this type (`f_type`, man 2 statfs) is no fcntl lock in disguise: NFS, SMB, 9p
/// and AFS make one lock on all bytes of it, which other hosts, or our own writes, would run into.
pub fn flock_is_separate(f_type: i64) -> bool {
    // linux/magic.h: NFS, SMB, CIFS, SMB2, V9FS, AFS.
    const DISGUISED: [i64; 6] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x0102_1997,
        0x5346_414f,
    ];
    !DISGUISED.contains(&f_type)
}

/// Takes byte 0 of a file, as libvirt's virtlockd does: a write lock, or a read lock for images that are shared.
///
/// # Errors
/// [`LockError`].
pub fn take_first_byte(file: &File, write: bool) -> Result<(), LockError> {
    let fd = file.as_raw_fd();
    match Kernel.set(fd, write, (0, 1)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(LockError::Held(Kernel.test(fd, (0, 1)).ok().flatten())),
        Err(e) => Err(refuse(e)),
    }
}

/// Gives byte 0 up again. The lock of whoever has the same open file is the same one.
pub fn release_first_byte(file: &File) {
    // What is not given up now is given up with the file.
    let _ = fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, libc::F_UNLCK, (0, 1));
}

/// Takes a read lock on one byte, below 2^62, of an open file or directory: a sign for others ([`byte_is_held`]) that
/// lasts as long as the open file.
///
/// # Errors
/// The system's; that somebody has a write lock there is `WouldBlock`.
pub fn hold_byte(file: &File, byte: u64) -> io::Result<()> {
    fcntl(
        file.as_raw_fd(),
        libc::F_OFD_SETLK,
        libc::F_RDLCK,
        (byte, 1),
    )
    .map(drop)
}

/// Whether anybody holds that byte, except through this open file.
///
/// # Errors
/// The system's.
pub fn byte_is_held(file: &File, byte: u64) -> io::Result<bool> {
    Ok(Kernel.test(file.as_raw_fd(), (byte, 1))?.is_some())
}

#[cfg(test)]
mod tests;
