//! Leases of a machine's images, as libvirt's plug-in has them with `auto_disk_leases`: the lockspace
//! `__LIBVIRT__DISKS__` of a directory, and in it a file for each image, named by MD5 of its path. The daemon gives a
//! lease to a process, and takes it back when the process ends, however it does.

#![forbid(unsafe_code)]

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::LOCKSPACE;
use super::client::{Daemon, Patience};
use super::error::SanlockError;
use super::wire;
use crate::locks::holders;

use SanlockError as Error;

/// Seconds that the daemon gives a read or a write of the leases, where nobody says another time (sanlock(8)).
pub const IO_TIMEOUT: u32 = 10;
/// Files that are made and not named yet begin with this.
pub(super) const DRAFT: &str = ".vsc-lease-";
/// How often a lease is looked at again that a process which has ended still has.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a file that comes and goes is tried.
const ATTEMPTS: u32 = 20;
/// Results of the daemon: of the system, and "another host has this host_id".
const EEXIST: i32 = -libc::EEXIST;
const EAGAIN: i32 = -libc::EAGAIN;
const EBUSY: i32 = -libc::EBUSY;
const EINVAL: i32 = -libc::EINVAL;
const EINPROGRESS: i32 = -libc::EINPROGRESS;
const ENOENT: i32 = -libc::ENOENT;
const ENOSPC: i32 = -libc::ENOSPC;
const HOSTID_BUSY: i32 = -262;
/// Results that mean that another host has a lease (SANLK_ACQUIRE_IDLIVE, OWNED, OTHER, OWNED_RETRY).
pub(super) const OWNED: [i32; 4] = [-243, -244, -245, -247];

/// Where a host's leases are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sanlock {
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// This host's number.
    pub host_id: u64,
    /// The directory of the leases.
    pub leases: PathBuf,
    /// Seconds that the daemon gives a read or a write of them.
    pub io_timeout: u32,
}

impl Sanlock {
    /// The lockspace's file.
    pub fn lockspace(&self) -> PathBuf {
        self.leases.join(LOCKSPACE)
    }

    /// How long a request may take that waits for other hosts: one that has died is given 8 times the time of a read
    /// or a write, and its watchdog 60 s (sanlock's timeouts.c, host_dead_seconds); a second such wait, and reads and
    /// writes besides.
    fn limit(&self) -> Duration {
        Duration::from_secs(2 * (8 * u64::from(self.io_timeout) + 60) + 30)
    }
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub image: PathBuf,
    /// Its name, and that of its file.
    pub name: String,
    /// Others may have it too.
    pub shared: bool,
}

/// What the daemon runs when this process has to give its leases up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnLoss {
    /// The program.
    pub program: String,
    /// Its arguments, with blanks between them.
    pub arguments: String,
}

/// Leases that this process has; given up when it is dropped.
#[derive(Debug)]
pub struct Leases {
    daemon: Daemon,
    at: Sanlock,
    owner: String,
    all: Vec<Lease>,
}

impl Leases {
    /// Takes leases for this process, which `owner` names for people. What takes a while is told to `tell`.
    ///
    /// # Errors
    /// [`SanlockError`]; then no lease is held. Files of leases may stay, which mean nothing.
    pub fn take(
        at: &Sanlock,
        owner: &str,
        all: Vec<Lease>,
        on_loss: Option<&OnLoss>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let mut daemon = Daemon::connect(&at.socket)?;
        join(&mut daemon, at, tell)?;
        daemon.register()?;
        if let Some(run) = on_loss {
            daemon.on_loss(&run.program, &run.arguments)?;
        }
        let mut leases = Self {
            daemon,
            at: at.clone(),
            owner: owner.to_owned(),
            all,
        };
        leases.acquire(tell)?;
        // What comes later comes from a confined process, which has this connection and opens none.
        leases.daemon.only = true;
        Ok(leases)
    }

    /// Takes them once more, after they were given up: joins the lockspace if this host has lost it.
    ///
    /// # Errors
    /// [`SanlockError`]; then none is held.
    pub fn take_again(&mut self, tell: &mut dyn FnMut(&str)) -> Result<(), Error> {
        join(&mut self.daemon, &self.at, tell)?;
        self.acquire(tell)
    }

