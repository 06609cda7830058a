//! Where a journal lies: a directory that is this user's alone, and whose lock is held by whoever looks into it.
//!
//! The lock is the kernel's (flock(2)) on the open directory itself: no file stands for it, and nothing is left of it
//! when its holder is killed.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, linkat, mkdirat, openat, statat, unlinkat};
use vsc_devices::block::lock::{byte_is_held, hold_byte};

use super::error::TuneError;
use super::touch::step;
use super::wait::{self, Unlocked};
use crate::facts::Root;

/// Our directory below the place that the system gives.
const OURS: &str = "vsc";
/// The journal's directory in it.
const HOST: &str = "host";
/// The journal.
pub(super) const JOURNAL: &str = "journal";
/// A journal that takes the other one's place.
pub(super) const NEW: &str = "journal.new";
/// How many damaged journals are kept at most.
const MOST_DAMAGED: u32 = 100;
/// How often somebody else may remove the directory while it is opened.
const TRIES: u32 = 1000;

/// A directory for a journal, there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the system lets programs keep such things: /run, /var/lib.
    pub(super) above: PathBuf,
    /// Our directory there is that of runs too ([`crate::runs`]), and stays.
    pub(super) shared: bool,
    /// How long somebody else may have it locked; `None`: for good.
    pub(super) patience: Option<Duration>,
    /// The tree that it is in.
    pub(super) root: Root,
}

/// The directory, open and locked.
#[derive(Debug)]
pub(super) struct Locked {
    above: OwnedFd,
    ours: OwnedFd,
    /// Its lock ends with it.
    pub(super) directory: File,
    path: PathBuf,
    shared: bool,
}

impl Place {
    pub(super) fn new(above: PathBuf, shared: bool) -> Self {
        let patience = Some(wait::PATIENCE);
        Self {
            above,
            shared,
            patience,
            root: Root::default(),
        }
    }

    /// The same in a tree that stands for a host.
    pub(super) fn within(self, root: &Root) -> Self {
        let root = root.clone();
        Self { root, ..self }
    }

    /// Whether there is a journal, or may be one: one system call.
    pub(super) fn is_used(&self) -> bool {
        match fs::symlink_metadata(self.above.join(OURS).join(HOST)) {
            // Somebody else's is none: a user whose environment is another's, or root of a user namespace, has nothing
            // there, and is refused only where a journal is to be written.
            Ok(metadata) => metadata.uid() == rustix::process::geteuid().as_raw(),
            // What is in a directory that this user may not look into is not this user's.
            Err(e) => !super::touch::absent(&e) && e.kind() != io::ErrorKind::PermissionDenied,
        }
    }

    /// Removes what somebody left who was killed while making or removing the directory, if nobody uses it.
    pub(super) fn tidy(&self) {
        if self.shared {
            return;
        }
        let ours = self.above.join(OURS);
        let its = fs::symlink_metadata(&ours);
        if its.is_ok_and(|m| m.is_dir() && m.uid() == rustix::process::geteuid().as_raw()) {
            step();
            // Mostly it is not empty.
            let _ = fs::remove_dir(ours);
        }
    }

    /// Opens the directory, makes it where that is wanted, and waits for its lock. `None`: there is none.
    pub(super) fn lock(&self, make: bool) -> Result<Option<Locked>, TuneError> {
        let path = self.above.join(OURS).join(HOST);
        let failed = |action| {
            let path = path.clone();
            move |e: rustix::io::Errno| TuneError::Journal {
                action,
                path,
                error: e.into(),
            }
        };
        let inside = self.root.holds(&self.above.join(OURS));
        if !inside.map_err(|error| TuneError::Journal {
            action: "find",
            path: path.clone(),
            error,
        })? {
            return Err(TuneError::Stranger {
                why: format!("links lead from it out of {}", self.root.0.display()),
                path: self.above.clone(),
            });
        }
        if make {
            fs::create_dir_all(&self.above).map_err(|error| TuneError::Journal {
                action: "make",
                path: self.above.clone(),
                error,
            })?;
        }
        for _ in 0..TRIES {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let above = match rustix::fs::open(&self.above, flags, Mode::empty()) {
                Ok(above) => above,
                Err(rustix::io::Errno::NOENT) if !make => return Ok(None),
                Err(e) => return Err(failed("open the directory above")(e)),
            };
            let inside = |within: &OwnedFd, name: &str| {
                if make {
                    // Everybody may see which runs of root's want to be seen.
                    let open = self.shared && name == OURS && crate::sys::is_system();
                    let mode = Mode::from_raw_mode(if open { 0o755 } else { 0o700 });
                    step();
                    match mkdirat(within, name, mode) {
                        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOENT) => {}
                        Err(e) => return Err(e),
                    }
                }
                match openat(within, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(fd) => Ok(Some(fd)),
                    Err(rustix::io::Errno::NOENT) => Ok(None),
                    Err(e) => Err(e),
                }
            };
            let Some(ours) = inside(&above, OURS).map_err(failed("open"))? else {
                match make {
                    true => continue,
                    false => return Ok(None),
                }
            };
            trusted(&ours, &self.above.join(OURS))?;
            let Some(directory) = inside(&ours, HOST).map_err(failed("open"))? else {
                match make {
                    true => continue,
                    false => return Ok(None),
                }
            };
            trusted(&directory, &path)?;
            let directory = File::from(directory);
            wait::lock(&directory, self.patience).map_err(|why| match why {
                Unlocked::Busy(waited, holder) => TuneError::Busy {
                    path: path.clone(),
                    seconds: waited.as_secs(),
                    holder,
                },
                Unlocked::System(error) => TuneError::Journal {
                    action: "lock",
                    path: path.clone(),
                    error,
                },
            })?;
            // Its last holder may have removed it.
            let same = match (
                fstat(&directory),
                statat(&ours, HOST, AtFlags::SYMLINK_NOFOLLOW),
            ) {
                (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
                _ => false,
            };
            if same {
                return Ok(Some(Locked {
                    above,
                    ours,
                    directory,
                    path,
                    shared: self.shared,
                }));
            }
        }
        Err(failed("open")(rustix::io::Errno::AGAIN))
    }
}

