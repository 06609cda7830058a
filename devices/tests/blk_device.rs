//! virtio-blk through the registers of the MMIO transport: configuration, caches, many requests in flight, resets.

#![allow(clippy::unwrap_used)]

mod blk_common;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use blk_common::*;
use vm_memory::{Bytes as _, GuestAddress};
use vsc_devices::block::{Geometry, Op};
use vsc_devices::virtio::blk::{Blk, BlkOptions, BlkSpec, Cache, SyncMode};
use vsc_devices::virtio::testing::{Driver, NEXT, WRITE};

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let spec = BlkSpec {
        num_queues: 3,
        logical_block_size: 512,
        queue_size: 64,
        ..spec()
    };
    let bench = bench(&spec, false);
    assert_eq!(bench.driver.queue_max(2), 64);
    assert_eq!(bench.driver.queue_max(3), 0);
    // VIRTIO 5.2.3: SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES; above them
    // INDIRECT_DESC, EVENT_IDX and VERSION_1 of the transport.
    let bits = [2, 6, 9, 10, 11, 12, 13, 14]
        .iter()
        .fold(0, |bits, b| bits | 1u64 << b);
    assert_eq!(bench.driver.offered() & 0xff_ffff, bits);
    // VIRTIO 5.2.4.
    assert_eq!(bench.config(0, 8), SIZE / 512);
    assert_eq!(bench.config(0x08, 4), 0, "size_max is not offered");
    assert_eq!(bench.config(0x0c, 4), 62);
    assert_eq!(bench.config(0x14, 4), 512);
    assert_eq!(
        bench.config(0x18, 1),
        3,
        "8 logical blocks are a physical one"
    );
    assert_eq!(bench.config(0x1a, 2), 8);
    assert_eq!(bench.config(0x1c, 4), 128);
    assert_eq!(bench.config(0x20, 1), 1);
    assert_eq!(bench.config(0x22, 2), 3);
    assert_eq!(bench.config(0x24, 4), 1 << 22);
    assert_eq!(bench.config(0x28, 4), 16);
    assert_eq!(bench.config(0x2c, 4), 8);
    assert_eq!(bench.config(0x30, 4), 1 << 22);
    assert_eq!(bench.config(0x34, 4), 16);
    assert_eq!(bench.config(0x38, 1), 1);
}

/// What reaches the disk for one write and one flush, per cache mode and negotiated features.
#[test]
fn cache_modes_decide_what_is_durable_when() {
    let write = |durable| (Op::Write { durable }, 512, 512);
    let flush = (Op::Flush, 0, 0);
    let both = [write(false), flush];
    let through = [write(true), flush];
    let neither = [write(false)];
    let sync = |cache, sync_mode| BlkSpec {
        cache,
        sync_mode,
        ..spec()
    };
    type Asked<'a> = &'a [(Op, u64, u64)];
    let table: &[(BlkSpec, u64, Option<u8>, Asked)] = &[
        // The driver flushes: a cache is fine where the host's user allows it.
        (sync(Cache::Writeback, None), FLUSH | WCE, None, &both),
        (sync(Cache::None, None), FLUSH | WCE, None, &both),
        (sync(Cache::Writethrough, None), FLUSH | WCE, None, &through),
        (sync(Cache::Directsync, None), FLUSH | WCE, None, &through),
        (sync(Cache::Unsafe, None), FLUSH | WCE, None, &neither),
        // The driver switches the cache (VIRTIO 5.2.5).
        (sync(Cache::Writeback, None), FLUSH | WCE, Some(0), &through),
        (sync(Cache::Writethrough, None), FLUSH | WCE, Some(1), &both),
        (sync(Cache::Unsafe, None), FLUSH | WCE, Some(0), &neither),
        // ... which it may not without the feature.
        (sync(Cache::Writeback, None), FLUSH, Some(0), &both),
        (sync(Cache::Writethrough, None), FLUSH, Some(1), &through),
        // The driver knows of no cache: every write is stable (VIRTIO 5.2.6.2).
        (sync(Cache::Writeback, None), 0, None, &through),
        (sync(Cache::None, None), 0, None, &through),
        (sync(Cache::Unsafe, None), 0, None, &neither),
        // libkrun's words.
        (
            sync(Cache::Writeback, Some(SyncMode::None)),
            FLUSH | WCE,
            None,
            &neither,
        ),
        (
            sync(Cache::Unsafe, Some(SyncMode::Relaxed)),
            FLUSH | WCE,
            None,
            &both,
        ),
        (
            sync(Cache::Unsafe, Some(SyncMode::Full)),
            FLUSH | WCE,
            None,
            &both,
        ),
    ];
    for (spec, features, switch, expected) in table {
        let mut bench = bench(spec, false);
        let others = !(FLUSH | WCE);
        assert_eq!(
            bench.driver.start(others | features) & (FLUSH | WCE),
            *features
        );
        let writeback = !matches!(spec.cache, Cache::Writethrough | Cache::Directsync);
        assert_eq!(bench.config(0x20, 1), u64::from(writeback));
        if let Some(value) = switch {
            bench.driver.write_config(0x20, &[*value]);
        }
        assert_eq!(bench.write(1, &[1; 512]), OK);
        assert_eq!(bench.run(&[&header(4, 0)], &[1]).0, OK);
        assert_eq!(
            bench.asked(),
            *expected,
            "{spec:?} {features:#x} {switch:?}"
        );
        bench.driver.reset();
        bench.driver.run();
        assert_eq!(
            bench.config(0x20, 1),
            u64::from(writeback),
            "a reset forgets what the driver chose"
        );
    }
}

