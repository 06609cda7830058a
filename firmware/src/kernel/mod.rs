//! Kernels: recognised by content, loaded straight into guest memory.
//!
//! A kernel is an ELF (with the PVH note or a 64-bit entry), a bzImage, or a compressed ELF. Compressed kernels, and the
//! payload of a bzImage, are decompressed on the host directly to where their largest segment belongs, so that the
//! bulk is written once and never copied, and the guest starts in the kernel proper instead of in its decompressor.

mod error;

pub use error::KernelError;

use crate::Memory;
use linux_loader::bootparam::setup_header;
use std::path::{Path, PathBuf};

/// What kind of file a kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An uncompressed ELF.
    Elf,
    /// A Linux bzImage; the compression of its payload, if it is one that is decoded on the host.
    BzImage(Option<Compression>),
    /// A compressed ELF.
    Compressed(Compression),
}

/// Compression of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz container.
    Xz,
    /// The older .lzma container.
    Lzma,
    /// RFC 8878.
    Zstd,
    /// LZ4 legacy frames, which Linux uses.
    Lz4,
    /// bzip2.
    Bzip2,
}

/// Which hosts a kernel can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Linux as everyone builds it: needs hardware virtualization.
    Stock,
    /// Linux with this project's CPL 3 patch: only on software-paging KVM.
    Cpl3,
    /// Not Linux (a test payload, the built-in guest): nothing is known about what it needs.
    NotLinux,
}

/// Which entry of a kernel to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryChoice {
    /// PVH when the kernel has it, else 64-bit.
    #[default]
    Auto,
    /// The 32-bit PVH entry, or an error.
    Pvh,
    /// The 64-bit entry of the Linux boot protocol, or an error.
    Linux64,
}

/// Where a guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, paging off, EBX = `hvm_start_info`.
    Pvh(u64),
    /// Long mode, identity-mapped, RSI = `boot_params`.
    Linux64(u64),
}

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// End of RAM below the 32-bit hole, in bytes.
    pub ram_low_end: u64,
    /// Guest memory has never been written to: bss need not be zeroed.
    pub fresh: bool,
    /// Which entry to use.
    pub entry: EntryChoice,
}

/// A kernel in guest memory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where to start.
    pub entry: Entry,
    /// Lowest guest-physical byte used.
    pub start: u64,
    /// Highest guest-physical byte used plus one, bss and the kernel's early working space included.
    pub end: u64,
    /// Setup header of a bzImage, for the zero page.
    pub header: Option<setup_header>,
    /// What it is.
    pub flavour: Flavour,
}

impl Loaded {
    /// It is known to be Linux.
    pub fn is_linux(&self) -> bool {
        self.flavour != Flavour::NotLinux
    }
}

/// An opened, recognised kernel.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    kind: Kind,
}

impl Kernel {
    /// Opens and recognises a kernel by content. Reads a few pages only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        Err(KernelError::Empty {
            path: path.as_ref().to_owned(),
        })
    }

    /// A kernel that is part of this program; `name` stands for the path in messages.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, KernelError> {
        let _ = bytes;
        Err(KernelError::Empty { path: name.into() })
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The kernel's version, such as `6.1.0-56-cloud-amd64`, when it can be found. A bzImage names it in its header; in
    /// an ELF the text "Linux version " is searched for, and a compressed ELF is decompressed for it: ask only when needed.
    pub fn version(&self) -> Option<&str> {
        None
    }

    /// Which hosts it can run on. Looks at (and for a compressed kernel decompresses) the first few MiB at most.
    pub fn flavour(&self) -> Result<Flavour, KernelError> {
        Ok(Flavour::NotLinux)
    }

    /// Loads it into guest memory. No vCPU may run meanwhile.
    pub fn load(&self, memory: &Memory, options: &LoadOptions) -> Result<Loaded, KernelError> {
        let _ = (memory, options);
        Err(KernelError::Empty {
            path: self.path.clone(),
        })
    }
}
