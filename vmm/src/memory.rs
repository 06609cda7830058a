//! Guest RAM: one memfd, mapped once below the 32-bit hole and once above; or anonymous memory in the same two places.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap};
use vsc_devices::Memory;
use vsc_firmware::kernel::Piece;

use crate::layout::{HIGH_RAM, LOW_RAM_END};
use crate::resources::{Backing, MemorySource, Pages};

mod backing;

pub(crate) use backing::lock;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A size that is zero, not a multiple of 4 KiB, or does not fit the address space.
    #[error(
        "Guest memory of {0} bytes is not a multiple of its pages, or not between one of them and 64 TiB"
    )]
    Size(u64),
    /// memfd_create or ftruncate failed.
    #[error("Create the memfd for {size} bytes of guest memory")]
    Memfd {
        /// Bytes asked for.
        size: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// mmap failed.
    #[error("Map {size} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// vm-memory's reason.
        #[source]
        source: MmapRegionError,
    },
    /// Not enough pages of hugetlbfs, with the numbers and what to do.
    #[error("{0}")]
    HugePages(String),
    /// mbind failed.
    #[error("Bind guest memory to the NUMA nodes {nodes:?} (this host has memory on {there})")]
    Nodes {
        /// Nodes asked for.
        nodes: Vec<u32>,
        /// What /sys says.
        there: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The pages could not be had before the start.
    #[error("Get all {size} bytes of guest memory before the start (memory.allocation: immediate)")]
    Populate {
        /// Bytes asked for.
        size: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// MADV_POPULATE_WRITE is Linux 5.14's.
    #[error(
        "This kernel cannot give memory before its first use (MADV_POPULATE_WRITE, Linux 5.14)"
    )]
    NoPopulate,
    /// mlock2 failed.
    #[error(
        "Lock {size} bytes of guest memory, where this process may lock {allowed} (RLIMIT_MEMLOCK); raise the limit \
         (ulimit -l, LimitMEMLOCK=), or say memory.locked: false"
    )]
    Lock {
        /// Bytes asked for.
        size: u64,
        /// The limit.
        allowed: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The regions do not form a memory.
    #[error("Assemble the guest memory")]
    Assemble(#[source] vm_memory::GuestRegionCollectionError),
}

/// The usable ranges of `size` bytes of RAM: (start, length).
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HIGH_RAM, size - low));
    }
    ranges
}

/// Guest RAM that has just been made.
pub struct Ram {
    /// The RAM itself.
    pub memory: Memory,
    /// What it stands on, in the end.
    pub backing: Backing,
    /// The memfd that names the machine, where its RAM is none (`vsc-run ps` looks for it).
    pub mark: Option<OwnedFd>,
    /// What was recommended and could not be had.
    pub notes: Vec<String>,
}

/// Creates `size` bytes of RAM, all zero. Without a word in `backing` none of it is allocated yet. The memfd is named
/// `vsc:NAME`.
///
/// # Errors
/// [`MemoryError`] naming the step.
pub fn create(name: &str, size: u64, backing: &Backing) -> Result<Ram, MemoryError> {
    let page = backing.pages.bytes();
    if size == 0 || !size.is_multiple_of(page) || size > 1 << 46 {
        return Err(MemoryError::Size(size));
    }
    match whole(name, size, backing) {
        Err(MemoryError::HugePages(why)) if backing.or_small_pages => {
            let small = Backing {
                pages: Pages::Normal,
                ..backing.clone()
            };
            let mut ram = whole(name, size, &small)?;
            ram.notes.push(format!("ordinary pages instead of {why}"));
            Ok(ram)
        }
        made => made,
    }
}

fn whole(name: &str, size: u64, backing: &Backing) -> Result<Ram, MemoryError> {
    let huge = backing.pages != Pages::Normal;
    let file = memfd(name, size, backing.pages).map_err(|source| match huge {
        true => MemoryError::HugePages(backing::shortage(size, backing)),
        false => MemoryError::Memfd { size, source },
    })?;
    let anonymous = backing.source == MemorySource::Anonymous;
    let behind = (!anonymous).then_some(&file);
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    for (start, len) in ranges(size) {
        let region = map(behind, offset, len, backing.pages).map_err(|source| match source {
            MmapRegionError::Mmap(e) if huge && e.raw_os_error() == Some(libc::ENOMEM) => {
                MemoryError::HugePages(backing::shortage(size, backing))
            }
            source => MemoryError::Map { size: len, source },
        })?;
        let region =
            GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Size(size))?;
        regions.push(region);
        offset += len;
    }
    let memory = Memory::from_regions(regions).map_err(MemoryError::Assemble)?;
    backing::bind(&memory, backing)?;
    if anonymous {
        backing::advise_merging(&memory, backing);
    }
    // Pages of hugetlbfs are promised by number, not by node or cgroup: only a page that is there cannot be missing.
    if backing.immediate || huge {
        backing::populate(&memory, backing)?;
    }
    Ok(Ram {
        memory,
        backing: backing.clone(),
        mark: anonymous.then_some(file),
        notes: Vec::new(),
    })
}

