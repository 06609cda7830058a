//! Firmware: named, chosen from descriptors, or left to libvirt; and what this host's QEMU has.

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::{Value, json};

use crate::descriptors::{Catalogue, Device, Feature, Interface, Wanted, select};
use crate::sev::policy;

use super::{Around, Cx};

/// Where modular builds of QEMU keep their devices.
const QEMU_MODULES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/lib/aarch64-linux-gnu/qemu",
];

impl Cx<'_> {
    pub(super) fn firmware(&mut self, around: &Around<'_>) {
        // That nobody can run it has its own message.
        if self.is_no_machine() {
            return;
        }
        let kernel = self.text("kernel.path").is_some();
        let encrypted = self.get("security").is_some();
        let directory = self.text("firmware.descriptors").map(str::to_owned);
        self.map("firmware").remove("descriptors");
        let named = self.text("firmware.path").is_some() && !self.is_advice("firmware.path");
        if kernel && !encrypted && !named && self.is_advice("firmware.type") {
            self.root.remove("firmware");
            return;
        }
        let asked = if self.text("firmware.path").is_some() {
            Some("auto")
        } else {
            None
        };
        let kind = self
            .text("firmware.type")
            .or(asked)
            .unwrap_or(if kernel && !encrypted { "none" } else { "auto" })
            .to_owned();
        let path = self.text("firmware.path").is_some();
        // UEFI describes the machine by ACPI and nothing else.
        if self.text("firmware.format") == Some("raw") {
            self.map("firmware").remove("format");
        }
        let without_acpi = self.get("features.acpi") == Some(&Value::Bool(false));
        let kind = match kind.as_str() {
            "auto" if without_acpi && !path && !encrypted => "bios".to_owned(),
            "auto" | "efi" if without_acpi => {
                let asked = if self.parsed.is_written("firmware") {
                    "firmware"
                } else {
                    "security"
                };
                self.conflict(
                    "features.acpi",
                    asked,
                    "UEFI needs ACPI",
                    "Leave `features.acpi` out",
                );
                kind
            }
            _ => kind,
        };
        match kind.as_str() {
            "none" | "bios" if path => {
                self.conflict(
                    "firmware.path",
                    "firmware.type",
                    format!("`firmware.path` names firmware, and the type is {kind}"),
                    "Say `type: efi`, or leave one out",
                );
                return;
            }
            "none" if !kernel && around.cmdline.is_none() => {
                self.error(
                    "E-FIRMWARE",
                    "firmware.type",
                    "Without firmware a machine needs a kernel",
                )
                .help = Some("Say `firmware: auto`, or `kernel: FILE`".into());
                return;
            }
            "none" if encrypted => {
                self.conflict(
                    "firmware.type",
                    "security.type",
                    "An encrypted machine starts with UEFI: nothing else can encrypt its memory",
                    "Say `firmware: auto`",
                );
                return;
            }
            "none" => {
                self.root.remove("firmware");
                return;
            }
            "bios" if encrypted => {
                self.conflict(
                    "firmware.type",
                    "security.type",
                    "SeaBIOS cannot start an encrypted machine",
                    "Say `firmware: efi`",
                );
                return;
            }
            "bios" => {
                for key in [
                    "secure",
                    "stateless",
                    "nvram",
                    "nvram_template",
                    "features",
                    "device",
                    "format",
                ] {
                    let path = format!("firmware.{key}");
                    if self.get(&path).is_some() && !self.is_advice(&path) {
                        self.conflict(
                            &path,
                            "firmware.type",
                            format!("SeaBIOS has no `{key}`"),
                            "Say `firmware: {type: efi, …}`, or leave it out",
                        );
                    }
                }
                self.root.insert("firmware".into(), json!({"type": "bios"}));
                return;
            }
            _ if self.firmware_conflicts(encrypted) => return,
            _ if path => return self.named_firmware(encrypted, directory.as_deref()),
            _ => {}
        }
        self.selected_firmware(encrypted, directory.as_deref());
    }

    fn named_firmware(&mut self, encrypted: bool, directory: Option<&str>) {
        if encrypted {
            self.check_named(directory);
        }
        self.map("firmware").remove("type");
        self.map("firmware").remove("features");
        let snp = self.text("security.type") == Some("sev-snp");
        self.default("firmware", "device", if snp { "rom" } else { "flash" });
        self.only_measured_variables(encrypted);
        self.smm();
    }

    /// libvirt gives firmware in flash a variable store unless it is told that there is none.
    fn only_measured_variables(&mut self, encrypted: bool) {
        let stateless = self.flag("firmware.stateless");
        let store = ["firmware.nvram", "firmware.nvram_template"]
            .into_iter()
            .find(|key| self.text(key).is_some());
        if let (true, Some(store)) = (stateless, store) {
            self.conflict(
                store,
                "firmware.stateless",
                "Firmware that keeps no variables has no store for them",
                "Keep one of the two",
            );
            return;
        }
        let flash = self.text("firmware.device") != Some("rom");
        if !encrypted || stateless || store.is_none() && !flash {
            return;
        }
        let at = store.unwrap_or("firmware.path");
        let message = "A variable store is not measured, and this machine has one";
        let d = self.warn("W-SEV-NVRAM", at, message);
        d.why = Some(match store {
            Some(_) => "What the firmware reads from it can change what starts".into(),
            None => "libvirt makes one for firmware in flash that is not stateless, and what the firmware reads from it can change what starts".into(),
        });
        d.help = Some("Say `firmware: {stateless: true}`".into());
    }

    /// Firmware that protects its variables needs System Management Mode.
    /// What no firmware can be at the same time. Whether there was something.
    fn firmware_conflicts(&mut self, encrypted: bool) -> bool {
        let before = self.problems.len();
        let secure = self.flag("firmware.secure");
        if encrypted && secure {
            self.conflict(
                "firmware.secure",
                "security.type",
                "An encrypted machine has no System Management Mode to protect variables with",
                "Leave `firmware.secure` out",
            );
        }
        if secure && !self.is_q35() {
            self.conflict(
                "firmware.secure",
                "machine",
                "Secure boot needs a q35 machine",
                "Say `machine: q35`",
            );
        }
        if self.flag("firmware.stateless") && self.text("firmware.nvram").is_some() {
            self.conflict(
                "firmware.nvram",
                "firmware.stateless",
                "Stateless firmware has no variable store",
                "Keep one of the two",
            );
        }
        let snp = self.text("security.type") == Some("sev-snp");
        if snp && self.text("firmware.device") == Some("flash") {
            self.conflict(
                "firmware.device",
                "security.type",
                "SEV-SNP has no flash: its firmware is memory",
                "Say `device: rom`",
            );
        }
        if self.text("firmware.path").is_some() && self.get("firmware.features").is_some() {
            self.conflict(
                "firmware.features",
                "firmware.path",
                "Features select firmware, and this one was named",
                "Keep one of the two",
            );
        }
        self.problems.len() > before
    }

    /// Firmware that was named for an encrypted machine can be wrong in ways that nobody notices.
    fn check_named(&mut self, directory: Option<&str>) {
        let wanted = self.encryption_feature();
        let path = self.text("firmware.path").unwrap_or_default().to_owned();
        let catalogue = Catalogue::read(self.facts, directory.map(Path::new));
        let named = catalogue
            .descriptors
            .iter()
            .filter(|d| d.executable.path == Path::new(&path));
        let told: Vec<bool> = named.map(|d| d.has(&wanted)).collect();
        if !told.is_empty() && !told.contains(&true) {
            let message = format!("By its descriptor this firmware lacks {}", wanted.as_str());
            let d = self.error("E-FIRMWARE", "firmware.path", message);
            d.help = Some(
                "`vsc-run firmware list` shows what each can do; `firmware: auto` selects".into(),
            );
        }
    }

    /// What firmware must be able to do for the protection that is wanted.
    fn encryption_feature(&self) -> Feature {
        let policy = self.get("security.policy").and_then(Value::as_u64);
        match (
            self.text("security.type"),
            policy.is_some_and(|p| p & policy::ES != 0),
        ) {
            (Some("sev-snp"), _) => Feature::AmdSevSnp,
            (_, true) => Feature::AmdSevEs,
            _ => Feature::AmdSev,
        }
    }

    fn smm(&mut self) {
        if !self.flag("firmware.secure") {
            return;
        }
        if self.get("features.smm") == Some(&Value::Bool(false)) && !self.is_advice("features.smm")
        {
            self.conflict(
                "features.smm",
                "firmware.secure",
                "Secure boot needs System Management Mode",
                "Leave `features.smm` out",
            );
        }
        self.map("features").insert("smm".into(), true.into());
    }

    fn selected_firmware(&mut self, encrypted: bool, directory: Option<&str>) {
        let mut features: Vec<Feature> = self
            .texts("firmware.features")
            .iter()
            .map(|t| t.as_str().into())
            .collect();
        let mut forbid = Vec::new();
        if encrypted {
            features.push(self.encryption_feature());
            forbid.push(Feature::RequiresSmm);
        } else if self.get("features.smm") == Some(&Value::Bool(false))
            || self.get("firmware.secure") == Some(&Value::Bool(false))
        {
            forbid.push(Feature::RequiresSmm);
        }
        if self.flag("firmware.secure") && !features.contains(&Feature::SecureBoot) {
            features.push(Feature::SecureBoot);
        }
        let wanted_secure = features.contains(&Feature::SecureBoot);
        let wanted = Wanted {
            machine: self.text("machine").map(str::to_owned),
            interface: Interface::Uefi,
            features,
            forbid,
            stateless: self.get("firmware.stateless").and_then(Value::as_bool),
            smm: !encrypted,
            device: match self.text("firmware.device") {
                Some("rom") => Some(Device::Memory),
                Some(_) => Some(Device::Flash),
                None => None,
            },
            arch: self.text("arch").unwrap_or("x86_64").to_owned(),
        };
        let mut catalogue = Catalogue::read(self.facts, directory.map(Path::new));
        self.problems.extend(catalogue.warnings());
        let none_here = catalogue.descriptors.is_empty();
        if let Some(format) = self.text("firmware.format") {
            catalogue
                .descriptors
                .retain(|d| d.executable.format.as_str() == format);
        }
        match select(&catalogue.descriptors, &wanted) {
            Ok(found) => {
                let firmware = self.map("firmware");
                firmware.remove("type");
                firmware.remove("features");
                firmware.insert("path".into(), found.executable.to_string_lossy().into());
                let rom = found.device == Device::Memory;
                firmware
                    .entry("device")
                    .or_insert(if rom { "rom" } else { "flash" }.into());
                let stateless = firmware.get("stateless") == Some(&Value::Bool(true));
                let own = ["nvram", "nvram_template", "stateless"];
                if encrypted && own.iter().all(|key| !firmware.contains_key(*key)) {
                    firmware.insert("stateless".into(), true.into());
                }
                if let Some(template) = &found.nvram_template
                    && !encrypted
                    && !stateless
                {
                    firmware
                        .entry("nvram_template")
                        .or_insert(template.path.to_string_lossy().into());
                }
                if found.requires_smm {
                    firmware.entry("secure").or_insert(true.into());
                }
                self.only_measured_variables(encrypted);
                self.smm();
            }
            // An export from a host without firmware leaves the choice to libvirt, where libvirt can make it.
            Err(_) if !encrypted && directory.is_none() && none_here => {
                let known = |f: &&str| matches!(*f, "secure-boot" | "enrolled-keys");
                let lost: Vec<String> = self
                    .texts("firmware.features")
                    .into_iter()
                    .filter(|f| !known(&f.as_str()))
                    .collect();
                if !lost.is_empty() {
                    let d = self.warn(
                        "W-FIRMWARE",
                        "firmware.features",
                        format!("libvirt cannot choose firmware by {}", lost.join(", ")),
                    );
                    d.help = Some("Export on a host that has firmware descriptors, or name the file: `firmware: {path: FILE}`".into());
                }
                let firmware = self.map("firmware");
                firmware.insert("type".into(), "efi".into());
                for key in ["nvram_template", "device", "format"] {
                    firmware.remove(key);
                }
                if wanted_secure {
                    self.map("features").insert("smm".into(), true.into());
                }
            }
            Err(none) => {
                let span = self.span(match encrypted {
                    true => "security.type",
                    false if self.parsed.is_written("firmware") => "firmware",
                    false => "machine",
                });
                self.problems.push(none.diagnostic(span));
            }
        }
    }

    /// Whether the emulator can have a device that modular builds of QEMU keep in a file of its own. Builds without
    /// modules have everything inside, and nothing says so: they count as having it.
    pub(super) fn emulator_has(&self, module: &str) -> bool {
        let mut modular = false;
        for dir in QEMU_MODULES {
            if self.facts.exists(&Path::new(dir).join(module)) {
                return true;
            }
            modular |= self.facts.exists(Path::new(dir));
        }
        !modular
    }
}
