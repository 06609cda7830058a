//! The places of the keys, in libvirt's order of elements.

#![forbid(unsafe_code)]

use super::table::Form::{Expect, Hex, Line, Number, Pairs, Present, Size, State, Text, Words};
use super::table::{Form, ON, Row, YES, row};

pub(super) const HEAD: &[Row] = &[
    row("type", "@type", Words(&["kvm", "qemu"])),
    row("name", "name", Text),
    row("uuid", "uuid", Text),
    row("title", "title", Line),
    row("description", "description", Text),
];

pub(super) const MEMORY: &[Row] = &[
    row("memory.size", "memory", Size),
    row("memory.current", "currentMemory", Size),
    row("memory.nosharepages", "memoryBacking/nosharepages", Present),
    row("memory.locked", "memoryBacking/locked", Present),
    row(
        "memory.source",
        "memoryBacking/source/@type",
        Words(&["anonymous", "memfd", "file"]),
    ),
    row(
        "memory.access",
        "memoryBacking/access/@mode",
        Words(&["private", "shared"]),
    ),
    row(
        "memory.allocation",
        "memoryBacking/allocation/@mode",
        Words(&["ondemand", "immediate"]),
    ),
    row("memory.discard", "memoryBacking/discard", Present),
    row("memory.hard_limit", "memtune/hard_limit", Size),
    row(
        "memory.numa_nodes",
        "numatune/memory[mode=strict]/@nodeset",
        Text,
    ),
    row("cpu.count", "vcpu", Number),
    row("", "vcpu/@placement", Expect("static")),
    row("iothreads", "iothreads", Number),
];

pub(super) const SCHEDULERS: Form = Words(&["fifo", "rr", "batch", "idle"]);

pub(super) const OS: &[Row] = &[
    row("arch", "type/@arch", Text),
    row("machine", "type/@machine", Text),
    row("", "type", Expect("hvm")),
];

pub(super) const LOADER: &[Row] = &[
    row("", "@readonly", Expect("yes")),
    row("secure", "@secure", YES),
    row(
        "device",
        "@type",
        Pairs(&[("flash", "pflash"), ("rom", "rom")]),
    ),
    row("format", "@format", Words(&["raw", "qcow2"])),
    row("stateless", "@stateless", YES),
];

pub(super) const NVRAM: &[Row] = &[
    row("nvram_template", "@template", Text),
    row("", "@templateFormat", Expect("raw")),
    row("", "@format", Expect("raw")),
];

pub(super) const KERNEL: &[Row] = &[
    row("kernel.path", "kernel", Text),
    row("kernel.cmdline", "cmdline", Text),
];

pub(super) const BOOT_DEVICES: &[(&str, &str)] = &[
    ("hd", "hd"),
    ("cdrom", "cdrom"),
    ("network", "network"),
    ("floppy", "fd"),
];

pub(super) const FEATURES: &[Row] = &[
    row("features.acpi", "features/acpi", Present),
    row("features.apic", "features/apic", Present),
    row("features.pae", "features/pae", Present),
    row("features.kvm_hidden", "features/kvm/hidden", State),
    row("features.pmu", "features/pmu", State),
    row("features.vmport", "features/vmport", State),
    row("features.smm", "features/smm", State),
    row(
        "irqchip",
        "features/ioapic/@driver",
        Pairs(&[("kernel", "kvm"), ("split", "qemu")]),
    ),
];

pub(super) const CPU: &[Row] = &[
    row(
        "mode",
        "@mode",
        Words(&["host-passthrough", "host-model", "maximum", "custom"]),
    ),
    row("check", "@check", Words(&["none", "partial", "full"])),
    row("migratable", "@migratable", ON),
    row("model", "model", Text),
    row("", "@match", Expect("exact")),
    // Our language does not let another model stand in.
    row("", "model/@fallback", Expect("forbid")),
    row("", "topology/@dies", Expect("1")),
    row("", "topology/@clusters", Expect("1")),
    row("topology.sockets", "topology/@sockets", Number),
    row("topology.cores", "topology/@cores", Number),
    row("topology.threads", "topology/@threads", Number),
    row(
        "cache",
        "cache/@mode",
        Words(&["passthrough", "emulate", "disable"]),
    ),
];

pub(super) const POLICIES: Form = Words(&["force", "require", "optional", "disable", "forbid"]);

