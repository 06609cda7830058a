//! `memory`: how much, against what the host has.

use crate::diag::Diagnostic;
use crate::facts::Facts;
use crate::scenario::Given;
use crate::scenario::value::size_text;

use super::Problems;

/// Guest RAM when nobody says: 256 MiB.
const DEFAULT: u64 = 256 << 20;
/// Least guest RAM: the first MiB of a PC, a small kernel, and room for it to run.
const LEAST: u64 = 8 << 20;
/// Guest RAM comes in pages of this size.
const PAGE: u64 = 4096;

/// Guest RAM in bytes.
pub(super) fn compile(memory: &Given<u64>, facts: &dyn Facts, problems: &mut Problems) -> u64 {
    let (size, span) = memory.map_or((DEFAULT, Default::default()), |m| (m.value, m.span));
    let human = size_text(size);
    if size == 0 {
        let d = Diagnostic::error("E-MEMORY", span, "A machine needs memory, and this is none");
        problems.push(d.help(format!(
            "Give at least {}, for example `memory: 256M`",
            size_text(LEAST)
        )));
    } else if size < LEAST {
        let message = format!(
            "{human} of memory is too little: no kernel starts in less than {}",
            size_text(LEAST)
        );
        let d = Diagnostic::error("E-MEMORY", span, message);
        problems.push(d.help("A bare number is MiB; write a unit otherwise, for example `2G`"));
    } else if size % PAGE != 0 {
        let d = Diagnostic::error(
            "E-MEMORY",
            span,
            format!("{human} of memory is not a multiple of 4 KiB"),
        );
        problems.push(d.help(format!(
            "{} is the next one",
            size_text(size.next_multiple_of(PAGE))
        )));
    } else if let Some(host) = facts.memory() {
        if size > host.total {
            let message = format!(
                "{human} of memory is more than this host has, {} MiB",
                host.total >> 20
            );
            problems.push(Diagnostic::error("E-MEMORY-HOST", span, message).help("Give less"));
        } else if size > host.available {
            let message = format!(
                "{human} of memory is more than this host has free, {} MiB (MemAvailable)",
                host.available >> 20
            );
            let d = Diagnostic::warning("W-OVERCOMMIT", span, message);
            problems.push(d.why(
                "When the guest uses it all, the host swaps, or kills a process to make room",
            ));
        }
    }
    size
}
