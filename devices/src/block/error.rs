//! Why a disk cannot be opened.

use std::io;
use std::path::PathBuf;

use super::lock::Held;

/// Why a disk cannot be opened. Each message says what would mend it, where something would.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error("Disk {path}: no such file")]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// A directory was named.
    #[error("Disk {path}: is a directory, not an image")]
    Directory {
        /// The image.
        path: PathBuf,
    },
    /// A pipe, a socket or a character device was named.
    #[error("Disk {path}: is {what}; a disk is a regular file or a block device")]
    NotADisk {
        /// The image.
        path: PathBuf,
        /// What it is instead, with its article.
        what: &'static str,
    },
    /// The user may not open it.
    #[error("Disk {path}: permission denied{hint}")]
    Permission {
        /// The image.
        path: PathBuf,
        /// What may be possible instead.
        hint: &'static str,
    },
    /// Write access to an image on a read-only file system or device.
    #[error("Disk {path}: lies on a read-only file system; give the disk as read-only or copy it")]
    ReadOnlyFileSystem {
        /// The image.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("Disk {path}: is empty; `truncate -s 1G FILE` gives it a size")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// A writable image whose last block is incomplete. Writing the guest's last block would change the file's
    /// size; leaving it out would hide data.
    #[error(
        "Disk {path}: its {size} bytes are not a multiple of {block}; `truncate -s %{block} FILE` rounds \
         up, or give the disk as read-only: the missing bytes then read as zeroes"
    )]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
        /// What it must be a multiple of, bytes.
        block: u32,
    },
    /// O_DIRECT was asked for and refused.
    #[error("Disk {path}: its file system cannot bypass the page cache; use cache mode writeback")]
    NoDirectIo {
        /// The image.
        path: PathBuf,
    },
    /// Another program holds it for writing or executes it.
    #[error("Disk {path}: in use by another program or mounted")]
    Busy {
        /// The image.
        path: PathBuf,
    },
    /// Another machine uses it. Who that is, is for others to find out.
    #[error("Disk {path}: is locked by another program")]
    Locked {
        /// The image.
        path: PathBuf,
        /// We only wanted to read it.
        read_only: bool,
        /// What is in the way; `None`: a lock by flock(2).
        by: Option<Held>,
    },
    /// Its file system cannot lock files.
    #[error(
        "Disk {path}: its file system has no locks, and without them two machines could write it; a lockspace on \
         another one helps (`locking: {{driver: lockd, file_lockspace_dir: DIR}}`), `locking: none` does without"
    )]
    NoLocks {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It cannot be locked for another reason.
    #[error("Disk {path}: cannot be locked")]
    Lock {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Any other failure to open.
    #[error("Disk {path}: cannot be opened")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its size or its nature cannot be read.
    #[error("Disk {path}: its size and type cannot be read")]
    Inspect {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
