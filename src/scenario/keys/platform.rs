//! Keys of the platform: identity, firmware, boot order, clock, power, features, protection, and the host's side.

#![forbid(unsafe_code)]

use super::words::{
    BOOTS, CLOCKS, DEVICES_OF_FIRMWARE, FIRMWARES, HOST_SCHEDULERS, IMAGE_FORMATS, LOCK_DRIVERS,
    SECURITIES, SHMEM_THPS, THP_DEFRAGS, THPS, TICKS,
};
use super::{ANY, Key, Kind, key};

const NO_FIRMWARE: &str = "Firmware is not in this build's monitor yet: name a kernel";
const NO_BOOT: &str = "The monitor of this build starts kernels, not boot loaders";
const NO_SECURITY: &str = "Memory encryption is not in this build's monitor yet";
const NO_SUSPEND: &str = "The monitor of this build has no sleep states";
const NO_TIMER: &str = "The monitor of this build has fixed timers";
const NO_FEATURE: &str = "The monitor of this build has fixed platform features";

#[rustfmt::skip]
pub(super) const BOOT: &[Key] = &[
    key("devices", Kind::Set(BOOTS), "", "[hd, cdrom]", "Where to look for a boot loader, in this order.")
        .why("by default the first disk; a kernel needs none").ends("", "os/boot/@dev").not_here(NO_BOOT),
    key("menu", Kind::Bool, "", "true", "Shows the firmware's boot menu.").ends("", "os/bootmenu/@enable").not_here(NO_BOOT),
    key("menu_timeout", Kind::Count { min: 0, max: 65_535 }, "", "3000", "How long the menu waits, milliseconds.")
        .ends("", "os/bootmenu/@timeout").not_here(NO_BOOT),
];

#[rustfmt::skip]
pub(super) const FIRMWARE: &[Key] = &[
    key("type", Kind::Word(FIRMWARES), "", "efi", "What the machine starts with.")
        .why("by default none with a kernel, auto otherwise").ends("", "os/@firmware").not_here(NO_FIRMWARE).but(&["none", "auto"]),
    key("path", Kind::Path, "", "/usr/share/OVMF/OVMF_CODE_4M.fd", "The firmware's executable.")
        .aka(&["loader"]).why("by default chosen from QEMU's firmware descriptors").ends("", "os/loader").not_here(NO_FIRMWARE),
    key("device", Kind::Word(DEVICES_OF_FIRMWARE), "", "flash", "How it is mapped.").ends("", "os/loader/@type").not_here(NO_FIRMWARE),
    key("format", Kind::Word(IMAGE_FORMATS), "", "raw", "Format of the executable.").ends("", "os/loader/@format").not_here(NO_FIRMWARE),
    key("secure", Kind::Bool, "", "true", "The firmware may protect its variables with SMM.").ends("", "os/loader/@secure").not_here(NO_FIRMWARE),
    key("stateless", Kind::Bool, "", "true", "Variables are not kept.")
        .why("a measured launch has no variables that outlive it").ends("", "os/loader/@stateless").not_here(NO_FIRMWARE),
    key("nvram", Kind::Path, "", "/var/lib/libvirt/qemu/nvram/lab_VARS.fd", "The machine's own variable store.")
        .why("by default libvirt puts it into its own directory").ends("", "os/nvram").not_here(NO_FIRMWARE),
    key("nvram_template", Kind::Path, "", "/usr/share/OVMF/OVMF_VARS_4M.fd", "What a new variable store is a copy of.")
        .ends("", "os/nvram/@template").not_here(NO_FIRMWARE),
    key("features", Kind::Texts, "", "[secure-boot]", "Features that the firmware must have, by their names in QEMU's descriptors.")
        .ends("", "os/firmware/feature").not_here(NO_FIRMWARE),
    key("descriptors", Kind::Path, "", "/opt/firmware", "A directory of firmware descriptors, instead of QEMU's three.")
        .aka(&["fw_meta"]).not_here(NO_FIRMWARE),
];

#[rustfmt::skip]
pub(super) const CLOCK: &[Key] = &[
    key("offset", Kind::Word(CLOCKS), "utc", "localtime", "What the guest's real-time clock shows.").ends("CMOS 0x00-0x09", "clock/@offset"),
    key("timezone", Kind::Text, "", "Europe/Berlin", "The zone, for `offset: timezone`.").ends("", "clock/@timezone").not_here(NO_TIMER),
];

