//! Memory without libc: an allocator that takes pages from the kernel and never gives them back (this program
//! allocates at start only), and the functions that compiled code calls by name.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sys;

const CHUNK: usize = 256 << 10;

struct Bump {
    next: AtomicUsize,
    end: AtomicUsize,
}

#[global_allocator]
static ALLOCATOR: Bump = Bump {
    next: AtomicUsize::new(0),
    end: AtomicUsize::new(0),
};

// SAFETY: blocks are cut one after the other from fresh anonymous mappings, aligned as asked, and never reused; the
// program has one thread, and forked children have their own copy.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        let fit = |next: usize| next.checked_next_multiple_of(align);
        let mut start = fit(self.next.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let fits = start
            .checked_add(size)
            .is_some_and(|end| end <= self.end.load(Ordering::Relaxed));
        if !fits {
            let Some(wanted) = size.checked_add(align).map(|wanted| wanted.max(CHUNK)) else {
                return core::ptr::null_mut();
            };
            let Ok(chunk) = sys::map_memory(wanted) else {
                return core::ptr::null_mut();
            };
            self.end.store(chunk + wanted, Ordering::Relaxed);
            start = fit(chunk).unwrap_or(chunk);
        }
        self.next.store(start + size, Ordering::Relaxed);
        start as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // The newest block can be taken back: vectors and strings that come and go leave nothing.
        let start = block as usize;
        if start + layout.size() == self.next.load(Ordering::Relaxed) {
            self.next.store(start, Ordering::Relaxed);
        }
    }
}

/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the ABI keeps the direction flag clear.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the ranges do not overlap in a way that a forward copy would notice.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller vouches for both ranges; copied backwards, and the direction flag is clear again at the end.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller vouches for both ranges. Volatile, or the loop would be recognised as memcmp.
        let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As bcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(one, other, count) }
}

/// # Safety
/// As strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller vouches for a NUL. Volatile, or the loop would be recognised as strlen.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// What the standard library's code, compiled to be able to unwind, names in its tables. Nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Where unwinding would go on after a clean-up.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::end::power_off(crate::end::Ending::PowerOff)
}
