//! Guest RAM: one memfd, mapped once below the 32-bit hole and once above.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap};
use vsc_devices::Memory;
use vsc_firmware::kernel::Piece;

use crate::layout::{HIGH_RAM, LOW_RAM_END};

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A size that is zero, not a multiple of 4 KiB, or does not fit the address space.
    #[error("Guest memory of {0} bytes is not a multiple of 4 KiB between 4 KiB and 64 TiB")]
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
        source: vm_memory::mmap::MmapRegionError,
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

/// Creates `size` bytes of RAM, all zero, none of it allocated yet. The memfd is named `vsc:NAME`.
///
/// # Errors
/// [`MemoryError`] naming the step.
pub fn create(name: &str, size: u64) -> Result<Memory, MemoryError> {
    if size == 0 || !size.is_multiple_of(0x1000) || size > 1 << 46 {
        return Err(MemoryError::Size(size));
    }
    let file = memfd(name, size).map_err(|source| MemoryError::Memfd { size, source })?;
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    for (start, len) in ranges(size) {
        let region =
            map(&file, offset, len).map_err(|source| MemoryError::Map { size: len, source })?;
        let region =
            GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Size(size))?;
        regions.push(region);
        offset += len;
    }
    Memory::from_regions(regions).map_err(MemoryError::Assemble)
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
        let host = slice.ptr_guard_mut().as_ptr();
        if !(host as u64).is_multiple_of(HUGE) {
            return;
        }
        // SAFETY: 2 MiB of guest memory that no vCPU uses yet. Collapsing an extent needs one page in it, hence the
        // write (of what is there); the advice changes no content.
        let refused = unsafe {
            host.write_volatile(host.read_volatile());
            libc::madvise(host.cast(), HUGE as usize, MADV_COLLAPSE) != 0
        };
        if refused {
            // No such advice, or no huge page to be had: the next one would fare no better.
            return;
        }
        at += HUGE;
    }
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
    file: &OwnedFd,
    offset: u64,
    len: u64,
) -> Result<vm_memory::MmapRegion<()>, vm_memory::mmap::MmapRegionError> {
    let fd = file
        .try_clone()
        .map_err(vm_memory::mmap::MmapRegionError::Mmap)?;
    let size = len as usize;
    let file = FileOffset::new(File::from(fd), offset);
    let build = || {
        MmapRegionBuilder::new(size)
            .with_file_offset(file.clone())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
    };
    let mut region = build()?;
    let excess = region.as_ptr() as usize % HUGE as usize;
    if excess != 0 && len >= HUGE {
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

fn memfd(name: &str, size: u64) -> io::Result<OwnedFd> {
    // The kernel takes at most 249 bytes (man memfd_create) and no NUL.
    let clean: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    let name = CString::new(format!("vsc:{clean}")).unwrap_or_default();
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
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
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn memory_below_the_hole_is_one_range_and_above_it_two() {
        assert_eq!(ranges(1 << 20), [(0, 1 << 20)]);
        assert_eq!(ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(
            ranges(LOW_RAM_END + 4096),
            [(0, LOW_RAM_END), (HIGH_RAM, 4096)]
        );
    }

    #[test]
    fn both_ranges_are_backed_by_different_bytes() {
        let memory = create("test", LOW_RAM_END + 8192).unwrap();
        memory.write_obj(0x11u8, GuestAddress(4095)).unwrap();
        memory
            .write_obj(0x22u8, GuestAddress(HIGH_RAM + 4095))
            .unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(4095)).unwrap(), 0x11);
        assert!(memory.write_obj(1u8, GuestAddress(LOW_RAM_END)).is_err());
        assert!(
            memory
                .write_obj(1u8, GuestAddress(HIGH_RAM + 8192))
                .is_err()
        );
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn regions_lie_where_huge_pages_can_and_keep_their_content() {
        for size in [8 << 20, 129 << 20, LOW_RAM_END + (64 << 20)] {
            let memory = create("test", size).unwrap();
            for (start, _) in ranges(size) {
                let host = memory.get_host_address(GuestAddress(start)).unwrap();
                assert_eq!(host as u64 % HUGE, 0, "{size:#x}: {host:p}");
            }
            memory.write_obj(0x33u8, GuestAddress(HUGE + 5)).unwrap();
            prefer_huge(&memory, 0, 6 << 20);
            prefer_huge(&memory, size - 1, u64::MAX);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(HUGE + 5)).unwrap(), 0x33);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(HUGE + 6)).unwrap(), 0);
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for size in [0, 1, 4095, 4097, 1 << 47] {
            assert!(matches!(create("test", size), Err(MemoryError::Size(s)) if s == size));
        }
    }
}
