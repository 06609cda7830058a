//! The ways a machine ends.

use crate::sys::{hang, outb, outw, pause, triple_fault};

const EXIT_PORT: u16 = 0x501;
const PVPANIC: u16 = 0x505;
const PM1A_CONTROL: u16 = 0x604;
const I8042_COMMAND: u16 = 0x64;
const RESET_REGISTER: u16 = 0xcf9;

/// Tells the monitor the status, then tries every other way to end, in the end by standing still.
pub fn exit(status: u8) -> ! {
    outb(EXIT_PORT, status);
    power_off()
}

/// ACPI S5: SLP_EN and sleep type 5 in PM1a control (ACPI 4.8.3.2.1; the type is what vsc's and QEMU's DSDT say).
pub fn power_off() -> ! {
    // q35 and vsc say type 5 or 0 in their \_S5 package; only one of them is heard.
    outw(PM1A_CONTROL, 1 << 13 | 5 << 10);
    outw(PM1A_CONTROL, 1 << 13);
    reboot()
}

pub fn reboot() -> ! {
    // Pulse the reset line.
    outb(I8042_COMMAND, 0xfe);
    for _ in 0..1000 {
        pause();
    }
    outb(RESET_REGISTER, 0x06);
    hang()
}

/// Tells the monitor of a panic, then resets as a kernel with panic=-1 would.
pub fn panic() -> ! {
    outb(PVPANIC, 1);
    reboot()
}

pub fn triple() -> ! {
    triple_fault()
}

pub fn spin() -> ! {
    loop {
        pause();
    }
}
