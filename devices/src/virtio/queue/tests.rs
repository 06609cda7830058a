use std::sync::Mutex;

use virtio_queue::QueueState;

use super::*;
use crate::virtio::testing::{INDIRECT, NEXT, WRITE};

const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where the two regions of [`crate::virtio::testing::memory`] touch.
const BORDER: u64 = 32 << 20;
const END: u64 = 64 << 20;

#[derive(Default)]
struct Recorder {
    interrupts: Mutex<u32>,
    faults: Mutex<Vec<String>>,
}

impl Interrupt for Recorder {
    fn queue(&self, index: u16) {
        assert_eq!(index, 3);
        *self.interrupts.lock().unwrap() += 1;
    }
    fn config(&self) {
        panic!("a queue does not change the configuration");
    }
    fn needs_reset(&self, reason: &str) {
        self.faults.lock().unwrap().push(reason.to_owned());
    }
}

struct Bench {
    memory: Memory,
    queue: VirtQueue,
    recorder: Arc<Recorder>,
    chain: Chain,
    offered: u16,
}

impl Bench {
    fn new(event_idx: bool) -> Self {
        let memory = crate::virtio::testing::memory();
        let queue = Queue::try_from(QueueState {
            max_size: SIZE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: SIZE,
            ready: true,
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
        })
        .unwrap();
        let recorder = Arc::new(Recorder::default());
        let interrupt = Arc::<Recorder>::clone(&recorder);
        Self {
            queue: VirtQueue::new(queue, memory.clone(), interrupt, 3),
            memory,
            recorder,
            chain: Chain::default(),
            offered: 0,
        }
    }

    fn put(&self, addr: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(addr), Ordering::Release)
            .unwrap();
    }

    fn get(&self, addr: u64) -> u16 {
        self.memory
            .load(GuestAddress(addr), Ordering::Acquire)
            .unwrap()
    }

    /// Entry `index` of the table at `table`.
    fn entry(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor::new(addr, len, flags, next);
        self.memory
            .write_obj(descriptor, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    fn offer(&mut self, head: u16) {
        self.put(AVAIL + 4 + 2 * u64::from(self.offered % SIZE), head);
        self.offered = self.offered.wrapping_add(1);
        self.put(AVAIL + 2, self.offered);
    }

    fn pop(&mut self) -> bool {
        self.queue.pop(&mut self.chain)
    }

    fn interrupts(&self) -> u32 {
        *self.recorder.interrupts.lock().unwrap()
    }

    fn faults(&self) -> Vec<String> {
        self.recorder.faults.lock().unwrap().clone()
    }
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment {
        addr: GuestAddress(addr),
        len,
    }
}

#[test]
fn chains_come_in_order_and_go_back_on_the_used_ring() {
    let mut bench = Bench::new(false);
    assert!(!bench.pop());
    bench.entry(TABLE, 5, 0x8000, 10, NEXT, 2);
    bench.entry(TABLE, 2, 0x9000, 20, NEXT, 7);
    bench.entry(TABLE, 7, 0xa000, 30, WRITE, 0);
    bench.entry(TABLE, 0, 0xb000, 40, WRITE, 0);
    bench.offer(5);
    bench.offer(0);

    assert!(bench.pop());
    assert_eq!(bench.chain.head, 5);
    assert_eq!(
        bench.chain.readable,
        [segment(0x8000, 10), segment(0x9000, 20)]
    );
    assert_eq!(bench.chain.writable, [segment(0xa000, 30)]);
    assert_eq!(
        (bench.chain.readable_len(), bench.chain.writable_len()),
        (30, 30)
    );
    assert!(bench.pop());
    assert_eq!((bench.chain.head, bench.chain.readable.len()), (0, 0));
    assert_eq!(bench.chain.writable, [segment(0xb000, 40)]);
    assert!(!bench.pop());
    assert_eq!(
        (bench.chain.readable.len(), bench.chain.writable.len()),
        (0, 0),
        "no chain, nothing in it"
    );

    bench.queue.push(0, 11);
    assert_eq!(bench.get(USED + 2), 1);
    bench.queue.push(5, 22);
    let used: [u32; 4] = bench.memory.read_obj(GuestAddress(USED + 4)).unwrap();
    assert_eq!((used, bench.get(USED + 2)), ([0, 11, 5, 22], 2));
    assert_eq!(bench.faults(), [""; 0]);
}

#[test]
fn indirect_tables_are_resolved_also_after_direct_descriptors() {
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x8000, 1, NEXT, 1);
    // The write flag of a reference to a table means nothing (VIRTIO 2.7.5.3.2).
    bench.entry(TABLE, 1, 0x10_000, 3 * 16, INDIRECT | WRITE, 0);
    bench.entry(0x10_000, 0, 0x9000, 2, NEXT, 2);
    bench.entry(0x10_000, 2, 0xa000, 3, WRITE, 9);
    bench.offer(0);
    assert!(bench.pop());
    assert_eq!(bench.chain.head, 0);
    assert_eq!(
        bench.chain.readable,
        [segment(0x8000, 1), segment(0x9000, 2)]
    );
    assert_eq!(bench.chain.writable, [segment(0xa000, 3)]);
}

