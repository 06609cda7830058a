//! Setting and unsetting: each value is judged at once, by the compiler that judges it later.

#![forbid(unsafe_code)]

use std::path::Path;

use vsc::compile::Description;
use vsc::diag::{Diagnostics, Severity, shown};
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::scenario::keys::Kind;
use vsc::scenario::presets::{self, PRESETS};
use vsc::scenario::{Input, nearest, parse};
use vsc::store::Name;

use super::super::run::report;
use super::settings::{
    Assignment, COMMANDS, OWN, Settings, What, absolute, canonical, key_at, label,
};
use super::{Outcome, Session, line};
use crate::say;

/// What the monitor says of this host that is worth knowing when a value is set; the machine may be for another host.
const OF_THIS_HOST: [&str; 4] = [
    "E-MEMORY-HOST",
    "W-OVERCOMMIT",
    "W-VCPU-COUNT",
    "E-VCPU-HOST",
];

/// Formats by the endings of file names; `.img` is raw wherever images are handed out under this name.
const ENDINGS: [(&str, &str); 7] = [
    ("qcow2", "qcow2"),
    ("raw", "raw"),
    ("img", "raw"),
    ("vmdk", "vmdk"),
    ("vdi", "vdi"),
    ("vhdx", "vhdx"),
    ("vpc", "vpc"),
];

impl Session {
    /// The layers that the settings are on top of a scenario.
    ///
    /// # Errors
    /// The scenario cannot be read.
    pub(super) fn assignments(
        &self,
        settings: &Settings,
        scenario: Option<&Path>,
    ) -> Result<Vec<Assignment>, Diagnostics> {
        let mut out = settings.keys(scenario.is_none());
        if settings.has_media() {
            let layers = out.iter().map(Assignment::layer).collect();
            let root = Root(self.common.host_root.clone());
            let home = Variables::of_process().home;
            let parsed = vsc::load(scenario, layers, home, self.common.settings(&root))?;
            let data = parsed.data();
            let disks = data.get("disks").and_then(|d| d.as_array());
            out.extend(settings.media(disks.map_or(&[], Vec::as_slice)));
        }
        Ok(out)
    }

    /// What a scenario with these settings is.
    ///
    /// # Errors
    /// All messages.
    pub(super) fn describe(
        &self,
        settings: &Settings,
        scenario: Option<&Path>,
    ) -> Result<Description, Diagnostics> {
        let variables = Variables::of_process();
        let root = Root(self.common.host_root.clone());
        let facts = LiveFacts::new(root.clone(), variables.clone());
        let layers = self.assignments(settings, scenario)?;
        let layers = layers.iter().map(Assignment::layer).collect();
        let from = self.common.settings(&root);
        let parsed = vsc::load(scenario, layers, variables.home, from)?;
        vsc::describe(parsed, &facts)
    }

    /// What some scenario with these settings is: the chosen one, or else the first that takes them.
    fn judge(&self, settings: &Settings) -> Result<Description, Diagnostics> {
        if settings.get("preset").is_some() {
            return self.describe(settings, None);
        }
        let mut first = None;
        for preset in PRESETS {
            match self.describe(settings, Some(Path::new(preset.name))) {
                Ok(description) => return Ok(description),
                Err(messages) => drop(first.get_or_insert(messages)),
            }
        }
        Err(first.unwrap_or_default())
    }

    /// Takes new settings if the compiler would.
    fn adopt(&mut self, new: Settings) -> Outcome {
        match self.judge(&new) {
            Ok(description) => {
                if let Err(mut here) = description.monitor {
                    here.list.retain(|d| OF_THIS_HOST.contains(&d.code));
                    for d in &mut here.list {
                        d.severity = Severity::Warning;
                    }
                    report(&here, &self.common);
                }
                self.settings = new;
                Outcome::Done
            }
            Err(mut messages) => {
                messages.list.retain(|d| d.severity == Severity::Error);
                report(&messages, &self.common);
                Outcome::Failed
            }
        }
    }

    /// Sets a key.
    fn key(&mut self, id: &str, value: &str, what: What) -> Outcome {
        // By itself first: the message is then about what was typed alone.
        let parsed = parse(&Input {
            layers: vec![Assignment::new(id, value).layer()],
            home: Variables::of_process().home,
            ..Input::default()
        });
        let messages = Diagnostics::new(parsed.problems, parsed.sources);
        if messages.has_errors() {
            report(&messages, &self.common);
            return Outcome::Failed;
        }
        let mut new = self.settings.clone();
        new.put(id, value, what);
        self.adopt(new)
    }

