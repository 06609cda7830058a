use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::*;
use crate::virtio::testing::{Driver, Echo};

#[test]
fn events_of_a_device_and_kicks_are_told_apart() {
    let (echo, probe) = Echo::new();
    let mut driver = Driver::inline(echo);
    let (near, mut far) = UnixStream::pair().unwrap();
    // The token of queue 1's kicks.
    probe.watch(near.as_raw_fd(), 1);
    driver.start(0);
    driver.run();
    probe.take();
    far.write_all(b"x").unwrap();
    driver.run();
    assert_eq!(probe.take(), ["event 1 true false false"]);
    driver.notify(1);
    driver.run();
    assert_eq!(probe.take(), ["kick 1"]);
}

#[test]
fn hang_ups_are_reported() {
    let (echo, probe) = Echo::new();
    let mut driver = Driver::inline(echo);
    let (near, far) = UnixStream::pair().unwrap();
    probe.watch(near.as_raw_fd(), u32::MAX);
    driver.start(0);
    probe.take();
    drop(far);
    driver.run();
    assert_eq!(probe.take(), ["event 4294967295 true false true"]);
}

type Start = Box<dyn FnMut(&mut dyn Watch) + Send>;

/// Does with its descriptors what the test says, and tells what happens.
struct Script {
    start: Start,
    events: mpsc::Sender<(u32, Interest, bool)>,
    fd: RawFd,
}

impl Source for Script {
    fn start(&mut self, watch: &mut dyn Watch) {
        (self.start)(watch);
    }
    fn event(&mut self, token: u32, ready: Interest, hangup: bool, watch: &mut dyn Watch) {
        self.events.send((token, ready, hangup)).unwrap();
        watch.unwatch(self.fd);
    }
    fn stop(&mut self, watch: &mut dyn Watch) {
        watch.unwatch(self.fd);
        assert!(watch.watch(self.fd, 0, Interest::default()).is_err());
        self.events.send((99, Interest::default(), false)).unwrap();
    }
}

const READ: Interest = Interest {
    readable: true,
    writable: false,
};
const WRITE: Interest = Interest {
    readable: false,
    writable: true,
};

#[test]
fn sources_live_on_loops_too() {
    let (near, _far) = UnixStream::pair().unwrap();
    let fd = near.as_raw_fd();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let regular = file.as_raw_fd();
    let (sender, events) = mpsc::channel();
    let start = Box::new(move |watch: &mut dyn Watch| {
        assert_eq!(
            watch.watch(regular, 1, READ).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        watch.unwatch(regular);
        watch.watch(fd, 1, READ).unwrap();
        watch.unwatch(fd);
        watch.unwatch(fd);
        watch.watch(fd, 2, READ).unwrap();
        watch.watch(fd, 3, WRITE).unwrap();
    });
    let source = Worker::from_source(Box::new(Script {
        start,
        events: sender,
        fd,
    }));
    let mut thread = ThreadLoop::start();
    let residence = thread.handle().add(source).unwrap();
    let patience = std::time::Duration::from_secs(60);
    assert_eq!(
        events.recv_timeout(patience),
        Ok((3, WRITE, false)),
        "the last interest counts"
    );
    let source = thread.handle().remove(residence.clone());
    assert_eq!(
        events.recv_timeout(patience),
        Ok((99, Interest::default(), false))
    );
    assert!(source.and_then(Worker::into_source).is_some());
    assert!(
        thread.handle().remove(residence.clone()).is_none(),
        "it is gone already"
    );
    assert!(events.try_recv().is_err());
    thread.stop();
    assert!(thread.handle().remove(residence).is_none());
}

#[test]
fn a_loop_that_has_ended_takes_nobody() {
    let mut thread = ThreadLoop::start();
    let handle = thread.handle();
    thread.stop();
    let (events, _receiver) = mpsc::channel();
    let script = Script {
        start: Box::new(|_| ()),
        events,
        fd: -1,
    };
    assert_eq!(
        handle.add(Worker::from_source(Box::new(script))).err(),
        Some(LoopGone)
    );
}
