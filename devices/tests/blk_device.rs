//! virtio-blk through the registers of the MMIO transport, in front of a disk that remembers what was asked of it.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsc_devices::block::{Completion, Disk, Geometry, Iovecs, Op, Request};
use vsc_devices::virtio::blk::{Blk, BlkOptions, BlkSpec, Cache, Discard, SyncMode};
use vsc_devices::virtio::testing::{Driver, NEXT, WRITE};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const RO: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const WCE: u64 = 1 << 11;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

const SIZE: u64 = 1 << 20;

/// What happened at the disk, and what it is to do next.
#[derive(Default)]
struct Log {
    asked: Vec<(Op, u64, u64)>,
    alone: Vec<bool>,
    submits: usize,
    drains: usize,
    fail: Option<i32>,
    data: Vec<u8>,
    held: Vec<(Request, Iovecs)>,
}

/// A disk in a vector. With an eventfd it holds requests back until the test releases them.
struct Fake {
    geometry: Geometry,
    log: Arc<Mutex<Log>>,
    ready: Option<Arc<EventFd>>,
}

impl Log {
    fn act(&mut self, request: &Request, iovecs: &Iovecs) -> io::Result<()> {
        if let Some(errno) = self.fail {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let range = request.offset as usize..(request.offset + request.len) as usize;
        match request.op {
            Op::Read | Op::Write { .. } => {
                let mut at = range.start;
                for v in iovecs.as_slice() {
                    let disk = self.data[at..at + v.iov_len].as_mut_ptr();
                    let guest = v.iov_base.cast::<u8>();
                    // SAFETY: the vector is mapped guest memory, the other side was just sliced to its length.
                    unsafe {
                        match request.op {
                            Op::Read => std::ptr::copy_nonoverlapping(disk, guest, v.iov_len),
                            _ => std::ptr::copy_nonoverlapping(guest, disk, v.iov_len),
                        }
                    }
                    at += v.iov_len;
                }
                assert_eq!(
                    at, range.end,
                    "the vectors hold exactly the request's bytes"
                );
            }
            Op::Flush => {}
            Op::Discard | Op::WriteZeroes { .. } => self.data[range].fill(0),
        }
        Ok(())
    }

    fn asked(&mut self) -> Vec<(Op, u64, u64)> {
        std::mem::take(&mut self.asked)
    }
}

impl Disk for Fake {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn start(&mut self, request: Request, iovecs: &mut Iovecs) -> Option<io::Result<()>> {
        let mut log = self.log.lock().unwrap();
        log.asked.push((request.op, request.offset, request.len));
        log.alone.push(request.alone);
        if self.ready.is_some() {
            log.held.push((request, std::mem::take(iovecs)));
            return None;
        }
        Some(log.act(&request, iovecs))
    }

    fn submit(&mut self) {
        self.log.lock().unwrap().submits += 1;
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        if let Some(ready) = &self.ready
            && ready.read().is_ok()
        {
            let mut log = self.log.lock().unwrap();
            for (request, iovecs) in std::mem::take(&mut log.held) {
                let result = log.act(&request, &iovecs);
                done.push(Completion {
                    tag: request.tag,
                    result,
                });
            }
        }
    }

    fn ready_fd(&self) -> Option<RawFd> {
        self.ready.as_ref().map(|fd| fd.as_raw_fd())
    }

