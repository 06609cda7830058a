//! What the processor offers: ports, registers of devices, counters, tables, and the way to CPL 0.

use core::arch::asm;
use core::arch::x86_64::{_rdtsc, CpuidResult};
use core::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    static mut idt: [u64; 512];
    static mut pdpt: [u64; 512];
    static exception_stubs: u8;
    static interrupt_stubs: u8;
    static spurious_stub: u8;
    static invalid_stub: u8;
    static mut kernel_target: u32;
    static kernel_hang: u8;
    static kernel_wait: u8;
    static kernel_sti: u8;
    static kernel_cli: u8;
    static kernel_rdmsr: u8;
    static kernel_cpuid: u8;
    static mut acknowledge: u32;
    static mut acknowledged: u32;
    static image_end: u8;
}

/// First interrupt vector that is counted; 16 of them.
pub const FIRST_VECTOR: u8 = 0x30;

/// How often each of the counted vectors fired; entry.s increments them.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static interrupts: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

pub fn interrupt_count(vector: u8) -> u32 {
    interrupts[usize::from(vector - FIRST_VECTOR) & 15].load(Ordering::SeqCst)
}

pub fn outb(port: u16, value: u8) {
    // SAFETY: a port write touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}
pub fn outw(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags))
    }
    value
}
/// `rep outsb`: one instruction for a whole FIFO.
pub fn outsb(port: u16, bytes: &[u8]) {
    // SAFETY: reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly))
    }
}

/// Reads memory or a device register at a physical address (identity mapped).
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: callers pass addresses of mapped RAM or device registers; a wrong one is a reported page fault.
    unsafe { core::ptr::read_volatile(address as *const T) }
}
/// Writes memory or a device register at a physical address (identity mapped).
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `read`; never inside this program's own Rust objects.
    unsafe { core::ptr::write_volatile(address as *mut T, value) }
}
/// A read that may be unaligned, as ACPI tables demand.
pub fn read_unaligned<T: Copy>(address: u64) -> T {
    // SAFETY: as for `read`.
    unsafe { core::ptr::read_unaligned(address as *const T) }
}
/// Bytes at a physical address that nothing changes while they are looked at.
pub fn bytes(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: identity mapped RAM below 4 GiB that only the loader wrote.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is clear.
    unsafe { _rdtsc() }
}
/// CPUID at CPL 0: software paging hosts cannot intercept it at CPL 3, where it would tell of the host's processor.
/// Only on the first processor.
pub fn cpuid(leaf: u32, sub: u32) -> CpuidResult {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: kernel_cpuid changes the registers named here and no other.
    unsafe {
        core::ptr::addr_of_mut!(kernel_target)
            .write_volatile(core::ptr::addr_of!(kernel_cpuid) as u32);
        asm!("ud2", out("eax") eax, inout("esi") leaf => ebx, inout("ecx") sub => ecx, out("edx") edx);
    }
    CpuidResult { eax, ebx, ecx, edx }
}
/// Lets interrupt handlers acknowledge at this virtio-mmio device (0: none); the status bits they saw since the last
/// call.
pub fn acknowledge_at(base: u32) -> u32 {
    // SAFETY: two words of entry.s; a handler that comes in between only adds bits.
    unsafe {
        core::ptr::addr_of_mut!(acknowledge).write_volatile(base);
        let seen = core::ptr::addr_of!(acknowledged).read_volatile();
        core::ptr::addr_of_mut!(acknowledged).write_volatile(0);
        seen
    }
}
pub fn pause() {
    core::hint::spin_loop();
}

