//! What an image says about itself, without opening anything that it refers to, and without guessing its format.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;
use vsc_devices::block::luks;

use super::{BadHeader, Header, ImageFormat, Severity, allocated, chain, qcow2};

/// What is known about an image.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// Where.
    #[serde(serialize_with = "super::lossy")]
    pub path: PathBuf,
    /// The format that it was said to have; raw when nothing was said.
    pub format: ImageFormat,
    /// What a guest sees, bytes.
    pub virtual_size: u64,
    /// Length of the file, or of the block device, bytes.
    pub length: u64,
    /// What the file takes of its file system, bytes; of a block device all.
    pub allocated: u64,
    /// What the header says, for formats with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// The format that its first bytes look like, when that is not the one it was said to have. A guest can write
    /// such bytes to a raw disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looks_like: Option<&'static str>,
    /// What keeps a scenario from using it that says nothing more of it: other files that it names, tables that cannot
    /// be, a size that is not believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// How its content is encrypted, of a raw file that is a LUKS container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub luks: Option<Luks>,
}

/// A LUKS container, by its header.
#[derive(Debug, Clone, Serialize)]
pub struct Luks {
    /// 1 or 2.
    pub version: u16,
    /// Cipher, mode and tweak.
    pub cipher: String,
    /// Bits of the key.
    pub key_bits: u32,
    /// First byte of the content.
    pub offset: u64,
    /// What is encrypted as one, bytes.
    pub sector: u32,
    /// Passphrases that open it.
    pub slots: u32,
}

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum InfoError {
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    #[error("{} is no {} image", .0.display(), .1)]
    Header(PathBuf, &'static str, #[source] BadHeader),
}

/// Reads what the image at `path`, of a known format, says about itself.
///
/// # Errors
/// See [`InfoError`].
pub fn info(path: &Path, format: ImageFormat) -> Result<Info, InfoError> {
    // Nonblocking, so that a pipe of that name does not keep us waiting.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let mut file = opened.map_err(|e| InfoError::Open(path.to_owned(), e))?;
    let failed = |e| InfoError::Read(path.to_owned(), e);
    let metadata = file.metadata().map_err(failed)?;
    let (length, allocated) = if metadata.is_file() {
        (metadata.len(), allocated(&file).map_err(failed)?)
    } else if metadata.file_type().is_block_device() {
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        (length, length)
    } else {
        return Err(InfoError::Kind(path.to_owned()));
    };
    let header = match format {
        ImageFormat::Raw => None,
        ImageFormat::Qcow2 => Some(
            Header::read(&file)
                .map_err(|e| InfoError::Header(path.to_owned(), format.word(), e))?,
        ),
    };
    let mut first = [0; LOOK];
    let read = file.read_at(&mut first, 0).map_err(failed)?;
    let looks_like = header
        .is_none()
        .then(|| looks_like(first.get(..read).unwrap_or_default()));
    let rules = chain::Rules {
        format: format.word().to_owned(),
        encrypted: header
            .as_ref()
            .is_some_and(|h| h.encryption == Some("luks")),
        ..chain::Rules::default()
    };
    let open = |other: &Path| match other == path {
        true => file.try_clone(),
        // Nothing is listed, so nothing else is opened.
        false => Err(io::ErrorKind::PermissionDenied.into()),
    };
    let remarks = chain::check(&open, path, &rules);
    let errors = remarks
        .into_iter()
        .filter(|r| r.severity == Severity::Error);
    let luks = (looks_like == Some(Some("luks")))
        .then(|| luks::inspect(&file, length).ok())
        .flatten();
    Ok(Info {
        refused: errors.map(|r| r.message).collect(),
        luks: luks.map(|l| Luks {
            version: l.version,
            cipher: l.cipher,
            key_bits: l.key_bits,
            offset: l.offset,
            sector: l.sector,
            slots: l.slots,
        }),
        path: path.to_owned(),
        format,
        virtual_size: header.as_ref().map_or(length, |h| h.virtual_size),
        length,
        allocated,
        header,
        looks_like: looks_like.flatten(),
    })
}

/// What a VirtualBox image has at 0x40 (VDI_SIGNATURE of QEMU).
pub(super) const VDI_MAGIC: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
/// As much of an image as [`looks_like`] wants.
pub(crate) const LOOK: usize = 0x44;

/// Formats of disks by their first bytes.
pub(crate) fn looks_like(first: &[u8]) -> Option<&'static str> {
    if first.get(0x40..0x44) == Some(&VDI_MAGIC) {
        return Some("vdi");
    }
    [
        (&qcow2::MAGIC[..], "qcow2"),
        (b"KDMV", "vmdk"),
        (b"# Disk D", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vhd"),
        (b"QED\0", "qed"),
        (b"LUKS\xba\xbe", "luks"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
    ]
    .into_iter()
    .find_map(|(magic, name)| first.starts_with(magic).then_some(name))
}
