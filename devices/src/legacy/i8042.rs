//! A keyboard controller without a keyboard: answers Linux's probe at once and resets the machine.
//!
//! Every wait of `drivers/input/serio/i8042.c` is on a status bit (OBF or IBF) with a limit of half a second. Here
//! every command that has an answer puts it into the output buffer before the write returns, and the input buffer
//! is never full, so none of those waits loops twice:
//! - `i8042_controller_selftest`: 0xaa answers 0x55;
//! - `i8042_check_aux`: 0xd3 (loop) answers the byte sent, but as a keyboard byte, which the driver takes as "no AUX
//!   port" without a timeout; 0xa9 (AUX test) answers 1, clock stuck low;
//! - a byte for the keyboard is answered with 0xfe (resend) and the time-out bit, with an interrupt if enabled;
//!   `atkbd_probe` then gives up at once instead of after 0.2 s per byte;
//! - reboot: `i8042_controller_reset` writes the command byte; `native_machine_emergency_restart` writes 0xfe.
//!
//! Commands and bits: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::bus::BusDevice;
use crate::event::{GuestEvent, Sink};
use crate::irq::Line;

/// First port. Offset 0 is the data port, 4 the command and status port. Offset 1 is port 0x61 (system control
/// port B), which KVM answers when it has a PIT; without one it reads as "timer 2 done, no error" and ignores
/// writes. The rest is unclaimed.
pub const PORT: u64 = 0x60;
/// Ports it takes.
pub const LEN: u64 = 5;
/// Interrupt of the keyboard port.
pub const IRQ: u32 = 1;

const DATA: u64 = 0;
const PORT_B: u64 = 1;
const COMMAND: u64 = 4;

const STATUS_OBF: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
/// Set: the keyboard is not locked by a key switch; Linux warns when it is clear.
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;

const MODE_KBD_INT: u8 = 1 << 0;
const MODE_SYSTEM: u8 = 1 << 2;
const MODE_KBD_DISABLE: u8 = 1 << 4;
const MODE_AUX_DISABLE: u8 = 1 << 5;
const MODE_TRANSLATE: u8 = 1 << 6;

/// Output port (P2): bit 0 low resets the CPU, bit 1 is address line A20, bit 4 says that OBF is set.
const P2_NO_RESET: u8 = 1 << 0;
const P2_A20: u8 = 1 << 1;
const P2_OBF: u8 = 1 << 4;

/// Answers kept for the guest; one that reads none of them loses the newest.
const QUEUE_MAX: usize = 16;
/// PS/2 "resend": what the controller gives for a device that is not there, together with the time-out bit.
const RESEND: u8 = 0xfe;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Keyboard,
    Ram(u8),
    OutputPort,
    KeyboardLoop,
    AuxLoop,
    Aux,
}

/// See the module's documentation.
pub struct I8042 {
    /// Internal memory; byte 0 is the command byte (mode).
    ram: [u8; 32],
    output_port: u8,
    /// Answers: the byte, and whether it is a time-out.
    answers: VecDeque<(u8, bool)>,
    expect: Expect,
    last_was_command: bool,
    line: Line,
    sink: Sink,
}

impl I8042 {
    /// A controller that has passed its self test. `line` is IRQ 1.
    pub fn new(line: Line, sink: Sink) -> Self {
        let mut ram = [0; 32];
        ram[0] = MODE_KBD_INT | MODE_SYSTEM | MODE_AUX_DISABLE | MODE_TRANSLATE;
        Self {
            ram,
            output_port: P2_NO_RESET | P2_A20,
            answers: VecDeque::with_capacity(QUEUE_MAX),
            expect: Expect::Keyboard,
            last_was_command: false,
            line,
            sink,
        }
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | self.ram[0] & STATUS_SYSTEM;
        if let Some(&(_, timeout)) = self.answers.front() {
            status |= STATUS_OBF | if timeout { STATUS_TIMEOUT } else { 0 };
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn answer(&mut self, byte: u8, timeout: bool) {
        if self.answers.len() < QUEUE_MAX {
            self.answers.push_back((byte, timeout));
            self.interrupt();
        }
    }

    /// IRQ 1 is an edge per byte that arrives at the front of the output buffer.
    fn interrupt(&self) {
        if self.answers.len() == 1 && self.ram[0] & MODE_KBD_INT != 0 {
            self.line.pulse();
        }
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        match command {
            0x20..=0x3f => self.answer(self.ram[usize::from(command & 0x1f)], false),
            0x60..=0x7f => self.expect = Expect::Ram(command & 0x1f),
            0xa7 => self.ram[0] |= MODE_AUX_DISABLE,
            0xa8 => self.ram[0] &= !MODE_AUX_DISABLE,
            // AUX interface test: 1, clock line stuck low.
            0xa9 => self.answer(0x01, false),
            // Self test. Sets the system flag and both ports' defaults, as the real controller does.
            0xaa => {
                self.ram[0] |= MODE_SYSTEM;
                self.answers.clear();
                self.answer(0x55, false);
            }
            // Keyboard interface test: no error.
            0xab => self.answer(0x00, false),
            0xad => self.ram[0] |= MODE_KBD_DISABLE,
            0xae => self.ram[0] &= !MODE_KBD_DISABLE,
            // Input port: keyboard not inhibited.
            0xc0 => self.answer(0x80, false),
            0xd0 => {
                let obf = if self.answers.is_empty() { 0 } else { P2_OBF };
                self.answer(self.output_port | obf, false);
            }
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::KeyboardLoop,
            0xd3 => self.expect = Expect::AuxLoop,
            0xd4 => self.expect = Expect::Aux,
            // Pulse the output lines whose bit is 0; line 0 is the CPU's reset.
            0xf0..=0xff if command & P2_NO_RESET == 0 => self.sink.notify(GuestEvent::Reset),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Ram(index) => self.ram[usize::from(index)] = byte,
            Expect::OutputPort => {
                self.output_port = byte;
                if byte & P2_NO_RESET == 0 {
                    self.output_port |= P2_NO_RESET;
                    self.sink.notify(GuestEvent::Reset);
                }
            }
            Expect::KeyboardLoop | Expect::AuxLoop => self.answer(byte, false),
            Expect::Aux | Expect::Keyboard => self.answer(RESEND, true),
        }
    }

    fn take(&mut self) -> u8 {
        let byte = self.answers.pop_front().map_or(0, |(byte, _)| byte);
        if !self.answers.is_empty() && self.ram[0] & MODE_KBD_INT != 0 {
            self.line.pulse();
        }
        byte
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = match offset + i as u64 {
                DATA => self.take(),
                PORT_B => 0x20,
                COMMAND => self.status(),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            match offset + i as u64 {
                DATA => self.data(byte),
                COMMAND => self.command(byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
