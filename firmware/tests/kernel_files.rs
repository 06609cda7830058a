//! Every kind of kernel file: what it is called, where it is entered, and what is in memory then.
#![allow(clippy::unwrap_used)]

mod kernel_common;

use kernel_common::*;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};
use vsc_firmware::kernel::{
    Compression, Entry, EntryChoice, Flavour, Kernel, KernelError, Kind, LoadOptions,
};

#[test]
fn elf() {
    let elf = ElfFile::linux();
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(kernel.kind(), Kind::Elf);
    assert_eq!(kernel.version(), Some("9.8.7-test"));
    assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
    for memory in [shared_memory(), anonymous_memory()] {
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(loaded.entry, Entry::Pvh(0x40_0010));
        assert!(loaded.is_linux() && loaded.header.is_none());
    }
    let linux = LoadOptions {
        mapped: false,
        entry: EntryChoice::Linux64,
        ..options()
    };
    assert_eq!(
        kernel.load(&shared_memory(), &linux).unwrap().entry,
        Entry::Linux64(0x40_0000)
    );
}

#[test]
fn memory_that_is_not_fresh() {
    let elf = ElfFile::linux();
    for compression in [None, Some(Compression::Lz4), Some(Compression::Gzip)] {
        let file = compression.map_or_else(|| elf.bytes(), |c| pack(c, &elf.bytes()));
        for memory in [shared_memory(), anonymous_memory()] {
            memory
                .write_slice(&vec![0xaa; RAM as usize - (1 << 20)], GuestAddress(1 << 20))
                .unwrap();
            let options = LoadOptions {
                mapped: false,
                fresh: false,
                ..options()
            };
            let loaded = open(&file).unwrap().load(&memory, &options).unwrap();
            elf.check(&memory, &loaded);
        }
    }
}

#[test]
fn compressed_elf() {
    let elf = ElfFile::linux();
    for compression in DECODED {
        let kernel = open(&pack(compression, &elf.bytes())).unwrap();
        assert_eq!(kernel.kind(), Kind::Compressed(compression));
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(
            (loaded.entry, loaded.flavour),
            (Entry::Pvh(0x40_0010), Flavour::Stock)
        );
        assert_eq!(kernel.version(), Some("9.8.7-test"), "{compression:?}");
    }
}

/// What was decoded but belongs to no segment does not stay behind.
#[test]
fn nothing_stale_stays_in_memory() {
    let elf = ElfFile::linux();
    let memory = shared_memory();
    let loaded = open(&pack(Compression::Lz4, &elf.bytes()))
        .unwrap()
        .load(&memory, &options())
        .unwrap();
    let mut after = vec![0; (RAM - loaded.end) as usize];
    memory
        .read_slice(&mut after, GuestAddress(loaded.end))
        .unwrap();
    assert!(after.iter().all(|&byte| byte == 0));
    let mut before = vec![0; loaded.start as usize];
    memory.read_slice(&mut before, GuestAddress(0)).unwrap();
    assert!(
        before.iter().all(|&byte| byte == 0),
        "the ELF header, or something below 1 MiB"
    );
}

/// The gap between file and memory layout does not allow decoding in place.
#[test]
fn compressed_elf_that_cannot_lie_in_place() {
    let mut swapped = ElfFile::linux();
    swapped.parts[1].phys = 0xa0_0000;
    swapped.parts[2].phys = 0x80_0000;
    swapped.parts[3].phys = 0xb0_0000;
    let mut low = ElfFile::linux();
    low.parts[0].phys = 0x12_0000;
    low.notes.pop();
    low.entry = 0x12_0000;
    for elf in [swapped, low] {
        for compression in DECODED {
            let memory = shared_memory();
            let loaded = open(&pack(compression, &elf.bytes()))
                .unwrap()
                .load(&memory, &options())
                .unwrap();
            elf.check(&memory, &loaded);
        }
    }
    // Enough RAM for the kernel, not for decoding in place.
    let elf = ElfFile::linux();
    let end = elf.parts[3].phys + elf.parts[3].mem_len;
    for compression in DECODED {
        let memory = shared_memory();
        let options = LoadOptions {
            mapped: false,
            ram_low_end: end,
            ..options()
        };
        let loaded = open(&pack(compression, &elf.bytes()))
            .unwrap()
            .load(&memory, &options)
            .unwrap();
        elf.check(&memory, &loaded);
    }
}

#[test]
fn bzimage_is_entered_as_elf() {
    let elf = ElfFile::linux();
    for compression in DECODED {
        let size = (compression != Compression::Gzip).then_some(elf.bytes().len());
        let kernel = open(&bzimage(&pack(compression, &elf.bytes()), size)).unwrap();
        assert_eq!(kernel.kind(), Kind::BzImage(Some(compression)));
        assert_eq!(kernel.version(), Some("1.2.3-bz"));
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(loaded.entry, Entry::Pvh(0x40_0010));
        let header = loaded.header.unwrap();
        assert_eq!({ header.init_size }, 0x90_0000);
    }
}

