//! What is told of changes: made, left out, put back.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::change::Act;
use super::life::Sign;
use super::state::Run;

/// What `vsc-run sev enable` is called among those that change the host to stay.
pub const SEV_ENABLE: &str = "sev enable";

/// Whose a change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The scenario's or VM's name.
    pub who: String,
    /// The process, which is gone where [`Holder::standing`] is set.
    pub pid: u32,
    /// It stays until `host undo`.
    pub standing: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { who, pid, standing } = self;
        match standing {
            true if who == SEV_ENABLE => write!(f, "`{who}`"),
            true => write!(f, "`host apply` of {who}"),
            false => write!(f, "the run of {who}, pid {pid}"),
        }
    }
}

/// What came of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The scenario's key.
    pub what: String,
    /// The host's file or unit.
    pub target: PathBuf,
    /// The value before; `None` where it could not be read.
    pub from: Option<String>,
    /// The value that is wanted.
    pub to: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It was made.
    Done,
    /// It was so already, by nobody's doing that is known here.
    Already,
    /// Another run had made it; it stays until both are over.
    Joined {
        /// Who.
        with: Holder,
    },
    /// Another run needs it otherwise: left.
    Held {
        /// Who.
        by: Holder,
    },
    /// A counter got less than was asked for.
    Less {
        /// How much.
        got: u64,
        /// Why.
        why: String,
    },
    /// It was not made.
    Skipped {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            what,
            target,
            from,
            to,
            verdict,
        } = self;
        let from = from.as_deref().unwrap_or("?");
        write!(f, "{what}: {} {from} → {to}", target.display())?;
        match verdict {
            Verdict::Done => Ok(()),
            Verdict::Already => write!(f, ": already so"),
            Verdict::Joined { with } => write!(f, ": already so by {with}"),
            Verdict::Held { by } => write!(f, ": left, {by} needs it as it is"),
            Verdict::Less { got, why } => write!(f, ": only {got}: {why}"),
            Verdict::Skipped { why } => write!(f, ": not done: {why}"),
        }
    }
}

impl Told {
    /// Why the host is not as it was wanted; `None`: it is.
    pub fn complaint(&self) -> Option<String> {
        match &self.verdict {
            Verdict::Done | Verdict::Already | Verdict::Joined { .. } => None,
            Verdict::Held { by } => Some(format!("{by} needs it as it is")),
            Verdict::Less { why, .. } | Verdict::Skipped { why } => Some(why.clone()),
        }
    }
}

/// What became of one change when it was to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// Whose it was.
    pub holder: Holder,
    /// The scenario's key.
    pub what: String,
    /// The host's file or unit.
    pub target: PathBuf,
    /// What became of it.
    pub how: How,
}

/// What became of one change when it was to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum How {
    /// It was put back.
    Back {
        /// To this.
        to: String,
    },
    /// It was as before already.
    Same,
    /// Somebody else still uses it, and will put it back.
    Used {
        /// Who.
        by: Holder,
    },
    /// Somebody else has changed it since: left as it is.
    Left {
        /// What it is now.
        now: String,
        /// What it was before it was changed for the first time.
        before: String,
        /// It is in the journal still: `host undo --force` puts it back, `host undo --forget` gives it up.
        kept: bool,
    },
    /// The host has it no more.
    Gone,
    /// The host was started anew since, and has its own values again.
    Rebooted,
    /// It could not be put back; it stays in the journal.
    Failed {
        /// Why.
        why: String,
    },
}

impl Undone {
    /// What somebody has to know who did not ask.
    pub fn is_warning(&self) -> bool {
        matches!(self.how, How::Left { .. } | How::Failed { .. })
    }
}

