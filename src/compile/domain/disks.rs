//! Disks: their images, names, loops; what `storage` says for those that do not say it themselves.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Around, Cx, ident};
use crate::images::SecretSource;

/// Where libvirt keeps images.
const IMAGES: &str = "/var/lib/libvirt/images";
/// What only qcow2 has.
const ONLY_QCOW2: [&str; 3] = ["cluster_size", "lazy_refcounts", "compression_type"];

/// The image of a disk that names none: in `dir`, by the machine's name.
fn image_of(dir: Option<&str>, machine: &str, index: usize, format: &str) -> String {
    let dir = dir.unwrap_or(IMAGES).trim_end_matches('/');
    match index {
        0 => format!("{dir}/{machine}.{format}"),
        n => format!("{dir}/{machine}-{n}.{format}"),
    }
}

impl Cx<'_> {
    pub(super) fn disks(&mut self, storage: &Value, around: &Around<'_>) {
        let written = self.root.remove("disks");
        let mut disks: Vec<Map<String, Value>> = match written {
            Some(Value::Array(list)) => list
                .into_iter()
                .filter_map(|d| {
                    if let Value::Object(d) = d {
                        Some(d)
                    } else {
                        None
                    }
                })
                .collect(),
            _ => Vec::new(),
        };
        let loops = self.get("iothreads").and_then(Value::as_u64).unwrap_or(0);
        if loops == 0 {
            self.root.remove("iothreads");
        }
        let mut next_loop = 0;
        let mut made = Vec::new();
        for (index, disk) in disks.iter_mut().enumerate() {
            let here = format!("disks[{index}]");
            let device = disk
                .get("device")
                .and_then(Value::as_str)
                .unwrap_or("disk")
                .to_owned();
            let own_image = disk.get("path").is_none();
            let is_disk = device == "disk";
            let format = disk
                .entry("format")
                .or_insert("raw".into())
                .as_str()
                .unwrap_or("raw")
                .to_owned();
            if own_image && is_disk && !storage.is_null() {
                let dir = storage.get("dir").and_then(Value::as_str);
                disk.insert(
                    "path".into(),
                    image_of(dir, around.name, index, &format).into(),
                );
            }
            if device == "cdrom" {
                disk.insert("read_only".into(), true.into());
            }
            let bus = match device.as_str() {
                "cdrom" if self.is_i440fx() => "ide",
                "cdrom" => "sata",
                "floppy" => "fdc",
                _ => "virtio",
            };
            let bus = disk
                .entry("bus")
                .or_insert(bus.into())
                .as_str()
                .unwrap_or(bus)
                .to_owned();
            if is_disk {
                self.hint_of_content(&here, disk);
            }
            self.format_options(&here, &format, disk);
            if is_disk {
                self.image(&here, &format, disk);
            }
            if let Some(path) = disk.get("path").and_then(Value::as_str) {
                let kind = if self.is_block_device(path) {
                    "block"
                } else {
                    "file"
                };
                disk.entry("type").or_insert(kind.into());
            }
            self.loop_of(&here, &bus, loops, &mut next_loop, disk);
            for flag in ["read_only", "shareable", "transient"] {
                if disk.get(flag) == Some(&Value::Bool(false)) {
                    disk.remove(flag);
                }
            }
            disk.entry("cache").or_insert("writeback".into());
            one_cache_word(disk);
            disk.entry("device").or_insert(device.into());
            made.push((bus, here));
        }
        self.protection(storage, &disks);
        self.names(&mut disks, &made);
        if !disks.is_empty() {
            self.root.insert(
                "disks".into(),
                disks.into_iter().map(Value::Object).collect(),
            );
        }
    }

    /// Options that the format lacks, and what encryption needs.
    fn format_options(&mut self, here: &str, format: &str, disk: &mut Map<String, Value>) {
        if format != "qcow2" {
            for key in ONLY_QCOW2 {
                if disk.remove(key).is_some() {
                    let path = format!("{here}.{key}");
                    if !self.is_advice(&path) {
                        let d = self.warn(
                            "W-DISK-OPTION",
                            &path,
                            format!("`{key}` needs qcow2, and this image is {format}"),
                        );
                        d.help = Some("Say `format: qcow2`, or leave it out".into());
                    }
                }
            }
            if disk.get("preallocation").and_then(Value::as_str) == Some("metadata") {
                let path = format!("{here}.preallocation");
                disk.remove("preallocation");
                if !self.is_advice(&path) {
                    let other = format!("{here}.format");
                    self.conflict(
                        &path,
                        &other,
                        format!("An image of format {format} has no metadata to reserve"),
                        "Say `preallocation: falloc`, or `format: qcow2`",
                    );
                }
            }
        }
        match disk.get("encryption").and_then(Value::as_str) {
            Some("luks") if !matches!(format, "qcow2" | "raw") => {
                let (path, other) = (format!("{here}.encryption"), format!("{here}.format"));
                self.conflict(
                    &path,
                    &other,
                    format!("Encryption needs qcow2 or raw, and this image is {format}"),
                    "Say `format: raw` or `format: qcow2`, or `encryption: none`",
                );
            }
            Some("luks") => self.secret_of(here, disk),
            _ => {
                // Who names a passphrase does not mean the bytes of the container.
                let container = !self.parsed.is_written(&format!("{here}.encryption"))
                    && ["secret", "secret_file"]
                        .iter()
                        .any(|k| disk.contains_key(*k))
                    && self.is_container(disk);
                for key in ["secret", "secret_file"] {
                    let path = format!("{here}.{key}");
                    if disk.remove(key).is_some() && !self.is_advice(&path) {
                        if container {
                            let message = "The image begins as a LUKS container, and `encryption: luks` is missing";
                            let d = self.error("E-CONFLICT", &path, message);
                            d.help = Some("Say `encryption: luks`, or leave the passphrase out for a guest that opens it itself".into());
                            continue;
                        }
                        self.warn(
                            "W-UNUSED",
                            &path,
                            format!("`{key}` is for an encrypted image, and this one is not"),
                        )
                        .help = Some("Say `encryption: luks`".into());
                    }
                }
                disk.remove("encryption");
            }
        }
        if disk.get("preallocation").and_then(Value::as_str) == Some("off") {
            disk.remove("preallocation");
        }
    }

    /// Whether an image has the magic number of LUKS (LUKS2 On-Disk Format Specification 1.1.4, 2.1).
    fn is_container(&self, disk: &Map<String, Value>) -> bool {
        use std::os::unix::fs::FileExt;
        let mut magic = [0; 6];
        disk.get("path")
            .and_then(Value::as_str)
            .and_then(|path| self.facts.open_image(path.as_ref()).ok())
            .is_some_and(|file| file.read_exact_at(&mut magic, 0).is_ok())
            && magic == *b"LUKS\xba\xbe"
    }

    /// Where the passphrase comes from, and which secret of libvirt has it.
    fn secret_of(&mut self, here: &str, disk: &mut Map<String, Value>) {
        let image = disk
            .get("path")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if let Err(remark) = SecretSource::of_disk(&Value::Object(disk.clone())) {
            self.error(
                remark.code,
                &format!("{here}.{}", remark.key),
                remark.message,
            )
            .help = Some(remark.help);
        }
        let secret = disk.entry("secret").or_insert_with(|| json!({}));
        let Value::Object(secret) = secret else {
            return;
        };
        let uuid = secret
            .entry("uuid")
            .or_insert_with(|| ident::uuid(&["secret", &image]).into());
        if !uuid.as_str().is_some_and(ident::is_uuid) {
            self.error(
                "E-VALUE",
                &format!("{here}.secret.uuid"),
                "This is no UUID of a secret",
            )
            .help = Some("virsh secret-list shows them".into());
        }
    }

    /// What an encrypted machine asks of its disks.
    fn protection(&mut self, storage: &Value, disks: &[Map<String, Value>]) {
        let wanted = storage.get("encryption").and_then(Value::as_str) == Some("luks");
        for (index, disk) in disks.iter().enumerate() {
            let here = format!("disks[{index}]");
            let is_disk = disk.get("device").and_then(Value::as_str) == Some("disk");
            let plain = disk.get("encryption").is_none() && disk.get("read_only").is_none();
            if wanted && is_disk && plain && !self.parsed.is_written(&format!("{here}.encryption"))
            {
                let d = self.warn(
                    "W-DISK-PLAIN",
                    &here,
                    "This disk is not encrypted, as the others are to be",
                );
                d.why = Some("`encryption` of `storage` is for images that this program makes; one that exists is as it is".into());
                d.help = Some(
                    "Say `encryption: luks` if it is, or `encryption: none` if that is meant"
                        .into(),
                );
            }
        }
        let first = disks
            .iter()
            .position(|d| d.get("device").and_then(Value::as_str) == Some("disk"));
        let at = first
            .filter(|at| disks.get(*at).and_then(|d| d.get("bus")?.as_str()) == Some("virtio"));
        if let Some(at) = at
            && self.get("security").is_some()
            && self.text("kernel.path").is_none()
        {
            let d = self.warn(
                "W-SEV-BOOT",
                &format!("disks[{at}].bus"),
                "Older guest kernels cannot boot from virtio-blk with encrypted memory",
            );
            d.why = Some("libvirt kbase launch_security_sev; kernels of today can".into());
            d.help = Some("Say `bus: scsi` for a guest of that age".into());
        }
        if disks.is_empty() && self.parsed.is_written("storage") && !self.is_advice("storage") {
            self.warn(
                "W-UNUSED",
                "storage",
                "`storage` is for disks, and this machine has none",
            )
            .help = Some("Add `disks: [{size: 20G}]`, or name an image".into());
        }
    }

    fn loop_of(
        &mut self,
        here: &str,
        bus: &str,
        loops: u64,
        next: &mut u64,
        disk: &mut Map<String, Value>,
    ) {
        let path = format!("{here}.iothread");
        match disk.get("iothread").and_then(Value::as_u64) {
            Some(_) if bus != "virtio" => {
                let message = format!("A disk on {bus} has no I/O loop of its own");
                self.conflict(
                    &path,
                    &format!("{here}.bus"),
                    message,
                    "Say `bus: virtio`, or leave `iothread` out",
                );
            }
            Some(number) if number > loops => {
                self.conflict(
                    &path,
                    "iothreads",
                    format!("There is no I/O loop {number}: `iothreads` is {loops}"),
                    format!("Say `iothreads: {number}`"),
                );
            }
            None if bus == "virtio" && loops > 0 => {
                disk.insert("iothread".into(), (*next % loops + 1).into());
                *next += 1;
            }
            _ => {}
        }
    }

    /// Each disk's name in the XML: the given one, or the next that is free on its bus.
    fn names(&mut self, disks: &mut [Map<String, Value>], made: &[(String, String)]) {
        let mut taken: HashMap<String, String> = HashMap::new();
        for (disk, (bus, here)) in disks.iter().zip(made) {
            let Some(target) = disk.get("target").and_then(Value::as_str) else {
                continue;
            };
            if !target.starts_with(prefix(bus)) {
                let message = format!("A disk on {bus} is not called {target}");
                let path = format!("{here}.target");
                self.error("E-DISK-TARGET", &path, message).help =
                    Some(format!("For example `target: {}a`", prefix(bus)));
            }
            if let Some(first) = taken.insert(target.to_owned(), here.clone()) {
                self.conflict(
                    &format!("{here}.target"),
                    &format!("{first}.target"),
                    format!("Two disks are called {target}"),
                    "Give each its own `target`",
                );
            }
        }
        for (disk, (bus, here)) in disks.iter_mut().zip(made) {
            if disk.contains_key("target") {
                continue;
            }
            let mut names = (0..).map(|n| format!("{}{}", prefix(bus), letters(n)));
            let free = names
                .find(|name| !taken.contains_key(name))
                .unwrap_or_default();
            taken.insert(free.clone(), here.clone());
            disk.insert("target".into(), free.into());
        }
    }
}

