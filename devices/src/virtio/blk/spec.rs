//! A disk as plain data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::block::lock::Lock;

/// Bytes of a serial number (VIRTIO_BLK_ID_BYTES, VIRTIO 5.2.6).
pub const SERIAL_MAX: usize = 20;
/// Longest queue, entries (QEMU's `VIRTQUEUE_MAX_SIZE`).
const QUEUE_MAX: u16 = 1024;
/// Most queues; one per vCPU is the most that helps.
const QUEUES_MAX: u16 = 64;

/// One disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkSpec {
    /// Serial number that the guest reads with VIRTIO_BLK_T_GET_ID (Linux: `/sys/block/vda/serial`, and
    /// `/dev/disk/by-id/virtio-…`): up to 20 printable ASCII characters. Empty: none.
    #[serde(default)]
    pub id: String,
    /// The image: a regular file or a block device.
    pub path: PathBuf,
    /// Format of the image; never guessed, because a guest can write any header to a raw disk.
    #[serde(default)]
    pub format: Format,
    /// The image is a container, and the guest sees what is encrypted in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Luks>,
    /// The guest cannot write (VIRTIO_BLK_F_RO) and the image is opened without write access.
    #[serde(default)]
    pub read_only: bool,
    /// What the host caches and when writes are stable.
    #[serde(default)]
    pub cache: Cache,
    /// Overrides the O_DIRECT half of `cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_io: Option<bool>,
    /// Overrides the flush half of `cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_mode: Option<SyncMode>,
    /// What a guest's discard does to the image.
    #[serde(default)]
    pub discard: Discard,
    /// Entries of each queue: a power of two from 4 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Request queues, 1 to 64; more than 1 offers VIRTIO_BLK_F_MQ. All are served by the disk's loop.
    #[serde(default = "default_num_queues")]
    pub num_queues: u16,
    /// Logical block in bytes (`blk_size`, VIRTIO 5.2.4): 512 or 4096. Partition tables depend on it.
    #[serde(default = "default_block")]
    pub logical_block_size: u32,
    /// Most data segments of a request (`seg_max`, VIRTIO 5.2.4), 1 to 1022. Not given: `queue_size` - 2, so that
    /// header and status find room in a chain as long as the queue. Linux sends one page per request without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seg_max: Option<u16>,
    /// How the image is locked against other machines.
    #[serde(default)]
    pub lock: Lock,
    /// A lockspace protects the image as well: that its file system has no locks is said, and no error.
    #[serde(default)]
    pub lockspace: bool,
}

fn default_queue_size() -> u16 {
    256
}

fn default_num_queues() -> u16 {
    1
}

fn default_block() -> u32 {
    512
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes of the disk.
    #[default]
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// VMware.
    Vmdk,
}

/// LUKS, version 1 or 2: what the header says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Luks {
    /// Name of the descriptor that has the passphrase ([`HostEnds`](crate::stream::HostEnds)): never the passphrase.
    pub secret: String,
}

/// Cache modes, as libvirt spells them and QEMU means them (`-drive cache=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// O_DIRECT; the guest sees a write cache and flushes it.
    None,
    /// The host's page cache; the guest sees a write cache and flushes it.
    #[default]
    Writeback,
    /// The host's page cache; each write is stable when it completes. The guest may switch to a write cache
    /// (VIRTIO_BLK_F_CONFIG_WCE).
    Writethrough,
    /// O_DIRECT; each write is stable when it completes.
    Directsync,
    /// As writeback, but flushes do nothing: a crash of the host loses or corrupts the disk.
    Unsafe,
}

/// What a flush does, in libkrun's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Nothing, as with [`Cache::Unsafe`].
    None,
    /// `fdatasync`. libkrun differs from full on macOS only.
    Relaxed,
    /// `fdatasync`, which empties the cache of the drive as well.
    Full,
}

