//! Guests that do not keep to the rules: control messages, chains and registers of any shape.
#![allow(clippy::unwrap_used)]

mod console_common;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use console_common::*;
use proptest::prelude::*;
use vsc_devices::stream::{Endpoint, HostEnds};

fn guest() -> (Guest, UnixStream) {
    let (mut host, end) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    host.write_all(&[0x5a; 10_000]).unwrap();
    let ports = vec![
        port(Some("a"), given("s"), given("s")),
        console_port(Endpoint::Null, Endpoint::Null),
        port(None, Endpoint::Null, Endpoint::Null),
    ];
    (Guest::new(ports, ends([("s", end.into())]), false), host)
}

/// The device must still work for a guest that starts over and behaves.
fn works(guest: &mut Guest, host: &mut UnixStream) {
    while matches!(host.read(&mut [0; 65_536]), Ok(n) if n > 0) {}
    guest.driver.start(!0);
    guest.handshake(3);
    guest.tell(0, PORT_OPEN, 1);
    guest.write(0, b"alive");
    let mut buf = [0; 5];
    host.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"alive");
    assert!(!guest.driver.needs_reset());
}

#[test]
fn messages_that_make_no_sense_change_nothing() {
    let (mut guest, mut host) = guest();
    for (port, event, value) in [
        (0, PORT_READY, 0),
        (99, PORT_READY, 1),
        (u32::MAX, PORT_OPEN, 1),
        (0, DEVICE_READY, 0),
        (0, DEVICE_READY, 7),
        (0, PORT_ADD, 1),
        (0, PORT_NAME, 1),
        (0, RESIZE, 1),
        (0, 0xffff, 0xffff),
    ] {
        guest.tell(port, event, value);
    }
    guest.driver.submit(2, &[], &[300]);
    assert!(guest.driver.poll(2).is_none());
    assert!(!guest.driver.needs_reset());
    works(&mut guest, &mut host);
}

#[test]
fn control_buffers_that_are_too_short_break_the_queue() {
    let (mut guest, mut host) = guest();
    guest.driver.submit(3, &[&[0; 7]], &[]);
    guest.driver.run();
    assert!(guest.driver.needs_reset());
    works(&mut guest, &mut host);
    guest.driver.start(!0);
    guest.tell(0, DEVICE_READY, 1);
    guest.driver.submit(2, &[], &[7]);
    guest.driver.run();
    assert!(guest.driver.needs_reset());
    works(&mut guest, &mut host);
    // A name that does not fit is cut, not lost.
    guest.driver.start(!0);
    guest.handshake(3);
    let done = guest.driver.request(2, &[], &[8]);
    assert_eq!(decode(&done.data), (0, PORT_NAME, 1, vec![]));
}

#[test]
fn a_guest_that_hears_nothing_is_not_listened_to_for_ever() {
    let ports = vec![port(None, Endpoint::Null, Endpoint::Null); 31];
    let mut guest = Guest::new(ports, HostEnds::new(), false);
    let mut taken = 0;
    guest.tell(0, DEVICE_READY, 1);
    'all: for round in 0..1000u32 {
        for id in 0..31 {
            let message = bytes(id, [PORT_READY, PORT_OPEN][round as usize % 2], 1);
            guest.driver.submit(3, &[&message], &[]);
            if guest.driver.poll(3).is_none() {
                break 'all;
            }
            taken += 1;
        }
    }
    assert!((31..200).contains(&taken) || taken == 31_000, "{taken}");
    // It is, as soon as it listens itself.
    for id in 0..31 {
        assert_eq!(guest.hear(), (id, PORT_ADD, 1, vec![]));
    }
}

#[test]
fn writable_and_readable_mixed_up_and_empty_directions_are_survived() {
    let (mut guest, mut host) = guest();
    guest.greet_port_zero();
    // A readable buffer where input should go, a writable one where output should come from.
    guest.driver.submit(0, &[b"xx"], &[]);
    assert_eq!(guest.driver.wait(0).written, 0);
    guest.driver.submit(1, &[], &[64]);
    assert_eq!(guest.driver.wait(1).written, 0);
    guest.driver.submit(0, &[b"xx"], &[100]);
    assert_eq!(guest.driver.wait(0).written, 100);
    works(&mut guest, &mut host);
}

