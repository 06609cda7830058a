//! Files of an image, made anew in a directory of the host: below it, and nowhere else.
//!
//! What the child tells may be anything. Names are single parts of a path, each file is made in the directory that is
//! open for it, nothing that is there is replaced, and no link is followed. A copy that fails leaves nothing.
//!
//! Nothing has its name before all of it is there. One file has none at all until then (O_TMPFILE); anything else is made
//! in a directory of its own beside, [`STAGE`]`…`, which is locked (flock(2)) while somebody works in it. What is left of
//! one that was killed the next copy into the same directory removes.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsRawFd;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, linkat,
    mkdirat, openat, renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::frames::Frame;
use super::parent::{Image, InsideError};
use super::{DEPTH, Entry, Kind};

/// Permissions that are given: no set-user-ID, set-group-ID or sticky bit.
const PERMISSIONS: u32 = 0o777;

/// How the names of directories begin in which copies are made.
pub const STAGE: &str = ".vsc-copy-";

/// What was made, and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Links.
    pub links: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Names below the directory, and why each is not there.
    pub left_out: Vec<(String, &'static str)>,
}

/// Makes files as they are told.
#[derive(Debug)]
pub struct Copier<'a> {
    image: &'a Image,
    limit: u64,
    /// How many files may still come.
    entries: u64,
    most: u64,
    /// The directory of the host, for messages.
    directory: PathBuf,
    /// The same, open.
    top: OwnedFd,
    /// The name of the directory in it where everything is made, once there is one.
    stage: Option<Vec<u8>>,
    /// What was made there, by name, with device and inode.
    made: Vec<(Vec<u8>, (u64, u64))>,
    /// How many of those have been put where they belong.
    put: usize,
    /// The one file that was asked for, and the name that it will have.
    whole: Option<(File, Vec<u8>)>,
    /// That name, while it is written.
    name: Option<Vec<u8>>,
    /// The directories that are open, from the one of the host on, with their names.
    open: Vec<(OwnedFd, Vec<u8>)>,
    /// The file that is being written, its name, and how much is missing.
    file: Option<(File, String, u64)>,
    /// The first entry was told.
    begun: bool,
    done: Copied,
}

