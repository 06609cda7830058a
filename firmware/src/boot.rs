//! What a guest finds in memory and registers at its first instruction.

use crate::Memory;
use crate::kernel::Entry;
use linux_loader::bootparam::setup_header;

/// What [`write`] needs to know.
#[derive(Debug, Clone)]
pub struct BootInfo<'a> {
    /// Where the kernel starts.
    pub entry: Entry,
    /// Setup header of a bzImage ([`crate::kernel::Loaded::header`]).
    pub header: Option<setup_header>,
    /// Guest RAM as (start, length) in bytes, ascending; the holes of the PC below 1 MiB are cut out of it here.
    pub ram: &'a [(u64, u64)],
    /// Kernel command line without NUL.
    pub cmdline: &'a str,
    /// Address and length of the initrd in bytes.
    pub initrd: Option<(u64, u64)>,
    /// Address of the RSDP, 0: no ACPI.
    pub rsdp: u64,
}

/// Mode of a CPU at its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit, flat segments, no paging.
    Protected32,
    /// 64-bit, identity page tables.
    Long64,
}

/// A segment register as KVM's `kvm_segment` wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes (already scaled by the granularity).
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type field, 4 bits.
    pub type_: u8,
    /// Present.
    pub present: u8,
    /// Privilege level.
    pub dpl: u8,
    /// Default operation size.
    pub db: u8,
    /// Code or data, not system.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// Granularity of 4 KiB.
    pub g: u8,
}

/// Base and limit of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes (size - 1).
    pub limit: u16,
}

/// Registers of the boot CPU at its first instruction; what is not named is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuStart {
    /// CPU mode.
    pub mode: Mode,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer (and RBP).
    pub rsp: u64,
    /// PVH: address of `hvm_start_info`.
    pub rbx: u64,
    /// 64-bit entry: address of `boot_params`.
    pub rsi: u64,
    /// Flags: only the reserved bit 1.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// GDTR.
    pub gdt: Table,
    /// IDTR.
    pub idt: Table,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS, SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
}

/// Boot structures that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// No room for the initrd.
    #[error("The initrd ({} MiB) does not fit between the kernel and the end of memory: give the guest at least {} MiB", len.div_ceil(1 << 20), enough.div_ceil(1 << 20))]
    InitrdTooBig {
        /// Length of the initrd in bytes.
        len: u64,
        /// Memory in bytes that would do.
        enough: u64,
    },
}

/// Where an initrd of `len` bytes goes: page-aligned, as high as possible below `ram_low_end`, the kernel's
/// `initrd_addr_max` and 4 GiB, and not below `kernel_end`.
pub fn place_initrd(
    len: u64,
    ram_low_end: u64,
    header: Option<&setup_header>,
    kernel_end: u64,
) -> Result<u64, BootError> {
    let _ = (ram_low_end, header, kernel_end);
    Err(BootError::InitrdTooBig { len, enough: 0 })
}

/// Writes the boot structures of `info.entry`'s protocol.
pub fn write(memory: &Memory, info: &BootInfo<'_>) -> Result<CpuStart, BootError> {
    let _ = (memory, info);
    Err(BootError::InitrdTooBig { len: 0, enough: 0 })
}
