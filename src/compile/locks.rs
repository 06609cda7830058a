//! `locking`: how each image is locked against other machines.

#![forbid(unsafe_code)]

use std::path::{Component, Path, PathBuf};

use vsc_devices::block::lock::{Access, Lock, Ranges};
use vsc_devices::virtio::blk::{BlkSpec, Format};

use crate::diag::{Diagnostic, Span, Spanned, quoted};
use crate::facts::{Facts, FileKind};
use crate::locks::sanlock::{self, Sanlock};
use crate::locks::{Config, DiskLock, Driver, LockPlan, Place, keys};
use crate::scenario::{Disk, Given, Locking};

use super::Problems;

/// Where libvirt's plug-in keeps leases unless it is told otherwise (qemu-sanlock.conf).
const LEASES: &str = "/var/lib/libvirt/sanlock";

/// Decides how the images of `blocks` are locked, and tells each disk its part of it.
pub(super) fn compile(
    locking: &Locking,
    disks: &[Spanned<Disk>],
    blocks: &mut [BlkSpec],
    facts: &dyn Facts,
    problems: &mut Problems,
) -> LockPlan {
    let driver = locking.driver.map_or(Driver::default(), |word| {
        let found = Driver::ALL.into_iter().find(|d| d.word() == word.value);
        found.unwrap_or_default()
    });
    let config = config(locking, driver, facts, problems);
    let span = |path: &Path| {
        let same = |d: &&Spanned<Disk>| d.value.path.as_ref().is_some_and(|p| p.value == path);
        let disk = disks.iter().find(same);
        disk.and_then(|d| d.value.path.as_ref())
            .map_or(Span::NONE, |p| p.span)
    };
    let mut plan = LockPlan {
        driver,
        config,
        disks: Vec::new(),
        sanlock: None,
    };
    if driver == Driver::Sanlock && !blocks.is_empty() {
        plan.sanlock = sanlock(locking, facts, problems);
    }
    for block in blocks.iter_mut() {
        if driver == Driver::None {
            block.lock = Lock::Off;
        } else {
            unstable(&block.path, span(&block.path), facts, problems);
        }
        let image = absolute(&facts.directory().join(&block.path));
        // libvirt takes nothing for what is only read; a read lock keeps its writers off where the image's own locks
        // do not reach, and its readers do not mind.
        let besides = match driver {
            Driver::Lockd => places(&image, &plan.config, facts),
            Driver::Sanlock if !block.read_only => match &plan.sanlock {
                Some(sanlock) => leases(&image, &sanlock.leases, facts),
                None => Vec::new(),
            },
            _ => Vec::new(),
        };
        block.lockspace = besides
            .iter()
            .any(|place| matches!(place, Place::Lockspace { .. }));
        let access = Access {
            write: !block.read_only,
            resize: block.format != Format::Raw,
            lock: block.lock,
            device: false,
            flock: false,
        };
        plan.disks.push(DiskLock {
            disk: block.id.clone(),
            image,
            access: match (block.read_only, block.lock) {
                (true, _) => "ro",
                (false, Lock::Shared) => "rw shared",
                (false, _) => "rw",
            }
            .to_owned(),
            bytes: bytes(access.locked()),
            besides,
            alone: block.lock == Lock::Exclusive && !block.read_only,
        });
    }
    match (driver, plan.disks.is_empty()) {
        (_, true) => {}
        (Driver::None, false) => {
            let at = locking.driver.map_or(Span::NONE, |d| d.span);
            let text = "Nothing keeps another machine off these images";
            let d = Diagnostic::warning("W-LOCK-NONE", at, text);
            problems.push(
                d.why("Two machines that write one image destroy it")
                    .help("`locking: files`, the default, costs microseconds"),
            );
        }
        (Driver::Files | Driver::Lockd | Driver::Sanlock, false) => {}
    }
    plan
}

