//! Images that a run makes: after it has what could be refused to it, and gone again if no machine came of it.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vsc::compile::Making;
use vsc::diag::shown;
use vsc::locks::lockspace::LockspaceError;
use vsc::locks::{Guard, LockPlan, now};
use vsc_devices::virtio::blk::BlkSpec;

use super::{Common, disk};
use crate::run::chain;
use crate::say;

/// Images that were made for a run; what is not [`kept`](Made::keep) is removed.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<(PathBuf, (u64, u64))>);

/// Why there are none.
pub(super) enum Failure {
    /// What is to be said.
    Told(String),
    /// It was said; the exit code.
    Code(u8),
}

/// Hears of an image that was made.
pub(super) type Note<'a> = &'a dyn Fn(&Path) -> Result<(), String>;

/// Takes the locks that no open image has, and makes the images that are not there. `note` hears of each. Of a machine
/// that would be refused, none is made.
pub(super) fn make(
    images: Vec<Making>,
    locks: &LockPlan,
    disks: &[BlkSpec],
    note: Option<Note<'_>>,
    common: &Common,
) -> Result<(Guard, Made), Failure> {
    let told = |e: LockspaceError| Failure::Told(chain(&e));
    let mut made = Made::default();
    if images.is_empty() {
        return Ok((locks.take().map_err(told)?, made));
    }
    let new: Vec<PathBuf> = images.iter().map(|image| absolute(&image.path)).collect();
    let mut guard = locks.take_before(&new).map_err(told)?;
    let held = now::held(Path::new("/proc"), locks, disks);
    if let Some(held) = held.into_iter().find(|held| held.refused) {
        return Err(Failure::Told(held.why));
    }
    for image in images {
        let path = absolute(&image.path);
        disk::make_all(vec![image], common).map_err(Failure::Code)?;
        if let Ok(meta) = fs::symlink_metadata(&path) {
            made.0.push((path.clone(), (meta.dev(), meta.ino())));
        }
        if let Some(note) = note {
            note(&path).map_err(Failure::Told)?;
        }
    }
    locks.take_rest(&new, &mut guard).map_err(told)?;
    Ok((guard, made))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Made {
    /// A machine has had them.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (path, id) in self.0.drain(..) {
            let same = fs::symlink_metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == id);
            let name = shown(&path.display().to_string());
            match same.then(|| fs::remove_file(&path)) {
                Some(Ok(())) => say::note(&format!(
                    "removed {name} again, which was made for this run: no machine came of it"
                )),
                Some(Err(e)) => say::warning(&format!(
                    "{name}, which was made for this run, stays: it cannot be removed: {e}"
                )),
                None => {}
            }
        }
    }
}
