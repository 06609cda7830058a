//! Every kind of file a person may give as a kernel: what it is called, and that no bytes at all do harm.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vsc_firmware::Memory;
use vsc_firmware::kernel::{
    Compression, Entry, EntryChoice, Flavour, Kernel, KernelError, Kind, LoadOptions, Loaded,
};

const RAM: u64 = 32 << 20;

/// A file that goes away with the value.
struct Temporary(PathBuf);

impl Temporary {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsc-kernel-{}-{n}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Shared memory backed by a file, as the monitor's is.
fn shared_memory() -> Memory {
    let file = Temporary::new(b"");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&file.0)
        .unwrap();
    file.set_len(RAM).unwrap();
    let region = MmapRegion::from_file(FileOffset::new(file, 0), RAM as usize).unwrap();
    GuestMemoryMmap::from_regions(vec![GuestRegionMmap::new(region, GuestAddress(0)).unwrap()])
        .unwrap()
}

fn anonymous_memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn options() -> LoadOptions {
    LoadOptions {
        mapped: false,
        ram_low_end: RAM,
        fresh: true,
        entry: EntryChoice::Auto,
    }
}

fn open(bytes: &[u8]) -> Result<Kernel, KernelError> {
    // The mapping outlives the name.
    Kernel::open(&Temporary::new(bytes).0)
}

#[derive(Clone)]
struct Part {
    offset: u64,
    virt: u64,
    phys: u64,
    data: Vec<u8>,
    mem_len: u64,
}

struct Note(&'static str, u32, Vec<u8>);

struct ElfFile {
    entry: u64,
    parts: Vec<Part>,
    notes: Vec<Note>,
    tail: usize,
}

/// Bytes that neither compress to nothing nor repeat soon.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if state & 3 == 0 {
                (state >> 24) as u8
            } else {
                (state >> 28) as u8
            }
        })
        .collect()
}

impl ElfFile {
    /// Segments like Linux has: text with a gap in front, data in place, two more that lie lower than in the file, the
    /// last with a long run of zeros in the middle and a bss.
    fn linux() -> Self {
        const MAP: u64 = 0xffff_ffff_8000_0000;
        let mut last = noise(300_000, 3);
        last.extend(vec![0; 2 << 20]);
        last.extend(noise(5000, 4));
        let mut text = noise(700_000, 1);
        text[1000..1026].copy_from_slice(b"Linux version 9.8.7-test (");
        let part = |offset, phys, data: Vec<u8>, bss: u64| Part {
            offset,
            virt: MAP + phys,
            phys,
            mem_len: data.len() as u64 + bss,
            data,
        };
        Self {
            entry: 0x40_0000,
            parts: vec![
                part(0x20_0000, 0x40_0000, text, 0),
                part(0x60_0000, 0x80_0000, noise(400_000, 2), 0),
                part(0x80_0000, 0x90_0000, noise(70_000, 5), 100),
                part(0x84_0000, 0x94_0000, last, 0x8_1234),
            ],
            notes: vec![
                Note("Linux", 0x101, vec![0]),
                Note("Xen", 18, 0x40_0010u64.to_le_bytes().to_vec()),
            ],
            tail: 100_000,
        }
    }

