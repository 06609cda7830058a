//! Block benchmarks and long runs: `blk=seqread,seqwrite,rand,rand8,flush,fill,verify`.

use super::blk::{Disk, IN, OK, OUT, READ_ONLY, WANTED};
use super::queue::{MAX_QUEUE, from, into};
use super::{Device, blk};
use crate::clock::Clock;
use crate::out::{Out, Outcome, Problem, ensure, fail, skip, text};
use crate::params::{BLK_MODES, Params};
use crate::sys::{read, tsc, write};

const PAGE: u32 = 4096;
/// Bytes of a sequential request.
const PIECE: u32 = 256 << 10;

pub fn all(out: &mut Out, device: Device, params: &Params, clock: &Clock) {
    // Filled and verified before anything else writes; then the order of the list.
    let order = [6, 5, 0, 1, 2, 3, 4];
    for n in order.into_iter().filter(|n| params.blk & 1 << n != 0) {
        let mode = BLK_MODES[n];
        let outcome = match mode {
            "seqread" => stream(out, device, params, clock, IN, false),
            "seqwrite" => stream(out, device, params, clock, OUT, false),
            "rand" => single(out, device, params, clock),
            "rand8" => many(out, device, params, clock),
            "flush" => durable(out, device, params, clock),
            "verify" => stream(out, device, params, clock, IN, true),
            _ => stream(out, device, params, clock, OUT, true),
        };
        out.result(text!("blk.{mode}"), outcome);
    }
    let _ = device.reset();
}

/// What sector `sector` holds after `blk=fill`: its number and the seed, mixed, in every 8 bytes.
fn word(sector: u64, seed: u64, at: u64) -> u64 {
    (sector << 9 | at)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(seed)
}

fn stream(
    out: &mut Out,
    device: Device,
    params: &Params,
    clock: &Clock,
    kind: u32,
    check: bool,
) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    if kind == OUT && disk.device.has(READ_ONLY) {
        skip!("the disk is read-only")
    }
    let size = disk.sectors * 512;
    let piece = u64::from(PIECE).min(size);
    // What is filled or verified is the disk once; what is measured goes round.
    let total = if check {
        params.bytes.min(size) & !511
    } else {
        params.bytes
    };
    let slots = u64::from(params.depth)
        .min(8)
        .min(u64::from(disk.queue.size) / 3)
        .max(1);
    let (data, headers) = (disk.memory(slots * piece)?, disk.memory(slots * 32)?);
    let mut lengths = [0_u32; 8];
    let mut sectors = [0_u64; 8];
    let mut slot_of = [0_u8; MAX_QUEUE];
    let (mut asked, mut done, mut position) = (0_u64, 0_u64, 0_u64);
    let mut free = (1_u32 << slots) - 1;
    let start = tsc();
    while done < total {
        let mut added = false;
        while free != 0 && asked < total {
            let slot = u64::from(free.trailing_zeros());
            let length = piece.min(total - asked).min(size - position) & !511;
            if length == 0 {
                if position == 0 {
                    break;
                }
                position = 0;
                continue;
            }
            let (at, header) = (data + slot * piece, headers + slot * 32);
            let sector = position / 512;
            if kind == OUT && check {
                for i in (0..length).step_by(8) {
                    write(at + i, word(sector + i / 512, params.seed, i % 512));
                }
            }
            Disk::fill_header(header, kind, sector);
            let piece = if kind == OUT {
                from(at, length as u32)
            } else {
                into(at, length as u32)
            };
            let Some(head) = disk
                .queue
                .add(&[from(header, 16), piece, into(header + 16, 1)], true)
            else {
                break;
            };
            slot_of[usize::from(head)] = slot as u8;
            lengths[slot as usize] = length as u32;
            sectors[slot as usize] = sector;
            free &= !(1 << slot);
            asked += length;
            position += length;
            added = true;
        }
        if added {
            disk.queue.kick();
        }
        if disk.queue.in_flight() == 0 {
            break;
        }
        let (head, _) = disk.queue.wait()?;
        let slot = usize::from(slot_of[usize::from(head)]);
        let status: u8 = read(headers + slot as u64 * 32 + 16);
        ensure!(status == OK, "sector {}: status {status}", sectors[slot]);
        if kind == IN && check {
            let at = data + slot as u64 * piece;
            for i in (0..u64::from(lengths[slot])).step_by(8) {
                let (sector, found) = (sectors[slot] + i / 512, read::<u64>(at + i));
                let right = word(sector, params.seed, i % 512);
                ensure!(
                    found == right,
                    "sector {sector} byte {}: {found:#x}, not {right:#x}",
                    i % 512
                );
            }
        }
        done += u64::from(lengths[slot]);
        free |= 1 << slot;
    }
    if kind == OUT && disk.device.has(blk::FLUSH) {
        disk.flush()?;
    }
    let cycles = tsc() - start;
    if !check {
        let name = if kind == IN { "seqread" } else { "seqwrite" };
        out.bench(
            text!("blk.{name}"),
            done / clock.microseconds(cycles).max(1),
            "MB/s",
        );
    }
    Ok(text!(
        "{done} bytes, {slots} x {} KiB in flight, {} kicks",
        piece >> 10,
        disk.queue.kicks
    ))
}

