//! Screens and graphics cards.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::Cx;

impl Cx<'_> {
    pub(super) fn screens(&mut self) {
        let members = |root: &mut Map<String, Value>, list: &str| match root.remove(list) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let mut graphics = members(&mut self.root, "graphics");
        for (index, screen) in graphics.iter().enumerate() {
            self.no_screen(index, screen);
        }
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
                if !served && screen.contains_key(key) {
                    let message = format!("A screen of type {kind} has no `{key}`");
                    self.over(
                        screen,
                        (&here, key),
                        &format!("{here}.type"),
                        message,
                        "Leave it out",
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
                let message = "A screen listens at a socket or at a port, not at both".to_owned();
                self.over(
                    screen,
                    (&here, other),
                    &format!("{here}.socket"),
                    message,
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
        let headless = |g: &Value| g.get("type").and_then(Value::as_str) == Some("egl-headless");
        if !graphics.is_empty() && graphics.iter().all(headless) {
            self.error(
                "E-REQUIRED",
                "graphics",
                "egl-headless draws for another screen, and there is none",
            )
            .help = Some("Add `{type: vnc}` or `{type: spice}`".into());
        }
        let mut ports: Vec<(u64, usize)> = Vec::new();
        for (index, screen) in graphics.iter().enumerate() {
            let Some(port) = screen.get("port").and_then(Value::as_u64) else {
                continue;
            };
            if let Some((_, first)) = ports.iter().find(|(p, _)| *p == port) {
                let (here, first) = (
                    format!("graphics[{index}].port"),
                    format!("graphics[{first}].port"),
                );
                self.conflict(
                    &here,
                    &first,
                    format!("Two screens listen at port {port}"),
                    "Give each its own port",
                );
            }
            ports.push((port, index));
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

    /// `type: none` beside keys of a screen.
    fn no_screen(&mut self, index: usize, screen: &Value) {
        if screen.get("type").and_then(Value::as_str) != Some("none") {
            return;
        }
        let keys = screen.as_object().into_iter().flat_map(Map::keys);
        let asked = keys
            .filter(|k| *k != "type")
            .map(|k| format!("graphics[{index}].{k}"))
            .find(|path| !self.is_advice(path));
        if let Some(asked) = asked {
            self.conflict(
                &asked,
                &format!("graphics[{index}].type"),
                "A screen that is not there has nothing to set",
                "Say `type: vnc`, or leave it out",
            );
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
            let message = format!("A graphics card of model {model} has no `{key}` to set");
            self.over(card, (&here, key), &path, message, "Leave it out");
        }
        if index > 0 && matches!(model.as_str(), "vga" | "cirrus" | "bochs") {
            self.error(
                "E-VALUE",
                &path,
                format!("A graphics card of model {model} can only be the first"),
            )
            .help = Some("Say virtio or qxl".into());
        }
        let encrypted = self.get("security").is_some();
        if encrypted && model == "virtio" && self.yields(&path, "security.type") {
            card.insert("model".into(), "vga".into());
            card.remove("heads");
        } else if encrypted && model == "virtio" {
            self.conflict(
                &path,
                "security.type",
                "virtio-gpu does not work with encrypted memory",
                "Say `video: vga`, or none",
            );
        }
    }
}
