//! Memory that devices read and write: RAM behind the image, handed out in order, given back all at once.

use core::sync::atomic::{AtomicU64, Ordering};

static START: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// At most this much is used.
pub const MOST: u64 = 16 << 20;

pub fn set(start: u64, length: u64) {
    START.store(start, Ordering::Relaxed);
    NEXT.store(start, Ordering::Relaxed);
    END.store(start + length.min(MOST), Ordering::Relaxed);
}

/// `length` bytes at an address that `align` (a power of 2) divides. They hold zeroes.
pub fn take(length: u64, align: u64) -> Option<u64> {
    let start = NEXT.load(Ordering::Relaxed).checked_add(align - 1)? & !(align - 1);
    let end = start.checked_add(length)?;
    if end > END.load(Ordering::Relaxed) || length == 0 {
        return None;
    }
    NEXT.store(end, Ordering::Relaxed);
    fill(start, length, 0);
    Some(start)
}

pub fn fill(address: u64, length: u64, byte: u8) {
    // SAFETY: RAM of the arena, which no Rust object of this program lives in.
    unsafe { core::ptr::write_bytes(address as *mut u8, byte, length as usize) }
}

/// Everything handed out so far is free again.
pub fn reset() {
    NEXT.store(START.load(Ordering::Relaxed), Ordering::Relaxed);
}

pub fn left() -> u64 {
    END.load(Ordering::Relaxed) - NEXT.load(Ordering::Relaxed)
}

/// A number that tells contents apart.
pub fn hash(data: &[u8]) -> u64 {
    // FNV-1a, eight bytes at a time: to tell contents apart, not against anyone.
    data.chunks(8).fold(0xcbf2_9ce4_8422_2325, |h, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (h ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01b3)
    })
}
