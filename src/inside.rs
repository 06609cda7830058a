//! What is in a disk image, without mounting it: partition tables and file systems are parsed by a process of our own
//! that can do nothing but read the one image and write to one pipe.
//!
//! Every byte of an image is somebody else's. The parsers run in a child ([`child`]) with a filter of system calls, no
//! new privileges and limits on time and memory; what it tells comes in frames ([`frames`]), each of which is checked
//! here again. A parser that is led astray can tell nonsense, but nowhere else than on that pipe.

#![forbid(unsafe_code)]

mod blocks;
pub mod child;
pub mod copy;
mod fat;
pub mod frames;
mod jail;
pub mod parent;
mod qcow2;
mod table;
mod tree;

use serde::{Deserialize, Serialize};

/// Most directories within each other.
pub const DEPTH: usize = 128;
/// Most files that are told of, unless more are allowed.
pub const ENTRIES: u64 = 1 << 18;

/// How the bytes of an image are arranged in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// As the guest sees them.
    Raw,
    /// As QEMU's qcow2, without backing file, data file or encryption.
    Qcow2,
}

/// What is asked of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// How the file is arranged.
    pub format: Format,
    /// The partition, counted from 1; `None`: the only one with a file system that is known here.
    pub partition: Option<u32>,
    /// What is wanted.
    pub wanted: Wanted,
}

/// What is wanted of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// The partitions, or the file system that is all of it.
    Partitions,
    /// A file, or what is in a directory.
    List(Vec<u8>),
    /// The bytes of a file.
    Read(Vec<u8>),
    /// A file, or a directory with all below it.
    Tree(Vec<u8>),
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Counted from 1; `None`: all of the image.
    pub number: Option<u32>,
    /// Its first byte.
    pub start: u64,
    /// Its length, bytes.
    pub length: u64,
    /// What the partition table calls it: a GUID, or a number.
    pub kind: Option<String>,
    /// Its name in the partition table.
    pub name: Option<String>,
    /// What is in it.
    pub content: Content,
}

/// What is in a part of an image, by the marks that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// Encrypted.
    Luks,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// A volume of LVM.
    Lvm,
    /// NTFS.
    Ntfs,
    /// Swap space of Linux.
    Swap,
    /// SquashFS.
    Squashfs,
    /// ISO 9660.
    Iso9660,
    /// It reaches beyond the end of the image.
    Beyond,
    /// None of these.
    Unknown,
}

impl Content {
    /// It can be looked into.
    pub fn is_known(self) -> bool {
        matches!(self, Content::Ext | Content::Fat)
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Content::Ext => "ext2/3/4",
            Content::Fat => "FAT",
            Content::Luks => "LUKS (encrypted)",
            Content::Xfs => "XFS",
            Content::Btrfs => "Btrfs",
            Content::Lvm => "LVM",
            Content::Ntfs => "NTFS",
            Content::Swap => "swap",
            Content::Squashfs => "SquashFS",
            Content::Iso9660 => "ISO 9660",
            Content::Beyond => "beyond the end of the image",
            Content::Unknown => "unknown",
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Other,
}

/// A file in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name, without the directories before it.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its permissions, with those that are not given here: set-user-ID and their like.
    pub mode: u32,
    /// The user it belongs to; FAT knows none.
    pub uid: u32,
    /// The group it belongs to.
    pub gid: u32,
    /// Its length, bytes.
    pub size: u64,
    /// When it was last changed, seconds since 1970; FAT does not say of which time zone.
    pub modified: Option<i64>,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<u8>>,
}
