//! Partition tables: MBR with its chain of logical partitions, and GPT (UEFI 2.10, section 5).

#![forbid(unsafe_code)]

use std::io;
use std::rc::Rc;

use super::blocks::{Blocks, Part, le32, le64};
use super::{Content, Partition};

/// Bytes of a sector of an MBR.
const SECTOR: u64 = 512;
/// Most partitions that are looked at: more than any tool makes.
const MOST: u32 = 1024;
/// Bytes of a GPT header that say something.
const GPT_HEADER: usize = 92;

/// The partitions of an image; one without a number where all of it is one file system, or nothing that is known.
pub(super) fn partitions(whole: &Rc<dyn Blocks>) -> io::Result<Vec<Partition>> {
    let all = Partition {
        number: None,
        start: 0,
        length: whole.size(),
        kind: None,
        name: None,
        content: content(whole.as_ref()),
    };
    // The first sector of FAT ends as that of a partition table does.
    if all.content != Content::Unknown && all.content != Content::Iso9660 {
        return Ok(vec![all]);
    }
    for sector in [512, 4096] {
        if let Some(found) = gpt(whole.as_ref(), sector) {
            return Ok(filled(whole, found));
        }
    }
    match mbr(whole.as_ref()) {
        Some(found) if !found.is_empty() => Ok(filled(whole, found)),
        _ => Ok(vec![all]),
    }
}

/// With what is in them.
fn filled(whole: &Rc<dyn Blocks>, mut found: Vec<Partition>) -> Vec<Partition> {
    for partition in &mut found {
        let part = Part::new(Rc::clone(whole), partition.start, partition.length);
        partition.content = part.map_or(Content::Beyond, |part| content(&part));
    }
    found
}

/// A piece of an image; nothing where it is not all there.
fn piece(blocks: &dyn Blocks, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    blocks.read_at(at, &mut bytes).ok()?;
    Some(bytes)
}

/// What is in a part, by its marks.
pub(super) fn content(blocks: &dyn Blocks) -> Content {
    let has = |at: u64, mark: &[u8]| piece(blocks, at, mark.len()).is_some_and(|p| p == mark);
    // Offsets: libblkid's superblocks.
    match () {
        () if has(0, b"LUKS\xba\xbe") => Content::Luks,
        () if has(0, b"XFSB") => Content::Xfs,
        () if has(0x10040, b"_BHRfS_M") => Content::Btrfs,
        () if has(0x218, b"LVM2 001") || has(0x18, b"LVM2 001") => Content::Lvm,
        () if has(1080, &[0x53, 0xef]) => Content::Ext,
        () if has(3, b"NTFS    ") => Content::Ntfs,
        () if has(0, b"hsqs") => Content::Squashfs,
        () if has(4086, b"SWAPSPACE2") => Content::Swap,
        () if is_fat(blocks) => Content::Fat,
        () if has(0x8001, b"CD001") => Content::Iso9660,
        () => Content::Unknown,
    }
}

/// Whether the first sector is that of FAT (Microsoft's fatgen103): a jump, sizes that are powers of two, copies of
/// the table.
fn is_fat(blocks: &dyn Blocks) -> bool {
    let Some(first) = piece(blocks, 0, 512) else {
        return false;
    };
    let word = |at: usize| u16::from(first[at]) | u16::from(first[at + 1]) << 8;
    let named = |at: usize| first.get(at..at + 3) == Some(b"FAT");
    matches!(first[0], 0xeb | 0xe9)
        && first[510..512] == [0x55, 0xaa]
        && matches!(word(11), 512 | 1024 | 2048 | 4096)
        && first[13].is_power_of_two()
        && word(14) > 0
        && matches!(first[16], 1 | 2)
        && (named(0x36) || named(0x52))
}

/// GPT, the first copy or the last.
fn gpt(blocks: &dyn Blocks, sector: u64) -> Option<Vec<Partition>> {
    let last = (blocks.size() / sector).checked_sub(1)?;
    [1, last]
        .into_iter()
        .find_map(|lba| gpt_at(blocks, sector, lba))
}

fn gpt_at(blocks: &dyn Blocks, sector: u64, lba: u64) -> Option<Vec<Partition>> {
    let header = piece(
        blocks,
        lba.checked_mul(sector)?,
        usize::try_from(sector).ok()?,
    )?;
    if header.get(..8) != Some(b"EFI PART") {
        return None;
    }
    let length = usize::try_from(le32(&header, 12)?).ok()?;
    let mut counted = header
        .get(..length)
        .filter(|h| h.len() >= GPT_HEADER)?
        .to_vec();
    counted.get_mut(16..20)?.fill(0);
    if crc32(&counted) != le32(&header, 16)? || le64(&header, 24)? != lba {
        return None;
    }
    let entries = le64(&header, 72)?.checked_mul(sector)?;
    let (count, size) = (le32(&header, 80)?, le32(&header, 84)?);
    if count > MOST || !(128..=4096).contains(&size) {
        return None;
    }
    let size = usize::try_from(size).ok()?;
    let all = piece(
        blocks,
        entries,
        size.checked_mul(usize::try_from(count).ok()?)?,
    )?;
    if crc32(&all) != le32(&header, 88)? {
        return None;
    }
    let one = |(number, entry): (u32, &[u8])| {
        let kind = entry
            .get(..16)
            .filter(|kind| kind.iter().any(|b| *b != 0))?;
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        let name: Vec<u16> = entry
            .get(56..128)?
            .chunks_exact(2)
            .map(|c| u16::from(c[0]) | u16::from(c[1]) << 8)
            .take_while(|c| *c != 0)
            .collect();
        Some(Partition {
            number: Some(number),
            start: first.checked_mul(sector)?,
            length: last
                .checked_sub(first)?
                .checked_add(1)?
                .checked_mul(sector)?,
            kind: guid(kind),
            name: (!name.is_empty()).then(|| String::from_utf16_lossy(&name)),
            content: Content::Unknown,
        })
    };
    Some((1..).zip(all.chunks_exact(size)).filter_map(one).collect())
}

