//! A device's configuration space (VIRTIO 2.5), readable by vCPU threads while the device runs elsewhere.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Told of each byte the driver wrote where it may: its offset and value. Called on a vCPU thread.
pub type WriteHook = Box<dyn Fn(usize, u8) + Send + Sync>;

/// Bytes of the configuration space, their generation, and which of them the driver may write.
///
/// A read never sees half an update; a reader that needs several reads to agree re-reads the generation, as VIRTIO
/// 2.5.1 says.
pub struct ConfigSpace {
    bytes: Box<[AtomicU8]>,
    generation: AtomicU32,
    /// Held by an update, and by every look of the driver.
    update: Mutex<()>,
    writable: Range<usize>,
    hook: Option<WriteHook>,
}

impl ConfigSpace {
    /// A space with these initial bytes; the driver may write those in `writable`.
    pub fn new(bytes: &[u8], writable: Range<usize>) -> Self {
        Self {
            bytes: bytes.iter().map(|&b| AtomicU8::new(b)).collect(),
            generation: AtomicU32::new(0),
            update: Mutex::new(()),
            writable,
            hook: None,
        }
    }

    /// The same, with `hook` called after each write.
    pub fn with_hook(mut self, hook: WriteHook) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Driver read: bytes past the end read as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let _whole = self.lock();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self
                .cell(offset, i)
                .map_or(0, |(_, cell)| cell.load(Ordering::Acquire));
        }
    }

    /// Driver write: bytes outside the writable range are ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            if let Some((at, cell)) = self.cell(offset, i)
                && self.writable.contains(&at)
            {
                cell.store(byte, Ordering::Release);
                if let Some(hook) = &self.hook {
                    hook(at, byte);
                }
            }
        }
    }

    /// Device side: stores bytes and bumps the generation. The caller raises the configuration interrupt.
    pub fn update(&self, offset: usize, data: &[u8]) {
        let _whole = self.lock();
        for (cell, &byte) in self.bytes.iter().skip(offset).zip(data) {
            cell.store(byte, Ordering::Release);
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Device side: one byte (a value the driver may have written).
    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes
            .get(offset)
            .map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    /// ConfigGeneration (VIRTIO 2.5.1).
    pub fn generation(&self) -> u32 {
        let _whole = self.lock();
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.update.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, offset: u64, i: usize) -> Option<(usize, &AtomicU8)> {
        let at = usize::try_from(offset.checked_add(i as u64)?).ok()?;
        Some((at, self.bytes.get(at)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_sees_zeroes_past_the_end_and_writes_only_where_it_may() {
        let config = ConfigSpace::new(&[1, 2, 3, 4], 2..3);
        config.write(0, &[9, 9, 9, 9, 9]);
        let mut data = [7; 6];
        config.read(0, &mut data);
        assert_eq!(data, [1, 2, 9, 4, 0, 0]);
        config.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 6]);
        assert_eq!(config.generation(), 0);
        config.update(3, &[8, 8]);
        assert_eq!(
            (config.byte(3), config.byte(4), config.generation()),
            (8, 0, 1)
        );
    }

    #[test]
    fn a_reader_that_follows_the_generation_never_sees_half_an_update() {
        const LEN: usize = 256;
        let config = ConfigSpace::new(&[0; LEN], 0..0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for update in 0..20_000 {
                    config.update(0, &[update as u8; LEN]);
                }
            });
            let mut torn = None;
            while !writer.is_finished() && torn.is_none() {
                let before = config.generation();
                let (mut first, mut last) = ([0], [0]);
                config.read(0, &mut first);
                config.read(LEN as u64 - 1, &mut last);
                if config.generation() == before && first != last {
                    torn = Some((first, last));
                }
            }
            assert_eq!(torn, None);
        });
        assert_eq!(config.generation(), 20_000);
    }
}