    fn drain(&mut self, done: &mut Vec<Completion>) {
        let mut log = self.log.lock().unwrap();
        log.drains += 1;
        for (request, iovecs) in std::mem::take(&mut log.held) {
            let result = log.act(&request, &iovecs);
            done.push(Completion {
                tag: request.tag,
                result,
            });
        }
    }
}

struct Bench {
    driver: Driver,
    log: Arc<Mutex<Log>>,
    notes: Arc<Mutex<Vec<String>>>,
    ready: Arc<EventFd>,
}

fn spec() -> BlkSpec {
    BlkSpec {
        id: "serial-of-this-disk!".into(),
        ..BlkSpec::new("/unused")
    }
}

fn bench(spec: &BlkSpec, held: bool) -> Bench {
    let log = Arc::new(Mutex::new(Log {
        data: vec![0; SIZE as usize],
        ..Log::default()
    }));
    let ready = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let disk = Fake {
        geometry: Geometry {
            size: SIZE,
            read_only: spec.read_only,
            physical_block: 4096,
            optimal_io: 65536,
            discard_granularity: 4096,
        },
        log: Arc::clone(&log),
        ready: held.then(|| Arc::clone(&ready)),
    };
    let notes = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notes);
    let options = BlkOptions {
        note: Arc::new(move |text: &str| heard.lock().unwrap().push(text.to_owned())),
        ..BlkOptions::default()
    };
    let blk = Blk::with_disk("disk0", spec, Box::new(disk), options).unwrap();
    Bench {
        driver: Driver::inline(Box::new(blk)),
        log,
        notes,
        ready,
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

impl Bench {
    /// Runs a request; returns status, used length and data.
    fn run(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u8, u32, Vec<u8>) {
        let mut done = self.driver.request(0, readable, writable);
        let status = done.data.pop().expect("room for the status");
        (status, done.written, done.data)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.run(&[&header(1, sector), data], &[1]).0
    }

    fn asked(&self) -> Vec<(Op, u64, u64)> {
        self.log.lock().unwrap().asked()
    }

    fn config(&self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.driver.read_config(offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let spec = BlkSpec {
        num_queues: 3,
        logical_block_size: 512,
        queue_size: 64,
        ..spec()
    };
    let bench = bench(&spec, false);
    assert_eq!(bench.driver.queue_max(2), 64);
    assert_eq!(bench.driver.queue_max(3), 0);
    // VIRTIO 5.2.3: SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES; above them
    // INDIRECT_DESC, EVENT_IDX and VERSION_1 of the transport.
    let bits = [2, 6, 9, 10, 11, 12, 13, 14]
        .iter()
        .fold(0, |bits, b| bits | 1u64 << b);
    assert_eq!(bench.driver.offered() & 0xff_ffff, bits);
    // VIRTIO 5.2.4.
    assert_eq!(bench.config(0, 8), SIZE / 512);
    assert_eq!(bench.config(0x08, 4), 0, "size_max is not offered");
    assert_eq!(bench.config(0x0c, 4), 62);
    assert_eq!(bench.config(0x14, 4), 512);
    assert_eq!(
        bench.config(0x18, 1),
        3,
        "8 logical blocks are a physical one"
    );
    assert_eq!(bench.config(0x1a, 2), 8);
    assert_eq!(bench.config(0x1c, 4), 128);
    assert_eq!(bench.config(0x20, 1), 1);
    assert_eq!(bench.config(0x22, 2), 3);
    assert_eq!(bench.config(0x24, 4), 1 << 22);
    assert_eq!(bench.config(0x28, 4), 16);
    assert_eq!(bench.config(0x2c, 4), 8);
    assert_eq!(bench.config(0x30, 4), 1 << 22);
    assert_eq!(bench.config(0x34, 4), 16);
    assert_eq!(bench.config(0x38, 1), 1);
}

#[test]
fn read_only_disks_offer_nothing_that_writes() {
    let spec = BlkSpec {
        read_only: true,
        ..spec()
    };
    let mut bench = bench(&spec, false);
    let features = bench.driver.start(!0);
    assert_eq!(features & (RO | FLUSH | WCE | DISCARD | WRITE_ZEROES), RO);
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    for kind in [11, 13] {
        assert_eq!(
            bench.run(&[&header(kind, 0), &range(0, 1, 0)], &[1]).0,
            IOERR
        );
    }
    assert_eq!(bench.run(&[&header(4, 0)], &[1]).0, OK);
    assert!(bench.asked().is_empty());
    let (status, written, data) = bench.run(&[&header(0, 0)], &[512, 1]);
    assert_eq!((status, written, data), (OK, 513, vec![0; 512]));
}

/// What reaches the disk for one write and one flush, per cache mode and negotiated features.
#[test]
fn cache_modes_decide_what_is_durable_when() {
    let write = |durable| (Op::Write { durable }, 512, 512);
    let flush = (Op::Flush, 0, 0);
    let both = [write(false), flush];
    let through = [write(true), flush];
    let neither = [write(false)];
    let sync = |cache, sync_mode| BlkSpec {
        cache,
        sync_mode,
        ..spec()
    };
    let table: &[(BlkSpec, u64, Option<u8>, &[(Op, u64, u64)])] = &[
        // The driver flushes: a cache is fine where the host's user allows it.
        (sync(Cache::Writeback, None), FLUSH | WCE, None, &both),
        (sync(Cache::None, None), FLUSH | WCE, None, &both),
        (sync(Cache::Writethrough, None), FLUSH | WCE, None, &through),
        (sync(Cache::Directsync, None), FLUSH | WCE, None, &through),
        (sync(Cache::Unsafe, None), FLUSH | WCE, None, &neither),
        // The driver switches the cache (VIRTIO 5.2.5).
        (sync(Cache::Writeback, None), FLUSH | WCE, Some(0), &through),
        (sync(Cache::Writethrough, None), FLUSH | WCE, Some(1), &both),
        (sync(Cache::Unsafe, None), FLUSH | WCE, Some(0), &neither),
        // ... which it may not without the feature.
        (sync(Cache::Writeback, None), FLUSH, Some(0), &both),
        (sync(Cache::Writethrough, None), FLUSH, Some(1), &through),
        // The driver knows of no cache: every write is stable (VIRTIO 5.2.6.2).
        (sync(Cache::Writeback, None), 0, None, &through),
        (sync(Cache::None, None), 0, None, &through),
        (sync(Cache::Unsafe, None), 0, None, &neither),
        // libkrun's words.
        (
            sync(Cache::Writeback, Some(SyncMode::None)),
            FLUSH | WCE,
            None,
            &neither,
        ),
        (
            sync(Cache::Unsafe, Some(SyncMode::Relaxed)),
            FLUSH | WCE,
            None,
            &both,
        ),
        (
            sync(Cache::Unsafe, Some(SyncMode::Full)),
            FLUSH | WCE,
            None,
            &both,
        ),
    ];
    for (spec, features, switch, expected) in table {
        let mut bench = bench(spec, false);
        let others = !(FLUSH | WCE);
        assert_eq!(
            bench.driver.start(others | features) & (FLUSH | WCE),
            *features
        );
        let writeback = !matches!(spec.cache, Cache::Writethrough | Cache::Directsync);
        assert_eq!(bench.config(0x20, 1), u64::from(writeback));
        if let Some(value) = switch {
            bench.driver.write_config(0x20, &[*value]);
        }
        assert_eq!(bench.write(1, &[1; 512]), OK);
        assert_eq!(bench.run(&[&header(4, 0)], &[1]).0, OK);
        assert_eq!(
            bench.asked(),
            *expected,
            "{spec:?} {features:#x} {switch:?}"
        );
        bench.driver.reset();
        bench.driver.run();
        assert_eq!(
            bench.config(0x20, 1),
            u64::from(writeback),
            "a reset forgets what the driver chose"
        );
    }
}

#[test]
fn parts_of_a_request_may_lie_anywhere_in_the_chain() {
    for indirect in [0, !0] {
        let mut bench = bench(&spec(), false);
        bench.driver.start(indirect & !(1 << 29));
        let data: Vec<u8> = (0..1024u32).map(|i| (i * 7) as u8).collect();
        let head = header(1, 2);
        let whole = [&head[..], &data[..]].concat();
        let layouts: &[&[&[u8]]] = &[
            &[&whole],
            &[&head, &data],
            &[
                &head[..1],
                &head[1..8],
                &head[8..],
                &data[..100],
                &data[100..],
            ],
            &[&whole[..17], &whole[17..18], &whole[18..]],
            &[&head[..4], &whole[4..]],
        ];
        for layout in layouts {
            bench.log.lock().unwrap().data.fill(0);
            let (status, written, _) = bench.run(layout, &[1]);
            assert_eq!((status, written), (OK, 1));
            assert!(bench.log.lock().unwrap().data[1024..2048] == data);
        }
        for layout in [
            &[1024, 1][..],
            &[1025],
            &[1, 1023, 1],
            &[1000, 25],
            &[3, 5, 1017],
        ] {
            let (status, written, read) = bench.run(&[&header(0, 2)], layout);
            assert_eq!((status, written), (OK, 1025), "{layout:?}");
            assert!(read == data, "{layout:?}");
        }
    }
}

#[test]
fn the_serial_number_fills_what_room_there_is() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let serial = b"serial-of-this-disk!";
    let (status, written, data) = bench.run(&[&header(8, 0)], &[20, 1]);
    assert_eq!((status, written, &data[..]), (OK, 21, &serial[..]));
    let (status, written, data) = bench.run(&[&header(8, 0)], &[7, 2]);
    assert_eq!((status, written, &data[..]), (OK, 9, &serial[..8]));
    let (status, written, data) = bench.run(&[&header(8, 0)], &[30]);
    assert_eq!((status, written, &data[..20]), (OK, 20, &serial[..]));
    assert!(data[20..].iter().all(|&b| b == 0xee));
    assert_eq!(bench.run(&[&header(8, 0)], &[1]).0, OK);

    let mut bench = self::bench(
        &BlkSpec {
            id: "vda".into(),
            ..spec()
        },
        false,
    );
    bench.driver.start(!0);
    let (_, _, data) = bench.run(&[&header(8, 0)], &[20, 1]);
    assert_eq!(data, b"vda\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn wrong_requests_get_an_error_and_never_reach_the_disk() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let sectors = SIZE / 512;
    let sector = [0; 512];
    for (what, at) in [
        ("end", sectors),
        ("past it", u64::MAX),
        ("wrapping", u64::MAX / 512 + 1),
    ] {
        assert_eq!(bench.write(at, &sector), IOERR, "{what}");
        assert_eq!(bench.run(&[&header(0, at)], &[512, 1]).0, IOERR, "{what}");
    }
    assert_eq!(bench.write(sectors - 1, &[0; 1024]), IOERR);
    assert_eq!(bench.write(0, &[0; 511]), IOERR);
    assert_eq!(bench.write(0, &[0; 513]), IOERR);
    assert_eq!(bench.run(&[&header(0, 0)], &[511, 1]).0, IOERR);
    assert_eq!(
        bench.run(&[&header(0, 0)[..15]], &[512, 1]).0,
        IOERR,
        "a short header"
    );
    assert_eq!(bench.run(&[], &[512, 1]).0, IOERR, "no header");
    let (status, written, data) = bench.run(&[&header(0, sectors)], &[512, 1]);
    assert_eq!(
        (status, written),
        (IOERR, 0),
        "nothing of the data was written"
    );
    assert!(data.iter().all(|&b| b == 0xee));
    // SCSI, secure erase, zones, barriers, and what nobody has thought of.
    for kind in [2, 3, 5, 9, 14, 15, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(
            bench.run(&[&header(kind, 0), &sector], &[1]).0,
            UNSUPP,
            "{kind}"
        );
    }
    assert!(bench.asked().is_empty());
    assert_eq!(
        bench.run(&[&header(0, 0)], &[1]).0,
        OK,
        "nothing is read, which is possible"
    );
    assert!(bench.asked().is_empty());
    assert!(!bench.driver.needs_reset() && bench.notes.lock().unwrap().is_empty());

    bench.driver.submit(0, &[&header(1, 0), &sector], &[]);
    assert_eq!(bench.driver.poll(0), None);
    assert!(
        bench.driver.needs_reset(),
        "an error could not even be reported"
    );
    assert!(
        bench
            .driver
            .log()
            .concat()
            .contains("has no room for its status")
    );
    bench.driver.start(!0);
    assert_eq!(bench.write(0, &sector), OK);
}

#[test]
fn discards_and_zeroes_are_checked_range_by_range() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let sectors = SIZE / 512;
    let run = |bench: &mut Bench, kind, ranges: &[Vec<u8>]| {
        let ranges = ranges.concat();
        let parts: &[&[u8]] = &[&header(kind, 0), &ranges];
        let status = bench
            .run(&parts[..1 + usize::from(!ranges.is_empty())], &[1])
            .0;
        (status, bench.asked())
    };
    let zeroes = |unmap| Op::WriteZeroes {
        unmap,
        durable: false,
    };
    assert_eq!(
        run(
            &mut bench,
            13,
            &[range(1, 2, 0), range(8, 1, 1), range(0, 0, 0)]
        ),
        (
            OK,
            vec![
                (zeroes(false), 512, 1024),
                (zeroes(true), 4096, 512),
                (zeroes(false), 0, 0)
            ]
        )
    );
    assert_eq!(
        run(&mut bench, 11, &[range(sectors - 1, 1, 0)]),
        (OK, vec![(Op::Discard, SIZE - 512, 512)])
    );
    let many = vec![range(0, 1, 0); 16];
    assert_eq!(run(&mut bench, 11, &many).1.len(), 16);

    let refused = |status| (status, vec![]);
    assert_eq!(run(&mut bench, 11, &[]), refused(IOERR));
    assert_eq!(
        run(&mut bench, 11, &vec![range(0, 1, 0); 17]),
        refused(IOERR)
    );
    assert_eq!(
        run(&mut bench, 11, &[range(0, 1, 0)[..15].to_vec()]),
        refused(IOERR)
    );
    for kind in [11, 13] {
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 0), range(sectors, 1, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(u64::MAX, 1, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(0, u32::MAX, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 2)]),
            refused(UNSUPP),
            "an unknown flag"
        );
    }
    assert_eq!(
        run(&mut bench, 11, &[range(0, 1, 1)]),
        refused(UNSUPP),
        "unmap is not for discards"
    );

    bench.driver.start(!(DISCARD | WRITE_ZEROES));
    for kind in [11, 13] {
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 0)]),
            refused(UNSUPP),
            "not negotiated"
        );
    }
    let ignore = BlkSpec {
        discard: Discard::Ignore,
        ..spec()
    };
    let mut bench = self::bench(&ignore, false);
    assert_eq!(
        bench.driver.start(!0) & (DISCARD | WRITE_ZEROES),
        WRITE_ZEROES
    );
    assert_eq!(
        (
            bench.config(0x24, 4),
            bench.config(0x28, 4),
            bench.config(0x38, 1)
        ),
        (0, 0, 0)
    );
    let through = BlkSpec {
        cache: Cache::Writethrough,
        ..spec()
    };
    let mut bench = self::bench(&through, false);
    bench.driver.start(!0);
    let durable = Op::WriteZeroes {
        unmap: true,
        durable: true,
    };
    assert_eq!(
        run(&mut bench, 13, &[range(0, 1, 1)]),
        (OK, vec![(durable, 0, 512)])
    );
}