    /// Gives them up; whoever waits for them has them then. Nothing of the images may be on its way any more.
    ///
    /// # Errors
    /// [`SanlockError`]; the daemon has them as long as this process lives, then.
    pub fn give_up(&mut self) -> Result<(), Error> {
        self.release(self.all.len())
    }

    fn release(&mut self, first: usize) -> Result<(), Error> {
        let limit = self.at.limit();
        for some in self.all[..first].chunks(wire::LEASES) {
            let names: Vec<&str> = some.iter().map(|l| l.name.as_str()).collect();
            self.daemon.release(LOCKSPACE, &names, limit)?;
        }
        Ok(())
    }

    fn acquire(&mut self, tell: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let mut taken = 0;
        for some in 0..self.all.len().div_ceil(wire::LEASES) {
            let first = some * wire::LEASES;
            let end = (first + wire::LEASES).min(self.all.len());
            if let Err(e) = self.acquire_some(first..end, tell) {
                // The daemon takes back what is left when this connection is closed.
                let _ = self.release(taken);
                return Err(e);
            }
            taken = end;
        }
        Ok(())
    }

    /// Takes as many as go into one request.
    fn acquire_some(
        &mut self,
        range: std::ops::Range<usize>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let limit = self.at.limit();
        let until = Instant::now() + limit;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let mut files = Vec::new();
            for lease in &self.all[range.clone()] {
                let path = self.at.leases.join(&lease.name);
                let id = lease_file(&mut self.daemon, &self.at, &lease.name, &path, tell)?;
                files.push((path, id));
            }
            let asked: Vec<(&str, &Path, bool)> = self.all[range.clone()]
                .iter()
                .zip(&files)
                .map(|(lease, (path, _))| (lease.name.as_str(), path.as_path(), lease.shared))
                .collect();
            let why = format!(
                "waiting for sanlock's leases in {}: a host that had them may have died, which takes up to {} s",
                self.at.leases.display(),
                limit.as_secs()
            );
            let mut patience = Patience::of(limit, why, tell);
            let daemon = &mut self.daemon;
            let result = daemon.acquire(LOCKSPACE, &asked, &self.owner, false, &mut patience)?;
            match result {
                0.. => {
                    let names = asked.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
                    if files.iter().all(|(path, id)| identity(path) == Some(*id)) {
                        return Ok(());
                    }
                    // Removed by `locks gc` of some host before it was ours: a lease on a file without a name.
                    self.daemon.release(LOCKSPACE, &names, limit)?;
                    attempts += 1;
                }
                ENOENT => attempts += 1,
                EEXIST | EAGAIN | EBUSY => {
                    // Shared by others, where this one wants it alone.
                    if result == EAGAIN
                        && let Some(e) = self.held_there(range.clone())
                    {
                        return Err(e);
                    }
                    if let Some(e) = self.held_here(range.clone())? {
                        return Err(e);
                    }
                    if Instant::now() >= until {
                        return Err(Error::Refused {
                            what: "the leases".into(),
                            result,
                        });
                    }
                    // A process that has ended had them: there is nothing to wait for but time.
                    std::thread::sleep(AGAIN);
                }
                ENOSPC => {
                    return Err(Error::Host {
                        sentence: format!(
                            "this host has lost the lockspace {}: sanlock could not renew its number there",
                            self.at.lockspace().display()
                        ),
                    });
                }
                result if OWNED.contains(&result) => {
                    // It may have been given up since.
                    let by = self.held_there(range.clone());
                    let unknown = || self.locked(&self.all[range.start], "another host");
                    return Err(by.unwrap_or_else(unknown));
                }
                result => {
                    return Err(Error::Refused {
                        what: format!("the leases in {}", self.at.leases.display()),
                        result,
                    });
                }
            }
        }
        Err(Error::Refused {
            what: format!(
                "the leases in {}, which come and go",
                self.at.leases.display()
            ),
            result: ENOENT,
        })
    }

    /// Who of this host has one of these leases; none: a process that lives no more.
    fn held_here(&self, range: std::ops::Range<usize>) -> Result<Option<Error>, Error> {
        if self.daemon.only {
            let first = &self.all[range.start];
            return Ok(Some(self.locked(
                first,
                "another process of this host, or of another host",
            )));
        }
        let status = self.daemon.status()?;
        for lease in &self.all[range] {
            let has = |l: &&super::LeaseOf| {
                l.lockspace == LOCKSPACE && l.name == lease.name && l.pid != std::process::id()
            };
            let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
            let Some(by) = status.leases.iter().filter(has).find(|l| lives(l.pid)) else {
                continue;
            };
            let seen = holders::file_holders(Path::new("/proc"), &lease.image).unwrap_or_default();
            let by = match seen.seen.iter().find(|holder| holder.pid == by.pid) {
                Some(holder) => holder.sentence(),
                None => match status.clients.iter().find(|(pid, _)| *pid == by.pid) {
                    Some((pid, name)) if !name.is_empty() => format!("'{name}', pid {pid}"),
                    _ => format!("pid {}", by.pid),
                },
            };
            return Ok(Some(self.locked(lease, &by)));
        }
        Ok(None)
    }

    /// Which other hosts have one of these leases, where any has.
    fn held_there(&mut self, range: std::ops::Range<usize>) -> Option<Error> {
        let limit = Duration::from_secs(u64::from(self.at.io_timeout) + 30);
        for lease in &self.all[range] {
            let path = self.at.leases.join(&lease.name);
            let others = self
                .daemon
                .others(self.at.host_id, &lease.name, &path, limit);
            if !others.is_empty() {
                let by = format!("another host, {}", others.join(", "));
                return Some(self.locked(lease, &by));
            }
        }
        None
    }

    fn locked(&self, lease: &Lease, by: &str) -> Error {
        Error::Locked {
            sentence: format!(
                "E-LOCKED: {} is held by {by}, through sanlock's lease {}: end that machine or use a copy",
                lease.image.display(),
                self.at.leases.join(&lease.name).display()
            ),
        }
    }
}

