//! Memory for what nobody else may see: keys and passphrases.
//!
//! [`Pages`] are of their own mapping: locked into RAM where the limit allows (RLIMIT_MEMLOCK), in no core dump
//! (MADV_DONTDUMP, man 2 madvise), empty in a child (MADV_WIPEONFORK), and zeroed before they go. [`apart`] computes
//! with such things on a stack of the same kind, which is wiped.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use zeroize::Zeroize;

/// Longest passphrase, bytes.
pub const PASSPHRASE_MAX: usize = 64 << 10;
/// Bytes of the stack that [`apart`] computes on, and how much of it is wiped: what cryptography needs is less.
const STACK: usize = 1 << 20;
const WIPED: usize = 512 << 10;
const PAGE: usize = 4096;

/// Zeroed memory that is in no core dump.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned, plain memory.
unsafe impl Send for Pages {}
// SAFETY: shared references only read.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `len` bytes, rounded up to whole pages; aligned to a page.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len
            .max(1)
            .checked_next_multiple_of(PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Self { start, len };
        // SAFETY: the whole of the mapping above. Only MADV_DONTDUMP is a promise, and kernels since 3.4 keep it; the
        // lock and the wipe (since 4.14) are what can be had.
        unsafe {
            let start = pages.start.as_ptr().cast();
            if libc::madvise(start, len, libc::MADV_DONTDUMP) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::madvise(start, len, libc::MADV_WIPEONFORK);
            libc::mlock(start, len);
        }
        Ok(pages)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, initialized, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and writable; borrowed through `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: our own mapping, to which nothing points any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A value in [`Pages`].
#[derive(Debug)]
pub struct Vault<T> {
    pages: Pages,
    value: NonNull<T>,
}

// SAFETY: it owns its value as a box does.
unsafe impl<T: Send> Send for Vault<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Vault<T> {}

impl<T> Vault<T> {
    /// Moves `value` in. Where it was before is the caller's to wipe ([`apart`]).
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(value: T) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= PAGE) };
        let pages = Pages::new(size_of::<T>())?;
        let place = pages.start.cast::<T>();
        // SAFETY: the pages have room for a T, are aligned for it, and are owned here.
        unsafe { place.write(value) };
        Ok(Self {
            pages,
            value: place,
        })
    }
}

impl<T> Deref for Vault<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a T was written there, and goes only with `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Vault<T> {
    fn drop(&mut self) {
        debug_assert!(self.pages.len >= size_of::<T>());
        // SAFETY: the value is dropped once; its memory goes after it.
        unsafe { self.value.drop_in_place() };
    }
}

/// What opens an encrypted disk: 1 to [`PASSPHRASE_MAX`] bytes.
#[derive(Debug)]
pub struct Passphrase {
    pages: Pages,
    len: usize,
}

impl Passphrase {
    /// Reads one to its end, without one newline there. `None`: it is empty.
    ///
    /// # Errors
    /// Reading fails, there is no memory, or it is longer than [`PASSPHRASE_MAX`].
    pub fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        // Of its final size from the start: growing would leave copies behind.
        let mut pages = Pages::new(PASSPHRASE_MAX + 2)?;
        let mut len = 0;
        loop {
            match from.read(pages.bytes_mut().get_mut(len..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if len > 0 && pages.bytes().get(len - 1) == Some(&b'\n') {
            len -= 1;
        }
        if len > PASSPHRASE_MAX {
            let why = "it is longer than 64 KiB, which no passphrase is";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok((len > 0).then_some(Self { pages, len }))
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// There is no memory, or they are no passphrase by their number.
    pub fn copy(bytes: &[u8]) -> io::Result<Self> {
        if !(1..=PASSPHRASE_MAX).contains(&bytes.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut pages = Pages::new(bytes.len())?;
        for (to, from) in pages.bytes_mut().iter_mut().zip(bytes) {
            *to = *from;
        }
        let len = bytes.len();
        Ok(Self { pages, len })
    }

    /// The passphrase in the file behind a descriptor, all of it, whatever was read of it before.
    ///
    /// # Errors
    /// As for [`Self::copy`], or the file cannot be read.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if !(1..=PASSPHRASE_MAX).contains(&len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut pages = Pages::new(len)?;
        file.read_exact_at(pages.bytes_mut().get_mut(..len).unwrap_or_default(), 0)?;
        Ok(Self { pages, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.pages.bytes().get(..self.len).unwrap_or_default()
    }
}

/// Fills `bytes` from the kernel's generator (man 2 getrandom), waiting until it is seeded.
///
/// # Errors
/// The system call is forbidden.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(room) = bytes.get_mut(done..).filter(|room| !room.is_empty()) {
        // SAFETY: the range is ours to write.
        let n = unsafe { libc::getrandom(room.as_mut_ptr().cast(), room.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => done += n,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

/// Keeps the calling thread's stack out of core dumps. What cannot be found out is left as it is.
pub fn hide_stack() {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::zeroed();
    let (mut start, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the calls fill what they are given, in this order, as man 3 pthread_getattr_np has it; the range is this
    // thread's stack, and the advice changes nothing but core dumps.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return;
        }
        if libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut size) == 0 {
            libc::madvise(start, size, libc::MADV_DONTDUMP);
        }
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
}

/// Zeroes the vector registers of this thread: round keys stay in them until something else needs them, and a core dump
/// has them.
pub fn clear_registers() {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::{asm, is_x86_feature_detected};
        // SAFETY: the instructions touch vector registers only, all of which are said to be clobbered, and are there
        // by what the processor says (SSE2 always is).
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                asm!(
                    "vpxord zmm16, zmm16, zmm16",
                    "vpxord zmm17, zmm17, zmm17",
                    "vpxord zmm18, zmm18, zmm18",
                    "vpxord zmm19, zmm19, zmm19",
                    "vpxord zmm20, zmm20, zmm20",
                    "vpxord zmm21, zmm21, zmm21",
                    "vpxord zmm22, zmm22, zmm22",
                    "vpxord zmm23, zmm23, zmm23",
                    "vpxord zmm24, zmm24, zmm24",
                    "vpxord zmm25, zmm25, zmm25",
                    "vpxord zmm26, zmm26, zmm26",
                    "vpxord zmm27, zmm27, zmm27",
                    "vpxord zmm28, zmm28, zmm28",
                    "vpxord zmm29, zmm29, zmm29",
                    "vpxord zmm30, zmm30, zmm30",
                    "vpxord zmm31, zmm31, zmm31",
                    clobber_abi("sysv64"),
                    options(nomem, nostack),
                );
            }
            if is_x86_feature_detected!("avx") {
                asm!("vzeroall", clobber_abi("sysv64"), options(nomem, nostack));
            } else {
                asm!(
                    "pxor xmm0, xmm0",
                    "pxor xmm1, xmm1",
                    "pxor xmm2, xmm2",
                    "pxor xmm3, xmm3",
                    "pxor xmm4, xmm4",
                    "pxor xmm5, xmm5",
                    "pxor xmm6, xmm6",
                    "pxor xmm7, xmm7",
                    "pxor xmm8, xmm8",
                    "pxor xmm9, xmm9",
                    "pxor xmm10, xmm10",
                    "pxor xmm11, xmm11",
                    "pxor xmm12, xmm12",
                    "pxor xmm13, xmm13",
                    "pxor xmm14, xmm14",
                    "pxor xmm15, xmm15",
                    clobber_abi("sysv64"),
                    options(nomem, nostack),
                );
            }
        }
    }
}

/// Runs `work` on a thread whose stack is in no core dump while it runs, and is wiped after.
///
/// # Errors
/// There is no thread to be had.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("key".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                hide_stack();
                let result = out_of_line(work);
                bleach();
                clear_registers();
                result
            })?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread that computed the key panicked"))
    })
}

