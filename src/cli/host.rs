//! `vsc-run host`: what a scenario wants of the host, done on its own and for as long as one likes.
//!
//! `--json`: `plan` answers with `name` and the fields of `plan --json`'s `host`; `apply` with `name`, `changes`
//! (`what`, `target`, `from`, `to`, `verdict`) and `replayed`; `status` with `changes` (`what`, `target`, `before`,
//! `value`, `now`, `ours`, `holder`, `since`, `dead`, `lasting`); `undo` with `changes` (`what`, `target`, `how`,
//! `holder`), `held` (what runs hold that go on, as `status` shows it) and `damaged` (`journal`, `kept`, `lines`). Fields are added, never renamed.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use vsc::compile::Description;
use vsc::facts::Root;
use vsc::sev::enable::WHAT as ENABLE;
use vsc::tune::{Active, Foreign, How, Told, Tuner, Undone, Unwound, Verdict};

use super::Common;
use super::export::describe_host;
use super::plan::host_changes;
use super::run::{KeyArgs, Source, command_layer};
use super::table::table;
use super::tuned::{complain, unplanned};
use crate::{run, say};

/// Arguments of `host`.
#[derive(Debug, Args)]
pub(super) struct HostArgs {
    #[command(subcommand)]
    verb: HostVerb,
}

#[derive(Debug, Subcommand)]
enum HostVerb {
    /// Shows what a scenario would change on the host, from which value to which. Touches nothing.
    Plan(ScenarioArgs),
    /// Changes the host as a scenario wants it, until `host undo`.
    Apply(ScenarioArgs),
    /// Shows what is changed on the host, by whom, and whether it still is.
    Status,
    /// Puts back what `host apply` changed, and what runs left that were killed; `sev enable` has an undoing of its own.
    Undo {
        /// Also what somebody else has changed since; and what can still be read of a damaged journal.
        #[arg(long)]
        force: bool,
        /// Leaves what somebody else has changed since as it is, and does not keep its value before any longer.
        #[arg(long, conflicts_with = "force")]
        forget: bool,
    },
}

#[derive(Debug, Args)]
struct ScenarioArgs {
    /// A scenario or a preset.
    scenario: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// The command to run in the guest.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &HostArgs, common: &Common) -> u8 {
    let tuner = Tuner::new(&Root(common.host_root.clone()));
    let outcome = match &args.verb {
        HostVerb::Plan(args) => plan(args, common),
        HostVerb::Apply(args) => apply(args, &tuner, common),
        HostVerb::Status => tuner.status().map(|active| status(&active, common)),
        HostVerb::Undo { force, forget } => {
            let foreign = match (force, forget) {
                (true, _) => Foreign::Force,
                (_, true) => Foreign::Forget,
                _ => Foreign::Keep,
            };
            undo(&tuner, foreign, common)
        }
    };
    outcome.unwrap_or_else(|e| {
        say::error(&run::chain(&e));
        crate::FAILED
    })
}

type Outcome = Result<u8, vsc::tune::TuneError>;

fn described(args: &ScenarioArgs, common: &Common) -> Option<Description> {
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    layers.extend(command_layer(&args.command));
    let file = Some(args.scenario.as_path());
    describe_host(Source { file, layers }, common)
}

fn name(description: &Description) -> &str {
    description.domain.text("name").unwrap_or_default()
}

fn answer(value: &serde_json::Value, text: &str, common: &Common) {
    if common.json {
        say::out(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
    } else {
        say::out(text);
    }
}

fn plan(args: &ScenarioArgs, common: &Common) -> Outcome {
    let Some(description) = described(args, common) else {
        return Ok(crate::FAILED);
    };
    let mut value = serde_json::to_value(&description.host).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("name".into(), name(&description).into());
    }
    let text = match description.host.changes.is_empty() {
        true => "nothing of the host is to be changed\n".to_owned(),
        false => host_changes(&description.host),
    };
    answer(&value, &text, common);
    Ok(0)
}