impl AsFd for Leases {
    /// Readable when the daemon has gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.daemon.as_fd()
    }
}

/// Sees to it that this host is in the lockspace.
pub(super) fn join(
    daemon: &mut Daemon,
    at: &Sanlock,
    tell: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let path = at.lockspace();
    let limit = at.limit();
    for _ in 0..ATTEMPTS {
        if identity(&path).is_none() {
            let shown = path.display().to_string();
            make(daemon, &path, &mut |daemon, draft| {
                let why = format!("waiting for sanlock to make the lockspace {shown}");
                let mut patience = Patience::of(limit, why, tell);
                daemon.write_lockspace(LOCKSPACE, draft, at.io_timeout, &mut patience)
            })?;
        }
        let why = format!(
            "waiting for sanlock to take host_id {} in {}: about {} s, {} s where that number was used before",
            at.host_id,
            path.display(),
            2 * at.io_timeout,
            8 * at.io_timeout + 60
        );
        let mut patience = Patience::of(limit, why, tell);
        let joined =
            daemon.add_lockspace(LOCKSPACE, at.host_id, &path, at.io_timeout, &mut patience)?;
        match joined {
            0.. | EEXIST => return Ok(()),
            // Another machine of this host is at it, or the host is leaving.
            EINPROGRESS | EAGAIN | EBUSY => std::thread::sleep(Duration::from_secs(1)),
            HOSTID_BUSY => {
                return Err(Error::Host {
                    sentence: format!(
                        "host_id {} is another host's in {}: `locking.host_id` is 1 to 2000, and no two hosts have \
                         the same",
                        at.host_id,
                        path.display()
                    ),
                });
            }
            EINVAL if let Some(e) = elsewhere(daemon, at)? => return Err(e),
            result => {
                return Err(Error::Refused {
                    what: format!(
                        "to join the lockspace {} with host_id {}",
                        path.display(),
                        at.host_id
                    ),
                    result,
                });
            }
        }
    }
    Err(Error::Refused {
        what: format!("to join the lockspace {}", path.display()),
        result: EINPROGRESS,
    })
}

