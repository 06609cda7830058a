//! Virtio over MMIO, version 2 (VIRTIO 4.2).

#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_mmio as regs;

use super::Wiring;
use super::port::{Area, Half, Port, Signal};
use crate::bus::BusDevice;
use crate::irq::Line;
use crate::virtio::Device;
use crate::virtio::stats::Counters;

#[cfg(test)]
mod tests;

/// Length of the register window: 0x100 bytes of registers, the rest configuration space.
pub const WINDOW: u64 = 0x1000;

/// MagicValue: "virt" (VIRTIO 4.2.2).
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Version: not legacy (VIRTIO 4.2.2).
const VERSION: u32 = 2;
/// VendorID is free for us to choose (VIRTIO 4.2.2).
const VENDOR: u32 = u32::from_le_bytes(*b"VSC ");

const INTERRUPT_STATUS: u64 = regs::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
const INTERRUPT_ACK: u64 = regs::VIRTIO_MMIO_INTERRUPT_ACK as u64;
const QUEUE_NOTIFY: u64 = regs::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
const CONFIG: u64 = regs::VIRTIO_MMIO_CONFIG as u64;

/// How the interrupt controller looks at a device's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Each event is one edge. The line must not be shared.
    Edge,
    /// The line is high while an event is not acknowledged. It may be shared.
    Level,
}

/// InterruptStatus and the line it drives.
pub struct MmioSignal {
    pending: AtomicU32,
    line: Line,
    /// The level the line was last set to; `None` for edges.
    level: Option<Mutex<bool>>,
}

impl MmioSignal {
    fn new(line: Line, trigger: Trigger) -> Self {
        Self {
            pending: AtomicU32::new(0),
            line,
            level: (trigger == Trigger::Level).then(Mutex::default),
        }
    }

    fn raise(&self, event: u32) {
        self.pending.fetch_or(event, Ordering::AcqRel);
        match &self.level {
            // Also while an earlier event is unacknowledged: drivers acknowledge after they have looked.
            None => self.line.pulse(),
            Some(level) => self.settle(level),
        }
    }

    fn acknowledge(&self, events: u32) {
        self.pending.fetch_and(!events, Ordering::AcqRel);
        if let Some(level) = &self.level {
            self.settle(level);
        }
    }

    /// Brings the line to what is pending. The lock keeps a late "low" from overtaking a "high".
    fn settle(&self, level: &Mutex<bool>) {
        let mut high = level.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.pending.load(Ordering::Acquire) != 0;
        if *high != wanted {
            *high = wanted;
            self.line.set_level(wanted);
        }
    }
}

impl Signal for MmioSignal {
    fn queue(&self, _index: u16) {
        self.raise(regs::VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.raise(regs::VIRTIO_MMIO_INT_CONFIG);
    }

    fn clear(&self) {
        self.acknowledge(u32::MAX);
    }
}

/// The registers of one virtio-mmio device; [`WINDOW`] bytes on the MMIO bus.
pub struct MmioTransport {
    port: Port<MmioSignal>,
    doorbell: u64,
}

impl MmioTransport {
    /// `device` with its registers at the guest physical `address` and its interrupt on `line`.
    ///
    /// # Errors
    /// Of eventfd(2), of which each queue needs one.
    pub fn new(
        device: Box<dyn Device>,
        address: u64,
        line: Line,
        trigger: Trigger,
        wiring: Wiring,
    ) -> io::Result<Self> {
        Ok(Self {
            port: Port::new(device, MmioSignal::new(line, trigger), wiring)?,
            doorbell: address.wrapping_add(QUEUE_NOTIFY),
        })
    }

    /// Event counts, shared.
    pub fn counters(&self) -> Arc<Counters> {
        self.port.counters()
    }

    /// Takes the doorbells back from the kernel, before the address is used for something else.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn unregister_kicks(&mut self) -> io::Result<()> {
        self.port.unregister_kicks(self.doorbell)
    }

    /// Registers other than InterruptStatus. Write-only and undefined ones read as 0.
    fn register(&self, offset: u32) -> u32 {
        let port = &self.port;
        match offset {
            regs::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            regs::VIRTIO_MMIO_VERSION => VERSION,
            regs::VIRTIO_MMIO_DEVICE_ID => port.id(),
            regs::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            regs::VIRTIO_MMIO_DEVICE_FEATURES => port.offered_page(),
            regs::VIRTIO_MMIO_QUEUE_NUM_MAX => u32::from(port.queue_max()),
            regs::VIRTIO_MMIO_QUEUE_READY => u32::from(port.queue_ready()),
            regs::VIRTIO_MMIO_STATUS => port.status(),
            // No device here has shared memory (VIRTIO 4.2.2: length and base are -1).
            regs::VIRTIO_MMIO_SHM_LEN_LOW
            | regs::VIRTIO_MMIO_SHM_LEN_HIGH
            | regs::VIRTIO_MMIO_SHM_BASE_LOW
            | regs::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            regs::VIRTIO_MMIO_CONFIG_GENERATION => port.config().generation(),
            // QueueReset too: RING_RESET is not offered.
            _ => 0,
        }
    }

    /// Registers other than QueueNotify and InterruptACK. Writes to read-only and undefined ones are lost.
    fn set_register(&mut self, offset: u32, value: u32) {
        let port = &mut self.port;
        match offset {
            regs::VIRTIO_MMIO_DEVICE_FEATURES_SEL => port.select_offered(value),
            regs::VIRTIO_MMIO_DRIVER_FEATURES => port.accept(value),
            regs::VIRTIO_MMIO_DRIVER_FEATURES_SEL => port.select_accepted(value),
            regs::VIRTIO_MMIO_QUEUE_SEL => port.select_queue(value),
            regs::VIRTIO_MMIO_QUEUE_NUM => port.set_queue_size(value),
            regs::VIRTIO_MMIO_QUEUE_READY => port.set_queue_ready(value),
            regs::VIRTIO_MMIO_STATUS => port.set_status(value),
            regs::VIRTIO_MMIO_QUEUE_DESC_LOW => {
                port.set_queue_address(Area::Descriptors, Half::Low, value)
            }
            regs::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                port.set_queue_address(Area::Descriptors, Half::High, value)
            }
            regs::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                port.set_queue_address(Area::Driver, Half::Low, value)
            }
            regs::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                port.set_queue_address(Area::Driver, Half::High, value)
            }
            regs::VIRTIO_MMIO_QUEUE_USED_LOW => {
                port.set_queue_address(Area::Device, Half::Low, value)
            }
            regs::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                port.set_queue_address(Area::Device, Half::High, value)
            }
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.port.config().read(offset - CONFIG, data);
            return;
        }
        // VIRTIO 4.2.2.2: drivers use aligned 32-bit accesses only. Others read as 0.
        let value = match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(value) => value,
            Err(_) => return data.fill(0),
        };
        *value = if offset == INTERRUPT_STATUS {
            self.port.signal().pending.load(Ordering::Acquire)
        } else {
            // Below 0x100.
            self.register(offset as u32)
        }
        .to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            self.port.config().write(offset - CONFIG, data);
            return;
        }
        // As for reads: anything else is not taken. Unaligned offsets match no register.
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            QUEUE_NOTIFY => self.port.notify(value, self.doorbell),
            INTERRUPT_ACK => self.port.signal().acknowledge(value),
            _ => self.set_register(offset as u32, value),
        }
    }
}
