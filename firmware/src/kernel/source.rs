//! The bytes of a kernel file: mapped, or part of this program.

use super::KernelError;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a kernel file.
#[derive(Debug)]
pub(super) enum Source {
    Mapped(Mapping),
    Static(&'static [u8]),
}

impl Source {
    /// Opens and maps a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        // Non-blocking: a pipe without a writer is told of, not waited for. Regular files do not look at it.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| KernelError::Open {
                path: path.to_owned(),
                source,
            })?;
        let read = |source| KernelError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = file.metadata().map_err(read)?;
        let kind = metadata.file_type();
        let what = if kind.is_file() {
            None
        } else if kind.is_dir() {
            Some("a directory")
        } else if kind.is_block_device() {
            Some("a block device")
        } else if kind.is_char_device() {
            Some("a character device")
        } else if kind.is_fifo() {
            Some("a pipe")
        } else {
            Some("a socket or another special file")
        };
        if let Some(what) = what {
            return Err(KernelError::NotAFile {
                path: path.to_owned(),
                what,
            });
        }
        let Ok(len) = usize::try_from(metadata.len()) else {
            return Err(read(std::io::Error::from_raw_os_error(libc::EFBIG)));
        };
        if len == 0 {
            return Err(KernelError::Empty {
                path: path.to_owned(),
            });
        }
        Mapping::new(file, len).map(Source::Mapped).map_err(read)
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(mapping) => mapping.bytes(),
            Source::Static(bytes) => bytes,
        }
    }

    /// Tells the host that `range` is about to be read from front to back, so that it maps it at once.
    pub(super) fn will_read(&self, range: std::ops::Range<usize>) {
        if let Source::Mapped(mapping) = self {
            mapping.populate(range);
        }
    }
}

/// A private read-only mapping of a whole file.
///
/// A file that is cut short while it is mapped raises SIGBUS at the next touch, as with every program that maps its
/// input (loaders included); package managers replace kernels by renaming, which does not.
#[derive(Debug)]
pub(super) struct Mapping {
    file: File,
    address: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping is read-only, owned by this value, and not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared reads of read-only memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: File, len: usize) -> std::io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours; the descriptor is open.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Mapping { file, address, len })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long, readable, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.len) }
    }

    fn populate(&self, range: std::ops::Range<usize>) {
        let start = range.start & !0xfff;
        let end = range.end.min(self.len);
        if start >= end {
            return;
        }
        // SAFETY: the range lies in our own mapping; the call changes no contents. A refusal (before Linux 5.14) only
        // means that pages are mapped one fault at a time.
        unsafe {
            libc::madvise(
                self.address.add(start),
                end - start,
                libc::MADV_POPULATE_READ,
            )
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this; slices of it borrow `self`.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
