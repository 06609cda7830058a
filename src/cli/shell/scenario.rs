//! What is done with a scenario and the settings: saved, shown, exported, run.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vsc::compile::{Description, Difference, HostPlan};
use vsc::diag::shown;
use vsc::facts::Root;
use vsc::scenario::presets;
use vsc::store::{CONFIG, DOMAIN, StoreError};
use vsc::tune::{Told, Tuner};

use super::super::export::domain_xml;
use super::super::run::{or_report, report};
use super::super::table::table;
use super::super::{VERBS, machines};
use super::settings::{Assignment, Settings, What};
use super::{Outcome, Session, line};
use crate::{run, say};

impl Session {
    /// Reads and compiles, and says what there is to say about it.
    fn described(&self, settings: &Settings, scenario: Option<&Path>) -> Option<Description> {
        or_report(self.describe(settings, scenario), &self.common)
            .inspect(|description| report(&description.warnings, &self.common))
    }

    /// `desktop` and the like: the scenario with the user's settings, prepared as `mode` says.
    pub(super) fn scenario(&mut self, preset: &'static str) -> Outcome {
        let mut settings = self.settings.clone();
        settings.put("preset", preset, What::Key);
        let Some(description) = self.described(&settings, None) else {
            return Outcome::Failed;
        };
        let mode = self.settings.get("mode").unwrap_or("both").to_owned();
        let mut told = json!({"scenario": preset});
        if mode != "host" {
            let place = match self.keep(&description) {
                Ok(place) => place,
                Err(outcome) => return outcome,
            };
            told["directory"] = json!(place);
            told["differences"] = json!(description.differences());
            if !self.common.json {
                let differences = description.differences();
                if !differences.is_empty() {
                    say::out(&format!(
                        "USER SETTINGS THAT OVERRIDE THE SCENARIO'S\n{}",
                        comparison(&differences)
                    ));
                }
                for file in [DOMAIN, CONFIG] {
                    let file = place.join(file);
                    say::out(&format!("{}\n", shown(&file.display().to_string())));
                }
                let name = description.domain.text("name").unwrap_or_default();
                let remote = description.parsed().text("on").is_some();
                if remote || description.monitor.is_ok() {
                    self.note(&format!("`start {name}` runs it"));
                }
            }
        }
        if mode != "guest" {
            told["host"] = json!(description.host);
            if !self.common.json {
                say::out(&host_plan(&description.host));
            }
            match self.prepare(&description) {
                Ok(made) => told["host_changes"] = json!(made),
                Err(outcome) => return outcome,
            }
        }
        if preset == "securevm" && self.settings.is_on("force_sev") {
            self.note("force_sev: no certificate was exported; this build starts no SEV machine by itself");
        }
        if self.common.json {
            say::out(&format!("{told}\n"));
        }
        self.settings = settings;
        Outcome::Done
    }

    /// Changes the host as the scenario wants it, until `vsc-run host undo`; returns what came of each change. `Err`:
    /// why not has been said.
    fn prepare(&self, description: &Description) -> Result<Vec<Told>, Outcome> {
        if let Some(why) = &description.host.skipped_all {
            self.note(&format!("the host stays as it is: {why}"));
            return Ok(Vec::new());
        }
        let changes = description.host.wanted();
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let name = description.domain.text("name").unwrap_or_default();
        let tuner = Tuner::new(&Root(self.common.host_root.clone()));
        let begun = tuner.begin(&changes, name, true, |_| Ok(()));
        let (begun, _) = begun.map_err(|e| self.refuse(shown(&run::chain(&e)), ""))?;
        let mut made = 0;
        for told in &begun.told {
            match told.complaint() {
                None => made += 1,
                Some(why) => self.note(&format!("{} was not set: {}", told.what, shown(&why))),
            }
        }
        if made > 0 {
            self.note("the host is as the scenario wants it; `vsc-run host undo` puts it back");
        }
        Ok(begun.told)
    }

