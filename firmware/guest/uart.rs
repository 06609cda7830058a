//! COM1 is a 16550A: scratch register, FIFO identification, loopback.

use crate::out::{Outcome, ensure, skip, text};
use crate::sys::{inb, outb, pause};

const COM1: u16 = 0x3f8;

pub fn all() -> Outcome {
    for value in [0x55, 0xaa] {
        outb(COM1 + 7, value);
        ensure!(
            inb(COM1 + 7) == value,
            "the scratch register reads {:#x}, not {value:#x}",
            inb(COM1 + 7)
        );
    }
    outb(COM1 + 2, 1);
    let identity = inb(COM1 + 2);
    ensure!(identity & 0xc0 == 0xc0, "IIR {identity:#x} names no FIFO");
    if inb(COM1 + 5) & 1 != 0 {
        skip!("input is waiting: no loopback test");
    }
    let control = inb(COM1 + 4);
    outb(COM1 + 4, 0x10);
    let mut outcome = Ok(text!("iir {identity:#x}"));
    for sent in [0x00, 0x5a, 0xff] {
        outb(COM1, sent);
        let mut left = 10_000;
        while inb(COM1 + 5) & 1 == 0 && left > 0 {
            left -= 1;
            pause();
        }
        let got = inb(COM1);
        if left == 0 || got != sent {
            outcome = Err(crate::out::Problem::Fail(text!(
                "loopback of {sent:#x} gave {got:#x}, {left} polls left"
            )));
            break;
        }
    }
    outb(COM1 + 4, control);
    outcome
}
