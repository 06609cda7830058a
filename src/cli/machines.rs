//! Verbs about saved VMs: start, list, status, stop, delete; and how a scenario becomes one.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use vsc::compile::Description;
use vsc::facts::{Root, Variables};
use vsc::libvirt::{SHUT_OFF, Virsh};
use vsc::scenario::old;
use vsc::store::{Ended, Entry, Name, Remote, Store, StoreError};

use super::Common;
use crate::say;

mod delete;
mod list;
mod luggage;
mod remote;
mod save;
mod start;
mod stop;

pub(super) use delete::{DeleteArgs, delete};
pub(super) use list::{ListArgs, StatusArgs, clock, list, status};
pub(super) use remote::{ended as ended_elsewhere, hand_over, resolve};
pub(super) use save::{keep, save};
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
    /// The store to save in: what the command line says, else `told` (the key `store` of a scenario), else what the
    /// settings file says, else the user's own.
    ///
    /// # Errors
    /// [`StoreError`].
    fn open(&self, told: Option<&Path>, common: &Common) -> Result<Store, StoreError> {
        let variables = Variables::of_process();
        let directory = match self.store.as_deref().or(told) {
            Some(directory) => directory.to_owned(),
            None => match of_settings(common, &variables)? {
                Some(directory) => directory,
                None => own(&variables)?,
            },
        };
        Store::new(&directory)
    }

    /// The stores to look in: that one, and, where nobody has named one, the predecessor's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn stores(&self, common: &Common) -> Result<Vec<Store>, StoreError> {
        let mut stores = vec![self.open(None, common)?];
        let variables = Variables::of_process();
        if self.store.is_none() && of_settings(common, &variables)?.is_none() {
            let root = Root(common.host_root.clone());
            let theirs = vsc::find_old(old::STORE, variables.home.as_deref(), &root);
            let ours = |directory: &PathBuf| {
                directory.is_dir() && vsc::trust::stranger(directory).is_none()
            };
            if let Some(theirs) = theirs.filter(ours) {
                let theirs = Store::new(&theirs)?;
                if !stores.contains(&theirs) {
                    stores.push(theirs);
                }
            }
        }
        Ok(stores)
    }

    /// The store that has a VM of this name; the one to save in, where none has.
    ///
    /// # Errors
    /// [`StoreError`].
    fn of(&self, name: &Name, common: &Common) -> Result<Store, StoreError> {
        let stores = self.stores(common)?;
        let has = |store: &&Store| store.place(name).symlink_metadata().is_ok();
        let found = stores.iter().find(has).or(stores.first());
        found.cloned().ok_or_else(|| StoreError::Unknown {
            name: name.as_str().to_owned(),
            store: PathBuf::new(),
        })
    }

    /// All saved VMs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn entries(&self, common: &Common) -> Result<Vec<Entry>, StoreError> {
        let mut stores = self.stores(common)?.into_iter();
        let mut entries = stores.next().map_or(Ok(Vec::new()), |s| s.entries())?;
        for theirs in stores {
            match theirs.entries() {
                Ok(more) => entries.extend(more),
                // Nobody has named it: what is wrong with it hides nothing of ours.
                Err(e) => say::warning(&e.to_string()),
            }
        }
        Ok(entries)
    }
}

/// The store that the settings file names.
fn of_settings(common: &Common, variables: &Variables) -> Result<Option<PathBuf>, StoreError> {
    let root = Root(common.host_root.clone());
    let places = vsc::settings_places(common.settings(&root), variables.home.as_deref());
    let places = places.map_err(|(path, why)| StoreError::Damaged { path, why })?;
    Ok(places.store)
}

fn own(variables: &Variables) -> Result<PathBuf, StoreError> {
    Store::default_directory(variables).ok_or_else(|| StoreError::Unusable {
        directory: PathBuf::from("~/.local/share/vsc/vms"),
        why: "neither $XDG_DATA_HOME nor $HOME is set; --store names another".into(),
    })
}

/// Whether a machine's memory is encrypted.
fn is_secure(description: &Description) -> bool {
    let kind = description.domain.text("security.type");
    kind.is_some_and(|kind| kind != "none")
}

/// A saved VM as verbs show it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// In libvirt's words: running, shut off, …; `damaged` where nothing can be said.
    state: String,
    host: Option<String>,
    /// A libvirt has it.
    #[serde(skip)]
    elsewhere: bool,
    pid: Option<u32>,
    uptime_seconds: Option<u64>,
    attestation: Option<bool>,
    directory: PathBuf,
    ended: Option<Ended>,
    problems: Vec<String>,
}

/// How long a list waits for a hypervisor.
const PATIENCE: Duration = Duration::from_secs(10);
/// The hypervisor that has it does not answer.
const UNKNOWN: &str = "unknown";
/// Somebody does.
const RUNNING: &str = "running";
/// What is there is not enough to tell, or to start it.
const DAMAGED: &str = "damaged";

/// What hypervisors say of their domains, each asked once.
#[derive(Default)]
struct Asked(HashMap<String, Result<HashMap<String, String>, String>>);

impl Asked {
    /// The state of a domain; `None` where there is none.
    fn state(&mut self, remote: &Remote, name: &str) -> Result<Option<&str>, &str> {
        let answer = self.0.entry(remote.url.clone()).or_insert_with(|| {
            let virsh = Virsh::new(remote.url.as_str()).patience(PATIENCE);
            let states = virsh.states().map_err(|e| e.to_string())?;
            Ok(states.into_iter().collect())
        });
        match answer {
            Ok(states) => Ok(states.get(name).map(String::as_str)),
            Err(why) => Err(why.as_str()),
        }
    }
}

impl Row {
    fn of(mut entry: Entry, proc: &Path, asked: &mut Asked) -> Self {
        if let Some(remote) = entry.state.handed_to.take() {
            return Self::elsewhere(entry, &remote, asked);
        }
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
            elsewhere: false,
            pid: running.map(|(_, pid)| pid),
            uptime_seconds: running.map(|(uptime, _)| uptime.as_secs()),
            attestation: entry.config.as_ref().map(|c| c.attestation),
            directory: entry.directory,
            ended: entry.state.ended,
            problems: entry.problems,
        }
    }

    fn elsewhere(mut entry: Entry, remote: &Remote, asked: &mut Asked) -> Self {
        let state = match asked.state(remote, &entry.name) {
            Ok(state) => state.unwrap_or(SHUT_OFF),
            Err(why) => {
                entry.problems.push(why.to_owned());
                UNKNOWN
            }
        };
        Self {
            name: entry.name,
            state: state.to_owned(),
            host: Some(remote.host.clone()),
            elsewhere: true,
            pid: None,
            uptime_seconds: None,
            attestation: entry.config.map(|c| c.attestation),
            directory: entry.directory,
            ended: entry.state.ended,
            problems: entry.problems,
        }
    }
}

/// Says why a verb failed, and returns its exit code.
fn failed(error: &dyn std::error::Error) -> u8 {
    // The sources of a StoreError are in its own sentence.
    say::error(&error.to_string());
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
