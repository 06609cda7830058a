//! The built-in guest's file is one that any PVH loader takes.
#![allow(clippy::unwrap_used, reason = "a test")]

use vsc_firmware::guest::ELF;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;
/// What the code, its data and the page tables of the first GiB may take.
const LARGEST: u64 = 128 << 10;

fn u16_at(at: usize) -> u16 {
    u16::from_le_bytes(ELF[at..at + 2].try_into().unwrap())
}
fn u32_at(at: usize) -> u32 {
    u32::from_le_bytes(ELF[at..at + 4].try_into().unwrap())
}
fn u64_at(at: usize) -> u64 {
    u64::from_le_bytes(ELF[at..at + 8].try_into().unwrap())
}

struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

fn segments() -> Vec<Segment> {
    let start = u64_at(32) as usize;
    (0..usize::from(u16_at(56)))
        .map(|n| start + n * usize::from(u16_at(54)))
        .map(|at| Segment {
            kind: u32_at(at),
            offset: u64_at(at + 8) as usize,
            address: u64_at(at + 24),
            in_file: u64_at(at + 32),
            in_memory: u64_at(at + 40),
        })
        .collect()
}

#[test]
fn it_is_a_static_x86_64_elf_file() {
    assert_eq!(&ELF[..7], b"\x7fELF\x02\x01\x01");
    // ET_EXEC, EM_X86_64.
    assert_eq!((u16_at(16), u16_at(18)), (2, 62));
    // No interpreter, nothing dynamic.
    assert!(
        segments()
            .iter()
            .all(|s| s.kind == PT_LOAD || s.kind == PT_NOTE)
    );
}

#[test]
fn it_loads_between_1_and_16_mib_and_is_small() {
    let loads: Vec<Segment> = segments()
        .into_iter()
        .filter(|s| s.kind == PT_LOAD)
        .collect();
    assert_eq!(loads.len(), 1, "one piece");
    let load = &loads[0];
    assert_eq!(load.address, 1 << 20);
    assert!(load.address + load.in_memory <= 16 << 20);
    assert!(load.in_file <= LARGEST, "{} bytes", load.in_file);
    assert!(load.in_memory <= 512 << 10, "{} bytes", load.in_memory);
    assert!(load.in_file <= load.in_memory);
}

#[test]
fn the_pvh_note_names_an_entry_inside_it() {
    let all = segments();
    let note = all.iter().find(|s| s.kind == PT_NOTE).expect("a note");
    let load = all.iter().find(|s| s.kind == PT_LOAD).expect("a segment");
    let at = note.offset;
    assert_eq!(
        (u32_at(at), u32_at(at + 4), u32_at(at + 8)),
        (4, 8, PHYS32_ENTRY)
    );
    assert_eq!(&ELF[at + 12..at + 16], b"Xen\0");
    let entry = u64_at(at + 16);
    assert_eq!(entry, u64_at(24), "the ELF entry is the same");
    assert!((load.address..load.address + load.in_file).contains(&entry));
    // Before paging there is no other address space than the physical one.
    assert!(u32::try_from(entry).is_ok());
}
