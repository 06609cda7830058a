//! Lives of domains: handed over, started, watched until they end.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Stdio};

use super::{Virsh, VirshError};
use crate::xml::Element;
use crate::xml::parse::parse;

/// States of domains in the words of virsh (virshDomainState in libvirt's tools/virsh-util.c).
const STATES: [&str; 8] = [
    "no state",
    "running",
    "idle",
    "paused",
    "in shutdown",
    "shut off",
    "crashed",
    "pmsuspended",
];
/// Nobody runs it.
pub const SHUT_OFF: &str = "shut off";
/// Its guest has crashed, and it was to be kept.
const CRASHED: &str = "crashed";

/// Whether a domain in this state has a process somewhere.
pub fn is_active(state: &str) -> bool {
    state != SHUT_OFF && state != CRASHED
}

/// What becomes of a domain of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is in the way.
    Refuse,
    /// It is replaced when it is ours: it has the UUID of the one that is handed over.
    ReplaceOurs,
    /// It is replaced.
    Replace,
}

/// Why a domain was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// virsh's reason.
    #[error(transparent)]
    Virsh(#[from] VirshError),
    /// There is one of this name.
    #[error("{url} has a domain {name} already; --overwrite replaces it")]
    Exists {
        /// The hypervisor's address.
        url: String,
        /// The domain.
        name: String,
    },
    /// It runs.
    #[error("{name} is already running on {url}")]
    Running {
        /// The hypervisor's address.
        url: String,
        /// The domain.
        name: String,
    },
    /// The new one was refused, and the old one could not be put back.
    #[error("{error}; what {name} was before could not be defined again either: {again}\n{old}")]
    Lost {
        /// The domain.
        name: String,
        /// Why the new one was refused.
        #[source]
        error: Box<VirshError>,
        /// Why the old one was.
        again: Box<VirshError>,
        /// The old one, without passwords.
        old: String,
    },
}

/// A definition that was replaced, until it is certain that it will not be needed again.
#[derive(Debug)]
pub struct Undo {
    name: String,
    /// What was defined before; `None`: nothing was.
    old: Option<String>,
    /// The old one has another identity: it comes back only when the new one is gone.
    foreign: bool,
}

impl Virsh {
    /// All domains and their states.
    ///
    /// # Errors
    /// [`VirshError`].
    pub fn states(&self) -> Result<Vec<(String, String)>, VirshError> {
        let table = self.run(&["list", "--all"], None)?.stdout;
        Ok(table.lines().skip(1).filter_map(row).collect())
    }

    /// The state of a domain; `None` where there is none of this name.
    ///
    /// # Errors
    /// [`VirshError`].
    pub fn state(&self, name: &str) -> Result<Option<String>, VirshError> {
        let found = self.states()?.into_iter().find(|(known, _)| known == name);
        Ok(found.map(|(_, state)| state))
    }

    /// Defines a domain. An old one of this name is there until the new one is, and again when the new one is refused.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn hand_over(
        &self,
        name: &str,
        xml: &str,
        existing: Existing,
    ) -> Result<Undo, HandOverError> {
        let url = || self.url().to_owned();
        let mut undo = Undo {
            name: name.to_owned(),
            old: None,
            foreign: false,
        };
        if let Some(state) = self.state(name)? {
            let exists = || HandOverError::Exists {
                url: url(),
                name: name.to_owned(),
            };
            if existing == Existing::Refuse {
                return Err(exists());
            }
            let uuid = self.run(&["domuuid", "--", name], None)?.stdout;
            undo.foreign = uuid_of(xml).as_deref() != Some(uuid.trim());
            if undo.foreign && existing != Existing::Replace {
                return Err(exists());
            }
            if is_active(&state) {
                return Err(HandOverError::Running {
                    url: url(),
                    name: name.to_owned(),
                });
            }
            let old = self.run(
                &["dumpxml", "--inactive", "--security-info", "--", name],
                None,
            )?;
            undo.old = Some(old.stdout);
            if undo.foreign {
                // libvirt keeps names and identities together: with another one, the new domain is another domain.
                self.undefine(name)?;
            }
        }
        match self.define(xml) {
            Ok(()) => Ok(undo),
            Err(error) if undo.foreign => Err(self.put_back(&undo, error)),
            Err(error) => Err(error.into()),
        }
    }

    fn define(&self, xml: &str) -> Result<(), VirshError> {
        let words = ["define", "--validate", "--file", "/dev/stdin"];
        self.run(&words, Some(xml.as_bytes())).map(drop)
    }

    /// Forgets a domain, not the state of its firmware.
    ///
    /// # Errors
    /// [`VirshError`].
    pub fn undefine(&self, name: &str) -> Result<(), VirshError> {
        self.run(&["undefine", "--keep-nvram", "--", name], None)
            .map(drop)
    }

    /// Starts a domain that was handed over. What was there before comes back when it does not start.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn start_handed_over(&self, undo: &Undo) -> Result<(), HandOverError> {
        match self.run(&["start", "--", &undo.name], None) {
            Ok(_) => Ok(()),
            // Nobody knows what became of it; what runs is not taken away.
            Err(error @ VirshError::TimedOut { .. }) => Err(error.into()),
            Err(error) => Err(self.put_back(undo, error)),
        }
    }

    /// Puts back what was defined before; the error to tell comes back.
    fn put_back(&self, undo: &Undo, error: VirshError) -> HandOverError {
        match (self.restore(undo), &undo.old) {
            (Err(again), Some(old)) => HandOverError::Lost {
                name: undo.name.clone(),
                error: error.into(),
                again: again.into(),
                old: without_passwords(old),
            },
            _ => error.into(),
        }
    }

    fn restore(&self, undo: &Undo) -> Result<(), VirshError> {
        match self.state(&undo.name)? {
            // It started, whatever virsh said.
            Some(state) if is_active(&state) => return Ok(()),
            Some(_) if undo.foreign || undo.old.is_none() => self.undefine(&undo.name)?,
            _ => {}
        }
        match &undo.old {
            Some(old) => {
                let words = ["define", "--file", "/dev/stdin"];
                self.run(&words, Some(old.as_bytes())).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Listens to what happens to a domain.
    ///
    /// # Errors
    /// [`VirshError`].
    pub fn listen(&self, name: &str) -> Result<Events, VirshError> {
        let words = ["event", "--event", "lifecycle", "--loop", "--domain", name];
        let failed = |e| VirshError::Run(self.program.clone(), e);
        let mut command = self.command(&words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What is typed at our terminal is for us.
            .process_group(0);
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => VirshError::Missing(self.program.clone()),
            _ => failed(e),
        })?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Events {
            child,
            stdout,
            waiting: Vec::new(),
        })
    }
}

