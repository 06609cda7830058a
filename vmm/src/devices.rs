//! Step 5 of the builder: serial lines and virtio devices from their specs, on their buses and loops.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vsc_devices::Memory;
use vsc_devices::block::keep::Keep;
use vsc_devices::block::raw::Spare;
use vsc_devices::bus::{Bus, BusError};
use vsc_devices::console_log::ConsoleLog;
use vsc_devices::legacy::serial::{self, Serial};
use vsc_devices::secret::Passphrase;
use vsc_devices::stream::HostEnds;
use vsc_devices::virtio::Device;
use vsc_devices::virtio::blk::{Blk, BlkCounters, BlkError, BlkOptions, BlkSpec, Luks};
use vsc_devices::virtio::console::{Console, ConsoleError, ConsoleHandle};
use vsc_devices::virtio::rng::Rng;
use vsc_devices::virtio::stats::Counters;
use vsc_devices::virtio::transport::{MmioTransport, Trigger, Wiring};
use vsc_devices::virtio::worker::{EventLoop, LoopHandle, Worker};
use vsc_firmware::acpi::MmioDevice;

use crate::control::Control;
use crate::io_thread::{IoThread, IoThreadError};
use crate::kvm::{Lines, Machine};
use crate::layout;
use crate::resources::VmResources;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] BlkError),
    /// The passphrase of an encrypted disk was not handed over.
    #[error("Disk {} is encrypted, and its passphrase cannot be read", path.display())]
    Passphrase {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A virtio console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The host end of a serial line.
    #[error(transparent)]
    Stream(#[from] vsc_devices::stream::StreamError),
    /// More virtio devices than there are slots.
    #[error("{0} virtio devices are more than the {max} that fit", max = layout::MMIO_MAX)]
    TooMany(usize),
    /// An I/O thread.
    #[error(transparent)]
    IoThread(#[from] IoThreadError),
    /// No descriptors for a device's queues.
    #[error("Create the event descriptors of {name}; raise the limit of open files (ulimit -n)")]
    Queues {
        /// The device.
        name: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Two devices in one place.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The passphrase of an encrypted disk, out of the descriptor that has it, which is closed.
fn passphrase(spec: &BlkSpec, ends: &mut HostEnds) -> Result<Option<Arc<Passphrase>>, DeviceError> {
    let Some(Luks { secret }) = &spec.encryption else {
        return Ok(None);
    };
    let failed = |source| DeviceError::Passphrase {
        path: spec.path.clone(),
        source,
    };
    let missing = || failed(std::io::ErrorKind::NotFound.into());
    let file = File::from(ends.remove(secret).ok_or_else(missing)?);
    let passphrase = Passphrase::of_file(&file).map_err(failed)?;
    Ok(Some(Arc::new(passphrase)))
}

/// What devices are wired to.
pub(crate) struct Parts<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) machine: &'a Machine,
    pub(crate) lines: &'a Lines,
    pub(crate) console: &'a ConsoleLog,
    pub(crate) control: &'a Arc<Control>,
    /// Of each disk's image.
    pub(crate) keeps: &'a [Keep],
}

/// What came of it.
pub(crate) struct Devices {
    pub(crate) loops: Vec<IoThread>,
    pub(crate) virtio: Vec<MmioDevice>,
    pub(crate) consoles: Vec<ConsoleHandle>,
    pub(crate) serials: Vec<Arc<Mutex<Serial>>>,
    pub(crate) counters: Vec<(String, Arc<Counters>)>,
    /// Of each disk.
    pub(crate) disks: Vec<Arc<BlkCounters>>,
}

/// Makes all devices of `resources` and puts them on the buses.
pub(crate) fn attach(
    resources: &VmResources,
    ends: &mut HostEnds,
    parts: &Parts<'_>,
    ports: &mut Bus,
    mmio: &mut Bus,
) -> Result<Devices, DeviceError> {
    let mut out = Devices {
        loops: Vec::new(),
        virtio: Vec::new(),
        consoles: Vec::new(),
        serials: Vec::new(),
        counters: Vec::new(),
        disks: Vec::new(),
    };
    let mut virtio: Vec<Box<dyn Device>> = Vec::new();
    let spares: Vec<Spare> = resources.disks.iter().map(|_| Spare::default()).collect();
    for (index, spec) in resources.disks.iter().enumerate() {
        let name = format!("disk{index}");
        let options = BlkOptions {
            note: log(&name),
            passphrase: passphrase(spec, ends)?,
            spare: spares[index].clone(),
            keep: parts.keeps.get(index).cloned().unwrap_or_default(),
            ..BlkOptions::default()
        };
        let disk = Blk::open(&name, spec, options)?;
        out.disks.push(disk.counters());
        virtio.push(Box::new(disk));
    }
    for spec in &resources.consoles {
        let mut console = Console::new(spec, ends, Some(parts.console))?;
        console.drain_on_reset(parts.control.waits());
        out.consoles.push(console.handle());
        virtio.push(Box::new(console));
    }
    if let Some(spec) = &resources.rng {
        virtio.push(Box::new(Rng::new(spec)));
    }
    if virtio.len() as u64 > layout::MMIO_MAX {
        return Err(DeviceError::TooMany(virtio.len()));
    }
    let mut loops = Loops {
        wanted: resources.iothreads.max(1) as usize,
        control: parts.control,
        made: &mut out.loops,
        next: 0,
    };
    // Disks come first.
    let encrypted = resources.disks.iter().map(|d| d.encryption.is_some());
    let rings = spares.into_iter().zip(encrypted);
    let mut rings = rings.map(|(spare, encrypted)| (!encrypted).then_some(spare));
    let count = virtio.len();
    for (index, device) in virtio.into_iter().enumerate() {
        let base = layout::MMIO_BASE + index as u64 * layout::MMIO_STRIDE;
        let (gsi, level) = layout::virtio_gsi(index, count);
        let name = device.name().to_owned();
        let wiring = Wiring {
            memory: parts.memory.clone(),
            events: Arc::new(loops.next(rings.next().flatten())?),
            registry: Some(parts.machine.kicks()),
            log: log(&name),
        };
        let trigger = if level { Trigger::Level } else { Trigger::Edge };
        let transport = MmioTransport::new(device, base, parts.lines.line(gsi), trigger, wiring)
            .map_err(|source| DeviceError::Queues {
                name: name.clone(),
                source,
            })?;
        out.counters.push((name, transport.counters()));
        mmio.insert(base, layout::MMIO_STRIDE, Arc::new(Mutex::new(transport)))?;
        out.virtio.push(MmioDevice {
            base,
            len: layout::MMIO_STRIDE,
            gsi,
            level,
        });
    }
    for spec in &resources.serials {
        let line = parts.lines.line(spec.irq());
        let (serial, source) = Serial::new(
            spec,
            ends,
            line,
            Some(parts.console),
            &parts.control.waits(),
        )?;
        if let Some(source) = source {
            // A loop that has ended already stopped the machine.
            let _ = loops.next(None)?.add(Worker::from_source(Box::new(source)));
        }
        out.serials.push(serial.clone());
        ports.insert(spec.port(), serial::LEN, serial)?;
    }
    if resources.disks.iter().any(|d| d.encryption.is_some()) {
        for io_thread in &mut out.loops {
            io_thread.expect_disk_threads();
        }
    }
    Ok(out)
}

/// Loops, made when the first device needs one.
struct Loops<'a> {
    wanted: usize,
    control: &'a Arc<Control>,
    made: &'a mut Vec<IoThread>,
    next: usize,
}

impl Loops<'_> {
    /// The loop of the next device, in turn; `spare` if that is a disk.
    fn next(&mut self, spare: Option<Spare>) -> Result<LoopHandle, IoThreadError> {
        let turn = self.next % self.wanted;
        self.next += 1;
        if turn == self.made.len() {
            let made = IoThread::new(turn as u32, self.control.clone())?;
            self.made.push(made);
        }
        let made = &mut self.made[turn];
        if let Some(spare) = spare {
            made.expect_disk(spare);
        }
        Ok(made.handle())
    }
}

/// Reports of a device that its driver or the host makes fail. Each device sends few of them.
fn log(name: &str) -> Arc<dyn Fn(&str) + Send + Sync> {
    let name = name.to_owned();
    Arc::new(move |text| {
        let _ = writeln!(std::io::stderr().lock(), "vsc: {name}: {text}");
    })
}
