//! Kernels as the host can map them: uncompressed, only what is loaded, in files that nobody but this program writes.
//!
//! A kernel is decompressed (or copied, without its symbols) once, to a file of mode 0400 in the user's cache
//! directory. From then on a guest's memory *is* that file, mapped privately: no byte is read, copied or allocated
//! before the guest touches its page. The user's own file is not mapped so, because a kernel that is rebuilt in place
//! while its guest runs would change, or end, the guest.
//!
//! An entry is found by device, inode, size and times of the original, so that it is never stale, and by the boot of
//! the host in which it was written. Within that boot the page cache holds what was written, whatever the disk has;
//! after a power cut the file may be torn, so an entry of an earlier boot is not used. That costs one slow start for
//! each kernel and boot, and saves an fsync(2), which next to a build of that kernel can take seconds.
//!
//! The oldest entries go when there are more than [`KEPT`], and with them what processes left that were killed while
//! they wrote one. A directory or an entry that anybody else owns or can write is not used. What the file name says
//! beside the key spares a search of the whole kernel.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Flavour, Kernel};

/// Entries that are kept.
const KEPT: usize = 4;
/// Kernels smaller than this are not worth a file, bytes.
const SMALLEST: u64 = 2 << 20;
/// A compressed file smaller than this does not hold such a kernel, bytes.
const SMALLEST_FILE: u64 = SMALLEST / 8;
/// Ending of an entry.
const ENDING: &str = ".elf";
/// Longest version that goes into a file name, bytes: with the key it must stay under the 255 of every file system.
const VERSION_MAX: usize = 96;
/// A random number that the host's kernel makes up at each boot (Documentation/admin-guide/sysctl/kernel.rst, random).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
        if fs::metadata(path).ok()?.len() < SMALLEST_FILE {
            return None;
        }
        let key = key_of(path).ok()?;
        self.find(&key, path).or_else(|| self.add(&key, path))
    }

    fn find(&self, key: &str, path: &Path) -> Option<Kernel> {
        let names = fs::read_dir(&self.0).ok()?.flatten();
        let name = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(|name| parts(name, key).is_some())?;
        self.read(&name, key, path)
    }

    /// Opens the entry `name`.
    fn read(&self, name: &str, key: &str, path: &Path) -> Option<Kernel> {
        let (flavour, version) = parts(name, key)?;
        let flavour = match flavour {
            "stock" => Flavour::Stock,
            "cpl3" => Flavour::Cpl3,
            _ => return None,
        };
        let entry = self.0.join(name);
        if !self.is_private()
            || !fs::symlink_metadata(&entry).is_ok_and(|m| m.is_file() && ours(&m))
        {
            return None;
        }
        let kernel = Kernel::open(entry).ok()?;
        let version = (!version.is_empty()).then(|| version.to_owned());
        Some(kernel.known_as(path, flavour, version))
    }

    /// Nobody else can have put something into it, nor can now.
    fn is_private(&self) -> bool {
        fs::metadata(&self.0).is_ok_and(|m| m.is_dir() && ours(&m))
    }

    fn add(&self, key: &str, path: &Path) -> Option<Kernel> {
        let kernel = Kernel::open(path).ok()?;
        let extent = kernel.extent()?;
        if extent.end - extent.start < SMALLEST {
            return None;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .ok()?;
        if !self.is_private() {
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
        let fits = version.len() <= VERSION_MAX && version.chars().all(safe);
        let name = format!(
            "{key}_{flavour}_{}{ENDING}",
            if fits { version } else { "" }
        );
        let (file, temporary) = self.temporary(key).ok()?;
        // The original may have been written to meanwhile; then nobody knows what this is.
        let same = || key_of(path).is_ok_and(|now| now == key);
        let written = write(&kernel, file).is_ok()
            && same()
            && fs::rename(&temporary, self.0.join(&name)).is_ok();
        if !written {
            let _ = fs::remove_file(&temporary);
            return None;
        }
        self.clean(&name);
        self.read(&name, key, path)
    }

    /// A new file `.KEY.PID.N`.
    fn temporary(&self, key: &str) -> io::Result<(File, PathBuf)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self.0.join(format!(".{key}.{}.{n}", std::process::id()));
            match File::options()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&path)
            {
                Ok(file) => return Ok((file, path)),
                // Left by an earlier process of the same number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Removes all but the newest entries, and what dead processes left. A process of another PID namespace counts as
    /// dead: it then finds its file gone, and loads its kernel the other way.
    fn clean(&self, newest: &str) {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if writer(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_file(entry.path());
            } else if name != newest
                && name.ends_with(ENDING)
                && let Ok(modified) = entry.metadata().and_then(|m| m.modified())
            {
                entries.push((modified, entry.path()));
            }
        }
        entries.sort();
        let surplus = (entries.len() + 1).saturating_sub(KEPT);
        for (_, path) in entries.into_iter().take(surplus) {
            // A machine that runs from it keeps it until it ends.
            let _ = fs::remove_file(path);
        }
    }
}

/// Owned by this user, and writable by nobody else.
fn ours(m: &fs::Metadata) -> bool {
    let me = fs::metadata("/proc/self").map(|m| m.uid());
    me.is_ok_and(|me| m.uid() == me) && m.mode() & 0o022 == 0
}

/// Flavour and version in an entry's name, `KEY_FLAVOUR_VERSION.elf`, if it has this key.
fn parts<'a>(name: &'a str, key: &str) -> Option<(&'a str, &'a str)> {
    name.strip_prefix(key)?
        .strip_suffix(ENDING)?
        .strip_prefix('_')?
        .split_once('_')
}

/// The process in a temporary's name, `.KEY.PID.N`.
fn writer(name: &str) -> Option<u32> {
    let (rest, n) = name.strip_prefix('.')?.rsplit_once('.')?;
    n.parse::<u32>().ok()?;
    rest.rsplit_once('.')?.1.parse().ok()
}

/// What tells one file, in one state and seen in this boot of the host, from all others.
fn key_of(path: &Path) -> io::Result<String> {
    let m = fs::metadata(path)?;
    let boot = fs::read_to_string(BOOT_ID)?;
    Ok(format!(
        "{}-{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        boot.trim().replace('-', ""),
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    ))
}

fn write(kernel: &Kernel, mut file: File) -> io::Result<()> {
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
