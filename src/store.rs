//! Saved VMs: STORE/NAME/ with `domain.xml`, `config.yaml` (as the predecessor has it), `scenario.yaml` and
//! `state.json`.
//!
//! Directories have mode 0700 and files 0600, whatever the umask is. A VM is there as a whole or not at all, also
//! after a power cut. Whoever changes the store holds the lock of its directory for that moment, and whoever runs a
//! VM holds the lock of the VM's directory as long as it runs. Both are locks of the kernel on open directories
//! (flock(2)): no file stands for them, and nothing is left of them when their holder is killed.

#![forbid(unsafe_code)]

mod config;
mod entry;
mod error;
mod files;
mod process;
mod state;

pub(crate) use files::write as write_file;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::facts::Variables;
use crate::locks;
use crate::sys;
use error::{Result, failed};

pub use config::Config;
pub use entry::{Contents, Entry, Held, Name};
pub use error::StoreError;
pub use files::Unreadable;
pub use process::{Handle, Process, Stat};
pub use state::{Ended, Remote, State, now};

/// The domain XML of an entry.
pub const DOMAIN: &str = "domain.xml";
/// What the predecessor keeps.
pub const CONFIG: &str = "config.yaml";
/// The scenario.
pub const SCENARIO: &str = "scenario.yaml";
/// What is known of its runs.
pub const STATE: &str = "state.json";
/// What a detached run said.
pub const LOG: &str = "console.log";
/// Everything that this program writes.
const OURS: [&str; 5] = [DOMAIN, CONFIG, SCENARIO, STATE, LOG];
/// What the predecessor writes for attested VMs; certificate chains (`*.pdh`) besides.
const SECRETS: [&str; 4] = ["tik.bin", "tek.bin", "godh.bin", "session.bin"];
/// An entry that is being written. What follows the `=`, which no name has, is the name.
const NEW: &str = ".vsc-new=";
/// An entry on its way out.
const GONE: &str = ".vsc-gone=";
/// An entry that is being replaced where a file system cannot do that in one step.
const OLD: &str = ".vsc-old=";

/// A directory of saved VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store(PathBuf);

impl Store {
    /// The store in `directory`, which need not be there yet.
    ///
    /// # Errors
    /// [`StoreError::System`] without a current directory to start from.
    pub fn new(directory: &Path) -> Result<Self> {
        let path = std::path::absolute(directory);
        path.map(Self).map_err(failed("find", directory))
    }

