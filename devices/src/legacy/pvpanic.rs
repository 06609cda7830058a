//! pvpanic: the guest kernel's panic notifier tells the host (Linux `drivers/misc/pvpanic/`, QEMU
//! `docs/specs/pvpanic.rst`).
#![forbid(unsafe_code)]

use crate::bus::BusDevice;
use crate::event::{GuestEvent, Sink};

/// Port of the ISA device (QEMU `docs/specs/pvpanic.rst`: "port 0x505").
pub const PORT: u64 = 0x505;
/// Ports it takes.
pub const LEN: u64 = 1;
/// The guest panicked and handles the rest itself (Linux `include/uapi/misc/pvpanic.h`: `PVPANIC_PANICKED`).
pub const PANICKED: u8 = 1 << 0;
/// The guest panicked and its crash kernel takes over (`PVPANIC_CRASH_LOADED`).
pub const CRASH_LOADED: u8 = 1 << 1;

/// See the module's documentation.
pub struct Pvpanic {
    sink: Sink,
}

impl Pvpanic {
    /// A device that reports to `sink`.
    pub fn new(sink: Sink) -> Self {
        Self { sink }
    }
}

impl BusDevice for Pvpanic {
    /// Reads the events it understands.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        match data.first() {
            Some(event) if event & PANICKED != 0 => {
                self.sink.notify(GuestEvent::Panicked { loaded: false });
            }
            Some(event) if event & CRASH_LOADED != 0 => {
                self.sink.notify(GuestEvent::Panicked { loaded: true });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::acpi_pm::tests::Events;

    #[test]
    fn it_names_its_events_and_reports_them() {
        let events = Events::new();
        let mut device = Pvpanic::new(events.clone());
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        device.write(0, &[PANICKED]);
        device.write(0, &[CRASH_LOADED]);
        device.write(0, &[0x80]);
        assert_eq!(
            events.take(),
            [
                GuestEvent::Panicked { loaded: false },
                GuestEvent::Panicked { loaded: true }
            ]
        );
    }
}
