//! Units of systemd, through `systemctl`: argument by argument, never a shell.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use super::change::UnitState;
use super::error::Cannot;
use crate::facts::Root;
use crate::sys;

/// Most of what it says that is read, bytes.
const MOST: u64 = 64 << 10;

/// How long one call may take. Whoever waits for the journal's lock waits for longer ([`super::wait::PATIENCE`]), so
/// that a unit that hangs is this run's trouble alone.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whoever can start, stop, enable and disable units.
pub(super) trait Units: fmt::Debug {
    /// What a unit is.
    fn state(&self, name: &str) -> Result<UnitState, Cannot>;
    /// Makes it so, as far as `to` says anything.
    fn set(&self, name: &str, to: UnitState) -> Result<(), Cannot>;
}

/// The host's own. Of a tree that stands in for the host, the program in that tree.
#[derive(Debug)]
pub(super) struct Systemctl(Root, Duration);

impl Systemctl {
    /// For the host below `root`.
    pub(super) fn new(root: Root) -> Self {
        Self(root, PATIENCE)
    }

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
        // polkit's question at a terminal would hold up everybody else, and the warden, who has none, could not
        // answer it when the unit is put back.
        let words = [verb, "--no-ask-password", name];
        match heard(&program, &words, self.1) {
            Ok(Some((status, said, complaint))) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
                Ok((status.success(), text(&said), text(&complaint)))
            }
            // The journal is locked meanwhile, and others wait for it.
            Ok(None) => Err(refused(format!(
                "systemctl {verb} has not ended in {} s, and is not waited for any longer: `systemctl list-jobs` shows what it waits for",
                self.1.as_secs_f32()
            ))),
            Err(e) => Err(refused(e.to_string())),
        }
    }
}

/// How a program ended, and what it wrote to its two outputs.
type Heard = (ExitStatus, Vec<u8>, Vec<u8>);

/// How a program ended, and what it said on both outputs; `None`: it had not ended after `patience`, and was killed. What
/// it started itself may live on, and is not waited for.
fn heard(program: &Path, words: &[&str], patience: Duration) -> io::Result<Option<Heard>> {
    let until = Instant::now() + patience;
    // Files have room for whatever it says, and no end that somebody else could keep open.
    let file = || memfd_create("vsc-systemctl", MemfdFlags::CLOEXEC).map(File::from);
    let (mut said, mut complaint) = (file()?, file()?);
    let mut child = Command::new(program)
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(complaint.try_clone()?)
        .spawn()?;
    let ended =
        sys::pidfd_open(child.id()).and_then(|process| sys::wait_readable(&process, Some(until)));
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    if !ended? {
        return Ok(None);
    }
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(MOST).read_to_end(&mut bytes).map(|_| bytes)
    };
    Ok(Some((status, read(&mut said)?, read(&mut complaint)?)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A host whose systemctl is this script.
    fn host(name: &str, script: &str) -> Root {
        let dir = std::env::temp_dir().join(format!("vsc-unit-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("usr/bin")).unwrap();
        let program = dir.join("usr/bin/systemctl");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Root(dir)
    }

    #[test]
    fn a_unit_that_hangs_is_given_up_and_said() {
        let root = host("hangs", "#!/bin/sh\nexec sleep 1000\n");
        let patience = Duration::from_secs(2);
        let units = Systemctl(root.clone(), patience);
        let start = UnitState {
            active: Some(true),
            enabled: None,
        };
        let why = units.set("ksm.service", start).unwrap_err().to_string();
        assert!(
            why.contains("systemctl start has not ended in 2 s") && why.contains("list-jobs"),
            "{why}"
        );
        fs::remove_dir_all(&root.0).unwrap();
    }

    #[test]
    fn what_it_says_is_heard_however_much_it_is() {
        let root = host(
            "talks",
            "#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x\necho no such unit >&2\nexit 4\n",
        );
        let units = Systemctl::new(root.clone());
        let start = UnitState {
            active: Some(true),
            enabled: None,
        };
        let why = units.set("ksm.service", start).unwrap_err().to_string();
        assert!(
            why.contains("systemctl start failed: no such unit"),
            "{why}"
        );
        fs::remove_dir_all(&root.0).unwrap();
    }
}
