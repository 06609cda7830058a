//! `/etc/ld.so.cache` and `/etc/ld.so.conf` of glibc (elf/cache.c, sysdeps/generic/dl-cache.h).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::parse::range;
use crate::bytes::{u32_at, u64_at};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Magic, number of entries, size of the strings, flags, offset of extensions, three unused words.
const HEADER: usize = 48;
/// Flags, offsets of name and path, version of the kernel, bits of hardware.
const ENTRY: usize = 24;
/// FLAG_ELF_LIBC6 | FLAG_X8664_LIB64.
const X86_64: u32 = 0x0303;

/// The paths of each library, the preferred first. Those for newer processors (glibc-hwcaps) are left out: the image
/// may run on another.
pub(super) fn parse(bytes: &[u8]) -> HashMap<String, Vec<PathBuf>> {
    let mut map: HashMap<String, Vec<PathBuf>> = HashMap::new();
    // An old-format cache may come before the one that is used (it is aligned to 8).
    let Some(start) = (0..bytes.len())
        .step_by(8)
        .find(|&at| bytes[at..].starts_with(MAGIC))
    else {
        return map;
    };
    let bytes = &bytes[start..];
    let count = u32_at(bytes, 20).unwrap_or(0) as usize;
    for entry in bytes
        .get(HEADER..)
        .unwrap_or_default()
        .chunks_exact(ENTRY)
        .take(count)
    {
        let text = |at: usize| {
            let offset = u32_at(entry, at)? as usize;
            range(bytes, offset, bytes.len().checked_sub(offset)?)?
                .split(|&byte| byte == 0)
                .next()
        };
        if u32_at(entry, 0) != Some(X86_64) || u64_at(entry, 16) != Some(0) {
            continue;
        }
        if let (Some(name), Some(path)) = (text(4), text(8))
            && let Ok(name) = std::str::from_utf8(name)
        {
            map.entry(name.to_owned())
                .or_default()
                .push(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    map
}

/// The directories that ld.so.conf names, with its `include`s.
pub(super) fn configured_directories(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let mut seen = HashSet::new();
    collect(path, &mut directories, &mut seen);
    directories
}

fn collect(path: &Path, directories: &mut Vec<PathBuf>, seen: &mut HashSet<PathBuf>) {
    if !seen.insert(path.to_path_buf()) {
        return;
    }
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line
            .strip_prefix("include")
            .filter(|rest| rest.starts_with(char::is_whitespace))
        {
            Some(patterns) => {
                for pattern in patterns.split_whitespace() {
                    let pattern = path.parent().unwrap_or(Path::new("/")).join(pattern);
                    matching(&pattern)
                        .iter()
                        .for_each(|file| collect(file, directories, seen));
                }
            }
            None if line.starts_with('/') => directories.push(line.into()),
            None => {}
        }
    }
}

/// The files that a pattern with one `*` in its last component stands for, sorted.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (
        pattern.parent(),
        pattern.file_name().and_then(OsStr::to_str),
    ) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else {
        return vec![pattern.to_path_buf()];
    };
    let fits = |name: &str| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(fits))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}
