//! Who holds a lock on a file. The kernel does not say whose open file a lock belongs to (F_OFD_GETLK: pid -1), but it
//! shows with each descriptor of a process what is locked through it (/proc/PID/fdinfo/N, `lock:`).

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use vsc_devices::block::lock::{self, Access, GATE, LockError, RESIZE, UNSHARED, USED, WRITE};

use crate::store::Stat;
use crate::sys;

/// What kind of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `F_OFD_SETLK`: of an open file.
    Ofd,
    /// `F_SETLK`: of a process.
    Posix,
    /// flock(2): of an open file, on all of it.
    Flock,
    /// A lease (`F_SETLEASE`) or a delegation.
    Lease,
}

/// A lock that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Lock {
    /// What kind.
    pub kind: Kind,
    /// A write lock.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `None`: the end of the file, wherever that is.
    pub end: Option<u64>,
}

/// What a lock means among virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// libvirt's virtlockd has the image.
    Libvirt,
    /// A machine reads it.
    Reads,
    /// A machine writes it.
    Writes,
    /// Nobody else may write it.
    Alone,
}

impl Lock {
    /// The line of /proc/locks or `lock:` of fdinfo, without the number before it (proc_locks(5)):
    /// `OFDLCK ADVISORY  READ -1 fd:00:42 100 101`, with the inode's number.
    pub(super) fn parse(line: &str) -> Option<(Self, u64)> {
        let mut words = line.split_ascii_whitespace();
        let kind = match words.next()? {
            "OFDLCK" => Kind::Ofd,
            "POSIX" => Kind::Posix,
            "FLOCK" => Kind::Flock,
            "LEASE" | "DELEG" => Kind::Lease,
            _ => return None,
        };
        let write = words.nth(1)? == "WRITE";
        let inode = words.nth(1)?.rsplit(':').next()?.parse().ok()?;
        let start = words.next()?.parse().ok()?;
        let end = match words.next()? {
            "EOF" => None,
            end => Some(end.parse().ok()?),
        };
        let lock = Self {
            kind,
            write,
            start,
            end,
        };
        Some((lock, inode))
    }

    /// Whether it has a part of `from..=to`.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.kind != Kind::Lease && self.start <= to && self.end.is_none_or(|end| end >= from)
    }

    /// Whether virtual machines use such locks: QEMU's bytes, virtlockd's byte, or the whole file.
    fn is_of_machines(&self) -> bool {
        let within = |from, to| self.start >= from && self.end.is_some_and(|end| end <= to);
        match self.kind {
            Kind::Ofd => {
                within(GATE, USED + RESIZE)
                    || within(UNSHARED, UNSHARED + RESIZE)
                    || within(0, 0)
                    || self.start == 0
            }
            Kind::Posix => within(0, 0),
            Kind::Flock | Kind::Lease => false,
        }
    }

    /// What it means.
    pub fn parts(&self) -> Vec<Part> {
        let byte = |n| self.touches(n, n);
        let mut parts = Vec::new();
        match (self.kind, self.start, self.end) {
            (Kind::Lease, ..) => {}
            (Kind::Flock, ..) => parts.push(if self.write { Part::Alone } else { Part::Reads }),
            (_, 0, Some(0)) => parts.push(Part::Libvirt),
            // All bytes, as cloud-hypervisor has them.
            (_, 0, _) if self.touches(UNSHARED + WRITE, UNSHARED + WRITE) => {
                parts.push(if self.write {
                    Part::Writes
                } else {
                    Part::Reads
                });
                parts.push(Part::Alone);
            }
            _ => {
                let known = [
                    (USED, Part::Reads),
                    (USED + WRITE, Part::Writes),
                    (UNSHARED + WRITE, Part::Alone),
                ];
                parts.extend(
                    known
                        .iter()
                        .filter(|(n, _)| byte(*n))
                        .map(|(_, part)| *part),
                );
            }
        }
        parts
    }

    /// Its bytes: `100-101`, `0-`; `flock` where there are none.
    pub fn bytes(&self) -> String {
        match self.end {
            _ if self.kind == Kind::Flock => "flock".to_owned(),
            None => format!("{}-", self.start),
            Some(end) if end == self.start => end.to_string(),
            Some(end) => format!("{}-{end}", self.start),
        }
    }
}

