//! An encrypted disk: requests, each done by a thread in a buffer of its own.
//!
//! Nothing runs on the loop's thread, so no other device waits for cryptography, and round keys are only ever in the
//! registers and on the stacks of threads whose stacks are in no core dump.
//!
//! What the guest asks for and what is done:
//! * Zeroes are written as encrypted zeroes: a hole in the container would read as noise.
//! * Discards punch holes if the disk offers them; what was discarded reads as noise, which VIRTIO 5.2.6 allows. Holes
//!   show which blocks are in use, so the compiler offers them only where the scenario asks for it.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::super::pool::{Pool, Worker};
use super::super::raw::{Container, RawOptions};
use super::super::{Completion, Disk, Geometry, Iovecs, Op, OpenError, Request};
use super::crypt::Cipher;
use super::{DiskError, Header, LuksError};
use crate::secret::{Pages, Passphrase, Vault, clear_registers, hide_stack};

/// What is read, decrypted and copied at once: it stays in the second-level cache.
const CHUNK: usize = 256 << 10;
/// Threads that serve one disk; fewer on small hosts.
const THREADS: usize = 4;

/// Why an encrypted disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LuksOpenError {
    /// The container.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is in it.
    #[error(transparent)]
    Luks(#[from] DiskError),
}

/// A disk in a LUKS container.
pub struct LuksDisk {
    geometry: Geometry,
    pool: Pool<Store>,
}

impl LuksDisk {
    /// Opens the container at `path` with a passphrase.
    ///
    /// # Errors
    /// [`LuksOpenError`].
    pub fn open(
        path: &Path,
        options: &RawOptions,
        passphrase: &Passphrase,
    ) -> Result<Self, LuksOpenError> {
        let container = Container::open(path, options)?;
        let wrong = |source| DiskError {
            path: path.to_owned(),
            source,
        };
        Self::unlock(container, options.block, passphrase)
            .map_err(|source| LuksOpenError::Luks(wrong(source)))
    }

    fn unlock(
        container: Container,
        block: u32,
        passphrase: &Passphrase,
    ) -> Result<Self, LuksError> {
        let header = Header::read(container.file(), container.end())?;
        let layout = header.layout();
        let size = layout.size(container.end())?;
        if layout.sector > block {
            return Err(LuksError::BlockSize {
                sector: layout.sector,
            });
        }
        let (offset, sector, tweak) = (layout.offset, layout.sector, layout.tweak);
        let cipher = header.unlock(container.file(), passphrase)?;
        let raw = container.geometry();
        let geometry = Geometry {
            // The guest sees whole blocks.
            size: size - size % u64::from(block),
            physical_block: raw.physical_block.max(sector),
            discard_granularity: raw.discard_granularity.max(sector),
            ..*raw
        };
        let store = Store {
            unit: container.unit().max(512),
            container,
            cipher,
            offset,
            sector,
            tweak,
            edges: RwLock::new(()),
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = Pool::new(store, cpus.min(THREADS)).map_err(LuksError::Resources)?;
        Ok(Self { geometry, pool })
    }
}

impl Disk for LuksDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    unsafe fn start(&mut self, request: Request, iovecs: &mut Iovecs) -> Option<io::Result<()>> {
        // SAFETY: passed on.
        unsafe { self.pool.queue((request, std::mem::take(iovecs))) };
        None
    }

    fn submit(&mut self) {
        self.pool.submit();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.pool.reap(done);
    }

    fn ready_fd(&self) -> Option<RawFd> {
        Some(self.pool.ready_fd())
    }

    fn drain(&mut self, done: &mut Vec<Completion>) {
        self.pool.drain(done);
    }
}

impl Drop for LuksDisk {
    fn drop(&mut self) {
        // What is running works on the guest's memory.
        self.pool.drain(&mut Vec::new());
    }
}

/// What all threads of a disk share.
struct Store {
    container: Container,
    cipher: Vault<Cipher>,
    /// First byte of the data.
    offset: u64,
    sector: u32,
    tweak: u64,
    /// What the file is read and written in, bytes: more than a sector with O_DIRECT only.
    unit: u64,
    /// Taken alone by writes that read the rest of a unit and write it back.
    edges: RwLock<()>,
}

impl Worker for Store {
    type Job = (Request, Iovecs);
    type Done = Completion;
    type Place = Pages;
    const NAME: &str = "luks";
    const STACK: usize = 128 << 10;

    fn place(&self) -> io::Result<Pages> {
        // With room for the rest of a unit at both ends.
        Pages::new(CHUNK + 2 * usize::try_from(self.unit).unwrap_or(CHUNK))
    }

    fn enter(&self) {
        hide_stack();
    }

    unsafe fn serve(&self, (request, iovecs): (Request, Iovecs), buffer: &mut Pages) -> Completion {
        // SAFETY: by the contract of this function.
        let result = unsafe { self.handle(&request, &iovecs, buffer) };
        clear_registers();
        let tag = request.tag;
        Completion { tag, result }
    }
}

