//! What can go wrong with saved VMs.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

/// Why the store does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A name that no saved VM can have.
    #[error("{name:?} is no name for a saved VM: {why}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store's directory is nothing to work in.
    #[error("the store {} cannot be used: {why}", directory.display())]
    Unusable {
        /// The store.
        directory: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A VM of this name is saved already.
    #[error("{} exists already; --overwrite replaces it", .0.display())]
    Exists(PathBuf),
    /// There is no VM of this name.
    #[error("there is no saved VM {name:?} in {}", store.display())]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        store: PathBuf,
    },
    /// Somebody runs it.
    #[error("{name} is already running{}; vsc-run stop {name} ends it", pid.map(|pid| format!(", pid {pid}")).unwrap_or_default())]
    Running {
        /// The VM.
        name: String,
        /// The process that runs it, if it has said so yet.
        pid: Option<u32>,
    },
    /// An entry has a part that is not what it should be.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The part.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There are files in an entry that neither this program nor the predecessor writes.
    #[error("{} holds {}, which {why}", directory.display(), names.join(", "))]
    Foreign {
        /// The entry.
        directory: PathBuf,
        /// The files.
        names: Vec<String>,
        /// What that means.
        why: &'static str,
    },
    /// A machine uses one of its images, perhaps not this program's.
    #[error("{0}")]
    Locked(String),
    /// The system refused something.
    #[error("cannot {action} {}: {error}", path.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// For `map_err`: what was attempted, and on what.
pub(super) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> StoreError + 'a {
    move |error| StoreError::System {
        action,
        path: path.to_owned(),
        error,
    }
}

pub(super) type Result<T> = std::result::Result<T, StoreError>;