    fn tiny() -> Self {
        let part = Part {
            offset: 0x1000,
            virt: 0x10_0000,
            phys: 0x10_0000,
            data: vec![0xf4; 16],
            mem_len: 32,
        };
        Self {
            entry: 0x10_0000,
            parts: vec![part],
            notes: vec![],
            tail: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        for Note(name, kind, desc) in &self.notes {
            notes.extend((name.len() as u32 + 1).to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name.bytes());
            notes.push(0);
            notes.resize(notes.len().next_multiple_of(4), 0);
            notes.extend(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let count = self.parts.len() + 1;
        let notes_at = 64 + 56 * count;
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for word in [self.entry, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, count as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut header = |kind: u32, offset: u64, virt: u64, phys: u64, len: u64, mem_len: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, virt, phys, len, mem_len, 0x1000] {
                file.extend(word.to_le_bytes());
            }
        };
        for part in &self.parts {
            header(
                1,
                part.offset,
                part.virt,
                part.phys,
                part.data.len() as u64,
                part.mem_len,
            );
        }
        header(
            4,
            notes_at as u64,
            0,
            0,
            notes.len() as u64,
            notes.len() as u64,
        );
        file.extend(&notes);
        for part in &self.parts {
            let at = part.offset as usize;
            file.resize(file.len().max(at + part.data.len()), 0);
            file[at..at + part.data.len()].copy_from_slice(&part.data);
        }
        file.extend(noise(self.tail, 9));
        file
    }

    /// What must be where after loading.
    fn check(&self, memory: &Memory, loaded: &Loaded) {
        let end = self
            .parts
            .iter()
            .map(|part| part.phys + part.mem_len)
            .max()
            .unwrap();
        let start = self.parts.iter().map(|part| part.phys).min().unwrap();
        assert_eq!((loaded.start, loaded.end), (start, end));
        for part in &self.parts {
            let mut got = vec![1; part.mem_len as usize];
            memory
                .read_slice(&mut got, GuestAddress(part.phys))
                .unwrap();
            assert!(
                got[..part.data.len()] == part.data,
                "segment at {:#x}",
                part.phys
            );
            assert!(
                got[part.data.len()..].iter().all(|&b| b == 0),
                "bss of the segment at {:#x}",
                part.phys
            );
        }
    }
}

fn pack(compression: Compression, data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match compression {
        Compression::Gzip => {
            let mut compressor =
                libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
            let mut out = vec![0; compressor.gzip_compress_bound(data.len())];
            let len = compressor.gzip_compress(data, &mut out).unwrap();
            out.truncate(len);
            out
        }
        Compression::Zstd => {
            // Without the content's size, as a stream has it.
            let mut out = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            out.write_all(data).unwrap();
            out.finish().unwrap()
        }
        Compression::Xz => {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 0);
            out.write_all(data).unwrap();
            out.finish().unwrap()
        }
        Compression::Lzma => {
            let options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
            let mut out = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            out.write_all(data).unwrap();
            out.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut out = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in data.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                out.extend((packed.len() as u32).to_le_bytes());
                out.extend(packed);
            }
            out
        }
        Compression::Bzip2 => b"BZh91AY&SY and so on".to_vec(),
    }
}

const DECODED: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lzma,
    Compression::Lz4,
];

/// A bzImage around `payload`; the size of what is in it is appended except for gzip, as the Linux build does.
fn bzimage(payload: &[u8], size: Option<usize>) -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut code = vec![0x90; 0x400];
    let payload_at = code.len() as u32;
    code.extend(payload);
    if let Some(size) = size {
        code.extend((size as u32).to_le_bytes());
    }
    let payload_len = code.len() as u32 - payload_at;
    code.resize(code.len().next_multiple_of(16), 0);
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&(code.len() as u32 / 16).to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file[0x236..0x238].copy_from_slice(&0x3fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&payload_at.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&payload_len.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x40_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x90_0000u32.to_le_bytes());
    file[0x300..0x30f].copy_from_slice(b"1.2.3-bz (me) #");
    file.extend(code);
    file
}

#[test]
fn elf() {
    let elf = ElfFile::linux();
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(kernel.kind(), Kind::Elf);
    assert_eq!(kernel.version(), Some("9.8.7-test"));
    assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
    for memory in [shared_memory(), anonymous_memory()] {
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(loaded.entry, Entry::Pvh(0x40_0010));
        assert!(loaded.is_linux() && loaded.header.is_none());
    }
    let linux = LoadOptions {
        mapped: false,
        entry: EntryChoice::Linux64,
        ..options()
    };
    assert_eq!(
        kernel.load(&shared_memory(), &linux).unwrap().entry,
        Entry::Linux64(0x40_0000)
    );
}