impl Store {
    /// # Safety
    /// The vectors must point to memory that stays mapped until this returns.
    unsafe fn handle(
        &self,
        request: &Request,
        iovecs: &Iovecs,
        buffer: &mut Pages,
    ) -> io::Result<()> {
        let sector = u64::from(self.sector);
        if !request.offset.is_multiple_of(sector) || !request.len.is_multiple_of(sector) {
            // The guest was told the size of its blocks.
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let file = self.container.file();
        match request.op {
            Op::Read => {
                // SAFETY: passed on.
                let mut memory = unsafe { iovecs.cursor() };
                self.steps(request, |from, len| {
                    let span = self.read(from, len, buffer)?;
                    self.cipher
                        .decrypt(span, self.sector as usize, self.tweaked(from));
                    memory.write(span);
                    Ok(())
                })
            }
            Op::Write { durable } => {
                // SAFETY: passed on.
                let mut memory = unsafe { iovecs.cursor() };
                self.steps(request, |from, len| {
                    self.write(from, len, buffer, |span| memory.read(span))
                })?;
                if durable { file.sync_data() } else { Ok(()) }
            }
            Op::WriteZeroes { durable, .. } => {
                self.steps(request, |from, len| {
                    self.write(from, len, buffer, |span| span.fill(0))
                })?;
                if durable { file.sync_data() } else { Ok(()) }
            }
            Op::Flush => file.sync_data(),
            Op::Discard => self.discard(request),
        }
    }

    fn steps(
        &self,
        request: &Request,
        mut step: impl FnMut(u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = 0;
        while at < request.len {
            let len = (request.len - at).min(CHUNK as u64);
            // At most a chunk.
            step(request.offset + at, len as usize)?;
            at += len;
        }
        Ok(())
    }

    /// The number of the sector at `from` of the data.
    fn tweaked(&self, from: u64) -> u64 {
        (from / super::xts::TWEAK_UNIT).wrapping_add(self.tweak)
    }

    /// Where the data at `from` lies in the container, widened to whole units: start, bytes before, bytes in all.
    fn place(&self, from: u64, len: usize) -> (u64, usize, usize) {
        let first = self.offset + from;
        let start = first - first % self.unit;
        let stop = (first + len as u64).next_multiple_of(self.unit);
        // Both are within a chunk and two units.
        ((start), (first - start) as usize, (stop - start) as usize)
    }

    fn read<'b>(&self, from: u64, len: usize, buffer: &'b mut Pages) -> io::Result<&'b mut [u8]> {
        let (start, before, whole) = self.place(from, len);
        let span = buffer.bytes_mut().get_mut(..whole).unwrap_or_default();
        self.fill(span, start)?;
        Ok(span.get_mut(before..before + len).unwrap_or_default())
    }

    /// Reads a span of the container; what is beyond its end is zero, and nobody asks for it.
    fn fill(&self, span: &mut [u8], start: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(room) = span.get_mut(done..).filter(|room| !room.is_empty()) {
            let at = start + done as u64;
            if at >= self.container.end() {
                room.fill(0);
                break;
            }
            match self.container.file().read_at(room, at) {
                // The image was cut short under us.
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write(
        &self,
        from: u64,
        len: usize,
        buffer: &mut Pages,
        source: impl FnOnce(&mut [u8]),
    ) -> io::Result<()> {
        let (start, before, whole) = self.place(from, len);
        let span = buffer.bytes_mut().get_mut(..whole).unwrap_or_default();
        let edges = before > 0 || before + len < whole;
        // Ours must not put back what another write is about to replace.
        let alone = edges.then(|| self.edges.write().unwrap_or_else(PoisonError::into_inner));
        let shared = (!edges).then(|| self.edges.read().unwrap_or_else(PoisonError::into_inner));
        if edges {
            self.fill(span, start)?;
        }
        let middle = span.get_mut(before..before + len).unwrap_or_default();
        source(middle);
        self.cipher
            .encrypt(middle, self.sector as usize, self.tweaked(from));
        let result = self.container.file().write_all_at(span, start);
        drop((alone, shared));
        result
    }

    fn discard(&self, request: &Request) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (self.offset + request.offset, request.len);
        if len == 0 {
            return Ok(());
        }
        loop {
            // SAFETY: a plain system call on an open descriptor; both are below 2^63, as they are within a file.
            let result = unsafe {
                libc::fallocate(
                    self.container.file().as_raw_fd(),
                    mode,
                    offset as i64,
                    len as i64,
                )
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Advice: a store that cannot give up space succeeds.
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => return Ok(()),
                _ => return Err(error),
            }
        }
    }
}

/// So that a disk can be sent to its loop.
const _: fn() = || {
    fn sendable<T: Send>() {}
    sendable::<LuksDisk>();
    sendable::<Arc<Store>>();
};
