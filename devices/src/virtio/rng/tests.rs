use super::*;
use crate::virtio::testing::Driver;

fn driver(threaded: bool) -> Driver {
    let device = Box::new(Rng::new(&RngSpec::default()));
    let mut driver = if threaded {
        Driver::threaded(device)
    } else {
        Driver::inline(device)
    };
    driver.start(!0);
    driver
}

#[test]
fn entropy_fills_every_part_of_a_request() {
    for threaded in [false, true] {
        let mut driver = driver(threaded);
        let first = driver.request(0, &[], &[64, 1, 63]);
        assert_eq!(first.written, 128);
        let second = driver.request(0, &[], &[64, 1, 63]);
        assert_ne!(first.data, second.data);
        // 128 bytes still 0xee would be a 2^-1024 event.
        assert!(first.data.iter().any(|&b| b != 0xee));
    }
}

#[test]
fn large_requests_are_served_in_part() {
    let mut driver = driver(false);
    let reply = driver.request(0, &[], &[10, 1 << 20]);
    assert_eq!(reply.written as usize, MAX_REQUEST);
    assert!(
        reply.data[MAX_REQUEST..].iter().all(|&b| b == 0xee),
        "nothing is written past what is reported"
    );
    assert!(
        reply.data[MAX_REQUEST - 64..MAX_REQUEST]
            .iter()
            .any(|&b| b != 0xee)
    );
}

#[test]
fn requests_without_room_break_the_queue() {
    let mut driver = driver(false);
    driver.submit(0, &[b"give me"], &[]);
    assert_eq!(driver.poll(0), None);
    assert!(driver.needs_reset());
    assert!(driver.log()[0].contains("no room"), "{:?}", driver.log());
    driver.start(!0);
    assert_eq!(driver.request(0, &[], &[8]).written, 8, "a reset mends it");
}

#[test]
fn many_requests_in_flight_all_come_back() {
    for (features, threaded) in [(!0, false), (0, false), (!0, true), (0, true)] {
        let mut driver = driver(threaded);
        driver.start(features);
        for _ in 0..50 {
            for _ in 0..16 {
                driver.submit(0, &[], &[32]);
            }
            for _ in 0..16 {
                assert_eq!(driver.wait(0).written, 32);
            }
        }
        assert!(!driver.needs_reset());
    }
}
