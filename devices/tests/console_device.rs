//! virtio-console as a driver sees it: features, the control protocol, open and closed, resize, early output.
#![allow(clippy::unwrap_used)]

mod console_common;

use std::io::{Read as _, Write as _, pipe};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use console_common::*;
use vsc_devices::Memory;
use vsc_devices::stream::{Endpoint, HostEnds};
use vsc_devices::virtio::console::{Console, ConsoleError, ConsoleSpec, PortSpec};
use vsc_devices::virtio::{Activation, Device as _, Interest, Interrupt, Watch};

#[test]
fn one_plain_console_needs_no_control_queues() {
    let (host_in, mut to_guest) = pipe().unwrap();
    let (mut from_guest, host_out) = pipe().unwrap();
    let ends = ends([("i", host_in.into()), ("o", host_out.into())]);
    let mut guest = Guest::new(vec![console_port(given("i"), given("o"))], ends, false);
    assert_eq!(
        guest.driver.offered() & (MULTIPORT | SIZE | EMERG_WRITE),
        SIZE | EMERG_WRITE
    );
    assert_eq!(
        (guest.driver.queue_max(1), guest.driver.queue_max(2)),
        (64, 0)
    );

    guest.write(0, b"hello\n");
    let mut buf = [0; 64];
    assert_eq!(from_guest.read(&mut buf).unwrap(), 6);
    assert_eq!(guest.log.last_lines(5), ["hello"]);
    to_guest.write_all(b"typed").unwrap();
    assert_eq!(guest.read(0, 3), b"typ");
    assert_eq!(guest.read(0, 100), b"ed");
    // A terminal has no end of file: the driver hears nothing.
    drop(to_guest);
    guest.driver.submit(0, &[], &[16]);
    assert!(guest.driver.poll(0).is_none());
    guest.write(0, b"still here\n");
    assert_eq!(from_guest.read(&mut buf).unwrap(), 11);
}

#[test]
fn ports_are_announced_in_the_order_the_protocol_asks_for() {
    let mut ports = vec![
        port(Some("vsc.ctl"), Endpoint::Null, Endpoint::Null),
        console_port(Endpoint::Null, Endpoint::Null),
        port(None, Endpoint::Null, Endpoint::Null),
    ];
    ports[1].name = Some("vsc.tty".into());
    let mut guest = Guest::new(ports, HostEnds::new(), false);
    let mut nr = [0; 4];
    guest.driver.read_config(4, &mut nr);
    assert_eq!(u32::from_le_bytes(nr), 3);
    assert_eq!(guest.driver.queue_max(7), 64);
    assert_eq!(guest.driver.queue_max(8), 0);

    let added = guest.handshake(3);
    assert_eq!(added, [0, 1, 2].map(|id| (id, PORT_ADD, 1, vec![])));
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(guest.hear());
    }
    assert_eq!(
        heard,
        [
            (0, PORT_NAME, 1, b"vsc.ctl".to_vec()),
            (0, PORT_OPEN, 1, vec![]),
            (1, CONSOLE_PORT, 1, vec![]),
            (1, PORT_NAME, 1, b"vsc.tty".to_vec()),
            (1, PORT_OPEN, 1, vec![]),
            (2, PORT_OPEN, 1, vec![]),
        ]
    );
    // A second announcement changes nothing.
    guest.tell(0, DEVICE_READY, 1);
    guest.tell(1, PORT_READY, 1);
    guest.driver.submit(2, &[], &[300]);
    assert!(guest.driver.poll(2).is_none());
}

