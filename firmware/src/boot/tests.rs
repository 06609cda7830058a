use super::*;
use vm_memory::GuestMemoryMmap;

fn memory(size: usize) -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn info(entry: Entry, ram: &[(u64, u64)]) -> BootInfo<'_> {
    BootInfo {
        entry,
        header: None,
        ram,
        cmdline: "console=ttyS0 quiet",
        initrd: Some((0x700_0000, 0x1234)),
        rsdp: 0xe_0000,
    }
}

#[test]
fn initrd_goes_high_and_stays_off_the_kernel() {
    assert_eq!(
        place_initrd(0x1001, 128 << 20, None, 0x200_0000),
        Ok(0x7ff_e000)
    );
    assert_eq!(
        place_initrd(0x1000, 3 << 30, None, 0x200_0000),
        Ok(0x7fff_f000)
    );
    let header = setup_header {
        initrd_addr_max: 0x37ff_ffff,
        ..Default::default()
    };
    assert_eq!(
        place_initrd(0x1000, 3 << 30, Some(&header), 0x200_0000),
        Ok(0x37ff_f000)
    );
    // Exactly fits, one byte too many.
    assert_eq!(
        place_initrd(0x10_0000, 0x210_0000, None, 0x200_0000),
        Ok(0x200_0000)
    );
    assert_eq!(
        place_initrd(0x10_0001, 0x210_0000, None, 0x200_0000),
        Err(BootError::InitrdTooBig {
            len: 0x10_0001,
            enough: 0x210_1000
        })
    );
    assert!(matches!(
        place_initrd(2 << 30, 3 << 30, None, 0x200_0000),
        Err(BootError::InitrdBeyondLimit { .. })
    ));
    assert!(matches!(
        place_initrd(u64::MAX, 3 << 30, None, 0x200_0000),
        Err(BootError::InitrdBeyondLimit { .. })
    ));
    let error = place_initrd(200 << 20, 128 << 20, None, 0x200_0000)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("200 MiB") && error.contains("at least 232 MiB"),
        "{error}"
    );
}

#[test]
fn map_leaves_out_the_bios_area() {
    assert_eq!(
        memory_map(&[(0, 0x800_0000), (layout::HIGH_RAM, 0x1000)]),
        [
            (0, 0x9_fc00, RAM),
            (0x9_fc00, 0x6_0400, RESERVED),
            (0x10_0000, 0x7f0_0000, RAM),
            (layout::HIGH_RAM, 0x1000, RAM)
        ]
    );
    assert_eq!(memory_map(&[(0, 0x1000)]), [(0, 0x1000, RAM)]);
    assert_eq!(memory_map(&[(0x10_0000, 5)]), [(0x10_0000, 5, RAM)]);
    assert_eq!(memory_map(&[]), []);
}

