//! From [`VmResources`] to a [`Vm`], step by step.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vsc_devices::Memory;
use vsc_devices::block::keep::Keep;
use vsc_devices::bus::{Bus, BusError, Slot};
use vsc_devices::console_log::ConsoleLog;
use vsc_devices::legacy::acpi_pm::{self, AcpiPm, ResetRegister};
use vsc_devices::legacy::cmos::{self, Cmos};
use vsc_devices::legacy::exit_port::{self, ExitPort};
use vsc_devices::legacy::i8042::{self, I8042};
use vsc_devices::legacy::pci_config::{self, PciConfig};
use vsc_devices::legacy::pvpanic::{self, Pvpanic};
use vsc_devices::stream::HostEnds;
use vsc_firmware::acpi::{self, AcpiSpec, MmioDevice};
use vsc_firmware::boot::{self, BootInfo};
use vsc_firmware::cmdline;
use vsc_firmware::kernel::cache::Cache;
use vsc_firmware::kernel::{Flavour, Kernel, LoadOptions, Loaded};

use crate::control::Control;
pub use crate::devices::DeviceError;
use crate::devices::{self, Devices};
use crate::kvm::{EmptyMachine, Host, HostKind, KvmError, Lines, Machine};
use crate::layout;
use crate::memory::{self, MemoryError, Ram};
use crate::placement::{self, PlacementError};
use crate::resources::{
    Backing, EntryChoice, InitrdPart, KernelFormat, KernelSpec, Pages, Payload, VmResources,
};
use crate::vcpu::Shared;
use crate::vm::{Marks, Vm};