#[test]
fn counters_tell_what_was_done() {
    let log = Arc::new(Mutex::new(Log {
        data: vec![0; SIZE as usize],
        ..Log::default()
    }));
    let geometry = Geometry {
        size: SIZE,
        read_only: false,
        physical_block: 512,
        optimal_io: 0,
        discard_granularity: 512,
    };
    let disk = Fake {
        geometry,
        log: Arc::clone(&log),
        ready: None,
    };
    let blk = Blk::with_disk("disk0", &spec(), Box::new(disk), BlkOptions::default()).unwrap();
    let counters = blk.counters();
    let mut driver = Driver::inline(Box::new(blk));
    driver.start(!0);
    driver.request(0, &[&header(1, 0), &[0; 1024]], &[1]);
    driver.request(0, &[&header(0, 0)], &[512, 1]);
    driver.request(0, &[&header(0, u64::MAX)], &[512, 1]);
    log.lock().unwrap().fail = Some(libc::EIO);
    driver.request(0, &[&header(4, 0)], &[1]);
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counters.requests), 4);
    assert_eq!(get(&counters.written_bytes), 1024);
    assert_eq!(get(&counters.read_bytes), 512);
    assert_eq!(get(&counters.errors), 1);
}

#[test]
fn a_full_queue_is_in_flight_at_once_and_ends_with_one_interrupt() {
    let spec = BlkSpec {
        queue_size: 128,
        ..spec()
    };
    let mut bench = bench(&spec, true);
    bench.driver.start(!0);
    for i in 0..128u32 {
        bench
            .driver
            .add(0, &[&header(1, u64::from(i)), &[i as u8; 512]], &[1]);
    }
    bench.driver.kick(0);
    assert_eq!(bench.driver.poll(0), None);
    {
        let log = bench.log.lock().unwrap();
        assert_eq!(log.held.len(), 128);
        assert!(log.alone.iter().all(|alone| !alone));
        assert!(log.submits <= 2, "{} submissions for one kick", log.submits);
    }
    let before = bench.driver.counters().interrupts;
    bench.ready.write(1).unwrap();
    for _ in 0..128 {
        assert_eq!(bench.driver.wait(0).data, [OK]);
    }
    assert_eq!(bench.driver.counters().interrupts - before, 1);
    let data = bench.log.lock().unwrap().data.clone();
    assert!((0..128).all(|i| data[i * 512..][..512].iter().all(|&b| b == i as u8)));
}

#[test]
fn a_request_without_company_is_known_as_such() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    bench.driver.submit(0, &[&header(0, 0)], &[512, 1]);
    bench.driver.run();
    bench.driver.submit(0, &[&header(0, 0)], &[512, 1]);
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().alone, [true, false]);
}

