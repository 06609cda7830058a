//! ACPI tables: found, summed, and read for what the other tests need (ACPI 6.5, 5.2).

use crate::out::{Ascii, Out, Outcome, ensure, fail, text};
use crate::params::{MMIO_DEVICES, Mmio};
use crate::sys::{bytes, map, read_unaligned};

pub const PROCESSORS: usize = 256;
/// No table of a small machine is larger: a length beyond this is an error, not a reason to read on.
const LARGEST: u32 = 4 << 20;

pub struct Acpi {
    pub found: bool,
    /// APIC ids of enabled processors, in the order of the MADT.
    pub apic_ids: [u32; PROCESSORS],
    pub processors: usize,
    /// I/O APICs: address and first GSI.
    pub ioapics: [(u64, u32); 4],
    pub ioapic_count: usize,
    pub lapic: u64,
    /// I/O port of the PM timer, 0 without one, and whether it has 32 bits.
    pub pm_timer: u16,
    pub pm_timer_32: bool,
    pub reset: (u8, u64, u8),
    pub mmio: [Mmio; MMIO_DEVICES],
    pub mmio_count: usize,
    names: [[u8; 4]; 16],
    tables: usize,
    dsdt: u32,
    sci: u16,
    hardware_reduced: bool,
}

fn sum(address: u64, length: usize) -> u8 {
    bytes(address, length)
        .iter()
        .fold(0, |sum: u8, &b| sum.wrapping_add(b))
}

/// A mapped address below 512 GiB.
fn usable(address: u64) -> bool {
    address >= 0x400 && map(address) && map(address + u64::from(LARGEST))
}

impl Acpi {
    pub const fn new() -> Self {
        Self {
            found: false,
            apic_ids: [0; PROCESSORS],
            processors: 0,
            ioapics: [(0xfec0_0000, 0); 4],
            ioapic_count: 0,
            lapic: 0xfee0_0000,
            pm_timer: 0,
            pm_timer_32: false,
            reset: (0, 0, 0),
            mmio: [Mmio {
                base: 0,
                size: 0,
                gsi: 0,
                level: false,
            }; MMIO_DEVICES],
            mmio_count: 0,
            names: [[0; 4]; 16],
            tables: 0,
            dsdt: 0,
            sci: 0,
            hardware_reduced: false,
        }
    }

    /// Reads everything from `rsdp`, or from where the BIOS area has it.
    pub fn read(&mut self, rsdp: u64) -> Outcome {
        let named = rsdp;
        let found = match named {
            0 => (0xe_0000..0x10_0000)
                .step_by(16)
                .find(|&at| bytes(at, 8) == b"RSD PTR "),
            at => usable(at).then_some(at),
        };
        let Some(at) = found else {
            fail!("no RSDP (start_info says {named:#x})")
        };
        ensure!(bytes(at, 8) == b"RSD PTR ", "no RSDP at {at:#x}");
        ensure!(sum(at, 20) == 0, "RSDP: checksum");
        // Revision 0 is of 1996: 32-bit addresses, and what old firmware still makes.
        let old = bytes(at, 16)[15] < 2;
        let (root, step) = match old {
            true => (read_unaligned::<u32>(at + 16).into(), 4),
            false => (read_unaligned(at + 24), 8),
        };
        if !old {
            ensure!(sum(at, 36) == 0, "RSDP: extended checksum");
        }
        let length = self.table(root, Some(if old { b"RSDT" } else { b"XSDT" }))?;
        for i in 0..(u64::from(length) - 36) / step {
            let entry = root + 36 + i * step;
            let at = if old {
                read_unaligned::<u32>(entry).into()
            } else {
                read_unaligned(entry)
            };
            let length = self.table(at, None)?;
            match bytes(at, 4) {
                b"FACP" => self.fadt(at, length)?,
                b"APIC" => self.madt(at, length)?,
                _ => {}
            }
        }
        ensure!(self.dsdt != 0, "no FADT, so no DSDT");
        self.found = true;
        let mut list = [0_u8; 80];
        for (name, place) in self.names[..self.tables.min(16)]
            .iter()
            .zip(list.chunks_exact_mut(5))
        {
            place[..4].copy_from_slice(name);
            place[4] = b' ';
        }
        let used = self.tables.min(16) * 5;
        Ok(text!("{}at {at:#x}", Ascii(&list[..used])))
    }

    /// Checks a table's header; its length.
    fn table(&mut self, at: u64, signature: Option<&[u8; 4]>) -> Result<u32, crate::out::Problem> {
        ensure!(usable(at), "a table at {at:#x}");
        let name: [u8; 4] = read_unaligned(at);
        let length: u32 = read_unaligned(at + 4);
        ensure!(
            (36..=LARGEST).contains(&length),
            "{}: length {length}",
            Ascii(&name)
        );
        ensure!(sum(at, length as usize) == 0, "{}: checksum", Ascii(&name));
        if let Some(right) = signature {
            ensure!(
                &name == right,
                "{} at {at:#x}, not {}",
                Ascii(&name),
                Ascii(right)
            );
        }
        if let Some(slot) = self.names.get_mut(self.tables) {
            *slot = name;
        }
        self.tables += 1;
        Ok(length)
    }

