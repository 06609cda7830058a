//! The keys at the top of a scenario.

#![forbid(unsafe_code)]

use super::devices::{CONSOLE, CONSOLE_PORT, DISK, SERIAL, STORAGE};
use super::hardware::{
    BALLOON, GRAPHICS, INPUT, NET, RNG, SHARE, SOUND, TPM, USB, VIDEO, VSOCK, WATCHDOG,
};
use super::machine::{CPU, EVENTS, GUEST, KERNEL, LIMITS, MEMORY, ROOT};
use super::platform::{
    BOOT, CLOCK, FEATURES, FIRMWARE, HOST, LOCKING, PATCH, POWER, SECURITY, TIMERS,
};
use super::words::{ARCHES, AUTO_SWITCH, IRQCHIPS, TYPES};
use super::{Key, Kind, key};

/// The scenario's own keys.
#[rustfmt::skip]
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
    map("rng", RNG, Some("enabled"), "true", "Random bytes for the guest."),
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
        "Limits of the run: time, memory, CPU, threads, disks.",
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
    key("preset", Kind::Texts, "", "desktop", "What the scenario starts from: desktop, computation, securevm, testing-os, easy-migration, soft-rt.")
        .aka(&["presets", "scenario"]).why("what a scenario says itself goes on top; two presets may not disagree"),
    key("feature", Kind::Texts, "", "[cpu_perf, storage_perf]", "Sets of settings that go on top of the presets; `plan --list` shows them.")
        .aka(&["feature_sets"]),
    key("uuid", Kind::Name { max: 36 }, "", "6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b", "Identity of the machine.")
        .why("by default derived from its name, so that it is the same each time").ends("SMBIOS type 1", "uuid"),
    key("title", Kind::Text, "", "Build machine", "A line about it.").ends("", "title"),
    key("description", Kind::Text, "", "Builds the nightly images.", "More about it.").ends("", "description"),
    key("metadata", Kind::Pairs(None), "", "{owner: lab}", "Names and values of your own; `os` is the libosinfo id of the guest's system.")
        .ends("", "metadata"),
    key("type", Kind::Word(TYPES), "", "kvm", "What libvirt runs the machine with.")
        .why("the monitor of this program is always KVM").ends("", "@type"),
    key("arch", Kind::Word(ARCHES), "x86_64", "x86_64", "Architecture of the guest.").aka(&["architecture"]).ends("", "os/type/@arch"),
    key("machine", Kind::Name { max: 64 }, "q35", "pc-q35-7.2", "QEMU's machine type.")
        .why("q35: the newest that the chosen emulator has; a version only where machines migrate").ends("", "os/type/@machine").not_here("The machine of this build's monitor is its own, not one of QEMU's").but(&["q35"]),
    key("emulator", Kind::Path, "", "/opt/qemu/bin/qemu-system-x86_64", "The emulator that libvirt starts.")
        .why("by default /usr/bin/qemu-system-ARCH").ends("", "devices/emulator"),
    key("iommu", Kind::Word(AUTO_SWITCH), "auto", "on", "DMA of virtio devices goes through the guest's IOMMU or bounce buffers.")
        .why("auto: on where memory is encrypted, since the host cannot read the guest's buffers otherwise")
        .ends("VIRTIO_F_ACCESS_PLATFORM", "devices/*/driver/@iommu"),
    map("boot", BOOT, Some("devices"), "hd", "What the machine boots from.").aka(&["boot_dev"]),
    key("cdrom", Kind::Path, "", "install.iso", "An image in a CD-ROM drive: short for one more of `disks`, with `device: cdrom`."),
    key("vmimage", Kind::Alias(&["disks", "path"]), "", "vm.img", "Short for disks[0].path."),
    key("diskpath", Kind::Alias(&["storage", "dir"]), "", "/srv/images", "Short for storage.dir."),
    key("bootdev", Kind::Alias(&["boot", "devices"]), "", "hd", "Short for boot.devices."),
    map("firmware", FIRMWARE, Some("type"), "efi", "The firmware.").aka(&["uefi"]),
    map("clock", CLOCK, Some("offset"), "utc", "The real-time clock."),
    map("power", POWER, None, "{suspend_to_mem: true}", "Sleep states.").aka(&["pm"]),
    map("features", FEATURES, None, "{acpi: true}", "Features of the platform."),
    map("storage", STORAGE, None, "{cache: none}", "What holds for every disk that does not say otherwise.").aka(&["STORAGE_DATA"]),
    list("nets", NET, "type", 32, "[{type: user}]", "Network cards.").aka(&["net", "network", "networks"]).ends("virtio device 1", "devices/interface"),
    key("vnet", Kind::Alias(&["nets", "source"]), "", "default", "Short for nets[0].source."),
    list("shares", SHARE, "source", 32, "[{source: /srv/data, target: data}]", "Directories of the host in the guest.")
        .aka(&["fs", "share", "filesystem", "virtiofs", "host_filesystem"]).ends("virtio device 9, 26", "devices/filesystem"),
    key("agent", Kind::Bool, "", "true", "A channel to QEMU's guest agent.").ends("virtio device 3", "devices/channel")
        .not_here("The guest agent's channel is not in this build's monitor: use `consoles`").but(&["false"]),
    map("watchdog", WATCHDOG, Some("model"), "i6300esb", "A watchdog."),
    map("tpm", TPM, Some("model"), "tpm-crb", "A trusted platform module."),
    map("balloon", BALLOON, Some("model"), "none", "The memory balloon.").aka(&["memballoon"]),
    list("video", VIDEO, "model", 16, "[virtio]", "Graphics cards.").aka(&["gpu"]),
    list("graphics", GRAPHICS, "type", 8, "[vnc]", "Screens.").aka(&["display", "displays"]),
    map("sound", SOUND, Some("model"), "ich9", "A sound card.").aka(&["audio", "snd"]),
    map("input", INPUT, None, "{keyboard: virtio, mouse: virtio}", "Keyboard and pointers."),
    map("usb", USB, Some("model"), "qemu-xhci", "USB."),
    map("vsock", VSOCK, Some("cid"), "42", "Sockets between host and guest.").ends("virtio device 19", "devices/vsock"),
    map("security", SECURITY, Some("type"), "sev", "Protection of the guest's memory from the host.").aka(&["launch_security", "tee"]),
    map("host", HOST, None, "{thp: always}", "How the host is tuned for the machine.").aka(&["tune"]),
    map("locking", LOCKING, Some("driver"), "lockd", "How images are locked against other machines.").aka(&["lock_manager", "locks"]),
    list("xml", PATCH, "path", 1024, "[{path: \"devices/video/model/@heads\", value: \"2\"}]", "Changes of the domain XML, made last."),
    key("control", Kind::Bool, "", "true", "A socket at which `vsc-run ctl` asks for the machine's state, its end, and how that came.")
        .why("off: a run makes nothing that it does not need; on: $XDG_RUNTIME_DIR/vsc/RUNID/control.sock, mode 0600").aka(&["control_socket"]),
    key("register", Kind::Bool, "", "true", "Shows the machine to others: `vsc-run ps --all`, and machinectl where systemd-machined runs.")
        .why("off: a run is its user's own business"),
    key("sandbox", Kind::Bool, "true", "false", "After set-up the monitor keeps only what it uses: system calls (seccomp), paths (Landlock), privileges, limits.")
        .why("on: a guest that breaks out of the machine finds itself in a process that can do nothing else").aka(&["confinement"]),
    key("store", Kind::Path, "", "~/vms", "Where saved machines are.").aka(&["vm-config-store"]).why("by default ~/.local/share/vsc/vms"),
    key("hosts", Kind::Path, "", "virthosts.yaml", "The list of hypervisors.").aka(&["hvconf"]).why("by default virthosts.yaml in the directory, then ~/.local/virt-scenario, /etc/virt-scenario, /etc"),
    key("on", Kind::Name { max: 64 }, "", "localhost", "The hypervisor that runs the machine, a name in that list, instead of this program."),
];

#[rustfmt::skip]
const fn map(name: &'static str, keys: &'static [Key], scalar: Option<&'static str>, example: &'static str, meaning: &'static str) -> Key {
    key(name, Kind::Map { keys, scalar }, "", example, meaning)
}

#[rustfmt::skip]
const fn list(name: &'static str, keys: &'static [Key], scalar: &'static str, max: usize, example: &'static str, meaning: &'static str) -> Key {
    key(name, Kind::List { keys, scalar, max }, "", example, meaning)
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
    (
        "<<",
        "YAML 1.2 has no merge keys: repeat a value with `key: *name`",
    ),
];