#[test]
fn every_queue_answers_on_its_own() {
    let spec = BlkSpec {
        num_queues: 4,
        queue_size: 16,
        ..spec()
    };
    let mut bench = bench(&spec, true);
    bench.driver.start(!0);
    for queue in 0..4u16 {
        bench.driver.submit(
            queue,
            &[&header(1, queue.into()), &[queue as u8 + 1; 512]],
            &[1],
        );
    }
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().held.len(), 4);
    bench.ready.write(1).unwrap();
    for queue in (0..4).rev() {
        assert_eq!(bench.driver.wait(queue).data, [OK]);
    }
    let log = bench.log.lock().unwrap();
    assert!((0..4).all(|i| log.data[i * 512] == i as u8 + 1));
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_then_leaves_memory_alone() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    for i in 0..8 {
        bench.driver.add(0, &[&header(0, i)], &[512, 1]);
    }
    bench.driver.kick(0);
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().held.len(), 8);
    bench.driver.reset();
    {
        let log = bench.log.lock().unwrap();
        assert_eq!(
            (log.held.len(), log.drains),
            (0, 1),
            "reads ended before the reset did"
        );
    }
    let fill = vec![0x5a; 1 << 20];
    bench
        .driver
        .memory
        .write_slice(&fill, GuestAddress(0))
        .unwrap();
    bench.ready.write(1).unwrap();
    bench.driver.run();
    let mut now = vec![0; 1 << 20];
    bench
        .driver
        .memory
        .read_slice(&mut now, GuestAddress(0))
        .unwrap();
    assert!(now == fill);

    // And it works again.
    bench.driver.start(!0);
    bench.driver.submit(0, &[&header(1, 7), &[3; 512]], &[1]);
    bench.driver.run();
    bench.ready.write(1).unwrap();
    assert_eq!(bench.driver.wait(0).data, [OK]);
}

#[test]
fn long_batches_let_other_devices_have_a_turn() {
    let mut bench = bench(
        &BlkSpec {
            queue_size: 256,
            ..spec()
        },
        false,
    );
    bench.driver.start(!(1 << 28 | 1 << 29));
    let ring = bench.driver.ring(0).clone();
    // 80 reads of 1 MiB each, all into the same memory: more than a turn's 64 MiB.
    let head = bench.driver.alloc(16, 16);
    let data = bench.driver.alloc(SIZE, 4096);
    let status = bench.driver.alloc(80, 1);
    bench
        .driver
        .memory
        .write_slice(&header(0, 0), GuestAddress(head))
        .unwrap();
    bench
        .driver
        .memory
        .write_slice(&[0xff; 80], GuestAddress(status))
        .unwrap();
    for i in 0..80u16 {
        let d = 3 * i;
        bench
            .driver
            .describe(ring.descriptors, d, head, 16, NEXT, d + 1);
        bench.driver.describe(
            ring.descriptors,
            d + 1,
            data,
            SIZE as u32,
            NEXT | WRITE,
            d + 2,
        );
        bench
            .driver
            .describe(ring.descriptors, d + 2, status + u64::from(i), 1, WRITE, 0);
        bench.driver.offer(0, d);
    }
    bench.driver.notify(0);
    assert!(bench.driver.run() >= 2, "the loop saw the disk twice");
    let mut statuses = [0xff; 80];
    bench
        .driver
        .memory
        .read_slice(&mut statuses, GuestAddress(status))
        .unwrap();
    assert_eq!(statuses, [OK; 80]);
    assert_eq!(bench.asked().len(), 80);
}

#[test]
fn a_quiet_device_wakes_for_nothing() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    assert_eq!(bench.write(0, &[1; 512]), OK);
    assert_eq!(bench.driver.run(), 0);
    let before = bench.driver.counters();
    for i in 0..10 {
        // Asks for the next interrupt.
        assert_eq!(bench.driver.poll(0), None);
        assert_eq!(bench.write(i, &[1; 512]), OK);
    }
    let after = bench.driver.counters();
    assert_eq!(
        after.interrupts - before.interrupts,
        10,
        "one interrupt per request"
    );
    assert_eq!(after.kicks - before.kicks, 10, "one wake-up per request");
}