/// A frame of its own, below which [`bleach`] wipes.
#[inline(never)]
fn out_of_line<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn bleach() {
    let mut frame = [0xffu8; WIPED];
    frame.zeroize();
    std::hint::black_box(&mut frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_are_read_whole_and_without_their_newline() {
        let read = |mut text: &[u8]| {
            Passphrase::read(&mut text)
                .unwrap()
                .map(|p| p.bytes().to_vec())
        };
        assert_eq!(read(b"open\n"), Some(b"open".to_vec()));
        assert_eq!(read(b"a\n\n"), Some(b"a\n".to_vec()));
        assert_eq!((read(b""), read(b"\n")), (None, None));
        let longest = vec![b'x'; PASSPHRASE_MAX];
        assert_eq!(read(&longest), Some(longest.clone()));
        let longer = [longest, b"x".to_vec()].concat();
        let error = Passphrase::read(&mut longer.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    /// What the kernel says of the mapping at `address` (man 5 proc_pid_smaps).
    fn flags(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in maps.lines() {
            if let Some((start, end)) = line.split(' ').next().and_then(|r| r.split_once('-')) {
                let at = |hex| usize::from_str_radix(hex, 16);
                if let (Ok(start), Ok(end)) = (at(start), at(end)) {
                    here = (start..end).contains(&address);
                }
            } else if here && let Some(flags) = line.strip_prefix("VmFlags:") {
                return format!("{flags} ");
            }
        }
        panic!("nothing is mapped at {address:x}");
    }

    #[test]
    fn secret_memory_is_in_no_core_dump() {
        let vault = Vault::new([7u8; 100]).unwrap();
        assert_eq!(vault[99], 7);
        let of_vault = flags(std::ptr::from_ref(&*vault).addr());
        assert!(
            of_vault.contains(" dd ") && of_vault.contains(" wf "),
            "{of_vault}"
        );
        let of_stack = apart(|| {
            let here = 0u8;
            flags(std::ptr::from_ref(std::hint::black_box(&here)).addr())
        });
        assert!(of_stack.unwrap().contains(" dd "));
        let here = 0u8;
        let ours = flags(std::ptr::from_ref(std::hint::black_box(&here)).addr());
        assert!(!ours.contains(" dd "), "{ours}");
    }
}
