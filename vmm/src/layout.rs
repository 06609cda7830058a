//! The address map of the machine above low memory; [`vsc_firmware::layout`] has what lies below 1 MiB.

/// End of RAM below 4 GiB and start of the 32-bit device hole: 3 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First virtio-mmio device.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Registers of one virtio-mmio device (VIRTIO 4.2.2 needs 0x100 plus the configuration space).
pub const MMIO_STRIDE: u64 = 0x1000;
/// Most virtio-mmio devices.
pub const MMIO_MAX: u64 = 256;
/// Where a later PCI host bridge has its ECAM window and 32-bit BARs.
pub const PCI_BASE: u64 = 0xe000_0000;
/// End of the range kept for PCI.
pub const PCI_END: u64 = 0xfe00_0000;
/// I/O APIC registers (Intel SDM volume 3A, 11.12; Linux `IO_APIC_DEFAULT_PHYS_BASE`).
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Size of the I/O APIC's register page.
pub const IOAPIC_LEN: u64 = 0x1000;
/// Local APIC registers (Linux `APIC_DEFAULT_PHYS_BASE`).
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// One page for KVM's identity map (Documentation/virt/kvm/api.rst, KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages that KVM on Intel uses as a task state segment (KVM_SET_TSS_ADDR).
pub const TSS: u64 = 0xfeff_d000;
/// Flash for firmware ends here.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

const _: () = {
    assert!(LOW_RAM_END <= MMIO_BASE);
    assert!(MMIO_BASE + MMIO_STRIDE * MMIO_MAX <= PCI_BASE);
    assert!(PCI_BASE < PCI_END && PCI_END <= IOAPIC_BASE);
    assert!(IOAPIC_BASE + IOAPIC_LEN <= LAPIC_BASE);
    assert!(LAPIC_BASE + 0x1000 <= IDENTITY_MAP);
    assert!(IDENTITY_MAP + 0x1000 <= TSS && TSS + 0x3000 <= HIGH_RAM);
};

/// The interrupt of ACPI events.
pub const SCI: u32 = 9;

/// Pins of an I/O APIC.
pub const PINS: u32 = 24;

/// The GSI of virtio-mmio device `index` among `count`, and whether it is level-triggered because others share it.
///
/// Pins 5 to 23 without the SCI and those of the RTC, mouse, FPU and IDE, which drivers claim by number, are free;
/// with more devices than pins those above the ISA's are shared. An ISA pin is an edge in any case: Linux sets them up
/// so before it reads the DSDT, and without a PIC does not let it change (`mp_check_pin_attr`,
/// arch/x86/kernel/apic/io_apic.c).
pub fn virtio_gsi(index: usize, count: usize) -> (u32, bool) {
    const ISA: [u32; 6] = [5, 6, 7, 10, 11, 15];
    const FREE: [u32; 8] = [16, 17, 18, 19, 20, 21, 22, 23];
    match ISA.get(index) {
        Some(&gsi) => (gsi, false),
        None => (
            FREE[(index - ISA.len()) % FREE.len()],
            count > ISA.len() + FREE.len(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edge_until_they_must_be_shared() {
        let used: std::collections::HashSet<_> = (0..14).map(|i| virtio_gsi(i, 14)).collect();
        assert_eq!(used.len(), 14);
        assert!(
            used.iter()
                .all(|&(gsi, level)| gsi < PINS && gsi != SCI && !level)
        );
    }

    #[test]
    fn isa_pins_are_never_level_and_edges_never_shared() {
        for count in 1..=MMIO_MAX as usize {
            let all: Vec<_> = (0..count).map(|i| virtio_gsi(i, count)).collect();
            for &(gsi, level) in &all {
                assert!(gsi < PINS && gsi != SCI);
                assert!(
                    !level || gsi >= 16,
                    "{count} devices: GSI {gsi} is level-triggered"
                );
                let sharing = all.iter().filter(|(other, _)| *other == gsi).count();
                assert!(
                    level || sharing == 1,
                    "{count} devices: GSI {gsi} is shared"
                );
            }
        }
    }
}