/// What becomes of discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// The image gives the space back (VIRTIO_BLK_F_DISCARD; write-zeroes may as well).
    #[default]
    Unmap,
    /// The feature is not offered, and zeroes stay allocated.
    Ignore,
}

/// What `cache`, `direct_io` and `sync_mode` come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// O_DIRECT.
    pub direct: bool,
    /// The guest sees a write cache at first.
    pub writeback: bool,
    /// Neither flushes nor write-through reach the image.
    pub no_flush: bool,
}

/// What is wrong with a [`BlkSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not in this build.
    #[error(
        "Disk {path}: format {format} is not in this build yet; `qemu-img convert -O raw` makes a raw image"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// The serial number does not fit.
    #[error("Disk id `{0}` is not 0 to 20 printable ASCII characters")]
    Id(String),
    /// A number out of range.
    #[error("Disk {path}: {what} is {value}, must be {range}")]
    Range {
        /// The image.
        path: PathBuf,
        /// The field.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What is possible.
        range: &'static str,
    },
}

impl BlkSpec {
    /// A disk with everything at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            id: String::new(),
            path: path.into(),
            format: Format::Raw,
            encryption: None,
            read_only: false,
            cache: Cache::default(),
            direct_io: None,
            sync_mode: None,
            discard: Discard::default(),
            queue_size: default_queue_size(),
            num_queues: default_num_queues(),
            logical_block_size: default_block(),
            seg_max: None,
            lock: Lock::default(),
            lockspace: false,
        }
    }

    /// Checks all fields. The image is not looked at.
    ///
    /// # Errors
    /// The first thing wrong.
    pub fn validate(&self) -> Result<(), SpecError> {
        let path = || self.path.clone();
        let unknown = |format| {
            Err(SpecError::Format {
                path: path(),
                format,
            })
        };
        match self.format {
            Format::Raw => {}
            Format::Qcow2 => return unknown("qcow2"),
            Format::Vmdk => return unknown("vmdk"),
        }
        let printable = |b: u8| b.is_ascii_graphic() || b == b' ';
        if self.id.len() > SERIAL_MAX || !self.id.bytes().all(printable) {
            return Err(SpecError::Id(self.id.clone()));
        }
        let check = |good: bool, what, value: u32, range| {
            if good {
                return Ok(());
            }
            Err(SpecError::Range {
                path: path(),
                what,
                value,
                range,
            })
        };
        let size = self.queue_size;
        let good = size.is_power_of_two() && (4..=QUEUE_MAX).contains(&size);
        check(
            good,
            "queue_size",
            size.into(),
            "a power of two from 4 to 1024",
        )?;
        let queues = self.num_queues;
        let good = (1..=QUEUES_MAX).contains(&queues);
        check(good, "num_queues", queues.into(), "1 to 64")?;
        let block = self.logical_block_size;
        let good = matches!(block, 512 | 4096);
        check(good, "logical_block_size", block, "512 or 4096")?;
        let segments = self.seg_max();
        let good = (1..=QUEUE_MAX - 2).contains(&segments);
        check(good, "seg_max", segments.into(), "1 to 1022")
    }

    /// Data segments of the longest request.
    pub fn seg_max(&self) -> u16 {
        self.seg_max.unwrap_or(self.queue_size.saturating_sub(2))
    }

    /// The three decisions behind the cache keys.
    pub fn policy(&self) -> Policy {
        let (direct, writeback, no_flush) = match self.cache {
            Cache::None => (true, true, false),
            Cache::Writeback => (false, true, false),
            Cache::Writethrough => (false, false, false),
            Cache::Directsync => (true, false, false),
            Cache::Unsafe => (false, true, true),
        };
        Policy {
            direct: self.direct_io.unwrap_or(direct),
            writeback,
            no_flush: match self.sync_mode {
                None => no_flush,
                Some(SyncMode::None) => true,
                Some(SyncMode::Relaxed | SyncMode::Full) => false,
            },
        }
    }
}
