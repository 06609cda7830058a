//! The cryptography of LUKS, by its names: ciphers of RustCrypto behind one type, hashes behind another.

use aes::{Aes128, Aes128Enc, Aes192, Aes192Enc, Aes256, Aes256Enc};
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroize;

use super::LuksError;
use super::xts::Xts;

/// AES in XTS mode with the number of the sector as its tweak ("xts-plain64").
#[allow(
    clippy::large_enum_variant,
    reason = "one per disk, and a box would be outside of the pages that are in no core dump"
)]
pub(super) enum Cipher {
    Aes128(Xts<Aes128, Aes128Enc>),
    Aes192(Xts<Aes192, Aes192Enc>),
    Aes256(Xts<Aes256, Aes256Enc>),
}

impl Cipher {
    /// A cipher by its names, as both versions of LUKS have them.
    pub(super) fn check(cipher: &str, mode: &str, key: usize) -> Result<(), LuksError> {
        if cipher != "aes" || mode != "xts-plain64" {
            return Err(LuksError::Unsupported {
                what: "cipher",
                name: format!("{cipher}-{mode}"),
            });
        }
        match key {
            32 | 48 | 64 => Ok(()),
            _ => Err(LuksError::Unsupported {
                what: "key size",
                name: format!("{} bits", key.saturating_mul(8)),
            }),
        }
    }

    /// `key` has both halves; its length was checked.
    pub(super) fn new(key: &[u8]) -> Result<Self, LuksError> {
        let wrong = LuksError::Damaged("the length of its key");
        match key.len() {
            32 => Xts::new(key).map(Self::Aes128),
            48 => Xts::new(key).map(Self::Aes192),
            _ => Xts::new(key).map(Self::Aes256),
        }
        .ok_or(wrong)
    }

    /// `bytes` are whole sectors of `size` bytes, a multiple of 16, of which the first has this `number`.
    pub(super) fn encrypt(&self, bytes: &mut [u8], size: usize, number: u64) {
        match self {
            Self::Aes128(xts) => xts.encrypt(bytes, size, number),
            Self::Aes192(xts) => xts.encrypt(bytes, size, number),
            Self::Aes256(xts) => xts.encrypt(bytes, size, number),
        }
    }

    /// As [`Self::encrypt`].
    pub(super) fn decrypt(&self, bytes: &mut [u8], size: usize, number: u64) {
        match self {
            Self::Aes128(xts) => xts.decrypt(bytes, size, number),
            Self::Aes192(xts) => xts.decrypt(bytes, size, number),
            Self::Aes256(xts) => xts.decrypt(bytes, size, number),
        }
    }
}

/// A hash by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

/// `$body` with `$digest` as the type of `$hash`, which has its name.
macro_rules! with_digest {
    ($hash:expr, $digest:ident => $body:expr) => {
        with_digest!($hash, $digest => $body; Sha1 Sha224 Sha256 Sha384 Sha512 Ripemd160)
    };
    ($hash:expr, $digest:ident => $body:expr; $($name:ident)*) => {
        match $hash {
            $(Hash::$name => {
                type $digest = $name;
                $body
            })*
        }
    };
}

impl Hash {
    pub(super) fn parse(name: &str) -> Result<Self, LuksError> {
        Ok(match name {
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "ripemd160" => Self::Ripemd160,
            _ => {
                return Err(LuksError::Unsupported {
                    what: "hash",
                    name: name.to_owned(),
                });
            }
        })
    }

    /// PBKDF2 with HMAC of this hash (RFC 8018).
    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], rounds: u32, out: &mut [u8]) {
        with_digest!(self, D => pbkdf2_hmac::<D>(password, salt, rounds, out));
    }

    /// The diffusion of the anti-forensic splitter (LUKS On-Disk Format 1.2.3, section 2.4): each piece as long as a
    /// hash becomes the hash of its number and itself.
    fn diffuse(self, block: &mut [u8]) {
        with_digest!(self, D => {
            let size = <D as Digest>::output_size();
            for (number, piece) in (0u32..).zip(block.chunks_mut(size)) {
                let mut digest = D::new();
                digest.update(number.to_be_bytes());
                digest.update(&*piece);
                let mut sum = digest.finalize();
                for (to, from) in piece.iter_mut().zip(&sum) {
                    *to = *from;
                }
                sum.as_mut_slice().zeroize();
            }
        });
    }

    /// Puts the key together again out of its stripes, each as long as `key`.
    pub(super) fn merge(self, stripes: &[u8], key: &mut [u8]) {
        key.fill(0);
        let mut rest = stripes.chunks_exact(key.len()).peekable();
        while let Some(stripe) = rest.next() {
            xor(key, stripe);
            if rest.peek().is_some() {
                self.diffuse(key);
            }
        }
    }

    /// Takes `key` apart: all of `stripes` but the last is random, and the last makes it come out.
    pub(super) fn split(self, key: &[u8], stripes: &mut [u8], sum: &mut [u8]) {
        let Some(before) = stripes.len().checked_sub(key.len()) else {
            return;
        };
        sum.fill(0);
        let (random, last) = stripes.split_at_mut(before);
        for stripe in random.chunks_exact(key.len()) {
            xor(sum, stripe);
            self.diffuse(sum);
        }
        last.copy_from_slice(key);
        xor(last, sum);
    }
}

fn xor(to: &mut [u8], with: &[u8]) {
    for (to, with) in to.iter_mut().zip(with) {
        *to ^= with;
    }
}
