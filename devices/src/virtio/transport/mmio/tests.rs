use super::*;
use crate::virtio::CounterSnapshot;
use crate::virtio::testing::{ADDRESS, Driver, Echo, Options, Probe};
use crate::virtio::transport::port::HOT_KICKS;

fn driver() -> (Driver, Probe) {
    let (echo, probe) = Echo::new();
    (Driver::inline(echo), probe)
}

fn level_driver() -> (Driver, Probe) {
    let (echo, probe) = Echo::new();
    let options = Options {
        trigger: Trigger::Level,
        ..Options::default()
    };
    (Driver::new(echo, options), probe)
}

#[test]
fn the_registers_say_what_is_there() {
    let (driver, _) = driver();
    assert_eq!(driver.read32(0x000), 0x7472_6976);
    assert_eq!(driver.read32(0x004), 2);
    assert_eq!(driver.read32(0x008), 42);
    assert_eq!(driver.read32(0x00c), VENDOR);
    for shared_memory in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
        assert_eq!(driver.read32(shared_memory), u32::MAX);
    }
    // Write-only, undefined, and QueueReset.
    for nothing in [
        0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x0a4, 0x0ac, 0x028, 0x0c0, 0x0f8,
    ] {
        assert_eq!(driver.read32(nothing), 0, "{nothing:#x}");
    }
}

#[test]
fn registers_take_aligned_words_only() {
    let (mut driver, _) = driver();
    driver.begin();
    let transport = driver.transport();
    let mut transport = transport.lock().unwrap();
    for (offset, len) in [
        (0x000, 1),
        (0x000, 2),
        (0x000, 8),
        (0x001, 4),
        (0x06f, 4),
        (0x072, 2),
    ] {
        let mut data = [0xaa; 8];
        transport.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 8][..len], "{len} bytes at {offset:#x}");
        transport.write(offset, &[0; 8][..len]);
    }
    for len in [1, 2, 8] {
        transport.write(0x070, &[0; 8][..len]);
    }
    let mut status = [0; 4];
    transport.read(0x070, &mut status);
    assert_eq!(
        u32::from_le_bytes(status),
        3,
        "no reset by a write of the wrong width"
    );
}

#[test]
fn configuration_space_takes_any_width() {
    let (driver, _) = driver();
    let mut data = [0; 8];
    driver.read_config(0, &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
    driver.read_config(11, &mut data[..2]);
    assert_eq!(data[..2], [12, 0], "past the end");
    driver.write_config(3, &[0xa, 0xb, 0xc]);
    driver.read_config(3, &mut data[..4]);
    assert_eq!(
        data[..4],
        [4, 0xb, 0xc, 7],
        "only bytes 4 to 7 may be written"
    );
    driver.read_config(0xefc, &mut data[..4]);
    assert_eq!(data[..4], [0; 4]);
    assert_eq!(driver.read32(0x0fc), 0);
}

#[test]
fn the_generation_follows_the_device() {
    let (echo, _) = Echo::new();
    let config = echo.config();
    let driver = Driver::inline(echo);
    config.update(0, &[9]);
    assert_eq!(driver.read32(0x0fc), 1);
    assert_eq!(driver.read32(0x100), 0x0403_0209);
}

#[test]
fn features_come_in_pages() {
    let (driver, _) = driver();
    assert_eq!(driver.offered(), 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32);
    for page in [2, 3, u32::MAX] {
        driver.write32(0x014, page);
        assert_eq!(driver.read32(0x010), 0);
    }
}

#[test]
fn edges_come_for_every_event() {
    let (mut driver, probe) = driver();
    driver.start(0);
    driver.submit(0, &[b"a"], &[1]);
    driver.run();
    driver.submit(0, &[b"a"], &[1]);
    driver.run();
    assert_eq!(
        driver.line.pulses(),
        2,
        "also while the first is not acknowledged"
    );
    assert_eq!(driver.read32(0x060), 1);
    probe.interrupt().unwrap().config();
    assert_eq!((driver.line.pulses(), driver.read32(0x060)), (3, 3));
    driver.write32(0x064, 1);
    assert_eq!(driver.read32(0x060), 2, "what is not acknowledged stays");
    driver.write32(0x064, u32::MAX);
    assert_eq!(driver.read32(0x060), 0);
    assert!(!driver.line.is_high(), "levels are not touched");
}

#[test]
fn a_level_is_high_while_something_is_pending() {
    let (mut driver, probe) = level_driver();
    driver.start(0);
    let interrupt = probe.interrupt().unwrap();
    interrupt.queue(0);
    interrupt.queue(1);
    interrupt.config();
    assert!(driver.line.is_high());
    driver.write32(0x064, 0);
    driver.write32(0x064, 1);
    assert!(driver.line.is_high());
    driver.write32(0x064, 2);
    assert!(!driver.line.is_high());
    assert_eq!((driver.line.rises(), driver.line.pulses()), (1, 0));
    interrupt.queue(0);
    assert!(driver.line.is_high());
    driver.reset();
    assert!(!driver.line.is_high(), "a reset forgets what is pending");
    assert_eq!(driver.read32(0x060), 0);
}

#[test]
fn a_level_never_stays_wrong_when_both_sides_move_it() {
    let (mut driver, probe) = level_driver();
    driver.start(0);
    let interrupt = probe.interrupt().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20_000).for_each(|_| interrupt.queue(0)));
        for _ in 0..20_000 {
            driver.acknowledge();
        }
    });
    assert_eq!(driver.line.is_high(), driver.read32(0x060) != 0);
    driver.acknowledge();
    assert!(!driver.line.is_high());
}

