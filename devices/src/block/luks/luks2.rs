//! LUKS version 2 (LUKS2 On-Disk Format Specification 1.1.1): two copies of a binary header, each with a description in
//! JSON. One data segment, opened by passphrase.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;

use base64ct::{Base64, Encoding as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use super::crypt::{Cipher, Hash};
use super::{
    BLOCK, Layout, LuksError, MAGIC, Material, STRIPES, name_at, read, rounds, secret, u16_at,
    u64_at, unlocked,
};

/// First bytes of the second header.
const SECOND_MAGIC: [u8; 6] = *b"SKUL\xba\xbe";
/// Sizes that one header with its description may have; the second begins behind the first (section 2.2), bytes.
const SIZES: [u64; 9] = [
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];
/// Offsets in the binary header (section 2.1): its own size, the number of its version, its checksum.
const SIZE: usize = 8;
const SEQUENCE: usize = 16;
const CHECKSUM_NAME: usize = 72;
const OFFSET: usize = 256;
const CHECKSUM: usize = 448;
const CHECKSUM_ROOM: usize = 64;
/// Most memory of Argon2 that cryptsetup writes or reads, KiB.
const MEMORY_MAX: u32 = 4 << 20;
/// Most KiB that Argon2 may pass over, all passes together: some minutes. cryptsetup measures two seconds.
const WORK_MAX: u64 = 1 << 28;
/// Most lanes; cryptsetup takes four at most.
const LANES_MAX: u32 = 64;
/// Lengths that the digest of a key may have, bytes: that of version 1, and the longest hash.
const DIGESTS: std::ops::RangeInclusive<usize> = 20..=64;

/// The description, as far as it matters here (section 3).
#[derive(Deserialize)]
struct Json {
    keyslots: BTreeMap<String, Keyslot>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, Digest>,
    #[serde(default)]
    config: Config,
}

#[derive(Deserialize)]
struct Keyslot {
    #[serde(rename = "type")]
    kind: String,
    key_size: u32,
    #[serde(default)]
    af: Option<Af>,
    #[serde(default)]
    area: Option<Area>,
    #[serde(default)]
    kdf: Option<Kdf>,
}

#[derive(Deserialize)]
struct Af {
    #[serde(rename = "type")]
    kind: String,
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
struct Area {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u32,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Kdf {
    Pbkdf2 {
        hash: String,
        iterations: u32,
        salt: String,
    },
    Argon2i(Argon),
    Argon2id(Argon),
}

#[derive(Deserialize)]
struct Argon {
    time: u32,
    memory: u32,
    cpus: u32,
    salt: String,
}

#[derive(Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    #[serde(default)]
    iv_tweak: Option<String>,
    #[serde(default)]
    encryption: Option<String>,
    #[serde(default)]
    sector_size: Option<u32>,
    #[serde(default)]
    integrity: Option<serde_json::Value>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: String,
    digest: String,
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    requirements: Option<Requirements>,
}

#[derive(Deserialize, Default)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

enum Derivation {
    Pbkdf2(Hash, u32),
    Argon2(argon2::Algorithm, argon2::Params),
}

struct Slot {
    derivation: Derivation,
    salt: Vec<u8>,
    /// Bytes of the key that its material is encrypted with.
    area_key: usize,
    material: Material,
}

pub(super) struct Header {
    pub(super) layout: Layout,
    slots: Vec<Slot>,
    hash: Hash,
    rounds: u32,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

/// A description whose checksum is right, and the number of its version.
struct Found {
    sequence: u64,
    json: Vec<u8>,
}

/// The copy that begins at `offset`, if it is whole.
fn copy(file: &File, offset: u64, end: u64) -> Result<Option<Found>, LuksError> {
    let first = read(file, offset, BLOCK)?;
    let head = first.bytes();
    let magic = if offset == 0 { MAGIC } else { SECOND_MAGIC };
    let size = u64_at(head, SIZE)?;
    let good = head.get(..6) == Some(&magic)
        && u16_at(head, 6)? == 2
        && SIZES.contains(&size)
        && u64_at(head, OFFSET)? == offset
        && offset.checked_add(size).is_some_and(|ends| ends <= end);
    if !good {
        return Ok(None);
    }
    if name_at(head, CHECKSUM_NAME, 32)? != "sha256" {
        // What cryptsetup has always written.
        return Ok(None);
    }
    // At most 4 MiB.
    let size = size as usize;
    let mut whole = read(file, offset, size)?;
    let bytes = whole.bytes_mut().get_mut(..size).unwrap_or_default();
    let Some(sum) = bytes.get_mut(CHECKSUM..CHECKSUM + CHECKSUM_ROOM) else {
        return Ok(None);
    };
    let said = sum.to_vec();
    sum.fill(0);
    let is = Sha256::digest(&*bytes);
    if said.get(..is.len()) != Some(is.as_slice()) {
        return Ok(None);
    }
    let json = bytes.get(BLOCK..).unwrap_or_default();
    let ends = json.iter().position(|&b| b == 0).unwrap_or(json.len());
    Ok(Some(Found {
        sequence: u64_at(bytes, SEQUENCE)?,
        json: json.get(..ends).unwrap_or_default().to_vec(),
    }))
}

impl Header {
    /// The newer of both copies that is whole.
    pub(super) fn read(file: &File, end: u64) -> Result<Self, LuksError> {
        let first = copy(file, 0, end)?;
        let mut best = first;
        for offset in SIZES {
            if let Some(other) = copy(file, offset, end)? {
                if best.as_ref().is_none_or(|b| other.sequence > b.sequence) {
                    best = Some(other);
                }
                break;
            }
        }
        let best = best.ok_or(LuksError::Damaged("the checksum of its header"))?;
        Self::parse(&best.json, end)
    }

    /// The second copy, where the first does not even begin as one.
    pub(super) fn second(file: &File, end: u64) -> Result<Option<Self>, LuksError> {
        for offset in SIZES {
            if let Some(found) = copy(file, offset, end)? {
                return Self::parse(&found.json, end).map(Some);
            }
        }
        Ok(None)
    }

    /// Understands a description.
    pub(super) fn parse(json: &[u8], end: u64) -> Result<Self, LuksError> {
        let json: Json = serde_json::from_slice(json).map_err(LuksError::Json)?;
        if let Some(wanted) = json
            .config
            .requirements
            .as_ref()
            .and_then(|r| r.mandatory.first())
        {
            return unsupported("requirement", wanted);
        }
        let mut segments = json.segments.iter();
        let (Some((number, segment)), None) = (segments.next(), segments.next()) else {
            return unsupported("layout", "several data segments");
        };
        let (layout_cipher, mut layout) = segment.layout(end)?;
        let digest = json
            .digests
            .values()
            .find(|d| d.segments.contains(number))
            .ok_or(LuksError::Damaged("data without the digest of its key"))?;
        if digest.kind != "pbkdf2" {
            return unsupported("digest", &digest.kind);
        }
        let mut key = None;
        let (mut slots, mut refused) = (Vec::new(), None);
        for name in &digest.keyslots {
            let slot = json.keyslots.get(name).ok_or(LuksError::Damaged(
                "a digest of a key slot that is not there",
            ))?;
            if *key.get_or_insert(slot.key_size) != slot.key_size {
                return Err(LuksError::Damaged("key slots of several sizes"));
            }
            Cipher::check(layout_cipher.0, layout_cipher.1, slot.key_size as usize)?;
            // A slot that cannot be tried here leaves the others.
            match slot.checked(layout.offset) {
                Ok(slot) => slots.push(slot),
                Err(why) => refused = Some(why),
            }
        }
        if let (true, Some(why)) = (slots.is_empty(), refused) {
            return Err(why);
        }
        // Without a slot there is no key to have a size.
        layout.key_bits = key.unwrap_or(64) * 8;
        layout.slots = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        Ok(Self {
            layout,
            slots,
            hash: Hash::parse(&digest.hash)?,
            rounds: rounds(digest.iterations)?,
            salt: decoded(&digest.salt)?,
            digest: decoded(&digest.digest)
                .ok()
                .filter(|sum| DIGESTS.contains(&sum.len()))
                .ok_or(LuksError::Damaged("a salt or digest in its description"))?,
        })
    }

    pub(super) fn unlock(
        &self,
        file: &File,
        passphrase: &[u8],
        key: &mut [u8],
    ) -> Result<(), LuksError> {
        unlocked(&self.slots, |slot| {
            let mut slot_key = secret(slot.area_key)?;
            let slot_key = slot_key
                .bytes_mut()
                .get_mut(..slot.area_key)
                .unwrap_or_default();
            slot.derivation.derive(passphrase, &slot.salt, slot_key)?;
            slot.material.open(file, slot_key, key)?;
            let mut digest = vec![0; self.digest.len()];
            self.hash.pbkdf2(key, &self.salt, self.rounds, &mut digest);
            Ok(digest.ct_eq(&self.digest).into())
        })
    }
}

impl Segment {
    fn layout(&self, end: u64) -> Result<((&str, &str), Layout), LuksError> {
        if self.kind != "crypt" {
            return unsupported("layout", &format!("a data segment of type {}", self.kind));
        }
        if self.integrity.is_some() {
            return unsupported("layout", "authenticated encryption");
        }
        if let Some(flag) = self.flags.first() {
            return unsupported("layout", flag);
        }
        let full = self
            .encryption
            .as_deref()
            .ok_or(LuksError::Damaged("data without a cipher"))?;
        let cipher = full.split_once('-').unwrap_or((full, ""));
        let sector = self.sector_size.unwrap_or(512);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return Err(LuksError::Damaged("the size of its sectors"));
        }
        let offset = number(&self.offset)?;
        let length = match self.size.as_str() {
            "dynamic" => None,
            size => Some(number(size)?),
        };
        // Both copies of the header come first.
        if offset < 2 * SIZES.iter().min().copied().unwrap_or(0) || !offset.is_multiple_of(512) {
            return Err(LuksError::Damaged("data within the header"));
        }
        if offset > end {
            return Err(LuksError::Damaged("data beyond the end of the image"));
        }
        let tweak = self.iv_tweak.as_deref().map_or(Ok(0), number)?;
        let layout = Layout {
            version: 2,
            cipher: printable(full),
            key_bits: 0,
            offset,
            length,
            sector,
            tweak,
            slots: 0,
        };
        Ok((cipher, layout))
    }
}

impl Keyslot {
    fn checked(&self, data: u64) -> Result<Slot, LuksError> {
        let (Some(af), Some(area), Some(kdf)) = (&self.af, &self.area, &self.kdf) else {
            return unsupported("key slot", &self.kind);
        };
        if self.kind != "luks2" || af.kind != "luks1" || area.kind != "raw" {
            return unsupported("key slot", &self.kind);
        }
        if af.stripes != STRIPES {
            return Err(LuksError::Damaged("the number of stripes of a key"));
        }
        let cipher = area
            .encryption
            .split_once('-')
            .unwrap_or((&area.encryption, ""));
        Cipher::check(cipher.0, cipher.1, area.key_size as usize)?;
        let material = Material {
            offset: number(&area.offset)?,
            stripes: af.stripes,
            hash: Hash::parse(&af.hash)?,
        };
        let needs = material.bytes(self.key_size as usize);
        let ends = material.offset.checked_add(number(&area.size)?);
        if needs > number(&area.size)?
            || material.offset < 2 * BLOCK as u64
            || !material.offset.is_multiple_of(512)
            || ends.is_none_or(|ends| ends > data)
        {
            return Err(LuksError::Damaged("the place of a key"));
        }
        let (derivation, salt) = kdf.checked(area.key_size as usize)?;
        Ok(Slot {
            derivation,
            salt,
            area_key: area.key_size as usize,
            material,
        })
    }
}

impl Kdf {
    fn checked(&self, key: usize) -> Result<(Derivation, Vec<u8>), LuksError> {
        let (algorithm, argon) = match self {
            Self::Pbkdf2 {
                hash,
                iterations,
                salt,
            } => {
                let derivation = Derivation::Pbkdf2(Hash::parse(hash)?, rounds(*iterations)?);
                return Ok((derivation, decoded(salt)?));
            }
            Self::Argon2i(argon) => (argon2::Algorithm::Argon2i, argon),
            Self::Argon2id(argon) => (argon2::Algorithm::Argon2id, argon),
        };
        let work = u64::from(argon.memory) * u64::from(argon.time);
        if argon.memory > MEMORY_MAX || work > WORK_MAX || argon.cpus > LANES_MAX {
            return Err(LuksError::Argon2Cost {
                memory: argon.memory,
                passes: argon.time,
                lanes: argon.cpus,
            });
        }
        let params = argon2::Params::new(argon.memory, argon.time, argon.cpus, Some(key))
            .map_err(LuksError::Argon2)?;
        Ok((Derivation::Argon2(algorithm, params), decoded(&argon.salt)?))
    }
}

impl Derivation {
    fn derive(&self, passphrase: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), LuksError> {
        match self {
            Self::Pbkdf2(hash, rounds) => {
                hash.pbkdf2(passphrase, salt, *rounds, out);
                Ok(())
            }
            Self::Argon2(algorithm, params) => {
                let count = params.block_count();
                let mut blocks = Vec::new();
                blocks
                    .try_reserve_exact(count)
                    .map_err(|_| LuksError::Memory(params.m_cost()))?;
                blocks.resize(count, argon2::Block::default());
                let argon = argon2::Argon2::new(*algorithm, argon2::Version::V0x13, params.clone());
                let done = argon.hash_password_into_with_memory(passphrase, salt, out, &mut blocks);
                // Whoever has the blocks has the key.
                for block in &mut blocks {
                    block.zeroize();
                }
                done.map_err(LuksError::Argon2)
            }
        }
    }
}

/// JSON of LUKS2 has numbers of 64 bits as text (section 3.1).
fn number(text: &str) -> Result<u64, LuksError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or(LuksError::Damaged("a number in its description"))
}

fn decoded(text: &str) -> Result<Vec<u8>, LuksError> {
    Base64::decode_vec(text)
        .ok()
        .filter(|bytes| (1..=1024).contains(&bytes.len()))
        .ok_or(LuksError::Damaged("a salt or digest in its description"))
}

fn unsupported<T>(what: &'static str, name: &str) -> Result<T, LuksError> {
    Err(LuksError::Unsupported {
        what,
        name: printable(name),
    })
}

/// Text of the header for a message.
fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
