//! Kernels: recognised by content, loaded straight into guest memory.
//!
//! A kernel is an ELF (with the PVH note or a 64-bit entry), a bzImage, or a compressed ELF. Compressed kernels, and the
//! payload of a bzImage, are decompressed on the host directly to where their largest segment belongs, so that the
//! bulk is written once and never copied, and the guest starts in the kernel proper instead of in its decompressor.
//! A bzImage whose payload cannot be decoded here is entered at its own 64-bit entry, and decompresses itself.
//!
//! Which hosts a kernel can run on ([`Flavour`]) is told by the build salt in its notes (`CONFIG_BUILD_SALT` with
//! "cpl3" in it), or else, for a kernel with no salt and no per-CPU segment (the CPL 3 patch needs `!SMP`), by the
//! message that the patch prints.

mod bzimage;
pub mod cache;
mod decompress;
mod elf;
mod error;
mod load;
mod lz4;
mod ranges;
mod recognise;
mod sniff;
mod source;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use error::KernelError;

use crate::Memory;
use bzimage::BzImage;
use elf::{Elf, Notes};
use linux_loader::bootparam::setup_header;
use load::Packed;
use source::Source;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What kind of file a kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An uncompressed ELF.
    Elf,
    /// A Linux bzImage; the compression of its payload, if it is one that is decoded on the host.
    BzImage(Option<Compression>),
    /// A compressed ELF.
    Compressed(Compression),
}

/// Compression of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz container.
    Xz,
    /// The older .lzma container.
    Lzma,
    /// RFC 8878.
    Zstd,
    /// LZ4 legacy frames, which Linux uses.
    Lz4,
    /// bzip2: recognised, not decoded.
    Bzip2,
}

/// Which hosts a kernel can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Linux as everyone builds it: needs hardware virtualization.
    Stock,
    /// Linux with this project's CPL 3 patch: only on software-paging KVM.
    Cpl3,
    /// Not Linux (a test payload, the built-in guest): nothing is known about what it needs.
    NotLinux,
}

/// Which entry of a kernel to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryChoice {
    /// PVH when the kernel has it, else 64-bit.
    #[default]
    Auto,
    /// The 32-bit PVH entry, or an error.
    Pvh,
    /// The 64-bit entry of the Linux boot protocol, or an error.
    Linux64,
}

/// Where a guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, paging off, EBX = `hvm_start_info`.
    Pvh(u64),
    /// Long mode, identity-mapped, RSI = `boot_params`.
    Linux64(u64),
}

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// End of RAM below the 32-bit hole, in bytes. All of it from 1 MiB on must be one memory region.
    pub ram_low_end: u64,
    /// Guest memory from 1 MiB on has never been written to: what is zero need not be written.
    pub fresh: bool,
    /// The [`Kernel::pieces`] are in guest memory already, by mapping them there.
    pub mapped: bool,
    /// Which entry to use.
    pub entry: EntryChoice,
}

/// Whole pages of a kernel file and where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the file, bytes; a multiple of 4 KiB.
    pub offset: u64,
    /// Length, bytes; a multiple of 4 KiB.
    pub len: u64,
    /// Guest-physical address.
    pub phys: u64,
}

/// A kernel in guest memory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where to start.
    pub entry: Entry,
    /// Lowest guest-physical byte used.
    pub start: u64,
    /// Highest guest-physical byte used plus one, bss and the kernel's early working space included.
    pub end: u64,
    /// Setup header of a bzImage, for the zero page.
    pub header: Option<setup_header>,
    /// Which hosts it can run on.
    pub flavour: Flavour,
}

impl Loaded {
    /// It is known to be Linux.
    pub fn is_linux(&self) -> bool {
        self.flavour != Flavour::NotLinux
    }
}

/// What a file turned out to be.
#[derive(Debug)]
enum Form {
    Elf(Elf, Notes),
    /// The ELF: of the payload, when that can be decoded.
    BzImage(Box<BzImage>, Option<Elf>),
    Compressed(Compression, Elf),
}

/// An opened, recognised kernel.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    source: Source,
    form: Form,
    version: OnceLock<Option<String>>,
    flavour: OnceLock<Flavour>,
    cached: bool,
}

/// Most bytes decoded to look into a compressed kernel without loading it.
const LOOK_MAX: u64 = 512 << 20;
/// What the CPL 3 patch prints (`arch/x86/kernel/cpl3.c`).
const CPL3_MESSAGE: &[u8] = b"cpl3: running deprivileged";

