//! A driver that does anything: random register accesses, random rings, through the MMIO transport to virtio-rng.
//!
//! Whatever it does, the device must not panic, spin, or write where the driver gave it nothing, and must work again
//! after a reset.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};
use vsc_devices::bus::BusDevice as _;
use vsc_devices::virtio::rng::{Rng, RngSpec};
use vsc_devices::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};

/// End of guest memory.
const END: u64 = 64 << 20;
/// Memory that no step names: it must not change.
const FORBIDDEN: std::ops::Range<u64> = 0x4_0000..0x5_0000;
const QUEUE: u16 = 16;

#[derive(Debug, Clone)]
enum Step {
    Read {
        offset: u64,
        width: usize,
    },
    Write {
        offset: u64,
        value: u64,
        width: usize,
    },
    Start {
        features: u64,
        in_order: bool,
    },
    Declare {
        size: u32,
        rings: [u64; 3],
    },
    Describe {
        table: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Offer {
        head: u16,
    },
    AvailIndex {
        ahead: u16,
    },
    UsedIndex {
        value: u16,
    },
    Event {
        value: u16,
    },
    Notify {
        queue: u32,
    },
    Run,
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![8 => Just(4usize), 1 => Just(1usize), 1 => Just(2usize), 1 => Just(8usize)]
}

fn register() -> impl Strategy<Value = u64> {
    // Known registers, anything in their window, anything in the slot.
    prop_oneof![6 => (0u64..0x40).prop_map(|n| n * 4), 1 => 0u64..0x110, 1 => 0u64..0xff8]
}

/// Where rings, tables and buffers may be: good places, the end of memory, nowhere; never the forbidden place.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (1u64..0x30).prop_map(|page| page * 0x1000),
        4 => prop_oneof![Just(0x8000u64), Just(0x9000u64)],
        2 => 1u64..0x3_0000,
        1 => (1u64..200).prop_map(|n| END - n),
        1 => (0u64..64).prop_map(|n| (32 << 20) - 32 + n),
        1 => Just(0),
        1 => Just(0xd000_0000),
        1 => (0u64..300).prop_map(|n| u64::MAX - n),
        1 => any::<u64>().prop_map(|n| n | 1 << 40),
    ]
}

/// Lengths that stay clear of the forbidden place or leave memory.
fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 1u32..0x1000,
        1 => Just(0u32),
        4 => (1u32..70).prop_map(|n| n * 16),
        1 => (END as u32)..u32::MAX,
        1 => Just(u32::MAX),
    ]
}

fn register_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..20,
        3 => address().prop_map(|a| a & 0xffff_ffff),
        1 => Just(0u64),
        1 => (0u32..32).prop_map(|bit| 1 << bit),
        1 => Just(u64::MAX),
    ]
    .prop_filter("an address of forbidden memory", |v| {
        !(0x3_f000..0x5_0000).contains(&(v & 0xffff_ffff))
    })
}

fn flags() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => Just(WRITE),
        3 => Just(WRITE | NEXT),
        2 => Just(INDIRECT),
        1 => Just(NEXT),
        1 => Just(0),
        1 => any::<u16>(),
    ]
}

