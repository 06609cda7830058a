//! Putting a kernel into guest memory.

use super::decompress::{self, DEFLATE_SLACK};
use super::elf::{Elf, Notes, Segment};
use super::ranges::{overlap, subtract};
use super::{Compression, KernelError};
use crate::Memory;
use crate::layout::HIGH_MEMORY;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Shortest run of zeros that is not written to fresh memory.
const ZERO_RUN_MIN: usize = 64 << 10;
const PAGE: usize = 4096;
/// Bytes behind its output that a decoder may scribble over.
const SCRIBBLE: usize = 256;
/// How much more than its segments a compressed ELF may hold and still be decoded to its end for the sake of its
/// checksum (section headers, KASLR relocations); debug information is more, and not decoded.
const TAIL_MAX: usize = 16 << 20;

/// Checks that a kernel's memory is inside RAM and above the boot structures.
pub(super) fn check_bounds(
    path: &Path,
    start: u64,
    end: u64,
    ram_low_end: u64,
) -> Result<(), KernelError> {
    if start < HIGH_MEMORY {
        return Err(KernelError::TooLow {
            path: path.to_owned(),
            address: start,
        });
    }
    if end > ram_low_end {
        return Err(KernelError::TooBig {
            path: path.to_owned(),
            needed: end,
            ram_end: ram_low_end,
        });
    }
    Ok(())
}

/// The guest pages that a segment's file bytes fill, where file and memory agree on page boundaries.
pub(super) fn whole_pages(segment: &Segment) -> Option<Range<u64>> {
    let start = segment.phys.checked_next_multiple_of(PAGE as u64)?;
    let end = (segment.phys + segment.file_len) & !(PAGE as u64 - 1);
    let agree = (segment.phys ^ segment.offset).is_multiple_of(PAGE as u64);
    (agree && start < end).then_some(start..end)
}

/// Loads the segments of an ELF from `bytes`, its whole file.
pub(super) fn elf(
    elf: &Elf,
    bytes: &[u8],
    memory: &Memory,
    fresh: bool,
    mapped: bool,
) -> Result<(), KernelError> {
    for segment in &elf.segments {
        let end = segment.phys + segment.file_len;
        let whole = whole_pages(segment).filter(|_| mapped).unwrap_or(end..end);
        for part in [segment.phys..whole.start, whole.end..end] {
            // In bounds of the file: checked when the headers were read.
            let from = (segment.offset + (part.start - segment.phys)) as usize;
            let data = bytes
                .get(from..from + (part.end - part.start) as usize)
                .unwrap_or_default();
            put(memory, part.start, data, fresh)?;
        }
        if !fresh {
            zero(
                memory,
                segment.phys + segment.file_len,
                segment.mem_len - segment.file_len,
            )?;
        }
    }
    Ok(())
}

/// Writes `data` at `address`; to fresh memory without its long runs of zeros.
pub(super) fn put(
    memory: &Memory,
    address: u64,
    data: &[u8],
    fresh: bool,
) -> Result<(), KernelError> {
    if !fresh {
        return put_all(memory, address, data);
    }
    let mut start = 0;
    while start < data.len() {
        let zeros_at = next_zero_run(data, start);
        put_all(memory, address + start as u64, &data[start..zeros_at])?;
        start = zeros_at
            + data[zeros_at..]
                .chunks(PAGE)
                .take_while(|page| is_zero(page))
                .map(<[u8]>::len)
                .sum::<usize>();
    }
    Ok(())
}

/// Where, from `start`, the next long run of zero pages begins; the end when there is none.
fn next_zero_run(data: &[u8], start: usize) -> usize {
    let mut run = start;
    let mut at = start;
    for page in data[start..].chunks(PAGE) {
        at += page.len();
        if !is_zero(page) {
            run = at;
        } else if at - run >= ZERO_RUN_MIN {
            return run;
        }
    }
    data.len()
}

fn is_zero(page: &[u8]) -> bool {
    // A comparison of slices is the fastest loop there is for this: the C library's.
    const ZEROS: [u8; PAGE] = [0; PAGE];
    page == &ZEROS[..page.len()]
}

fn put_all(memory: &Memory, address: u64, data: &[u8]) -> Result<(), KernelError> {
    if data.is_empty() {
        return Ok(());
    }
    let unreachable = || KernelError::Memory {
        address,
        len: data.len() as u64,
    };
    if data.len() >= 4 * PAGE && write_to_backing_file(memory, address, data) {
        return Ok(());
    }
    let slice = memory
        .get_slice(GuestAddress(address), data.len())
        .map_err(|_| unreachable())?;
    slice.copy_from(data);
    Ok(())
}

