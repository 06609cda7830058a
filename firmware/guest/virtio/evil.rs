//! What a hostile driver does, through the real transport. Whatever happens, a reset must bring the device back.

use super::queue::{INDIRECT_FLAG, NEXT, Queue, Segment, from, into};
use super::{
    DRIVER_FEATURES, DRIVER_FEATURES_SEL, Device, EVENT_IDX, ID_BLOCK, ID_RNG, INDIRECT,
    NEEDS_RESET, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY,
    QUEUE_SEL, STATUS, blk, name, rng,
};
use crate::arena;
use crate::out::{Out, Outcome, Problem, ensure, fail, text};
use crate::params::{MODES, Params};
use crate::sys::{bytes, pause, read, tsc, write};

struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn all(out: &mut Out, n: usize, device: Device, params: &Params) {
    for (i, mode) in MODES
        .iter()
        .enumerate()
        .filter(|(i, _)| params.evil & 1 << i != 0)
    {
        let mut random = Random(
            params
                .seed
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(i as u64)
                | 1,
        );
        let outcome = one(mode, device, params.rounds, &mut random);
        out.result(text!("evil{n}.{}.{mode}", name(device.id)), outcome);
    }
    let _ = device.reset();
}

fn one(mode: &str, device: Device, rounds: u32, random: &mut Random) -> Outcome {
    let (mut broken, mut answered) = (0, 0);
    for round in 0..rounds {
        match mode {
            "loop" => loops(device, random)?,
            "range" => ranges(device, random)?,
            "index" => indices(device, random)?,
            "registers" => registers(device, random)?,
            "storm" => storm(device, random)?,
            _ => reset_under_way(device, random)?,
        }
        if device.status() & NEEDS_RESET != 0 {
            broken += 1;
        } else {
            answered += 1;
        }
        device.reset()?;
        // The whole check after every round would be most of the time; at the end and now and then is enough.
        if round % 16 == 15 || round + 1 == rounds {
            healthy(device)?;
        }
    }
    Ok(text!(
        "{rounds} rounds: {broken} needed a reset, {answered} did not; healthy after"
    ))
}

/// The device does its work after a reset.
fn healthy(device: Device) -> Result<(), Problem> {
    match device.id {
        ID_BLOCK => {
            let mut disk = blk::Disk::open(device, blk::WANTED)?;
            let at = disk.memory(4096)?;
            disk.read(0, at, 512, true)?;
            disk.read(disk.sectors - 1, at, 512, false)?;
        }
        ID_RNG => {
            rng::all(device)?;
        }
        _ => {
            super::generic(&mut { device })?;
        }
    }
    device.reset()
}

/// Opens with queue 0 (and 1, where there is one), ready for bad things; room for data and tables behind.
fn open(
    device: Device,
    random: &mut Random,
) -> Result<(Device, Queue, Option<Queue>, u64), Problem> {
    let mut device = device;
    arena::reset();
    let wanted = [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT][random.below(4) as usize];
    device.open(wanted)?;
    let Some(first) = device.queue(0, 16, 4)? else {
        fail!("no queue 0")
    };
    let second = device.queue(1, 16, 4)?;
    device.start()?;
    let Some(room) = arena::take(256 << 10, 4096) else {
        fail!("no memory")
    };
    Ok((device, first, second, room))
}

/// Gives the device time to stumble: until it answers or says that it is broken, or a little while.
fn let_it(device: &Device, queue: &Queue) {
    let start = tsc();
    while tsc() - start < 2_000_000 {
        if read::<u16>(queue.used + 2) != 0 || device.status() & NEEDS_RESET != 0 {
            break;
        }
        pause();
    }
}