#[test]
fn busy_doorbells_move_to_the_kernel() {
    let (mut driver, probe) = driver();
    driver.start(0);
    let busy = u64::from(HOT_KICKS);
    for turn in 1..=busy + 10 {
        assert_eq!(driver.request(1, &[b"ring"], &[4]).data, b"ring");
        let registered: &[u16] = if turn < busy { &[] } else { &[1] };
        assert_eq!(driver.registry.queues(), registered, "kick {turn}");
    }
    driver.request(0, &[b"x"], &[1]);
    let CounterSnapshot {
        notify_exits,
        kicks,
        interrupts,
        ..
    } = driver.counters();
    assert_eq!(
        (notify_exits, kicks, interrupts),
        (busy + 1, busy + 11, busy + 11)
    );

    // A reset keeps the doorbell: registering costs more than a stray wake-up.
    probe.take();
    driver.start(0);
    driver.run();
    assert_eq!(
        probe.take(),
        ["reset", "activate 0x100000000 [8, 4]", "kick 0", "kick 1"]
    );
    assert_eq!(driver.request(1, &[b"ring"], &[4]).data, b"ring");
    assert_eq!(driver.counters().notify_exits, busy + 1);

    let transport = driver.transport();
    transport.lock().unwrap().unregister_kicks().unwrap();
    assert_eq!(driver.registry.queues(), [0; 0]);
    assert_eq!(driver.request(1, &[b"exit"], &[4]).data, b"exit");
    assert_eq!(driver.counters().notify_exits, busy + 2);
}

#[test]
fn kicks_of_no_queue_are_nothing() {
    let (mut driver, probe) = driver();
    driver.notify(0);
    driver.begin();
    assert!(driver.negotiate(1 << 32));
    driver.setup_queue(1, 4);
    driver.notify(1);
    assert_eq!(
        driver.counters().notify_exits,
        0,
        "there is no bell before DRIVER_OK"
    );
    driver.driver_ok();
    driver.run();
    assert_eq!(probe.take(), ["activate 0x100000000 [0, 4]"]);
    for queue in [0, 2, 3, 0xffff, 0x1_0001, u32::MAX] {
        driver.notify(queue);
    }
    driver.run();
    assert_eq!((probe.take(), driver.counters().notify_exits), (vec![], 0));
    driver.notify(1);
    driver.run();
    assert_eq!(
        (probe.take(), driver.counters().notify_exits),
        (vec!["kick 1".to_owned()], 1)
    );
    assert_eq!(ADDRESS + 0x50, 0xd000_0050);
}
