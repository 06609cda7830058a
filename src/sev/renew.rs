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
    /// The cache of a tree that stands for a host is not in it.
    #[error("links lead from {} out of {}: nothing outside of it is touched", .path.display(), .root.display())]
    Outside {
        /// The directory.
        path: PathBuf,
        /// The tree.
        root: PathBuf,
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
    let cache = root.at(CACHE);
    // What is in it is removed: it counts as well.
    if !root.holds(&cache.join("*")).unwrap_or(false) {
        return Err(RenewError::Outside {
            path: cache,
            root: root.0.clone(),
        });
    }
    order("stop")?;
    let removed = forget(&cache);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_outside_of_the_tree_stays() {
        let place = std::env::temp_dir().join(format!("vsc-renew-{}", std::process::id()));
        let (tree, out) = (place.join("tree"), place.join("out"));
        let root = Root(tree.clone());
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        fs::create_dir_all(root.at(CACHE).parent().unwrap()).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("a.xml"), "x").unwrap();
        // Nothing is stopped either.
        fs::write(tree.join("usr/bin/systemctl"), "no program").unwrap();
        std::os::unix::fs::symlink(&out, root.at(CACHE)).unwrap();
        let outcome = renew(&root, "libvirtd");
        let left = out.join("a.xml").exists();
        fs::remove_dir_all(&place).unwrap();
        assert!(
            matches!(outcome, Err(RenewError::Outside { .. })),
            "{outcome:?}"
        );
        assert!(left);
    }
}
