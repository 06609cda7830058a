//! ACPI fixed hardware: PM1a event and control blocks, the power management timer, the reset register.
//!
//! Section numbers are of the ACPI specification 6.5. The machine has no SMI command port, so it is always in ACPI
//! mode (4.8.3.2: SCI_EN reads 1). The timer's own event (TMR_STS) is never raised: the timer is 32 bits wide
//! (FADT flag TMR_VAL_EXT) and the status would change once in 20 minutes for nobody.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::bus::BusDevice;
use crate::event::{GuestEvent, Sink};
use crate::irq::Line;

/// First port: PM1a event block (4.8.3.1), 4 bytes; PM1a control block (4.8.3.2) at `+4`, 2 bytes; timer (4.8.3.3)
/// at `+8`, 4 bytes.
pub const PORT: u64 = 0x600;
/// Ports the block takes.
pub const LEN: u64 = 12;
/// Port of [`ResetRegister`] (4.8.3.6), the same as on Intel chip sets.
pub const RESET_PORT: u64 = 0xcf9;
/// The value for FADT's RESET_VALUE: bit 1 (system reset) and bit 2 (reset the CPU).
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYPx of the soft-off state; the DSDT's `\_S5` says the same (7.4.2.6).
pub const S5: u16 = 5;
/// Timer frequency, Hz (4.8.3.3).
pub const TIMER_HZ: u64 = 3_579_545;

/// PWRBTN_STS and PWRBTN_EN (tables 4.14 and 4.15).
const POWER_BUTTON: u16 = 1 << 8;
/// Enable bits that exist: TMR, GBL, PWRBTN, SLPBTN, RTC, PCIEXP_WAKE_DIS (table 4.15).
const ENABLE_MASK: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14;
/// SCI_EN (table 4.16).
const SCI_EN: u16 = 1 << 0;
/// SLP_TYPx, bits 10 to 12 (table 4.16).
const SLP_TYP_SHIFT: u16 = 10;
/// SLP_EN: write-only, reads 0 (table 4.16).
const SLP_EN: u16 = 1 << 13;
/// Control bits that keep what is written: BM_RLD and SLP_TYPx.
const CONTROL_MASK: u16 = 1 << 1 | 7 << SLP_TYP_SHIFT;
/// RST_CPU of the reset control register (Intel 82371SB, "RC register").
const RST_CPU: u8 = 1 << 2;

struct State {
    status: u16,
    enable: u16,
    control: u16,
    sci_high: bool,
}

struct Inner {
    state: Mutex<State>,
    sci: Line,
    sink: Sink,
    start: Instant,
}

/// The power management block. Clones are handles to one block: one goes on the bus, another stays with the main
/// thread to press the power button.
#[derive(Clone)]
pub struct AcpiPm {
    inner: Arc<Inner>,
}

impl AcpiPm {
    /// A block that raises `sci` (level-triggered, active high at this interface) and reports power off to `sink`.
    pub fn new(sci: Line, sink: Sink) -> Self {
        let state = Mutex::new(State {
            status: 0,
            enable: 0,
            control: 0,
            sci_high: false,
        });
        Self {
            inner: Arc::new(Inner {
                state,
                sci,
                sink,
                start: Instant::now(),
            }),
        }
    }

    /// Presses the power button: raises SCI until the guest clears the status, if it has enabled the event. A guest
    /// that enables it later sees the press then.
    pub fn press_power_button(&self) {
        let mut state = self.inner.lock();
        state.status |= POWER_BUTTON;
        self.inner.drive(&mut state);
    }

    /// Whether the guest listens to the power button: if not, pressing it will not power the guest off.
    pub fn listens(&self) -> bool {
        self.inner.lock().enable & POWER_BUTTON != 0
    }

    fn timer(&self) -> u32 {
        let elapsed = self.inner.start.elapsed().as_nanos();
        // u128: never overflows; the counter wraps at 32 bits by definition.
        (elapsed * u128::from(TIMER_HZ) / 1_000_000_000) as u32
    }

    fn image(&self) -> [u8; LEN as usize] {
        let state = self.inner.lock();
        let mut image = [0; LEN as usize];
        image[0..2].copy_from_slice(&state.status.to_le_bytes());
        image[2..4].copy_from_slice(&state.enable.to_le_bytes());
        image[4..6].copy_from_slice(&(state.control | SCI_EN).to_le_bytes());
        image[8..12].copy_from_slice(&self.timer().to_le_bytes());
        image
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive(&self, state: &mut State) {
        let high = state.status & state.enable != 0;
        if high != state.sci_high {
            state.sci_high = high;
            self.sci.set_level(high);
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = image.get(offset as usize + i).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut power_off = false;
        let mut state = self.inner.lock();
        for (i, &byte) in data.iter().enumerate() {
            let low = u16::from(byte);
            let high = low << 8;
            match offset + i as u64 {
                0 => state.status &= !low,
                1 => state.status &= !high,
                2 => state.enable = (state.enable & 0xff00 | low) & ENABLE_MASK,
                3 => state.enable = (state.enable & 0x00ff | high) & ENABLE_MASK,
                4 => state.control = (state.control & 0xff00 | low) & CONTROL_MASK,
                5 => {
                    state.control = (state.control & 0x00ff | high) & CONTROL_MASK;
                    power_off |= high & SLP_EN != 0 && state.control >> SLP_TYP_SHIFT & 7 == S5;
                }
                _ => {}
            }
        }
        self.inner.drive(&mut state);
        drop(state);
        if power_off {
            self.inner.sink.notify(GuestEvent::PowerOff);
        }
    }
}

/// The reset control register at port 0xcf9 (4.8.3.6). Setting bit 2 resets; 0x06 and 0x0e are the usual values.
pub struct ResetRegister {
    value: u8,
    sink: Sink,
}

impl ResetRegister {
    /// A register that reports to `sink`.
    pub fn new(sink: Sink) -> Self {
        Self { value: 0, sink }
    }
}

impl BusDevice for ResetRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.value;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.value = value & !RST_CPU;
        if value & RST_CPU != 0 {
            self.sink.notify(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
