//! LZ4 legacy frames, as `lz4 -l` and the Linux build write them: a magic, then blocks of at most 8 MiB, each with its
//! compressed size in front and independent of the others (`lz4_Frame_format.md`, "Legacy frame"; the block format is
//! `lz4_Block_format.md`).
//!
//! The decoder is our own because start-up is counted in instructions: it writes straight to its destination, checks
//! bounds once per run of short sequences instead of once per sequence, and leaves long runs of zeros unwritten when
//! the destination is known to be zero (a fifth of a Debian kernel is; every page not touched is a page fault saved).

use std::ops::Range;

/// Magic of a legacy frame, little endian.
pub(super) const MAGIC: u32 = 0x184c_2102;
/// Most bytes a block decodes to.
const BLOCK_MAX: usize = 8 << 20;
/// Most bytes a compressed block has: `LZ4_COMPRESSBOUND(8 MiB)`. A larger "size" ends the stream: the Linux build
/// appends the uncompressed size there.
const BLOCK_BOUND: usize = BLOCK_MAX + BLOCK_MAX / 255 + 16;
/// Bytes past the current position that [`short_sequences`] may have overwritten with garbage.
const WILD: usize = 64;
/// Bytes that [`short_sequences`] keeps between itself and the ends.
const MARGIN: usize = 1024;
/// Shortest run of zeros left unwritten.
const HOLE_MIN: usize = 64 << 10;

/// How far a decoding got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes written.
    pub(super) len: usize,
    /// The whole input was decoded, rather than the output filled.
    pub(super) complete: bool,
}

/// Decodes a legacy frame (with its magic) into `out`, stopping when `out` is full. With `holes`, `out` must be all
/// zero, and ranges that were left so are appended in ascending order.
pub(super) fn decode(
    input: &[u8],
    out: &mut [u8],
    mut holes: Option<&mut Vec<Range<usize>>>,
) -> Result<Progress, &'static str> {
    let mut rest = match input.split_first_chunk::<4>() {
        Some((magic, rest)) if u32::from_le_bytes(*magic) == MAGIC => rest,
        _ => return Err("no LZ4 legacy frame"),
    };
    let mut done = 0;
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size);
        if size == MAGIC {
            rest = after;
            continue;
        }
        let size = size as usize;
        if size > BLOCK_BOUND || (size == 0 && after.is_empty()) {
            break;
        }
        if size > after.len() {
            return Err("a block runs past the end of the data");
        }
        if done == out.len() {
            return Ok(Progress {
                len: done,
                complete: false,
            });
        }
        let (block, following) = after.split_at(size);
        let room = BLOCK_MAX.min(out.len() - done);
        let first_hole = holes.as_ref().map_or(0, |holes| holes.len());
        let (written, complete) =
            decode_block(block, &mut out[done..done + room], holes.as_deref_mut())?;
        if let Some(holes) = holes.as_deref_mut() {
            for hole in &mut holes[first_hole..] {
                *hole = hole.start + done..hole.end + done;
            }
        }
        done += written;
        if !complete {
            if room == BLOCK_MAX {
                return Err("a block decodes to more than 8 MiB");
            }
            return Ok(Progress {
                len: done,
                complete: false,
            });
        }
        rest = following;
    }
    Ok(Progress {
        len: done,
        complete: true,
    })
}

/// Decodes one block; the second value is false when `out` was too small for it.
fn decode_block(
    input: &[u8],
    out: &mut [u8],
    mut holes: Option<&mut Vec<Range<usize>>>,
) -> Result<(usize, bool), &'static str> {
    const CUT: &str = "a sequence runs past the end of its block";
    let (mut i, mut o) = (0, 0);
    loop {
        (i, o) = if o < 0xffff {
            short_sequences::<true>(input, out, i, o)
        } else {
            short_sequences::<false>(input, out, i, o)
        };
        // One sequence with every check.
        let token = *input.get(i).ok_or(CUT)?;
        i += 1;
        let mut literals = usize::from(token >> 4);
        if literals == 15 {
            literals += extension(input, &mut i).ok_or(CUT)?;
        }
        let source = input
            .get(i..)
            .and_then(|rest| rest.get(..literals))
            .ok_or(CUT)?;
        i += literals;
        let room = out.len() - o;
        if literals > room {
            out[o..].copy_from_slice(&source[..room]);
            return Ok((out.len(), false));
        }
        out[o..o + literals].copy_from_slice(source);
        o += literals;
        if i == input.len() {
            return Ok((o, true));
        }
        let offset = input
            .get(i..i + 2)
            .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
            .ok_or(CUT)?;
        i += 2;
        let mut length = usize::from(token & 15) + 4;
        if length == 19 {
            length += extension(input, &mut i).ok_or(CUT)?;
        }
        if offset == 0 || offset > o {
            return Err("a match points before the start of its block");
        }
        let full = length > out.len() - o;
        let length = length.min(out.len() - o);
        repeat(out, o, offset, length, holes.as_deref_mut());
        o += length;
        if full {
            return Ok((o, false));
        }
    }
}

