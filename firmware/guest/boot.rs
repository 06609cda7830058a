//! What the loader left in memory (PVH: xen/include/public/arch-x86/hvm/start_info.h), copied out of its way.

use crate::sys::{bytes, read_unaligned};

const MAGIC: u32 = 0x336e_c578;
pub const CMDLINE_ROOM: usize = 4096;
pub const RANGES: usize = 32;

#[derive(Clone, Copy)]
pub struct Range {
    pub base: u64,
    pub length: u64,
    /// As in e820: 1 is RAM.
    pub kind: u32,
}

/// A copy of the command line. Apart from `Boot`, so that its zeroes take no room in the file.
static mut CMDLINE: [u8; CMDLINE_ROOM] = [0; CMDLINE_ROOM];

pub struct Boot {
    pub magic: bool,
    pub version: u32,
    pub cmdline_length: usize,
    /// The text did not end within the room for it.
    pub cmdline_cut: bool,
    pub ranges: [Range; RANGES],
    pub range_count: usize,
    pub rsdp: u64,
    pub modules: u32,
}

impl Boot {
    pub const fn new() -> Self {
        Self {
            magic: false,
            version: 0,
            cmdline_length: 0,
            cmdline_cut: false,
            ranges: [Range {
                base: 0,
                length: 0,
                kind: 0,
            }; RANGES],
            range_count: 0,
            rsdp: 0,
            modules: 0,
        }
    }

    /// Only the first GiB is mapped here: addresses beyond it are not followed.
    pub fn read(&mut self, start_info: u64) {
        let low = |address: u64, length: u64| address != 0 && address < (1 << 30) - length;
        self.magic = low(start_info, 56) && read_unaligned::<u32>(start_info) == MAGIC;
        if !self.magic {
            return;
        }
        self.version = read_unaligned(start_info + 4);
        self.modules = read_unaligned(start_info + 12);
        let cmdline: u64 = read_unaligned(start_info + 24);
        self.rsdp = read_unaligned(start_info + 32);
        if low(cmdline, CMDLINE_ROOM as u64) {
            let text = bytes(cmdline, CMDLINE_ROOM);
            let end = text.iter().position(|&b| b == 0);
            self.cmdline_cut = end.is_none();
            self.cmdline_length = end.unwrap_or(CMDLINE_ROOM);
            // SAFETY: written once, here, before any reference to it exists.
            let copy = unsafe { &mut *core::ptr::addr_of_mut!(CMDLINE) };
            copy[..self.cmdline_length].copy_from_slice(&text[..self.cmdline_length]);
        }
        if self.version >= 1 {
            let map: u64 = read_unaligned(start_info + 40);
            let count = read_unaligned::<u32>(start_info + 48) as usize;
            if low(map, 24 * RANGES as u64) {
                self.range_count = count.min(RANGES);
                for (i, range) in self.ranges.iter_mut().take(self.range_count).enumerate() {
                    let at = map + i as u64 * 24;
                    *range = Range {
                        base: read_unaligned(at),
                        length: read_unaligned(at + 8),
                        kind: read_unaligned(at + 16),
                    };
                }
            }
        }
    }

    pub fn cmdline(&self) -> &'static [u8] {
        // SAFETY: nothing writes it after `read`.
        let copy = unsafe { &*core::ptr::addr_of!(CMDLINE) };
        &copy[..self.cmdline_length]
    }
    pub fn ram(&self) -> impl Iterator<Item = Range> {
        self.ranges[..self.range_count]
            .iter()
            .copied()
            .filter(|r| r.kind == 1 && r.length > 0)
    }
    /// RAM behind `from` in the range that holds it.
    pub fn room_after(&self, from: u64) -> u64 {
        self.ram()
            .find(|r| r.base <= from && from - r.base < r.length)
            .map_or(0, |r| r.length - (from - r.base))
    }
}
