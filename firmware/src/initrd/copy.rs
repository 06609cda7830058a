//! Copies files of the host into an archive, to the same paths, with the symbolic links that lead there.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::ImageError;
use super::newc::{Archive, Entry};

/// How many symbolic links the kernel follows in one path (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read {
        path: path.to_path_buf(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // Opening a device or a FIFO may do something, or never return.
    if !metadata.is_file() {
        return Err(ImageError::Special {
            path: path.to_path_buf(),
        });
    }
    fs::read(path).map_err(failed)
}

/// Where a copied file is: on the host and in the archive, links followed.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    pub(crate) path: PathBuf,
    pub(crate) fresh: bool,
}

/// Copies what `path` (absolute) leads to, and each symbolic link on the way as a link. Where the archive already has
/// a directory in the place of a link, the directory stays and gets the file.
pub(crate) fn copy_path(archive: &mut Archive, path: &Path) -> Result<Copied, ImageError> {
    let mut left: VecDeque<OsString> = names(path);
    let (mut host, mut inside) = (PathBuf::from("/"), PathBuf::from("/"));
    let mut links = 0;
    let failed = |path: &Path, source| ImageError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut metadata = fs::symlink_metadata(&host).map_err(|source| failed(&host, source))?;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            host.pop();
            inside.pop();
            continue;
        }
        host.push(&name);
        inside.push(&name);
        metadata = fs::symlink_metadata(&host).map_err(|source| failed(path, source))?;
        if !metadata.is_symlink() {
            if metadata.is_dir() {
                archive.add(&inside, Entry::Directory(mode(&metadata)))?;
            }
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(ImageError::Links {
                path: path.to_path_buf(),
            });
        }
        if let Some(Entry::Directory(_)) = archive.get(&inside) {
            host = fs::canonicalize(&host).map_err(|source| failed(path, source))?;
            metadata = fs::symlink_metadata(&host).map_err(|source| failed(path, source))?;
            continue;
        }
        let target = fs::read_link(&host).map_err(|source| failed(path, source))?;
        archive.add(&inside, Entry::Link(target.clone()))?;
        if target.is_absolute() {
            (host, inside) = (PathBuf::from("/"), PathBuf::from("/"));
        } else {
            host.pop();
            inside.pop();
        }
        for name in names(&target).into_iter().rev() {
            left.push_front(name);
        }
    }
    let fresh = archive.get(&inside).is_none();
    if metadata.is_dir() {
        return Ok(Copied { path: host, fresh });
    }
    if !metadata.is_file() {
        return Err(ImageError::Special {
            path: path.to_path_buf(),
        });
    }
    if fresh {
        archive.file(&inside, mode(&metadata), read(&host)?)?;
    }
    Ok(Copied { path: host, fresh })
}

/// As [`copy_path`], and everything below a directory. Links below it are copied as links, wherever they lead;
/// sockets, FIFOs and devices below it are named in `report` and left out.
pub(crate) fn copy_tree(
    archive: &mut Archive,
    path: &Path,
    report: &mut Vec<String>,
) -> Result<(), ImageError> {
    let copied = copy_path(archive, path)?;
    report.push(format!("Copy {}", path.display()));
    if copied.path.is_dir() {
        let inside = inside_path(archive, path);
        copy_below(archive, &copied.path, &inside, report)?;
    }
    Ok(())
}

fn copy_below(
    archive: &mut Archive,
    directory: &Path,
    inside: &Path,
    report: &mut Vec<String>,
) -> Result<(), ImageError> {
    let failed = |source| ImageError::Read {
        path: directory.to_path_buf(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (from, to) = (entry.path(), inside.join(entry.file_name()));
        let failed = |source| ImageError::Read {
            path: from.clone(),
            source,
        };
        let metadata = fs::symlink_metadata(&from).map_err(failed)?;
        if metadata.is_symlink() {
            archive.link(&to, fs::read_link(&from).map_err(failed)?)?;
        } else if metadata.is_dir() {
            archive.directory(&to, mode(&metadata))?;
            copy_below(archive, &from, &to, report)?;
        } else if special(metadata.file_type()) {
            report.push(format!("Skip {}: not a file", from.display()));
        } else if archive.get(&to).is_none() {
            archive.file(&to, mode(&metadata), fs::read(&from).map_err(failed)?)?;
        }
    }
    Ok(())
}

/// Where a path of the archive leads, its own links followed.
pub(crate) fn inside_path(archive: &Archive, path: &Path) -> PathBuf {
    let mut left = names(path);
    let mut inside = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            inside.pop();
            continue;
        }
        inside.push(&name);
        if let Some(Entry::Link(target)) = archive.get(&inside)
            && links < MAX_LINKS
        {
            links += 1;
            if target.is_absolute() {
                inside = PathBuf::from("/");
            } else {
                inside.pop();
            }
            for name in names(target).into_iter().rev() {
                left.push_front(name);
            }
        }
    }
    inside
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

fn special(kind: FileType) -> bool {
    kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()
}
