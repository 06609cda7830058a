//! Interrupts: the local APIC's timer, and each device's line through the I/O APIC.

use crate::acpi::Acpi;
use crate::clock::Clock;
use crate::out::{Out, Outcome, Problem, ensure, fail, skip, text};
use crate::sys::{
    FIRST_VECTOR, acknowledge_at, allow_interrupts, interrupt_count, map, pause, rdmsr, read, tsc,
    write,
};
use crate::virtio::queue::{from, into};
use crate::virtio::{Device, ID_BLOCK, ID_RNG, INTERRUPT_STATUS};
use crate::{arena, virtio};

// SDM 3, 11.4.1 (local APIC registers); 82093AA (I/O APIC).
pub const LAPIC: u64 = 0xfee0_0000;
const LAPIC_SPURIOUS: u64 = 0xf0;
const LAPIC_TIMER: u64 = 0x320;
const LAPIC_INITIAL: u64 = 0x380;
const LAPIC_CURRENT: u64 = 0x390;
const LAPIC_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

const TIMER_VECTOR: u8 = FIRST_VECTOR + 15;

/// Why the local APIC cannot be reached from CPL 3, if so: in x2APIC mode its registers are MSRs.
pub fn reachable() -> Result<(), Problem> {
    let base = rdmsr(0x1b);
    ensure!(base & 1 << 11 != 0, "IA32_APIC_BASE {base:#x}: off");
    if base & 1 << 10 != 0 {
        skip!("the local APIC is in x2APIC mode")
    }
    ensure!(
        base & !0xfff & 0xff_ffff_ffff == LAPIC,
        "the local APIC is at {base:#x}"
    );
    ensure!(map(LAPIC), "cannot map the local APIC");
    Ok(())
}

#[derive(Clone, Copy)]
struct IoApic {
    base: u64,
    first: u32,
    pins: u32,
}

impl IoApic {
    fn new((base, first): (u64, u32)) -> Option<Self> {
        let mut apic = Self {
            base,
            first,
            pins: 0,
        };
        if !map(base) {
            return None;
        }
        apic.pins = (apic.read(1) >> 16 & 0xff) + 1;
        Some(apic)
    }
    fn write(&self, register: u32, value: u32) {
        write(self.base, register);
        write(self.base + 0x10, value);
    }
    fn read(&self, register: u32) -> u32 {
        write(self.base, register);
        read(self.base + 0x10)
    }
}

pub fn all(out: &mut Out, clock: &Clock, acpi: &Acpi, devices: &[Option<Device>]) {
    if let Err(problem) = reachable() {
        out.result(text!("irq"), Err(problem));
        return;
    }
    write(LAPIC + LAPIC_SPURIOUS, 0x1ff_u32);
    // Both 8259s: all lines masked.
    crate::sys::outb(0x21, 0xff);
    crate::sys::outb(0xa1, 0xff);
    allow_interrupts(true);
    out.result(text!("irq.timer"), timer(clock));
    // Without tables: the one that every PC has.
    let places = &acpi.ioapics[..acpi.ioapic_count.max(1)];
    for apic in places.iter().filter_map(|&place| IoApic::new(place)) {
        out.info(
            "ioapic",
            text!(
                "{:#x}: gsi {} and {} pins",
                apic.base,
                apic.first,
                apic.pins
            ),
        );
    }
    for (i, device) in devices.iter().flatten().enumerate() {
        let apic = places.iter().filter_map(|&place| IoApic::new(place));
        let apic = apic
            .filter(|a| device.gsi >= a.first && device.gsi - a.first < a.pins)
            .last();
        let outcome = match apic {
            Some(apic) => line(*device, clock, apic),
            None => nowhere(device.gsi),
        };
        out.result(text!("irq.virtio{i}"), outcome);
        let _ = device.reset();
    }
    allow_interrupts(false);
}

fn nowhere(gsi: u32) -> Outcome {
    fail!("no I/O APIC has gsi {gsi}")
}

