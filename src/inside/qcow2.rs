//! qcow2, read only, of one file (QEMU docs/interop/qcow2.rst). What an image refers to is not followed: backing files,
//! data files and encryption are refused, whatever the reader wants.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;

use super::blocks::{Blocks, Raw, be32, be64, beyond};

/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;
/// Most entries of the first table: QEMU's own limit, 32 MiB.
const MOST_L1: u32 = (32 << 20) / 8;
/// Features that change nothing for a reader: it was not closed (bit 0), it is known to be damaged (1), and how
/// clusters are compressed (3).
const HARMLESS: u64 = 0b1011;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    Deflate,
    Zstd,
}

/// An image.
pub(super) struct Qcow2 {
    file: Raw,
    size: u64,
    cluster_bits: u32,
    l1: Vec<u64>,
    packing: Packing,
    /// Has bits for clusters of zeros.
    v3: bool,
    /// The last second-level table.
    l2: RefCell<(u64, Vec<u64>)>,
    /// The last compressed cluster.
    cluster: RefCell<(u64, Vec<u8>)>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Qcow2 {
    pub(super) fn new(file: Raw) -> io::Result<Self> {
        let short = || bad("it ends within its header");
        let mut header = vec![0; 104];
        let v2 = file.read_at(0, &mut header).is_err();
        if v2 {
            header.truncate(72);
            file.read_at(0, &mut header).map_err(|_| short())?;
        }
        let at32 = |at| be32(&header, at).ok_or_else(short);
        let at64 = |at| be64(&header, at).ok_or_else(short);
        if header.get(..4) != Some(b"QFI\xfb") {
            return Err(bad("it does not begin as a qcow2 image does"));
        }
        let v3 = match at32(4)? {
            2 => false,
            3 => true,
            other => return Err(bad(&format!("qcow2 version {other}: there are 2 and 3"))),
        };
        if at64(8)? != 0 {
            return Err(bad("it has a backing file, which is not followed"));
        }
        if at32(32)? != 0 {
            return Err(bad("it is encrypted"));
        }
        let features = if v3 { at64(72)? } else { 0 };
        if features & 1 << 2 != 0 {
            return Err(bad("its data is in another file, which is not followed"));
        }
        if features & !HARMLESS != 0 {
            return Err(bad("it has features that are not known here"));
        }
        let packing = match v3 && features & 1 << 3 != 0 {
            false => Packing::Deflate,
            true => {
                let mut kind = [0];
                file.read_at(104, &mut kind)?;
                match kind {
                    [0] => Packing::Deflate,
                    [1] => Packing::Zstd,
                    _ => {
                        return Err(bad(
                            "its clusters are compressed in a way that is not known here",
                        ));
                    }
                }
            }
        };
        let (cluster_bits, size, count) = (at32(20)?, at64(24)?, at32(36)?);
        if !(9..=21).contains(&cluster_bits) || count > MOST_L1 {
            return Err(bad(
                "its clusters or tables are of a size that qcow2 does not have",
            ));
        }
        let mut bytes = vec![0; count as usize * 8];
        file.read_at(at64(40)?, &mut bytes)?;
        Ok(Qcow2 {
            l1: entries(&bytes),
            file,
            size,
            cluster_bits,
            packing,
            v3,
            l2: RefCell::new((0, Vec::new())),
            cluster: RefCell::new((0, Vec::new())),
        })
    }

    /// The entry of a guest's cluster; 0: there is none.
    fn entry(&self, cluster: u64) -> io::Result<u64> {
        let bits = self.cluster_bits - 3;
        let first = usize::try_from(cluster >> bits).map_err(|_| beyond())?;
        let table = self.l1.get(first).copied().ok_or_else(beyond)? & OFFSET;
        if table == 0 {
            return Ok(0);
        }
        let mut last = self.l2.borrow_mut();
        if last.0 != table {
            let mut bytes = vec![0; 1 << self.cluster_bits];
            self.file.read_at(table, &mut bytes)?;
            *last = (table, entries(&bytes));
        }
        let second = usize::try_from(cluster & ((1 << bits) - 1)).map_err(|_| beyond())?;
        last.1.get(second).copied().ok_or_else(beyond)
    }

    /// A compressed cluster.
    fn unpack(&self, entry: u64, from: usize, to: &mut [u8]) -> io::Result<()> {
        let mut last = self.cluster.borrow_mut();
        if last.0 != entry {
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let end = (offset & !511).saturating_add((sectors + 1) * 512);
            // The last sector may be cut off by the end of the file.
            let end = end.min(self.file.size());
            let length = end.checked_sub(offset).ok_or_else(beyond)?;
            let mut packed = vec![0; usize::try_from(length).map_err(|_| beyond())?];
            self.file.read_at(offset, &mut packed)?;
            let mut cluster = vec![0; 1 << self.cluster_bits];
            let damaged = || bad("a compressed cluster is damaged");
            match self.packing {
                Packing::Deflate => {
                    // What follows it in its last sector is of other clusters.
                    let done = libdeflater::Decompressor::new()
                        .deflate_decompress(&packed, &mut cluster)
                        .map_err(|_| damaged())?;
                    if done != cluster.len() {
                        return Err(damaged());
                    }
                }
                Packing::Zstd => {
                    let mut reader = zstd::stream::Decoder::new(packed.as_slice())?;
                    io::Read::read_exact(&mut reader, &mut cluster).map_err(|_| damaged())?;
                }
            }
            *last = (entry, cluster);
        }
        let end = from.checked_add(to.len()).ok_or_else(beyond)?;
        to.copy_from_slice(last.1.get(from..end).ok_or_else(beyond)?);
        Ok(())
    }
}

fn entries(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|w| u64::from_be_bytes(*w)).collect()
}

impl Blocks for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !super::blocks::is_within(at, buffer.len(), self.size) {
            return Err(beyond());
        }
        let size = 1u64 << self.cluster_bits;
        let mut at = at;
        let mut rest = buffer;
        while !rest.is_empty() {
            let within = at & (size - 1);
            let length = usize::try_from(size - within)
                .map_err(|_| beyond())?
                .min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            let entry = self.entry(at >> self.cluster_bits)?;
            if entry & COMPRESSED != 0 {
                self.unpack(entry, usize::try_from(within).map_err(|_| beyond())?, now)?;
            } else if entry & OFFSET == 0 || (self.v3 && entry & ZERO != 0) {
                now.fill(0);
            } else {
                let place = (entry & OFFSET).checked_add(within).ok_or_else(beyond)?;
                self.file.read_at(place, now)?;
            }
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}
