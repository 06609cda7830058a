//! What a guest finds in memory and registers at its first instruction.
//!
//! Sources: PVH: xen `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`; Linux:
//! `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol", and `Documentation/arch/x86/zero-page.rst`; bits of
//! control registers and descriptors: Intel SDM volume 3, 2.5, 3.4.5 and 4.5.

#![forbid(unsafe_code)]

use crate::Memory;
use crate::kernel::Entry;
use crate::layout;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit of the E.
const PVH_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`, `E820_TYPE_RAM`.
const RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`, `E820_TYPE_RESERVED`.
const RESERVED: u32 = 2;
/// `__BOOT_CS` of the 64-bit boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, a 2 MiB page.
const LARGE_PAGE: u64 = 0b1000_0011;
const GIB: u64 = 1 << 30;
/// Highest end of an initrd for an ELF, which has no header to say: `initrd_addr_max` of every 64-bit bzImage
/// (`arch/x86/boot/header.S`) plus one.
const INITRD_END: u64 = 0x8000_0000;

/// What [`write()`] needs to know.
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
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
}

/// Boot structures that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// No room for the initrd.
    #[error(
        "The initrd ({} MiB) does not fit between the kernel and the end of memory: give the guest at least {} MiB",
        len.div_ceil(1 << 20), enough.div_ceil(1 << 20)
    )]
    InitrdTooBig {
        /// Length of the initrd in bytes.
        len: u64,
        /// Memory in bytes that would do.
        enough: u64,
    },
    /// No room for the initrd below the address up to which the kernel looks, whatever the memory.
    #[error(
        "The initrd ({} MiB) does not fit below {} MiB, the highest address this kernel takes one at: make it smaller",
        len.div_ceil(1 << 20), limit >> 20
    )]
    InitrdBeyondLimit {
        /// Length of the initrd in bytes.
        len: u64,
        /// Where it has to end, in bytes.
        limit: u64,
    },
    /// The command line does not fit.
    #[error("The kernel command line is {len} bytes long; at most {max} can be passed")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// Most bytes.
        max: usize,
    },
    /// The command line contains a NUL.
    #[error("The kernel command line has a NUL at byte {at}")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
    /// More memory ranges than the tables hold.
    #[error("The memory map has {count} entries; at most {max} can be passed")]
    TooManyRanges {
        /// Entries.
        count: usize,
        /// Most entries.
        max: usize,
    },
    /// An entry above 4 GiB.
    #[error("The kernel's entry {entry:#x} is not below 4 GiB")]
    EntryTooHigh {
        /// The entry.
        entry: u64,
    },
    /// Guest memory is not there.
    #[error("Cannot write {len} bytes of boot structures to guest memory at {address:#x}")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// Where an initrd of `len` bytes goes: page-aligned, as high as possible below `ram_low_end`, the kernel's
/// `initrd_addr_max` and 2 GiB, and not below `kernel_end`.
pub fn place_initrd(
    len: u64,
    ram_low_end: u64,
    header: Option<&setup_header>,
    kernel_end: u64,
) -> Result<u64, BootError> {
    let limit = match header.map(|header| header.initrd_addr_max) {
        Some(max) if max != 0 => u64::from(max) + 1,
        _ => INITRD_END,
    };
    let lowest = kernel_end.max(layout::HIGH_MEMORY).next_multiple_of(0x1000);
    let room = len
        .checked_next_multiple_of(0x1000)
        .and_then(|len| lowest.checked_add(len));
    match room {
        Some(end) if end <= limit && end <= ram_low_end => {
            Ok((ram_low_end.min(limit) - len) & !0xfff)
        }
        Some(end) if end <= limit => Err(BootError::InitrdTooBig { len, enough: end }),
        _ => Err(BootError::InitrdBeyondLimit { len, limit }),
    }
}