#[test]
fn memory_that_is_not_fresh() {
    let elf = ElfFile::linux();
    for compression in [None, Some(Compression::Lz4), Some(Compression::Gzip)] {
        let file = compression.map_or_else(|| elf.bytes(), |c| pack(c, &elf.bytes()));
        for memory in [shared_memory(), anonymous_memory()] {
            memory
                .write_slice(&vec![0xaa; RAM as usize - (1 << 20)], GuestAddress(1 << 20))
                .unwrap();
            let options = LoadOptions {
                mapped: false,
                fresh: false,
                ..options()
            };
            let loaded = open(&file).unwrap().load(&memory, &options).unwrap();
            elf.check(&memory, &loaded);
        }
    }
}

#[test]
fn compressed_elf() {
    let elf = ElfFile::linux();
    for compression in DECODED {
        let kernel = open(&pack(compression, &elf.bytes())).unwrap();
        assert_eq!(kernel.kind(), Kind::Compressed(compression));
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(
            (loaded.entry, loaded.flavour),
            (Entry::Pvh(0x40_0010), Flavour::Stock)
        );
        assert_eq!(kernel.version(), Some("9.8.7-test"), "{compression:?}");
    }
}

/// What was decoded but belongs to no segment does not stay behind.
#[test]
fn nothing_stale_stays_in_memory() {
    let elf = ElfFile::linux();
    let memory = shared_memory();
    let loaded = open(&pack(Compression::Lz4, &elf.bytes()))
        .unwrap()
        .load(&memory, &options())
        .unwrap();
    let mut after = vec![0; (RAM - loaded.end) as usize];
    memory
        .read_slice(&mut after, GuestAddress(loaded.end))
        .unwrap();
    assert!(after.iter().all(|&byte| byte == 0));
    let mut before = vec![0; loaded.start as usize];
    memory.read_slice(&mut before, GuestAddress(0)).unwrap();
    assert!(
        before.iter().all(|&byte| byte == 0),
        "the ELF header, or something below 1 MiB"
    );
}

/// The gap between file and memory layout does not allow decoding in place.
#[test]
fn compressed_elf_that_cannot_lie_in_place() {
    let mut swapped = ElfFile::linux();
    swapped.parts[1].phys = 0xa0_0000;
    swapped.parts[2].phys = 0x80_0000;
    swapped.parts[3].phys = 0xb0_0000;
    let mut low = ElfFile::linux();
    low.parts[0].phys = 0x12_0000;
    low.notes.pop();
    low.entry = 0x12_0000;
    for elf in [swapped, low] {
        for compression in DECODED {
            let memory = shared_memory();
            let loaded = open(&pack(compression, &elf.bytes()))
                .unwrap()
                .load(&memory, &options())
                .unwrap();
            elf.check(&memory, &loaded);
        }
    }
    // Enough RAM for the kernel, not for decoding in place.
    let elf = ElfFile::linux();
    let end = elf.parts[3].phys + elf.parts[3].mem_len;
    for compression in DECODED {
        let memory = shared_memory();
        let options = LoadOptions {
            mapped: false,
            ram_low_end: end,
            ..options()
        };
        let loaded = open(&pack(compression, &elf.bytes()))
            .unwrap()
            .load(&memory, &options)
            .unwrap();
        elf.check(&memory, &loaded);
    }
}

#[test]
fn bzimage_is_entered_as_elf() {
    let elf = ElfFile::linux();
    for compression in DECODED {
        let size = (compression != Compression::Gzip).then_some(elf.bytes().len());
        let kernel = open(&bzimage(&pack(compression, &elf.bytes()), size)).unwrap();
        assert_eq!(kernel.kind(), Kind::BzImage(Some(compression)));
        assert_eq!(kernel.version(), Some("1.2.3-bz"));
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        elf.check(&memory, &loaded);
        assert_eq!(loaded.entry, Entry::Pvh(0x40_0010));
        let header = loaded.header.unwrap();
        assert_eq!({ header.init_size }, 0x90_0000);
    }
}

