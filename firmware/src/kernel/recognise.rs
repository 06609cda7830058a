//! What kind of kernel some bytes are, or what else.

use super::bzimage::{self, BzImage, BzImageError};
use super::elf::{self, Elf, ElfError};
use super::{Compression, Form, KernelError, decompress, load, sniff};
use std::path::Path;

/// Bytes decoded to look at the headers of a compressed ELF: more than any kernel's program headers end at.
const HEAD: usize = 8 << 10;

/// Recognises a kernel, or says what it is instead.
pub(super) fn recognise(path: &Path, bytes: &[u8]) -> Result<Form, KernelError> {
    if bytes.is_empty() {
        return Err(KernelError::Empty {
            path: path.to_owned(),
        });
    }
    if bytes.starts_with(&elf::MAGIC) {
        let size = bytes.len() as u64;
        let elf = Elf::parse(bytes, Some(size)).map_err(|error| elf_error(path, error, size))?;
        let notes = elf.notes(|range| bytes.get(range.start as usize..range.end as usize));
        if notes.pvh.is_none() && elf.entry64().is_none() {
            let detail = "no PVH note, and its entry address lies outside of its segments";
            return Err(KernelError::NoEntry {
                path: path.to_owned(),
                detail,
            });
        }
        return Ok(Form::Elf(elf, notes));
    }
    if bzimage::detect(bytes) {
        return recognise_bzimage(path, bytes);
    }
    if let Some(compression) = Compression::detect(bytes) {
        let head = decode_head(path, compression, bytes)?;
        if head.starts_with(&elf::MAGIC) {
            let elf = Elf::parse(&head, None)
                .map_err(|error| elf_error(path, error, bytes.len() as u64))?;
            return Ok(Form::Compressed(compression, elf));
        }
        let (what, advice) = if bzimage::detect(&head) {
            (
                "a bzImage".to_owned(),
                "unpack it; a bzImage is compressed already",
            )
        } else if let Some(inner) = Compression::detect(&head) {
            (
                format!("{}-compressed data again", inner.name()),
                "unpack it once",
            )
        } else {
            match sniff::name(&head) {
                sniff::Verdict::Architecture(what) => (
                    what,
                    "this program runs x86-64 guests; give an x86-64 kernel",
                ),
                sniff::Verdict::Efi { what, advice } | sniff::Verdict::Other { what, advice } => {
                    (what.to_owned(), advice)
                }
                sniff::Verdict::Unsupported { compression } => {
                    (format!("{compression}-compressed data"), "unpack it")
                }
                sniff::Verdict::Unknown => (
                    "no kernel in any known format".to_owned(),
                    "give a vmlinux or bzImage",
                ),
            }
        };
        return Err(KernelError::CompressedOther {
            path: path.to_owned(),
            compression: compression.name(),
            what,
            advice,
        });
    }
    Err(match sniff::name(bytes) {
        sniff::Verdict::Architecture(what) => KernelError::WrongArchitecture {
            path: path.to_owned(),
            what,
        },
        sniff::Verdict::Efi { what, advice } => KernelError::Efi {
            path: path.to_owned(),
            what,
            advice,
        },
        sniff::Verdict::Other { what, advice } => KernelError::NotAKernel {
            path: path.to_owned(),
            what,
            advice,
        },
        sniff::Verdict::Unsupported { compression } => KernelError::UnsupportedCompression {
            path: path.to_owned(),
            compression,
            advice: "unpack it first",
        },
        sniff::Verdict::Unknown => {
            let start = bytes
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ");
            KernelError::Unknown {
                path: path.to_owned(),
                start,
            }
        }
    })
}

fn recognise_bzimage(path: &Path, bytes: &[u8]) -> Result<Form, KernelError> {
    let size = bytes.len() as u64;
    let image = BzImage::parse(bytes).map_err(|error| match error {
        BzImageError::Truncated { part, needed } => KernelError::Truncated {
            path: path.to_owned(),
            part: part.to_owned(),
            needed,
            size,
        },
        BzImageError::TooOld(version) => KernelError::ProtocolTooOld {
            path: path.to_owned(),
            version,
        },
        BzImageError::Malformed(detail) => KernelError::Malformed {
            path: path.to_owned(),
            detail,
        },
    })?;
    let mut elf = None;
    if let Some((range, Some(compression))) = &image.payload
        && *compression != Compression::Bzip2
    {
        let head = decode_head(
            path,
            *compression,
            bytes.get(range.clone()).unwrap_or_default(),
        )?;
        if head.starts_with(&elf::MAGIC) {
            elf = Some(Elf::parse(&head, None).map_err(|error| match error {
                ElfError::Not64Bit(_) => KernelError::Not64Bit {
                    path: path.to_owned(),
                    what: "a 32-bit bzImage",
                },
                error => elf_error(path, error, size),
            })?);
        }
    }
    if elf.is_none() && !image.has_entry_64() {
        return Err(KernelError::Not64Bit {
            path: path.to_owned(),
            what: "a bzImage without 64-bit entry (32-bit, or before Linux 3.8 with an unknown compression)",
        });
    }
    Ok(Form::BzImage(Box::new(image), elf))
}

/// The first few KiB of what compressed data decodes to.
fn decode_head(path: &Path, compression: Compression, data: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut head = vec![0; HEAD + decompress::DEFLATE_SLACK];
    let out = match compression {
        Compression::Gzip => &mut head[..],
        _ => &mut head[..HEAD],
    };
    let progress = decompress::decode(compression, data, out, None)
        .map_err(|error| load::decode_error(path, compression, error))?;
    head.truncate(progress.len);
    Ok(head)
}

fn elf_error(path: &Path, error: ElfError, size: u64) -> KernelError {
    let path = path.to_owned();
    match error {
        ElfError::Truncated { part, needed } => KernelError::Truncated {
            path,
            part,
            needed,
            size,
        },
        ElfError::WrongArchitecture(what) => KernelError::WrongArchitecture { path, what },
        ElfError::Not64Bit(what) => KernelError::Not64Bit { path, what },
        ElfError::NotAKernel(what) => KernelError::NotAKernelElf { path, what },
        ElfError::Malformed(detail) => KernelError::Malformed { path, detail },
    }
}
