//! The mark of a registered run (`register: true`): the name of its process, which the kernel shows to every user that
//! may know of the process at all (/proc/PID/comm, proc(5)) and takes away with it.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::path::Path;

/// Before the machine's name; of the 15 bytes of a process name (TASK_COMM_LEN of include/linux/sched.h, less the
/// end) 11 are left for that.
const PREFIX: &str = "vsc:";

/// Marks this process, whose first thread must be the caller.
///
/// # Errors
/// The system's reason.
pub(crate) fn set(name: &str) -> std::io::Result<()> {
    let name = CString::new(format!("{PREFIX}{name}"))?;
    // The kernel cuts what is too long.
    Ok(rustix::thread::set_name(&name)?)
}

/// The machine that a process in /proc is marked with, as far as its name goes.
pub(crate) fn of(process: &Path) -> Option<String> {
    let comm = fs::read_to_string(process.join("comm")).ok()?;
    let name = comm.trim_end_matches('\n').strip_prefix(PREFIX)?;
    (!name.is_empty()).then(|| name.to_owned())
}
