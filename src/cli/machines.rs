//! Verbs about saved VMs: start, list, status, stop, delete; and how a scenario becomes one.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use vsc::facts::Variables;
use vsc::store::{Ended, Entry, Store, StoreError};

use super::Common;
use crate::say;

mod delete;
mod list;
mod save;
mod start;
mod stop;

pub(super) use delete::{DeleteArgs, delete};
pub(super) use list::{ListArgs, StatusArgs, clock, list, status};
pub(super) use save::save;
pub(super) use start::{StartArgs, start};
pub(super) use stop::{StopArgs, stop};

/// Where saved VMs are.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StoreArgs {
    /// The directory of saved VMs, instead of ~/.local/share/vsc/vms.
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
}

impl StoreArgs {
    /// The store: what the command line says, else `told` (the key `store`), else the user's own.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(&self, told: Option<&Path>) -> Result<Store, StoreError> {
        let directory = match (&self.store, told) {
            (Some(directory), _) => directory.clone(),
            (None, Some(directory)) => directory.to_owned(),
            (None, None) => {
                Store::default_directory(&Variables::of_process()).ok_or_else(|| {
                    StoreError::Unusable {
                        directory: PathBuf::from("~/.local/share/vsc/vms"),
                        why: "neither $XDG_DATA_HOME nor $HOME is set; --store names another"
                            .into(),
                    }
                })?
            }
        };
        Store::new(&directory)
    }
}

/// A saved VM as verbs show it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// In libvirt's words: running, shut off, …; `damaged` where nothing can be said.
    state: String,
    host: Option<String>,
    pid: Option<u32>,
    uptime_seconds: Option<u64>,
    attestation: Option<bool>,
    directory: PathBuf,
    ended: Option<Ended>,
    problems: Vec<String>,
}

/// Nobody runs it.
const SHUT_OFF: &str = "shut off";
/// Somebody does.
const RUNNING: &str = "running";
/// What is there is not enough to tell, or to start it.
const DAMAGED: &str = "damaged";

impl Row {
    fn of(entry: Entry, proc: &Path) -> Self {
        let process = entry.state.process.filter(|_| entry.state.ended.is_none());
        let running = process.and_then(|p| Some((p.uptime(proc)?, p.pid)));
        let state = match running {
            Some(_) => RUNNING,
            None if entry.config.is_none() => DAMAGED,
            None => SHUT_OFF,
        };
        Self {
            name: entry.name,
            state: state.to_owned(),
            host: entry.config.as_ref().map(|c| c.host.clone()),
            pid: running.map(|(_, pid)| pid),
            uptime_seconds: running.map(|(uptime, _)| uptime.as_secs()),
            attestation: entry.config.as_ref().map(|c| c.attestation),
            directory: entry.directory,
            ended: entry.state.ended,
            problems: entry.problems,
        }
    }
}

/// Says why a verb failed, and returns its exit code.
fn failed(error: &dyn std::error::Error) -> u8 {
    // The sources of a StoreError are in its own sentence.
    say::err(&error.to_string());
    crate::FAILED
}

/// The answer of a verb: one for programs, one for people.
fn answer(common: &Common, value: &impl Serialize, text: &str) {
    if common.json {
        say::out(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
    } else if !common.quiet {
        say::out(text);
    }
}

/// A time given to an option: as times in scenarios.
fn time(text: &str) -> Result<Duration, String> {
    vsc::scenario::time(text)
}