fn kernel(function: &u8, rcx: u64) -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: the functions of entry.s change no register but rax, rcx and rdx.
    unsafe {
        core::ptr::addr_of_mut!(kernel_target).write_volatile(core::ptr::from_ref(function) as u32);
        asm!("ud2", out("rax") low, inout("rcx") rcx => _, out("rdx") high)
    }
    low & 0xffff_ffff | high << 32
}
/// Stops this processor for good: `hlt` with interrupts off.
pub fn hang() -> ! {
    loop {
        // SAFETY: a symbol of entry.s.
        kernel(unsafe { &kernel_hang }, 0);
    }
}
/// Sleeps until an interrupt.
pub fn wait_for_interrupt() {
    // SAFETY: a symbol of entry.s.
    kernel(unsafe { &kernel_wait }, 0);
}
pub fn allow_interrupts(allow: bool) {
    // SAFETY: symbols of entry.s.
    kernel(unsafe { if allow { &kernel_sti } else { &kernel_cli } }, 0);
}
pub fn rdmsr(msr: u32) -> u64 {
    // SAFETY: a symbol of entry.s.
    kernel(unsafe { &kernel_rdmsr }, msr.into())
}
/// First byte after everything the image occupies.
pub fn end_of_image() -> u64 {
    core::ptr::addr_of!(image_end) as u64
}

fn gate(vector: usize, handler: u64) {
    // 64-bit interrupt gate to the CPL 0 code segment (SDM 3, 6.14.1).
    let low = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: the table has 256 entries and only this function writes it.
    unsafe {
        let table = core::ptr::addr_of_mut!(idt).cast::<u64>();
        table.add(vector * 2).write_volatile(low);
        table.add(vector * 2 + 1).write_volatile(handler >> 32);
    }
}

/// Fills the interrupt table. Before this an exception is a triple fault.
pub fn fill_idt() {
    for vector in 0..32 {
        gate(
            vector,
            core::ptr::addr_of!(exception_stubs) as u64 + vector as u64 * 16,
        );
    }
    for n in 0..16 {
        gate(
            usize::from(FIRST_VECTOR) + n,
            core::ptr::addr_of!(interrupt_stubs) as u64 + n as u64 * 16,
        );
    }
    gate(6, core::ptr::addr_of!(invalid_stub) as u64);
    gate(0xff, core::ptr::addr_of!(spurious_stub) as u64);
}

/// Empties the interrupt table and raises an exception: the processor shuts down.
pub fn triple_fault() -> ! {
    for vector in 0..256 {
        // SAFETY: as in `gate`.
        unsafe {
            core::ptr::addr_of_mut!(idt)
                .cast::<u64>()
                .add(vector * 2)
                .write_volatile(0)
        };
    }
    // SAFETY: the end of this machine is what the caller asked for.
    unsafe { asm!("ud2", options(noreturn)) }
}

const DIRECTORIES: usize = 16;
#[repr(C, align(4096))]
struct Directories([[u64; 512]; DIRECTORIES]);
static mut DIRECTORY: Directories = Directories([[0; 512]; DIRECTORIES]);
static NEXT_DIRECTORY: AtomicU32 = AtomicU32::new(0);

/// Maps the GiB that holds `address` (identity, 2 MiB pages, uncached behaviour left to the MTRRs). False when the
/// directories are used up or the address is beyond 512 GiB.
pub fn map(address: u64) -> bool {
    let gib = address >> 30;
    if gib >= 512 {
        return false;
    }
    let slot = gib as usize;
    // SAFETY: the page tables are this program's; entries only go from absent to present, which needs no flush.
    unsafe {
        let table = core::ptr::addr_of_mut!(pdpt).cast::<u64>();
        if table.add(slot).read_volatile() & 1 != 0 {
            return true;
        }
        let n = NEXT_DIRECTORY.fetch_add(1, Ordering::SeqCst) as usize;
        if n >= DIRECTORIES {
            return false;
        }
        let directory = core::ptr::addr_of_mut!(DIRECTORY.0[n]).cast::<u64>();
        for i in 0..512 {
            // Present, writable, user, 2 MiB (SDM 3, 4.5.4).
            directory
                .add(i)
                .write_volatile(gib << 30 | (i as u64) << 21 | 0x87);
        }
        table.add(slot).write_volatile(directory as u64 | 7);
    }
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the contract of memcpy.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _, options(nostack))
    }
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the contract of memset.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") n => _, options(nostack))
    }
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: copying upwards never overwrites what is still to be read.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the contract of memmove; downwards, because the regions overlap the other way.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") to.add(n).wrapping_sub(1) => _,
            inout("rsi") from.add(n).wrapping_sub(1) => _, inout("rcx") n => _, options(nostack))
    }
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the contract of memcmp. Volatile, so that this loop is not turned into a call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}
