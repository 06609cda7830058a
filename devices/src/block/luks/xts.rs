//! AES in XTS mode (IEEE 1619-2007), in place, many blocks at a time: the processor works on eight of them at once, and
//! the first masks of several sectors are computed together as well.

#![forbid(unsafe_code)]

use aes::Block;
use aes::cipher::consts::U16;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{BlockCipher, BlockDecrypt, BlockEncrypt, BlockSizeUser, KeyInit};

/// What sectors are counted in for their tweaks, whatever their size is (LUKS2 On-Disk Format 1.1.1, section 3.3;
/// dm-crypt without `iv_large_sectors`), bytes.
pub(super) const TWEAK_UNIT: u64 = 512;
/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// What is masked at once: its masks and itself stay in the first-level cache, blocks.
const BATCH: usize = 256;
/// Most sectors whose first masks are computed together.
const SECTORS: usize = 8;

/// `Data` has the first half of the key, `Tweak` the second, which is never decrypted with.
pub(super) struct Xts<Data, Tweak> {
    data: Data,
    tweak: Tweak,
}

impl<Data, Tweak> Xts<Data, Tweak>
where
    Data: BlockCipher + BlockEncrypt + BlockDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
    Tweak: BlockEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    /// `None`: the halves of the key are not as long as the cipher wants them.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        Some(Self {
            data: Data::new_from_slice(data).ok()?,
            tweak: Tweak::new_from_slice(tweak).ok()?,
        })
    }

    /// `bytes` are whole sectors of `size` bytes, a multiple of 16, of which the first has this `number`, counted in
    /// [`TWEAK_UNIT`].
    pub(super) fn encrypt(&self, bytes: &mut [u8], size: usize, number: u64) {
        self.run(bytes, size, number, |blocks| {
            self.data.encrypt_blocks(blocks)
        });
    }

    /// As [`Self::encrypt`].
    pub(super) fn decrypt(&self, bytes: &mut [u8], size: usize, number: u64) {
        self.run(bytes, size, number, |blocks| {
            self.data.decrypt_blocks(blocks)
        });
    }

    fn run(&self, bytes: &mut [u8], size: usize, mut number: u64, work: impl Fn(&mut [Block])) {
        debug_assert!(size >= BLOCK && size.is_multiple_of(BLOCK));
        debug_assert!(bytes.len().is_multiple_of(size));
        let step = (size as u64 / TWEAK_UNIT).max(1);
        let mut masks = [0; BATCH];
        for group in bytes.chunks_mut(size.saturating_mul(SECTORS)) {
            let mut firsts = [Block::default(); SECTORS];
            for first in &mut firsts {
                *first = u128::from(number).to_le_bytes().into();
                number = number.wrapping_add(step);
            }
            self.tweak.encrypt_blocks(&mut firsts);
            let mut firsts = firsts.iter();
            let (mut mask, mut left) = (0, 0);
            for batch in group.chunks_mut(BATCH * BLOCK) {
                // Sectors that fit in a batch together are done together.
                for (block, slot) in batch.as_chunks_mut::<BLOCK>().0.iter_mut().zip(&mut masks) {
                    if left == 0 {
                        mask = firsts
                            .next()
                            .map_or(0, |&first| u128::from_le_bytes(first.into()));
                        left = size / BLOCK;
                    }
                    *slot = mask;
                    xor(block, mask);
                    mask = next(mask);
                    left -= 1;
                }
                work(
                    InOutBuf::from(&mut *batch)
                        .into_chunks::<U16>()
                        .0
                        .into_out(),
                );
                for (block, &mask) in batch.as_chunks_mut::<BLOCK>().0.iter_mut().zip(&masks) {
                    xor(block, mask);
                }
            }
        }
    }
}

fn xor(block: &mut [u8; BLOCK], mask: u128) {
    *block = (u128::from_le_bytes(*block) ^ mask).to_le_bytes();
}

