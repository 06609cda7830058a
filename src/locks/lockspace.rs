//! Lockspaces: directories, often on a file system that hosts share, with a file for each image in use. The format is
//! that of libvirt's virtlockd: an empty file of mode 0600, byte 0 locked for writing, or for reading where an image is
//! shared; removed when it is released. What a killed machine leaves is an unlocked file, which means nothing.
//!
//! The file [`CONFIG`] says how the hosts that share a directory lock: all must do it alike, or none is safe from the
//! others.

#![forbid(unsafe_code)]

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;
use vsc_devices::block::lock::{LockError, release_first_byte, take_first_byte};

use super::Config;
use super::holders::{self, Holder};
use super::keys;

/// The name of the file that says how a directory's hosts lock.
pub const CONFIG: &str = "vsc-locking.conf";
/// The start of names of such a file before it has its name.
const DRAFT: &str = ".vsc-locking.";
/// Most of it that is read, bytes.
const MOST: u64 = 4096;
/// How often a file may vanish between opening and locking; each time somebody else has released it.
const ATTEMPTS: u32 = 100;

/// Why a lockspace cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum LockspaceError {
    #[error("E-LOCKSPACE: cannot use the lockspace {}; `mkdir -p` makes a directory", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("E-LOCKSPACE: cannot open {}; a lockspace has files of one user (virtlockd's are root's)", .0.display())]
    Open(PathBuf, #[source] io::Error),
    #[error("E-LOCKSPACE: {} is {what}, not a lock file; nobody of ours made it", .path.display())]
    Strange { path: PathBuf, what: &'static str },
    #[error("E-LOCKSPACE: {} comes and goes faster than it can be locked", .0.display())]
    Restless(PathBuf),
    #[error("{sentence}")]
    Held { sentence: String },
    #[error(
        "E-LOCKSPACE: the file system of {} has no locks: on NFS its lock service must run, on others choose another \
         directory", .0.display()
    )]
    NoLocks(PathBuf, #[source] io::Error),
    #[error("E-LOCKSPACE: cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    #[error(
        "E-LOCKSPACE: the hosts that share {} lock in another way\n  there: {theirs}\n  here:  {ours}\n  All of them \
         must have the same configuration; when no machine uses the directory, delete {} in it",
        .directory.display(), CONFIG
    )]
    Config {
        directory: PathBuf,
        theirs: String,
        ours: String,
    },
    #[error("E-LOCKSPACE: cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("E-LOCKSPACE: cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

use LockspaceError as Error;

/// A lock that is held; given up when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// Directory, name and path of a file that goes with the lock.
    made: Option<(OwnedFd, String, PathBuf)>,
    write: bool,
}

impl Held {
    /// Gives the lock up; the file of a lockspace goes, if nobody shares it. Only whoever has it for writing may
    /// remove it, or two could each hold a lock on a file of this name. Where this process may not, `otherwise` is to
    /// do it ([`remove`]), while the lock is still held.
    pub(super) fn release(&mut self, otherwise: &mut dyn FnMut(&Path, Identity)) {
        let Some((directory, name, path)) = self.made.take() else {
            return;
        };
        if !self.alone() || !is_the_file(&directory, &name, &self.file) {
            return;
        }
        // What is left is an unlocked file, which means nothing: `locks gc` removes it.
        if rustix::fs::unlinkat(&directory, &name, AtFlags::empty()).is_err()
            && let Ok(stat) = rustix::fs::fstat(&self.file)
        {
            otherwise(&path, (stat.st_dev, stat.st_ino));
        }
    }

    /// Whether nobody shares it.
    fn alone(&self) -> bool {
        let alone = || take_first_byte(&self.file, true).is_ok();
        if self.write || alone() {
            return true;
        }
        // Of two that end at once, each would leave the file to the other: whoever tries last now has it alone.
        release_first_byte(&self.file);
        alone()
    }
}

/// Device and inode of a file.
pub type Identity = (u64, u64);

/// Removes the file of a lock that is held for writing by whoever asks for it.
///
/// # Errors
/// The system's; the name leads to another file.
pub fn remove(path: &Path, id: Identity) -> io::Result<()> {
    let (Some(space), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(space, flags, Mode::empty())?;
    let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if (stat.st_dev, stat.st_ino) != id {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(rustix::fs::unlinkat(&dir, name, AtFlags::empty())?)
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release(&mut |_, _| {});
    }
}

/// Whether a name still leads to this file.
fn is_the_file(directory: &OwnedFd, name: &str, file: &File) -> bool {
    let named = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    matches!((named, rustix::fs::fstat(file)), (Ok(a), Ok(b)) if same(&a, &b))
}

fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Opens a lockspace.
fn directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::Directory(path.to_owned(), e.into()))
}

