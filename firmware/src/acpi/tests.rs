use super::*;
use proptest::prelude::*;
use std::process::Command;
use vm_memory::GuestMemoryMmap;

fn full<'a>(apic_ids: &'a [u32], virtio_mmio: &'a [MmioDevice]) -> AcpiSpec<'a> {
    AcpiSpec {
        apic_ids,
        ioapic_id: 0,
        ioapic_address: 0xfec0_0000,
        virtio_mmio,
        serials: &[0, 1, 2, 3],
        pvpanic: true,
        exit_port: true,
        i8042: true,
        rtc: true,
        pit: true,
        pm_timer: true,
        pic: true,
        power_button: true,
    }
}

fn windows(count: u64) -> Vec<MmioDevice> {
    (0..count)
        .map(|n| MmioDevice {
            base: 0xd000_0000 + n * 0x1000,
            len: 0x1000,
            gsi: 5 + n as u32 % 18,
            level: n % 2 == 1,
        })
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Follows the pointers as an operating system does; (signature, bytes) of each table. Checks every checksum.
fn walk(block: &[u8]) -> Vec<(String, Vec<u8>)> {
    let at = |address: usize| &block[address - layout::RSDP as usize..];
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    assert_eq!(&block[..8], b"RSD PTR ");
    assert_eq!((sum(&block[..20]), sum(&block[..36]), block[15]), (0, 0, 2));
    let read = |address: usize| {
        let table = at(address);
        let len = u32_at(table, 4);
        let table = table[..len].to_vec();
        (String::from_utf8(table[..4].to_vec()).unwrap(), table)
    };
    let xsdt = read(u32_at(block, 24));
    let mut tables = vec![xsdt.clone()];
    for entry in xsdt.1[36..].chunks(8) {
        tables.push(read(u32_at(entry, 0)));
    }
    let fadt = tables[1].1.clone();
    tables.push(read(u32_at(&fadt, 40)));
    assert_eq!(u32_at(&fadt, 40), u32_at(&fadt, 140), "DSDT and X_DSDT");
    for (name, table) in &tables {
        assert_eq!(sum(table), 0, "checksum of {name}");
    }
    let facs = u32_at(&fadt, 36);
    assert_eq!(facs % 64, 0);
    tables.push(read(facs));
    tables
}

#[test]
fn tables_are_found_and_sum_to_zero() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let ids: Vec<u32> = (0..4).collect();
    let devices = windows(3);
    let spec = full(&ids, &devices);
    assert_eq!(write(&memory, &spec), Ok(0xe_0000));
    let mut block = vec![0; 0x2_0000];
    memory
        .read_slice(&mut block, GuestAddress(0xe_0000))
        .unwrap();
    let names: Vec<_> = walk(&block).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["XSDT", "FACP", "APIC", "DSDT", "FACS"]);
    let tiny = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xe_0000)]).unwrap();
    assert!(matches!(write(&tiny, &spec), Err(AcpiError::Memory { .. })));
}

#[test]
fn absent_devices_are_said_to_be_absent() {
    let block = build(&AcpiSpec {
        apic_ids: &[0],
        ..AcpiSpec::default()
    })
    .unwrap();
    let fadt = &walk(&block)[1].1;
    let arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(
        arch, 0b10_0100,
        "no VGA, no CMOS, no i8042, no legacy devices"
    );
    assert_ne!(u32_at(fadt, 112) & 1 << 4, 0, "no fixed power button");
    assert_eq!(u32_at(fadt, 48), 0, "no SMI command");
    let block = build(&full(&[0], &[])).unwrap();
    let fadt = &walk(&block)[1].1;
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b111);
    assert_eq!(u32_at(fadt, 112) & 1 << 4, 0);
    assert_eq!(
        (fadt[116], fadt[117], u32_at(fadt, 120), fadt[128]),
        (1, 8, 0xcf9, 6)
    );
}

/// MADT entries as (type, body).
fn entries(spec: &AcpiSpec<'_>) -> Vec<(u8, Vec<u8>)> {
    let block = build(spec).unwrap();
    let madt = walk(&block)[2].1.clone();
    let (mut rest, mut entries) = (&madt[44..], Vec::new());
    while !rest.is_empty() {
        entries.push((rest[0], rest[2..usize::from(rest[1])].to_vec()));
        rest = &rest[usize::from(rest[1])..];
    }
    entries
}