#[test]
fn input_waits_until_a_process_has_the_port_open() {
    let (host_in, mut to_guest) = pipe().unwrap();
    let ports = vec![port(Some("in"), given("i"), Endpoint::Null)];
    let mut guest = Guest::new(ports, ends([("i", host_in.into())]), false);
    to_guest.write_all(b"early").unwrap();
    guest.handshake(1);
    guest.driver.submit(0, &[], &[100]);
    assert!(guest.driver.poll(0).is_none(), "Linux would throw it away");
    guest.tell(0, PORT_OPEN, 1);
    let done = guest.driver.wait(0);
    assert_eq!(done.data[..done.written as usize], *b"early");

    guest.tell(0, PORT_OPEN, 0);
    to_guest.write_all(b"late").unwrap();
    guest.driver.submit(0, &[], &[100]);
    assert!(guest.driver.poll(0).is_none());
    guest.tell(0, PORT_OPEN, 1);
    let done = guest.driver.wait(0);
    assert_eq!(done.data[..done.written as usize], *b"late");
}

#[test]
fn the_end_of_input_closes_the_port_after_its_data() {
    let (host_in, mut to_guest) = pipe().unwrap();
    let ports = vec![port(Some("in"), given("i"), Endpoint::Null)];
    let mut guest = Guest::new(ports, ends([("i", host_in.into())]), false);
    guest.greet(1);
    to_guest.write_all(b"all of it").unwrap();
    drop(to_guest);
    assert_eq!(guest.read(0, 100), b"all of it");
    assert_eq!(guest.driver.poll(0), None);
    guest.driver.submit(0, &[], &[100]);
    assert_eq!(guest.hear(), (0, PORT_OPEN, 0, vec![]));
    assert!(guest.driver.poll(0).is_none());
    // It stays closed: the next reader is at the end at once too.
    guest.tell(0, PORT_OPEN, 0);
    guest.tell(0, PORT_OPEN, 1);
    guest.driver.submit(2, &[], &[300]);
    assert!(guest.driver.poll(2).is_none());
}

#[test]
fn a_port_whose_input_ended_opens_again_for_its_output() {
    let (host_in, to_guest) = pipe().unwrap();
    let (mut from_guest, host_out) = pipe().unwrap();
    let ports = vec![port(Some("both"), given("i"), given("o"))];
    let ends = ends([("i", host_in.into()), ("o", host_out.into())]);
    let mut guest = Guest::new(ports, ends, false);
    guest.greet(1);
    drop(to_guest);
    guest.driver.submit(0, &[], &[100]);
    assert_eq!(guest.hear(), (0, PORT_OPEN, 0, vec![]));
    guest.tell(0, PORT_OPEN, 0);
    assert_eq!(guest.hear(), (0, PORT_OPEN, 1, vec![]));
    guest.tell(0, PORT_OPEN, 1);
    guest.write(0, b"result");
    let mut buf = [0; 16];
    assert_eq!(from_guest.read(&mut buf).unwrap(), 6);
}

#[test]
fn a_socket_port_is_open_while_a_client_is_there() {
    let dir = Dir::new("console-socket");
    let path = dir.file("s");
    let socket = Endpoint::Unix(path.clone());
    let mut guest = Guest::new(
        vec![port(Some("sock"), socket.clone(), socket)],
        HostEnds::new(),
        false,
    );
    guest.handshake(1);
    assert_eq!(guest.hear().1, PORT_NAME);
    guest.tell(0, PORT_OPEN, 1);
    guest.write(0, b"nobody");
    assert_eq!(guest.handle.dropped(), 6);

    for name in [&b"first"[..], b"second"] {
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(guest.hear(), (0, PORT_OPEN, 1, vec![]));
        guest.write(0, name);
        let mut buf = [0; 16];
        let n = client.read(&mut buf).unwrap();
        assert_eq!(&buf[..n], name);
        client.write_all(name).unwrap();
        assert_eq!(guest.read(0, 100), name);
        drop(client);
        assert_eq!(guest.hear(), (0, PORT_OPEN, 0, vec![]));
    }
    assert_eq!(guest.handle.dropped(), 6);
    drop(guest);
    assert!(!path.exists());
}

