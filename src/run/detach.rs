//! A run that outlives the terminal it was started from.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Leaves the session of whoever started this process: nothing that happens to their terminal reaches it. Standard
/// input is the pipe on which they wait, which is what comes back.
///
/// # Errors
/// The system's reason.
pub(crate) fn leave() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    let pipe = io::stdin().as_fd().try_clone_to_owned()?;
    replace(&File::open("/dev/null")?, libc::STDIN_FILENO)?;
    Ok(pipe)
}

/// From now on what is said and what the guest prints goes to `log`.
///
/// # Errors
/// The system's reason.
pub(crate) fn redirect(log: &File) -> io::Result<()> {
    replace(log, libc::STDOUT_FILENO)?;
    replace(log, libc::STDERR_FILENO)
}

fn replace(file: &File, number: i32) -> io::Result<()> {
    // SAFETY: a plain system call; what is replaced is a standard stream, which nobody owns.
    if unsafe { libc::dup2(file.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A warden's last word on its run, and then nobody waits for its messages any more.
pub(crate) fn last_word(word: Option<String>) {
    if let Some(word) = word {
        crate::say::warning(&word);
    }
    // Where it stays open, a reader waits until all is put back.
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = replace(&null, libc::STDERR_FILENO);
    }
}
