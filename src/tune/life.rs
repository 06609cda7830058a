//! Whether a run goes on.
//!
//! Where processes have the same numbers, its process tells. Another PID namespace, such as that of a container which
//! has this host's /run, has other processes under them. So a run also holds a lock (fcntl(2), `F_OFD_SETLK`) on a byte
//! of its own of each journal's directory that it is in, which the kernel gives up when the process ends, however it
//! ends. No file stands for it, and nothing has to be written there.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::state::Run;
use crate::store::Stat;

/// A run goes on as long as this is there.
#[derive(Debug, Default)]
pub struct Sign(Vec<File>);

impl Sign {
    pub(super) fn add(&mut self, file: File) {
        self.0.push(file);
    }
}

/// The namespace that the numbers of processes in `proc` are of, by the number of its file (namespaces(7)).
pub(super) fn namespace(proc: &Path) -> Option<u64> {
    Some(fs::metadata(proc.join("self/ns/pid")).ok()?.ino())
}

impl Run {
    /// Whether it goes on; `signed` tells whether somebody holds the lock on its byte.
    pub(super) fn lives(&self, proc: &Path, boot: &str, signed: impl FnOnce(u64) -> bool) -> bool {
        if self.boot != boot {
            return false;
        }
        match self.namespace {
            Some(_) if self.namespace != namespace(proc) => signed(self.byte()),
            // Or it was written by a version that had no locks.
            _ => Stat::of(proc, self.pid).is_some_and(|s| s.started == self.started && !s.ended),
        }
    }

    /// The byte of a journal's directory that it has locked: of so many that hardly two get the same.
    pub(super) fn byte(&self) -> u64 {
        let words = [
            u64::from(self.pid),
            self.started,
            self.namespace.unwrap_or(0),
        ];
        // FNV-1a (draft-eastlake-fnv), of 64 bits.
        let sum = words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        // The end of the byte is a file's offset too, which has a sign.
        sum >> 2
    }
}