fn index() -> impl Strategy<Value = u16> {
    prop_oneof![40 => 0..QUEUE, 1 => any::<u16>()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (register(), width()).prop_map(|(offset, width)| Step::Read { offset, width }),
        2 => (register(), register_value(), width())
            .prop_map(|(offset, value, width)| Step::Write { offset, value, width }),
        1 => (any::<u64>(), prop::bool::weighted(0.8))
            .prop_map(|(features, in_order)| Step::Start { features, in_order }),
        1 => (prop_oneof![3 => Just(16u32), 2 => Just(4u32), 1 => any::<u32>()], prop::array::uniform3(address()))
            .prop_map(|(size, rings)| Step::Declare { size, rings }),
        6 => (prop::option::weighted(0.3, address()), index(), address(), length(), flags(), index())
            .prop_map(|(table, index, addr, len, flags, next)| Step::Describe {
                table: table.unwrap_or(0),
                index,
                addr,
                len,
                flags,
                next,
            }),
        9 => index().prop_map(|head| Step::Offer { head }),
        1 => prop_oneof![Just(1), Just(QUEUE), Just(QUEUE + 1), any::<u16>()]
            .prop_map(|ahead| Step::AvailIndex { ahead }),
        1 => any::<u16>().prop_map(|value| Step::UsedIndex { value }),
        1 => any::<u16>().prop_map(|value| Step::Event { value }),
        4 => prop_oneof![6 => Just(0u32), 1 => any::<u32>()].prop_map(|queue| Step::Notify { queue }),
        4 => Just(Step::Run),
    ]
}

fn write_memory(driver: &Driver, addr: u64, bytes: &[u8]) {
    // Outside of memory there is nothing to write; a guest cannot either.
    let _ = driver.memory.write_slice(bytes, GuestAddress(addr));
}

fn has_ring(driver: &Driver) -> bool {
    driver.has_ring(0)
}

/// Makes every descriptor of the queue, and those of two tables elsewhere, good: what comes next shall spoil some.
fn prepare(driver: &Driver) {
    for table in [driver.ring(0).descriptors, 0x8000, 0x9000] {
        for index in 0..QUEUE {
            let (flags, next) = if index % 4 == 0 {
                (WRITE | NEXT, index + 1)
            } else {
                (WRITE, 0)
            };
            driver.describe(
                table,
                index,
                0x2_0000 + 0x400 * u64::from(index),
                0x100,
                flags,
                next,
            );
        }
    }
}

fn play(driver: &mut Driver, step: Step) {
    match step {
        Step::Read { offset, width } => {
            let mut data = [0x5a; 8];
            driver
                .transport()
                .lock()
                .unwrap()
                .read(offset, &mut data[..width]);
        }
        Step::Write {
            offset,
            value,
            width,
        } => {
            let data = value.to_le_bytes();
            driver
                .transport()
                .lock()
                .unwrap()
                .write(offset, &data[..width]);
        }
        Step::Start {
            features,
            in_order: true,
        } => {
            driver.start(features);
            prepare(driver);
        }
        Step::Start {
            features,
            in_order: false,
        } => {
            driver.begin();
            driver.setup_queue(0, QUEUE);
            driver.negotiate(features);
            driver.driver_ok();
        }
        Step::Declare { size, rings } => {
            driver.begin();
            driver.negotiate(1 << 32 | 1 << 28 | 1 << 29);
            driver.declare_queue(0, size, rings);
            driver.driver_ok();
        }
        Step::Describe {
            table,
            index,
            addr,
            len,
            flags,
            next,
        } => {
            let table = match table {
                0 if has_ring(driver) => driver.ring(0).descriptors,
                table => table,
            };
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&addr.to_le_bytes());
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            entry[12..14].copy_from_slice(&flags.to_le_bytes());
            entry[14..].copy_from_slice(&next.to_le_bytes());
            let at = table.wrapping_add(16 * u64::from(index));
            if !FORBIDDEN.contains(&at) && !FORBIDDEN.contains(&at.wrapping_add(15)) {
                write_memory(driver, at, &entry);
            }
        }
        Step::Offer { head } if has_ring(driver) => driver.offer(0, head),
        Step::AvailIndex { ahead } if has_ring(driver) => {
            let ring = driver.ring(0);
            driver.write16(ring.avail + 2, ring.offered.wrapping_add(ahead));
        }
        Step::UsedIndex { value } if has_ring(driver) => {
            driver.write16(driver.ring(0).used + 2, value)
        }
        Step::Event { value } if has_ring(driver) => {
            driver.write16(driver.ring(0).avail + 4 + 2 * u64::from(QUEUE), value);
        }
        Step::Offer { .. }
        | Step::AvailIndex { .. }
        | Step::UsedIndex { .. }
        | Step::Event { .. } => {}
        Step::Notify { queue } => driver.notify(queue),
        Step::Run => {
            // One wake-up per kick, and one queue: more would be a device that wakes itself.
            assert!(driver.run() <= 1, "unbounded work");
        }
    }
}