fn apply(args: &ScenarioArgs, tuner: &Tuner, common: &Common) -> Outcome {
    let Some(description) = described(args, common) else {
        return Ok(crate::FAILED);
    };
    if let Some(why) = &description.host.skipped_all {
        say::error(&format!("the host stays as it is: {why}"));
        return Ok(crate::FAILED);
    }
    let changes = description.host.wanted();
    let (begun, _) = tuner.begin(&changes, name(&description), true, |_| Ok(()))?;
    for undone in begun.replayed.iter().filter(|undone| undone.is_warning()) {
        say::warning(&format!("W-HOST-LEFT: {undone}"));
    }
    complain(&begun.told, usize::MAX, common);
    let mut told = begun.told;
    let tried = told.len();
    told.extend(unplanned(&description.host));
    let value = json!({
        "name": name(&description), "changes": told, "replayed": begun.replayed,
    });
    let row = |told: &Told| {
        let result = match &told.verdict {
            Verdict::Done => "done".to_owned(),
            Verdict::Already => "already so".into(),
            Verdict::Joined { with } => format!("already so by {with}"),
            Verdict::Held { .. } | Verdict::Less { .. } | Verdict::Skipped { .. } => {
                format!("not done: {}", told.complaint().unwrap_or_default())
            }
        };
        let from = told.from.as_deref().unwrap_or("?");
        vec![
            told.what.clone(),
            told.target.display().to_string(),
            format!("{from} → {}", told.to),
            result,
        ]
    };
    let rows: Vec<_> = told.iter().map(row).collect();
    let text = match rows.is_empty() {
        true => "nothing of the host is to be changed\n".to_owned(),
        false => table(&["KEY", "FILE", "CHANGE", "RESULT"], &rows),
    };
    answer(&value, &text, common);
    let of_those = || told.iter().take(tried);
    let failed = of_those().any(|t| t.complaint().is_some());
    // What was so already is no success of this.
    let done =
        of_those().any(|t| t.complaint().is_none() && !matches!(t.verdict, Verdict::Already));
    Ok(match failed && !done {
        true => crate::FAILED,
        false => 0,
    })
}

fn status(active: &[Active], common: &Common) -> u8 {
    let row = |a: &Active| {
        let state = match (a.dead, a.ours) {
            (true, _) => "left by a run that was killed",
            (false, true) => "ours",
            (false, false) => "changed by somebody else",
        };
        vec![
            a.what.clone(),
            a.target.display().to_string(),
            format!("{} → {}", a.before, a.value),
            a.now.clone().unwrap_or_else(|| "?".into()),
            state.into(),
            a.holder.to_string(),
            age(a.since),
        ]
    };
    let rows: Vec<_> = active.iter().map(row).collect();
    let text = match rows.is_empty() {
        true => "nothing of the host is changed by vsc\n".to_owned(),
        false => table(
            &["KEY", "FILE", "CHANGE", "NOW", "STATE", "HOLDER", "SINCE"],
            &rows,
        ),
    };
    answer(&json!({ "changes": active }), &text, common);
    0
}

/// How long ago something was.
fn age(since: u64) -> String {
    let seconds = vsc::store::now().saturating_sub(since);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn undo(tuner: &Tuner, foreign: Foreign, common: &Common) -> Outcome {
    let Unwound { undone, damaged } = tuner.undo(foreign, &[ENABLE])?;
    for damage in &damaged {
        say::warning(&format!("W-HOST-LEFT: {damage}"));
    }
    if !common.quiet && tuner.kept(ENABLE).is_ok_and(|kept| !kept.is_empty()) {
        say::note("what `sev enable` changed stays: `vsc-run sev enable --undo` puts it back");
    }
    let active = tuner.status()?.into_iter();
    let held: Vec<Active> = active.filter(|a| !a.holder.standing && !a.dead).collect();
    let mut text: String = undone.iter().map(|undone| format!("{undone}\n")).collect();
    text += &still_held(&held, &undone);
    if text.is_empty() && damaged.is_empty() {
        text = "nothing to undo\n".to_owned();
    }
    let value = json!({ "changes": undone, "held": held, "damaged": damaged });
    answer(&value, &text, common);
    match !damaged.is_empty() || undone.iter().any(Undone::is_kept) {
        true => Ok(crate::FAILED),
        false => Ok(0),
    }
}

/// What runs hold that go on, a line for each, without what has been told of already.
fn still_held(held: &[Active], told: &[Undone]) -> String {
    let is_told = |a: &Active| {
        let mut used = told.iter().filter(|u| matches!(u.how, How::Used { .. }));
        used.any(|undone| undone.target == a.target)
    };
    let mut runs: Vec<(String, Vec<String>)> = Vec::new();
    for active in held.iter().filter(|a| !is_told(a)) {
        let (holder, target) = (active.holder.to_string(), active.target.display());
        match runs.iter_mut().find(|(run, _)| *run == holder) {
            Some((_, targets)) => targets.push(target.to_string()),
            None => runs.push((holder, vec![target.to_string()])),
        }
    }
    let line = |(holder, targets): &(String, Vec<String>)| {
        let targets = targets.join(", ");
        format!("{holder}, goes on and puts back at its end: {targets}\n")
    };
    runs.iter().map(line).collect()
}
