//! virtio-console (VIRTIO 5.3): a console, or up to 31 named byte streams, between guest and host.
//!
//! Data moves between guest buffers and host descriptors without a copy, and only as fast as both sides take it: a
//! port's host input is read only while the guest has buffers for it, a guest buffer is kept until the host took it.
//!
//! **Open and closed.** Linux tells a reader "end of file" while the host's end is closed (PORT_OPEN 0), and makes a
//! writer wait. So when a port's input ends, the port is closed for the guest; once the guest has closed it too and
//! there is still somebody to read output, it is opened again. A UNIX socket's port is open while a client is
//! connected. A port to standard output or error is closed when that breaks (its reader has gone, the disk is full),
//! because a command wants to hear of it; what it wrote meanwhile waits until the guest has closed it too, or a fast
//! writer would keep its kernel too busy to hear it. Console ports stay open: a terminal has no end of file. Output
//! that nobody is there to take (a pipe without a reader, a socket without a client) is taken from the guest, logged,
//! counted and dropped.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console_log::ConsoleLog;
use crate::source::Stop;
use crate::stream::{self, Endpoint, HostEnds, InputFilter, Link, LinkEvent, StreamError};
use crate::virtio::{Activation, ConfigSpace, Device, Interest, Interrupt, Watch};

mod abi;
mod control;
mod port;
mod shared;

use control::{Control, Event, Request};
use port::{Port, Pumped};
pub use shared::ConsoleHandle;
use shared::{Emergency, Shared};

/// Most ports: their queues and the control queues are 64.
pub const PORTS_MAX: usize = 31;
/// Longest port name, bytes. Linux takes any that fits into its control buffers (a page).
pub const NAME_MAX: usize = 255;

// Layout of `struct virtio_console_config` (VIRTIO 5.3.4): cols, rows, max_nr_ports, emerg_wr.
const CONFIG_COLS: usize = 0;
const CONFIG_EMERGENCY: usize = 8;
const CONFIG_LEN: usize = 12;

/// Linux fills a receive queue with pages at start: as few as do not slow bulk input down.
const INPUT_QUEUE: u16 = 64;
/// Receive queue of a port that has no input.
const NO_INPUT_QUEUE: u16 = 2;
const OUTPUT_QUEUE: u16 = 64;
const CONTROL_QUEUE: u16 = 16;

/// Token of the descriptor by which other threads, and we ourselves, ask for a turn of the loop.
const WAKE: u32 = 0;
const LINKS: u32 = 1;

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// `/dev/virtio-ports/NAME` in Linux.
    pub name: Option<String>,
    /// A terminal (hvc0, hvc1 … in Linux) rather than a byte stream.
    pub console: bool,
    /// Where input comes from.
    pub input: Endpoint,
    /// Where output goes.
    pub output: Endpoint,
    /// Output also goes to the console log.
    pub log: bool,
    /// The kernel prints on it, so that what looks like a panic in its log is one.
    pub kernel: bool,
}

/// A virtio-console device, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// 1 to [`PORTS_MAX`]. One unnamed console port makes a device without MULTIPORT.
    pub ports: Vec<PortSpec>,
    /// Offers VIRTIO_CONSOLE_F_SIZE: the guest hears of the terminal's size from this device. Off where a program of
    /// ours in the guest sets it: when a terminal is opened Linux's driver sets the size it knows, 0 × 0 until the
    /// device has told one, some time later, over what that program has set.
    pub size: bool,
}

/// Why a console could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// No ports, or too many.
    #[error("A console has 1 to {PORTS_MAX} ports, not {0}")]
    Ports(usize),
    /// A name is empty, too long, given twice, or has a byte that cannot be part of a file name.
    #[error("Bad or repeated port name {0:?}")]
    Name(String),
    /// A host end could not be opened.
    #[error("Cannot connect console port {port}")]
    Stream {
        /// Its name, or its number.
        port: String,
        /// Why.
        #[source]
        source: StreamError,
    },
    /// No event descriptor.
    #[error("Cannot create an event descriptor for the console")]
    Wake(#[source] std::io::Error),
}

/// What exists between activation and reset.
struct Active {
    interrupt: Arc<dyn Interrupt>,
    control: Control,
    multiport: bool,
    size: bool,
    /// The driver said DEVICE_READY.
    ready: bool,
}

/// The device.
pub struct Console {
    features: u64,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    emergency: Emergency,
    ports: Vec<Port>,
    active: Option<Active>,
    stop: Option<Stop>,
}