#[test]
fn bzimage_with_unknown_payload_decompresses_itself() {
    for payload in [b"\x89LZO and more".to_vec(), pack(Compression::Bzip2, &[])] {
        let file = bzimage(&payload, None);
        let kernel = open(&file).unwrap();
        assert_eq!(kernel.kind(), Kind::BzImage(None));
        assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        assert_eq!(loaded.entry, Entry::Linux64(0x40_0200));
        assert_eq!((loaded.start, loaded.end), (0x40_0000, 0xd0_0000));
        let mut code = vec![0; file.len() - 1024];
        memory
            .read_slice(&mut code, GuestAddress(0x40_0000))
            .unwrap();
        assert_eq!(code, file[1024..]);
        let pvh = LoadOptions {
            mapped: false,
            entry: EntryChoice::Pvh,
            ..options()
        };
        assert!(matches!(
            kernel.load(&memory, &pvh),
            Err(KernelError::EntryNotThere { .. })
        ));
        let small = LoadOptions {
            mapped: false,
            ram_low_end: 0xc0_0000,
            ..options()
        };
        assert!(matches!(
            kernel.load(&memory, &small),
            Err(KernelError::TooBig {
                needed: 0xd0_0000,
                ..
            })
        ));
    }
}

#[test]
fn flavours() {
    let salted = |salt: &str| {
        let mut elf = ElfFile::linux();
        elf.notes
            .push(Note("Linux", 0x100, [salt.as_bytes(), b"\0"].concat()));
        elf
    };
    let mut by_message = ElfFile::linux();
    by_message.parts[1].data[777..803].copy_from_slice(b"cpl3: running deprivileged");
    let mut smp = ElfFile::linux();
    smp.parts[1].data[777..803].copy_from_slice(b"cpl3: running deprivileged");
    smp.parts[2].virt = 0;
    let mut bsd = ElfFile::linux();
    bsd.notes = vec![Note("FreeBSD", 1, vec![1, 2, 3, 4])];
    for (elf, flavour) in [
        (salted("vsc-cpl3"), Flavour::Cpl3),
        (salted("6.1.0-1-amd64"), Flavour::Stock),
        (by_message, Flavour::Cpl3),
        (smp, Flavour::Stock),
        (ElfFile::tiny(), Flavour::NotLinux),
        (bsd, Flavour::NotLinux),
    ] {
        let file = elf.bytes();
        for bytes in [file.clone(), pack(Compression::Lz4, &file)] {
            assert_eq!(open(&bytes).unwrap().flavour().unwrap(), flavour);
            assert_eq!(
                open(&bytes)
                    .unwrap()
                    .load(&anonymous_memory(), &options())
                    .unwrap()
                    .flavour,
                flavour
            );
        }
    }
}

#[test]
fn entries() {
    let mut elf = ElfFile::tiny();
    elf.entry = 0x20_0000;
    assert!(matches!(
        open(&elf.bytes()),
        Err(KernelError::NoEntry { .. })
    ));
    // A note that points nowhere is no entry.
    elf.entry = 0x10_0004;
    elf.notes
        .push(Note("Xen", 18, 0x50_0000u32.to_le_bytes().to_vec()));
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(
        kernel.load(&anonymous_memory(), &options()).unwrap().entry,
        Entry::Linux64(0x10_0004)
    );
    let pvh = LoadOptions {
        mapped: false,
        entry: EntryChoice::Pvh,
        ..options()
    };
    assert!(matches!(
        kernel.load(&anonymous_memory(), &pvh),
        Err(KernelError::EntryNotThere { wanted: "PVH", .. })
    ));
    // A 4-byte note, an entry given as virtual address.
    elf.notes = vec![Note("Xen", 18, 0x10_0008u32.to_le_bytes().to_vec())];
    (elf.parts[0].virt, elf.entry) = (0xffff_8000_0000_0000, 0xffff_8000_0000_0003);
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(
        kernel.load(&anonymous_memory(), &options()).unwrap().entry,
        Entry::Pvh(0x10_0008)
    );
    let linux = LoadOptions {
        mapped: false,
        entry: EntryChoice::Linux64,
        ..options()
    };
    assert_eq!(
        kernel.load(&anonymous_memory(), &linux).unwrap().entry,
        Entry::Linux64(0x10_0003)
    );
}

#[test]
fn part_of_this_program() {
    let bytes: &'static [u8] = Box::leak(ElfFile::tiny().bytes().into_boxed_slice());
    let kernel = Kernel::from_static("built-in", bytes).unwrap();
    assert_eq!(kernel.path(), Path::new("built-in"));
    kernel.load(&anonymous_memory(), &options()).unwrap();
}
