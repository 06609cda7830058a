//! Identity, CPUs, memory, clock, events, protection, kernel and firmware.

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::{Value, json};

use crate::descriptors::{Catalogue, Device, Feature, Interface, Wanted, select};
use crate::scenario::value::size_text;

use super::{Around, Cx, ident};

/// What the emulator needs beside the guest's memory when that is locked or encrypted (libvirt kbase
/// launch_security_sev, "Memory": 256 MiB).
const BESIDE_GUEST: u64 = 256 << 20;
/// NODBG, NOKS, DOMAIN, SEV (SEV API, table 2).
const SEV_POLICY: u64 = 0x33;
/// The policy bit that asks for SEV-ES.
const SEV_ES: u64 = 0x04;
/// SMT allowed, and the bit that must be one (SNP firmware ABI, table 9).
const SNP_POLICY: u64 = 0x30000;
/// Where libvirt keeps variable stores.
const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";
/// Where modular builds of QEMU keep their devices.
const QEMU_MODULES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/lib/aarch64-linux-gnu/qemu",
];

impl Cx<'_> {
    pub(super) fn identity(&mut self, around: &Around<'_>) {
        self.root.insert("name".into(), around.name.into());
        match self.text("uuid") {
            Some(uuid) if !ident::is_uuid(uuid) => {
                let example = ident::uuid(&["domain", around.name]);
                self.error("E-VALUE", "uuid", "This is no UUID").help =
                    Some(format!("For example `uuid: {example}`"));
            }
            Some(_) => {}
            None => drop(
                self.root
                    .insert("uuid".into(), ident::uuid(&["domain", around.name]).into()),
            ),
        }
        self.root.entry("type").or_insert("kvm".into());
        let arch = self.text("arch").unwrap_or("x86_64").to_owned();
        self.root.insert("arch".into(), arch.as_str().into());
        let machine = match arch.as_str() {
            "x86_64" | "i686" => "q35",
            "ppc64" | "ppc64le" => "pseries",
            "s390x" => "s390-ccw-virtio",
            _ => "virt",
        };
        self.root.entry("machine").or_insert(machine.into());
        let program = match arch.as_str() {
            "i686" => "i386",
            "armv7l" => "arm",
            "ppc64le" => "ppc64",
            other => other,
        };
        self.root
            .entry("emulator")
            .or_insert_with(|| format!("/usr/bin/qemu-system-{program}").into());
    }

    /// A machine with PCI Express.
    pub(super) fn is_q35(&self) -> bool {
        self.text("machine")
            .is_some_and(|m| m == "q35" || m.starts_with("pc-q35-"))
    }

    /// A machine of 1996.
    pub(super) fn is_i440fx(&self) -> bool {
        self.text("machine")
            .is_some_and(|m| m == "pc" || m.starts_with("pc-i440fx-"))
    }

    pub(super) fn cpu(&mut self, around: &Around<'_>) {
        let topology = self.get("cpu.topology").is_some() || self.get("cpu.ht").is_some();
        let emulated = self.text("type") == Some("qemu");
        if self.text("cpu.mode") == Some("host-passthrough") && emulated {
            if self.is_advice("cpu.mode") {
                self.map("cpu").remove("mode");
                for key in ["migratable", "cache", "check"] {
                    if self.is_advice(&format!("cpu.{key}")) {
                        self.map("cpu").remove(key);
                    }
                }
            } else {
                self.conflict(
                    "cpu.mode",
                    "type",
                    "An emulated machine has no CPU of the host to pass through",
                    "Say `cpu: {mode: maximum}`",
                );
            }
        }
        let given = self.text("cpu.mode").map(str::to_owned);
        let by_default = match (self.text("cpu.model").is_some(), emulated) {
            (true, _) => "custom",
            (_, true) => "maximum",
            (_, false) => "host-passthrough",
        };
        let mode = given.unwrap_or_else(|| by_default.to_owned());
        match (mode.as_str(), self.text("cpu.model").is_some()) {
            ("custom", false) => {
                self.error(
                    "E-REQUIRED",
                    "cpu.mode",
                    "`cpu.mode: custom` needs `cpu.model`",
                )
                .help =
                    Some("For example `model: EPYC`; `virsh cpu-models x86_64` lists them".into());
            }
            (other, true) if other != "custom" => {
                let message = format!("`cpu.model` is for `mode: custom`, and cpu.mode is {other}");
                self.conflict("cpu.model", "cpu.mode", message, "Keep one of the two");
            }
            _ => {}
        }
        if !matches!(mode.as_str(), "host-passthrough" | "maximum") {
            for key in ["migratable", "cache"] {
                let path = format!("cpu.{key}");
                let emulated = self.text(&path) == Some("emulate");
                if self.get(&path).is_none() || emulated {
                } else if self.is_advice(&path) {
                    self.map("cpu").remove(key);
                } else {
                    let message = format!(
                        "`{path}` goes with host-passthrough and maximum only, and cpu.mode is {mode}"
                    );
                    self.conflict(&path, "cpu.mode", message, format!("Leave `{path}` out"));
                }
            }
        }
        if self.get("cpu.priority").is_some()
            && !matches!(self.text("cpu.scheduler"), Some("fifo" | "rr"))
        {
            self.conflict(
                "cpu.priority",
                "cpu.scheduler",
                "Only `fifo` and `rr` have priorities",
                "Say `scheduler: fifo`, or leave the priority out",
            );
        }
        self.pins(around);
        let nested = self.get("cpu.nested").and_then(Value::as_bool);
        let cpu = self.map("cpu");
        cpu.remove("ht");
        cpu.remove("nested");
        cpu.insert("count".into(), around.cpus.count.into());
        cpu.insert("mode".into(), mode.into());
        cpu.remove("topology");
        if topology {
            let vsc_vmm::resources::Topology {
                sockets,
                cores,
                threads,
            } = around.cpus.topology;
            cpu.insert(
                "topology".into(),
                json!({"sockets": sockets, "cores": cores, "threads": threads}),
            );
        }
        if let Some(nested) = nested {
            let policy = if nested { "optional" } else { "disable" };
            let features = cpu.entry("features").or_insert_with(|| json!({}));
            for name in ["svm", "vmx"] {
                if let Some(map) = features.as_object_mut() {
                    map.entry(name).or_insert(policy.into());
                }
            }
        }
    }

    /// Real-time vCPUs want host CPUs of their own.
    fn pins(&mut self, around: &Around<'_>) {
        for (index, pin) in self.members_of_cpu_pin().into_iter().enumerate() {
            let path = format!("cpu.pin[{index}]");
            let vcpu = pin
                .get("vcpu")
                .and_then(Value::as_u64)
                .unwrap_or(index as u64);
            match pin.get("cpus").and_then(Value::as_str) {
                None => drop(self.error("E-REQUIRED", &path, "This pin has no `cpus`")),
                Some(cpus) if !is_cpuset(cpus) => {
                    self.error("E-VALUE", &format!("{path}.cpus"), "This is no set of CPUs")
                        .help = Some("For example `2-3,5,^4`".into());
                }
                Some(_) if vcpu >= u64::from(around.cpus.count) => {
                    let message = format!(
                        "There is no vCPU {vcpu}: they are 0 to {}",
                        around.cpus.count.saturating_sub(1)
                    );
                    self.error("E-INDEX", &path, message);
                }
                Some(_) => {}
            }
            if let Some(Value::Array(pins)) = self.map("cpu").get_mut("pin")
                && let Some(Value::Object(pin)) = pins.get_mut(index)
            {
                pin.insert("vcpu".into(), vcpu.into());
            }
        }
        if let Some(cpus) = self.text("cpu.emulator_cpus")
            && !is_cpuset(cpus)
        {
            self.error("E-VALUE", "cpu.emulator_cpus", "This is no set of CPUs")
                .help = Some("For example `0-1`".into());
        }
        let real_time = matches!(self.text("cpu.scheduler"), Some("fifo" | "rr"));
        if !real_time || self.get("cpu.pin").is_some() {
            return;
        }
        let isolated = self.facts.isolated_cpus();
        if isolated.len() >= around.cpus.count as usize {
            let pins = isolated
                .iter()
                .zip(0..around.cpus.count)
                .map(|(cpu, vcpu)| json!({"vcpu": vcpu, "cpus": cpu.to_string()}));
            let pins: Value = pins.collect();
            self.map("cpu").insert("pin".into(), pins);
        } else {
            let message = format!(
                "{} real-time vCPUs, and the host has isolated {} CPUs for them",
                around.cpus.count,
                isolated.len()
            );
            let d = self.warn("W-ISOLCPUS", "cpu.scheduler", message);
            d.why = Some("A real-time thread that shares its CPU with the host's work starves it, and waits for it".into());
            d.help = Some("Boot the host with isolcpus=… nohz_full=… rcu_nocbs=…, and name the CPUs: `cpu: {pin: [{vcpu: 0, cpus: \"2\"}]}`".into());
        }
    }

    fn members_of_cpu_pin(&self) -> Vec<Value> {
        self.get("cpu.pin")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn memory(&mut self, around: &Around<'_>) {
        self.map("memory")
            .insert("size".into(), around.memory.into());
        if let Some(current) = self.get("memory.current").and_then(Value::as_u64) {
            if current > around.memory {
                let message = format!(
                    "`memory.current` is {}, more than the machine's {}",
                    size_text(current),
                    size_text(around.memory)
                );
                self.conflict("memory.current", "memory.size", message, "Give less");
            }
            if self.text("balloon.model") == Some("none") && current < around.memory {
                self.conflict(
                    "memory.current",
                    "balloon",
                    "Only a balloon holds back memory",
                    "Say `balloon: virtio`, or leave `memory.current` out",
                );
            }
        }
        if self.text("memory.hugepages") == Some("none") {
            self.map("memory").remove("hugepages");
        }
        let page = match self.text("memory.hugepages") {
            Some("1G") => 1 << 30,
            Some(_) => 2 << 20,
            None => 1,
        };
        if around.memory % page != 0 {
            let message = format!(
                "{} of memory is not a multiple of its pages of {}",
                size_text(around.memory),
                size_text(page)
            );
            self.conflict(
                "memory.size",
                "memory.hugepages",
                message,
                format!(
                    "{} is the next one",
                    size_text(around.memory.next_multiple_of(page))
                ),
            );
        }
        let limit = self.get("memory.hard_limit").and_then(Value::as_u64);
        if let Some(limit) = limit
            && limit < around.memory
        {
            let message = format!(
                "`memory.hard_limit` is {}, less than the guest's memory alone",
                size_text(limit)
            );
            self.conflict(
                "memory.hard_limit",
                "memory.size",
                message,
                format!("Give at least {}", size_text(around.memory + BESIDE_GUEST)),
            );
        }
        let encrypted = !matches!(self.text("security.type"), None | Some("none"));
        if encrypted && limit.is_none() && !self.flag("memory.locked") {
            self.map("memory").insert(
                "hard_limit".into(),
                around.memory.saturating_add(BESIDE_GUEST).into(),
            );
        }
    }

    pub(super) fn time_and_events(&mut self) {
        self.default("clock", "offset", "utc");
        if (self.text("clock.offset") == Some("timezone")) != self.text("clock.timezone").is_some()
        {
            self.conflict(
                "clock",
                "clock.timezone",
                "`offset: timezone` and `clock.timezone` go together",
                "For example `clock: {offset: timezone, timezone: Europe/Berlin}`",
            );
        }
        for event in ["on_poweroff", "on_reboot", "on_crash"] {
            self.default("events", event, "destroy");
        }
        for feature in ["acpi", "apic"] {
            self.default("features", feature, true);
        }
    }

    pub(super) fn security(&mut self) {
        let kind = self.text("security.type").unwrap_or("none").to_owned();
        if kind == "none" {
            let rest = self
                .get("security")
                .and_then(Value::as_object)
                .is_some_and(|m| m.keys().any(|k| k != "type"));
            if rest && !self.is_advice("security") {
                self.warn(
                    "W-UNUSED",
                    "security",
                    "`security` says how, and `security.type` says that nothing is protected",
                )
                .help = Some("Say `type: sev`, or leave it out".into());
            }
            self.root.remove("security");
            return;
        }
        let host = self.facts.sev();
        let only_snp = [
            "id_block",
            "id_auth",
            "host_data",
            "guest_visible_workarounds",
            "author_key",
            "vcek",
        ];
        let only_sev = ["session", "dh_cert"];
        for (keys, wrong) in [
            (&only_snp[..], kind != "sev-snp"),
            (&only_sev[..], kind == "sev-snp"),
        ] {
            for key in keys.iter().filter(|_| wrong) {
                let path = format!("security.{key}");
                if self.get(&path).is_some() {
                    self.conflict(
                        &path,
                        "security.type",
                        format!("`{path}` is not for {kind}"),
                        format!("Leave `{path}` out"),
                    );
                }
            }
        }
        for key in [
            "session",
            "dh_cert",
            "id_block",
            "id_auth",
            "host_data",
            "guest_visible_workarounds",
        ] {
            let path = format!("security.{key}");
            if self.text(&path).is_some_and(|t| {
                t.is_empty()
                    || !t
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"+/=\n ".contains(&b))
            }) {
                self.error("E-VALUE", &path, format!("`{path}` is base64"))
                    .help = Some("Letters, digits, `+`, `/`, `=`".into());
            }
        }
        let policy = match (
            kind.as_str(),
            self.get("security.policy").and_then(Value::as_u64),
        ) {
            ("sev-snp", Some(policy)) if policy & (1 << 17) == 0 => {
                self.error(
                    "E-SEV-POLICY",
                    "security.policy",
                    "Bit 17 of an SNP policy must be one",
                )
                .help = Some("For example `policy: 0x30000`".into());
                policy
            }
            ("sev-es", Some(policy)) if policy & SEV_ES == 0 => {
                self.conflict(
                    "security.policy",
                    "security.type",
                    "The policy lacks the ES bit (0x4), and the type is sev-es",
                    format!("Say `policy: {:#06x}`", policy | SEV_ES),
                );
                policy
            }
            ("sev" | "sev-es", Some(policy))
                if policy > u64::from(u32::MAX) || policy & 0xffc0 != 0 =>
            {
                self.error("E-SEV-POLICY", "security.policy", format!("{policy:#x} is no SEV policy")).help =
                    Some("Bits 0 to 5 (NODBG 1, NOKS 2, ES 4, NOSEND 8, DOMAIN 0x10, SEV 0x20), the least API version in bits 16 to 31".into());
                policy
            }
            (_, Some(policy)) => policy,
            ("sev-snp", None) => SNP_POLICY,
            ("sev-es", None) => SEV_POLICY | SEV_ES,
            (_, None) if host.is_some_and(|h| h.es) => SEV_POLICY | SEV_ES,
            (_, None) => SEV_POLICY,
        };
        let security = self.map("security");
        security.insert("policy".into(), policy.into());
        // A launch with the ES bit is of libvirt's type sev.
        if kind == "sev-es" {
            security.insert("type".into(), "sev".into());
        }
        if let Some(host) = host {
            security.entry("cbitpos").or_insert(host.cbitpos.into());
            security
                .entry("reduced_phys_bits")
                .or_insert(host.reduced_phys_bits.into());
        }
        if !self.is_q35() && self.is_i440fx() {
            let d = self.warn("W-SEV-MACHINE", "machine", "Encrypted memory on an i440fx machine needs virtio devices without legacy interface");
            d.why = Some("PCI slots of i440fx make virtio devices transitional, and the legacy interface cannot say that DMA is translated".into());
            d.help = Some("Say `machine: q35`, or models such as virtio-non-transitional".into());
        }
        if self.flag("cpu.migratable") && !self.is_advice("cpu.migratable") {
            self.conflict(
                "cpu.migratable",
                "security.type",
                "An encrypted machine does not move",
                "Leave `cpu.migratable` out",
            );
        }
        if self.text("cpu.mode") == Some("custom") {
            let d = self.warn(
                "W-SEV-CPU",
                "cpu.mode",
                "The measurement of an encrypted machine covers its CPU model",
            );
            d.help = Some("Say `cpu: {mode: host-passthrough}`: family, model and stepping are then those of the host".into());
        }
        for event in ["on_reboot"] {
            let path = format!("events.{event}");
            if policy & SEV_ES != 0 && self.text(&path) == Some("restart") {
                self.conflict(
                    &path,
                    "security",
                    "A machine with encrypted registers cannot be reset, only started anew",
                    format!("Say `{event}: destroy`"),
                );
            }
        }
    }

    /// The kernel that was named, and its whole command line.
    pub(super) fn kernel(&mut self, around: &Around<'_>) {
        let named = self.text("kernel.path").is_some();
        let kernel = self.map("kernel");
        for key in ["prolog", "epilog", "console"] {
            kernel.remove(key);
        }
        if let (true, Some(line)) = (named, &around.cmdline) {
            kernel.insert("cmdline".into(), line.as_str().into());
        }
        if !around.command {
            // It is on the command line now.
            self.root.remove("root");
        }
    }

    pub(super) fn firmware(&mut self, around: &Around<'_>) {
        let kernel = self.text("kernel.path").is_some();
        let encrypted = self.get("security").is_some();
        let directory = self.text("firmware.descriptors").map(str::to_owned);
        self.map("firmware").remove("descriptors");
        if kernel && !encrypted && self.is_advice("firmware.type") {
            self.root.remove("firmware");
            return;
        }
        let kind = self
            .text("firmware.type")
            .unwrap_or(if kernel && !encrypted { "none" } else { "auto" })
            .to_owned();
        let path = self.text("firmware.path").is_some();
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
                self.root.insert("firmware".into(), json!({"type": "bios"}));
                return;
            }
            _ if path => return self.named_firmware(around, encrypted),
            _ => {}
        }
        self.selected_firmware(around, encrypted, directory.as_deref());
    }

    fn nvram(&mut self, around: &Around<'_>) {
        let lost = self.flag("firmware.stateless") || self.text("firmware.device") == Some("rom");
        if lost || self.text("firmware.nvram_template").is_none() {
            return;
        }
        let own = format!("{NVRAM}/{}_VARS.fd", around.name);
        self.default("firmware", "nvram", own);
    }

    fn named_firmware(&mut self, around: &Around<'_>, encrypted: bool) {
        self.map("firmware").remove("type");
        self.map("firmware").remove("features");
        self.default("firmware", "device", "flash");
        if encrypted && self.text("firmware.nvram").is_some() {
            self.no_nvram_in_measurements();
        }
        self.nvram(around);
        self.smm();
    }

    fn no_nvram_in_measurements(&mut self) {
        let d = self.warn(
            "W-SEV-NVRAM",
            "firmware.nvram",
            "A variable store is not measured, and this machine has one",
        );
        d.why = Some("What the firmware reads from it can change what starts".into());
        d.help = Some("Say `firmware: {stateless: true}`".into());
    }

    /// Firmware that protects its variables needs System Management Mode.
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

    fn selected_firmware(&mut self, around: &Around<'_>, encrypted: bool, directory: Option<&str>) {
        let mut features: Vec<Feature> = self
            .texts("firmware.features")
            .iter()
            .map(|t| t.as_str().into())
            .collect();
        let mut forbid = Vec::new();
        if encrypted {
            let es = self
                .get("security.policy")
                .and_then(Value::as_u64)
                .is_some_and(|p| p & SEV_ES != 0);
            features.push(match (self.text("security.type"), es) {
                (Some("sev-snp"), _) => Feature::AmdSevSnp,
                (_, true) => Feature::AmdSevEs,
                _ => Feature::AmdSev,
            });
            forbid.push(Feature::RequiresSmm);
        } else if self.get("features.smm") == Some(&Value::Bool(false)) {
            forbid.push(Feature::RequiresSmm);
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
        let catalogue = Catalogue::read(self.facts, directory.map(Path::new));
        self.problems.extend(catalogue.warnings());
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
                if let Some(template) = &found.nvram_template
                    && !encrypted
                {
                    firmware
                        .entry("nvram_template")
                        .or_insert(template.path.to_string_lossy().into());
                }
                if encrypted && rom {
                    firmware.entry("stateless").or_insert(true.into());
                }
                if found.requires_smm {
                    firmware.entry("secure").or_insert(true.into());
                }
                self.nvram(around);
                self.smm();
            }
            // An export from a host without firmware leaves the choice to libvirt, where libvirt can make it.
            Err(_) if !encrypted && directory.is_none() && catalogue.descriptors.is_empty() => {
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
                let span = self.span(if encrypted {
                    "security.type"
                } else {
                    "firmware"
                });
                self.problems.push(none.diagnostic(span));
            }
        }
    }

    pub(super) fn texts(&self, path: &str) -> Vec<String> {
        let list = self.get(path).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
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

/// CPUs as taskset(1) lists them, with `^` for one to leave out.
fn is_cpuset(text: &str) -> bool {
    let number = |t: &str| !t.is_empty() && t.len() < 6 && t.bytes().all(|b| b.is_ascii_digit());
    !text.is_empty()
        && text
            .split(',')
            .map(str::trim)
            .all(|part| match part.split_once('-') {
                Some((from, to)) => {
                    number(from) && number(to) && from.parse::<u32>().ok() <= to.parse::<u32>().ok()
                }
                None => number(part.strip_prefix('^').unwrap_or(part)),
            })
}
