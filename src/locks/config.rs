//! How images are locked, as plain data: what a scenario's `locking` says, and what it comes to for each disk.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys;
use super::lockspace::{self, Held, Identity, LockspaceError};
use super::sanlock::{Lease, Leases, OnLoss, Sanlock, SanlockError};

/// Who keeps track of images in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel, by locks on the images themselves.
    #[default]
    Files,
    /// The same, and byte 0 or a lockspace, as libvirt's virtlockd has them.
    Lockd,
    /// sanlock's daemon, by leases on shared storage.
    Sanlock,
    /// Nobody.
    None,
}

impl Driver {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Files, Self::Lockd, Self::Sanlock, Self::None];

    /// Its word in a scenario.
    pub fn word(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Lockd => "lockd",
            Self::Sanlock => "sanlock",
            Self::None => "none",
        }
    }

    /// What libvirt calls it (`lock_manager` of qemu.conf).
    pub fn libvirt(self) -> Option<&'static str> {
        match self {
            Self::Files => None,
            Self::Lockd => Some("lockd"),
            Self::Sanlock => Some("sanlock"),
            Self::None => Some("nop"),
        }
    }
}

/// What all hosts that share a lockspace must have alike: where images of each kind are locked. Which directory a host
/// mounts it at is its own affair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `file_lockspace_dir`; without it files and devices are locked themselves.
    pub file: Option<PathBuf>,
    /// `lvm_lockspace_dir`: logical volumes, by uuid.
    pub lvm: Option<PathBuf>,
    /// `scsi_lockspace_dir`: SCSI units, by identity.
    pub scsi: Option<PathBuf>,
}

impl Config {
    /// The line that hosts compare: a digest, and what it is of.
    pub fn line(&self) -> String {
        let has = |dir: &Option<PathBuf>| if dir.is_some() { "lockspace" } else { "image" };
        let text = format!(
            "driver=lockd file={} lvm={} scsi={}",
            has(&self.file),
            has(&self.lvm),
            has(&self.scsi)
        );
        let digest = keys::digest(&text);
        format!("{digest} {text}")
    }

    /// The directories.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.file, &self.lvm, &self.scsi];
        all.into_iter().flatten().map(PathBuf::as_path)
    }
}

/// A lock beside those that a disk's open file has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "in")]
pub enum Place {
    /// Byte 0 of the image.
    Image,
    /// A lease of sanlock.
    Lease {
        /// The directory.
        directory: PathBuf,
        /// The lease's name, and its file's.
        name: String,
    },
    /// A file of a lockspace.
    Lockspace {
        /// The directory.
        directory: PathBuf,
        /// The file's name.
        name: String,
    },
}

/// How one disk is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLock {
    /// The disk's name.
    pub disk: String,
    /// Its image, absolute.
    pub image: PathBuf,
    /// `rw`, `ro`, or `rw shared`.
    pub access: String,
    /// Bytes of the image that are locked: `99-101, 201`; empty: none.
    pub bytes: String,
    /// Locks besides.
    pub besides: Vec<Place>,
    /// A write lock in those.
    pub alone: bool,
}

/// How a machine's disks are locked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockPlan {
    /// By whom.
    pub driver: Driver,
    /// Where.
    pub config: Config,
    /// Each disk.
    pub disks: Vec<DiskLock>,
    /// Where sanlock's leases are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sanlock: Option<Sanlock>,
}

impl Place {
    /// The file that is locked.
    pub fn file(&self, image: &Path) -> PathBuf {
        match self {
            Self::Image => image.to_owned(),
            Self::Lockspace { directory, name } | Self::Lease { directory, name } => {
                directory.join(name)
            }
        }
    }
}

/// What a run holds besides the locks of its open images; given up when it is dropped.
#[derive(Debug, Default)]
pub struct Guard(Vec<Held>);

impl Guard {
    /// Gives the locks up. `remove` is to remove files of lockspaces that this process may not
    /// ([`lockspace::remove`]).
    pub fn give_up(mut self, mut remove: impl FnMut(&Path, Identity)) {
        for held in &mut self.0 {
            held.release(&mut remove);
        }
    }
}