#[test]
fn pvh() {
    let memory = memory(1 << 20);
    let cpu = write(&memory, &info(Entry::Pvh(0x100_0000), &[(0, 128 << 20)])).unwrap();
    assert_eq!(
        (cpu.mode, cpu.rip, cpu.rbx),
        (Mode::Protected32, 0x100_0000, layout::PVH_START_INFO)
    );
    assert_eq!(
        (cpu.cr0 & !CR0_ET, cpu.cr4, cpu.efer, cpu.rflags),
        (1, 0, 0, 2)
    );
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    // Offsets of start_info.h.
    let base = cpu.rbx;
    assert_eq!(
        (word(base), word(base + 4), word(base + 12)),
        (0x336e_c578, 1, 1)
    );
    assert_eq!(
        (long(long(base + 16)), long(long(base + 16) + 8)),
        (0x700_0000, 0x1234)
    );
    let mut text = [0; 20];
    memory
        .read_slice(&mut text, GuestAddress(long(base + 24)))
        .unwrap();
    assert_eq!(&text, b"console=ttyS0 quiet\0");
    assert_eq!(long(base + 32), 0xe_0000);
    assert_eq!(word(base + 48), 3);
    let map = long(base + 40);
    assert_eq!((long(map), long(map + 8), word(map + 16)), (0, 0x9_fc00, 1));
    assert_eq!(
        (long(map + 48), long(map + 56), word(map + 64)),
        (0x10_0000, 0x7f0_0000, 1)
    );
    // Descriptors of any PC's flat segments.
    assert_eq!(long(cpu.gdt.base + 0x10), 0x00cf_9b00_0000_ffff);
    assert_eq!(long(cpu.gdt.base + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn linux_64() {
    let memory = memory(1 << 20);
    let cpu = write(
        &memory,
        &info(Entry::Linux64(0x100_0000), &[(0, 128 << 20)]),
    )
    .unwrap();
    assert_eq!(
        (cpu.mode, cpu.rip, cpu.rsi),
        (Mode::Long64, 0x100_0000, layout::ZERO_PAGE)
    );
    assert_eq!((cpu.cr0, cpu.cr4, cpu.efer), (0x8000_0011, 0x20, 0x500));
    let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    // Offsets of boot.rst and zero-page.rst.
    let zero = cpu.rsi;
    assert_eq!(long(zero + 0x70), 0xe_0000);
    assert_eq!(
        (byte(zero + 0x1e8), byte(zero + 0x1ef), byte(zero + 0x210)),
        (3, 0, 0xff)
    );
    assert_eq!(word(zero + 0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(
        (word(zero + 0x218), word(zero + 0x21c)),
        (0x700_0000, 0x1234)
    );
    assert_eq!(u64::from(word(zero + 0x228)), layout::CMDLINE_SHORT);
    assert_eq!(word(zero + 0x238), 19);
    assert_eq!(
        (long(zero + 0x2d0), long(zero + 0x2d8), word(zero + 0x2e0)),
        (0, 0x9_fc00, 1)
    );
    assert_eq!(long(cpu.gdt.base + 0x10), 0x00af_9b00_0000_ffff);
    // The tables map what they should: walk them.
    for address in [0, 0x7000, 0x100_0000, 0x3fff_ffff_u64] {
        let pdpt = long(cpu.cr3 + (address >> 39) * 8);
        let directory = long((pdpt & !0xfff) + (address >> 30 & 511) * 8);
        let page = long((directory & !0xfff) + (address >> 21 & 511) * 8);
        assert_eq!((pdpt & 1, directory & 1, page & 0x81), (1, 1, 0x81));
        assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
    }
}

#[test]
fn bzimage_header_is_kept() {
    let memory = memory(1 << 20);
    let header = setup_header {
        version: 0x020c,
        xloadflags: 0x23,
        init_size: 77,
        ..Default::default()
    };
    let info = BootInfo {
        header: Some(header),
        ..info(Entry::Linux64(0x4100_0000), &[(0, 4 << 20)])
    };
    let cpu = write(&memory, &info).unwrap();
    assert_eq!(
        memory
            .read_obj::<u32>(GuestAddress(cpu.rsi + 0x260))
            .unwrap(),
        77
    );
    let second = memory
        .read_obj::<u64>(GuestAddress(layout::PDPT + 8))
        .unwrap();
    assert_eq!(
        second,
        (layout::PAGE_DIRECTORIES + 0x1000) | TABLE,
        "an entry above 1 GiB is mapped"
    );
}

#[test]
fn command_lines() {
    let memory = memory(1 << 20);
    let with = |cmdline: &str| {
        write(
            &memory,
            &BootInfo {
                cmdline,
                ..info(Entry::Pvh(0x10_0000), &[(0, 4 << 20)])
            },
        )
    };
    let at = || {
        memory
            .read_obj::<u64>(GuestAddress(layout::PVH_START_INFO + 24))
            .unwrap()
    };
    with(&"x".repeat(2047)).unwrap();
    assert_eq!(at(), layout::CMDLINE_SHORT);
    assert_eq!(
        memory
            .read_obj::<u8>(GuestAddress(layout::CMDLINE_SHORT + 2047))
            .unwrap(),
        0
    );
    assert_eq!(
        memory
            .read_obj::<u8>(GuestAddress(layout::ZERO_PAGE))
            .unwrap(),
        0,
        "the next page is untouched"
    );
    with(&"x".repeat(2048)).unwrap();
    assert_eq!(at(), layout::CMDLINE);
    assert!(matches!(
        with(&"x".repeat(65536)),
        Err(BootError::CmdlineTooLong { .. })
    ));
    assert_eq!(with("a\0b"), Err(BootError::CmdlineNul { at: 1 }));
}

#[test]
fn bad_input_is_an_error() {
    let ram: Vec<_> = (0..200).map(|n| ((1 << 32) + n * 0x2000, 0x1000)).collect();
    let memory = memory(1 << 20);
    for entry in [Entry::Pvh(0x10_0000), Entry::Linux64(0x10_0000)] {
        assert!(matches!(
            write(&memory, &info(entry, &ram)),
            Err(BootError::TooManyRanges { .. })
        ));
    }
    for entry in [Entry::Pvh(1 << 32), Entry::Linux64(4 << 30)] {
        assert!(matches!(
            write(&memory, &info(entry, &[])),
            Err(BootError::EntryTooHigh { .. })
        ));
    }
    let tiny = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(matches!(
        write(&tiny, &info(Entry::Pvh(0), &[])),
        Err(BootError::Memory { .. })
    ));
}