/// Writes the boot structures of `info.entry`'s protocol to [`layout`]'s addresses.
pub fn write(memory: &Memory, info: &BootInfo<'_>) -> Result<CpuStart, BootError> {
    let cmdline = write_cmdline(memory, info.cmdline)?;
    let map = memory_map(info.ram);
    write_gdt(memory, info.entry)?;
    match info.entry {
        Entry::Pvh(entry) => {
            if entry > u64::from(u32::MAX) {
                return Err(BootError::EntryTooHigh { entry });
            }
            write_pvh(memory, info, &map, cmdline)?;
            Ok(protected_mode(entry))
        }
        Entry::Linux64(entry) => {
            if entry >= layout::PAGE_DIRECTORIES_MAX * GIB {
                return Err(BootError::EntryTooHigh { entry });
            }
            write_zero_page(memory, info, &map, cmdline)?;
            write_page_tables(memory, entry)?;
            Ok(long_mode(entry))
        }
    }
}

fn put(memory: &Memory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|_| BootError::Memory {
            address,
            len: bytes.len(),
        })
}

/// Returns its address.
fn write_cmdline(memory: &Memory, cmdline: &str) -> Result<u64, BootError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { at });
    }
    let max = layout::CMDLINE_SIZE as usize - 1;
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    let short = cmdline.len() < layout::CMDLINE_SHORT_SIZE as usize;
    let address = if short {
        layout::CMDLINE_SHORT
    } else {
        layout::CMDLINE
    };
    put(memory, address, cmdline.as_bytes())?;
    put(memory, address + cmdline.len() as u64, &[0])?;
    Ok(address)
}

/// (start, length, type): RAM without the BIOS area of a PC, which is reserved.
fn memory_map(ram: &[(u64, u64)]) -> Vec<(u64, u64, u32)> {
    const LOW: u64 = layout::EBDA_START;
    const HIGH: u64 = layout::HIGH_MEMORY;
    let mut map = Vec::with_capacity(ram.len() + 2);
    let mut bios = false;
    for &(start, len) in ram {
        let end = start.saturating_add(len);
        if start < LOW.min(end) {
            map.push((start, end.min(LOW) - start, RAM));
        }
        if !bios && start < HIGH && end > LOW {
            map.push((LOW, HIGH - LOW, RESERVED));
            bios = true;
        }
        if start.max(HIGH) < end {
            map.push((start.max(HIGH), end - start.max(HIGH), RAM));
        }
    }
    map
}

/// Segment as the hardware has it in a descriptor.
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let flag = |bit: u8, at: u32| u64::from(bit & 1) << at;
    (limit & 0xffff)
        | (limit & 0xf_0000) << 32
        | (segment.base & 0xff_ffff) << 16
        | (segment.base & 0xff00_0000) << 32
        | u64::from(segment.type_ & 15) << 40
        | flag(segment.s, 44)
        | u64::from(segment.dpl & 3) << 45
        | flag(segment.present, 47)
        | flag(segment.l, 53)
        | flag(segment.db, 54)
        | flag(segment.g, 55)
}

fn code_segment(long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0b1011,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
    }
}

fn data_segment() -> Segment {
    Segment {
        selector: DATA_SELECTOR,
        type_: 0b0011,
        db: 1,
        l: 0,
        ..code_segment(false)
    }
}

/// A busy 32- or 64-bit TSS at 0: both protocols want TR loaded, nobody uses it.
fn task_segment() -> Segment {
    Segment {
        limit: 0x67,
        type_: 0b1011,
        present: 1,
        ..Segment::default()
    }
}

fn write_gdt(memory: &Memory, entry: Entry) -> Result<(), BootError> {
    let code = code_segment(matches!(entry, Entry::Linux64(_)));
    let mut gdt = [0; layout::GDT_SIZE as usize];
    for segment in [code, data_segment()] {
        let at = usize::from(segment.selector);
        gdt[at..at + 8].copy_from_slice(&descriptor(&segment).to_le_bytes());
    }
    put(memory, layout::GDT, &gdt)
}

fn protected_mode(entry: u64) -> CpuStart {
    CpuStart {
        mode: Mode::Protected32,
        rip: entry,
        rsp: layout::STACK_TOP,
        rbx: layout::PVH_START_INFO,
        rsi: 0,
        rflags: 2,
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        gdt: Table {
            base: layout::GDT,
            limit: layout::GDT_SIZE as u16 - 1,
        },
        idt: Table { base: 0, limit: 0 },
        code: code_segment(false),
        data: data_segment(),
        task: task_segment(),
    }
}