impl LockPlan {
    /// Directories in which files are removed when the locks are given up.
    pub fn directories(&self) -> Vec<PathBuf> {
        let places = self.disks.iter().flat_map(|disk| &disk.besides);
        let mut directories: Vec<PathBuf> = places
            .filter_map(|place| match place {
                Place::Image | Place::Lease { .. } => None,
                Place::Lockspace { directory, .. } => Some(directory.clone()),
            })
            .collect();
        directories.sort_unstable();
        directories.dedup();
        directories
    }

    /// Those files.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = self.disks.iter().flat_map(|disk| {
            let removed = |place: &&Place| matches!(place, Place::Lockspace { .. });
            let spaces = disk.besides.iter().filter(removed);
            spaces.map(|place| place.file(&disk.image))
        });
        files.collect()
    }

    /// Takes the locks that no open image has, but leases. Nothing is done where there are none.
    ///
    /// # Errors
    /// [`LockspaceError`]; what was taken until then is given up.
    pub fn take(&self) -> Result<Guard, LockspaceError> {
        let mut guard = Guard::default();
        self.add(&mut guard, |_, _| true)?;
        Ok(guard)
    }

    /// Takes the leases, for this process, which runs the machine `name`; none are needed where no image has one. What
    /// takes a while is told to `tell`.
    ///
    /// # Errors
    /// [`SanlockError`]; then none is held.
    pub fn take_leases(
        &self,
        name: &str,
        on_loss: Option<&OnLoss>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Option<Leases>, SanlockError> {
        let mut leases: Vec<Lease> = Vec::new();
        for disk in &self.disks {
            for place in &disk.besides {
                let Place::Lease { name, .. } = place else {
                    continue;
                };
                // Two disks of one image: the daemon gives a lease to a process once.
                match leases.iter_mut().find(|lease| lease.name == *name) {
                    Some(lease) => lease.shared &= !disk.alone,
                    None => leases.push(Lease {
                        image: disk.image.clone(),
                        name: name.clone(),
                        shared: !disk.alone,
                    }),
                }
            }
        }
        match self.sanlock.as_ref().filter(|_| !leases.is_empty()) {
            Some(at) => Leases::take(at, name, leases, on_loss, tell).map(Some),
            None => Ok(None),
        }
    }

    /// Those of them that need no image of `new`, which are not made yet: [`Self::take_rest`] takes the others.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_before(&self, new: &[PathBuf]) -> Result<Guard, LockspaceError> {
        let mut guard = Guard::default();
        self.add(&mut guard, |image, place| !is_late(new, image, place))?;
        Ok(guard)
    }

    /// Those on images that have been made since.
    ///
    /// # Errors
    /// As [`Self::take`]; what `guard` had, stays.
    pub fn take_rest(&self, new: &[PathBuf], guard: &mut Guard) -> Result<(), LockspaceError> {
        self.add(guard, |image, place| is_late(new, image, place))
    }

    fn add(
        &self,
        guard: &mut Guard,
        which: impl Fn(&Path, &Place) -> bool,
    ) -> Result<(), LockspaceError> {
        let mut agreed: Vec<&Path> = Vec::new();
        for disk in &self.disks {
            for place in disk.besides.iter().filter(|p| which(&disk.image, p)) {
                guard.0.push(match place {
                    Place::Lease { .. } => continue,
                    Place::Image => lockspace::take_image(&disk.image, disk.alone)?,
                    Place::Lockspace { directory, name } => {
                        if !agreed.contains(&directory.as_path()) {
                            lockspace::agree(directory, &self.config)?;
                            agreed.push(directory);
                        }
                        lockspace::take(directory, name, disk.alone, &disk.image)?
                    }
                });
            }
        }
        Ok(())
    }
}

/// A lock on a file that is not there yet.
fn is_late(new: &[PathBuf], image: &Path, place: &Place) -> bool {
    *place == Place::Image && new.iter().any(|path| path == image)
}
