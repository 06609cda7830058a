use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::legacy::acpi_pm::tests::Wire;
use crate::stream::tests::Dir;
use crate::virtio::worker::{EventLoop as _, InlineLoop, ThreadLoop, Worker};

struct Guest {
    serial: Arc<Mutex<Serial>>,
    wire: Arc<Wire>,
    log: ConsoleLog,
    stop: Stop,
}

impl Guest {
    fn new(endpoint: Endpoint, ends: &mut HostEnds) -> (Self, Option<SerialSource>) {
        let spec = SerialSpec {
            index: 0,
            endpoint,
            log: true,
        };
        let (wire, log, stop) = (
            Arc::new(Wire::default()),
            ConsoleLog::new(),
            Stop::new().unwrap(),
        );
        let (serial, source) = Serial::new(&spec, ends, wire.clone(), Some(&log), &stop).unwrap();
        (
            Self {
                serial,
                wire,
                log,
                stop,
            },
            source,
        )
    }

    /// On `name`d descriptor.
    fn given(fd: impl Into<std::os::fd::OwnedFd>) -> (Self, SerialSource) {
        let mut ends = HostEnds::from([("x".to_owned(), fd.into())]);
        let (guest, source) = Self::new(Endpoint::Given("x".into()), &mut ends);
        (guest, source.unwrap())
    }

    fn get(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.serial.lock().unwrap().read(offset, &mut data);
        data[0]
    }

    fn set(&self, offset: u64, value: u8) {
        self.serial.lock().unwrap().write(offset, &[value]);
    }

    fn print(&self, text: &[u8]) {
        for &byte in text {
            self.set(0, byte);
        }
    }

    /// Polls for `n` bytes.
    fn type_in(&self, n: usize, turn: impl Fn()) -> Vec<u8> {
        let mut out = Vec::new();
        let start = std::time::Instant::now();
        while out.len() < n {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} of {n} bytes",
                out.len()
            );
            turn();
            while out.len() < n && self.get(LINE_STATUS) & 1 != 0 {
                out.push(self.get(0));
            }
        }
        out
    }
}

fn inline(source: SerialSource) -> InlineLoop {
    let events = InlineLoop::new();
    events.add(Worker::from_source(Box::new(source))).unwrap();
    events
}

fn threaded(source: SerialSource) -> ThreadLoop {
    let events = ThreadLoop::start();
    events
        .handle()
        .add(Worker::from_source(Box::new(source)))
        .unwrap();
    events
}

fn pump(events: &InlineLoop) {
    events.pump();
}

fn noise(n: usize) -> Vec<u8> {
    let mut x = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn linux_takes_it_for_a_16550a() {
    let (guest, source) = Guest::new(Endpoint::Null, &mut HostEnds::new());
    assert!(source.is_none(), "nothing to run");
    // autoconfig(), drivers/tty/serial/8250/8250_port.c.
    guest.set(1, 0);
    assert_eq!(guest.get(1) & 0x0f, 0);
    guest.set(1, 0x0f);
    assert_eq!(guest.get(1) & 0x0f, 0x0f);
    guest.set(1, 0);
    let (mcr, lcr) = (guest.get(4), guest.get(3));
    guest.set(4, 0x10 | 0x0a);
    assert_eq!(guest.get(6) & 0xf0, 0x90, "loopback: DCD and CTS");
    guest.set(4, mcr);
    guest.set(3, 0xbf);
    guest.set(2, 0);
    guest.set(3, 0);
    guest.set(2, 1);
    assert_eq!(guest.get(2) >> 6, 3, "16550A");
    // autoconfig_16550a(): no EFR, no 64-byte FIFO, no XScale unit enable.
    guest.set(3, 0x80);
    assert_ne!(guest.get(2), 0);
    guest.set(3, 0xbf);
    assert_ne!(guest.get(2), 0);
    guest.set(3, 0);
    guest.set(2, 1 | 0x20);
    assert_ne!(guest.get(2) >> 5, 7);
    guest.set(1, 0x40);
    assert_eq!(guest.get(1) & 0x40, 0);
    guest.set(3, lcr);
    guest.set(7, 0xa5);
    assert_eq!(guest.get(7), 0xa5);
    assert_eq!(
        guest.get(LINE_STATUS) & 0x61,
        0x60,
        "ready to send, nothing received"
    );

    // THRE test: enabling the interrupt raises it.
    guest.set(1, 2);
    assert!(guest.wire.pulses.load(Ordering::SeqCst) > 0);
    assert_eq!(guest.get(2) & 0x0f, 2);
    guest.serial.lock().unwrap().write(0, &[0; 8]);
    guest.serial.lock().unwrap().read(0, &mut [0; 8]);
}

#[test]
fn ports_and_interrupts_are_those_of_a_pc() {
    let spec = |index| SerialSpec {
        index,
        endpoint: Endpoint::Null,
        log: false,
    };
    let all = [0, 1, 2, 3].map(|i| (spec(i).port(), spec(i).irq()));
    assert_eq!(all, [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)]);
}

