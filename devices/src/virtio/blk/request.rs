//! Reading a request out of a chain (VIRTIO 5.2.6). Where in the chain its parts lie is the driver's choice
//! (VIRTIO 2.7.4.3): the header is the first 16 readable bytes, the status the last writable one.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::queue::{Chain, VirtQueue};

/// Unit of `sector` and `num_sectors` (VIRTIO 5.2.4), bytes.
pub(super) const SECTOR: u64 = 512;
/// Bytes of `struct virtio_blk_req` before the data.
pub(super) const HEADER: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;
/// Its only flag, `unmap`.
const UNMAP: u32 = 1;
/// Most ranges of one discard or write-zeroes, as offered (`max_discard_seg`).
pub(super) const RANGES_MAX: usize = 16;
/// Longest of them in sectors, as offered (`max_discard_sectors`): 2 GiB, which file systems handle in one go.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 22;

/// A byte range with its own flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// What the driver wants. Checked: ranges lie on the disk and are whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
    },
    Flush,
    Id,
    /// The ranges are in the list given to [`parse`].
    Discard,
    WriteZeroes,
}

/// What the disk can do for this driver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Size of the disk, bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub(super) discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub(super) write_zeroes: bool,
}

const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Reads and checks a request whose chain has at least one writable byte.
///
/// # Errors
/// The status to answer it with.
pub(super) fn parse(
    queue: &VirtQueue,
    chain: &Chain,
    limits: &Limits,
    ranges: &mut Vec<Range>,
) -> Result<Command, u8> {
    let mut header = [0; HEADER];
    if queue.read_from(&chain.readable, 0, &mut header) != HEADER {
        return Err(IOERR);
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let inside = |len: u64| {
        let offset = sector.checked_mul(SECTOR).ok_or(IOERR)?;
        let end = offset.checked_add(len).ok_or(IOERR)?;
        let good = end <= limits.size && len.is_multiple_of(SECTOR);
        good.then_some((offset, len)).ok_or(IOERR)
    };
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let (offset, len) = inside(chain.writable_len().saturating_sub(1))?;
            Ok(Command::Read { offset, len })
        }
        // VIRTIO 5.2.6.2: a write to a read-only device fails and changes nothing.
        VIRTIO_BLK_T_OUT if limits.read_only => Err(IOERR),
        VIRTIO_BLK_T_OUT => {
            let (offset, len) = inside(chain.readable_len().saturating_sub(HEADER as u64))?;
            Ok(Command::Write { offset, len })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Command::Id),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => Err(IOERR),
        VIRTIO_BLK_T_DISCARD if limits.discard => {
            parse_ranges(queue, chain, limits, ranges)?;
            // VIRTIO 5.2.6.2: the unmap flag means nothing here, and is refused.
            if ranges.iter().any(|r| r.unmap) {
                return Err(UNSUPP);
            }
            Ok(Command::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => {
            parse_ranges(queue, chain, limits, ranges)?;
            Ok(Command::WriteZeroes)
        }
        _ => Err(UNSUPP),
    }
}

/// The ranges are copied once and checked as copied: the driver may go on writing to them.
fn parse_ranges(
    queue: &VirtQueue,
    chain: &Chain,
    limits: &Limits,
    ranges: &mut Vec<Range>,
) -> Result<(), u8> {
    ranges.clear();
    let len = chain.readable_len().saturating_sub(HEADER as u64);
    if len == 0 || !len.is_multiple_of(RANGE as u64) || len > (RANGES_MAX * RANGE) as u64 {
        return Err(IOERR);
    }
    for at in (HEADER as u64..HEADER as u64 + len).step_by(RANGE) {
        let mut bytes = [0; RANGE];
        if queue.read_from(&chain.readable, at, &mut bytes) != RANGE {
            return Err(IOERR);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        // VIRTIO 5.2.6.2.
        if flags & !UNMAP != 0 {
            return Err(UNSUPP);
        }
        let sectors = limits.size / SECTOR;
        if count > RANGE_SECTORS_MAX
            || sector
                .checked_add(count.into())
                .is_none_or(|end| end > sectors)
        {
            return Err(IOERR);
        }
        ranges.push(Range {
            offset: sector * SECTOR,
            len: u64::from(count) * SECTOR,
            unmap: flags & UNMAP != 0,
        });
    }
    Ok(())
}