impl<'a> Copier<'a> {
    /// For a directory that is there. `limit`: most bytes of all files; `most`: most files, directories and links.
    ///
    /// # Errors
    /// It is no directory.
    pub fn new(
        image: &'a Image,
        directory: &Path,
        limit: u64,
        most: u64,
    ) -> Result<Self, InsideError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |e: io::Error| InsideError::Write(directory.display().to_string(), e);
        let open = openat(CWD, directory, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => InsideError::NoDirectory(directory.to_owned()),
            e => failed(e.into()),
        })?;
        sweep(&open);
        Ok(Copier {
            image,
            limit,
            entries: most,
            most,
            directory: directory.to_owned(),
            open: vec![(open.try_clone().map_err(&failed)?, Vec::new())],
            top: open,
            stage: None,
            made: Vec::new(),
            put: 0,
            whole: None,
            name: None,
            file: None,
            begun: false,
            done: Copied::default(),
        })
    }

    /// The next frame.
    ///
    /// # Errors
    /// It cannot be written, or cannot be.
    pub fn take(&mut self, frame: Frame) -> Result<(), InsideError> {
        match frame {
            Frame::Entry(entry) => {
                self.close()?;
                // One thing was asked for, and what is below it.
                if self.begun && self.open.len() < 2 {
                    return Err(self.image.nonsense("a second file where one was asked for"));
                }
                // What the child says of its own limits is not believed either.
                let left = self.entries.checked_sub(1);
                self.entries =
                    left.ok_or_else(|| InsideError::TooMany(self.image.path.clone(), self.most))?;
                if entry.kind == Kind::Directory && self.open.len() > DEPTH + 1 {
                    return Err(InsideError::TooDeep(self.image.path.clone(), DEPTH));
                }
                self.entry(&entry)?;
                self.begun = true;
                Ok(())
            }
            Frame::Data(bytes) => self.data(&bytes),
            Frame::Up => {
                self.close()?;
                match self.open.len() {
                    0 | 1 => Err(self.image.nonsense("the end of no directory")),
                    _ => {
                        self.open.pop();
                        Ok(())
                    }
                }
            }
            Frame::Partition(_) | Frame::Failed(_) | Frame::Done => {
                Err(self.image.nonsense("what was not asked for"))
            }
        }
    }

    /// All was told.
    ///
    /// # Errors
    /// It cannot have been.
    pub fn finish(mut self) -> Result<Copied, InsideError> {
        self.close()?;
        if self.open.len() != 1 || !self.begun {
            return Err(self.image.nonsense("an end in the middle"));
        }
        if let Some((file, name)) = self.whole.take() {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(
                CWD,
                path,
                &self.top,
                name.as_slice(),
                AtFlags::SYMLINK_FOLLOW,
            )
            .map_err(|e| self.taken(&name, e))?;
        }
        if self.stage.is_some() {
            self.put_all()?;
        }
        self.made.clear();
        Ok(std::mem::take(&mut self.done))
    }

    fn taken(&self, name: &[u8], e: Errno) -> InsideError {
        match e {
            Errno::EXIST => InsideError::There(self.on_host(name)),
            e => InsideError::Write(self.on_host(name), e.into()),
        }
    }

    /// Gives everything the name that it has in the directory of the host.
    fn put_all(&mut self) -> Result<(), InsideError> {
        for (at, (name, _)) in self.made.iter().enumerate() {
            let name = name.as_slice();
            let Some((stage, _)) = self.open.first() else {
                break;
            };
            let put = match renameat_with(stage, name, &self.top, name, RenameFlags::NOREPLACE) {
                // A file system that cannot promise it (NFS, some of FUSE).
                Err(Errno::INVAL | Errno::NOSYS) if !is_there(&self.top, name) => {
                    renameat(stage, name, &self.top, name)
                }
                put => put,
            };
            put.map_err(|e| self.taken(name, e))?;
            self.put = at + 1;
        }
        Ok(())
    }

    /// Makes the directory where everything is made.
    fn set_stage(&mut self) -> Result<(), InsideError> {
        const TRIES: u32 = 100;
        if self.stage.is_some() {
            return Ok(());
        }
        let failed = |e: Errno| InsideError::Write(self.directory.display().to_string(), e.into());
        for _ in 0..TRIES {
            // Seeded from the system's random numbers.
            let random = RandomState::new().build_hasher().finish();
            let name = format!("{STAGE}{random:016x}").into_bytes();
            match mkdirat(&self.top, name.as_slice(), Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made.map_err(failed)?,
            }
            let open = locked(&self.top, &name);
            // Somebody's sweep may have been faster than the lock.
            let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
            if let Some(open) = open
                && let (Ok(now), Ok(ours)) = (
                    statat(&self.top, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW),
                    fstat(&open),
                )
                && id(now) == id(ours)
            {
                self.stage = Some(name);
                self.open = vec![(open, Vec::new())];
                return Ok(());
            }
        }
        Err(failed(Errno::EXIST))
    }

    /// A name below the directory, for messages.
    fn shown(&self, name: &[u8]) -> String {
        let above = self.open.iter().skip(1).map(|(_, name)| name.as_slice());
        let parts: Vec<_> = above
            .chain([name])
            .filter(|part| !part.is_empty())
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect();
        parts.join("/")
    }

    /// Remembers what was just made, where nothing above it was.
    fn remember(&mut self, name: &[u8]) -> Result<(), InsideError> {
        let here = match self.open.as_slice() {
            [(top, _)] => top,
            // All of a file system: its first directory is the one of the host.
            [_, (top, all)] if all.is_empty() => top,
            _ => return Ok(()),
        };
        let stat = statat(here, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| InsideError::Write(self.on_host(name), e.into()))?;
        self.made.push((name.to_vec(), (stat.st_dev, stat.st_ino)));
        Ok(())
    }

    /// A name of the host, for messages.
    fn on_host(&self, name: &[u8]) -> String {
        let below = self.shown(name);
        self.directory.join(below).display().to_string()
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), InsideError> {
        let on_host = self.on_host(&entry.name);
        let shown = self.shown(&entry.name);
        let at_top = match self.open.as_slice() {
            [_] => true,
            [_, (_, all)] => all.is_empty(),
            _ => false,
        };
        if at_top && is_name(&entry.name) && is_there(&self.top, &entry.name) {
            return Err(InsideError::There(on_host));
        }
        let mode = Mode::from_bits_truncate(entry.mode & PERMISSIONS);
        if self.open.len() == 1 && entry.kind == Kind::File && is_name(&entry.name) {
            self.fits(entry)?;
            let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
            // Where there is no such thing, the way of all others is taken.
            if let Ok(file) = openat(&self.top, ".", flags, mode) {
                self.name = Some(entry.name.clone());
                self.done.files += 1;
                self.done.bytes += entry.size;
                self.file = Some((File::from(file), on_host, entry.size));
                return Ok(());
            }
        }
        self.set_stage()?;
        let Some((above, _)) = self.open.last() else {
            return Err(self.image.nonsense("no directory"));
        };
        if entry.name.is_empty() && entry.kind == Kind::Directory && !self.begun {
            // All of a file system: what is in its first directory goes into the one of the host.
            let same = above.try_clone();
            let same = same.map_err(|e| InsideError::Write(on_host, e))?;
            self.open.push((same, Vec::new()));
            return Ok(());
        }
        if !is_name(&entry.name) {
            return Err(self
                .image
                .nonsense(&format!("{shown:?} is no name of a file")));
        }
        let name = entry.name.as_slice();
        let failed = |e: Errno| match e {
            Errno::EXIST => InsideError::There(on_host.clone()),
            e => InsideError::Write(on_host.clone(), e.into()),
        };
        match entry.kind {
            Kind::File => {
                self.fits(entry)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = openat(above.as_fd(), name, flags, mode).map_err(failed)?;
                self.remember(name)?;
                self.done.files += 1;
                self.done.bytes += entry.size;
                self.file = Some((File::from(file), on_host, entry.size));
            }
            Kind::Directory => {
                // What is in it must be made, whatever it allows its owner.
                mkdirat(above.as_fd(), name, mode | Mode::RWXU).map_err(failed)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = openat(above.as_fd(), name, flags, Mode::empty()).map_err(failed)?;
                self.remember(name)?;
                self.done.directories += 1;
                self.open.push((open, name.to_vec()));
            }
            Kind::Link => match entry.target.as_deref() {
                // The first directory is the one of the host, the second is what was asked for.
                Some(target) if stays(target, self.open.len().saturating_sub(2)) => {
                    symlinkat(target, above.as_fd(), name).map_err(failed)?;
                    self.remember(name)?;
                    self.done.links += 1;
                }
                _ => self
                    .done
                    .left_out
                    .push((shown, "a link that leads out of it")),
            },
            Kind::Other => self
                .done
                .left_out
                .push((shown, "a device, a pipe or a socket")),
        }
        Ok(())
    }

    /// Whether there is room for a file in what was agreed to.
    fn fits(&self, entry: &Entry) -> Result<(), InsideError> {
        match self.done.bytes.saturating_add(entry.size) > self.limit {
            true => Err(InsideError::TooMuch(self.image.path.clone(), self.limit)),
            false => Ok(()),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), InsideError> {
        let Some((file, name, left)) = &mut self.file else {
            return Err(self.image.nonsense("bytes of no file"));
        };
        let length = bytes.len() as u64;
        let Some(rest) = left.checked_sub(length) else {
            return Err(self.image.nonsense("a file is longer than it is"));
        };
        *left = rest;
        // Zeros take no room.
        let written = match bytes.iter().all(|b| *b == 0) {
            true => i64::try_from(length)
                .map_err(io::Error::other)
                .and_then(|by| file.seek(SeekFrom::Current(by)).map(drop)),
            false => file.write_all(bytes),
        };
        written.map_err(|e| InsideError::Write(name.clone(), e))
    }

    fn close(&mut self) -> Result<(), InsideError> {
        let Some((mut file, name, left)) = self.file.take() else {
            return Ok(());
        };
        if left != 0 {
            return Err(self.image.nonsense("a file is shorter than it is"));
        }
        let end = file.stream_position().and_then(|end| file.set_len(end));
        end.map_err(|e| InsideError::Write(name, e))?;
        self.whole = self.name.take().map(|name| (file, name));
        Ok(())
    }
}