#[test]
fn ranges_of_one_request_run_one_after_the_other() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    let ranges = [range(0, 1, 0), range(4, 1, 0), range(8, 1, 0)].concat();
    bench.driver.submit(0, &[&header(11, 0), &ranges], &[1]);
    for n in 1..=3 {
        assert_eq!(bench.driver.poll(0), None);
        assert_eq!(bench.log.lock().unwrap().asked.len(), n);
        bench.ready.write(1).unwrap();
    }
    assert_eq!(bench.driver.wait(0).data, [OK]);

    bench.driver.submit(0, &[&header(11, 0), &ranges], &[1]);
    assert_eq!(bench.driver.poll(0), None);
    bench.log.lock().unwrap().fail = Some(libc::EIO);
    bench.ready.write(1).unwrap();
    assert_eq!(
        bench.driver.wait(0).data,
        [IOERR],
        "the first failure ends the request"
    );
    assert_eq!(bench.asked().len(), 3 + 1);
}

#[test]
fn failures_of_the_host_are_errors_to_the_guest_counted_and_said_once() {
    for (errno, text) in [
        (libc::ENOSPC, "No space left"),
        (libc::EIO, "Input/output error"),
    ] {
        for held in [false, true] {
            let spec = spec();
            let mut bench = bench(&spec, held);
            bench.driver.start(!0);
            bench.log.lock().unwrap().fail = Some(errno);
            for i in 0..3 {
                bench.driver.submit(0, &[&header(1, i), &[0; 512]], &[1]);
                bench.driver.run();
                bench.ready.write(1).unwrap();
                assert_eq!(bench.driver.wait(0).data, [IOERR]);
            }
            let notes = bench.notes.lock().unwrap().clone();
            assert_eq!(notes.len(), 1);
            assert!(
                notes[0].starts_with("disk0: the host failed a write at byte 0: "),
                "{notes:?}"
            );
            assert!(notes[0].contains(text));
            bench.log.lock().unwrap().fail = None;
            assert!(!bench.driver.needs_reset());
        }
    }
}

