//! What is done to the host, as plain data.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The scenario's key, or the purpose: `host.thp`, `limits.memory_max`, `sev.enable`.
    pub what: String,
    /// What is done.
    pub act: Act,
    /// Without it there is no run. What is merely recommended gives way, and that is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
}

/// What is done to the host. All paths are the host's own, absolute; [`crate::facts::Root`] is put before them when
/// they are touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Act {
    /// An existing small file of sysfs, procfs or cgroupfs gets another value.
    Write {
        /// The file.
        path: PathBuf,
        /// The value before, as it has to be written to restore it: of a file that lists what it offers, the word in
        /// brackets alone. What is restored is the value that was there when the change was made, which may be
        /// another than this one of the plan.
        old: String,
        /// The value after, written exactly so.
        new: String,
    },
    /// A counter gets more. What several runs add, adds up; each takes its own part back.
    Add {
        /// The file with the counter, such as `nr_hugepages`.
        path: PathBuf,
        /// How much more.
        by: u64,
    },
    /// A configuration file is made or replaced, in one step; undo restores its bytes or removes it. Outlives a
    /// reboot.
    File {
        /// The file.
        path: PathBuf,
        /// Its text before; `None`: there is none. A file with another text is left alone: the new one was thought
        /// out for this one.
        old: Option<String>,
        /// Its text after.
        new: String,
        /// Its permissions, where it is new. One that is there keeps its own, and its owner.
        mode: u32,
    },
    /// A directory is made, such as a cgroup; undo removes it. One for configuration, below /etc,
    /// outlives a reboot.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A unit of systemd is started or stopped, enabled or disabled.
    Unit {
        /// Its name: `ksm.service`.
        name: String,
        /// What it is. What is restored is what it was when the change was made.
        was: UnitState,
        /// What it becomes.
        now: UnitState,
    },
    /// Something of the run's own that must not stay once it is over: a socket, a state file. It need not be there
    /// when the run begins; what is there already and stays the same file is not touched.
    Leftover {
        /// The file.
        path: PathBuf,
    },
}

/// What a unit of systemd is; `None`: nobody cares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// It runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// It will run after a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

impl Act {
    /// What it is done to: a path of the host, or a unit's name.
    pub fn target(&self) -> &Path {
        match self {
            Act::Write { path, .. }
            | Act::Add { path, .. }
            | Act::File { path, .. }
            | Act::Directory { path }
            | Act::Leftover { path } => path,
            Act::Unit { name, .. } => Path::new(name),
        }
    }

    /// Whether a reboot leaves it as it is.
    pub fn is_lasting(&self) -> bool {
        match self {
            Act::File { .. } => true,
            Act::Unit { now, .. } => now.enabled.is_some(),
            Act::Directory { path } => path.starts_with("/etc"),
            Act::Write { .. } | Act::Add { .. } | Act::Leftover { .. } => false,
        }
    }
}

/// The value in the text of a small file of sysfs or procfs: the word in brackets where it lists what it offers,
/// otherwise all of it without the blanks at its ends.
pub fn value(text: &str) -> &str {
    let text = text.trim();
    let mut words = text.split_ascii_whitespace();
    words
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or(text)
}
