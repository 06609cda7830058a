//! Devices at fixed I/O ports: what a PC's firmware and kernel expect before they look at any bus.
//!
//! The interval timer and the interrupt controllers' 8259 pair live in KVM; [`ioapic`] is for machines whose KVM
//! keeps only the local APICs ("split" irqchip).

pub mod acpi_pm;
pub mod cmos;
pub mod exit_port;
pub mod i8042;
pub mod ioapic;
pub mod pci_config;
pub mod pvpanic;
pub mod serial;

pub use acpi_pm::{AcpiPm, ResetRegister};
pub use cmos::Cmos;
pub use exit_port::ExitPort;
pub use i8042::I8042;
pub use ioapic::{IoApic, MsiSink};
pub use pci_config::PciConfig;
pub use pvpanic::Pvpanic;
pub use serial::{Serial, SerialSource, SerialSpec};