fn loops(device: Device, random: &mut Random) -> Result<(), Problem> {
    let (device, queue, other, room) = open(device, random)?;
    let mut queue = if random.below(2) == 0 {
        other.unwrap_or(queue)
    } else {
        queue
    };
    blk::Disk::fill_header(room, blk::IN, 0);
    let data = [from(room, 16), into(room + 4096, 512)][random.below(2) as usize];
    let table = room + 8192;
    let count = match random.below(9) {
        // To itself; in a ring of two; of all, without end.
        0 => put(&queue, &[(data, NEXT, 0)]),
        1 => put(&queue, &[(data, NEXT, 1), (data, NEXT, 0)]),
        2 => {
            for i in 0..queue.size {
                queue.descriptor(queue.desc, i, data, NEXT, (i + 1) % queue.size);
            }
            1
        }
        // To a descriptor that does not exist.
        3 => put(
            &queue,
            &[(
                data,
                NEXT,
                [queue.size, 0xffff, 0x8000][random.below(3) as usize],
            )],
        ),
        // An indirect table that loops, nests, is empty, is of odd length, is huge, lies nowhere, or goes on behind.
        n => {
            let inner = match n {
                4 => (data, NEXT, 0),
                5 => (from(table, 16), INDIRECT_FLAG, 0),
                _ => (data, NEXT, 0x7fff),
            };
            queue.descriptor(table, 0, inner.0, inner.1, inner.2);
            let length = [16, 0, 17, u32::MAX, 15, 1 << 20, 0xffff_fff0][random.below(7) as usize];
            let at =
                [table, table + 1, 0xffff_ffff_ffff_fff0, 0xd000_0000][random.below(4) as usize];
            let flags = INDIRECT_FLAG | if n == 8 { NEXT } else { 0 };
            let segment = Segment {
                address: at,
                length,
                writable: n == 7,
            };
            put(&queue, &[(segment, flags, 1), (data, 0, 0)])
        }
    };
    for _ in 0..count {
        queue.publish(0);
    }
    queue.kick_always();
    let_it(&device, &queue);
    Ok(())
}

fn put(queue: &Queue, list: &[(Segment, u16, u16)]) -> u32 {
    for (i, &(segment, flags, next)) in (0_u16..).zip(list) {
        queue.descriptor(queue.desc, i, segment, flags, next);
    }
    1
}

/// Places that are no RAM of this machine, whatever its size up to the TiB.
const NOWHERE: [u64; 8] = [
    0xd000_0000,
    0xfee0_0000,
    0xfec0_0000,
    0xffff_f000,
    0x0000_ff00_0000_0000,
    u64::MAX,
    u64::MAX - 4095,
    1 << 63,
];

fn ranges(device: Device, random: &mut Random) -> Result<(), Problem> {
    let (device, queue, other, room) = open(device, random)?;
    let mut queue = if random.below(2) == 0 {
        other.unwrap_or(queue)
    } else {
        queue
    };
    blk::Disk::fill_header(
        room,
        [blk::IN, 8, 4, 99][random.below(4) as usize],
        random.below(4),
    );
    let good = from(room, 16);
    let bad = Segment {
        address: NOWHERE[random.below(8) as usize].wrapping_add(random.below(3)),
        length: [0, 1, 512, 4096, u32::MAX, 1 << 31][random.below(6) as usize],
        writable: random.below(2) == 0,
    };
    let status = into(room + 16, 1);
    let head = match random.below(7) {
        0 => queue.add(&[bad], false),
        1 => queue.add(&[good, bad, status], false),
        2 => queue.add(&[bad, into(room + 4096, 512), status], true),
        3 => queue.add(
            &[
                good,
                into(room + 4096, 512),
                Segment {
                    writable: true,
                    ..bad
                },
            ],
            false,
        ),
        // Writable before readable; nothing to write to; nothing but a header that is too short.
        4 => queue.add(&[status, good, into(room + 4096, 512)], true),
        5 => queue.add(&[good, from(room + 4096, 512)], false),
        _ => queue.add(&[from(room, 3), into(room + 4096, 0)], true),
    };
    ensure!(head.is_some(), "no room for one request");
    queue.kick_always();
    let_it(&device, &queue);
    Ok(())
}

fn indices(device: Device, random: &mut Random) -> Result<(), Problem> {
    let (device, queue, other, room) = open(device, random)?;
    let mut queue = if random.below(2) == 0 {
        other.unwrap_or(queue)
    } else {
        queue
    };
    blk::Disk::fill_header(room, blk::IN, 0);
    put(
        &queue,
        &[
            (from(room, 16), NEXT, 1),
            (into(room + 4096, 512), NEXT, 2),
            (into(room + 16, 1), 0, 0),
        ],
    );
    match random.below(4) {
        // A head that does not exist.
        0 => queue.publish([queue.size, 0xffff, 0x7fff][random.below(3) as usize]),
        // An index that runs ahead further than the ring is long, or back.
        1 => write(
            queue.avail + 2,
            [queue.size + 1, 0x8000, 0xffff, 0x7fff][random.below(4) as usize],
        ),
        // The same head over and over.
        2 => {
            for _ in 0..queue.size {
                queue.publish(0);
            }
        }
        // An index that moves while the device looks at it.
        _ => {
            queue.publish(0);
            queue.kick_always();
            for _ in 0..200 {
                write(queue.avail + 2, random.next() as u16);
                pause();
            }
        }
    }
    queue.kick_always();
    let_it(&device, &queue);
    Ok(())
}

