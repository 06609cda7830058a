//! Step 5 of the builder: serial lines and virtio devices from their specs, on their buses and loops.

use std::io::Write;
use std::sync::{Arc, Mutex};

use vsc_devices::Memory;
use vsc_devices::bus::{Bus, BusError};
use vsc_devices::console_log::ConsoleLog;
use vsc_devices::legacy::serial::{self, Serial};
use vsc_devices::stream::HostEnds;
use vsc_devices::virtio::Device;
use vsc_devices::virtio::blk::{Blk, BlkError, BlkOptions};
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

/// What devices are wired to.
pub(crate) struct Parts<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) machine: &'a Machine,
    pub(crate) lines: &'a Lines,
    pub(crate) console: &'a ConsoleLog,
    pub(crate) control: &'a Arc<Control>,
}

/// What came of it.
pub(crate) struct Devices {
    pub(crate) loops: Vec<IoThread>,
    pub(crate) virtio: Vec<MmioDevice>,
    pub(crate) consoles: Vec<ConsoleHandle>,
    pub(crate) serials: Vec<Arc<Mutex<Serial>>>,
    pub(crate) counters: Vec<(String, Arc<Counters>)>,
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
    };
    let mut virtio: Vec<Box<dyn Device>> = Vec::new();
    for (index, spec) in resources.disks.iter().enumerate() {
        let name = format!("disk{index}");
        let options = BlkOptions {
            note: log(&name),
            ..BlkOptions::default()
        };
        virtio.push(Box::new(Blk::open(&name, spec, options)?));
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
        running: &mut out.loops,
        next: 0,
    };
    let count = virtio.len();
    for (index, device) in virtio.into_iter().enumerate() {
        let base = layout::MMIO_BASE + index as u64 * layout::MMIO_STRIDE;
        let (gsi, level) = layout::virtio_gsi(index, count);
        let name = device.name().to_owned();
        let wiring = Wiring {
            memory: parts.memory.clone(),
            events: Arc::new(loops.next()?),
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
            let _ = loops.next()?.add(Worker::from_source(Box::new(source)));
        }
        out.serials.push(serial.clone());
        ports.insert(spec.port(), serial::LEN, serial)?;
    }
    Ok(out)
}

/// I/O threads, started when the first device needs one.
struct Loops<'a> {
    wanted: usize,
    control: &'a Arc<Control>,
    running: &'a mut Vec<IoThread>,
    next: usize,
}

impl Loops<'_> {
    /// The loop of the next device, in turn.
    fn next(&mut self) -> Result<LoopHandle, IoThreadError> {
        let turn = self.next % self.wanted;
        self.next += 1;
        if turn == self.running.len() {
            self.running
                .push(IoThread::spawn(turn as u32, self.control.clone())?);
        }
        Ok(self.running[turn].handle())
    }
}

/// Reports of a device that its driver or the host makes fail. Each device sends few of them.
fn log(name: &str) -> Arc<dyn Fn(&str) + Send + Sync> {
    let name = name.to_owned();
    Arc::new(move |text| {
        let _ = writeln!(std::io::stderr().lock(), "vsc: {name}: {text}");
    })
}
