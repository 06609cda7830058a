//! The bytes of a kernel file: mapped, or part of this program.

use super::KernelError;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
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
        let file = File::open(path).map_err(|source| KernelError::Open {
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

    /// Asks for huge pages in the page cache behind the whole file; where the host has none for files, nothing changes.
    pub(super) fn prefer_huge(&self) {
        if let Source::Mapped(mapping) = self {
            mapping.prefer_huge();
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

    fn prefer_huge(&self) {
        const HUGE: usize = 2 << 20;
        /// include/uapi/asm-generic/mman-common.h; Linux 6.1.
        const MADV_COLLAPSE: i32 = 25;
        let room = self.len.next_multiple_of(HUGE) + HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a reservation at an address of the kernel's choice, part of which is then replaced by the file at a
        // multiple of 2 MiB, and all of which is removed again. The kernel collapses file pages only in executable
        // mappings (CONFIG_READ_ONLY_THP_FOR_FS); nothing is ever executed there.
        unsafe {
            let reserved = libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0);
            if reserved == libc::MAP_FAILED {
                return;
            }
            let aligned = (reserved as usize).next_multiple_of(HUGE) as *mut libc::c_void;
            let mapped = libc::mmap(
                aligned,
                self.len,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                self.file.as_raw_fd(),
                0,
            );
            if mapped != libc::MAP_FAILED {
                libc::madvise(mapped, self.len / HUGE * HUGE, libc::MADV_POPULATE_READ);
                libc::madvise(mapped, self.len / HUGE * HUGE, MADV_COLLAPSE);
            }
            libc::munmap(reserved, room);
        }
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