impl Drop for Copier<'_> {
    fn drop(&mut self) {
        for (name, id) in self.made.iter().take(self.put).rev() {
            // Why the copy failed is what is said; somebody else may have put another thing there.
            let same = statat(&self.top, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == *id);
            if same {
                let _ = remove(&self.top, name);
            }
        }
        if let Some(stage) = &self.stage {
            let _ = remove(&self.top, stage);
        }
    }
}

fn is_there(directory: &OwnedFd, name: &[u8]) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// A directory, open and locked; `None`: it is none, or somebody has it.
fn locked(above: &OwnedFd, name: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = openat(above, name, flags, Mode::empty()).ok()?;
    flock(&open, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(open)
}

/// Removes what copies left that were killed, of this user. What cannot be removed is in nobody's way.
fn sweep(top: &OwnedFd) {
    let Ok(entries) = Dir::read_from(top) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_bytes().to_vec();
        if !name.starts_with(STAGE.as_bytes()) {
            continue;
        }
        let Some(open) = locked(top, &name) else {
            continue;
        };
        let us = rustix::process::geteuid().as_raw();
        if fstat(&open).is_ok_and(|stat| stat.st_uid == us) {
            let _ = remove(top, &name);
        }
    }
}

/// Removes a file, or a directory with all below it. No link is followed.
fn remove(above: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = openat(above, name, flags, Mode::empty())?;
    let mut below = Vec::new();
    for entry in Dir::read_from(&open)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            below.push((name.to_vec(), entry.file_type()));
        }
    }
    for (name, kind) in below {
        match kind {
            FileType::Directory | FileType::Unknown => remove(&open, &name)?,
            _ => unlinkat(&open, name.as_slice(), AtFlags::empty())?,
        }
    }
    unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// One part of a path, of those that a directory can have.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether a link leads to somewhere below what is copied, `depth` directories above its own: up first, and then down
/// only. A way up after a way down could go through another link, whose end is somewhere else.
fn stays(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    let mut up = 0;
    let mut down = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if down => return false,
            b".." => up += 1,
            _ => down = true,
        }
    }
    up <= depth
}

#[cfg(test)]
mod tests;