fn kind_of(file: &impl std::os::fd::AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// What a file is instead of a regular one.
fn strange(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Fifo => Some("a pipe"),
        FileType::Directory => Some("a directory"),
        FileType::Socket => Some("a socket"),
        FileType::Symlink => Some("a symbolic link"),
        _ => Some("a device"),
    }
}

/// Takes the lock `name` of a lockspace. `image` is what it protects, for messages.
///
/// # Errors
/// [`LockspaceError`]; nothing is held then. An empty file may stay, which means nothing.
pub fn take(space: &Path, name: &str, write: bool, image: &Path) -> Result<Held, Error> {
    let dir = directory(space)?;
    let path = space.join(name);
    for _ in 0..ATTEMPTS {
        // Non-blocking, lest a pipe holds us up; not through links, which lead anywhere in a shared directory.
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR);
        let file: File = match opened {
            Ok(fd) => fd.into(),
            Err(Errno::LOOP) => {
                return Err(Error::Strange {
                    path,
                    what: "a symbolic link",
                });
            }
            Err(Errno::ISDIR) => {
                return Err(Error::Strange {
                    path,
                    what: "a directory",
                });
            }
            Err(e) => return Err(Error::Open(path, e.into())),
        };
        let kind = kind_of(&file).map_err(|e| Error::Open(path.clone(), e))?;
        if let Some(what) = strange(kind) {
            return Err(Error::Strange { path, what });
        }
        match take_first_byte(&file, write) {
            Ok(()) => {}
            Err(LockError::Held(_)) => {
                return Err(Error::Held {
                    sentence: sentence(image, &path),
                });
            }
            Err(LockError::Unsupported(e)) => return Err(Error::NoLocks(space.to_owned(), e)),
            Err(LockError::Failed(e)) => return Err(Error::Lock(path, e)),
        }
        // Whoever had it may have removed it meanwhile, and the next one has made another.
        if is_the_file(&dir, name, &file) {
            return Ok(Held {
                file,
                made: Some((dir, name.to_owned(), path)),
                write,
            });
        }
    }
    Err(Error::Restless(path))
}

/// Takes byte 0 of the image itself, as virtlockd does without a lockspace.
///
/// # Errors
/// [`LockspaceError`].
pub fn take_image(image: &Path, write: bool) -> Result<Held, Error> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(image, flags, Mode::empty())
        .map_err(|e| Error::Open(image.to_owned(), e.into()))?
        .into();
    let kind = kind_of(&file).map_err(|e| Error::Open(image.to_owned(), e))?;
    if kind != FileType::BlockDevice
        && let Some(what) = strange(kind)
    {
        return Err(Error::Strange {
            path: image.to_owned(),
            what,
        });
    }
    match take_first_byte(&file, write) {
        Ok(()) => Ok(Held {
            file,
            made: None,
            write,
        }),
        Err(LockError::Held(_)) => Err(Error::Held {
            sentence: sentence(image, image),
        }),
        Err(LockError::Unsupported(e)) => Err(Error::NoLocks(image.to_owned(), e)),
        Err(LockError::Failed(e)) => Err(Error::Lock(image.to_owned(), e)),
    }
}

/// Who has `image`, by its lock file.
fn sentence(image: &Path, lock: &Path) -> String {
    let seen = holders::file_holders(Path::new("/proc"), lock).unwrap_or_default();
    let byte = |h: &&Holder| h.locks.iter().any(|l| l.touches(0, 0));
    let by = match seen.seen.iter().find(byte) {
        Some(holder) => holder.sentence(),
        None => "a process that /proc does not show here: of another user, in another container or on another host"
            .to_owned(),
    };
    let through = match image == lock {
        true => String::new(),
        false => format!(", through {}", lock.display()),
    };
    format!(
        "E-LOCKED: {} is held by {by}{through}: end that machine or use a copy",
        image.display()
    )
}

/// Makes sure that whoever shares a lockspace locks as `config` says; the first one writes it down.
///
/// # Errors
/// [`LockspaceError`], also where the others do it in another way.
pub fn agree(space: &Path, config: &Config) -> Result<(), Error> {
    let dir = directory(space)?;
    let path = space.join(CONFIG);
    let ours = config.line();
    for _ in 0..ATTEMPTS {
        match read_config(&dir, &path)? {
            Some(theirs) if theirs == ours => return Ok(()),
            Some(theirs) => {
                return Err(Error::Config {
                    directory: space.to_owned(),
                    theirs,
                    ours,
                });
            }
            None => write_config(&dir, space, &ours)?,
        }
    }
    Err(Error::Restless(path))
}

