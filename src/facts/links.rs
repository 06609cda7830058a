//! Links of the host, such as those of udev below /dev/disk.

#![forbid(unsafe_code)]

use std::fs;
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