    /// Puts it into the store; returns where. `Err`: why not has been said.
    fn keep(&self, description: &Description) -> Result<PathBuf, Outcome> {
        let on = match description.parsed().text("on") {
            None => None,
            Some(name) => {
                let list = self.settings.get("hosts").map(Path::new);
                let found = machines::resolve(&name, list, &self.common);
                Some(found.map_err(|e| self.refuse(shown(&e.to_string()), "`hvlist` shows them"))?)
            }
        };
        let exported = domain_xml(description, &[], &self.common).ok_or(Outcome::Failed)?;
        let overwrite = self.settings.is_on("overwrite");
        let kept = machines::keep(
            description,
            &exported,
            on,
            &self.store,
            overwrite,
            &self.common,
        );
        kept.map_err(|e| match e {
            StoreError::Exists(place) => self.refuse(
                format!("{} exists already", shown(&place.display().to_string())),
                "`overwrite on` replaces it, `name NAME` gives this one another name",
            ),
            other => self.refuse(shown(&other.to_string()), ""),
        })
    }

    /// A scenario that a command names, as it is for the compiler.
    fn named<'a>(&self, words: &'a [String]) -> Result<Option<&'a Path>, Outcome> {
        match words {
            [] => Ok(None),
            [one] if one.starts_with('-') => Err(self.refuse(
                format!("`{}` is no scenario", shown(one)),
                "Options are not for commands of the shell: `set KEY VALUE`",
            )),
            [one] => Ok(Some(Path::new(one))),
            _ => Err(self.refuse(
                "One scenario at a time",
                "Name a preset or a file, or nothing: `plan desktop`",
            )),
        }
    }

    fn split(&self, argument: &str) -> Result<Vec<String>, Outcome> {
        line::words(argument).map_err(|why| self.refuse(format!("This line has no end: {why}"), ""))
    }

    /// `save [SCENARIO]`
    pub(super) fn save(&self, argument: &str) -> Result<Outcome, Outcome> {
        let words = self.split(argument)?;
        let scenario = self.named(&words)?;
        let described = self.described(&self.settings, scenario);
        let description = described.ok_or(Outcome::Failed)?;
        let place = self.keep(&description)?;
        let name = description.domain.text("name").unwrap_or_default();
        say::out(&match self.common.json {
            true => format!("{}\n", json!({"name": name, "directory": place})),
            false => format!(
                "{name} is saved in {}\n",
                shown(&place.display().to_string())
            ),
        });
        Ok(Outcome::Done)
    }

    /// `plan [SCENARIO] [--all]`
    pub(super) fn plan(&self, argument: &str) -> Result<Outcome, Outcome> {
        let mut words = self.split(argument)?;
        let before = words.len();
        words.retain(|word| word != "--all");
        let mut line = self.line(self.named(&words)?)?;
        if words.len() < before {
            line.push("--all".into());
        }
        Ok(self.again(Some("plan"), line))
    }

    /// Where saved VMs are, as options.
    fn store_option(&self) -> Vec<String> {
        let store = self.store.store.iter();
        store
            .flat_map(|store| ["--store".to_owned(), store.to_string_lossy().into_owned()])
            .collect()
    }

    /// The words of a command line for a scenario with the settings.
    fn line(&self, scenario: Option<&Path>) -> Result<Vec<String>, Outcome> {
        let assignments = self
            .assignments(&self.settings, scenario)
            .map_err(|messages| {
                report(&messages, &self.common);
                Outcome::Failed
            })?;
        let mut out: Vec<String> = Vec::new();
        if let Some(scenario) = scenario {
            let text = scenario.to_string_lossy();
            // A file with the name of a verb is that file here.
            let verb = VERBS.iter().any(|verb| text == *verb);
            out.push(if verb {
                format!("./{text}")
            } else {
                text.into_owned()
            });
        }
        for assignment in assignments.iter().map(Assignment::word) {
            out.extend(["-o".to_owned(), assignment]);
        }
        Ok(out)
    }

    /// `xml [SCENARIO]`
    pub(super) fn xml(&self, argument: &str) -> Result<Outcome, Outcome> {
        let words = self.split(argument)?;
        let mut line = self.line(self.named(&words)?)?;
        line.push("--export-xml".into());
        Ok(self.again(None, line))
    }

    /// `check [SCENARIO]`
    pub(super) fn check(&self, argument: &str) -> Result<Outcome, Outcome> {
        let words = self.split(argument)?;
        let scenario = self.named(&words)?;
        if scenario.is_some() {
            let line = self.line(scenario)?;
            return Ok(self.again(Some("check"), line));
        }
        self.described(&self.settings, None)
            .ok_or(Outcome::Failed)?;
        Ok(Outcome::Done)
    }

    /// `run [SCENARIO] [-- CMD]`
    pub(super) fn run(&self, argument: &str) -> Result<Outcome, Outcome> {
        let words = self.split(argument)?;
        let at = words
            .iter()
            .position(|word| word == "--")
            .unwrap_or(words.len());
        let (before, command) = words.split_at(at);
        let mut line = self.line(self.named(before)?)?;
        line.extend(self.store_option());
        line.extend(command.iter().cloned());
        Ok(self.again(None, line))
    }

    /// `list`, `start NAME`, …: the verb of this name, with all its options.
    pub(super) fn saved(&self, verb: &str, argument: &str) -> Result<Outcome, Outcome> {
        let mut line = self.store_option();
        line.extend(self.split(argument)?);
        Ok(match self.again(Some(verb), line) {
            // That it does not run is an answer.
            Outcome::Code(code) if verb == "status" => Outcome::Answer(code),
            outcome => outcome,
        })
    }

    /// `explain KEY`, `info`: the verb of this name as it is.
    pub(super) fn plain(&self, verb: &str, argument: &str) -> Result<Outcome, Outcome> {
        Ok(self.again(Some(verb), self.split(argument)?))
    }

    /// `show`
    pub(super) fn show(&self) -> Outcome {
        if self.common.json {
            let pairs = self
                .settings
                .0
                .iter()
                .map(|s| (s.label().to_owned(), json!(s.value)));
            let told: serde_json::Map<String, Value> = pairs.collect();
            say::out(&format!("{}\n", Value::Object(told)));
        } else if self.settings.0.is_empty() {
            say::out("Nothing is set\n");
        } else {
            say::out(&self.settings.block());
        }
        Outcome::Done
    }
}

