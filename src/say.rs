//! The two places this program writes to: standard error for people, standard output for what was asked for.
//!
//! What is wrong has one form, that of messages about scenarios: `error[E-…]: what`, or `warning[W-…]: what`, then why
//! and what to do. What is merely news, of a run or of work done, begins with `vsc-run: `.
//!
//! Standard output belongs to the guest while one runs; only verbs that print their own answer use [`out`]. With
//! `--json` a verb that fails without one answers `{"error": {…}, "messages": […]}` ([`close`]): `error` has `code`,
//! `severity`, `message`, and where there are such `place`, `also`, `why` and `help`, as each of `messages`. A run says
//! nothing on standard error then but one object at its end, which has what would have been said.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use vsc::diag::{Severity, Words, shown};

/// Nothing is said to people.
static SILENT: AtomicBool = AtomicBool::new(false);
/// An answer did not get out.
static UNSAID: AtomicBool = AtomicBool::new(false);
/// Something was written to standard output.
static ANSWERED: AtomicBool = AtomicBool::new(false);
/// What was said so far, as data.
static KEPT: Mutex<Vec<Value>> = Mutex::new(Vec::new());
/// The first thing that was wrong, as data.
static FIRST: Mutex<Option<Value>> = Mutex::new(None);
/// What is at work: the end of the code of what has none of its own.
static SUBJECT: Mutex<&str> = Mutex::new("RUN");

fn locked<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an answer did not get out, which is no success whatever else is.
pub(crate) fn is_unsaid() -> bool {
    UNSAID.load(Ordering::Relaxed)
}

/// From now on nothing is said to people, only kept.
pub(crate) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// From now on what has no code of its own is `E-SUBJECT`.
pub(crate) fn about(subject: &'static str) {
    *locked(&SUBJECT) = subject;
}

/// Takes what was said so far, for the result.
pub(crate) fn kept() -> Vec<Value> {
    std::mem::take(&mut *locked(&KEPT))
}

/// Keeps a message in its form for programs; whoever calls says it to people.
pub(crate) fn keep(message: Value) {
    if message["severity"] == "error" {
        locked(&FIRST).get_or_insert_with(|| message.clone());
    }
    locked(&KEPT).push(message);
}

/// The first thing that was wrong, for an answer that has more to say.
pub(crate) fn first_error() -> Option<Value> {
    locked(&FIRST).clone()
}

/// Something that is wrong, or unwise.
#[derive(Debug)]
pub(crate) struct Fault {
    severity: Severity,
    code: String,
    message: String,
    why: Option<String>,
    help: Option<String>,
}

impl Fault {
    /// An error. A text that begins with a code, as `E-LOCKED: …`, has that; any other that of the [subject](about).
    pub(crate) fn error(text: &str) -> Self {
        Self::new(Severity::Error, text)
    }

    /// The same, legal.
    pub(crate) fn warning(text: &str) -> Self {
        Self::new(Severity::Warning, text)
    }

    fn new(severity: Severity, text: &str) -> Self {
        let letter = match severity {
            Severity::Error => "E-",
            Severity::Warning => "W-",
        };
        let is_code = |word: &str| {
            let rest = word.strip_prefix(letter).unwrap_or_default();
            let fits = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-';
            !rest.is_empty() && rest.bytes().all(fits)
        };
        let (code, message) = match text.split_once(": ").filter(|(word, _)| is_code(word)) {
            Some((code, message)) => (code.to_owned(), message),
            None => (format!("{letter}{}", locked(&SUBJECT)), text),
        };
        Self {
            severity,
            code,
            message: message.to_owned(),
            why: None,
            help: None,
        }
    }

    /// With a code of its own.
    pub(crate) fn code(mut self, code: &str) -> Self {
        code.clone_into(&mut self.code);
        self
    }

    /// With what to do.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What is wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn record(&self) -> Value {
        let mut record = json!({
            "code": self.code, "severity": self.severity, "message": self.message,
        });
        for (name, text) in [("why", &self.why), ("help", &self.help)] {
            if let Some(text) = text {
                record[name] = json!(text);
            }
        }
        record
    }

    /// Says it, and keeps it for the result. The exit code of a verb that fails by it comes back.
    pub(crate) fn say(self) -> u8 {
        keep(self.record());
        self.say_unkept()
    }

    /// The same for what the result has in another place.
    pub(crate) fn say_unkept(self) -> u8 {
        let Self {
            severity,
            code,
            message,
            why,
            help,
        } = self;
        let words = Words {
            severity,
            code: &code,
            message: &message,
            why: why.as_deref(),
            help: help.as_deref(),
        };
        err_raw(&words.render(std::io::stderr().is_terminal()));
        crate::FAILED
    }
}

/// Says what went wrong ([`Fault::error`]).
pub(crate) fn error(text: &str) -> u8 {
    Fault::error(text).say()
}

/// The same for what the result has in another place.
pub(crate) fn error_unkept(text: &str) -> u8 {
    Fault::error(text).say_unkept()
}

/// Says what is legal, but unwise or not as it was meant ([`Fault::warning`]).
pub(crate) fn warning(text: &str) {
    Fault::warning(text).say();
}

/// A line of news on standard error, `vsc-run: ` before it. A closed standard error is nobody's problem.
pub(crate) fn note(text: &str) {
    keep(json!({ "message": text }));
    note_unkept(text);
}

/// The same for what the result has in another place.
pub(crate) fn note_unkept(text: &str) {
    // What the text quotes may hold anything.
    let lines: Vec<String> = text.split('\n').map(shown).collect();
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
    answered();
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
            error_unkept(&format!("E-OUTPUT: cannot write to standard output: {e}"));
        }
        _ => {}
    }
}

/// Standard output has something on it that is not said here.
pub(crate) fn answered() {
    ANSWERED.store(true, Ordering::Relaxed);
}

/// The answer of a verb with `--json` that failed without one.
pub(crate) fn close(code: u8) {
    if code == 0 || ANSWERED.load(Ordering::Relaxed) {
        return;
    }
    let error = first_error().unwrap_or_else(|| {
        let subject = locked(&SUBJECT);
        json!({
            "code": format!("E-{subject}"), "severity": "error", "message": format!("it ended with {code}"),
        })
    });
    out(&format!(
        "{:#}\n",
        json!({ "error": error, "messages": kept() })
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_in_front_of_a_text_is_its_code() {
        for (text, code, message) in [
            ("E-LOCKED: x is held", "E-LOCKED", "x is held"),
            ("x is held", "E-RUN", "x is held"),
            ("E-: x", "E-RUN", "E-: x"),
            ("E-Locked: x", "E-RUN", "E-Locked: x"),
            ("W-X: x", "E-RUN", "W-X: x"),
            ("/tmp/E-X: gone", "E-RUN", "/tmp/E-X: gone"),
        ] {
            let fault = Fault::error(text);
            assert_eq!(
                (fault.code.as_str(), fault.message.as_str()),
                (code, message)
            );
        }
        assert_eq!(Fault::warning("W-DISK-2: x").code, "W-DISK-2");
    }
}