#[test]
fn counters_tell_what_was_done() {
    let log = Arc::new(Mutex::new(Log {
        data: vec![0; SIZE as usize],
        ..Log::default()
    }));
    let geometry = Geometry {
        size: SIZE,
        read_only: false,
        physical_block: 512,
        optimal_io: 0,
        discard_granularity: 512,
    };
    let disk = Fake {
        geometry,
        log: Arc::clone(&log),
        ready: None,
    };
    let blk = Blk::with_disk("disk0", &spec(), Box::new(disk), BlkOptions::default()).unwrap();
    let counters = blk.counters();
    let mut driver = Driver::inline(Box::new(blk));
    driver.start(!0);
    driver.request(0, &[&header(1, 0), &[0; 1024]], &[1]);
    driver.request(0, &[&header(0, 0)], &[512, 1]);
    driver.request(0, &[&header(0, u64::MAX)], &[512, 1]);
    log.lock().unwrap().fail = Some(libc::EIO);
    driver.request(0, &[&header(4, 0)], &[1]);
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counters.requests), 4);
    assert_eq!(get(&counters.written_bytes), 1024);
    assert_eq!(get(&counters.read_bytes), 512);
    assert_eq!(get(&counters.errors), 1);
}

#[test]
fn a_full_queue_is_in_flight_at_once_and_ends_with_one_interrupt() {
    let spec = BlkSpec {
        queue_size: 128,
        ..spec()
    };
    let mut bench = bench(&spec, true);
    bench.driver.start(!0);
    for i in 0..128u32 {
        bench
            .driver
            .add(0, &[&header(1, u64::from(i)), &[i as u8; 512]], &[1]);
    }
    bench.driver.kick(0);
    assert_eq!(bench.driver.poll(0), None);
    {
        let log = bench.log.lock().unwrap();
        assert_eq!(log.held.len(), 128);
        assert!(log.alone.iter().all(|alone| !alone));
        assert!(log.submits <= 2, "{} submissions for one kick", log.submits);
    }
    let before = bench.driver.counters().interrupts;
    bench.ready.write(1).unwrap();
    for _ in 0..128 {
        assert_eq!(bench.driver.wait(0).data, [OK]);
    }
    assert_eq!(bench.driver.counters().interrupts - before, 1);
    let data = bench.log.lock().unwrap().data.clone();
    assert!((0..128).all(|i| data[i * 512..][..512].iter().all(|&b| b == i as u8)));
}