impl Guest {
    fn greet_port_zero(&mut self) {
        self.handshake(3);
        self.tell(0, PORT_OPEN, 1);
    }
}

#[derive(Debug, Clone)]
enum Act {
    Control {
        port: u32,
        event: u16,
        value: u16,
        cut: usize,
    },
    Chain {
        queue: u16,
        readable: Vec<u16>,
        writable: Vec<u16>,
    },
    Raw {
        queue: u16,
        id: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Config {
        offset: u64,
        value: u32,
    },
    Resize(u16, u16),
    Kick(u32),
    HostSends(u16),
    HostReads,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let small = prop::collection::vec(0..5000u16, 0..3);
    prop_oneof![
        6 => (0..5u32, 0..9u16, 0..3u16, 0..12usize)
            .prop_map(|(port, event, value, cut)| Act::Control { port, event, value, cut }),
        6 => (0..8u16, small.clone(), small)
            .prop_map(|(queue, readable, writable)| Act::Chain { queue, readable, writable }),
        2 => (0..8u16, 0..80u16, any::<u64>(), any::<u32>(), 0..8u16, 0..80u16)
            .prop_map(|(queue, id, addr, len, flags, next)| {
                // Half of them within memory.
                let addr = if addr & 1 == 0 { addr >> 8 } else { addr & 0x3ff_ffff };
                Act::Raw { queue, id, addr, len: len >> (addr % 24), flags, next }
            }),
        1 => (0..16u64, any::<u32>()).prop_map(|(offset, value)| Act::Config { offset, value }),
        1 => any::<(u16, u16)>().prop_map(|(r, c)| Act::Resize(r, c)),
        1 => (0..70u32).prop_map(Act::Kick),
        1 => (0..5000u16).prop_map(Act::HostSends),
        2 => Just(Act::HostReads),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_does_outlives_its_reset(acts in prop::collection::vec(act(), 1..60)) {
        let (mut guest, mut host) = guest();
        for act in acts {
            match act {
                Act::Control { port, event, value, cut } => {
                    let mut message = bytes(port, event, value);
                    message.resize(cut.max(1), 0);
                    if guest.has_room(3, 1) {
                        guest.driver.submit(3, &[&message], &[]);
                    }
                }
                Act::Chain { queue, readable, writable } => {
                    let parts: Vec<_> = readable.iter().map(|&n| vec![1; n.into()]).collect();
                    let parts: Vec<&[u8]> = parts.iter().map(|p| &p[..]).collect();
                    let lens: Vec<u32> = writable.iter().map(|&n| n.into()).collect();
                    let n = parts.len() + lens.len();
                    if n > 0 && guest.has_room(queue, n) {
                        guest.driver.submit(queue, &parts, &lens);
                    }
                }
                Act::Raw { queue, id, addr, len, flags, next } => {
                    let ring = guest.driver.ring(queue).clone();
                    let id = id % ring.size;
                    guest.driver.describe(ring.descriptors, id, addr, len, flags, next);
                    guest.driver.offer(queue, id);
                    guest.driver.notify(queue.into());
                }
                Act::Config { offset, value } => {
                    guest.driver.write_config(offset, &value.to_le_bytes());
                }
                Act::Resize(rows, cols) => guest.handle.resize(rows, cols),
                Act::Kick(queue) => guest.driver.notify(queue),
                Act::HostSends(n) => drop(host.write(&vec![7; n.into()])),
                Act::HostReads => drop(host.read(&mut [0; 65_536])),
                Act::Restart => {
                    guest.driver.start(!0);
                }
            }
            guest.driver.run();
        }
        works(&mut guest, &mut host);
    }
}

impl Guest {
    /// Whether `n` more descriptors fit for certain: what was offered and not taken counts in full.
    fn has_room(&self, queue: u16, n: usize) -> bool {
        let ring = self.driver.ring(queue);
        let used = usize::from(ring.offered.wrapping_sub(ring.taken)) * 6;
        used + n <= usize::from(ring.size)
    }
}