#[test]
fn a_new_size_reaches_a_plain_console_through_its_configuration() {
    let guest = Guest::new(
        vec![console_port(Endpoint::Null, Endpoint::Null)],
        HostEnds::new(),
        false,
    );
    guest.driver.acknowledge();
    guest.handle.resize(50, 132);
    guest.driver.run();
    assert_eq!(guest.driver.acknowledge() & 2, 2, "configuration interrupt");
    let mut size = [0; 4];
    guest.driver.read_config(0, &mut size);
    assert_eq!(size, [132, 0, 50, 0]);
    guest.driver.run();
    assert_eq!(guest.driver.acknowledge() & 2, 0, "once");
}

#[test]
fn a_new_size_reaches_console_ports_as_a_message_rows_first() {
    let ports = vec![
        port(Some("a"), Endpoint::Null, Endpoint::Null),
        console_port(Endpoint::Null, Endpoint::Null),
    ];
    let mut guest = Guest::new(ports, HostEnds::new(), false);
    guest.handle.resize(1, 1);
    guest.handle.resize(24, 80);
    guest.handshake(2);
    let mut heard = Vec::new();
    for _ in 0..5 {
        heard.push(guest.hear());
    }
    assert!(
        heard.contains(&(1, RESIZE, 1, vec![24, 0, 80, 0])),
        "the size at start: {heard:?}"
    );
    // Thousands of new sizes that the driver has no buffer for: it hears of the last.
    for rows in 0..10_000 {
        guest.handle.resize(rows, 0x102);
        guest.driver.run();
    }
    assert_eq!(guest.hear(), (1, RESIZE, 1, vec![0x0f, 0x27, 0x02, 0x01]));
    guest.driver.submit(2, &[], &[300]);
    assert!(guest.driver.poll(2).is_none());

    let ports = vec![port(Some("a"), Endpoint::Null, Endpoint::Null)];
    let blind = Guest::with_features(ports, HostEnds::new(), false, MULTIPORT);
    blind.driver.acknowledge();
    blind.handle.resize(5, 5);
    blind.driver.run();
    assert_eq!(blind.driver.acknowledge(), 0, "SIZE was not negotiated");
}

#[test]
fn early_output_needs_no_driver() {
    let (mut from_guest, host_out) = pipe().unwrap();
    let spec = ConsoleSpec {
        ports: vec![
            port(Some("x"), Endpoint::Null, Endpoint::Null),
            console_port(Endpoint::Null, given("o")),
        ],
        size: true,
    };
    let log = vsc_devices::console_log::ConsoleLog::new();
    let console = Console::new(&spec, &mut ends([("o", host_out.into())]), Some(&log)).unwrap();
    let config = console.config();
    for &byte in b"boot\n" {
        config.write(8, &u32::from(byte).to_le_bytes());
    }
    config.write(0, &[9; 8]);
    let mut buf = [0; 16];
    assert_eq!(from_guest.read(&mut buf).unwrap(), 5);
    assert_eq!(log.last_lines(3), ["boot"]);
    let mut fixed = [0; 8];
    config.read(0, &mut fixed);
    assert_eq!(fixed, [0, 0, 0, 0, 2, 0, 0, 0], "the rest is read-only");
}

#[test]
fn a_restarted_guest_finds_everything_as_at_first() {
    let (host_in, mut to_guest) = pipe().unwrap();
    let (mut from_guest, host_out) = pipe().unwrap();
    let ports = vec![port(Some("both"), given("i"), given("o"))];
    let ends = ends([("i", host_in.into()), ("o", host_out.into())]);
    let mut guest = Guest::new(ports, ends, false);
    for round in 0..3u8 {
        if round > 0 {
            guest.driver.start(!0);
        }
        guest.greet(1);
        to_guest.write_all(&[round; 5]).unwrap();
        assert_eq!(guest.read(0, 100), [round; 5]);
        guest.write(0, &[round; 7]);
        let mut buf = [9; 16];
        assert_eq!(from_guest.read(&mut buf).unwrap(), 7);
        // Left with the device when the guest restarts.
        guest.driver.submit(0, &[], &[100]);
    }
}

