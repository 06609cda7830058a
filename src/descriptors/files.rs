//! Which descriptor files there are, and which of them count.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::facts::{FileError, Root};

/// The directories of the host, from general to specific (docs/interop/firmware.json). A user's own comes after them.
pub const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// Longest descriptor that is read. Real ones have less than a kilobyte.
pub const MAX_BYTES: u64 = 1 << 20;

/// A file that was found where descriptors are, or a directory that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorFile {
    /// As the host itself names it.
    pub path: PathBuf,
    /// What it is.
    pub found: Found,
}

/// What a file is that was found where descriptors are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// Its text, which counts.
    Text(String),
    /// Nothing: it masks less specific files of its name.
    Empty,
    /// A more specific file of its name counts.
    Masked {
        /// That file.
        by: PathBuf,
    },
    /// It is no descriptor.
    Ignored(Ignored),
    /// It counts, and cannot be read.
    Unreadable(FileError),
    /// It counts, and is longer than [`MAX_BYTES`].
    TooLarge,
    /// It counts, and is not UTF-8.
    NotText,
}

/// Why a file is no descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// Its name starts with a dot.
    #[error("ignored: a hidden file")]
    Hidden,
    /// Its name does not end in `.json`.
    #[error("ignored: the name does not end in .json")]
    Name,
    /// A directory, a pipe, a device.
    #[error("ignored: not a regular file")]
    Kind,
}

/// Reads directories, from general to specific: the files sorted by name, and of one name first the one that counts.
/// A directory that does not exist is a mistake only when it is `required`.
pub fn read_directories(
    root: &Root,
    directories: &[PathBuf],
    required: bool,
) -> Vec<DescriptorFile> {
    let mut unreadable = Vec::new();
    // Of each name the paths, the more specific ones later.
    let mut names: BTreeMap<OsString, Vec<(PathBuf, Candidate)>> = BTreeMap::new();
    for directory in directories {
        let mut failed = |error: std::io::Error| {
            unreadable.push(DescriptorFile {
                path: directory.clone(),
                found: Found::Unreadable(error.into()),
            });
        };
        let entries = match fs::read_dir(root.at(directory)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => continue,
            Err(e) => {
                failed(e);
                continue;
            }
        };
        for entry in entries {
            match entry {
                Ok(entry) => {
                    let name = entry.file_name();
                    let path = directory.join(&name);
                    let candidate = Candidate::of(&root.at(&path));
                    names.entry(name).or_default().push((path, candidate));
                }
                Err(e) => {
                    failed(e);
                    break;
                }
            }
        }
    }
    unreadable
        .into_iter()
        .chain(names.into_values().flat_map(|same| of_one_name(root, same)))
        .collect()
}

/// What can be said of a file before it is read.
enum Candidate {
    /// It counts unless a more specific one does.
    Counts,
    /// The same, and there is nothing to read.
    Known(Found),
    Ignored(Ignored),
}

impl Candidate {
    fn of(path: &Path) -> Self {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        if name.starts_with(b".") {
            return Candidate::Ignored(Ignored::Hidden);
        }
        if !name.ends_with(b".json") {
            return Candidate::Ignored(Ignored::Name);
        }
        match fs::metadata(path) {
            Ok(meta) if is_null(&meta) => Candidate::Known(Found::Empty),
            Ok(meta) if !meta.is_file() => Candidate::Ignored(Ignored::Kind),
            Ok(meta) if meta.len() == 0 => Candidate::Known(Found::Empty),
            Ok(meta) if meta.len() > MAX_BYTES => Candidate::Known(Found::TooLarge),
            Ok(_) => Candidate::Counts,
            Err(e) => Candidate::Known(Found::Unreadable(e.into())),
        }
    }
}

/// /dev/null, by whatever name (Linux, admin-guide/devices: character device 1:3).
fn is_null(meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == libc::makedev(1, 3)
}

fn of_one_name(root: &Root, same: Vec<(PathBuf, Candidate)>) -> Vec<DescriptorFile> {
    let mut out: Vec<DescriptorFile> = Vec::new();
    let mut winner: Option<PathBuf> = None;
    for (path, candidate) in same.into_iter().rev() {
        let found = match (candidate, &winner) {
            (Candidate::Ignored(reason), _) => Found::Ignored(reason),
            (_, Some(by)) => Found::Masked { by: by.clone() },
            (candidate, None) => {
                winner = Some(path.clone());
                match candidate {
                    Candidate::Known(found) => found,
                    _ => text(&root.at(&path)),
                }
            }
        };
        out.push(DescriptorFile { path, found });
    }
    out
}

fn text(path: &Path) -> Found {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(e) => Found::Unreadable(e.into()),
        Ok(0) => Found::Empty,
        Ok(n) if n as u64 > MAX_BYTES => Found::TooLarge,
        Ok(_) => String::from_utf8(bytes).map_or(Found::NotText, Found::Text),
    }
}
