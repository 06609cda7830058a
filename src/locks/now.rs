//! Which images of a machine are in use at this moment, and whether that keeps it from starting. Nothing is locked for it.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Serialize;
use vsc_devices::block::lock::{self, Access};
use vsc_devices::virtio::blk::{BlkSpec, Format};

use super::holders::{self, Holder, Kind, Lock};
use super::{DiskLock, Driver, LockPlan, Place, file_holders, held_by};

/// An image that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldNow {
    /// The disk's name.
    pub disk: String,
    /// Its image, or the file of a lockspace that stands for it.
    pub image: PathBuf,
    /// Who has it: `vm 'a', pid 4711, since 12:03 (vsc-run)`.
    pub by: String,
    /// That process; `None`: it is not seen here.
    pub pid: Option<u32>,
    /// What it does to it: `rw`, `rw shared`, `ro`, `libvirt`, `alone`, `other`, `hidden`.
    pub access: String,
    /// A run would be refused now.
    pub refused: bool,
    /// The sentence of that refusal, or what else there is to say.
    pub why: String,
}

/// The images of `disks`, of which `plan` says how they are locked, that somebody else holds by `proc`, where procfs is
/// mounted. An image that is not there is held by nobody.
pub fn held(proc: &Path, plan: &LockPlan, disks: &[BlkSpec]) -> Vec<HeldNow> {
    let mut out = Vec::new();
    for lock in &plan.disks {
        let Some(spec) = disks.iter().find(|spec| spec.id == lock.disk) else {
            continue;
        };
        if plan.driver == Driver::None {
            continue;
        }
        out.extend(image(proc, lock, spec));
        for place in &lock.besides {
            if let Place::Lockspace { .. } = place {
                out.extend(lockspace(proc, lock, &place.file(&lock.image)));
            }
        }
    }
    out
}

/// Those who have a lock on a file, others than this process. One look at /proc/locks where there are none.
fn others(proc: &Path, file: &Path) -> Option<(Vec<Holder>, Vec<Lock>)> {
    if !holders::is_locked(proc, file) {
        return None;
    }
    let mut found = file_holders(proc, file).ok()?;
    let this = std::process::id();
    found.seen.retain(|holder| holder.pid != this);
    let any = !found.seen.is_empty() || !found.hidden.is_empty();
    any.then_some((found.seen, found.hidden))
}

fn image(proc: &Path, lock: &DiskLock, spec: &BlkSpec) -> Option<HeldNow> {
    let (seen, hidden) = others(proc, &lock.image)?;
    let access = Access {
        write: !spec.read_only,
        resize: spec.format != Format::Raw,
        lock: spec.lock,
        device: false,
        flock: false,
    };
    let byte = lock.besides.contains(&Place::Image).then_some(lock.alone);
    let stops = |held: &Lock| is_in_the_way(held, access, byte);
    let all = seen.iter().flat_map(|holder| &holder.locks).chain(&hidden);
    let refused = all.into_iter().any(stops);
    let chosen = seen
        .iter()
        .max_by_key(|h| (h.locks.iter().any(stops), h.access() != "other"));
    // A database, a build's lock file: nothing of ours.
    if !refused && chosen.is_none_or(|holder| holder.access() == "other") {
        return None;
    }
    let by = match chosen {
        Some(holder) => holder.sentence(),
        None => "a process that /proc does not show here".to_owned(),
    };
    let why = match refused {
        true => held_by(proc, &lock.image, spec.read_only, &[]),
        false => format!("{} is shared with {by}", lock.image.display()),
    };
    Some(HeldNow {
        disk: lock.disk.clone(),
        image: lock.image.clone(),
        by,
        pid: chosen.map(|holder| holder.pid),
        access: chosen.map_or("hidden", Holder::access).to_owned(),
        refused,
        why,
    })
}

fn lockspace(proc: &Path, lock: &DiskLock, file: &Path) -> Option<HeldNow> {
    let (seen, hidden) = others(proc, file)?;
    let stops = |held: &Lock| held.touches(0, 0) && (lock.alone || held.write);
    let all = seen.iter().flat_map(|holder| &holder.locks).chain(&hidden);
    if !all.into_iter().any(stops) {
        return None;
    }
    let chosen = seen.iter().find(|holder| holder.locks.iter().any(stops));
    let by = chosen.map_or_else(
        || "a process that /proc does not show here".to_owned(),
        Holder::sentence,
    );
    Some(HeldNow {
        disk: lock.disk.clone(),
        image: file.to_owned(),
        why: format!(
            "E-LOCKED: {} is held by {by}, through {}: end that machine or use a copy",
            lock.image.display(),
            file.display()
        ),
        by,
        pid: chosen.map(|holder| holder.pid),
        access: "libvirt".to_owned(),
        refused: true,
    })
}

/// Whether a lock of somebody else keeps `access` off. `byte_0`: byte 0 of the image is locked too, for a writer alone
/// (`Some(true)`) or not.
fn is_in_the_way(held: &Lock, access: Access, byte_0: Option<bool>) -> bool {
    if access.lock == lock::Lock::Off || held.kind == Kind::Lease {
        return false;
    }
    let alone = access.write && access.lock == lock::Lock::Exclusive;
    if held.kind == Kind::Flock {
        return held.write || alone;
    }
    let touches = |(start, len): (u64, u64)| held.touches(start, start + len.saturating_sub(1));
    let ranges = access.locked().into_iter();
    // Who uses a permission minds whoever does not share it, and the other way round.
    let opposite = ranges.filter_map(|(start, len)| match start {
        lock::UNSHARED.. => Some((start - lock::UNSHARED + lock::USED, len)),
        start => {
            let used = start.max(lock::USED);
            let len = (start + len).saturating_sub(used);
            (len > 0).then_some((used - lock::USED + lock::UNSHARED, len))
        }
    });
    let gate = alone && held.touches(lock::GATE, lock::GATE);
    let byte_0 = byte_0.is_some_and(|alone| held.touches(0, 0) && (alone || held.write));
    // A reader does not mind whoever reads the file as a whole.
    let whole = !held.write
        && held.start == 0
        && held
            .end
            .is_none_or(|end| end > lock::UNSHARED + lock::RESIZE);
    let opposite = (access.write || !whole) && opposite.into_iter().any(touches);
    let written = held.write && access.locked().into_iter().any(touches);
    gate || byte_0 || opposite || written
}

#[cfg(test)]
mod tests;