impl Undone {
    /// It is in the journal still.
    pub fn is_kept(&self) -> bool {
        matches!(self.how, How::Failed { .. } | How::Left { kept: true, .. })
    }
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.display();
        match &self.how {
            How::Back { to } => write!(f, "{target} is back at {to}"),
            How::Same => write!(f, "{target} was as before already"),
            How::Used { by } => write!(f, "{target} stays as it is for {by}"),
            How::Left { now, before, kept } => {
                write!(
                    f,
                    "{target} was changed by somebody else since (now: {now}); it is left so, before it was {before}"
                )?;
                match kept {
                    true => write!(
                        f,
                        ": `vsc-run host undo --force` puts that back, `vsc-run host undo --forget` gives it up"
                    ),
                    false => Ok(()),
                }
            }
            How::Gone => write!(f, "{target} has gone from this host"),
            How::Rebooted => write!(f, "{target} was reset by a reboot"),
            How::Failed { why } => write!(
                f,
                "{target} could not be put back: {why}; `vsc-run gc` tries again"
            ),
        }
    }
}

/// What is done with what `host apply` made and somebody else has changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// It is left as it is, and stays in the journal.
    Keep,
    /// It is left as it is, and forgotten.
    Forget,
    /// It is put back. Of a damaged journal, what can still be read is undone.
    Force,
}

/// What came of an undoing.
#[derive(Debug, Default)]
pub struct Unwound {
    /// The end of each change.
    pub undone: Vec<Undone>,
    /// Journals of which not all could be read.
    pub damaged: Vec<Damage>,
}

/// A journal of which not all could be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Where it was.
    pub journal: PathBuf,
    /// Where it is now, as it was.
    pub kept: PathBuf,
    /// Lines that could not be read, counted from 1, and why.
    pub lines: Vec<(usize, String)>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More are counted only.
        const NAMED: usize = 5;
        let named = self.lines.iter().take(NAMED);
        let mut lines: Vec<String> = named.map(|(n, why)| format!("line {n}: {why}")).collect();
        if let Some(more @ 1..) = self.lines.len().checked_sub(NAMED) {
            lines.push(format!("and {more} more"));
        }
        write!(
            f,
            "the journal of host changes {} could not be read as a whole ({}): what these lines changed is not put back; it is kept as {}, look there for the values before",
            self.journal.display(),
            lines.join("; "),
            self.kept.display()
        )
    }
}

/// One change that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Active {
    /// Whose it is.
    pub holder: Holder,
    /// When that was, seconds since 1970.
    pub since: u64,
    /// That process is gone: the next run, or `gc`, puts it back.
    pub dead: bool,
    /// The scenario's key.
    pub what: String,
    /// The host's file or unit.
    pub target: PathBuf,
    /// What it will be put back to.
    pub before: String,
    /// What was made of it.
    pub value: String,
    /// What it is now; `None`: that cannot be read.
    pub now: Option<String>,
    /// It is still what was made of it.
    pub ours: bool,
    /// It outlives a reboot.
    pub lasting: bool,
    /// A reboot has put it back already: nothing but a line of the journal is left of it.
    pub rebooted: bool,
}

/// What a run has of the host, and how it got it.
#[derive(Debug)]
pub struct Begun {
    /// Each change, in order.
    pub told: Vec<Told>,
    /// What dead runs had left, and what became of it.
    pub replayed: Vec<Undone>,
    /// There is something to be put back, by this name.
    pub run: Option<Run>,
    /// To be kept as long as the run goes on.
    pub sign: Sign,
}

/// What an act makes of its target, in a word.
pub(super) fn wanted(act: &Act) -> String {
    match act {
        Act::Write { new, .. } => new.clone(),
        Act::Add { by, .. } => format!("+{by}"),
        Act::File { new, .. } => format!("{} bytes", new.len()),
        Act::Directory { .. } => "a directory".into(),
        Act::Unit { now, .. } => unit(now.active, now.enabled),
        Act::Leftover { .. } => "a file of this run".into(),
    }
}

/// A unit's state in words.
pub(super) fn unit(active: Option<bool>, enabled: Option<bool>) -> String {
    let active = active.map(|on| if on { "running" } else { "stopped" });
    let enabled = enabled.map(|on| if on { "enabled" } else { "disabled" });
    let words: Vec<&str> = active.into_iter().chain(enabled).collect();
    words.join(", ")
}
