//! The two places this program writes to: standard error for people, standard output for what was asked for.
//!
//! Standard output belongs to the guest while one runs; only verbs that print their own answer use [`out`]. With
//! `--json` a run says nothing on standard error but one object at its end, which has what would have been said.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Nothing is said to people.
static SILENT: AtomicBool = AtomicBool::new(false);
/// An answer did not get out.
static UNSAID: AtomicBool = AtomicBool::new(false);
/// What was said so far, as data.
static KEPT: Mutex<Vec<Value>> = Mutex::new(Vec::new());

/// Whether an answer did not get out, which is no success whatever else is.
pub(crate) fn is_unsaid() -> bool {
    UNSAID.load(Ordering::Relaxed)
}

/// From now on nothing is said to people, only kept.
pub(crate) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Takes what was said so far, for the result.
pub(crate) fn kept() -> Vec<Value> {
    std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps a message in its form for programs; whoever calls says it to people.
pub(crate) fn keep(message: Value) {
    KEPT.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(message);
}

/// A line on standard error, `vsc-run: ` before it. A closed standard error is nobody's problem.
pub(crate) fn err(text: &str) {
    keep(serde_json::json!({ "message": text }));
    err_unkept(text);
}

/// The same for what the result has in another place.
pub(crate) fn err_unkept(text: &str) {
    // What the text quotes may hold anything.
    let lines: Vec<String> = text.split('\n').map(vsc::diag::shown).collect();
    err_raw(&format!("vsc-run: {}\n", lines.join("\n")));
}

/// Text on standard error as it is, for people only.
pub(crate) fn err_raw(text: &str) {
    if !SILENT.load(Ordering::Relaxed) {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// A line on standard error for programs.
pub(crate) fn json(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The answer of a verb on standard output.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // A reader that went away has seen enough.
        Err(e)
            if e.kind() != std::io::ErrorKind::BrokenPipe
                && !UNSAID.swap(true, Ordering::Relaxed) =>
        {
            err_raw(&format!("vsc-run: cannot write to standard output: {e}\n"));
        }
        _ => {}
    }
}