/// A process that holds locks on a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its program: the executable's name, else what it calls itself.
    pub program: String,
    /// The machine that it runs, as far as it tells.
    pub vm: Option<String>,
    /// When it started, seconds since 1970.
    pub since: Option<u64>,
    /// The file, as this process has it open.
    pub path: PathBuf,
    /// What it holds.
    pub locks: Vec<Lock>,
}

/// What is known of the holders of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holders {
    /// Those that are seen.
    pub seen: Vec<Holder>,
    /// Locks on it of processes that this user may not look at, or that are in another container.
    pub hidden: Vec<Lock>,
}

impl Holder {
    /// What it does to the image, in words.
    pub fn access(&self) -> &'static str {
        let parts: HashSet<Part> = self.locks.iter().flat_map(Lock::parts).collect();
        let writes = parts.contains(&Part::Writes);
        match (writes, parts.contains(&Part::Alone)) {
            (true, true) => "rw",
            (true, false) => "rw shared",
            (false, _) if parts.contains(&Part::Reads) => "ro",
            (false, _) if parts.contains(&Part::Libvirt) => "libvirt",
            (false, true) => "alone",
            (false, false) => "other",
        }
    }

    /// `vm 'a', pid 4711, since 12:03 (vsc-run)`.
    pub fn sentence(&self) -> String {
        let vm = self
            .vm
            .as_ref()
            .map_or_else(String::new, |vm| format!("vm '{vm}', "));
        let since = self
            .since
            .map_or_else(String::new, |at| format!(", since {}", clock(at)));
        format!("{vm}pid {}{since} ({})", self.pid, self.program)
    }
}

/// The time of day here, with the date where it is not today's.
pub fn clock(seconds: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (then, today) = (sys::local_time(seconds), sys::local_time(now));
    match then {
        Some(t) if today.is_some_and(|now| now.date == t.date) => {
            format!("{:02}:{:02}", t.hour, t.minute)
        }
        Some(t) => {
            let (year, month, day) = t.date;
            format!("{year}-{month:02}-{day:02} {:02}:{:02}", t.hour, t.minute)
        }
        None => format!("@{seconds}"),
    }
}

/// Which file is looked for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    device: u64,
    inode: u64,
    /// Of a block device, which may have several nodes.
    number: Option<u64>,
}

impl Wanted {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            number: meta.file_type().is_block_device().then(|| meta.rdev()),
        }
    }

    fn is(&self, meta: &fs::Metadata) -> bool {
        let same = meta.dev() == self.device && meta.ino() == self.inode;
        let device = meta.file_type().is_block_device() && self.number == Some(meta.rdev());
        same || device
    }
}

/// Whether anybody has a lock on `file`, us included: one file is looked at, no process.
pub(super) fn is_locked(proc: &Path, file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| {
        let inode = meta.ino();
        table(proc).iter().any(|(_, of)| *of == inode)
    })
}

/// Everybody who has a lock on `file`, by `proc`, where procfs is mounted. Our own process is among them.
///
/// # Errors
/// The file is not there, or may not be looked at.
pub fn file_holders(proc: &Path, file: &Path) -> io::Result<Holders> {
    let meta = fs::metadata(file)?;
    let wanted = Wanted::of(&meta);
    let mut seen = Vec::new();
    for pid in processes(proc) {
        let locks = locked_by(proc, pid, |fd, inode| {
            // A look at the file itself could wait for a server that is gone: only for those with its number.
            (wanted.number.is_some() || inode.is_none_or(|n| n == wanted.inode))
                && fs::metadata(fd).is_ok_and(|meta| wanted.is(&meta))
        });
        let mut mine: Option<Holder> = None;
        for (path, lock) in locks {
            let holder = mine.get_or_insert_with(|| describe(proc, pid, path));
            if !holder.locks.contains(&lock) {
                holder.locks.push(lock);
            }
        }
        seen.extend(mine);
    }
    // The names that POSIX locks and leases have in common with others on this inode number decide nothing: only what
    // nobody seen accounts for is told.
    let known: HashSet<Lock> = seen.iter().flat_map(|h: &Holder| h.locks.clone()).collect();
    let mut hidden: Vec<Lock> = table(proc)
        .into_iter()
        .filter(|(lock, inode)| *inode == meta.ino() && !known.contains(lock))
        .map(|(lock, _)| lock)
        .collect();
    hidden.dedup();
    Ok(Holders { seen, hidden })
}

