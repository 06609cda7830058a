//! A file system of an image, whichever it is.

#![forbid(unsafe_code)]

use std::io;

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, Path};

use super::blocks::{Blocks, Part};
use super::fat::Fat;
use super::{Content, Entry, Kind};
use crate::diag::shown;

/// Bytes that are read at once: they go into one frame.
pub(super) const CHUNK: usize = 32 << 10;
/// Most entries of a directory.
pub(super) const MOST_ENTRIES: usize = 1 << 20;

/// Where the bytes of a file go.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), String>;

/// A file system.
pub(super) enum Tree {
    Ext(Ext4),
    Fat(Box<Fat>),
}

struct Reader(Part);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        at: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.0.read_at(at, to).map_err(|e: io::Error| e.into())
    }
}

impl Tree {
    pub(super) fn open(part: Part, content: Content) -> Result<Self, String> {
        match content {
            Content::Ext => Ext4::load(Box::new(Reader(part)))
                .map(Tree::Ext)
                .map_err(|e| told(&e)),
            Content::Fat => Fat::open(part).map(Box::new).map(Tree::Fat),
            other => Err(format!(
                "it holds {}, which is not looked into",
                other.word()
            )),
        }
    }

    /// What a path leads to, through links in the image.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Entry, String> {
        match self {
            Tree::Fat(fat) => fat.stat(path),
            Tree::Ext(fs) => {
                let real = fs.canonicalize(as_path(path)?).map_err(|e| match e {
                    Ext4Error::NotFound => dangling(fs, path).unwrap_or_else(|| told(&e)),
                    e => told(&e),
                })?;
                let meta = fs.symlink_metadata(&real).map_err(|e| told(&e))?;
                let name = path
                    .split(|b| *b == b'/')
                    .rfind(|n| !n.is_empty() && *n != b".");
                let name = match name {
                    // The name it has above.
                    None | Some(b"..") => real.as_ref().rsplit(|b| *b == b'/').next(),
                    Some(name) => Some(name),
                };
                let name = name.unwrap_or_default().to_vec();
                Ok(described(name, &meta, None))
            }
        }
    }

    /// What is in a directory, in the order of the names.
    pub(super) fn children(&self, path: &[u8]) -> Result<Vec<Entry>, String> {
        let mut entries = match self {
            Tree::Fat(fat) => fat.children(path)?,
            Tree::Ext(fs) => {
                let mut entries = Vec::new();
                for entry in fs.read_dir(as_path(path)?).map_err(|e| told(&e))? {
                    let entry = entry.map_err(|e| told(&e))?;
                    let name: Vec<u8> = entry.file_name().as_ref().to_vec();
                    if name == b"." || name == b".." {
                        continue;
                    }
                    if entries.len() >= MOST_ENTRIES {
                        return Err(format!("a directory has more than {MOST_ENTRIES} entries"));
                    }
                    let meta = entry.metadata().map_err(|e| told(&e))?;
                    let target = match meta.is_symlink() {
                        true => {
                            let target = fs.read_link(&entry.path()).map_err(|e| told(&e))?;
                            Some(target.as_ref().to_vec())
                        }
                        false => None,
                    };
                    entries.push(described(name, &meta, target));
                }
                entries
            }
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The bytes of a file.
    pub(super) fn read(&self, path: &[u8], sink: Sink<'_>) -> Result<(), String> {
        match self {
            Tree::Fat(fat) => fat.read(path, sink),
            Tree::Ext(fs) => {
                let mut file = fs.open(as_path(path)?).map_err(|e| told(&e))?;
                let mut chunk = vec![0; CHUNK];
                let mut filled = 0;
                loop {
                    let room = chunk.get_mut(filled..).unwrap_or_default();
                    // A block at a time, of which several go into one frame.
                    let n = match room.is_empty() {
                        true => 0,
                        false => file.read_bytes(room).map_err(|e| told(&e))?,
                    };
                    filled += n;
                    if n == 0 && filled == 0 {
                        return Ok(());
                    }
                    if n == 0 || filled == CHUNK {
                        sink(chunk.get(..filled).unwrap_or_default())?;
                        filled = 0;
                    }
                }
            }
        }
    }
}

/// The first link on a path that leads nowhere.
fn dangling(fs: &Ext4, path: &[u8]) -> Option<String> {
    let ends = (1..=path.len()).filter(|at| path.get(*at).is_none_or(|b| *b == b'/'));
    let mut above = ends.filter_map(|end| path.get(..end));
    let link = above.find(|part| {
        let (Ok(link), Ok(whole)) = (as_path(part), as_path(part)) else {
            return false;
        };
        fs.symlink_metadata(link).is_ok_and(|m| m.is_symlink()) && fs.canonicalize(whole).is_err()
    })?;
    let target = fs.read_link(as_path(link).ok()?).ok()?;
    Some(format!(
        "{} is a link to {}, and there is no such file",
        shown(&String::from_utf8_lossy(link)),
        shown(&String::from_utf8_lossy(target.as_ref()))
    ))
}

fn as_path(path: &[u8]) -> Result<Path<'_>, String> {
    Path::try_from(path).map_err(|_| "it is no path of a file system".to_owned())
}

fn described(name: Vec<u8>, meta: &Metadata, target: Option<Vec<u8>>) -> Entry {
    Entry {
        name,
        kind: match meta.file_type() {
            FileType::Regular => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            FileType::BlockDevice
            | FileType::CharacterDevice
            | FileType::Fifo
            | FileType::Socket => Kind::Other,
        },
        mode: u32::from(meta.mode()),
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.len(),
        modified: Some(meta.modified().seconds()),
        target,
    }
}

fn told(error: &Ext4Error) -> String {
    match error {
        Ext4Error::NotFound => "there is no such file".to_owned(),
        Ext4Error::IsADirectory => "it is a directory".to_owned(),
        Ext4Error::NotADirectory => "it is no directory".to_owned(),
        Ext4Error::IsASpecialFile => "it is no regular file".to_owned(),
        Ext4Error::Encrypted => "it is encrypted".to_owned(),
        other => match other.to_string() {
            // ext4-view 1.0 takes the missing block of a block map for a block.
            text if text.contains("from block 0 ") => format!(
                "{text}; it may be one of ext2 or ext3 with large holes, which cannot be read here"
            ),
            text => text,
        },
    }
}
