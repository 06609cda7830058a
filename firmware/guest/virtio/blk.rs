//! virtio-blk (VIRTIO 1.3, 5.2): every request type, every layout, every answer to what must not be.

use super::queue::{Queue, Segment, from, into};
use super::{Device, EVENT_IDX, INDIRECT};
use crate::arena::{self, hash};
use crate::out::{Ascii, Out, Outcome, Problem, ensure, fail, skip, text};
use crate::sys::{bytes, read, write};

pub const SEG_MAX: u64 = 1 << 2;
pub const READ_ONLY: u64 = 1 << 5;
pub const BLK_SIZE: u64 = 1 << 6;
pub const FLUSH: u64 = 1 << 9;
pub const TOPOLOGY: u64 = 1 << 10;
pub const CONFIG_WCE: u64 = 1 << 11;
pub const DISCARD: u64 = 1 << 13;
pub const WRITE_ZEROES: u64 = 1 << 14;
pub const WANTED: u64 = SEG_MAX
    | READ_ONLY
    | BLK_SIZE
    | FLUSH
    | TOPOLOGY
    | CONFIG_WCE
    | DISCARD
    | WRITE_ZEROES
    | INDIRECT
    | EVENT_IDX;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What a status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// Segments of one request, at most.
pub const SEGMENTS: usize = 130;

pub struct Disk {
    pub device: Device,
    pub queue: Queue,
    pub sectors: u64,
    /// Header, then the status byte at +16.
    header: u64,
}

impl Disk {
    pub fn open(device: Device, wanted: u64) -> Result<Self, Problem> {
        let mut device = device;
        arena::reset();
        device.open(wanted)?;
        let Some(queue) = device.queue(0, 256, SEGMENTS as u16)? else {
            fail!("no queue 0")
        };
        device.start()?;
        let sectors = device.config64(0);
        let Some(header) = arena::take(32, 16) else {
            fail!("no memory")
        };
        Ok(Self {
            device,
            queue,
            sectors,
            header,
        })
    }

    pub fn memory(&self, length: u64) -> Result<u64, Problem> {
        match arena::take(length, 4096) {
            Some(address) => Ok(address),
            None => skip!(
                "RAM too small: {length} bytes wanted, {} left",
                arena::left()
            ),
        }
    }

    pub fn fill_header(at: u64, kind: u32, sector: u64) {
        write(at, kind);
        write(at + 4, 0_u32);
        write(at + 8, sector);
        write(at + 16, UNTOUCHED);
    }

    /// One request with its data in these pieces; the status byte.
    pub fn request(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[Segment],
        indirect: bool,
    ) -> Result<u8, Problem> {
        Self::fill_header(self.header, kind, sector);
        let mut request = [from(0, 0); SEGMENTS];
        let count = data.len() + 2;
        request[0] = from(self.header, 16);
        request[1..count - 1].copy_from_slice(data);
        request[count - 1] = into(self.header + 16, 1);
        let written = self.queue.run(&request[..count], indirect)?;
        let status = read(self.header + 16);
        ensure!(status != UNTOUCHED, "request {kind}: no status was written");
        let most: u64 = data
            .iter()
            .filter(|s| s.writable)
            .map(|s| u64::from(s.length))
            .sum::<u64>()
            + 1;
        ensure!(
            u64::from(written) <= most,
            "request {kind}: {written} bytes written, {most} possible"
        );
        if status == OK && kind == IN {
            ensure!(
                u64::from(written) == most,
                "read: {written} bytes written instead of {most}"
            );
        }
        Ok(status)
    }

