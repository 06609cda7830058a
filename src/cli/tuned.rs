//! The host around a run: prepared before the guest boots, put back after its end, and what is said of both.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::Value;
use vsc::compile::HostPlan;
use vsc::diag::{Diagnostic, Diagnostics, Sources, Span};
use vsc::facts::Root;
use vsc::tune::{Begun, Change, Guard, How, Told, Tuner, Undone, Verdict, Witness};

use super::Common;
use super::run::report;
use crate::{run, say};

/// Most changes that one message names.
const NAMED: usize = 3;

/// What was done to the host for a run.
#[derive(Debug, Default)]
pub(super) struct Tuned {
    guard: Option<Guard>,
    /// Each change and what came of it, for the result.
    pub(super) told: Vec<Value>,
}

/// Changes the host as `plan` says, and as `more` does. What dead runs left is put back first. Nothing is touched
/// where there is nothing to do.
///
/// # Errors
/// Why there can be no run; nothing stays changed.
pub(super) fn begin(
    name: &str,
    plan: &HostPlan,
    more: Vec<Change>,
    common: &Common,
) -> Result<Tuned, String> {
    let tuner = Tuner::new(&Root(common.host_root.clone()));
    let mut changes = plan.wanted();
    changes.extend(more);
    if let Some(why) = &plan.skipped_all {
        warn("W-HOST", format!("The host stays as it is: {why}"), common);
    }
    if changes.is_empty() && !tuner.is_used() {
        return Ok(Tuned {
            guard: None,
            told: values(&unplanned(plan)),
        });
    }
    let required = changes.iter().any(|change| change.required);
    let (begun, guard) = match tuner.guarded(&changes, name) {
        Ok(both) => both,
        // What is merely recommended does not keep a machine from running.
        Err(e) if !required => {
            let why = run::chain(&e);
            warn("W-HOST", format!("The host stays as it is: {why}"), common);
            return Ok(Tuned::default());
        }
        Err(e) => return Err(run::chain(&e)),
    };
    let Begun {
        told,
        replayed,
        run: _,
        sign: _,
    } = begun;
    tell_replayed(&replayed, common);
    tell(&told, common);
    let mut told = told;
    told.extend(unplanned(plan));
    let told = values(&told);
    Ok(Tuned { guard, told })
}

fn values(told: &[Told]) -> Vec<Value> {
    let value = |told| serde_json::to_value(told).unwrap_or_default();
    told.iter().map(value).collect()
}

/// Has what a run makes on this host removed at its end.
///
/// # Errors
/// Why nobody would.
pub(super) fn keep(name: &str, leftovers: &[Change]) -> Result<Option<Guard>, String> {
    if leftovers.is_empty() {
        return Ok(None);
    }
    let guarded = Tuner::new(&Root::default()).guarded(leftovers, name);
    guarded.map(|(_, guard)| guard).map_err(|e| run::chain(&e))
}

impl Tuned {
    /// Whether another process puts the host back, and removes what the run makes there.
    pub(super) fn sweeps(&self) -> bool {
        self.guard.is_some()
    }

    /// Whom to tell what the run has made, where that process removes it.
    pub(super) fn witness(&self) -> Option<Witness> {
        self.guard.as_ref()?.witness()
    }

    /// Puts the host back, and says what could not be.
    pub(super) fn end(self, common: &Common) {
        let undone = match self.guard.map(Guard::end).transpose() {
            Ok(undone) => undone.unwrap_or_default(),
            Err(why) => {
                let message = format!("The host is not put back: {}", run::chain(&why));
                return warn("W-HOST-LEFT", message, common);
            }
        };
        for undone in &undone {
            if undone.is_warning() {
                warn("W-HOST-LEFT", undone.to_string(), common);
            } else if common.verbose {
                say::note(&format!("host: {undone}"));
            }
        }
    }
}

/// What the plan left out already, in the form of what was tried.
pub(super) fn unplanned(plan: &HostPlan) -> Vec<Told> {
    let left = plan.changes.iter().filter_map(|change| {
        let why = match &change.act {
            Some(_) => plan.skipped_all.clone()?,
            None => change.skipped.clone()?,
        };
        Some(Told {
            what: change.what.clone(),
            target: change.path.clone(),
            from: change.old.clone(),
            to: change.new.clone(),
            verdict: Verdict::Skipped { why },
        })
    });
    left.collect()
}

fn tell(told: &[Told], common: &Common) {
    if common.verbose {
        for told in told {
            say::note(&format!("host: {told}"));
        }
        return;
    }
    complain(told, NAMED, common);
}

/// Says which changes were not made, and why; of each kind, the first `most`.
pub(super) fn complain(told: &[Told], most: usize, common: &Common) {
    let held = |told: &&Told| matches!(told.verdict, Verdict::Held { .. });
    for (code, list) in [
        ("W-HOST-HELD", told.iter().filter(held).collect::<Vec<_>>()),
        ("W-HOST", told.iter().filter(|told| !held(told)).collect()),
    ] {
        let complaints: Vec<String> = list
            .iter()
            .filter_map(|told| Some(format!("{}: {}", told.what, told.complaint()?)))
            .collect();
        if complaints.is_empty() {
            continue;
        }
        let mut text = complaints
            .iter()
            .take(most)
            .cloned()
            .collect::<Vec<_>>()
            .join("; ");
        if complaints.len() > most {
            text += &format!("; and {} more, see -v", complaints.len() - most);
        }
        let message = match (complaints.len(), told.len()) {
            (1, 1) => format!("The one change of the host was not made ({text})"),
            (1, all) => format!("1 of {all} changes of the host was not made ({text})"),
            (some, all) => format!("{some} of {all} changes of the host were not made ({text})"),
        };
        warn(code, message, common);
    }
}

/// What runs that were killed had left.
fn tell_replayed(replayed: &[Undone], common: &Common) {
    for undone in replayed {
        if undone.is_warning() {
            warn("W-HOST-LEFT", undone.to_string(), common);
        }
    }
    let back = |undone: &&Undone| matches!(undone.how, How::Back { .. });
    let count = replayed.iter().filter(back).count();
    if let Some(first) = replayed.iter().find(back)
        && !common.quiet
    {
        let holder = &first.holder;
        say::note(&format!(
            "put back what {holder}, had left of the host when it was killed ({count} {})",
            if count == 1 { "value" } else { "values" }
        ));
    }
}

fn warn(code: &'static str, message: String, common: &Common) {
    let list = vec![Diagnostic::warning(code, Span::NONE, message)];
    report(
        &Diagnostics::new(list, Arc::new(Sources::default())),
        common,
    );
}
