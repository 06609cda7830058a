//! RAM is where the loader says, all of it, and each address is its own.

use crate::arena;
use crate::boot::{Boot, Range};
use crate::out::{Out, Outcome, ensure, fail, text};
use crate::sys::{end_of_image, map, read, write};

const IMAGE_START: u64 = 0x10_0000;
/// Places looked at in one range.
const SAMPLES: usize = 64;

pub fn all(out: &mut Out, boot: &Boot) {
    let total: u64 = boot.ram().map(|r| r.length).sum();
    out.info(
        "memory",
        text!(
            "{} KiB in {} ranges of {}",
            total >> 10,
            boot.ram().count(),
            boot.range_count
        ),
    );
    out.result(text!("mem.map"), overlap(boot));
    for range in boot.ram() {
        out.result(text!("mem.{:#x}", range.base), sample(range));
    }
    let outcome = match arena::take(256 << 10, 4096) {
        Some(at) => pattern(at, 256 << 10),
        None => (|| skip_small())(),
    };
    out.result(text!("mem.pattern"), outcome);
    arena::reset();
}

fn skip_small() -> Outcome {
    crate::out::skip!("RAM too small")
}

fn overlap(boot: &Boot) -> Outcome {
    ensure!(boot.magic, "no PVH start_info");
    ensure!(boot.ram().count() > 0, "the memory map names no RAM");
    for (i, a) in boot.ranges[..boot.range_count].iter().enumerate() {
        ensure!(a.base.checked_add(a.length).is_some(), "range {i} wraps");
        for b in &boot.ranges[..i] {
            let apart = a.base >= b.base + b.length || b.base >= a.base + a.length;
            ensure!(apart, "ranges at {:#x} and {:#x} overlap", a.base, b.base);
        }
    }
    Ok(text!(""))
}

/// Writes to the first and last word and places between, reads all of them back, puts the old contents back.
fn sample(range: Range) -> Outcome {
    let mut places = [(0_u64, 0_u64); SAMPLES];
    let mut count = 0;
    let step = (range.length / (SAMPLES as u64 - 1)) & !0xfff;
    for i in 0..SAMPLES as u64 {
        let offset = if i == SAMPLES as u64 - 1 {
            range.length.saturating_sub(8)
        } else {
            i * step
        };
        let at = (range.base + offset + 7) & !7;
        let ours = at + 8 > IMAGE_START && at < end_of_image();
        let repeated = places[..count].iter().any(|p| p.0 == at);
        // Address 0 is RAM, but no Rust pointer.
        if ours || repeated || at == 0 || at + 8 > range.base + range.length {
            continue;
        }
        if !map(at) {
            // More GiB than there are directories: the first, the last and some between are enough.
            continue;
        }
        places[count] = (at, 0);
        count += 1;
    }
    if count == 0 {
        fail!("no place in it could be mapped");
    }
    for place in &mut places[..count] {
        place.1 = read(place.0);
        write(place.0, place.0 ^ 0x5555_aaaa_3333_cccc);
    }
    let bad = places[..count]
        .iter()
        .find(|p| read::<u64>(p.0) != p.0 ^ 0x5555_aaaa_3333_cccc)
        .map(|p| p.0);
    for place in &places[..count] {
        write(place.0, place.1);
    }
    ensure!(
        bad.is_none(),
        "{:#x} does not hold what was written",
        bad.unwrap_or(0)
    );
    Ok(text!("{} KiB, {count} places", range.length >> 10))
}

fn pattern(at: u64, length: u64) -> Outcome {
    for round in [0_u64, u64::MAX, 0x5555_5555_5555_5555, 1] {
        for i in (at..at + length).step_by(8) {
            write(
                i,
                if round == 1 {
                    i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                } else {
                    round
                },
            );
        }
        for i in (at..at + length).step_by(8) {
            let right = if round == 1 {
                i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            } else {
                round
            };
            let found: u64 = read(i);
            ensure!(found == right, "{i:#x} holds {found:#x}, not {right:#x}");
        }
    }
    Ok(text!("{} KiB", length >> 10))
}
