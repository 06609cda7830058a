//! What an image that nobody vouches for may do: name no other file, unless it was listed, and claim no size beyond its
//! bound. Every member of the chain is opened by descriptor, looked at as untrusted bytes, and followed by name only as
//! far as the list goes.
//!
//! What is looked at here QEMU opens later, by name: whoever can write an image, or the directory that it is in, between
//! the two can still change what is used. Against that only rights on files help, and the confinement that libvirt gives
//! QEMU: its own files and no others.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use vsc_devices::block::luks;

use super::qcow2::checks::{self, Checked};
use super::{Header, Remark, Severity, vmdk};
use crate::diag::quoted;

/// Members of a chain that are followed.
const DEPTH: usize = 16;
/// A disk beyond 2 TiB is seldom meant, and no MBR describes it.
const SIZE_MAX: u64 = 2 << 40;
/// A larger one is believed of an image that has at least a 64th of it.
const RATIO: u64 = 64;

/// An image that another may take content from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: PathBuf,
    pub(crate) format: String,
}

/// What the scenario says of a disk's image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Its format.
    pub(crate) format: String,
    /// What its backing chain may be, in order.
    pub(crate) backing: Vec<Listed>,
    /// The file that may have its data.
    pub(crate) data: Option<PathBuf>,
    /// `max_virtual_size`.
    pub(crate) most: Option<u64>,
    /// `size`.
    pub(crate) size: Option<u64>,
    /// `encryption: luks`.
    pub(crate) encrypted: bool,
    /// `block_size`.
    pub(crate) block: u64,
}

impl Rules {
    /// Those of a member of the domain's `disks`.
    pub(crate) fn of_disk(disk: &Value) -> Self {
        let text =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |key: &str| disk.get(key).and_then(Value::as_u64);
        let backing = disk.get("backing").and_then(Value::as_array);
        let listed = |member: &Value| {
            Some(Listed {
                path: text(member, "path")?.into(),
                format: text(member, "format").unwrap_or_else(|| "raw".into()),
            })
        };
        Self {
            format: text(disk, "format").unwrap_or_else(|| "raw".into()),
            backing: backing.into_iter().flatten().filter_map(listed).collect(),
            data: text(disk, "data_file").map(PathBuf::from),
            most: number("max_virtual_size"),
            size: number("size"),
            encrypted: text(disk, "encryption").as_deref() == Some("luks"),
            block: number("block_size").unwrap_or(512),
        }
    }
}

/// Opens an image to be looked at: a regular file or a block device, by descriptor.
pub(crate) type Open<'a> = &'a dyn Fn(&Path) -> io::Result<File>;

/// Looks at the image at `path` and at all that it names. An image that is not there is no error here.
pub(crate) fn check(open: Open<'_>, path: &Path, rules: &Rules) -> Vec<Remark> {
    let mut walk = Walk {
        open,
        rules,
        seen: Vec::new(),
        out: Vec::new(),
    };
    walk.top(path);
    walk.out
}

/// An open member.
struct Member {
    path: PathBuf,
    file: File,
    length: u64,
}

/// What a member names.
struct Next {
    name: Vec<u8>,
    format: Option<Vec<u8>>,
}

struct Walk<'a> {
    open: Open<'a>,
    rules: &'a Rules,
    /// Device and inode of each member.
    seen: Vec<(u64, u64)>,
    out: Vec<Remark>,
}

