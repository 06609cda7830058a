//! The Linux/x86 boot protocol's file format (`Documentation/arch/x86/boot.rst`).

use super::Compression;
use linux_loader::bootparam::{boot_params, setup_header};
use std::ops::Range;
use vm_memory::ByteValued;

/// Where the setup header begins in the file (and in the zero page).
const HEADER_START: usize = 0x1f1;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Oldest protocol accepted: `cmdline_size` appeared in 2.06.
const OLDEST: u16 = 0x0206;
/// Protocol that brought `payload_offset`.
const PAYLOAD: u16 = 0x0208;
/// Protocol that brought `pref_address` and `init_size`.
const PREFERRED: u16 = 0x020a;
/// Protocol that brought `xloadflags`.
const XLOADFLAGS: u16 = 0x020c;
/// `XLF_KERNEL_64`: 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// `LOADED_HIGH`: protected-mode code is for 1 MiB (a bzImage, not a zImage).
const LOADED_HIGH: u8 = 1;
/// Distance of the 64-bit entry from the start of the protected-mode code.
pub(super) const ENTRY_64: u64 = 0x200;

/// What is wrong with a bzImage.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BzImageError {
    Truncated { part: &'static str, needed: u64 },
    TooOld(u16),
    Malformed(String),
}

/// A recognised bzImage.
#[derive(Debug, Clone)]
pub(super) struct BzImage {
    pub(super) header: setup_header,
    /// Such as `6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP …`.
    pub(super) version: Option<String>,
    /// File range of the protected-mode code.
    pub(super) code: Range<usize>,
    /// File range of the compressed vmlinux, and its compression where it is known.
    pub(super) payload: Option<(Range<usize>, Option<Compression>)>,
}

/// Is this a bzImage (or zImage)?
pub(super) fn detect(bytes: &[u8]) -> bool {
    bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
        && bytes.get(0x202..0x206) == Some(&HEADER_MAGIC.to_le_bytes())
}

impl BzImage {
    /// Reads the header of a file for which [`detect`] holds.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BzImageError> {
        // The jump instruction at 0x200 goes over the header: its displacement says how long that is.
        let end = 0x202 + usize::from(bytes.get(0x201).copied().unwrap_or(0));
        let room = HEADER_START + size_of::<setup_header>();
        let given = bytes
            .get(HEADER_START..end.min(room))
            .ok_or(BzImageError::Truncated {
                part: "the setup header",
                needed: end as u64,
            })?;
        let mut params = boot_params::default();
        params.as_mut_slice()[HEADER_START..HEADER_START + given.len()].copy_from_slice(given);
        let header = params.hdr;

        let version = header.version;
        if version < OLDEST {
            return Err(BzImageError::TooOld(version));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BzImageError::Malformed(
                "it is a zImage, made for 16-bit loaders".to_owned(),
            ));
        }
        let sectors = if header.setup_sects == 0 {
            4
        } else {
            usize::from(header.setup_sects)
        };
        let start = (sectors + 1) * 512;
        let code_len = (header.syssize as usize).saturating_mul(16);
        let code_end = start.saturating_add(code_len);
        // `syssize` is rounded up to 16 bytes; the file need not be.
        if code_end > bytes.len().saturating_add(15) {
            return Err(BzImageError::Truncated {
                part: "the protected-mode code",
                needed: code_end as u64,
            });
        }
        let code = start..code_end.min(bytes.len());
        let mut payload = None;
        if version >= PAYLOAD && header.payload_length != 0 {
            let from = start.saturating_add(header.payload_offset as usize);
            let to = from.saturating_add(header.payload_length as usize);
            let packed = bytes.get(from..to).ok_or(BzImageError::Truncated {
                part: "the compressed kernel in it",
                needed: to as u64,
            })?;
            payload = Some((from..to, Compression::detect(packed)));
        }
        Ok(Self {
            header,
            version: version_string(bytes, &header, start),
            code,
            payload,
        })
    }

    /// It can be entered in 64-bit mode at [`ENTRY_64`].
    pub(super) fn has_entry_64(&self) -> bool {
        let (version, flags) = (self.header.version, self.header.xloadflags);
        version >= XLOADFLAGS && flags & XLF_KERNEL_64 != 0
    }

    /// Where its protected-mode code goes, and how much memory from there it needs before it reads the memory map.
    pub(super) fn place(&self) -> (u64, u64) {
        let (version, preferred, init_size) = (
            self.header.version,
            self.header.pref_address,
            self.header.init_size,
        );
        let code = self.code.len() as u64;
        if version >= PREFERRED && preferred >= crate::layout::HIGH_MEMORY {
            (preferred, u64::from(init_size).max(code))
        } else {
            // Before 2.10 the header does not say: three times the file is what loaders allow for.
            (crate::layout::HIGH_MEMORY, code.saturating_mul(3))
        }
    }
}

fn version_string(bytes: &[u8], header: &setup_header, setup_end: usize) -> Option<String> {
    let at = usize::from(header.kernel_version);
    if at == 0 {
        return None;
    }
    let text = bytes.get(at + 0x200..setup_end)?;
    let text = &text[..text.iter().take(512).position(|&byte| byte == 0)?];
    std::str::from_utf8(text)
        .ok()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
