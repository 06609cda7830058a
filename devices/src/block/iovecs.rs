//! A list of memory ranges for `preadv` and its kin.

/// I/O vectors that point to guest memory. Keeps its allocation across requests.
#[derive(Debug, Default)]
pub struct Iovecs(Vec<libc::iovec>);

// SAFETY: the pointers are addresses of guest memory, which belongs to no thread.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// The list itself, to be filled.
    pub fn inner(&mut self) -> &mut Vec<libc::iovec> {
        &mut self.0
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Bytes in all ranges.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|v| v.iov_len as u64).sum()
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|v| v.iov_len == 0)
    }

    /// Forgets the ranges.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A place to copy from or to.
    ///
    /// # Safety
    /// The ranges must be of mapped memory while the cursor lives.
    pub(super) unsafe fn cursor(&self) -> Cursor<'_> {
        // SAFETY: passed on.
        unsafe { Cursor::new(&self.0) }
    }

    /// Drops the first `bytes`.
    pub fn skip_front(&mut self, bytes: usize) {
        let whole = skip(&mut self.0, bytes);
        self.0.drain(..whole);
    }

    /// Drops the last `bytes`.
    pub fn trim_back(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some(last) = self.0.last_mut()
        {
            if last.iov_len > bytes {
                last.iov_len -= bytes;
                return;
            }
            bytes -= last.iov_len;
            self.0.pop();
        }
    }
}

/// Where copies to or from the ranges of a list go on.
pub(super) struct Cursor<'a> {
    iovecs: &'a [libc::iovec],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// # Safety
    /// The ranges must be of mapped memory while the cursor lives.
    pub(super) unsafe fn new(iovecs: &'a [libc::iovec]) -> Self {
        Self { iovecs, at: 0 }
    }

    /// Fills `buffer` from the ranges.
    pub(super) fn read(&mut self, buffer: &mut [u8]) {
        let to = buffer.as_mut_ptr();
        // SAFETY: `pieces` gives places within mapped ranges (contract of `new`), and within `buffer`, which is memory
        // of our own that no range covers.
        self.pieces(buffer.len(), |guest, at, len| unsafe {
            std::ptr::copy_nonoverlapping(guest, to.add(at), len);
        });
    }

    /// Puts `buffer` into the ranges.
    pub(super) fn write(&mut self, buffer: &[u8]) {
        let from = buffer.as_ptr();
        // SAFETY: as above.
        self.pieces(buffer.len(), |guest, at, len| unsafe {
            std::ptr::copy_nonoverlapping(from.add(at), guest, len);
        });
    }

    /// The next `bytes` of the ranges: where each piece is, where in the buffer, and how long it is.
    fn pieces(&mut self, bytes: usize, mut piece: impl FnMut(*mut u8, usize, usize)) {
        let mut done = 0;
        while let Some((v, rest)) = self.iovecs.split_first()
            && done < bytes
        {
            let len = (v.iov_len - self.at).min(bytes - done);
            piece(v.iov_base.cast::<u8>().wrapping_add(self.at), done, len);
            done += len;
            self.at += len;
            if self.at == v.iov_len {
                (self.iovecs, self.at) = (rest, 0);
            }
        }
    }
}

/// Skips `bytes` from the front of `list`: returns how many ranges are used up, and shortens the one after them.
pub(super) fn skip(list: &mut [libc::iovec], mut bytes: usize) -> usize {
    let mut whole = 0;
    while let Some(v) = list.get_mut(whole) {
        if v.iov_len > bytes {
            v.iov_base = v.iov_base.wrapping_byte_add(bytes);
            v.iov_len -= bytes;
            break;
        }
        bytes -= v.iov_len;
        whole += 1;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &[(usize, usize)]) -> Iovecs {
        let to = |&(base, len): &(usize, usize)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(base),
            iov_len: len,
        };
        Iovecs(parts.iter().map(to).collect())
    }

    fn parts(list: &Iovecs) -> Vec<(usize, usize)> {
        list.as_slice()
            .iter()
            .map(|v| (v.iov_base.addr(), v.iov_len))
            .collect()
    }

    #[test]
    fn both_ends_can_be_cut_within_and_across_ranges() {
        let mut v = list(&[(0x1000, 16), (0x2000, 512), (0x3000, 1)]);
        assert_eq!(v.len(), 529);
        v.skip_front(16);
        v.trim_back(1);
        assert_eq!(parts(&v), [(0x2000, 512)]);
        v.skip_front(10);
        v.trim_back(2);
        assert_eq!(parts(&v), [(0x200a, 500)]);
        v.skip_front(500);
        assert!(v.is_empty() && parts(&v).is_empty());
        v.trim_back(3);
        v.skip_front(3);
        assert_eq!(v.len(), 0);
    }
}
