//! Image files and block devices served as they are.
//!
//! How a request runs:
//! * In memory (tmpfs, ramfs): on the spot.
//! * Reads through the page cache: `preadv2` with RWF_NOWAIT, which never waits for a device. A miss goes on in the
//!   engine.
//! * Writes to the page cache: on the spot, with RWF_NOWAIT where the file system knows it, else as long as
//!   [`Pace`] says that it is quick (4 µs on ext4; io_uring would push each through a kernel thread and serialize
//!   them on the inode).
//! * O_DIRECT, flushes, durable writes, deallocation: on the spot when the request is alone and the store is quick,
//!   else in the engine, where many run at once.
//! * More than [`INLINE_MAX`] at once: in the engine.
//!
//! The engine is io_uring, else four threads, and is made by the first request that needs one.
//!
//! A durable write is one RWF_DSYNC write: 107 µs where write + fdatasync take 118 (ext4 on virtio, Linux 6.18).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Choice, DEPTH, Engine, Outcome};
use super::lock::Lock;
use super::pace::Pace;
use super::{Completion, Disk, Geometry, Iovecs, Note, Op, OpenError, Request};

mod bounce;
mod open;
mod task;

pub use super::engine::{Choice as EngineChoice, Spare};
use super::keep::Keep;
use bounce::{Bounce, Buffer, fits};
use open::{Align, Opened};
use task::{Abilities, Next, Task};

/// Longest request served on the loop's thread, bytes: the time that copying it takes, some 0.3 ms, is what other
/// devices of the loop wait.
const INLINE_MAX: u64 = 2 << 20;

/// How to open a raw image.
#[derive(Clone)]
pub struct RawOptions {
    /// Open without write access.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// The guest's logical block, bytes: the size must be a multiple of it, or is rounded up when read-only.
    pub block: u32,
    /// How the image is locked.
    pub lock: Lock,
    /// A lockspace protects the image too: a file system without locks is said ([`Self::note`]), and no error.
    pub lockspace: bool,
    /// How to run what cannot be answered on the spot.
    pub engine: Choice,
    /// A ring that may have been made before the first request that needs one.
    pub spare: Spare,
    /// The image's open file, over the lives of the machine.
    pub keep: Keep,
    /// Where to say that io_uring is not available.
    pub note: Note,
}

impl Default for RawOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            direct: false,
            block: 512,
            lock: Lock::default(),
            lockspace: false,
            engine: Choice::Auto,
            spare: Spare::default(),
            keep: Keep::default(),
            note: Arc::new(|_| {}),
        }
    }
}

/// An image opened for a format that is on top of raw: as it is, locks included, without a way to run requests.
pub(super) struct Container(Opened);

impl Container {
    /// As [`RawFile::open`].
    pub(super) fn open(path: &Path, options: &RawOptions) -> Result<Self, OpenError> {
        // The blocks of what is in it are not its own.
        let options = RawOptions {
            block: 512,
            ..options.clone()
        };
        open::open(path, &options).map(Self)
    }

    pub(super) fn file(&self) -> &File {
        &self.0.file
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.0.geometry
    }

    /// Where the file ends, bytes.
    pub(super) fn end(&self) -> u64 {
        self.0.end
    }

    /// What offsets and lengths must be multiples of, bytes: 1 without O_DIRECT.
    pub(super) fn unit(&self) -> u64 {
        self.0.align.offset
    }
}

/// How a request is to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With RWF_NOWAIT.
    Try,
    /// On this thread; the store is memory.
    Copy,
    /// On this thread, timed.
    Block,
    Engine,
}

/// A raw image.
pub struct RawFile {
    file: File,
    geometry: Geometry,
    end: u64,
    align: Align,
    direct: bool,
    memory: bool,
    able: Abilities,
    /// RWF_NOWAIT works, for reads and for writes.
    nowait: (bool, bool),
    /// Of writes to the page cache, and of calls that wait for a device.
    cache_pace: Pace,
    device_pace: Pace,
    tasks: Vec<Task>,
    bounce: Option<Buffer>,
    choice: Choice,
    spare: Spare,
    note: Note,
    engine: Option<Engine>,
    /// No engine could be made: everything runs on the loop's thread.
    engineless: bool,
    outcomes: Vec<Outcome>,
    /// Ended while something else was waited for.
    early: Vec<Completion>,
}

