//! Bytes of an image, by their place in what a guest would see.

#![forbid(unsafe_code)]

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// Something that can be read at any place.
pub(super) trait Blocks {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// Fills `buffer` from `at` on; all of it is there.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A place that is not there.
pub(super) fn beyond() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it refers to bytes beyond the end of the image",
    )
}

/// Whether `length` bytes from `at` on lie within `size`.
pub(super) fn is_within(at: u64, length: usize, size: u64) -> bool {
    at.checked_add(length as u64).is_some_and(|end| end <= size)
}

/// A file as it is: the standard input, which stays open as long as the process is.
#[derive(Debug)]
pub(super) struct Raw {
    file: BorrowedFd<'static>,
    size: u64,
}

impl Raw {
    pub(super) fn new(file: BorrowedFd<'static>) -> io::Result<Self> {
        // Of a block device, metadata tells no length.
        let size = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
        Ok(Raw { file, size })
    }
}

impl Blocks for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !is_within(at, buffer.len(), self.size) {
            return Err(beyond());
        }
        let mut at = at;
        let mut rest = buffer;
        while !rest.is_empty() {
            match rustix::io::pread(self.file, &mut *rest, at) {
                // It was cut off since.
                Ok(0) => return Err(beyond()),
                Ok(n) => {
                    at += n as u64;
                    rest = rest.get_mut(n..).unwrap_or_default();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// A part of something.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) whole: Rc<dyn Blocks>,
    pub(super) start: u64,
    pub(super) length: u64,
    at: u64,
}

impl Part {
    /// Reading never goes beyond the part, and the part never beyond the whole.
    pub(super) fn new(whole: Rc<dyn Blocks>, start: u64, length: u64) -> io::Result<Self> {
        match start.checked_add(length) {
            Some(end) if end <= whole.size() => Ok(Part {
                whole,
                start,
                length,
                at: 0,
            }),
            _ => Err(beyond()),
        }
    }
}

impl Blocks for Part {
    fn size(&self) -> u64 {
        self.length
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !is_within(at, buffer.len(), self.length) {
            return Err(beyond());
        }
        let at = self.start.checked_add(at).ok_or_else(beyond)?;
        self.whole.read_at(at, buffer)
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..length) else {
            return Ok(0);
        };
        self.read_at(self.at, buffer)?;
        self.at = self.at.saturating_add(length as u64);
        Ok(length)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = to.ok_or_else(beyond)?;
        Ok(self.at)
    }
}

/// The FAT crate wants something to write to. Nothing is written.
impl Write for Part {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A number at a place of a piece of bytes; nothing beyond its end.
pub(super) fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_be_bytes)
}

/// A piece for tests.
#[cfg(test)]
impl Blocks for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let end = at.checked_add(buffer.len()).ok_or_else(beyond)?;
        buffer.copy_from_slice(self.get(at..end).ok_or_else(beyond)?);
        Ok(())
    }
}
