//! A 16550A on ISA (COM1 to COM4), around vm-superio's register model.
//!
//! **Output.** Every byte goes to the console log at once. For the host it is gathered in a line buffer, written at
//! a newline, at 4 KiB, and by the I/O loop when 5 ms have passed: a prompt appears at once, a megabyte does not
//! cost a million system calls. A reader that falls behind finds up to 64 KiB kept; then the vCPU waits inside its
//! register access until there is room again or [`Stop`] is raised. Nothing is lost but what nobody is there to
//! read: a UNIX socket without a client, a pipe without a reader.
//!
//! **Input.** Read on the I/O loop only while the UART's FIFO has room, and not before the guest listens: its driver
//! enabled the receive interrupt, or it polls. So what is piped in at start is not eaten by a driver's probe, which
//! enables all interrupts for a moment to see whether they can be (Linux autoconfig()), or by its start, which reads
//! and drops what the FIFO holds (Linux serial8250_do_startup()). A driver that shuts the port down listens no more.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;

use crate::bus::BusDevice;
use crate::console_log::ConsoleLog;
use crate::irq::Line;
use crate::source::{Source, Stop};
use crate::stream::{self, Endpoint, HostEnds, InputFilter, Link, LinkEvent, StreamError};
use crate::virtio::{Interest, Watch};

mod alarm;
mod output;

use alarm::Alarm;
use output::Output;

/// Ports a UART takes.
pub const LEN: u64 = 8;
/// First port and ISA interrupt of COM1 to COM4 (Linux arch/x86/include/asm/serial.h, SERIAL_PORT_DFNS).
const PORTS: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

const INTERRUPT_ENABLE: u64 = 1;
const FIFO_CONTROL: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const ENABLE_RECEIVED_DATA: u8 = 1 << 0;
/// All interrupts of a 16550A; a driver at work leaves one out, a probe does not.
const ENABLE_ALL: u8 = 0x0f;
const CLEAR_RECEIVER: u8 = 1 << 1;
/// Opens the way from the UART's interrupt to the PC's (OUT2).
const INTERRUPTS_OUT: u8 = 1 << 3;
const DIVISOR_LATCH: u8 = 1 << 7;

/// A guest that reads the line status this often without doing anything else waits for input by polling.
const POLLS: u32 = 16;
/// What is read from the host at once; the UART takes 64 bytes of it at a time.
const PIECE: usize = 256;
/// When the UART is busy with a vCPU, input is tried again after this long.
const RETRY: Duration = Duration::from_millis(1);

/// All interrupts enabled for this long are more than a probe.
const PROBE: Duration = Duration::from_millis(50);

/// Tokens of a [`SerialSource`]: the timer, then those of the link.
const ALARM: u32 = 0;
const LINK: u32 = 1;

/// A serial line, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialSpec {
    /// 0 to 3: COM1 (ttyS0) to COM4.
    pub index: u8,
    /// The host's end. A file takes output only.
    pub endpoint: Endpoint,
    /// Output also goes to the console log.
    pub log: bool,
}

impl SerialSpec {
    /// First I/O port; an index above 3 counts as 3.
    pub fn port(&self) -> u64 {
        PORTS[usize::from(self.index).min(3)].0
    }

    /// ISA interrupt; COM1 and COM3, COM2 and COM4 share one.
    pub fn irq(&self) -> u32 {
        PORTS[usize::from(self.index).min(3)].1
    }
}

/// What the vCPU's side and the loop's side share.
struct Shared {
    output: Output,
    alarm: Alarm,
    /// The loop has input and waits for the UART to take it.
    starved: AtomicBool,
}

struct Edge(Line);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

struct Hooks(Arc<Shared>);

impl SerialEvents for Hooks {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.0.starved.swap(false, Ordering::AcqRel) {
            self.0.alarm.now();
        }
    }
}

struct Transmitter(Arc<Shared>);

impl io::Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output.push(bytes, &self.0.alarm);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The UART as the guest sees it.
pub struct Serial {
    uart: vm_superio::Serial<Edge, Hooks, Transmitter>,
    shared: Arc<Shared>,
    line_control: u8,
    /// Line status reads since the last other access.
    polls: u32,
    listening: bool,
    /// The receive interrupt is enabled.
    receives: bool,
    /// Since when all interrupts are, by a guest that does not listen yet.
    probed: Option<Instant>,
}