impl Console {
    /// A console as `spec` says, with its host ends opened.
    ///
    /// # Errors
    /// [`ConsoleError`]; nothing stays behind then.
    pub fn new(
        spec: &ConsoleSpec,
        ends: &mut HostEnds,
        log: Option<&ConsoleLog>,
    ) -> Result<Self, ConsoleError> {
        let ConsoleSpec { ports: specs, size } = spec;
        if !(1..=PORTS_MAX).contains(&specs.len()) {
            return Err(ConsoleError::Ports(specs.len()));
        }
        let multiport = !matches!(&specs[..], [only] if only.console && only.name.is_none());
        let mut ports = Vec::with_capacity(specs.len());
        let mut queue_sizes = Vec::new();
        let mut emergency = None;
        for (index, spec) in (0u32..).zip(specs) {
            let PortSpec {
                name,
                console,
                input,
                output,
                log: logged,
                kernel,
            } = spec;
            if let Some(name) = name {
                check_name(name, &ports)?;
            }
            let opened = stream::open_pair(input, output, ends).map_err(|source| {
                let port = name.clone().unwrap_or_else(|| index.to_string());
                ConsoleError::Stream { port, source }
            })?;
            let link = Link::new(opened, LINKS + index * Link::TOKENS);
            let log = log.filter(|_| *logged).map(|log| match kernel {
                true => log.clone(),
                false => log.of_programs(),
            });
            if *console && emergency.is_none() {
                let end = Arc::new(Mutex::new(link.output().cloned()));
                emergency = Some(Emergency {
                    log: log.clone(),
                    end,
                });
            }
            if index == 1 {
                queue_sizes.extend([CONTROL_QUEUE; 2]);
            }
            queue_sizes.extend([
                if *input == Endpoint::Null {
                    NO_INPUT_QUEUE
                } else {
                    INPUT_QUEUE
                },
                OUTPUT_QUEUE,
            ]);
            let mut port = Port::new(name.clone(), *console, link, log);
            port.breaks = matches!(output, Endpoint::Stdout | Endpoint::Stderr);
            ports.push(port);
        }
        if multiport && ports.len() == 1 {
            queue_sizes.extend([CONTROL_QUEUE; 2]);
        }
        let emergency = emergency.unwrap_or_default();
        let mut features = 1 << abi::VIRTIO_CONSOLE_F_EMERG_WRITE;
        if *size {
            features |= 1 << abi::VIRTIO_CONSOLE_F_SIZE;
        }
        let mut config = [0; CONFIG_LEN];
        if multiport {
            features |= 1 << abi::VIRTIO_CONSOLE_F_MULTIPORT;
            config[4..8].copy_from_slice(&(ports.len() as u32).to_le_bytes());
        }
        let early = emergency.clone();
        let config = ConfigSpace::new(&config, CONFIG_EMERGENCY..CONFIG_LEN).with_hook(Box::new(
            // "the low byte" of emerg_wr (VIRTIO 5.3.4).
            move |offset, byte| {
                if offset == CONFIG_EMERGENCY {
                    early.put(byte);
                }
            },
        ));
        Ok(Self {
            features,
            queue_sizes,
            shared: Arc::new(Shared {
                config: Arc::new(config),
                wake: EventFd::new(EFD_NONBLOCK).map_err(ConsoleError::Wake)?,
                size: Mutex::new(None),
                resized: AtomicBool::new(false),
                dropped: AtomicU64::new(0),
                drain: Mutex::default(),
                drained: Condvar::new(),
            }),
            emergency,
            ports,
            active: None,
            stop: None,
        })
    }

    /// A reset by the driver (Linux resets devices when it powers off) waits until the host has taken all output, or
    /// until `stop` is raised. Without this it drops what the host is slow to take.
    pub fn drain_on_reset(&mut self, stop: Stop) {
        self.stop = Some(stop);
    }

    /// The way to it for other threads.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Lets `filter` see all input of port `index` first. No such port: no effect.
    pub fn set_filter(&mut self, index: usize, filter: Box<dyn InputFilter>) {
        if let Some(port) = self.ports.get_mut(index) {
            port.filter = Some(filter);
        }
    }

    fn pump_input(&mut self, index: usize, watch: &mut dyn Watch) {
        match self.ports[index].pump_input(watch) {
            Pumped::Rest => {}
            Pumped::More => self.shared.wake(),
            Pumped::Ended => {
                self.ports[index].ended = true;
                self.tell_open(index);
            }
        }
    }

