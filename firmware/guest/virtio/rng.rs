//! virtio-rng (VIRTIO 1.3, 5.4).

use super::queue::into;
use super::{Device, EVENT_IDX, INDIRECT};
use crate::arena;
use crate::out::{Outcome, ensure, fail, text};
use crate::sys::bytes;

pub fn all(device: Device) -> Outcome {
    let mut device = device;
    arena::reset();
    device.open(EVENT_IDX | INDIRECT)?;
    let Some(mut queue) = device.queue(0, 256, 8)? else {
        fail!("no queue 0")
    };
    device.start()?;
    let Some(at) = arena::take(4096, 4096) else {
        fail!("no memory")
    };
    let mut got = 0;
    let mut last = [0_u8; 32];
    for round in 0..4 {
        arena::fill(at, 512, 0);
        let request = [into(at, 100), into(at + 100, 1), into(at + 101, 155)];
        let length = queue.run(&request, round % 2 == 0)? as usize;
        ensure!(
            (1..=256).contains(&length),
            "{length} bytes of entropy for 256"
        );
        let data = bytes(at, 256);
        ensure!(
            data[length..].iter().all(|&b| b == 0),
            "wrote past the length it told"
        );
        if length >= 32 {
            ensure!(data[..32] != last, "the same bytes twice");
            ensure!(
                data[..32].iter().any(|&b| b != data[0]),
                "all bytes are {:#x}",
                data[0]
            );
            // 256 fair bytes have 1024 ones, give or take 6 times 22.6.
            let ones: u32 = data[..length].iter().map(|b| b.count_ones()).sum();
            let half = length as u32 * 4;
            ensure!(
                ones.abs_diff(half) < half / 2,
                "{ones} ones in {length} bytes"
            );
            last.copy_from_slice(&data[..32]);
        }
        got += length;
    }
    device.reset()?;
    Ok(text!("{got} bytes"))
}