/// The host's end of a [`Serial`], to be put on an I/O loop.
pub struct SerialSource {
    serial: Arc<Mutex<Serial>>,
    shared: Arc<Shared>,
    link: Link,
    filter: Option<Box<dyn InputFilter>>,
    /// Read and filtered, waiting for the UART.
    staged: Vec<u8>,
}

impl Serial {
    /// A UART on `line` (edges), with its host end opened. There is no source to run where nothing would ever come
    /// from or wait for the host ([`Endpoint::Null`]).
    ///
    /// # Errors
    /// [`StreamError`] when the endpoint cannot be opened.
    pub fn new(
        spec: &SerialSpec,
        ends: &mut HostEnds,
        line: Line,
        log: Option<&ConsoleLog>,
        stop: &Stop,
    ) -> Result<(Arc<Mutex<Self>>, Option<SerialSource>), StreamError> {
        let link = Link::new(stream::open(&spec.endpoint, ends)?, LINK);
        let log = log.filter(|_| spec.log).cloned();
        let shared = Arc::new(Shared {
            output: Output::new(link.output().cloned(), log, stop.clone()),
            alarm: if link.is_null() {
                Alarm::silent()
            } else {
                Alarm::new()?
            },
            starved: AtomicBool::new(false),
        });
        let serial = Arc::new(Mutex::new(Self {
            uart: vm_superio::Serial::with_events(
                Edge(line),
                Hooks(Arc::clone(&shared)),
                Transmitter(Arc::clone(&shared)),
            ),
            shared: Arc::clone(&shared),
            line_control: 0,
            polls: 0,
            listening: false,
            receives: false,
            probed: None,
        }));
        let source = (!link.is_null()).then(|| SerialSource {
            serial: Arc::clone(&serial),
            shared,
            link,
            filter: None,
            staged: Vec::new(),
        });
        Ok((serial, source))
    }

    /// Writes what the host is still owed. Gives up when the reader has taken nothing for `patience`; returns
    /// whether everything was written. Dropping a `Serial` does this with 2 s.
    pub fn finish(&self, patience: Duration) -> bool {
        self.shared.output.finish(patience)
    }

    fn listens(&mut self) {
        if !std::mem::replace(&mut self.listening, true)
            && self.shared.starved.swap(false, Ordering::AcqRel)
        {
            self.shared.alarm.now();
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        if offset == LINE_STATUS {
            self.polls = self.polls.saturating_add(1);
            if self.polls == POLLS {
                self.listens();
            }
        } else {
            self.polls = 0;
        }
        self.uart.read(offset as u8)
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.polls = 0;
        let latch = self.line_control & DIVISOR_LATCH != 0;
        if offset == LINE_CONTROL {
            self.line_control = value;
        }
        // Neither the trigger nor the transmitter can fail.
        let _ = self.uart.write(offset as u8, value);
        match offset {
            INTERRUPT_ENABLE if !latch => {
                self.receives = value & ENABLE_RECEIVED_DATA != 0;
                self.probed = None;
                if self.receives && !self.listening && value & ENABLE_ALL == ENABLE_ALL {
                    self.probed = Some(Instant::now());
                    self.shared.alarm.within(PROBE);
                } else if self.receives {
                    self.listens();
                }
            }
            FIFO_CONTROL if value & CLEAR_RECEIVER != 0 && !self.receives => self.listening = false,
            MODEM_CONTROL if value & INTERRUPTS_OUT == 0 && !self.receives => {
                self.listening = false
            }
            _ => {}
        }
    }

    /// Whether input may come. A probe that lasts was none.
    fn takes_input(&mut self) -> bool {
        if let Some(since) = self.probed {
            if since.elapsed() >= PROBE {
                self.probed = None;
                self.listening = true;
            } else {
                self.shared.alarm.within(PROBE);
            }
        }
        self.listening && self.uart.fifo_capacity() > 0
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.read_register(offset + i as u64);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            self.write_register(offset + i as u64, byte);
        }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.finish(Duration::from_secs(2));
    }
}

