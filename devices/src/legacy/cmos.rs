//! The MC146818 real-time clock and CMOS memory behind ports 0x70 (index) and 0x71 (data).
//!
//! The time is the host's, plus whatever the guest has set. It is taken when register A is read (UIP clear promises
//! 244 µs of a stable time, MC146818 data sheet "Update Cycle") and kept for that long, so that a driver which
//! polls UIP reads one consistent time. UIP itself is never set: Linux's `mc146818_avoid_UIP` is through in one
//! round.
//!
//! Register C shows the update-ended, periodic and alarm flags as they would have been set since it was last read.
//! IRQ 8 is not connected: none of them interrupts, IRQF stays 0. A driver that enables them in register B reads
//! them back as enabled and must poll.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

mod date;
use date::DateTime;

/// Index port; the data port follows.
pub const PORT: u64 = 0x70;
/// Ports it takes.
pub const LEN: u64 = 2;
/// Register that holds the century, for FADT's CENTURY field (ACPI 6.5, table 5.9).
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEK_DAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;

/// Register A: 32.768 kHz time base, 1024 Hz periodic rate, as PC firmware leaves it.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_UPDATE: u8 = 1 << 4;
const C_ALARM: u8 = 1 << 5;
const C_PERIODIC: u8 = 1 << 6;
/// Register D: the battery is good.
const D_VALID: u8 = 1 << 7;
/// Hours in 12-hour mode: afternoon.
const PM: u8 = 0x80;
/// From this value on an alarm byte matches anything.
const ANY: u8 = 0xc0;
/// How long the time is stable after UIP reads 0.
const STABLE: Duration = Duration::from_micros(244);

/// Where the time comes from.
type Clock = Box<dyn Fn() -> SystemTime + Send>;

/// See the module's documentation.
pub struct Cmos {
    index: u8,
    ram: [u8; 128],
    clock: Clock,
    /// Guest time minus host time, nanoseconds.
    offset: i128,
    latched: Option<(Instant, DateTime)>,
    /// While register B says SET: the time being composed.
    setting: Option<DateTime>,
    /// Guest time when register C was last read, nanoseconds since 1970.
    seen: i128,
}

impl Cmos {
    /// A clock in UTC, and the memory size registers for `low` bytes of RAM below 4 GiB and `high` bytes from 4 GiB.
    pub fn new(low: u64, high: u64) -> Self {
        Self::with_clock(low, high, Box::new(SystemTime::now))
    }

    fn with_clock(low: u64, high: u64, clock: Clock) -> Self {
        let mut ram = [0; 128];
        ram[usize::from(REG_A)] = A_DEFAULT;
        ram[usize::from(REG_B)] = B_24_HOURS;
        // Equipment byte (IBM AT): bit 1, mathematics coprocessor.
        ram[0x14] = 0x02;
        let mut put = |at: usize, value: u64, len: usize| {
            let most = (1 << (8 * len)) - 1;
            ram[at..at + len].copy_from_slice(&value.min(most).to_le_bytes()[..len]);
        };
        // The layout PC firmware uses (QEMU and SeaBIOS `src/hw/rtc.h`): KiB below 640 K, KiB above 1 MiB (twice),
        // 64 KiB units above 16 MiB, 64 KiB units above 4 GiB.
        put(0x15, 640.min(low >> 10), 2);
        let above_1m = low.saturating_sub(1 << 20) >> 10;
        put(0x17, above_1m.min(0xffff), 2);
        put(0x30, above_1m.min(0xffff), 2);
        put(0x34, low.saturating_sub(16 << 20) >> 16, 2);
        put(0x5b, high >> 16, 3);
        let mut cmos = Self {
            index: 0,
            ram,
            clock,
            offset: 0,
            latched: None,
            setting: None,
            seen: 0,
        };
        cmos.seen = cmos.now();
        cmos
    }

    /// Shifts the guest's clock by `seconds` from the host's (a clock in local time, a test of another date).
    pub fn set_offset(&mut self, seconds: i64) {
        self.offset = i128::from(seconds) * 1_000_000_000;
        self.seen = self.now();
        self.latched = None;
    }

    /// Guest time, nanoseconds since 1970.
    fn now(&self) -> i128 {
        let host = match (self.clock)().duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        host + self.offset
    }

    fn sample(&mut self) -> DateTime {
        let time = DateTime::from_seconds(self.now().div_euclid(1_000_000_000) as i64);
        self.latched = Some((Instant::now(), time));
        time
    }

    fn time(&mut self) -> DateTime {
        match (self.setting, self.latched) {
            (Some(time), _) => time,
            (None, Some((at, time))) if at.elapsed() < STABLE => time,
            (None, _) => self.sample(),
        }
    }

