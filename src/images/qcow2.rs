//! The header of a qcow2 image, as far as it can be told without following anything in it.
//!
//! Layout and numbers: QEMU docs/interop/qcow2.rst. The bytes are anybody's: each offset and length is checked
//! against the one piece that is read, the first cluster at most.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;

/// "QFI\xfb".
pub(super) const MAGIC: [u8; 4] = [b'Q', b'F', b'I', 0xfb];
/// Header, its extensions and the backing file's name are in the first cluster, of which this much is looked at; the
/// largest cluster has 2 MiB, but no header of QEMU comes near 64 KiB.
const READ: usize = 64 << 10;
/// Length of the header of version 2, and least of version 3.
const V2_LENGTH: usize = 72;
/// See [`V2_LENGTH`].
const V3_LENGTH: usize = 104;
/// Longest name of a backing file.
const NAME_MAX: usize = 1023;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const LUKS_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Why bytes are no qcow2 header.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum BadHeader {
    #[error("cannot read the header")]
    Read(#[source] io::Error),
    #[error("it does not begin as a qcow2 image does (QFI\\xfb)")]
    Magic,
    #[error("it ends within its header")]
    Short,
    #[error("qcow2 version {0}: there are 2 and 3")]
    Version(u32),
    #[error("clusters of 2^{0} bytes: there are 2^9 to 2^21")]
    ClusterBits(u32),
    #[error("encryption method {0}: there are 0, 1 and 2")]
    Encryption(u32),
    #[error("compression type {0}: there are 0 and 1")]
    Compression(u8),
    #[error("its header says that it is {0} bytes long")]
    HeaderLength(u32),
    #[error(
        "the name of its backing file is outside of the first 64 KiB, or longer than 1023 bytes"
    )]
    BackingName,
    #[error("the extensions of its header go on behind its first cluster, or 64 KiB")]
    Extension,
    #[error(
        "it has the feature of bit {0}, which no program may ignore and this one does not know"
    )]
    Feature(u32),
    #[error("it is marked as corrupt: qemu-img check -r all may mend it")]
    Corrupt,
    #[error("the place or size of {0} cannot be")]
    Table(&'static str),
}

pub(super) mod checks;

/// What a header says. Names in it are anybody's text, made printable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// 2 or 3 (`compat=1.1`).
    pub version: u32,
    /// What a guest would see, bytes.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The file that unwritten clusters come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Its format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<String>,
    /// The file that has the guest's data instead of this one; empty when the header needs one and does not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// How clusters are encrypted: `aes` (the old, broken way) or `luks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<&'static str>,
    /// How compressed clusters are compressed.
    pub compression_type: &'static str,
    /// Reference counts are written late.
    pub lazy_refcounts: bool,
    /// Snapshots within the image.
    pub snapshots: u32,
    /// Features without which the image must not be opened; by name where it is known.
    pub incompatible_features: Vec<String>,
}

impl Header {
    /// Reads the header of an open file; only the first 64 KiB, at offset 0, and nothing that it refers to.
    ///
    /// # Errors
    /// It is none.
    pub fn read(file: &File) -> Result<Self, BadHeader> {
        Self::parse(&Self::first(file)?)
    }

    /// The first 64 KiB of a file, or what it has of them.
    pub(super) fn first(file: &File) -> Result<Vec<u8>, BadHeader> {
        let mut bytes = vec![0; READ];
        let mut length = 0;
        while let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) {
            match file.read_at(room, length as u64) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(BadHeader::Read(e)),
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Understands the first bytes of an image.
    ///
    /// # Errors
    /// They are no header.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadHeader> {
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(BadHeader::Magic);
        }
        let version = u32_at(bytes, 4)?;
        if !matches!(version, 2 | 3) {
            return Err(BadHeader::Version(version));
        }
        let cluster_bits = u32_at(bytes, 20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(BadHeader::ClusterBits(cluster_bits));
        }
        let encryption = match u32_at(bytes, 32)? {
            0 => None,
            1 => Some("aes"),
            2 => Some("luks"),
            other => return Err(BadHeader::Encryption(other)),
        };
        // Version 2 has none of what follows.
        let (mut incompatible, mut compatible, mut length) = (0, 0, V2_LENGTH);
        let mut compression_type = "zlib";
        if version == 3 {
            incompatible = u64_at(bytes, 72)?;
            compatible = u64_at(bytes, 80)?;
            let said = u32_at(bytes, 100)?;
            length = usize::try_from(said)
                .ok()
                .filter(|n| (V3_LENGTH..=bytes.len().min(1 << cluster_bits)).contains(n))
                .ok_or(BadHeader::HeaderLength(said))?;
            if length > V3_LENGTH {
                compression_type = match bytes.get(104).copied().ok_or(BadHeader::Short)? {
                    0 => "zlib",
                    1 => "zstd",
                    other => return Err(BadHeader::Compression(other)),
                };
            }
        }
        // As QEMU does: what is behind the name of the backing file is no extension.
        let end = match u64_at(bytes, 8)? {
            0 => 1 << cluster_bits,
            offset => {
                usize::try_from(offset).map_or(1 << cluster_bits, |at| at.min(1 << cluster_bits))
            }
        };
        let extensions = Extensions::parse(bytes, length, end)?;
        // Bit 2: the data is in another file. The extension alone is a leftover.
        let data_file =
            (incompatible & 1 << 2 != 0).then(|| extensions.data_file.unwrap_or_default());
        Ok(Self {
            version,
            virtual_size: u64_at(bytes, 24)?,
            cluster_size: 1 << cluster_bits,
            backing_file: backing_file(bytes)?,
            backing_format: extensions.backing_format,
            data_file,
            encryption,
            compression_type,
            lazy_refcounts: compatible & 1 != 0,
            snapshots: u32_at(bytes, 60)?,
            incompatible_features: feature_names(incompatible, &extensions.names),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BadHeader> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u32::from_be_bytes)
        .ok_or(BadHeader::Short)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, BadHeader> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u64::from_be_bytes)
        .ok_or(BadHeader::Short)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).unwrap_or_default();
    crate::diag::shown(&String::from_utf8_lossy(text))
}

