//! An I/O APIC in user space (Intel 82093AA data sheet, with the EOI register of version 0x20), for machines whose
//! KVM keeps only the local APICs.
//!
//! Interrupts leave as MSIs composed after Intel SDM volume 3A, 11.11 ("Message Signalled Interrupts"). A
//! level-triggered pin sends once, sets Remote IRR, and sends again at EOI if its line is still high. Edges that
//! come while a pin is masked are lost, as on the chip. Pins set to ExtINT send nothing: there is no 8259 behind.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;
use crate::irq::{IrqLine, Line};

/// Where every PC has the first one (Intel 82093AA, 3.0).
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of MMIO it takes.
pub const LEN: u64 = 0x1000;
/// Inputs.
pub const PINS: usize = 24;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_TABLE: u8 = 0x10;
/// Version 0x20 has an EOI register, which Linux then uses instead of masking pins (`__eoi_ioapic_pin`).
const VERSION: u32 = 0x20;

// Bits of a redirection entry (82093AA, 3.2.4).
const VECTOR: u64 = 0xff;
const DELIVERY_SHIFT: u32 = 8;
const DELIVERY: u64 = 7 << DELIVERY_SHIFT;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
/// Bits 49 to 55: destination bits 8 to 14 (KVM_FEATURE_MSI_EXT_DEST_ID, Documentation/virt/kvm/x86/cpuid.rst).
const EXTENDED_SHIFT: u32 = 49;

const FIXED: u64 = 0;
const LOWEST_PRIORITY: u64 = 1;
const EXT_INT: u64 = 7;

/// The local APICs' end: takes messages.
pub trait MsiSink: Send + Sync {
    /// Delivers one message.
    fn send(&self, address: u64, data: u32);

    /// A pin's entry changed: what it will send from now on, `None` for nothing. A level-triggered pin that is masked
    /// keeps its message, because the EOI of what it has sent may still come. KVM needs this as a GSI route, to know
    /// for which level-triggered vectors it must report EOIs.
    fn route(&self, pin: u8, message: Option<(u64, u32)>) {
        let _ = (pin, message);
    }
}

#[derive(Clone, Copy)]
struct Pin {
    entry: u64,
    /// How many sources hold the line high.
    high: u32,
}

struct State {
    id: u8,
    select: u8,
    pins: [Pin; PINS],
}

struct Inner {
    state: Mutex<State>,
    sink: Arc<dyn MsiSink>,
    extended_destinations: bool,
}

/// The I/O APIC. Clones are handles to one: one goes on the bus, others give lines and take EOIs.
#[derive(Clone)]
pub struct IoApic {
    inner: Arc<Inner>,
}

impl IoApic {
    /// A chip after reset: every pin masked. `extended_destinations` says that the guest was offered
    /// KVM_FEATURE_MSI_EXT_DEST_ID, so entries may name APIC IDs up to 32767.
    pub fn new(sink: Arc<dyn MsiSink>, extended_destinations: bool) -> Self {
        let pins = [Pin {
            entry: MASKED,
            high: 0,
        }; PINS];
        let state = Mutex::new(State {
            id: 0,
            select: 0,
            pins,
        });
        Self {
            inner: Arc::new(Inner {
                state,
                sink,
                extended_destinations,
            }),
        }
    }

    /// A source on input `pin`; `None` past the last. Each source has its own level, the pin sees their OR.
    pub fn line(&self, pin: u8) -> Option<Line> {
        let chip = self.clone();
        (usize::from(pin) < PINS).then(|| {
            Arc::new(Input {
                chip,
                pin: usize::from(pin),
                high: AtomicBool::new(false),
            }) as Line
        })
    }

    /// A local APIC finished the interrupt with this vector (KVM_EXIT_IOAPIC_EOI, or the EOI register).
    pub fn eoi(&self, vector: u8) {
        let mut state = self.inner.lock();
        for index in 0..PINS {
            let pin = &mut state.pins[index];
            if pin.entry & REMOTE_IRR != 0 && pin.entry & VECTOR == u64::from(vector) {
                pin.entry &= !REMOTE_IRR;
                self.inner.service(&mut state, index);
            }
        }
    }