#[test]
fn bzimage_with_unknown_payload_decompresses_itself() {
    for payload in [b"\x89LZO and more".to_vec(), pack(Compression::Bzip2, &[])] {
        let file = bzimage(&payload, None);
        let kernel = open(&file).unwrap();
        assert_eq!(kernel.kind(), Kind::BzImage(None));
        assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
        let memory = shared_memory();
        let loaded = kernel.load(&memory, &options()).unwrap();
        assert_eq!(loaded.entry, Entry::Linux64(0x40_0200));
        assert_eq!((loaded.start, loaded.end), (0x40_0000, 0xd0_0000));
        let mut code = vec![0; file.len() - 1024];
        memory
            .read_slice(&mut code, GuestAddress(0x40_0000))
            .unwrap();
        assert_eq!(code, file[1024..]);
        let pvh = LoadOptions {
            mapped: false,
            entry: EntryChoice::Pvh,
            ..options()
        };
        assert!(matches!(
            kernel.load(&memory, &pvh),
            Err(KernelError::EntryNotThere { .. })
        ));
        let small = LoadOptions {
            mapped: false,
            ram_low_end: 0xc0_0000,
            ..options()
        };
        assert!(matches!(
            kernel.load(&memory, &small),
            Err(KernelError::TooBig {
                needed: 0xd0_0000,
                ..
            })
        ));
    }
}

#[test]
fn flavours() {
    let salted = |salt: &str| {
        let mut elf = ElfFile::linux();
        elf.notes
            .push(Note("Linux", 0x100, [salt.as_bytes(), b"\0"].concat()));
        elf
    };
    let mut by_message = ElfFile::linux();
    by_message.parts[1].data[777..803].copy_from_slice(b"cpl3: running deprivileged");
    let mut smp = ElfFile::linux();
    smp.parts[1].data[777..803].copy_from_slice(b"cpl3: running deprivileged");
    smp.parts[2].virt = 0;
    let mut bsd = ElfFile::linux();
    bsd.notes = vec![Note("FreeBSD", 1, vec![1, 2, 3, 4])];
    for (elf, flavour) in [
        (salted("vsc-cpl3"), Flavour::Cpl3),
        (salted("6.1.0-1-amd64"), Flavour::Stock),
        (by_message, Flavour::Cpl3),
        (smp, Flavour::Stock),
        (ElfFile::tiny(), Flavour::NotLinux),
        (bsd, Flavour::NotLinux),
    ] {
        let file = elf.bytes();
        for bytes in [file.clone(), pack(Compression::Lz4, &file)] {
            assert_eq!(open(&bytes).unwrap().flavour().unwrap(), flavour);
            assert_eq!(
                open(&bytes)
                    .unwrap()
                    .load(&anonymous_memory(), &options())
                    .unwrap()
                    .flavour,
                flavour
            );
        }
    }
}

#[test]
fn entries() {
    let mut elf = ElfFile::tiny();
    elf.entry = 0x20_0000;
    assert!(matches!(
        open(&elf.bytes()),
        Err(KernelError::NoEntry { .. })
    ));
    // A note that points nowhere is no entry.
    elf.entry = 0x10_0004;
    elf.notes
        .push(Note("Xen", 18, 0x50_0000u32.to_le_bytes().to_vec()));
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(
        kernel.load(&anonymous_memory(), &options()).unwrap().entry,
        Entry::Linux64(0x10_0004)
    );
    let pvh = LoadOptions {
        mapped: false,
        entry: EntryChoice::Pvh,
        ..options()
    };
    assert!(matches!(
        kernel.load(&anonymous_memory(), &pvh),
        Err(KernelError::EntryNotThere { wanted: "PVH", .. })
    ));
    // A 4-byte note, an entry given as virtual address.
    elf.notes = vec![Note("Xen", 18, 0x10_0008u32.to_le_bytes().to_vec())];
    (elf.parts[0].virt, elf.entry) = (0xffff_8000_0000_0000, 0xffff_8000_0000_0003);
    let kernel = open(&elf.bytes()).unwrap();
    assert_eq!(
        kernel.load(&anonymous_memory(), &options()).unwrap().entry,
        Entry::Pvh(0x10_0008)
    );
    let linux = LoadOptions {
        mapped: false,
        entry: EntryChoice::Linux64,
        ..options()
    };
    assert_eq!(
        kernel.load(&anonymous_memory(), &linux).unwrap().entry,
        Entry::Linux64(0x10_0003)
    );
}