/// The line of the file that counts.
fn read_config(dir: &OwnedFd, path: &Path) -> Result<Option<String>, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(dir, CONFIG, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(Error::Strange {
                path: path.to_owned(),
                what: "a symbolic link",
            });
        }
        Err(e) => return Err(Error::Read(path.to_owned(), e.into())),
    };
    let read = |e| Error::Read(path.to_owned(), e);
    if let Some(what) = strange(kind_of(&file).map_err(read)?) {
        return Err(Error::Strange {
            path: path.to_owned(),
            what,
        });
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).map_err(read)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(Some(lines.next().unwrap_or_default().trim().to_owned()))
}

/// Writes the file whole, or not at all; somebody else's that was first stays.
fn write_config(dir: &OwnedFd, space: &Path, line: &str) -> Result<(), Error> {
    // Processes of several hosts may have the same number.
    let random = RandomState::new().build_hasher().finish();
    let draft = format!("{DRAFT}{random:016x}");
    let path = space.join(&draft);
    let failed = |e: io::Error| Error::Write(path.clone(), e);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let mut file: File = rustix::fs::openat(dir, &draft, flags, mode)
        .map_err(|e| failed(e.into()))?
        .into();
    let text = format!(
        "# How the hosts that share this directory lock images; all of them must do it alike (vsc-run).\n{line}\n"
    );
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    let named = written.map_err(failed).and_then(|()| {
        match rustix::fs::linkat(dir, &draft, dir, CONFIG, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(failed(e.into())),
        }
    });
    let _ = rustix::fs::unlinkat(dir, &draft, AtFlags::empty());
    named
}

/// Which lockspace of the three a directory is, by which its files have their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// `file_lockspace_dir`
    File,
    /// `lvm_lockspace_dir`
    Lvm,
    /// `scsi_lockspace_dir`
    Scsi,
}

impl Space {
    fn has(self, name: &str) -> bool {
        match self {
            Space::File => keys::is_file_key(name),
            Space::Lvm => keys::is_lvm_key(name),
            Space::Scsi => keys::is_scsi_key(name),
        }
    }
}

/// What became of a file of a lockspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Swept {
    /// It was nobody's, and is gone.
    Removed,
    /// It is nobody's, and would be gone.
    Stale,
    /// A machine has it.
    Held {
        /// Who, where that is seen.
        by: Option<String>,
    },
    /// It could not be looked at.
    Kept {
        /// Why.
        why: String,
    },
}

/// Removes the files of a lockspace that nobody has; with `dry`, only tells which. Files whose names are none of a
/// lockspace's are not looked at.
///
/// # Errors
/// [`LockspaceError::Directory`].
pub fn sweep(space: &Path, kind: Space, dry: bool) -> Result<Vec<(PathBuf, Swept)>, Error> {
    let dir = directory(space)?;
    let entries = std::fs::read_dir(space).map_err(|e| Error::Directory(space.to_owned(), e))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| kind.has(name))
        .collect();
    names.sort();
    Ok(names
        .into_iter()
        .map(|name| {
            let path = space.join(&name);
            let swept = sweep_one(&dir, &name, &path, dry)
                .unwrap_or_else(|e| Swept::Kept { why: e.to_string() });
            (path, swept)
        })
        .collect())
}

fn sweep_one(dir: &OwnedFd, name: &str, path: &Path, dry: bool) -> io::Result<Swept> {
    let flags =
        OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = rustix::fs::openat(dir, name, flags, Mode::empty())?.into();
    let kept = |why: &str| {
        Ok(Swept::Kept {
            why: why.to_owned(),
        })
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() != 0 {
        return kept("it is not an empty file");
    }
    match take_first_byte(&file, true) {
        Ok(()) => {}
        Err(LockError::Held(_)) => {
            let seen = holders::file_holders(Path::new("/proc"), path).unwrap_or_default();
            let by = seen.seen.first().map(Holder::sentence);
            return Ok(Swept::Held { by });
        }
        Err(LockError::Unsupported(e) | LockError::Failed(e)) => return Err(e),
    }
    if !is_the_file(dir, name, &file) {
        return kept("it has gone meanwhile");
    }
    if dry {
        return Ok(Swept::Stale);
    }
    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    Ok(Swept::Removed)
}

#[cfg(test)]
mod tests;
