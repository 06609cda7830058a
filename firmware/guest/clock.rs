//! Time: how fast the TSC is and who says so, the PM timer, the RTC.

use crate::acpi::Acpi;
use crate::out::{Out, Outcome, ensure, fail, skip, text};
use crate::sys::{cpuid, inb, inl, outb, pause, tsc};

/// ACPI 4.8.3.3.
const PM_HZ: u64 = 3_579_545;

pub struct Clock {
    /// kHz.
    pub tsc_khz: u64,
    source: &'static str,
    pm_port: u16,
    pm_mask: u32,
}

impl Clock {
    pub const fn new() -> Self {
        Self {
            tsc_khz: 0,
            source: "nothing",
            pm_port: 0,
            pm_mask: 0,
        }
    }

    fn told() -> Option<(u64, &'static str)> {
        let leaf = cpuid(0x15, 0);
        if cpuid(0, 0).eax >= 0x15 && leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return Some((
                u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000,
                "cpuid 0x15",
            ));
        }
        // VMware's timing leaf, which KVM monitors use too.
        if cpuid(1, 0).ecx >> 31 != 0 && cpuid(0x4000_0000, 0).eax >= 0x4000_0010 {
            let khz = cpuid(0x4000_0010, 0).eax;
            if khz != 0 {
                return Some((khz.into(), "cpuid 0x40000010"));
            }
        }
        None
    }

    /// Finds the frequency, by measuring only when nobody tells it.
    pub fn find(&mut self, acpi: &Acpi) {
        self.pm_port = acpi.pm_timer;
        self.pm_mask = if acpi.pm_timer_32 {
            u32::MAX
        } else {
            0xff_ffff
        };
        if let Some((khz, source)) = Self::told() {
            (self.tsc_khz, self.source) = (khz, source);
        } else if let Some(khz) = self.measure() {
            (self.tsc_khz, self.source) = (khz, "the PM timer");
        } else {
            // Figures are then off by some factor; the report says that the frequency is unknown.
            self.tsc_khz = 2_000_000;
        }
    }

    fn pm(&self) -> u32 {
        inl(self.pm_port) & self.pm_mask
    }

    /// kHz of the TSC against 10 ms of the PM timer.
    fn measure(&self) -> Option<u64> {
        if self.pm_port == 0 {
            return None;
        }
        let (start, from) = (self.pm(), tsc());
        for _ in 0..1_000_000 {
            let passed = u64::from(self.pm().wrapping_sub(start) & self.pm_mask);
            if passed >= PM_HZ / 100 {
                return Some((tsc() - from) * PM_HZ / passed / 1000);
            }
        }
        None
    }

    pub fn microseconds(&self, cycles: u64) -> u64 {
        cycles.saturating_mul(1000) / self.tsc_khz.max(1)
    }
    pub fn nanoseconds(&self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1_000_000 / u128::from(self.tsc_khz.max(1))) as u64
    }
    pub fn cycles(&self, microseconds: u64) -> u64 {
        microseconds.saturating_mul(self.tsc_khz) / 1000
    }

    pub fn all(&self, out: &mut Out, acpi: &Acpi) {
        out.info("tsc", text!("{} kHz, says {}", self.tsc_khz, self.source));
        out.result(text!("timer.tsc"), Self::monotonic());
        out.result(text!("timer.pm"), self.pm_timer(acpi));
        out.result(text!("timer.pit"), self.pit());
    }

    fn monotonic() -> Outcome {
        let mut last = tsc();
        for _ in 0..10_000 {
            let now = tsc();
            ensure!(now >= last, "the TSC went from {last} to {now}");
            last = now;
        }
        Ok(text!(""))
    }

    fn pm_timer(&self, acpi: &Acpi) -> Outcome {
        if acpi.pm_timer == 0 {
            skip!("the FADT names none")
        }
        let Some(measured) = self.measure() else {
            fail!("it stands still at {:#x}", self.pm())
        };
        let apart = measured.abs_diff(self.tsc_khz);
        // A shared machine stops us for milliseconds; a wrong frequency is wrong by far more.
        ensure!(
            apart < self.tsc_khz / 4,
            "by it the TSC has {measured} kHz, {} says {}",
            self.source,
            self.tsc_khz
        );
        Ok(text!("port {:#x}, TSC {measured} kHz by it", acpi.pm_timer))
    }

    fn pit(&self) -> Outcome {
        // Channel 2, mode 0, gate on, speaker off: its output shows at port 0x61 bit 5 (8254).
        let before = inb(0x61);
        if before == 0xff {
            skip!("port 0x61 does not answer")
        }
        outb(0x61, before & !3 | 1);
        outb(0x43, 0xb0);
        let count = 1193_u16;
        outb(0x42, count as u8);
        outb(0x42, (count >> 8) as u8);
        let start = tsc();
        let mut polls = 0;
        while inb(0x61) & 0x20 == 0 {
            polls += 1;
            ensure!(polls < 200_000, "channel 2 never ends");
            pause();
        }
        outb(0x61, before);
        let took = self.microseconds(tsc() - start);
        if took < 500 {
            skip!("none: bit 5 of port 0x61 is set after {took} us instead of 1000")
        }
        Ok(text!("1 ms took {took} us"))
    }

    /// Date and time are plausible, and the update flag is not stuck.
    pub fn rtc(&self) -> Outcome {
        let register = |n: u8| {
            outb(0x70, n | 0x80);
            inb(0x71)
        };
        let start = tsc();
        let (a, b, d) = (register(10), register(11), register(13));
        ensure!(a != 0xff || b != 0xff, "no RTC: its registers read 0xff");
        ensure!(d & 0x80 != 0, "register D {d:#x}: no battery");
        let mut previous = [0_u8; 6];
        for _ in 0..5 {
            let mut polls = 0;
            while register(10) & 0x80 != 0 {
                polls += 1;
                ensure!(polls < 100_000, "an update never ends (register A {a:#x})");
                pause();
            }
            let mut now = [0; 6];
            for (slot, n) in now.iter_mut().zip([0, 2, 4, 7, 8, 9]) {
                *slot = register(n);
            }
            if now == previous {
                break;
            }
            previous = now;
        }
        let number = |v: u8| {
            u32::from(if b & 4 != 0 {
                v
            } else {
                (v >> 4) * 10 + (v & 15)
            })
        };
        let pm = previous[2] & 0x80 != 0 && b & 2 == 0;
        let mut hour = number(previous[2] & if b & 2 == 0 { 0x7f } else { 0xff });
        if b & 2 == 0 {
            hour = hour % 12 + if pm { 12 } else { 0 };
        }
        let [second, minute, day, month, year] = [
            previous[0],
            previous[1],
            previous[3],
            previous[4],
            previous[5],
        ]
        .map(number);
        let took = self.microseconds(tsc() - start);
        let plausible = second < 60
            && minute < 60
            && hour < 24
            && (1..=31).contains(&day)
            && (1..=12).contains(&month)
            && (24..=99).contains(&year);
        ensure!(
            plausible,
            "20{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}, register B {b:#x}"
        );
        Ok(text!(
            "20{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} in {took} us"
        ))
    }
}