    fn fadt(&mut self, at: u64, length: u32) -> Result<(), crate::out::Problem> {
        ensure!(length >= 116, "FADT: {length} bytes");
        let flags: u32 = read_unaligned(at + 112);
        self.sci = read_unaligned(at + 46);
        self.hardware_reduced = flags & 1 << 20 != 0;
        if read_unaligned::<u8>(at + 91) >= 4 {
            self.pm_timer = read_unaligned::<u32>(at + 76) as u16;
        }
        self.pm_timer_32 = flags & 1 << 8 != 0;
        if length >= 129 && flags & 1 << 10 != 0 {
            self.reset = (
                read_unaligned(at + 116),
                read_unaligned(at + 120),
                read_unaligned(at + 128),
            );
        }
        let mut dsdt = u64::from(read_unaligned::<u32>(at + 40));
        if length >= 148 && read_unaligned::<u64>(at + 140) != 0 {
            dsdt = read_unaligned(at + 140);
        }
        self.dsdt = self.table(dsdt, Some(b"DSDT"))?;
        self.find_mmio(bytes(dsdt, self.dsdt as usize));
        Ok(())
    }

    fn madt(&mut self, at: u64, length: u32) -> Result<(), crate::out::Problem> {
        self.lapic = u64::from(read_unaligned::<u32>(at + 36));
        let table = bytes(at, length as usize);
        let mut offset = 44;
        while let Some(&[kind, size]) = table.get(offset..offset + 2) {
            let entry = table
                .get(offset..offset + usize::from(size))
                .filter(|e| e.len() >= 2);
            let Some(entry) = entry else {
                fail!("MADT: an entry of {size} bytes at {offset}")
            };
            let word = |o: usize| {
                entry
                    .get(o..o + 4)
                    .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            };
            match (kind, size) {
                (0, 8..) if word(4) & 1 != 0 => self.processor(entry[3].into()),
                (9, 16..) if word(8) & 1 != 0 => self.processor(word(4)),
                (1, 12..) => {
                    if let Some(slot) = self.ioapics.get_mut(self.ioapic_count) {
                        *slot = (word(4).into(), word(8));
                        self.ioapic_count += 1;
                    }
                }
                _ => {}
            }
            offset += usize::from(size);
        }
        ensure!(
            offset == table.len(),
            "MADT: its entries end at {offset} of {}",
            table.len()
        );
        Ok(())
    }

    fn processor(&mut self, id: u32) {
        if let Some(slot) = self.apic_ids.get_mut(self.processors) {
            *slot = id;
            self.processors += 1;
        }
    }

    /// Not an AML interpreter: devices named LNRO0005 and the two resource descriptors that follow
    /// (ACPI 6.4.3.4 Memory32Fixed, 6.4.3.6 Extended Interrupt).
    fn find_mmio(&mut self, aml: &[u8]) {
        let name = b"LNRO0005";
        let starts = |from: usize| {
            aml[from..]
                .windows(8)
                .position(|w| w == name)
                .map(|n| from + n)
        };
        let mut next = starts(0);
        while let Some(start) = next {
            next = starts(start + 8);
            let body = &aml[start..next.unwrap_or(aml.len())];
            let find = |head: &[u8], size: usize| {
                body.windows(head.len())
                    .position(|w| w == head)
                    .and_then(|n| body.get(n..n + size))
            };
            let word = |d: &[u8], o: usize| {
                u64::from(u32::from_le_bytes([d[o], d[o + 1], d[o + 2], d[o + 3]]))
            };
            let memory = find(&[0x86, 9, 0], 12);
            let interrupt = find(&[0x89, 6, 0], 9);
            if let (Some(memory), Some(interrupt), Some(slot)) =
                (memory, interrupt, self.mmio.get_mut(self.mmio_count))
            {
                *slot = Mmio {
                    base: word(memory, 4),
                    size: word(memory, 8),
                    gsi: word(interrupt, 5) as u32,
                    level: interrupt[3] & 2 == 0,
                };
                self.mmio_count += 1;
            }
        }
    }

    pub fn all(&self, out: &mut Out) {
        if !self.found {
            return;
        }
        out.info(
            "processors",
            text!(
                "{} in the MADT, lapic {:#x}, {} I/O APICs",
                self.processors,
                self.lapic,
                self.ioapic_count
            ),
        );
        out.info(
            "dsdt",
            text!(
                "{} bytes, {} virtio-mmio devices",
                self.dsdt,
                self.mmio_count
            ),
        );
        let (space, address, value) = self.reset;
        out.info(
            "fadt",
            text!(
                "sci {} pm-timer {:#x} reduced {} reset {space}:{address:#x}={value:#x}",
                self.sci,
                self.pm_timer,
                self.hardware_reduced
            ),
        );
    }
}
