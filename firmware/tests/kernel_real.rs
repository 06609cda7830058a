//! Real kernels: from `$VSC_TEST_KERNEL`, from `../shared/kernels` beside the repository, and Debian's in `/boot`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::shared;
use std::path::PathBuf;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsc_firmware::Memory;
use vsc_firmware::kernel::{
    Entry, EntryChoice, Flavour, Kernel, KernelError, Kind, LoadOptions, Loaded,
};

const RAM: u64 = 128 << 20;

fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn load(kernel: &Kernel, memory: &Memory) -> Result<Loaded, KernelError> {
    kernel.load(
        memory,
        &LoadOptions {
            mapped: false,
            ram_low_end: RAM,
            fresh: true,
            entry: EntryChoice::Auto,
        },
    )
}

/// The beginning of `text` is somewhere in the loaded kernel.
fn contains(memory: &Memory, loaded: &Loaded, text: &[u8]) -> bool {
    let mut bytes = vec![0; (loaded.end - loaded.start) as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(loaded.start))
        .unwrap();
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn small_bzimage() {
    let Some(path) = shared("bzImage-min") else {
        return;
    };
    let kernel = Kernel::open(path).unwrap();
    assert!(matches!(kernel.kind(), Kind::BzImage(Some(_))));
    assert!(kernel.version().unwrap().starts_with("6."));
    assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
    let memory = memory();
    let loaded = load(&kernel, &memory).unwrap();
    assert!(
        matches!(loaded.entry, Entry::Pvh(entry) if (loaded.start..loaded.end).contains(&entry))
    );
    assert!(contains(&memory, &loaded, b"Linux version "));
    let banner = format!("Linux version {}", kernel.version().unwrap());
    assert!(contains(&memory, &loaded, banner.as_bytes()), "no {banner}");
}

#[test]
fn cpl3_kernel() {
    let Some(path) = shared("vmlinux-cpl3.gz") else {
        return;
    };
    let kernel = Kernel::open(path).unwrap();
    assert!(matches!(kernel.kind(), Kind::Compressed(_)));
    let loaded = load(&kernel, &memory()).unwrap();
    assert_eq!(loaded.flavour, Flavour::Cpl3);
    assert_eq!(kernel.flavour().unwrap(), Flavour::Cpl3);
    assert!(kernel.version().unwrap().starts_with("6."));
}

#[test]
fn kernels_of_this_host() {
    let named = std::env::var_os("VSC_TEST_KERNEL").map(PathBuf::from);
    let package =
        std::env::var_os("VSC_TEST_KERNEL_PACKAGE").map(|p| PathBuf::from(p).join("boot"));
    let installed = [Some("/boot".into()), package]
        .into_iter()
        .flatten()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let installed = installed.filter(|path| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
    });
    let kernels: Vec<_> = named.into_iter().chain(installed).collect();
    if kernels.is_empty() {
        common::skip(
            "neither $VSC_TEST_KERNEL nor a vmlinuz* in /boot or $VSC_TEST_KERNEL_PACKAGE",
        );
    }
    for path in kernels {
        let kernel = Kernel::open(&path).unwrap();
        let memory = memory();
        let loaded = load(&kernel, &memory).unwrap();
        assert!(loaded.is_linux(), "{}", path.display());
        assert!(kernel.version().is_some(), "{}", path.display());
    }
}

/// Bytes of real headers changed one at a time: errors at most.
#[test]
fn mutated_real_headers() {
    let Some(path) = shared("bzImage-min") else {
        return;
    };
    let original = std::fs::read(path).unwrap();
    let file = std::env::temp_dir().join(format!("vsc-mutated-{}", std::process::id()));
    let memory = memory();
    for at in (0x1f1..0x26c).chain((0x4000 + 0x2c4..0x4000 + 0x2d4).step_by(3)) {
        for value in [0x00, 0x80, 0xff] {
            let mut bytes = original.clone();
            bytes[at] = value;
            std::fs::write(&file, &bytes).unwrap();
            if let Ok(kernel) = Kernel::open(&file) {
                let _ = kernel.version();
                // Decoding sixteen megabytes each time would take minutes: only what changed the decision.
                if value == 0xff && at % 8 == 0 {
                    let _ = load(&kernel, &memory);
                }
            }
        }
    }
    std::fs::remove_file(file).unwrap();
}
