//! Backing stores of block devices.
//!
//! [`Disk`] is the seam: a block device hands requests over by tag and takes completions back, so that one store may
//! answer at once and another keep hundreds of requests in flight. [`raw`] serves image files and block devices as
//! they are, [`luks`] what is encrypted in them. Opening is the only place that touches the path, and takes the
//! image's locks ([`lock`]).

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

mod engine;
mod error;
mod iovecs;
pub mod keep;
pub mod lock;
pub mod luks;
mod pace;
mod pool;
pub mod raw;

pub use error::OpenError;
pub use iovecs::Iovecs;

/// Takes a sentence worth one line in a log. Called on the loop's thread; must not block.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// What to do to a byte range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the I/O vectors from the disk.
    Read,
    /// Write the I/O vectors to the disk.
    Write {
        /// Complete only when the data is on stable storage, as if a [`Op::Flush`] followed.
        durable: bool,
    },
    /// Bring all writes that completed before to stable storage. The range is not looked at.
    Flush,
    /// The contents are no longer needed. Advice: a store that cannot give up space succeeds.
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Space may be given up.
        unmap: bool,
        /// As for [`Op::Write`].
        durable: bool,
    },
}

/// One request to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Comes back in the [`Completion`]. Small numbers: stores index tables with it. Not in use by another request.
    pub tag: u32,
    /// What to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes. `offset + len` is within [`Geometry::size`]; multiples of 512 both.
    pub len: u64,
    /// No other request is in flight or known to follow: latency counts, not parallelism.
    pub alone: bool,
}

/// The end of a request that was not answered at once.
#[derive(Debug)]
pub struct Completion {
    /// [`Request::tag`].
    pub tag: u32,
    /// How it ended.
    pub result: io::Result<()>,
}

/// Size and shape of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// Writes are not possible.
    pub read_only: bool,
    /// Bytes the medium reads or writes without a read-modify-write; a power of two, at least 512.
    pub physical_block: u32,
    /// Preferred size of a transfer in bytes, 0 when the store does not care.
    pub optimal_io: u32,
    /// Bytes that discards should be aligned to; a multiple of 512.
    pub discard_granularity: u32,
}

/// A backing store, driven from one thread at a time.
pub trait Disk: Send {
    /// Size and shape; fixed while the disk is open.
    fn geometry(&self) -> &Geometry;

    /// Does a request, or begins it. `iovecs` hold exactly [`Request::len`] bytes for reads and writes and nothing
    /// else otherwise; their contents afterwards are unspecified (stores keep them and give older ones back).
    ///
    /// Returns the result when the request is finished already, `None` when [`Disk::reap`] will report it, which
    /// may need [`Disk::submit`] first.
    ///
    /// # Safety
    /// The memory that `iovecs` point to must stay mapped until the request has ended.
    unsafe fn start(&mut self, request: Request, iovecs: &mut Iovecs) -> Option<io::Result<()>>;

    /// Lets requests begun since the last call run. To be called after a batch of [`Disk::start`] and [`Disk::reap`].
    fn submit(&mut self);

    /// Appends what has ended since the last call. Never waits. To be called after [`Disk::submit`] and whenever
    /// [`Disk::ready_fd`] is readable.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// A descriptor that is readable while there is something to reap; appears with the first request that needs it
    /// and stays the same.
    fn ready_fd(&self) -> Option<RawFd>;

    /// Waits until nothing is in flight, appending what has ended.
    fn drain(&mut self, done: &mut Vec<Completion>);
}
