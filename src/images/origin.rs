//! Where it is kept that an image was made here, as what: an extended attribute of the file, which no guest can write.

#![forbid(unsafe_code)]

use std::fs::File;

use rustix::fs::XattrFlags;

use super::ImageFormat;

/// The attribute; its value is the word of the format.
const NAME: &str = "user.vsc.format";

/// Notes the format of an image that was just made. A file system without attributes keeps nothing: then the scenario has
/// to say the format of an image that looks like another one.
pub(super) fn mark(file: &File, format: ImageFormat) {
    let _ = rustix::fs::fsetxattr(file, NAME, format.word().as_bytes(), XattrFlags::CREATE);
}

/// Whether the image was made here in this format.
pub(crate) fn is(file: &File, format: &str) -> bool {
    let mut value = [0u8; 16];
    let length = rustix::fs::fgetxattr(file, NAME, &mut value[..]).unwrap_or(0);
    value.get(..length) == Some(format.as_bytes())
}
