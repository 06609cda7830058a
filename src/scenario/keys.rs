//! The key table: every word a scenario can say, with its type, unit, range, default, meaning and where it ends.
//!
//! Decoding, spelling advice, `explain`, the JSON schema and the reference all read this one table.

#![forbid(unsafe_code)]

use serde::Serialize;

/// One key. `disks[].cache` is the key `cache` of the list `disks`.
#[derive(Debug, Serialize)]
pub struct Key {
    /// The word.
    pub name: &'static str,
    /// Other spellings that mean the same.
    pub aliases: &'static [&'static str],
    /// What its value is.
    pub kind: Kind,
    /// What holds when nobody says otherwise; empty where that is nothing.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Why the default or the range is as it is.
    pub reason: &'static str,
    /// A value that is right.
    pub example: &'static str,
    /// The register, table or command line word that it ends in.
    pub register: &'static str,
    /// The element of libvirt's domain XML that says the same.
    pub xml: &'static str,
}

/// What the value of a key is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `true`, `false`, `yes`, `no`, `on`, `off`.
    Bool,
    /// A whole number within a range.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// An amount of memory; a bare number is MiB.
    Size,
    /// A span of time: `1500ms`, `10s`, `2m`, `1h`; a bare number is seconds; `none` is no limit.
    Time,
    /// One line of text.
    Text,
    /// A name: letters, digits, `-`, `_`, `.`, `+`, `:`; at most `max` bytes.
    Name {
        /// Longest, bytes.
        max: usize,
    },
    /// A file of the host, relative to the scenario's directory; `~` is the home directory.
    Path,
    /// One path or a list of them.
    Paths,
    /// A host end of a byte stream.
    Endpoint,
    /// One of these words.
    Word(&'static [Word]),
    /// A command: text split as a shell splits it, or a list.
    Words,
    /// Names and values: a map, or a list of `NAME=value`.
    Env,
    /// Keys below this one. `scalar` names the key that a bare value is for.
    Map {
        /// The keys.
        keys: &'static [Key],
        /// The key that a bare value is for.
        scalar: Option<&'static str>,
    },
    /// A list of maps. `scalar` names the key that a bare value is for.
    List {
        /// The keys of each member.
        keys: &'static [Key],
        /// The key that a bare value is for.
        scalar: &'static str,
        /// Most members.
        max: usize,
    },
    /// Another place for the key of this path.
    Alias(&'static [&'static str]),
    /// Known, and not in this build; the code and the sentence to say.
    Later(&'static str, &'static str),
}

/// One allowed word.
#[derive(Debug, Serialize)]
pub struct Word {
    /// The word.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Why it is refused, where the word is known elsewhere but cannot be done.
    pub refused: Option<&'static str>,
}

const fn word(name: &'static str, meaning: &'static str) -> Word {
    Word {
        name,
        meaning,
        refused: None,
    }
}

const fn refused(name: &'static str, why: &'static str) -> Word {
    Word {
        name,
        meaning: "",
        refused: Some(why),
    }
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        aliases: &[],
        kind,
        default,
        meaning,
        reason: "",
        example,
        register: "",
        xml: "",
    }
}