/// Lets guest memory at `piece.phys` be the pages of `file` until the guest writes to them. Whoever maps the memfd
/// elsewhere does not see these pages. Nobody may change the file meanwhile (`vsc_firmware::kernel::cache`).
///
/// # Errors
/// The system's reason; guest memory is as it was.
pub(crate) fn overlay(memory: &Memory, file: &File, piece: &Piece) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let len = usize::try_from(piece.len).map_err(|_| invalid())?;
    let offset = libc::off_t::try_from(piece.offset).map_err(|_| invalid())?;
    if !piece.phys.is_multiple_of(0x1000) || !piece.len.is_multiple_of(0x1000) {
        return Err(invalid());
    }
    let slice = memory
        .get_slice(GuestAddress(piece.phys), len)
        .map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut().as_ptr();
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is whole pages inside a mapping of guest memory, which stays as long and as large as it was
    // and goes with the region; no vCPU or device uses it yet.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks for huge pages behind `start..start + len`, as far as whole ones lie in it: a guest that runs there then
/// faults once per 2 MiB instead of once per 4 KiB. Works whatever shmem_enabled says (MADV_COLLAPSE, Linux 6.1);
/// without it the memory is as it was.
pub(crate) fn prefer_huge(memory: &Memory, start: u64, len: u64) {
    let end = start.saturating_add(len);
    let mut at = start.next_multiple_of(HUGE);
    while at.saturating_add(HUGE) <= end {
        let Ok(slice) = memory.get_slice(GuestAddress(at), HUGE as usize) else {
            return;
        };
        let host = slice.ptr_guard_mut().as_ptr() as usize;
        if !host.is_multiple_of(HUGE as usize) || !collapse(host, HUGE as usize) {
            return;
        }
        at += HUGE;
    }
}

/// Puts huge pages behind the whole ones that lie in `len` bytes of guest memory at `address`, which no vCPU or device
/// uses yet. Returns whether there were some for all.
fn collapse(address: usize, len: usize) -> bool {
    let huge = HUGE as usize;
    let end = address.saturating_add(len);
    let mut at = address.next_multiple_of(huge);
    while at.saturating_add(huge) <= end {
        let host = at as *mut u8;
        // SAFETY: 2 MiB of guest memory that nobody else uses. Collapsing an extent needs one page in it, hence the
        // write (of what is there); the advice changes no content.
        let refused = unsafe {
            host.write_volatile(host.read_volatile());
            libc::madvise(host.cast(), huge, MADV_COLLAPSE) != 0
        };
        if refused {
            // No such advice, or no huge page to be had: the next one would fare no better.
            return false;
        }
        at += huge;
    }
    true
}

/// Size and alignment of a huge page.
pub(crate) const HUGE: u64 = 2 << 20;
/// include/uapi/asm-generic/mman-common.h; Linux 6.1.
const MADV_COLLAPSE: i32 = 25;

/// Keeps `len` bytes at `address` from being mapped by others as long as the value lives.
struct Filler(*mut libc::c_void, usize);

impl Filler {
    fn new(address: usize, len: usize) -> Option<Self> {
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: with NOREPLACE the call maps only what nothing else occupies.
        let filler = unsafe { libc::mmap(address as *mut _, len, libc::PROT_NONE, flags, -1, 0) };
        (filler != libc::MAP_FAILED).then_some(Self(filler, len))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody uses.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn map(
    file: Option<&OwnedFd>,
    offset: u64,
    len: u64,
    pages: Pages,
) -> Result<vm_memory::MmapRegion<()>, MmapRegionError> {
    let size = len as usize;
    let file = match file {
        Some(fd) => {
            let fd = fd.try_clone().map_err(MmapRegionError::Mmap)?;
            Some(FileOffset::new(File::from(fd), offset))
        }
        None => None,
    };
    let flags = match (&file, pages) {
        // Without MAP_NORESERVE the pages are promised to us.
        (Some(_), Pages::Huge2M | Pages::Huge1G) => libc::MAP_SHARED,
        (Some(_), Pages::Normal) => libc::MAP_SHARED | libc::MAP_NORESERVE,
        (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    };
    let build = || {
        let builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        match &file {
            Some(file) => builder.with_file_offset(file.clone()).build(),
            None => builder.build(),
        }
    };
    let mut region = build()?;
    let excess = region.as_ptr() as usize % HUGE as usize;
    if excess != 0 && len >= HUGE && pages == Pages::Normal {
        // The kernel places a mapping at the upper end of the lowest gap that has room: with that end taken, the
        // next one lies where huge pages can. Where the kernel does otherwise, the memory has small pages.
        let top = region.as_ptr() as usize + size;
        drop(region);
        let _filler = Filler::new(top - excess, excess);
        region = build()?;
    }
    // SAFETY: the range is the mapping made above; the advice changes no content. Failure only costs speed.
    unsafe {
        libc::madvise(region.as_ptr().cast(), len as usize, libc::MADV_HUGEPAGE);
        libc::madvise(region.as_ptr().cast(), len as usize, libc::MADV_DONTDUMP);
    }
    Ok(region)
}

fn memfd(name: &str, size: u64, pages: Pages) -> io::Result<OwnedFd> {
    // The kernel takes at most 249 bytes (man memfd_create) and no NUL.
    let clean: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    let name = CString::new(format!("vsc:{clean}")).unwrap_or_default();
    let flags = match pages {
        Pages::Normal => 0,
        Pages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        Pages::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just returned by the kernel, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain system call on a descriptor we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests;
