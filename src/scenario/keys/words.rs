//! The words that keys take one of.

#![forbid(unsafe_code)]

use super::{Word, refused, word};

pub(super) const ACTIONS: &[Word] = &[
    word("destroy", "the run ends"),
    word("restart", "the machine starts again, in the same process"),
    refused(
        "preserve",
        "a machine that has ended is not kept: its memory goes with the process",
    ),
    refused(
        "rename-restart",
        "there is no second name to restart under: use restart",
    ),
    refused(
        "coredump-destroy",
        "this build writes no core of a guest: use destroy",
    ),
    refused(
        "coredump-restart",
        "this build writes no core of a guest: use restart",
    ),
];

pub(super) const FORMATS: &[Word] = &[
    word("auto", "whatever the content says"),
    word("elf", "an uncompressed ELF vmlinux"),
    word("bzimage", "a bzImage, as distributions install it"),
    word(
        "compressed",
        "a vmlinux compressed with gzip, xz, zstd or lz4",
    ),
];

pub(super) const ENTRIES: &[Word] = &[
    word(
        "auto",
        "PVH when the kernel has the note, else the 64-bit Linux boot protocol",
    ),
    word("pvh", "the PVH entry, 32-bit protected mode"),
    word("linux64", "the 64-bit Linux boot protocol"),
];

pub(super) const CONSOLES: &[Word] = &[
    word("hvc0", "the first virtio console"),
    word("ttyS0", "the first serial port"),
    word("none", "no console= on the command line"),
];

pub(super) const AUTO_BOOL: &[Word] = &[
    word("auto", "decided by what the kernel needs"),
    word("true", "always"),
    word("false", "never"),
];

pub(super) const DISK_FORMATS: &[Word] = &[
    word("raw", "the bytes of the file are the bytes of the disk"),
    refused(
        "auto",
        "a guest that writes a qcow2 header to a raw disk would make it another format at the next start",
    ),
    refused(
        "qcow2",
        "this build reads raw images only: qemu-img convert -O raw",
    ),
    refused(
        "vmdk",
        "this build reads raw images only: qemu-img convert -O raw",
    ),
];

pub(super) const CACHES: &[Word] = &[
    word(
        "none",
        "O_DIRECT; the guest sees a write cache and flushes it",
    ),
    word(
        "writeback",
        "through the host's page cache; the guest's flush is fdatasync",
    ),
    word(
        "writethrough",
        "every write is on the disk before the guest hears of it",
    ),
    word(
        "directsync",
        "O_DIRECT and every write on the disk before the guest hears of it",
    ),
    word(
        "unsafe",
        "through the host's page cache; the guest's flush does nothing",
    ),
];

pub(super) const SYNCS: &[Word] = &[
    word("full", "a flush of the guest is fdatasync"),
    word(
        "relaxed",
        "a flush of the guest orders writes, and the host writes them when it likes",
    ),
    word("none", "a flush of the guest does nothing"),
];

pub(super) const DISCARDS: &[Word] = &[
    word("unmap", "discarded blocks are punched out of the file"),
    word("ignore", "the guest is not offered discard"),
];

pub(super) const IRQCHIPS: &[Word] = &[
    word("kernel", "PIC, I/O APIC and local APICs in the kernel"),
    word(
        "split",
        "local APICs in the kernel, the I/O APIC in this process, no PIC and no PIT",
    ),
];
