//! The journal: one line for each thing that was decided, with its checksum, on the disk before it is done.
//!
//! A last line that did not get to its end, or of which not all got to the disk, was followed by nothing; it is as if
//! it had never been. Any other line that is not sound is an error: what it said is not known.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};

use super::error::TuneError;
use super::place::{JOURNAL, Locked, NEW, Place};
use super::report::Damage;
use super::state::{Record, Run, State};
use super::touch::append;

/// Longest journal, bytes. A run writes some KiB.
const LONGEST: u64 = 16 << 20;
/// From this length on it is rewritten when more than half of it is history, bytes.
const LONG: u64 = 64 << 10;

/// A journal, open and locked.
#[derive(Debug)]
pub(super) struct Journal {
    locked: Locked,
    file: Option<File>,
    length: u64,
    pub(super) state: State,
    /// Lines that were left out ([`Journal::salvage`]), by number, and why.
    damaged: Vec<(usize, String)>,
}

/// CRC-32 of IEEE 802.3, as in zip and gzip (RFC 1952, section 8).
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn line(record: &Record) -> io::Result<String> {
    let text = serde_json::to_string(record)?;
    Ok(format!("{:08x} {text}\n", checksum(text.as_bytes())))
}

/// What a line says.
fn parse(line: &[u8]) -> Result<Record, String> {
    let line = std::str::from_utf8(line).map_err(|_| "it is no text")?;
    let (sum, text) = line.split_once(' ').ok_or("it has no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| "it has no checksum")?;
    if sum != checksum(text.as_bytes()) {
        return Err("its checksum does not fit".into());
    }
    serde_json::from_str(text).map_err(|e| format!("another version of this program wrote it? {e}"))
}

/// What the lines say, how many of their bytes count, and those that are wrong, by number.
fn parse_all(bytes: &[u8]) -> (State, usize, Vec<(usize, String)>) {
    let mut state = State::default();
    let mut sound = 0;
    let mut wrong = Vec::new();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let whole = line.strip_suffix(b"\n");
        let said = whole.ok_or_else(|| "it has no end".to_owned());
        match said.and_then(parse).and_then(|record| state.add(record)) {
            Ok(()) => sound += line.len(),
            // Torn: whoever wrote it was killed before it was done, or the power was cut. What a file system has not
            // written of a file that it has made longer reads as zeros.
            Err(_) if number + 1 == lines.len() && (whole.is_none() || line.contains(&0)) => {
                return (state, sound, wrong);
            }
            Err(why) => {
                sound += line.len();
                wrong.push((number + 1, why));
            }
        }
    }
    (state, sound, wrong)
}

impl Journal {
    /// Opens and locks it, and makes its directory where that is wanted. `None`: there is none.
    pub(super) fn open(place: &Place, make: bool) -> Result<Option<Self>, TuneError> {
        let journal = Self::salvage(place, make)?;
        let damaged = journal.as_ref().and_then(|journal| {
            let (line, why) = journal.damaged.first()?.clone();
            let path = journal.locked.path(JOURNAL);
            Some(TuneError::Damaged { path, line, why })
        });
        damaged.map_or(Ok(journal), Err)
    }

    /// The same, whatever it holds: of a damaged one, what its sound lines say.
    pub(super) fn salvage(place: &Place, make: bool) -> Result<Option<Self>, TuneError> {
        let Some(locked) = place.lock(make)? else {
            return Ok(None);
        };
        let path = locked.path(JOURNAL);
        let failed = |action| {
            let path = path.clone();
            move |error| TuneError::Journal {
                action,
                path,
                error,
            }
        };
        let file = locked.open(JOURNAL, false).map_err(failed("open"))?;
        let mut bytes = Vec::new();
        if let Some(mut file) = file.as_ref() {
            file.by_ref()
                .take(LONGEST + 1)
                .read_to_end(&mut bytes)
                .map_err(failed("read"))?;
        }
        let (state, sound, mut wrong) = parse_all(&bytes);
        if bytes.len() as u64 > LONGEST {
            wrong.push((1, "it is longer than 16 MiB".into()));
        }
        let length = sound as u64;
        if let Some(file) = &file
            && wrong.is_empty()
            && bytes.len() > sound
        {
            super::touch::step();
            file.set_len(length).map_err(failed("write"))?;
        }
        Ok(Some(Self {
            locked,
            file,
            length,
            state,
            damaged: wrong,
        }))
    }

