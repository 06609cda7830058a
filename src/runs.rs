//! State of running machines: a directory for each run that asked for one, gone with it.
//!
//! A run that needs no state makes none. One with `control: true` has `BASE/RUNID`, mode 0700, with its socket in it
//! and [`RECORD`], which says whose it is. `BASE` is `$XDG_RUNTIME_DIR/vsc` (XDG Base Directory Specification: a
//! directory of this user, mode 0700, gone with their last session), where that is not set `/run/user/UID/vsc`, for
//! root `/run/vsc`. `RUNID` is the time of the start in seconds and microseconds after 1970, and the process: unique on
//! this host, sorted by time.
//!
//! While the run lives it holds a lock (flock(2)) on its directory, which the kernel gives up when the process ends,
//! however it ends. A directory without it is what a dead run left.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::store::Process;
use crate::sys;

/// The socket in a run's directory.
pub const SOCKET: &str = "control.sock";
/// The file that says whose the directory is.
pub const RECORD: &str = "run.json";
/// Where the directories of root's runs are.
pub const SYSTEM: &str = "/run/vsc";
/// Longest record that is read, bytes; ours have a few hundred.
const RECORD_MAX: u64 = 16 << 10;
/// How often others may remove a directory while it is made, before something else must be wrong.
const ATTEMPTS: u32 = 100;

/// Why a run has no directory, or none can be looked at.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// The user has no directory for such things.
    #[error(
        "there is no place for the state of a run: XDG_RUNTIME_DIR is not set, and there is no /run/user/{} (log in with \
         a session, or: mkdir -m 700 ~/.vsc-run; export XDG_RUNTIME_DIR=~/.vsc-run)",
        sys::user()
    )]
    NoPlace,
    /// A directory that somebody else could change.
    #[error("{} is not used for the state of runs: {why}", .path.display())]
    Stranger {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The system refused.
    #[error("cannot {action} {}: {error}", .path.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
}

fn system(action: &'static str, path: &Path) -> impl Fn(Errno) -> RunsError {
    move |error| RunsError::System {
        action,
        path: path.to_owned(),
        error: error.into(),
    }
}

/// Where this user's runs have their directories; `runtime` is `$XDG_RUNTIME_DIR`. It need not be there yet.
///
/// # Errors
/// There is no such place, or it is somebody else's.
pub fn base(runtime: Option<&Path>) -> Result<PathBuf, RunsError> {
    if sys::is_system() {
        // `su` and `sudo -E` keep the variable of whoever called them.
        return Ok(SYSTEM.into());
    }
    let path = match runtime.filter(|path| path.is_absolute()) {
        Some(path) => path.to_owned(),
        None => of_session().ok_or(RunsError::NoPlace)?,
    };
    match unfit(&path)? {
        None => Ok(path.join("vsc")),
        Some(why) => Err(RunsError::Stranger { path, why }),
    }
}

/// The directory that logind made for this user (pam_systemd(8)), whom `su`, cron and the like do not tell of it.
pub(crate) fn of_session() -> Option<PathBuf> {
    let path = PathBuf::from(format!("/run/user/{}", sys::user()));
    matches!(unfit(&path), Ok(None)).then_some(path)
}

/// Why a directory is nothing for this user's runs.
fn unfit(path: &Path) -> Result<Option<String>, RunsError> {
    let stat = match rustix::fs::stat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => {
            return Ok(Some("XDG_RUNTIME_DIR names it, and it is not there".into()));
        }
        Err(e) => return Err(system("look at", path)(e)),
    };
    let others = stat.st_mode & 0o022 != 0;
    Ok(if stat.st_uid != sys::user() {
        Some(format!("XDG_RUNTIME_DIR belongs to user {}", stat.st_uid))
    } else if others {
        Some(format!(
            "others may write to XDG_RUNTIME_DIR: chmod 700 {}",
            path.display()
        ))
    } else {
        None
    })
}

