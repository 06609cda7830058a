//! The exit port: the byte written to it is the status of the run, whatever state the guest is in.
#![forbid(unsafe_code)]

use crate::bus::BusDevice;
use crate::event::{GuestEvent, Sink};

/// Port of the device (QEMU's `isa-debug-exit` uses the same).
pub const PORT: u64 = 0x501;
/// Ports it takes.
pub const LEN: u64 = 1;

/// See the module's documentation.
pub struct ExitPort {
    sink: Sink,
}

impl ExitPort {
    /// A port that reports to `sink`.
    pub fn new(sink: Sink) -> Self {
        Self { sink }
    }
}

impl BusDevice for ExitPort {
    /// Reads as 0, so that a guest can tell it from an unclaimed port.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let Some(&status) = data.first() {
            self.sink.notify(GuestEvent::Exit(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::acpi_pm::tests::Events;

    #[test]
    fn the_byte_written_is_the_status() {
        let events = Events::new();
        let mut port = ExitPort::new(events.clone());
        port.write(0, &[42]);
        port.write(0, &[0]);
        assert_eq!(events.take(), [GuestEvent::Exit(42), GuestEvent::Exit(0)]);
    }
}
