//! The driver side of virtio-mmio, version 2 (VIRTIO 1.3, 4.2), by polling.

use crate::out::{Outcome, Problem, ensure, fail, text};
use crate::sys::{map, pause, read, tsc, write};

pub mod blk;
pub mod blkbench;
pub mod evil;
pub mod queue;
pub mod rng;
pub mod vcon;

use queue::Queue;

// Register offsets (VIRTIO 4.2.2).
pub const MAGIC: u64 = 0x000;
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const VENDOR_ID: u64 = 0x00c;
pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_NUM_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC: u64 = 0x080;
pub const QUEUE_DRIVER: u64 = 0x090;
pub const QUEUE_DEVICE: u64 = 0x0a0;
pub const CONFIG_GENERATION: u64 = 0x0fc;
pub const CONFIG: u64 = 0x100;

// Status bits (VIRTIO 2.1).
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

// Feature bits of every device (VIRTIO 6).
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

pub const ID_BLOCK: u32 = 2;
pub const ID_CONSOLE: u32 = 3;
pub const ID_RNG: u32 = 4;

/// A device's place, and what it answered.
#[derive(Clone, Copy)]
pub struct Device {
    pub base: u64,
    pub gsi: u32,
    /// Its interrupt is level-triggered.
    pub level: bool,
    pub id: u32,
    pub features: u64,
    /// What was agreed on by the last `open`.
    pub agreed: u64,
}

impl Device {
    /// Looks at a register file; `Ok` with `id` 0 is an empty slot.
    pub fn probe(base: u64, gsi: u32, level: bool) -> Result<Self, Problem> {
        ensure!(map(base), "cannot map {base:#x}");
        let mut device = Self {
            base,
            gsi,
            level,
            id: 0,
            features: 0,
            agreed: 0,
        };
        let (magic, version) = (device.get(MAGIC), device.get(VERSION));
        ensure!(magic == 0x7472_6976, "{base:#x}: magic {magic:#x}");
        device.id = device.get(DEVICE_ID);
        if device.id != 0 {
            ensure!(version == 2, "{base:#x}: version {version}");
            device.features = device.offered();
        }
        Ok(device)
    }

    pub fn get(&self, register: u64) -> u32 {
        read(self.base + register)
    }
    pub fn set(&self, register: u64, value: u32) {
        write(self.base + register, value);
    }
    pub fn config<T: Copy>(&self, offset: u64) -> T {
        read(self.base + CONFIG + offset)
    }
    /// 8 bytes of configuration that belong together (VIRTIO 2.5.1).
    pub fn config64(&self, offset: u64) -> u64 {
        for _ in 0..100 {
            let before = self.get(CONFIG_GENERATION);
            let value = u64::from(self.config::<u32>(offset))
                | u64::from(self.config::<u32>(offset + 4)) << 32;
            if self.get(CONFIG_GENERATION) == before {
                return value;
            }
        }
        0
    }
    fn offered(&self) -> u64 {
        self.set(DEVICE_FEATURES_SEL, 1);
        let high = self.get(DEVICE_FEATURES);
        self.set(DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.get(DEVICE_FEATURES))
    }
    pub fn status(&self) -> u32 {
        self.get(STATUS)
    }

    /// Resets and waits until the device says it is done (VIRTIO 4.2.3.1).
    pub fn reset(&self) -> Result<(), Problem> {
        self.set(STATUS, 0);
        let start = tsc();
        while self.status() != 0 {
            ensure!(
                tsc().wrapping_sub(start) < SECOND_OR_SO * 5,
                "status {:#x} after a reset",
                self.status()
            );
            pause();
        }
        Ok(())
    }

    /// Reset, acknowledge, agree on `wanted` of what is offered: ready for queues (VIRTIO 3.1.1).
    pub fn open(&mut self, wanted: u64) -> Result<(), Problem> {
        self.reset()?;
        self.set(STATUS, ACKNOWLEDGE);
        self.set(STATUS, ACKNOWLEDGE | DRIVER);
        self.features = self.offered();
        ensure!(
            self.features & VERSION_1 != 0,
            "VIRTIO_F_VERSION_1 is not offered ({:#x})",
            self.features
        );
        self.agreed = self.features & (wanted | VERSION_1);
        self.set(DRIVER_FEATURES_SEL, 0);
        self.set(DRIVER_FEATURES, self.agreed as u32);
        self.set(DRIVER_FEATURES_SEL, 1);
        self.set(DRIVER_FEATURES, (self.agreed >> 32) as u32);
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        ensure!(
            self.status() & FEATURES_OK != 0,
            "features {:#x} were refused",
            self.agreed
        );
        Ok(())
    }