/// A name for a run of this process that begins now.
pub fn new_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (seconds, micros) = (now.as_secs(), now.subsec_micros());
    format!("{seconds}.{micros:06}-{}", std::process::id())
}

/// Opens a directory that only this user may change, and that no link leads to.
fn open_own(
    parent: impl std::os::fd::AsFd,
    name: &Path,
    shown: &Path,
) -> Result<OwnedFd, RunsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let stranger = |why: String| RunsError::Stranger {
        path: shown.to_owned(),
        why,
    };
    let fd = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(stranger("it is no directory".into())),
        opened => opened.map_err(system("open", shown))?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(system("look at", shown))?;
    if stat.st_uid != sys::user() {
        return Err(stranger(format!("it belongs to user {}", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(stranger("others may write to it".into()));
    }
    Ok(fd)
}

/// What [`RECORD`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The machine's name.
    pub name: String,
    /// The process that runs it.
    #[serde(flatten)]
    pub process: Process,
}

/// The directory of a run of this process. It goes when this goes.
#[derive(Debug)]
pub struct RunDir {
    id: String,
    path: PathBuf,
    base: OwnedFd,
    /// Holds the lock.
    directory: OwnedFd,
}

impl RunDir {
    /// Makes the directory of the run `id` ([`new_id`]), of the machine `name`.
    ///
    /// # Errors
    /// [`RunsError`]; nothing is left then.
    pub fn make(base: &Path, id: &str, name: &str) -> Result<Self, RunsError> {
        let path = base.join(id);
        // What everybody may read in there is said by what is in it.
        let mode = if base == Path::new(SYSTEM) {
            0o755
        } else {
            0o700
        };
        let process = Process::current().ok_or_else(|| RunsError::System {
            action: "read about this process in",
            path: "/proc/self/stat".into(),
            error: io::ErrorKind::NotFound.into(),
        })?;
        for _ in 0..ATTEMPTS {
            match rustix::fs::mkdirat(CWD, base, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(system("make the directory", base)(e)),
            }
            // Whoever used it last removes it.
            let Some(parent) = open_base(base)? else {
                continue;
            };
            match rustix::fs::mkdirat(&parent, id, Mode::RWXU) {
                Err(Errno::NOENT) => continue,
                made => made.map_err(system("make the directory", &path))?,
            }
            let directory = open_own(&parent, Path::new(id), &path);
            let locked = directory.and_then(|directory| {
                let lock = rustix::fs::flock(&directory, FlockOperation::LockExclusive);
                lock.map_err(system("lock", &path)).map(|()| directory)
            });
            let directory = match locked {
                Ok(directory) => directory,
                // Whoever cleans up was quicker than the lock.
                Err(RunsError::System { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(e) => {
                    let _ = rustix::fs::unlinkat(&parent, id, AtFlags::REMOVEDIR);
                    return Err(e);
                }
            };
            let links = rustix::fs::fstat(&directory).map(|stat| stat.st_nlink);
            if links.map_err(system("look at", &path))? == 0 {
                continue;
            }
            let made = Self {
                id: id.to_owned(),
                path,
                base: parent,
                directory,
            };
            made.record(&Record {
                name: name.to_owned(),
                process,
            })?;
            return Ok(made);
        }
        Err(RunsError::System {
            action: "keep the directory",
            path: path.clone(),
            error: io::ErrorKind::NotFound.into(),
        })
    }

    fn record(&self, record: &Record) -> Result<(), RunsError> {
        let failed = |error: io::Error| RunsError::System {
            action: "write",
            path: self.path.join(RECORD),
            error,
        };
        let text = serde_json::to_string(record).map_err(|e| failed(e.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.directory, RECORD, flags, mode);
        File::from(file.map_err(|e| failed(e.into()))?)
            .write_all(text.as_bytes())
            .map_err(failed)
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the socket is, or will be.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is found by whoever cleans up.
        let _ = remove(&self.base, &self.id, &self.directory);
        // Others may be in there.
        if let Some(base) = self.path.parent() {
            let _ = rustix::fs::rmdir(base);
        }
    }
}

/// Removes a directory whose lock is held, and what of ours is in it.
fn remove(base: &OwnedFd, id: &str, directory: &OwnedFd) -> rustix::io::Result<()> {
    for name in [SOCKET, RECORD] {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    match rustix::fs::unlinkat(base, id, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// A run's directory that was found.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is, if it says so.
    pub record: Option<Record>,
    /// Somebody holds its lock.
    pub lives: bool,
}

impl Found {
    /// Where its socket is, if there is one.
    pub fn socket(&self) -> Option<PathBuf> {
        let socket = self.path.join(SOCKET);
        std::fs::symlink_metadata(&socket).is_ok().then_some(socket)
    }
}

/// All directories of runs in `base`, sorted by the time of their start. There is none where there is no `base`.
///
/// # Errors
/// [`RunsError`]
pub fn list(base: &Path) -> Result<Vec<Found>, RunsError> {
    let Some(parent) = open_base(base)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for id in ids(&parent, base)? {
        let path = base.join(&id);
        // It may end while it is looked at.
        let Ok(directory) = open_own(&parent, Path::new(&id), &path) else {
            continue;
        };
        let lock = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockShared);
        found.push(Found {
            lives: lock == Err(Errno::WOULDBLOCK),
            record: record_of(&directory),
            id,
            path,
        });
    }
    Ok(found)
}

/// Directories that [`sweep`] looks at.
const SWEPT_MAX: usize = 64;

/// Removes the directories of dead runs, the oldest ones first, as far as that is quick and can be done: what stays is
/// for [`clean`] to say.
pub fn sweep(base: &Path) {
    let Ok(Some(parent)) = open_base(base) else {
        return;
    };
    for id in ids(&parent, base).into_iter().flatten().take(SWEPT_MAX) {
        let Ok(directory) = open_own(&parent, Path::new(&id), &base.join(&id)) else {
            continue;
        };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = remove(&parent, &id, &directory);
        }
    }
}

/// Removes the directories that dead runs left, or only says which those are. Returns their paths.
///
/// # Errors
/// [`RunsError`]; those before it are gone.
pub fn clean(base: &Path, only_look: bool) -> Result<Vec<PathBuf>, RunsError> {
    let Some(parent) = open_base(base)? else {
        return Ok(Vec::new());
    };
    let mut dead = Vec::new();
    for id in ids(&parent, base)? {
        let path = base.join(&id);
        let Ok(directory) = open_own(&parent, Path::new(&id), &path) else {
            continue;
        };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if !only_look {
            remove(&parent, &id, &directory).map_err(system("remove", &path))?;
        }
        dead.push(path);
    }
    Ok(dead)
}

fn open_base(base: &Path) -> Result<Option<OwnedFd>, RunsError> {
    match open_own(CWD, base, base) {
        Ok(fd) => Ok(Some(fd)),
        Err(RunsError::System { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names in `base` that are those of runs.
fn ids(parent: &OwnedFd, base: &Path) -> Result<Vec<String>, RunsError> {
    let entries = rustix::fs::Dir::read_from(parent).map_err(system("read", base))?;
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(system("read", base))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_id(&name) {
            ids.push(name);
        }
    }
    ids.sort();
    Ok(ids)
}

/// Seconds, a point, six digits, a line, the process.
fn is_id(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = name
        .split_once('.')
        .and_then(|(seconds, rest)| Some((seconds, rest.split_once('-')?)));
    parts.is_some_and(|(seconds, (micros, pid))| {
        digits(seconds) && micros.len() == 6 && digits(micros) && digits(pid)
    })
}

fn record_of(directory: &OwnedFd) -> Option<Record> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, RECORD, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file)
        .take(RECORD_MAX)
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("vsc-runs-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_run_has_a_directory_as_long_as_it_lives() {
        let place = Place::new("lives");
        let base = place.0.join("vsc");
        let (one, two) = (
            RunDir::make(&base, "1000.000001-7", "twin").unwrap(),
            RunDir::make(&base, &new_id(), "twin").unwrap(),
        );
        assert!(one.id() < two.id() && is_id(two.id()));
        assert!(RunDir::make(&base, one.id(), "twin").is_err());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([&base, one.path()].map(mode), [0o700, 0o700]);
        let found = list(&base).unwrap();
        assert_eq!(found.len(), 2);
        for found in &found {
            assert!(found.lives);
            let record = found.record.as_ref().unwrap();
            assert_eq!(record.name, "twin");
            assert_eq!(record.process, Process::current().unwrap());
        }
        assert_eq!(clean(&base, false).unwrap(), [""; 0].map(PathBuf::from));
        drop((one, two));
        assert!(!base.exists());
    }

    #[test]
    fn runs_that_come_and_go_at_once_do_not_hurt_each_other() {
        let place = Place::new("crowd");
        let base = place.0.join("vsc");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let base = &base;
                scope.spawn(move || {
                    for n in 0..50 {
                        let id = format!("1000.{n:06}-{thread}");
                        let run = RunDir::make(base, &id, "x").unwrap();
                        assert!(run.path().join(RECORD).exists());
                        let _ = clean(base, false).unwrap();
                        assert!(run.path().join(RECORD).exists());
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_run_left_is_found_and_removed_and_nothing_else() {
        let place = Place::new("dead");
        let base = place.0.join("vsc");
        let alive = RunDir::make(&base, &new_id(), "alive").unwrap();
        for name in ["1000.000001-7", "host", "1000.1-7", "x.000001-7"] {
            std::fs::create_dir(base.join(name)).unwrap();
        }
        symlink(place.0.join("elsewhere"), base.join("1000.000002-7")).unwrap();
        std::fs::write(base.join("1000.000001-7").join(RECORD), "{").unwrap();
        let dead = base.join("1000.000001-7");
        assert_eq!(clean(&base, true).unwrap(), std::slice::from_ref(&dead));
        assert!(dead.exists());
        assert_eq!(clean(&base, false).unwrap(), std::slice::from_ref(&dead));
        assert!(!dead.exists() && alive.path().exists() && base.join("host").exists());
        // What is not ours stays, and is told.
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("precious"), "").unwrap();
        let told = clean(&base, false).unwrap_err().to_string();
        assert!(told.contains("1000.000001-7"), "{told}");
        assert!(dead.join("precious").exists());
    }

    #[test]
    fn places_of_others_are_not_used() {
        let place = Place::new("others");
        let link = place.0.join("vsc");
        std::fs::create_dir(place.0.join("target")).unwrap();
        symlink(place.0.join("target"), &link).unwrap();
        let told = RunDir::make(&link, &new_id(), "x").unwrap_err().to_string();
        assert!(told.contains("no directory"), "{told}");
        std::fs::remove_file(&link).unwrap();
        std::fs::create_dir(&link).unwrap();
        std::fs::set_permissions(&link, PermissionsExt::from_mode(0o777)).unwrap();
        let told = RunDir::make(&link, &new_id(), "x").unwrap_err().to_string();
        assert!(told.contains("others may write"), "{told}");
        assert_eq!(std::fs::read_dir(&link).unwrap().count(), 0);
        if sys::is_system() {
            assert_eq!(base(Some(&place.0)).unwrap(), Path::new(SYSTEM));
        } else {
            assert_eq!(base(Some(&place.0)).unwrap(), place.0.join("vsc"));
            assert_eq!(base(None).is_ok(), of_session().is_some());
            assert!(matches!(
                base(Some(Path::new("/"))),
                Err(RunsError::Stranger { .. })
            ));
        }
    }
}
