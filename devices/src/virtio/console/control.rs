//! Messages of the control queues (VIRTIO 5.3.6.2, `struct virtio_console_control`).
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::abi;
use crate::virtio::{Chain, VirtQueue};

/// Bytes of `struct virtio_console_control`: id (le32), event (le16), value (le16).
pub(super) const HEADER: usize = 8;
/// While so many messages wait for the driver, no more of its own are taken: answers then cannot pile up.
const BACKLOG: usize = 64;

/// What a message is about; values of `event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    DeviceReady,
    PortReady,
    PortOpen,
}

/// A message from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) port: u32,
    pub(super) event: Event,
    pub(super) value: u16,
}

/// Both control queues.
pub(super) struct Control {
    to_driver: Option<VirtQueue>,
    from_driver: Option<VirtQueue>,
    waiting: VecDeque<Vec<u8>>,
    chain: Chain,
}

impl Control {
    pub(super) fn new(to_driver: Option<VirtQueue>, from_driver: Option<VirtQueue>) -> Self {
        Self {
            to_driver,
            from_driver,
            waiting: VecDeque::new(),
            chain: Chain::default(),
        }
    }

    /// Queues a message. `extra` follows the header. A new size replaces one that still waits; so does any message
    /// of the same kind when many wait, so a driver that takes none makes nothing grow.
    pub(super) fn send(&mut self, port: u32, event: u16, value: u16, extra: &[u8]) {
        let mut message = Vec::with_capacity(HEADER + extra.len());
        message.extend(port.to_le_bytes());
        message.extend(event.to_le_bytes());
        let kind = message.len();
        message.extend(value.to_le_bytes());
        message.extend(extra);
        if event == abi::VIRTIO_CONSOLE_RESIZE || self.waiting.len() >= BACKLOG {
            let same = |old: &&mut Vec<u8>| old[..kind] == message[..kind];
            if let Some(old) = self.waiting.iter_mut().rev().find(same) {
                *old = message;
                return;
            }
        }
        self.waiting.push_back(message);
    }

    /// Delivers what the driver has buffers for.
    pub(super) fn flush(&mut self) {
        let Some(queue) = &mut self.to_driver else {
            self.waiting.clear();
            return;
        };
        queue.suppress();
        loop {
            while !self.waiting.is_empty() && queue.pop(&mut self.chain) {
                if self.chain.writable_len() < HEADER as u64 {
                    queue.fail("a control buffer is shorter than a message");
                } else if let Some(message) = self.waiting.pop_front() {
                    // A name that does not fit is cut.
                    let n = queue.write_to(&self.chain.writable, 0, &message);
                    queue.push(self.chain.head, n as u32);
                }
            }
            queue.notify();
            // Kicks are wanted only while something waits for a buffer.
            if self.waiting.is_empty() || !queue.rearm() {
                return;
            }
        }
    }

    /// Takes the next message that means something. The driver's buffers go back as they are read.
    pub(super) fn receive(&mut self) -> Option<Request> {
        let queue = self.from_driver.as_mut()?;
        queue.suppress();
        loop {
            while self.waiting.len() < BACKLOG && queue.pop(&mut self.chain) {
                let mut header = [0; HEADER];
                let n = queue.read_from(&self.chain.readable, 0, &mut header);
                queue.push(self.chain.head, 0);
                if n < HEADER {
                    queue.fail("a control message is too short");
                } else if let Some(request) = decode(header) {
                    return Some(request);
                }
            }
            queue.notify();
            if self.waiting.len() >= BACKLOG || !queue.rearm() {
                return None;
            }
        }
    }
}

/// Messages a driver has no reason to send mean nothing.
fn decode(header: [u8; HEADER]) -> Option<Request> {
    let [p0, p1, p2, p3, e0, e1, v0, v1] = header;
    let event = match u16::from_le_bytes([e0, e1]) {
        abi::VIRTIO_CONSOLE_DEVICE_READY => Event::DeviceReady,
        abi::VIRTIO_CONSOLE_PORT_READY => Event::PortReady,
        abi::VIRTIO_CONSOLE_PORT_OPEN => Event::PortOpen,
        _ => return None,
    };
    Some(Request {
        port: u32::from_le_bytes([p0, p1, p2, p3]),
        event,
        value: u16::from_le_bytes([v0, v1]),
    })
}
