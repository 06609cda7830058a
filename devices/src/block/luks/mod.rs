//! Disks encrypted with LUKS, version 1 and 2, on a raw file or block device.
//!
//! The header is anybody's bytes: each number is checked before anything is read, allocated or computed with it. AES in
//! XTS mode with the sector's number (`aes-xts-plain64`) is what cryptsetup and QEMU have made since 2013; other ciphers
//! are refused by name. All cryptography is RustCrypto's.
//!
//! Neither direction encrypts in guest memory, which the guest may change at any time: a request goes through a buffer
//! of this process ([`disk`]). So what is on the host's disk is always the ciphertext of something that the guest had in
//! its buffer at one moment, and nothing but plain text is ever put into the guest's.
//!
//! Keys and passphrases are in [`Pages`] only; what computes with them runs [`apart`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::secret::{Pages, Passphrase, Vault, apart};

mod create;
mod crypt;
mod disk;
mod luks1;
mod luks2;
mod xts;

pub use create::{Draft, PAYLOAD};
pub use disk::{LuksDisk, LuksOpenError};

use crypt::Cipher;

/// First bytes of an image of either version (LUKS On-Disk Format 1.2.3, section 3; LUKS2 1.1.1, section 2.1).
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// What headers and key material are read in, for O_DIRECT: no file system demands more.
const BLOCK: usize = 4096;
/// Most rounds of PBKDF2 that a header may ask for: a minute of a fast processor. cryptsetup and QEMU, which measure
/// two seconds, come to a few million.
const ROUNDS_MAX: u32 = 200_000_000;

/// Why an encrypted disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// No LUKS header.
    #[error("is not encrypted with LUKS: it does not begin as a LUKS image does")]
    NotLuks,
    /// A version from the future.
    #[error("is of LUKS version {0}; there are 1 and 2")]
    Version(u16),
    /// A header that cannot be.
    #[error("has a damaged LUKS header: {0} cannot be")]
    Damaged(&'static str),
    /// A header with a JSON part that cannot be.
    #[error("has a damaged LUKS header: its description is wrong")]
    Json(#[source] serde_json::Error),
    /// Something that LUKS allows and that is not here.
    #[error("is encrypted with a {what} that is not in this build: {name}")]
    Unsupported {
        /// Of what kind.
        what: &'static str,
        /// Its name, printable.
        name: String,
    },
    /// All key slots are empty.
    #[error("has no key slot in use: nothing can open it any more")]
    NoKeySlot,
    /// More work than anybody lets a key cost.
    #[error("asks for {0} rounds of PBKDF2 to get at its key; {ROUNDS_MAX} are the most")]
    Rounds(u32),
    /// The same, of Argon2.
    #[error(
        "asks for too much work to get at its key: {passes} passes of Argon2 over {memory} KiB in {lanes} lanes"
    )]
    Argon2Cost {
        /// KiB of memory.
        memory: u32,
        /// How often it is gone over.
        passes: u32,
        /// Parts of it that are computed at once.
        lanes: u32,
    },
    /// No key slot opens.
    #[error("cannot be opened with this passphrase")]
    Passphrase,
    /// No passphrase was given.
    #[error("is encrypted, and no passphrase is given")]
    NoPassphrase,
    /// The guest's blocks are smaller than what is encrypted as one.
    #[error("is encrypted in sectors of {sector} bytes; give the disk `block_size: {sector}`")]
    BlockSize {
        /// Bytes of a sector.
        sector: u32,
    },
    /// A key derivation needs more memory than there is.
    #[error("needs {0} KiB of memory to compute its key, and there are not as many")]
    Memory(u32),
    /// The header or its key material cannot be read.
    #[error("has a LUKS header that cannot be read")]
    Read(#[source] io::Error),
    /// Header or key material cannot be written.
    #[error("cannot get a LUKS header")]
    Write(#[source] io::Error),
    /// No memory or thread to compute with.
    #[error("is encrypted, and this process can get no memory or thread for that")]
    Resources(#[source] io::Error),
    /// Deriving a key failed.
    #[error("is encrypted with Argon2 parameters that cannot be: {0}")]
    Argon2(argon2::Error),
}

/// Where the data is, and how it is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// 1 or 2.
    pub version: u16,
    /// `aes-xts-plain64`.
    pub cipher: String,
    /// Bits of the key, both halves.
    pub key_bits: u32,
    /// First byte of the data.
    pub offset: u64,
    /// Bytes of data; not given: up to the end.
    pub length: Option<u64>,
    /// What is encrypted as one, bytes.
    pub sector: u32,
    /// Added to the number of each sector of 512 bytes.
    pub tweak: u64,
    /// Passphrases that open it.
    pub slots: u32,
}

impl Layout {
    /// Bytes of data in a container of `end` bytes.
    fn size(&self, end: u64) -> Result<u64, LuksError> {
        let room = end
            .checked_sub(self.offset)
            .ok_or(LuksError::Damaged("data beyond the end of the image"))?;
        let size = self.length.unwrap_or(room);
        if size > room {
            return Err(LuksError::Damaged("data beyond the end of the image"));
        }
        let sector = u64::from(self.sector);
        match size - size % sector {
            0 => Err(LuksError::Damaged("an image without room for data")),
            size => Ok(size),
        }
    }
}

/// A header, understood and checked.
enum Header {
    One(luks1::Header),
    Two(luks2::Header),
}

impl Header {
    fn read(file: &File, end: u64) -> Result<Self, LuksError> {
        let first = read(file, 0, BLOCK)?;
        let head = first.bytes();
        if head.get(..6) != Some(&MAGIC) {
            // The first of two headers of version 2 may be lost.
            return luks2::Header::second(file, end)?
                .map(Self::Two)
                .ok_or(LuksError::NotLuks);
        }
        match u16_at(head, 6)? {
            1 => luks1::Header::parse(head, end).map(Self::One),
            2 => luks2::Header::read(file, end).map(Self::Two),
            other => Err(LuksError::Version(other)),
        }
    }

    fn layout(&self) -> &Layout {
        match self {
            Self::One(header) => &header.layout,
            Self::Two(header) => &header.layout,
        }
    }

    /// The cipher of the data, by the first key slot that the passphrase opens.
    fn unlock(&self, file: &File, passphrase: &Passphrase) -> Result<Vault<Cipher>, LuksError> {
        let work = || {
            let mut key = secret(self.layout().key_bits as usize / 8)?;
            let key = key.bytes_mut();
            let key = key
                .get_mut(..self.layout().key_bits as usize / 8)
                .unwrap_or_default();
            match self {
                Self::One(header) => header.unlock(file, passphrase.bytes(), key)?,
                Self::Two(header) => header.unlock(file, passphrase.bytes(), key)?,
            }
            Vault::new(Cipher::new(key)?).map_err(LuksError::Resources)
        };
        apart(work).map_err(LuksError::Resources)?
    }
}

/// What the header of an open container says; nothing is unlocked.
///
/// # Errors
/// It is none, or none that can be opened here.
pub fn inspect(file: &File, end: u64) -> Result<Layout, LuksError> {
    let header = Header::read(file, end)?;
    header.layout().size(end)?;
    Ok(header.layout().clone())
}

/// Whether `passphrase` opens the container.
///
/// # Errors
/// [`LuksError::Passphrase`] when it does not, and all that [`inspect`] finds.
pub fn try_passphrase(file: &File, end: u64, passphrase: &Passphrase) -> Result<(), LuksError> {
    let header = Header::read(file, end)?;
    header.layout().size(end)?;
    header.unlock(file, passphrase).map(drop)
}

/// Why a disk is not served: where it is, and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("Disk {}", path.display())]
pub struct DiskError {
    /// The image.
    pub path: PathBuf,
    /// What is wrong with it.
    pub source: LuksError,
}

fn secret(len: usize) -> Result<Pages, LuksError> {
    Pages::new(len).map_err(LuksError::Resources)
}

/// The bytes at `offset`, which is a multiple of [`BLOCK`], as O_DIRECT can read them; zeroes beyond the end.
fn read(file: &File, offset: u64, len: usize) -> Result<Pages, LuksError> {
    let mut pages = secret(len)?;
    let bytes = pages.bytes_mut();
    let mut done = 0;
    while let Some(room) = bytes.get_mut(done..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(LuksError::Read(e)),
        }
    }
    Ok(pages)
}

