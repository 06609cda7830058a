//! The table of commands, help, and which function does which.

#![forbid(unsafe_code)]

use vsc::scenario::presets::PRESETS;
use vsc::scenario::{nearest, presets};

use super::settings::{COMMANDS, OWN};
use super::{Outcome, Session, line, scenario};
use crate::say;
use vsc::diag::shown;

/// A command: its name, what follows it, and what it does.
pub(super) struct Command {
    pub(super) name: &'static str,
    arguments: &'static str,
    pub(super) about: &'static str,
}

impl Command {
    /// Whether something follows it.
    pub(super) fn takes_words(&self) -> bool {
        !self.arguments.is_empty()
    }
}

const fn command(name: &'static str, arguments: &'static str, about: &'static str) -> Command {
    Command {
        name,
        arguments,
        about,
    }
}

/// All commands but the presets, which are commands too.
pub(super) const TABLE: &[Command] = &[
    command("name", "NAME", "Names the VM."),
    command("vcpu", "N", "Number of vCPUs."),
    command("memory", "SIZE", "Guest memory; a bare number is GiB."),
    command(
        "machine",
        "TYPE",
        "QEMU's machine type; the selected hypervisor is asked for its own.",
    ),
    command(
        "bootdev",
        "DEVICE…",
        "What to boot from: hd, cdrom, network, floppy.",
    ),
    command("vnet", "NAME", "The virtual network."),
    command("diskpath", "DIR", "Where images are made."),
    command("cdrom", "FILE", "A CD in the drive, and booted from."),
    command("vmimage", "FILE", "An image that is there, used as it is."),
    command(
        "capacity",
        "SIZE",
        "Size of the image; a bare number is GiB.",
    ),
    command("format", "FORMAT", "Format of the image: qcow2, raw."),
    command("encryption", "on|off", "Encrypts the image with LUKS."),
    command(
        "cache",
        "MODE",
        "none, writeback, writethrough, directsync, unsafe.",
    ),
    command(
        "mode",
        "guest|host|both",
        "What a scenario prepares: the VM, the host, both.",
    ),
    command(
        "overwrite",
        "on|off",
        "Replaces a saved VM of the same name.",
    ),
    command(
        "force_sev",
        "on|off",
        "Takes the SEV certificates of this host; not secure.",
    ),
    command(
        "conf",
        "FILE",
        "A virtscenario.yaml with settings for all VMs; `none`: none.",
    ),
    command("hvconf", "FILE", "A virthosts.yaml with hypervisors."),
    command("hvlist", "", "Lists hypervisors."),
    command(
        "hvselect",
        "NAME",
        "Selects the hypervisor that has the VM.",
    ),
    command("set", "KEY VALUE", "Sets any key of the scenario language."),
    command(
        "unset",
        "[KEY|COMMAND]",
        "Takes a setting back; alone, all of them.",
    ),
    command("show", "", "Shows the settings."),
    command(
        "plan",
        "[SCENARIO]",
        "Recommended against current, images to be made, and the host's side.",
    ),
    command("xml", "[SCENARIO]", "Prints libvirt's domain XML."),
    command("check", "[SCENARIO]", "Says what is wrong."),
    command("explain", "[KEY]", "Explains."),
    command("run", "[SCENARIO] [-- CMD]", "Runs it now."),
    command("save", "[SCENARIO]", "Saves it as a VM."),
    command("list", "", "Lists saved VMs."),
    command("start", "NAME", "Runs a saved VM."),
    command("status", "NAME", "Says whether a saved VM runs."),
    command("stop", "NAME", "Ends a saved VM."),
    command("delete", "NAME", "Deletes a saved VM."),
    command("info", "", "This host's CPU, memory and KVM."),
    command("source", "FILE", "Runs the commands of a file."),
    command(
        "shell",
        "CMD",
        "Runs a command of the system's shell; short: !CMD.",
    ),
    command("help", "[COMMAND]", "This list."),
    command("quit", "", "Ends; so do exit and Ctrl-D."),
    command("exit", "", "Ends."),
];

/// Every word that a line may start with.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let presets = PRESETS.iter().map(|p| p.name);
    TABLE.iter().map(|c| c.name).chain(presets)
}

impl Session {
    /// Does what one line says.
    pub(super) fn execute(&mut self, text: &str) -> Outcome {
        let text = text.trim();
        // Nothing is repeated by an empty line.
        if text.is_empty() || text.starts_with('#') {
            return Outcome::Done;
        }
        if let Some(command) = text.strip_prefix('!') {
            return self.shell(command.trim());
        }
        let (word, rest) = match text.strip_prefix('?') {
            Some(rest) => ("help", rest),
            None => text.split_once(char::is_whitespace).unwrap_or((text, "")),
        };
        let rest = rest.trim();
        if let Some((command, _)) = COMMANDS
            .iter()
            .find(|(c, _)| *c == word && *c != "scenario")
        {
            return self.command(command, rest);
        }
        if let Some(own) = OWN.iter().find(|own| **own == word) {
            return self.own(own, rest);
        }
        if let Some(preset) = scenario::preset(word) {
            return match self.nothing(word, rest) {
                Ok(()) => self.scenario(preset),
                Err(outcome) => outcome,
            };
        }
        self.other(word, rest).unwrap_or_else(|outcome| outcome)
    }

