//! Passphrases: in memory of this process that no core dump has, in a file without a name while somebody reads it,
//! nowhere else.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vsc_devices::secret::Passphrase;

use super::{ImageError, Remark};

/// Where systemd puts the credentials of a service (systemd.exec(5)).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The keys of `disks[].secret` that name a source, and the older one.
const SOURCES: [&str; 4] = ["file", "fd", "credential", "env"];

/// Where a passphrase comes from.
///
/// The content is the passphrase, without one newline at its end (editors and `echo` put it there; QEMU itself and
/// cryptsetup's `--key-file`, given the same file, take it for a part).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// A file that nobody else may read, or a pipe with a name.
    File(PathBuf),
    /// A descriptor of this process, read from its start if it is a file, and closed.
    #[serde(rename = "fd")]
    Descriptor(u32),
    /// A file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// A variable of the environment, wiped after it was read.
    #[serde(rename = "env")]
    Environment(String),
    /// Known already; not part of any plan.
    #[serde(skip)]
    Given(Secret),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Descriptor(n) => write!(f, "descriptor {n}"),
            Self::Credential(name) => write!(f, "the credential {name}"),
            Self::Environment(name) => write!(f, "the variable {name}"),
            Self::Given(_) => f.write_str("the terminal"),
        }
    }
}

impl SecretSource {
    /// What a member of `disks` says of its passphrase.
    ///
    /// # Errors
    /// It says two things.
    pub fn of_disk(disk: &Value) -> Result<Option<Self>, Remark> {
        let text = |key: &str| disk.get("secret")?.get(key)?.as_str().map(str::to_owned);
        let number = disk.get("secret").and_then(|s| s.get("fd")?.as_u64());
        let older = disk.get("secret_file").and_then(Value::as_str);
        let mut all = [
            text("file").map(|path| Self::File(path.into())),
            number.map(|n| Self::Descriptor(u32::try_from(n).unwrap_or(u32::MAX))),
            text("credential").map(Self::Credential),
            text("env").map(Self::Environment),
            older.map(|path| Self::File(path.into())),
        ]
        .into_iter()
        .flatten();
        let first = all.next();
        if first.is_some() && all.next().is_some() {
            return Err(Remark::error(
                "E-CONFLICT",
                if older.is_some() {
                    "secret_file"
                } else {
                    "secret"
                },
                "The passphrase comes from two places".into(),
                &format!("Name one of {}", SOURCES.join(", ")),
            ));
        }
        Ok(first)
    }

    /// Reads it. What is unwise goes to `notes`.
    ///
    /// # Errors
    /// It cannot be read, is readable by others, or is no passphrase.
    pub fn read(&self, notes: &mut Vec<String>) -> Result<Secret, ImageError> {
        let from = self.to_string();
        let failed = |e: io::Error| ImageError::ReadSecret(from.clone(), e);
        let wrong = |why| ImageError::Secret {
            from: from.clone(),
            why,
        };
        let unfit = |e: io::Error| match e.kind() {
            io::ErrorKind::FileTooLarge => wrong("is longer than 64 KiB: that is no passphrase"),
            _ => failed(e),
        };
        let read = |mut file: File| Passphrase::read(&mut file).map_err(unfit);
        let passphrase = match self {
            Self::Given(secret) => return Ok(secret.clone()),
            Self::File(path) => {
                let file = open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                let user = rustix::process::geteuid().as_raw();
                // Who reads a pipe first has what was in it.
                let kept = metadata.is_file() || metadata.file_type().is_fifo();
                if kept && metadata.mode() & 0o077 != 0 {
                    return Err(wrong("can be read by others"));
                }
                if metadata.is_file() && user != 0 && ![0, user].contains(&metadata.uid()) {
                    return Err(wrong("belongs to another user, who can change it"));
                }
                read(file)?
            }
            Self::Credential(name) => {
                let directory = std::env::var_os(CREDENTIALS).map(PathBuf::from);
                let directory = directory.filter(|d| d.is_absolute()).ok_or_else(|| {
                    wrong("is not there: $CREDENTIALS_DIRECTORY is not set, as LoadCredential= of a service does it")
                })?;
                if name.starts_with('.') || name.contains('/') {
                    return Err(wrong("has no name of a credential"));
                }
                read(open(&directory.join(name)).map_err(failed)?)?
            }
            Self::Descriptor(n) => {
                let file = crate::sys::take_descriptor(*n).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if metadata.is_file() && metadata.mode() & 0o077 != 0 {
                    let mode = metadata.mode() & 0o777;
                    notes.push(format!(
                        "the passphrase in {from} can be used by others (mode {mode:04o}): chmod 600"
                    ));
                }
                if metadata.is_file() {
                    // Whoever gave it may have read it.
                    io::Seek::rewind(&mut &file).map_err(failed)?;
                }
                read(file)?
            }
            Self::Environment(name) => {
                notes.push(format!(
                    "the passphrase is in the environment of whoever started this ({name}), where his programs can read it: a file, a descriptor or a credential is better"
                ));
                crate::sys::take_variable(name)
                    .map_err(unfit)?
                    .ok_or_else(|| wrong("is not set"))?
            }
        };
        let passphrase = passphrase.ok_or_else(|| wrong("is empty: that is no passphrase"))?;
        Ok(Secret(Arc::new(passphrase)))
    }
}

