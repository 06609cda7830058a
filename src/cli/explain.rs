//! `check` and `explain`: a scenario looked at, never run.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vsc::compile::{DevicePair, RunPlan, device_pairs};
use vsc_vmm::resources::{InitrdPart, Payload, VmResources};

use super::Common;
use super::run::{KeyArgs, Source, compile};
use crate::say;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The scenario.
    scenario: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The scenario; without one, the defaults.
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Only the devices: what the guest sees beside what stands behind it on the host.
    #[arg(long)]
    devices: bool,
}

pub(super) fn check(args: &CheckArgs, common: &Common) -> u8 {
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    match compile(
        Source {
            file: Some(&args.scenario),
            layers,
        },
        common,
    ) {
        Some(_) => 0,
        None => crate::FAILED,
    }
}

/// The JSON form of `explain`.
#[derive(Serialize)]
struct Explained<'a> {
    resources: &'a VmResources,
    run: &'a RunPlan,
    devices: &'a [DevicePair],
}

pub(super) fn explain(args: &ExplainArgs, common: &Common) -> u8 {
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    let Some(mut plan) = compile(
        Source {
            file: args.scenario.as_deref(),
            layers,
        },
        common,
    ) else {
        return crate::FAILED;
    };
    let devices = device_pairs(&plan);
    if let Payload::Kernel(kernel) = &mut plan.resources.payload {
        // Built initrds are not part of the description.
        kernel
            .initrd
            .retain(|part| matches!(part, InitrdPart::File(_)));
    }
    if common.json {
        let explained = Explained {
            resources: &plan.resources,
            run: &plan.run,
            devices: &devices,
        };
        say::out(&(serde_json::to_string_pretty(&explained).unwrap_or_default() + "\n"));
        return 0;
    }
    let mut text = String::new();
    if !args.devices {
        let width = plan
            .settings()
            .iter()
            .map(|s| s.key.len())
            .max()
            .unwrap_or(0);
        for setting in plan.settings() {
            text += &format!(
                "{:width$}  {}  ({})\n",
                setting.key, setting.value, setting.origin
            );
        }
        text.push('\n');
    }
    let width = devices
        .iter()
        .map(|d| d.guest.len())
        .max()
        .unwrap_or(0)
        .max("GUEST".len());
    let host = devices
        .iter()
        .map(|d| d.host.len())
        .max()
        .unwrap_or(0)
        .max("HOST".len());
    text += &format!("{:width$}  {:host$}  ID\n", "GUEST", "HOST");
    for d in &devices {
        text += &format!("{:width$}  {:host$}  {}\n", d.guest, d.host, d.id);
    }
    say::out(&text);
    0
}
