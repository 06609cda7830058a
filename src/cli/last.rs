//! The last that a run says: how it ended, to people and to programs.

use std::path::Path;

use super::Common;
use super::run::RunArgs;
use crate::run::ending::{Ending, OUR_ERROR};
use crate::run::outside::{Errand, Outside};
use crate::run::result::{Summary, write_whole};
use crate::say;

/// How a run ended: an error where that is ours, news of the guest where it is the guest's.
pub(super) fn ended(ending: &Ending, sentence: &str) {
    match ending {
        Ending::Failed { .. } => drop(say::error_unkept(sentence)),
        _ => say::note_unkept(sentence),
    }
}

/// The guest's last lines, where the user has not seen them anyway.
pub(super) fn last_words(summary: &Summary, shown: bool) {
    let tail = summary.console_tail();
    if !shown && !tail.is_empty() {
        say::note_unkept("the guest's last lines on its console:");
        for line in tail {
            say::err_raw(&format!("  | {line}\n"));
        }
    }
    if matches!(summary.ending, Ending::TimedOut { .. })
        && let Some(whereabouts) = summary.whereabouts()
    {
        say::note_unkept(&whereabouts);
    }
}

/// A run that never was; says why.
pub(super) fn failed(why: String) -> Summary {
    say::error_unkept(&why);
    Summary::failed(why)
}

pub(super) fn finish(mut summary: Summary, args: &RunArgs, common: &Common) -> u8 {
    if args.timing {
        say::note_unkept(&summary.timing());
    }
    tell(&mut summary, args.result.as_deref(), common.json)
}

/// Writes how a run ended for programs to read, and returns the exit code.
pub(super) fn tell(summary: &mut Summary, file: Option<&Path>, json: bool) -> u8 {
    summary.messages = say::kept();
    let text = file.map(|_| summary.json()).unwrap_or_default();
    let written = |path: &Path, outside: Option<&mut Outside>| match outside {
        Some(outside) => outside.run(Errand::Result, text.as_bytes()),
        None => write_whole(path, &text).map_err(|e| e.to_string()),
    };
    if let Some(path) = file
        && let Err(e) = written(path, summary.outside.as_mut())
    {
        say::error(&format!(
            "cannot write the result file {}: {e}",
            path.display()
        ));
        summary.messages.extend(say::kept());
        summary.code = OUR_ERROR;
    }
    if json {
        say::json(&summary.json_line());
    }
    summary.code
}