    fn pump_output(&mut self, index: usize, watch: &mut dyn Watch) {
        let port = &mut self.ports[index];
        let pumped = port.pump_output(watch);
        if port.dropped > 0 {
            let dropped = std::mem::take(&mut port.dropped);
            self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        match pumped {
            Pumped::Rest => {}
            Pumped::More => self.shared.wake(),
            Pumped::Ended => {
                port.ended |= port.breaks;
                let open = port.told_open;
                self.changed(index);
                let port = &mut self.ports[index];
                port.holds = port.breaks && open && !port.told_open;
                // The rest of the output is dropped in the next turn.
                self.shared.wake();
            }
        }
    }

    /// Tells who waits in [`ConsoleHandle::finish`] that all output is with the host.
    fn tell_drained(&mut self) {
        if self.shared.drain().wanted && self.ports.iter_mut().all(Port::output_done) {
            self.shared.drain().wanted = false;
            self.shared.drained.notify_all();
        }
    }

    /// A port's host end is another one, or none.
    fn changed(&mut self, index: usize) {
        let first_console = self.ports.iter().position(|p| p.console);
        if first_console == Some(index) {
            self.emergency
                .connect(self.ports[index].link.output().cloned());
        }
        self.tell_open(index);
    }

    /// Tells the driver whether the host's end of a port is open, if it does not know.
    fn tell_open(&mut self, index: usize) {
        let port = &mut self.ports[index];
        let open = port.console
            || if port.link.has_listener() {
                port.link.is_connected()
            } else {
                !port.ended
            };
        if let Some(active) = &mut self.active
            && active.multiport
            && port.ready
            && port.told_open != open
        {
            port.told_open = open;
            active.control.send(
                index as u32,
                abi::VIRTIO_CONSOLE_PORT_OPEN,
                open.into(),
                &[],
            );
            active.control.flush();
        }
    }

    fn serve_control(&mut self, watch: &mut dyn Watch) {
        while let Some(request) = self.active.as_mut().and_then(|a| a.control.receive()) {
            self.obey(request, watch);
        }
        if let Some(active) = &mut self.active {
            active.control.flush();
        }
    }

    fn obey(&mut self, request: Request, watch: &mut dyn Watch) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Request {
            port: id,
            event,
            value,
        } = request;
        if event == Event::DeviceReady {
            // Once is enough; 0 says that the driver could not set itself up.
            if value == 1 && !std::mem::replace(&mut active.ready, true) {
                for id in 0..self.ports.len() as u32 {
                    active
                        .control
                        .send(id, abi::VIRTIO_CONSOLE_PORT_ADD, 1, &[]);
                }
            }
            return;
        }
        let index = id as usize;
        let Some(port) = self.ports.get_mut(index) else {
            return;
        };
        match (event, value) {
            (Event::PortReady, 1) if !port.ready => {
                port.ready = true;
                if port.console {
                    active
                        .control
                        .send(id, abi::VIRTIO_CONSOLE_CONSOLE_PORT, 1, &[]);
                }
                if let Some(name) = &port.name {
                    active
                        .control
                        .send(id, abi::VIRTIO_CONSOLE_PORT_NAME, 1, name.as_bytes());
                }
                if active.size
                    && port.console
                    && let Some(size) = *self.shared.size()
                {
                    send_size(&mut active.control, id, size);
                }
                self.tell_open(index);
            }
            (Event::PortOpen, 0) => {
                port.guest_open = false;
                port.holds = false;
                // A guest that closes and powers off at once has sent all that it will.
                self.pump_output(index, watch);
                let Some(port) = self.ports.get_mut(index) else {
                    return;
                };
                // See the module's documentation.
                if port.ended && port.link.output().is_some() {
                    port.ended = false;
                    self.tell_open(index);
                }
                self.pump_input(index, watch);
            }
            (Event::PortOpen, _) => {
                port.guest_open = true;
                self.pump_input(index, watch);
            }
            _ => {}
        }
    }

    fn tell_size(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| active.size) else {
            return;
        };
        let Some(size) = *self.shared.size() else {
            return;
        };
        if active.multiport {
            for (id, port) in (0..).zip(&self.ports) {
                if port.console && port.ready {
                    send_size(&mut active.control, id, size);
                }
            }
            active.control.flush();
        }
        active.interrupt.config();
    }
}

/// Rows come first, as in Linux's driver and its other devices; VIRTIO 5.3.6.2 says columns first.
fn send_size(control: &mut Control, id: u32, (rows, cols): (u16, u16)) {
    let [r0, r1] = rows.to_le_bytes();
    let [c0, c1] = cols.to_le_bytes();
    control.send(id, abi::VIRTIO_CONSOLE_RESIZE, 1, &[r0, r1, c0, c1]);
}

