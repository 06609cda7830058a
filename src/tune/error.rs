//! Why something cannot be done to the host.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

/// Why the host's changes as a whole cannot be made, looked at or undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// Without a journal nothing is changed, and there is no place for one.
    #[error(
        "there is no directory for the journal of host changes: set XDG_RUNTIME_DIR or HOME to directories of this user"
    )]
    NoPlace,
    /// The journal's directory is not this user's alone.
    #[error("the journal of host changes is not to be trusted: {path} {why}")]
    Stranger {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The journal cannot be worked with.
    #[error("cannot {action} {path}")]
    Journal {
        /// What was attempted.
        action: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
    /// Somebody else is at it.
    #[error("the journal of host changes {path} has been locked for {seconds} s by {}", match holder {
        Some(holder) => holder.to_string(),
        None => "a process that cannot be seen from here".to_owned(),
    })]
    Busy {
        /// Its directory.
        path: PathBuf,
        /// How long that was waited for.
        seconds: u64,
        /// Who has it.
        holder: Option<super::wait::Locker>,
    },
    /// The journal was changed by something else than its writer.
    #[error(
        "the journal of host changes {path} is damaged in line {line}: {why}; `vsc-run host undo --force` undoes what its sound lines say, keeps it aside, and starts a new one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// Something without which there is no run cannot be done. What was done before it has been undone.
    #[error("{what} cannot be had: {why}")]
    Required {
        /// The scenario's key.
        what: String,
        /// Why, and what helps.
        why: String,
    },
    /// Nobody would undo it.
    #[error("cannot start the process that puts the host back")]
    Warden(#[source] io::Error),
    /// Without /proc no run can be told from another.
    #[error("/proc does not tell who this process is")]
    NoProc,
}

/// Why one change cannot be made or undone.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cannot {
    #[error("there is no {0}")]
    Missing(PathBuf),
    #[error("{0} is no regular file")]
    NoFile(PathBuf),
    #[error(
        "links lead from {path} out of {root}, which stands for the host: nothing outside of it is touched"
    )]
    Outside { path: PathBuf, root: PathBuf },
    #[error("{path} cannot be read: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} holds no text, or more than 64 KiB")]
    NoText { path: PathBuf },
    #[error("{path} cannot be set to {value}: {error}{}", remedy(error, path))]
    Write {
        path: PathBuf,
        value: String,
        error: io::Error,
    },
    #[error("this user may not write {path}: as root it can be done")]
    Denied { path: PathBuf },
    #[error("cannot {action} {path}: {error}")]
    Make {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{path} is not as it was when this was planned: plan again")]
    Changed { path: PathBuf },
    #[error("it holds {now} instead of {wanted} after {wanted} was written")]
    NotTaken { wanted: String, now: String },
    #[error(
        "the kernel gave {gave} of {by} pages, {free} are free in all: memory is too scattered or too full for more; fewer pages, a drop of caches, or pages from boot on (hugepages= on the kernel's command line) help"
    )]
    Less { gave: u64, by: u64, free: u64 },
    #[error("what is to be done cannot be written down first: {0}")]
    Note(String),
    #[error("the unit {name}: {why}")]
    Unit { name: String, why: String },
}

impl Cannot {
    /// What the change was about has gone from the host, and its value with it.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Cannot::Missing(_) => true,
            Cannot::Write { error, .. } | Cannot::Read { error, .. } => {
                matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
            }
            _ => false,
        }
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// What helps, as the rest of a sentence.
fn remedy(error: &io::Error, path: &std::path::Path) -> &'static str {
    let merge = path.ends_with("ksm/merge_across_nodes");
    match error.raw_os_error() {
        // Documentation/admin-guide/mm/ksm.rst: only while no page is shared, which writing 2 to run brings about.
        Some(libc::EBUSY) if merge => {
            " (pages are merged now, and there is too little memory to take them apart)"
        }
        Some(libc::EACCES | libc::EPERM) => " (as root it can be done)",
        Some(libc::EROFS) => " (it is mounted read-only, as in a container)",
        Some(libc::EINVAL) => " (this kernel does not take that value)",
        _ => "",
    }
}