/// Writes through the memfd behind shared guest memory: whole pages written that way are neither faulted in one by one nor
/// zeroed first. False: not that kind of memory, or the host refused; nothing is lost then.
fn write_to_backing_file(memory: &Memory, address: u64, data: &[u8]) -> bool {
    let Some(region) = memory.find_region(GuestAddress(address)) else {
        return false;
    };
    let offset = address - region.start_addr().0;
    if data.len() as u64 > region.len() - offset || region.flags() & libc::MAP_SHARED == 0 {
        return false;
    }
    let Some(backing) = region.file_offset() else {
        return false;
    };
    let mut done = 0;
    while done < data.len() {
        let Ok(at) = libc::off_t::try_from(backing.start() + offset + done as u64) else {
            return false;
        };
        let rest = &data[done..];
        // SAFETY: `rest` is readable for its length; the descriptor belongs to the region, which is alive.
        let written = unsafe {
            libc::pwrite(
                backing.file().as_raw_fd(),
                rest.as_ptr().cast(),
                rest.len(),
                at,
            )
        };
        match usize::try_from(written) {
            Ok(0) => return false,
            Ok(written) => done += written,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {
            }
            Err(_) => return false,
        }
    }
    true
}

/// Fills guest memory with zeros.
pub(super) fn zero(memory: &Memory, address: u64, len: u64) -> Result<(), KernelError> {
    if len == 0 {
        return Ok(());
    }
    arena(memory, address, len).map(|bytes| bytes.fill(0))
}

/// A view of guest memory as plain bytes.
///
/// Loading happens before any vCPU or device of this guest runs, so nothing else writes there; should another process
/// that shares the memory do so nevertheless, decoders still stay inside their bounds: they trust none of their output.
#[expect(
    clippy::mut_from_ref,
    reason = "guest memory is a mapping, not a part of `Memory`; see above"
)]
fn arena(memory: &Memory, address: u64, len: u64) -> Result<&mut [u8], KernelError> {
    let unreachable = || KernelError::Memory { address, len };
    let count = usize::try_from(len).map_err(|_| unreachable())?;
    let slice = memory
        .get_slice(GuestAddress(address), count)
        .map_err(|_| unreachable())?;
    // SAFETY: `get_slice` checked that `count` bytes from here are mapped, readable and writable, for as long as `memory`
    // is borrowed; they are plain bytes. Exclusive use is the caller's, as said above: each caller makes one view at a time.
    Ok(unsafe { std::slice::from_raw_parts_mut(slice.ptr_guard_mut().as_ptr(), count) })
}

/// Loaded bytes, for reading.
pub(super) fn view(memory: &Memory, address: u64, len: u64) -> Result<&[u8], KernelError> {
    arena(memory, address, len).map(|bytes| &*bytes)
}

/// A compressed ELF.
pub(super) struct Packed<'a> {
    pub(super) path: &'a Path,
    pub(super) compression: Compression,
    pub(super) data: &'a [u8],
    /// What the data decodes to, in bytes, when its format or container says so.
    pub(super) declared: Option<u64>,
    pub(super) elf: &'a Elf,
}

