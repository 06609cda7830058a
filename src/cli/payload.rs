//! What a run boots, as files.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where kernels are kept in the form in which they can be mapped; nowhere when `VSC_CACHE=off`.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let base = match set("VSC_CACHE") {
        Some(word) if word.as_os_str() == "off" => return None,
        Some(dir) => return Some(dir.join("kernels")),
        None => set("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| Some(set("HOME")?.join(".cache")))?,
    };
    Some(base.join("vsc/kernels"))
}

/// Whether a file is an initrd: a cpio archive, plain or compressed, as the kernel recognises them
/// (lib/decompress.c, init/initramfs.c). Of anything but a file nothing is read: what was taken out of a pipe would
/// be lacking in the scenario.
pub(super) fn is_initrd(path: &Path) -> bool {
    const MAGICS: [&[u8]; 7] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"BZh",
    ];
    let mut head = [0u8; 6];
    if !std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut head))
        .is_ok_and(|()| MAGICS.iter().any(|magic| head.starts_with(magic)))
}
