//! ELF kernels: headers, segments, notes.
//!
//! Sources: System V ABI, chapters 4 and 5 (`elf.h`); PVH note: xen `public/elfnote.h`, XEN_ELFNOTE_PHYS32_ENTRY.

use std::ops::Range;

use crate::bytes::{u16_at, u32_at, u64_at};

/// `ELFMAG`.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";
/// `EM_X86_64`.
const EM_X86_64: u16 = 62;
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// Most program headers looked at: a vmlinux has 5.
const PHDRS_MAX: usize = 256;
/// Most bytes of one PT_NOTE looked at: a vmlinux has 512.
const NOTES_MAX: u64 = 1 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// LINUX_ELFNOTE_BUILD_SALT (`include/linux/build-salt.h`).
const BUILD_SALT: u32 = 0x100;
/// `__START_KERNEL_map` (`arch/x86/include/asm/page_64_types.h`): where every 64-bit Linux is linked.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// What is wrong with an ELF.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ElfError {
    Truncated { part: String, needed: u64 },
    WrongArchitecture(String),
    Not64Bit(&'static str),
    NotAKernel(&'static str),
    Malformed(String),
}

/// A PT_LOAD segment with something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) file_len: u64,
    pub(super) virt: u64,
    pub(super) phys: u64,
    pub(super) mem_len: u64,
}

impl Segment {
    /// Guest-physical range.
    pub(super) fn range(&self) -> Range<u64> {
        self.phys..self.phys + self.mem_len
    }
}

/// The headers of an ELF kernel.
#[derive(Debug, Clone)]
pub(super) struct Elf {
    /// `e_entry`.
    pub(super) entry: u64,
    /// Non-empty PT_LOADs in the file's order; they do not overlap, and no sum of theirs overflows.
    pub(super) segments: Vec<Segment>,
    /// File ranges of PT_NOTEs.
    notes: Vec<Range<u64>>,
    dynamic: bool,
}

/// What the notes say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// 32-bit PVH entry.
    pub(super) pvh: Option<u64>,
    /// There is a note of owner "Linux".
    pub(super) linux: bool,
    /// There is a note of another system ("FreeBSD", "NetBSD", "OpenBSD").
    pub(super) other_system: bool,
    /// CONFIG_BUILD_SALT.
    pub(super) salt: Option<String>,
}

/// The usual name of an ELF machine (`e_machine`, System V gABI).
fn machine(number: u16) -> String {
    match number {
        2 | 18 | 43 => "SPARC",
        3 => "i386",
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "PowerPC 64",
        22 => "s390",
        40 => "32-bit ARM",
        50 => "Itanium",
        EM_X86_64 => "x86-64",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return format!("machine {number}"),
    }
    .to_owned()
}