/// Reads `len` bytes at any `offset`; their place within the pages is `from`.
fn read_at(file: &File, offset: u64, len: usize) -> Result<(Pages, usize), LuksError> {
    let from = offset % BLOCK as u64;
    // Less than a block.
    let from = from as usize;
    Ok((read(file, offset - from as u64, from + len)?, from))
}

/// Key material: read, decrypted, and put together again.
struct Material {
    offset: u64,
    stripes: u32,
    hash: crypt::Hash,
}

/// Stripes of a key (LUKS_STRIPES; both versions' tools write nothing else, and QEMU refuses others).
const STRIPES: u32 = 4000;

impl Material {
    fn bytes(&self, key: usize) -> u64 {
        u64::from(self.stripes) * key as u64
    }

    /// Opens it with the key of a slot.
    fn open(&self, file: &File, slot_key: &[u8], key: &mut [u8]) -> Result<(), LuksError> {
        let len = self.stripes as usize * key.len();
        let padded = len.next_multiple_of(512);
        let (mut pages, from) = read_at(file, self.offset, padded)?;
        let stripes = pages
            .bytes_mut()
            .get_mut(from..from + padded)
            .ok_or(LuksError::Damaged("the place of a key"))?;
        let cipher = Vault::new(Cipher::new(slot_key)?).map_err(LuksError::Resources)?;
        cipher.decrypt(stripes, 512, 0);
        self.hash.merge(stripes.get(..len).unwrap_or_default(), key);
        Ok(())
    }
}

/// Tries one slot after the other; `open` tells whether the key that it made is the right one.
fn unlocked<S>(
    slots: &[S],
    mut open: impl FnMut(&S) -> Result<bool, LuksError>,
) -> Result<(), LuksError> {
    if slots.is_empty() {
        return Err(LuksError::NoKeySlot);
    }
    for slot in slots {
        if open(slot)? {
            return Ok(());
        }
    }
    Err(LuksError::Passphrase)
}

/// Rounds of PBKDF2 that a header asks for.
fn rounds(value: u32) -> Result<u32, LuksError> {
    match value {
        0 => Err(LuksError::Damaged("the number of rounds of a key")),
        1..=ROUNDS_MAX => Ok(value),
        more => Err(LuksError::Rounds(more)),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, LuksError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u16::from_be_bytes)
        .ok_or(LuksError::Damaged("an end within the header"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, LuksError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u32::from_be_bytes)
        .ok_or(LuksError::Damaged("an end within the header"))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, LuksError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u64::from_be_bytes)
        .ok_or(LuksError::Damaged("an end within the header"))
}

/// A name that ends at its first zero; printable ASCII only.
fn name_at(bytes: &[u8], at: usize, len: usize) -> Result<&str, LuksError> {
    let field = bytes.get(at..at + len).unwrap_or_default();
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let name = field.get(..end).unwrap_or_default();
    let printable = name.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(name)
        .ok()
        .filter(|_| printable)
        .ok_or(LuksError::Damaged("the name of its cipher"))
}

#[cfg(test)]
mod tests;
