//! The built-in guest: the payload of a scenario that names none, the self-test, and the driver of every device
//! without Linux. Its sources are in `guest/` beside this crate's own.
//!
//! # Command line
//! Words, separated by white space. A word that means nothing is reported and ends the guest with status [`USAGE`].
//! Without any word the whole self-test runs.
//!
//! | word | meaning |
//! |---|---|
//! | `test=LIST` | of `all`, `none`, `hello` (greet only), `mem`, `cpu`, `acpi`, `console`, `rtc`, `timer`, `virtio`, `rng`, `vcon`, `blk`, `irq`, `smp` |
//! | `write` | `test=blk` may write to disks (the last 64 KiB, put back afterwards) |
//! | `exit=N` | the status, whatever the tests say (0 to 255) |
//! | `poweroff`, `reboot`, `triple`, `panic`, `hang`, `spin`, `fault` | how to end instead of through the exit port: ACPI S5, i8042 reset, triple fault, pvpanic and reset, `hlt` with interrupts off, a busy loop, an exception of its own |
//! | `silent` | never print |
//! | `read` | say `read`, then echo serial input up to a newline or ^D |
//! | `report=json` | one line `json {…}` before the last one |
//! | `blk=LIST` | of `all`, `seqread`, `seqwrite`, `rand`, `rand8`, `flush`, `fill`, `verify` (writing ones destroy the disk's contents) |
//! | `disk=N`, `bytes=SIZE`, `ops=N`, `depth=N` | for `blk=`: which disk, bytes of a sequential run (64M), operations of the others (2000), requests in flight (8, up to 64) |
//! | `port=NAME`, `send=SIZE`, `echo` | virtio-console: the port (the console port when unnamed), bytes to send (byte n is n mod 251), echo until the host closes it |
//! | `evil=LIST` | of `all`, `loop`, `range`, `index`, `registers`, `storm`, `reset`: hostile drivers, on every device |
//! | `seed=N`, `rounds=N` | for `evil=` and random places (1; 64) |
//! | `virtio_mmio.device=SIZE@BASE:GSI` | a device, as for Linux; without any the DSDT's LNRO0005 devices are used |
//!
//! Numbers are decimal or `0x` hexadecimal, with `K`, `M`, `G` for powers of 1024.
//!
//! # Report
//! On COM1: `vsc guest`, then one line per fact, `KIND NAME TEXT` with the kinds of [`Kind`], and as the last line
//! `end status=N passed=N failed=N skipped=N`. A guest that was asked only to end prints nothing but its greeting.
//! The status is written to the exit port 0x501: that of `exit=`, else 0 or [`FAILED`], [`USAGE`], [`CRASHED`].
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The program: a static ELF64 file with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY), linked to run from 1 MiB.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The first line.
pub const GREETING: &str = "vsc guest";
/// Status when a test failed.
pub const FAILED: u8 = 1;
/// Status when a word of the command line was not understood (EX_USAGE, sysexits.h).
pub const USAGE: u8 = 64;
/// Status after an exception or panic inside the guest (EX_SOFTWARE, sysexits.h).
pub const CRASHED: u8 = 70;

/// What a line of the report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A test passed.
    #[serde(rename = "ok")]
    Ok,
    /// A test failed; the text says what was expected.
    #[serde(rename = "FAIL")]
    Fail,
    /// A test did not apply; the text says why.
    #[serde(rename = "skip")]
    Skip,
    /// Something found.
    #[serde(rename = "info")]
    Info,
    /// A measurement: the text is a number and a unit.
    #[serde(rename = "bench")]
    Bench,
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "ok" => Self::Ok,
            "FAIL" => Self::Fail,
            "skip" => Self::Skip,
            "info" => Self::Info,
            "bench" => Self::Bench,
            _ => return None,
        })
    }
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is about.
    pub kind: Kind,
    /// The test or fact, dotted: `blk0.read.plain`.
    pub name: String,
    /// The rest of the line.
    pub text: String,
}

/// A report, read from the serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The guest greeted.
    pub greeted: bool,
    /// Every line about a test or fact, in order.
    pub entries: Vec<Entry>,
    /// What the guest said of its own crash.
    pub crash: Option<String>,
    /// The last line's status; `None` when there was none.
    pub status: Option<u8>,
}

/// The line of `report=json`, after the word `json`. The same entries as in the text, and the sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonReport {
    /// Version of this form: 1.
    pub vsc_guest: u32,
    /// Every line about a test or fact, in order.
    pub entries: Vec<Entry>,
    /// The guest had no room for some entries.
    pub truncated: bool,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that did not apply.
    pub skipped: u32,
    /// The status.
    pub status: u8,
}

impl Report {
    /// Reads what came from the console. Lines of other origin are passed over; nothing is an error, a report that
    /// broke off simply has no status.
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        for line in console.lines().map(|line| line.trim_end_matches('\r')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if line == GREETING {
                report.greeted = true;
            } else if word == "CRASH" {
                report.crash = Some(rest.to_owned());
            } else if word == "end" {
                let status = rest
                    .split(' ')
                    .find_map(|word| word.strip_prefix("status="));
                report.status = status.and_then(|status| status.parse().ok());
            } else if let Some(kind) = Kind::parse(word) {
                let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
                report.entries.push(Entry {
                    kind,
                    name: name.to_owned(),
                    text: text.to_owned(),
                });
            }
        }
        report
    }

    /// How many entries are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.kind == kind)
            .count()
    }

    /// The guest greeted, ended, passed everything it ran, and ran something.
    pub fn passed(&self) -> bool {
        self.greeted
            && self.crash.is_none()
            && self.status.is_some()
            && self.count(Kind::Fail) == 0
            && self.count(Kind::Ok) > 0
    }

    /// A measurement by its name, with its unit (`MB/s`, `ns`, `op/s`).
    pub fn bench(&self, name: &str) -> Option<(u64, &str)> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.kind == Kind::Bench && entry.name == name)?;
        let (value, unit) = entry.text.split_once(' ')?;
        Some((value.parse().ok()?, unit))
    }
}

/// The text of the `report=json` line in what came from the console, for a JSON parser to read as [`JsonReport`].
pub fn json_line(console: &str) -> Option<&str> {
    console.lines().find_map(|line| line.strip_prefix("json "))
}
