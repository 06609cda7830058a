//! The parts of an ELF file that say what it needs (System V gABI, chapters 4 and 5). Nothing in it is trusted.

use crate::bytes::{u16_at, u32_at, u64_at};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::initrd::ImageError;

/// The size of Elf64_Ehdr.
const HEADER: usize = 64;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What an ELF file says about itself.
#[derive(Debug, Default)]
pub(super) struct Elf {
    pub(super) interpreter: Option<String>,
    pub(super) soname: Option<String>,
    pub(super) needed: Vec<String>,
    pub(super) rpath: Vec<String>,
    pub(super) runpath: Option<Vec<String>>,
}

/// An open file, of which only the parts asked for are read: libraries are large.
pub(crate) struct Source {
    file: File,
    length: u64,
}

impl Source {
    /// Opens a file, but neither a directory nor a device.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Read {
            path: path.to_path_buf(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(ImageError::Special {
                path: path.to_path_buf(),
            });
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self {
            file,
            length: metadata.len(),
        })
    }

    /// A part of the file, if it is wholly in it.
    fn range(&self, start: usize, length: usize) -> Option<Vec<u8>> {
        let end = start.checked_add(length)?;
        if u64::try_from(end).ok()? > self.length {
            return None;
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start as u64).ok()?;
        Some(bytes)
    }

    /// The beginning, at most `length` bytes.
    pub(crate) fn start(&self, length: usize) -> Vec<u8> {
        let length = usize::try_from(self.length).unwrap_or(length).min(length);
        self.range(0, length).unwrap_or_default()
    }
}

pub(super) fn is_for_this_machine(source: &Source) -> bool {
    let bytes = source.start(HEADER);
    bytes.starts_with(b"\x7fELF")
        && bytes.get(4) == Some(&ELFCLASS64)
        && bytes.get(5) == Some(&ELFDATA2LSB)
        && u16_at(&bytes, 18) == Some(EM_X86_64)
}

/// A 64-bit number of the file as an offset into it.
pub(crate) fn offset_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64_at(bytes, at)?).ok()
}

pub(crate) fn range(bytes: &[u8], start: usize, length: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(length)?)
}

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    size: usize,
}

impl Elf {
    pub(super) fn parse(path: &Path, source: &Source) -> Result<Self, ImageError> {
        if !is_for_this_machine(source) {
            return Err(ImageError::OtherMachine {
                path: path.to_path_buf(),
            });
        }
        parse(source).map_err(|reason| ImageError::BrokenElf {
            path: path.to_path_buf(),
            reason,
        })
    }
}

fn parse(source: &Source) -> Result<Elf, &'static str> {
    let segments = segments(source).ok_or("its program headers are not in it")?;
    let content = |segment: &Segment| source.range(segment.offset, segment.size);
    let mut elf = Elf::default();
    if let Some(segment) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        let text = content(segment).ok_or("its interpreter's name is not in it")?;
        elf.interpreter = Some(string(&text, 0).ok_or("its interpreter's name is no text")?);
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Ok(elf);
    };
    let dynamic = content(dynamic).ok_or("its dynamic section is not in it")?;
    let entries: Vec<(u64, u64)> = dynamic
        .chunks_exact(16)
        .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
        .take_while(|&(tag, _)| tag != 0)
        .collect();
    let value = |tag| {
        entries
            .iter()
            .find(|entry| entry.0 == tag)
            .map(|entry| entry.1)
    };
    let Some(address) = value(DT_STRTAB) else {
        return Ok(elf);
    };
    let size = value(DT_STRSZ)
        .and_then(|size| usize::try_from(size).ok())
        .ok_or("its string table has no size")?;
    let strings = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .find_map(|segment| {
            let within = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            (within < segment.size)
                .then(|| source.range(segment.offset.checked_add(within)?, size))?
        })
        .ok_or("its string table is not in it")?;
    for &(tag, at) in &entries {
        if !matches!(tag, DT_NEEDED | DT_SONAME | DT_RPATH | DT_RUNPATH) {
            continue;
        }
        let text = usize::try_from(at)
            .ok()
            .and_then(|at| string(&strings, at))
            .ok_or("a name of its dynamic section is no text")?;
        let list = || {
            text.split(':')
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        match tag {
            DT_NEEDED => elf.needed.push(text),
            DT_SONAME => elf.soname = Some(text),
            DT_RPATH => elf.rpath = list(),
            _ => elf.runpath = Some(list()),
        }
    }
    Ok(elf)
}

fn segments(source: &Source) -> Option<Vec<Segment>> {
    let header = source.range(0, HEADER)?;
    let (start, size, count) = (
        offset_at(&header, 32)?,
        u16_at(&header, 54)?,
        u16_at(&header, 56)?,
    );
    let (size, count) = (usize::from(size), usize::from(count));
    let table = source.range(start, size.checked_mul(count)?)?;
    (0..count)
        .map(|index| {
            let header = range(&table, index * size, 56)?;
            Some(Segment {
                kind: u32_at(header, 0)?,
                offset: offset_at(header, 8)?,
                address: u64_at(header, 16)?,
                size: offset_at(header, 32)?,
            })
        })
        .collect()
}

fn string(table: &[u8], at: usize) -> Option<String> {
    let text = table.get(at..)?.split(|&byte| byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}