/// That the daemon is in the lockspace already, as another host or with another file.
fn elsewhere(daemon: &Daemon, at: &Sanlock) -> Result<Option<Error>, Error> {
    if daemon.only {
        return Ok(None);
    }
    let status = daemon.status()?;
    let here = status
        .lockspaces
        .iter()
        .find(|(name, ..)| name == LOCKSPACE);
    Ok(here.map(|(_, host_id, path)| Error::Host {
        sentence: format!(
            "this host is in the lockspace {LOCKSPACE} already, with host_id {host_id} and {}; host_id {} and {} do \
             not go with that: `locking.host_id` and `locking.disk_lease_dir` are the same for all machines of a host",
            path.display(),
            at.host_id,
            at.lockspace().display()
        ),
    }))
}

/// Sees to it that there is a lease of this name; which file it is.
fn lease_file(
    daemon: &mut Daemon,
    at: &Sanlock,
    name: &str,
    path: &Path,
    tell: &mut dyn FnMut(&str),
) -> Result<(u64, u64), Error> {
    for _ in 0..ATTEMPTS {
        if let Some(id) = identity(path) {
            return Ok(id);
        }
        make(daemon, path, &mut |daemon, draft| {
            let why = format!("waiting for sanlock to make the lease {}", path.display());
            let mut patience = Patience::of(at.limit(), why, tell);
            daemon.write_lease(LOCKSPACE, name, draft, &mut patience)
        })?;
    }
    Err(Error::File {
        what: "cannot keep the lease, which somebody removes:",
        path: path.to_owned(),
        error: io::ErrorKind::NotFound.into(),
    })
}

/// Device and inode of a file.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = path.symlink_metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Makes a file of the size that the daemon wants, has it written, and only then gives it its name: nobody sees half a
/// lease. Somebody else's that was first stays.
fn make(
    daemon: &mut Daemon,
    path: &Path,
    write: &mut dyn FnMut(&mut Daemon, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let failed = |what| {
        let path = path.to_owned();
        move |error| Error::File { what, path, error }
    };
    // Processes of several hosts may have the same number.
    let random = RandomState::new().build_hasher().finish();
    let draft = Draft(directory.join(format!("{DRAFT}{random:016x}")));
    let file = new_file(&draft.0).map_err(failed("cannot make"))?;
    belongs(&file, directory, path)?;
    let size = daemon.room(&draft.0)?;
    fill(&file, size).map_err(failed("cannot make room for"))?;
    drop(file);
    write(daemon, &draft.0)?;
    match rustix::fs::linkat(CWD, &draft.0, CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(failed("cannot name")(e.into())),
    }
}

/// A file that goes when this does.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The daemon, and users of its group.
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    let file: File = rustix::fs::open(path, flags, mode)?.into();
    rustix::fs::fchmod(&file, mode)?;
    Ok(file)
}

/// Gives a lease to whom its directory belongs, as the daemon is to read and write it.
fn belongs(file: &File, directory: &Path, path: &Path) -> Result<(), Error> {
    let failed = |what| {
        let path = path.to_owned();
        move |error| Error::File { what, path, error }
    };
    let is = file.metadata().map_err(failed("cannot look at"))?;
    let wanted = directory.metadata().map_err(failed("cannot look at"))?;
    if (is.uid(), is.gid()) == (wanted.uid(), wanted.gid()) {
        return Ok(());
    }
    let group = Some(Gid::from_raw(wanted.gid()));
    if !rustix::process::geteuid().is_root() {
        // Of a user of sanlock's group, the group is enough, and where even that cannot be had the daemon says so.
        let _ = rustix::fs::fchown(file, None, group);
        return Ok(());
    }
    rustix::fs::fchown(file, Some(Uid::from_raw(wanted.uid())), group).map_err(|e| {
        Error::Squashed {
            path: path.to_owned(),
            uid: wanted.uid(),
            gid: wanted.gid(),
            error: e.into(),
        }
    })
}

fn fill(mut file: &File, size: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}
