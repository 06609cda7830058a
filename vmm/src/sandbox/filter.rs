//! From tables of calls to a program for seccomp(2).
//!
//! The program is a binary search over the call's number. That matters when it is installed: the kernel runs it once
//! for every call there is to learn which are always allowed (kernel/seccomp.c, seccomp_cache_prepare), after which
//! those cost nothing; with one comparison after the other that takes longer than starting a thread does
//! (160 µs instead of 25 for 60 calls, measured).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use libc::sock_filter;

use super::tables::{Call, Group, OWN_PID, Refusal, Test, UPPER};

/// Offsets in struct seccomp_data (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;
/// AUDIT_ARCH_X86_64 (linux/audit.h): EM_X86_64, 64 bit, little endian.
const X86_64: u32 = 0xc000_003e;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A program for the kernel.
pub(super) type Program = Vec<sock_filter>;

/// What is done about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Allowed,
    /// If the tests of one of these all pass.
    If(Vec<&'static [Test]>),
    Refused(i32),
}

/// What `groups` allow, and `refusals` refuse where nothing allows it. A call that is first in `first` is decided
/// before all others. Everything else raises SIGSYS.
pub(super) fn program(
    groups: &[&Group],
    refusals: &[Refusal],
    first: Option<i64>,
    pid: u32,
) -> Program {
    let mut fates = fates(groups, refusals);
    let mut out = Code {
        program: Vec::with_capacity(4 * fates.len() + 32),
        pid,
    };
    // Another architecture's calls have other numbers: none of them is meant.
    out.push(LOAD, 0, 0, ARCH);
    out.push(IF_EQUAL, 1, 0, X86_64);
    out.push(RETURN, 0, 0, libc::SECCOMP_RET_TRAP);
    out.push(LOAD, 0, 0, NUMBER);
    let first = first.map(|number| number as u32);
    if let Some((number, fate)) = first.and_then(|number| fates.remove_entry(&number)) {
        out.leaf(number, number, &fate);
    }
    out.search(&ranges(&fates));
    out.program
}

/// First and last number of neighbours that are all allowed, and what is done about them; other calls by themselves.
type Range<'a> = (u32, u32, &'a Fate);

fn ranges(fates: &BTreeMap<u32, Fate>) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = Vec::with_capacity(fates.len());
    for (number, fate) in fates {
        match ranges.last_mut() {
            Some((_, last, Fate::Allowed)) if *fate == Fate::Allowed && *last + 1 == *number => {
                *last = *number;
            }
            _ => ranges.push((*number, *number, fate)),
        }
    }
    ranges
}

fn fates(groups: &[&Group], refusals: &[Refusal]) -> BTreeMap<u32, Fate> {
    let mut fates = BTreeMap::new();
    for refusal in refusals {
        fates.insert(refusal.number as u32, Fate::Refused(refusal.errno));
    }
    for Call { number, when } in groups.iter().flat_map(|group| group.calls) {
        let fate = fates
            .entry(*number as u32)
            .or_insert_with(|| Fate::If(Vec::new()));
        match fate {
            Fate::Allowed => {}
            _ if when.is_empty() => *fate = Fate::Allowed,
            Fate::If(tests) => tests.push(when),
            // What does not pass the tests is no surprise then, but it is not what was refused either.
            Fate::Refused(_) => *fate = Fate::If(vec![when]),
        }
    }
    fates
}

struct Code {
    program: Program,
    pid: u32,
}

impl Code {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.program.push(sock_filter { code, jt, jf, k });
    }

    /// A jump whose target is known later ([`Code::land`]).
    fn jump(&mut self) -> usize {
        self.push(JUMP, 0, 0, 0);
        self.program.len() - 1
    }

    fn land(&mut self, jump: usize) {
        self.program[jump].k = (self.program.len() - jump - 1) as u32;
    }

    /// The number is in the accumulator.
    fn search(&mut self, ranges: &[Range<'_>]) {
        // As many comparisons one by one as two levels of the tree would need.
        const LEAVES: usize = 3;
        if ranges.len() <= LEAVES {
            for (from, to, fate) in ranges {
                self.leaf(*from, *to, fate);
            }
            self.push(RETURN, 0, 0, libc::SECCOMP_RET_TRAP);
            return;
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let mut lower = Code {
            program: Vec::new(),
            pid: self.pid,
        };
        lower.search(low);
        let middle = high[0].0;
        match u8::try_from(lower.program.len()) {
            Ok(over) => self.push(IF_AT_LEAST, over, 0, middle),
            // Too far for a condition.
            Err(_) => {
                self.push(IF_AT_LEAST, 0, 1, middle);
                self.push(JUMP, 0, 0, lower.program.len() as u32);
            }
        }
        self.program.append(&mut lower.program);
        self.search(high);
    }

    /// Decides about one range; goes on behind with the accumulator as it was if it is another.
    fn leaf(&mut self, from: u32, to: u32, fate: &Fate) {
        match fate {
            Fate::Allowed if from < to => {
                self.push(IF_AT_LEAST, 0, 2, from);
                self.push(IF_AT_LEAST, 1, 0, to + 1);
                self.push(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
            }
            Fate::Allowed => {
                self.push(IF_EQUAL, 0, 1, from);
                self.push(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
            }
            Fate::Refused(errno) => {
                self.push(IF_EQUAL, 0, 1, from);
                let errno = *errno as u32 & libc::SECCOMP_RET_DATA;
                self.push(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno);
            }
            Fate::If(alternatives) => {
                self.push(IF_EQUAL, 1, 0, from);
                let other = self.jump();
                for tests in alternatives {
                    self.alternative(tests);
                }
                self.push(RETURN, 0, 0, libc::SECCOMP_RET_TRAP);
                self.land(other);
            }
        }
    }

    /// Allows if all tests pass, else goes on behind.
    fn alternative(&mut self, tests: &[Test]) {
        let mut failures = Vec::with_capacity(tests.len());
        for test in tests {
            // The kernel takes most of these arguments as 32 bits, the lower half of a little-endian register.
            let half = u32::from(test.argument / UPPER);
            let number = u32::from(test.argument % UPPER);
            self.push(LOAD, 0, 0, ARGS + 8 * number + 4 * half);
            if test.mask != u32::MAX {
                self.push(AND, 0, 0, test.mask);
            }
            let count = test.any.len();
            for (at, value) in test.any.iter().enumerate() {
                let value = if *value == OWN_PID { self.pid } else { *value };
                // Over the other values, and the jump behind them.
                self.push(IF_EQUAL, (count - at) as u8, 0, value);
            }
            failures.push(self.jump());
        }
        self.push(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
        for jump in failures {
            self.land(jump);
        }
    }
}

#[cfg(test)]
mod tests;
