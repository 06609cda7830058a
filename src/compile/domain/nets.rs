//! Network cards, consoles and the smaller devices.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Around, Cx, ident};
use crate::diag::quoted;
use crate::net::can_be_interface;

impl Cx<'_> {
    pub(super) fn nets(&mut self, around: &Around<'_>) {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut nets = match self.root.remove("nets") {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        for (index, net) in nets.iter_mut().enumerate() {
            let Value::Object(net) = net else { continue };
            let here = format!("nets[{index}]");
            let kind = net
                .entry("type")
                .or_insert("network".into())
                .as_str()
                .unwrap_or("network")
                .to_owned();
            net.entry("model").or_insert("virtio".into());
            match (kind.as_str(), net.contains_key("source")) {
                ("network", false) => drop(net.insert("source".into(), "default".into())),
                ("bridge" | "direct", false) => {
                    let what = if kind == "bridge" {
                        "bridge"
                    } else {
                        "interface of the host"
                    };
                    self.error(
                        "E-REQUIRED",
                        &here,
                        format!("This card needs the {what} it is connected to"),
                    )
                    .help = Some(format!(
                        "For example `source: {}`",
                        if kind == "bridge" { "br0" } else { "eth0" }
                    ));
                }
                ("user" | "ethernet", true) => {
                    let message = format!("A card of type {kind} has no source");
                    let other = format!("{here}.type");
                    self.over(
                        net,
                        (&here, "source"),
                        &other,
                        message,
                        "Leave `source` out",
                    );
                }
                _ => {}
            }
            for key in ["source", "target"] {
                let is_interface = key == "target" || matches!(kind.as_str(), "bridge" | "direct");
                let name = net.get(key).and_then(Value::as_str);
                let Some(name) = name.filter(|n| is_interface && !can_be_interface(n)) else {
                    continue;
                };
                let message = format!("No interface of a host can be called {}", quoted(name));
                let d = self.error("E-NET-NAME", &format!("{here}.{key}"), message);
                d.why = Some(format!(
                    "It has {} bytes; the kernel takes 1 to 15, none of them `/` or `:`",
                    name.len()
                ));
                d.help = Some("`ip link show` lists the interfaces of this host".into());
            }
            if kind == "user" && net.contains_key("mtu") {
                let message = "User-mode networking has no MTU to set".to_owned();
                self.over(
                    net,
                    (&here, "mtu"),
                    &format!("{here}.type"),
                    message,
                    "Leave `mtu` out",
                );
            }
            let mac = match net
                .get("mac")
                .and_then(Value::as_str)
                .map(str::to_ascii_lowercase)
            {
                None => ident::mac(around.name, index),
                Some(mac) if !ident::is_mac(&mac) => {
                    let example = ident::mac(around.name, index);
                    let d = self.error(
                        "E-NET-MAC",
                        &format!("{here}.mac"),
                        "This is no hardware address of a card",
                    );
                    d.why = Some("Six bytes in hexadecimal, the lowest bit of the first one 0 (unicast), not all zero".into());
                    d.help = Some(format!(
                        "For example {example}; without one it is derived from the machine's name"
                    ));
                    continue;
                }
                Some(mac) => mac,
            };
            if let Some(first) = seen.insert(mac.clone(), index) {
                self.conflict(
                    &format!("{here}.mac"),
                    &format!("nets[{first}].mac"),
                    format!("Two cards have the address {mac}"),
                    "Give each its own, or leave them out",
                );
            }
            net.insert("mac".into(), mac.into());
        }
        if !nets.is_empty() {
            self.root.insert("nets".into(), Value::Array(nets));
        }
    }

    /// What a run adds when nobody lists a console.
    pub(super) fn consoles(&mut self, around: &Around<'_>) {
        let implicit = self
            .get("console.implicit")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        self.map("console").remove("implicit");
        let kernel = self.text("kernel.path").is_some();
        let listed = !self.members("serials").is_empty()
            || self
                .members("consoles")
                .iter()
                .any(|c| c.get("tty").is_some());
        if implicit && !listed {
            let stdio = if around.command { "null" } else { "stdio" };
            if !kernel && !self.parsed.presets.is_empty()
                || self.text("kernel.console") == Some("hvc0")
            {
                let mut ports = self.members("consoles").to_vec();
                ports.push(json!({"tty": stdio}));
                self.root.insert("consoles".into(), Value::Array(ports));
            } else {
                self.root.insert("serials".into(), json!([{"to": stdio}]));
            }
        }
        for list in ["serials", "consoles"] {
            let Some(Value::Array(members)) = self.root.get_mut(list) else {
                continue;
            };
            for member in members.iter_mut().filter_map(Value::as_object_mut) {
                if member.get("log") == Some(&Value::Bool(true)) {
                    member.remove("log");
                }
                for end in ["in", "out"] {
                    if member.get(end).and_then(Value::as_str) == Some("null") {
                        member.remove(end);
                    }
                }
            }
        }
    }

    /// Devices of which a machine has one or none.
    pub(super) fn devices(&mut self) {
        for (device, usual) in [
            ("watchdog", "i6300esb"),
            ("tpm", "tpm-crb"),
            ("sound", "ich9"),
        ] {
            if self.get(device).is_some() {
                self.default(device, "model", usual);
            }
            self.not_nothing(device, "model", "none".into(), usual.into());
            if self.text(&format!("{device}.model")) == Some("none") {
                self.root.remove(device);
            }
        }
        if self.get("watchdog").is_some() {
            self.default("watchdog", "action", "reset");
        }
        if self.get("tpm").is_some() {
            self.tpm();
        }
        self.rng();
        if !self.flag("agent") {
            self.root.remove("agent");
        }
        // Only what is declared exists; libvirt would add one otherwise.
        let current = self.get("memory.current").and_then(Value::as_u64);
        let holds_back =
            current < self.get("memory.size").and_then(Value::as_u64) && current.is_some();
        if holds_back
            && (self.get("balloon.model").is_none()
                || self.yields("balloon.model", "memory.current"))
        {
            self.map("balloon").insert("model".into(), "virtio".into());
        }
        if self.get("balloon").is_some() {
            self.default("balloon", "model", "virtio");
        }
        self.not_nothing("balloon", "model", "none".into(), "virtio".into());
        self.default("balloon", "model", "none");
        if holds_back && self.text("balloon.model") == Some("none") {
            self.conflict(
                "memory.current",
                "balloon",
                "Only a balloon holds back memory",
                "Say `balloon: virtio`, or leave `memory.current` out",
            );
        }
        self.screens();
        self.map("input").retain(|_, v| v.as_str() != Some("none"));
        let usb = self.needs_usb();
        match (self.text("usb.model"), usb) {
            (Some("none"), Some(path)) if self.yields("usb.model", &path) => {
                self.map("usb").insert("model".into(), "qemu-xhci".into());
            }
            (Some("none"), Some(path)) => {
                self.conflict(
                    &path,
                    "usb",
                    format!("`{path}` needs USB, and there is none"),
                    "Say `usb: qemu-xhci`",
                );
            }
            (None, Some(_)) => self.default("usb", "model", "qemu-xhci"),
            (None, None) => self.default("usb", "model", "none"),
            _ => {}
        }
        self.vsock();
        self.shares();
    }

    fn rng(&mut self) {
        self.not_nothing("rng", "enabled", false.into(), true.into());
        let rest = self
            .get("rng")
            .and_then(Value::as_object)
            .is_some_and(|m| m.keys().any(|k| k != "enabled"));
        let off = self.get("rng.enabled") == Some(&Value::Bool(false));
        if off || !rest && !self.flag("rng.enabled") {
            self.root.remove("rng");
            return;
        }
        self.map("rng").insert("enabled".into(), true.into());
        self.default("rng", "source", "/dev/urandom");
        if self.get("rng.rate_period").is_some() && self.get("rng.rate_bytes").is_none() {
            self.error(
                "E-REQUIRED",
                "rng.rate_period",
                "A period needs `rng.rate_bytes`",
            )
            .help = Some("For example `rate_bytes: 1024`".into());
        }
    }

    fn tpm(&mut self) {
        self.default("tpm", "type", "emulator");
        let passthrough = self.text("tpm.type") == Some("passthrough");
        match (passthrough, self.text("tpm.path").is_some()) {
            (true, false) => self.default("tpm", "path", "/dev/tpm0"),
            (false, true) => self.conflict(
                "tpm.path",
                "tpm.type",
                "An emulated TPM has no device of the host",
                "Say `type: passthrough`, or leave `path` out",
            ),
            _ => {}
        }
        if passthrough {
            if self.parsed.is_written("tpm.version") && !self.is_advice("tpm.version") {
                self.conflict(
                    "tpm.version",
                    "tpm.type",
                    "The version of a TPM that is passed through is its own",
                    "Leave `version` out",
                );
            }
            self.map("tpm").remove("version");
        } else {
            self.default("tpm", "version", "2.0");
        }
        let old =
            self.text("tpm.model") == Some("tpm-crb") && self.text("tpm.version") == Some("1.2");
        if old && self.yields("tpm.model", "tpm.version") {
            self.map("tpm").insert("model".into(), "tpm-tis".into());
        } else if old {
            self.conflict(
                "tpm.version",
                "tpm.model",
                "A TPM 1.2 has no command response buffer",
                "Say `model: tpm-tis`",
            );
        }
    }

    /// The first key that needs a USB controller.
    fn needs_usb(&self) -> Option<String> {
        let inputs = ["keyboard", "mouse", "tablet"].map(|i| format!("input.{i}"));
        let input = inputs
            .into_iter()
            .find(|path| self.text(path) == Some("usb"));
        let disk = || {
            let usb = |d: &Value| d.get("bus").and_then(Value::as_str) == Some("usb");
            self.members("disks")
                .iter()
                .position(usb)
                .map(|n| format!("disks[{n}].bus"))
        };
        let sound = || (self.text("sound.model") == Some("usb")).then(|| "sound.model".to_owned());
        input.or_else(disk).or_else(sound)
    }

    fn vsock(&mut self) {
        let auto = self.flag("vsock.auto");
        let cid = self.get("vsock.cid").is_some();
        match (auto, cid) {
            (true, true) => self.conflict(
                "vsock.cid",
                "vsock.auto",
                "A chosen address is not chosen automatically",
                "Keep one of the two",
            ),
            (false, false) => drop(self.root.remove("vsock")),
            _ => self.map("vsock").retain(|_, v| *v != Value::Bool(false)),
        }
    }

    fn shares(&mut self) {
        let mut tags: HashMap<String, usize> = HashMap::new();
        let mut shares = match self.root.remove("shares") {
            Some(Value::Array(list)) => list,
            _ => return,
        };
        for (index, share) in shares.iter_mut().enumerate() {
            let Value::Object(share) = share else {
                continue;
            };
            let here = format!("shares[{index}]");
            for key in ["source", "target"] {
                if !share.contains_key(key) {
                    self.error("E-REQUIRED", &here, format!("This share has no `{key}`"))
                        .help = Some("For example `{source: /srv/data, target: data}`".into());
                }
            }
            if let Some(source) = share.get("source").and_then(Value::as_str) {
                self.shared_directory(&format!("{here}.source"), source);
            }
            let driver = share
                .entry("driver")
                .or_insert("path".into())
                .as_str()
                .unwrap_or("path")
                .to_owned();
            if let Some(tag) = share.get("target").and_then(Value::as_str)
                && let Some(first) = tags.insert(tag.to_owned(), index)
            {
                self.conflict(
                    &format!("{here}.target"),
                    &format!("shares[{first}].target"),
                    "Two shares have the same tag",
                    "Give each its own `target`",
                );
            }
            if driver == "virtiofs" {
                if share.get("read_only") == Some(&Value::Bool(true)) {
                    let message = "virtiofs has no read-only mode in libvirt".to_owned();
                    self.over(
                        share,
                        (&here, "read_only"),
                        &format!("{here}.driver"),
                        message,
                        "Say `driver: path`",
                    );
                }
                if self.text("memory.access") != Some("shared") {
                    self.conflict(
                        &format!("{here}.driver"),
                        "memory.access",
                        "virtiofs maps the guest's memory, and it is private",
                        "Say `memory: {source: memfd, access: shared}`",
                    );
                }
                for key in ["accessmode", "fmode", "dmode"] {
                    if share.get(key).is_some_and(|m| m != "passthrough") {
                        let message = format!("virtiofs has no `{key}`");
                        self.over(
                            share,
                            (&here, key),
                            &format!("{here}.driver"),
                            message,
                            "Leave it out, or say `driver: path`",
                        );
                    }
                }
            } else {
                let mapped = share.entry("accessmode").or_insert("mapped".into()) == "mapped";
                for key in ["fmode", "dmode"] {
                    if share.contains_key(key) && !mapped {
                        let message = format!("`{key}` goes with `accessmode: mapped` only");
                        self.over(
                            share,
                            (&here, key),
                            &format!("{here}.accessmode"),
                            message,
                            "Leave it out",
                        );
                    }
                }
            }
            if share.get("read_only") == Some(&Value::Bool(false)) {
                share.remove("read_only");
            }
        }
        self.root.insert("shares".into(), Value::Array(shares));
    }

    /// QEMU does not start without the directory. What settings say is looked at where they are read.
    fn shared_directory(&mut self, path: &str, source: &str) {
        use crate::facts::{FileError, FileKind};
        let what = match self.facts.file(std::path::Path::new(source)) {
            Err(FileError::Missing) => "does not exist",
            Ok(file) if file.kind != FileKind::Directory => "is no directory",
            _ => return,
        };
        if !self.is_advice(path) {
            let message = format!("{source}: this directory {what}");
            let d = self.warn("W-PATH", path, message);
            d.why = Some("QEMU does not start without it".into());
            d.help = Some(format!("Correct the name, or make it: mkdir -p {source}"));
        }
    }

    /// `iommu` of every virtio device.
    pub(super) fn iommu(&mut self) {
        let all = match self.text("iommu") {
            Some("true") => true,
            Some("false") => false,
            _ => self.get("security").is_some(),
        };
        self.root.remove("iommu");
        let virtio = |map: &Map<String, Value>, key: &str| {
            map.get(key)
                .and_then(Value::as_str)
                // A SCSI disk sits on a virtio controller.
                .is_some_and(|m| m.starts_with("virtio") || (key == "bus" && m == "scsi"))
        };
        for (list, key) in [("disks", "bus"), ("nets", "model"), ("video", "model")] {
            let mut wrong = Vec::new();
            if let Some(Value::Array(members)) = self.root.get_mut(list) {
                for (index, member) in members
                    .iter_mut()
                    .filter_map(Value::as_object_mut)
                    .enumerate()
                {
                    let fits = virtio(member, key);
                    if all && fits {
                        member.entry("iommu").or_insert(true.into());
                    }
                    match member.get("iommu") {
                        Some(Value::Bool(true)) if !fits => wrong.push(format!("{list}[{index}]")),
                        Some(Value::Bool(false)) => drop(member.remove("iommu")),
                        _ => {}
                    }
                }
            }
            for here in wrong {
                self.conflict(
                    &format!("{here}.iommu"),
                    &format!("{here}.{key}"),
                    "Only virtio devices can have `iommu`",
                    "Leave it out",
                );
            }
        }
        for (device, there) in [
            ("rng", self.flag("rng.enabled")),
            ("balloon", self.text("balloon.model") != Some("none")),
        ] {
            if all && there {
                self.default(device, "iommu", true);
            }
            if self.get(&format!("{device}.iommu")) == Some(&Value::Bool(false)) {
                self.map(device).remove("iommu");
            }
        }
        if all {
            // The consoles' controller, which is no device of the language.
            let ports = !self.members("consoles").is_empty() || self.flag("agent");
            if ports {
                self.map("console").insert("iommu".into(), true.into());
            }
        }
        self.modern_on_slots();
        self.no_legacy_virtio();
    }

    /// A virtio device with a legacy interface cannot say that its DMA is translated (QEMU: "VIRTIO_F_IOMMU_PLATFORM
    /// was supported by neither legacy nor transitional device"). On the PCI slots of i440fx all have one that do not
    /// say otherwise, so they say otherwise; disks, consoles and rng do so in the XML.
    fn modern_on_slots(&mut self) {
        if !self.is_i440fx() {
            return;
        }
        let mut changed = self
            .members("disks")
            .iter()
            .any(|d| d.get("iommu") == Some(&Value::Bool(true)));
        let mut modern = |device: &mut Value| {
            let Value::Object(device) = device else {
                return;
            };
            let plain = device.get("model").and_then(Value::as_str) == Some("virtio");
            if plain && device.get("iommu") == Some(&Value::Bool(true)) {
                device.insert("model".into(), "virtio-non-transitional".into());
            }
            changed |= device.get("iommu") == Some(&Value::Bool(true));
        };
        if let Some(Value::Array(nets)) = self.root.get_mut("nets") {
            nets.iter_mut().for_each(&mut modern);
        }
        if let Some(balloon) = self.root.get_mut("balloon") {
            modern(balloon);
        }
        if changed && self.get("security").is_some() {
            let d = self.warn("W-SEV-MACHINE", "machine", "i440fx is a poor machine for encrypted memory: its virtio devices become non-transitional");
            d.why = Some("libvirt kbase launch_security_sev recommends q35; guests without virtio 1.0 drivers find no device".into());
            d.help = Some("Say `machine: q35`".into());
        }
    }

    fn no_legacy_virtio(&mut self) {
        let legacy = |device: &Value, key: &str| {
            let model = device.get(key).and_then(Value::as_str).unwrap_or("virtio");
            device.get("iommu") == Some(&Value::Bool(true)) && model == "virtio-transitional"
        };
        let listed = [("disks", "bus"), ("nets", "model"), ("video", "model")]
            .into_iter()
            .find_map(|(list, key)| {
                let at = self.members(list).iter().position(|d| legacy(d, key))?;
                Some((format!("{list}[{at}]"), key))
            });
        let single = ["rng", "balloon", "console"]
            .into_iter()
            .find_map(|device| {
                let legacy = legacy(self.get(device)?, "model");
                legacy.then(|| (device.to_owned(), "model"))
            });
        let Some((device, key)) = listed.or(single) else {
            return;
        };
        let own = format!("{device}.iommu");
        let asked = match () {
            () if self.parsed.is_written(&own) => own,
            () if self.parsed.is_written("iommu") => "iommu".to_owned(),
            () => "security.type".to_owned(),
        };
        self.conflict(
            &format!("{device}.{key}"),
            &asked,
            format!("`{device}` would have a legacy interface, which cannot say that its DMA is translated"),
            "Say `model: virtio-non-transitional`",
        );
    }
}