#[test]
fn lines_come_at_once_and_prompts_soon() {
    let (mut host, end) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    guest.print(b"hello\n");
    let mut buf = [0; 64];
    assert_eq!(host.read(&mut buf).unwrap(), 6, "without any loop");
    let _events = threaded(source);
    guest.print(b"login: ");
    let mut got = Vec::new();
    while got.len() < 7 {
        let n = host.read(&mut buf).unwrap();
        got.extend_from_slice(&buf[..n]);
    }
    assert_eq!(got, b"login: ");
    assert_eq!(guest.log.last_lines(9), ["hello", "login: "]);
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let (mut host, end) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let _events = threaded(source);
    let text = noise(600_000);
    let expected = text.clone();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        let mut buf = [0; 7001];
        let mut size = 1;
        loop {
            size = size * 31 % 7001 + 1;
            match host.read(&mut buf[..size]).unwrap() {
                0 => return got,
                n => got.extend_from_slice(&buf[..n]),
            }
            thread::yield_now();
        }
    });
    guest.print(&text);
    assert!(guest.serial.lock().unwrap().finish(Duration::from_secs(10)));
    assert_eq!(guest.log.total(), 600_000);
    drop(guest);
    drop(_events);
    assert!(reader.join().unwrap() == expected, "output differs");
}

#[test]
fn a_vcpu_that_waits_for_the_reader_can_be_stopped_and_nothing_is_lost() {
    let (mut host, end) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let events = threaded(source);
    let text = noise(400_000);
    let (serial, bytes) = (guest.serial.clone(), text.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    let vcpu = thread::spawn(move || {
        for &byte in &bytes {
            serial.lock().unwrap().write(0, &[byte]);
            sender.send(()).unwrap();
        }
    });
    // Nobody reads: a pipe's 64 KiB and ours are full, then the vCPU stands.
    for _ in 0..65_536 + KEPT_AT_LEAST {
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    let mut more = 0;
    while receiver.recv_timeout(Duration::from_millis(300)).is_ok() {
        more += 1;
    }
    assert!(more < 140_000 - 65_536 - KEPT_AT_LEAST, "{more} more");
    guest.stop.raise();
    vcpu.join().unwrap();
    let serial = guest.serial.clone();
    assert!(
        !serial.lock().unwrap().finish(Duration::from_millis(10)),
        "nobody reads"
    );
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        got
    });
    assert!(serial.lock().unwrap().finish(Duration::from_secs(10)));
    drop((guest, serial, events));
    assert!(reader.join().unwrap() == text, "output differs");
}

/// The least that must fit before a vCPU waits.
const KEPT_AT_LEAST: usize = 60_000;

#[test]
fn a_reader_that_leaves_is_no_reason_to_wait() {
    let (host, end) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let events = inline(source);
    drop(host);
    guest.print(&noise(300_000));
    events.pump();
    assert_eq!(guest.log.total(), 300_000);
    assert!(
        guest.serial.lock().unwrap().finish(Duration::ZERO),
        "nothing is owed"
    );
}

