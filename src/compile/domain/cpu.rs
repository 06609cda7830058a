//! CPUs: model, topology, placement.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::{Around, Cx};

impl Cx<'_> {
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
        if self.text("cpu.model").is_some() && self.yields("cpu.mode", "cpu.model") {
            self.map("cpu").remove("mode");
        }
        if self.text("cpu.mode").is_some_and(|m| m != "custom")
            && self.yields("cpu.model", "cpu.mode")
        {
            self.map("cpu").remove("model");
        }
        if self.get("cpu.priority").is_some()
            && self.yields("cpu.priority", "cpu.scheduler")
            && !matches!(self.text("cpu.scheduler"), Some("fifo" | "rr"))
        {
            self.map("cpu").remove("priority");
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
        if matches!(self.text("cpu.scheduler"), Some("fifo" | "rr")) {
            self.default("cpu", "priority", 1);
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
        let mut seen: Vec<u64> = Vec::new();
        for (index, pin) in self.members_of_cpu_pin().into_iter().enumerate() {
            let path = format!("cpu.pin[{index}]");
            let vcpu = pin
                .get("vcpu")
                .and_then(Value::as_u64)
                .unwrap_or(index as u64);
            if seen.contains(&vcpu) {
                self.error("E-CONFLICT", &path, format!("vCPU {vcpu} is pinned twice"))
                    .help = Some("Name its CPUs in one place: `cpus: \"2,5\"`".into());
            }
            seen.push(vcpu);
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
}

/// CPUs or nodes as taskset(1) lists them, with `^` for one to leave out.
pub(super) fn is_cpuset(text: &str) -> bool {
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