/// Every lock of a virtual machine's kind that is seen on this host, the largest groups first by number of process.
pub fn all_holders(proc: &Path) -> Vec<Holder> {
    let mut out: Vec<Holder> = Vec::new();
    for pid in processes(proc) {
        for (path, lock) in locked_by(proc, pid, |_, _| true) {
            if !lock.is_of_machines() {
                continue;
            }
            let here = out.iter_mut().find(|h| h.pid == pid && h.path == path);
            match here {
                Some(holder) if holder.locks.contains(&lock) => {}
                Some(holder) => holder.locks.push(lock),
                None => out.push(Holder {
                    locks: vec![lock],
                    ..describe(proc, pid, path)
                }),
            }
        }
    }
    // A database that happens to lock one of the bytes is no machine.
    out.retain(|h| h.access() != "other");
    out
}

fn processes(proc: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// The locks that are held through descriptors of a process which `accept` takes, given the descriptor's link and
/// the inode's number (Linux 5.14 tells it).
fn locked_by(
    proc: &Path,
    pid: u32,
    accept: impl Fn(&Path, Option<u64>) -> bool,
) -> Vec<(PathBuf, Lock)> {
    let dir = proc.join(pid.to_string());
    let mut out = Vec::new();
    for entry in fs::read_dir(dir.join("fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        if !text.contains("lock:") {
            continue;
        }
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let inode = field("ino:").and_then(|n| n.trim().parse().ok());
        let link = dir.join("fd").join(entry.file_name());
        if !accept(&link, inode) {
            continue;
        }
        let path = living(fs::read_link(&link).unwrap_or_default());
        let lines = text.lines().filter_map(|line| line.strip_prefix("lock:"));
        // `lock:\t1: OFDLCK …`
        let locks = lines.filter_map(|line| Lock::parse(line.split_once(": ")?.1));
        out.extend(locks.map(|(lock, _)| (path.clone(), lock)));
    }
    out
}

/// The name that a file had, where it has none any more.
fn living(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(bytes) => PathBuf::from(OsStr::from_bytes(bytes)),
        None => path,
    }
}

/// /proc/locks: what is held, not what is waited for.
fn table(proc: &Path) -> Vec<(Lock, u64)> {
    let text = fs::read_to_string(proc.join("locks")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Lock::parse(line.split_once(": ")?.1))
        .collect()
}

fn describe(proc: &Path, pid: u32, path: PathBuf) -> Holder {
    let dir = proc.join(pid.to_string());
    let executable = fs::read_link(dir.join("exe")).ok();
    let name = executable.as_deref().and_then(Path::file_name);
    let program = match name {
        Some(name) => {
            let name = name.to_string_lossy();
            name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned()
        }
        None => fs::read_to_string(dir.join("comm"))
            .map(|comm| comm.trim().to_owned())
            .unwrap_or_default(),
    };
    let uptime = Stat::of(proc, pid).and_then(|stat| stat.uptime(proc));
    let since = uptime.and_then(|up| {
        let start = SystemTime::now().checked_sub(up)?;
        Some(start.duration_since(UNIX_EPOCH).ok()?.as_secs())
    });
    Holder {
        pid,
        program,
        vm: machine_name(proc, pid).or_else(|| qemu_name(&dir)),
        since,
        path,
        locks: Vec::new(),
    }
}

/// The machine of this program that a process runs, by the name of its memory.
pub fn machine_name(proc: &Path, pid: u32) -> Option<String> {
    let fds = fs::read_dir(proc.join(pid.to_string()).join("fd")).ok()?;
    fds.flatten().find_map(|fd| {
        let target = fs::read_link(fd.path()).ok()?;
        let name = target.to_str()?.strip_prefix("/memfd:vsc:")?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
    })
}

