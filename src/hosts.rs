//! Hypervisors that machines can be handed to: virt-scenario's `virthosts.yaml`, a map of names to `url` and
//! `sev-cert`, and which one of them is selected.
//!
//! The list is the user's and is only read. The choice is kept in a file of our own.

#![forbid(unsafe_code)]

mod read;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::SettingsFrom;
use crate::diag::{Diagnostic, Diagnostics, Span, shown};
use crate::facts::{Root, Variables};
use crate::scenario::old;
use crate::scenario::suggest::nearest;
use read::read;

/// The host that there is without a list.
pub const LOCALHOST: &str = "localhost";
/// Longest choice that is read back, bytes.
const LONGEST: u64 = 4096;

/// One hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Its name in the list.
    pub name: String,
    /// Its libvirt address; none where the list does not say.
    pub url: Option<String>,
    /// The certificate of its SEV firmware.
    pub certificate: Certificate,
}

/// What is known of a host's SEV certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "file")]
pub enum Certificate {
    /// The list names none.
    None,
    /// The list names a file that is not there.
    Missing(PathBuf),
    /// There is a file; nobody has looked into it.
    Present(PathBuf),
}

/// The list, and the choice.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// The hypervisors, in the order of the list; at least one.
    pub list: Vec<Host>,
    /// The list's file; none when it is the built-in list of one.
    pub file: Option<PathBuf>,
    /// What there is to say about the list.
    pub messages: Diagnostics,
    /// The name that was selected.
    chosen: Option<String>,
    /// Where that is kept.
    state: Option<PathBuf>,
}

/// Why there is no such hypervisor.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// No hypervisor has this name.
    #[error("there is no hypervisor {name:?} in {list}{advice}")]
    Unknown {
        /// The name.
        name: String,
        /// The list, in words.
        list: String,
        /// What was meant, or what there is.
        advice: String,
    },
    /// The choice was made in another list.
    #[error(
        "the selected hypervisor {name:?} is not in {list}{advice} (vsc-run hosts select NAME)"
    )]
    Lost {
        /// The name.
        name: String,
        /// The list, in words.
        list: String,
        /// What there is.
        advice: String,
    },
    /// The list does not say where it is.
    #[error("the hypervisor {0:?} has no url: write `url: qemu:///system` below its name")]
    NoUrl(String),
    /// There is no place to keep a choice.
    #[error(
        "there is no directory to keep the choice in: neither $XDG_CONFIG_HOME nor $HOME is set"
    )]
    NoHome,
    /// The choice could not be kept.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

impl Host {
    /// Its address.
    ///
    /// # Errors
    /// The list names none, and virsh would take another one in its place.
    pub fn url(&self) -> Result<&str, HostsError> {
        self.url
            .as_deref()
            .ok_or_else(|| HostsError::NoUrl(self.name.clone()))
    }
}

impl Hosts {
    /// The list in `file`; without one, in the file that the user's settings name, in `virthosts.yaml` on virt-scenario's
    /// search path, or else the one local hypervisor.
    ///
    /// # Errors
    /// The list cannot be read, is wrong, or is empty.
    pub fn load(
        file: Option<&Path>,
        settings: SettingsFrom<'_>,
        variables: &Variables,
        root: &Root,
    ) -> Result<Self, Diagnostics> {
        let mut notes = Vec::new();
        let found = match file {
            Some(file) => Some(named(file.to_owned())),
            None => match named_by_settings(settings, variables, &mut notes) {
                Some(file) => Some(named(file)),
                None => searched(variables, root)?,
            },
        };
        let (found, content) = found.unzip();
        let (list, messages) = match found.as_deref().zip(content) {
            Some((file, content)) => read(file, content, variables.home.clone(), root, notes)?,
            None => {
                let messages = Diagnostics {
                    list: notes,
                    ..Diagnostics::default()
                };
                (vec![local(variables)], messages)
            }
        };
        let state = state(variables);
        Ok(Hosts {
            list,
            file: found,
            messages,
            chosen: state.as_deref().and_then(chosen),
            state,
        })
    }

