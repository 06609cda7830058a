//! Images that exist: what they look like, which files they name, what size they claim, where they lie.

#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Cx, Target};
use crate::diag::Diagnostic;
use crate::images::chain::{self, Rules};
use crate::images::{Severity, info, origin};

/// Names that images of other formats have at their ends.
const OTHER_FORMATS: [&str; 5] = ["qcow2", "vmdk", "vdi", "vhdx", "qed"];
/// File systems whose content crosses a network (man 8 mount, /proc/filesystems).
const NETWORK: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "9p",
    "afs",
    "glusterfs",
    "lustre",
    "ocfs2",
    "gfs2",
    "fuse.sshfs",
    "fuse.glusterfs",
];

impl Cx<'_> {
    /// A format is never guessed; a disk that nobody called raw and that is not by its name or content is not taken
    /// for raw either, unless it was made here as such: the guest would write over the other format's tables.
    pub(super) fn hint_of_content(&mut self, here: &str, disk: &Map<String, Value>) {
        let written = self.parsed.is_written(&format!("{here}.format"));
        let path = disk.get("path").and_then(Value::as_str);
        let Some(path) = path.filter(|_| !written) else {
            return;
        };
        // What is encrypted looks like LUKS, and is raw all the same.
        let encrypted = disk.get("encryption").and_then(Value::as_str) == Some("luks");
        let named = OTHER_FORMATS
            .iter()
            .any(|format| path.ends_with(&format!(".{format}")));
        let (looks, why) = match self.facts.open_image(Path::new(path)) {
            Ok(file) => {
                let mut first = [0; info::LOOK];
                let read = file.read_at(&mut first, 0).unwrap_or(0);
                let looks = info::looks_like(first.get(..read).unwrap_or_default());
                let other = looks.is_some_and(|format| !(encrypted && format == "luks"));
                (other && !origin::is(&file, "raw"), "content")
            }
            Err(_) => (named, "name"),
        };
        if looks {
            let d = self.error(
                "E-DISK-FORMAT",
                &format!("{here}.path"),
                format!("By its {why} this image is not raw, and nobody said what it is"),
            );
            d.why = Some("A guest can write the header of another format into a raw image, to make the host open other files; so it is never guessed".into());
            d.help = Some("Say `format: qcow2` if you made it so, else `format: raw`".into());
        }
    }

    /// What an image that is there may not do, and what the scenario says of it in vain.
    pub(super) fn image(&mut self, here: &str, format: &str, disk: &mut Map<String, Value>) {
        for (key, formats) in [
            ("backing", &["qcow2", "vmdk"][..]),
            ("data_file", &["qcow2"]),
        ] {
            if !formats.contains(&format) && disk.remove(key).is_some() {
                let path = format!("{here}.{key}");
                self.warn(
                    "W-UNUSED",
                    &path,
                    format!("An image of format {format} has no use for `{key}`"),
                )
                .help = Some("Leave it out, or say what the image is: `format`".into());
            }
        }
        let members = disk.get("backing").and_then(Value::as_array);
        let nameless = members.and_then(|all| all.iter().position(|m| m.get("path").is_none()));
        if let Some(index) = nameless {
            self.error(
                "E-REQUIRED",
                &format!("{here}.backing[{index}]"),
                "This member of `backing` has no `path`",
            )
            .help = Some("Name the image, as its overlay names it: `path: /srv/base.qcow2`".into());
        }
        let members = disk.get_mut("backing").and_then(Value::as_array_mut);
        for member in members
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            member.entry("format").or_insert("raw".into());
        }
        let Some(path) = disk.get("path").and_then(Value::as_str).map(PathBuf::from) else {
            return;
        };
        let rules = Rules::of_disk(&Value::Object(disk.clone()));
        // A raw image is its bytes, whatever they look like: there is nothing to look at.
        if format != "raw" || rules.encrypted || rules.most.is_some() {
            let facts = self.facts;
            for remark in chain::check(&|path| facts.open_image(path), &path, &rules) {
                let span = self.span(&format!("{here}.{}", remark.key));
                let d = match remark.severity {
                    Severity::Error => Diagnostic::error(remark.code, span, remark.message),
                    Severity::Warning => Diagnostic::warning(remark.code, span, remark.message),
                };
                self.tell(d.help(remark.help));
            }
        }
        if self.target == Target::Libvirt && !rules.encrypted {
            self.remote(here, &path);
        }
    }

    /// Content that crosses a network is read by whoever is in between.
    fn remote(&mut self, here: &str, path: &Path) {
        let Some(over) = self.network(path) else {
            return;
        };
        let d = self.warn(
            "W-DISK-REMOTE",
            &format!("{here}.path"),
            format!("This image lies on another machine ({over}), and is not encrypted"),
        );
        d.why =
            Some("Its content crosses the network, and whoever has the storage reads it".into());
        d.help = Some("Say `encryption: luks` with a `secret` for a new image; qemu-img convert makes one of this".into());
    }

    /// What carries the file, where that is a network.
    fn network(&self, path: &Path) -> Option<String> {
        if let Some(mounts) = self.facts.long_text(Path::new("/proc/self/mountinfo"))
            && let Some(kind) = mounted(&mounts, path)
            && NETWORK.contains(&kind)
        {
            return Some(kind.to_owned());
        }
        let device = self.facts.device_of(path)?;
        if let Some(kind) = ["nbd", "rbd", "drbd"]
            .iter()
            .find(|k| device.starts_with(*k))
        {
            return Some((*kind).to_owned());
        }
        // An iSCSI disk is below its session (drivers/scsi/scsi_transport_iscsi.c).
        let link = self.facts.link(&Path::new("/sys/block").join(device));
        link.is_some_and(|to| {
            let mut parts = to
                .components()
                .map(|c| c.as_os_str().to_string_lossy().into_owned());
            parts.any(|part| {
                part.strip_prefix("session")
                    .is_some_and(|n| n.parse::<u32>().is_ok())
            })
        })
        .then(|| "iscsi".to_owned())
    }
}

/// The type of the file system that has `path`: of the longest mount point above it, the last one there
/// (proc_pid_mountinfo(5): the fifth field is the mount point, the type follows a hyphen).
fn mounted<'t>(mounts: &'t str, path: &Path) -> Option<&'t str> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let (front, back) = line.split_once(" - ")?;
        let point = front.split(' ').nth(4)?.replace("\\040", " ");
        let kind = back.split(' ').next()?;
        if path.starts_with(&point) && best.is_none_or(|(length, _)| point.len() >= length) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::mounted;

    #[test]
    fn the_longest_mount_point_counts_and_the_last_of_its_length() {
        let mounts = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 21 0:50 / /srv rw shared:9 - nfs4 host:/srv rw\n\
                      31 30 0:51 / /srv/a\\040b rw - tmpfs none rw\n\
                      32 21 0:52 / /two rw - ext4 /dev/b rw\n\
                      33 21 0:53 / /two rw - cifs //h/s rw\n";
        let of = |path: &str| mounted(mounts, Path::new(path));
        assert_eq!(of("/var/x"), Some("ext4"));
        assert_eq!(of("/srv/x"), Some("nfs4"));
        assert_eq!(of("/srvx"), Some("ext4"));
        assert_eq!(of("/srv/a b/x"), Some("tmpfs"));
        assert_eq!(of("/two/x"), Some("cifs"));
    }
}