#[test]
fn a_request_without_company_is_known_as_such() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    bench.driver.submit(0, &[&header(0, 0)], &[512, 1]);
    bench.driver.run();
    bench.driver.submit(0, &[&header(0, 0)], &[512, 1]);
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().alone, [true, false]);
}

#[test]
fn every_queue_answers_on_its_own() {
    let spec = BlkSpec {
        num_queues: 4,
        queue_size: 16,
        ..spec()
    };
    let mut bench = bench(&spec, true);
    bench.driver.start(!0);
    for queue in 0..4u16 {
        bench.driver.submit(
            queue,
            &[&header(1, queue.into()), &[queue as u8 + 1; 512]],
            &[1],
        );
    }
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().held.len(), 4);
    bench.ready.write(1).unwrap();
    for queue in (0..4).rev() {
        assert_eq!(bench.driver.wait(queue).data, [OK]);
    }
    let log = bench.log.lock().unwrap();
    assert!((0..4).all(|i| log.data[i * 512] == i as u8 + 1));
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_then_leaves_memory_alone() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    for i in 0..8 {
        bench.driver.add(0, &[&header(0, i)], &[512, 1]);
    }
    bench.driver.kick(0);
    bench.driver.run();
    assert_eq!(bench.log.lock().unwrap().held.len(), 8);
    bench.driver.reset();
    {
        let log = bench.log.lock().unwrap();
        assert_eq!(
            (log.held.len(), log.drains),
            (0, 1),
            "reads ended before the reset did"
        );
    }
    let fill = vec![0x5a; 1 << 20];
    bench
        .driver
        .memory
        .write_slice(&fill, GuestAddress(0))
        .unwrap();
    bench.ready.write(1).unwrap();
    bench.driver.run();
    let mut now = vec![0; 1 << 20];
    bench
        .driver
        .memory
        .read_slice(&mut now, GuestAddress(0))
        .unwrap();
    assert!(now == fill);

    // And it works again.
    bench.driver.start(!0);
    bench.driver.submit(0, &[&header(1, 7), &[3; 512]], &[1]);
    bench.driver.run();
    bench.ready.write(1).unwrap();
    assert_eq!(bench.driver.wait(0).data, [OK]);
}

