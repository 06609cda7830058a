//! What this process may do on this host, and what becomes of a wish that needs more: the scenario's is an error, that
//! of a preset or the settings is left out, and said.

#![forbid(unsafe_code)]

use std::path::Path;

use crate::diag::{Diagnostic, Span};
use crate::facts::Facts;
use crate::scenario::Parsed;

use super::Problems;

/// Wishes that this host, or this user, cannot have.
#[derive(Debug, Default)]
pub(super) struct Lacks {
    errors: Problems,
    left_out: Vec<(String, Diagnostic)>,
}

impl Lacks {
    /// The wish of `key` cannot be had; `problem` says why and what helps. Returns whether it is merely left out.
    pub(super) fn push(&mut self, parsed: &Parsed, key: &str, problem: Diagnostic) -> bool {
        let advice = parsed.sources.is_advice(problem.span);
        if advice {
            self.left_out.push((key.to_owned(), problem));
        } else {
            self.errors.push(problem);
        }
        advice
    }

    /// Says it all. The keys that are left out come back.
    pub(super) fn left_out(self, problems: &mut Problems) -> Vec<String> {
        problems.extend(self.errors);
        let mut keys = Vec::new();
        for (key, problem) in self.left_out {
            let text = format!("`{key}` is left out: {}", problem.message);
            let mut d = Diagnostic::warning("W-HOST-LACKS", problem.span, text);
            d.why = problem.why;
            d.help = problem.help;
            problems.push(d);
            keys.push(key);
        }
        keys
    }
}

/// Bits of `CapEff` (include/uapi/linux/capability.h).
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_NICE: u32 = 23;

/// A limit of this process that a capability lifts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// `RLIMIT_MEMLOCK`, bytes.
    Lock,
    /// `RLIMIT_RTPRIO`.
    Priority,
    /// `RLIMIT_RTTIME`, microseconds; no capability lifts it.
    RealTime,
}

/// How much of it this process can have; `None`: as much as it likes, or the host does not tell.
pub(super) fn limit(right: Right, facts: &dyn Facts) -> Option<u64> {
    let (row, capability) = match right {
        Right::Lock => ("Max locked memory", Some(CAP_IPC_LOCK)),
        Right::Priority => ("Max realtime priority", Some(CAP_SYS_NICE)),
        Right::RealTime => ("Max realtime timeout", None),
    };
    let limits = facts.text(Path::new("/proc/self/limits"))?;
    let line = limits.lines().find_map(|l| l.strip_prefix(row))?;
    let mut limits = line.split_ascii_whitespace();
    let soft = limits.next()?;
    let most = match right {
        // The machine raises its own, as far as it may.
        Right::Lock => limits.next()?,
        Right::Priority | Right::RealTime => soft,
    };
    // `unlimited` is no number.
    let most = most.parse::<u64>().ok()?;
    (!capability.is_some_and(|c| has(c, facts))).then_some(most)
}

/// Whether this process has a capability that counts: one of a user namespace lifts no limit of the host.
fn has(capability: u32, facts: &dyn Facts) -> bool {
    let status = facts
        .text(Path::new("/proc/self/status"))
        .unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|l| u64::from_str_radix(l.trim(), 16).ok());
    // user_namespaces(7): the initial one maps every number to itself.
    let initial = facts
        .text(Path::new("/proc/self/uid_map"))
        .is_none_or(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
    initial && effective.is_some_and(|bits| bits >> capability & 1 == 1)
}

/// Numbers as taskset(1) lists them, in order, with `^` for those to leave out again; `None` where it is no such list.
pub(super) fn numbers(text: &str) -> Option<Vec<u32>> {
    // Most CPUs that Linux can be built for (CONFIG_NR_CPUS on x86).
    const MOST: u32 = 8192;
    let mut out = std::collections::BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (part, take) = match part.strip_prefix('^') {
            Some(part) => (part, false),
            None => (part, true),
        };
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to >= MOST {
            return None;
        }
        for number in from..=to {
            if take {
                out.insert(number);
            } else {
                out.remove(&number);
            }
        }
    }
    Some(out.into_iter().collect())
}

/// The set that numbers make, as the kernel writes it: `0-3,5`.
pub(super) fn listed(numbers: &[u32]) -> String {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => out.push((number, number)),
        }
    }
    let part = |&(from, to): &(u32, u32)| match from == to {
        true => from.to_string(),
        false => format!("{from}-{to}"),
    };
    out.iter().map(part).collect::<Vec<_>>().join(",")
}

/// A set in a line of /proc/self/status.
pub(super) fn allowed(line: &str, facts: &dyn Facts) -> Option<Vec<u32>> {
    let status = facts.text(Path::new("/proc/self/status"))?;
    numbers(
        status
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?
            .trim(),
    )
}

/// An error about a wish.
pub(super) fn lack(code: &'static str, span: Span, message: String) -> Diagnostic {
    Diagnostic::error(code, span, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_the_kernel_has_them() {
        for (text, numbers_of, back) in [
            ("0", vec![0], "0"),
            ("0-3,^2", vec![0, 1, 3], "0-1,3"),
            ("7, 1-2", vec![1, 2, 7], "1-2,7"),
            ("^1,1", vec![1], "1"),
        ] {
            let read = numbers(text).unwrap();
            assert_eq!(read, numbers_of, "{text}");
            assert_eq!(listed(&read), back);
        }
        for text in ["", "a", "3-1", "1-", "0-4294967295", "99999"] {
            assert_eq!(numbers(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_capability_lifts_its_limit_outside_of_user_namespaces_only() {
        let mut facts = crate::facts::HostFacts::default();
        assert_eq!(limit(Right::Lock, &facts), None, "nobody tells");
        facts.texts.insert(
            "/proc/self/limits".into(),
            "Limit  Soft  Hard\nMax locked memory         8388608              8388608              bytes     \n\
             Max realtime priority     0                    0                    \nMax realtime timeout      unlimited"
                .into(),
        );
        let mut status = |text: &str, map: &str| {
            facts.texts.insert("/proc/self/status".into(), text.into());
            facts.texts.insert("/proc/self/uid_map".into(), map.into());
            (limit(Right::Lock, &facts), limit(Right::Priority, &facts))
        };
        let host = "0          0 4294967295";
        let none = (Some(8_388_608), Some(0));
        assert_eq!(status("CapEff:\t0000000000000000", host), none);
        let both = "CapEff:\t0000000000804000";
        assert_eq!(status(both, host), (None, None));
        assert_eq!(status(both, "0 1000 1"), none);
        assert_eq!(
            status("CapEff:\t0000000000004000", host),
            (None, Some(0)),
            "CAP_IPC_LOCK alone"
        );
    }
}
