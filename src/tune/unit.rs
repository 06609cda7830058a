//! Units of systemd, through `systemctl`: argument by argument, never a shell.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::change::UnitState;
use super::error::Cannot;
use crate::facts::Root;

/// Whoever can start, stop, enable and disable units.
pub(super) trait Units: fmt::Debug {
    /// What a unit is.
    fn state(&self, name: &str) -> Result<UnitState, Cannot>;
    /// Makes it so, as far as `to` says anything.
    fn set(&self, name: &str, to: UnitState) -> Result<(), Cannot>;
}

/// The host's own. Of a tree that stands in for the host, the program in that tree.
#[derive(Debug)]
pub(super) struct Systemctl(pub(super) Root);

impl Systemctl {
    fn program(&self) -> Option<PathBuf> {
        ["/usr/bin/systemctl", "/bin/systemctl"]
            .map(|path| self.0.at(path))
            .into_iter()
            .find(|path| path.is_file())
    }

    fn call(&self, name: &str, verb: &str) -> Result<(bool, String, String), Cannot> {
        let refused = |why: String| Cannot::Unit {
            name: name.to_owned(),
            why,
        };
        let sound = |c: char| c.is_ascii_alphanumeric() || "@:-_.\\".contains(c);
        if name.is_empty() || name.starts_with('-') || !name.chars().all(sound) {
            return Err(refused("no unit has such a name".into()));
        }
        let program = self
            .program()
            .ok_or_else(|| refused("this host has no systemctl".into()))?;
        let output = Command::new(program)
            // polkit's question at a terminal would hold up everybody else, and the warden, who has none, could not
            // answer it when the unit is put back.
            .args([verb, "--no-ask-password", name])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|e: io::Error| refused(e.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok((
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }
}

impl Units for Systemctl {
    fn state(&self, name: &str) -> Result<UnitState, Cannot> {
        let (_, active, _) = self.call(name, "is-active")?;
        let (_, enabled, complaint) = self.call(name, "is-enabled")?;
        // A unit that does not exist is `inactive` too; only is-enabled tells.
        let enabled = match enabled.as_str() {
            "enabled" | "enabled-runtime" => Some(true),
            "disabled" => Some(false),
            "" | "not-found" => {
                let why = match complaint.is_empty() {
                    true => "there is none".to_owned(),
                    false => complaint,
                };
                return Err(Cannot::Unit {
                    name: name.to_owned(),
                    why,
                });
            }
            // static, masked, generated, alias: nothing that enable or disable would change.
            _ => None,
        };
        Ok(UnitState {
            active: Some(matches!(
                active.as_str(),
                "active" | "activating" | "reloading"
            )),
            enabled,
        })
    }

    fn set(&self, name: &str, to: UnitState) -> Result<(), Cannot> {
        let active = to.active.map(|on| if on { "start" } else { "stop" });
        let enabled = to.enabled.map(|on| if on { "enable" } else { "disable" });
        for verb in enabled.into_iter().chain(active) {
            let (done, _, complaint) = self.call(name, verb)?;
            if !done {
                return Err(Cannot::Unit {
                    name: name.to_owned(),
                    why: format!("systemctl {verb} failed: {complaint}"),
                });
            }
        }
        Ok(())
    }
}