impl Elf {
    /// Reads the headers. `head` is at least the beginning of the file (program headers of a kernel follow the ELF header),
    /// `size` the whole file's size where it is known.
    pub(super) fn parse(head: &[u8], size: Option<u64>) -> Result<Self, ElfError> {
        let truncated = |part: &str, needed: usize| ElfError::Truncated {
            part: part.to_owned(),
            needed: needed as u64,
        };
        let cut = || truncated("the ELF header", EHDR_SIZE);
        let ident = head.get(..16).ok_or_else(cut)?;
        let big_endian = ident[5] == 2;
        let e_machine = head.get(18..20).ok_or_else(cut)?;
        let e_machine = if big_endian {
            u16::from_be_bytes([e_machine[0], e_machine[1]])
        } else {
            u16::from_le_bytes([e_machine[0], e_machine[1]])
        };
        if e_machine == 3 {
            return Err(ElfError::Not64Bit("a 32-bit (i386) ELF"));
        }
        if e_machine != EM_X86_64 || big_endian {
            return Err(ElfError::WrongArchitecture(format!(
                "an ELF for {}",
                machine(e_machine)
            )));
        }
        match ident[4] {
            1 => return Err(ElfError::Not64Bit("an x32 ELF (32-bit class on x86-64)")),
            2 => {}
            class => {
                return Err(ElfError::Malformed(format!(
                    "its ELF class is {class}, neither 32 nor 64 bits"
                )));
            }
        }
        let header = head.get(..EHDR_SIZE).ok_or_else(cut)?;
        let e_type = u16_at(header, 16).ok_or_else(cut)?;
        match e_type {
            2 | 3 => {}
            1 => {
                return Err(ElfError::NotAKernel(
                    "a relocatable object (a kernel module?)",
                ));
            }
            4 => return Err(ElfError::NotAKernel("a core dump")),
            other => return Err(ElfError::Malformed(format!("its ELF type is {other}"))),
        }
        let entry = u64_at(header, 24).ok_or_else(cut)?;
        let phoff = u64_at(header, 32).ok_or_else(cut)?;
        let phentsize = u16_at(header, 54).ok_or_else(cut)?;
        let phnum = usize::from(u16_at(header, 56).ok_or_else(cut)?);
        if phnum == 0 {
            return Err(ElfError::NotAKernel("an ELF without segments"));
        }
        if usize::from(phentsize) != PHDR_SIZE {
            return Err(ElfError::Malformed(format!(
                "its program headers have {phentsize} bytes instead of {PHDR_SIZE}"
            )));
        }
        if phnum > PHDRS_MAX {
            return Err(ElfError::Malformed(format!(
                "it has {phnum} program headers"
            )));
        }
        let end = phoff
            .checked_add((phnum * PHDR_SIZE) as u64)
            .ok_or_else(|| {
                ElfError::Malformed("its program headers are at an impossible offset".to_owned())
            })?;
        let table = usize::try_from(phoff)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(from, to)| head.get(from..to))
            .ok_or_else(|| ElfError::Truncated {
                part: "the table of program headers".to_owned(),
                needed: end,
            })?;