    pub fn has(&self, feature: u64) -> bool {
        self.agreed & feature == feature
    }

    /// Sets queue `index` up in the arena, with at most `limit` entries (a power of 2). `None`: no such queue.
    pub fn queue(&self, index: u16, limit: u16, segments: u16) -> Result<Option<Queue>, Problem> {
        self.set(QUEUE_SEL, index.into());
        let max = self.get(QUEUE_NUM_MAX);
        if max == 0 {
            return Ok(None);
        }
        ensure!(
            self.get(QUEUE_READY) == 0,
            "queue {index} is ready before it was set up"
        );
        let size = (max.min(limit.into()) as u16).next_power_of_two();
        let size = if u32::from(size) > max {
            size / 2
        } else {
            size
        };
        let Some(queue) = Queue::new(self, index, size, segments) else {
            fail!("no memory for queue {index}")
        };
        self.set(QUEUE_NUM, size.into());
        for (register, address) in [
            (QUEUE_DESC, queue.desc),
            (QUEUE_DRIVER, queue.avail),
            (QUEUE_DEVICE, queue.used),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(QUEUE_READY, 1);
        ensure!(
            self.get(QUEUE_READY) == 1,
            "queue {index} did not get ready"
        );
        Ok(Some(queue))
    }

    pub fn start(&self) -> Result<(), Problem> {
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        let status = self.status();
        ensure!(
            status == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            "status {status:#x} after DRIVER_OK"
        );
        Ok(())
    }
}

/// TSC cycles of a second on a slow machine, half a second on a fast one: for bounds, not for measuring.
pub const SECOND_OR_SO: u64 = 2_000_000_000;

pub fn name(id: u32) -> &'static str {
    match id {
        1 => "net",
        2 => "blk",
        3 => "console",
        4 => "rng",
        5 => "balloon",
        8 => "scsi",
        9 => "9p",
        16 => "gpu",
        18 => "input",
        19 => "vsock",
        26 => "fs",
        27 => "pmem",
        _ => "unknown",
    }
}

/// What every device has in common, whatever it does: VIRTIO 2.1, 2.2, 4.2.2.
pub fn generic(device: &mut Device) -> Outcome {
    let vendor = device.get(VENDOR_ID);
    device.open(0)?;
    // A feature that was not offered must not be accepted (VIRTIO 2.2.2).
    let not_offered = !device.features & 0x7fff_ffff;
    if not_offered != 0 {
        device.reset()?;
        device.set(STATUS, ACKNOWLEDGE | DRIVER);
        device.set(DRIVER_FEATURES_SEL, 0);
        device.set(DRIVER_FEATURES, 1 << not_offered.trailing_zeros());
        device.set(DRIVER_FEATURES_SEL, 1);
        device.set(DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
        device.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        ensure!(
            device.status() & FEATURES_OK == 0,
            "accepted feature bit {}",
            not_offered.trailing_zeros()
        );
    }
    device.reset()?;
    let mut queues = 0;
    while queues < 64 {
        device.set(QUEUE_SEL, queues);
        if device.get(QUEUE_NUM_MAX) == 0 {
            break;
        }
        queues += 1;
    }
    device.set(QUEUE_SEL, 0xffff_ffff);
    ensure!(device.get(QUEUE_NUM_MAX) == 0, "queue 4294967295 exists");
    device.set(QUEUE_SEL, 0);
    let largest = device.get(QUEUE_NUM_MAX);
    ensure!(
        device.get(INTERRUPT_STATUS) == 0,
        "an interrupt is pending after reset"
    );
    device.reset()?;
    Ok(text!(
        "{} id {} at {:#x} gsi {} features {:#x} queues {queues}x{largest} vendor {vendor:#x}",
        name(device.id),
        device.id,
        device.base,
        device.gsi,
        device.features
    ))
}