enum Feed {
    /// Everything staged is in the UART.
    Done,
    /// The UART is full, or nobody listens: it will ask again.
    Full,
    /// Come back soon.
    Busy,
}

impl SerialSource {
    /// Lets `filter` see all input first. Before the source is put on its loop.
    pub fn set_filter(&mut self, filter: Box<dyn InputFilter>) {
        self.filter = Some(filter);
    }

    fn feed(&mut self) -> Feed {
        // Never wait for this lock: a vCPU that waits for the host to read holds it.
        let Ok(mut serial) = self.serial.try_lock().or_else(|e| match e {
            std::sync::TryLockError::Poisoned(poisoned) => Ok(PoisonError::into_inner(poisoned)),
            std::sync::TryLockError::WouldBlock => Err(()),
        }) else {
            return Feed::Busy;
        };
        if !serial.takes_input() {
            self.shared.starved.store(true, Ordering::Release);
            return Feed::Full;
        }
        if self.staged.is_empty() {
            return Feed::Done;
        }
        // Full was excluded; in loopback mode nothing is taken, which passes.
        let taken = serial.uart.enqueue_raw_bytes(&self.staged).unwrap_or(0);
        self.staged.drain(..taken);
        match (taken, self.staged.is_empty()) {
            (0, _) => Feed::Busy,
            (_, true) => Feed::Done,
            (_, false) => {
                self.shared.starved.store(true, Ordering::Release);
                Feed::Full
            }
        }
    }

    /// Moves input as far as it goes.
    fn pump_input(&mut self, watch: &mut dyn Watch) {
        while !self.staged.is_empty() || self.link.has_input() {
            match self.feed() {
                Feed::Done => {}
                Feed::Full => {
                    self.link.want_input(false, watch);
                    return;
                }
                Feed::Busy => {
                    self.link.want_input(false, watch);
                    self.shared.alarm.within(RETRY);
                    return;
                }
            }
            let mut piece = [0; PIECE];
            match self.link.read(&mut piece, watch) {
                Ok(0) => return,
                Ok(n) => {
                    self.staged.extend_from_slice(&piece[..n]);
                    if let Some(filter) = &mut self.filter {
                        filter.filter(&mut self.staged);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.link.want_input(true, watch);
                    return;
                }
            }
        }
    }

    /// Writes what is due, and asks for an event where the host has no room.
    fn pump_output(&mut self, watch: &mut dyn Watch) {
        let progress = self.shared.output.flush();
        if progress.gone {
            self.link.output_gone(watch);
            self.shared.output.connect(self.link.output().cloned());
        }
        self.link.want_output(progress.blocked, watch);
    }

    /// Something may have changed on either side.
    fn pump(&mut self, watch: &mut dyn Watch) {
        self.pump_output(watch);
        if !self.link.awaits_input() {
            self.pump_input(watch);
        }
    }
}

impl Source for SerialSource {
    fn start(&mut self, watch: &mut dyn Watch) {
        let interest = Interest {
            readable: true,
            writable: false,
        };
        // An epoll that refuses a timer is out of memory: the line then works, but for idle flushes.
        let _ = watch.watch(self.shared.alarm.fd(), ALARM, interest);
        self.link.start(watch);
        self.pump(watch);
    }

    fn event(&mut self, token: u32, _ready: Interest, hangup: bool, watch: &mut dyn Watch) {
        if token == ALARM {
            self.shared.alarm.clear();
            self.pump(watch);
            return;
        }
        match self.link.event(token, hangup, watch) {
            LinkEvent::Readable => self.pump_input(watch),
            LinkEvent::Writable => self.pump_output(watch),
            LinkEvent::Changed => {
                self.shared.output.connect(self.link.output().cloned());
                self.pump(watch);
            }
            LinkEvent::Nothing => {}
        }
    }

    fn stop(&mut self, watch: &mut dyn Watch) {
        self.link.stop(watch);
        watch.unwatch(self.shared.alarm.fd());
    }
}

#[cfg(test)]
mod tests;
