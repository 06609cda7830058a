//! PCI configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2) in front of an empty bus, and the reset
//! register between its ports.
//!
//! A kernel with PCI built in that finds no mechanism says so on its console, byte by byte, which costs more exits
//! than everything else before init; with `pci=conf1,noearly` it asks here five times and is content.
#![forbid(unsafe_code)]

use super::ResetRegister;
use crate::bus::BusDevice;

/// CONFIG_ADDRESS; CONFIG_DATA is at `+4`.
pub const PORT: u64 = 0xcf8;
/// Ports that the mechanism takes.
pub const LEN: u64 = 8;
/// The reset register (ACPI 6.5, 4.8.3.6) lies within CONFIG_ADDRESS, and is reached by byte accesses only.
const RESET: u64 = 1;

/// The latch.
pub struct PciConfig {
    address: u32,
    reset: ResetRegister,
}

impl PciConfig {
    /// An empty bus, with the reset register inside.
    pub fn new(reset: ResetRegister) -> Self {
        Self { address: 0, reset }
    }
}

impl BusDevice for PciConfig {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET, 1) => self.reset.read(0, data),
            // Nobody answers at any address.
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
            (RESET, [_]) => self.reset.write(0, data),
            // Byte writes to other parts of CONFIG_ADDRESS reach devices behind it, of which there are none.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::event::{EventSink, GuestEvent};

    #[derive(Default)]
    struct Events(Mutex<Vec<GuestEvent>>);

    impl EventSink for Events {
        fn notify(&self, event: GuestEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn linux_finds_the_mechanism_and_no_device() {
        let mut config = PciConfig::new(ResetRegister::new(Arc::new(Events::default())));
        // arch/x86/pci/direct.c, pci_check_type1.
        config.write(3, &[1]);
        config.write(0, &0x8000_0000u32.to_le_bytes());
        let mut data = [0; 4];
        config.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
        config.read(4, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn the_reset_register_answers_bytes_only() {
        let events = Arc::new(Events::default());
        let mut config = PciConfig::new(ResetRegister::new(events.clone()));
        config.write(0, &0x0600_0600u32.to_le_bytes());
        assert!(events.0.lock().unwrap().is_empty());
        config.write(1, &[6]);
        assert_eq!(*events.0.lock().unwrap(), [GuestEvent::Reset]);
    }
}
