//! Identity, memory, clock, events, protection and kernel.

#![forbid(unsafe_code)]

use serde_json::Value;

use crate::scenario::value::size_text;
use crate::sev::{Level, policy};

use super::cpu::is_cpuset;
use super::{Around, Cx, ident};

/// What the emulator needs beside the guest's memory when that is locked or encrypted (libvirt kbase
/// launch_security_sev, "Memory": 256 MiB).
const BESIDE_GUEST: u64 = 256 << 20;

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
        if !matches!(arch.as_str(), "x86_64" | "i686") {
            self.leave_pc();
        }
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

    /// What presets recommend for a PC gives way to another architecture.
    fn leave_pc(&mut self) {
        for (group, key) in [
            ("features", "apic"),
            ("features", "pae"),
            ("timers", "hpet"),
            ("timers", "pit_policy"),
            ("timers", "rtc_policy"),
            ("timers", "kvmclock"),
            ("cpu", "cache"),
        ] {
            let path = format!("{group}.{key}");
            if self.get(&path).is_some() && self.yields(&path, "arch") {
                self.map(group).remove(key);
            }
        }
        if self.text("machine").is_some() && self.yields("machine", "arch") {
            self.root.remove("machine");
        }
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

    pub(super) fn memory(&mut self, around: &Around<'_>) {
        self.map("memory")
            .insert("size".into(), around.memory.into());
        if let Some(current) = self.get("memory.current").and_then(Value::as_u64)
            && current > around.memory
        {
            let message = format!(
                "`memory.current` is {}, more than the machine's {}",
                size_text(current),
                size_text(around.memory)
            );
            self.conflict("memory.current", "memory.size", message, "Give less");
        }
        for flag in ["locked", "nosharepages", "discard"] {
            if !self.flag(&format!("memory.{flag}")) {
                self.map("memory").remove(flag);
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
        if !around.memory.is_multiple_of(page) {
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
                    "Say `memory: {}`, the next one, or smaller pages",
                    crate::scenario::value::size_word(around.memory.next_multiple_of(page))
                ),
            );
        }
        if page > 1 && self.text("memory.source") == Some("anonymous") {
            self.conflict(
                "memory.source",
                "memory.hugepages",
                "Huge pages come from a file of their own",
                "Say `source: memfd`, or leave it out",
            );
        }
        if page > 1 && self.text("memory.allocation") == Some("ondemand") {
            self.conflict(
                "memory.allocation",
                "memory.hugepages",
                "Huge pages are given before the start",
                "Say `allocation: immediate`, or leave it out",
            );
        }
        if self
            .text("memory.numa_nodes")
            .is_some_and(|nodes| !is_cpuset(nodes))
        {
            self.error(
                "E-VALUE",
                "memory.numa_nodes",
                "This is no set of NUMA nodes",
            )
            .help = Some("For example `0-1`".into());
        }
        let limit = self.get("memory.hard_limit").and_then(Value::as_u64);
        if let Some(limit) = limit
            && limit <= around.memory
        {
            let message = format!(
                "`memory.hard_limit` is {}, which leaves the emulator nothing beside the guest's memory",
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
                "clock.offset",
                "clock.timezone",
                "`offset: timezone` and `clock.timezone` go together",
                "For example `clock: {offset: timezone, timezone: Europe/Berlin}`",
            );
        }
        // libvirt 9.0 refuses a domain that starts again after a power off and ends at a reset.
        let again = self.text("events.on_poweroff") == Some("restart");
        if again && self.text("events.on_reboot") != Some("restart") {
            let written = self.parsed.is_written("events.on_reboot")
                && !self.yields("events.on_reboot", "events.on_poweroff");
            if !written {
                self.map("events")
                    .insert("on_reboot".into(), "restart".into());
            } else if self.yields("events.on_poweroff", "events.on_reboot") {
                self.map("events").remove("on_poweroff");
            } else {
                let other = self.span("events.on_poweroff");
                let d = self.error(
                    "E-EVENT",
                    "events.on_reboot",
                    "libvirt cannot start a machine again after a power off and end it at a reset",
                );
                d.help = Some("Say `on_reboot: restart`".into());
                d.also.push((other, "the other one".into()));
            }
        }
        for event in ["on_poweroff", "on_reboot", "on_crash"] {
            self.default("events", event, "destroy");
        }
        self.default("features", "acpi", true);
        if matches!(self.text("arch"), Some("x86_64" | "i686")) {
            self.default("features", "apic", true);
        }
        if !self.flag("features.pae") {
            self.map("features").remove("pae");
        }
    }

    pub(super) fn security(&mut self) {
        let kind = self.text("security.type").unwrap_or("none").to_owned();
        if kind == "none" {
            let recommended = crate::scenario::json::of(&self.parsed.recommended);
            let given_up = recommended
                .pointer("/security/type")
                .is_some_and(|t| t != "none");
            if given_up {
                let d = self.warn("W-SEV-OFF", "security.type", "The preset protects the guest's memory from the host, and this scenario gives that up");
                d.help = Some("Leave `security` out to keep it".into());
            }
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
        let level = match kind.as_str() {
            "sev-snp" => Level::SevSnp,
            "sev-es" => Level::SevEs,
            _ => Level::Sev,
        };
        let given = self.get("security.policy").and_then(Value::as_u64);
        if let Some(Err(illegal)) = given.map(|policy| policy::check(level, policy)) {
            let policy::Illegal {
                message,
                help,
                other_kind,
            } = illegal;
            if other_kind {
                self.conflict("security.policy", "security.type", message, help);
            } else {
                self.error("E-SEV-POLICY", "security.policy", message).help = Some(help);
            }
        }
        let policy = given.unwrap_or(match level {
            Level::SevSnp => policy::SNP_DEFAULT,
            Level::SevEs => policy::SEV_DEFAULT | policy::ES,
            _ if host.is_some_and(|h| h.es) => policy::SEV_DEFAULT | policy::ES,
            _ => policy::SEV_DEFAULT,
        });
        if self.text("type") == Some("qemu") {
            self.conflict(
                "type",
                "security.type",
                "An emulated machine cannot encrypt its memory",
                "Say `type: kvm`",
            );
        }
        if self
            .get("events.on_crash")
            .and_then(Value::as_str)
            .is_some_and(|w| w.starts_with("coredump"))
        {
            self.warn(
                "W-SEV-CORE",
                "events.on_crash",
                "A core of an encrypted machine is of no use, and says what is not encrypted",
            )
            .help = Some("Say `on_crash: destroy`".into());
        }
        let tree = crate::scenario::json::of(&self.parsed.tree);
        if tree.pointer("/host/ksm") == Some(&Value::Bool(true)) {
            let d = self.warn(
                "W-SEV-KSM",
                "host.ksm",
                "Merged pages tell one guest what another has in memory",
            );
            d.help = Some("Say `host: {ksm: false}`".into());
        }
        if let Some(weak) = policy::weakness(level, policy) {
            let d = self.warn(
                "W-SEV-POLICY",
                "security.policy",
                format!("With this policy {weak}"),
            );
            d.help = Some("For a machine that is to be secure leave `policy` out".into());
        }
        if self.text("iommu") == Some("false") {
            self.conflict(
                "iommu",
                "security.type",
                "Without `iommu` no virtio device works in an encrypted machine",
                "Say `iommu: auto`",
            );
        }
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
        if self.flag("cpu.migratable") && self.is_advice("cpu.migratable") {
            self.map("cpu").insert("migratable".into(), false.into());
        } else if self.flag("cpu.migratable") {
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
        // libvirt starts again by a reset, whatever the reason.
        for event in ["on_poweroff", "on_reboot", "on_crash"] {
            let path = format!("events.{event}");
            let again = policy & policy::ES != 0 && self.text(&path) == Some("restart");
            let asked = self.parsed.is_written(&path) && !self.yields(&path, "security.type");
            if again && !asked {
                self.map("events").insert(event.into(), "destroy".into());
            } else if again {
                self.conflict(
                    &path,
                    "security.type",
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

    pub(super) fn texts(&self, path: &str) -> Vec<String> {
        let list = self.get(path).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    }
}
