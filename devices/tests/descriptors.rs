//! A process without descriptors to spare. Alone in its file: the limit is the whole process's.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::sync::Arc;

use vsc_devices::irq::Unconnected;
use vsc_devices::virtio::rng::{Rng, RngSpec};
use vsc_devices::virtio::testing::{Driver, memory};
use vsc_devices::virtio::transport::{MmioTransport, Trigger, Wiring};
use vsc_devices::virtio::worker::InlineLoop;

fn limit(descriptors: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = descriptors.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

#[test]
fn a_transport_without_descriptors_is_refused_when_it_is_made_and_not_by_the_driver() {
    let rng = || Box::new(Rng::new(&RngSpec::default()));
    let wiring = Wiring {
        memory: memory(),
        events: Arc::new(InlineLoop::new()),
        registry: None,
        log: Arc::new(|_| ()),
    };
    let mut driver = Driver::inline(rng());
    limit(16);
    let hoard: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(hoard.len() < 16);
    let line = Arc::new(Unconnected);
    let made = MmioTransport::new(rng(), 0xd000_0000, line, Trigger::Edge, wiring);
    assert_eq!(made.err().unwrap().raw_os_error(), Some(libc::EMFILE));
    driver.start(!0);
    assert!(!driver.needs_reset(), "{:?}", driver.log());
    drop(hoard);
}