/// The mask of the next block: multiplied by x in GF(2^128), whose polynomial ends in x^7 + x^2 + x + 1 (section 5.2).
fn next(mask: u128) -> u128 {
    // All ones where the highest bit falls out; no branch, which would show it.
    let carry = 0u128.wrapping_sub(mask >> 127);
    mask << 1 ^ carry & 0x87
}

#[cfg(test)]
mod tests {
    use aes::{Aes128, Aes256};
    use proptest::prelude::*;
    use xts_mode::{Xts128, get_tweak_default};

    use super::super::crypt::Cipher;
    use super::KeyInit;

    fn hex(text: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    /// IEEE 1619-2007, annex B, vectors 1 to 3.
    #[test]
    fn the_vectors_of_the_standard() {
        let descending: Vec<u8> = (0xf0..=0xff).rev().collect();
        for (first, second, number, plain, encrypted) in [
            (
                vec![0; 16],
                0,
                0,
                0,
                "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e",
            ),
            (
                vec![0x11; 16],
                0x22,
                0x33_3333_3333,
                0x44,
                "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
            ),
            (
                descending,
                0x22,
                0x33_3333_3333,
                0x44,
                "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
            ),
        ] {
            let cipher = Cipher::new(&[first, vec![second; 16]].concat()).unwrap();
            let mut bytes = vec![plain; 32];
            cipher.encrypt(&mut bytes, 32, number);
            assert_eq!(bytes, hex(encrypted));
            cipher.decrypt(&mut bytes, 32, number);
            assert_eq!(bytes, vec![plain; 32]);
        }
    }

    /// The same, vector 10, of 512 bytes; the first four of its blocks.
    #[test]
    fn a_vector_of_a_whole_sector() {
        let key = hex(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ));
        let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
        let mut bytes = plain.clone();
        let cipher = Cipher::new(&key).unwrap();
        cipher.encrypt(&mut bytes, 512, 0xff);
        let first = hex(concat!(
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd",
        ));
        assert_eq!(bytes[..64], first);
        cipher.decrypt(&mut bytes, 512, 0xff);
        assert_eq!(bytes, plain);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

        /// Sector by sector and block by block, as another implementation has it: sectors that share a batch, that fill
        /// several, and numbers that leave 32 bits or begin again.
        #[test]
        fn as_block_by_block(
            key in prop::array::uniform32(any::<u8>()),
            wide in any::<bool>(),
            (size, count) in prop_oneof![
                ((0u32..4).prop_map(|n| 512usize << n), 1usize..40),
                ((1usize..40).prop_map(|n| n * 16), 1usize..40),
                ((250usize..600).prop_map(|n| n * 16), 1usize..12),
            ],
            number in prop_oneof![0u64..100, any::<u64>(), (u64::MAX - 100)..=u64::MAX],
            seed in any::<u8>(),
        ) {
            let plain: Vec<u8> = (0..size * count).map(|n| (n as u8).wrapping_mul(31) ^ seed ^ (n >> 8) as u8).collect();
            let mut key = key.to_vec();
            if wide {
                key.extend_from_within(..);
                key[40] ^= 1;
            }
            let step = (size as u64 / 512).max(1);
            let mut want = plain.clone();
            for (sector, n) in want.chunks_mut(size).zip(0u64..) {
                let tweak = get_tweak_default(u128::from(number.wrapping_add(n * step)));
                if wide {
                    Xts128::new(Aes256::new_from_slice(&key[..32]).unwrap(), Aes256::new_from_slice(&key[32..]).unwrap())
                        .encrypt_sector(sector, tweak);
                } else {
                    Xts128::new(Aes128::new_from_slice(&key[..16]).unwrap(), Aes128::new_from_slice(&key[16..]).unwrap())
                        .encrypt_sector(sector, tweak);
                }
            }
            let cipher = Cipher::new(&key).unwrap();
            let mut bytes = plain.clone();
            cipher.encrypt(&mut bytes, size, number);
            prop_assert!(bytes == want);
            cipher.decrypt(&mut bytes, size, number);
            prop_assert!(bytes == plain);
        }
    }
}