fn device() -> Box<Rng> {
    Box::new(Rng::new(&RngSpec::default()))
}

fn works_after_reset(driver: &mut Driver) {
    driver.start(!0);
    let reply = driver.request(0, &[], &[16, 16]);
    assert_eq!(reply.written, 32);
    assert!(!driver.needs_reset());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_driver_breaks_the_device(
        started in prop::bool::weighted(0.7),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut driver = Driver::inline(device());
        let length = (FORBIDDEN.end - FORBIDDEN.start) as usize;
        let pattern = vec![0xc5; length];
        driver.memory.write_slice(&pattern, GuestAddress(FORBIDDEN.start)).unwrap();
        if started {
            driver.start(!0);
            prepare(&driver);
        }
        for step in steps {
            play(&mut driver, step);
        }
        driver.run();
        let mut now = vec![0; length];
        driver.memory.read_slice(&mut now, GuestAddress(FORBIDDEN.start)).unwrap();
        prop_assert!(now == pattern, "memory that was never given was written");
        works_after_reset(&mut driver);
    }

    #[test]
    fn random_bytes_in_the_rings_end_in_a_reset_or_in_buffers(
        bytes in prop::collection::vec(any::<u8>(), 16 * QUEUE as usize),
        heads in prop::collection::vec(any::<u16>(), QUEUE as usize),
        features in any::<u64>(),
    ) {
        let mut driver = Driver::inline(device());
        driver.start(features);
        write_memory(&driver, driver.ring(0).descriptors, &bytes);
        for head in heads {
            driver.offer(0, head);
        }
        driver.notify(0);
        driver.run();
        let used = driver.read16(driver.ring(0).used + 2);
        prop_assert!(driver.needs_reset() || used == QUEUE, "used {used}, {:?}", driver.log());
        works_after_reset(&mut driver);
    }
}

#[test]
fn rings_may_change_while_the_device_reads_them() {
    let mut driver = Driver::threaded(device());
    for round in 0..60u64 {
        driver.start(if round % 2 == 0 { !0 } else { 0 });
        let ring = driver.ring(0).clone();
        let memory = driver.memory.clone();
        std::thread::scope(|scope| {
            let scribbler = scope.spawn(move || {
                // xorshift: quick, and the same each time.
                let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (round + 1);
                for _ in 0..3000 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let good = 0x10_0000 + (state >> 40 & 0xff) * 0x100;
                    let flags = [WRITE, WRITE | NEXT, INDIRECT, 0][(state & 3) as usize];
                    let at = ring.descriptors + 16 * (state >> 8 & 15);
                    memory.write_obj(good, GuestAddress(at)).unwrap();
                    memory.write_obj(64u32, GuestAddress(at + 8)).unwrap();
                    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
                    memory
                        .write_obj((state >> 20 & 15) as u16, GuestAddress(at + 14))
                        .unwrap();
                }
            });
            for head in 0..200u16 {
                driver.offer(0, head % QUEUE);
                driver.notify(0);
            }
            scribbler.join().unwrap();
        });
    }
    works_after_reset(&mut driver);
}

#[test]
fn resets_may_come_at_any_moment() {
    let mut driver = Driver::threaded(device());
    for round in 0..300u64 {
        driver.start(if round % 2 == 0 { !0 } else { 0 });
        for _ in 0..round % QUEUE as u64 {
            driver.submit(0, &[], &[512]);
        }
    }
    works_after_reset(&mut driver);
}