#[test]
fn tables_and_buffers_may_cross_from_one_region_to_the_next() {
    let mut bench = Bench::new(false);
    let table = BORDER - 16;
    bench.entry(TABLE, 0, table, 32, INDIRECT, 0);
    bench.entry(table, 0, BORDER - 3, 7, NEXT, 1);
    bench.entry(table, 1, BORDER + 100, 5, WRITE, 0);
    bench.offer(0);
    assert!(bench.pop(), "{:?}", bench.faults());
    // The table was read already; its memory may be used for the buffer.
    bench
        .memory
        .write_slice(b"abcdefg", GuestAddress(BORDER - 3))
        .unwrap();
    let lengths: Vec<usize> = bench
        .queue
        .slices(&bench.chain.readable)
        .map(|s| s.len())
        .collect();
    assert_eq!(lengths, [3, 4]);
    let mut vector = Vec::new();
    bench.queue.iovecs(&bench.chain.readable, &mut vector);
    bench.queue.iovecs(&bench.chain.writable, &mut vector);
    assert_eq!(
        vector.iter().map(|v| v.iov_len).collect::<Vec<_>>(),
        [3, 4, 5]
    );
    let host = bench.memory.get_host_address(GuestAddress(BORDER)).unwrap();
    assert_eq!(vector[1].iov_base, host.cast());
    let mut copy = [0; 7];
    assert_eq!(
        bench.queue.read_from(&bench.chain.readable, 0, &mut copy),
        7
    );
    assert_eq!(&copy, b"abcdefg");
}

#[test]
fn copies_start_anywhere_and_stop_at_the_end() {
    let bench = Bench::new(false);
    let segments = [
        segment(0x8000, 3),
        segment(BORDER - 2, 4),
        segment(0x9000, 1),
    ];
    assert_eq!(bench.queue.write_to(&segments, 2, b"CDEFGHxyz"), 6);
    assert_eq!(bench.queue.write_to(&segments, 0, b"AB"), 2);
    let mut copy = [b'.'; 10];
    assert_eq!(bench.queue.read_from(&segments, 0, &mut copy), 8);
    assert_eq!(&copy, b"ABCDEFGH..");
    assert_eq!(bench.queue.read_from(&segments, 3, &mut copy[..4]), 4);
    assert_eq!(&copy[..4], b"DEFG");
    assert_eq!(bench.queue.read_from(&segments, 7, &mut copy), 1);
    assert_eq!(bench.queue.read_from(&segments, 8, &mut copy), 0);
    assert_eq!(bench.queue.read_from(&segments, u64::MAX, &mut copy), 0);
    assert_eq!(bench.queue.write_to(&[], 0, b"x"), 0);
}