#[test]
fn input_waits_for_a_guest_that_listens_and_arrives_whole() {
    let (end, mut host) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let events = inline(source);
    let text = noise(20_000);
    host.write_all(&text).unwrap();
    drop(host);
    events.pump();
    // What autoconfig and startup do does not eat any of it.
    guest.get(0);
    guest.get(LINE_STATUS);
    assert_eq!(guest.get(LINE_STATUS) & 1, 0);
    guest.set(1, ENABLE_RECEIVED_DATA);
    let before = guest.wire.pulses.load(Ordering::SeqCst);
    events.pump();
    assert!(
        guest.wire.pulses.load(Ordering::SeqCst) > before,
        "interrupt"
    );
    assert!(
        guest.type_in(text.len(), || pump(&events)) == text,
        "input differs"
    );
    events.pump();
    assert_eq!(
        guest.get(LINE_STATUS) & 1,
        0,
        "the end of the input is silence"
    );
}

#[test]
fn a_probe_and_a_start_eat_nothing() {
    let (end, mut host) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let events = inline(source);
    host.write_all(b"uname").unwrap();
    events.pump();
    // Linux autoconfig(), at every moment of which the loop may run.
    for (register, value) in [
        (1, 0),
        (1, 0x0f),
        (1, 0),
        (4, 0x1a),
        (4, 0x08),
        (2, 1),
        (2, 7),
        (2, 0),
    ] {
        guest.set(register, value);
        events.pump();
        assert_eq!(
            guest.get(LINE_STATUS) & 1,
            0,
            "register {register} = {value:#x}"
        );
    }
    guest.get(0);
    guest.set(1, 5);
    assert_eq!(guest.type_in(5, || pump(&events)), b"uname");
    // Closed and opened again.
    for (register, value) in [(1, 0), (4, 1), (2, 7), (2, 0)] {
        guest.set(register, value);
    }
    host.write_all(b"exit").unwrap();
    events.pump();
    guest.get(0);
    assert_eq!(guest.get(LINE_STATUS) & 1, 0);
    guest.set(4, 0x0b);
    guest.set(1, 5);
    assert_eq!(guest.type_in(4, || pump(&events)), b"exit");
}

#[test]
fn a_driver_that_leaves_all_interrupts_enabled_gets_its_input() {
    let (end, mut host) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let events = inline(source);
    host.write_all(b"x").unwrap();
    events.pump();
    let start = std::time::Instant::now();
    guest.set(1, 0x0f);
    // The line status is not polled: that would be listening too.
    while guest.wire.pulses.load(Ordering::SeqCst) < 2 {
        assert!(start.elapsed() < Duration::from_secs(20));
        pump(&events);
        thread::yield_now();
    }
    assert!(start.elapsed() >= PROBE);
    assert_eq!(guest.get(0), b'x');
}

#[test]
fn input_reaches_a_guest_that_only_polls() {
    let (end, mut host) = std::io::pipe().unwrap();
    let (guest, source) = Guest::given(end);
    let _events = threaded(source);
    let text = noise(50_000);
    let sent = text.clone();
    let writer = thread::spawn(move || host.write_all(&sent).unwrap());
    assert!(
        guest.type_in(text.len(), thread::yield_now) == text,
        "input differs"
    );
    writer.join().unwrap();
}

#[test]
fn a_filter_sees_and_changes_input() {
    struct Upper;
    impl InputFilter for Upper {
        fn filter(&mut self, bytes: &mut Vec<u8>) {
            bytes.retain(|&b| b != b'!');
            bytes.make_ascii_uppercase();
        }
    }
    let (end, mut host) = std::io::pipe().unwrap();
    let (guest, mut source) = Guest::given(end);
    source.set_filter(Box::new(Upper));
    let events = inline(source);
    host.write_all(b"a!b!!c\n").unwrap();
    guest.set(1, ENABLE_RECEIVED_DATA);
    assert_eq!(guest.type_in(4, || pump(&events)), b"ABC\n");
}

