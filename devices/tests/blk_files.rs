//! virtio-blk on real image files, on a loop of its own: integrity against a model with many requests in flight, every
//! cache mode, both engines, and resets in the middle of it.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vsc_devices::block::OpenError;
use vsc_devices::block::raw::EngineChoice;
use vsc_devices::virtio::blk::{Blk, BlkError, BlkOptions, BlkSpec, Cache};
use vsc_devices::virtio::testing::Driver;

const OK: u8 = 0;
const SECTORS: u64 = 512;
const CACHES: [Cache; 5] = [
    Cache::None,
    Cache::Writeback,
    Cache::Writethrough,
    Cache::Directsync,
    Cache::Unsafe,
];

struct Image(PathBuf);

impl Image {
    fn new(memory: bool, len: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let program = std::env::current_exe().unwrap();
        let dir = if memory {
            Path::new("/dev/shm")
        } else {
            program.parent().unwrap()
        };
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("vsc-blk-{}-{n}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn open(spec: &BlkSpec, engine: EngineChoice) -> Driver {
    polling(spec, engine, Duration::ZERO)
}

fn polling(spec: &BlkSpec, engine: EngineChoice, poll: Duration) -> Driver {
    let options = BlkOptions {
        engine,
        poll,
        ..BlkOptions::default()
    };
    Driver::threaded(Box::new(Blk::open("disk0", spec, options).unwrap()))
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, count: u64, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&(count as u32).to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        sector: u64,
        count: u64,
        byte: u8,
    },
    Read {
        sector: u64,
        count: u64,
    },
    Zero {
        sector: u64,
        count: u64,
        unmap: bool,
    },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place =
        (0..SECTORS, 1..40u64).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)));
    let step = prop_oneof![
        3 => (place.clone(), any::<u8>()).prop_map(|((sector, count), byte)| Step::Write { sector, count, byte }),
        3 => place.clone().prop_map(|(sector, count)| Step::Read { sector, count }),
        1 => (place, any::<bool>()).prop_map(|((sector, count), unmap)| Step::Zero { sector, count, unmap }),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..60)
}

