//! ACPI tables: what firmware would tell the guest about CPUs, interrupts and devices.
//!
//! The full hardware model, so that power off, the power button and reset work as on a PC, but with nothing a guest
//! would have to probe for: no SMI command (the machine is in ACPI mode from the start), no VGA, no i8042 unless there
//! is one. Everything is one block from [`layout::RSDP`] on. Source: ACPI specification 6.5; section numbers below are its.

#![forbid(unsafe_code)]

use crate::Memory;
use crate::layout;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

/// System control interrupt, level-triggered, active high.
pub const SCI: u16 = 9;
/// PM1a event block: status and enable, 2 bytes each (4.8.3.1).
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control, 2 bytes (4.8.3.2).
pub const PM1A_CONTROL: u16 = 0x604;
/// PM timer, 4 bytes, 3.579545 MHz (4.8.3.3).
pub const PM_TIMER: u16 = 0x608;
/// Reset register (4.8.3.6) as in every PC chipset since the PIIX3.
pub const RESET: u16 = 0xcf9;
/// Value that resets.
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYPx` of S5 (soft off), as the DSDT's `\_S5` says.
pub const S5_TYPE: u8 = 5;
/// pvpanic event port (QEMU `docs/specs/pvpanic.rst`).
pub const PVPANIC: u16 = 0x505;
/// Port a byte written to which is the guest's exit status.
pub const EXIT: u16 = 0x501;
/// LAPIC address of every x86 CPU after reset.
const LAPIC: u32 = 0xfee0_0000;
/// COM1..4: port and IRQ of a PC.
const SERIAL: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
const OEM: &[u8; 6] = b"VSC   ";
const OEM_TABLE: &[u8; 8] = b"VSCVM   ";

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
    /// The PM timer is declared. Linux spends 5 ms and more to check it, and with kvmclock nothing reads it.
    pub pm_timer: bool,
    /// There is a PIT: IRQ 0 is overridden to GSI 2.
    pub pit: bool,
    /// There is a PIC (MADT `PCAT_COMPAT`).
    pub pic: bool,
    /// The guest gets a fixed power button.
    pub power_button: bool,
}

/// Tables that could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// They need more room than there is below 1 MiB.
    #[error(
        "ACPI tables need {needed} bytes, and there is room for {room}: fewer vCPUs or devices"
    )]
    TooBig {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        room: usize,
    },
    /// A virtio-mmio window that is not below 4 GiB.
    #[error("The virtio-mmio window at {base:#x} is not below 4 GiB, where ACPI can describe it")]
    MmioTooHigh {
        /// Its address.
        base: u64,
    },
    /// A serial port that a PC does not have.
    #[error("There is no COM{}: COM1 to COM4 can be described", index + 1)]
    NoSuchSerial {
        /// Its index.
        index: u8,
    },
    /// Guest memory is not there.
    #[error("Cannot write {len} bytes of ACPI tables to guest memory at {address:#x}")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// Writes the tables to [`layout::RSDP`] and on, and returns the address of the RSDP.
pub fn write(memory: &Memory, spec: &AcpiSpec<'_>) -> Result<u64, AcpiError> {
    let tables = build(spec)?;
    memory
        .write_slice(&tables, GuestAddress(layout::RSDP))
        .map_err(|_| AcpiError::Memory {
            address: layout::RSDP,
            len: tables.len(),
        })?;
    Ok(layout::RSDP)
}

/// All tables, as they lie from [`layout::RSDP`] on.
fn build(spec: &AcpiSpec<'_>) -> Result<Vec<u8>, AcpiError> {
    // The RSDP comes first and is filled in last; the FACS must be 64-byte aligned (5.2.10).
    let mut block = vec![0; 64];
    let facs_at = append(&mut block, &facs());
    let dsdt_at = append(&mut block, &table(b"DSDT", 2, &dsdt(spec)?));
    let fadt_at = append(
        &mut block,
        &table(b"FACP", 6, &fadt(spec, facs_at, dsdt_at)),
    );
    let madt_at = append(&mut block, &table(b"APIC", 5, &madt(spec)));
    let mut entries = Vec::new();
    for at in [fadt_at, madt_at] {
        entries.extend(u64::from(at).to_le_bytes());
    }
    let xsdt_at = append(&mut block, &table(b"XSDT", 1, &entries));
    block[..36].copy_from_slice(&rsdp(xsdt_at));
    let room = (layout::ACPI_END - layout::RSDP) as usize;
    if block.len() > room {
        return Err(AcpiError::TooBig {
            needed: block.len(),
            room,
        });
    }
    Ok(block)
}

/// Appends a table at the next 16-byte boundary; its guest-physical address.
fn append(block: &mut Vec<u8>, table: &[u8]) -> u32 {
    block.resize(block.len().next_multiple_of(16), 0);
    // Below 1 MiB when it fits; when not, the result is not used.
    let at = layout::RSDP as u32 + block.len() as u32;
    block.extend_from_slice(table);
    at
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// A table with its header (5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Vec::with_capacity(36 + body.len());
    table.extend(signature);
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(OEM);
    table.extend(OEM_TABLE);
    table.extend(1u32.to_le_bytes());
    table.extend(b"VSC ");
    table.extend(1u32.to_le_bytes());
    table.extend(body);
    table[9] = checksum(&table);
    table
}

/// Root pointer, revision 2 (5.2.5.3).
fn rsdp(xsdt: u32) -> [u8; 36] {
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(OEM);
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&36u32.to_le_bytes());
    rsdp[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// Firmware ACPI control structure (5.2.10): no waking vector, no global lock.
fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4..8].copy_from_slice(&64u32.to_le_bytes());
    facs[32] = 2;
    facs
}

/// Fixed ACPI description table without its header (5.2.9). Offsets in it are the specification's minus 36.
fn fadt(spec: &AcpiSpec<'_>, facs: u32, dsdt: u32) -> Vec<u8> {
    let mut fadt = vec![0; 276 - 36];
    let mut put =
        |at: usize, bytes: &[u8]| fadt[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &SCI.to_le_bytes());
    put(56, &u32::from(PM1A_EVENT).to_le_bytes());
    put(64, &u32::from(PM1A_CONTROL).to_le_bytes());
    // PM1_EVT_LEN, PM1_CNT_LEN.
    put(88, &[4]);
    put(89, &[2]);
    if spec.pm_timer {
        // PM_TMR_BLK, PM_TMR_LEN, X_PM_TMR_BLK.
        put(76, &u32::from(PM_TIMER).to_le_bytes());
        put(91, &[4]);
        put(208, &port(PM_TIMER, 32, 3));
    }
    // P_LVL2_LAT, P_LVL3_LAT: more than 100 and 1000 microseconds mean that there is no C2 and C3.
    put(96, &0x0fffu16.to_le_bytes());
    put(98, &0x0fffu16.to_le_bytes());

    // IAPC_BOOT_ARCH (table 5.11).
    let mut arch = 1 << 2; // no VGA
    if !spec.serials.is_empty() || spec.i8042 {
        arch |= 1; // LEGACY_DEVICES
    }
    if spec.i8042 {
        arch |= 1 << 1;
    }
    if !spec.rtc {
        arch |= 1 << 5; // no CMOS RTC
    }
    put(109, &u16::to_le_bytes(arch));

    // Flags (table 5.10).
    let mut flags = 1 // WBINVD works
        | 1 << 2 // C1 on every CPU
        | 1 << 5 // no fixed sleep button
        | 1 << 6 // the RTC cannot wake in fixed hardware
        | 1 << 8 // the timer has 32 bits
        | 1 << 10; // there is a reset register
    if !spec.power_button {
        flags |= 1 << 4;
    }
    put(112, &u32::to_le_bytes(flags));
    put(116, &port(RESET, 8, 1));
    put(128, &[RESET_VALUE]);
    // Minor version of 6.5.
    put(131, &[5]);
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &port(PM1A_EVENT, 32, 2));
    put(172, &port(PM1A_CONTROL, 16, 2));
    put(268, b"VSC\0\0\0\0\0");
    fadt
}

/// A generic address structure for an I/O port (5.2.3.2); `access`: 1 byte, 2 word, 3 dword.
fn port(address: u16, bits: u8, access: u8) -> [u8; 12] {
    let mut gas = [0; 12];
    gas[..4].copy_from_slice(&[1, bits, 0, access]);
    gas[4..6].copy_from_slice(&address.to_le_bytes());
    gas
}

/// Multiple APIC description table without its header (5.2.12).
fn madt(spec: &AcpiSpec<'_>) -> Vec<u8> {
    let mut madt = Vec::with_capacity(64 + spec.apic_ids.len() * 16);
    madt.extend(LAPIC.to_le_bytes());
    madt.extend(u32::from(spec.pic).to_le_bytes());
    let mut x2apic = false;
    for (uid, &id) in spec.apic_ids.iter().enumerate() {
        match (u8::try_from(uid), u8::try_from(id)) {
            // 255 is the broadcast address: ids up to 254 are local APICs (5.2.12.2), all others x2APICs (5.2.12.12).
            (Ok(uid), Ok(id)) if id != 255 && uid != 255 => {
                madt.extend([0, 8, uid, id, 1, 0, 0, 0])
            }
            _ => {
                x2apic = true;
                madt.extend([9, 16, 0, 0]);
                madt.extend(id.to_le_bytes());
                madt.extend(1u32.to_le_bytes());
                madt.extend((uid as u32).to_le_bytes());
            }
        }
    }
    madt.extend([1, 12, spec.ioapic_id, 0]);
    madt.extend(spec.ioapic_address.to_le_bytes());
    madt.extend(0u32.to_le_bytes());
    if spec.pit {
        madt.extend(source_override(0, 2, 0));
    }
    // Active high, level-triggered.
    madt.extend(source_override(SCI as u8, u32::from(SCI), 0b1101));
    // LINT1 is NMI on all CPUs.
    madt.extend([4, 6, 0xff, 0, 0, 1]);
    if x2apic {
        madt.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    madt
}

/// Interrupt source override (5.2.12.5).
fn source_override(irq: u8, gsi: u32, flags: u16) -> [u8; 10] {
    let (g, f) = (gsi.to_le_bytes(), flags.to_le_bytes());
    [2, 10, 0, irq, g[0], g[1], g[2], g[3], f[0], f[1]]
}

/// An interrupt of ISA kind: edge-triggered, active high.
fn isa_interrupt(irq: u32, shared: bool) -> Interrupt {
    Interrupt::new(true, true, false, shared, irq)
}

fn device(
    sink: &mut dyn AmlSink,
    name: &str,
    hid: &dyn Aml,
    uid: Option<u32>,
    resources: Vec<&dyn Aml>,
) {
    let hid = Name::new("_HID".into(), hid);
    let uid = uid.map(|uid| Name::new("_UID".into(), &uid));
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend(uid.iter().map(|uid| uid as &dyn Aml));
    children.push(&crs);
    Device::new(name.into(), children).to_aml_bytes(sink);
}

/// Definition block of the DSDT.
fn dsdt(spec: &AcpiSpec<'_>) -> Result<Vec<u8>, AcpiError> {
    let mut devices: Vec<u8> = Vec::with_capacity(1024 + spec.virtio_mmio.len() * 80);
    for &index in spec.serials {
        let &(base, irq) = SERIAL
            .get(usize::from(index))
            .ok_or(AcpiError::NoSuchSerial { index })?;
        let twin = spec.serials.contains(&(index ^ 2));
        let (io, interrupt) = (IO::new(base, base, 1, 8), isa_interrupt(irq, twin));
        let name = format!("COM{}", index + 1);
        let uid = Some(u32::from(index) + 1);
        device(
            &mut devices,
            &name,
            &EISAName::new("PNP0501"),
            uid,
            vec![&io, &interrupt],
        );
    }
    if spec.i8042 {
        let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
        let interrupt = isa_interrupt(1, false);
        device(
            &mut devices,
            "KBD_",
            &EISAName::new("PNP0303"),
            None,
            vec![&data, &command, &interrupt],
        );
    }
    if spec.rtc {
        device(
            &mut devices,
            "RTC_",
            &EISAName::new("PNP0B00"),
            None,
            vec![&IO::new(0x70, 0x70, 1, 2)],
        );
    }
    if spec.pit {
        device(
            &mut devices,
            "TIMR",
            &EISAName::new("PNP0100"),
            None,
            vec![&IO::new(0x40, 0x40, 1, 4)],
        );
    }
    if spec.pvpanic {
        device(
            &mut devices,
            "PEVT",
            &"QEMU0001",
            None,
            vec![&IO::new(PVPANIC, PVPANIC, 1, 1)],
        );
    }
    if spec.exit_port {
        // A motherboard resource: taken, and no driver's.
        device(
            &mut devices,
            "EXIT",
            &EISAName::new("PNP0C02"),
            Some(1),
            vec![&IO::new(EXIT, EXIT, 1, 1)],
        );
    }
    for (index, window) in spec.virtio_mmio.iter().enumerate() {
        let too_high = AcpiError::MmioTooHigh { base: window.base };
        let (Ok(base), Ok(len)) = (u32::try_from(window.base), u32::try_from(window.len)) else {
            return Err(too_high);
        };
        base.checked_add(len).ok_or(too_high)?;
        let shared = spec
            .virtio_mmio
            .iter()
            .filter(|other| other.gsi == window.gsi)
            .count()
            > 1;
        let registers = Memory32Fixed::new(true, base, len);
        let interrupt = Interrupt::new(true, !window.level, false, shared, window.gsi);
        let name = format!("V{index:03X}");
        device(
            &mut devices,
            &name,
            &"LNRO0005",
            Some(index as u32),
            vec![&registers, &interrupt],
        );
    }

    let mut dsdt = Scope::raw("_SB_".into(), devices);
    // SLP_TYPa, SLP_TYPb, two reserved (7.4.2.6).
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&S5_TYPE, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut dsdt);
    Ok(dsdt)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stderr)]
mod tests;
