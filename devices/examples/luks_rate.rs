//! How fast an encrypted disk is beside a raw one: `cargo run --release --example luks_rate -- DIRECTORY`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example")]

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use vsc_devices::block::luks::{Draft, LuksDisk, PAYLOAD};
use vsc_devices::block::raw::{RawFile, RawOptions};
use vsc_devices::block::{Disk, Iovecs, Op, Request};
use vsc_devices::secret::Passphrase;

const SIZE: u64 = 256 << 20;

/// Runs over the disk once, `depth` requests at a time; seconds.
fn pass(disk: &mut dyn Disk, op: Op, length: u64, depth: u32) -> f64 {
    let mut buffers: Vec<Vec<u8>> = (0..depth).map(|n| vec![n as u8; length as usize]).collect();
    let (mut next, mut free, mut done) = (0, (0..depth).collect::<Vec<_>>(), Vec::new());
    let from = Instant::now();
    while next < SIZE || free.len() < depth as usize {
        while next < SIZE
            && let Some(tag) = free.pop()
        {
            let buffer = &mut buffers[tag as usize];
            let mut iovecs = Iovecs::default();
            iovecs.inner().push(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            });
            let alone = depth == 1;
            let request = Request {
                tag,
                op,
                offset: next,
                len: length,
                alone,
            };
            next += length;
            // SAFETY: the buffers live until all requests have ended.
            if let Some(result) = unsafe { disk.start(request, &mut iovecs) } {
                result.unwrap();
                free.push(tag);
            }
        }
        disk.submit();
        disk.reap(&mut done);
        if done.is_empty() && free.is_empty() || next >= SIZE && free.len() < depth as usize {
            if let Some(fd) = disk.ready_fd() {
                let mut poll = libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                };
                if done.is_empty() {
                    // SAFETY: one entry, ours.
                    unsafe { libc::poll(&raw mut poll, 1, 1000) };
                }
            }
            disk.reap(&mut done);
        }
        for completion in done.drain(..) {
            completion.result.unwrap();
            free.push(completion.tag);
        }
    }
    from.elapsed().as_secs_f64()
}

fn main() {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "/dev/shm".into());
    let directory = Path::new(&directory);
    let (plain, container) = (directory.join("rate.raw"), directory.join("rate.luks"));
    let passphrase = Passphrase::copy(b"secret").unwrap();
    File::create(&plain).unwrap().set_len(SIZE).unwrap();
    let file = File::create(&container).unwrap();
    file.set_len(PAYLOAD + SIZE).unwrap();
    let time = Duration::from_millis(10);
    Draft {
        passphrase: &passphrase,
        time,
    }
    .write(&file)
    .unwrap();
    drop(file);
    let mut disks: [(&str, Box<dyn Disk>); 2] = [
        (
            "raw",
            Box::new(RawFile::open(&plain, RawOptions::default()).unwrap()),
        ),
        (
            "luks",
            Box::new(LuksDisk::open(&container, &RawOptions::default(), &passphrase).unwrap()),
        ),
    ];
    for (name, disk) in &mut disks {
        for (what, op) in [("write", Op::Write { durable: false }), ("read", Op::Read)] {
            for (length, depth) in [
                (1 << 20, 1),
                (1 << 20, 8),
                (64 << 10, 32),
                (4096, 1),
                (4096, 32),
            ] {
                let best = (0..3)
                    .map(|_| pass(disk.as_mut(), op, length, depth))
                    .fold(f64::MAX, f64::min);
                let rate = SIZE as f64 / best / 1e6;
                let each = best / (SIZE / length) as f64 * 1e6;
                println!(
                    "{name:5} {what:5} {:5} KiB x {depth:2}: {rate:8.0} MB/s {each:8.1} us each",
                    length >> 10
                );
            }
        }
    }
    std::fs::remove_file(plain).unwrap();
    std::fs::remove_file(container).unwrap();
}
