//! The run's own cgroup: its limits, and this process in it. That it is made, and goes with the run, is the tuner's.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use vsc::compile::Cgroup;
use vsc::facts::Root;

/// Why the run cannot be limited.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A limit.
    #[error("Write `{value}` to {}, for {key}", path.display())]
    Limit {
        /// The scenario's key.
        key: String,
        /// The file.
        path: PathBuf,
        /// The limit.
        value: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Moving in.
    #[error("Move this process into the cgroup {}", path.display())]
    Enter {
        /// The cgroup.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Puts the limits into the cgroup, and then this process: what it takes from now on is counted there. Nothing that
/// could take it out again stays open; the warden does that at the end.
///
/// # Errors
/// [`CgroupError`]; the process is where it was.
pub(crate) fn enter(cgroup: &Cgroup, root: &Root) -> Result<(), CgroupError> {
    let directory = root.at(cgroup.directory(&std::process::id().to_string()));
    for limit in &cgroup.values {
        let path = directory.join(&limit.file);
        let open = File::options().write(true).open(&path);
        open.and_then(|file| write(&file, &limit.new))
            .map_err(|source| CgroupError::Limit {
                key: limit.key.clone(),
                path,
                value: limit.new.clone(),
                source,
            })?;
    }
    let open = File::options()
        .write(true)
        .open(directory.join("cgroup.procs"));
    open.and_then(|file| write(&file, THIS))
        .map_err(|source| CgroupError::Enter {
            path: directory,
            source,
        })
}

/// Whoever writes (cgroups(7)).
const THIS: &str = "0";

/// One write: the kernel takes a value whole.
fn write(mut file: &File, value: &str) -> io::Result<()> {
    match file.write(value.as_bytes())? {
        n if n == value.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
