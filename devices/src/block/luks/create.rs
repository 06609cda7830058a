//! New containers, of LUKS version 1: QEMU and libvirt open no other.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use super::crypt::{Cipher, Hash};
use super::luks1::{DISABLED, ENABLED, LENGTH, NAME, SALT, SECTOR, SLOT, SLOTS, at};
use super::{LuksError, MAGIC, STRIPES, secret};
use crate::secret::{Pages, Passphrase, Vault, apart};

/// Where the data of a new container begins, bytes: behind eight keys, on a whole MiB, as cryptsetup has it.
pub const PAYLOAD: u64 = 2 << 20;
/// Bytes of the key: AES-256, twice.
const KEY: usize = 64;
/// Fewest rounds of PBKDF2 that are written, as in cryptsetup.
const ROUNDS_MIN: u32 = 1000;
/// Rounds of the key's own digest: it has 512 random bits, and nothing is gained by slowness.
const DIGEST_ROUNDS: u32 = 1000;
const HASH: Hash = Hash::Sha256;
const MATERIAL: u64 = 4096;

/// A container that is to be: an empty file of some length, and its passphrase.
#[derive(Debug)]
pub struct Draft<'a> {
    /// What opens it.
    pub passphrase: &'a Passphrase,
    /// How long the computation of the key is to take on this host (cryptsetup's `--iter-time`).
    pub time: Duration,
}

impl Draft<'_> {
    /// Writes header and key; the data, from [`PAYLOAD`] on, stays as it is and reads as noise where it is a hole.
    ///
    /// # Errors
    /// There is no randomness, memory or thread, or the file cannot be written.
    pub fn write(&self, file: &File) -> Result<(), LuksError> {
        let slot = Slot::new()?;
        let (header, material) = apart(|| self.compute(&slot)).map_err(LuksError::Resources)??;
        let wrote = |result: io::Result<()>| result.map_err(LuksError::Write);
        wrote(file.write_all_at(material.bytes(), MATERIAL))?;
        // Last: what has no header has no key either.
        wrote(file.write_all_at(&header, 0))
    }

    fn compute(&self, slot: &Slot) -> Result<(Vec<u8>, Pages), LuksError> {
        let rounds = self.rounds();
        let mut keys = secret(3 * KEY)?;
        let (key, rest) = keys.bytes_mut().split_at_mut(KEY);
        let (slot_key, rest) = rest.split_at_mut(KEY);
        let sum = rest.get_mut(..KEY).unwrap_or_default();
        random(key)?;
        let mut digest = [0; super::luks1::DIGEST];
        HASH.pbkdf2(key, &slot.digest_salt, DIGEST_ROUNDS, &mut digest);

        HASH.pbkdf2(self.passphrase.bytes(), &slot.salt, rounds, slot_key);
        let mut stripes = secret(STRIPES as usize * KEY)?;
        let all = stripes
            .bytes_mut()
            .get_mut(..STRIPES as usize * KEY)
            .unwrap_or_default();
        random(all)?;
        HASH.split(key, all, sum);
        let cipher = Vault::new(Cipher::new(slot_key)?).map_err(LuksError::Resources)?;
        cipher.encrypt(all, SECTOR as usize, 0);
        Ok((slot.header(rounds, &digest), stripes))
    }

    /// As many rounds as take the wanted time here.
    fn rounds(&self) -> u32 {
        let (salt, mut out) = ([0; SALT], [0; KEY]);
        let mut rounds = ROUNDS_MIN;
        loop {
            let from = Instant::now();
            HASH.pbkdf2(b"measured", &salt, rounds, &mut out);
            let took = from.elapsed();
            // Long enough to be told from noise.
            if took >= Duration::from_millis(50) || rounds >= super::ROUNDS_MAX / 2 {
                let ratio = self.time.as_secs_f64() / took.as_secs_f64().max(1e-9);
                // Saturates.
                let wanted = (f64::from(rounds) * ratio) as u32;
                return wanted.clamp(ROUNDS_MIN, super::ROUNDS_MAX);
            }
            rounds *= 2;
        }
    }
}

/// What is random and no secret.
struct Slot {
    salt: [u8; SALT],
    digest_salt: [u8; SALT],
    uuid: [u8; 16],
}

impl Slot {
    fn new() -> Result<Self, LuksError> {
        let mut slot = Self {
            salt: [0; SALT],
            digest_salt: [0; SALT],
            uuid: [0; 16],
        };
        random(&mut slot.salt)?;
        random(&mut slot.digest_salt)?;
        random(&mut slot.uuid)?;
        Ok(slot)
    }

    fn header(&self, rounds: u32, digest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        let mut put = |at: usize, field: &[u8]| {
            for (byte, &value) in bytes.iter_mut().skip(at).zip(field) {
                *byte = value;
            }
        };
        // Constants below 4 GiB.
        let sectors = |bytes: u64| ((bytes / SECTOR) as u32).to_be_bytes();
        put(0, &MAGIC);
        put(at::VERSION, &1u16.to_be_bytes());
        for (at, name) in [
            (at::CIPHER, "aes"),
            (at::MODE, "xts-plain64"),
            (at::HASH, "sha256"),
        ] {
            debug_assert!(name.len() < NAME);
            put(at, name.as_bytes());
        }
        put(at::PAYLOAD, &sectors(PAYLOAD));
        put(at::KEY_BYTES, &(KEY as u32).to_be_bytes());
        put(at::DIGEST, digest);
        put(at::DIGEST_SALT, &self.digest_salt);
        put(at::DIGEST_ROUNDS, &DIGEST_ROUNDS.to_be_bytes());
        put(at::UUID, uuid(self.uuid).as_bytes());
        let room = (u64::from(STRIPES) * KEY as u64).next_multiple_of(MATERIAL);
        for number in 0..SLOTS {
            let from = at::SLOTS + number * SLOT;
            let state = if number == 0 { ENABLED } else { DISABLED };
            put(from, &state.to_be_bytes());
            if number == 0 {
                put(from + 4, &rounds.to_be_bytes());
                put(from + 8, &self.salt);
            }
            put(from + 40, &sectors(MATERIAL + number as u64 * room));
            put(from + 44, &STRIPES.to_be_bytes());
        }
        bytes
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

/// Bytes of the kernel's generator.
fn random(bytes: &mut [u8]) -> Result<(), LuksError> {
    crate::secret::random(bytes).map_err(LuksError::Resources)
}