fn check_name(name: &str, others: &[Port]) -> Result<(), ConsoleError> {
    let good = (1..=NAME_MAX).contains(&name.len())
        && !name.contains(['\0', '/'])
        && others.iter().all(|port| port.name.as_deref() != Some(name));
    good.then_some(())
        .ok_or_else(|| ConsoleError::Name(name.to_owned()))
}

impl Drop for Console {
    /// With its loop, which may end by a panic: whoever waits for output must not wait for ever.
    fn drop(&mut self) {
        let mut drain = self.shared.drain();
        drain.lost = drain.active;
        drop(drain);
        self.shared.set_active(false);
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &str {
        "console"
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.shared.config)
    }

    fn activate(&mut self, activation: Activation, watch: &mut dyn Watch) -> Result<(), String> {
        let has = |bit: u32| activation.features & 1 << bit != 0;
        let multiport = has(abi::VIRTIO_CONSOLE_F_MULTIPORT);
        let size = has(abi::VIRTIO_CONSOLE_F_SIZE);
        let mut queues = activation.queues.into_iter();
        let mut next = || queues.next().flatten();
        let mut control = (None, None);
        for (index, port) in self.ports.iter_mut().enumerate() {
            if index == 1 {
                control = (next(), next());
            }
            port.restart(next(), next());
            // Without MULTIPORT there is one port, and nobody to say that it is open.
            port.guest_open = !multiport && index == 0;
        }
        if multiport && self.ports.len() == 1 {
            control = (next(), next());
        }
        self.active = Some(Active {
            interrupt: activation.interrupt,
            control: Control::new(control.0, control.1),
            multiport,
            size,
            ready: false,
        });
        let interest = Interest {
            readable: true,
            writable: false,
        };
        watch
            .watch(self.shared.wake.as_raw_fd(), WAKE, interest)
            .map_err(|e| format!("cannot watch the console's event descriptor: {e}"))?;
        for index in 0..self.ports.len() {
            self.ports[index].link.start(watch);
        }
        self.serve_control(watch);
        self.shared.set_active(true);
        for index in 0..self.ports.len() {
            self.pump_output(index, watch);
            self.pump_input(index, watch);
        }
        Ok(())
    }

    fn kick(&mut self, index: u16, watch: &mut dyn Watch) {
        let (pair, output) = (usize::from(index) / 2, index % 2 == 1);
        match (pair, output) {
            (1, false) => {
                if let Some(active) = &mut self.active {
                    active.control.flush();
                }
                // Messages of the driver may have waited for room.
                self.serve_control(watch);
            }
            (1, true) => self.serve_control(watch),
            _ => {
                let port = pair.saturating_sub(1);
                if port >= self.ports.len() {
                    return;
                }
                if output {
                    self.pump_output(port, watch);
                } else if !self.ports[port].link.awaits_input() {
                    self.pump_input(port, watch);
                }
            }
        }
    }

    fn event(&mut self, token: u32, _ready: Interest, hangup: bool, watch: &mut dyn Watch) {
        if token == WAKE {
            // Whatever the count, one look at everything follows.
            let _ = self.shared.wake.read();
            if self.shared.resized.swap(false, Ordering::AcqRel) {
                self.tell_size();
            }
            for index in 0..self.ports.len() {
                self.pump_output(index, watch);
                if !self.ports[index].link.awaits_input() {
                    self.pump_input(index, watch);
                }
            }
            self.tell_drained();
            return;
        }
        let index = (token.saturating_sub(LINKS) / Link::TOKENS) as usize;
        let Some(port) = self.ports.get_mut(index) else {
            return;
        };
        match port.link.event(token, hangup, watch) {
            LinkEvent::Readable => self.pump_input(index, watch),
            LinkEvent::Writable => self.pump_output(index, watch),
            LinkEvent::Changed => {
                self.changed(index);
                self.pump_output(index, watch);
                self.pump_input(index, watch);
            }
            LinkEvent::Nothing => {}
        }
        self.tell_drained();
    }

    fn reset(&mut self, watch: &mut dyn Watch) {
        for port in &mut self.ports {
            if let Some(stop) = &self.stop {
                port.drain_output(stop, watch);
            }
            port.link.stop(watch);
            port.restart(None, None);
        }
        watch.unwatch(self.shared.wake.as_raw_fd());
        self.active = None;
        self.shared.set_active(false);
    }
}