/// The text of a GUID, whose first three parts are little-endian.
fn guid(bytes: &[u8]) -> Option<String> {
    let b: [u8; 16] = bytes.try_into().ok()?;
    let hex = |order: &[usize]| {
        order
            .iter()
            .map(|&i| format!("{:02x}", b[i]))
            .collect::<String>()
    };
    Some(format!(
        "{}-{}-{}-{}-{}",
        hex(&[3, 2, 1, 0]),
        hex(&[5, 4]),
        hex(&[7, 6]),
        hex(&[8, 9]),
        hex(&[10, 11, 12, 13, 14, 15])
    ))
}

/// CRC-32 as GPT has it (polynomial 0xedb88320, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let low = (crc & 1).wrapping_neg();
            crc >> 1 ^ 0xedb8_8320 & low
        })
    })
}

/// Types of partitions that hold a chain of others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type that says that there is a GPT.
const PROTECTIVE: u8 = 0xee;

struct Slot {
    kind: u8,
    start: u64,
    sectors: u64,
}

fn slots(blocks: &dyn Blocks, sector: u64) -> Option<[Slot; 4]> {
    let bytes = piece(blocks, sector.checked_mul(SECTOR)?, 512)?;
    if bytes.get(510..512) != Some(&[0x55, 0xaa]) {
        return None;
    }
    let slot = |n: usize| {
        let entry = bytes.get(446 + n * 16..)?;
        Some(Slot {
            kind: *entry.get(4)?,
            start: u64::from(le32(entry, 8)?),
            sectors: u64::from(le32(entry, 12)?),
        })
    };
    Some([slot(0)?, slot(1)?, slot(2)?, slot(3)?])
}

fn mbr(blocks: &dyn Blocks) -> Option<Vec<Partition>> {
    let mut found = Vec::new();
    let partition = |number: u32, kind: u8, start: u64, sectors: u64| {
        Some(Partition {
            number: Some(number),
            start: start.checked_mul(SECTOR)?,
            length: sectors.checked_mul(SECTOR)?,
            kind: Some(format!("{kind:#04x}")),
            name: None,
            content: Content::Unknown,
        })
    };
    let mut logical = 5;
    for (number, slot) in (1..).zip(slots(blocks, 0)?) {
        match slot {
            Slot { kind: 0, .. } | Slot { sectors: 0, .. } => {}
            // The table that it protects is damaged, or not there.
            Slot {
                kind: PROTECTIVE, ..
            } => return None,
            Slot { kind, start, .. } if EXTENDED.contains(&kind) => {
                let mut at = start;
                // A chain that goes round in circles ends here too.
                while logical < MOST {
                    let Some([one, next, ..]) = slots(blocks, at) else {
                        break;
                    };
                    if one.kind != 0 && one.sectors != 0 {
                        found.extend(partition(
                            logical,
                            one.kind,
                            at.saturating_add(one.start),
                            one.sectors,
                        ));
                    }
                    logical += 1;
                    if !EXTENDED.contains(&next.kind) {
                        break;
                    }
                    at = start.saturating_add(next.start);
                }
            }
            Slot {
                kind,
                start,
                sectors,
            } => found.extend(partition(number, kind, start, sectors)),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(usize, u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (n, kind, start, sectors) in entries {
            let at = 446 + n * 16;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn places(image: Vec<u8>) -> Vec<(Option<u32>, u64, u64, Content)> {
        let whole: Rc<dyn Blocks> = Rc::new(image);
        let found = partitions(&whole).unwrap();
        found
            .into_iter()
            .map(|p| (p.number, p.start / 512, p.length / 512, p.content))
            .collect()
    }

    #[test]
    fn logical_partitions_are_a_chain_and_circles_end() {
        let mut image = vec![0; 512 * 64];
        let mut put = |sector: usize, bytes: Vec<u8>| {
            image[sector * 512..][..512].copy_from_slice(&bytes);
        };
        put(
            0,
            table(&[(0, 0x83, 4, 8), (1, 0x05, 16, 40), (3, 0x83, 60, 100)]),
        );
        put(16, table(&[(0, 0x83, 2, 6), (1, 0x05, 10, 10)]));
        // The next one is the first one again.
        put(26, table(&[(0, 0x82, 1, 4), (1, 0x05, 0, 10)]));
        let found = places(image);
        assert_eq!(found[0], (Some(1), 4, 8, Content::Unknown));
        assert_eq!(found[1], (Some(5), 18, 6, Content::Unknown));
        assert_eq!(found[2], (Some(6), 27, 4, Content::Unknown));
        assert_eq!(found.last(), Some(&(Some(4), 60, 100, Content::Beyond)));
        assert!(found.len() <= MOST as usize);
    }

    #[test]
    fn a_damaged_gpt_is_not_replaced_by_what_protects_it() {
        let mut image = table(&[(0, 0xee, 1, 63)]);
        image.resize(512 * 64, 0);
        assert_eq!(places(image.clone()), [(None, 0, 64, Content::Unknown)]);
        image[512..520].copy_from_slice(b"EFI PART");
        image[512 + 12..512 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(places(image), [(None, 0, 64, Content::Unknown)]);
        assert_eq!(places(vec![0; 100]), [(None, 0, 0, Content::Unknown)]);
    }

    #[test]
    fn the_check_sum_is_that_of_gpt() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