#[test]
fn long_batches_let_other_devices_have_a_turn() {
    let mut bench = bench(
        &BlkSpec {
            queue_size: 256,
            ..spec()
        },
        false,
    );
    bench.driver.start(!(1 << 28 | 1 << 29));
    let ring = bench.driver.ring(0).clone();
    // 80 reads of 1 MiB each, all into the same memory: more than a turn's 64 MiB.
    let head = bench.driver.alloc(16, 16);
    let data = bench.driver.alloc(SIZE, 4096);
    let status = bench.driver.alloc(80, 1);
    bench
        .driver
        .memory
        .write_slice(&header(0, 0), GuestAddress(head))
        .unwrap();
    bench
        .driver
        .memory
        .write_slice(&[0xff; 80], GuestAddress(status))
        .unwrap();
    for i in 0..80u16 {
        let d = 3 * i;
        bench
            .driver
            .describe(ring.descriptors, d, head, 16, NEXT, d + 1);
        bench.driver.describe(
            ring.descriptors,
            d + 1,
            data,
            SIZE as u32,
            NEXT | WRITE,
            d + 2,
        );
        bench
            .driver
            .describe(ring.descriptors, d + 2, status + u64::from(i), 1, WRITE, 0);
        bench.driver.offer(0, d);
    }
    bench.driver.notify(0);
    assert!(bench.driver.run() >= 2, "the loop saw the disk twice");
    let mut statuses = [0xff; 80];
    bench
        .driver
        .memory
        .read_slice(&mut statuses, GuestAddress(status))
        .unwrap();
    assert_eq!(statuses, [OK; 80]);
    assert_eq!(bench.asked().len(), 80);
}

#[test]
fn a_quiet_device_wakes_for_nothing() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    assert_eq!(bench.write(0, &[1; 512]), OK);
    assert_eq!(bench.driver.run(), 0);
    let before = bench.driver.counters();
    for i in 0..10 {
        // Asks for the next interrupt.
        assert_eq!(bench.driver.poll(0), None);
        assert_eq!(bench.write(i, &[1; 512]), OK);
    }
    let after = bench.driver.counters();
    assert_eq!(
        after.interrupts - before.interrupts,
        10,
        "one interrupt per request"
    );
    assert_eq!(after.kicks - before.kicks, 10, "one wake-up per request");
}
