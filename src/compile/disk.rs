//! `disks`: each to a [`BlkSpec`], its image looked at but not opened for good.

use std::collections::HashMap;
use std::path::PathBuf;

use vsc_devices::virtio::blk::{BlkSpec, Discard, Lock, Luks};

use crate::diag::{Diagnostic, Span, Spanned, quoted};
use crate::facts::{Facts, FileError, FileKind};
use crate::scenario::{Disk, word};

use super::Problems;

/// The disks in their order.
pub(super) fn compile(
    disks: &[Spanned<Disk>],
    has_storage: bool,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> Vec<BlkSpec> {
    let mut ids: HashMap<String, Span> = HashMap::new();
    let mut images: HashMap<PathBuf, (Span, bool)> = HashMap::new();
    let mut out = Vec::with_capacity(disks.len());
    for (index, disk) in disks.iter().enumerate() {
        let Disk {
            path,
            id,
            format,
            read_only,
            cache,
            direct_io,
            sync,
            discard,
            block_size,
            device,
            size,
            shareable,
            encryption,
        } = &disk.value;
        let span = &disk.span;
        let Some(path) = path else {
            // A drive may be empty; the monitor of this build has none, and that has been said.
            if has_storage || device.is_some_and(|d| d.value != "disk") {
                // The disk to boot from, which the monitor of this build cannot do.
                continue;
            }
            let d = Diagnostic::error("E-REQUIRED", *span, "This disk has no `path`");
            problems.push(d.help("Name its image: `path: rootfs.ext4`"));
            continue;
        };
        let name = id
            .as_ref()
            .map_or_else(|| format!("disk{index}"), |id| id.value.clone());
        let id_span = id.as_ref().map_or(*span, |id| id.span);
        if let Some(first) = ids.get(&name) {
            let d = Diagnostic::error(
                "E-DISK-ID",
                id_span,
                format!("Two disks have the id {}", quoted(&name)),
            );
            problems.push(
                d.also(*first, "the first")
                    .help("The guest tells disks apart by it: give each its own"),
            );
        }
        ids.entry(name.clone()).or_insert(id_span);

        let locked = read_only.is_some_and(|r| r.value);
        if let Some((first, first_locked)) = images.get(&path.value)
            && !(locked && *first_locked)
        {
            let d = Diagnostic::error(
                "E-DISK-TWICE",
                path.span,
                "Two disks have the same image, and one may write it",
            );
            let d = d
                .also(*first, "the first")
                .why("Two file systems on one image destroy it");
            problems.push(d.help("Make both `read_only: true`, or use a copy"));
        }
        images
            .entry(path.value.clone())
            .or_insert((path.span, locked));

        let block = block_size.map_or(512, |b| b.value);
        if block != 512 && block != 4096 {
            let at = block_size.map_or(*span, |b| b.span);
            problems.push(Diagnostic::error(
                "E-RANGE",
                at,
                format!("A block has 512 or 4096 bytes, not {block}"),
            ));
        }
        let to_make = size.is_some_and(|s| s.value > 0);
        let is_disk = device.is_none_or(|d| d.value == "disk");
        if is_disk && !(to_make && facts.file(&path.value) == Err(FileError::Missing)) {
            // Bytes of a file that is not raw are not those of the disk.
            let unit = if format.is_none_or(|f| f.value == "raw") {
                block
            } else {
                1
            };
            check_image(&path.value, path.span, locked, unit, facts, problems);
        }
        let encrypted = encryption.is_some_and(|e| e.value == "luks");
        out.push(BlkSpec {
            id: name,
            path: path.value.clone(),
            encryption: encrypted.then(|| Luks {
                secret: secret_end(index),
            }),
            format: word(*format).unwrap_or_default(),
            read_only: locked,
            cache: word(*cache).unwrap_or_default(),
            direct_io: direct_io.map(|d| d.value),
            sync_mode: word(*sync),
            discard: match word(*discard) {
                Some(said) => said,
                // Holes in a container show which of its blocks are in use.
                None if encrypted => Discard::Ignore,
                None => Discard::default(),
            },
            logical_block_size: u32::try_from(block).unwrap_or(512),
            lock: match shareable {
                Some(shared) if shared.value => Lock::Shared,
                _ => Lock::Exclusive,
            },
            ..BlkSpec::new(PathBuf::new())
        });
    }
    out
}

/// Name of the descriptor that has the passphrase of a disk.
pub(super) fn secret_end(index: usize) -> String {
    format!("disks[{index}].secret")
}

fn check_image(
    path: &std::path::Path,
    span: Span,
    read_only: bool,
    block: u64,
    facts: &dyn Facts,
    problems: &mut Problems,
) {
    let shown = path.display();
    let d = match facts.file(path) {
        Err(FileError::Missing) => Diagnostic::error("E-DISK-MISSING", span, format!("There is no disk image {shown}"))
            .help("Paths are relative to the scenario's directory. `size: 1G` makes an empty one at the first run"),
        Err(error) => {
            let d = Diagnostic::error("E-DISK-READ", span, format!("The disk image {shown} cannot be used: {error}"));
            match error {
                FileError::Denied => d.help(format!("Its owner or root can allow it: setfacl -m u:\"$USER\":rw {shown}; every directory above it needs x")),
                _ => d,
            }
        }
        Ok(file) => match file.kind {
            FileKind::Directory => Diagnostic::error("E-DISK-KIND", span, format!("{shown} is a directory, not a disk image"))
                .help("Name an image file; sharing directories is not in this build yet"),
            FileKind::Other => {
                Diagnostic::error("E-DISK-KIND", span, format!("{shown} is neither a regular file nor a block device"))
            }
            _ if file.length == 0 => Diagnostic::error("E-DISK-SIZE", span, format!("The disk image {shown} is empty"))
                .help(format!("Give it a size: truncate -s 1G {shown}")),
            _ if block.is_power_of_two() && file.length % block != 0 => {
                let message = format!("The disk image {shown} has {} bytes, not a multiple of {block}", file.length);
                Diagnostic::error("E-DISK-SIZE", span, message)
                    .why("The guest could not reach the last bytes: a disk has whole blocks")
                    .help(format!("Is it cut short? Otherwise round it up: truncate -s %{block} {shown}"))
            }
            _ if !read_only && !file.writable => {
                Diagnostic::error("E-DISK-READ-ONLY", span, format!("The disk image {shown} may not be written by this user"))
                    .help("Add `read_only: true`, or make the file writable")
            }
            _ => return,
        },
    };
    problems.push(d);
}