/// Makes the one chain of a queue wrong.
type Fault = fn(&mut Bench);

const FAULTS: [(&str, &str, Fault); 22] = [
    ("head out of the table", "out of its table", |b| {
        b.offer(SIZE)
    }),
    ("next out of the table", "out of its table", |b| {
        b.entry(TABLE, 0, 0x8000, 1, NEXT, SIZE)
    }),
    ("next out of the indirect table", "out of its table", |b| {
        b.entry(TABLE, 0, 0x10_000, 32, INDIRECT, 0);
        b.entry(0x10_000, 0, 0x8000, 1, NEXT, 2);
    }),
    ("a descriptor that is its own next", "loops", |b| {
        b.entry(TABLE, 0, 0x8000, 1, NEXT, 0)
    }),
    ("a loop of two", "loops", |b| {
        b.entry(TABLE, 0, 0x8000, 1, NEXT, 1);
        b.entry(TABLE, 1, 0x8000, 1, NEXT, 0);
    }),
    ("a loop in an indirect table", "loops", |b| {
        b.entry(TABLE, 0, 0x10_000, 32, INDIRECT, 0);
        b.entry(0x10_000, 0, 0x8000, 1, NEXT, 1);
        b.entry(0x10_000, 1, 0x8000, 1, NEXT, 0);
    }),
    (
        "an indirect table that refers to itself",
        "refers to another",
        |b| {
            b.entry(TABLE, 0, TABLE, 32, INDIRECT, 0);
        },
    ),
    ("indirect in indirect", "refers to another", |b| {
        b.entry(TABLE, 0, 0x10_000, 32, INDIRECT, 0);
        b.entry(0x10_000, 0, 0x8000, 1, NEXT, 1);
        b.entry(0x10_000, 1, 0x11_000, 16, INDIRECT, 0);
        b.entry(0x11_000, 0, 0x8000, 1, 0, 0);
    }),
    ("a table and a next", "both", |b| {
        b.entry(TABLE, 0, 0x10_000, 16, INDIRECT | NEXT, 1);
        b.entry(0x10_000, 0, 0x8000, 1, 0, 0);
        b.entry(TABLE, 1, 0x8000, 1, 0, 0);
    }),
    (
        "an indirect table of odd length",
        "length of an indirect table",
        |b| {
            b.entry(TABLE, 0, 0x10_000, 31, INDIRECT, 0);
            b.entry(0x10_000, 0, 0x8000, 1, 0, 0);
        },
    ),
    ("an empty indirect table", "out of its table", |b| {
        b.entry(TABLE, 0, 0x10_000, 0, INDIRECT, 0)
    }),
    (
        "an indirect table outside of memory",
        "table lies outside",
        |b| b.entry(TABLE, 0, END, 16, INDIRECT, 0),
    ),
    (
        "an indirect table past the end of memory",
        "table lies outside",
        |b| {
            b.entry(END - 16, 0, 0x8000, 1, 0, 0);
            b.entry(TABLE, 0, END - 16, 32, INDIRECT, 0);
        },
    ),
    (
        "an indirect table at the end of the address space",
        "table lies outside",
        |b| {
            b.entry(TABLE, 0, u64::MAX - 15, 0xffff_fff0, INDIRECT, 0);
        },
    ),
    (
        "readable after writable",
        "follows a device-writable",
        |b| {
            b.entry(TABLE, 0, 0x8000, 1, WRITE | NEXT, 1);
            b.entry(TABLE, 1, 0x9000, 1, 0, 0);
        },
    ),
    ("a descriptor of length 0", "length 0", |b| {
        b.entry(TABLE, 0, 0x8000, 0, WRITE, 0)
    }),
    (
        "a length that overflows from the end of memory",
        "outside of memory",
        |b| {
            b.entry(TABLE, 0, END - 1, u32::MAX, WRITE, 0);
        },
    ),
    (
        "one byte past the end of memory",
        "outside of memory",
        |b| b.entry(TABLE, 0, END - 16, 17, WRITE, 0),
    ),
    ("a buffer outside of memory", "outside of memory", |b| {
        b.entry(TABLE, 0, 0xd000_0000, 4, 0, 0)
    }),
    ("a buffer that wraps around", "outside of memory", |b| {
        b.entry(TABLE, 0, u64::MAX, 2, 0, 0)
    }),
    ("more than 4 GiB", "longer than 4 GiB", |b| {
        b.entry(TABLE, 0, 0x10_000, 64 * 16, INDIRECT, 0);
        (0..64).for_each(|i| b.entry(0x10_000, i, 0, END as u32, NEXT, i + 1));
    }),
    ("one more than the longest chain", "too long", |b| {
        b.entry(TABLE, 0, 0x10_000, 1025 * 16, INDIRECT, 0);
        (0..1025).for_each(|i| {
            b.entry(
                0x10_000,
                i,
                0x8000,
                1,
                if i < 1024 { NEXT } else { 0 },
                i + 1,
            )
        });
    }),
];

