//! An address space of devices, used for port I/O and MMIO alike.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device that answers register accesses. `offset` counts from the base the device was inserted at, and
/// `offset + data.len()` never exceeds the length it was inserted with.
pub trait BusDevice: Send {
    /// Fills `data` (1, 2, 4 or 8 bytes, little endian).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1, 2, 4 or 8 bytes, little endian).
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device on a bus; the lock is held for one register access.
pub type Slot = Arc<Mutex<dyn BusDevice>>;

/// Why a device could not be placed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Two devices claim the same addresses.
    #[error("Addresses {base:#x}..={last:#x} overlap those of another device")]
    Overlap {
        /// First address asked for.
        base: u64,
        /// Last address asked for.
        last: u64,
    },
    /// An empty range, or one that runs past the end of the address space.
    #[error("A device range of {len:#x} bytes at {base:#x} is empty or too long")]
    BadRange {
        /// First address asked for.
        base: u64,
        /// Length asked for, bytes.
        len: u64,
    },
}

struct Entry {
    base: u64,
    last: u64,
    device: Slot,
}

/// Devices sorted by address. Built once, then read by all vCPU threads without a lock of its own.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `base..base + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is empty, wraps, or is taken.
    pub fn insert(&mut self, base: u64, len: u64, device: Slot) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .ok_or(BusError::BadRange { base, len })?;
        let at = self.entries.partition_point(|e| e.last < base);
        if self.entries.get(at).is_some_and(|e| e.base <= last) {
            return Err(BusError::Overlap { base, last });
        }
        self.entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// Reads registers; unclaimed addresses read as all ones, as on real hardware. Returns whether a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some(entry) => {
                lock(&entry.device).read(address - entry.base, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes registers; writes to unclaimed addresses are lost. Returns whether a device answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some(entry) => {
                lock(&entry.device).write(address - entry.base, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<&Entry> {
        let at = self.entries.partition_point(|e| e.last < address);
        let entry = self.entries.get(at)?;
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        (entry.base <= address && last <= entry.last).then_some(entry)
    }
}

fn lock(slot: &Mutex<dyn BusDevice>) -> MutexGuard<'_, dyn BusDevice + 'static> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ram([u8; 16]);

    impl BusDevice for Ram {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            let at = offset as usize;
            data.copy_from_slice(&self.0[at..at + data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            let at = offset as usize;
            self.0[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn ram() -> Slot {
        Arc::new(Mutex::new(Ram::default()))
    }

    #[test]
    fn accesses_reach_the_device_whole_or_not_at_all() {
        let mut bus = Bus::new();
        bus.insert(0x10, 16, ram()).unwrap();
        bus.insert(0x20, 16, ram()).unwrap();
        assert!(bus.write(0x1c, &[1, 2, 3, 4]));
        let mut data = [0; 4];
        assert!(bus.read(0x1c, &mut data));
        assert_eq!(data, [1, 2, 3, 4]);
        assert!(
            !bus.read(0x1e, &mut data),
            "an access across two devices belongs to neither"
        );
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0x0f, &[0]));
        assert!(!bus.read(u64::MAX, &mut data));
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x10, 16, ram()).unwrap();
        assert_eq!(
            bus.insert(0x1f, 1, ram()),
            Err(BusError::Overlap {
                base: 0x1f,
                last: 0x1f
            })
        );
        assert_eq!(
            bus.insert(0, 0x100, ram()),
            Err(BusError::Overlap {
                base: 0,
                last: 0xff
            })
        );
        assert_eq!(
            bus.insert(0, 0, ram()),
            Err(BusError::BadRange { base: 0, len: 0 })
        );
        assert_eq!(
            bus.insert(2, u64::MAX, ram()),
            Err(BusError::BadRange {
                base: 2,
                len: u64::MAX
            })
        );
        bus.insert(0x20, 1, ram()).unwrap();
        bus.insert(0, 0x10, ram()).unwrap();
    }
}
