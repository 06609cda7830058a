//! A virtual machine as plain data: what the compiler produces and the builder consumes.
//!
//! No file descriptor and no open file is in here; everything can be serialized, compared and printed.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vsc_devices::legacy::serial::SerialSpec;
use vsc_devices::virtio::blk::BlkSpec;
use vsc_devices::virtio::console::ConsoleSpec;
use vsc_devices::virtio::rng::RngSpec;

/// Everything the builder needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmResources {
    /// Name of the machine; names the guest RAM's memfd (`vsc:NAME`), by which `vsc-run ps` finds it.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// Guest RAM, bytes; a multiple of 4 KiB.
    pub memory: u64,
    /// What stands behind it.
    #[serde(default)]
    pub backing: Backing,
    /// Where and how the host runs the threads.
    #[serde(default)]
    pub placement: Placement,
    /// Where the interrupt controllers live.
    pub irqchip: Irqchip,
    /// Creates the 8254 timer (PIT) and declares the ACPI PM timer. Only kernels without kvmclock and TSC deadline
    /// timer need them.
    pub pit: bool,
    /// What the machine starts.
    pub payload: Payload,
    /// 16550 UARTs, at most four.
    pub serials: Vec<SerialSpec>,
    /// virtio-console devices.
    pub consoles: Vec<ConsoleSpec>,
    /// virtio-blk devices.
    pub disks: Vec<BlkSpec>,
    /// virtio-rng device.
    pub rng: Option<RngSpec>,
    /// A file that receives all console output.
    pub console_log: Option<PathBuf>,
    /// I/O event loops to spread the devices over; 0 counts as 1.
    pub iothreads: u32,
    /// What ends or restarts the machine.
    pub events: Events,
    /// Time limits.
    pub limits: Limits,
}

/// Virtual CPUs: their number and how the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// Number of vCPUs, 1 to the host's KVM_CAP_MAX_VCPUS.
    pub count: u32,
    /// Sockets x cores x threads; the product is `count`.
    pub topology: Topology,
    /// Shows SVM or VMX to the guest.
    pub nested: bool,
}

/// What stands behind guest RAM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backing {
    /// What kind of memory it is.
    pub source: MemorySource,
    /// Size of its pages.
    pub pages: Pages,
    /// Ordinary pages do where there are not enough of the others.
    pub or_small_pages: bool,
    /// It is never swapped out (mlock2(2)).
    pub locked: bool,
    /// All of it is allocated before the start.
    pub immediate: bool,
    /// KSM does not merge its pages.
    pub unmerged: bool,
    /// NUMA nodes of the host that it comes from; none: those of whoever touches a page first.
    pub nodes: Vec<u32>,
}

/// What kind of memory guest RAM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemorySource {
    /// A memfd.
    #[default]
    Memfd,
    /// Memory of the process, which KSM may merge.
    Anonymous,
}

/// Pages of guest RAM on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// 4 KiB, which the kernel may join.
    #[default]
    Normal,
    /// 2 MiB of hugetlbfs.
    Huge2M,
    /// 1 GiB of hugetlbfs.
    Huge1G,
}

impl Pages {
    /// Bytes of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Normal => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Its size in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Normal => "4 KiB",
            Self::Huge2M => "2 MiB",
            Self::Huge1G => "1 GiB",
        }
    }
}

impl Backing {
    /// Whether pages of files may stand in its place: nobody cares where they come from, and when.
    pub fn takes_overlays(&self) -> bool {
        self.pages == Pages::Normal && !self.locked && !self.immediate && self.nodes.is_empty()
    }
}

/// Where and how the host runs the threads. Nothing in it: as this process itself runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Host CPUs of each vCPU, by its number; none, or no entry: not pinned.
    pub vcpus: Vec<Vec<u32>>,
    /// Host CPUs of all other threads; none: not pinned.
    pub others: Vec<u32>,
    /// How vCPUs are scheduled. Real-time vCPUs make the other threads real-time threads one priority above them:
    /// a guest that spins must not keep its monitor from stopping it.
    pub policy: Policy,
}

/// How the host schedules vCPUs (sched(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// As this process.
    #[default]
    Inherited,
    /// SCHED_FIFO with a priority, 1 to 98.
    Fifo(u8),
    /// SCHED_RR with a priority, 1 to 98.
    RoundRobin(u8),
    /// SCHED_BATCH.
    Batch,
    /// SCHED_IDLE.
    Idle,
}

impl Policy {
    /// The real-time priority, where it has one.
    pub fn priority(self) -> Option<u8> {
        match self {
            Self::Fifo(priority) | Self::RoundRobin(priority) => Some(priority),
            Self::Inherited | Self::Batch | Self::Idle => None,
        }
    }
}

/// Highest real-time priority of a vCPU: the highest there is (sched(7): 99) is for those who serve it.
pub const MAX_PRIORITY: u8 = 98;

/// CPU topology; the product is the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Threads per core, 1 or 2.
    pub threads: u32,
}

/// Where the interrupt controllers live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Irqchip {
    /// PIC, I/O APIC and local APICs in the kernel.
    Kernel,
    /// Local APICs in the kernel, I/O APIC in this process, no PIC (KVM_CAP_SPLIT_IRQCHIP).
    Split,
}

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// The built-in self-test guest, with its parameters.
    Builtin {
        /// Words for the guest, as on a kernel command line.
        parameters: String,
    },
    /// A kernel.
    Kernel(KernelSpec),
}

