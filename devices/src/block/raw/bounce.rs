//! Requests that O_DIRECT cannot take as they are, through an aligned buffer. Linux guests do not send them; firmware
//! and hostile guests do. They run one at a time on the loop's thread.

use std::alloc::Layout;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::iovecs::Cursor;
use super::open::Align;

const BUFFER: usize = 256 << 10;

/// Zeroed memory aligned for O_DIRECT.
pub(super) struct Buffer {
    start: std::ptr::NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer is owned, plain memory.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` bytes, not 0; `align` is a power of two.
    pub(super) fn new(len: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), align)
            .unwrap_or_else(|_| Layout::new::<[u64; BUFFER / 8]>());
        // SAFETY: the size is not 0.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        match std::ptr::NonNull::new(start) {
            Some(start) => Self { start, layout },
            None => std::alloc::handle_alloc_error(layout),
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: start and size are those of the allocation, which is initialized and borrowed through self.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Whether O_DIRECT takes this request as it is. Vectors need whole blocks too, not only their sum.
pub(super) fn fits(align: Align, offset: u64, iovecs: &[libc::iovec]) -> bool {
    align.offset == 1
        || offset.is_multiple_of(align.offset)
            && iovecs.iter().all(|v| {
                v.iov_base.addr().is_multiple_of(align.memory)
                    && (v.iov_len as u64).is_multiple_of(align.offset)
            })
}

/// Reads or writes a range of a file in aligned steps.
pub(super) struct Bounce<'a> {
    pub(super) file: &'a File,
    pub(super) align: Align,
    /// End of the file; reads past it give zeroes.
    pub(super) end: u64,
    pub(super) buffer: &'a mut Option<Buffer>,
}

impl Bounce<'_> {
    /// # Safety
    /// `iovecs` must point to mapped memory.
    pub(super) unsafe fn transfer(
        &mut self,
        write: bool,
        offset: u64,
        iovecs: &[libc::iovec],
    ) -> io::Result<()> {
        let unit = self.align.offset.max(512);
        let align = self.align.memory.max(4096);
        let buffer = self
            .buffer
            .get_or_insert_with(|| Buffer::new(BUFFER, align))
            .bytes();
        // SAFETY: passed on.
        let mut cursor = unsafe { Cursor::new(iovecs) };
        let (mut at, mut left) = (offset, iovecs.iter().map(|v| v.iov_len as u64).sum::<u64>());
        while left > 0 {
            let start = at - at % unit;
            let stop = (at + left)
                .next_multiple_of(unit)
                .min(start + buffer.len() as u64);
            let part = left.min(stop - at);
            // All within the buffer, hence within usize.
            let span = buffer
                .get_mut(..(stop - start) as usize)
                .unwrap_or_default();
            let (from, to) = ((at - start) as usize, (at - start + part) as usize);
            if write {
                // Read-modify-write of the blocks at both ends; the caller lets no other write run meanwhile.
                let last = span.len() - unit as usize;
                if from > 0 || (last == 0 && to < span.len()) {
                    fill(
                        self.file,
                        start,
                        self.end,
                        span.get_mut(..unit as usize).unwrap_or_default(),
                    )?;
                }
                if last > 0 && to < span.len() {
                    fill(
                        self.file,
                        start + last as u64,
                        self.end,
                        span.get_mut(last..).unwrap_or_default(),
                    )?;
                }
            } else {
                fill(self.file, start, self.end, span)?;
            }
            let middle = span.get_mut(from..to).unwrap_or_default();
            if write {
                cursor.read(middle);
                self.file.write_all_at(span, start)?;
            } else {
                cursor.write(middle);
            }
            at += part;
            left -= part;
        }
        Ok(())
    }
}

fn fill(file: &File, offset: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..)
        && !rest.is_empty()
    {
        let at = offset + done as u64;
        if at >= end {
            rest.fill(0);
            break;
        }
        match file.read_at(rest, at) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
