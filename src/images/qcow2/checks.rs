//! What of a qcow2 header must hold before anybody may open the image: bounds of its tables, features, and the names of
//! other files in it, byte for byte.
//!
//! Limits are QEMU's own (block/qcow2.h: `QCOW_MAX_L1_SIZE`, `QCOW_MAX_REFTABLE_SIZE`, `QCOW_MAX_SNAPSHOTS`).

#![forbid(unsafe_code)]

use super::{BadHeader, Extensions, Header, V2_LENGTH, V3_LENGTH, u32_at, u64_at};

/// Largest first-level table, bytes.
const L1_MAX: u64 = 32 << 20;
/// Largest reference count table, bytes.
const REFTABLE_MAX: u64 = 8 << 20;
/// Most snapshots.
const SNAPSHOTS_MAX: u32 = 65536;
/// Largest width of a reference count, as a power of two of bits.
const REFCOUNT_ORDER_MAX: u32 = 6;
/// Features that QEMU 10 knows: dirty, corrupt, external data, compression type, extended L2 entries.
const KNOWN: u64 = 0x1f;
const CORRUPT: u64 = 1 << 1;
const EXTENDED_L2: u64 = 1 << 4;

/// A header that may be believed, and the names in it as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) header: Header,
    /// Name of the backing file.
    pub(crate) backing: Option<Vec<u8>>,
    /// Its format.
    pub(crate) backing_format: Option<Vec<u8>>,
    /// Name of the external data file; empty when one is needed and not named.
    pub(crate) data: Option<Vec<u8>>,
}

/// Checks the first bytes of an image of `length` bytes.
pub(crate) fn check(bytes: &[u8], length: u64) -> Result<Checked, BadHeader> {
    let header = Header::parse(bytes)?;
    let (features, header_length, order) = match header.version {
        3 => (
            u64_at(bytes, 72)?,
            usize::try_from(u32_at(bytes, 100)?).unwrap_or(V3_LENGTH),
            u32_at(bytes, 96)?,
        ),
        _ => (0, V2_LENGTH, 4),
    };
    if features & !KNOWN != 0 {
        let unknown = (features & !KNOWN).trailing_zeros();
        return Err(BadHeader::Feature(unknown));
    }
    if features & CORRUPT != 0 {
        return Err(BadHeader::Corrupt);
    }
    if order > REFCOUNT_ORDER_MAX {
        return Err(BadHeader::Table("reference counts"));
    }
    let cluster = header.cluster_size;
    let at_cluster =
        |offset: u64| offset != 0 && offset.is_multiple_of(cluster) && offset <= length;
    // The first-level table covers all of the disk, and no table is larger than QEMU reads.
    let entry = if features & EXTENDED_L2 != 0 { 16 } else { 8 };
    let covered = u128::from(cluster) * u128::from(cluster / entry);
    let needed = u128::from(header.virtual_size).div_ceil(covered);
    let l1 = u64::from(u32_at(bytes, 36)?);
    let l1_offset = u64_at(bytes, 40)?;
    if u128::from(l1) < needed || l1 * 8 > L1_MAX || (l1 > 0 && !at_cluster(l1_offset)) {
        return Err(BadHeader::Table("the first-level table"));
    }
    let refcounts = u64::from(u32_at(bytes, 56)?);
    if refcounts == 0
        || refcounts.saturating_mul(cluster) > REFTABLE_MAX
        || !at_cluster(u64_at(bytes, 48)?)
    {
        return Err(BadHeader::Table("the reference count table"));
    }
    if header.snapshots > SNAPSHOTS_MAX || (header.snapshots > 0 && !at_cluster(u64_at(bytes, 64)?))
    {
        return Err(BadHeader::Table("the snapshot table"));
    }
    // As QEMU does: what is behind the name of the backing file is no extension.
    let end = match u64_at(bytes, 8)? {
        0 => cluster,
        offset => offset.min(cluster),
    };
    let end = usize::try_from(end).unwrap_or(usize::MAX);
    let extensions = Extensions::parse(bytes, header_length, end)?;
    let backing = match u64_at(bytes, 8)? {
        0 => None,
        offset => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let name_length = usize::try_from(u32_at(bytes, 16)?).unwrap_or(usize::MAX);
            let name = start
                .checked_add(name_length)
                .and_then(|end| bytes.get(start..end));
            Some(name.ok_or(BadHeader::BackingName)?.to_vec())
        }
    };
    Ok(Checked {
        data: header
            .data_file
            .is_some()
            .then(|| extensions.raw_data_file.unwrap_or_default()),
        backing_format: extensions.raw_backing_format,
        header,
        backing,
    })
}
