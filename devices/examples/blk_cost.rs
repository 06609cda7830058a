//! What a disk request costs on our side of the guest: nanoseconds per request of the device and the system calls it
//! makes, without a guest, an event loop or an interrupt.
//!
//! `cargo run --release -p vsc-devices --example blk_cost [DIR]` with images in `/dev/shm` and in DIR (default: here);
//! `… blk_cost --qd1 FILE N` sends N 4 KiB reads through a loop on its own thread, to be counted by `strace -ff`.

use std::cell::RefCell;
use std::hint::black_box;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes as _, GuestAddress};
use vsc_devices::block::{Completion, Disk, Geometry, Iovecs, Request};
use vsc_devices::virtio::blk::{Blk, BlkOptions, BlkSpec, Cache};
use vsc_devices::virtio::testing::{Driver, INDIRECT, NEXT, WRITE, memory};
use vsc_devices::virtio::{Activation, Device, Interest, Interrupt, VirtQueue, Watch};

const QUEUE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0xa000;
const TABLES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x100_0000;
const IMAGE: u64 = 64 << 20;

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, index: u16) {
        black_box(index);
    }
    fn config(&self) {}
    fn needs_reset(&self, reason: &str) {
        panic!("{reason}");
    }
}

/// Remembers what the device watches.
#[derive(Default)]
struct Watched(RefCell<Vec<(RawFd, u32)>>);

impl Watch for &Watched {
    fn watch(&mut self, fd: RawFd, token: u32, _: Interest) -> io::Result<()> {
        self.0.borrow_mut().push((fd, token));
        Ok(())
    }
    fn unwatch(&mut self, _: RawFd) {}
}

/// Answers everything at once.
struct Null(Geometry);

impl Disk for Null {
    fn geometry(&self) -> &Geometry {
        &self.0
    }
    unsafe fn start(&mut self, _: Request, _: &mut Iovecs) -> Option<io::Result<()>> {
        Some(Ok(()))
    }
    fn submit(&mut self) {}
    fn reap(&mut self, _: &mut Vec<Completion>) {}
    fn ready_fd(&self) -> Option<RawFd> {
        None
    }
    fn drain(&mut self, _: &mut Vec<Completion>) {}
}

fn entry(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

struct Bench {
    blk: Blk,
    memory: vsc_devices::Memory,
    watched: Watched,
    offered: u16,
}

impl Bench {
    fn new(mut blk: Blk) -> Self {
        let memory = memory();
        let state = QueueState {
            max_size: QUEUE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: true,
            size: QUEUE,
            ready: true,
            desc_table: DESCRIPTORS,
            avail_ring: AVAIL,
            used_ring: USED,
        };
        let queue = Queue::try_from(state).expect("a valid queue");
        let interrupt: Arc<dyn Interrupt> = Arc::new(Silent);
        let queue = VirtQueue::new(queue, memory.clone(), Arc::clone(&interrupt), 0);
        let features = blk.features();
        let watched = Watched::default();
        let activation = Activation {
            memory: memory.clone(),
            features,
            queues: vec![Some(queue)],
            interrupt,
        };
        blk.activate(activation, &mut &watched).expect("activation");
        Self {
            blk,
            memory,
            watched,
            offered: 0,
        }
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(addr))
            .expect("guest memory");
    }

    /// Prepares request `slot`: one indirect chain with `parts` data segments of 4 KiB.
    fn prepare(&self, slot: u16, kind: u32, sector: u64, parts: u16) {
        let slot64 = u64::from(slot);
        let header = HEADERS + 16 * slot64;
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &sector.to_le_bytes());
        let table = TABLES + 8192 * slot64;
        self.put(table, &entry(header, 16, NEXT, 1));
        let write = if kind == 0 { WRITE } else { 0 };
        for part in 0..parts {
            // Not contiguous, so that the kernel sees as many segments as a guest would give.
            let data = BUFFERS + (slot64 * 256 + u64::from(part)) * 8192 % (32 << 20);
            let at = table + 16 * u64::from(1 + part);
            self.put(at, &entry(data, 4096, NEXT | write, part + 2));
        }
        let last = table + 16 * u64::from(1 + parts);
        self.put(last, &entry(STATUSES + slot64, 1, WRITE, 0));
        let size = 16 * (u32::from(parts) + 2);
        self.put(DESCRIPTORS + 16 * slot64, &entry(table, size, INDIRECT, 0));
    }

    fn used(&self) -> u16 {
        self.memory
            .load(GuestAddress(USED + 2), Ordering::Acquire)
            .expect("guest memory")
    }

    /// Offers requests `0..count` and returns when all are used.
    fn round(&mut self, count: u16) {
        for slot in 0..count {
            let at = AVAIL + 4 + 2 * u64::from(self.offered % QUEUE);
            self.memory
                .store(slot, GuestAddress(at), Ordering::Relaxed)
                .expect("guest memory");
            self.offered = self.offered.wrapping_add(1);
        }
        let index = GuestAddress(AVAIL + 2);
        self.memory
            .store(self.offered, index, Ordering::Release)
            .expect("guest memory");
        self.blk.kick(0, &mut &self.watched);
        while self.used() != self.offered {
            let watched = self.watched.0.borrow().clone();
            let mut polls: Vec<_> = watched
                .iter()
                .map(|&(fd, _)| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            // SAFETY: an array of pollfd and its length.
            unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) };
            for (poll, (_, token)) in polls.iter().zip(watched) {
                if poll.revents != 0 {
                    let ready = Interest {
                        readable: true,
                        writable: false,
                    };
                    self.blk.event(token, ready, false, &mut &self.watched);
                }
            }
        }
        for slot in 0..u64::from(count) {
            let status: u8 = self
                .memory
                .read_obj(GuestAddress(STATUSES + slot))
                .expect("guest memory");
            assert_eq!(status, 0, "a request failed");
        }
    }
}