impl Key {
    const fn aka(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn why(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    const fn ends(mut self, register: &'static str, xml: &'static str) -> Self {
        self.register = register;
        self.xml = xml;
        self
    }

    /// Whether `word` is this key or another spelling of it.
    pub fn is(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }
}

/// Finds a key by one of its spellings.
pub fn find(keys: &'static [Key], word: &str) -> Option<&'static Key> {
    keys.iter().find(|k| k.is(word))
}

/// The key of a path of canonical names; list indices are left out.
pub fn at(path: &[&str]) -> Option<&'static Key> {
    let (last, front) = path.split_last()?;
    let mut keys = KEYS;
    for name in front {
        keys = below(&find(keys, name)?.kind)?;
    }
    find(keys, last)
}

/// The keys below a map or a list.
pub fn below(kind: &Kind) -> Option<&'static [Key]> {
    match kind {
        Kind::Map { keys, .. } | Kind::List { keys, .. } => Some(keys),
        _ => None,
    }
}

impl Kind {
    /// What is expected, in words.
    pub fn expected(&self) -> String {
        match self {
            Kind::Bool => "true or false (also yes, no, on, off)".into(),
            Kind::Count { min: 0, max } if *max == u64::from(u32::MAX) => "a whole number".into(),
            Kind::Count { min, max } if *max == u64::from(u32::MAX) => {
                format!("a whole number from {min}")
            }
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Size => {
                "an amount of memory: a number of MiB, or one with K, M, G, T, KiB, MiB, GiB, TiB"
                    .into()
            }
            Kind::Time => "a time: a number of seconds, or one with ms, s, m, h; or `none`".into(),
            Kind::Text => "text".into(),
            Kind::Name { max } => {
                format!("a name of 1 to {max} letters, digits, `-`, `_`, `.`, `+`, `:`")
            }
            Kind::Path => "a file name".into(),
            Kind::Paths => "a file name or a list of them".into(),
            Kind::Endpoint => {
                "one of stdio, stdin, stdout, stderr, null, file:PATH, unix:PATH, fd:NUMBER".into()
            }
            Kind::Word(words) => format!("one of {}", list(words)),
            Kind::Words => "a command line, or a list of its words".into(),
            Kind::Env => "a map of names to values, or a list of NAME=value".into(),
            Kind::Map {
                scalar: Some(_), ..
            } => "a single value or a map".into(),
            Kind::Map { .. } => "a map of keys".into(),
            Kind::List { .. } => "a list".into(),
            Kind::Alias(_) | Kind::Later(..) => String::new(),
        }
    }
}

fn list(words: &[Word]) -> String {
    words
        .iter()
        .filter(|w| w.refused.is_none())
        .map(|w| w.name)
        .collect::<Vec<_>>()
        .join(", ")
}

const ANY: u64 = u32::MAX as u64;
const NOT_YET: &str = "E-LATER";

const ACTIONS: &[Word] = &[
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

const FORMATS: &[Word] = &[
    word("auto", "whatever the content says"),
    word("elf", "an uncompressed ELF vmlinux"),
    word("bzimage", "a bzImage, as distributions install it"),
    word(
        "compressed",
        "a vmlinux compressed with gzip, xz, zstd or lz4",
    ),
];

const ENTRIES: &[Word] = &[
    word(
        "auto",
        "PVH when the kernel has the note, else the 64-bit Linux boot protocol",
    ),
    word("pvh", "the PVH entry, 32-bit protected mode"),
    word("linux64", "the 64-bit Linux boot protocol"),
];

const CONSOLES: &[Word] = &[
    word("hvc0", "the first virtio console"),
    word("ttyS0", "the first serial port"),
    word("none", "no console= on the command line"),
];

const AUTO_BOOL: &[Word] = &[
    word("auto", "decided by what the kernel needs"),
    word("true", "always"),
    word("false", "never"),
];

const DISK_FORMATS: &[Word] = &[
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

const CACHES: &[Word] = &[
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

const SYNCS: &[Word] = &[
    word("full", "a flush of the guest is fdatasync"),
    word(
        "relaxed",
        "a flush of the guest orders writes, and the host writes them when it likes",
    ),
    word("none", "a flush of the guest does nothing"),
];

const DISCARDS: &[Word] = &[
    word("unmap", "discarded blocks are punched out of the file"),
    word("ignore", "the guest is not offered discard"),
];

const IRQCHIPS: &[Word] = &[
    word("kernel", "PIC, I/O APIC and local APICs in the kernel"),
    word(
        "split",
        "local APICs in the kernel, the I/O APIC in this process, no PIC and no PIT",
    ),
];

const TOPOLOGY: &[Key] = &[
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

const CPU: &[Key] = &[
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

const MEMORY: &[Key] = &[key(
    "size",
    Kind::Size,
    "256M",
    "2G",
    "Guest RAM; a bare number is MiB.",
)
.aka(&["mem_size_mib"])
.why("8 MiB to the host's RAM, in pages of 4 KiB")
.ends("E820 map", "memory")];

const KERNEL: &[Key] = &[
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

const ROOT: &[Key] = &[
    key(
        "device",
        Kind::Text,
        "",
        "/dev/vda1",
        "The block device, as the guest names it, that becomes the root directory.",
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

const DISK: &[Key] = &[
    key(
        "path",
        Kind::Path,
        "",
        "rootfs.ext4",
        "The image: a file or a block device.",
    )
    .ends("", "devices/disk/source/@file"),
    key(
        "id",
        Kind::Name { max: 20 },
        "disk0, disk1, …",
        "data",
        "Name of the disk; the guest reads it as the serial number.",
    )
    .aka(&["serial"])
    .why("virtio-blk hands out 20 bytes (VIRTIO 5.2.6, VIRTIO_BLK_T_GET_ID)")
    .ends("VIRTIO_BLK_T_GET_ID", "devices/disk/serial"),
    key(
        "format",
        Kind::Word(DISK_FORMATS),
        "raw",
        "raw",
        "Format of the image; never guessed from its content.",
    )
    .ends("", "devices/disk/driver/@type"),
    key(
        "read_only",
        Kind::Bool,
        "false",
        "true",
        "The guest cannot write.",
    )
    .aka(&["readonly", "ro"])
    .ends("VIRTIO_BLK_F_RO", "devices/disk/readonly"),
    key(
        "cache",
        Kind::Word(CACHES),
        "writeback",
        "none",
        "What the host caches and what a write means.",
    )
    .aka(&["cache_type"])
    .ends("config byte 0x20 (writeback)", "devices/disk/driver/@cache"),
    key(
        "direct_io",
        Kind::Bool,
        "",
        "true",
        "Opens the image with O_DIRECT.",
    )
    .why("by default as `cache` says")
    .ends("", "devices/disk/driver/@cache"),
    key(
        "sync",
        Kind::Word(SYNCS),
        "",
        "full",
        "What a flush of the guest does.",
    )
    .aka(&["sync_mode"])
    .why("by default as `cache` says")
    .ends("VIRTIO_BLK_T_FLUSH", "devices/disk/driver/@cache"),
    key(
        "discard",
        Kind::Word(DISCARDS),
        "unmap",
        "ignore",
        "What happens to blocks that the guest discards.",
    )
    .ends("VIRTIO_BLK_F_DISCARD", "devices/disk/driver/@discard"),
    key(
        "block_size",
        Kind::Count {
            min: 512,
            max: 4096,
        },
        "512",
        "4096",
        "Logical block size in bytes, 512 or 4096.",
    )
    .aka(&["logical_block_size"])
    .ends(
        "config blk_size (offset 20)",
        "devices/disk/blockio/@logical_block_size",
    ),
];

const SERIAL: &[Key] = &[
    key(
        "to",
        Kind::Endpoint,
        "",
        "unix:serial.socket",
        "Host end of the line.",
    )
    .ends("", "devices/serial/source"),
    key(
        "log",
        Kind::Bool,
        "true",
        "false",
        "Output also goes to the console log.",
    )
    .ends("", "devices/serial/log"),
];

const CONSOLE_PORT: &[Key] = &[
    key(
        "name",
        Kind::Name { max: 64 },
        "",
        "org.example.0",
        "Name of the port: /dev/virtio-ports/NAME in the guest.",
    )
    .ends("VIRTIO_CONSOLE_PORT_NAME", "devices/channel/target/@name"),
    key(
        "in",
        Kind::Endpoint,
        "null",
        "file:in.txt",
        "Where the guest reads from.",
    ),
    key(
        "out",
        Kind::Endpoint,
        "null",
        "file:out.txt",
        "Where the guest writes to.",
    ),
    key(
        "tty",
        Kind::Endpoint,
        "",
        "stdio",
        "Both directions, and the port is a console: hvc0, hvc1, …",
    )
    .ends(
        "VIRTIO_CONSOLE_CONSOLE_PORT",
        "devices/console/target[@type='virtio']",
    ),
];

const CONSOLE: &[Key] = &[
    key(
        "log",
        Kind::Path,
        "",
        "console.log",
        "A file of mode 0600 that receives all console output.",
    )
    .ends("", "devices/console/log/@file"),
    key(
        "implicit",
        Kind::Bool,
        "true",
        "false",
        "Adds a console on stdio when the scenario lists none.",
    ),
];

const TIMERS: &[Key] = &[key(
    "pit",
    Kind::Bool,
    "true",
    "false",
    "An 8254 timer; only kernels without kvmclock and TSC deadline timer need it.",
)
.why("not with a split irqchip, which has no PIT")
.ends("ports 0x40-0x43, 0x61", "clock/timer[@name='pit']")];

const EVENTS: &[Key] = &[
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

const LIMITS: &[Key] = &[
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

const GUEST: &[Key] = &[key(
    "parameters",
    Kind::Text,
    "",
    "exit=3",
    "Words for the built-in guest, as on a kernel command line.",
)];

/// The scenario's own keys.
pub const KEYS: &[Key] = &[
    key(
        "name",
        Kind::Name { max: 64 },
        "",
        "lab1",
        "Name of the machine.",
    )
    .why("by default the file's name without .yaml")
    .ends("memfd name, /proc/PID/maps", "name"),
    key(
        "cpu",
        Kind::Map {
            keys: CPU,
            scalar: Some("count"),
        },
        "",
        "4",
        "Virtual CPUs; a bare number is their count.",
    ),
    key(
        "cpus",
        Kind::Alias(&["cpu", "count"]),
        "",
        "4",
        "Number of vCPUs: short for cpu.count.",
    )
    .aka(&["vcpu", "vcpus"]),
    key(
        "memory",
        Kind::Map {
            keys: MEMORY,
            scalar: Some("size"),
        },
        "",
        "256M",
        "Guest RAM.",
    )
    .aka(&["mem"]),
    key(
        "kernel",
        Kind::Map {
            keys: KERNEL,
            scalar: Some("path"),
        },
        "",
        "vmlinuz",
        "The kernel and how it starts; a bare value is its file.",
    ),
    key(
        "initrd",
        Kind::Alias(&["kernel", "initrd"]),
        "",
        "initrd.img",
        "Short for kernel.initrd.",
    )
    .aka(&["initramfs"]),
    key(
        "cmdline",
        Kind::Alias(&["kernel", "cmdline"]),
        "",
        "quiet",
        "Short for kernel.cmdline.",
    )
    .aka(&["append"]),
    key(
        "root",
        Kind::Map {
            keys: ROOT,
            scalar: Some("device"),
        },
        "",
        "/dev/vda",
        "The disk on which the command runs; a bare value is its device.",
    ),
    key(
        "command",
        Kind::Words,
        "",
        "uname -r",
        "What the guest runs; its exit status becomes ours.",
    )
    .aka(&["cmd"]),
    key(
        "env",
        Kind::Env,
        "",
        "{LANG: C}",
        "Environment of the command.",
    )
    .aka(&["environment"]),
    key(
        "workdir",
        Kind::Text,
        "/",
        "/srv",
        "Working directory of the command, in the guest.",
    )
    .aka(&["cwd"]),
    key(
        "disks",
        Kind::List {
            keys: DISK,
            scalar: "path",
            max: 64,
        },
        "",
        "[rootfs.ext4]",
        "virtio-blk disks; a bare value is an image.",
    )
    .aka(&["disk"])
    .ends("virtio device 2", "devices/disk"),
    key(
        "serials",
        Kind::List {
            keys: SERIAL,
            scalar: "to",
            max: 4,
        },
        "",
        "[unix:serial.socket]",
        "16550 serial ports, ttyS0 to ttyS3.",
    )
    .aka(&["serial"])
    .ends("ports 0x3f8, 0x2f8, 0x3e8, 0x2e8", "devices/serial"),
    key(
        "consoles",
        Kind::List {
            keys: CONSOLE_PORT,
            scalar: "tty",
            max: 27,
        },
        "",
        "[{name: log, out: \"file:log.txt\"}]",
        "Ports of a virtio console device.",
    )
    .aka(&["ports"])
    .why("a device has 31 ports; a command takes up to four of them")
    .ends("virtio device 3", "devices/channel"),
    key(
        "console",
        Kind::Map {
            keys: CONSOLE,
            scalar: None,
        },
        "",
        "{log: console.log}",
        "The console as a whole.",
    ),
    key(
        "rng",
        Kind::Bool,
        "false",
        "true",
        "A virtio-rng device that hands out the host's random bytes.",
    )
    .why("off: only what a scenario declares exists; x86 guests have RDRAND")
    .ends("virtio device 4", "devices/rng"),
    key(
        "irqchip",
        Kind::Word(IRQCHIPS),
        "kernel",
        "split",
        "Where the interrupt controllers live.",
    )
    .ends("KVM_CAP_SPLIT_IRQCHIP", "features/ioapic/@driver"),
    key(
        "timers",
        Kind::Map {
            keys: TIMERS,
            scalar: None,
        },
        "",
        "{pit: false}",
        "Timers.",
    ),
    key(
        "iothreads",
        Kind::Count { min: 0, max: 64 },
        "1",
        "2",
        "I/O event loops to spread the devices over; 0 counts as 1.",
    )
    .ends("", "iothreads"),
    key(
        "events",
        Kind::Map {
            keys: EVENTS,
            scalar: None,
        },
        "",
        "{on_reboot: restart}",
        "What follows when the guest ends.",
    ),
    key(
        "on_poweroff",
        Kind::Alias(&["events", "on_poweroff"]),
        "",
        "destroy",
        "Short for events.on_poweroff.",
    ),
    key(
        "on_reboot",
        Kind::Alias(&["events", "on_reboot"]),
        "",
        "restart",
        "Short for events.on_reboot.",
    ),
    key(
        "on_crash",
        Kind::Alias(&["events", "on_crash"]),
        "",
        "restart",
        "Short for events.on_crash.",
    ),
    key(
        "limits",
        Kind::Map {
            keys: LIMITS,
            scalar: None,
        },
        "",
        "{timeout: 2m}",
        "Time limits.",
    ),
    key(
        "timeout",
        Kind::Alias(&["limits", "timeout"]),
        "",
        "2m",
        "Short for limits.timeout.",
    ),
    key(
        "guest",
        Kind::Map {
            keys: GUEST,
            scalar: Some("parameters"),
        },
        "",
        "exit=3",
        "The built-in guest.",
    ),
    later(
        "preset",
        &["presets", "scenario"],
        "E-PRESET",
        "Presets are not in this build yet: write out the keys that you need",
    ),
    later(
        "nets",
        &["net", "network", "networks"],
        NOT_YET,
        "Networks are not in this build yet",
    ),
    later(
        "shares",
        &["fs", "share", "filesystem", "virtiofs"],
        NOT_YET,
        "Shared directories are not in this build yet",
    ),
    later(
        "vsock",
        &[],
        NOT_YET,
        "Sockets between host and guest are not in this build yet",
    ),
    later(
        "firmware",
        &["uefi", "bios"],
        NOT_YET,
        "Firmware is not in this build yet: name a kernel",
    ),
    later(
        "security",
        &["sev", "sev_es", "sev_snp", "tee"],
        NOT_YET,
        "Memory encryption is not in this build yet",
    ),
    later(
        "watchdog",
        &[],
        NOT_YET,
        "Watchdogs are not in this build yet",
    ),
    later("tpm", &[], NOT_YET, "TPMs are not in this build yet"),
    later(
        "balloon",
        &[],
        NOT_YET,
        "Balloons are not in this build yet",
    ),
    later(
        "graphics",
        &["video", "display", "displays", "gpu"],
        NOT_YET,
        "Screens are not in this build yet",
    ),
    later(
        "sound",
        &["audio", "snd"],
        NOT_YET,
        "Sound is not in this build yet",
    ),
    later(
        "input",
        &["usb"],
        NOT_YET,
        "Input devices are not in this build yet",
    ),
    later(
        "host",
        &["tune"],
        NOT_YET,
        "Host tuning is not in this build yet",
    ),
];

const fn later(
    name: &'static str,
    aliases: &'static [&'static str],
    code: &'static str,
    text: &'static str,
) -> Key {
    key(name, Kind::Later(code, text), "", "", text).aka(aliases)
}

/// Words of other tools that are not merely another spelling, with what to write here.
pub const FOREIGN: &[(&str, &str)] = &[
    (
        "disable_implicit_console",
        "write `console: {implicit: false}`",
    ),
    ("split_irqchip", "write `irqchip: split`"),
    ("kernel_cmdline", "write `kernel: {cmdline: …}`"),
    ("console_output", "write `console: {log: FILE}`"),
    ("sockets", "write `cpu: {topology: {sockets: …}}`"),
    ("cores", "write `cpu: {topology: {cores: …}}`"),
    ("threads", "write `cpu: {topology: {threads: …}}`"),
    ("currentMemory", "write `memory: …`"),
    (
        "<<",
        "YAML 1.2 has no merge keys: repeat a value with `key: *name`",
    ),
];