#[test]
fn every_cpu_is_listed_with_the_right_kind_of_apic() {
    let ids: Vec<u32> = (0..300).collect();
    let entries = entries(&full(&ids, &[]));
    let lapics: Vec<_> = entries
        .iter()
        .filter(|entry| entry.0 == 0)
        .map(|entry| entry.1[1])
        .collect();
    assert_eq!(lapics, (0..255).collect::<Vec<u8>>());
    let x2apics: Vec<_> = entries
        .iter()
        .filter(|entry| entry.0 == 9)
        .map(|entry| u32_at(&entry.1, 2))
        .collect();
    assert_eq!(x2apics, (255..300).collect::<Vec<usize>>());
    assert_eq!(entries.iter().filter(|entry| entry.0 == 10).count(), 1);
    let overrides: Vec<_> = entries
        .iter()
        .filter(|entry| entry.0 == 2)
        .map(|entry| entry.1.clone())
        .collect();
    assert_eq!(
        overrides,
        [vec![0, 0, 2, 0, 0, 0, 0, 0], vec![0, 9, 9, 0, 0, 0, 13, 0]]
    );
}

#[test]
fn too_much_is_an_error() {
    let ids: Vec<u32> = (0..20_000).collect();
    assert!(matches!(
        build(&full(&ids, &[])),
        Err(AcpiError::TooBig { .. })
    ));
    let high = [MmioDevice {
        base: 1 << 32,
        len: 0x1000,
        gsi: 5,
        level: false,
    }];
    assert_eq!(
        build(&full(&[0], &high)),
        Err(AcpiError::MmioTooHigh { base: 1 << 32 })
    );
    let wraps = [MmioDevice {
        base: 0xffff_f000,
        len: 0x2000,
        gsi: 5,
        level: false,
    }];
    assert!(build(&full(&[0], &wraps)).is_err());
    assert_eq!(
        build(&AcpiSpec {
            serials: &[4],
            ..AcpiSpec::default()
        }),
        Err(AcpiError::NoSuchSerial { index: 4 })
    );
}

/// ACPICA's own disassembler and compiler read the tables, and find nothing wrong with them.
#[test]
fn iasl_agrees() {
    if Command::new("iasl").arg("-v").output().is_err() {
        let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        assert!(
            !in_ci,
            "iasl is not installed (apt-get install acpica-tools)"
        );
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"SKIP: iasl is not installed (apt-get install acpica-tools)\n",
        );
        return;
    }
    let ids: Vec<u32> = (0..260).collect();
    let devices = windows(40);
    let directory = std::env::temp_dir().join(format!("vsc-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let block = build(&full(&ids, &devices)).unwrap();
    let mut texts = String::new();
    for (name, table) in walk(&block) {
        let file = directory.join(format!("{name}.aml"));
        std::fs::write(&file, table).unwrap();
        let run = |args: &[&str]| {
            let output = Command::new("iasl")
                .args(args)
                .current_dir(&directory)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "iasl {args:?}: {text}");
            text
        };
        run(&["-d", &format!("{name}.aml")]);
        let source = std::fs::read_to_string(directory.join(format!("{name}.dsl"))).unwrap();
        assert!(
            !source.contains("Incorrect checksum") && !source.contains("Invalid"),
            "{source}"
        );
        if name == "DSDT" {
            let text = run(&["-vr", "-p", "again", "DSDT.dsl"]);
            assert!(text.contains(" 0 Errors"), "{text}");
        }
        texts += &source;
    }
    std::fs::remove_dir_all(&directory).unwrap();
    for expected in [
        "PNP0501",
        "QEMU0001",
        "LNRO0005",
        "_S5",
        "V027",
        "0xD0027000",
        "Processor x2Apic ID : 00000103",
    ] {
        assert!(texts.contains(expected), "no {expected} in\n{texts}");
    }
    assert_eq!(texts.matches("LNRO0005").count(), 40);
}

proptest! {
    #[test]
    fn any_machine_has_sound_tables(
        ids in proptest::collection::vec(any::<u32>(), 0..400),
        gsis in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..100),
        serials in proptest::collection::vec(0u8..4, 0..5),
        flags in any::<[bool; 8]>(),
    ) {
        let virtio_mmio: Vec<_> = gsis.iter().enumerate()
            .map(|(n, &(gsi, level))| MmioDevice { base: 0xd000_0000 + n as u64 * 0x1000, len: 0x1000, gsi, level })
            .collect();
        let [pvpanic, exit_port, i8042, rtc, pit, pm_timer, pic, power_button] = flags;
        let spec = AcpiSpec {
            apic_ids: &ids, ioapic_id: 1, ioapic_address: 0xfec0_0000, virtio_mmio: &virtio_mmio, serials: &serials,
            pvpanic, exit_port, i8042, rtc, pit, pm_timer, pic, power_button,
        };
        walk(&build(&spec).unwrap());
    }
}