#[rustfmt::skip]
pub(super) const TIMERS: &[Key] = &[
    key("pit", Kind::Bool, "false", "true", "An 8254 timer; only kernels without kvmclock and TSC deadline timer need it.")
        .why("off: nothing to set up and tear down; a split irqchip has none").ends("ports 0x40-0x43, 0x61", "clock/timer[@name='pit']/@present"),
    key("pit_policy", Kind::Word(TICKS), "", "delay", "What becomes of PIT ticks that the guest missed.")
        .ends("", "clock/timer[@name='pit']/@tickpolicy").not_here(NO_TIMER).but(&["*"]),
    key("rtc_policy", Kind::Word(TICKS), "", "catchup", "What becomes of RTC ticks that the guest missed.")
        .ends("", "clock/timer[@name='rtc']/@tickpolicy").not_here(NO_TIMER).but(&["*"]),
    key("hpet", Kind::Bool, "", "false", "A high precision event timer.")
        .why("off: kvmclock and the TSC are cheaper to read").ends("", "clock/timer[@name='hpet']/@present").not_here(NO_TIMER).but(&["false"]),
    key("kvmclock", Kind::Bool, "", "true", "KVM's paravirtual clock.")
        .ends("CPUID 0x40000001 EAX bit 3", "clock/timer[@name='kvmclock']/@present").not_here(NO_TIMER).but(&["true"]),
    key("hypervclock", Kind::Bool, "", "true", "Hyper-V's reference time, for Windows guests.")
        .ends("CPUID 0x40000003", "clock/timer[@name='hypervclock']/@present").not_here(NO_TIMER).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const POWER: &[Key] = &[
    key("suspend_to_mem", Kind::Bool, "", "true", "The guest may sleep in memory (ACPI S3).")
        .ends("DSDT _S3", "pm/suspend-to-mem/@enabled").not_here(NO_SUSPEND).but(&["false"]),
    key("suspend_to_disk", Kind::Bool, "", "true", "The guest may hibernate (ACPI S4).")
        .ends("DSDT _S4", "pm/suspend-to-disk/@enabled").not_here(NO_SUSPEND).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const FEATURES: &[Key] = &[
    key("acpi", Kind::Bool, "", "true", "ACPI tables.").why("without them a guest finds neither power button nor PCI interrupts")
        .ends("RSDP", "features/acpi").not_here(NO_FEATURE).but(&["true"]),
    key("apic", Kind::Bool, "", "true", "Local and I/O APICs.").ends("CPUID 1 EDX bit 9", "features/apic").not_here(NO_FEATURE).but(&["true"]),
    key("pae", Kind::Bool, "", "true", "Physical address extension, for 32-bit guests.").ends("CPUID 1 EDX bit 6", "features/pae").not_here(NO_FEATURE).but(&["true"]),
    key("smm", Kind::Bool, "", "true", "System management mode, which secure boot needs.").ends("port 0xb2", "features/smm/@state").not_here(NO_FEATURE).but(&["false"]),
    key("vmport", Kind::Bool, "", "false", "VMware's port.").ends("port 0x5658", "features/vmport/@state").not_here(NO_FEATURE).but(&["false"]),
    key("pmu", Kind::Bool, "", "true", "Performance counters.").ends("CPUID 0xa", "features/pmu/@state").not_here(NO_FEATURE),
    key("kvm_hidden", Kind::Bool, "", "true", "Hides KVM's signature.").ends("CPUID 0x40000000", "features/kvm/hidden/@state").not_here(NO_FEATURE).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const SECURITY: &[Key] = &[
    key("type", Kind::Word(SECURITIES), "none", "sev", "How the guest's memory is protected from the host.")
        .ends("KVM_MEMORY_ENCRYPT_OP", "launchSecurity/@type").not_here(NO_SECURITY).but(&["none"]),
    key("policy", Kind::Count { min: 0, max: u64::MAX }, "", "0x0003", "What the owner permits, as the SEV firmware's bits.")
        .why("by default NODBG, NOKS, DOMAIN, SEV: 0x33, with ES 0x37; SNP: 0x30000").ends("LAUNCH_START.policy", "launchSecurity/policy").not_here(NO_SECURITY),
    key("cbitpos", Kind::Count { min: 0, max: 63 }, "", "51", "Bit of a page table entry that says encrypted.")
        .why("by default as the host's CPUID says").ends("CPUID 0x8000001F EBX[5:0]", "launchSecurity/cbitpos").not_here(NO_SECURITY),
    key("reduced_phys_bits", Kind::Count { min: 0, max: 63 }, "", "1", "Physical address bits that encryption costs.")
        .aka(&["reducedPhysBits"]).ends("CPUID 0x8000001F EBX[11:6]", "launchSecurity/reducedPhysBits").not_here(NO_SECURITY),
    key("session", Kind::Text, "", "AAAA", "The owner's launch session, base64.").ends("LAUNCH_START.session", "launchSecurity/session").not_here(NO_SECURITY),
    key("dh_cert", Kind::Text, "", "AAAA", "The owner's Diffie-Hellman certificate, base64.")
        .aka(&["dhCert"]).ends("LAUNCH_START.dh_cert", "launchSecurity/dhCert").not_here(NO_SECURITY),
    key("kernel_hashes", Kind::Bool, "", "true", "Kernel, initrd and command line are part of the measurement.")
        .aka(&["kernelHashes"]).ends("", "launchSecurity/@kernelHashes").not_here(NO_SECURITY),
    key("id_block", Kind::Text, "", "AAAA", "SNP identity block, base64.").ends("SNP_LAUNCH_FINISH.id_block", "launchSecurity/idBlock").not_here(NO_SECURITY),
    key("id_auth", Kind::Text, "", "AAAA", "Its signature, base64.").ends("SNP_LAUNCH_FINISH.id_auth", "launchSecurity/idAuth").not_here(NO_SECURITY),
    key("host_data", Kind::Text, "", "AAAA", "32 bytes of the host for the report, base64.")
        .ends("SNP_LAUNCH_FINISH.host_data", "launchSecurity/hostData").not_here(NO_SECURITY),
    key("guest_visible_workarounds", Kind::Text, "", "AAAA", "16 bytes of the hypervisor, base64.")
        .ends("SNP_LAUNCH_START.gosvw", "launchSecurity/guestVisibleWorkarounds").not_here(NO_SECURITY),
    key("author_key", Kind::Bool, "", "true", "The identity block is signed by an author key too.").ends("", "launchSecurity/@authorKey").not_here(NO_SECURITY),
    key("vcek", Kind::Bool, "", "false", "Reports may be signed by the chip's key.").ends("SNP_LAUNCH_FINISH.vcek_disabled", "launchSecurity/@vcek").not_here(NO_SECURITY),
];

#[rustfmt::skip]
pub(super) const KVM: &[Key] = &[
    key("nested", Kind::Bool, "", "true", "Guests may run machines of their own.")
        .why("set when the module is loaded; Linux Documentation/virt/kvm/x86/running-nested-guests").ends("/sys/module/kvm_amd/parameters/nested, kvm_intel", ""),
    key("halt_poll_ns", Kind::Count { min: 0, max: 0xffff_ffff }, "", "0", "How long a host CPU waits for a halted vCPU before it sleeps, nanoseconds at most.")
        .why("more: wake-ups come sooner, and idle guests cost CPU time; Linux Documentation/virt/kvm/halt-polling").ends("/sys/module/kvm/parameters/halt_poll_ns", ""),
    key("nx_huge_pages", Kind::Bool, "", "true", "Huge pages of guests cannot be executed from.")
        .why("against iTLB multihit; Linux admin-guide/hw-vuln/multihit").ends("/sys/module/kvm/parameters/nx_huge_pages", ""),
    key("ignore_msrs", Kind::Bool, "", "false", "MSRs that KVM does not know read as zero instead of faulting.")
        .why("Linux admin-guide/kernel-parameters, kvm.ignore_msrs").ends("/sys/module/kvm/parameters/ignore_msrs", ""),
    key("tdp", Kind::Bool, "", "true", "The CPU walks the guest's page tables (EPT, NPT).").aka(&["ept", "npt"])
        .why("set when the module is loaded; off, KVM keeps shadow page tables").ends("/sys/module/kvm_intel/parameters/ept, kvm_amd npt", ""),
    key("apicv", Kind::Bool, "", "true", "The CPU delivers interrupts to guests itself (APICv, AVIC).").aka(&["avic", "enable_apicv"])
        .why("set when the module is loaded").ends("/sys/module/kvm_intel/parameters/enable_apicv, kvm_amd avic", ""),
];

#[rustfmt::skip]
pub(super) const HOST: &[Key] = &[
    key("thp", Kind::Word(THPS), "", "always", "Transparent huge pages of private memory.")
        .why("for memory in a memfd, as the RAM of our monitor is, thp_shmem decides; Linux admin-guide/mm/transhuge")
        .ends("/sys/kernel/mm/transparent_hugepage/enabled", ""),
    key("thp_shmem", Kind::Word(SHMEM_THPS), "", "advise", "Transparent huge pages of shared memory: memfds, as the RAM of our monitor is one.")
        .why("our monitor and QEMU ask for them, so that advise is enough; Linux admin-guide/mm/transhuge")
        .ends("/sys/kernel/mm/transparent_hugepage/shmem_enabled", ""),
    key("thp_defrag", Kind::Word(THP_DEFRAGS), "", "defer+madvise", "How much a process waits for the kernel to make a huge page.")
        .why("Linux admin-guide/mm/transhuge").ends("/sys/kernel/mm/transparent_hugepage/defrag", ""),
    key("ksm", Kind::Bool, "", "false", "Merges equal pages of the host's processes; ksm.service and ksmtuned.service follow where the host has them.")
        .why("merging saves memory, and its timing tells one guest what another has in its memory; only private memory that asks for it is merged (QEMU's), never a shared memfd, as the RAM of our monitor is; Linux admin-guide/mm/ksm")
        .ends("/sys/kernel/mm/ksm/run", ""),
    key("ksm_merge_across_nodes", Kind::Bool, "", "false", "Also pages of different NUMA nodes.")
        .aka(&["merge_across_nodes"]).why("changes only while nothing is merged: what is gets separated first; Linux admin-guide/mm/ksm")
        .ends("/sys/kernel/mm/ksm/merge_across_nodes", ""),
    key("swappiness", Kind::Count { min: 0, max: 200 }, "", "0", "How readily the host swaps: the cost of file pages against swap, 100 being equal.")
        .why("0 to 200 since Linux 5.8; Linux admin-guide/sysctl/vm").ends("/proc/sys/vm/swappiness", ""),
    key("io_scheduler", Kind::Word(HOST_SCHEDULERS), "", "mq-deadline", "I/O scheduler of the disks that hold this machine's images.")
        .aka(&["scheduler"]).why("only of those, through partitions, LVM, encryption, RAID and loop devices; Linux block/switching-sched").ends("/sys/block/DISK/queue/scheduler", ""),
    key("kvm", Kind::Map { keys: KVM, scalar: None }, "", "{halt_poll_ns: 0}", "Parameters of the host's KVM."),
];

#[rustfmt::skip]
pub(super) const LOCKING: &[Key] = &[
    key("driver", Kind::Word(LOCK_DRIVERS), "files", "lockd", "What keeps other machines off the images of this one."),
    key("file_lockspace_dir", Kind::Path, "", "/var/lib/libvirt/lockd/files", "Where lockd keeps a file for each image, named by SHA-256 of its path.")
        .why("by default lockd locks the image itself; hosts that share images share this directory, and all of them lock alike")
        .ends("file_lockspace_dir of qemu-lockd.conf", ""),
    key("lvm_lockspace_dir", Kind::Path, "", "/var/lib/libvirt/lockd/lvmvolumes", "The same for logical volumes, named by uuid.")
        .ends("lvm_lockspace_dir of qemu-lockd.conf", ""),
    key("scsi_lockspace_dir", Kind::Path, "", "/var/lib/libvirt/lockd/scsivolumes", "The same for SCSI units, named by identity.")
        .ends("scsi_lockspace_dir of qemu-lockd.conf", ""),
    key("host_id", Kind::Count { min: 1, max: 2000 }, "", "1", "This host's number in sanlock's lockspace; no two hosts have the same.")
        .ends("host_id of qemu-sanlock.conf", ""),
    key("disk_lease_dir", Kind::Path, "", "/var/lib/libvirt/sanlock", "Where sanlock keeps a lease for each image, named by MD5 of its path.")
        .ends("disk_lease_dir of qemu-sanlock.conf", ""),
    key("io_timeout", Kind::Count { min: 1, max: 600 }, "", "5", "Seconds that sanlock gives a read or a write of its leases; 10 where nothing is said.")
        .why("joining takes 2 times as long; a host that has lost its storage is told after 8 times, and given up 60 s later; all hosts have the same")
        .ends("io_timeout of qemu-sanlock.conf", ""),
];

#[rustfmt::skip]
pub(super) const PATCH: &[Key] = &[
    key("path", Kind::Text, "", "devices/video/model/@heads", "Where in the domain XML: element names, [n], [@a='v'], at last @attribute or text()."),
    key("value", Kind::Text, "", "2", "What stands there afterwards."),
    key("delete", Kind::Bool, "", "true", "Takes it out instead."),
];

#[rustfmt::skip]
pub(super) const PINS: &[Key] = &[
    key("vcpu", Kind::Count { min: 0, max: ANY }, "", "1", "The vCPU.").ends("", "cputune/vcpupin/@vcpu"),
    key("cpus", Kind::Text, "", "2-3", "Host CPUs that it may run on.").ends("sched_setaffinity(2)", "cputune/vcpupin/@cpuset"),
];
