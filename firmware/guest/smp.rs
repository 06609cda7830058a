//! The other processors: started one by one through the local APIC, put to work together, sent back to sleep.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::acpi::Acpi;
use crate::arena;
use crate::irq::{LAPIC, reachable};
use crate::out::{Out, Outcome, ensure, fail, skip, text};
use crate::sys::{cpuid, pause, read, tsc, write};
use crate::virtio::SECOND_OR_SO;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static mut ap_stack: u64;
}

/// Page that a started processor begins in: RAM of every PC, used by no loader for what is still needed.
const PAGE: u64 = 0x4000;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
// SDM 3, 11.6.1: INIT and start-up, level asserted.
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

const STACK: u64 = 4096;
const ROUNDS: u32 = 20_000;

static ONLINE: AtomicU32 = AtomicU32::new(0);
static LAST_ID: AtomicU32 = AtomicU32::new(u32::MAX);
static GO: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Where entry.s brings each application processor, at CPL 3.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    LAST_ID.store(read::<u32>(LAPIC + 0x20) >> 24, Ordering::SeqCst);
    ONLINE.fetch_add(1, Ordering::SeqCst);
    while GO.load(Ordering::Acquire) == 0 {
        pause();
    }
    for _ in 0..ROUNDS {
        COUNTER.fetch_add(1, Ordering::Relaxed);
    }
    DONE.fetch_add(1, Ordering::SeqCst);
    loop {
        pause();
    }
}

fn send(id: u32, command: u32) -> bool {
    write(LAPIC + ICR_HIGH, id << 24);
    write(LAPIC + ICR_LOW, command);
    for _ in 0..100_000 {
        if read::<u32>(LAPIC + ICR_LOW) & 1 << 12 == 0 {
            return true;
        }
        pause();
    }
    false
}

fn wait(cycles: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    while !done() {
        if tsc() - start > cycles {
            return false;
        }
        pause();
    }
    true
}

pub fn all(out: &mut Out, acpi: &Acpi) {
    if !acpi.found {
        out.result(text!("smp"), no_tables());
        return;
    }
    let outcome = run(acpi);
    out.result(text!("smp"), outcome);
}

fn no_tables() -> Outcome {
    skip!("no MADT counts the processors")
}

fn run(acpi: &Acpi) -> Outcome {
    let ids = &acpi.apic_ids[..acpi.processors];
    ensure!(!ids.is_empty(), "the MADT names no processor");
    let own = cpuid(1, 0).ebx >> 24;
    ensure!(
        ids.contains(&own),
        "this processor, APIC id {own}, is not in the MADT"
    );
    if ids.len() == 1 {
        return Ok(text!("1 processor"));
    }
    reachable()?;
    arena::reset();
    let length =
        core::ptr::addr_of!(trampoline_end) as u64 - core::ptr::addr_of!(trampoline) as u64;
    for i in 0..length {
        write(
            PAGE + i,
            read::<u8>(core::ptr::addr_of!(trampoline) as u64 + i),
        );
    }
    write(LAPIC + 0xf0, 0x1ff_u32);
    let mut started = 0;
    for &id in ids.iter().filter(|&&id| id != own) {
        if id > 254 {
            skip!("APIC id {id} takes x2APIC mode to reach; {started} others started")
        }
        let Some(stack) = arena::take(STACK, 4096) else {
            fail!("no memory for the stack of processor {id}")
        };
        // SAFETY: read only by the one processor that starts next.
        unsafe { core::ptr::addr_of_mut!(ap_stack).write_volatile(stack + STACK) };
        ensure!(send(id, INIT), "INIT to {id} is not delivered");
        // The manual's 10 ms are for hardware of 1994; monitors need none.
        let mut up = false;
        for _ in 0..2 {
            ensure!(
                send(id, STARTUP | (PAGE >> 12) as u32),
                "start-up of {id} is not delivered"
            );
            up = wait(SECOND_OR_SO, || {
                ONLINE.load(Ordering::SeqCst) == started + 1
            });
            if up {
                break;
            }
        }
        ensure!(up, "processor {id} does not start ({started} others did)");
        let told = LAST_ID.load(Ordering::SeqCst);
        ensure!(told == id & 0xff, "processor {id} calls itself {told}");
        started += 1;
    }
    GO.store(1, Ordering::Release);
    for _ in 0..ROUNDS {
        COUNTER.fetch_add(1, Ordering::Relaxed);
    }
    let all = wait(SECOND_OR_SO * 10, || DONE.load(Ordering::SeqCst) == started);
    let counted = COUNTER.load(Ordering::SeqCst);
    // INIT puts them back to waiting: they must not spin while the tests go on.
    for &id in ids.iter().filter(|&&id| id != own) {
        ensure!(send(id, INIT), "the last INIT to {id} is not delivered");
    }
    ensure!(
        all,
        "{} of {started} processors finished",
        DONE.load(Ordering::SeqCst)
    );
    ensure!(
        counted == (started + 1) * ROUNDS,
        "{counted} increments instead of {}",
        (started + 1) * ROUNDS
    );
    Ok(text!(
        "{} processors, {counted} shared increments",
        started + 1
    ))
}