    pub fn read(
        &mut self,
        sector: u64,
        at: u64,
        length: u32,
        indirect: bool,
    ) -> Result<(), Problem> {
        let status = self.request(IN, sector, &[into(at, length)], indirect)?;
        ensure!(
            status == OK,
            "read of {length} bytes at sector {sector}: status {status}"
        );
        Ok(())
    }
    pub fn write(&mut self, sector: u64, at: u64, length: u32) -> Result<(), Problem> {
        let status = self.request(OUT, sector, &[from(at, length)], true)?;
        ensure!(
            status == OK,
            "write of {length} bytes at sector {sector}: status {status}"
        );
        Ok(())
    }
    pub fn flush(&mut self) -> Result<(), Problem> {
        let status = self.request(T_FLUSH, 0, &[], false)?;
        ensure!(status == OK, "flush: status {status}");
        Ok(())
    }
    fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> Result<u8, Problem> {
        let at = self.memory(16)?;
        write(at, sector);
        write(at + 8, count);
        write(at + 12, flags);
        self.request(kind, 0, &[from(at, 16)], false)
    }
}

/// All tests of one disk. Without `may_write` nothing on it changes.
pub fn all(out: &mut Out, n: usize, device: Device, may_write: bool) {
    for (name, features) in [
        ("plain", 0),
        ("event", EVENT_IDX),
        ("indirect", INDIRECT),
        ("both", EVENT_IDX | INDIRECT),
    ] {
        out.result(text!("blk{n}.read.{name}"), reads(device, features));
    }
    out.result(text!("blk{n}.config"), config(device));
    out.result(text!("blk{n}.id"), id(device));
    out.result(text!("blk{n}.range"), out_of_range(device));
    out.result(text!("blk{n}.unknown"), unknown(device));
    out.result(text!("blk{n}.layout"), layouts(device));
    out.result(text!("blk{n}.segments"), segments(device));
    out.result(text!("blk{n}.depth"), depth(device));
    out.result(text!("blk{n}.flush"), flush(device));
    out.result(text!("blk{n}.wce"), write_cache(device));
    if device.features & READ_ONLY != 0 {
        out.result(text!("blk{n}.readonly"), read_only(device));
    } else {
        out.result(
            text!("blk{n}.write"),
            if may_write {
                writes(device)
            } else {
                not_asked()
            },
        );
        out.result(
            text!("blk{n}.discard"),
            if may_write {
                discard(device)
            } else {
                not_asked()
            },
        );
        out.result(
            text!("blk{n}.zeroes"),
            if may_write {
                zeroes(device)
            } else {
                not_asked()
            },
        );
    }
    // The next user finds a device as after power on.
    let _ = device.reset();
}

fn not_asked() -> Outcome {
    skip!("changes the disk: say write")
}

fn reads(device: Device, features: u64) -> Outcome {
    if device.features & features != features {
        skip!("not offered")
    }
    let mut disk = Disk::open(device, features)?;
    ensure!(disk.sectors > 0, "capacity is 0");
    let (a, b) = (disk.memory(4096)?, disk.memory(4096)?);
    let last = disk.sectors - 1;
    disk.read(0, a, 512, false)?;
    disk.read(last, b, 512, false)?;
    let first = hash(bytes(a, 512));
    // More requests than the ring has entries: indices wrap.
    let rounds = u64::from(disk.queue.size) + 3;
    for i in 0..rounds {
        arena::fill(b, 512, i as u8);
        disk.read(0, b, 512, i % 2 == 0)?;
        ensure!(
            hash(bytes(b, 512)) == first,
            "sector 0 reads differently, round {i}"
        );
    }
    Ok(text!(
        "{} sectors, {} requests, {} kicks",
        disk.sectors,
        rounds + 2,
        disk.queue.kicks
    ))
}

