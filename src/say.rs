//! The two places this program writes to: standard error for people, standard output for what was asked for.
//!
//! Standard output belongs to the guest while one runs; only verbs that print their own answer use [`out`].

use std::io::Write;

/// A line on standard error, `vsc-run: ` before it. A closed standard error is nobody's problem.
pub(crate) fn err(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "vsc-run: {text}");
}

/// Text on standard error as it is.
pub(crate) fn err_raw(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The answer of a verb on standard output.
pub(crate) fn out(text: &str) {
    // A reader that went away has seen enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
