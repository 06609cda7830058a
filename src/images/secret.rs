//! Passphrases: in memory of this process, in a file without a name while another program reads it, nowhere else.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;

use super::ImageError;

/// Longest passphrase, bytes.
const MAX: usize = 64 << 10;

/// Where a passphrase comes from.
///
/// The content is the passphrase, without one newline at its end (editors and `echo` put it there; QEMU itself, given
/// the same file, would take it for a part). It is UTF-8 without NUL, because QEMU's LUKS takes nothing else.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// A file, or a pipe with a name.
    File(PathBuf),
    /// A descriptor of this process, read from its start if it is a file.
    Descriptor(u32),
    /// Known already.
    Given(Secret),
}

impl SecretSource {
    /// Reads it. What is unwise about the file goes to `notes`.
    ///
    /// # Errors
    /// It cannot be read, or is no passphrase.
    pub fn read(&self, notes: &mut Vec<String>) -> Result<Secret, ImageError> {
        let (path, from) = match self {
            Self::Given(secret) => return Ok(secret.clone()),
            Self::File(path) => (path.clone(), path.display().to_string()),
            Self::Descriptor(n) => (
                PathBuf::from(format!("/proc/self/fd/{n}")),
                format!("descriptor {n}"),
            ),
        };
        let failed = |e: io::Error| ImageError::ReadSecret(from.clone(), e);
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o777;
            notes.push(format!(
                "the passphrase in {from} can be used by others (mode {mode:04o}): chmod 600"
            ));
        }
        // Of its final size from the start: growing would leave copies behind.
        let mut secret = Secret(vec![0; MAX + 1]);
        let mut length = 0;
        loop {
            let room = secret.0.get_mut(length..).unwrap_or_default();
            match file.read(room) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        if length > MAX {
            let why = "is longer than 64 KiB: that is no passphrase";
            return Err(ImageError::Secret { from, why });
        }
        if length > 0 && secret.0.get(length - 1) == Some(&b'\n') {
            length -= 1;
        }
        secret.shorten(length);
        secret.checked(from)
    }
}

/// A passphrase. It is not shown, and its memory is zeroed when it goes.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A passphrase that was typed, without the newline.
    ///
    /// # Errors
    /// It is empty, or no UTF-8 text without NUL.
    pub fn typed(bytes: Vec<u8>) -> Result<Self, ImageError> {
        Self(bytes).checked("the terminal".into())
    }

    fn checked(self, from: String) -> Result<Self, ImageError> {
        let why = if self.0.is_empty() {
            "is empty"
        } else if self.0.contains(&0) {
            "contains a NUL, where QEMU would end it"
        } else if std::str::from_utf8(&self.0).is_err() {
            "is not UTF-8 text, the only passphrase that QEMU's LUKS takes"
        } else {
            return Ok(self);
        };
        Err(ImageError::Secret { from, why })
    }

    /// The passphrase, for a program's standard input.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn shorten(&mut self, length: usize) {
        if let Some(rest) = self.0.get_mut(length..) {
            wipe(rest);
        }
        self.0.truncate(length);
    }

    /// The passphrase in a file without a name.
    pub(super) fn hand_over(&self) -> Result<Handed, ImageError> {
        let open = || -> io::Result<File> {
            let mut file: File =
                rustix::fs::memfd_create("vsc-secret", MemfdFlags::CLOEXEC)?.into();
            file.write_all(&self.0)?;
            Ok(file)
        };
        let file = open().map_err(ImageError::PassSecret)?;
        Ok(Handed {
            file,
            length: self.0.len(),
        })
    }
}

/// Whether two passphrases that were typed are the same.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// The compiler must believe that the zeros are read.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// A passphrase for another program, zeroed when it goes.
#[derive(Debug)]
pub(super) struct Handed {
    file: File,
    length: usize,
}

impl Handed {
    /// A descriptor for the program's standard input.
    pub(super) fn descriptor(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // Memory that only we have left; there is nothing to do about a failure.
        let _ = self.file.write_all_at(&vec![0; self.length], 0);
    }
}
