//! The descriptor of a VMDK image: the files that it names, and the size that it claims.
//!
//! Layout: VMware "Virtual Disk Format 5.0"; places and names of the keys as QEMU's block/vmdk.c looks for them, which
//! takes the header's word for less than the format has it: a descriptor is behind the first sector, wherever it is said
//! to be, and a disk of no size is what its descriptor says. What QEMU might read in another way is refused.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;
/// Most of a descriptor of its own file that is read, as QEMU does.
const DESCRIPTOR_MAX: u64 = 1 << 20;
/// Bytes of a descriptor inside of an image, from the second sector on (`DESC_SIZE`).
const INSIDE: u64 = 20 * SECTOR;
/// A place of the grain directory that says: the header is repeated near the end, and that one counts.
const AT_END: u64 = u64::MAX;
/// Bytes from the repeated header to the end: it, and the marker of the stream's end.
const FOOTER: u64 = 2 * SECTOR;

/// What an image says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Vmdk {
    /// What a guest would see, bytes.
    pub(super) size: Option<u64>,
    /// The image that unwritten content comes from.
    pub(super) parent: Option<String>,
    /// Files that have its content.
    pub(super) extents: Vec<String>,
}

/// Reads the descriptor of an image of `length` bytes.
pub(super) fn read(file: &File, length: u64) -> Result<Vmdk, &'static str> {
    let mut head = [0; SECTOR as usize];
    let short = "it ends within its header";
    if length >= SECTOR {
        file.read_exact_at(&mut head, 0)
            .map_err(|_| "it cannot be read")?;
    }
    if head.starts_with(b"KDMV") {
        return sparse(file, &head, length);
    }
    if head.starts_with(b"# Disk D") || length < SECTOR {
        let text = text(file, 0, length).ok_or(short)?;
        let told = parse(&text);
        return match text.starts_with("# Disk D") {
            // Such an image has nothing of its own: what was not understood here is still somebody's file.
            true if told.extents.is_empty() => Err("its descriptor names no piece"),
            true => Ok(told),
            false => Err("it does not begin as one"),
        };
    }
    Err("it does not begin as one")
}

/// One file with everything, and a descriptor inside.
fn sparse(file: &File, head: &[u8], length: u64) -> Result<Vmdk, &'static str> {
    let mut size = capacity(head)?;
    if number(head, 56) == AT_END {
        let mut foot = [0; SECTOR as usize];
        let place = length.checked_sub(FOOTER).filter(|at| at % SECTOR == 0);
        let place = place.ok_or("its end cannot be")?;
        file.read_exact_at(&mut foot, place)
            .map_err(|_| "it cannot be read")?;
        if !foot.starts_with(b"KDMV") {
            return Err("its end cannot be");
        }
        size = size.max(capacity(&foot)?);
    }
    // Nobody else looks for it elsewhere.
    if number(head, 36) > 0 && number(head, 28) != 1 {
        return Err("the place of its descriptor cannot be");
    }
    let count = INSIDE.min(length.saturating_sub(SECTOR));
    let text = text(file, SECTOR, count).ok_or("its descriptor cannot be read")?;
    Ok(Vmdk {
        size: Some(size),
        parent: parse(&text).parent,
        // The one extent is this file, whatever its name was when it was made; QEMU does not open it again.
        extents: Vec::new(),
    })
}

/// What a header says that the disk has, bytes.
fn capacity(head: &[u8]) -> Result<u64, &'static str> {
    match number(head, 12).checked_mul(SECTOR) {
        // QEMU would open the pieces that the descriptor names.
        Some(0) | None => Err("its size cannot be"),
        Some(size) => Ok(size),
    }
}

fn number(head: &[u8], at: usize) -> u64 {
    let field = head.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().map_or(0, u64::from_le_bytes)
}

fn text(file: &File, from: u64, length: u64) -> Option<String> {
    let length = usize::try_from(length.min(DESCRIPTOR_MAX)).ok()?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from).ok()?;
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(length);
    bytes.truncate(end);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Understands a descriptor; what is not understood names nothing.
fn parse(text: &str) -> Vmdk {
    let mut told = Vmdk::default();
    // Wherever it stands, and whichever two characters are between it and the name, as QEMU looks for it.
    if let Some((_, rest)) = text.split_once("parentFileNameHint") {
        let mut rest = rest.chars();
        rest.by_ref().take(2).for_each(drop);
        let name = rest.as_str().split('"').next().unwrap_or_default();
        told.parent = Some(name.to_owned());
    }
    let mut sectors = Some(0u64);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let access = words.next().unwrap_or_default();
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            continue;
        }
        let count: Option<u64> = words.next().and_then(|n| n.parse().ok());
        sectors = sectors.zip(count).and_then(|(a, b)| a.checked_add(b));
        let name = line.split('"').nth(1).unwrap_or_default();
        told.extents.push(name.to_owned());
    }
    told.size = sectors.and_then(|n| n.checked_mul(SECTOR));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_names_its_pieces_and_its_parent() {
        let told = parse(
            "# Disk DescriptorFile\nversion=1\nparentCID=1\nparentFileNameHint=\"/etc/shadow\"\nRW 8 FLAT \"/etc/passwd\" 0\nRW 8 ZERO\nrandom\n",
        );
        assert_eq!(told.parent.as_deref(), Some("/etc/shadow"));
        assert_eq!(told.extents, ["/etc/passwd", ""]);
        assert_eq!(told.size, Some(8192));
        let huge = format!("# Disk D\nRW {} FLAT \"x\"\nRW 1 FLAT \"x\"\n", u64::MAX);
        assert_eq!(parse(&huge).size, None);
    }
}
