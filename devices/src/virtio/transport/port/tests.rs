use std::sync::Barrier;

use super::*;
use crate::virtio::testing::{Driver, Echo, NEXT, Probe, WRITE};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const READY: u64 = 0x044;
const STATUS: u64 = 0x070;

fn driver() -> (Driver, Probe) {
    let (echo, probe) = Echo::new();
    (Driver::inline(echo), probe)
}

fn threaded() -> (Driver, Probe) {
    let (echo, probe) = Echo::new();
    (Driver::threaded(echo), probe)
}

/// A driver that has FEATURES_OK and no queue yet.
fn negotiated() -> (Driver, Probe) {
    let (mut driver, probe) = driver();
    driver.begin();
    assert!(driver.negotiate(VERSION_1));
    (driver, probe)
}

#[test]
fn a_subset_of_the_features_with_version_1_is_agreed_to() {
    let (mut driver, probe) = driver();
    let all = driver.offered();
    for (accepted, agreed) in [
        (0, false),
        (all & !VERSION_1, false),
        (VERSION_1, true),
        (VERSION_1 | Echo::FEATURES, true),
        (all, true),
        (all | 1 << 6, false),
        (all | 1 << 63, false),
        (all | 1 << 33, false),
    ] {
        driver.begin();
        assert_eq!(driver.negotiate(accepted), agreed, "{accepted:#x}");
        driver.driver_ok();
        assert_eq!(
            driver.status() & 4 != 0,
            agreed,
            "{accepted:#x}: no DRIVER_OK without FEATURES_OK"
        );
        assert_eq!(probe.take().len(), usize::from(agreed), "{accepted:#x}");
        driver.reset();
        probe.take();
    }
}

#[test]
fn features_past_bit_63_are_unknown() {
    let (mut driver, _) = driver();
    driver.begin();
    driver.write32(0x024, 2);
    driver.write32(0x020, 0);
    assert!(driver.negotiate(VERSION_1));
    driver.begin();
    driver.write32(0x024, u32::MAX);
    driver.write32(0x020, 1);
    assert!(!driver.negotiate(VERSION_1));
    driver.begin();
    assert!(driver.negotiate(VERSION_1), "a reset forgets them");
}

#[test]
fn a_driver_may_choose_again_until_it_is_agreed_to() {
    let (mut driver, _) = driver();
    driver.begin();
    assert!(!driver.negotiate(VERSION_1 | 1 << 6));
    assert!(driver.negotiate(VERSION_1));
}

#[test]
fn features_do_not_change_after_features_ok() {
    let (mut driver, probe) = negotiated();
    assert!(
        driver.negotiate(VERSION_1 | Echo::FEATURES),
        "FEATURES_OK stays set"
    );
    driver.setup_queue(0, 8);
    driver.driver_ok();
    assert!(driver.negotiate(u64::MAX));
    assert_eq!(probe.take(), ["activate 0x100000000 [8, 0]"]);
}

#[test]
fn status_bits_are_set_in_order_and_stay() {
    let (mut driver, probe) = driver();
    driver.write32(STATUS, 4);
    assert_eq!(driver.status(), 0, "DRIVER_OK comes last");
    driver.begin();
    driver.write32(STATUS, 4);
    assert_eq!(
        driver.status(),
        3,
        "bits are not cleared, and DRIVER_OK needs FEATURES_OK"
    );
    driver.write32(STATUS, 0x40 | 0x20 | 0x10 | 0xffff_ff00);
    assert_eq!(
        driver.status(),
        3,
        "NEEDS_RESET is the device's, others mean nothing"
    );
    assert!(driver.negotiate(VERSION_1));
    driver.write32(STATUS, 1);
    assert_eq!(driver.status(), 0xb);
    driver.write32(STATUS, 0x80);
    driver.write32(STATUS, 4);
    assert_eq!(driver.status(), 0x8b, "a driver that failed does not drive");
    assert_eq!(probe.take(), [""; 0]);
    driver.reset();
    assert_eq!(driver.status(), 0);
}