impl Kernel {
    /// Opens and recognises a kernel by content. Reads a few pages, decodes a few KiB.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        let path = path.as_ref();
        Self::from_source(path.to_owned(), Source::open(path)?)
    }

    /// A kernel that is part of this program; `name` stands for the path in messages.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, KernelError> {
        Self::from_source(name.into(), Source::Static(bytes))
    }

    fn from_source(path: PathBuf, source: Source) -> Result<Self, KernelError> {
        let form = recognise::recognise(&path, source.bytes())?;
        Ok(Self {
            path,
            source,
            form,
            version: OnceLock::new(),
            flavour: OnceLock::new(),
            cached: false,
        })
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        match &self.form {
            Form::Elf(..) => Kind::Elf,
            Form::BzImage(image, elf) => {
                let compression = image
                    .payload
                    .as_ref()
                    .and_then(|(_, compression)| *compression);
                Kind::BzImage(compression.filter(|_| elf.is_some()))
            }
            Form::Compressed(compression, _) => Kind::Compressed(*compression),
        }
    }

    /// The kernel's version, such as `6.1.0-56-cloud-amd64`, when it can be found. A bzImage names it in its header; in
    /// an ELF the text "Linux version " is searched for, and a compressed ELF is decoded for it: ask only when needed.
    pub fn version(&self) -> Option<&str> {
        self.version.get_or_init(|| self.find_version()).as_deref()
    }

    fn find_version(&self) -> Option<String> {
        if let Form::BzImage(image, _) = &self.form
            && let Some(text) = &image.version
        {
            return text.split_whitespace().next().map(str::to_owned);
        }
        self.with_elf(|elf, _, bytes| {
            let segments = elf
                .segments
                .iter()
                .filter_map(|segment| file_range(bytes, segment));
            segments.into_iter().find_map(version_in)
        })?
    }

    /// Which hosts it can run on. Free for SMP kernels before Linux 6.15 in any form, and for kernels with a build
    /// salt as ELF; others are decoded and searched once, at about the cost of loading them ([`Loaded`] has it too).
    pub fn flavour(&self) -> Result<Flavour, KernelError> {
        if let Some(flavour) = self.flavour.get() {
            return Ok(*flavour);
        }
        let flavour = match &self.form {
            Form::BzImage(_, None) => Flavour::Stock,
            Form::BzImage(_, Some(elf)) | Form::Compressed(_, elf)
                if elf.linked_like_linux() && elf.has_percpu() =>
            {
                Flavour::Stock
            }
            _ => match self.with_elf(|elf, notes, bytes| {
                let parts = elf
                    .segments
                    .iter()
                    .filter_map(|segment| file_range(bytes, segment));
                flavour_of(elf, notes, parts)
            }) {
                Some(flavour) => flavour,
                None => return Err(self.undecodable()),
            },
        };
        Ok(*self.flavour.get_or_init(|| flavour))
    }

    /// The error of decoding it, when [`Self::with_elf`] could not.
    fn undecodable(&self) -> KernelError {
        KernelError::Malformed {
            path: self.path.clone(),
            detail: "the kernel inside cannot be decoded".to_owned(),
        }
    }

    /// Calls `look` with the headers, notes and bytes of the ELF, decoded if need be.
    fn with_elf<T>(&self, look: impl FnOnce(&Elf, &Notes, &[u8]) -> T) -> Option<T> {
        let (compression, range, elf) = match &self.form {
            Form::Elf(elf, notes) => return Some(look(elf, notes, self.source.bytes())),
            Form::Compressed(compression, elf) => (*compression, 0..self.source.bytes().len(), elf),
            Form::BzImage(image, Some(elf)) => {
                let (range, compression) = image.payload.clone()?;
                (compression?, range, elf)
            }
            Form::BzImage(_, None) => return None,
        };
        let needed = usize::try_from(elf.file_end().min(LOOK_MAX)).ok()?;
        let mut bytes = vec![0; needed + decompress::DEFLATE_SLACK];
        let data = self.source.bytes().get(range)?;
        let progress = decompress::decode(compression, data, &mut bytes, None).ok()?;
        bytes.truncate(progress.len);
        let notes = elf.notes(|range| bytes.get(range.start as usize..range.end as usize));
        Some(look(elf, &notes, &bytes))
    }

    /// Bytes of the file that [`Kernel::load`] will put into memory, where the file tells it: what a kernel is large by,
    /// unlike its [`Kernel::extent`], which may be mostly empty.
    pub fn loaded_len(&self) -> u64 {
        match &self.form {
            Form::Elf(elf, _) | Form::Compressed(_, elf) | Form::BzImage(_, Some(elf)) => {
                elf.segments.iter().map(|segment| segment.file_len).sum()
            }
            Form::BzImage(_, None) => 0,
        }
    }

    /// The guest-physical range that [`Kernel::load`] will fill, where the file tells it: `start..end`.
    pub fn extent(&self) -> Option<Range<u64>> {
        match &self.form {
            Form::Elf(elf, _) | Form::Compressed(_, elf) | Form::BzImage(_, Some(elf)) => {
                Some(elf.start()..elf.end())
            }
            Form::BzImage(_, None) => None,
        }
    }

    /// The same kernel under the name that the user knows, with what is known of it.
    fn known_as(mut self, path: &Path, flavour: Flavour, version: Option<String>) -> Self {
        self.path = path.to_owned();
        self.flavour = OnceLock::from(flavour);
        self.version = OnceLock::from(version);
        self.cached = true;
        self
    }

    /// It is a file of the [`cache`], which nobody changes: it may be mapped.
    pub fn is_cached(&self) -> bool {
        self.cached
    }

    /// The file, and its whole pages that lie in guest memory as they lie in the file; none for a compressed kernel.
    pub fn pieces(&self) -> Option<(&File, Vec<Piece>)> {
        let (Form::Elf(elf, _), Source::Mapped(mapping)) = (&self.form, &self.source) else {
            return None;
        };
        let pieces = elf.segments.iter().filter_map(|segment| {
            let whole = load::whole_pages(segment)?;
            Some(Piece {
                offset: segment.offset + (whole.start - segment.phys),
                len: whole.end - whole.start,
                phys: whole.start,
            })
        });
        Some((mapping.file(), pieces.collect()))
    }

    /// Loads it into guest memory. No vCPU or device of the guest may run yet. After an error the memory from 1 MiB on is in
    /// disorder, and no longer fresh.
    pub fn load(&self, memory: &Memory, options: &LoadOptions) -> Result<Loaded, KernelError> {
        let bytes = self.source.bytes();
        let read = |range: Range<u64>| bytes.get(range.start as usize..range.end as usize);
        let (elf, unpacked, header) = match &self.form {
            Form::Elf(elf, notes) => {
                load::check_bounds(&self.path, elf.start(), elf.end(), options.ram_low_end)?;
                self.choose(elf, notes, options.entry)?;
                for segment in elf.segments.iter().filter(|_| !options.mapped) {
                    let start = segment.offset as usize;
                    self.source
                        .will_read(start..start + segment.file_len as usize);
                }
                load::elf(elf, bytes, memory, options.fresh, options.mapped)?;
                (elf, None, None)
            }
            Form::Compressed(compression, elf) => {
                let notes = self.unpack(*compression, 0..bytes.len(), elf, memory, options)?;
                (elf, Some(notes), None)
            }
            Form::BzImage(image, Some(elf)) => {
                let Some((range, Some(compression))) = &image.payload else {
                    return Err(self.undecodable());
                };
                let notes = self.unpack(*compression, range.clone(), elf, memory, options)?;
                (elf, Some(notes), Some(image.header))
            }
            Form::BzImage(image, None) => return self.load_classic(image, memory, options),
        };
        let notes = match (&unpacked, &self.form) {
            (Some(notes), _) | (None, Form::Elf(_, notes)) => notes,
            (None, _) => return Err(self.undecodable()),
        };
        let entry = self.choose(elf, notes, options.entry)?;
        let flavour = match self.flavour.get() {
            Some(flavour) => *flavour,
            None if unpacked.is_some() => {
                let parts = elf
                    .segments
                    .iter()
                    .filter_map(|segment| load::view(memory, segment.phys, segment.file_len).ok());
                flavour_of(elf, notes, parts)
            }
            None => flavour_of(
                elf,
                notes,
                elf.segments
                    .iter()
                    .filter_map(|s| read(s.offset..s.offset + s.file_len)),
            ),
        };
        let flavour = *self.flavour.get_or_init(|| flavour);
        Ok(Loaded {
            entry,
            start: elf.start(),
            end: elf.end(),
            header,
            flavour,
        })
    }

    fn unpack(
        &self,
        compression: Compression,
        range: Range<usize>,
        elf: &Elf,
        memory: &Memory,
        options: &LoadOptions,
    ) -> Result<Notes, KernelError> {
        load::check_bounds(&self.path, elf.start(), elf.end(), options.ram_low_end)?;
        self.source.will_read(range.clone());
        let data = self.source.bytes().get(range).unwrap_or_default();
        let packed = Packed {
            path: &self.path,
            compression,
            data,
            declared: declared_size(compression, data, matches!(self.form, Form::BzImage(..))),
            elf,
        };
        packed.load(memory, options.ram_low_end, options.fresh)
    }

    /// A bzImage as it is: it decompresses itself.
    fn load_classic(
        &self,
        image: &BzImage,
        memory: &Memory,
        options: &LoadOptions,
    ) -> Result<Loaded, KernelError> {
        if options.entry == EntryChoice::Pvh {
            return Err(KernelError::EntryNotThere {
                path: self.path.clone(),
                wanted: "PVH",
            });
        }
        let (start, len) = image.place();
        let end = start.checked_add(len).ok_or_else(|| self.undecodable())?;
        load::check_bounds(&self.path, start, end, options.ram_low_end)?;
        let code = self
            .source
            .bytes()
            .get(image.code.clone())
            .unwrap_or_default();
        load::put(memory, start, code, options.fresh)?;
        Ok(Loaded {
            entry: Entry::Linux64(start + bzimage::ENTRY_64),
            start,
            end,
            header: Some(image.header),
            flavour: Flavour::Stock,
        })
    }

    fn choose(&self, elf: &Elf, notes: &Notes, choice: EntryChoice) -> Result<Entry, KernelError> {
        let pvh = notes
            .pvh
            .filter(|&entry| elf.contains(entry) && entry <= u64::from(u32::MAX))
            .map(Entry::Pvh);
        let linux = elf.entry64().map(Entry::Linux64);
        let (entry, wanted) = match choice {
            EntryChoice::Auto => {
                return pvh.or(linux).ok_or_else(|| KernelError::NoEntry {
                    path: self.path.clone(),
                    detail: "no PVH note, and its entry address lies outside of its segments",
                });
            }
            EntryChoice::Pvh => (pvh, "PVH"),
            EntryChoice::Linux64 => (linux, "64-bit"),
        };
        entry.ok_or_else(|| KernelError::EntryNotThere {
            path: self.path.clone(),
            wanted,
        })
    }
}