/// xorshift64*: the same places for the same seed.
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn pages(disk: &Disk) -> Result<u64, Problem> {
    let pages = disk.sectors / u64::from(PAGE / 512);
    ensure!(pages > 0, "the disk is smaller than 4 KiB");
    Ok(pages)
}

fn percentiles(out: &mut Out, name: &str, samples: u64, count: usize, clock: &Clock) {
    // SAFETY: `count` words of the arena, written before.
    let list = unsafe { core::slice::from_raw_parts_mut(samples as *mut u32, count) };
    list.sort_unstable();
    let mean = list.iter().map(|&n| u64::from(n)).sum::<u64>() / count.max(1) as u64;
    for (what, cycles) in [
        ("mean", mean),
        ("p50", list[count / 2].into()),
        ("p99", list[count * 99 / 100].into()),
    ] {
        out.bench(text!("blk.{name}.{what}"), clock.nanoseconds(cycles), "ns");
    }
}

fn single(out: &mut Out, device: Device, params: &Params, clock: &Clock) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let (pages, count) = (pages(&disk)?, params.operations.max(1));
    let (data, samples) = (
        disk.memory(PAGE.into())?,
        disk.memory(u64::from(count) * 4)?,
    );
    let mut state = params.seed | 1;
    for i in 0..count {
        let sector = next(&mut state) % pages * 8;
        let start = tsc();
        disk.read(sector, data, PAGE, true)?;
        write(
            samples + u64::from(i) * 4,
            u32::try_from(tsc() - start).unwrap_or(u32::MAX),
        );
    }
    percentiles(out, "rand", samples, count as usize, clock);
    Ok(text!("{count} reads of 4 KiB, {} kicks", disk.queue.kicks))
}

fn many(out: &mut Out, device: Device, params: &Params, clock: &Clock) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    let (pages, count) = (pages(&disk)?, params.operations.max(1));
    let depth = u64::from(params.depth)
        .min(u64::from(disk.queue.size) / 3)
        .max(1);
    let (data, headers) = (
        disk.memory(depth * u64::from(PAGE))?,
        disk.memory(depth * 32)?,
    );
    let mut slot_of = [0_u8; MAX_QUEUE];
    let mut state = params.seed | 1;
    let (mut asked, mut done) = (0, 0);
    let start = tsc();
    let mut idle = (1_u128 << depth) - 1;
    while done < count {
        while idle != 0 && asked < count {
            let slot = u64::from(idle.trailing_zeros());
            let header = headers + slot * 32;
            Disk::fill_header(header, IN, next(&mut state) % pages * 8);
            let request = [
                from(header, 16),
                into(data + slot * u64::from(PAGE), PAGE),
                into(header + 16, 1),
            ];
            let Some(head) = disk.queue.add(&request, true) else {
                fail!("no room")
            };
            slot_of[usize::from(head)] = slot as u8;
            idle &= !(1 << slot);
            asked += 1;
        }
        disk.queue.kick();
        let (head, _) = disk.queue.wait()?;
        let slot = slot_of[usize::from(head)];
        let status: u8 = read(headers + u64::from(slot) * 32 + 16);
        ensure!(status == OK, "status {status}");
        idle |= 1 << slot;
        done += 1;
    }
    let took = clock.microseconds(tsc() - start).max(1);
    out.bench(
        text!("blk.rand{depth}"),
        u64::from(done) * 1_000_000 / took,
        "op/s",
    );
    Ok(text!(
        "{done} reads of 4 KiB, {depth} in flight, {} kicks",
        disk.queue.kicks
    ))
}

fn durable(out: &mut Out, device: Device, params: &Params, clock: &Clock) -> Outcome {
    let mut disk = Disk::open(device, WANTED)?;
    if disk.device.has(READ_ONLY) {
        skip!("the disk is read-only")
    }
    let (pages, count) = (pages(&disk)?, params.operations.max(1));
    let (data, samples) = (
        disk.memory(PAGE.into())?,
        disk.memory(u64::from(count) * 4)?,
    );
    let mut state = params.seed | 1;
    for i in 0..count {
        for at in (0..u64::from(PAGE)).step_by(8) {
            write(data + at, next(&mut state));
        }
        let start = tsc();
        disk.write(next(&mut state) % pages * 8, data, PAGE)?;
        if disk.device.has(blk::FLUSH) {
            disk.flush()?;
        }
        write(
            samples + u64::from(i) * 4,
            u32::try_from(tsc() - start).unwrap_or(u32::MAX),
        );
    }
    percentiles(out, "flush", samples, count as usize, clock);
    Ok(text!("{count} writes of 4 KiB, each flushed"))
}
