//! What a request costs in the queue itself, and what the hot registers cost: nanoseconds, no device, no kernel.
//!
//! `cargo run --release -p vsc-devices --example queue_cost [ROUNDS]`: the median of nine runs of so many rounds, and their
//! spread; on a busy machine the smallest is the one to believe.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes as _, GuestAddress};
use vsc_devices::bus::Bus;
use vsc_devices::irq::Unconnected;
use vsc_devices::virtio::rng::{Rng, RngSpec};
use vsc_devices::virtio::testing::{INDIRECT, NEXT, WRITE, memory};
use vsc_devices::virtio::transport::{MmioTransport, Trigger, Wiring};
use vsc_devices::virtio::worker::InlineLoop;
use vsc_devices::virtio::{Chain, Interrupt, VirtQueue};

const SIZE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
const TABLES: u64 = 0x10_000;
const BUFFERS: u64 = 0x100_000;

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, index: u16) {
        black_box(index);
    }
    fn config(&self) {}
    fn needs_reset(&self, reason: &str) {
        panic!("{reason}");
    }
}

fn entry(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Median of nine runs of `round`, nanoseconds per round.
fn measure(name: &str, mut round: impl FnMut(u32)) {
    let rounds: u32 = std::env::args()
        .nth(1)
        .map_or(300_000, |n| n.parse().expect("ROUNDS is a number"));
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            (0..rounds).for_each(&mut round);
            start.elapsed().as_nanos() as f64 / f64::from(rounds)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println(name, times[4], times[0], times[8]);
}

#[allow(clippy::print_stdout)]
fn println(name: &str, median: f64, low: f64, high: f64) {
    println!("{name:<52} {median:>7.1} ns   ({low:.1} to {high:.1})");
}

/// Pop, push and notify of chains with `parts` segments (one readable first, one writable last).
fn queue(name: &str, parts: u16, indirect: bool, event_idx: bool) {
    let memory = memory();
    let write = |addr: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(addr))
            .expect("test memory")
    };
    for head in 0..SIZE {
        // Direct chains share their tail: descriptors `head`, then 200, 201, …
        let table = if indirect {
            TABLES + u64::from(head) * 16 * u64::from(parts)
        } else {
            DESCRIPTORS
        };
        for part in 0..parts {
            let at = match (indirect, part) {
                (true, part) => part,
                (false, 0) => head,
                (false, part) => 200 + part,
            };
            let next = if indirect { part + 1 } else { 200 + part + 1 };
            let last = part + 1 == parts;
            let flags = if last { WRITE } else { NEXT };
            write(
                table + 16 * u64::from(at),
                &entry(BUFFERS + 4096 * u64::from(at), 512, flags, next),
            );
        }
        if indirect {
            write(
                DESCRIPTORS + 16 * u64::from(head),
                &entry(table, 16 * u32::from(parts), INDIRECT, 0),
            );
        }
    }
    let heads = if indirect || parts == 1 { SIZE } else { 128 };
    for slot in 0..SIZE {
        write(
            AVAIL + 4 + 2 * u64::from(slot),
            &(slot % heads).to_le_bytes(),
        );
    }
    let state = QueueState {
        max_size: SIZE,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: event_idx,
        size: SIZE,
        ready: true,
        desc_table: DESCRIPTORS,
        avail_ring: AVAIL,
        used_ring: USED,
    };
    let queue = Queue::try_from(state).expect("a valid queue");
    let mut queue = VirtQueue::new(queue, memory.clone(), Arc::new(Silent), 0);
    let mut chain = Chain::default();
    let mut offered = 0u16;
    measure(name, |_| {
        offered = offered.wrapping_add(1);
        memory
            .store(offered, GuestAddress(AVAIL + 2), Ordering::Release)
            .expect("test memory");
        assert!(queue.pop(&mut chain));
        queue.push(chain.head, 512);
        queue.notify();
    });
}

fn registers() {
    let wiring = Wiring {
        memory: memory(),
        events: Arc::new(InlineLoop::new()),
        registry: None,
        log: Arc::new(|_| ()),
    };
    let mut bus = Bus::new();
    for index in 0..8u64 {
        let base = 0xd000_0000 + index * 0x1000;
        let device = Box::new(Rng::new(&RngSpec::default()));
        let line = Arc::new(Unconnected);
        let transport = MmioTransport::new(device, base, line, Trigger::Edge, wiring.clone())
            .expect("descriptors for a benchmark");
        bus.insert(base, 0x1000, Arc::new(Mutex::new(transport)))
            .expect("room on the bus");
    }
    let mut data = [0; 4];
    measure(
        "InterruptStatus read + InterruptACK, through the bus",
        |_| {
            bus.read(black_box(0xd000_3060), &mut data);
            bus.write(black_box(0xd000_3064), &data);
        },
    );
}

fn main() {
    for (event_idx, mode) in [(true, "EVENT_IDX"), (false, "flags")] {
        queue(
            &format!("pop + push + notify, 1 direct descriptor, {mode}"),
            1,
            false,
            event_idx,
        );
        queue(
            &format!("pop + push + notify, 3 direct descriptors, {mode}"),
            3,
            false,
            event_idx,
        );
        queue(
            &format!("pop + push + notify, 3 indirect descriptors, {mode}"),
            3,
            true,
            event_idx,
        );
        queue(
            &format!("pop + push + notify, 18 indirect descriptors, {mode}"),
            18,
            true,
            event_idx,
        );
    }
    registers();
}
