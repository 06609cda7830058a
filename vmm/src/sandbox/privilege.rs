//! Privileges that a machine needs no more: new ones from set-user-id programs, and capabilities.

use std::io;

/// _LINUX_CAPABILITY_VERSION_3 (linux/capability.h): two words of 32 bits.
const VERSION: u32 = 0x2008_0522;

/// Capabilities that building a machine again may need, where this process has them: files of other users, locked
/// memory, real-time priorities.
pub(super) const FOR_REBUILD: &[(u32, &str)] = &[
    (1, "CAP_DAC_OVERRIDE"),
    (14, "CAP_IPC_LOCK"),
    (23, "CAP_SYS_NICE"),
];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// struct __user_cap_data_struct.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// No program that this thread or its children execute gets more rights than they have.
pub(super) fn no_new() -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Memory that may be read does not become executable by that (setarch -X), which no filter of calls would see.
pub(super) fn no_implied_execution() -> io::Result<()> {
    /// Asks, and changes nothing (personality(2)).
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: plain system calls.
    unsafe {
        let now = libc::personality(ASK);
        let without = now & !libc::READ_IMPLIES_EXEC;
        if now == without || libc::personality(without as libc::c_ulong) >= 0 {
            return Ok(());
        }
    }
    Err(io::Error::last_os_error())
}

/// No descriptor but the standard streams goes to a program that this process executes. All that it opens are so from
/// the beginning, except an eventfd of the event loop's crate and what it was started with.
pub fn close_on_exec() {
    let first = libc::STDERR_FILENO as u32 + 1;
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: closes nothing. Linux before 5.11 does not know the flag.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
}

fn header() -> Header {
    Header {
        version: VERSION,
        pid: 0,
    }
}

fn held() -> io::Result<[Data; 2]> {
    let mut data = [Data::default(); 2];
    let mut header = header();
    // SAFETY: both structures are as the kernel wants them, and outlive the call.
    let failed = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(data)
}

/// Gives up the capabilities of this thread, ambient ones too; `rebuild` keeps those of [`FOR_REBUILD`].
pub(super) fn drop_capabilities(rebuild: bool) -> io::Result<()> {
    let held = held()?;
    if held.iter().all(|words| *words == Data::default()) {
        return Ok(());
    }
    let kept = if rebuild {
        mask() & held[0].permitted
    } else {
        0
    };
    let left = [
        Data {
            effective: kept & held[0].effective,
            permitted: kept,
            inheritable: 0,
        },
        Data::default(),
    ];
    let header = header();
    // SAFETY: plain system calls; both structures are as the kernel wants them, and outlive the call. Without ambient
    // capabilities (Linux before 4.3) there are none to clear.
    let failed = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        );
        libc::syscall(libc::SYS_capset, &raw const header, left.as_ptr())
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn mask() -> u32 {
    FOR_REBUILD.iter().map(|(bit, _)| 1 << bit).sum()
}

/// Names of what [`drop_capabilities`] leaves the main thread.
pub(super) fn kept(rebuild: bool) -> Vec<String> {
    let permitted = held().map_or(0, |held| held[0].permitted);
    FOR_REBUILD
        .iter()
        .filter(|(bit, _)| rebuild && permitted & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}
