//! What QEMU or libvirt refuse although each value by itself is fine (libvirt 9.0 and QEMU 7.2, by trying).

#![forbid(unsafe_code)]

use serde_json::Value;

use super::Cx;

/// Words that YAML files have for other things.
const NO_TYPES: [&str; 6] = ["true", "false", "yes", "no", "on", "off"];
/// Machines of QEMU without a PCI bus.
const NO_PCI: [&str; 3] = ["microvm", "isapc", "none"];

impl Cx<'_> {
    pub(super) fn checks(&mut self) {
        self.disk_rules();
        self.boot_rules();
        self.event_rules();
        self.other_rules();
        self.texts_fit();
    }

    fn disk_rules(&mut self) {
        for (index, disk) in self.members("disks").to_vec().iter().enumerate() {
            let here = format!("disks[{index}]");
            let word = |key: &str| disk.get(key).and_then(Value::as_str).unwrap_or_default();
            let (bus, device, format, cache) =
                (word("bus"), word("device"), word("format"), word("cache"));
            let path = |key: &str| format!("{here}.{key}");
            let (io, bus_at, cache_at) = (path("io"), path("bus"), path("cache"));
            if bus == "ide" && self.is_q35() {
                self.conflict(
                    &bus_at,
                    "machine",
                    "A q35 machine has no IDE",
                    "Say `bus: sata`",
                );
            }
            if device == "cdrom" && matches!(bus, "virtio" | "fdc") {
                self.conflict(
                    &bus_at,
                    &path("device"),
                    format!("A CD-ROM is not on {bus}"),
                    "Say `bus: sata` or `bus: scsi`",
                );
            } else if (device == "floppy") != (bus == "fdc") {
                self.conflict(
                    &bus_at,
                    &path("device"),
                    "A floppy disk is on `bus: fdc`, and nothing else is",
                    "Say `device: floppy` and `bus: fdc`, or neither",
                );
            }
            if word("io") == "native" && !matches!(cache, "none" | "directsync") {
                let message = format!("Linux AIO needs direct I/O, and the cache is {cache}");
                if self.yields(&io, &cache_at) {
                    self.set_disk(index, "io", None);
                } else if self.yields(&cache_at, &io) {
                    self.set_disk(index, "cache", Some("none"));
                } else {
                    self.conflict(
                        &io,
                        &cache_at,
                        message,
                        "Say `cache: none`, or `io: io_uring`",
                    );
                }
            }
            if disk.get("shareable") == Some(&Value::Bool(true)) && format != "raw" {
                self.conflict(
                    &path("shareable"),
                    &path("format"),
                    format!(
                        "An image of format {format} has tables that only one machine can keep"
                    ),
                    "Say `format: raw`",
                );
            }
            if matches!(format, "vhdx") {
                let d = self.warn(
                    "W-XML",
                    &path("format"),
                    "libvirt's schema has no format vhdx",
                );
                d.help = Some("qemu-img convert -O qcow2".into());
            }
            self.transient_rules(index, disk);
            if disk.get("transient") == Some(&Value::Bool(true))
                && disk.get("shareable") == Some(&Value::Bool(true))
            {
                self.conflict(
                    &path("transient"),
                    &path("shareable"),
                    "A disk whose changes are thrown away cannot be shared",
                    "Keep one of the two",
                );
            }
        }
    }

    /// libvirt throws away what is written to files, where something can be written.
    fn transient_rules(&mut self, index: usize, disk: &Value) {
        if disk.get("transient") != Some(&Value::Bool(true)) {
            return;
        }
        let path = |key: &str| format!("disks[{index}].{key}");
        let (transient, read_only) = (path("transient"), path("read_only"));
        if disk.get("read_only") == Some(&Value::Bool(true)) {
            if self.yields(&transient, &read_only) {
                self.set_disk(index, "transient", None);
            } else {
                self.conflict(
                    &transient,
                    &read_only,
                    "Of a disk that is not written nothing is thrown away",
                    "Keep one of the two",
                );
            }
        } else if disk.get("type").and_then(Value::as_str) == Some("block") {
            let kind = match self.parsed.is_written(&path("type")) {
                true => path("type"),
                false => path("path"),
            };
            // A recommendation too: without it the guest would write to the device.
            self.conflict(
                &kind,
                &transient,
                "What is written to a block device cannot be thrown away",
                "Say `transient: false`, or name an image",
            );
        }
    }

    fn set_disk(&mut self, index: usize, key: &str, word: Option<&str>) {
        let disk = self
            .root
            .get_mut("disks")
            .and_then(|disks| disks.get_mut(index)?.as_object_mut());
        match (disk, word) {
            (Some(disk), Some(word)) => drop(disk.insert(key.into(), word.into())),
            (Some(disk), None) => drop(disk.remove(key)),
            (None, _) => {}
        }
    }

    fn boot_rules(&mut self) {
        let mut orders: Vec<(u64, String)> = Vec::new();
        for list in ["disks", "nets"] {
            for (index, member) in self.members(list).to_vec().iter().enumerate() {
                let Some(order) = member.get("boot").and_then(Value::as_u64) else {
                    continue;
                };
                let here = format!("{list}[{index}].boot");
                if let Some((_, first)) = orders.iter().find(|(o, _)| *o == order) {
                    let first = first.clone();
                    self.conflict(
                        &here,
                        &first,
                        format!("Two devices are number {order} in the boot order"),
                        "Give each its own number",
                    );
                }
                orders.push((order, here));
            }
        }
        let each = ["disks", "nets"].into_iter().find_map(|list| {
            let at = self
                .members(list)
                .iter()
                .position(|m| m.get("boot").is_some())?;
            Some(format!("{list}[{at}].boot"))
        });
        if let (Some(each), true) = (&each, self.get("boot.devices").is_some()) {
            self.conflict(
                each,
                "boot.devices",
                "Either devices have an order, or kinds of devices have one",
                "Keep one of the two",
            );
        }
        let kernel = self.text("kernel.path").is_some();
        if self.get("boot.devices").is_none() && each.is_none() && !kernel {
            let kind = |device: &str| {
                self.members("disks")
                    .iter()
                    .any(|d| d.get("device").and_then(Value::as_str) == Some(device))
            };
            let devices: Vec<&str> = [("cdrom", "cdrom"), ("disk", "hd")]
                .into_iter()
                .filter(|(d, _)| kind(d))
                .map(|(_, b)| b)
                .collect();
            let devices = if devices.is_empty() {
                vec!["hd"]
            } else {
                devices
            };
            self.default("boot", "devices", devices);
        }
        if self.get("boot.menu_timeout").is_some() && !self.flag("boot.menu") {
            self.conflict(
                "boot.menu_timeout",
                "boot.menu",
                "Without a menu nothing waits",
                "Say `menu: true`",
            );
        }
    }

    fn event_rules(&mut self) {
        for event in ["on_poweroff", "on_reboot", "on_crash"] {
            let path = format!("events.{event}");
            let word = self.text(&path).unwrap_or_default().to_owned();
            let refused = word == "rename-restart"
                || event != "on_crash"
                    && matches!(
                        word.as_str(),
                        "preserve" | "coredump-destroy" | "coredump-restart"
                    );
            if refused {
                self.error(
                    "E-EVENT",
                    &path,
                    format!("libvirt's QEMU driver cannot do `{event}: {word}`"),
                )
                .help = Some("Say destroy or restart".into());
            }
        }
        for (timer, words) in [
            ("pit_policy", &["delay", "catchup", "discard"][..]),
            ("rtc_policy", &["delay", "catchup"][..]),
        ] {
            let path = format!("timers.{timer}");
            let word = self.text(&path).unwrap_or("delay").to_owned();
            if !words.contains(&word.as_str()) {
                self.error(
                    "E-VALUE",
                    &path,
                    format!("QEMU cannot do `{timer}: {word}`"),
                )
                .help = Some(format!("Give {}", words.join(" or ")));
            }
        }
    }

    /// Whether the machine is one that has an error of its own.
    pub(super) fn is_no_machine(&self) -> bool {
        let machine = self.text("machine").unwrap_or_default();
        NO_TYPES.contains(&machine) || NO_PCI.contains(&machine)
    }

    fn other_rules(&mut self) {
        if self.text("input.tablet") == Some("ps2") {
            self.error("E-VALUE", "input.tablet", "PS/2 has no tablet")
                .help = Some("Say virtio or usb".into());
        }
        let machine = self.text("machine").unwrap_or_default().to_owned();
        if NO_TYPES.contains(&machine.as_str()) {
            self.error(
                "E-VALUE",
                "machine",
                format!("`{machine}` is no machine type of QEMU"),
            )
            .help = Some("For example `machine: q35`".into());
        }
        if NO_PCI.contains(&machine.as_str()) {
            let d = self.error(
                "E-MACHINE",
                "machine",
                format!("libvirt cannot run a machine of type {machine}"),
            );
            d.why = Some("It has no PCI bus".into());
            d.help = Some("Say `machine: q35`".into());
        }
        if self.is_i440fx() || self.is_q35() {
            let arch = self.text("arch").unwrap_or("x86_64").to_owned();
            if !matches!(arch.as_str(), "x86_64" | "i686") {
                self.conflict(
                    "machine",
                    "arch",
                    format!("A machine of type {machine} is a PC, and the architecture is {arch}"),
                    "Say `machine: virt`, or leave it out",
                );
            }
        }
        // More need an IOMMU with extended interrupt mode, which the language has not.
        let most = 255;
        let count = self.get("cpu.count").and_then(Value::as_u64).unwrap_or(1);
        if count > most && (self.is_i440fx() || self.is_q35()) {
            let other = self.span("machine");
            let message =
                format!("A machine of type {machine} has at most {most} vCPUs in libvirt");
            let d = self.error("E-MACHINE", "cpu.count", message);
            d.also.push((other, "the machine".into()));
            d.help = Some(format!("Give 1 to {most}"));
        }
        for (model, since) in [("itco", "libvirt 9.1"), ("virtio", "libvirt 10.4")] {
            let key = if model == "itco" {
                "watchdog.model"
            } else {
                "sound.model"
            };
            if self.text(key) == Some(model) {
                self.warn("W-LIBVIRT", key, format!("`{key}: {model}` needs {since}"))
                    .help = Some("Older ones refuse the XML".into());
            }
        }
        if self.text("arch") == Some("loongarch64") {
            self.warn("W-LIBVIRT", "arch", "`loongarch64` needs libvirt 10.2")
                .help = Some("Older ones refuse the XML".into());
        }
        if self.text("firmware.format") == Some("qcow2") {
            self.warn(
                "W-LIBVIRT",
                "firmware.format",
                "`firmware.format: qcow2` needs libvirt 9.2",
            )
            .help = Some("Older ones read it as raw".into());
        }
        if self.text("security.type") == Some("sev-snp") {
            self.warn("W-LIBVIRT", "security.type", "`sev-snp` needs libvirt 10.5")
                .help = Some("Older ones refuse the XML".into());
        }
    }

    /// What XML 1.0 cannot carry, and names that libvirt refuses.
    fn texts_fit(&mut self) {
        let mut wrong = Vec::new();
        walk(
            &Value::Object(self.root.clone()),
            String::new(),
            &mut |path, text| {
                let lines = ["description", "metadata", "security", "xml"];
                let many = lines.iter().any(|key| path.starts_with(key));
                let bad = |c: char| match c {
                    '\n' | '\r' => !many,
                    '\t' => false,
                    c => c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}'),
                };
                let guest = ["command", "env", "workdir"]
                    .iter()
                    .any(|key| path.starts_with(key));
                if !guest && text.chars().any(bad) {
                    wrong.push(path.to_owned());
                }
            },
        );
        for path in wrong {
            let d = self.error(
                "E-CONTROL",
                &path,
                "A control character, which has no place here",
            );
            d.why = Some(
                "XML cannot carry it (XML 1.0, production 2), or libvirt takes one line only"
                    .into(),
            );
        }
    }
}

fn walk(value: &Value, path: String, found: &mut dyn FnMut(&str, &str)) {
    match value {
        Value::String(text) => found(&path, text),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(n, v)| walk(v, format!("{path}[{n}]"), found)),
        Value::Object(map) => {
            for (name, value) in map {
                let inner = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                walk(value, inner, found);
            }
        }
        _ => {}
    }
}