    fn register_b(&self) -> u8 {
        self.ram[usize::from(REG_B)]
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register_b() & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    /// Any byte is something: digits above 9 count as they would in the adder.
    fn decode(&self, value: u8) -> u8 {
        if self.register_b() & B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register_b() & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register_b() & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    fn read_register(&mut self, index: u8) -> u8 {
        match index {
            SECONDS | MINUTES | HOURS | WEEK_DAY | DAY | MONTH | YEAR | CENTURY => {
                let time = self.time();
                match index {
                    SECONDS => self.encode(time.second),
                    MINUTES => self.encode(time.minute),
                    HOURS => self.encode_hour(time.hour),
                    WEEK_DAY => time.week_day(),
                    DAY => self.encode(time.day),
                    MONTH => self.encode(time.month),
                    YEAR => self.encode((time.year % 100) as u8),
                    _ => self.encode((time.year / 100 % 100) as u8),
                }
            }
            REG_A => {
                self.sample();
                self.ram[usize::from(REG_A)]
            }
            REG_C => self.flags(),
            REG_D => D_VALID,
            _ => self.ram[usize::from(index)],
        }
    }

    /// Register C: what happened since it was last read.
    fn flags(&mut self) -> u8 {
        let now = self.now();
        let before = std::mem::replace(&mut self.seen, now);
        let (from, to) = (
            before.div_euclid(1_000_000_000),
            now.div_euclid(1_000_000_000),
        );
        let mut flags = 0;
        if to > from && self.setting.is_none() {
            flags |= C_UPDATE;
            // An alarm repeats every day at the latest: no need to look at more seconds than a day has.
            let first = (from + 1).max(to - 86_399);
            if (first..=to).any(|s| self.alarm_matches(DateTime::from_seconds(s as i64))) {
                flags |= C_ALARM;
            }
        }
        if let Some(period) = self.period()
            && now.div_euclid(period) > before.div_euclid(period)
        {
            flags |= C_PERIODIC;
        }
        flags
    }

    fn alarm_matches(&self, time: DateTime) -> bool {
        let byte = |index: u8| self.ram[usize::from(index)];
        let is = |alarm: u8, value: u8| alarm >= ANY || alarm == value;
        is(byte(SECONDS_ALARM), self.encode(time.second))
            && is(byte(MINUTES_ALARM), self.encode(time.minute))
            && is(byte(HOURS_ALARM), self.encode_hour(time.hour))
    }

    /// Periodic rate, nanoseconds (MC146818 data sheet, table 5, 32.768 kHz time base).
    fn period(&self) -> Option<i128> {
        let rate = match self.ram[usize::from(REG_A)] & 0x0f {
            0 => return None,
            // The two lowest codes repeat those of 8 and 9.
            slow @ 1..=2 => slow + 7,
            rate => rate,
        };
        Some((1_000_000_000i128 << (rate - 1)) / 32_768)
    }

    fn write_register(&mut self, index: u8, value: u8) {
        match index {
            SECONDS | MINUTES | HOURS | WEEK_DAY | DAY | MONTH | YEAR | CENTURY => {
                let mut time = match self.setting {
                    Some(time) => time,
                    None => self.sample(),
                };
                let number = self.decode(value);
                match index {
                    SECONDS => time.second = number % 60,
                    MINUTES => time.minute = number % 60,
                    HOURS => time.hour = self.decode_hour(value) % 24,
                    // Follows from the date.
                    WEEK_DAY => {}
                    DAY => time.day = number.clamp(1, 31),
                    MONTH => time.month = number.clamp(1, 12),
                    YEAR => time.year = time.year / 100 * 100 + u32::from(number % 100),
                    _ => time.year = u32::from(number % 100) * 100 + time.year % 100,
                }
                if self.setting.is_some() {
                    self.setting = Some(time);
                } else {
                    self.set_time(time);
                }
            }
            REG_B => {
                let setting = self.register_b() & B_SET != 0;
                if value & B_SET != 0 && !setting {
                    self.setting = Some(self.sample());
                }
                self.ram[usize::from(REG_B)] = value;
                if value & B_SET == 0
                    && let Some(time) = self.setting.take()
                {
                    self.set_time(time);
                }
            }
            // UIP is read-only.
            REG_A => self.ram[usize::from(REG_A)] = value & 0x7f,
            REG_C | REG_D => {}
            _ => self.ram[usize::from(index)] = value,
        }
    }

    fn set_time(&mut self, time: DateTime) {
        // Setting restarts the second, as writing the divider chain does on the chip.
        self.offset += i128::from(time.to_seconds()) * 1_000_000_000 - self.now();
        self.latched = None;
        self.seen = self.now();
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = match offset + i as u64 {
                // The index register is write-only on a PC; reading it back is what chip sets allow.
                0 => self.index,
                1 => self.read_register(self.index),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            match offset + i as u64 {
                // Bit 7 masks NMIs, which nothing here raises.
                0 => self.index = byte & 0x7f,
                1 => self.write_register(self.index, byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