#[test]
fn every_fault_in_a_chain_breaks_the_queue() {
    for (name, reason, fault) in FAULTS {
        let mut bench = Bench::new(false);
        fault(&mut bench);
        bench.offer(0);
        assert!(!bench.pop(), "{name}");
        let Chain {
            readable, writable, ..
        } = &bench.chain;
        assert_eq!(
            (readable.len(), writable.len()),
            (0, 0),
            "{name}: no part of the chain is left"
        );
        assert_eq!(bench.faults().len(), 1, "{name}: {:?}", bench.faults());
        assert!(
            bench.faults()[0].starts_with("queue 3: "),
            "{name}: {:?}",
            bench.faults()
        );
        assert!(
            bench.faults()[0].contains(reason),
            "{name}: {:?}",
            bench.faults()
        );
        inert(&mut bench, name);
    }
}

/// A broken queue does and says nothing more.
fn inert(bench: &mut Bench, name: &str) {
    let used = bench.get(USED + 2);
    bench.entry(TABLE, 1, 0x8000, 1, 0, 0);
    bench.offer(1);
    assert!(bench.queue.is_broken() && !bench.pop(), "{name}");
    bench.queue.push(1, 0);
    bench.queue.notify();
    bench.queue.suppress();
    assert!(!bench.queue.rearm(), "{name}");
    assert_eq!((bench.get(USED), bench.get(USED + 2)), (0, used), "{name}");
    assert_eq!((bench.interrupts(), bench.faults().len()), (0, 1), "{name}");
}

#[test]
fn the_longest_chain_is_accepted() {
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x10_000, 1024 * 16, INDIRECT, 0);
    (0..1024).for_each(|i| {
        bench.entry(
            0x10_000,
            i,
            0x8000,
            1,
            if i < 1023 { NEXT } else { 0 },
            i + 1,
        )
    });
    bench.offer(0);
    assert!(bench.pop(), "{:?}", bench.faults());
    assert_eq!(bench.chain.readable.len(), MAX_SEGMENTS);
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    for ahead in [SIZE + 1, 0x8000, 0xffff] {
        let mut bench = Bench::new(false);
        bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
        bench.put(AVAIL + 2, ahead);
        assert!(!bench.pop());
        assert!(
            bench.faults()[0].contains("further ahead"),
            "{:?}",
            bench.faults()
        );
        inert(&mut bench, "jump");
    }
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
    bench.put(AVAIL + 2, SIZE);
    assert_eq!(
        std::iter::repeat_with(|| bench.pop())
            .take_while(|&popped| popped)
            .count(),
        usize::from(SIZE)
    );
    assert_eq!(bench.faults(), [""; 0], "a full ring is no fault");
}

#[test]
fn no_more_buffers_are_taken_than_a_driver_can_have() {
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
    for _ in 0..SIZE {
        bench.offer(0);
        assert!(bench.pop());
    }
    bench.queue.push(0, 0);
    bench.offer(0);
    assert!(bench.pop(), "one went back, so one may come");
    bench.offer(0);
    assert!(!bench.pop());
    assert!(
        bench.faults()[0].contains("in flight"),
        "{:?}",
        bench.faults()
    );
}

