//! Links of the host, such as those of udev below /dev/disk.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::Root;

/// The links of a directory of the host, sorted: their names, and where they lead as the host names it.
pub(super) fn in_directory(root: &Root, directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root.at(directory)).into_iter().flatten();
    let mut links: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let to = fs::read_link(entry.path()).ok()?;
            let mut path = directory.to_owned();
            for part in to.components() {
                match part {
                    Component::ParentDir => drop(path.pop()),
                    part => path.push(part),
                }
            }
            Some((entry.file_name().into_string().ok()?, path))
        })
        .collect();
    links.sort();
    links
}

impl Root {
    /// Whether a path below this root is in its tree, wherever links on the way to it lead. Its last part is never
    /// followed, and what is not there yet is where its directory is.
    ///
    /// # Errors
    /// That cannot be found out.
    pub(crate) fn holds(&self, path: &Path) -> io::Result<bool> {
        if self.0 == Path::new("/") {
            return Ok(true);
        }
        let absent = |e: &io::Error| {
            matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            )
        };
        let mut above = path.ancestors().skip(1).map(fs::canonicalize);
        let there = above.find(|real| !real.as_ref().is_err_and(absent));
        Ok(there
            .transpose()?
            .is_some_and(|real| fs::canonicalize(&self.0).is_ok_and(|root| real.starts_with(root))))
    }
}
