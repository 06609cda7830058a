//! Where things lie in a guest's low memory before its first instruction runs.
//!
//! All addresses are guest-physical bytes. The order follows the custom of small monitors (and LIBKRUN.md 2.3), so that
//! a dump of the first 64 KiB of any of them reads alike. Constraints: everything the PVH entry is given must lie in
//! memory the map calls usable (xen `docs/misc/pvh.pandoc`: the start info "may be placed anywhere" below 4 GiB); the
//! 64-bit entry of Linux wants the zero page and the page tables mapped and identity-addressed
//! (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"); Linux keeps away from the BIOS area from
//! [`EBDA_START`] to 1 MiB (`arch/x86/kernel/ebda.c`), and looks for the RSDP from 0xe0000 (ACPI 6.5, 5.2.5.1).

/// `hvm_start_info` of the PVH entry (56 bytes in version 1). It shares its page with everything else that a PVH guest
/// is given, since each page touched is a page fault.
pub const PVH_START_INFO: u64 = 0x6000;
/// `hvm_modlist_entry[1]`: the initrd.
pub const PVH_MODLIST: u64 = 0x6040;
/// `hvm_memmap_table_entry[]`: the memory map.
pub const PVH_MEMMAP: u64 = 0x6060;
/// Most entries of the memory map (24 bytes each).
pub const PVH_MEMMAP_MAX: usize = 64;
/// The GDT: four 8-byte descriptors.
pub const GDT: u64 = 0x6700;
/// Size of the GDT in bytes.
pub const GDT_SIZE: u64 = 0x20;
/// A command line of up to [`CMDLINE_SHORT_SIZE`] bytes with its NUL: all that Linux takes.
pub const CMDLINE_SHORT: u64 = 0x6800;
/// Room at [`CMDLINE_SHORT`] in bytes.
pub const CMDLINE_SHORT_SIZE: u64 = 0x800;
/// `struct boot_params`, the "zero page" of the 64-bit entry (4096 bytes).
pub const ZERO_PAGE: u64 = 0x7000;
/// Size of the zero page in bytes.
pub const ZERO_PAGE_SIZE: u64 = 0x1000;
/// Top of the stack an entry may use until it has its own (grows down to [`ZERO_PAGE`] + 4 KiB).
pub const STACK_TOP: u64 = 0x8ff0;
/// Identity page tables: PML4, PDPT, then up to four page directories of 2 MiB pages.
pub const PML4: u64 = 0x9000;
/// The page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// The first page directory; each maps 1 GiB.
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// How many page directories fit: four identity-map the first 4 GiB.
pub const PAGE_DIRECTORIES_MAX: u64 = 4;
/// End of the page tables.
pub const PAGE_TABLES_END: u64 = PAGE_DIRECTORIES + PAGE_DIRECTORIES_MAX * 0x1000;
/// A longer kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line in bytes; Linux on x86 keeps 2048 of them (see [`crate::cmdline::LINUX_MAX`]).
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// Start of the extended BIOS data area: usable low memory ends here.
pub const EBDA_START: u64 = 0x9_fc00;
/// ACPI RSDP; the tables follow it.
pub const RSDP: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// Lowest address of a kernel: everything below is for the structures above.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// First byte above the 32-bit hole: RAM beyond 3 GiB continues here.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

const fn apart(ranges: &[(u64, u64)]) -> bool {
    let mut i = 0;
    while i < ranges.len() {
        if ranges[i].0 >= ranges[i].1 {
            return false;
        }
        if i > 0 && ranges[i - 1].1 > ranges[i].0 {
            return false;
        }
        i += 1;
    }
    true
}

const _: () = assert!(
    apart(&[
        (PVH_START_INFO, PVH_START_INFO + 56),
        (PVH_MODLIST, PVH_MODLIST + 32),
        (PVH_MEMMAP, PVH_MEMMAP + 24 * PVH_MEMMAP_MAX as u64),
        (GDT, GDT + GDT_SIZE),
        (CMDLINE_SHORT, CMDLINE_SHORT + CMDLINE_SHORT_SIZE),
        (ZERO_PAGE, ZERO_PAGE + ZERO_PAGE_SIZE),
        (ZERO_PAGE + ZERO_PAGE_SIZE, STACK_TOP),
        (PML4, PML4 + 0x1000),
        (PDPT, PDPT + 0x1000),
        (PAGE_DIRECTORIES, PAGE_TABLES_END),
        (CMDLINE, CMDLINE + CMDLINE_SIZE),
        (EBDA_START, 0xa_0000),
        (RSDP, ACPI_END),
        (HIGH_MEMORY, HIGH_RAM),
    ]),
    "low-memory boot structures overlap"
);
const _: () = assert!(
    PML4.is_multiple_of(0x1000)
        && PDPT.is_multiple_of(0x1000)
        && PAGE_DIRECTORIES.is_multiple_of(0x1000)
);
const _: () = assert!(
    RSDP.is_multiple_of(16),
    "the RSDP is looked for on 16-byte boundaries"
);
const _: () = assert!(STACK_TOP.is_multiple_of(16));