fn config(device: Device) -> Outcome {
    let disk = Disk::open(device, WANTED)?;
    let (f, d) = (disk.device.agreed, &disk.device);
    let segments: u32 = d.config(12);
    let block: u32 = d.config(20);
    let exponent: u8 = d.config(24);
    if f & SEG_MAX != 0 {
        ensure!(segments > 0, "seg_max is 0");
    }
    if f & BLK_SIZE != 0 {
        ensure!(block >= 512 && block.is_power_of_two(), "blk_size {block}");
    }
    // Offered write-zeroes or discard without room for one segment would be a lie (VIRTIO 5.2.4).
    if f & DISCARD != 0 {
        ensure!(
            d.config::<u32>(36) > 0 && d.config::<u32>(40) > 0,
            "discard is offered, its limits are 0"
        );
    }
    if f & WRITE_ZEROES != 0 {
        ensure!(
            d.config::<u32>(48) > 0 && d.config::<u32>(52) > 0,
            "write-zeroes is offered, its limits are 0"
        );
    }
    Ok(text!(
        "{} bytes, block {block}, physical 2^{exponent}, seg_max {segments}, queue {}, {}",
        disk.sectors.wrapping_mul(512),
        disk.queue.size,
        if f & READ_ONLY != 0 {
            "read-only"
        } else {
            "writable"
        }
    ))
}

fn id(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let at = disk.memory(32)?;
    let status = disk.request(GET_ID, 0, &[into(at, 20)], false)?;
    ensure!(status == OK, "status {status}");
    let name = bytes(at, 20);
    let end = name.iter().position(|&b| b == 0).unwrap_or(20);
    Ok(text!("\"{}\"", Ascii(&name[..end])))
}

fn out_of_range(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let at = disk.memory(8192)?;
    let last = disk.sectors - 1;
    for (sector, length) in [
        (disk.sectors, 512),
        (last, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 63, 4096),
    ] {
        for (kind, data) in [(IN, into(at, length)), (OUT, from(at, length))] {
            let status = disk.request(kind, sector, &[data], false)?;
            ensure!(
                status == IOERR,
                "request {kind}, sector {sector:#x}, {length} bytes: status {status}"
            );
        }
    }
    // Not a number of sectors (VIRTIO 5.2.6: data is a multiple of 512 bytes).
    let status = disk.request(IN, 0, &[into(at, 100)], false)?;
    ensure!(status == IOERR, "read of 100 bytes: status {status}");
    disk.read(last, at, 512, false)?;
    Ok(text!("IOERR as it should be, the last sector still reads"))
}

fn unknown(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let at = disk.memory(512)?;
    for kind in [7, 99, 0x7fff_fff0] {
        let status = disk.request(kind, 0, &[into(at, 512)], false)?;
        ensure!(status == UNSUPP, "request type {kind:#x}: status {status}");
    }
    Ok(text!("UNSUPP as it should be"))
}

/// The driver may cut a request where it likes (VIRTIO 2.7.4).
fn layouts(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let (a, b) = (disk.memory(4096)?, disk.memory(4096)?);
    disk.read(0, a, 1024, false)?;
    let right = hash(bytes(a, 1024));
    let header = disk.memory(32)?;
    let pieces: [&[Segment]; 4] = [
        &[
            from(header, 7),
            from(header + 7, 9),
            into(b, 1024),
            into(header + 16, 1),
        ],
        &[from(header, 16), into(b, 1025)],
        &[
            from(header, 16),
            into(b, 1),
            into(b + 1, 1022),
            into(b + 1023, 2),
        ],
        &[
            from(header, 1),
            from(header + 1, 15),
            into(b, 511),
            into(b + 511, 513),
            into(header + 16, 1),
        ],
    ];
    for (n, pieces) in pieces.into_iter().enumerate() {
        for indirect in [false, true] {
            Disk::fill_header(header, IN, 0);
            arena::fill(b, 1025, UNTOUCHED);
            let written = disk.queue.run(pieces, indirect)?;
            let status: u8 = if matches!(n, 1 | 2) {
                read(b + 1024)
            } else {
                read(header + 16)
            };
            ensure!(status == OK, "layout {n}: status {status}");
            ensure!(written == 1025, "layout {n}: {written} bytes written");
            ensure!(hash(bytes(b, 1024)) == right, "layout {n}: wrong data");
        }
    }
    Ok(text!("4 layouts, direct and indirect"))
}

