//! Files that are no kernels, or broken ones: what is said of them, and that no bytes at all do harm.
#![allow(clippy::unwrap_used)]

mod kernel_common;

use kernel_common::*;
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vsc_firmware::kernel::{Compression, Kernel, KernelError, LoadOptions};

#[test]
fn places_that_do_not_fit() {
    let elf = ElfFile::linux();
    let end = elf.parts[3].phys + elf.parts[3].mem_len;
    for file in [elf.bytes(), pack(Compression::Gzip, &elf.bytes())] {
        let small = LoadOptions {
            mapped: false,
            ram_low_end: end - 1,
            ..options()
        };
        let error = open(&file)
            .unwrap()
            .load(&anonymous_memory(), &small)
            .unwrap_err();
        assert!(
            matches!(error, KernelError::TooBig { needed, ram_end, .. } if needed == end && ram_end == end - 1)
        );
        assert!(
            error.to_string().contains("needs memory up to 13 MiB"),
            "{error}"
        );
        // RAM that is claimed but not there.
        let tiny = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(matches!(
            open(&file).unwrap().load(&tiny, &options()),
            Err(KernelError::Memory { .. })
        ));
    }
    let mut low = ElfFile::tiny();
    (low.parts[0].phys, low.entry) = (0xf_f000, 0xf_f000);
    let error = open(&low.bytes())
        .unwrap()
        .load(&anonymous_memory(), &options())
        .unwrap_err();
    assert!(matches!(
        error,
        KernelError::TooLow {
            address: 0xf_f000,
            ..
        }
    ));
}

#[test]
fn truncated_files_say_what_is_missing() {
    let whole = ElfFile::linux().bytes();
    for (len, part) in [
        (20, "the ELF header"),
        (100, "the table of program headers"),
        (0x21_0000, "loadable segment 0 (program header 0)"),
        (0x84_0001, "loadable segment 3 (program header 3)"),
    ] {
        match open(&whole[..len]).unwrap_err() {
            KernelError::Truncated {
                part: missing,
                size,
                ..
            } => assert_eq!((&*missing, size), (part, len as u64)),
            other => panic!("{other:?}"),
        }
    }
    let image = bzimage(&pack(Compression::Gzip, &whole), None);
    for (len, part) in [
        (0x210, "the setup header"),
        (0x1000, "the protected-mode code"),
    ] {
        match open(&image[..len]).unwrap_err() {
            KernelError::Truncated { part: missing, .. } => assert_eq!(missing, part),
            other => panic!("{other:?}"),
        }
    }
    // Compressed data without its end: named at the latest when loading.
    for compression in DECODED {
        let packed = pack(compression, &whole);
        let result = open(&packed[..packed.len() / 2])
            .and_then(|kernel| kernel.load(&shared_memory(), &options()));
        let error = result.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, KernelError::Corrupt { .. }),
            "{compression:?}: {error}"
        );
        // An ELF cut short and compressed whole.
        let packed = pack(compression, &whole[..0x40_0000]);
        let error = open(&packed)
            .unwrap()
            .load(&shared_memory(), &options())
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(error, KernelError::Truncated { .. }),
            "{compression:?}: {error}"
        );
    }
}