/// The rest of a length: bytes up to and including the first that is not 255.
fn extension(input: &[u8], i: &mut usize) -> Option<usize> {
    let mut sum = 0usize;
    loop {
        let byte = *input.get(*i)?;
        *i += 1;
        sum = sum.checked_add(usize::from(byte))?;
        if byte != 255 {
            return Some(sum);
        }
    }
}

/// Copies `length` bytes from `offset` before `o` to `o`, byte after byte as it were.
fn repeat(
    out: &mut [u8],
    o: usize,
    offset: usize,
    length: usize,
    holes: Option<&mut Vec<Range<usize>>>,
) {
    if let Some(holes) = holes
        && length >= HOLE_MIN + WILD
        && out[o - offset..o].iter().all(|&byte| byte == 0)
    {
        // What short sequences may have scribbled ahead; behind that everything is still zero.
        out[o..o + WILD].fill(0);
        holes.push(o + WILD..o + length);
        return;
    }
    // Each round doubles the period that is known, so that all copies but the first few are long.
    let start = o - offset;
    let (mut o, end) = (o, o + length);
    while o < end {
        let n = (o - start).min(end - o);
        out.copy_within(start..start + n, o);
        o += n;
    }
}

/// Decodes sequences whose lengths take at most one extension byte and whose matches are at least 8 bytes back, as long
/// as nothing can go out of bounds; the others are left to the caller. `NEAR`: a match could still point before the
/// block.
#[inline(always)]
fn short_sequences<const NEAR: bool>(
    input: &[u8],
    out: &mut [u8],
    i: usize,
    o: usize,
) -> (usize, usize) {
    /// Rounds that a sequence with extension bytes is worth: 576 bytes of output, 306 of input.
    const LONG: usize = 18;
    let source = input.as_ptr();
    let target = out.as_mut_ptr();
    // SAFETY: both positions are inside, or at the end.
    let (mut ip, mut op) = unsafe { (source.add(i), target.add(o)) };
    'stop: loop {
        let (i, o) = (ip.addr() - source.addr(), op.addr() - target.addr());
        // Sequences without extension bytes take at most 17 bytes of input (token, 14 literals, offset) and 32 of
        // output (14 + 18): so many may follow without looking at the bounds.
        let by_input = input.len().saturating_sub(i + MARGIN) >> 5;
        let by_output = out.len().saturating_sub(o + MARGIN) >> 5;
        let mut rounds = by_input.min(by_output);
        if NEAR {
            if o >= 0xffff {
                break 'stop;
            }
            rounds = rounds.min(64);
        }
        if rounds == 0 {
            break 'stop;
        }
        while rounds != 0 {
            // SAFETY: at least MARGIN bytes of input and output lie ahead here. With one extension byte for each length, a
            // sequence takes at most 1 + 1 + 269 + 2 + 1 = 274 bytes of input and gives 269 + 273 = 542 of output, and
            // 32-byte steps exceed either by less than 32: so every access is inside `input` or `out`. A match begins
            // inside `out`: with NEAR that is compared, without it `o` is at least 0xffff, the greatest offset.
            unsafe {
                let token = *ip;
                let mut literals = usize::from(token >> 4);
                let mut from = ip.add(1);
                if literals == 15 {
                    let more = *from;
                    if more == 255 {
                        break 'stop;
                    }
                    literals += usize::from(more);
                    from = from.add(1);
                    copy::<32>(from, op, literals);
                    rounds = rounds.saturating_sub(LONG).max(1);
                } else {
                    op.cast::<[u8; 16]>().write(from.cast::<[u8; 16]>().read());
                }
                let next = from.add(literals);
                let to = op.add(literals);
                let offset = usize::from(next.cast::<u16>().read_unaligned());
                if NEAR && offset > to.addr() - target.addr() {
                    break 'stop;
                }
                let length = usize::from(token & 15);
                let from = to.sub(offset);
                if length != 15 && offset >= 16 {
                    to.cast::<[u8; 16]>().write(from.cast::<[u8; 16]>().read());
                    to.add(16)
                        .cast::<[u8; 2]>()
                        .write(from.add(16).cast::<[u8; 2]>().read());
                    ip = next.add(2);
                    op = to.add(length + 4);
                    rounds -= 1;
                    continue;
                }
                let mut length = length + 4;
                let mut next = next.add(2);
                if length == 19 {
                    let more = *next;
                    if more == 255 {
                        break 'stop;
                    }
                    length += usize::from(more);
                    next = next.add(1);
                }
                if offset >= 32 {
                    copy::<32>(from, to, length);
                } else if offset >= 8 {
                    copy::<8>(from, to, length);
                } else {
                    break 'stop;
                }
                ip = next;
                op = to.add(length);
                rounds = rounds.saturating_sub(LONG);
            }
        }
    }
    (ip.addr() - source.addr(), op.addr() - target.addr())
}

