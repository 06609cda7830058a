//! What the console tests share: a guest that speaks the control protocol.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use vsc_devices::console_log::ConsoleLog;
use vsc_devices::stream::{Endpoint, HostEnds};
use vsc_devices::virtio::console::{Console, ConsoleHandle, ConsoleSpec, PortSpec};
use vsc_devices::virtio::testing::Driver;

pub const DEVICE_READY: u16 = 0;
pub const PORT_ADD: u16 = 1;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
pub const RESIZE: u16 = 5;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

pub const SIZE: u64 = 1 << 0;
pub const MULTIPORT: u64 = 1 << 1;
pub const EMERG_WRITE: u64 = 1 << 2;

/// A control message: port, event, value, the rest.
pub type Message = (u32, u16, u16, Vec<u8>);

pub fn port(name: Option<&str>, input: Endpoint, output: Endpoint) -> PortSpec {
    PortSpec {
        name: name.map(Into::into),
        console: false,
        input,
        output,
        log: false,
        kernel: false,
    }
}

pub fn console_port(input: Endpoint, output: Endpoint) -> PortSpec {
    PortSpec {
        name: None,
        console: true,
        input,
        output,
        log: true,
        kernel: true,
    }
}

pub fn given(name: &str) -> Endpoint {
    Endpoint::Given(name.into())
}

pub struct Guest {
    pub driver: Driver,
    pub handle: ConsoleHandle,
    pub log: ConsoleLog,
    multiport: bool,
}

/// Host ends by name.
pub fn ends<const N: usize>(list: [(&str, OwnedFd); N]) -> HostEnds {
    list.into_iter()
        .map(|(name, fd)| (name.to_owned(), fd))
        .collect()
}

impl Guest {
    pub fn new(ports: Vec<PortSpec>, ends: HostEnds, threaded: bool) -> Self {
        Self::with_features(ports, ends, threaded, !0)
    }

    pub fn with_features(
        ports: Vec<PortSpec>,
        mut ends: HostEnds,
        threaded: bool,
        features: u64,
    ) -> Self {
        let log = ConsoleLog::new();
        let console =
            Console::new(&ConsoleSpec { ports, size: true }, &mut ends, Some(&log)).unwrap();
        let handle = console.handle();
        let console = Box::new(console);
        let mut driver = if threaded {
            Driver::threaded(console)
        } else {
            Driver::inline(console)
        };
        let features = driver.start(features);
        Self {
            driver,
            handle,
            log,
            multiport: features & MULTIPORT != 0,
        }
    }

    /// Sends a control message.
    pub fn tell(&mut self, port: u32, event: u16, value: u16) {
        let message = bytes(port, event, value);
        let done = self.driver.request(3, &[&message], &[]);
        assert_eq!(done.written, 0);
    }

    /// Waits for a control message.
    pub fn hear(&mut self) -> Message {
        let done = self.driver.request(2, &[], &[300]);
        decode(&done.data[..done.written as usize])
    }

    /// The first port's driver side: DEVICE_READY, then PORT_READY for each, then opens them all. Returns what the
    /// device said.
    pub fn handshake(&mut self, ports: u32) -> Vec<Message> {
        let mut heard = Vec::new();
        self.tell(0, DEVICE_READY, 1);
        for _ in 0..ports {
            heard.push(self.hear());
        }
        for id in 0..ports {
            self.tell(id, PORT_READY, 1);
        }
        heard
    }

    /// As [`Self::handshake`], for ports that are named and open; takes all messages, so that no control buffer
    /// stays with the device.
    pub fn greet(&mut self, ports: u32) {
        self.handshake(ports);
        for id in 0..ports {
            assert_eq!(
                (self.hear().1, self.hear()),
                (PORT_NAME, (id, PORT_OPEN, 1, vec![]))
            );
            self.tell(id, PORT_OPEN, 1);
        }
    }

    pub fn input_queue(&self, port: u16) -> u16 {
        if port == 0 { 0 } else { 2 + 2 * port }
    }

    pub fn output_queue(&self, port: u16) -> u16 {
        self.input_queue(port) + 1
    }

    /// Writes to a port, as one buffer, and waits until it was taken.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        let queue = self.output_queue(port);
        self.driver.request(queue, &[data], &[]);
    }

    /// Reads at most `len` bytes from a port; waits.
    pub fn read(&mut self, port: u16, len: u32) -> Vec<u8> {
        let queue = self.input_queue(port);
        let done = self.driver.request(queue, &[], &[len]);
        done.data[..done.written as usize].to_vec()
    }
}

pub fn bytes(port: u32, event: u16, value: u16) -> Vec<u8> {
    [
        &port.to_le_bytes()[..],
        &event.to_le_bytes(),
        &value.to_le_bytes(),
    ]
    .concat()
}

pub fn decode(data: &[u8]) -> Message {
    let (header, rest) = data.split_at(8);
    (
        u32::from_le_bytes(header[..4].try_into().unwrap()),
        u16::from_le_bytes(header[4..6].try_into().unwrap()),
        u16::from_le_bytes(header[6..].try_into().unwrap()),
        rest.to_vec(),
    )
}

/// Pseudo-random numbers (xorshift64).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A directory of its own for one test, removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vsc-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
