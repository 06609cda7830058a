use super::*;
use vm_memory::{Bytes, GuestMemoryBackend};

fn plain(size: u64) -> Memory {
    create("test", size, &Backing::default()).unwrap().memory
}

#[test]
fn memory_below_the_hole_is_one_range_and_above_it_two() {
    assert_eq!(ranges(1 << 20), [(0, 1 << 20)]);
    assert_eq!(ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
    assert_eq!(
        ranges(LOW_RAM_END + 4096),
        [(0, LOW_RAM_END), (HIGH_RAM, 4096)]
    );
}

#[test]
fn both_ranges_are_backed_by_different_bytes() {
    let memory = plain(LOW_RAM_END + 8192);
    memory.write_obj(0x11u8, GuestAddress(4095)).unwrap();
    memory
        .write_obj(0x22u8, GuestAddress(HIGH_RAM + 4095))
        .unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(4095)).unwrap(), 0x11);
    assert!(memory.write_obj(1u8, GuestAddress(LOW_RAM_END)).is_err());
    assert!(
        memory
            .write_obj(1u8, GuestAddress(HIGH_RAM + 8192))
            .is_err()
    );
    assert_eq!(memory.num_regions(), 2);
}

#[test]
fn regions_lie_where_huge_pages_can_and_keep_their_content() {
    for size in [8 << 20, 129 << 20, LOW_RAM_END + (64 << 20)] {
        let memory = plain(size);
        for (start, _) in ranges(size) {
            let host = memory.get_host_address(GuestAddress(start)).unwrap();
            assert_eq!(host as u64 % HUGE, 0, "{size:#x}: {host:p}");
        }
        memory.write_obj(0x33u8, GuestAddress(HUGE + 5)).unwrap();
        prefer_huge(&memory, 0, 6 << 20);
        prefer_huge(&memory, size - 1, u64::MAX);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(HUGE + 5)).unwrap(), 0x33);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(HUGE + 6)).unwrap(), 0);
    }
}

#[test]
fn impossible_sizes_are_errors() {
    for size in [0, 1, 4095, 4097, 1 << 47] {
        assert!(
            matches!(create("test", size, &Backing::default()).map(drop), Err(MemoryError::Size(s)) if s == size)
        );
    }
}

#[test]
fn anonymous_memory_has_its_mark_beside_it() {
    let backing = Backing {
        source: MemorySource::Anonymous,
        ..Backing::default()
    };
    let ram = create("anon", 8 << 20, &backing).unwrap();
    let mark = ram.mark.unwrap();
    let name = std::fs::read_link(format!("/proc/self/fd/{}", mark.as_raw_fd()));
    assert_eq!(
        name.unwrap().to_str(),
        Some("/memfd:vsc:anon (deleted)"),
        "ps looks for it"
    );
    ram.memory.write_obj(7u64, GuestAddress(4096)).unwrap();
    assert_eq!(ram.memory.read_obj::<u64>(GuestAddress(4096)).unwrap(), 7);
}

/// Bytes of guest memory that are resident.
fn resident(memory: &Memory, len: u64) -> usize {
    let host = memory.get_host_address(GuestAddress(0)).unwrap();
    let mut pages = vec![0u8; len as usize / 4096];
    // SAFETY: the vector has a byte for each page of the range.
    let result = unsafe { libc::mincore(host.cast(), len as usize, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|p| **p & 1 != 0).count() * 4096
}

#[test]
fn immediate_memory_is_there_before_anybody_touches_it() {
    let size = 132 << 20;
    for source in [MemorySource::Memfd, MemorySource::Anonymous] {
        let mut backing = Backing {
            source,
            ..Backing::default()
        };
        let ram = create("test", size, &backing).unwrap();
        assert!(resident(&ram.memory, size) < 4 << 20, "{source:?}");
        drop(ram);
        backing.immediate = true;
        let ram = create("test", size, &backing).unwrap();
        assert_eq!(resident(&ram.memory, size) as u64, size, "{source:?}");
    }
}

#[test]
fn nodes_and_pages_that_the_host_lacks_are_errors_with_numbers() {
    let backing = Backing {
        nodes: vec![1000],
        ..Backing::default()
    };
    let Err(e) = create("test", 8 << 20, &backing) else {
        panic!("there is no node 1000")
    };
    assert!(e.to_string().contains("[1000]"), "{e}");
    // More than any machine has.
    let mut backing = Backing {
        pages: Pages::Huge2M,
        ..Backing::default()
    };
    let size = 1 << 45;
    let Err(e) = create("test", size, &backing) else {
        panic!("32 TiB of huge pages")
    };
    let text = e.to_string();
    assert!(
        text.contains("of that size") || text.contains("16777216 pages of 2 MiB"),
        "{text}"
    );
    backing.or_small_pages = true;
    let ram = create("test", 1 << 42, &backing).unwrap();
    assert_eq!(ram.backing.pages, Pages::Normal);
    assert_eq!(ram.notes.len(), 1);
    for size in [(2 << 20) + 4096, 4096] {
        let made = create("test", size, &backing);
        assert!(matches!(made, Err(MemoryError::Size(_))));
    }
}