#[test]
fn part_of_this_program() {
    let bytes: &'static [u8] = Box::leak(ElfFile::tiny().bytes().into_boxed_slice());
    let kernel = Kernel::from_static("built-in", bytes).unwrap();
    assert_eq!(kernel.path(), Path::new("built-in"));
    kernel.load(&anonymous_memory(), &options()).unwrap();
}

#[test]
fn places_that_do_not_fit() {
    let elf = ElfFile::linux();
    let end = elf.parts[3].phys + elf.parts[3].mem_len;
    for file in [elf.bytes(), pack(Compression::Gzip, &elf.bytes())] {
        let small = LoadOptions {
            mapped: false,
            ram_low_end: end - 1,
            ..options()
        };
        let error = open(&file)
            .unwrap()
            .load(&anonymous_memory(), &small)
            .unwrap_err();
        assert!(
            matches!(error, KernelError::TooBig { needed, ram_end, .. } if needed == end && ram_end == end - 1)
        );
        assert!(
            error.to_string().contains("needs memory up to 13 MiB"),
            "{error}"
        );
        // RAM that is claimed but not there.
        let tiny = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(matches!(
            open(&file).unwrap().load(&tiny, &options()),
            Err(KernelError::Memory { .. })
        ));
    }
    let mut low = ElfFile::tiny();
    (low.parts[0].phys, low.entry) = (0xf_f000, 0xf_f000);
    let error = open(&low.bytes())
        .unwrap()
        .load(&anonymous_memory(), &options())
        .unwrap_err();
    assert!(matches!(
        error,
        KernelError::TooLow {
            address: 0xf_f000,
            ..
        }
    ));
}

#[test]
fn truncated_files_say_what_is_missing() {
    let whole = ElfFile::linux().bytes();
    for (len, part) in [
        (20, "the ELF header"),
        (100, "the table of program headers"),
        (0x21_0000, "loadable segment 0 (program header 0)"),
        (0x84_0001, "loadable segment 3 (program header 3)"),
    ] {
        match open(&whole[..len]).unwrap_err() {
            KernelError::Truncated {
                part: missing,
                size,
                ..
            } => assert_eq!((&*missing, size), (part, len as u64)),
            other => panic!("{other:?}"),
        }
    }
    let image = bzimage(&pack(Compression::Gzip, &whole), None);
    for (len, part) in [
        (0x210, "the setup header"),
        (0x1000, "the protected-mode code"),
    ] {
        match open(&image[..len]).unwrap_err() {
            KernelError::Truncated { part: missing, .. } => assert_eq!(missing, part),
            other => panic!("{other:?}"),
        }
    }
    // Compressed data without its end: named at the latest when loading.
    for compression in DECODED {
        let packed = pack(compression, &whole);
        let result = open(&packed[..packed.len() / 2])
            .and_then(|kernel| kernel.load(&shared_memory(), &options()));
        let error = result.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, KernelError::Corrupt { .. }),
            "{compression:?}: {error}"
        );
        // An ELF cut short and compressed whole.
        let packed = pack(compression, &whole[..0x40_0000]);
        let error = open(&packed)
            .unwrap()
            .load(&shared_memory(), &options())
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(error, KernelError::Truncated { .. }),
            "{compression:?}: {error}"
        );
    }
}

