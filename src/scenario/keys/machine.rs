//! Keys of CPUs, memory, kernel, timers, events and limits.

#![forbid(unsafe_code)]

use super::platform::PINS;
use super::words::{
    ACTIONS, ALLOCATIONS, AUTO_BOOL, CHECKS, CONSOLES, CPU_CACHES, ENTRIES, FORMATS, HUGEPAGES,
    LOCK_ACTIONS, MODES, POLICIES, SCHEDULERS, SHARINGS, SOURCES,
};
use super::{ANY, Key, Kind, key};

const NO_CPU: &str = "The monitor of this build passes the host's CPU through";
const NO_BACKING: &str = "The memory of this build's monitor is a memfd of ordinary pages";

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

#[rustfmt::skip]
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
    key("mode", Kind::Word(MODES), "", "host-passthrough", "Where the guest's CPU comes from.")
        .why("by default host-passthrough; with `type: qemu` maximum").ends("KVM_SET_CPUID2", "cpu/@mode"),
    key("model", Kind::Name { max: 64 }, "", "EPYC", "The model, for `mode: custom`.").ends("", "cpu/model").not_here(NO_CPU),
    key("check", Kind::Word(CHECKS), "", "none", "What libvirt checks of the CPU before the start.").ends("", "cpu/@check").not_here(NO_CPU).but(&["*"]),
    key("migratable", Kind::Bool, "", "true", "Only features that a machine can take along to another host.")
        .why("on leaves out invariant TSC and the like").ends("CPUID 0x80000007 EDX bit 8", "cpu/@migratable").not_here(NO_CPU).but(&["*"]),
    key("cache", Kind::Word(CPU_CACHES), "", "passthrough", "The caches that the guest sees.").ends("CPUID 4", "cpu/cache/@mode"),
    key("features", Kind::Pairs(Some(POLICIES)), "", "{svm: disable}", "Single features of the CPU, by libvirt's names.")
        .ends("CPUID", "cpu/feature/@policy").not_here(NO_CPU),
    key("pin", Kind::List { keys: PINS, scalar: "cpus", max: 4096 }, "", "[{vcpu: 0, cpus: \"2\"}]", "Which host CPUs each vCPU runs on.")
        .ends("sched_setaffinity(2)", "cputune/vcpupin"),
    key("emulator_cpus", Kind::Text, "", "0-1", "Host CPUs for all other threads.").ends("sched_setaffinity(2)", "cputune/emulatorpin/@cpuset"),
    key("scheduler", Kind::Word(SCHEDULERS), "", "fifo", "How the host schedules vCPUs.").ends("sched_setscheduler(2)", "cputune/vcpusched/@scheduler"),
    key("priority", Kind::Count { min: 1, max: 99 }, "", "2", "Their real-time priority.").ends("sched_setscheduler(2)", "cputune/vcpusched/@priority"),
];

