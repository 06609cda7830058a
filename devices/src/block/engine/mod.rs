//! Ways to run file system calls without blocking the loop: io_uring, or threads where it is forbidden (container
//! seccomp profiles commonly refuse `io_uring_setup`).

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

mod uring;

use super::pool::{Pool, Worker};
use uring::Uring;

/// One system call on a file. The results are those of the raw call: a count, or a negated errno.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// `preadv2`.
    Read {
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    /// `pwritev2`, with RWF_DSYNC when durable.
    Write {
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
        durable: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: i32, offset: u64, len: u64 },
}

// SAFETY: the pointer is only dereferenced by the kernel, on whichever thread makes the call; whoever queues a call
// promises that it stays valid until the result is in.
unsafe impl Send for Call {}

impl Call {
    fn rw_flags(self) -> i32 {
        match self {
            Self::Write { durable: true, .. } => libc::RWF_DSYNC,
            _ => 0,
        }
    }

    /// Makes the call on this thread; `flags` (RWF_*) count for reads and writes.
    ///
    /// # Safety
    /// `iov` must point to `count` vectors of memory that is mapped.
    pub(crate) unsafe fn run(self, fd: RawFd, flags: i32) -> i32 {
        let flags = flags | self.rw_flags();
        loop {
            // SAFETY: by the contract of this function; offsets are below 2^63 because they are within a file.
            let result = unsafe {
                match self {
                    Self::Read { iov, count, offset } => {
                        libc::preadv2(fd, iov, count as i32, offset as i64, flags)
                    }
                    Self::Write {
                        iov, count, offset, ..
                    } => libc::pwritev2(fd, iov, count as i32, offset as i64, flags),
                    Self::Sync => libc::fdatasync(fd) as isize,
                    Self::Allocate { mode, offset, len } => {
                        libc::fallocate(fd, mode, offset as i64, len as i64) as isize
                    }
                }
            };
            if result >= 0 {
                // The kernel transfers at most 0x7ffff000 bytes (MAX_RW_COUNT).
                return result as i32;
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return -errno.unwrap_or(libc::EIO),
            }
        }
    }
}

/// Tag and result of a call.
pub(crate) type Outcome = (u32, i32);

/// Threads per disk: a few requests in flight are most of what parallelism gives, and each costs a stack.
const THREADS: usize = 4;

/// A file that threads make calls on.
pub(crate) struct Calls(RawFd);

impl Worker for Calls {
    type Job = (u32, Call);
    type Done = Outcome;
    type Place = ();
    const NAME: &str = "disk";
    const STACK: usize = 64 << 10;

    fn place(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn serve(&self, (tag, call): (u32, Call), (): &mut ()) -> Outcome {
        // SAFETY: by the contract of this function.
        (tag, unsafe { call.run(self.0, 0) })
    }
}

/// Runs calls on one file.
pub(crate) enum Engine {
    Uring(Box<Uring>),
    Pool(Pool<Calls>),
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring, threads where that is not available.
    #[default]
    Auto,
    /// Threads.
    Threads,
}

/// Most requests in an engine's submission queue; more are handed over in several batches.
pub(crate) const DEPTH: u32 = 256;

/// A ring that is made before it is needed, by a thread that may make none later: confinement forbids it, because a
/// ring can do almost everything that system calls can.
#[derive(Clone, Default)]
pub struct Spare(Arc<Mutex<Option<io::Result<Uring>>>>);

impl Spare {
    /// Makes it. Returns whether there is a ring; otherwise the disk will start threads.
    pub fn make(&self) -> bool {
        let ring = Uring::new(DEPTH);
        let made = ring.is_ok();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
        made
    }

    fn take(&self) -> Option<io::Result<Uring>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spare")
    }
}

impl Engine {
    /// An engine for `fd` that keeps up to `depth` calls in flight, on the ring of `spare` if that was made. The second
    /// value says why io_uring is not used.
    ///
    /// # Errors
    /// Neither is possible.
    pub(crate) fn new(
        fd: RawFd,
        depth: u32,
        choice: Choice,
        spare: &Spare,
    ) -> io::Result<(Self, Option<io::Error>)> {
        let why = match choice {
            Choice::Auto => match spare.take().unwrap_or_else(|| Uring::new(depth)) {
                Ok(ring) => return Ok((Self::Uring(Box::new(ring.serve(fd))), None)),
                Err(why) => Some(why),
            },
            Choice::Threads => None,
        };
        let mut pool = Pool::new(Calls(fd), THREADS)?;
        pool.start()?;
        Ok((Self::Pool(pool), why))
    }

    /// Queues a call; [`Self::submit`] lets it run.
    ///
    /// # Safety
    /// What the call points to stays valid until its outcome was reaped, and the file stays open.
    pub(crate) unsafe fn queue(&mut self, tag: u32, call: Call) {
        match self {
            // SAFETY: passed on.
            Self::Uring(ring) => unsafe { ring.queue(tag, call) },
            // SAFETY: the same.
            Self::Pool(pool) => unsafe { pool.queue((tag, call)) },
        }
    }

    pub(crate) fn submit(&mut self) {
        match self {
            Self::Uring(ring) => ring.submit(false),
            Self::Pool(pool) => pool.submit(),
        }
    }

    pub(crate) fn reap(&mut self, out: &mut Vec<Outcome>) {
        match self {
            Self::Uring(ring) => ring.reap(out),
            Self::Pool(pool) => pool.reap(out),
        }
    }

    /// Waits for at least one outcome; returns at once when nothing is in flight.
    pub(crate) fn wait(&mut self) {
        match self {
            Self::Uring(ring) => ring.submit(true),
            Self::Pool(pool) => pool.wait(),
        }
    }

    /// Calls queued or running whose outcome was not reaped.
    pub(crate) fn in_flight(&self) -> usize {
        match self {
            Self::Uring(ring) => ring.in_flight(),
            Self::Pool(pool) => pool.in_flight(),
        }
    }

    pub(crate) fn ready_fd(&self) -> RawFd {
        match self {
            Self::Uring(ring) => ring.ready_fd(),
            Self::Pool(pool) => pool.ready_fd(),
        }
    }
}

#[cfg(test)]
mod tests;