#[test]
fn wrong_elfs() {
    let base = ElfFile::tiny().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut elf = base.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        open(&elf).unwrap_err()
    };
    for (machine, name) in [
        (183u16, "arm64"),
        (243, "RISC-V"),
        (40, "32-bit ARM"),
        (22, "s390"),
        (999, "machine 999"),
    ] {
        let error = with(18, &machine.to_le_bytes());
        assert!(
            matches!(&error, KernelError::WrongArchitecture { what, .. } if what.contains(name)),
            "{error}"
        );
    }
    assert!(matches!(with(18, &[3, 0]), KernelError::Not64Bit { .. }));
    assert!(matches!(with(4, &[1]), KernelError::Not64Bit { .. }));
    assert!(matches!(with(16, &[1]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(16, &[4]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(16, &[9]), KernelError::Malformed { .. }));
    assert!(matches!(with(4, &[7]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(56, &[0, 0]),
        KernelError::NotAKernelElf { .. }
    ));
    assert!(matches!(with(54, &[32]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(56, &[0xff, 0xff]),
        KernelError::Malformed { .. }
    ));
    assert!(matches!(
        with(32, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    // First program header: an interpreter; file length above memory length; addresses and offsets that wrap.
    assert!(matches!(with(64, &[3]), KernelError::NotAKernelElf { .. }));
    assert!(matches!(with(64 + 40, &[1]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(64 + 24, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    assert!(matches!(
        with(64 + 8, &[0xff; 8]),
        KernelError::Malformed { .. }
    ));
    let mut overlapping = ElfFile::linux();
    overlapping.parts[1].phys = 0x40_1000;
    assert!(matches!(
        open(&overlapping.bytes()),
        Err(KernelError::Malformed { .. })
    ));
    // This very test is a program.
    let program = Kernel::open(std::env::current_exe().unwrap()).map(|_| ());
    assert!(!matches!(program, Ok(())) || cfg!(target_feature = "crt-static"));
}

#[test]
fn wrong_bzimages() {
    let payload = pack(Compression::Gzip, &ElfFile::tiny().bytes());
    let base = bzimage(&payload, None);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = base.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        open(&image).map(|_| ()).unwrap_err()
    };
    assert!(matches!(
        with(0x206, &[5, 2]),
        KernelError::ProtocolTooOld {
            version: 0x0205,
            ..
        }
    ));
    assert!(with(0x206, &[5, 2]).to_string().contains("2.05"));
    assert!(matches!(with(0x211, &[0]), KernelError::Malformed { .. }));
    assert!(matches!(
        with(0x24c, &[0xff; 4]),
        KernelError::Truncated { .. }
    ));
    let mut elf32 = ElfFile::tiny().bytes();
    (elf32[4], elf32[18]) = (1, 3);
    let error = open(&bzimage(&pack(Compression::Gzip, &elf32), None)).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::Not64Bit {
                what: "a 32-bit bzImage",
                ..
            }
        ),
        "{error}"
    );
    let mut image = bzimage(b"\x89LZO", None);
    image[0x236] = 0;
    assert!(matches!(open(&image), Err(KernelError::Not64Bit { .. })));
}

#[test]
fn other_files_are_called_by_their_names() {
    let at = |offset: usize, bytes: &[u8]| {
        let mut file = vec![0xe9; offset.max(8192)];
        file.truncate(offset.max(8192));
        file.resize(offset.max(8192) + bytes.len(), 0xe9);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    };
    for (bytes, name) in [
        (at(0, b"070701"), "initrd"),
        (at(0, b"QFI\xfb\0\0\0\x03"), "qcow2"),
        (at(0, b"hsqs"), "squashfs"),
        (at(0x438, &[0x53, 0xef]), "ext2/3/4"),
        (at(0, b"#!/bin/sh\n"), "script"),
        (at(0x8001, b"CD001"), "ISO 9660"),
        (at(0x200, b"EFI PART"), "GPT"),
        (at(0x1fe, &[0x55, 0xaa]), "boot sector"),
        (at(257, b"ustar"), "tar"),
        (at(0, b"!<arch>\ndebian-binary"), "Debian package"),
        (vec![0; 9000], "zero bytes"),
        (b"hello, world\n".to_vec(), "text"),
    ] {
        let error = open(&bytes).unwrap_err();
        assert!(
            matches!(error, KernelError::NotAKernel { .. }) && error.to_string().contains(name),
            "{name}: {error}"
        );
    }
    let arm64 = at(0x38, b"ARMd");
    for bytes in [arm64.clone(), at(0x30, b"RISCV\0\0\0")] {
        assert!(matches!(
            open(&bytes),
            Err(KernelError::WrongArchitecture { .. })
        ));
    }
    let error = open(&pack(Compression::Gzip, &arm64)).unwrap_err();
    assert!(
        matches!(&error, KernelError::CompressedOther { what, .. } if what.contains("arm64")),
        "{error}"
    );
    let initrd = [b"070701".to_vec(), noise(9000, 7)].concat();
    for compression in DECODED {
        let error = open(&pack(compression, &initrd)).unwrap_err();
        assert!(
            matches!(&error, KernelError::CompressedOther { what, .. } if what.contains("initrd")),
            "{error}"
        );
    }
    let error = open(&pack(Compression::Bzip2, &[])).unwrap_err();
    assert!(
        matches!(
            &error,
            KernelError::UnsupportedCompression {
                compression: "bzip2",
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        open(&at(0, b"\x89LZO\0\r\n\x1a\n")),
        Err(KernelError::UnsupportedCompression { .. })
    ));
    assert!(matches!(
        open(&[0x81, 0x92, 0xa3, 0xff, 0xfe]),
        Err(KernelError::Unknown { .. })
    ));
    assert!(
        open(&[0x81, 0x92])
            .unwrap_err()
            .to_string()
            .contains("81 92")
    );
}

#[test]
fn efi_programs() {
    let pe = |machine: u16, section: &[u8; 8]| {
        let mut file = vec![0; 1024];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        file[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        file[0x86] = 1;
        file[0x94] = 0x10;
        file[0xa8..0xb0].copy_from_slice(section);
        file
    };
    let uki = open(&pe(0x8664, b".linux\0\0")).unwrap_err();
    assert!(
        matches!(&uki, KernelError::Efi { what, .. } if what.contains("UKI")),
        "{uki}"
    );
    let program = open(&pe(0x8664, b".text\0\0\0")).unwrap_err();
    assert!(
        matches!(
            &program,
            KernelError::Efi {
                what: "an EFI program",
                ..
            }
        ),
        "{program}"
    );
    assert!(matches!(
        open(&pe(0xaa64, b".text\0\0\0")),
        Err(KernelError::WrongArchitecture { .. })
    ));
    assert!(matches!(
        open(b"MZ just DOS \xff\xff"),
        Err(KernelError::NotAKernel { .. })
    ));
    assert!(matches!(
        open(b"MZ\0\0zimg\xff"),
        Err(KernelError::Efi { .. })
    ));
}

#[test]
fn things_that_are_no_files() {
    let directory = Kernel::open(std::env::temp_dir()).unwrap_err();
    assert!(
        directory
            .to_string()
            .contains("is a directory, not a kernel"),
        "{directory}"
    );
    assert!(matches!(
        Kernel::open("/dev/null"),
        Err(KernelError::NotAFile {
            what: "a character device",
            ..
        })
    ));
    assert!(matches!(
        Kernel::open("/nonexistent"),
        Err(KernelError::Open { .. })
    ));
    assert!(matches!(open(b""), Err(KernelError::Empty { .. })));
    let fifo = Temporary::new(b"");
    std::fs::remove_file(&fifo.0).unwrap();
    let status = std::process::Command::new("mkfifo").arg(&fifo.0).status();
    assert!(status.unwrap().success());
    let (done, opened) = std::sync::mpsc::channel();
    let path = fifo.0.clone();
    std::thread::spawn(move || done.send(Kernel::open(path).map(|_| ())));
    assert!(
        matches!(
            opened.recv_timeout(std::time::Duration::from_secs(10)),
            Ok(Err(KernelError::NotAFile { what: "a pipe", .. }))
        ),
        "it must not wait for a writer"
    );
}

/// What is decoded is bounded by the guest's memory, however much there would be.
#[test]
fn decompression_bombs() {
    let mut elf = ElfFile::tiny();
    elf.parts[0].mem_len = 1 << 20;
    let mut bytes = elf.bytes();
    bytes.resize(64 << 20, 0);
    for compression in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
        let packed = pack(compression, &bytes);
        let memory = anonymous_memory();
        open(&packed).unwrap().load(&memory, &options()).unwrap();
    }
    // A segment that begins beyond all memory in the file.
    let mut far = ElfFile::linux();
    far.parts[3].offset = 0x4000_0000;
    let mut head = far.bytes_head();
    head.resize(70_000, 0);
    for compression in DECODED {
        let error = open(&pack(compression, &head))
            .unwrap()
            .load(&anonymous_memory(), &options())
            .unwrap_err();
        assert!(matches!(error, KernelError::TooBig { .. }), "{error}");
    }
}

impl ElfFile {
    /// The headers only.
    fn bytes_head(&self) -> Vec<u8> {
        let short = self
            .parts
            .iter()
            .map(|part| Part {
                offset: 0,
                data: vec![],
                ..part.clone()
            })
            .collect();
        let mut bytes = Self {
            entry: self.entry,
            parts: short,
            notes: vec![],
            tail: 0,
        }
        .bytes();
        for (n, part) in self.parts.iter().enumerate() {
            let at = 64 + 56 * n;
            bytes[at + 8..at + 16].copy_from_slice(&part.offset.to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&(part.data.len() as u64).to_le_bytes());
        }
        bytes
    }
}

fn exercise(bytes: &[u8]) {
    if let Ok(kernel) = open(bytes) {
        let _ = (kernel.version(), kernel.flavour(), kernel.kind());
        for fresh in [true, false] {
            let _ = kernel.load(&anonymous_memory(), &LoadOptions { fresh, ..options() });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..3000), magic in 0usize..9) {
        let magics: [&[u8]; 9] = [
            b"", b"\x7fELF\x02\x01\x01", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x28, 0xb5, 0x2f, 0xfd],
            &[2, 0x21, 0x4c, 0x18], b"MZ", &[0x5d, 0, 0, 0, 0x80], b"BZh9",
        ];
        let mut file = magics[magic].to_vec();
        file.extend(bytes);
        exercise(&file);
    }

    #[test]
    fn mutated_headers_do_no_harm(
        kind in 0usize..4,
        changes in proptest::collection::vec((0usize..0x300, prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 1..6),
        keep in prop_oneof![9 => Just(1.0), 1 => 0.0..1.0],
    ) {
        let mut elf = ElfFile::tiny();
        elf.notes.push(Note("Xen", 18, 0x10_0004u64.to_le_bytes().to_vec()));
        elf.notes.push(Note("Linux", 0x100, b"salt\0".to_vec()));
        let plain = elf.bytes();
        let mutate = |mut file: Vec<u8>, from: usize| {
            for &(at, value) in &changes {
                let at = from + at;
                if at < file.len() {
                    file[at] = value;
                }
            }
            file.truncate((file.len() as f64 * keep) as usize);
            file
        };
        let file = match kind {
            0 => mutate(plain, 0),
            1 => mutate(bzimage(&pack(Compression::Lz4, &plain), Some(plain.len())), 0x1f0),
            2 => bzimage(&pack(Compression::Gzip, &mutate(plain, 0)), None),
            _ => mutate(pack(Compression::Zstd, &plain), 0),
        };
        exercise(&file);
    }
}
