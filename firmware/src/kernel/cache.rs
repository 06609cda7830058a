//! Kernels as the host can map them: uncompressed, only what is loaded, in files that nobody but this program writes.
//!
//! A kernel is decompressed (or copied, without its symbols) once, to a file of mode 0400 in the user's cache
//! directory. From then on a guest's memory *is* that file, mapped privately: no byte is read, copied or allocated
//! before the guest touches its page. The user's own file is not mapped so, because a kernel that is rebuilt in place
//! while its guest runs would change, or end, the guest.
//!
//! An entry is found by device, inode, size and times of the original, so that it is never stale; the oldest entries
//! go when there are more than [`KEPT`]. What the file name says beside the key spares a search of the whole kernel.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Flavour, Kernel};

/// Entries that are kept.
const KEPT: usize = 4;
/// Kernels smaller than this are not worth a file, bytes.
const SMALLEST: u64 = 2 << 20;
/// Ending of an entry.
const ENDING: &str = ".elf";

/// A directory of mappable kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache(PathBuf);

impl Cache {
    /// The cache in `directory`, which is made when first needed.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Opens the kernel at `path` as a file that can be mapped; `None` where that cannot be (no such file, a small or
    /// unknown one, no room, a directory that others can write): [`Kernel::open`] then says what is wrong, or does it
    /// the other way.
    pub fn open(&self, path: &Path) -> Option<Kernel> {
        let key = key(path).ok()?;
        self.find(&key, path).or_else(|| self.add(&key, path))
    }

    fn find(&self, key: &str, path: &Path) -> Option<Kernel> {
        let entry = fs::read_dir(&self.0).ok()?.flatten().find(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with(key))
        })?;
        let name = entry.file_name().into_string().ok()?;
        // KEY_FLAVOUR_VERSION.elf
        let (flavour, version) = name.strip_prefix(key)?.strip_suffix(ENDING)?.strip_prefix('_')?.split_once('_')?;
        let flavour = match flavour {
            "stock" => Flavour::Stock,
            "cpl3" => Flavour::Cpl3,
            _ => return None,
        };
        if !self.is_ours(&entry.path()) {
            return None;
        }
        let kernel = Kernel::open(entry.path()).ok()?;
        let version = (!version.is_empty()).then(|| version.to_owned());
        Some(kernel.known_as(path, flavour, version))
    }

    /// Nobody else can have written it, nor can now.
    fn is_ours(&self, entry: &Path) -> bool {
        let Ok(me) = fs::metadata("/proc/self").map(|m| m.uid()) else {
            return false;
        };
        let private = |m: fs::Metadata, kind: bool| kind && m.uid() == me && m.mode() & 0o022 == 0;
        let entry = fs::symlink_metadata(entry).is_ok_and(|m| {
            let file = m.is_file();
            private(m, file)
        });
        entry
            && fs::metadata(&self.0).is_ok_and(|m| {
                let dir = m.is_dir();
                private(m, dir)
            })
    }

    fn add(&self, key: &str, path: &Path) -> Option<Kernel> {
        let kernel = Kernel::open(path).ok()?;
        let extent = kernel.extent()?;
        if extent.end - extent.start < SMALLEST {
            return None;
        }
        let flavour = match kernel.flavour().ok()? {
            Flavour::Stock => "stock",
            Flavour::Cpl3 => "cpl3",
            // What is not Linux is small, or being written right now.
            Flavour::NotLinux => return None,
        };
        let version = kernel.version().unwrap_or_default();
        let safe = |c: char| c.is_ascii_alphanumeric() || ".+~-_".contains(c);
        let version = if version.chars().all(safe) { version } else { "" };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).ok()?;
        let temporary = self.0.join(format!(".{key}.{}", std::process::id()));
        let target = self.0.join(format!("{key}_{flavour}_{version}{ENDING}"));
        let written = write(&kernel, &temporary).and_then(|()| fs::rename(&temporary, &target));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
            return None;
        }
        self.forget_old(&target);
        self.find(key, path)
    }

    fn forget_old(&self, newest: &Path) {
        let mut entries: Vec<_> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path() != newest && e.file_name().to_string_lossy().ends_with(ENDING))
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        entries.sort();
        let surplus = (entries.len() + 1).saturating_sub(KEPT);
        for (_, path) in entries.into_iter().take(surplus) {
            // A machine that runs from it keeps it until it ends.
            let _ = fs::remove_file(path);
        }
    }
}

/// What tells one file, in one state, from all others.
fn key(path: &Path) -> io::Result<String> {
    let m = fs::metadata(path)?;
    Ok(format!(
        "{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    ))
}

fn write(kernel: &Kernel, path: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o400).open(path)?;
    kernel
        .with_elf(|elf, _, bytes| {
            let end = usize::try_from(elf.file_end()).unwrap_or(usize::MAX);
            let mut header = bytes.get(..64).unwrap_or_default().to_vec();
            let rest = bytes.get(64..end).unwrap_or_default();
            // e_shoff, e_shnum and e_shstrndx: the section table is not copied (ELF-64, figure 2).
            if let Some(shoff) = header.get_mut(40..48) {
                shoff.fill(0);
            }
            if let Some(counts) = header.get_mut(60..64) {
                counts.fill(0);
            }
            file.write_all(&header)?;
            file.write_all(rest)
        })
        .unwrap_or_else(|| Err(io::ErrorKind::InvalidData.into()))
}
