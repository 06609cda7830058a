//! What can be wrong with a file given as a kernel: one variant per thing a person would call by a different name.

use std::io;
use std::path::PathBuf;

/// A kernel that cannot be used. Each message names the file, says what it is, and what to give instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file could not be opened.
    #[error("Cannot open the kernel {}", path.display())]
    Open {
        /// The file as given.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file could not be read or mapped.
    #[error("Cannot read the kernel {}", path.display())]
    Read {
        /// The file as given.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A directory, device, socket or pipe.
    #[error("{} is {what}, not a kernel: give the file itself, such as /boot/vmlinuz-$(uname -r)", path.display())]
    NotAFile {
        /// The file as given.
        path: PathBuf,
        /// "a directory", "a block device" …
        what: &'static str,
    },
    /// A file of zero bytes.
    #[error("{} is empty: the copy or download that made it has failed; fetch it again", path.display())]
    Empty {
        /// The file as given.
        path: PathBuf,
    },
    /// A kernel or program for another machine.
    #[error("{} is {what}: this program runs x86-64 guests; give an x86-64 vmlinux or bzImage", path.display())]
    WrongArchitecture {
        /// The file as given.
        path: PathBuf,
        /// "a Linux kernel for arm64", "an ELF for RISC-V" …
        what: String,
    },
    /// An x86 kernel without 64-bit code.
    #[error("{} is {what}: only 64-bit kernels can be started; build it with CONFIG_64BIT", path.display())]
    Not64Bit {
        /// The file as given.
        path: PathBuf,
        /// "a 32-bit (i386) ELF", "a 32-bit bzImage" …
        what: &'static str,
    },
    /// An ELF that is a program, library, object or core file.
    #[error("{} is {what}, not a kernel: give a vmlinux or bzImage", path.display())]
    NotAKernelElf {
        /// The file as given.
        path: PathBuf,
        /// "a dynamically linked program", "a relocatable object (a kernel module?)" …
        what: &'static str,
    },
    /// A well-known kind of file that is no kernel.
    #[error("{} is {what}, not a kernel: {advice}", path.display())]
    NotAKernel {
        /// The file as given.
        path: PathBuf,
        /// "a qcow2 disk image", "an initrd (cpio archive)" …
        what: &'static str,
        /// Where such a file belongs.
        advice: &'static str,
    },
    /// An EFI program: an EFI stub without a Linux header, or a unified kernel image.
    #[error("{} is {what}: {advice}", path.display())]
    Efi {
        /// The file as given.
        path: PathBuf,
        /// "a unified kernel image (UKI)", "an EFI program" …
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A compressed file with something else than a kernel inside.
    #[error("{} is {compression}-compressed, but inside is {what}: {advice}", path.display())]
    CompressedOther {
        /// The file as given.
        path: PathBuf,
        /// "gzip", "xz" …
        compression: &'static str,
        /// What was found inside.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// A compression this program does not decode.
    #[error("{} holds a kernel compressed with {compression}, which is not supported: {advice}", path.display())]
    UnsupportedCompression {
        /// The file as given.
        path: PathBuf,
        /// "lzo" …
        compression: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Compressed data that does not decode.
    #[error("{}: the {compression} data is damaged ({detail}); fetch the file again", path.display())]
    Corrupt {
        /// The file as given.
        path: PathBuf,
        /// "gzip", "xz" …
        compression: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// A header or segment that runs past the end of the file.
    #[error(
        "{} is cut short: {part} needs bytes up to {needed}, but there are {size}; fetch the file again",
        path.display()
    )]
    Truncated {
        /// The file as given.
        path: PathBuf,
        /// Which header or segment.
        part: String,
        /// How many bytes would be needed.
        needed: u64,
        /// How many there are.
        size: u64,
    },
    /// A header that contradicts itself.
    #[error("{} is damaged: {detail}; fetch or build it again", path.display())]
    Malformed {
        /// The file as given.
        path: PathBuf,
        /// What is contradictory.
        detail: String,
    },
    /// A bzImage older than boot protocol 2.06.
    #[error(
        "{} speaks Linux boot protocol {}.{:02}; 2.06 (Linux 2.6.22, 2007) or newer is needed",
        path.display(), version >> 8, version & 0xff
    )]
    ProtocolTooOld {
        /// The file as given.
        path: PathBuf,
        /// Version as in the header: major in the high byte.
        version: u16,
    },
    /// An ELF with no way to start it.
    #[error(
        "{} has no entry point this program can use ({detail}); a Linux vmlinux with CONFIG_PVH=y has one",
        path.display()
    )]
    NoEntry {
        /// The file as given.
        path: PathBuf,
        /// What is missing.
        detail: &'static str,
    },
    /// The entry that was asked for does not exist in this kernel.
    #[error("{} has no {wanted} entry; let the entry be chosen automatically", path.display())]
    EntryNotThere {
        /// The file as given.
        path: PathBuf,
        /// "PVH" or "64-bit".
        wanted: &'static str,
    },
    /// The kernel and its working space do not fit into guest RAM.
    #[error(
        "{} needs memory up to {} MiB to start, and the guest has {} MiB below the 3 GiB hole: give it at least {} MiB",
        path.display(), needed.div_ceil(1 << 20), ram_end >> 20, needed.div_ceil(1 << 20)
    )]
    TooBig {
        /// The file as given.
        path: PathBuf,
        /// Highest guest-physical byte it needs, plus one.
        needed: u64,
        /// End of low RAM in bytes.
        ram_end: u64,
    },
    /// The kernel wants to lie where boot structures or firmware are.
    #[error(
        "{} wants to be loaded at {address:#x}, below 1 MiB, where the boot structures are: link it higher",
        path.display()
    )]
    TooLow {
        /// The file as given.
        path: PathBuf,
        /// Lowest guest-physical address it wants.
        address: u64,
    },
    /// Guest memory is not there where the caller said it was.
    #[error("Cannot reach guest memory at {address:#x}, {len} bytes, to load the kernel")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Nothing known.
    #[error(
        "{} is not a kernel in any known format (it begins with {start}): give a vmlinux or bzImage for x86-64",
        path.display()
    )]
    Unknown {
        /// The file as given.
        path: PathBuf,
        /// The first bytes in hexadecimal.
        start: String,
    },
}