/// Runs the steps with as many in flight as do not touch each other's sectors.
fn play(driver: &mut Driver, steps: &[Step], model: &mut [u8], parts: usize) {
    let mut busy: Vec<(u64, u64)> = Vec::new();
    let mut expected = std::collections::HashMap::new();
    let settle = |driver: &mut Driver,
                  expected: &mut std::collections::HashMap<u16, Option<Vec<u8>>>| {
        while !expected.is_empty() {
            let mut done = driver.wait(0);
            let wanted = expected.remove(&done.head).expect("a head in flight");
            assert_eq!(done.data.pop(), Some(OK));
            if let Some(wanted) = wanted {
                assert!(done.data == wanted, "other data than was written");
            }
        }
    };
    for step in steps {
        let (sector, count) = match *step {
            Step::Write { sector, count, .. } | Step::Read { sector, count } => (sector, count),
            Step::Zero { sector, count, .. } => (sector, count),
            Step::Flush => (0, 0),
        };
        let clash = busy
            .iter()
            .any(|&(s, c)| s < sector + count && sector < s + c);
        if clash || expected.len() > 40 {
            settle(driver, &mut expected);
            busy.clear();
        }
        busy.push((sector, count));
        let bytes = (sector * 512) as usize..((sector + count) * 512) as usize;
        let (head, data) = match *step {
            Step::Write { byte, .. } => {
                for (i, b) in model[bytes.clone()].iter_mut().enumerate() {
                    *b = byte.wrapping_add((i / 512) as u8);
                }
                let head = header(1, sector);
                let data = &model[bytes];
                let cut = (data.len() / parts).max(1);
                let mut list: Vec<&[u8]> = vec![&head];
                list.extend(data.chunks(cut));
                (driver.submit(0, &list, &[1]), None)
            }
            Step::Read { .. } => {
                let len = bytes.len();
                let cut = len / parts;
                let mut list = vec![cut as u32; parts - 1];
                list.push((len - cut * (parts - 1)) as u32);
                list.push(1);
                let wanted = model[bytes].to_vec();
                (driver.submit(0, &[&header(0, sector)], &list), Some(wanted))
            }
            Step::Zero { unmap, .. } => {
                model[bytes].fill(0);
                let range = range(sector, count, unmap.into());
                (driver.submit(0, &[&header(13, 0), &range], &[1]), None)
            }
            Step::Flush => (driver.submit(0, &[&header(4, 0)], &[1]), None),
        };
        expected.insert(head, data);
    }
    settle(driver, &mut expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(steps in steps(), memory: bool, threads: bool, poll in 0..2u64, parts in 1..5usize, features: u64) {
        let engine = if threads { EngineChoice::Threads } else { EngineChoice::Auto };
        for cache in CACHES {
            let image = Image::new(memory, SECTORS * 512);
            let spec = BlkSpec { cache, ..BlkSpec::new(&image.0) };
            let mut driver = polling(&spec, engine, Duration::from_micros(100 * poll));
            // Write-zeroes is used; all else may be missing.
            driver.start(features | 1 << 14);
            let mut model = vec![0; (SECTORS * 512) as usize];
            play(&mut driver, &steps, &mut model, parts);
            driver.reset();
            prop_assert!(std::fs::read(&image.0).unwrap() == model, "{cache:?}");
        }
    }
}

#[test]
fn a_hundred_and_twenty_eight_direct_reads_are_in_flight() {
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        let image = Image::new(false, 0);
        let data: Vec<u8> = (0..128u32 * 4096)
            .map(|i| (i / 4096) as u8 ^ (i % 251) as u8)
            .collect();
        std::fs::write(&image.0, &data).unwrap();
        let spec = BlkSpec {
            cache: Cache::None,
            queue_size: 128,
            ..BlkSpec::new(&image.0)
        };
        let mut driver = open(&spec, engine);
        driver.start(!0);
        for round in 0..20u64 {
            let mut heads = std::collections::HashMap::new();
            for i in 0..128u64 {
                let block = (i * 37 + round) % 128;
                heads.insert(
                    driver.add(0, &[&header(0, block * 8)], &[4096, 1]),
                    block as usize,
                );
            }
            driver.kick(0);
            for _ in 0..128 {
                let done = driver.wait(0);
                let block = heads.remove(&done.head).unwrap();
                assert_eq!((done.written, done.data[4096]), (4097, OK));
                assert!(done.data[..4096] == data[block * 4096..][..4096]);
            }
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_writes_loses_no_memory_and_the_disk_goes_on() {
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        let image = Image::new(false, 16 << 20);
        let spec = BlkSpec {
            cache: Cache::Directsync,
            ..BlkSpec::new(&image.0)
        };
        let mut driver = open(&spec, engine);
        for round in 1..=5u8 {
            driver.start(!0);
            let data = vec![round; 128 << 10];
            for i in 0..32 {
                driver.add(0, &[&header(1, i * 256), &data], &[1]);
            }
            driver.kick(0);
            // Some of them are done, most are not.
            assert_eq!(driver.wait(0).data, [OK]);
            driver.reset();
        }
        driver.start(!0);
        let done = driver.request(0, &[&header(1, 0), &[9; 512]], &[1]);
        assert_eq!(done.data, [OK]);
        let done = driver.request(0, &[&header(0, 0)], &[512, 1]);
        assert!(done.data[..512].iter().all(|&b| b == 9));
        // Dropping a device with requests in flight waits for them as well.
        driver.add(0, &[&header(0, 0)], &[1 << 20, 1]);
        driver.kick(0);
    }
}

#[test]
fn cache_modes_open_the_image_as_they_say() {
    let direct = |image: &Image| {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let ours = entries.filter(|e| e.path().read_link().is_ok_and(|target| target == image.0));
        let flags = ours.map(|e| {
            let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(e.file_name()))
                .unwrap();
            let line = info
                .lines()
                .find_map(|l| l.strip_prefix("flags:"))
                .unwrap()
                .trim();
            u32::from_str_radix(line, 8).unwrap()
        });
        let flags: Vec<u32> = flags.collect();
        assert_eq!(flags.len(), 1);
        assert_ne!(flags[0] & libc::O_CLOEXEC as u32, 0);
        (
            flags[0] & libc::O_DIRECT as u32 != 0,
            flags[0] & libc::O_ACCMODE as u32 == 0,
        )
    };
    for cache in CACHES {
        for read_only in [false, true] {
            let image = Image::new(false, 4096);
            let spec = BlkSpec {
                cache,
                read_only,
                ..BlkSpec::new(&image.0)
            };
            let _blk = Blk::open("disk0", &spec, BlkOptions::default()).unwrap();
            let bypass = matches!(cache, Cache::None | Cache::Directsync);
            assert_eq!(direct(&image), (bypass, read_only), "{cache:?}");
        }
    }
}

#[test]
fn specs_and_images_that_do_not_work_say_why() {
    let said = |spec: &BlkSpec| {
        Blk::open("disk0", spec, BlkOptions::default())
            .err()
            .unwrap()
            .to_string()
    };
    let missing = BlkSpec::new("/nonexistent.img");
    assert_eq!(said(&missing), "Disk /nonexistent.img: no such file");
    let image = Image::new(true, 1 << 20);
    let long = BlkSpec {
        id: "x".repeat(21),
        ..BlkSpec::new(&image.0)
    };
    assert!(said(&long).contains("20 printable ASCII"));
    let odd = Image::new(true, 513);
    let error = Blk::open("disk0", &BlkSpec::new(&odd.0), BlkOptions::default()).err();
    assert!(matches!(
        error,
        Some(BlkError::Open(OpenError::OddSize { .. }))
    ));
}

#[test]
fn a_polling_disk_finds_requests_without_a_kick() {
    let image = Image::new(true, SECTORS * 512);
    let spec = BlkSpec::new(&image.0);
    let mut driver = polling(&spec, EngineChoice::Auto, Duration::from_secs(1));
    driver.start(!0);
    driver.submit(0, &[&header(0, 0)], &[512, 1]);
    for i in 0..100 {
        assert_eq!(driver.wait(0).data[512], OK);
        driver.add(0, &[&header(0, i)], &[512, 1]);
        // Kicks only if the disk gave up looking, which a second on a busy machine may be too short for.
        driver.kick(0);
    }
    assert_eq!(driver.wait(0).data[512], OK);
    let kicks = driver.counters().kicks;
    assert!(kicks < 50, "{kicks} kicks for 101 requests");
}
