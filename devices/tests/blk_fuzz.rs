//! Hostile requests: whatever a driver puts into headers, descriptors and rings, the disk neither panics nor hangs,
//! stays inside its image, and works again after a reset.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::{io, os::fd::RawFd};

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};
use vsc_devices::block::{Completion, Disk, Geometry, Iovecs, Request};
use vsc_devices::virtio::blk::{Blk, BlkOptions, BlkSpec};
use vsc_devices::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};

const SIZE: u64 = 64 << 10;
/// End of the test driver's memory.
const RAM: u64 = 64 << 20;

/// A disk that only checks what it is asked.
struct Judge {
    geometry: Geometry,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Disk for Judge {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn start(&mut self, request: Request, iovecs: &mut Iovecs) -> Option<io::Result<()>> {
        assert!(request.offset.checked_add(request.len).unwrap() <= SIZE);
        assert!(request.len.is_multiple_of(512) && request.offset.is_multiple_of(512));
        let transfer = matches!(
            request.op,
            vsc_devices::block::Op::Read | vsc_devices::block::Op::Write { .. }
        );
        assert_eq!(iovecs.len(), if transfer { request.len } else { 0 });
        assert!(request.tag < 64);
        self.asked.lock().unwrap().push(request);
        Some(Ok(()))
    }

    fn submit(&mut self) {}
    fn reap(&mut self, _: &mut Vec<Completion>) {}
    fn ready_fd(&self) -> Option<RawFd> {
        None
    }
    fn drain(&mut self, _: &mut Vec<Completion>) {}
}

fn judge() -> (Driver, Arc<Mutex<Vec<Request>>>) {
    let asked = Arc::default();
    let geometry = Geometry {
        size: SIZE,
        read_only: false,
        physical_block: 512,
        optimal_io: 0,
        discard_granularity: 512,
    };
    let disk = Judge {
        geometry,
        asked: Arc::clone(&asked),
    };
    let spec = BlkSpec {
        queue_size: 32,
        ..BlkSpec::new("/unused")
    };
    let blk = Blk::with_disk("disk0", &spec, Box::new(disk), BlkOptions::default()).unwrap();
    (Driver::inline(Box::new(blk)), asked)
}

fn sound(driver: &mut Driver) {
    driver.start(!0);
    let done = driver.request(0, &[&[0; 16]], &[512, 1]);
    assert_eq!(done.data[512], 0, "a good request after a reset");
}

fn kind() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]),
        1 => any::<u32>(),
    ]
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..SIZE / 512 + 2,
        1 => any::<u64>(),
        1 => Just(u64::MAX),
        1 => (0..4u64).prop_map(|n| (u64::MAX / 512).wrapping_add(n)),
    ]
}

/// Bytes that look like a request, cut off and split anywhere.
fn request() -> impl Strategy<Value = (Vec<u8>, Vec<usize>, Vec<u32>)> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (0..5usize).prop_map(|n| vec![7; n * 512]),
        prop::collection::vec((sector(), any::<u16>(), 0..3u32), 0..20).prop_map(|ranges| {
            let one = |(s, n, f): (u64, u16, u32)| {
                [
                    &s.to_le_bytes()[..],
                    &u32::from(n).to_le_bytes(),
                    &f.to_le_bytes(),
                ]
                .concat()
            };
            ranges.into_iter().flat_map(one).collect()
        }),
    ];
    let head = (
        kind(),
        any::<u32>(),
        sector(),
        payload,
        prop::option::weighted(0.2, 0..16usize),
    );
    let bytes = head.prop_map(|(kind, ioprio, sector, payload, cut)| {
        let mut bytes = [
            &kind.to_le_bytes()[..],
            &ioprio.to_le_bytes(),
            &sector.to_le_bytes(),
            &payload,
        ]
        .concat();
        bytes.truncate(cut.unwrap_or(usize::MAX));
        bytes
    });
    let writable = prop_oneof![
        3 => Just(vec![512, 1]),
        1 => Just(vec![1]),
        1 => Just(vec![]),
        3 => prop::collection::vec(1..1500u32, 0..6),
    ];
    (bytes, prop::collection::vec(1..600usize, 0..4), writable)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Well-formed chains with any contents: each comes back with a status, or the device says why not.
    #[test]
    fn any_request_comes_back_or_breaks_the_queue(
        requests in prop::collection::vec(request(), 1..12), features: u64
    ) {
        let (mut driver, _) = judge();
        driver.start(features);
        for (bytes, cuts, writable) in requests {
            let mut rest = &bytes[..];
            let mut parts = Vec::new();
            for cut in cuts {
                if cut < rest.len() {
                    let (part, more) = rest.split_at(cut);
                    parts.push(part);
                    rest = more;
                }
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            if parts.is_empty() && writable.is_empty() {
                continue;
            }
            driver.submit(0, &parts, &writable);
            match driver.poll(0) {
                Some(done) => {
                    let status = done.data.last().expect("room for a status");
                    prop_assert!(*status <= 2, "a status was written: {status:#x}");
                    prop_assert!(u64::from(done.written) <= done.data.len() as u64);
                }
                None => {
                    prop_assert!(writable.is_empty() && driver.needs_reset());
                    driver.start(features);
                }
            }
        }
        sound(&mut driver);
    }

    /// Descriptors pointing anywhere, with any flags, in any order, and rings that lie.
    #[test]
    fn garbage_in_rings_does_no_harm(
        table in prop::collection::vec((any::<u8>(), any::<u32>(), 0..6000u32, 0..16u16, any::<u16>()), 32),
        contents in prop::collection::vec(request(), 8),
        heads in prop::collection::vec(0..40u16, 1..40),
        jump in prop::option::weighted(0.2, any::<u16>()),
        features: u64,
    ) {
        let (mut driver, _) = judge();
        driver.start(features);
        let ring = driver.ring(0).clone();
        let heap = driver.alloc(8 * 8192, 4096);
        for (i, (bytes, _, _)) in (0..).zip(&contents) {
            driver.memory.write_slice(bytes, GuestAddress(heap + i * 8192)).unwrap();
        }
        for (i, &(place, far, len, flags, next)) in (0..).zip(&table) {
            let addr = match place % 16 {
                0..=9 => heap + u64::from(place % 8) * 8192,
                10 => ring.descriptors,
                11 => u64::from(far),
                12 => RAM - u64::from(len / 2),
                13 => u64::MAX - u64::from(len / 2),
                14 => RAM / 2 - u64::from(len / 2),
                _ => heap + u64::from(far % 8192),
            };
            let flags = match flags {
                0..=4 => NEXT,
                5..=8 => NEXT | WRITE,
                9..=11 => WRITE,
                12 => 0,
                13 => INDIRECT,
                _ => flags * 37,
            };
            let len = if place & 0x80 == 0 { [16, 1, 512, 1024, len][usize::from(next) % 5] } else { len };
            driver.describe(ring.descriptors, i, addr, len, flags, next % 34);
        }
        for (n, head) in heads.into_iter().enumerate() {
            driver.offer(0, head);
            if n % 3 == 0 {
                driver.notify(0);
                driver.run();
            }
        }
        if let Some(jump) = jump {
            driver.memory.write_obj(jump, GuestAddress(ring.avail + 2)).unwrap();
        }
        driver.notify(0);
        driver.run();
        sound(&mut driver);
    }
}
