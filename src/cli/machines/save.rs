//! `vsc-run SCENARIO --save`: a scenario becomes a saved VM.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vsc::compile::Description;
use vsc::diag::Severity;
use vsc::store::{Contents, Name, Remote, StoreError};
use vsc::xml::Exported;

use super::super::Common;
use super::{StoreArgs, answer, is_secure};
use crate::say;

/// The hypervisor's name where it is this program that runs a VM, as the predecessor names this machine's.
const HERE: &str = "localhost";

/// Saves what a scenario describes, and says where.
///
/// # Errors
/// [`StoreError`].
pub(in crate::cli) fn save(
    description: &Description,
    exported: &Exported,
    on: Option<Remote>,
    store: &StoreArgs,
    overwrite: bool,
    common: &Common,
) -> Result<(), StoreError> {
    let host = on.as_ref().map_or(HERE, |on| &on.host).to_owned();
    let place = keep(description, exported, on, store, overwrite, common)?;
    let name = description.domain.text("name").unwrap_or_default();
    let shown = format!("{name} is saved in {}\n", place.display());
    let told = json!({"name": name, "directory": place, "host": host});
    answer(common, &told, &shown);
    Ok(())
}

/// Saves what a scenario describes; returns where.
///
/// # Errors
/// [`StoreError`].
pub(in crate::cli) fn keep(
    description: &Description,
    exported: &Exported,
    on: Option<Remote>,
    store: &StoreArgs,
    overwrite: bool,
    common: &Common,
) -> Result<PathBuf, StoreError> {
    let parsed = description.parsed();
    let name = Name::new(description.domain.text("name").unwrap_or_default())?;
    let store = store.open(parsed.text("store").as_deref().map(Path::new), common)?;
    let contents = Contents {
        domain: exported.text.clone(),
        scenario: scenario(description, &name).map_err(|why| StoreError::Unusable {
            directory: store.directory().to_owned(),
            why,
        })?,
        attestation: is_secure(description),
        host: on.as_ref().map_or(HERE, |on| &on.host).to_owned(),
        settings: parsed.settings.as_deref().map(absolute).transpose()?,
        on,
    };
    let place = store.save(&name, &contents, overwrite)?;
    if let (None, Err(why)) = (&contents.on, &description.monitor) {
        let errors = why.list.iter().filter(|d| d.severity == Severity::Error);
        let errors: Vec<&str> = errors.map(|d| d.message.as_str()).collect();
        let advice = match contents.attestation {
            true => "",
            false => "; `start --on HOST` hands it to libvirt",
        };
        say::warning(&format!(
            "{} cannot be run by this program here: {}{advice}",
            name.as_str(),
            errors.join("; ")
        ));
    }
    Ok(place)
}

/// The scenario's text, which means the same in the store.
fn scenario(description: &Description, name: &Name) -> Result<String, String> {
    let here =
        std::env::current_dir().map_err(|e| format!("there is no current directory: {e}"))?;
    let mut scenario = description.parsed().portable(&here);
    if let Value::Object(keys) = &mut scenario {
        // By default a file's name; that of the file in the store says nothing.
        keys.insert("name".into(), name.as_str().into());
        // Where it is, is where it is.
        keys.remove("store");
    }
    let text = vsc::scenario::write(&scenario);
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(
            "the scenario has paths or words that are no text, which its file cannot say".into(),
        );
    }
    Ok(text)
}

fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    std::path::absolute(path).map_err(|error| StoreError::System {
        action: "find",
        path: path.to_owned(),
        error,
    })
}