/// The names of presets, which are commands.
pub(super) fn preset(word: &str) -> Option<&'static str> {
    presets::find(word).map(|p| p.name)
}

/// Recommended against current, as virt-scenario shows it, and who says so.
fn comparison(differences: &[Difference]) -> String {
    let head = ["Parameter", "Recommended", "User Settings", "From"];
    let rows = differences.iter().map(|d| {
        let recommended = d.recommended.as_deref().unwrap_or("-").to_owned();
        vec![
            d.key.clone(),
            recommended,
            d.current.clone(),
            d.origin.to_string(),
        ]
    });
    table(&head, &rows.collect::<Vec<_>>())
}

/// What the host would be changed to.
fn host_plan(plan: &HostPlan) -> String {
    if plan.changes.is_empty() {
        return "The scenario wants nothing changed on the host\n".into();
    }
    let rows = plan.changes.iter().map(|c| {
        let skipped = c.skipped.as_deref().or(plan.skipped_all.as_deref());
        vec![
            c.path.display().to_string(),
            c.old.as_deref().unwrap_or("-").to_owned(),
            c.new.clone(),
            skipped.map_or_else(String::new, |why| format!("skipped: {why}")),
        ]
    });
    table(
        &["Host setting", "Now", "Wanted", ""],
        &rows.collect::<Vec<_>>(),
    )
}