#[test]
fn clients_of_a_socket_come_and_go_one_at_a_time() {
    let dir = Dir::new("serial-socket");
    let path = dir.file("s");
    let (guest, source) = Guest::new(Endpoint::Unix(path.clone()), &mut HostEnds::new());
    let events = inline(source.unwrap());
    guest.set(1, ENABLE_RECEIVED_DATA);
    guest.print(b"nobody hears this\n");
    assert_eq!(guest.log.last_lines(1), ["nobody hears this"]);

    let mut first = UnixStream::connect(&path).unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    events.pump();
    guest.print(b"to the first\n");
    first.write_all(b"first").unwrap();
    assert_eq!(guest.type_in(5, || pump(&events)), b"first");
    let mut buf = [0; 64];
    let n = first.read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"to the first\n", "not what came before it");

    // It leaves with something sent: that still arrives, then the second gets its turn.
    first.write_all(b"bye, ").unwrap();
    drop(first);
    assert_eq!(guest.type_in(11, || pump(&events)), b"bye, second");
    guest.print(b"to the second\n");
    let n = second.read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"to the second\n");

    // Half closed: no more input, output goes on.
    second.shutdown(std::net::Shutdown::Write).unwrap();
    events.pump();
    guest.print(b"still there?\n");
    let n = second.read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"still there?\n");
    drop(second);
    events.pump();
    guest.print(b"nobody again\n");
    let third = UnixStream::connect(&path).unwrap();
    events.pump();
    guest.print(b"third\n");
    let n = (&third).read(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"third\n");

    drop(events);
    assert!(!path.exists(), "removed with its source");
}

#[test]
fn a_client_that_leaves_while_the_guest_sleeps_frees_its_place() {
    let dir = Dir::new("serial-sleep");
    let path = dir.file("s");
    let (guest, source) = Guest::new(Endpoint::Unix(path.clone()), &mut HostEnds::new());
    let events = inline(source.unwrap());
    let text = noise(100_000);
    for part in text.chunks(50_000) {
        let mut client = UnixStream::connect(&path).unwrap();
        events.pump();
        client.write_all(part).unwrap();
        drop(client);
        events.pump();
    }
    guest.set(1, ENABLE_RECEIVED_DATA);
    assert!(
        guest.type_in(text.len(), || pump(&events)) == text,
        "input differs"
    );
}

#[test]
fn a_file_takes_output_and_never_blocks_the_loop() {
    let dir = Dir::new("serial-file");
    let path = dir.file("out");
    let (guest, source) = Guest::new(Endpoint::File(path.clone()), &mut HostEnds::new());
    let events = inline(source.unwrap());
    let text = noise(200_000);
    guest.print(&text);
    events.pump();
    assert!(guest.serial.lock().unwrap().finish(Duration::ZERO));
    let mut got = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut got).unwrap();
    assert!(got == text, "output differs");
}

#[test]
fn no_access_can_make_it_panic_or_grow() {
    let (mut host, end) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let (guest, source) = Guest::given(end);
    let events = inline(source);
    for (i, word) in noise(160_000).chunks_exact(8).enumerate() {
        let len = 1usize << (word[0] % 4);
        let offset = u64::from(word[1]) % (LEN + 1 - len as u64);
        let mut serial = guest.serial.lock().unwrap();
        match word[2] % 3 {
            0 => serial.read(offset, &mut [0; 8][..len]),
            _ => serial.write(offset, &word[..len]),
        }
        drop(serial);
        if i % 16 == 0 {
            // Whether there is room depends on the guest.
            let _ = host.write(word);
            events.pump();
            let _ = host.read(&mut [0; 4096]);
        }
    }
    assert!(guest.serial.lock().unwrap().shared.output.pending() < 65_536);
}
