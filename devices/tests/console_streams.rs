//! virtio-console under load: much data, slow and absent readers, many kinds of descriptors.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod console_common;

use std::fs;
use std::io::{Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::thread;

use console_common::*;
use vsc_devices::stream::{Endpoint, InputFilter};
use vsc_devices::virtio::console::{Console, ConsoleSpec};
use vsc_devices::virtio::testing::Driver;

const BULK: usize = 100 << 20;

/// Bytes number `at..at + buf.len()` of a stream that does not repeat within 2^32 bytes.
fn pattern(at: usize, buf: &mut [u8]) {
    let mut i = 0;
    while i < buf.len() {
        let word = ((at + i) / 8) as u64;
        let bytes = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let from = (at + i) % 8;
        let n = (8 - from).min(buf.len() - i);
        buf[i..i + n].copy_from_slice(&bytes[from..from + n]);
        i += n;
    }
}

fn check(at: usize, data: &[u8]) {
    let mut expected = vec![0; data.len()];
    pattern(at, &mut expected);
    assert!(
        data == expected,
        "byte {at} and the {} after it differ",
        data.len()
    );
}

/// Writes the whole pattern in pieces of random size.
fn produce(mut out: impl Write, total: usize) {
    let (mut noise, mut at, mut buf) = (Noise(77), 0, vec![0; 200_000]);
    while at < total {
        let n = (1 + noise.below(200_000) as usize).min(total - at);
        pattern(at, &mut buf[..n]);
        out.write_all(&buf[..n]).unwrap();
        at += n;
    }
}

/// Reads and checks the whole pattern in pieces of random size.
fn consume(mut input: impl Read, total: usize) {
    let (mut noise, mut at, mut buf) = (Noise(99), 0, vec![0; 200_000]);
    while at < total {
        let n = 1 + noise.below(200_000) as usize;
        let n = input.read(&mut buf[..n]).unwrap();
        assert!(n > 0, "ended after {at}");
        check(at, &buf[..n]);
        at += n;
    }
}

/// The guest writes the pattern in chains of random shape, several in flight.
fn guest_writes(guest: &mut Guest, port: u16, total: usize) {
    let queue = guest.output_queue(port);
    let (mut noise, mut at) = (Noise(5), 0);
    while at < total {
        let mut in_flight = 0;
        for _ in 0..1 + noise.below(12) {
            let mut parts = Vec::new();
            for _ in 0..1 + noise.below(4) {
                let mut part = vec![0; (1 + noise.below(40_000) as usize).min(total - at)];
                pattern(at, &mut part);
                at += part.len();
                if !part.is_empty() {
                    parts.push(part);
                }
            }
            let parts: Vec<&[u8]> = parts.iter().map(|p| &p[..]).collect();
            if !parts.is_empty() {
                guest.driver.submit(queue, &parts, &[]);
                in_flight += 1;
            }
        }
        for _ in 0..in_flight {
            guest.driver.wait(queue);
        }
    }
}

/// The guest reads the pattern into chains of random shape, several in flight.
fn guest_reads(guest: &mut Guest, port: u16, total: usize) {
    let queue = guest.input_queue(port);
    let (mut noise, mut at) = (Noise(6), 0);
    while at < total {
        let (mut in_flight, mut room) = (0, total - at);
        for _ in 0..1 + noise.below(12) {
            // No more room than data to come, so that every buffer comes back.
            let mut parts = Vec::new();
            for _ in 0..1 + noise.below(4) {
                let part = (1 + noise.below(40_000) as usize).min(room);
                room -= part;
                if part > 0 {
                    parts.push(part as u32);
                }
            }
            if !parts.is_empty() {
                guest.driver.submit(queue, &[], &parts);
                in_flight += 1;
            }
        }
        for _ in 0..in_flight {
            let done = guest.driver.wait(queue);
            let data = &done.data[..done.written as usize];
            check(at, data);
            at += data.len();
        }
    }
}

#[test]
fn a_hundred_megabytes_arrive_on_the_host_through_a_pipe() {
    let (from_guest, host_out) = pipe().unwrap();
    let ports = vec![port(Some("out"), Endpoint::Null, given("o"))];
    let mut guest = Guest::new(ports, ends([("o", host_out.into())]), true);
    guest.greet(1);
    let reader = thread::spawn(move || consume(from_guest, BULK));
    guest_writes(&mut guest, 0, BULK);
    reader.join().unwrap();
    assert_eq!(guest.handle.dropped(), 0);
}

#[test]
fn a_hundred_megabytes_arrive_in_the_guest_through_a_pipe() {
    let (host_in, to_guest) = pipe().unwrap();
    let ports = vec![port(Some("in"), given("i"), Endpoint::Null)];
    let mut guest = Guest::new(ports, ends([("i", host_in.into())]), true);
    guest.greet(1);
    let writer = thread::spawn(move || produce(to_guest, BULK));
    guest_reads(&mut guest, 0, BULK);
    writer.join().unwrap();
    guest.driver.submit(0, &[], &[1]);
    assert_eq!(guest.hear(), (0, PORT_OPEN, 0, vec![]), "then it ends");
}

#[test]
fn a_socket_carries_both_directions_without_indirect_descriptors_and_event_idx() {
    let (host, end) = UnixStream::pair().unwrap();
    let ports = vec![port(Some("both"), given("s"), given("s"))];
    let ends = ends([("s", end.into())]);
    let mut guest = Guest::with_features(ports, ends, true, MULTIPORT);
    guest.greet(1);
    let (reads, writes) = (host.try_clone().unwrap(), host);
    let reader = thread::spawn(move || consume(reads, 8 << 20));
    let writer = thread::spawn(move || produce(writes, 8 << 20));
    guest_writes(&mut guest, 0, 8 << 20);
    guest_reads(&mut guest, 0, 8 << 20);
    reader.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn a_reader_that_does_not_read_stops_its_own_port_only() {
    let (mut slow, slow_out) = pipe().unwrap();
    let (mut fast, fast_out) = pipe().unwrap();
    let ports = vec![
        port(Some("slow"), Endpoint::Null, given("s")),
        port(Some("fast"), Endpoint::Null, given("f")),
    ];
    let ends = ends([("s", slow_out.into()), ("f", fast_out.into())]);
    let mut guest = Guest::new(ports, ends, false);
    guest.greet(2);
    let mut text = vec![0; 300_000];
    pattern(0, &mut text);
    for part in text.chunks(30_000) {
        guest.driver.submit(1, &[part], &[]);
    }
    let mut taken = 0;
    while guest.driver.poll(1).is_some() {
        taken += 1;
    }
    assert!(
        taken <= 2,
        "a pipe holds 64 KiB, not {taken} buffers of 30000 bytes"
    );
    guest.write(1, b"not held up");
    assert_eq!(fast.read(&mut [0; 64]).unwrap(), 11);

    let mut got = Vec::new();
    let mut buf = [0; 10_000];
    while got.len() < text.len() {
        guest.driver.run();
        let n = slow.read(&mut buf).unwrap();
        got.extend_from_slice(&buf[..n]);
    }
    assert!(got == text, "output differs");
    for _ in taken..10 {
        guest.driver.wait(1);
    }
}

#[test]
fn output_for_a_reader_that_left_is_taken_logged_counted_and_dropped() {
    let (reader, host_out) = pipe().unwrap();
    let mut spec = port(Some("out"), Endpoint::Null, given("o"));
    spec.log = true;
    let mut guest = Guest::new(vec![spec], ends([("o", host_out.into())]), false);
    guest.greet(1);
    guest.write(0, b"heard\n");
    drop(reader);
    for _ in 0..100 {
        guest.write(0, &[b'x'; 1000]);
    }
    assert_eq!(guest.handle.dropped(), 100_000);
    assert_eq!(guest.log.total(), 100_006);
    guest.driver.submit(2, &[], &[300]);
    assert!(
        guest.driver.poll(2).is_none(),
        "a closed port would make writers wait for ever"
    );
}

#[test]
fn files_and_devices_that_epoll_refuses_work() {
    let dir = Dir::new("console-files");
    let mut text = vec![0; 3_000_000];
    pattern(0, &mut text);
    fs::write(dir.file("in"), &text).unwrap();
    let null = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let ports = vec![
        port(
            Some("file"),
            Endpoint::File(dir.file("in")),
            Endpoint::File(dir.file("out")),
        ),
        port(Some("null"), given("n"), given("n")),
    ];
    let mut guest = Guest::new(ports, ends([("n", null.into())]), false);
    guest.greet(2);
    guest_reads(&mut guest, 0, text.len());
    guest_writes(&mut guest, 0, text.len());
    assert!(fs::read(dir.file("out")).unwrap() == text, "output differs");
    guest.driver.submit(0, &[], &[10]);
    assert_eq!(
        guest.hear(),
        (0, PORT_OPEN, 0, vec![]),
        "the file has ended"
    );

    guest.write(1, &text[..100_000]);
    guest.driver.submit(4, &[], &[10]);
    assert_eq!(
        guest.hear(),
        (1, PORT_OPEN, 0, vec![]),
        "/dev/null has no input"
    );
}

#[test]
fn a_filter_may_take_bytes_out_and_put_bytes_in() {
    struct Double;
    impl InputFilter for Double {
        fn filter(&mut self, bytes: &mut Vec<u8>) {
            *bytes = bytes
                .iter()
                .filter(|&&b| b != b'!')
                .flat_map(|&b| [b, b])
                .collect();
        }
    }
    let (host_in, mut to_guest) = pipe().unwrap();
    let spec = ConsoleSpec {
        ports: vec![console_port(given("i"), Endpoint::Null)],
        size: true,
    };
    let mut console = Console::new(&spec, &mut ends([("i", host_in.into())]), None).unwrap();
    console.set_filter(0, Box::new(Double));
    console.set_filter(7, Box::new(Double));
    let mut driver = Driver::inline(Box::new(console));
    driver.start(!0);
    to_guest.write_all(b"!!!").unwrap();
    driver.run();
    to_guest.write_all(b"ab!c").unwrap();
    let mut got = Vec::new();
    while got.len() < 6 {
        let done = driver.request(0, &[], &[1, 1]);
        got.extend_from_slice(&done.data[..done.written as usize]);
    }
    assert_eq!(got, b"aabbcc");
}

#[test]
fn broken_standard_output_is_told_and_waits_for_the_guest_to_close_it() {
    // In a process of its own: this test, run again.
    if std::env::var_os("VSC_TEST_BROKEN_STDOUT").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("broken_standard_output_is_told_and_waits_for_the_guest_to_close_it")
            .env("VSC_TEST_BROKEN_STDOUT", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("every step was taken"), "{said}");
        return;
    }
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    // SAFETY: a plain system call; the process exists for this alone.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&writer), 1) };
    let spec = port(Some("out"), Endpoint::Null, Endpoint::Stdout);
    let mut guest = Guest::new(vec![spec], ends([]), false);
    guest.greet(1);
    guest.driver.submit(1, &[b"lost"], &[]);
    assert_eq!(guest.hear(), (0, PORT_OPEN, 0, vec![]));
    guest.driver.run();
    assert!(guest.driver.poll(1).is_none(), "held");
    guest.tell(0, PORT_OPEN, 0);
    guest.driver.wait(1);
    assert_eq!(guest.handle.dropped(), 4);
    eprintln!("every step was taken");
}