#[test]
fn driver_ok_twice_activates_once() {
    let (mut driver, probe) = driver();
    driver.start(0);
    driver.driver_ok();
    driver.write32(STATUS, 0xf);
    assert_eq!(probe.take(), ["activate 0x100000000 [8, 4]"]);
    assert_eq!(driver.counters().activations, 1);
    assert_eq!(driver.request(0, &[b"still"], &[5]).data, b"still");
}

#[test]
fn queues_have_their_own_sizes_and_readiness() {
    let (mut driver, _) = negotiated();
    assert_eq!((driver.queue_max(0), driver.queue_max(1)), (8, 4));
    for absent in [2, 3, 0xffff] {
        assert_eq!(driver.queue_max(absent), 0);
        driver.declare_queue(absent, 4, [0x1000, 0x2000, 0x3000]);
        assert_eq!(driver.read32(READY), 0);
    }
    driver.setup_queue(1, 4);
    assert_eq!(driver.read32(READY), 1);
    driver.queue_max(0);
    assert_eq!(driver.read32(READY), 0);
    assert!(!driver.needs_reset());
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok() {
    let (mut driver, probe) = driver();
    driver.begin();
    driver.setup_queue(0, 8);
    assert_eq!(driver.read32(READY), 0, "before FEATURES_OK");
    assert!(driver.negotiate(VERSION_1));
    driver.setup_queue(0, 8);
    assert_eq!(driver.read32(READY), 1);
    driver.driver_ok();
    driver.setup_queue(1, 4);
    assert_eq!(driver.read32(READY), 0, "after DRIVER_OK");
    assert_eq!(probe.take(), ["activate 0x100000000 [8, 0]"]);
    assert!(!driver.needs_reset());
}

#[test]
fn a_ready_queue_does_not_move() {
    let (mut driver, _) = negotiated();
    driver.setup_queue(0, 8);
    driver.declare_queue(0, 2, [u64::MAX; 3]);
    driver.write32(READY, 2);
    driver.write32(READY, u32::MAX);
    driver.driver_ok();
    assert_eq!(driver.request(0, &[b"where"], &[5]).data, b"where");
}

#[test]
fn a_closed_queue_may_be_set_up_again_before_driver_ok() {
    let (mut driver, probe) = negotiated();
    driver.setup_queue(0, 8);
    driver.write32(READY, 0);
    assert_eq!(driver.read32(READY), 0);
    driver.setup_queue(0, 4);
    driver.driver_ok();
    assert_eq!(probe.take(), ["activate 0x100000000 [4, 0]"]);
    assert_eq!(driver.request(0, &[b"again"], &[5]).data, b"again");
}

#[test]
fn closing_a_queue_in_use_stops_the_device() {
    let (mut driver, probe) = driver();
    driver.start(0);
    probe.take();
    driver.queue_max(0);
    driver.write32(READY, 0);
    assert_eq!(
        (driver.read32(READY), probe.take()),
        (0, vec!["reset".to_owned()])
    );
    assert!(driver.needs_reset());
    driver.submit(0, &[b"x"], &[1]);
    assert_eq!(driver.poll(0), None, "nothing touches the queue any more");
    driver.start(0);
    assert_eq!(driver.request(0, &[b"x"], &[1]).data, b"x");
}

#[test]
fn queues_that_cannot_be_used_need_a_reset() {
    const END: u64 = 64 << 20;
    const GOOD: [u64; 3] = [0x1000, 0x2000, 0x3000];
    let cases: [(&str, u32, [u64; 3]); 20] = [
        ("size 0", 0, GOOD),
        ("size not a power of two", 3, GOOD),
        ("size too big", 16, GOOD),
        ("size with high bits", 0x1_0008, GOOD),
        ("size of all ones", u32::MAX, GOOD),
        ("descriptors without address", 8, [0, 0x2000, 0x3000]),
        ("driver area without address", 8, [0x1000, 0, 0x3000]),
        ("device area without address", 8, [0x1000, 0x2000, 0]),
        ("descriptors misaligned", 8, [0x1008, 0x2000, 0x3000]),
        ("driver area misaligned", 8, [0x1000, 0x2001, 0x3000]),
        ("device area misaligned", 8, [0x1000, 0x2000, 0x3002]),
        ("descriptors past the end", 8, [END - 112, 0x2000, 0x3000]),
        ("driver area past the end", 8, [0x1000, END - 20, 0x3000]),
        ("device area past the end", 8, [0x1000, 0x2000, END - 68]),
        ("descriptors outside", 8, [END, 0x2000, 0x3000]),
        ("driver area in a device", 8, [0x1000, 0xd000_0000, 0x3000]),
        ("device area in a device", 8, [0x1000, 0x2000, 0xd000_0100]),
        (
            "descriptors at the end of the address space",
            8,
            [u64::MAX - 15, 0x2000, 0x3000],
        ),
        (
            "driver area at the end of the address space",
            8,
            [0x1000, u64::MAX - 1, 0x3000],
        ),
        (
            "device area at the end of the address space",
            8,
            [0x1000, 0x2000, u64::MAX - 3],
        ),
    ];
    let (mut driver, probe) = driver();
    for (name, size, addresses) in cases {
        driver.begin();
        assert!(driver.negotiate(VERSION_1));
        driver.declare_queue(0, size, addresses);
        assert_eq!(driver.read32(READY), 0, "{name}");
        assert!(driver.needs_reset(), "{name}");
        assert_eq!(
            driver.line.pulses(),
            0,
            "{name}: no notification before DRIVER_OK"
        );
        driver.driver_ok();
        assert_eq!(
            (probe.take(), driver.status()),
            (vec![], 0x4b),
            "{name}: does not start"
        );
    }
    assert_eq!(driver.log().len(), 8, "a driver cannot fill the log");
    assert_eq!(driver.counters().needs_reset, 20);
    assert!(
        driver.log()[0].contains("echo") && driver.log()[0].contains("0 is no size"),
        "{:?}",
        driver.log()
    );
    // The last addresses that fit.
    driver.begin();
    assert!(driver.negotiate(VERSION_1));
    driver.declare_queue(0, 8, [END - 128, END - 128 - 22, END - 128 - 24 - 72]);
    assert_eq!(driver.read32(READY), 1);
}

#[test]
fn a_reset_returns_everything_to_the_start() {
    let (mut driver, probe) = driver();
    driver.start(!0);
    driver.submit(0, &[b"x"], &[1]);
    driver.run();
    driver.queue_max(1);
    driver.write32(0x014, 1);
    probe.take();
    driver.write32(STATUS, 0);
    assert_eq!(probe.take(), ["reset"]);
    assert_eq!(
        (driver.status(), driver.read32(0x060), driver.read32(READY)),
        (0, 0, 0)
    );
    assert_eq!(
        driver.read32(0x010),
        1 << 5 | 1 << 28 | 1 << 29,
        "feature page 0"
    );
    assert_eq!(driver.read32(0x034), 8, "queue 0");
    driver.write32(STATUS, 0);
    assert_eq!(probe.take(), [""; 0], "nothing to reset");
    // Whatever was accepted before is forgotten.
    driver.write32(STATUS, 3);
    driver.write32(STATUS, 0xb);
    assert_eq!(driver.status(), 3);
    driver.start(!0);
    assert_eq!(driver.request(1, &[b"new"], &[3]).data, b"new");
    assert_eq!(driver.counters().resets, 4);
}

#[test]
fn faults_of_a_running_driver_are_announced_once() {
    let (mut driver, probe) = driver();
    driver.start(0);
    let descriptors = driver.ring(0).descriptors;
    driver.describe(descriptors, 0, 0x9000, 1, NEXT | WRITE, 0);
    driver.offer(0, 0);
    driver.notify(0);
    driver.run();
    assert!(driver.needs_reset());
    assert_eq!(
        driver.read32(0x060),
        2,
        "a configuration change notification (VIRTIO 2.1.2)"
    );
    let interrupt = probe.interrupt().unwrap();
    interrupt.needs_reset("again");
    assert_eq!(
        (
            driver.line.pulses(),
            driver.log().len(),
            driver.counters().needs_reset
        ),
        (1, 1, 2)
    );
    assert_eq!(
        driver.log(),
        ["echo needs a reset by its driver: queue 0: a descriptor chain loops or is too long"]
    );
    assert_eq!(
        driver.request(1, &[b"other"], &[5]).data,
        b"other",
        "other queues go on"
    );
    driver.start(0);
    assert_eq!(driver.request(0, &[b"mended"], &[6]).data, b"mended");
}

#[test]
fn a_device_that_does_not_start_needs_a_reset() {
    for (mut driver, probe) in [driver(), threaded()] {
        probe.refuse(Some("no backend"));
        driver.start(0);
        if !driver.needs_reset() {
            assert!(driver.wait_interrupt());
        }
        assert!(driver.needs_reset());
        assert_eq!(
            driver.log(),
            ["echo needs a reset by its driver: no backend"]
        );
        driver.notify(0);
        driver.run();
        probe.refuse(None);
        driver.start(0);
        assert_eq!(driver.request(0, &[b"now"], &[3]).data, b"now");
    }
}

#[test]
fn nothing_hangs_when_the_loop_is_gone() {
    let (mut driver, _) = threaded();
    driver.start(0);
    assert_eq!(driver.request(0, &[b"x"], &[1]).data, b"x");
    driver.stop_loop();
    driver.notify(0);
    driver.reset();
    assert_eq!(driver.status(), 0);
    driver.start(0);
    assert!(driver.needs_reset());
    assert!(
        driver.log()[0].contains("loop has ended"),
        "{:?}",
        driver.log()
    );

    let (mut driver, _) = threaded();
    driver.stop_loop();
    driver.start(0);
    assert!(driver.needs_reset(), "the loop went before the device came");
    driver.reset();
}

#[test]
fn a_reset_during_a_request_waits_until_the_device_lets_go() {
    let (mut driver, probe) = threaded();
    driver.start(0);
    let gate = Arc::new(Barrier::new(2));
    probe.hold(&gate);
    driver.submit(0, &[b"late"], &[4]);
    gate.wait();
    // The device holds the request now. Another vCPU resets it.
    let used = driver.ring(0).used;
    let transport = driver.transport();
    let vcpu = std::thread::spawn(move || {
        use crate::bus::BusDevice as _;
        transport.lock().unwrap().write(STATUS, &[0; 4]);
    });
    gate.wait();
    vcpu.join().unwrap();
    assert_eq!(
        probe.take(),
        ["activate 0x100000000 [8, 4]", "kick 0", "reset"]
    );
    assert_eq!(
        (driver.status(), driver.read32(0x060)),
        (0, 0),
        "its interrupt is forgotten"
    );
    driver.write16(used + 2, 0x5555);
    driver.start(0);
    assert_eq!(driver.request(0, &[b"next"], &[4]).data, b"next");
}

#[test]
fn a_kick_while_the_device_works_is_not_lost() {
    for features in [0, !0] {
        let (mut driver, probe) = threaded();
        driver.start(features);
        for _ in 0..200 {
            let gate = Arc::new(Barrier::new(2));
            probe.hold(&gate);
            driver.submit(0, &[b"one"], &[3]);
            gate.wait();
            // Asked for or not, wanted or not.
            driver.submit(0, &[b"two"], &[3]);
            driver.notify(0);
            gate.wait();
            assert_eq!(driver.wait(0).data, b"one");
            assert_eq!(driver.wait(0).data, b"two");
        }
        for turn in 0..3000u32 {
            let queue = (turn % 2) as u16;
            let data = turn.to_le_bytes();
            assert_eq!(driver.request(queue, &[&data], &[4]).data, data);
        }
    }
}
