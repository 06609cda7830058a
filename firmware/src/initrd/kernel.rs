//! Which version of Linux a kernel file holds, and which is the newest there is.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::copy::read;
use super::elf::Source;
use crate::bytes::{u16_at, u32_at};

/// `HdrS` of the boot protocol's header (Documentation/arch/x86/boot.rst).
const HDRS: u32 = 0x5372_6448;
const BZIMAGE_START: usize = 0x1_0000 + 0x400;

/// The version in a kernel file, as `uname -r` will say it.
///
/// # Errors
/// The file cannot be read or is not a bzImage or uncompressed vmlinux.
pub fn version(path: &Path) -> Result<String, ImageError> {
    let source = Source::open(path)?;
    // The text of a bzImage is where a 16-bit number says, so this much holds it; an ELF image may have it anywhere.
    let start = source.start(BZIMAGE_START);
    let found = if u32_at(&start, 0x202) == Some(HDRS) {
        bzimage_version(&start)
    } else if start.starts_with(b"\x7fELF") {
        banner_version(&read(path)?)
    } else {
        None
    };
    found.ok_or_else(|| ImageError::NotAKernel {
        path: path.to_path_buf(),
    })
}

/// `kernel_version`: where the version's text is, less 0x200.
fn bzimage_version(bytes: &[u8]) -> Option<String> {
    let text = bytes.get(usize::from(u16_at(bytes, 0x20e)?) + 0x200..)?;
    word(text)
}

/// `linux_banner` of init/version.c in an ELF image.
fn banner_version(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    bytes
        .strip_prefix(b"\x7fELF")?
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, window)| *window == BANNER)
        .find_map(|(at, _)| word(&bytes[at + 4 + BANNER.len()..]))
}

fn word(text: &[u8]) -> Option<String> {
    let word = text.split(|&byte| byte == b' ' || byte == 0).next()?;
    let word = std::str::from_utf8(word).ok()?;
    word.starts_with(|first: char| first.is_ascii_digit())
        .then(|| word.to_owned())
}

/// The newest `vmlinuz-*` of a directory, by its name's version.
///
/// # Errors
/// There is none.
pub fn newest(directory: &Path) -> Result<PathBuf, ImageError> {
    let entries = fs::read_dir(directory).map_err(|source| ImageError::Read {
        path: directory.to_path_buf(),
        source,
    })?;
    entries
        .flatten()
        .filter_map(|entry| {
            let version = entry
                .file_name()
                .to_str()?
                .strip_prefix("vmlinuz-")?
                .to_owned();
            Some((version, entry.path()))
        })
        .max_by(|one, other| compare(&one.0, &other.0))
        .map(|(_, path)| path)
        .ok_or_else(|| ImageError::NoKernel {
            path: directory.to_path_buf(),
        })
}

/// As `sort -V`: numbers by value, the rest by its letters.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        if one.is_empty() || other.is_empty() {
            return one.len().cmp(&other.len());
        }
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (a, b) = (digits(one), digits(other));
        let order = if a > 0 && b > 0 {
            let (x, y) = (
                one[..a].trim_start_matches('0'),
                other[..b].trim_start_matches('0'),
            );
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            one.chars().next().cmp(&other.chars().next())
        };
        if order != Ordering::Equal {
            return order;
        }
        let step =
            |text: &str, digits: usize| digits.max(text.chars().next().map_or(0, char::len_utf8));
        (one, other) = (&one[step(one, a)..], &other[step(other, b)..]);
    }
}