impl RawFile {
    /// Opens an image.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, OpenError> {
        let opened = open::open(path, &options)?;
        Ok(Self::with(opened, options))
    }

    /// Takes over an open file; `path` is for messages.
    ///
    /// # Errors
    /// [`OpenError`], as for [`Self::open`].
    pub fn from_file(file: File, path: &Path, options: RawOptions) -> Result<Self, OpenError> {
        let opened = open::inspect(path, file, &options)?;
        Ok(Self::with(opened, options))
    }

    fn with(opened: Opened, options: RawOptions) -> Self {
        Self {
            file: opened.file,
            geometry: opened.geometry,
            end: opened.end,
            align: opened.align,
            direct: options.direct,
            memory: opened.memory,
            able: Abilities {
                punch: true,
                zero: true,
            },
            nowait: (true, true),
            cache_pace: Pace::default(),
            device_pace: Pace::default(),
            tasks: Vec::new(),
            bounce: None,
            choice: options.engine,
            spare: options.spare,
            note: options.note,
            engine: None,
            engineless: false,
            outcomes: Vec::new(),
            early: Vec::new(),
        }
    }

    fn way(&self, request: &Request) -> Way {
        let cached = !self.direct;
        match request.op {
            _ if self.engineless => Way::Block,
            Op::Flush => self.blocking(request.op, request.alone),
            _ if request.len > INLINE_MAX => Way::Engine,
            _ if self.memory => Way::Copy,
            Op::Read if cached && self.nowait.0 => Way::Try,
            Op::Write { durable: false } if cached && self.nowait.1 => Way::Try,
            op => self.blocking(op, request.alone),
        }
    }

    /// How to wait: on this thread, as long as that is quick and either `alone` or a matter of copying.
    fn blocking(&self, op: Op, alone: bool) -> Way {
        let copying = self.copies(op);
        let pace = if copying {
            &self.cache_pace
        } else {
            &self.device_pace
        };
        if self.memory {
            Way::Copy
        } else if self.engineless || (alone || copying) && pace.may_block(Instant::now()) {
            Way::Block
        } else {
            Way::Engine
        }
    }

    /// Whether `op` ends in the page cache.
    fn copies(&self, op: Op) -> bool {
        !self.direct && op == Op::Write { durable: false }
    }

    /// Runs task `tag` as far as it goes on this thread. `None`: it is in the engine now.
    fn run(&mut self, tag: u32, mut way: Way, alone: bool) -> Option<io::Result<()>> {
        let fd = self.file.as_raw_fd();
        loop {
            let task = self.tasks.get_mut(tag as usize)?;
            let op = task.op();
            let call = match task.call() {
                Ok(call) => call,
                Err(result) => return Some(result),
            };
            let result = match way {
                Way::Engine => {
                    let Some(engine) = self.engine() else {
                        way = Way::Block;
                        continue;
                    };
                    // SAFETY: the vectors belong to the task and stay as they are until its outcome is in; they
                    // point to memory that the caller of `start` keeps mapped as long, or to static zeroes. `Drop`
                    // waits for the engine before the file closes.
                    unsafe { engine.queue(tag, call) };
                    return None;
                }
                // SAFETY: as for the engine.
                Way::Copy => unsafe { call.run(fd, 0) },
                Way::Try => {
                    // SAFETY: as above.
                    let result = unsafe { call.run(fd, libc::RWF_NOWAIT) };
                    match -result {
                        libc::EAGAIN => {
                            // The page cache would wait for its device, also under a write.
                            let quick = alone && self.device_pace.may_block(Instant::now());
                            way = if quick { Way::Block } else { Way::Engine };
                            continue;
                        }
                        // EINVAL: Linux before 4.14.
                        libc::EOPNOTSUPP | libc::EINVAL => {
                            if op == Op::Read {
                                self.nowait.0 = false;
                            } else {
                                self.nowait.1 = false;
                            }
                            way = self.blocking(op, alone);
                            continue;
                        }
                        _ => result,
                    }
                }
                Way::Block => {
                    let from = Instant::now();
                    // SAFETY: as above.
                    let result = unsafe { call.run(fd, 0) };
                    let to = Instant::now();
                    if self.copies(op) {
                        self.cache_pace.blocked(from, to);
                    } else {
                        self.device_pace.blocked(from, to);
                    }
                    result
                }
            };
            let task = self.tasks.get_mut(tag as usize)?;
            if let Next::Done(result) = task.advance(result, &mut self.able) {
                return Some(result);
            }
        }
    }

    fn engine(&mut self) -> Option<&mut Engine> {
        if self.engine.is_none() && !self.engineless {
            match Engine::new(self.file.as_raw_fd(), DEPTH, self.choice, &self.spare) {
                Ok((engine, why)) => {
                    if let Some(why) = why {
                        let note = &self.note;
                        note(&format!(
                            "io_uring is not available ({why}): disks use threads"
                        ));
                    }
                    self.engine = Some(engine);
                }
                Err(why) => {
                    let note = &self.note;
                    note(&format!(
                        "Neither io_uring nor threads are available ({why}): disks block their loop"
                    ));
                    self.engineless = true;
                }
            }
        }
        self.engine.as_mut()
    }

    /// Takes what the engine has finished; unfinished tasks go on in it.
    fn collect(&mut self, done: &mut Vec<Completion>) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let mut outcomes = std::mem::take(&mut self.outcomes);
        engine.reap(&mut outcomes);
        for (tag, result) in outcomes.drain(..) {
            let Some(task) = self.tasks.get_mut(tag as usize) else {
                continue;
            };
            // EAGAIN from io_uring means that even its threads could not get memory: wait on this one instead.
            let next = match -result {
                libc::EAGAIN => Some(Way::Block),
                _ => match task.advance(result, &mut self.able) {
                    Next::Call => Some(Way::Engine),
                    Next::Done(result) => {
                        done.push(Completion { tag, result });
                        None
                    }
                },
            };
            if let Some(way) = next
                && let Some(result) = self.run(tag, way, false)
            {
                done.push(Completion { tag, result });
            }
        }
        self.outcomes = outcomes;
    }

    fn settle(&mut self, done: &mut Vec<Completion>) {
        while let Some(engine) = &mut self.engine
            && engine.in_flight() > 0
        {
            engine.wait();
            self.collect(done);
        }
    }

    /// # Safety
    /// See [`Disk::start`].
    unsafe fn bounced(&mut self, request: &Request, iovecs: &Iovecs) -> io::Result<()> {
        let durable = match request.op {
            Op::Write { durable } => {
                // A write in flight beside ours could be undone by our read-modify-write.
                let mut early = std::mem::take(&mut self.early);
                self.settle(&mut early);
                self.early = early;
                Some(durable)
            }
            _ => None,
        };
        let mut bounce = Bounce {
            file: &self.file,
            align: self.align,
            end: self.end,
            buffer: &mut self.bounce,
        };
        // SAFETY: passed on.
        unsafe { bounce.transfer(durable.is_some(), request.offset, iovecs.as_slice())? };
        if durable == Some(true) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

impl Disk for RawFile {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn start(&mut self, request: Request, iovecs: &mut Iovecs) -> Option<io::Result<()>> {
        if matches!(request.op, Op::Read | Op::Write { .. })
            && !fits(self.align, request.offset, iovecs.as_slice())
        {
            // SAFETY: passed on.
            return Some(unsafe { self.bounced(&request, iovecs) });
        }
        let way = self.way(&request);
        let at = request.tag as usize;
        if at >= self.tasks.len() {
            self.tasks.resize_with(at + 1, Task::default);
        }
        let task = self.tasks.get_mut(at)?;
        task.begin(&request, iovecs, self.end, self.able);
        self.run(request.tag, way, request.alone)
    }

    fn submit(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.submit();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.early);
        self.collect(done);
    }

    fn ready_fd(&self) -> Option<RawFd> {
        self.engine.as_ref().map(Engine::ready_fd)
    }

    fn drain(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.early);
        self.settle(done);
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        // The kernel must not write to guest memory, nor the vectors go, while a call is running.
        self.settle(&mut Vec::new());
    }
}

#[cfg(test)]
mod tests;