    /// One of virt-scenario's commands that stand for a key.
    pub(super) fn command(&mut self, command: &'static str, argument: &str) -> Outcome {
        let argument = argument.trim();
        let Some((_, id)) = COMMANDS.iter().find(|(c, _)| *c == command) else {
            return Outcome::Failed;
        };
        if argument.is_empty() {
            let example = key_at(id).map_or("", |key| key.example);
            return self.refuse(
                format!("`{command}` needs a value"),
                format!("For example `{command} {example}`; `unset {command}` takes it back"),
            );
        }
        let number = || argument.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let value = match command {
            // As in virt-scenario, numbers alone are GiB.
            "memory" | "capacity" if number() => format!("{argument}G"),
            "bootdev" => {
                let devices: Vec<&str> = argument
                    .split([',', ' '])
                    .filter(|word| !word.is_empty())
                    .collect();
                match devices.as_slice() {
                    [one] => (*one).to_owned(),
                    some => format!("[{}]", some.join(", ")),
                }
            }
            "diskpath" | "hvconf" => {
                match self.existing(&line::whole(argument), command == "diskpath") {
                    Ok(path) => path,
                    Err(outcome) => return outcome,
                }
            }
            _ => argument.to_owned(),
        };
        let allowed = match command {
            "name" => self.is_name(&value),
            "machine" => self.is_machine(&value),
            "vnet" => self.is_network(&value),
            "hvselect" => self.is_host(&value),
            _ => Ok(()),
        };
        if let Err(outcome) = allowed {
            return outcome;
        }
        if command == "hvconf" {
            let mut with = self.settings.clone();
            with.put(id, value.as_str(), What::Key);
            let before = std::mem::replace(&mut self.settings, with);
            let read = self.hosts();
            self.settings = before;
            if let Err(messages) = read {
                report(&messages, &self.common);
                return Outcome::Failed;
            }
        }
        let outcome = self.key(
            id,
            &value,
            if command == "vnet" {
                What::Vnet
            } else {
                What::Key
            },
        );
        if outcome == Outcome::Done {
            self.remind();
        }
        outcome
    }

    /// A name under which a machine can be saved.
    fn is_name(&self, name: &str) -> Result<(), Outcome> {
        // What the language refuses, its own message tells.
        match Name::new(name) {
            Err(e) if name.starts_with('.') => {
                Err(self.refuse(e.to_string(), "A name starts with a letter or a digit"))
            }
            _ => Ok(()),
        }
    }