#[rustfmt::skip]
pub(super) const MEMORY: &[Key] = &[
    key("size", Kind::Size, "256M", "2G", "Guest RAM; a bare number is MiB.").aka(&["mem_size_mib"])
        .why("8 MiB to the host's RAM, in pages of 4 KiB").ends("E820 map", "memory"),
    key("current", Kind::Size, "", "1G", "What the guest has at the start; the balloon holds the rest.")
        .aka(&["currentMemory"]).ends("", "currentMemory").not_here("Balloons are not in this build's monitor yet"),
    key("source", Kind::Word(SOURCES), "", "memfd", "What stands behind it.").ends("memfd_create(2)", "memoryBacking/source/@type"),
    key("access", Kind::Word(SHARINGS), "", "shared", "Who may map it.").ends("", "memoryBacking/access/@mode").not_here(NO_BACKING).but(&["*"]),
    key("hugepages", Kind::Word(HUGEPAGES), "", "2M", "Pages of hugetlbfs.").why("fewer TLB misses; the pages must be reserved on the host")
        .ends("MFD_HUGETLB", "memoryBacking/hugepages"),
    key("locked", Kind::Bool, "", "true", "Never swapped out.").ends("mlock2(2)", "memoryBacking/locked"),
    key("hard_limit", Kind::Size, "", "2304M", "Most that the emulator may use.")
        .why("memory that is locked or encrypted needs one: RAM + 256 MiB").ends("memory.max of a cgroup", "memtune/hard_limit"),
    key("nosharepages", Kind::Bool, "", "true", "KSM does not merge it.").ends("MADV_UNMERGEABLE", "memoryBacking/nosharepages"),
    key("discard", Kind::Bool, "", "true", "Not written back to its file at the end.").ends("", "memoryBacking/discard").not_here(NO_BACKING).but(&["*"]),
    key("numa_nodes", Kind::Text, "", "0-1", "The host's NUMA nodes that it comes from, and no others.").aka(&["nodeset"])
        .why("by default that of the CPU which touches a page first").ends("mbind(2), MPOL_BIND", "numatune/memory/@nodeset"),
    key("allocation", Kind::Word(ALLOCATIONS), "", "immediate", "When the host gives it.").ends("MADV_POPULATE_WRITE", "memoryBacking/allocation/@mode"),
];

#[rustfmt::skip]
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
        "on_lockfailure",
        Kind::Word(LOCK_ACTIONS),
        "",
        "poweroff",
        "What follows when a disk's lock is lost.",
    )
    .ends("", "on_lockfailure"),
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

#[rustfmt::skip]
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
    key("memory_max", Kind::Size, "", "1G", "Most memory that the run may have, all in all; beyond it the host's kernel ends it.")
        .why("guest RAM and 256 MiB for the monitor at least").ends("memory.max of a cgroup", ""),
    key("memory_high", Kind::Size, "", "768M", "Memory beyond which the host's kernel slows the run down and takes pages back.")
        .ends("memory.high of a cgroup", ""),
    key("cpu_max", Kind::Text, "", "50%", "CPU time for all threads of the run: per cent of one CPU, or microseconds in each period, as in `50000 100000`.")
        .why("200% is two whole CPUs").ends("cpu.max of a cgroup", ""),
    key("pids_max", Kind::Count { min: 1, max: 4_194_304 }, "", "64", "Most threads and processes of the run.")
        .ends("pids.max of a cgroup", ""),
    key("io_max", Kind::List { keys: IO_MAX, scalar: "disk", max: 64 }, "", "[{disk: 0, wbps: 100M}]", "Limits for the host's disks that hold the images.")
        .ends("io.max of a cgroup", ""),
    key("slice", Kind::Text, "", "machine.slice", "The cgroup in which the run's own is made: a slice of systemd's, or a path below /sys/fs/cgroup.")
        .why("by default beside that of whoever starts the run").ends("a directory below /sys/fs/cgroup", ""),
];

#[rustfmt::skip]
pub(super) const IO_MAX: &[Key] = &[
    key("disk", Kind::Count { min: 0, max: 63 }, "", "0", "Number of the disk in `disks`, from 0; all of them where it is left out.").ends("io.max of a cgroup", ""),
    key("rbps", Kind::Size, "", "200M", "Bytes read in a second.").ends("io.max: rbps", ""),
    key("wbps", Kind::Size, "", "100M", "Bytes written in a second.").ends("io.max: wbps", ""),
    key("riops", Kind::Count { min: 1, max: ANY }, "", "1000", "Reads in a second.").ends("io.max: riops", ""),
    key("wiops", Kind::Count { min: 1, max: ANY }, "", "500", "Writes in a second.").ends("io.max: wiops", ""),
];

pub(super) const GUEST: &[Key] = &[key(
    "parameters",
    Kind::Text,
    "",
    "exit=3",
    "Words for the built-in guest, as on a kernel command line.",
)];