    fn other(&mut self, word: &str, rest: &str) -> Result<Outcome, Outcome> {
        match word {
            "set" => Ok(self.set(rest)),
            "unset" => Ok(self.unset(rest)),
            "plan" => self.plan(rest),
            "xml" => self.xml(rest),
            "check" => self.check(rest),
            "run" => self.run(rest),
            "save" => self.save(rest),
            "list" | "start" | "status" | "stop" | "delete" => self.saved(word, rest),
            "explain" | "info" => self.plain(word, rest),
            "source" => {
                let file = line::whole(rest);
                if file.is_empty() {
                    return Err(
                        self.refuse("`source` needs a file", "For example `source lab.vsc`")
                    );
                }
                Ok(self.source(&file))
            }
            "shell" => Ok(self.shell(rest)),
            "help" => self.help(rest),
            _ => {
                let simple: Option<fn(&mut Self) -> Outcome> = match word {
                    "show" => Some(|s| s.show()),
                    "hvlist" => Some(|s| s.hvlist()),
                    "quit" | "exit" => Some(|_| Outcome::Quit),
                    _ => None,
                };
                let Some(simple) = simple else {
                    return Err(self.unknown_command(word));
                };
                self.nothing(word, rest)?;
                Ok(simple(self))
            }
        }
    }

    /// Refuses words after a command that takes none.
    fn nothing(&self, word: &str, rest: &str) -> Result<(), Outcome> {
        match rest.is_empty() {
            true => Ok(()),
            false => Err(self.refuse(
                format!("`{word}` takes nothing, and `{}` follows it", shown(rest)),
                "What a VM is to be like is set before: `name lab1`, `memory 8`",
            )),
        }
    }

    fn unknown_command(&self, word: &str) -> Outcome {
        let near = nearest(word, names());
        let near = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
        let word = shown(word);
        let help = match (
            super::settings::canonical(&word, ""),
            presets::feature(&word),
        ) {
            (Some(_), _) => format!("It is a key of a scenario: `set {word} VALUE`"),
            (_, Some(_)) => format!("It is a set of features: `set feature {word}`"),
            _ => "`help` lists the commands".into(),
        };
        self.refuse(format!("There is no command `{word}`{near}"), help)
    }

    fn source(&mut self, file: &str) -> Outcome {
        let path = match super::settings::absolute(file) {
            Ok(path) => path,
            Err(why) => return self.refuse(why, ""),
        };
        let before = self.failed;
        let outcome = self.file(&path);
        if self.interactive {
            // Each failure has been said; the conversation goes on.
            self.failed = before;
        }
        outcome
    }

    fn help(&self, rest: &str) -> Result<Outcome, Outcome> {
        let presets = PRESETS.iter().map(|p| (p.name, "", p.about()));
        let all = TABLE.iter().map(|c| (c.name, c.arguments, c.about));
        let mut rows: Vec<_> = all.chain(presets).collect();
        if !rest.is_empty() {
            let word = rest.trim_start_matches('!');
            if !rows.iter().any(|(name, ..)| *name == word) {
                return Err(self.unknown_command(word));
            }
            rows.retain(|(name, ..)| *name == word);
        }
        if self.common.json {
            let told: Vec<_> = rows
                .iter()
                .map(|(name, arguments, about)| {
                    serde_json::json!({"name": name, "arguments": arguments, "about": about})
                })
                .collect();
            say::out(&format!("{}\n", serde_json::Value::Array(told)));
            return Ok(Outcome::Done);
        }
        let head = |(name, arguments, _): &(&str, &str, &str)| {
            format!("{name} {arguments}").trim_end().to_owned()
        };
        let width = rows
            .iter()
            .map(|row| head(row).chars().count())
            .max()
            .unwrap_or(0);
        let lines = rows
            .iter()
            .map(|row| format!("{:width$}  {}\n", head(row), row.2));
        say::out(&lines.collect::<String>());
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_in_the_table_once() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let length = all.len();
        all.dedup();
        assert_eq!(all.len(), length);
        for (command, _) in COMMANDS.iter().filter(|(c, _)| *c != "scenario") {
            assert!(all.contains(command), "{command}");
        }
        assert!(OWN.iter().all(|own| all.contains(own)));
        assert!(TABLE.iter().all(|c| c.about.ends_with('.')));
    }
}
