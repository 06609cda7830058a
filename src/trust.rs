//! Whether a file that was found, and that nobody named, may be obeyed: such files name programs to run, addresses to
//! connect to and directories to write to, and the current directory can be anybody's.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Others may write (chmod(2), S_IWOTH).
const OTHERS_WRITE: u32 = 0o002;
/// Only owners may remove what is in a directory (chmod(2), S_ISVTX).
const STICKY: u32 = 0o1000;

/// Why a file, or a directory, could be somebody else's: it belongs to neither root nor this user, or others may
/// write it or replace it. `None`: it is to be trusted, or is not there.
pub fn stranger(path: &Path) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    let ours = |uid: u32| uid == 0 || uid == user;
    let file = std::fs::metadata(path).ok()?;
    let above = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let above = std::fs::metadata(above).ok()?;
    if !file.is_file() && !file.is_dir() {
        Some("it is not a regular file".to_owned())
    } else if !ours(file.uid()) {
        Some(format!("it belongs to another user ({})", file.uid()))
    } else if file.mode() & OTHERS_WRITE != 0 {
        Some("everybody may write it".to_owned())
    } else if !ours(above.uid()) || above.mode() & (OTHERS_WRITE | STICKY) == OTHERS_WRITE {
        Some("its directory is in the hands of others".to_owned())
    } else {
        None
    }
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
            assert_eq!(
                stranger(&file).is_none(),
                trusted,
                "{directory:o} {mode:o}: {:?}",
                stranger(&file)
            );
        }
        assert_eq!(stranger(&dir.join("gone")), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
