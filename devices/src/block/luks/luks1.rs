//! LUKS version 1 (LUKS On-Disk Format Specification 1.2.3): a header of 592 bytes with eight key slots.

#![forbid(unsafe_code)]

use std::fs::File;

use subtle::ConstantTimeEq as _;

use super::crypt::{Cipher, Hash};
use super::{Layout, LuksError, Material, STRIPES, name_at, rounds, secret, u32_at, unlocked};

/// Bytes of the header.
pub(super) const LENGTH: usize = 592;
/// Offsets of its fields.
pub(super) mod at {
    pub(in super::super) const VERSION: usize = 6;
    pub(in super::super) const CIPHER: usize = 8;
    pub(in super::super) const MODE: usize = 40;
    pub(in super::super) const HASH: usize = 72;
    pub(in super::super) const PAYLOAD: usize = 104;
    pub(in super::super) const KEY_BYTES: usize = 108;
    pub(in super::super) const DIGEST: usize = 112;
    pub(in super::super) const DIGEST_SALT: usize = 132;
    pub(in super::super) const DIGEST_ROUNDS: usize = 164;
    pub(in super::super) const UUID: usize = 168;
    pub(in super::super) const SLOTS: usize = 208;
}
/// Bytes of names, of the master key's digest, of salts.
pub(super) const NAME: usize = 32;
pub(super) const DIGEST: usize = 20;
pub(super) const SALT: usize = 32;
/// Key slots, and bytes of one: state, rounds, salt, offset, stripes.
pub(super) const SLOTS: usize = 8;
pub(super) const SLOT: usize = 48;
/// States of a key slot.
pub(super) const ENABLED: u32 = 0x00ac_71f3;
pub(super) const DISABLED: u32 = 0x0000_dead;
/// What offsets are counted in, bytes.
pub(super) const SECTOR: u64 = 512;

pub(super) struct Header {
    pub(super) layout: Layout,
    hash: Hash,
    digest: [u8; DIGEST],
    salt: [u8; SALT],
    rounds: u32,
    slots: Vec<Slot>,
}

struct Slot {
    rounds: u32,
    salt: [u8; SALT],
    material: Material,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], LuksError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(LuksError::Damaged("an end within the header"))
}

impl Header {
    /// Understands the first bytes of a container of `end` bytes.
    pub(super) fn parse(bytes: &[u8], end: u64) -> Result<Self, LuksError> {
        let (cipher, mode) = (
            name_at(bytes, at::CIPHER, NAME)?,
            name_at(bytes, at::MODE, NAME)?,
        );
        let key = u32_at(bytes, at::KEY_BYTES)?;
        Cipher::check(cipher, mode, key as usize)?;
        let hash = Hash::parse(name_at(bytes, at::HASH, NAME)?)?;
        let offset = u64::from(u32_at(bytes, at::PAYLOAD)?) * SECTOR;
        if offset < LENGTH as u64 {
            return Err(LuksError::Damaged("data within the header"));
        }
        if offset > end {
            return Err(LuksError::Damaged("data beyond the end of the image"));
        }
        let mut slots = Vec::new();
        for number in 0..SLOTS {
            let from = at::SLOTS + number * SLOT;
            match u32_at(bytes, from)? {
                ENABLED => {}
                DISABLED => continue,
                _ => return Err(LuksError::Damaged("the state of a key slot")),
            }
            let material = Material {
                offset: u64::from(u32_at(bytes, from + 40)?) * SECTOR,
                stripes: u32_at(bytes, from + 44)?,
                hash,
            };
            if material.stripes != STRIPES {
                return Err(LuksError::Damaged("the number of stripes of a key"));
            }
            let ends = material.offset + material.bytes(key as usize);
            if material.offset < LENGTH as u64 || ends > offset {
                return Err(LuksError::Damaged("the place of a key"));
            }
            slots.push(Slot {
                rounds: rounds(u32_at(bytes, from + 4)?)?,
                salt: array(bytes, from + 8)?,
                material,
            });
        }
        Ok(Self {
            layout: Layout {
                version: 1,
                cipher: format!("{cipher}-{mode}"),
                key_bits: key * 8,
                offset,
                length: None,
                sector: 512,
                tweak: 0,
                // At most eight.
                slots: slots.len() as u32,
            },
            hash,
            digest: array(bytes, at::DIGEST)?,
            salt: array(bytes, at::DIGEST_SALT)?,
            rounds: rounds(u32_at(bytes, at::DIGEST_ROUNDS)?)?,
            slots,
        })
    }

    /// Tries the passphrase on each slot.
    pub(super) fn unlock(
        &self,
        file: &File,
        passphrase: &[u8],
        key: &mut [u8],
    ) -> Result<(), LuksError> {
        let mut slot_key = secret(key.len())?;
        let slot_key = slot_key
            .bytes_mut()
            .get_mut(..key.len())
            .unwrap_or_default();
        unlocked(&self.slots, |slot| {
            self.hash
                .pbkdf2(passphrase, &slot.salt, slot.rounds, slot_key);
            slot.material.open(file, slot_key, key)?;
            let mut digest = [0; DIGEST];
            self.hash.pbkdf2(key, &self.salt, self.rounds, &mut digest);
            Ok(digest.ct_eq(&self.digest).into())
        })
    }
}