const LOST_TICKS: Form = Words(&["delay", "catchup", "merge", "discard"]);

pub(super) const CLOCK: &[Row] = &[
    row(
        "clock.offset",
        "clock/@offset",
        Words(&["utc", "localtime", "timezone"]),
    ),
    row("clock.timezone", "clock/@timezone", Text),
    row(
        "timers.rtc_policy",
        "clock/timer[name=rtc]/@tickpolicy",
        LOST_TICKS,
    ),
    row("timers.pit", "clock/timer[name=pit]/@present", YES),
    row(
        "timers.pit_policy",
        "clock/timer[name=pit]/@tickpolicy",
        LOST_TICKS,
    ),
    row("timers.hpet", "clock/timer[name=hpet]/@present", YES),
    row(
        "timers.kvmclock",
        "clock/timer[name=kvmclock]/@present",
        YES,
    ),
    row(
        "timers.hypervclock",
        "clock/timer[name=hypervclock]/@present",
        YES,
    ),
];

const ENDINGS: Form = Words(&["destroy", "restart", "preserve", "rename-restart"]);

pub(super) const EVENTS: &[Row] = &[
    row("events.on_poweroff", "on_poweroff", ENDINGS),
    row("events.on_reboot", "on_reboot", ENDINGS),
    row(
        "events.on_crash",
        "on_crash",
        Words(&[
            "destroy",
            "restart",
            "preserve",
            "rename-restart",
            "coredump-destroy",
            "coredump-restart",
        ]),
    ),
    row(
        "events.on_lockfailure",
        "on_lockfailure",
        Words(&["poweroff", "restart", "pause", "ignore"]),
    ),
    row("power.suspend_to_mem", "pm/suspend-to-mem/@enabled", YES),
    row("power.suspend_to_disk", "pm/suspend-to-disk/@enabled", YES),
];

/// Attributes of a disk and its `driver`, which stands before the source.
pub(super) const DISK: &[Row] = &[
    row("device", "@device", Words(&["disk", "cdrom", "floppy"])),
    row("", "driver/@name", Expect("qemu")),
    row("format", "driver/@type", Text),
    row(
        "cache",
        "driver/@cache",
        Words(&["none", "writeback", "writethrough", "directsync", "unsafe"]),
    ),
    row(
        "io",
        "driver/@io",
        Words(&["threads", "native", "io_uring"]),
    ),
    row("discard", "driver/@discard", Words(&["unmap", "ignore"])),
    row(
        "detect_zeroes",
        "driver/@detect_zeroes",
        Words(&["off", "on", "unmap"]),
    ),
];

/// What only a virtio disk has on its own `driver`; of a SCSI disk it belongs to the controller.
pub(super) const VIRTIO_DRIVER: &[Row] = &[
    row("queues", "driver/@queues", Number),
    row("iothread", "driver/@iothread", Number),
    row("iommu", "driver/@iommu", ON),
];

pub(super) const DISK_END: &[Row] = &[
    row("target", "target/@dev", Text),
    row(
        "bus",
        "target/@bus",
        Words(&["virtio", "scsi", "sata", "ide", "usb", "fdc"]),
    ),
    row("block_size", "blockio/@logical_block_size", Number),
    row("read_only", "readonly", Present),
    row("shareable", "shareable", Present),
    row("transient", "transient", Present),
    row("id", "serial", Text),
    row("boot", "boot/@order", Number),
];

pub(super) const SHARE: &[Row] = &[
    row("", "@type", Expect("mount")),
    row(
        "accessmode",
        "@accessmode",
        Words(&["mapped", "passthrough", "squash"]),
    ),
    row("fmode", "@fmode", Text),
    row("dmode", "@dmode", Text),
    row("driver", "driver/@type", Words(&["path", "virtiofs"])),
    row("source", "source/@dir", Text),
    row("target", "target/@dir", Text),
    row("read_only", "readonly", Present),
];

pub(super) const NET: &[Row] = &[
    row(
        "type",
        "@type",
        Words(&["network", "bridge", "user", "direct", "ethernet"]),
    ),
    row("mac", "mac/@address", Text),
];