impl Walk<'_> {
    fn refuse(&mut self, code: &'static str, key: &'static str, message: String, help: &str) {
        self.out.push(Remark::error(code, key, message, help));
    }

    fn open(&mut self, path: &Path) -> io::Result<Member> {
        let mut file = (self.open)(path)?;
        let metadata = file.metadata()?;
        self.seen.push((metadata.dev(), metadata.ino()));
        let length = match metadata.is_file() {
            true => metadata.len(),
            false => io::Seek::seek(&mut file, io::SeekFrom::End(0))?,
        };
        Ok(Member {
            path: path.to_owned(),
            file,
            length,
        })
    }

    fn top(&mut self, path: &Path) {
        let top = match self.open(path) {
            Ok(top) => top,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.rules.format != "raw" => {
                self.out.push(Remark {
                    severity: Severity::Warning,
                    code: "W-DISK-UNCHECKED",
                    key: "path",
                    message: format!(
                        "The image {} cannot be read, so nobody knows which files it names and what size it claims",
                        path.display()
                    ),
                    help: "Check it as a user who may read it: vsc-run disk info --format FORMAT FILE".into(),
                });
                return;
            }
            // Whether it must be there is said elsewhere.
            Err(_) => return,
        };
        let rules = self.rules;
        let claimed = match rules.format.as_str() {
            "raw" => {
                if rules.encrypted {
                    self.container(&top);
                }
                rules.most.map(|_| top.length)
            }
            "qcow2" => self.qcow2(&top, 0),
            "vmdk" => self.vmdk(&top, 0),
            "vdi" => self.vdi(&top),
            other => {
                // QEMU opens no other file for them either.
                self.out.push(Remark {
                    severity: Severity::Warning,
                    code: "W-DISK-UNCHECKED",
                    key: "format",
                    message: format!("What size a {other} image claims is not checked here"),
                    help: "qemu-img convert makes a raw or qcow2 image of it".into(),
                });
                None
            }
        };
        if let Some(claimed) = claimed {
            self.size(&top, claimed);
        }
        let (named, listed) = (self.seen.len() - 1, &rules.backing);
        if self.out.is_empty()
            && let Some(idle) = listed.get(named)
        {
            self.out.push(Remark {
                severity: Severity::Warning,
                code: "W-UNUSED",
                key: "backing",
                message: format!("No image names {}", idle.path.display()),
                help:
                    "Leave it out, or look whether the overlay is the right one: vsc-run disk info"
                        .into(),
            });
        }
    }

    fn size(&mut self, top: &Member, claimed: u64) {
        let rules = self.rules;
        let usual = SIZE_MAX.max(top.length.saturating_mul(RATIO));
        let most = rules.most.or(rules.size).unwrap_or(usual);
        if claimed > most {
            let path = top.path.display();
            let (has, key) = (
                top.length,
                if rules.most.is_some() {
                    "max_virtual_size"
                } else {
                    "path"
                },
            );
            self.refuse(
                "E-SIZE",
                key,
                format!("The image {path} of {has} bytes claims to be a disk of {claimed} bytes, and {most} are the most"),
                &format!("Say `max_virtual_size: {}G` if it is to be so large", claimed.div_ceil(1 << 30)),
            );
        }
    }

    /// A raw image that is said to be encrypted.
    fn container(&mut self, top: &Member) {
        let wrong = match luks::inspect(&top.file, top.length) {
            Ok(layout) if u64::from(layout.sector) > self.rules.block => {
                let sector = layout.sector;
                self.refuse(
                    "E-DISK-ENCRYPTION",
                    "encryption",
                    format!(
                        "The image {} is encrypted in sectors of {sector} bytes",
                        top.path.display()
                    ),
                    &format!("Say `block_size: {sector}`, as the guest that wrote it saw it"),
                );
                return;
            }
            Ok(_) => return,
            Err(wrong) => wrong,
        };
        let path = top.path.display();
        self.refuse(
            "E-DISK-ENCRYPTION",
            "encryption",
            format!("The image {path} {wrong}"),
            "Say `encryption: none` if it is plain; vsc-run disk create --encryption luks makes one that is not",
        );
    }

    fn qcow2(&mut self, member: &Member, depth: usize) -> Option<u64> {
        let checked =
            Header::first(&member.file).and_then(|bytes| checks::check(&bytes, member.length));
        let Checked {
            header,
            backing,
            backing_format,
            data,
        } = match checked {
            Ok(checked) => checked,
            Err(e) => {
                let path = member.path.display();
                self.refuse(
                    "E-DISK-HEADER",
                    "path",
                    format!("{path} cannot be used as a qcow2 image: {e}"),
                    "Say what it is (`format`), or get it anew",
                );
                return None;
            }
        };
        let encrypted = self.rules.encrypted && depth == 0;
        if encrypted != (header.encryption == Some("luks")) || header.encryption == Some("aes") {
            let path = member.path.display();
            let (message, help) = match header.encryption {
                Some("aes") => (
                    format!(
                        "The image {path} is encrypted in the old way of QEMU, which protects nothing"
                    ),
                    "qemu-img convert makes one with LUKS of it",
                ),
                Some(_) => (
                    format!("The image {path} is encrypted, and nobody says so"),
                    "Say `encryption: luks` and where the passphrase comes from",
                ),
                None => (
                    format!("The image {path} is not encrypted, and it is said to be"),
                    "Say `encryption: none` if that is meant",
                ),
            };
            self.refuse("E-DISK-ENCRYPTION", "encryption", message, help);
        }
        if let Some(name) = data {
            self.data(member, &name);
        }
        if let Some(name) = backing {
            let format = backing_format;
            self.follow(member, Next { name, format }, depth);
        }
        Some(header.virtual_size)
    }

    /// An external data file: the scenario's own one, or none.
    fn data(&mut self, member: &Member, name: &[u8]) {
        let shown = quoted(&String::from_utf8_lossy(name));
        let resolved = place(&member.path, name);
        if resolved.is_some() && resolved == self.rules.data {
            return;
        }
        let path = member.path.display();
        self.refuse(
            "E-BACKING",
            "path",
            format!("The image {path} keeps its data in another file: {shown}"),
            "If that is yours and meant, name it: `data_file: /ABSOLUTE/PATH`",
        );
    }

    fn follow(&mut self, from: &Member, next: Next, depth: usize) {
        let path = from.path.display().to_string();
        let shown = quoted(&String::from_utf8_lossy(&next.name));
        let message = format!("The image {path} takes content from {shown}");
        let Some(place) = place(&from.path, &next.name) else {
            let help = "Only plain files can be listed: convert it to an image of its own (qemu-img convert)";
            return self.refuse("E-BACKING", "path", message, help);
        };
        let Some(format) = next.format else {
            let help = "Its format is not said, so that QEMU would guess it: qemu-img rebase -u -F FORMAT -b FILE says it";
            let message = format!("{message}, of no said format");
            return self.refuse("E-BACKING", "path", message, help);
        };
        let format = String::from_utf8_lossy(&format).into_owned();
        let rules = self.rules;
        let member = rules
            .backing
            .get(depth)
            .filter(|l| l.path == place && l.format == format);
        if member.is_none() {
            let place = place.display();
            let format = quoted(&format);
            return self.refuse(
                "E-BACKING",
                "path",
                format!("{message} (format {format})"),
                &format!("If that is yours and meant, list it as it is: `backing: [{{path: {place}, format: …}}]`, the first that is named first"),
            );
        }
        if depth + 1 >= DEPTH {
            let help = "qemu-img convert makes one image of them";
            let message =
                format!("More than {DEPTH} images take content from each other, from {path} on");
            return self.refuse("E-BACKING", "backing", message, help);
        }
        let before = self.seen.len();
        let member = match self.open(&place) {
            Ok(member) => member,
            Err(e) => {
                let message = format!("{message}, and that cannot be opened: {e}");
                return self.refuse(
                    "E-BACKING",
                    "backing",
                    message,
                    "Bring it back, or take it off the list",
                );
            }
        };
        let (earlier, this) = self.seen.split_at(before);
        if this.iter().any(|it| earlier.contains(it)) {
            let message = format!("{message}, which is one that takes content from it");
            return self.refuse(
                "E-BACKING",
                "backing",
                message,
                "Such a chain has no end: get the image anew",
            );
        }
        match format.as_str() {
            "qcow2" => drop(self.qcow2(&member, depth + 1)),
            "vmdk" => drop(self.vmdk(&member, depth + 1)),
            _ => {}
        }
    }

    fn vmdk(&mut self, member: &Member, depth: usize) -> Option<u64> {
        match vmdk::read(&member.file, member.length) {
            Ok(told) => {
                for extent in told.extents {
                    let name = quoted(&extent);
                    let path = member.path.display();
                    self.refuse(
                        "E-BACKING",
                        "path",
                        format!("The image {path} is in pieces, and names {name} as one of them"),
                        "qemu-img convert makes one image of them",
                    );
                }
                if let Some(parent) = told.parent {
                    let name = parent.into_bytes();
                    let format = Some(b"vmdk".to_vec());
                    self.follow(member, Next { name, format }, depth);
                }
                told.size
            }
            Err(why) => {
                let path = member.path.display();
                self.refuse(
                    "E-DISK-HEADER",
                    "path",
                    format!("{path} cannot be used as a vmdk image: {why}"),
                    "Say what it is (`format`), or get it anew",
                );
                None
            }
        }
    }

    /// VirtualBox: the size is a number at a fixed place, and no other file is named (vdi.c of QEMU).
    fn vdi(&mut self, member: &Member) -> Option<u64> {
        let mut head = [0; 512];
        let read = member.file.read_exact_at(&mut head, 0);
        let magic = head.get(0x40..0x44) == Some(&super::info::VDI_MAGIC);
        let size = head.get(0x170..0x178).and_then(|b| b.first_chunk());
        if let (Ok(()), true, Some(size)) = (read, magic, size) {
            return Some(u64::from_le_bytes(*size));
        }
        let path = member.path.display();
        self.refuse(
            "E-DISK-HEADER",
            "path",
            format!("{path} cannot be used as a vdi image: it does not begin as one"),
            "Say what it is (`format`), or get it anew",
        );
        None
    }
}

/// The file that a name in an image means, as QEMU reads it: relative ones to the image's directory. `None`: it is no
/// plain file.
fn place(image: &Path, name: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(name).ok()?;
    // `json:`, `nbd://`, `fat:…`: whatever has a colon before its first slash is a protocol (path_has_protocol).
    let protocol = text
        .find(':')
        .is_some_and(|colon| text.find('/').is_none_or(|slash| colon < slash));
    if text.is_empty() || protocol || text.chars().any(char::is_control) {
        return None;
    }
    match text.starts_with('/') {
        true => Some(PathBuf::from(text)),
        false => Some(image.parent()?.join(text)),
    }
}
