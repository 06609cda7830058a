//! The keys at the top of a scenario.

#![forbid(unsafe_code)]

use super::devices::{CONSOLE, CONSOLE_PORT, DISK, SERIAL};
use super::machine::{CPU, EVENTS, GUEST, KERNEL, LIMITS, MEMORY, ROOT, TIMERS};
use super::words::IRQCHIPS;
use super::{Key, Kind, key};

const NOT_YET: &str = "E-LATER";

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
        "split",
        "kernel",
        "Where the interrupt controllers live.",
    )
    .why("split: it starts and ends faster; kernel when timers.pit asks for a PIT")
    .ends("KVM_CAP_SPLIT_IRQCHIP", "features/ioapic/@driver"),
    key(
        "timers",
        Kind::Map {
            keys: TIMERS,
            scalar: None,
        },
        "",
        "{pit: true}",
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
pub(crate) const FOREIGN: &[(&str, &str)] = &[
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
