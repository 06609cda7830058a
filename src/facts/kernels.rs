//! Kernels that are installed.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use super::InstalledKernel;

/// Kernel files of one directory, newest version first.
pub(super) fn kernels_in(directory: &Path, ours: bool) -> Vec<InstalledKernel> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| {
            ["vmlinuz", "vmlinux", "bzImage"]
                .iter()
                .any(|p| n.starts_with(p))
        })
        .filter(|n| {
            ![".old", ".bak", ".dpkg-tmp", ".dpkg-new", ".sig", "-rescue"]
                .iter()
                .any(|s| n.ends_with(s))
        })
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(version(name)));
    names
        .into_iter()
        .map(|name| InstalledKernel {
            path: directory.join(name),
            ours,
        })
        .collect()
}

/// A name cut into numbers and what is between them, so that 6.12 comes after 6.1.
fn version(name: &str) -> Vec<(u64, String)> {
    let mut out = Vec::new();
    let mut rest = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let words = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (word, next) = tail.split_at(words);
        out.push((number.parse().unwrap_or(u64::MAX), word.to_owned()));
        rest = next;
    }
    out
}
