//! Network cards, consoles and the smaller devices.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Around, Cx, ident};

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
                    self.conflict(
                        &format!("{here}.source"),
                        &format!("{here}.type"),
                        message,
                        "Leave `source` out",
                    );
                }
                _ => {}
            }
            if kind == "user" && net.contains_key("mtu") {
                self.conflict(
                    &format!("{here}.mtu"),
                    &format!("{here}.type"),
                    "User-mode networking has no MTU to set",
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
        if self.flag("rng.enabled") {
            self.default("rng", "source", "/dev/urandom");
            if self.get("rng.rate_period").is_some() && self.get("rng.rate_bytes").is_none() {
                self.error(
                    "E-REQUIRED",
                    "rng.rate_period",
                    "A period needs `rng.rate_bytes`",
                )
                .help = Some("For example `rate_bytes: 1024`".into());
            }
        } else {
            let rest = self
                .get("rng")
                .and_then(Value::as_object)
                .is_some_and(|m| m.keys().any(|k| k != "enabled"));
            if rest && !self.parsed.is_written("rng.enabled") {
                self.map("rng").insert("enabled".into(), true.into());
                self.default("rng", "source", "/dev/urandom");
            } else {
                self.root.remove("rng");
            }
        }
        if !self.flag("agent") {
            self.root.remove("agent");
        }
        // Only what is declared exists; libvirt would add one otherwise.
        self.default("balloon", "model", "none");
        self.screens();
        self.map("input").retain(|_, v| v.as_str() != Some("none"));
        let usb = self.needs_usb();
        match (self.text("usb.model"), usb) {
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
        if self.text("tpm.model") == Some("tpm-crb") && self.text("tpm.version") == Some("1.2") {
            self.conflict(
                "tpm.version",
                "tpm.model",
                "A TPM 1.2 has no command response buffer",
                "Say `model: tpm-tis`",
            );
        }
    }

    fn screens(&mut self) {
        let members = |root: &mut Map<String, Value>, list: &str| match root.remove(list) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let mut graphics = members(&mut self.root, "graphics");
        graphics.retain(|g| g.get("type").and_then(Value::as_str) != Some("none"));
        for (index, screen) in graphics.iter_mut().enumerate() {
            let Value::Object(screen) = screen else {
                continue;
            };
            let here = format!("graphics[{index}]");
            let Some(kind) = screen
                .get("type")
                .and_then(Value::as_str)
                .map(str::to_owned)
            else {
                self.error("E-REQUIRED", &here, "This screen has no `type`")
                    .help = Some("For example `type: vnc`".into());
                continue;
            };
            let served = matches!(kind.as_str(), "vnc" | "spice");
            for key in ["listen", "port", "keymap", "socket"] {
                if !served && screen.remove(key).is_some() {
                    let message = format!("A screen of type {kind} has no `{key}`");
                    self.conflict(
                        &format!("{here}.{key}"),
                        &format!("{here}.type"),
                        message,
                        format!("Leave `{key}` out"),
                    );
                }
            }
            if screen.contains_key("socket")
                && (screen.contains_key("port") || screen.contains_key("listen"))
            {
                let other = if screen.contains_key("port") {
                    "port"
                } else {
                    "listen"
                };
                self.conflict(
                    &format!("{here}.socket"),
                    &format!("{here}.{other}"),
                    "A screen listens at a socket or at a port, not at both",
                    "Keep one of them",
                );
            } else if served && !screen.contains_key("socket") {
                screen.entry("listen").or_insert("127.0.0.1".into());
            }
            let open = screen
                .get("listen")
                .and_then(Value::as_str)
                .is_some_and(|l| !matches!(l, "127.0.0.1" | "::1" | "localhost"));
            if open && served {
                let d = self.warn("W-OPEN-SCREEN", &format!("{here}.listen"), "Everyone who reaches this address can use the machine: the screen has no password");
                d.help = Some("Say `listen: 127.0.0.1` and use a tunnel: ssh -L".into());
            }
        }
        let mut video = members(&mut self.root, "video");
        for (index, card) in video.iter_mut().enumerate() {
            let Value::Object(card) = card else { continue };
            self.video_card(index, card);
        }
        if video.len() > 1 {
            video.retain(|v| v.get("model").and_then(Value::as_str) != Some("none"));
        }
        for (list, members) in [("graphics", graphics), ("video", video)] {
            if !members.is_empty() {
                self.root.insert(list.into(), Value::Array(members));
            }
        }
    }

    fn video_card(&mut self, index: usize, card: &mut Map<String, Value>) {
        let here = format!("video[{index}]");
        let Some(mut model) = card.get("model").and_then(Value::as_str).map(str::to_owned) else {
            self.error("E-REQUIRED", &here, "This graphics card has no `model`")
                .help = Some("For example `model: virtio`".into());
            return;
        };
        let path = format!("{here}.model");
        if model == "qxl" && !self.emulator_has("hw-display-qxl.so") {
            if self.is_advice(&path) {
                let d = self.warn(
                    "W-EMULATOR",
                    &path,
                    "This host's QEMU has no qxl: the graphics card is vga",
                );
                d.help = Some(
                    "On Debian qxl is in qemu-system-modules-spice; or say `video: virtio`".into(),
                );
                model = "vga".into();
                card.insert("model".into(), "vga".into());
                for key in ["ram", "vram", "vgamem", "heads"] {
                    card.remove(key);
                }
            } else {
                let d = self.warn("W-EMULATOR", &path, "This host's QEMU has no qxl");
                d.help = Some(
                    "On Debian it is in qemu-system-modules-spice; or say `video: virtio`".into(),
                );
            }
        }
        let fits = |key: &str| match key {
            "heads" => {
                matches!(model.as_str(), "qxl" | "virtio")
                    || card.get("heads").and_then(Value::as_u64) == Some(1)
            }
            "ram" | "vgamem" => model == "qxl",
            "vram" => model != "none" && model != "virtio",
            "accel3d" => model == "virtio",
            _ => true,
        };
        let wrong: Vec<&str> = ["heads", "ram", "vram", "vgamem", "accel3d"]
            .into_iter()
            .filter(|k| card.contains_key(*k) && !fits(k))
            .collect();
        for key in wrong {
            card.remove(key);
            let message = format!("A graphics card of model {model} has no `{key}` to set");
            self.conflict(
                &format!("{here}.{key}"),
                &path,
                message,
                format!("Leave `{key}` out"),
            );
        }
        let encrypted = self.get("security").is_some();
        if encrypted && model == "virtio" {
            self.conflict(
                &path,
                "security",
                "virtio-gpu does not work with encrypted memory",
                "Say `video: vga`, or none",
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
                    self.conflict(
                        &format!("{here}.read_only"),
                        &format!("{here}.driver"),
                        "virtiofs has no read-only mode in libvirt",
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
                        self.conflict(
                            &format!("{here}.{key}"),
                            &format!("{here}.driver"),
                            format!("virtiofs has no `{key}`"),
                            "Leave it out, or say `driver: path`",
                        );
                    }
                }
            } else {
                let mapped = share.entry("accessmode").or_insert("mapped".into()) == "mapped";
                for key in ["fmode", "dmode"] {
                    if share.contains_key(key) && !mapped {
                        self.conflict(
                            &format!("{here}.{key}"),
                            &format!("{here}.accessmode"),
                            format!("`{key}` goes with `accessmode: mapped` only"),
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
                .is_some_and(|m| m.starts_with("virtio"))
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
    }
}