#[test]
fn a_head_that_is_none_cannot_be_pushed() {
    let mut bench = Bench::new(false);
    bench.queue.push(SIZE, 0);
    assert!(bench.queue.is_broken());
    assert_eq!(bench.get(USED + 2), 0);
}

#[test]
fn interrupts_follow_the_drivers_flag() {
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
    bench.queue.notify();
    assert_eq!(bench.interrupts(), 0, "nothing was pushed");
    bench.queue.push(0, 0);
    bench.queue.push(0, 0);
    bench.queue.notify();
    bench.queue.notify();
    assert_eq!(bench.interrupts(), 1, "one for all that was pushed");
    bench.put(AVAIL, VRING_AVAIL_F_NO_INTERRUPT as u16);
    bench.queue.push(0, 0);
    bench.queue.notify();
    assert_eq!(bench.interrupts(), 1);
}

#[test]
fn interrupts_follow_the_drivers_event_index() {
    const USED_EVENT: u64 = AVAIL + 4 + 2 * SIZE as u64;
    let mut bench = Bench::new(true);
    // The flag means nothing with EVENT_IDX (VIRTIO 2.7.7.2).
    bench.put(AVAIL, VRING_AVAIL_F_NO_INTERRUPT as u16);
    bench.put(USED_EVENT, 2);
    for (pushed, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        bench.queue.push(0, 0);
        bench.queue.notify();
        assert_eq!(bench.interrupts(), interrupts, "after {pushed}");
    }
    bench.put(USED_EVENT, 5);
    (0..3).for_each(|_| bench.queue.push(0, 0));
    bench.queue.notify();
    assert_eq!(bench.interrupts(), 2, "the index was passed, if not met");
    bench.queue.notify();
    assert_eq!(bench.interrupts(), 2);
}

#[test]
fn indices_wrap_around() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
        for turn in 0..0x1_0100u32 {
            bench.offer(0);
            assert!(bench.pop());
            bench.put(AVAIL + 4 + 2 * u64::from(SIZE), turn as u16);
            bench.queue.push(0, 0);
            bench.queue.notify();
            assert!(!bench.queue.rearm());
        }
        assert_eq!((bench.interrupts(), bench.get(USED + 2)), (0x1_0100, 0x100));
        assert_eq!(bench.faults(), [""; 0]);
    }
}

#[test]
fn kicks_are_asked_for_when_the_device_looks_away() {
    const AVAIL_EVENT: u64 = USED + 4 + 8 * SIZE as u64;
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.entry(TABLE, 0, 0x8000, 1, 0, 0);
        bench.queue.suppress();
        assert_eq!(
            bench.get(USED),
            u16::from(!event_idx),
            "VIRTQ_USED_F_NO_NOTIFY"
        );
        bench.offer(0);
        assert!(bench.queue.rearm(), "a buffer came while kicks were off");
        assert!(bench.pop());
        assert!(!bench.queue.rearm());
        assert_eq!(bench.get(USED), 0);
        assert_eq!(bench.get(AVAIL_EVENT), u16::from(event_idx));
    }
}

#[test]
fn a_reused_chain_does_not_allocate() {
    let mut bench = Bench::new(false);
    bench.entry(TABLE, 0, 0x8000, 1, NEXT, 1);
    bench.entry(TABLE, 1, 0x8000, 1, WRITE, 0);
    bench.offer(0);
    assert!(bench.pop());
    let before = (bench.chain.readable.as_ptr(), bench.chain.writable.as_ptr());
    for _ in 0..20 {
        bench.queue.push(0, 0);
        bench.offer(0);
        assert!(bench.pop());
        assert_eq!(
            (bench.chain.readable.as_ptr(), bench.chain.writable.as_ptr()),
            before
        );
    }
}