fn timer(clock: &Clock) -> Outcome {
    let before = interrupt_count(TIMER_VECTOR);
    write(LAPIC + LAPIC_DIVIDE, 0xb_u32);
    write(LAPIC + LAPIC_TIMER, u32::from(TIMER_VECTOR));
    write(LAPIC + LAPIC_INITIAL, 100_000_u32);
    let first: u32 = read(LAPIC + LAPIC_CURRENT);
    ensure!(first <= 100_000, "the counter starts at {first}");
    let start = tsc();
    while interrupt_count(TIMER_VECTOR) == before {
        ensure!(
            tsc() - start < clock.cycles(2_000_000),
            "no interrupt, the counter is {}",
            read::<u32>(LAPIC + 0x390)
        );
        pause();
    }
    let took = clock.microseconds(tsc() - start);
    // And once more while this processor sleeps: interrupts are off until it does, or the wake-up could come first.
    allow_interrupts(false);
    let seen = interrupt_count(TIMER_VECTOR);
    write(LAPIC + LAPIC_INITIAL, 100_000_u32);
    crate::sys::wait_for_interrupt();
    allow_interrupts(true);
    ensure!(
        interrupt_count(TIMER_VECTOR) == seen + 1,
        "woken by something else"
    );
    write(LAPIC + LAPIC_TIMER, MASKED);
    Ok(text!("100000 ticks in {took} us, and from hlt"))
}

/// Edge-triggered unless the DSDT says otherwise, as Linux takes virtio-mmio lines of its command line.
fn line(device: Device, clock: &Clock, apic: IoApic) -> Outcome {
    let mut device = device;
    let vector = FIRST_VECTOR;
    let entry = 0x10 + (device.gsi - apic.first) * 2;
    arena::reset();
    device.open(0)?;
    let Some(mut queue) = device.queue(0, 16, 1)? else {
        fail!("no queue 0")
    };
    device.start()?;
    let Some(at) = arena::take(1024, 512) else {
        fail!("no memory")
    };
    if !matches!(device.id, ID_BLOCK | ID_RNG) {
        skip!("{} answers nothing unasked", virtio::name(device.id))
    }
    apic.write(entry + 1, read::<u32>(LAPIC + 0x20) & 0xff00_0000);
    let level = if device.level { 1 << 15 } else { 0 };
    acknowledge_at(device.base as u32);
    apic.write(entry, u32::from(vector) | level);
    let outcome = (|| {
        let mut worst = 0;
        for round in 0..3 {
            queue.interrupts(true);
            let before = interrupt_count(vector);
            let start = tsc();
            if device.id == ID_BLOCK {
                virtio::blk::Disk::fill_header(at, virtio::blk::IN, 0);
                queue.run(
                    &[from(at, 16), into(at + 512, 512), into(at + 16, 1)],
                    false,
                )?;
            } else {
                queue.run(&[into(at, 16)], false)?;
            }
            while interrupt_count(vector) == before {
                ensure!(
                    tsc() - start < clock.cycles(2_000_000),
                    "round {round}: no interrupt, InterruptStatus {:#x}, I/O APIC entry {:#x}",
                    device.get(INTERRUPT_STATUS),
                    apic.read(entry)
                );
                pause();
            }
            worst = worst.max(clock.microseconds(tsc() - start));
            let status = acknowledge_at(device.base as u32);
            ensure!(
                status & 1 != 0,
                "InterruptStatus {status:#x} during an interrupt"
            );
            ensure!(
                device.get(INTERRUPT_STATUS) == 0,
                "InterruptStatus stays after its acknowledgement"
            );
        }
        // Not asked for, none comes.
        queue.interrupts(false);
        let before = interrupt_count(vector);
        if device.id == ID_RNG {
            queue.run(&[into(at, 16)], false)?;
        } else {
            virtio::blk::Disk::fill_header(at, virtio::blk::IN, 0);
            queue.run(
                &[from(at, 16), into(at + 512, 512), into(at + 16, 1)],
                false,
            )?;
        }
        let start = tsc();
        while tsc() - start < clock.cycles(2000) {
            pause();
        }
        let unasked = interrupt_count(vector) - before;
        Ok(text!(
            "gsi {} {}, slowest {worst} us, {unasked} unasked",
            device.gsi,
            if device.level { "level" } else { "edge" }
        ))
    })();
    apic.write(entry, MASKED);
    acknowledge_at(0);
    outcome
}
