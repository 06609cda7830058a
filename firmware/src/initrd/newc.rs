//! Writes cpio archives of the "newc" kind, as Linux unpacks them into its initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The archive depends on nothing but its content: entries are sorted, numbered from 1, of time 0, of user and group 0.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::ImageError;

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// The end of each archive; concatenated archives must begin at multiples of 4, and tools write blocks of 512.
const BLOCK: usize = 512;

/// One thing in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory with its permission bits.
    Directory(u32),
    /// A file with its permission bits.
    File(u32, Vec<u8>),
    /// A symbolic link to this path.
    Link(PathBuf),
    /// A character device with its permission bits, major and minor number.
    Device(u32, u32, u32),
}

/// An archive under construction: paths (always absolute, without `.` and `..`) and what is there.
#[derive(Debug, Clone, Default)]
pub struct Archive(BTreeMap<PathBuf, Entry>);

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is at a path.
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.0.get(path)
    }

    /// The paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Adds an entry, and the directories above it that are not there yet (mode 0755). The same entry may be added
    /// twice; a directory keeps its first mode.
    ///
    /// # Errors
    /// Something else is there, or something else than a directory is above.
    pub fn add(&mut self, path: &Path, entry: Entry) -> Result<(), ImageError> {
        let mut whole = PathBuf::from("/");
        let mut names = path
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .peekable();
        while let Some(name) = names.next() {
            whole.push(name);
            if names.peek().is_none() {
                break;
            }
            match self.0.get(&whole) {
                Some(Entry::Directory(_)) => {}
                Some(_) => return Err(ImageError::Conflict { path: whole }),
                None => drop(self.0.insert(whole.clone(), Entry::Directory(0o755))),
            }
        }
        match (self.0.get(&whole), &entry) {
            (Some(Entry::Directory(_)), Entry::Directory(_)) => Ok(()),
            (Some(present), _) if *present == entry => Ok(()),
            (Some(_), _) => Err(ImageError::Conflict { path: whole }),
            (None, _) if whole == Path::new("/") => Ok(()),
            (None, _) => {
                self.0.insert(whole, entry);
                Ok(())
            }
        }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), ImageError> {
        self.add(path.as_ref(), Entry::Directory(mode))
    }

    /// Adds a file.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        data: impl Into<Vec<u8>>,
    ) -> Result<(), ImageError> {
        self.add(path.as_ref(), Entry::File(mode, data.into()))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn link(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> Result<(), ImageError> {
        self.add(path.as_ref(), Entry::Link(target.as_ref().to_path_buf()))
    }

    /// The archive as bytes, a multiple of 512, so that another archive may follow.
    ///
    /// # Errors
    /// A file larger than the format can hold.
    pub fn write(&self) -> Result<Vec<u8>, ImageError> {
        let size = |entry: &Entry| match entry {
            Entry::File(_, data) => data.len(),
            _ => 0,
        };
        let total = self
            .0
            .iter()
            .map(|(path, entry)| 128 + path.as_os_str().len() + size(entry))
            .sum::<usize>();
        let mut bytes = Vec::with_capacity(total + BLOCK);
        for (inode, (path, entry)) in (1_u32..).zip(&self.0) {
            let name = path.as_os_str().as_bytes();
            let name = name.strip_prefix(b"/").unwrap_or(name);
            let (mode, links, device, data): (u32, u32, (u32, u32), &[u8]) = match entry {
                Entry::Directory(mode) => (S_IFDIR | (mode & 0o7777), 2, (0, 0), &[]),
                Entry::File(mode, data) => (S_IFREG | (mode & 0o7777), 1, (0, 0), data),
                Entry::Link(target) => (S_IFLNK | 0o777, 1, (0, 0), target.as_os_str().as_bytes()),
                Entry::Device(mode, major, minor) => {
                    (S_IFCHR | (mode & 0o7777), 1, (*major, *minor), &[])
                }
            };
            let length = u32::try_from(data.len())
                .map_err(|_| ImageError::TooLarge { path: path.clone() })?;
            header(
                &mut bytes,
                [inode, mode, links, length, device.0, device.1],
                name,
            );
            bytes.extend_from_slice(data);
            pad(&mut bytes, 4);
        }
        header(&mut bytes, [0, 0, 1, 0, 0, 0], b"TRAILER!!!");
        pad(&mut bytes, BLOCK);
        Ok(bytes)
    }
}

/// `c_magic`, then 13 numbers of 8 hexadecimal digits: inode, mode, user, group, links, time, size, the device the file
/// is on (major, minor), the device it is (major, minor), length of the name with its NUL, checksum; then the name.
fn header(bytes: &mut Vec<u8>, [inode, mode, links, size, major, minor]: [u32; 6], name: &[u8]) {
    // Linux refuses names beyond PATH_MAX, so the length always fits.
    let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    bytes.extend_from_slice(b"070701");
    for number in [
        inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, length, 0,
    ] {
        bytes.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    bytes.extend_from_slice(name);
    bytes.push(0);
    pad(bytes, 4);
}

fn pad(bytes: &mut Vec<u8>, multiple: usize) {
    bytes.resize(bytes.len().next_multiple_of(multiple), 0);
}

/// Puts archives one after the other, each at a multiple of 512, as Linux accepts them. Later ones replace files of
/// earlier ones.
pub fn concatenate<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        bytes.extend_from_slice(segment);
        pad(&mut bytes, BLOCK);
    }
    bytes
}

/// The last component of a path, for messages and look-ups.
pub(crate) fn file_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}