fn segments(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let offered = if disk.device.has(SEG_MAX) {
        disk.device.config::<u32>(12) as usize
    } else {
        1
    };
    let count = offered.min(SEGMENTS - 2).min(disk.sectors as usize);
    let length = count as u32 * 512;
    let (a, b) = (disk.memory(length.into())?, disk.memory(length.into())?);
    disk.read(0, a, length, false)?;
    let mut list = [from(0, 0); SEGMENTS];
    for (i, slot) in list.iter_mut().take(count).enumerate() {
        *slot = into(b + i as u64 * 512, 512);
    }
    let direct = count + 2 <= usize::from(disk.queue.size);
    for indirect in [false, true] {
        if !indirect && !direct || indirect && !disk.device.has(INDIRECT) {
            continue;
        }
        arena::fill(b, length.into(), 0x5a);
        let status = disk.request(IN, 0, &list[..count], indirect)?;
        ensure!(status == OK, "{count} segments: status {status}");
        ensure!(
            hash(bytes(a, length as usize)) == hash(bytes(b, length as usize)),
            "{count} segments: wrong data"
        );
    }
    Ok(text!("{count} segments in one request"))
}

/// As many requests in flight as the ring takes, twice over.
fn depth(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let indirect = disk.device.has(INDIRECT);
    let entries = u64::from(disk.queue.size) / if indirect { 1 } else { 3 };
    let entries = entries.min(disk.sectors);
    let (data, headers) = (disk.memory(entries * 512)?, disk.memory(entries * 32)?);
    let single = disk.memory(512)?;
    let mut worst = 0;
    for round in 0..2 {
        arena::fill(data, entries * 512, 0xa5);
        let mut slots = [u16::MAX; super::queue::MAX_QUEUE];
        for i in 0..entries {
            let header = headers + i * 32;
            Disk::fill_header(header, IN, i * (disk.sectors / entries));
            let request = [
                from(header, 16),
                into(data + i * 512, 512),
                into(header + 16, 1),
            ];
            let Some(head) = disk.queue.add(&request, true) else {
                fail!("no room for request {i}")
            };
            slots[usize::from(head)] = i as u16;
        }
        worst = disk.queue.in_flight();
        disk.queue.kick();
        for _ in 0..entries {
            let (head, length) = disk.queue.wait()?;
            let i = u64::from(slots[usize::from(head)]);
            let status: u8 = read(headers + i * 32 + 16);
            ensure!(
                status == OK && length == 513,
                "request {i}: status {status}, length {length}"
            );
        }
        ensure!(disk.queue.poll()?.is_none(), "more answers than requests");
        for i in (0..entries).step_by(1 + (entries / 8) as usize) {
            disk.read(i * (disk.sectors / entries), single, 512, false)?;
            ensure!(
                bytes(single, 512) == bytes(data + i * 512, 512),
                "request {i} of round {round}: wrong data"
            );
        }
    }
    Ok(text!("{worst} in flight"))
}

fn flush(device: Device) -> Outcome {
    if device.features & FLUSH == 0 {
        skip!("not offered")
    }
    let mut disk = Disk::open(device, WANTED)?;
    for _ in 0..3 {
        disk.flush()?;
    }
    Ok(text!(""))
}

fn write_cache(device: Device) -> Outcome {
    if device.features & CONFIG_WCE == 0 {
        skip!("not offered")
    }
    let disk = Disk::open(device, WANTED)?;
    let place = disk.device.base + super::CONFIG + 32;
    let before: u8 = read(place);
    for wanted in [0, 1, before] {
        write(place, wanted);
        let now: u8 = read(place);
        ensure!(now == wanted, "wrote {wanted}, reads {now}");
    }
    Ok(text!(
        "{} at start",
        if before == 1 {
            "writeback"
        } else {
            "writethrough"
        }
    ))
}