/// The lockspaces; what does not go with the driver is said.
fn config(locking: &Locking, driver: Driver, facts: &dyn Facts, problems: &mut Problems) -> Config {
    let Locking {
        driver: _,
        file,
        lvm,
        scsi,
        host_id,
        leases,
        io_timeout,
    } = locking;
    let mut unused = |key: &str, span: Option<Span>, of: &str| {
        if let Some(span) = span {
            let text = format!("`locking.{key}` is for the driver {of}");
            let d = Diagnostic::warning("W-UNUSED", span, text);
            problems.push(d.help(format!("Add `driver: {of}`, or leave it out")));
        }
    };
    let directories = [
        ("file_lockspace_dir", file),
        ("lvm_lockspace_dir", lvm),
        ("scsi_lockspace_dir", scsi),
    ];
    if driver != Driver::Lockd {
        for (key, given) in directories {
            unused(key, given.as_ref().map(|g| g.span), "lockd");
        }
    }
    if driver != Driver::Sanlock {
        unused("host_id", host_id.map(|g| g.span), "sanlock");
        unused("disk_lease_dir", leases.as_ref().map(|g| g.span), "sanlock");
        unused("io_timeout", io_timeout.map(|g| g.span), "sanlock");
    }
    if driver != Driver::Lockd {
        return Config::default();
    }
    for (_, given) in directories {
        if let Some(given) = given
            && !matches!(facts.file(&given.value), Ok(file) if file.kind == FileKind::Directory)
        {
            let shown = given.value.display();
            let text = format!("There is no lockspace directory {shown}");
            let d = Diagnostic::error("E-LOCKSPACE", given.span, text);
            problems.push(
                d.why("Every host that uses the images has to see it")
                    .help(format!(
                        "mkdir -p {shown}; `vsc-run locks setup lockd --plan` shows the rest"
                    )),
            );
        }
    }
    let path = |given: &Given<PathBuf>| {
        let path = &given.as_ref()?.value;
        Some(absolute(&facts.directory().join(path)))
    };
    Config {
        file: path(file),
        lvm: path(lvm),
        scsi: path(scsi),
    }
}

/// Where a writable image is locked besides, in the order in which libvirt's lockd plug-in decides: a volume by its
/// uuid, a unit by its identity, anything by its path, the image itself.
fn places(image: &Path, config: &Config, facts: &dyn Facts) -> Vec<Place> {
    let one = |directory: &Path, name: String| Place::Lockspace {
        directory: directory.to_owned(),
        name,
    };
    if let Some(dir) = &config.lvm
        && let Some(key) = keys::lvm_key(image, facts)
    {
        return vec![one(dir, key)];
    }
    if let Some(dir) = &config.scsi
        && let Some(key) = keys::scsi_key(image, facts)
    {
        return vec![one(dir, key)];
    }
    let Some(dir) = &config.file else {
        return vec![Place::Image];
    };
    // libvirt takes the path as it is written; where that leads through a link, others may have written the rest.
    let mut names = vec![keys::file_key(image)];
    if let Some(real) = facts.resolved(image)
        && real != image
    {
        names.push(keys::file_key(&real));
    }
    names.into_iter().map(|name| one(dir, name)).collect()
}