    /// Where the store is when nobody says otherwise: $XDG_DATA_HOME/vsc/vms, ~/.local/share/vsc/vms.
    pub fn default_directory(variables: &Variables) -> Option<PathBuf> {
        let data = variables.data_home.clone();
        let data = data.or_else(|| Some(variables.home.as_ref()?.join(".local/share")))?;
        Some(data.join("vsc/vms"))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The directory of a VM in it.
    pub fn place(&self, name: &Name) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// Opens the directory; `None` where there is none.
    fn open(&self) -> Result<Option<File>> {
        let unusable = |why: String| StoreError::Unusable {
            directory: self.0.clone(),
            why,
        };
        let directory = match File::open(&self.0) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unusable(e.to_string())),
        };
        if !directory.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(unusable("it is no directory".into()));
        }
        match files::trusted(&directory) {
            Ok(Ok(())) => Ok(Some(directory)),
            Ok(Err(why)) => Err(unusable(why)),
            Err(e) => Err(unusable(e.to_string())),
        }
    }

    /// Opens and locks the directory, and clears what killed processes left in it.
    fn lock(&self) -> Result<Option<File>> {
        let Some(directory) = self.open()? else {
            return Ok(None);
        };
        directory.lock().map_err(failed("lock", &self.0))?;
        self.sweep()?;
        Ok(Some(directory))
    }

    /// Makes the directory, where it is not there yet.
    fn make(&self) -> Result<()> {
        if self.0.is_dir() {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut place = self.0.as_path();
        while !place.exists() {
            missing.push(place);
            let Some(parent) = place.parent() else { break };
            place = parent;
        }
        for place in missing.into_iter().rev() {
            match files::make_directory(place) {
                // Somebody else was faster.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && place.is_dir() => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(StoreError::Unusable {
                        directory: self.0.clone(),
                        why: format!(
                            "this user may not make {}; --store names another, and so do $XDG_DATA_HOME and $HOME",
                            place.display()
                        ),
                    });
                }
                Err(e) => return Err(failed("make the directory", place)(e)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// What the holder of the lock finds of others is from processes that are gone.
    fn sweep(&self) -> Result<()> {
        for found in fs::read_dir(&self.0).map_err(failed("read", &self.0))? {
            let Ok(found) = found else { continue };
            let name = found.file_name();
            let Some(name) = name.to_str() else { continue };
            let path = found.path();
            if let Some(name) = name.strip_prefix(OLD)
                && !self.0.join(name).exists()
            {
                fs::rename(&path, self.0.join(name)).map_err(failed("put back", &path))?;
            } else if [NEW, GONE, OLD].iter().any(|p| name.starts_with(p)) {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// All VMs, by name. What is damaged is among them, with its problems.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] for the store as a whole.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        if self.open()?.is_none() {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        for found in fs::read_dir(&self.0).map_err(failed("read", &self.0))? {
            let found = found.map_err(failed("read", &self.0))?;
            let name = found.file_name().to_string_lossy().into_owned();
            let file = found.file_type().is_ok_and(|kind| kind.is_file());
            if !name.starts_with('.') && !file {
                entries.push(Entry::read(&name, found.path()));
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One VM, damaged or not.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Unusable`].
    pub fn entry(&self, name: &Name) -> Result<Entry> {
        let place = self.place(name);
        if self.open()?.is_none() || fs::symlink_metadata(&place).is_err() {
            return Err(self.unknown(name));
        }
        Ok(Entry::read(name.as_str(), place))
    }

    fn unknown(&self, name: &Name) -> StoreError {
        StoreError::Unknown {
            name: name.as_str().to_owned(),
            store: self.0.clone(),
        }
    }

    /// Saves a VM. Without `overwrite` there must be none of its name; with it the old one is there until the new one
    /// is complete, and what is known of its runs and disks stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save(&self, name: &Name, contents: &Contents, overwrite: bool) -> Result<PathBuf> {
        self.make()?;
        let Some(_lock) = self.lock()? else {
            return Err(failed("open", &self.0)(io::ErrorKind::NotFound.into()));
        };
        let place = self.place(name);
        let there = fs::symlink_metadata(&place).is_ok();
        if there && !overwrite {
            return Err(StoreError::Exists(place));
        }
        // Kept until the new one is in its place.
        let _old = if there { Some(self.seize(name)?) } else { None };
        let new = self.0.join(format!("{NEW}{}", name.as_str()));
        let written = self.fill(&new, &place, name, contents, there);
        let published = written.and_then(|()| self.publish(&new, &place, name, there));
        if published.is_err() && new.exists() {
            // The first error is the one to tell; the next change of the store removes it otherwise.
            let _ = fs::remove_dir_all(&new);
        }
        published.map(|()| place)
    }

    /// Writes a new entry beside its place.
    fn fill(
        &self,
        new: &Path,
        place: &Path,
        name: &Name,
        contents: &Contents,
        there: bool,
    ) -> Result<()> {
        files::make_directory(new).map_err(failed("make the directory", new))?;
        let config = Config {
            attestation: contents.attestation,
            domain_config: place.join(DOMAIN),
            host: contents.host.clone(),
            name: name.as_str().to_owned(),
        };
        let config = config.text().ok_or_else(|| StoreError::Unusable {
            directory: self.0.clone(),
            why: "its path is no text, and config.yaml has to name it".into(),
        })?;
        let mut state = State::default();
        if there {
            state = Entry::read(name.as_str(), place.to_owned()).state;
            self.carry_over(place, new)?;
        }
        state.on.clone_from(&contents.on);
        state.settings.clone_from(&contents.settings);
        let state = serde_json::to_string_pretty(&state).unwrap_or_default() + "\n";
        for (file, text) in [
            (DOMAIN, &contents.domain),
            (SCENARIO, &contents.scenario),
            (STATE, &state),
            (CONFIG, &config),
        ] {
            files::write(new, file, text).map_err(failed("write", &place.join(file)))?;
        }
        files::sync(new).map_err(failed("write", place))
    }

    /// Files of the old entry that the new one keeps, images for example: they are in both until the old one goes.
    fn carry_over(&self, place: &Path, new: &Path) -> Result<()> {
        for found in fs::read_dir(place).map_err(failed("read", place))? {
            let found = found.map_err(failed("read", place))?;
            let name = found.file_name();
            let text = name.to_string_lossy().into_owned();
            if text.starts_with(NEW) || [DOMAIN, CONFIG, SCENARIO, STATE].contains(&&*text) {
                continue;
            }
            if !found.file_type().is_ok_and(|kind| kind.is_file()) {
                return Err(StoreError::Foreign {
                    directory: place.to_owned(),
                    names: vec![text],
                    why: "is no file that a new version could keep: move it away first",
                });
            }
            let file = found.path();
            fs::hard_link(&file, new.join(&name)).map_err(failed("keep", &file))?;
        }
        Ok(())
    }

    fn publish(&self, new: &Path, place: &Path, name: &Name, there: bool) -> Result<()> {
        if there {
            match sys::rename(new, place, sys::Rename::Exchange) {
                Err(e) if sys::unsupported(&e) => {
                    let old = self.0.join(format!("{OLD}{}", name.as_str()));
                    fs::rename(place, &old).map_err(failed("replace", place))?;
                    let put = fs::rename(new, place);
                    if put.is_err() {
                        fs::rename(&old, place).map_err(failed("put back", place))?;
                    }
                    put.map_err(failed("replace", place))?;
                    fs::remove_dir_all(&old).map_err(failed("remove", &old))?;
                }
                Err(e) => return Err(failed("replace", place)(e)),
                Ok(()) => {
                    files::sync(&self.0).map_err(failed("write", &self.0))?;
                    // What changed places with the new one.
                    fs::remove_dir_all(new).map_err(failed("remove", new))?;
                }
            }
        } else {
            match sys::rename(new, place, sys::Rename::New) {
                // Nobody who respects the lock can have put something there meanwhile.
                Err(e) if sys::unsupported(&e) => {
                    fs::rename(new, place).map_err(failed("make", place))?;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::Exists(place.to_owned()));
                }
                done => done.map_err(failed("make", place))?,
            }
        }
        files::sync(&self.0).map_err(failed("write", &self.0))
    }

    /// Opens and locks a VM's directory. The store's lock is held by the caller: who else has this one runs the VM.
    fn seize(&self, name: &Name) -> Result<File> {
        let place = self.place(name);
        let damaged = |why: String| StoreError::Damaged {
            path: place.clone(),
            why,
        };
        let directory = match files::open_directory(&place) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.unknown(name)),
            Err(_) if place.is_symlink() => return Err(damaged("it is a symbolic link".into())),
            Err(e) => return Err(damaged(e.to_string())),
        };
        match files::trusted(&directory) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(damaged(why)),
            Err(e) => return Err(damaged(e.to_string())),
        }
        match directory.try_lock() {
            Ok(()) => Ok(directory),
            Err(TryLockError::WouldBlock) => {
                let state = Entry::read(name.as_str(), place.clone()).state;
                let process = state.process.filter(|_| state.ended.is_none());
                Err(StoreError::Running {
                    name: name.as_str().to_owned(),
                    pid: process.map(|p| p.pid),
                })
            }
            Err(TryLockError::Error(e)) => Err(failed("lock", &place)(e)),
        }
    }

    /// Does something to a VM that nobody runs; whoever wants to start it waits for that moment.
    ///
    /// # Errors
    /// [`StoreError::Running`], [`StoreError::Unknown`], [`StoreError::Damaged`], or that of `work`.
    pub fn idle<T>(&self, name: &Name, work: impl FnOnce(&Held) -> Result<T>) -> Result<T> {
        let Some(_lock) = self.lock()? else {
            return Err(self.unknown(name));
        };
        work(&self.held(name)?)
    }

    /// Takes a VM for a run: nobody else runs, replaces or deletes it while the value lives.
    ///
    /// # Errors
    /// [`StoreError::Running`], [`StoreError::Unknown`], [`StoreError::Damaged`].
    pub fn hold(&self, name: &Name) -> Result<Held> {
        let Some(_lock) = self.lock()? else {
            return Err(self.unknown(name));
        };
        self.held(name)
    }

    fn held(&self, name: &Name) -> Result<Held> {
        let lock = self.seize(name)?;
        Ok(Held {
            entry: Entry::read(name.as_str(), self.place(name)),
            _lock: lock,
        })
    }

    /// Deletes a VM that nobody runs; with `disks` also the images that were made for it, and whatever else is in its
    /// directory. Returns the images that were deleted.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when there are images and `disks` is not said; [`StoreError`].
    pub fn delete(&self, name: &Name, disks: bool) -> Result<Vec<PathBuf>> {
        let Some(_lock) = self.lock()? else {
            return Err(self.unknown(name));
        };
        let place = self.place(name);
        if place.is_symlink() {
            // Where it leads is not of the store.
            fs::remove_file(&place).map_err(failed("remove", &place))?;
            files::sync(&self.0).map_err(failed("write", &self.0))?;
            return Ok(Vec::new());
        }
        let _held = self.seize(name)?;
        let foreign = entry::foreign(&place)?;
        if !disks && !foreign.is_empty() {
            return Err(StoreError::Foreign {
                directory: place,
                names: foreign,
                why: "--disks deletes too",
            });
        }
        let mut deleted: Vec<PathBuf> = foreign.iter().map(|name| place.join(name)).collect();
        // Held until the end: nobody starts on what is going to be gone.
        let mut images: Vec<fs::File> = Vec::new();
        if disks {
            let state = Entry::read(name.as_str(), place.clone()).state;
            let made = state.created_disks.into_iter();
            // A block device or a link was not made for it, whatever the list says.
            let made: Vec<PathBuf> = made
                .filter(|image| !image.starts_with(&place))
                .filter(|image| fs::symlink_metadata(image).is_ok_and(|m| m.is_file()))
                .collect();
            images = deleted
                .iter()
                .chain(&made)
                .filter_map(|image| locks::hold(image).transpose())
                .collect::<std::result::Result<_, _>>()
                .map_err(StoreError::Locked)?;
            for image in made {
                fs::remove_file(&image).map_err(failed("remove", &image))?;
                deleted.push(image);
            }
        }
        let gone = self.0.join(format!("{GONE}{}", name.as_str()));
        fs::rename(&place, &gone).map_err(failed("remove", &place))?;
        files::sync(&self.0).map_err(failed("write", &self.0))?;
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))?;
        drop(images);
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests;