/// A kernel to start directly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// ELF, bzImage or compressed vmlinux; recognised by content.
    pub path: PathBuf,
    /// Parts of the initrd, concatenated in this order.
    pub initrd: Vec<InitrdPart>,
    /// The complete command line, without the `virtio_mmio.device=` words.
    pub cmdline: String,
    /// Refuses a file that is of another kind.
    pub format: KernelFormat,
    /// How the kernel is entered.
    pub entry: EntryChoice,
    /// A directory for kernels in the form in which they can be mapped; `None` copies them into memory each time.
    pub cache: Option<PathBuf>,
    /// Describes virtio-mmio devices on the command line too, for kernels without ACPI.
    pub devices_on_cmdline: bool,
}

/// Expected format of the kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelFormat {
    /// Whatever the content says.
    #[default]
    Auto,
    /// An uncompressed ELF vmlinux.
    Elf,
    /// A bzImage.
    Bzimage,
    /// A compressed ELF vmlinux (gzip, xz, zstd, lz4).
    Compressed,
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryChoice {
    /// PVH when the kernel has the note, else the 64-bit Linux boot protocol.
    #[default]
    Auto,
    /// The PVH entry (32-bit protected mode).
    Pvh,
    /// The 64-bit Linux boot protocol.
    Linux64,
}

/// One part of an initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitrdPart {
    /// A file, read at build time.
    File(PathBuf),
    /// Bytes made by the initrd builder.
    Bytes(Vec<u8>),
}

/// What to do when the guest ends (libvirt's `on_poweroff`, `on_reboot`, `on_crash`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// The guest powered off.
    pub on_poweroff: Action,
    /// The guest asked for a reset.
    pub on_reboot: Action,
    /// The guest panicked or died of a triple fault.
    pub on_crash: Action,
    /// The leases of its disks are lost; `None`: as after SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lockfailure: Option<LockAction>,
    /// Restarts allowed in one run before the run ends anyway.
    pub max_restarts: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            on_poweroff: Action::Destroy,
            on_reboot: Action::Destroy,
            on_crash: Action::Destroy,
            on_lockfailure: None,
            max_restarts: 10,
        }
    }
}

/// What follows an event of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The run ends.
    Destroy,
    /// The machine starts again from its resources, in the same process.
    Restart,
}

/// What follows the loss of the leases of a machine's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockAction {
    /// The machine ends at once.
    Poweroff,
    /// It ends, and starts again once it has its leases again.
    Restart,
    /// It stands still, without leases.
    Pause,
    /// It goes on, without leases.
    Ignore,
}

impl LockAction {
    /// Its word in a scenario.
    pub fn word(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Ignore => "ignore",
        }
    }
}

/// Time limits of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The whole run; `None` is no limit.
    pub timeout: Option<Duration>,
    /// From start to the first sign of life: a console byte, a virtio driver, or init's greeting.
    pub boot_deadline: Option<Duration>,
    /// After the guest was asked to stop: how long until it is made to.
    pub stop_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: None,
            boot_deadline: Some(Duration::from_secs(30)),
            stop_grace: Duration::from_secs(5),
        }
    }
}

/// Largest APIC id that plain xAPIC messages can address (Intel SDM volume 3A, 11.6.2.1: 255 is the broadcast).
pub(crate) const XAPIC_MAX_ID: u32 = 254;

impl VmResources {
    /// Contradictions that no later step would name as well.
    ///
    /// # Errors
    /// One sentence.
    pub fn validate(&self) -> Result<(), String> {
        let t = self.cpus.topology;
        if self.cpus.count == 0 {
            return Err("A machine needs at least one vCPU".into());
        }
        let product = u64::from(t.sockets) * u64::from(t.cores) * u64::from(t.threads);
        if product != u64::from(self.cpus.count) || !matches!(t.threads, 1 | 2) {
            return Err(format!(
                "{} sockets of {} cores with {} threads are not {} vCPUs (and threads are 1 or 2)",
                t.sockets, t.cores, t.threads, self.cpus.count
            ));
        }
        if self.pit && self.irqchip == Irqchip::Split {
            return Err("The PIT needs its irqchip in the kernel: use irqchip: kernel".into());
        }
        let last = crate::kvm::apic_id(t, self.cpus.count - 1);
        if self.irqchip == Irqchip::Kernel && last > XAPIC_MAX_ID {
            return Err(format!(
                "APIC ids up to {last} are more than the irqchip in the kernel can address ({XAPIC_MAX_ID}): use \
                 irqchip: split"
            ));
        }
        if let Some(priority) = self.placement.policy.priority()
            && !(1..=MAX_PRIORITY).contains(&priority)
        {
            return Err(format!(
                "Real-time priority {priority} is not 1 to {MAX_PRIORITY}: the one above is for the threads that serve \
                 the vCPUs"
            ));
        }
        if self.backing.source == MemorySource::Anonymous && self.backing.pages != Pages::Normal {
            return Err("Huge pages come from a memfd, and memory is to be anonymous".into());
        }
        let mut used = [false; 4];
        for serial in &self.serials {
            let number = u32::from(serial.index) + 1;
            let Some(taken) = used.get_mut(usize::from(serial.index)) else {
                return Err(format!("There is no COM{number}"));
            };
            if std::mem::replace(taken, true) {
                return Err(format!("Two serial lines are both COM{number}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