fn read_only(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let (a, b) = (disk.memory(512)?, disk.memory(512)?);
    disk.read(0, a, 512, false)?;
    arena::fill(b, 512, 0xc3);
    let status = disk.request(OUT, 0, &[from(b, 512)], false)?;
    ensure!(status == IOERR, "a write has status {status}");
    disk.read(0, b, 512, false)?;
    ensure!(bytes(a, 512) == bytes(b, 512), "the write went through");
    Ok(text!("a write is an IOERR"))
}

/// Where the writing tests happen: up to 64 KiB at the disk's end, saved and put back.
fn scratch(disk: &mut Disk) -> Result<(u64, u32, u64), Problem> {
    let sectors = disk.sectors.min(128);
    let (start, length) = (disk.sectors - sectors, sectors as u32 * 512);
    let saved = disk.memory(length.into())?;
    disk.read(start, saved, length, true)?;
    Ok((start, length, saved))
}

fn writes(device: Device) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let (start, length, saved) = scratch(&mut disk)?;
    let (a, b) = (disk.memory(length.into())?, disk.memory(length.into())?);
    let outcome = (|| {
        for round in 1..4_u64 {
            for i in (0..u64::from(length)).step_by(8) {
                write(
                    a + i,
                    (start * 512 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round,
                );
            }
            let half = length / 1024 * 512;
            if round == 2 && half > 0 {
                let (rest, at) = (length - half, start + u64::from(half / 512));
                disk.write(at, a + u64::from(half), rest)?;
                disk.write(start, a, half)?;
            } else {
                disk.write(start, a, length)?;
            }
            arena::fill(b, length.into(), 0);
            disk.read(start, b, length, round == 3)?;
            ensure!(
                bytes(a, length as usize) == bytes(b, length as usize),
                "round {round}: wrong data"
            );
        }
        if disk.device.has(FLUSH) {
            disk.flush()?;
        }
        Ok(text!("{length} bytes, 3 patterns"))
    })();
    disk.write(start, saved, length)?;
    outcome
}

fn discard(device: Device) -> Outcome {
    if device.features & DISCARD == 0 {
        skip!("not offered")
    }
    let mut disk = Disk::open(device, WANTED)?;
    let (start, length, saved) = scratch(&mut disk)?;
    let sectors = length / 512;
    let outcome = (|| {
        let status = disk.range(T_DISCARD, start, sectors, 0)?;
        ensure!(status == OK, "status {status}");
        // The unmap flag is reserved for discard, and a device that sees it set says so (VIRTIO 5.2.6.2).
        let status = disk.range(T_DISCARD, start, sectors, 1)?;
        ensure!(status == UNSUPP, "with the unmap flag: status {status}");
        let status = disk.range(T_DISCARD, disk.sectors, 8, 0)?;
        ensure!(status == IOERR, "past the end: status {status}");
        Ok(text!("{sectors} sectors"))
    })();
    disk.write(start, saved, length)?;
    outcome
}

fn zeroes(device: Device) -> Outcome {
    if device.features & WRITE_ZEROES == 0 {
        skip!("not offered")
    }
    let mut disk = Disk::open(device, WANTED)?;
    let (start, length, saved) = scratch(&mut disk)?;
    let at = disk.memory(length.into())?;
    let sectors = length / 512;
    let outcome = (|| {
        for flags in [0, 1] {
            arena::fill(at, length.into(), 0x77);
            disk.write(start, at, length)?;
            let status = disk.range(T_WRITE_ZEROES, start, sectors, flags)?;
            ensure!(status == OK, "flags {flags}: status {status}");
            disk.read(start, at, length, false)?;
            ensure!(
                bytes(at, length as usize).iter().all(|&b| b == 0),
                "flags {flags}: not all zero"
            );
        }
        let status = disk.range(T_WRITE_ZEROES, start, sectors, 2)?;
        ensure!(status == UNSUPP, "with an unknown flag: status {status}");
        let status = disk.range(T_WRITE_ZEROES, u64::MAX, 8, 0)?;
        ensure!(status == IOERR, "past the end: status {status}");
        Ok(text!("{sectors} sectors"))
    })();
    disk.write(start, saved, length)?;
    outcome
}