#[test]
fn wrong_elfs() {
    let base = ElfFile::tiny().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut elf = base.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        open(&elf).unwrap_err()
    };
    for (machine, name) in [
        (183u16, "arm64"),
        (243, "RISC-V"),
        (40, "32-bit ARM"),
        (22, "s390"),
        (999, "machine 999"),
    ] {
        let error = with(18, &machine.to_le_bytes());
        assert!(
            matches!(&error, KernelError::WrongArchitecture { what, .. } if what.contains(name)),
            "{error}"
        );
    }
    assert!(matches!(with(18, &[3, 0]), KernelError::Not64Bit { .. }));
    assert!(matches!(with(4, &[1]), KernelError::Not64Bit { .. }));
    assert!(matches!(with(16, &[1]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(16, &[4]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(16, &[9]), KernelError::Malformed { .. }));
    assert!(matches!(with(4, &[7]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(56, &[0, 0]),
        KernelError::NotAKernelElf { .. }
    ));
    assert!(matches!(with(54, &[32]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(56, &[0xff, 0xff]),
        KernelError::Malformed { .. }
    ));
    assert!(matches!(
        with(32, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    // First program header: an interpreter; file length above memory length; addresses and offsets that wrap.
    assert!(matches!(with(64, &[3]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(64 + 40, &[1]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(64 + 24, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    assert!(matches!(
        with(64 + 8, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    let mut overlapping = ElfFile::linux();
    overlapping.parts[1].phys = 0x40_1000;
    assert!(matches!(
        open(&overlapping.bytes()),
        Err(KernelError::Malformed { .. })
    ));
    // This very test is a program.
    let program = Kernel::open(std::env::current_exe().unwrap()).map(|_| ());
    assert!(!matches!(program, Ok(())) || cfg!(target_feature = "crt-static"));
}

#[test]
fn wrong_bzimages() {
    let payload = pack(Compression::Gzip, &ElfFile::tiny().bytes());
    let base = bzimage(&payload, None);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = base.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        open(&image).map(|_| ()).unwrap_err()
    };
    assert!(matches!(
        with(0x206, &[5, 2]),
        KernelError::ProtocolTooOld {
            version: 0x0205,
            ..
        }
    ));
    assert!(with(0x206, &[5, 2]).to_string().contains("2.05"));
    assert!(matches!(with(0x211, &[0]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(0x24c, &[0xff; 4]),
        KernelError::Truncated { .. }
    ));
    let mut elf32 = ElfFile::tiny().bytes();
    (elf32[4], elf32[18]) = (1, 3);
    let error = open(&bzimage(&pack(Compression::Gzip, &elf32), None)).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Not64Bit {
                what: "a 32-bit bzImage",
                ..
            }
        ),
        "{error}"
    );
    let mut image = bzimage(b"\x89LZO", None);
    image[0x236] = 0;
    assert!(matches!(open(&image), Err(KernelError::Not64Bit { .. })));
}

#[test]
fn other_files_are_called_by_their_names() {
    let at = |offset: usize, bytes: &[u8]| {
        let mut file = vec![0xe9; offset.max(8192)];
        file.truncate(offset.max(8192));
        file.resize(offset.max(8192) + bytes.len(), 0xe9);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    };
    for (bytes, name) in [
        (at(0, b"070701"), "initrd"),
        (at(0, b"QFI\xfb\0\0\0\x03"), "qcow2"),
        (at(0, b"hsqs"), "squashfs"),
        (at(0x438, &[0x53, 0xef]), "ext2/3/4"),
        (at(0, b"#!/bin/sh\n"), "script"),
        (at(0x8001, b"CD001"), "ISO 9660"),
        (at(0x200, b"EFI PART"), "GPT"),
        (at(0x1fe, &[0x55, 0xaa]), "boot sector"),
        (at(257, b"ustar"), "tar"),
        (at(0, b"!<arch>\ndebian-binary"), "Debian package"),
        (vec![0; 9000], "zero bytes"),
        (b"hello, world\n".to_vec(), "text"),
    ] {
        let error = open(&bytes).unwrap_err();
        assert!(
            matches!(error, KernelError::NotAKernel { .. }) && error.to_string().contains(name),
            "{name}: {error}"
        );
    }
    let arm64 = at(0x38, b"ARMd");
    for bytes in [arm64.clone(), at(0x30, b"RISCV\0\0\0")] {
        assert!(matches!(
            open(&bytes),
            Err(KernelError::WrongArchitecture { .. })
        ));
    }
    let error = open(&pack(Compression::Gzip, &arm64)).unwrap_err();
    assert!(
        matches!(&error, KernelError::CompressedOther { what, .. } if what.contains("arm64")),
        "{error}"
    );
    let initrd = [b"070701".to_vec(), noise(9000, 7)].concat();
    for compression in DECODED {
        let error = open(&pack(compression, &initrd)).unwrap_err();
        assert!(
            matches!(&error, KernelError::CompressedOther { what, .. } if what.contains("initrd")),
            "{error}"
        );
    }
    let error = open(&pack(Compression::Bzip2, &[])).unwrap_err();
    assert!(
        matches!(
            &error,
            KernelError::UnsupportedCompression {
                compression: "bzip2",
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        open(&at(0, b"\x89LZO\0\r\n\x1a\n")),
        Err(KernelError::UnsupportedCompression { .. })
    ));
    assert!(matches!(
        open(&[0x81, 0x92, 0xa3, 0xff, 0xfe]),
        Err(KernelError::Unknown { .. })
    ));
    assert!(
        open(&[0x81, 0x92])
            .unwrap_err()
            .to_string()
            .contains("81 92")
    );
}

#[test]
fn efi_programs() {
    let pe = |machine: u16, section: &[u8; 8]| {
        let mut file = vec![0; 1024];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        file[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        file[0x86] = 1;
        file[0x94] = 0x10;
        file[0xa8..0xb0].copy_from_slice(section);
        file
    };
    let uki = open(&pe(0x8664, b".linux\0\0")).unwrap_err();
    assert!(
        matches!(&uki, KernelError::Efi { what, .. } if what.contains("UKI")),
        "{uki}"
    );
    let program = open(&pe(0x8664, b".text\0\0\0")).unwrap_err();
    assert!(
        matches!(
            &program,
            KernelError::Efi {
                what: "an EFI program",
                ..
            }
        ),
        "{program}"
    );
    assert!(matches!(
        open(&pe(0xaa64, b".text\0\0\0")),
        Err(KernelError::WrongArchitecture { .. })
    ));
    assert!(matches!(
        open(b"MZ just DOS \xff\xff"),
        Err(KernelError::NotAKernel { .. })
    ));
    assert!(matches!(
        open(b"MZ\0\0zimg\xff"),
        Err(KernelError::Efi { .. })
    ));
}

#[test]
fn things_that_are_no_files() {
    let directory = Kernel::open(std::env::temp_dir()).unwrap_err();
    assert!(
        directory
            .to_string()
            .contains("is a directory, not a kernel"),
        "{directory}"
    );
    assert!(matches!(
        Kernel::open("/dev/null"),
        Err(KernelError::NotAFile {
            what: "a character device",
            ..
        })
    ));
    assert!(matches!(
        Kernel::open("/nonexistent"),
        Err(KernelError::Open { .. })
    ));
    assert!(matches!(open(b""), Err(KernelError::Empty { .. })));
    let fifo = Temporary::new(b"");
    std::fs::remove_file(&fifo.0).unwrap();
    let status = std::process::Command::new("mkfifo").arg(&fifo.0).status();
    assert!(status.unwrap().success());
    let (done, opened) = std::sync::mpsc::channel();
    let path = fifo.0.clone();
    std::thread::spawn(move || done.send(Kernel::open(path).map(|_| ())));
    assert!(
        matches!(
            opened.recv_timeout(std::time::Duration::from_secs(10)),
            Ok(Err(KernelError::NotAFile { what: "a pipe", .. }))
        ),
        "it must not wait for a writer"
    );
}

/// What is decoded is bounded by the guest's memory, however much there would be.
#[test]
fn decompression_bombs() {
    let mut elf = ElfFile::tiny();
    elf.parts[0].mem_len = 1 << 20;
    let mut bytes = elf.bytes();
    bytes.resize(64 << 20, 0);
    for compression in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
        let packed = pack(compression, &bytes);
        let memory = anonymous_memory();
        open(&packed).unwrap().load(&memory, &options()).unwrap();
    }
    // A segment that begins beyond all memory in the file.
    let mut far = ElfFile::linux();
    far.parts[3].offset = 0x4000_0000;
    let mut head = far.bytes_head();
    head.resize(70_000, 0);
    for compression in DECODED {
        let error = open(&pack(compression, &head))
            .unwrap()
            .load(&anonymous_memory(), &options())
            .unwrap_err();
        assert!(matches!(error, KernelError::TooBig { .. }), "{error}");
    }
}

fn exercise(bytes: &[u8]) {
    if let Ok(kernel) = open(bytes) {
        let _ = (kernel.version(), kernel.flavour(), kernel.kind());
        for fresh in [true, false] {
            let _ = kernel.load(&anonymous_memory(), &LoadOptions { fresh, ..options() });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..3000), magic in 0usize..9) {
        let magics: [&[u8]; 9] = [
            b"", b"\x7fELF\x02\x01\x01", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x28, 0xb5, 0x2f, 0xfd],
            &[2, 0x21, 0x4c, 0x18], b"MZ", &[0x5d, 0, 0, 0, 0x80], b"BZh9",
        ];
        let mut file = magics[magic].to_vec();
        file.extend(bytes);
        exercise(&file);
    }

    #[test]
    fn mutated_headers_do_no_harm(
        kind in 0usize..4,
        changes in proptest::collection::vec((0usize..0x300, prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 1..6),
        keep in prop_oneof![9 => Just(1.0), 1 => 0.0..1.0],
    ) {
        let mut elf = ElfFile::tiny();
        elf.notes.push(Note("Xen", 18, 0x10_0004u64.to_le_bytes().to_vec()));
        elf.notes.push(Note("Linux", 0x100, b"salt\0".to_vec()));
        let plain = elf.bytes();
        let mutate = |mut file: Vec<u8>, from: usize| {
            for &(at, value) in &changes {
                let at = from + at;
                if at < file.len() {
                    file[at] = value;
                }
            }
            file.truncate((file.len() as f64 * keep) as usize);
            file
        };
        let file = match kind {
            0 => mutate(plain, 0),
            1 => mutate(bzimage(&pack(Compression::Lz4, &plain), Some(plain.len())), 0x1f0),
            2 => bzimage(&pack(Compression::Gzip, &mutate(plain, 0)), None),
            _ => mutate(pack(Compression::Zstd, &plain), 0),
        };
        exercise(&file);
    }
}
