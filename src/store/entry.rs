//! One saved VM.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::config::Config;
use super::error::{Result, StoreError, failed};
use super::files::{self, Unreadable};
use super::state::{Remote, State};
use super::{CONFIG, DOMAIN, LOG, NEW, OURS, SECRETS, STATE};
use crate::scenario::value;

/// Longest name, as for the key `name`.
const NAME_MAX: usize = 64;

/// The name of a saved VM: one component of a path, and no hidden one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// A name that a VM can be saved under: what the key `name` allows, without a dot at its start.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn new(text: &str) -> Result<Self> {
        match value::name(text, NAME_MAX) {
            Err(fault) => Err(Self::refused(text, &fault.message)),
            Ok(_) if text.starts_with('.') => Err(Self::refused(text, "it starts with a dot")),
            Ok(name) => Ok(Self(name)),
        }
    }

    /// A name that a saved VM may have: the predecessor took letters of every script.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn existing(text: &str) -> Result<Self> {
        let letters = !text.is_empty() && text.len() <= NAME_MAX;
        if letters && text.chars().all(char::is_alphanumeric) {
            return Ok(Self(text.to_owned()));
        }
        Self::new(text)
    }

    fn refused(text: &str, why: &str) -> StoreError {
        StoreError::Name {
            name: text.to_owned(),
            why: why.to_owned(),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is saved of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Domain XML.
    pub domain: String,
    /// The scenario, with absolute paths.
    pub scenario: String,
    /// `attestation` of `config.yaml`.
    pub attestation: bool,
    /// `host` of `config.yaml`.
    pub host: String,
    /// The libvirt that it is for, if it is not run by this program.
    pub on: Option<Remote>,
    /// The settings that go between its presets and its scenario.
    pub settings: Option<PathBuf>,
}

/// A saved VM as it was found, damaged or not.
#[derive(Debug)]
pub struct Entry {
    /// Its name: the directory's.
    pub name: String,
    /// The directory.
    pub directory: PathBuf,
    /// `config.yaml`, if it can be read.
    pub config: Option<Config>,
    /// `state.json`; empty where there is none.
    pub state: State,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

impl Entry {
    pub(super) fn read(name: &str, directory: PathBuf) -> Self {
        let mut problems = Vec::new();
        let mut config = None;
        let mut state = State::default();
        match files::open_directory(&directory).and_then(|d| files::trusted(&d)) {
            Ok(Ok(())) => {
                config = read_config(&directory).map_err(|e| problems.push(e)).ok();
                match files::read(&directory.join(STATE)) {
                    Err(Unreadable::Missing) => {}
                    Err(e) => problems.push(format!("{STATE}: {e}")),
                    Ok(text) => match serde_json::from_str(&text) {
                        Ok(found) => state = found,
                        Err(e) => problems.push(format!("{STATE}: {e}")),
                    },
                }
                if let Some(config) = &config {
                    if config.name != name {
                        problems.push(format!("{CONFIG} is that of {:?}", config.name));
                    }
                    if !config.domain_config.is_file() {
                        let file = config.domain_config.display();
                        problems.push(format!("there is no file {file}"));
                    }
                }
            }
            Ok(Err(why)) => problems.push(why),
            Err(_) if directory.is_symlink() => problems.push("it is a symbolic link".into()),
            Err(e) => problems.push(e.to_string()),
        }
        Self {
            name: name.to_owned(),
            directory,
            config,
            state,
            problems,
        }
    }

    /// The domain XML: the file that `config.yaml` names.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn domain(&self) -> Result<String> {
        let path = match &self.config {
            Some(config) => config.domain_config.clone(),
            None => self.directory.join(DOMAIN),
        };
        files::read(&path).map_err(|e| StoreError::Damaged {
            path,
            why: e.to_string(),
        })
    }

    /// The text of one of its files.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn file(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        files::read(&path).map_err(|e| StoreError::Damaged {
            path,
            why: e.to_string(),
        })
    }
}

fn read_config(directory: &Path) -> std::result::Result<Config, String> {
    let text = files::read(&directory.join(CONFIG)).map_err(|e| format!("{CONFIG}: {e}"))?;
    Config::read(&text).map_err(|e| format!("{CONFIG}: {e}"))
}

/// A VM that is being run.
#[derive(Debug)]
pub struct Held {
    /// It, as it was when it was taken.
    pub entry: Entry,
    pub(super) _lock: File,
}

impl Held {
    /// Writes what is known of its runs.
    ///
    /// # Errors
    /// [`StoreError::System`].
    pub fn write_state(&self, state: &State) -> Result<()> {
        let text = serde_json::to_string_pretty(state).unwrap_or_default() + "\n";
        let directory = &self.entry.directory;
        files::write(directory, STATE, &text)
            .and_then(|()| files::sync(directory))
            .map_err(failed("write", &directory.join(STATE)))
    }

    /// An empty log for a detached run.
    ///
    /// # Errors
    /// [`StoreError::System`].
    pub fn new_log(&self) -> Result<(PathBuf, File)> {
        let path = self.entry.directory.join(LOG);
        let file = files::new_log(&path).map_err(failed("make the log", &path))?;
        Ok((path, file))
    }
}

/// What is in an entry besides what this program and the predecessor put there.
pub(super) fn foreign(place: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for found in fs::read_dir(place).map_err(failed("read", place))? {
        let found = found.map_err(failed("read", place))?;
        let name = found.file_name().to_string_lossy().into_owned();
        let known = OURS.contains(&&*name) || SECRETS.contains(&&*name) || name.ends_with(".pdh");
        if !known && !name.starts_with(NEW) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