    /// The hypervisor of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Host, HostsError> {
        self.find(name).ok_or_else(|| HostsError::Unknown {
            name: name.to_owned(),
            list: self.place(),
            advice: match nearest(name, self.names()) {
                Some(near) => format!(": did you mean {near:?}?"),
                None => self.advice(),
            },
        })
    }

    /// The hypervisor that was selected; nobody having selected one, `localhost`, or else the first.
    ///
    /// # Errors
    /// The one that was selected is not in this list.
    pub fn selected(&self) -> Result<&Host, HostsError> {
        let lost = |name: &str| HostsError::Lost {
            name: name.to_owned(),
            list: self.place(),
            advice: self.advice(),
        };
        match &self.chosen {
            Some(name) => self.find(name).ok_or_else(|| lost(name)),
            None => self
                .find(LOCALHOST)
                .or(self.list.first())
                .ok_or_else(|| lost(LOCALHOST)),
        }
    }

    /// Selects a hypervisor of the list, for this and all later calls.
    ///
    /// # Errors
    /// There is none of this name, or the choice cannot be kept.
    pub fn select(&mut self, name: &str) -> Result<&Host, HostsError> {
        self.get(name)?;
        let state = self.state.as_deref().ok_or(HostsError::NoHome)?;
        keep(state, name).map_err(|e| HostsError::Write(state.to_owned(), e))?;
        self.chosen = Some(name.to_owned());
        self.selected()
    }

    fn find(&self, name: &str) -> Option<&Host> {
        self.list.iter().find(|host| host.name == name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|host| host.name.as_str())
    }

    fn place(&self) -> String {
        match &self.file {
            Some(file) => shown(&file.display().to_string()),
            None => "the built-in list (there is no virthosts.yaml)".into(),
        }
    }

    fn advice(&self) -> String {
        let names: Vec<String> = self.names().map(|name| format!("{name:?}")).collect();
        format!(": it has {}", names.join(", "))
    }
}

/// The bytes of a list, or why there are none.
type Content = Result<Vec<u8>, String>;

/// A list that somebody named, with its content.
fn named(file: PathBuf) -> (PathBuf, Content) {
    let content = crate::read_text(&file, crate::scenario::MAX_BYTES + 1);
    (file, content)
}

/// The list that is where virt-scenario looks for it, with its content. An address can be a command: nobody else's is
/// taken.
fn searched(variables: &Variables, root: &Root) -> Result<Option<(PathBuf, Content)>, Diagnostics> {
    let Some(path) = crate::find_old(old::HOSTS, variables.home.as_deref(), root) else {
        return Ok(None);
    };
    match crate::trust::read(&path, crate::scenario::MAX_BYTES + 1) {
        Ok(bytes) => Ok(Some((path, Ok(bytes)))),
        Err(crate::trust::Refusal::Unreadable(why)) => Ok(Some((path, Err(why)))),
        Err(crate::trust::Refusal::Stranger(why)) => {
            let shown = path.display();
            let message = format!("The list of hypervisors in {shown} is not trusted: {why}");
            let d = Diagnostic::error("E-HOSTS", Span::NONE, message)
                .why("It was found there, nobody named it, and an address in it can be a command to run")
                .help(format!("--hosts {shown} uses it all the same"));
            Err(Diagnostics {
                list: vec![d],
                ..Diagnostics::default()
            })
        }
    }
}

/// The list that the user's settings name.
fn named_by_settings(
    settings: SettingsFrom<'_>,
    variables: &Variables,
    notes: &mut Vec<Diagnostic>,
) -> Option<PathBuf> {
    match crate::settings_places(settings, variables.home.as_deref()) {
        Ok(named) => named.hosts,
        Err((file, why)) => {
            let name = shown(&file.display().to_string());
            let message = format!("The settings file {name} cannot be read: {why}");
            notes.push(
                Diagnostic::warning("W-HOSTS", Span::NONE, message)
                    .why("it may name a list of hypervisors (hvconf), which is not used now"),
            );
            None
        }
    }
}

fn local(variables: &Variables) -> Host {
    let url = match variables.privileged {
        true => "qemu:///system",
        false => "qemu:///session",
    };
    Host {
        name: LOCALHOST.into(),
        url: Some(url.into()),
        certificate: Certificate::None,
    }
}

/// Where the choice is kept: $XDG_CONFIG_HOME/vsc/host, ~/.config/vsc/host.
fn state(variables: &Variables) -> Option<PathBuf> {
    let config = variables.config_home.clone();
    let config = config.or_else(|| Some(variables.home.as_ref()?.join(".config")))?;
    Some(config.join("vsc/host"))
}

/// The choice that was made before.
fn chosen(state: &Path) -> Option<String> {
    let length = fs::metadata(state).ok().filter(|m| m.is_file())?.len();
    if length > LONGEST {
        return None;
    }
    let text = fs::read_to_string(state).ok()?;
    let name = text.strip_suffix('\n').unwrap_or(&text);
    (!name.is_empty()).then(|| name.to_owned())
}

/// Writes the choice in one step: whoever reads it sees the old one or the new one.
fn keep(state: &Path, name: &str) -> io::Result<()> {
    let directory = state.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let name_of = state.file_name().and_then(|n| n.to_str()).unwrap_or("host");
    crate::store::write_file(directory, name_of, &format!("{name}\n"))
}

#[cfg(test)]
mod tests;
