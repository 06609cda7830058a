//! The words that keys take one of.

#![forbid(unsafe_code)]

use super::{Word, elsewhere, refused, word};

const KEPT: &str =
    "the monitor of this build keeps no machine that has ended: its memory goes with the process";
const NO_CORE: &str = "the monitor of this build writes no core of a guest";

pub(super) const ACTIONS: &[Word] = &[
    word("destroy", "the run ends"),
    word("restart", "the machine starts again, in the same process"),
    elsewhere("preserve", "the machine is kept as it ended", KEPT),
    elsewhere(
        "rename-restart",
        "the machine starts again under a second name",
        KEPT,
    ),
    elsewhere(
        "coredump-destroy",
        "a core is written, then the run ends",
        NO_CORE,
    ),
    elsewhere(
        "coredump-restart",
        "a core is written, then the machine starts again",
        NO_CORE,
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

const RAW_ONLY: &str = "the monitor of this build reads raw images only: qemu-img convert -O raw";

pub(super) const DISK_FORMATS: &[Word] = &[
    word("raw", "the bytes of the file are the bytes of the disk"),
    elsewhere("qcow2", "QEMU's format, which grows", RAW_ONLY),
    elsewhere("vmdk", "VMware's format", RAW_ONLY),
    elsewhere("vdi", "VirtualBox's format", RAW_ONLY),
    elsewhere("vhdx", "Hyper-V's format", RAW_ONLY),
    refused(
        "auto",
        "a guest that writes a qcow2 header to a raw disk would make it another format at the next start",
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

const AS_PLAIN: &str = "the monitor of this build has one virtio block device, its own";

pub(super) const IMAGE_FORMATS: &[Word] =
    &[word("raw", "as it is"), word("qcow2", "QEMU's format")];
pub(super) const BUSES: &[Word] = &[
    word("virtio", "virtio-blk"),
    elsewhere(
        "scsi",
        "virtio-scsi, or the controller that libvirt adds",
        AS_PLAIN,
    ),
    elsewhere("sata", "AHCI", AS_PLAIN),
    elsewhere("ide", "IDE, on i440fx", AS_PLAIN),
    elsewhere("usb", "a USB stick", AS_PLAIN),
    elsewhere("fdc", "a floppy drive", AS_PLAIN),
];
pub(super) const DISK_DEVICES: &[Word] = &[
    word("disk", "a disk"),
    elsewhere("cdrom", "a CD-ROM, never written", AS_PLAIN),
    elsewhere("floppy", "a floppy disk", AS_PLAIN),
];
pub(super) const IMAGE_TYPES: &[Word] = &[
    word("file", "a regular file"),
    word("block", "a block device"),
];

pub(super) const IO_MODES: &[Word] = &[
    word("threads", "a pool of threads"),
    elsewhere(
        "native",
        "Linux AIO",
        "the monitor of this build uses io_uring or threads",
    ),
    word("io_uring", "io_uring"),
];
pub(super) const ZEROES: &[Word] = &[
    word("off", "zeros are written"),
    word("on", "zeros become holes where that is cheap"),
    word("unmap", "zeros are discarded"),
];
pub(super) const PREALLOCATIONS: &[Word] = &[
    word("off", "blocks are taken when they are written"),
    word("metadata", "qcow2: the tables are there, the data is not"),
    word("falloc", "blocks are reserved"),
    word("full", "blocks are written"),
];
pub(super) const COMPRESSIONS: &[Word] = &[
    word("zlib", "any QEMU reads it"),
    word("zstd", "faster; QEMU 5.1 and later"),
];
pub(super) const ENCRYPTIONS: &[Word] = &[
    word("none", "anyone who has the image reads it"),
    word(
        "luks",
        "LUKS; the passphrase is a secret of libvirt, or a file",
    ),
];

pub(super) const TYPES: &[Word] = &[
    word("kvm", "with hardware virtualization"),
    elsewhere(
        "qemu",
        "emulated, slowly, anywhere (TCG)",
        "the monitor of this build is KVM",
    ),
];
pub(super) const ARCHES: &[Word] = &[
    word("x86_64", "64-bit PC"),
    elsewhere(
        "i686",
        "32-bit PC",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "aarch64",
        "64-bit ARM",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "armv7l",
        "32-bit ARM",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "ppc64le",
        "POWER",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "ppc64",
        "POWER, big endian",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "riscv64",
        "RISC-V",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "s390x",
        "IBM Z",
        "the monitor of this build runs x86_64 guests",
    ),
    elsewhere(
        "loongarch64",
        "LoongArch",
        "the monitor of this build runs x86_64 guests",
    ),
];
pub(super) const MODES: &[Word] = &[
    word("host-passthrough", "the host's CPU as it is"),
    elsewhere(
        "host-model",
        "libvirt's nearest model of the host's CPU",
        "the monitor of this build passes the host's CPU through",
    ),
    elsewhere(
        "maximum",
        "everything that the emulator can do",
        "the monitor of this build passes the host's CPU through",
    ),
    elsewhere(
        "custom",
        "the model named by cpu.model",
        "the monitor of this build passes the host's CPU through",
    ),
];
pub(super) const CHECKS: &[Word] = &[
    word("none", "the guest starts with what there is"),
    word("partial", "what is asked for must be there"),
    word("full", "the CPU must be exactly as asked for"),
];
pub(super) const CPU_CACHES: &[Word] = &[
    word("passthrough", "the host's caches"),
    elsewhere(
        "emulate",
        "caches that QEMU makes up",
        "the monitor of this build passes the host's caches through",
    ),
    elsewhere(
        "disable",
        "none",
        "the monitor of this build passes the host's caches through",
    ),
];
pub(super) const POLICIES: &[Word] = &[
    word("force", "shown whether the host has it or not"),
    word("require", "shown; the machine does not start without it"),
    word("optional", "shown where the host has it"),
    word("disable", "not shown"),
    word("forbid", "the machine does not start where the host has it"),
];
pub(super) const SCHEDULERS: &[Word] = &[
    word("fifo", "real time, until it blocks"),
    word("rr", "real time, in turns"),
    word("batch", "long slices"),
    word("idle", "when nothing else runs"),
];
pub(super) const SOURCES: &[Word] = &[
    word("anonymous", "memory of the process, which KSM may merge"),
    word("memfd", "a memfd, which other processes can map"),
    elsewhere(
        "file",
        "a file in the directory that libvirt is set up for",
        "The monitor of this build has no directory for files of guest memory",
    ),
];
pub(super) const SHARINGS: &[Word] = &[
    word("private", "for this process"),
    word("shared", "vhost-user and virtiofs backends can map it"),
];
pub(super) const HUGEPAGES: &[Word] = &[
    word("none", "ordinary pages"),
    word("2M", "pages of 2 MiB"),
    word("1G", "pages of 1 GiB"),
];
pub(super) const ALLOCATIONS: &[Word] = &[
    word("ondemand", "when the guest touches it"),
    word("immediate", "before it starts"),
];
pub(super) const BOOTS: &[Word] = &[
    word("hd", "the first disk"),
    word("cdrom", "the first CD-ROM"),
    word("network", "PXE"),
    word("floppy", "the first floppy disk"),
];
pub(super) const FIRMWARES: &[Word] = &[
    word("auto", "UEFI, chosen from QEMU's firmware descriptors"),
    word(
        "efi",
        "UEFI, chosen from QEMU's firmware descriptors, or by libvirt where there are none",
    ),
    word("bios", "SeaBIOS"),
    word("none", "nothing: a kernel is started directly"),
];
pub(super) const DEVICES_OF_FIRMWARE: &[Word] = &[
    word("flash", "pflash, with a variable store"),
    word("rom", "read-only memory, as SEV wants it"),
];
pub(super) const CLOCKS: &[Word] = &[
    word("utc", "UTC"),
    elsewhere(
        "localtime",
        "the host's local time, as Windows wants it",
        "the clock of this build's monitor is UTC",
    ),
    elsewhere(
        "timezone",
        "the time of clock.timezone",
        "the clock of this build's monitor is UTC",
    ),
];
pub(super) const TICKS: &[Word] = &[
    word("delay", "they come later, at the usual rate"),
    word("catchup", "they come faster until the guest has caught up"),
    word("merge", "they become one"),
    word("discard", "they are lost"),
];
pub(super) const AUTO_SWITCH: &[Word] = &[
    word("auto", "where it is needed"),
    word("true", "on every virtio device"),
    word("false", "on none"),
];
pub(super) const SECURITIES: &[Word] = &[
    word("none", "the host can read the guest's memory"),
    word(
        "sev",
        "AMD SEV: encrypted memory; SEV-ES too where the policy says so",
    ),
    word("sev-es", "AMD SEV-ES: encrypted registers too"),
    word(
        "sev-snp",
        "AMD SEV-SNP: integrity and attestation by the guest",
    ),
];
const NO_REVOKING: &str = "locks of files cannot be revoked while they are held, only the leases of `locking: sanlock` can";
pub(super) const LOCK_ACTIONS: &[Word] = &[
    elsewhere("poweroff", "the machine ends at once", NO_REVOKING),
    elsewhere(
        "restart",
        "the machine ends, and starts again once it has its leases again",
        NO_REVOKING,
    ),
    elsewhere(
        "pause",
        "the machine stands still without its leases, until `vsc-run ctl RUN resume` takes them again",
        NO_REVOKING,
    ),
    elsewhere(
        "ignore",
        "the machine goes on without its leases",
        NO_REVOKING,
    ),
];
pub(super) const LOCK_DRIVERS: &[Word] = &[
    word(
        "files",
        "locks on the images themselves, which QEMU, cloud-hypervisor and this program respect",
    ),
    word(
        "lockd",
        "the same, and those of libvirt's virtlockd: byte 0 of the image, or a file in a lockspace",
    ),
    word(
        "sanlock",
        "leases on shared storage, which sanlock's daemon keeps, as libvirt's plug-in has them",
    ),
    word("none", "nothing"),
    refused(
        "nop",
        "libvirt's name for the manager that manages nothing: write `none`",
    ),
];
pub(super) const THPS: &[Word] = &[
    word("always", "for every process"),
    word("madvise", "for those that ask"),
    word("never", "for none"),
];
pub(super) const SHMEM_THPS: &[Word] = &[
    word("always", "wherever one fits"),
    word(
        "within_size",
        "not beyond a file's end, and where asked for",
    ),
    word("advise", "where asked for with madvise(2)"),
    word(
        "never",
        "only with MADV_COLLAPSE, for the part that a guest boots in",
    ),
];
pub(super) const THP_DEFRAGS: &[Word] = &[
    word("always", "a process waits until there is one"),
    word("defer", "none waits; they come later"),
    word("defer+madvise", "only those wait that asked for them"),
    word(
        "madvise",
        "those wait that asked for them, others get none unless there is one",
    ),
    word("never", "none waits"),
];
pub(super) const HOST_SCHEDULERS: &[Word] = &[
    word("none", "requests go to the device as they come"),
    word("mq-deadline", "each request before its deadline"),
    word("bfq", "fair between processes"),
    word("kyber", "by latency targets"),
];
pub(super) const NET_TYPES: &[Word] = &[
    word("network", "a network of libvirt"),
    word("bridge", "a bridge of the host"),
    word("user", "user-mode networking, without privileges"),
    word("direct", "macvtap on an interface of the host"),
    word("ethernet", "a tap device"),
];
pub(super) const NET_MODELS: &[Word] = &[
    word("virtio", "virtio-net"),
    word(
        "virtio-non-transitional",
        "virtio-net, 1.0 only, on a PCI slot",
    ),
    word("virtio-transitional", "virtio-net, old and new drivers"),
    word("e1000", "Intel 82540EM"),
    word("e1000e", "Intel 82574L"),
    word("rtl8139", "Realtek 8139"),
    word("igb", "Intel 82576"),
];
pub(super) const NET_DRIVERS: &[Word] = &[
    word("vhost", "the host's kernel"),
    word("qemu", "the emulator"),
];
pub(super) const SHARE_DRIVERS: &[Word] = &[
    word("path", "9p"),
    word("virtiofs", "virtiofs; needs shared memory"),
];
pub(super) const ACCESSES: &[Word] = &[
    word("passthrough", "those of the emulator's user"),
    word("mapped", "kept in extended attributes"),
    word("squash", "as passthrough, errors of chown ignored"),
];
pub(super) const WATCHDOGS: &[Word] = &[
    word("none", "no watchdog"),
    word("i6300esb", "Intel 6300ESB, a PCI device"),
    word("itco", "that of the ICH9 chipset"),
    word("ib700", "iBASE 700, an ISA device"),
];
pub(super) const WATCHDOG_ACTIONS: &[Word] = &[
    word("reset", "the machine starts again"),
    word("poweroff", "the machine is switched off"),
    word("shutdown", "the guest is asked to shut down"),
    word("pause", "the machine stands still"),
    word("dump", "a core is written"),
    word("inject-nmi", "the guest gets an NMI"),
    word("none", "nothing"),
];
pub(super) const TPMS: &[Word] = &[
    word("none", "no TPM"),
    word("tpm-crb", "command response buffer, TPM 2.0"),
    word("tpm-tis", "the older FIFO interface"),
];
pub(super) const TPM_TYPES: &[Word] = &[
    word("emulator", "swtpm"),
    word("passthrough", "the host's TPM"),
];
pub(super) const TPM_VERSIONS: &[Word] = &[word("2.0", "TPM 2.0"), word("1.2", "TPM 1.2")];
pub(super) const BALLOONS: &[Word] = &[
    word("virtio", "virtio-balloon"),
    word("virtio-non-transitional", "virtio-balloon, 1.0 only"),
    word("virtio-transitional", "virtio-balloon, old and new drivers"),
    word("none", "no balloon"),
];
pub(super) const VIDEOS: &[Word] = &[
    word("virtio", "virtio-gpu"),
    word("qxl", "QXL, for SPICE"),
    word("vga", "standard VGA"),
    word("bochs", "Bochs display"),
    word("cirrus", "Cirrus Logic"),
    word("none", "no graphics card"),
];
pub(super) const GRAPHICS_TYPES: &[Word] = &[
    word("vnc", "VNC"),
    word("spice", "SPICE"),
    word("sdl", "a window on this host"),
    word("egl-headless", "3D for another protocol"),
    word("none", "no screen"),
];
pub(super) const SOUNDS: &[Word] = &[
    word("none", "no sound"),
    word("ich9", "Intel HD Audio of the ICH9"),
    word("ich6", "Intel HD Audio of the ICH6"),
    word("ac97", "AC97"),
    word("es1370", "Ensoniq"),
    word("sb16", "SoundBlaster 16"),
    word("usb", "USB audio"),
    word("virtio", "virtio-snd; libvirt 10.4 and later"),
];
pub(super) const INPUTS: &[Word] = &[
    word("virtio", "a virtio input device"),
    word("ps2", "PS/2"),
    word("usb", "USB"),
    word("none", "not there"),
];
pub(super) const USBS: &[Word] = &[
    word("qemu-xhci", "USB 3, made for virtual machines"),
    word("nec-xhci", "USB 3, NEC"),
    word("ich9-ehci1", "USB 2 of the ICH9"),
    word("piix3-uhci", "USB 1 of the PIIX3"),
    word("none", "no USB; libvirt adds one otherwise"),
];
