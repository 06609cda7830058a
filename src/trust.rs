//! Whether a file that was found, and that nobody named, may be obeyed: such files name programs to run, addresses to
//! connect to and directories to write to, and the current directory can be anybody's.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Others may write (chmod(2), S_IWOTH).
const OTHERS_WRITE: u32 = 0o002;
/// The group may write (S_IWGRP).
const GROUP_WRITES: u32 = 0o020;
/// Only owners may remove what is in a directory (chmod(2), S_ISVTX).
const STICKY: u32 = 0o1000;

/// Why a file that was found is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It could be somebody else's, and why.
    Stranger(String),
    /// It cannot be read, and why.
    Unreadable(String),
}

/// Reads a file that was found, `most` bytes of it at most, if it is to be trusted: it belongs to root or this user,
/// nobody else may write it, nobody else can have put it, or a link to it, where it is. What is looked at is the open
/// file, so nobody can exchange it in between.
///
/// # Errors
/// [`Refusal`].
pub fn read(path: &Path, most: usize) -> Result<Vec<u8>, Refusal> {
    let unreadable = |e: io::Error| Refusal::Unreadable(crate::reason(&e));
    let place = std::fs::symlink_metadata(path).map_err(unreadable)?;
    let link = place.file_type().is_symlink();
    if link && !ours(place.uid()) {
        return Err(Refusal::Stranger(format!(
            "it is a link of another user ({})",
            place.uid()
        )));
    }
    directory_of(path).map_err(Refusal::Stranger)?;
    // A pipe without a writer must not hold us up.
    let follow = if link { 0 } else { libc::O_NOFOLLOW };
    let file = File::options()
        .read(true)
        .custom_flags(follow | libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    trusted(&file.metadata().map_err(unreadable)?, false).map_err(Refusal::Stranger)?;
    let mut bytes = Vec::new();
    file.take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

fn ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// The directory that a name stands in: others could exchange what is there unless only owners may.
fn directory_of(path: &Path) -> Result<(), String> {
    let above = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let Ok(above) = std::fs::metadata(above) else {
        return Ok(());
    };
    match trusted(&above, true) {
        Err(_) if above.mode() & STICKY != 0 && ours(above.uid()) => Ok(()),
        Err(_) => Err("its directory is in the hands of others".to_owned()),
        Ok(()) => Ok(()),
    }
}

fn trusted(what: &Metadata, directory: bool) -> Result<(), String> {
    // A user's own group is the user.
    let own_group = what.gid() == rustix::process::getegid().as_raw() || what.gid() == 0;
    if !directory && !what.is_file() {
        Err("it is not a regular file".to_owned())
    } else if !ours(what.uid()) {
        Err(format!("it belongs to another user ({})", what.uid()))
    } else if what.mode() & OTHERS_WRITE != 0 {
        Err("everybody may write it".to_owned())
    } else if what.mode() & GROUP_WRITES != 0 && !own_group {
        Err(format!(
            "everybody in the group {} may write it",
            what.gid()
        ))
    } else {
        Ok(())
    }
}

/// Why a directory that was found could be somebody else's; `None`: it is to be trusted, or is not there.
pub fn stranger(path: &Path) -> Option<String> {
    let place = std::fs::symlink_metadata(path).ok()?;
    if place.file_type().is_symlink() && !ours(place.uid()) {
        return Some(format!("it is a link of another user ({})", place.uid()));
    }
    let what = std::fs::metadata(path).ok()?;
    trusted(&what, true).and_then(|()| directory_of(path)).err()
}

/// The first program of this name in `search`, as $PATH lists directories. Only absolute ones count: a program of the
/// directory that one happens to be in is nobody's wish.
pub(crate) fn program(name: &str, search: Option<&OsStr>) -> Option<PathBuf> {
    let runs = |program: &PathBuf| {
        program
            .metadata()
            .is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0)
    };
    std::env::split_paths(search?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_others_can_write_is_not_trusted() {
        let dir = std::env::temp_dir().join(format!("vsc-trust-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("f");
        fs::write(&file, "x").unwrap();
        let set = |path: &Path, mode: u32| {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap()
        };
        for (directory, mode, trusted) in [
            (0o755, 0o644, true),
            (0o755, 0o666, false),
            (0o777, 0o644, false),
            (0o1777, 0o644, true),
            (0o775, 0o664, true),
        ] {
            set(&dir, directory);
            set(&file, mode);
            let told = read(&file, 10);
            assert_eq!(told.is_ok(), trusted, "{directory:o} {mode:o}: {told:?}");
        }
        assert_eq!(stranger(&dir.join("gone")), None);
        set(&dir, 0o755);
        // Our own link to our own file; a pipe; a directory.
        std::os::unix::fs::symlink("f", dir.join("link")).unwrap();
        assert_eq!(read(&dir.join("link"), 10), Ok(b"x".to_vec()));
        std::fs::create_dir(dir.join("d")).unwrap();
        assert!(matches!(
            read(&dir.join("d"), 10),
            Err(Refusal::Stranger(_))
        ));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(dir.join("link"), Some(1000), None).unwrap();
            assert!(matches!(
                read(&dir.join("link"), 10),
                Err(Refusal::Stranger(_))
            ));
            std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
            assert!(matches!(read(&file, 10), Err(Refusal::Stranger(_))));
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
