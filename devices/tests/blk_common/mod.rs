//! A disk that remembers what was asked of it, and a device in front of it.

#![allow(clippy::unwrap_used, dead_code)]

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsc_devices::block::{Completion, Disk, Geometry, Iovecs, Op, Request};
use vsc_devices::virtio::blk::{Blk, BlkOptions, BlkSpec};
use vsc_devices::virtio::testing::Driver;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

pub(crate) const RO: u64 = 1 << 5;
pub(crate) const FLUSH: u64 = 1 << 9;
pub(crate) const WCE: u64 = 1 << 11;
pub(crate) const DISCARD: u64 = 1 << 13;
pub(crate) const WRITE_ZEROES: u64 = 1 << 14;

pub(crate) const SIZE: u64 = 1 << 20;

/// What happened at the disk, and what it is to do next.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) asked: Vec<(Op, u64, u64)>,
    pub(crate) alone: Vec<bool>,
    pub(crate) submits: usize,
    pub(crate) drains: usize,
    pub(crate) fail: Option<i32>,
    pub(crate) data: Vec<u8>,
    pub(crate) held: Vec<(Request, Iovecs)>,
}

/// A disk in a vector. With an eventfd it holds requests back until the test releases them.
pub(crate) struct Fake {
    pub(crate) geometry: Geometry,
    pub(crate) log: Arc<Mutex<Log>>,
    pub(crate) ready: Option<Arc<EventFd>>,
}

impl Log {
    pub(crate) fn act(&mut self, request: &Request, iovecs: &Iovecs) -> io::Result<()> {
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

    pub(crate) fn asked(&mut self) -> Vec<(Op, u64, u64)> {
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

pub(crate) struct Bench {
    pub(crate) driver: Driver,
    pub(crate) log: Arc<Mutex<Log>>,
    pub(crate) notes: Arc<Mutex<Vec<String>>>,
    pub(crate) ready: Arc<EventFd>,
}

pub(crate) fn spec() -> BlkSpec {
    BlkSpec {
        id: "serial-of-this-disk!".into(),
        ..BlkSpec::new("/unused")
    }
}

pub(crate) fn bench(spec: &BlkSpec, held: bool) -> Bench {
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

pub(crate) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

pub(crate) fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

impl Bench {
    /// Runs a request; returns status, used length and data.
    pub(crate) fn run(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u8, u32, Vec<u8>) {
        let mut done = self.driver.request(0, readable, writable);
        let status = done.data.pop().expect("room for the status");
        (status, done.written, done.data)
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.run(&[&header(1, sector), data], &[1]).0
    }

    pub(crate) fn asked(&self) -> Vec<(Op, u64, u64)> {
        self.log.lock().unwrap().asked()
    }

    pub(crate) fn config(&self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.driver.read_config(offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }
}