#[test]
fn a_driver_without_multiport_gets_port_zero() {
    let (mut from_guest, host_out) = pipe().unwrap();
    let ports = vec![
        console_port(Endpoint::Null, given("o")),
        port(Some("b"), Endpoint::Null, Endpoint::Null),
    ];
    let ends = ends([("o", host_out.into())]);
    let mut guest = Guest::with_features(ports, ends, false, 0);
    guest.write(0, b"hi");
    assert_eq!(from_guest.read(&mut [0; 8]).unwrap(), 2);
}

#[test]
fn bad_specs_are_refused() {
    let make = |ports| {
        Console::new(
            &ConsoleSpec { ports, size: true },
            &mut HostEnds::new(),
            None,
        )
        .err()
    };
    let null = |name: Option<&str>| port(name, Endpoint::Null, Endpoint::Null);
    assert!(matches!(make(vec![]), Some(ConsoleError::Ports(0))));
    assert!(matches!(
        make(vec![null(None); 32]),
        Some(ConsoleError::Ports(32))
    ));
    assert!(make(vec![null(None); 31]).is_none());
    for bad in ["", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(
            matches!(make(vec![null(Some(bad))]), Some(ConsoleError::Name(_))),
            "{bad:?}"
        );
    }
    let twice = vec![null(Some("a")), null(Some("a"))];
    assert!(matches!(make(twice), Some(ConsoleError::Name(_))));
    let missing = vec![port(Some("a"), given("nothing"), Endpoint::Null)];
    let error = make(missing).unwrap();
    assert_eq!(error.to_string(), "Cannot connect console port a");
}

/// An event loop that ends by a panic drops its devices.
#[test]
fn nobody_waits_for_the_output_of_a_device_that_is_gone() {
    struct Alone;
    impl Watch for Alone {
        fn watch(&mut self, _: RawFd, _: u32, _: Interest) -> std::io::Result<()> {
            Ok(())
        }
        fn unwatch(&mut self, _: RawFd) {}
    }
    struct Silent;
    impl Interrupt for Silent {
        fn queue(&self, _: u16) {}
        fn config(&self) {}
        fn needs_reset(&self, _: &str) {}
    }
    let spec = ConsoleSpec {
        ports: vec![console_port(Endpoint::Null, Endpoint::Null)],
        size: true,
    };
    let mut console = Console::new(&spec, &mut HostEnds::new(), None).unwrap();
    let handle = console.handle();
    let activation = Activation {
        memory: Memory::default(),
        features: 0,
        queues: vec![None, None],
        interrupt: Arc::new(Silent),
    };
    console.activate(activation, &mut Alone).unwrap();
    let (done, finished) = std::sync::mpsc::channel();
    let waiting = handle.clone();
    std::thread::spawn(move || done.send(waiting.finish(Duration::from_secs(60))));
    // Not before it waits (or the drop comes first, which must do as well).
    std::thread::sleep(Duration::from_millis(50));
    drop(console);
    assert_eq!(
        finished.recv_timeout(Duration::from_secs(10)),
        Ok(false),
        "its output is lost"
    );
    assert!(!handle.finish(Duration::from_secs(60)));
}

#[test]
fn a_panic_is_one_only_on_a_console_of_the_kernel() {
    let text = b"[    1.0] Kernel panic - not syncing: said so\n";
    for kernel in [false, true] {
        let spec = PortSpec {
            kernel,
            ..console_port(Endpoint::Null, Endpoint::Null)
        };
        let mut guest = Guest::new(vec![spec], HostEnds::new(), false);
        guest.write(0, text);
        // Early output too.
        for &byte in text {
            guest.driver.write_config(8, &[byte]);
        }
        assert_eq!(guest.log.total(), 2 * text.len() as u64);
        assert_eq!(guest.log.panic(), kernel.then(|| "said so".to_owned()));
    }
}