/// Why a machine could not be built. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The resources contradict themselves.
    #[error("{0}")]
    Resources(String),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Where threads run.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// No usable /dev/kvm.
    #[error("{why}; {remedy}")]
    NoKvm {
        /// What is wrong.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// KVM refused a step.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// This host cannot boot this kernel.
    #[error("{0}")]
    WrongHost(String),
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] vsc_firmware::kernel::KernelError),
    /// The kernel could not be mapped into guest memory.
    #[error("Map the kernel into guest memory")]
    MapKernel(#[source] std::io::Error),
    /// The kernel is not of the format that was asked for.
    #[error("{path} is {found}, not {asked}; leave kernel.format out to take what the file is")]
    Format {
        /// The file.
        path: String,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The initrd file.
    #[error("Read the initrd {path}")]
    Initrd {
        /// The file.
        path: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Boot structures do not fit.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// The command line is too long.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Two devices in one place: a mistake of this program.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The console log file.
    #[error("Open the console log {path}")]
    ConsoleLog {
        /// The file.
        path: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No eventfd to be had.
    #[error("Create an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// What a small Linux touches at the end of memory before its first program, bytes.
const EARLY_MEMORY: u64 = 8 << 20;

/// Builds the machine. `ends` are the descriptors behind `Endpoint::Given`; `keeps`, one for each disk of a machine
/// that may be built again, have the images open and locked until then.
///
/// # Errors
/// [`BuildError`]; nothing of it is left behind then.
pub fn build(
    resources: &VmResources,
    mut ends: HostEnds,
    keeps: &[Keep],
) -> Result<Vm, BuildError> {
    // 1. What was asked for makes sense, and is there.
    let begin = Instant::now();
    resources.validate().map_err(BuildError::Resources)?;
    let kernel = open_kernel(resources)?;

    // 2. Guest memory, with the kernel where it runs, while KVM makes the machine.
    let Ram {
        memory,
        backing,
        mark,
        notes,
    } = memory::create(&resources.name, resources.memory, &resources.backing)?;
    let low_end = resources.memory.min(layout::LOW_RAM_END);
    let (empty, loaded) = with_empty_machine(&kernel, || {
        load_kernel(resources, &backing, &kernel, &memory, low_end)
    })?;
    let machine_at = Instant::now();
    check_host(&kernel, &loaded)?;

    // 3. The initrd, and both around the memory.
    let machine = Machine::new(empty, memory.clone())?;
    let initrd = load_initrd(resources, &memory, low_end, &loaded)?;
    let kernel_at = Instant::now();

    // 4. Interrupt controllers, then vCPUs.
    let lines = machine.create_irqchip(resources.irqchip, resources.pit, &resources.cpus)?;
    let vcpus = machine.create_vcpus(&resources.cpus)?;

    // 5. Devices on their buses, with their loops, which run where this thread runs.
    let seats = placement::take(&resources.placement, resources.cpus.count)?;
    let control = Arc::new(Control::new().map_err(BuildError::EventFd)?);
    let console = console_log(resources)?;
    let mut ports = Bus::new();
    let mut mmio = Bus::new();
    let power = legacy(resources, &lines, &control, &mut ports)?;
    if let Some(ioapic) = lines.ioapic() {
        mmio.insert(layout::IOAPIC_BASE, layout::IOAPIC_LEN, slot(ioapic))?;
    }
    let devices = devices::attach(
        resources,
        &mut ends,
        &devices::Parts {
            memory: &memory,
            machine: &machine,
            lines: &lines,
            console: &console,
            control: &control,
            keeps,
        },
        &mut ports,
        &mut mmio,
    )?;

    // 6. What the kernel is told, and where it starts.
    let rsdp = write_acpi(resources, &memory, &devices)?;
    let cmdline = command_line(resources, &devices)?;
    let start = boot::write(
        &memory,
        &BootInfo {
            entry: loaded.entry,
            header: loaded.header,
            ram: &memory::ranges(resources.memory),
            cmdline: &cmdline,
            initrd,
            rsdp,
        },
    )?;
    vcpus[0].start_at(&start)?;
    memory::lock(&memory, &backing)?;

    // 7. Done; nothing runs yet.
    let shared = Arc::new(Shared {
        ports,
        mmio,
        ioapic: lines.ioapic(),
        control,
    });
    let marks = Marks {
        build: begin,
        machine: machine_at,
        kernel: kernel_at,
        built: Instant::now(),
        started: None,
    };
    let mut vm = Vm::new(
        vcpus,
        shared,
        devices.loops,
        machine,
        console,
        power,
        resources.limits.boot_deadline,
        marks,
    );
    vm.seats = seats;
    vm.mark = mark;
    vm.notes = notes;
    vm.consoles = devices.consoles;
    vm.serials = devices.serials;
    vm.counters = devices.counters;
    vm.disks = devices.disks;
    Ok(vm)
}

fn open_kernel(resources: &VmResources) -> Result<Kernel, BuildError> {
    match &resources.payload {
        Payload::Builtin { .. } => Ok(Kernel::from_static(
            "the built-in guest",
            vsc_firmware::guest::ELF,
        )?),
        Payload::Kernel(spec) => {
            // The cache holds ELFs only, so it cannot tell what the file itself is.
            let cache = spec
                .cache
                .as_ref()
                .filter(|_| spec.format == KernelFormat::Auto);
            if let Some(kernel) = cache.and_then(|dir| Cache::new(dir).open(&spec.path)) {
                return Ok(kernel);
            }
            let kernel = Kernel::open(&spec.path)?;
            check_format(&kernel, spec)?;
            Ok(kernel)
        }
    }
}

/// Creates the machine, on another thread when `load` has enough to do meanwhile.
fn with_empty_machine(
    kernel: &Kernel,
    load: impl FnOnce() -> Result<Loaded, BuildError>,
) -> Result<(EmptyMachine, Loaded), BuildError> {
    let create = || EmptyMachine::create().map_err(no_kvm);
    if kernel.loaded_len() < memory::HUGE {
        return Ok((create()?, load()?));
    }
    std::thread::scope(|scope| {
        let machine = crate::thread().spawn_scoped(scope, create);
        let loaded = load();
        let machine = match machine {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No thread to be had: then in turn.
            Err(_) => create(),
        };
        Ok((machine?, loaded?))
    })
}

/// Step 2: mapped where it comes from the cache, else copied or decompressed.
fn load_kernel(
    resources: &VmResources,
    backing: &Backing,
    kernel: &Kernel,
    memory: &Memory,
    low_end: u64,
) -> Result<Loaded, BuildError> {
    let extent = kernel
        .extent()
        .filter(|e| e.end <= low_end && kernel.loaded_len() >= memory::HUGE)
        .filter(|_| backing.pages == Pages::Normal && !backing.immediate);
    let mut mapped = false;
    if let Some(extent) = extent {
        mapped = backing.takes_overlays() && kernel.is_cached() && map_pieces(kernel, memory)?;
        if !mapped {
            let len = (extent.end - extent.start).next_multiple_of(memory::HUGE);
            memory::prefer_huge(memory, extent.start, len);
        }
        // Linux takes its early memory from the end (memblock), below the initrd.
        let early = low_end.saturating_sub(EARLY_MEMORY).max(extent.end);
        memory::prefer_huge(memory, early, low_end - early);
    }
    let options = LoadOptions {
        ram_low_end: low_end,
        fresh: true,
        mapped,
        entry: entry(resources),
    };
    Ok(kernel.load(memory, &options)?)
}

fn map_pieces(kernel: &Kernel, memory: &Memory) -> Result<bool, BuildError> {
    let Some((file, pieces)) = kernel.pieces() else {
        return Ok(false);
    };
    for piece in &pieces {
        memory::overlay(memory, file, piece).map_err(BuildError::MapKernel)?;
    }
    Ok(true)
}

fn check_format(kernel: &Kernel, spec: &KernelSpec) -> Result<(), BuildError> {
    use vsc_firmware::kernel::Kind;
    let (found, is) = match kernel.kind() {
        Kind::Elf => ("an ELF", KernelFormat::Elf),
        Kind::BzImage(_) => ("a bzImage", KernelFormat::Bzimage),
        Kind::Compressed(_) => ("a compressed ELF", KernelFormat::Compressed),
    };
    let asked = match spec.format {
        KernelFormat::Auto => return Ok(()),
        KernelFormat::Elf => "an ELF",
        KernelFormat::Bzimage => "a bzImage",
        KernelFormat::Compressed => "a compressed ELF",
    };
    if spec.format == is {
        return Ok(());
    }
    Err(BuildError::Format {
        path: spec.path.display().to_string(),
        found,
        asked,
    })
}

fn entry(resources: &VmResources) -> vsc_firmware::kernel::EntryChoice {
    use vsc_firmware::kernel::EntryChoice as Choice;
    match &resources.payload {
        Payload::Builtin { .. } => Choice::Pvh,
        Payload::Kernel(spec) => match spec.entry {
            EntryChoice::Auto => Choice::Auto,
            EntryChoice::Pvh => Choice::Pvh,
            EntryChoice::Linux64 => Choice::Linux64,
        },
    }
}

fn no_kvm(error: KvmError) -> BuildError {
    if !matches!(error, KvmError::Open(_)) {
        return error.into();
    }
    let host = Host::probe();
    match host.remedy(Path::new("/")) {
        Some(remedy) => BuildError::NoKvm {
            why: host.describe(),
            remedy: format!("try: {remedy}"),
        },
        None => error.into(),
    }
}

/// Refuses a kernel that this host cannot boot, before it hangs in silence.
fn check_host(kernel: &Kernel, loaded: &Loaded) -> Result<(), BuildError> {
    if loaded.flavour == Flavour::NotLinux {
        // It boots on every kind of host that has KVM, and this one has: the machine is there.
        return Ok(());
    }
    let host = Host::classify(Path::new("/"), Ok(()));
    if host.boots(loaded.flavour) {
        return Ok(());
    }
    let path = kernel.path().display();
    Err(BuildError::WrongHost(match (host.kind, loaded.flavour) {
        (HostKind::SoftwarePaging, Flavour::Stock) => format!(
            "{path} is a stock kernel, and this host's KVM (kvm_pvm) emulates kernel-mode code, so it would not boot; \
             install vsc's cpl3 kernel in a directory of $VSC_KERNELS (firmware/kernel/README.md), or run on hardware \
             KVM, or in tests/rig/run"
        ),
        (_, Flavour::Cpl3) => format!(
            "{path} is vsc's cpl3 kernel, which runs only on software-paging KVM (kvm_pvm); this host has hardware \
             KVM: use a stock kernel"
        ),
        _ => format!("{path}: {}", host.describe()),
    }))
}

fn load_initrd(
    resources: &VmResources,
    memory: &Memory,
    low_end: u64,
    loaded: &Loaded,
) -> Result<Option<(u64, u64)>, BuildError> {
    let Payload::Kernel(spec) = &resources.payload else {
        return Ok(None);
    };
    let parts = spec
        .initrd
        .iter()
        .map(Part::open)
        .collect::<Result<Vec<_>, _>>()?;
    // Each part begins at a multiple of 4, as the kernel's unpacker wants (init/initramfs.c).
    let len: u64 = parts.iter().map(|p| p.len().next_multiple_of(4)).sum();
    if len == 0 {
        return Ok(None);
    }
    let start = boot::place_initrd(len, low_end, loaded.header.as_ref(), loaded.end)?;
    let mut at = start;
    for part in parts {
        part.copy(memory, GuestAddress(at))?;
        at += part.len().next_multiple_of(4);
    }
    Ok(Some((start, len)))
}

enum Part<'a> {
    Bytes(&'a [u8]),
    File { file: File, len: u64, path: String },
}

impl<'a> Part<'a> {
    fn open(part: &'a InitrdPart) -> Result<Self, BuildError> {
        let path = match part {
            InitrdPart::Bytes(bytes) => return Ok(Self::Bytes(bytes)),
            InitrdPart::File(path) => path,
        };
        let error = |source| BuildError::Initrd {
            path: path.display().to_string(),
            source,
        };
        // Non-blocking: a pipe without a writer must not keep the machine waiting. Regular files do not look at it.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(error)?;
        let meta = file.metadata().map_err(error)?;
        if !meta.is_file() {
            return Err(error(std::io::Error::other("it is not a regular file")));
        }
        Ok(Self::File {
            file,
            len: meta.len(),
            path: path.display().to_string(),
        })
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    fn copy(&self, memory: &Memory, at: GuestAddress) -> Result<(), BuildError> {
        match self {
            Self::Bytes(bytes) => memory
                .write_slice(bytes, at)
                .map_err(|e| BuildError::Resources(format!("Copy the initrd: {e}"))),
            Self::File { file, len, path } => {
                let error = |source| BuildError::Initrd {
                    path: path.clone(),
                    source,
                };
                let mut reader = file;
                // The file may have shrunk since it was measured; then this says so.
                memory
                    .read_exact_volatile_from(at, &mut reader, *len as usize)
                    .map_err(|e| error(std::io::Error::other(e)))
            }
        }
    }
}

fn console_log(resources: &VmResources) -> Result<ConsoleLog, BuildError> {
    let Some(path) = &resources.console_log else {
        return Ok(ConsoleLog::new());
    };
    ConsoleLog::with_file(path).map_err(|source| BuildError::ConsoleLog {
        path: path.display().to_string(),
        source,
    })
}

fn slot(device: impl vsc_devices::bus::BusDevice + 'static) -> Slot {
    Arc::new(Mutex::new(device))
}

/// Devices at fixed ports that every machine has.
fn legacy(
    resources: &VmResources,
    lines: &Lines,
    control: &Arc<Control>,
    ports: &mut Bus,
) -> Result<AcpiPm, BuildError> {
    let low = resources.memory.min(layout::LOW_RAM_END);
    let power = AcpiPm::new(lines.line(layout::SCI), control.clone());
    ports.insert(
        i8042::PORT,
        i8042::LEN,
        slot(I8042::new(lines.line(i8042::IRQ), control.clone())),
    )?;
    ports.insert(
        cmos::PORT,
        cmos::LEN,
        slot(Cmos::new(low, resources.memory - low)),
    )?;
    ports.insert(acpi_pm::PORT, acpi_pm::LEN, slot(power.clone()))?;
    ports.insert(
        pci_config::PORT,
        pci_config::LEN,
        slot(PciConfig::new(ResetRegister::new(control.clone()))),
    )?;
    ports.insert(
        pvpanic::PORT,
        pvpanic::LEN,
        slot(Pvpanic::new(control.clone())),
    )?;
    if matches!(resources.payload, Payload::Builtin { .. }) {
        ports.insert(
            exit_port::PORT,
            exit_port::LEN,
            slot(ExitPort::new(control.clone())),
        )?;
    }
    Ok(power)
}

fn write_acpi(
    resources: &VmResources,
    memory: &Memory,
    devices: &Devices,
) -> Result<u64, BuildError> {
    let cpus = &resources.cpus;
    let builtin = matches!(resources.payload, Payload::Builtin { .. });
    let apic_ids: Vec<u32> = (0..cpus.count)
        .map(|i| crate::kvm::apic_id(cpus.topology, i))
        .collect();
    let virtio: Vec<MmioDevice> = devices.virtio.clone();
    let serials: Vec<u8> = resources.serials.iter().map(|s| s.index).collect();
    Ok(acpi::write(
        memory,
        &AcpiSpec {
            apic_ids: &apic_ids,
            ioapic_id: 0,
            ioapic_address: layout::IOAPIC_BASE as u32,
            virtio_mmio: &virtio,
            serials: &serials,
            pvpanic: true,
            exit_port: builtin,
            // There to reset the machine (reboot=k), which needs no driver; declared, it would be probed.
            i8042: false,
            rtc: true,
            pit: resources.pit,
            // A kernel that needs the one old timer needs the other; the built-in guest tests it.
            pm_timer: resources.pit || builtin,
            pic: resources.irqchip == crate::resources::Irqchip::Kernel,
            power_button: true,
        },
    )?)
}

/// The command line with the virtio devices, for those who read them there.
fn command_line(resources: &VmResources, devices: &Devices) -> Result<String, BuildError> {
    let (base, list) = match &resources.payload {
        Payload::Builtin { parameters } => (parameters.as_str(), true),
        Payload::Kernel(spec) => (spec.cmdline.as_str(), spec.devices_on_cmdline),
    };
    let devices = if list { &devices.virtio[..] } else { &[] };
    Ok(with_devices(base, devices)?)
}

fn with_devices(base: &str, devices: &[MmioDevice]) -> Result<String, cmdline::CmdlineError> {
    let words: Vec<_> = devices
        .iter()
        .map(|d| format!("virtio_mmio.device={:#x}@{:#x}:{}", d.len, d.base, d.gsi))
        .collect();
    cmdline::assemble(&cmdline::Parts {
        // In front: what follows a `--` is init's.
        prolog: &words.join(" "),
        user: base,
        ..cmdline::Parts::default()
    })
}

#[cfg(test)]
mod tests;
