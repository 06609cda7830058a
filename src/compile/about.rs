//! Which messages are about this host, and which about libvirt: the same scenario may be fine elsewhere.

#![forbid(unsafe_code)]

use crate::diag::Diagnostic;

/// Messages about this host's files, memory and KVM. Elsewhere the same scenario may be fine.
pub(super) fn is_about_this_host(d: &Diagnostic) -> bool {
    const CODES: [&str; 29] = [
        "E-SECRET",
        "E-MEMORY-HOST",
        "W-OVERCOMMIT",
        "E-NESTED",
        "W-VCPU-COUNT",
        "E-VCPU-HOST",
        "E-DISK-MISSING",
        "E-DISK-READ",
        "E-DISK-KIND",
        "E-DISK-SIZE",
        "E-DISK-READ-ONLY",
        "E-KERNEL-NONE",
        "E-KERNEL-MISSING",
        "E-KERNEL-READ",
        "E-KERNEL-KIND",
        "E-KERNEL-SIZE",
        "E-INITRD-MISSING",
        "E-INITRD-READ",
        "E-INITRD-KIND",
        "E-INITRD-SIZE",
        "W-CONSOLE",
        "W-NO-ROOT",
        "E-BOOT",
        "E-CPU-HOST",
        "E-LOCKSPACE",
        "E-SANLOCK",
        "E-LIMIT",
        "W-CPU-MAX",
        "E-LIMIT-DISK",
    ];
    CODES.contains(&d.code)
}

/// Messages about what libvirt and QEMU can do. The monitor of this program is neither.
pub(super) fn is_about_libvirt(d: &Diagnostic) -> bool {
    const CODES: [&str; 8] = [
        "E-EVENT",
        "E-MACHINE",
        "E-FIRMWARE",
        "W-FIRMWARE",
        "W-LIBVIRT",
        "W-XML",
        "W-EMULATOR",
        "W-ISOLCPUS",
    ];
    CODES.contains(&d.code)
}
