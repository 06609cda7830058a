//! Names for files that are not kernels this program starts.
//!
//! Sources: `file(1)`'s magic and the formats' own documents; Linux `Documentation/arch/arm64/booting.rst`,
//! `Documentation/arch/riscv/boot-image-header.rst`, `drivers/firmware/efi/libstub/zboot-header.S`; PE/COFF specification.

use crate::bytes::{u16_at, u32_at};

/// What a file is, if not a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// For another machine.
    Architecture(String),
    /// An EFI program.
    Efi {
        what: &'static str,
        advice: &'static str,
    },
    /// Something else that has a name.
    Other {
        what: &'static str,
        advice: &'static str,
    },
    /// Compressed in a way that is not decoded.
    Unsupported { compression: &'static str },
    /// No idea.
    Unknown,
}

const DISK: &str = "attach it as a disk, and give the kernel separately";
const INITRD: &str = "give it as the initrd, and a vmlinux or bzImage as the kernel";
const GIVE: &str = "give a vmlinux or bzImage";
const UNPACK: &str = "unpack it first and give the kernel inside";

/// Magic bytes: offset, bytes, name, advice.
const MAGICS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"070701", "an initrd (cpio archive)", INITRD),
    (0, b"070702", "an initrd (cpio archive)", INITRD),
    (0, b"070707", "an initrd (old cpio archive)", INITRD),
    (0, &[0xc7, 0x71], "an initrd (binary cpio archive)", INITRD),
    (0, b"QFI\xfb", "a qcow2 disk image", DISK),
    (0, b"hsqs", "a squashfs file system", DISK),
    (0, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS file system", DISK),
    (
        1024,
        &[0xe2, 0xe1, 0xf5, 0xe0],
        "an EROFS file system",
        DISK,
    ),
    (0x438, &[0x53, 0xef], "an ext2/3/4 file system", DISK),
    (0, b"XFSB", "an XFS file system", DISK),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system", DISK),
    (0x8001, b"CD001", "an ISO 9660 image (CD or DVD)", DISK),
    (0, b"KDMV", "a VMDK disk image", DISK),
    (0, b"vhdxfile", "a VHDX disk image", DISK),
    (0, b"conectix", "a VHD disk image", DISK),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI disk image", DISK),
    (0, b"LUKS\xba\xbe", "a LUKS-encrypted disk", DISK),
    (0x200, b"EFI PART", "a disk image with a GPT", DISK),
    (0, b"#!", "a script", GIVE),
    (0, b"!<arch>\ndebian", "a Debian package", UNPACK),
    (0, b"!<arch>\n", "an archive of objects (ar)", GIVE),
    (0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package", UNPACK),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (
        0,
        &[0x27, 0x05, 0x19, 0x56],
        "a U-Boot uImage",
        "give the vmlinux or bzImage it was made from",
    ),
    (
        0,
        &[0xd0, 0x0d, 0xfe, 0xed],
        "a device tree or FIT image",
        GIVE,
    ),
    (0, b"\0asm", "a WebAssembly module", GIVE),
];

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Names a file that is neither ELF nor bzImage nor compressed in a known way.
pub(super) fn name(bytes: &[u8]) -> Verdict {
    // arm64 and RISC-V images may begin with an EFI stub's MZ: look for them first.
    if has(bytes, 0x38, b"ARMd") {
        return Verdict::Architecture("a Linux kernel for arm64 (Image)".to_owned());
    }
    if has(bytes, 0x30, b"RISCV\0\0\0") || has(bytes, 0x38, b"RSC\x05") {
        return Verdict::Architecture("a Linux kernel for RISC-V (Image)".to_owned());
    }
    if has(bytes, 0, b"MZ") {
        return portable_executable(bytes);
    }
    if has(bytes, 0, b"\x89LZO") {
        return Verdict::Unsupported { compression: "lzo" };
    }
    if has(bytes, 0, b"LZIP") {
        return Verdict::Unsupported {
            compression: "lzip",
        };
    }
    if has(bytes, 0, &[0x04, 0x22, 0x4d, 0x18]) {
        return Verdict::Unsupported {
            compression: "lz4 (frame format; Linux uses the legacy format of `lz4 -l`)",
        };
    }
    if let Some((_, _, what, advice)) = MAGICS
        .iter()
        .find(|(at, magic, _, _)| has(bytes, *at, magic))
    {
        return Verdict::Other { what, advice };
    }
    if bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        return Verdict::Other {
            what: "a disk image (boot sector)",
            advice: DISK,
        };
    }
    let head = &bytes[..bytes.len().min(4096)];
    if head.iter().all(|&byte| byte == 0) {
        return Verdict::Other {
            what: "nothing but zero bytes at its beginning",
            advice: GIVE,
        };
    }
    let text = |&byte: &u8| {
        byte == b'\n'
            || byte == b'\t'
            || byte == b'\r'
            || (0x20..0x7f).contains(&byte)
            || byte >= 0x80
    };
    if std::str::from_utf8(&head[..head.len().min(512)])
        .map_or_else(|e| e.error_len().is_none(), |_| true)
        && head.iter().all(text)
    {
        return Verdict::Other {
            what: "a text file",
            advice: GIVE,
        };
    }
    Verdict::Unknown
}

/// A PE file: EFI program, UKI, zboot image, or a Windows/DOS program.
fn portable_executable(bytes: &[u8]) -> Verdict {
    if has(bytes, 4, b"zimg") {
        return Verdict::Efi {
            what: "a Linux kernel as EFI zboot image",
            advice: "such images are made for arm64, RISC-V and LoongArch only; give an x86-64 vmlinux or bzImage",
        };
    }
    let header = u32_at(bytes, 0x3c).and_then(|at| usize::try_from(at).ok());
    let Some(header) = header.filter(|&header| has(bytes, header, b"PE\0\0")) else {
        return Verdict::Other {
            what: "a DOS program",
            advice: GIVE,
        };
    };
    let machine = match u16_at(bytes, header + 4) {
        Some(0x8664) => None,
        Some(0x014c) => Some("i386"),
        Some(0xaa64) => Some("arm64"),
        Some(0x01c0 | 0x01c2 | 0x01c4) => Some("32-bit ARM"),
        Some(0x5032 | 0x5064) => Some("RISC-V"),
        Some(0x6232 | 0x6264) => Some("LoongArch"),
        _ => Some("another machine"),
    };
    let sections = usize::from(u16_at(bytes, header + 6).unwrap_or(0)).min(96);
    let table = header + 24 + usize::from(u16_at(bytes, header + 20).unwrap_or(0));
    let uki = (0..sections).any(|n| has(bytes, table + n * 40, b".linux\0\0"));
    match (machine, uki) {
        (Some(machine), true) => {
            Verdict::Architecture(format!("a unified kernel image (UKI) for {machine}"))
        }
        (Some(machine), false) => Verdict::Architecture(format!("an EFI program for {machine}")),
        (None, true) => Verdict::Efi {
            what: "a unified kernel image (UKI)",
            advice: "boot it with UEFI firmware, or cut the kernel out: \
                     objcopy -O binary --only-section=.linux FILE vmlinuz",
        },
        (None, false) => Verdict::Efi {
            what: "an EFI program",
            advice: "boot it with UEFI firmware, or give a vmlinux or bzImage",
        },
    }
}