#[allow(clippy::print_stdout)]
fn say(text: &str) {
    println!("{text}");
}

/// Median of seven runs of at least 100 ms, per request.
fn measure(name: &str, per_round: u32, mut round: impl FnMut()) {
    round();
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let (start, mut rounds) = (Instant::now(), 0u32);
            while start.elapsed() < Duration::from_millis(100) {
                (0..8).for_each(|_| round());
                rounds += 8;
            }
            start.elapsed().as_nanos() as f64 / f64::from(rounds * per_round)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (median, low, high) = (times[3], times[0], times[6]);
    say(&format!(
        "{name:<58} {median:>10.0} ns   ({low:.0} to {high:.0})"
    ));
}

fn requests(name: &str, blk: Blk, all: &[&str]) {
    let mut bench = Bench::new(blk);
    let mut random = 1u64;
    let mut sector = || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) % (IMAGE / 4096) * 8
    };
    for &what in all {
        let name = format!("{name}: {what}");
        match what {
            "read 4k QD1" => measure(&name, 1, || {
                bench.prepare(0, 0, sector(), 1);
                bench.round(1);
            }),
            "read 4k QD8" => measure(&name, 8, || {
                (0..8).for_each(|slot| bench.prepare(slot, 0, sector(), 1));
                bench.round(8);
            }),
            "read 4k QD128" => measure(&name, 128, || {
                (0..128).for_each(|slot| bench.prepare(slot, 0, sector(), 1));
                bench.round(128);
            }),
            "read 1M" => {
                bench.prepare(0, 0, 0, 254);
                measure(&name, 1, || bench.round(1));
            }
            "write 4k QD1" => measure(&name, 1, || {
                bench.prepare(0, 1, sector(), 1);
                bench.round(1);
            }),
            "write 4k QD8" => measure(&name, 8, || {
                (0..8).for_each(|slot| bench.prepare(slot, 1, sector(), 1));
                bench.round(8);
            }),
            _ => measure(&name, 1, || {
                bench.prepare(0, 1, sector(), 1);
                bench.round(1);
                bench.prepare(0, 4, 0, 0);
                bench.round(1);
            }),
        }
    }
}

fn image(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(format!("blk-cost-{}.img", std::process::id()));
    std::fs::write(&path, vec![0x5a; IMAGE as usize])?;
    std::fs::File::open(&path)?.sync_all()?;
    Ok(path)
}

fn system_calls(name: &str, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 4096];
    let mut at = 0;
    measure(&format!("{name}: pread 4k alone"), 1, || {
        at = (at + 7919 * 4096) % IMAGE;
        file.read_exact_at(&mut buffer, at).expect("pread");
    });
    let mut buffer = vec![0; 254 * 4096];
    measure(&format!("{name}: pread 1M alone"), 1, || {
        file.read_exact_at(&mut buffer, 0).expect("pread");
    });
    Ok(())
}

fn table(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let geometry = Geometry {
        size: IMAGE,
        read_only: false,
        physical_block: 4096,
        optimal_io: 0,
        discard_granularity: 4096,
    };
    let spec = BlkSpec::new("/unused");
    let null = Blk::with_disk(
        "null",
        &spec,
        Box::new(Null(geometry)),
        BlkOptions::default(),
    )?;
    requests(
        "no disk",
        null,
        &["read 4k QD1", "read 4k QD8", "read 4k QD128", "read 1M"],
    );
    for (name, dir) in [("tmpfs", Path::new("/dev/shm")), ("DIR", dir)] {
        let path = image(dir)?;
        let all = [
            "read 4k QD1",
            "read 4k QD8",
            "read 1M",
            "write 4k QD1",
            "write 4k QD8",
            "write + flush",
        ];
        let result = system_calls(name, &path)
            .map_err(Into::into)
            .and_then(|()| {
                for cache in [Cache::Writeback, Cache::Writethrough, Cache::None] {
                    let spec = BlkSpec {
                        cache,
                        ..BlkSpec::new(&path)
                    };
                    let start = Instant::now();
                    let blk = Blk::open("disk", &spec, BlkOptions::default())?;
                    say(&format!(
                        "{name} {cache:?}: opened in {:?}",
                        start.elapsed()
                    ));
                    requests(&format!("{name} {cache:?}"), blk, &all);
                }
                Ok::<_, Box<dyn std::error::Error>>(())
            });
        std::fs::remove_file(&path)?;
        result?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["--qd1", path, count] => {
            let blk = Blk::open("disk", &BlkSpec::new(*path), BlkOptions::default())?;
            let mut driver = Driver::threaded(Box::new(blk));
            driver.start(!0);
            for i in 0..count.parse::<u64>()? {
                let mut header = [0; 16];
                header[8..].copy_from_slice(&(i % 100 * 8).to_le_bytes());
                let done = driver.request(0, &[&header], &[4096, 1]);
                assert_eq!(done.data.last(), Some(&0));
            }
            Ok(())
        }
        [] => table(Path::new(".")),
        [dir] => table(Path::new(dir)),
        _ => Err("usage: blk_cost [DIR] | --qd1 FILE N".into()),
    }
}