        let mut elf = Self {
            entry,
            segments: Vec::new(),
            notes: Vec::new(),
            dynamic: false,
        };
        let mut load = 0;
        for (index, header) in table.chunks_exact(PHDR_SIZE).enumerate() {
            elf.add(index, header, size, &mut load)?;
        }
        if elf.segments.is_empty() {
            return Err(ElfError::NotAKernel("an ELF without loadable segments"));
        }
        let mut sorted: Vec<_> = elf.segments.iter().map(Segment::range).collect();
        sorted.sort_by_key(|range| range.start);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].end > pair[1].start) {
            return Err(ElfError::Malformed(format!(
                "its segments at {:#x} and {:#x} overlap in memory",
                pair[0].start, pair[1].start
            )));
        }
        Ok(elf)
    }

    fn add(
        &mut self,
        index: usize,
        header: &[u8],
        size: Option<u64>,
        load: &mut u32,
    ) -> Result<(), ElfError> {
        let field = |at| u64_at(header, at).unwrap_or(0);
        let kind = u32_at(header, 0).unwrap_or(0);
        let (offset, virt, phys, file_len, mem_len) =
            (field(8), field(16), field(24), field(32), field(40));
        let bad = |what: &str| ElfError::Malformed(format!("segment {index} {what}"));
        let file_end = offset
            .checked_add(file_len)
            .ok_or_else(|| bad("ends at an impossible offset"))?;
        match kind {
            PT_LOAD => {
                let number = *load;
                *load += 1;
                if mem_len == 0 && file_len == 0 {
                    return Ok(());
                }
                if file_len > mem_len {
                    return Err(bad("is larger in the file than in memory"));
                }
                if phys.checked_add(mem_len).is_none() || virt.checked_add(mem_len - 1).is_none() {
                    return Err(bad("ends at an impossible address"));
                }
                if let Some(size) = size
                    && file_end > size
                {
                    return Err(ElfError::Truncated {
                        part: format!("loadable segment {number} (program header {index})"),
                        needed: file_end,
                    });
                }
                self.segments.push(Segment {
                    offset,
                    file_len,
                    virt,
                    phys,
                    mem_len,
                });
            }
            PT_INTERP => return Err(ElfError::NotAKernel("a dynamically linked program")),
            PT_DYNAMIC => self.dynamic = true,
            PT_NOTE => {
                if let Some(size) = size
                    && file_end > size
                {
                    return Err(ElfError::Truncated {
                        part: format!("the notes (program header {index})"),
                        needed: file_end,
                    });
                }
                if file_len <= NOTES_MAX {
                    self.notes.push(offset..file_end);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the notes; `read` gives the bytes of a file range.
    pub(super) fn notes<'a>(&self, read: impl Fn(Range<u64>) -> Option<&'a [u8]>) -> Notes {
        let mut notes = Notes::default();
        for range in &self.notes {
            if let Some(bytes) = read(range.clone()) {
                notes.read(bytes);
            }
        }
        notes
    }

    /// One past the last file byte that any segment or note needs.
    pub(super) fn file_end(&self) -> u64 {
        let loads = self
            .segments
            .iter()
            .map(|segment| segment.offset + segment.file_len);
        loads
            .chain(self.notes.iter().map(|note| note.end))
            .max()
            .unwrap_or(0)
    }

    /// Lowest guest-physical byte.
    pub(super) fn start(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.phys)
            .min()
            .unwrap_or(0)
    }

    /// Highest guest-physical byte plus one.
    pub(super) fn end(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.phys + segment.mem_len)
            .max()
            .unwrap_or(0)
    }

    /// `e_entry` as a physical address: Linux gives it as such; other ELFs may give the virtual one.
    pub(super) fn entry64(&self) -> Option<u64> {
        let inside = |range: Range<u64>| range.contains(&self.entry);
        if self.dynamic {
            return None;
        }
        if self.segments.iter().any(|segment| inside(segment.range())) {
            return Some(self.entry);
        }
        self.segments
            .iter()
            .find(|segment| {
                self.entry >= segment.virt && self.entry - segment.virt < segment.mem_len
            })
            .map(|segment| segment.phys + (self.entry - segment.virt))
    }

    /// Is `address` inside a segment.
    pub(super) fn contains(&self, address: u64) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.range().contains(&address))
    }

    /// Is it linked where Linux is.
    pub(super) fn linked_like_linux(&self) -> bool {
        self.segments
            .first()
            .is_some_and(|segment| segment.virt >= START_KERNEL_MAP)
    }

    /// It has a segment at virtual address 0: the per-CPU area of an SMP kernel (before Linux 6.15).
    pub(super) fn has_percpu(&self) -> bool {
        self.segments.iter().any(|segment| segment.virt == 0)
    }
}

impl Notes {
    fn read(&mut self, mut bytes: &[u8]) {
        // Name and description are padded to 4 bytes each; `alignment` 8 is only used by GNU properties.
        while let (Some(name_len), Some(desc_len), Some(kind)) =
            (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8))
        {
            let (name_len, desc_len) = (name_len as usize, desc_len as usize);
            let desc_at = 12 + name_len.next_multiple_of(4);
            let (Some(name), Some(desc)) = (
                bytes.get(12..12 + name_len),
                bytes.get(desc_at..desc_at + desc_len),
            ) else {
                return;
            };
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            match name {
                b"Xen" if kind == PHYS32_ENTRY => {
                    self.pvh = match desc_len {
                        4 => u32_at(desc, 0).map(u64::from),
                        8 => u64_at(desc, 0),
                        _ => None,
                    };
                }
                b"Linux" => {
                    self.linux = true;
                    if kind == BUILD_SALT {
                        let salt = desc.strip_suffix(b"\0").unwrap_or(desc);
                        self.salt = std::str::from_utf8(salt)
                            .ok()
                            .filter(|salt| !salt.is_empty())
                            .map(str::to_owned);
                    }
                }
                b"FreeBSD" | b"NetBSD" | b"OpenBSD" => self.other_system = true,
                _ => {}
            }
            let Some(rest) = bytes.get(desc_at + desc_len.next_multiple_of(4)..) else {
                return;
            };
            bytes = rest;
        }
    }
}
