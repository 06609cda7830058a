//! Files that are whole or not there, that nobody else reads, and that no link leads astray.

#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::sys;

/// Longest file of an entry that is read, bytes: domain XML with all of SEV's certificates has a few KiB.
const LONGEST: u64 = 1 << 20;

/// Makes a directory that only its owner may use, whatever the umask is.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Opens a directory, not one that a link leads to.
pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
}

/// Whether this user may trust what is in a directory: it is their own or root's, and nobody else's to change.
pub(super) fn trusted(directory: &File) -> io::Result<Result<(), String>> {
    let metadata = directory.metadata()?;
    let (owner, mode) = (metadata.uid(), metadata.mode());
    Ok(if owner != sys::user() && owner != 0 {
        Err(format!("it belongs to user {owner}"))
    } else if mode & 0o002 != 0 {
        Err("everybody may write to it (chmod o-w makes it safe)".into())
    } else {
        Ok(())
    })
}

/// Puts a file with mode 0600 into a directory, in one step; an old one is there until the new one is complete. The
/// directory is synced by whoever has written all.
pub(crate) fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = directory.join(format!(".vsc-new={name}"));
    match fs::remove_file(&temporary) {
        // Of a writer that was killed: only one writes here at a time.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, directory.join(name)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes what was done in a directory last.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Why a file of an entry has no text.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// It is a link, and where that leads is not for the store to follow.
    #[error("it is a symbolic link")]
    Link,
    /// A directory, a pipe, a device.
    #[error("it is no regular file")]
    NoFile,
    /// Longer than such a file can be.
    #[error("it is longer than 1 MiB")]
    Long,
    /// Bytes that are no text.
    #[error("it is not UTF-8 text")]
    NoText,
    /// Everything else, in the system's words.
    #[error("{0}")]
    System(io::Error),
}

/// Reads a small file of text, if it is one: nothing is waited for, and no link is followed.
pub(super) fn read(path: &Path) -> Result<String, Unreadable> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| match (e.kind(), e.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => Unreadable::Missing,
            (_, Some(libc::ELOOP)) => Unreadable::Link,
            // What open(2) says of a socket.
            (_, Some(libc::ENXIO)) => Unreadable::NoFile,
            _ => Unreadable::System(e),
        })?;
    if !file.metadata().map_err(Unreadable::System)?.is_file() {
        return Err(Unreadable::NoFile);
    }
    let mut bytes = Vec::new();
    (&mut file)
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(Unreadable::System)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Unreadable::Long);
    }
    String::from_utf8(bytes).map_err(|_| Unreadable::NoText)
}

/// A new, empty file with mode 0600 for a log, in place of an older one; a link of that name is replaced, not
/// followed.
pub(super) fn new_log(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}