fn backing_file(bytes: &[u8]) -> Result<Option<String>, BadHeader> {
    let offset = u64_at(bytes, 8)?;
    if offset == 0 {
        return Ok(None);
    }
    let name = || {
        let length = usize::try_from(u32_at(bytes, 16).ok()?).ok()?;
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(length)?;
        bytes.get(start..end).filter(|name| name.len() <= NAME_MAX)
    };
    name()
        .map(|name| Some(text(name)))
        .ok_or(BadHeader::BackingName)
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    /// The same two, byte for byte.
    raw_backing_format: Option<Vec<u8>>,
    raw_data_file: Option<Vec<u8>>,
    /// (bit, name) of incompatible features.
    names: Vec<(u8, String)>,
}

impl Extensions {
    /// Extensions are from the header's end to `end` or one of type 0, each padded to 8 bytes.
    fn parse(bytes: &[u8], header: usize, end: usize) -> Result<Self, BadHeader> {
        let bytes = bytes.get(..end).unwrap_or(bytes);
        let mut found = Self::default();
        let mut at = header;
        // Each takes 8 bytes at least, so this ends; not where we ceased to read, where others read on.
        while at < end {
            let kind = u32_at(bytes, at).map_err(|_| BadHeader::Extension)?;
            if kind == 0 {
                break;
            }
            let length = usize::try_from(u32_at(bytes, at + 4)?).unwrap_or(usize::MAX);
            let start = at + 8;
            let data = start
                .checked_add(length)
                .and_then(|end| bytes.get(start..end))
                .ok_or(BadHeader::Extension)?;
            match kind {
                BACKING_FORMAT => {
                    found.backing_format = Some(text(data));
                    found.raw_backing_format = Some(data.to_vec());
                }
                DATA_FILE => {
                    found.data_file = Some(text(data));
                    found.raw_data_file = Some(data.to_vec());
                }
                // Type (0: incompatible), bit, and 46 bytes of name.
                FEATURE_NAMES => found
                    .names
                    .extend(data.chunks_exact(48).filter_map(|entry| {
                        let (head, name) = entry.split_at_checked(2)?;
                        (head.first() == Some(&0))
                            .then(|| (head.get(1).copied().unwrap_or(0), text(name)))
                    })),
                // What is encrypted is said by the header itself.
                LUKS_HEADER => {}
                _ => {}
            }
            at = start + length.next_multiple_of(8);
        }
        Ok(found)
    }
}

/// Names that the specification gives, then the image's own, then the bit's number.
fn feature_names(bits: u64, own: &[(u8, String)]) -> Vec<String> {
    const KNOWN: [&str; 5] = [
        "dirty",
        "corrupt",
        "external data file",
        "compression type",
        "extended L2 entries",
    ];
    (0..64u8)
        .filter(|bit| bits >> bit & 1 != 0)
        .map(|bit| {
            let known = KNOWN.get(usize::from(bit)).map(|&name| name.to_owned());
            let own = || {
                own.iter()
                    .find(|(b, _)| *b == bit)
                    .map(|(_, name)| name.clone())
            };
            known.or_else(own).unwrap_or_else(|| format!("bit {bit}"))
        })
        .collect()
}

#[cfg(test)]
mod tests;
