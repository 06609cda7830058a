//! `state.json` of an entry: who runs it, or how its last run ended.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::process::Process;

/// What is known of an entry's runs. Unknown fields of later builds are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The process that runs it, or ran it last.
    pub process: Option<Process>,
    /// When that run began, seconds since 1970.
    pub began: Option<u64>,
    /// The libvirt that it is for, if it is not run by this program.
    pub on: Option<Remote>,
    /// The libvirt that has it, since the last start.
    pub handed_to: Option<Remote>,
    /// Its UUID there.
    pub uuid: Option<String>,
    /// The settings that go between its presets and its scenario.
    pub settings: Option<PathBuf>,
    /// How the last run ended; nothing while one runs, or when it was not there to tell.
    pub ended: Option<Ended>,
    /// Disk images that were made for it.
    pub created_disks: Vec<PathBuf>,
}

/// A libvirt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Its name in the list of hypervisors.
    pub host: String,
    /// Its connection URI.
    pub url: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// One word, as in the result of a run.
    pub outcome: String,
    /// The exit code.
    pub exit_code: u8,
    /// One sentence, where the code does not say it all.
    pub message: Option<String>,
    /// When, seconds since 1970.
    pub at: u64,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
