//! `vsc-run gc`: what runs left that were killed together with everything that would have tidied up after them.
//!
//! `gc --json` is one object: `dry_run`; `found`: `kind`, `what`, `outcome`, `kept` (it could not be put back or
//! removed, and stays; never of a dry run, which does not try); `error` where something could not be looked at. Fields are added, never renamed.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vsc::facts::Root;
use vsc::locks::lockspace::Swept;
use vsc::runs;
use vsc::tune::{Active, Tuner, Undone};

use super::Common;
use crate::run::{mark, registration};
use crate::{run, say};

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Says what there is, and leaves it.
    #[arg(long)]
    dry_run: bool,
}

/// Something that was left.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// `host change`, …
    pub(super) kind: &'static str,
    /// What it is, and whose it was.
    pub(super) what: String,
    /// What became of it.
    pub(super) outcome: String,
    /// It could not be put back or removed, and is there still.
    pub(super) kept: bool,
}

/// Finds one kind of leftovers of dead runs, and removes them unless this is a dry run.
type Finder = fn(common: &Common, dry: bool) -> Result<Vec<Found>, String>;

/// Every kind there is. What one leaves may need another: values of the host come first.
const FINDERS: &[Finder] = &[host_changes, lock_files, runs_left, machines_left];

pub(super) fn run(args: &GcArgs, common: &Common) -> u8 {
    let mut found = Vec::new();
    let mut failed = false;
    for finder in FINDERS {
        match finder(common, args.dry_run) {
            Ok(more) => found.extend(more),
            Err(why) => {
                say::error(&why);
                failed = true;
            }
        }
    }
    failed |= found.iter().any(|found| found.kept);
    if common.json {
        let mut value = serde_json::json!({ "dry_run": args.dry_run, "found": found });
        if let Some(error) = say::first_error() {
            value["error"] = error;
        }
        say::out(&(serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"));
    } else if found.is_empty() && !failed {
        say::out("nothing to do\n");
    } else {
        for found in &found {
            say::out(&format!(
                "{}: {}: {}\n",
                found.kind, found.what, found.outcome
            ));
        }
    }
    match failed {
        true => crate::FAILED,
        false => 0,
    }
}

/// Files of libvirt's lockspaces that nobody holds; those of other lockspaces `locks gc` finds.
fn lock_files(common: &Common, dry: bool) -> Result<Vec<Found>, String> {
    let swept = super::locks::sweep_default(common, dry)?;
    let found = swept.into_iter().filter_map(|(path, state)| {
        let (outcome, kept) = match state {
            Swept::Removed => ("removed", false),
            Swept::Stale => ("would be removed", false),
            Swept::Held { .. } | Swept::Kept { .. } => return None,
        };
        Some(Found {
            kind: "lock file",
            what: path.display().to_string(),
            outcome: outcome.to_owned(),
            kept,
        })
    });
    Ok(found.collect())
}

/// Values of the host that were not put back.
fn host_changes(common: &Common, dry: bool) -> Result<Vec<Found>, String> {
    const KIND: &str = "host change";
    let tuner = Tuner::new(&Root(common.host_root.clone()));
    if dry {
        let active = tuner.status().map_err(|e| run::chain(&e))?;
        let found = |active: &Active| Found {
            kind: KIND,
            what: format!("{} of {}", active.target.display(), active.holder),
            outcome: match active.rebooted {
                true => "was reset by a reboot: would be forgotten".to_owned(),
                false => format!("would be put back to {}", active.before),
            },
            kept: false,
        };
        return Ok(active.iter().filter(|a| a.dead).map(found).collect());
    }
    let undone = tuner.replay().map_err(|e| run::chain(&e))?;
    let found = |undone: &Undone| Found {
        kind: KIND,
        what: format!("{} of {}", undone.what, undone.holder),
        outcome: undone.to_string(),
        kept: undone.is_kept(),
    };
    Ok(undone.iter().map(found).collect())
}

/// Directories of runs that are over.
fn runs_left(common: &Common, dry: bool) -> Result<Vec<Found>, String> {
    // A user without a place for runs has none.
    let Ok(base) = super::run::runs_base() else {
        return Ok(Vec::new());
    };
    let below = base.strip_prefix("/").unwrap_or(&base);
    let left = runs::clean(&common.host_root.join(below), dry);
    let left = left.map_err(|e| run::chain(&e))?;
    let found = |path: PathBuf| Found {
        kind: "run",
        what: format!("its directory {}", path.display()),
        outcome: if dry { "would be removed" } else { "removed" }.to_owned(),
        kept: false,
    };
    Ok(left.into_iter().map(found).collect())
}

/// Machines that systemd-machined still lists. It keeps them in files (machine_save of systemd's src/machine).
fn machines_left(common: &Common, dry: bool) -> Result<Vec<Found>, String> {
    let proc = common.host_root.join("proc");
    let entries = std::fs::read_dir(common.host_root.join("run/systemd/machines"));
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let (Ok(name), Ok(text)) = (
            entry.file_name().into_string(),
            std::fs::read_to_string(entry.path()),
        ) else {
            continue;
        };
        let value = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key));
            Some(line?.strip_prefix('=')?.trim_matches('"').to_owned())
        };
        let leader = value("LEADER").and_then(|pid| pid.parse::<u32>().ok());
        // Names end with the number of the process, so a process of this number is not another's.
        let ours = value("SERVICE").as_deref() == Some(registration::SERVICE)
            && leader.is_some_and(|pid| name.ends_with(&format!("-{pid}")));
        let dead = leader.is_some_and(|pid| mark::of(&proc.join(pid.to_string())).is_none());
        if !ours || !dead {
            continue;
        }
        let outcome = match dry {
            true => Ok("would be forgotten"),
            false => registration::forget(&name).map(|()| "forgotten"),
        };
        found.push(Found {
            kind: "machine",
            what: format!("{name} in systemd-machined"),
            kept: outcome.is_err(),
            outcome: outcome.map_or_else(|why| why, str::to_owned),
        });
    }
    Ok(found)
}
