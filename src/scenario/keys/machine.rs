//! Keys of CPUs, memory, kernel, timers, events and limits.

#![forbid(unsafe_code)]

use super::words::{ACTIONS, AUTO_BOOL, CONSOLES, ENTRIES, FORMATS};
use super::{ANY, Key, Kind, key};

pub(super) const TOPOLOGY: &[Key] = &[
    key(
        "sockets",
        Kind::Count { min: 1, max: 255 },
        "1",
        "1",
        "Packages.",
    )
    .ends("CPUID 0xb, 0x8000001e", "cpu/topology/@sockets"),
    key(
        "cores",
        Kind::Count { min: 1, max: 4096 },
        "",
        "2",
        "Cores in each package.",
    )
    .why("by default what the number of vCPUs leaves")
    .ends("CPUID 4, 0xb", "cpu/topology/@cores"),
    key(
        "threads",
        Kind::Count { min: 1, max: 2 },
        "1",
        "2",
        "Threads in each core.",
    )
    .ends("CPUID 1 EBX, 0xb", "cpu/topology/@threads"),
];

pub(super) const CPU: &[Key] = &[
    key(
        "count",
        Kind::Count { min: 0, max: ANY },
        "1",
        "4",
        "Number of vCPUs.",
    )
    .aka(&["vcpus", "vcpu_count"])
    .why("1 to what the host's KVM allows (KVM_CAP_MAX_VCPUS)")
    .ends("MADT, CPUID 1 EBX", "vcpu"),
    key(
        "topology",
        Kind::Map {
            keys: TOPOLOGY,
            scalar: None,
        },
        "",
        "{sockets: 1, cores: 2, threads: 2}",
        "How the guest sees its vCPUs; the product is their number.",
    )
    .ends("CPUID 0xb", "cpu/topology"),
    key(
        "ht",
        Kind::Bool,
        "false",
        "true",
        "Two threads in each core; the number of vCPUs is then 1 or even.",
    )
    .aka(&["ht_enabled", "smt", "hyperthreading"])
    .ends("CPUID 1 EDX bit 28", "cpu/topology/@threads"),
    key(
        "nested",
        Kind::Bool,
        "false",
        "true",
        "Shows SVM or VMX to the guest, so that it can run machines itself.",
    )
    .aka(&["nested_enabled"])
    .why("off: fewer CPU features, a smaller attack surface")
    .ends(
        "CPUID 0x80000001 ECX bit 2 (SVM), 1 ECX bit 5 (VMX)",
        "cpu/feature[@name='svm']",
    ),
];

pub(super) const MEMORY: &[Key] = &[key(
    "size",
    Kind::Size,
    "256M",
    "2G",
    "Guest RAM; a bare number is MiB.",
)
.aka(&["mem_size_mib"])
.why("8 MiB to the host's RAM, in pages of 4 KiB")
.ends("E820 map", "memory")];

pub(super) const KERNEL: &[Key] = &[
    key("path", Kind::Path, "", "vmlinuz", "The kernel: ELF, bzImage or a compressed vmlinux, told apart by content.")
        .why("without one, the built-in guest starts; with a command, the newest kernel that this host can boot")
        .ends("", "os/kernel"),
    key("initrd", Kind::Paths, "", "[base.cpio, extra.cpio]", "The initial RAM disk, or its parts in their order.")
        .aka(&["initramfs"])
        .ends("boot_params.hdr.ramdisk_image, hvm_start_info module", "os/initrd"),
    key("cmdline", Kind::Text, "", "root=/dev/vda rw", "Words for the kernel.").aka(&["args", "append"]).ends("/proc/cmdline", "os/cmdline"),
    key("prolog", Kind::Text, "", "earlyprintk=ttyS0", "Words before all others.").ends("/proc/cmdline", "os/cmdline"),
    key("epilog", Kind::Text, "", "single", "Words after all others.").ends("/proc/cmdline", "os/cmdline"),
    key("format", Kind::Word(FORMATS), "auto", "elf", "Refuses a kernel file of another kind."),
    key("entry", Kind::Word(ENTRIES), "auto", "pvh", "How the kernel is entered."),
    key("console", Kind::Word(CONSOLES), "", "ttyS0", "The console= on the kernel's command line.")
        .why("by default the first console that the machine has")
        .ends("console= on the command line", "os/cmdline"),
    key("devices_on_cmdline", Kind::Word(AUTO_BOOL), "auto", "true", "Names the virtio-mmio devices on the command line too.")
        .why("for kernels without ACPI")
        .ends("virtio_mmio.device= on the command line", ""),
];

pub(super) const ROOT: &[Key] = &[
    key(
        "device",
        Kind::Text,
        "",
        "/dev/vda1",
        "The block device, as the guest names it, that becomes the root directory; none: the initrd stays it.",
    ),
    key(
        "fstype",
        Kind::Name { max: 32 },
        "",
        "ext4",
        "Its file system; without it, each that the kernel knows is tried.",
    )
    .aka(&["type"]),
    key("options", Kind::Text, "", "rw,noatime", "Mount options."),
];

pub(super) const TIMERS: &[Key] = &[key(
    "pit",
    Kind::Bool,
    "false",
    "true",
    "An 8254 timer; only kernels without kvmclock and TSC deadline timer need it.",
)
.why("off: nothing to set up and tear down; a split irqchip has none")
.ends("ports 0x40-0x43, 0x61", "clock/timer[@name='pit']")];

pub(super) const EVENTS: &[Key] = &[
    key(
        "on_poweroff",
        Kind::Word(ACTIONS),
        "destroy",
        "destroy",
        "What follows when the guest powers itself off.",
    )
    .ends("ACPI PM1a control, SLP_EN", "on_poweroff"),
    key(
        "on_reboot",
        Kind::Word(ACTIONS),
        "destroy",
        "restart",
        "What follows when the guest asks for a reset.",
    )
    .why("destroy: kernels that end with reboot=k end the run instead of starting over")
    .ends("port 0x64 command 0xfe, port 0xcf9", "on_reboot"),
    key(
        "on_crash",
        Kind::Word(ACTIONS),
        "destroy",
        "restart",
        "What follows when the guest panics or triple-faults.",
    )
    .ends("pvpanic, port 0x505", "on_crash"),
    key(
        "max_restarts",
        Kind::Count {
            min: 0,
            max: 1_000_000,
        },
        "10",
        "3",
        "Restarts in one run before the run ends anyway.",
    ),
];

pub(super) const LIMITS: &[Key] = &[
    key(
        "timeout",
        Kind::Time,
        "none",
        "10m",
        "The whole run; then it ends with 124.",
    ),
    key(
        "boot_deadline",
        Kind::Time,
        "30s",
        "1500ms",
        "Until the guest's first sign of life; then the run ends with 121.",
    ),
    key(
        "stop_grace",
        Kind::Time,
        "5s",
        "10s",
        "How long a guest that was asked to stop may take.",
    ),
];

pub(super) const GUEST: &[Key] = &[key(
    "parameters",
    Kind::Text,
    "",
    "exit=3",
    "Words for the built-in guest, as on a kernel command line.",
)];
