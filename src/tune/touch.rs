//! The steps that change files, one system call each: everything that this crate does to the host goes through here.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::attributes;

/// Most that is read of a file with a value, bytes: sysfs gives a page, lists of processes can be longer.
const MOST: u64 = 64 << 10;

/// A moment at which a process may be killed.
#[cfg(not(test))]
pub(super) fn step() {}

#[cfg(test)]
pub(super) use crash::step;

/// Reads a small file of text, and all of it. No link is followed, nothing is waited for.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    // What is read is what is put back: half of it would be a loss.
    match text.len() as u64 > MOST {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(text),
    }
}

fn open_value(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

/// Whether a value can be written there by this process. Nothing is.
pub(super) fn may_put(path: &Path) -> io::Result<()> {
    open_value(path).map(drop)
}

/// Whether a file is the kernel's own idea of one, in which what is written is not what is kept.
pub(super) fn is_kernels(path: &Path) -> io::Result<bool> {
    // linux/magic.h
    const SYSFS: i64 = 0x6265_6572;
    const PROC: i64 = 0x9fa0;
    const CGROUP: i64 = 0x0027_e0eb;
    const CGROUP2: i64 = 0x6367_7270;
    const DEBUGFS: i64 = 0x6462_6720;
    const SECURITYFS: i64 = 0x7363_6673;
    let kind = rustix::fs::statfs(path)?.f_type;
    Ok([SYSFS, PROC, CGROUP, CGROUP2, DEBUGFS, SECURITYFS].contains(&kind))
}

/// Writes a value exactly, in one call. In an ordinary file it is never there by halves: what is cut off afterwards
/// are empty lines.
pub(super) fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = open_value(path)?;
    #[cfg(test)]
    let text = kernel::takes(path, text)?;
    if is_kernels(path)? {
        step();
        return match file.write(text.as_bytes())? {
            n if n == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        };
    }
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(length.min(MOST as usize).max(text.len()), b'\n');
    step();
    file.write_all_at(&bytes, 0)?;
    if length > text.len() {
        step();
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

/// Writes a number into a file that has one, and leaves the end of its line as it is.
pub(super) fn put_number(path: &Path, number: u64) -> io::Result<()> {
    let line = match is_kernels(path)? {
        true => "",
        false if read(path)?.ends_with('\n') => "\n",
        false => "",
    };
    put(path, &format!("{number}{line}"))
}

/// What is at `path`, which no link is followed to.
pub(super) fn metadata(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Device and inode.
pub(super) fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    Ok(metadata(path)?.map(|metadata| (metadata.dev(), metadata.ino())))
}

/// Whether somebody listens on a socket, or may: only what refuses is sure to be left by somebody who is gone.
pub(super) fn is_listened_to(path: &Path) -> bool {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let (kind, flags) = (
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    );
    let refused = socket_with(AddressFamily::UNIX, kind, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    refused != Err(rustix::io::Errno::CONNREFUSED)
}

/// Whether an error says that nothing is there.
pub(super) fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The name under which a file is written that takes the place of another.
fn new_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".vsc-new=");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Removes what a killed [`replace`] left.
pub(super) fn tidy(path: &Path) -> io::Result<()> {
    let temporary = new_name(path);
    match fs::symlink_metadata(&temporary) {
        Ok(metadata) if metadata.uid() == rustix::process::geteuid().as_raw() => {
            step();
            fs::remove_file(&temporary)
        }
        _ => Ok(()),
    }
}

/// Puts a file in the place of another or of none, in one step that lasts. What the other one has beside its text,
/// such as its SELinux label and its access list, the new one gets too.
pub(super) fn replace(
    path: &Path,
    text: &str,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    tidy(path)?;
    let attributes = attributes::of(path)?;
    let temporary = new_name(path);
    step();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = (|| {
        step();
        file.write_all(text.as_bytes())?;
        if let Some((uid, gid)) = owner {
            step();
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        step();
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        attributes::put(&file, &attributes)?;
        file.sync_all()?;
        step();
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory_of(path)
}

/// Makes what was done to a name last.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes a file, and makes that last.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    step();
    fs::remove_file(path)?;
    sync_directory_of(path)
}

/// Makes a directory.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    step();
    fs::DirBuilder::new().mode(0o755).create(path)
}

/// Removes a directory that is empty, or a cgroup without processes.
pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    step();
    fs::remove_dir(path)
}

/// Adds to a file, and makes that last.
pub(super) fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    step();
    #[cfg(test)]
    if crash::FULL.get() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    #[cfg(test)]
    let bytes = {
        // A line of which only the beginning got to the disk.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        step();
        second
    };
    file.write_all(bytes)?;
    file.sync_all()
}

/// A test's hand on [`step`].
#[cfg(test)]
pub(super) mod crash {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        /// Nothing can be added to a journal.
        pub(in crate::tune) static FULL: Cell<bool> = const { Cell::new(false) };
    }

    /// What a killed process unwinds with.
    pub(crate) struct Killed;

    pub(in crate::tune) fn step() {
        if let Some(left) = LEFT.get() {
            if left == 0 {
                std::panic::resume_unwind(Box::new(Killed));
            }
            LEFT.set(Some(left - 1));
        }
    }

    /// Does `what` and kills it before its step `at`; `None`: it was killed.
    pub(crate) fn at<T>(at: u32, what: impl FnOnce() -> T) -> Option<T> {
        LEFT.set(Some(at));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        LEFT.set(None);
        match result {
            Ok(value) => Some(value),
            Err(why) if why.is::<Killed>() => None,
            Err(why) => std::panic::resume_unwind(why),
        }
    }
}

/// A test's kernel, for values whose files have others beside them that say how it is.
#[cfg(test)]
mod kernel {
    use std::cmp::Ordering;
    use std::fs;
    use std::io;
    use std::path::Path;

    /// What is made of a value that is written.
    pub(super) fn takes<'a>(path: &Path, text: &'a str) -> io::Result<&'a str> {
        let beside = |name: &str| fs::read_to_string(path.with_file_name(name));
        // mm/hugetlb.c, set_max_huge_pages: as many as there is memory for.
        if let Ok(most) = beside("most") {
            let number = |text: &str| text.trim().parse::<u64>().unwrap();
            if number(text) > number(&most) {
                return Ok(most.leak());
            }
        }
        // A node's pages are the host's too, and pages come from and go to nodes in turn.
        let number = |path: &Path| -> io::Result<u64> {
            let text = fs::read_to_string(path)?;
            text.trim().parse().map_err(io::Error::other)
        };
        if let Ok(whole) = beside("whole") {
            let others = number(Path::new(whole.trim()))? - number(path)?;
            let sum = others + text.trim().parse::<u64>().unwrap();
            fs::write(whole.trim(), sum.to_string())?;
        }
        if let Ok(nodes) = beside("nodes") {
            let wanted = text.trim().parse::<u64>().unwrap();
            let mut now = number(path)?;
            for node in nodes.lines().cycle() {
                let pages = number(Path::new(node))?;
                let next = match now.cmp(&wanted) {
                    Ordering::Less => pages + 1,
                    Ordering::Greater => pages.saturating_sub(1),
                    Ordering::Equal => break,
                };
                now = now + next - pages;
                fs::write(node, next.to_string())?;
            }
        }
        // mm/ksm.c, merge_across_nodes_store.
        let merged = beside("pages_shared").is_ok_and(|pages| pages.trim() != "0");
        if path.ends_with("merge_across_nodes") && merged && beside("run")?.trim() != "2" {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(text)
    }
}