    /// A file or a directory that is there, by its absolute path.
    fn existing(&self, text: &str, directory: bool) -> Result<String, Outcome> {
        let what = if directory { "directory" } else { "file" };
        let refused = |why: String| {
            let message = format!("{} is no {what}: {why}", shown(text));
            Err(self.refuse(message, format!("Name a {what} that is there")))
        };
        let path = match absolute(text) {
            Ok(path) => path,
            Err(why) => return refused(why),
        };
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() != directory => {
                let other = if directory {
                    "it is a file"
                } else {
                    "it is a directory"
                };
                return refused(other.into());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return refused("there is none of this name".into());
            }
            Err(e) => return refused(e.to_string()),
            Ok(_) => {}
        }
        match path.into_os_string().into_string() {
            Ok(path) => Ok(path),
            Err(_) => refused("its whole path is not UTF-8 text".into()),
        }
    }

    /// What only the shell knows.
    pub(super) fn own(&mut self, word: &'static str, argument: &str) -> Outcome {
        let argument = line::whole(argument);
        let argument = argument.as_str();
        let (what, value) = match word {
            "mode" | "overwrite" | "force_sev" => {
                let allowed: &[&str] = if word == "mode" {
                    &["guest", "host", "both"]
                } else {
                    &["on", "off"]
                };
                if !allowed.contains(&argument) {
                    return self.refuse(
                        format!("`{word}` cannot be `{}`", shown(argument)),
                        format!("Give {}", allowed.join(" or ")),
                    );
                }
                if word == "force_sev" && argument == "on" {
                    say::warning(
                        "force_sev is not secure, for demonstrations only: who exports the certificates of the host \
                         that shall be distrusted proves nothing",
                    );
                }
                (What::Shell, argument.to_owned())
            }
            "conf" if argument == "none" => (What::Shell, argument.to_owned()),
            _ => match self.existing(argument, false) {
                Err(outcome) => return outcome,
                Ok(path) => match word {
                    "cdrom" => (What::Cdrom, path),
                    "vmimage" => match self.image(&path) {
                        Ok(what) => (what, path),
                        Err(outcome) => return outcome,
                    },
                    _ => (What::Shell, path),
                },
            },
        };
        let mut new = self.settings.clone();
        new.put(word, value.as_str(), what);
        if word != "conf" {
            let outcome = self.adopt(new);
            self.remind();
            return outcome;
        }
        let before = self.common.settings.replace(value.into());
        let outcome = self.adopt(new);
        if outcome != Outcome::Done {
            self.common.settings = before;
        }
        outcome
    }

    /// The format of an image: as the user says, or as its name says. It is never looked into: a guest could have
    /// written there what another format has at its start.
    fn image(&self, path: &str) -> Result<What, Outcome> {
        let ending = Path::new(path)
            .extension()
            .map(|e| e.to_string_lossy().to_lowercase());
        let by_name = ENDINGS
            .iter()
            .find(|(e, _)| ending.as_deref() == Some(*e))
            .map(|(_, format)| *format);
        match (self.settings.get("storage.format"), by_name) {
            (Some(_), _) => {}
            (None, Some(format)) => {
                self.note(&format!(
                    "its format is {format} by its name; `format` says otherwise"
                ));
            }
            (None, None) => {
                let message = format!("The name of {} does not tell its format", shown(path));
                return Err(self.refuse(message, "Say `format qcow2` or `format raw` first"));
            }
        }
        Ok(What::Image(by_name))
    }

    /// Says which settings an image of the user's makes void.
    fn remind(&self) {
        let Some(image) = self.settings.get("vmimage") else {
            return;
        };
        for id in ["storage.size", "storage.encryption"] {
            if self.settings.get(id).is_some() {
                self.note(&format!(
                    "`{}` is for images that are made; {} is used as it is",
                    label(id),
                    shown(image)
                ));
            }
        }
    }

    /// `set KEY VALUE`
    pub(super) fn set(&mut self, argument: &str) -> Outcome {
        let argument = argument.trim();
        let (key, value) = argument
            .split_once([' ', '\t', '='])
            .unwrap_or((argument, ""));
        let value = value.trim().trim_start_matches('=').trim();
        if key.is_empty() || value.is_empty() {
            return self.refuse(
                "`set` needs a key and a value",
                "For example `set memory.size 2G`; `explain KEY` tells what a key means",
            );
        }
        if let Some(word) = OWN.iter().find(|word| **word == key) {
            return self.own(word, value);
        }
        let Some(id) = canonical(key, value) else {
            return self.key(key, value, What::Key);
        };
        // The same questions are asked of a value whichever way it comes.
        if let Some((command, _)) = COMMANDS.iter().find(|(_, key)| *key == id)
            && ["name", "machine", "hvconf", "hvselect"].contains(command)
        {
            return self.command(command, value);
        }
        let is_path = matches!(key_at(&id).map(|key| key.kind), Some(Kind::Path));
        let quoted = value.starts_with(['[', '{', '"', '\'']);
        let path = (is_path && !quoted).then(|| absolute(value).ok()).flatten();
        let path = path.and_then(|path| path.into_os_string().into_string().ok());
        self.key(&id, path.as_deref().unwrap_or(value), What::Key)
    }

    /// `unset [KEY|COMMAND]`
    pub(super) fn unset(&mut self, argument: &str) -> Outcome {
        let word = argument.trim();
        if word.is_empty() {
            self.settings = Settings::default();
            self.common.settings.clone_from(&self.given);
            return Outcome::Done;
        }
        let command = COMMANDS.iter().find(|(command, _)| *command == word);
        let own = OWN.iter().find(|own| **own == word);
        let preset = presets::find(word).map(|_| "preset");
        if preset.is_some() && self.settings.get("preset") != Some(word) {
            self.note(&format!("{} is not set", shown(word)));
            return Outcome::Done;
        }
        let id = own.map(|own| (*own).to_owned());
        let id = id.or_else(|| command.map(|(_, key)| (*key).to_owned()));
        // `memory` is the command's key, and `cpu` is all of it.
        let id = id.or_else(|| canonical(word, "{"));
        let Some(id) = id.or(preset.map(str::to_owned)) else {
            let names = COMMANDS.iter().map(|(c, _)| *c).chain(OWN);
            let near = nearest(
                word,
                names.chain(vsc::scenario::keys::KEYS.iter().map(|k| k.name)),
            );
            let near = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
            let message = format!("There is no setting `{}`{near}", shown(word));
            return self.refuse(message, "`show` shows what is set");
        };
        let mut new = self.settings.clone();
        if new.remove(&id) == 0 {
            self.note(&format!("{} is not set", shown(word)));
            return Outcome::Done;
        }
        self.settings = new;
        if id == "conf" {
            self.common.settings.clone_from(&self.given);
        }
        Outcome::Done
    }
}
