//! `vsc-run SCENARIO --save`: a scenario becomes a saved VM.

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::{Value, json};
use vsc::compile::Plan;
use vsc::store::{Contents, Name, StoreError};

use super::super::Common;
use super::{StoreArgs, answer};

/// The hypervisor's name where it is this program that runs a VM, as the predecessor names this machine's.
const HERE: &str = "localhost";

/// Saves what a plan is of, and says where.
///
/// # Errors
/// [`StoreError`].
pub(in crate::cli) fn save(
    plan: &Plan,
    store: &StoreArgs,
    overwrite: bool,
    common: &Common,
) -> Result<(), StoreError> {
    let name = Name::new(&plan.resources.name)?;
    let here = std::env::current_dir().map_err(|error| StoreError::System {
        action: "find",
        path: ".".into(),
        error,
    })?;
    let mut scenario = plan.scenario(&here);
    let told = scenario.get("store").and_then(|s| s.as_str());
    let store = store.open(told.map(Path::new))?;
    if let Value::Object(keys) = &mut scenario {
        // By default a file's name; that of the file in the store says nothing.
        keys.insert("name".into(), name.as_str().into());
        // Where it is, is where it is.
        keys.remove("store");
    }
    let text = vsc::scenario::write(&scenario);
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(StoreError::Unusable {
            directory: store.directory().to_owned(),
            why: "the scenario has paths or words that are no text, which its file cannot say"
                .into(),
        });
    }
    let contents = Contents {
        domain: domain_xml(plan),
        scenario: text,
        attestation: false,
        host: HERE.into(),
        on: None,
    };
    let place = store.save(&name, &contents, overwrite)?;
    let shown = format!("{} is saved in {}\n", name.as_str(), place.display());
    answer(
        common,
        &json!({"name": name.as_str(), "directory": place}),
        &shown,
    );
    Ok(())
}

/// The domain XML of a plan.
fn domain_xml(plan: &Plan) -> String {
    let resources = &plan.resources;
    format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <memory unit='b'>{}</memory>\n  <vcpu>{}</vcpu>\n  \
         <os>\n    <type arch='x86_64'>hvm</type>\n  </os>\n</domain>\n",
        resources.name,
        resources.memory,
        resources.cpus.topology.sockets
            * resources.cpus.topology.cores
            * resources.cpus.topology.threads
    )
}
