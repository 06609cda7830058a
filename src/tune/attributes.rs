//! Extended attributes of a file that another takes the place of (xattr(7)): SELinux's label, the access list, the
//! user's own.

#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// Most that the kernel has of a list of names and of a value, bytes (linux/limits.h, XATTR_LIST_MAX, XATTR_SIZE_MAX).
const MOST: usize = 64 << 10;
/// Checksums of the old content, which the kernel makes anew.
const OF_THE_CONTENT: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// Names and values.
pub(super) type Attributes = Vec<(CString, Vec<u8>)>;

/// Those of a file; none where there is no file, or its file system has no such thing.
pub(super) fn of(path: &Path) -> io::Result<Attributes> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match file {
        Err(e) if super::touch::absent(&e) => return Ok(Vec::new()),
        file => file?,
    };
    let mut names = Vec::with_capacity(MOST);
    match flistxattr(&file, spare_capacity(&mut names)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let mut all = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        if OF_THE_CONTENT.contains(&name.to_bytes()) {
            continue;
        }
        let mut value = Vec::with_capacity(MOST);
        match fgetxattr(&file, name, spare_capacity(&mut value)) {
            // Gone since.
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

/// Gives them to a file.
pub(super) fn put(file: &File, attributes: &Attributes) -> io::Result<()> {
    for (name, value) in attributes {
        super::touch::step();
        fsetxattr(file, name.as_c_str(), value, XattrFlags::empty())?;
    }
    Ok(())
}