    /// Locks the byte of `run`, for others to see that it goes on.
    pub(super) fn sign(&self, run: &Run) -> Result<File, TuneError> {
        let held = self.locked.hold(run.byte());
        held.map_err(|error| TuneError::Journal {
            action: "lock",
            path: self.locked.path(JOURNAL),
            error,
        })
    }

    /// Whether somebody holds that byte. Where it cannot be told, nothing is taken from under a run.
    pub(super) fn is_signed(&self, byte: u64) -> bool {
        self.locked.is_held(byte).unwrap_or(true)
    }

    /// Writes a line, and returns when it is on the disk.
    pub(super) fn write(&mut self, record: Record) -> Result<(), TuneError> {
        let path = self.locked.path(JOURNAL);
        let failed = |error| TuneError::Journal {
            action: "write",
            path: path.clone(),
            error,
        };
        let line = line(&record).map_err(failed)?;
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = self.locked.open(JOURNAL, true).map_err(failed)?;
                let file = none.insert(
                    file.ok_or(io::ErrorKind::NotFound)
                        .map_err(|e| failed(e.into()))?,
                );
                self.locked.sync().map_err(failed)?;
                file
            }
        };
        if let Err(e) = append(file, line.as_bytes()) {
            // Half a line would make the next one a part of it.
            let _ = file.set_len(self.length);
            return Err(failed(e));
        }
        self.length += line.len() as u64;
        self.state
            .add(record)
            .map_err(|why| failed(io::Error::other(why)))
    }

    /// Keeps a damaged one, as it is, in another place: closing it will not. `None`: it is sound.
    pub(super) fn keep_damaged(&self) -> Result<Option<Damage>, TuneError> {
        if self.damaged.is_empty() {
            return Ok(None);
        }
        let journal = self.locked.path(JOURNAL);
        let kept = self.locked.keep_aside(JOURNAL);
        let kept = kept.map_err(|error| TuneError::Journal {
            action: "keep the damaged",
            path: journal.clone(),
            error,
        })?;
        Ok(Some(Damage {
            journal,
            kept,
            lines: self.damaged.clone(),
        }))
    }

    /// Lets go of it. Nothing of it stays when it says nothing any more.
    pub(super) fn close(self) -> Result<(), TuneError> {
        let path = self.locked.path(JOURNAL);
        let failed = |error| TuneError::Journal {
            action: "rewrite",
            path: path.clone(),
            error,
        };
        if self.state.holdings.is_empty() && self.state.apart.is_none() {
            self.locked.remove_file(JOURNAL).map_err(failed)?;
            self.locked.remove_file(NEW).map_err(failed)?;
            return self.locked.remove().map_err(failed);
        }
        if self.damaged.is_empty() && self.length < LONG {
            return Ok(());
        }
        let lines: io::Result<Vec<String>> = self.state.records().iter().map(line).collect();
        let text = lines.map_err(failed)?.concat();
        if self.damaged.is_empty() && text.len() as u64 > self.length / 2 {
            return Ok(());
        }
        let rewritten = self.rewrite(&text);
        match self.damaged.is_empty() {
            false => rewritten.map_err(failed),
            // The long one says the same: no run fails for want of a short one.
            true => Ok(()),
        }
    }

    fn rewrite(&self, text: &str) -> io::Result<()> {
        self.locked.remove_file(NEW)?;
        if let Some(mut file) = self.locked.open(NEW, true)? {
            append(&mut file, text.as_bytes())?;
        }
        self.locked.rename(NEW, JOURNAL)
    }
}