pub(super) const NET_END: &[Row] = &[
    row("target", "target/@dev", Text),
    row("model", "model/@type", Text),
    row("driver", "driver/@name", Words(&["vhost", "qemu"])),
    row("queues", "driver/@queues", Number),
    row("iommu", "driver/@iommu", ON),
    row("mtu", "mtu/@size", Number),
    row("link", "link/@state", Form::Flag("up", "down")),
    row("boot", "boot/@order", Number),
];

pub(super) const TPM: &[Row] = &[
    row("model", "@model", Words(&["tpm-crb", "tpm-tis"])),
    row("type", "backend/@type", Words(&["emulator", "passthrough"])),
    row("version", "backend/@version", Words(&["1.2", "2.0"])),
];

pub(super) const TPM_PATH: &[Row] = &[row("path", "backend/device/@path", Text)];

pub(super) const GRAPHICS: &[Row] = &[
    row(
        "type",
        "@type",
        Words(&["vnc", "spice", "sdl", "egl-headless"]),
    ),
    row("port", "@port", Number),
];

pub(super) const KEYMAP: &[Row] = &[row("keymap", "@keymap", Text)];

pub(super) const SOUND: &[Row] = &[row(
    "model",
    "@model",
    Words(&["ich9", "ich6", "ac97", "es1370", "sb16", "usb", "virtio"]),
)];

pub(super) const VIDEO: &[Row] = &[
    row("iommu", "driver/@iommu", ON),
    row(
        "model",
        "model/@type",
        Words(&["virtio", "qxl", "vga", "bochs", "cirrus", "none"]),
    ),
    row("ram", "model/@ram", Number),
    row("vram", "model/@vram", Number),
    row("vgamem", "model/@vgamem", Number),
    row("heads", "model/@heads", Number),
    row("", "model/@primary", Expect("yes")),
    row("accel3d", "model/acceleration/@accel3d", YES),
];

pub(super) const WATCHDOG: &[Row] = &[
    row("model", "@model", Words(&["i6300esb", "itco", "ib700"])),
    row(
        "action",
        "@action",
        Words(&[
            "none",
            "poweroff",
            "reset",
            "shutdown",
            "pause",
            "dump",
            "inject-nmi",
        ]),
    ),
];

pub(super) const BALLOON: &[Row] = &[
    row(
        "model",
        "@model",
        Words(&[
            "virtio",
            "none",
            "virtio-non-transitional",
            "virtio-transitional",
        ]),
    ),
    row("autodeflate", "@autodeflate", ON),
    row("free_page_reporting", "@freePageReporting", ON),
    row("stats_period", "stats/@period", Number),
    row("iommu", "driver/@iommu", ON),
];

pub(super) const RNG: &[Row] = &[
    row("iommu", "driver/@iommu", ON),
    row("rate_bytes", "rate/@bytes", Number),
    row("rate_period", "rate/@period", Number),
    row("", "backend/@model", Expect("random")),
    row("source", "backend", Text),
];

pub(super) const VSOCK: &[Row] = &[
    row("auto", "cid/@auto", YES),
    row("cid", "cid/@address", Number),
];

/// The decision of a device whose key table has none of its own: written, and read for all devices at once.
pub(super) const IOMMU: &[Row] = &[row("iommu", "driver/@iommu", ON)];

pub(super) const USB: &[Row] = &[row(
    "usb.model",
    "@model",
    Words(&["qemu-xhci", "nec-xhci", "ich9-ehci1", "piix3-uhci", "none"]),
)];

pub(super) const SEV: &[Row] = &[
    row("kernel_hashes", "@kernelHashes", YES),
    row("cbitpos", "cbitpos", Number),
    row("reduced_phys_bits", "reducedPhysBits", Number),
    row("policy", "policy", Hex),
    row("dh_cert", "dhCert", Text),
    row("session", "session", Text),
];

pub(super) const SNP: &[Row] = &[
    row("kernel_hashes", "@kernelHashes", YES),
    row("author_key", "@authorKey", YES),
    row("vcek", "@vcek", YES),
    row("cbitpos", "cbitpos", Number),
    row("reduced_phys_bits", "reducedPhysBits", Number),
    row("policy", "policy", Hex),
    row("guest_visible_workarounds", "guestVisibleWorkarounds", Text),
    row("id_block", "idBlock", Text),
    row("id_auth", "idAuth", Text),
    row("host_data", "hostData", Text),
];