/// Copies `length` bytes in steps of N, up to N - 1 too many; at least one step.
///
/// # Safety
/// `length` bytes and N more must be readable and writable; the two may overlap by no less than N bytes of distance.
#[inline(always)]
unsafe fn copy<const N: usize>(mut from: *const u8, mut to: *mut u8, length: usize) {
    // SAFETY: as promised by the caller; each step begins inside the `length` bytes.
    unsafe {
        let end = to.add(length);
        loop {
            to.cast::<[u8; N]>().write(from.cast::<[u8; N]>().read());
            (from, to) = (from.add(N), to.add(N));
            if to >= end {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(data: &[u8]) -> Vec<u8> {
        let mut frame = MAGIC.to_le_bytes().to_vec();
        for block in data.chunks(BLOCK_MAX) {
            let packed = lz4_flex::block::compress(block);
            frame.extend((packed.len() as u32).to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    fn check(data: &[u8]) {
        let packed = frame(data);
        let mut out = vec![0; data.len() + 100];
        assert_eq!(
            decode(&packed, &mut out, None),
            Ok(Progress {
                len: data.len(),
                complete: true
            })
        );
        assert!(out[..data.len()] == *data, "round trip differs");
        let mut holes = Vec::new();
        let mut out = vec![0; data.len() + 100];
        decode(&packed, &mut out, Some(&mut holes)).unwrap();
        assert!(out[..data.len()] == *data, "with holes");
        for hole in &holes {
            assert!(data[hole.clone()].iter().all(|&b| b == 0));
        }
        // Every shorter output gets the same bytes.
        for short in [0, 1, data.len() / 3, data.len().saturating_sub(1)] {
            let mut out = vec![0; short];
            let progress = decode(&packed, &mut out, None).unwrap();
            assert_eq!(progress.len, short.min(data.len()));
            assert!(out[..progress.len] == data[..progress.len]);
        }
    }

    #[test]
    fn round_trips() {
        check(b"");
        check(b"a");
        check(&[7; 100_000]);
        let mut zeros = vec![0; 20 << 20];
        zeros[9 << 20] = 1;
        check(&zeros);
        let text: Vec<u8> = (0..300_000u32)
            .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 20).to_le_bytes())
            .collect();
        check(&text);
        for period in 1..40 {
            let data: Vec<u8> = (0..5000).map(|i| (i % period) as u8).collect();
            check(&data);
        }
    }

    #[test]
    fn holes_are_reported() {
        let mut data = vec![1; 100];
        data.extend(vec![0; 1 << 20]);
        data.extend([2; 100]);
        let mut holes = Vec::new();
        decode(&frame(&data), &mut vec![0; data.len()], Some(&mut holes)).unwrap();
        assert_eq!(holes.len(), 1);
        assert!(holes[0].len() > 900_000);
    }

    #[test]
    fn size_behind_the_last_block_ends_the_stream() {
        let data = vec![3; 9 << 20];
        let mut packed = frame(&data);
        packed.extend((data.len() as u32).to_le_bytes());
        let mut out = vec![0; data.len()];
        assert_eq!(
            decode(&packed, &mut out, None),
            Ok(Progress {
                len: data.len(),
                complete: true
            })
        );
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(decode(b"", &mut [], None).is_err());
        let mut out = [0; 64];
        let block = |block: &[u8]| {
            let mut frame = MAGIC.to_le_bytes().to_vec();
            frame.extend((block.len() as u32).to_le_bytes());
            frame.extend(block);
            frame
        };
        // Offset 0, offset before the start, literals past the end, a length that never ends.
        assert!(decode(&block(&[0x10, 65, 0, 0]), &mut out, None).is_err());
        assert!(decode(&block(&[0x10, 65, 2, 0]), &mut out, None).is_err());
        assert!(decode(&block(&[0xe0, 65]), &mut out, None).is_err());
        assert!(decode(&block(&[0xf0, 255, 255, 255]), &mut out, None).is_err());
        assert!(decode(&[0x02, 0x21, 0x4c, 0x18, 9, 0, 0, 0, 1], &mut out, None).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes(block in proptest::collection::vec(any::<u8>(), 0..2000), room in 0usize..5000) {
            let mut input = MAGIC.to_le_bytes().to_vec();
            input.extend((block.len() as u32).to_le_bytes());
            input.extend(block);
            let mut out = vec![0; room];
            let _ = decode(&input, &mut out, Some(&mut Vec::new()));
        }

        #[test]
        fn mutated(flips in proptest::collection::vec((0usize..60_000, any::<u8>()), 1..20)) {
            let data: Vec<u8> = (0..100_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 21).to_le_bytes()).collect();
            let mut packed = frame(&data);
            let len = packed.len();
            for (at, value) in flips {
                packed[4 + at % (len - 4)] = value;
            }
            let _ = decode(&packed, &mut vec![0; data.len()], None);
        }
    }
}