/// Where the leases are; what keeps them from being taken is said.
fn sanlock(locking: &Locking, facts: &dyn Facts, problems: &mut Problems) -> Option<Sanlock> {
    let at = locking.driver.map_or(Span::NONE, |d| d.span);
    let socket = sanlock::Daemon::socket_in(&facts.sanlock());
    if !facts.exists(&socket) {
        let text = format!(
            "sanlock's daemon does not run here: there is no {}",
            socket.display()
        );
        let lockd = "`locking: {driver: lockd, file_lockspace_dir: DIR}` on a shared file system needs no daemon";
        problems.push(
            Diagnostic::error("E-SANLOCK", at, text)
                .why("Its leases are what keeps other hosts off the images")
                .help(format!(
                    "`vsc-run locks setup sanlock --plan` shows how to start it. {lockd}"
                )),
        );
        return None;
    }
    let Some(host_id) = locking.host_id else {
        let text =
            "`locking.host_id` is missing: this host's number among those that share the leases";
        let d = Diagnostic::error("E-SANLOCK", at, text);
        problems.push(d.help("Write `host_id: N`, 1 to 2000, another one on each host; libvirt's is in /etc/libvirt/qemu-sanlock.conf"));
        return None;
    };
    let given = locking.leases.as_ref();
    let directory = given.map_or(Path::new(LEASES), |g| &g.value);
    let directory = absolute(&facts.directory().join(directory));
    if !matches!(facts.file(&directory), Ok(file) if file.kind == FileKind::Directory) {
        let shown = directory.display();
        let text = format!("There is no directory {shown} for sanlock's leases");
        let d = Diagnostic::error("E-LOCKSPACE", given.map_or(at, |g| g.span), text);
        problems.push(
            d.why("Every host that uses the images has to see it")
                .help("`vsc-run locks setup sanlock --plan` shows the steps"),
        );
        return None;
    }
    let io_timeout = locking.io_timeout.map(|g| g.value);
    Some(Sanlock {
        socket,
        host_id: host_id.value,
        leases: directory,
        io_timeout: io_timeout
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(sanlock::IO_TIMEOUT),
    })
}

/// The leases of a writable image: of its path as it is written, as libvirt's plug-in takes it, and of what that leads
/// to through links.
fn leases(image: &Path, directory: &Path, facts: &dyn Facts) -> Vec<Place> {
    let one = |path: &Path| Place::Lease {
        directory: directory.to_owned(),
        name: keys::lease_name(path),
    };
    let mut leases = vec![one(image)];
    leases.extend(
        facts
            .resolved(image)
            .filter(|r| r != image)
            .map(|r| one(&r)),
    );
    leases
}

/// Says that a name is not of the device but of the order in which it was found.
fn unstable(path: &Path, span: Span, facts: &dyn Facts, problems: &mut Problems) {
    let Some(name) = path.to_str().and_then(|p| p.strip_prefix("/dev/")) else {
        return;
    };
    let lettered = ["sd", "vd", "hd", "xvd"].iter().any(|kind| {
        let rest = name.strip_prefix(kind).unwrap_or_default();
        rest.starts_with(|c: char| c.is_ascii_lowercase())
            && rest
                .trim_start_matches(|c: char| c.is_ascii_lowercase())
                .bytes()
                .all(|b| b.is_ascii_digit())
    });
    let numbered = ["nvme", "dm-"].iter().any(|kind| {
        name.strip_prefix(kind)
            .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
    });
    if !lettered && !numbered {
        return;
    }
    let links = |directory: &str| facts.links(Path::new(directory));
    let better = ["/dev/disk/by-path", "/dev/disk/by-id"]
        .into_iter()
        .flat_map(|dir| {
            links(dir)
                .into_iter()
                .map(move |(link, to)| (Path::new(dir).join(link), to))
        })
        .find(|(_, to)| to == path)
        .map(|(link, _)| link);
    let text = format!(
        "{} may be another device after the next boot",
        quoted(&path.display().to_string())
    );
    let d = Diagnostic::warning("W-DISK-NAME", span, text)
        .why("Its name is the order in which it was found; locks by such a name hold within this host only");
    problems.push(match better {
        Some(link) => d.help(format!("Write {}", link.display())),
        None => d.help("Name it by a link in /dev/disk/by-path or /dev/disk/by-id"),
    });
}

/// An absolute path without `.` in it.
fn absolute(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| *part != Component::CurDir)
        .collect()
}

/// `99-101, 201`.
fn bytes(ranges: Ranges) -> String {
    let range = |(start, len): (u64, u64)| match len {
        1 => start.to_string(),
        len => format!("{start}-{}", start + len - 1),
    };
    let ranges: Vec<String> = ranges.into_iter().map(range).collect();
    ranges.join(", ")
}

#[cfg(test)]
mod tests;