/// QEMU's cache modes say in one word what `cache`, `direct_io` and `sync` say here (QEMU, qemu-img(1), -t).
fn one_cache_word(disk: &mut Map<String, Value>) {
    let direct = disk.remove("direct_io").and_then(|v| v.as_bool());
    let sync = disk.get("sync").and_then(Value::as_str).map(str::to_owned);
    let word = disk
        .get("cache")
        .and_then(Value::as_str)
        .unwrap_or("writeback")
        .to_owned();
    let word = match (sync.as_deref(), direct, word.as_str()) {
        (Some("none"), ..) => "unsafe",
        (_, Some(true), "writeback") => "none",
        (_, Some(true), "writethrough") => "directsync",
        (_, Some(false), "none") => "writeback",
        (_, Some(false), "directsync") => "writethrough",
        (Some("full"), _, "unsafe") => "writeback",
        (_, _, word) => word,
    };
    disk.insert("cache".into(), word.into());
    if sync.as_deref() != Some("relaxed") {
        disk.remove("sync");
    }
}

/// How names of disks begin on a bus.
fn prefix(bus: &str) -> &'static str {
    match bus {
        "virtio" => "vd",
        "ide" => "hd",
        "fdc" => "fd",
        _ => "sd",
    }
}

/// a, b, …, z, aa, ab, …
fn letters(index: usize) -> String {
    let mut out = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        out.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
    }
    out.into_iter().rev().collect()
}
