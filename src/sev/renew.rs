//! What libvirt remembers of QEMU, thrown away.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::facts::Root;
use crate::libvirt::ask;

use super::stack::CACHE;

/// Why libvirt was not made to ask QEMU again.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// There is nothing to stop and start it with.
    #[error("this host has no systemctl")]
    NoSystemctl,
    /// The daemon does not stop, or does not start again.
    #[error("systemctl {verb} {service}.service")]
    Systemctl {
        /// `stop` or `start`.
        verb: &'static str,
        /// The unit.
        service: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// Something of the cache cannot be removed. The daemon was started again.
    #[error("cannot remove {}", .path.display())]
    Remove {
        /// What cannot.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// How long the daemon may take to stop or to start: systemd's own patience is 90 s.
const UNIT_PATIENCE: Duration = Duration::from_secs(100);

/// Does what the three commands do: stops libvirt's daemon, removes what it remembers of QEMU, starts it again, also
/// where not everything could be removed. What is removed is found out anew; there is nothing to undo.
///
/// # Errors
/// What could not be done.
pub fn renew(root: &Root, service: &'static str) -> Result<(), RenewError> {
    let program = ["/usr/bin/systemctl", "/bin/systemctl"]
        .map(|p| root.at(p))
        .into_iter()
        .find(|p| p.is_file())
        .ok_or(RenewError::NoSystemctl)?;
    let unit = format!("{service}.service");
    let order = |verb: &'static str| {
        let done = ask(&program, &[verb, &unit], UNIT_PATIENCE);
        done.map(drop).map_err(|source| RenewError::Systemctl {
            verb,
            service,
            source,
        })
    };
    order("stop")?;
    let removed = forget(&root.at(CACHE));
    order("start")?;
    removed
}

/// Removes the files in a directory, as `rm -f DIRECTORY/*` does.
fn forget(directory: &Path) -> Result<(), RenewError> {
    let failed = |path: &Path, source| RenewError::Remove {
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| failed(directory, e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed(directory, e))?;
        let kind = entry.file_type().map_err(|e| failed(&entry.path(), e))?;
        if !kind.is_dir() {
            fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), e))?;
        }
    }
    Ok(())
}
