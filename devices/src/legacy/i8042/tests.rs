use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::legacy::acpi_pm::tests::{Events, Wire};

struct Guest {
    dev: I8042,
    events: Arc<Events>,
    wire: Arc<Wire>,
    accesses: usize,
}

impl Guest {
    fn new() -> Self {
        let (events, wire) = (Events::new(), Arc::new(Wire::default()));
        Self {
            dev: I8042::new(wire.clone(), events.clone()),
            events,
            wire,
            accesses: 0,
        }
    }

    fn inb(&mut self, offset: u64) -> u8 {
        self.accesses += 1;
        let mut data = [0];
        self.dev.read(offset, &mut data);
        data[0]
    }

    fn outb(&mut self, value: u8, offset: u64) {
        self.accesses += 1;
        self.dev.write(offset, &[value]);
    }

    /// i8042_command(): `Err` is where the driver would have waited for half a second, or what it takes as failure.
    fn command(
        &mut self,
        command: u8,
        send: &[u8],
        receive: usize,
    ) -> Result<Vec<u8>, &'static str> {
        assert_eq!(self.inb(4) & 2, 0, "IBF");
        self.outb(command, 4);
        for &byte in send {
            assert_eq!(self.inb(4) & 2, 0, "IBF");
            self.outb(byte, 0);
        }
        let mut out = Vec::new();
        for _ in 0..receive {
            if self.inb(4) & 1 == 0 {
                return Err("timeout");
            }
            if command == 0xd3 && self.inb(4) & 0x20 == 0 {
                return Err("not an AUX byte");
            }
            out.push(self.inb(0));
        }
        Ok(out)
    }

    fn flush(&mut self) -> usize {
        let mut n = 0;
        while self.inb(4) & 1 != 0 {
            self.inb(0);
            n += 1;
            assert!(n < 16, "i8042_flush gives up");
        }
        n
    }
}

#[test]
fn linux_probes_it_without_a_single_timeout() {
    let mut guest = Guest::new();
    assert_eq!(guest.flush(), 0);
    assert_eq!(guest.command(0xaa, &[], 1), Ok(vec![0x55]));
    let ctr = guest.command(0x20, &[], 1).unwrap()[0];
    assert_eq!(
        guest.command(0x20, &[], 1),
        Ok(vec![ctr]),
        "two equal readings"
    );
    assert_ne!(guest.inb(4) & 0x10, 0, "no keylock warning");
    assert_ne!(ctr & 0x40, 0, "translating, as a PC's firmware leaves it");
    let closed = (ctr | 0x10) & !0x01;
    guest.command(0x60, &[closed], 0).unwrap();
    assert_eq!(guest.flush(), 0);

    // i8042_check_aux.
    assert_eq!(guest.command(0xd3, &[0x5a], 1), Err("not an AUX byte"));
    guest.flush();
    let test = guest.command(0xa9, &[], 1).unwrap()[0];
    assert!(
        test != 0 && test != 0xfa && test != 0xff,
        "AUX test says: absent"
    );

    // i8042_enable_kbd_port, then atkbd_probe: GETID, then SETLEDS.
    guest.command(0x60, &[closed & !0x10 | 1], 0).unwrap();
    let before = guest.wire.pulses.load(Ordering::SeqCst);
    for byte in [0xf2, 0xed] {
        guest.outb(byte, 0);
        assert_eq!(guest.inb(4) & 0x41, 0x41, "answered: time-out");
        assert_eq!(guest.inb(0), 0xfe);
    }
    assert_eq!(guest.wire.pulses.load(Ordering::SeqCst), before + 2);
    assert!(guest.accesses < 60, "{}", guest.accesses);

    // Reboot: i8042_controller_reset, then reboot=k.
    guest.flush();
    guest.command(0x60, &[closed | 0x30], 0).unwrap();
    guest.command(0x60, &[ctr], 0).unwrap();
    assert_eq!(guest.events.take(), []);
    assert_eq!(guest.inb(4) & 2, 0, "kb_wait ends at once");
    guest.outb(0xfe, 4);
    assert_eq!(guest.events.take(), [GuestEvent::Reset]);
}

#[test]
fn the_output_port_resets_too() {
    let mut guest = Guest::new();
    assert_eq!(guest.command(0xd0, &[], 1), Ok(vec![0x03]));
    guest.command(0xd1, &[0x03], 0).unwrap();
    assert_eq!(guest.events.take(), []);
    guest.command(0xd1, &[0x02], 0).unwrap();
    assert_eq!(guest.events.take(), [GuestEvent::Reset]);
    guest.outb(0xff, 4);
    guest.outb(0xf1, 4);
    assert_eq!(guest.events.take(), [], "line 0 is not pulsed");
    guest.outb(0xf0, 4);
    assert_eq!(guest.events.take(), [GuestEvent::Reset]);
}

#[test]
fn interrupts_follow_the_command_byte_one_per_byte() {
    let mut guest = Guest::new();
    guest.command(0x60, &[0x44], 0).unwrap();
    guest.command(0xd2, &[0x11], 0).unwrap();
    assert_eq!(guest.wire.pulses.load(Ordering::SeqCst), 0);
    guest.flush();
    guest.command(0x60, &[0x45], 0).unwrap();
    guest.command(0xd2, &[0x11], 0).unwrap();
    guest.command(0xd2, &[0x22], 0).unwrap();
    assert_eq!(guest.wire.pulses.load(Ordering::SeqCst), 1);
    assert_eq!(guest.inb(0), 0x11);
    assert_eq!(guest.wire.pulses.load(Ordering::SeqCst), 2);
    assert_eq!(guest.inb(0), 0x22);
    assert_eq!(guest.inb(0), 0);
    assert_eq!(guest.wire.pulses.load(Ordering::SeqCst), 2);
}

#[test]
fn a_guest_that_never_reads_fills_nothing() {
    let mut guest = Guest::new();
    for i in 0..100_000u32 {
        guest.outb(i as u8 & 0xfe | u8::from(i & 0xff >= 0xf0), 4);
        guest.outb((i >> 8) as u8 | 1, 0);
        assert!(guest.dev.answers.len() <= QUEUE_MAX);
    }
    for len in [2, 4, 5] {
        guest.dev.read(0, &mut [0; 8][..len]);
        guest.dev.write(0, &[1; 8][..len]);
    }
    assert_eq!(guest.inb(1), 0x20);
}