/// Whether nobody but this user can have put something there.
fn trusted(directory: &OwnedFd, path: &Path) -> Result<(), TuneError> {
    let stat = fstat(directory).map_err(|e| TuneError::Journal {
        action: "look at",
        path: path.to_owned(),
        error: e.into(),
    })?;
    let stranger = |why: String| TuneError::Stranger {
        path: path.to_owned(),
        why,
    };
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(stranger(format!("belongs to user {}", stat.st_uid)));
    }
    // Group and others may not write (S_IWGRP, S_IWOTH).
    if stat.st_mode & 0o022 != 0 {
        return Err(stranger(
            "can be written by others (chmod go-w makes it safe)".into(),
        ));
    }
    Ok(())
}

impl Locked {
    /// Locks a byte of it for as long as the file is open.
    pub(super) fn hold(&self, byte: u64) -> io::Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let file = File::from(openat(&self.directory, ".", flags, Mode::empty())?);
        hold_byte(&file, byte)?;
        Ok(file)
    }

    /// Whether somebody has locked that byte of it.
    pub(super) fn is_held(&self, byte: u64) -> io::Result<bool> {
        byte_is_held(&self.directory, byte)
    }

    /// The directory's path, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file in it; `None`: there is none.
    pub(super) fn open(&self, name: &str, create: bool) -> io::Result<Option<File>> {
        let mut flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        if create {
            step();
            flags |= OFlags::CREATE;
        }
        match openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                let file = File::from(fd);
                match file.metadata()?.is_file() {
                    true => Ok(Some(file)),
                    false => Err(io::Error::other("it is no regular file")),
                }
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Renames within it, and makes that last.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        step();
        rustix::fs::renameat(&self.directory, from, &self.directory, to)?;
        self.directory.sync_all()
    }

    /// Gives a file of it a second name in the directory above, where no run looks, and makes that last. Returns its
    /// path.
    pub(super) fn keep_aside(&self, name: &str) -> io::Result<PathBuf> {
        let its = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        for number in 1..=MOST_DAMAGED {
            let other = match number {
                1 => format!("{name}.damaged"),
                n => format!("{name}.damaged-{n}"),
            };
            step();
            match linkat(&self.directory, name, &self.ours, &other, AtFlags::empty()) {
                Ok(()) => rustix::fs::fsync(&self.ours)?,
                Err(rustix::io::Errno::EXIST) => {
                    let there = statat(&self.ours, &other, AtFlags::SYMLINK_NOFOLLOW)?;
                    // Whoever kept it was killed before it was done.
                    if (there.st_dev, there.st_ino) != (its.st_dev, its.st_ino) {
                        continue;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            return Ok(self.path.with_file_name(other));
        }
        let why = format!("there are {MOST_DAMAGED} damaged ones already: remove some");
        Err(io::Error::other(why))
    }

    /// Makes its new names last.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        step();
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes it, and what is above it where that is ours alone and empty.
    pub(super) fn remove(self) -> io::Result<()> {
        step();
        unlinkat(&self.ours, HOST, AtFlags::REMOVEDIR)?;
        if self.shared {
            return Ok(());
        }
        step();
        match unlinkat(&self.above, OURS, AtFlags::REMOVEDIR) {
            Ok(())
            | Err(
                rustix::io::Errno::NOTEMPTY
                | rustix::io::Errno::EXIST
                | rustix::io::Errno::BUSY
                | rustix::io::Errno::NOENT,
            ) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
