//! A process that outlives the one that starts it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program outlives what ends this one: it is in a session of its own, ignores what ends processes politely, and has
/// none of this one's descriptors but its three standard ones.
pub(super) fn set_apart(command: &mut Command) {
    const IGNORED: [i32; 6] = [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGTSTP,
        libc::SIGPIPE,
    ];
    // linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    let prepare = || {
        // SAFETY: system calls that may be made between fork and exec; all-zero is a valid set, here the empty one.
        unsafe {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            for signal in IGNORED {
                libc::signal(signal, libc::SIG_IGN);
            }
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            // Linux before 5.11 does not know the flag.
            if libc::syscall(libc::SYS_close_range, 3, !0u32, CLOSE_RANGE_CLOEXEC) < 0 {
                let most = libc::sysconf(libc::_SC_OPEN_MAX).clamp(256, 65536);
                for fd in 3..i32::try_from(most).unwrap_or(1024) {
                    let flags = libc::fcntl(fd, libc::F_GETFD);
                    if flags >= 0 {
                        libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC);
                    }
                }
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}