/// Opens a file to read; a terminal of that name does not become ours.
fn open(path: &Path) -> io::Result<File> {
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

/// A passphrase. It is not shown, and its memory is in no core dump and zeroed when it goes.
#[derive(Clone)]
pub struct Secret(Arc<Passphrase>);

impl Secret {
    /// A passphrase that was typed, without the newline.
    ///
    /// # Errors
    /// It is empty, too long, or there is no memory.
    pub fn typed(mut bytes: Vec<u8>) -> Result<Self, ImageError> {
        let copy = Passphrase::copy(&bytes);
        let empty = bytes.is_empty();
        wipe(&mut bytes);
        let from = "the terminal".to_owned();
        match copy {
            Ok(passphrase) => Ok(Self(Arc::new(passphrase))),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(ImageError::Secret {
                from,
                why: if empty {
                    "is empty"
                } else {
                    "is longer than 64 KiB"
                },
            }),
            Err(e) => Err(ImageError::ReadSecret(from, e)),
        }
    }

    /// That QEMU takes it: its passphrases are UTF-8 without NUL.
    pub(super) fn for_qemu(&self) -> Result<(), ImageError> {
        let why = if self.bytes().contains(&0) {
            "contains a NUL, where QEMU would end it"
        } else if std::str::from_utf8(self.bytes()).is_err() {
            "is not UTF-8 text, the only passphrase that QEMU's LUKS takes"
        } else {
            return Ok(());
        };
        let from = "its source".to_owned();
        Err(ImageError::Secret { from, why })
    }

    /// The passphrase, for a program's standard input.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The passphrase itself.
    pub fn passphrase(&self) -> &Passphrase {
        &self.0
    }

    /// The passphrase in a file without a name.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn hand_over(&self) -> Result<Handed, ImageError> {
        let open = || -> io::Result<File> {
            let mut file: File =
                rustix::fs::memfd_create("vsc-secret", MemfdFlags::CLOEXEC)?.into();
            file.write_all(self.bytes())?;
            Ok(file)
        };
        let file = open().map_err(ImageError::PassSecret)?;
        Ok(Handed {
            file,
            length: self.bytes().len(),
        })
    }
}

/// Whether two passphrases that were typed are the same.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The compiler must believe that the zeros are read.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// A passphrase for another program or for the monitor, zeroed when it goes.
#[derive(Debug)]
pub struct Handed {
    file: File,
    length: usize,
}

impl Handed {
    /// A descriptor for whoever is to read it.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn descriptor(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // Memory that only we have left; there is nothing to do about a failure.
        let _ = self.file.write_all_at(&vec![0; self.length], 0);
    }
}
