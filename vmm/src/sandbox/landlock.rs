//! Landlock: which paths may still be opened, by any thread, whatever its system calls.
//!
//! <https://docs.kernel.org/userspace-api/landlock.html>, include/uapi/linux/landlock.h. Each ABI version adds rights
//! that can be taken; a kernel is asked for those that it knows.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{Access, Allowed};

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_SOCK: u64 = 1 << 9;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Rights that a file has, as opposed to a directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// LANDLOCK_ACCESS_NET_BIND_TCP and CONNECT_TCP.
const TCP: u64 = 0b11;
/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and SIGNAL.
const SCOPES: u64 = 0b11;

/// struct landlock_ruleset_attr.
#[repr(C)]
#[derive(Debug, Default)]
struct RulesetAttr {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// struct landlock_path_beneath_attr, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// What ABI `abi` can take away, as far as this program knows.
fn handled(abi: u32) -> RulesetAttr {
    // Bits 0 to 12 in version 1; REFER, TRUNCATE and IOCTL_DEV came with 2, 3 and 5.
    let bits = match abi {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    RulesetAttr {
        fs: (1 << bits) - 1,
        net: if abi >= 4 { TCP } else { 0 },
        scoped: if abi >= 6 { SCOPES } else { 0 },
    }
}

/// The version of this kernel; `None` where there is no Landlock, or where it was not switched on at boot.
pub fn abi() -> Option<u32> {
    // SAFETY: a plain system call; asked for its version it takes no structure.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|&v| v > 0)
}

/// Restricts this thread, and those it will start, to `allowed`. What does not exist needs no permission.
/// no_new_privs must be set.
pub(super) fn restrict(abi: u32, allowed: &[Allowed]) -> io::Result<()> {
    let attr = handled(abi);
    // Older kernels know a shorter structure, and refuse a longer one only if its rest is not zero.
    // SAFETY: the structure outlives the call, and its size is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attr,
            size_of::<RulesetAttr>(),
            0u32,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    for rule in allowed {
        add(&ruleset, rule, attr.fs)?;
    }
    // SAFETY: a plain system call.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn add(ruleset: &OwnedFd, rule: &Allowed, handled: u64) -> io::Result<()> {
    let opened;
    let (fd, access) = match rule {
        Allowed::Descriptor(number) => (*number, Access::ReadWrite),
        Allowed::Path(path, access) => {
            match File::options()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(path)
            {
                Ok(file) => opened = file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            }
            (opened.as_raw_fd(), *access)
        }
    };
    let mut rights = match access {
        Access::Read => READ_FILE | READ_DIR,
        Access::ReadWrite => READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV,
        Access::Sockets => MAKE_SOCK | REMOVE_FILE,
        Access::Remove => REMOVE_FILE | REMOVE_DIR,
    } & handled;
    if !is_directory(fd)? {
        rights &= OF_FILES;
    }
    let rule = PathBeneath {
        allowed: rights,
        parent: fd,
    };
    // SAFETY: the structure outlives the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0u32,
        ) != 0
    };
    match failed.then(io::Error::last_os_error) {
        // Pipes and sockets have no path, and none is withheld.
        Some(e) if matches!(e.raw_os_error(), Some(libc::EBADFD | libc::EBADF)) => Ok(()),
        Some(e) => Err(e),
        None => Ok(()),
    }
}

fn is_directory(fd: RawFd) -> io::Result<bool> {
    // SAFETY: all-zero is a valid structure, which the call fills in; a number that is no descriptor is its error.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        if libc::fstat(fd, &mut stat) != 0 {
            let e = io::Error::last_os_error();
            // Standard input may be closed: nothing to allow.
            return if e.raw_os_error() == Some(libc::EBADF) {
                Ok(false)
            } else {
                Err(e)
            };
        }
        Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_takes_what_it_knows() {
        assert_eq!(handled(1).fs, 0x1fff);
        assert_eq!((handled(1).net, handled(1).scoped), (0, 0));
        assert_eq!(handled(3).fs & TRUNCATE, TRUNCATE);
        assert_eq!(handled(4).net, TCP);
        assert_eq!(handled(5).fs, 0xffff);
        assert_eq!(handled(5).scoped, 0);
        assert_eq!(handled(9).scoped, SCOPES);
    }
}