fn file_range<'a>(bytes: &'a [u8], segment: &elf::Segment) -> Option<&'a [u8]> {
    let start = usize::try_from(segment.offset).ok()?.min(bytes.len());
    let end = usize::try_from(segment.offset + segment.file_len)
        .ok()?
        .min(bytes.len());
    bytes.get(start..end)
}

/// See the module's head.
fn flavour_of<'a>(
    elf: &Elf,
    notes: &Notes,
    mut segments: impl Iterator<Item = &'a [u8]>,
) -> Flavour {
    if !notes.linux && (notes.other_system || !elf.linked_like_linux()) {
        return Flavour::NotLinux;
    }
    match &notes.salt {
        Some(salt) if salt.contains("cpl3") => Flavour::Cpl3,
        Some(_) => Flavour::Stock,
        None if elf.has_percpu() => Flavour::Stock,
        None if segments.any(|bytes| find(bytes, CPL3_MESSAGE).is_some()) => Flavour::Cpl3,
        None => Flavour::Stock,
    }
}

/// First occurrence of `needle` (of at most 255 bytes), by the last byte of each candidate (Horspool 1980).
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let last = needle.len().checked_sub(1)?;
    let len = u8::try_from(needle.len()).ok()?;
    let mut skip = [len; 256];
    for (left, &byte) in (1..len).rev().zip(needle) {
        skip[usize::from(byte)] = left;
    }
    let mut end = last;
    while let Some(&byte) = haystack.get(end) {
        if byte == needle[last] && haystack[..end].ends_with(&needle[..last]) {
            return Some(end - last);
        }
        end += usize::from(skip[usize::from(byte)]);
    }
    None
}

fn version_in(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = bytes;
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        let end = rest
            .iter()
            .take(128)
            .position(|byte| !byte.is_ascii_graphic())
            .unwrap_or(0);
        if let Ok(version) = std::str::from_utf8(&rest[..end])
            && version.starts_with(|c: char| c.is_ascii_digit())
        {
            return Some(version.to_owned());
        }
    }
    None
}

/// What compressed data says it decodes to. In a bzImage the Linux build appends the size to everything but gzip, which
/// has it at its end anyway (`scripts/Makefile.lib`, `size_append`).
fn declared_size(compression: Compression, data: &[u8], in_bzimage: bool) -> Option<u64> {
    match compression {
        Compression::Zstd if !in_bzimage => {
            zstd::zstd_safe::get_frame_content_size(data).ok().flatten()
        }
        Compression::Gzip => data
            .last_chunk()
            .map(|size| u64::from(u32::from_le_bytes(*size))),
        _ if in_bzimage => data
            .last_chunk()
            .map(|size| u64::from(u32::from_le_bytes(*size))),
        _ => None,
    }
}