/// Random writes and reads all over the register file. Ring addresses point to the arena or nowhere, so that a device
/// that believes them cannot hit this program.
fn registers(device: Device, random: &mut Random) -> Result<(), Problem> {
    let Some(room) = ({
        arena::reset();
        arena::take(256 << 10, 4096)
    }) else {
        fail!("no memory")
    };
    let named = [
        STATUS,
        QUEUE_SEL,
        QUEUE_NUM,
        QUEUE_READY,
        QUEUE_NOTIFY,
        DRIVER_FEATURES,
        DRIVER_FEATURES_SEL,
        QUEUE_DESC,
        QUEUE_DESC + 4,
        QUEUE_DRIVER,
        QUEUE_DRIVER + 4,
        QUEUE_DEVICE,
        QUEUE_DEVICE + 4,
        0x014,
        0x064,
    ];
    for _ in 0..200 {
        let offset = if random.below(4) > 0 {
            named[random.below(15) as usize]
        } else {
            random.below(0x200)
        };
        let value = match random.below(6) {
            0 => 0,
            1 => random.next() as u32,
            2 => 0xf,
            3 => random.below(64) as u32,
            4 => u32::MAX,
            _ => 1,
        };
        if (QUEUE_DESC - 3..QUEUE_DEVICE + 8).contains(&offset) {
            // Only whole, aligned words, and only such that no address in the low GiBs but the arena comes together.
            let low = offset % 16 < 4;
            let safe = match (low, random.below(3)) {
                (true, 0) => (room + random.below(240) * 1024) as u32,
                (true, 1) => 0xffff_0000 | value,
                (true, _) => 0xd000_0000 | value & 0xffff,
                (false, n) => [0, 0x100, u32::MAX][n as usize],
            };
            device.set(offset & !3, safe);
            continue;
        }
        let at = device.base + offset;
        match random.below(6) {
            0 => write(at, value as u8),
            1 if offset.is_multiple_of(2) => write(at, value as u16),
            2 if offset.is_multiple_of(8) && offset != QUEUE_DESC - 8 => {
                write(at, u64::from(value))
            }
            3 => {
                read::<u8>(at);
            }
            4 if offset.is_multiple_of(4) => {
                read::<u32>(at);
            }
            _ => device.set(offset & !3, value),
        }
    }
    Ok(())
}

fn storm(device: Device, random: &mut Random) -> Result<(), Problem> {
    let (device, _first, _second, _room) = open(device, random)?;
    for i in 0..200_u32 {
        let queue = match random.below(4) {
            0 => i % 2,
            1 => random.below(64) as u32,
            2 => random.next() as u32,
            _ => 0,
        };
        device.set(QUEUE_NOTIFY, queue);
    }
    Ok(())
}

/// A reset while requests are under way: after it is done nothing may be written any more.
fn reset_under_way(device: Device, random: &mut Random) -> Result<(), Problem> {
    let (device, mut queue, _, room) = open(device, random)?;
    let data = room + 8192;
    let count = 5_u64;
    arena::fill(data, count * 16384, 0x99);
    for i in 0..count {
        let header = room + i * 32;
        blk::Disk::fill_header(header, blk::IN, 0);
        let request = [
            from(header, 16),
            into(data + i * 16384, 16384),
            into(header + 16, 1),
        ];
        let list = if device.id == ID_BLOCK {
            &request[..]
        } else {
            &request[1..2]
        };
        if queue.add(list, true).is_none() {
            break;
        }
    }
    queue.kick_always();
    for _ in 0..random.below(2000) {
        pause();
    }
    device.reset()?;
    arena::fill(data, count * 16384, 0x66);
    let start = tsc();
    while tsc() - start < 1_000_000 {
        pause();
    }
    let touched = bytes(data, (count * 16384) as usize)
        .iter()
        .position(|&b| b != 0x66);
    ensure!(
        touched.is_none(),
        "byte {} was written after the reset",
        touched.unwrap_or(0)
    );
    Ok(())
}