fn long_mode(entry: u64) -> CpuStart {
    CpuStart {
        mode: Mode::Long64,
        rbx: 0,
        rsi: layout::ZERO_PAGE,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: layout::PML4,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        code: code_segment(true),
        ..protected_mode(entry)
    }
}

fn write_pvh(
    memory: &Memory,
    info: &BootInfo<'_>,
    map: &[(u64, u64, u32)],
    cmdline: u64,
) -> Result<(), BootError> {
    if map.len() > layout::PVH_MEMMAP_MAX {
        return Err(BootError::TooManyRanges {
            count: map.len(),
            max: layout::PVH_MEMMAP_MAX,
        });
    }
    let start = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(info.initrd.is_some()),
        modlist_paddr: if info.initrd.is_some() {
            layout::PVH_MODLIST
        } else {
            0
        },
        cmdline_paddr: cmdline,
        rsdp_paddr: info.rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    put(memory, layout::PVH_START_INFO, start.as_slice())?;
    if let Some((paddr, size)) = info.initrd {
        let module = hvm_modlist_entry {
            paddr,
            size,
            cmdline_paddr: 0,
            reserved: 0,
        };
        put(memory, layout::PVH_MODLIST, module.as_slice())?;
    }
    let mut table = Vec::with_capacity(map.len() * size_of::<hvm_memmap_table_entry>());
    for &(addr, size, type_) in map {
        table.extend_from_slice(
            hvm_memmap_table_entry {
                addr,
                size,
                type_,
                reserved: 0,
            }
            .as_slice(),
        );
    }
    put(memory, layout::PVH_MEMMAP, &table)
}

fn write_zero_page(
    memory: &Memory,
    info: &BootInfo<'_>,
    map: &[(u64, u64, u32)],
    cmdline: u64,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    if map.len() > params.e820_table.len() {
        return Err(BootError::TooManyRanges {
            count: map.len(),
            max: params.e820_table.len(),
        });
    }
    params.hdr = info.header.unwrap_or(setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: 1,
        kernel_alignment: 0x100_0000,
        ..setup_header::default()
    });
    // An unknown loader; `vid_mode` "normal".
    params.hdr.type_of_loader = 0xff;
    params.hdr.vid_mode = 0xffff;
    // Below 4 GiB by `layout` and `place_initrd`.
    params.hdr.cmd_line_ptr = cmdline as u32;
    params.hdr.cmdline_size = info.cmdline.len() as u32;
    if let Some((address, len)) = info.initrd {
        params.hdr.ramdisk_image = address as u32;
        params.ext_ramdisk_image = (address >> 32) as u32;
        params.hdr.ramdisk_size = len as u32;
        params.ext_ramdisk_size = (len >> 32) as u32;
    }
    params.acpi_rsdp_addr = info.rsdp;
    for (slot, &(addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr,
            size,
            r#type: type_,
        };
    }
    params.e820_entries = map.len() as u8;
    put(memory, layout::ZERO_PAGE, params.as_slice())
}

/// Identity-maps the first GiB, and more when the entry is close to or above its end: kernel, zero page and command line
/// are what the protocol asks for; Linux maps the rest itself.
fn write_page_tables(memory: &Memory, entry: u64) -> Result<(), BootError> {
    let gib = (entry + GIB / 2)
        .div_ceil(GIB)
        .clamp(1, layout::PAGE_DIRECTORIES_MAX);
    put(memory, layout::PML4, &(layout::PDPT | TABLE).to_le_bytes())?;
    for n in 0..gib {
        let directory = layout::PAGE_DIRECTORIES + n * 0x1000;
        put(
            memory,
            layout::PDPT + n * 8,
            &(directory | TABLE).to_le_bytes(),
        )?;
        let mut entries = [0; 0x1000];
        for (page, slot) in (n * 512..).zip(entries.chunks_exact_mut(8)) {
            slot.copy_from_slice(&(page << 21 | LARGE_PAGE).to_le_bytes());
        }
        put(memory, directory, &entries)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
