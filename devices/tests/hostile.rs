//! Faults a driver can make in its rings, each by name, through the registers, against virtio-rng: the device asks for
//! a reset, says why, touches nothing, and works again after the reset.

use vsc_devices::virtio::rng::{Rng, RngSpec};
use vsc_devices::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};

const END: u64 = 64 << 20;
const BUFFER: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;

fn driver(features: u64) -> Driver {
    let mut driver = Driver::inline(Box::new(Rng::new(&RngSpec::default())));
    driver.start(features);
    driver
}

/// Offers descriptor 0 as `spoil` left it, and expects the device to refuse it with `reason`.
fn refused(reason: &str, spoil: fn(&mut Driver, u64)) {
    for features in [0, !0] {
        let mut driver = driver(features);
        let descriptors = driver.ring(0).descriptors;
        spoil(&mut driver, descriptors);
        driver.offer(0, 0);
        driver.notify(0);
        assert_eq!(driver.run(), 1, "one kick, and no more work than that");
        assert!(driver.needs_reset());
        assert_eq!(driver.log().len(), 1, "{:?}", driver.log());
        assert!(driver.log()[0].contains(reason), "{:?}", driver.log());
        assert_eq!(
            driver.read16(driver.ring(0).used + 2),
            0,
            "nothing was used"
        );
        assert_eq!(
            (driver.acknowledge(), driver.line.pulses()),
            (2, 1),
            "the driver is told"
        );
        driver.notify(0);
        driver.run();
        assert_eq!(
            (driver.acknowledge(), driver.log().len()),
            (0, 1),
            "and left alone"
        );
        driver.start(features);
        assert_eq!(driver.request(0, &[], &[32]).written, 32);
    }
}

#[test]
fn available_index_jumps() {
    refused("further ahead", |driver, descriptors| {
        driver.describe(descriptors, 0, BUFFER, 16, WRITE, 0);
        // More than 16 buffers in a queue of 16.
        (0..16).for_each(|_| driver.offer(0, 0));
    });
}

#[test]
fn available_index_goes_back() {
    let mut driver = driver(!0);
    assert_eq!(driver.request(0, &[], &[8]).written, 8);
    driver.write16(driver.ring(0).avail + 2, 0);
    driver.notify(0);
    driver.run();
    assert!(
        driver.log()[0].contains("further ahead"),
        "{:?}",
        driver.log()
    );
}

#[test]
fn chain_loops() {
    refused("loops", |driver, descriptors| {
        driver.describe(descriptors, 0, BUFFER, 16, WRITE | NEXT, 1);
        driver.describe(descriptors, 1, BUFFER, 16, WRITE | NEXT, 0);
    });
}

#[test]
fn indirect_in_indirect() {
    refused("refers to another", |driver, descriptors| {
        driver.describe(descriptors, 0, TABLE, 32, INDIRECT, 0);
        driver.describe(TABLE, 0, BUFFER, 16, WRITE | NEXT, 1);
        driver.describe(TABLE, 1, TABLE, 32, INDIRECT, 0);
    });
}

#[test]
fn indirect_table_of_odd_length() {
    refused("length of an indirect table", |driver, descriptors| {
        driver.describe(descriptors, 0, TABLE, 17, INDIRECT, 0);
        driver.describe(TABLE, 0, BUFFER, 16, WRITE, 0);
    });
}

#[test]
fn indirect_table_in_a_device() {
    refused("table lies outside", |driver, descriptors| {
        driver.describe(descriptors, 0, 0xd000_0000, 16, INDIRECT, 0);
    });
}

#[test]
fn length_overflows_from_the_end_of_memory() {
    refused("outside of memory", |driver, descriptors| {
        driver.describe(descriptors, 0, END - 16, u32::MAX, WRITE, 0);
    });
}

#[test]
fn buffer_at_the_end_of_the_address_space() {
    refused("outside of memory", |driver, descriptors| {
        driver.describe(descriptors, 0, u64::MAX - 7, 16, WRITE, 0);
    });
}

#[test]
fn head_out_of_the_table() {
    refused("out of its table", |driver, _| {
        let slot = driver.ring(0).avail + 4;
        driver.offer(0, 16);
        driver.write16(slot, 16);
    });
}

#[test]
fn readable_after_writable() {
    refused("follows a device-writable", |driver, descriptors| {
        driver.describe(descriptors, 0, BUFFER, 16, WRITE | NEXT, 1);
        driver.describe(descriptors, 1, BUFFER, 16, 0, 0);
    });
}

#[test]
fn buffer_on_the_rings_themselves() {
    // Allowed, if unwise: entropy lands in the rings, and the device takes what comes.
    let mut driver = driver(!0);
    let (descriptors, used) = (driver.ring(0).descriptors, driver.ring(0).used);
    let all = (used + 6 + 8 * 16 - descriptors) as u32;
    driver.describe(descriptors, 0, descriptors, all, WRITE, 0);
    driver.offer(0, 0);
    driver.notify(0);
    driver.run();
    driver.start(!0);
    assert_eq!(driver.request(0, &[], &[32]).written, 32);
}
