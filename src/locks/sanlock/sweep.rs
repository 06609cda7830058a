//! Leases that no machine has, as virt-sanlock-cleanup(8) removes them: whoever has a lease may remove its file.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::LOCKSPACE;
use super::client::{Daemon, Patience};
use super::error::SanlockError;
use super::leases::{DRAFT, IO_TIMEOUT, OWNED, identity};
use super::status::Status;
use super::wire;
use crate::locks::keys;
use crate::locks::lockspace::Swept;

/// A file that was to become a lease is left by a process that was killed, once it is this old.
const DRAFT_AGE: Duration = Duration::from_secs(3600);
/// How long the daemon may take for one lease.
const LIMIT: Duration = Duration::from_secs(6 * IO_TIMEOUT as u64);
/// Results for a lease that a process of this host has, or is giving up.
const HERE: [i32; 3] = [-libc::EEXIST, -libc::EAGAIN, -libc::EBUSY];

/// Removes the leases in `directory` that no host has; with `dry`, only tells which. Other files are not looked at.
///
/// # Errors
/// [`SanlockError`]: also where this host is not in the lockspace, and so cannot tell.
pub fn sweep(
    socket: &Path,
    directory: &Path,
    dry: bool,
) -> Result<Vec<(PathBuf, Swept)>, SanlockError> {
    let mut daemon = Daemon::connect(socket)?;
    let status = daemon.status()?;
    let lockspace = directory.join(LOCKSPACE);
    let Some(host_id) = status.host_id(&lockspace) else {
        return Err(SanlockError::Host {
            sentence: format!(
                "this host is not in the lockspace {}: only one that is can tell which leases are free; the first \
                 machine with `locking: sanlock` joins it",
                lockspace.display()
            ),
        });
    };
    let entries = std::fs::read_dir(directory).map_err(|error| SanlockError::File {
        what: "cannot read",
        path: directory.to_owned(),
        error,
    })?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    daemon.register()?;
    let mut swept = Vec::new();
    for name in names {
        let path = directory.join(&name);
        let state = match name.starts_with(DRAFT) {
            true if is_old(&path) => match remove(&path, dry) {
                Ok(state) => state,
                Err(why) => Swept::Kept { why },
            },
            _ if keys::is_lease_name(&name) => {
                sweep_one(&mut daemon, &status, host_id, &name, &path, dry)?
            }
            _ => continue,
        };
        swept.push((path, state));
    }
    Ok(swept)
}

fn is_old(path: &Path) -> bool {
    let written = path.symlink_metadata().and_then(|meta| meta.modified());
    let age = written.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age > DRAFT_AGE)
}

fn remove(path: &Path, dry: bool) -> Result<Swept, String> {
    if dry {
        return Ok(Swept::Stale);
    }
    match std::fs::remove_file(path) {
        Ok(()) => Ok(Swept::Removed),
        Err(e) => Err(e.to_string()),
    }
}

fn sweep_one(
    daemon: &mut Daemon,
    status: &Status,
    host_id: u64,
    name: &str,
    path: &Path,
    dry: bool,
) -> Result<Swept, SanlockError> {
    let kept = |why: &str| Swept::Kept { why: why.into() };
    if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        return Ok(kept("it is not a file"));
    }
    if let Some(by) = status.holder(name) {
        return Ok(Swept::Held { by: Some(by) });
    }
    let before = identity(path);
    let mut quiet = |_: &str| {};
    let mut patience = Patience::of(LIMIT, String::new(), &mut quiet);
    let asked = [(name, path, false)];
    match daemon.acquire(LOCKSPACE, &asked, "vsc-run locks gc", true, &mut patience)? {
        0.. => {
            let state = match identity(path) == before {
                true => remove(path, dry).unwrap_or_else(|why| Swept::Kept { why }),
                false => kept("it has gone meanwhile"),
            };
            daemon.release(LOCKSPACE, &[name], LIMIT)?;
            Ok(state)
        }
        result if HERE.contains(&result) => Ok(Swept::Held { by: None }),
        result if OWNED.contains(&result) => {
            let by = daemon.others(host_id, name, path, LIMIT);
            let by = (!by.is_empty()).then(|| by.join(", "));
            Ok(Swept::Held { by })
        }
        result => Ok(kept(&wire::meaning(result))),
    }
}