/// A row of `virsh list`: an identity or `-`, the name, the state, with blanks between them and perhaps in them.
fn row(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (_, rest) = line.split_once(char::is_whitespace)?;
    let state = STATES.iter().find(|state| {
        let name = rest.strip_suffix(**state);
        name.is_some_and(|name| name.ends_with(char::is_whitespace))
    })?;
    let name = rest.strip_suffix(state)?.trim();
    (!name.is_empty()).then(|| (name.to_owned(), (*state).to_owned()))
}

/// The identity that domain XML gives.
pub fn uuid_of(xml: &str) -> Option<String> {
    let domain = parse(xml).ok()?;
    let uuid = domain.child("uuid")?.text.trim().to_ascii_lowercase();
    (!uuid.is_empty()).then_some(uuid)
}

/// Domain XML that may be shown.
fn without_passwords(xml: &str) -> String {
    fn clear(element: &mut Element) {
        element.attributes.retain(|a| a.name != "passwd");
        element.children.iter_mut().for_each(clear);
    }
    match parse(xml) {
        Ok(mut domain) => {
            clear(&mut domain);
            domain.write()
        }
        Err(_) => String::new(),
    }
}

/// Domain XML that says which domain it is of: with `uuid`, where it says nothing.
pub fn identified(xml: &str, uuid: &str) -> String {
    match parse(xml) {
        Ok(mut domain) if domain.child("uuid").is_none() => {
            let mut identity = Element::new("uuid");
            uuid.clone_into(&mut identity.text);
            domain.children.insert(0, identity);
            domain.write()
        }
        // What is no XML is for libvirt to refuse.
        _ => xml.to_owned(),
    }
}

/// Something that happened to a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// One word: Started, Resumed, Suspended, Shutdown, Stopped, Crashed, ….
    pub what: String,
    /// How or why, in virsh's words.
    pub detail: String,
}

impl Event {
    fn of(line: &str) -> Option<Self> {
        // event 'lifecycle' for domain 'NAME': Stopped Shutdown
        let (_, said) = line
            .strip_prefix("event 'lifecycle' for domain ")?
            .rsplit_once(": ")?;
        let (what, detail) = said.split_once(' ').unwrap_or((said, ""));
        Some(Self {
            what: what.to_owned(),
            detail: detail.trim().to_owned(),
        })
    }

    /// Whether it is the end of the domain's life.
    pub fn is_end(&self) -> bool {
        self.what == "Stopped"
    }
}

/// What happens to a domain, as it happens. Nothing is listened to any more once the value is gone.
#[derive(Debug)]
pub struct Events {
    child: Child,
    stdout: ChildStdout,
    waiting: Vec<u8>,
}

impl Events {
    /// Reads what there is, once the descriptor is readable; `None`: there will be no more.
    ///
    /// # Errors
    /// The system's reason.
    pub fn read(&mut self) -> io::Result<Option<Vec<Event>>> {
        let mut chunk = [0; 4096];
        let n = loop {
            match self.stdout.read(&mut chunk) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if n == 0 {
            return Ok(None);
        }
        self.waiting.extend_from_slice(&chunk[..n]);
        let mut events = Vec::new();
        while let Some(end) = self.waiting.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.waiting.drain(..=end).collect();
            events.extend(Event::of(String::from_utf8_lossy(&line).trim()));
        }
        Ok(Some(events))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended already; nobody asks how.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests;
