//! A request on its way through system calls: what to call next, given what the last call returned. No I/O here.

use std::io;

use super::super::engine::Call;
use super::super::iovecs::{Iovecs, skip};
use super::super::{Op, Request};

/// Most vectors one call takes (`UIO_MAXIOV` in linux/uio.h).
const MAX_VECTORS: usize = 1024;

/// Source of zeroes for stores that cannot zero a range by themselves; aligned for O_DIRECT.
#[repr(align(4096))]
struct Page([u8; 4096]);
static ZEROES: Page = Page([0; 4096]);
/// Vectors of zeroes in one call: 1 MiB.
const ZERO_VECTORS: u64 = 256;

/// What the store turned out to be able to do. Each starts true and falls when the kernel says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// `FALLOC_FL_PUNCH_HOLE`.
    pub(super) punch: bool,
    /// `FALLOC_FL_ZERO_RANGE`.
    pub(super) zero: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Data,
    Punch,
    Zero,
    Fill,
    Sync,
}

/// What comes after a call.
#[derive(Debug)]
pub(super) enum Next {
    /// Another call: ask [`Task::call`].
    Call,
    Done(io::Result<()>),
}

#[derive(Debug)]
pub(super) struct Task {
    op: Op,
    stage: Stage,
    offset: u64,
    left: u64,
    /// Where the file ends. Reads past it give zeroes: a read-only image of odd size has such a tail.
    end: u64,
    pub(super) iovecs: Iovecs,
    first: usize,
}

impl Default for Task {
    fn default() -> Self {
        Self {
            op: Op::Flush,
            stage: Stage::Sync,
            offset: 0,
            left: 0,
            end: 0,
            iovecs: Iovecs::default(),
            first: 0,
        }
    }
}

impl Task {
    /// Takes a request on; the vectors of earlier ones go back through `iovecs`.
    pub(super) fn begin(
        &mut self,
        request: &Request,
        iovecs: &mut Iovecs,
        end: u64,
        able: Abilities,
    ) {
        std::mem::swap(&mut self.iovecs, iovecs);
        self.op = request.op;
        self.offset = request.offset;
        self.left = request.len;
        self.end = end;
        self.first = 0;
        self.stage = match request.op {
            Op::Read | Op::Write { .. } => Stage::Data,
            Op::Flush => Stage::Sync,
            Op::Discard => Stage::Punch,
            Op::WriteZeroes { unmap: true, .. } if able.punch => Stage::Punch,
            Op::WriteZeroes { .. } => self.zero_stage(able),
        };
    }

    /// The request that the task serves.
    pub(super) fn op(&self) -> Op {
        self.op
    }

    fn zero_stage(&mut self, able: Abilities) -> Stage {
        if able.zero {
            return Stage::Zero;
        }
        self.refill();
        Stage::Fill
    }

    /// Points the vectors at zeroes for the next part of the range.
    fn refill(&mut self) {
        let page = std::ptr::from_ref(&ZEROES.0).cast_mut().cast();
        let list = self.iovecs.inner();
        list.clear();
        self.first = 0;
        let size = ZEROES.0.len() as u64;
        let mut left = self.left.min(ZERO_VECTORS * size);
        while left > 0 {
            let len = left.min(size);
            // Within a page, so it fits.
            list.push(libc::iovec {
                iov_base: page,
                iov_len: len as usize,
            });
            left -= len;
        }
    }

    /// The next call, unless nothing needs to be called.
    pub(super) fn call(&mut self) -> Result<Call, io::Result<()>> {
        let vectors = self.iovecs.as_slice().get(self.first..).unwrap_or_default();
        let (iov, count) = (vectors.as_ptr(), vectors.len().min(MAX_VECTORS) as u32);
        let (offset, len) = (self.offset, self.left);
        let allocate = |mode| {
            let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
            Call::Allocate { mode, offset, len }
        };
        if self.left == 0 && self.stage != Stage::Sync {
            return Err(Ok(()));
        }
        Ok(match (self.stage, self.op) {
            (Stage::Data, Op::Read) => {
                if offset >= self.end {
                    self.zero_rest();
                    return Err(Ok(()));
                }
                Call::Read { iov, count, offset }
            }
            (Stage::Data, op) => {
                let durable = matches!(op, Op::Write { durable: true });
                Call::Write {
                    iov,
                    count,
                    offset,
                    durable,
                }
            }
            (Stage::Fill, _) => Call::Write {
                iov,
                count,
                offset,
                durable: false,
            },
            (Stage::Punch, _) => allocate(libc::FALLOC_FL_PUNCH_HOLE),
            (Stage::Zero, _) => allocate(libc::FALLOC_FL_ZERO_RANGE),
            (Stage::Sync, _) => Call::Sync,
        })
    }

    /// Takes in what the call returned.
    pub(super) fn advance(&mut self, result: i32, able: &mut Abilities) -> Next {
        if result < 0 {
            return self.failed(-result, able);
        }
        match self.stage {
            Stage::Data | Stage::Fill => {
                let moved = result as u64;
                if moved == 0 || moved > self.left {
                    // The image was cut short under us, or a device ended early.
                    return Next::Done(Err(io::Error::from_raw_os_error(libc::EIO)));
                }
                self.offset += moved;
                self.left -= moved;
                if self.left > 0 {
                    if self.stage == Stage::Data {
                        let list = self.iovecs.inner();
                        if let Some(rest) = list.get_mut(self.first..) {
                            self.first += skip(rest, moved as usize);
                        }
                    } else {
                        self.refill();
                    }
                    return Next::Call;
                }
                match self.stage {
                    Stage::Fill => self.zeroed(),
                    _ => Next::Done(Ok(())),
                }
            }
            Stage::Punch | Stage::Zero => self.zeroed(),
            Stage::Sync => Next::Done(Ok(())),
        }
    }

    fn zeroed(&mut self) -> Next {
        if matches!(self.op, Op::WriteZeroes { durable: true, .. }) {
            self.stage = Stage::Sync;
            return Next::Call;
        }
        Next::Done(Ok(()))
    }

    fn failed(&mut self, errno: i32, able: &mut Abilities) -> Next {
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV);
        match (self.stage, self.op) {
            (_, _) if errno == libc::EINTR => return Next::Call,
            (Stage::Punch, Op::Discard) if unsupported => {
                able.punch = false;
                return Next::Done(Ok(()));
            }
            (Stage::Punch, _) if unsupported => {
                able.punch = false;
                self.stage = self.zero_stage(*able);
                return Next::Call;
            }
            (Stage::Zero, _) if unsupported => {
                able.zero = false;
                self.stage = self.zero_stage(*able);
                return Next::Call;
            }
            _ => {}
        }
        Next::Done(Err(io::Error::from_raw_os_error(errno)))
    }

    fn zero_rest(&mut self) {
        for v in self.iovecs.as_slice().get(self.first..).unwrap_or_default() {
            // SAFETY: the memory is mapped until the request has ended (contract of `Disk::start`).
            unsafe { std::ptr::write_bytes(v.iov_base.cast::<u8>(), 0, v.iov_len) };
        }
    }
}