    fn read_window(&self) -> u32 {
        let state = self.inner.lock();
        match state.select {
            REG_ID | REG_ARBITRATION => u32::from(state.id) << 24,
            REG_VERSION => VERSION | ((PINS as u32 - 1) << 16),
            register => match table_index(register) {
                Some((index, false)) => state.pins[index].entry as u32,
                Some((index, true)) => (state.pins[index].entry >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_window(&self, value: u32) {
        let mut state = self.inner.lock();
        match state.select {
            REG_ID => state.id = (value >> 24) as u8 & 0x0f,
            register => {
                let Some((index, upper)) = table_index(register) else {
                    return;
                };
                let entry = &mut state.pins[index].entry;
                let before = *entry;
                if upper {
                    *entry = before & 0xffff_ffff | u64::from(value) << 32;
                } else {
                    let read_only = DELIVERY_STATUS | REMOTE_IRR;
                    let low = u64::from(value & 0x1_ffff) & !read_only;
                    *entry = before >> 32 << 32 | before & read_only | low;
                    if *entry & LEVEL == 0 {
                        // An edge entry has no Remote IRR; Linux clears a stuck one this way.
                        *entry &= !REMOTE_IRR;
                    }
                }
                let waits = *entry & MASKED != 0 && *entry & LEVEL != 0;
                if (*entry ^ before) & !REMOTE_IRR != 0 && !waits {
                    let message = (*entry & MASKED == 0).then(|| self.inner.message(*entry));
                    self.inner.sink.route(index as u8, message);
                }
                self.inner.service(&mut state, index);
            }
        }
    }
}

fn table_index(register: u8) -> Option<(usize, bool)> {
    let at = usize::from(register.checked_sub(REG_TABLE)?);
    (at / 2 < PINS).then_some((at / 2, at % 2 == 1))
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address and data (Intel SDM 3A, figures 11-14 and 11-15): destination in bits 19:12, redirection hint in bit
    /// 3, logical mode in bit 2; vector, delivery mode in bits 10:8, assert in bit 14, level in bit 15.
    fn message(&self, entry: u64) -> (u64, u32) {
        let delivery = (entry & DELIVERY) >> DELIVERY_SHIFT;
        let mut address = 0xfee0_0000 | entry >> DESTINATION_SHIFT << 12;
        if self.extended_destinations {
            address |= (entry >> EXTENDED_SHIFT & 0x7f) << 5;
        }
        if delivery == LOWEST_PRIORITY {
            address |= 1 << 3;
        }
        if entry & LOGICAL != 0 {
            address |= 1 << 2;
        }
        let mut data = (entry & (VECTOR | DELIVERY)) as u32;
        if entry & LEVEL != 0 {
            data |= 1 << 15 | 1 << 14;
        }
        (address, data)
    }

    fn send(&self, entry: u64) {
        if (entry & DELIVERY) >> DELIVERY_SHIFT != EXT_INT {
            let (address, data) = self.message(entry);
            self.sink.send(address, data);
        }
    }

    /// Sends for a level-triggered pin that is high and has nothing outstanding.
    fn service(&self, state: &mut State, index: usize) {
        let pin = &mut state.pins[index];
        if pin.high > 0 && pin.entry & LEVEL != 0 && pin.entry & (MASKED | REMOTE_IRR) == 0 {
            // Only Fixed and Lowest Priority are acknowledged by an EOI.
            if matches!(
                (pin.entry & DELIVERY) >> DELIVERY_SHIFT,
                FIXED | LOWEST_PRIORITY
            ) {
                pin.entry |= REMOTE_IRR;
            }
            self.send(pin.entry);
        }
    }

    fn set(&self, state: &mut State, index: usize, high: bool) {
        let pin = &mut state.pins[index];
        let rising = high && pin.high == 0;
        pin.high = if high {
            pin.high.saturating_add(1)
        } else {
            pin.high.saturating_sub(1)
        };
        if rising {
            if pin.entry & (LEVEL | MASKED) == 0 {
                self.send(pin.entry);
            } else {
                self.service(state, index);
            }
        }
    }
}

struct Input {
    chip: IoApic,
    pin: usize,
    /// Changed with the chip locked.
    high: AtomicBool,
}

impl Input {
    fn drive(&self, state: &mut State, high: bool) {
        if self.high.swap(high, Ordering::Relaxed) != high {
            self.chip.inner.set(state, self.pin, high);
        }
    }
}

impl IrqLine for Input {
    fn pulse(&self) {
        // Under one lock: the edge of another thread must not fall into this one's high phase.
        let mut state = self.chip.inner.lock();
        self.drive(&mut state, true);
        self.drive(&mut state, false);
    }

    fn set_level(&self, high: bool) {
        self.drive(&mut self.chip.inner.lock(), high);
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.set_level(false);
    }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.inner.lock().select),
            IOWIN => self.read_window(),
            _ => 0,
        };
        data.fill(0);
        let len = data.len().min(4);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&low) = data.first() else { return };
        match offset {
            IOREGSEL => self.inner.lock().select = low,
            // Registers are 32 bits wide: narrower writes to the window are undefined, and ignored here.
            IOWIN => {
                if let Some(&value) = data.first_chunk() {
                    self.write_window(u32::from_le_bytes(value));
                }
            }
            EOI => self.eoi(low),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
