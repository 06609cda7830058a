//! Kernel files made for tests.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vsc_firmware::Memory;
use vsc_firmware::kernel::{Compression, EntryChoice, Kernel, KernelError, LoadOptions, Loaded};

pub const RAM: u64 = 32 << 20;

/// A file that goes away with the value.
pub struct Temporary(pub PathBuf);

impl Temporary {
    pub fn new(bytes: &[u8]) -> Self {
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
pub fn shared_memory() -> Memory {
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

pub fn anonymous_memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

pub fn options() -> LoadOptions {
    LoadOptions {
        mapped: false,
        ram_low_end: RAM,
        fresh: true,
        entry: EntryChoice::Auto,
    }
}

pub fn open(bytes: &[u8]) -> Result<Kernel, KernelError> {
    // The mapping outlives the name.
    Kernel::open(&Temporary::new(bytes).0)
}

#[derive(Clone)]
pub struct Part {
    pub offset: u64,
    pub virt: u64,
    pub phys: u64,
    pub data: Vec<u8>,
    pub mem_len: u64,
}

pub struct Note(pub &'static str, pub u32, pub Vec<u8>);

pub struct ElfFile {
    pub entry: u64,
    pub parts: Vec<Part>,
    pub notes: Vec<Note>,
    pub tail: usize,
}

/// Bytes that neither compress to nothing nor repeat soon.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
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
    pub fn linux() -> Self {
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

    pub fn tiny() -> Self {
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

    pub fn bytes(&self) -> Vec<u8> {
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
    pub fn check(&self, memory: &Memory, loaded: &Loaded) {
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

pub fn pack(compression: Compression, data: &[u8]) -> Vec<u8> {
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

pub const DECODED: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lzma,
    Compression::Lz4,
];

/// A bzImage around `payload`; the size of what is in it is appended except for gzip, as the Linux build does.
pub fn bzimage(payload: &[u8], size: Option<usize>) -> Vec<u8> {
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

impl ElfFile {
    /// The headers only.
    pub fn bytes_head(&self) -> Vec<u8> {
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