/// What QEMU was told with `-name`: `lab` or `guest=lab,debug-threads=on`.
fn qemu_name(dir: &Path) -> Option<String> {
    let line = fs::read(dir.join("cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    words.find(|word| matches!(*word, b"-name" | b"--name"))?;
    let value = String::from_utf8_lossy(words.next()?).into_owned();
    let first = value.split(',').find(|part| !part.contains('='));
    let guest = value
        .split(',')
        .find_map(|part| part.strip_prefix("guest="));
    Some(guest.or(first)?.to_owned())
}

/// The sentence for an image that is in use. `others`: disks of the same machine, by name and path, of which one may be
/// the same file.
pub fn held_by(proc: &Path, image: &Path, read_only: bool, others: &[(String, PathBuf)]) -> String {
    let shown = image.display();
    let holders = file_holders(proc, image).unwrap_or_default();
    let this = std::process::id();
    let seen = |mine: bool| holders.seen.iter().filter(move |h| (h.pid == this) == mine);
    let foreign: Vec<&Holder> = {
        let useful = seen(false).filter(|h| h.access() != "other");
        useful.collect()
    };
    // Of a process and its children, which have the same open file, the one that runs the machine.
    let chosen = foreign.iter().max_by_key(|h| {
        (
            h.vm.is_some(),
            h.access().starts_with("rw"),
            u32::MAX - h.pid,
        )
    });
    if let Some(holder) = chosen {
        let does = match holder.access() {
            "ro" => "it reads it",
            "rw" | "rw shared" => "it writes it",
            "libvirt" => "libvirt has it",
            _ => "it wants it alone",
        };
        let more = match foreign.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let help = match (read_only, holder.access()) {
            (false, "ro") => {
                "end that machine, use a copy, or give the disk `read_only: true` here too"
            }
            (false, "rw shared") => {
                "end that machine, use a copy, or say `shareable: true` here too"
            }
            _ => "end that machine or use a copy",
        };
        return format!(
            "E-LOCKED: {shown} is held by {}{more}; {does}: {help}",
            holder.sentence()
        );
    }
    let same: Vec<String> = match fs::metadata(image) {
        Ok(meta) => {
            let wanted = Wanted::of(&meta);
            let same = others
                .iter()
                .filter(|(_, path)| fs::metadata(path).is_ok_and(|other| wanted.is(&other)));
            same.map(|(name, path)| format!("{name} ({})", path.display()))
                .collect()
        }
        Err(_) => Vec::new(),
    };
    if same.len() > 1 {
        return format!(
            "E-LOCKED: {} are the same file, and one of them may write it: two file systems on one image destroy it; \
             make both `read_only: true`, or use a copy",
            same.join(" and ")
        );
    }
    if let Some(suspect) = suspect(proc, image) {
        return format!(
            "E-LOCKED: {shown} is held by a process that /proc does not show to this user, by its command line {suspect}: \
             end that machine or use a copy (`sudo vsc-run locks list` shows who it is)"
        );
    }
    let whose = match sys::user() {
        0 => "",
        _ => "of another user (`sudo vsc-run locks list` shows it), ",
    };
    format!(
        "E-LOCKED: {shown} is held by a process that /proc does not show here: {whose}in another container or on \
         another host: end that machine or use a copy"
    )
}

/// A process whose descriptors this user may not look at, and whose command line names the image, which everybody may
/// read (proc_pid_cmdline(5)).
fn suspect(proc: &Path, image: &Path) -> Option<String> {
    let wanted = Wanted::of(&fs::metadata(image).ok()?);
    let name = image.file_name()?;
    let names_it = |word: &[u8]| {
        let parts = word.split(|byte| matches!(byte, b'=' | b','));
        let mut paths = parts.map(|part| Path::new(OsStr::from_bytes(part)));
        // A path of another process may lead elsewhere here; one that is relative to its directory tells its name only.
        paths.any(|path| {
            path.file_name() == Some(name)
                && (path.is_relative() || fs::metadata(path).is_ok_and(|meta| wanted.is(&meta)))
        })
    };
    processes(proc).into_iter().find_map(|pid| {
        let dir = proc.join(pid.to_string());
        let closed = fs::read_dir(dir.join("fdinfo"));
        closed
            .err()
            .filter(|e| e.kind() == io::ErrorKind::PermissionDenied)?;
        let line = fs::read(dir.join("cmdline")).ok()?;
        line.split(|byte| *byte == 0).find(|word| names_it(word))?;
        let user = fs::metadata(&dir).ok()?.uid();
        let holder = describe(proc, pid, image.to_owned());
        Some(format!("{} of user {user}", holder.sentence()))
    })
}

/// Locks a regular file as a machine would that writes it, until the file is closed. `None`: it is none, or may not be
/// written, or its file system has no locks.
///
/// # Errors
/// The sentence for an image that is in use.
pub fn hold(image: &Path) -> Result<Option<File>, String> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(image, flags, Mode::empty()).map(File::from) else {
        return Ok(None);
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Ok(None);
    }
    let access = Access {
        write: true,
        resize: true,
        lock: lock::Lock::Exclusive,
        device: false,
        flock: false,
    };
    match lock::take(&file, access) {
        Ok(()) => Ok(Some(file)),
        Err(LockError::Held(_)) => Err(held_by(Path::new("/proc"), image, false, &[])),
        Err(LockError::Unsupported(_) | LockError::Failed(_)) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