impl Packed<'_> {
    /// Decodes to where the largest segment belongs, and moves the others. Returns the notes.
    pub(super) fn load(
        &self,
        memory: &Memory,
        ram_low_end: u64,
        fresh: bool,
    ) -> Result<Notes, KernelError> {
        match self.in_place(memory, ram_low_end, fresh)? {
            Some(notes) => Ok(notes),
            None => self.through_buffer(memory, ram_low_end, fresh),
        }
    }

    fn error(&self, error: decompress::DecodeError) -> KernelError {
        decode_error(self.path, self.compression, error)
    }

    fn short(&self, len: usize, needed: usize) -> KernelError {
        KernelError::Truncated {
            path: self.path.to_owned(),
            part: "the ELF inside".to_owned(),
            needed: needed as u64,
            size: len as u64,
        }
    }

    /// How many bytes to decode: at least `needed`.
    fn wanted(&self, needed: usize) -> usize {
        let least = needed.saturating_add(DEFLATE_SLACK);
        match self
            .declared
            .and_then(|declared| usize::try_from(declared).ok())
        {
            _ if self.compression == Compression::Lz4 => needed,
            Some(declared) if declared > needed && declared - needed <= TAIL_MAX => {
                declared.max(least)
            }
            _ => least,
        }
    }

    /// `None`: the segments lie such that they cannot be unpacked in place.
    fn in_place(
        &self,
        memory: &Memory,
        ram_low_end: u64,
        fresh: bool,
    ) -> Result<Option<Notes>, KernelError> {
        let Some(largest) = self
            .elf
            .segments
            .iter()
            .max_by_key(|segment| segment.file_len)
        else {
            return Ok(None);
        };
        let needed = self.elf.file_end() as usize;
        let Some(base) = largest
            .phys
            .checked_sub(largest.offset)
            .filter(|&base| base >= HIGH_MEMORY)
        else {
            return Ok(None);
        };
        // Everything below is in offsets from `base`, where the ELF's first byte lands.
        let Some(room) = ram_low_end
            .checked_sub(base)
            .filter(|&room| room >= needed as u64)
        else {
            return Ok(None);
        };
        if self.elf.start() < base {
            return Ok(None);
        }
        let place = |segment: &Segment| {
            let target = (segment.phys - base) as usize;
            let source = segment.offset as usize;
            (source..source + segment.file_len as usize, target)
        };
        let Some(order) = move_order(self.elf.segments.iter().map(place).collect()) else {
            return Ok(None);
        };
        let bytes = arena(memory, base, room)?;
        let out_len = self.wanted(needed).min(bytes.len());
        if self.compression == Compression::Gzip && out_len < needed + DEFLATE_SLACK {
            return Ok(None);
        }

        let mut holes = Vec::new();
        let progress = decompress::decode(
            self.compression,
            self.data,
            &mut bytes[..out_len],
            fresh.then_some(&mut holes),
        )
        .map_err(|error| self.error(error))?;
        if progress.len < needed {
            return Err(self.short(progress.len, needed));
        }
        let notes = self
            .elf
            .notes(|range| bytes.get(range.start as usize..range.end as usize));

        let written = if progress.complete {
            (progress.len + SCRIBBLE).min(out_len)
        } else {
            out_len
        };
        let mut stale = subtract(
            &[Range {
                start: 0,
                end: written,
            }],
            &holes,
        );
        let mut content = Vec::new();
        for (source, target) in order {
            for piece in subtract(std::slice::from_ref(&source), &holes) {
                let to = target + (piece.start - source.start);
                let len = piece.len();
                if to != piece.start {
                    bytes.copy_within(piece, to);
                }
                content.push(to..to + len);
            }
        }
        if !fresh {
            stale.extend(self.elf.segments.iter().map(|segment| {
                let start = (segment.phys - base) as usize;
                start..start + segment.mem_len as usize
            }));
        }
        for range in subtract(&stale, &content) {
            bytes[range].fill(0);
        }
        Ok(Some(notes))
    }

    /// Decodes to memory of our own, of at most the guest's size, and copies.
    fn through_buffer(
        &self,
        memory: &Memory,
        ram_low_end: u64,
        fresh: bool,
    ) -> Result<Notes, KernelError> {
        let needed = self.elf.file_end();
        if needed > ram_low_end {
            return Err(KernelError::TooBig {
                path: self.path.to_owned(),
                needed,
                ram_end: ram_low_end,
            });
        }
        let needed = needed as usize;
        let mut bytes = vec![0; self.wanted(needed)];
        let progress = decompress::decode(self.compression, self.data, &mut bytes, None)
            .map_err(|e| self.error(e))?;
        if progress.len < needed {
            return Err(self.short(progress.len, needed));
        }
        elf(self.elf, &bytes, memory, fresh, false)?;
        Ok(self
            .elf
            .notes(|range| bytes.get(range.start as usize..range.end as usize)))
    }
}

/// A decoder's error as a kernel's.
pub(super) fn decode_error(
    path: &Path,
    compression: Compression,
    error: decompress::DecodeError,
) -> KernelError {
    match error {
        decompress::DecodeError::Corrupt(detail) => KernelError::Corrupt {
            path: path.to_owned(),
            compression: compression.name(),
            detail,
        },
        decompress::DecodeError::Unsupported => KernelError::UnsupportedCompression {
            path: path.to_owned(),
            compression: compression.name(),
            advice: "unpack it first",
        },
    }
}

/// An order of moves (source range, target) in which none overwrites the source of a later one.
fn move_order(mut moves: Vec<(Range<usize>, usize)>) -> Option<Vec<(Range<usize>, usize)>> {
    let mut order = Vec::with_capacity(moves.len());
    while !moves.is_empty() {
        let next = moves
            .iter()
            .enumerate()
            .position(|(index, (source, target))| {
                let target = *target..target + source.len();
                moves
                    .iter()
                    .enumerate()
                    .all(|(other, (source, _))| other == index || !overlap(&target, source))
            })?;
        order.push(moves.swap_remove(next));
    }
    Some(order)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn orders_moves() {
        let order = |moves: &[(Range<usize>, usize)]| {
            move_order(moves.to_vec()).map(|order| order.iter().map(|m| m.1).collect::<Vec<_>>())
        };
        assert_eq!(order(&[(10..20, 10), (20..30, 25)]), Some(vec![10, 25]));
        assert_eq!(order(&[(20..30, 15), (30..40, 25)]), Some(vec![15, 25]));
        assert_eq!(order(&[(30..40, 25), (20..30, 15)]), Some(vec![15, 25]));
        assert_eq!(order(&[(0..10, 20), (20..30, 0)]), None, "a swap");
        assert_eq!(order(&[]), Some(vec![]));
    }

    #[test]
    fn finds_zero_runs() {
        let mut data = vec![0u8; 50 * PAGE];
        assert_eq!(next_zero_run(&data, 0), 0);
        data[3 * PAGE + 5] = 1;
        assert_eq!(next_zero_run(&data, 0), 4 * PAGE);
        data[30 * PAGE] = 1;
        assert_eq!(next_zero_run(&data, 21 * PAGE), 31 * PAGE);
        data[45 * PAGE] = 1;
        assert_eq!(next_zero_run(&data, 21 * PAGE), data.len());
    }
}
