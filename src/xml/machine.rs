//! What is not a device and does not fit a row: huge pages, pinning, the processor, security.

#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use crate::sev::policy::ES;

use super::element::{Element, legal};
use super::import::Import;
use super::rows;
use super::table::{
    Form, Row, bytes, members, peek, peek_text, put, read, row, slot, take, take_if, whole, write,
};

/// The huge page sizes that the language knows, and their bytes.
const PAGES: [(&str, u64); 2] = [("2M", 2 << 20), ("1G", 1 << 30)];

pub(super) fn write_pages(rest: &mut Value, root: &mut Element) {
    if take_if(rest, "memory.hugepages", "none") {
        return;
    }
    let size = peek_text(rest, "memory.hugepages")
        .and_then(|word| PAGES.iter().find(|p| p.0 == word))
        .map(|p| p.1);
    if let Some(size) = size {
        take(rest, "memory.hugepages");
        let page = Element::new("page")
            .with("size", (size / 1024).to_string())
            .with("unit", "KiB");
        let backing = root.need("memoryBacking");
        backing.children.insert(0, Element::new("hugepages"));
        backing.children[0].push(page);
    }
}

pub(super) fn read_pages(root: &mut Element, import: &mut Import) {
    let Some(pages) = root
        .child_mut("memoryBacking")
        .and_then(|b| b.child_mut("hugepages"))
    else {
        return;
    };
    if pages.children.is_empty() {
        let text = "<hugepages> without a size means the host's default size; 2M is assumed";
        import.note(
            pages.place,
            text.into(),
            "Write `1G` if the host's default is that",
        );
        pages.seen = true;
        put(&mut import.out, "memory.hugepages", "2M".into());
        return;
    }
    let Some(page) = pages.children.iter_mut().find(|c| c.name == "page") else {
        return;
    };
    let size = bytes(page.get("size").unwrap_or_default(), page.get("unit"));
    if let Some((word, _)) = PAGES.iter().find(|p| Some(p.1) == size) {
        page.see("size");
        page.see("unit");
        pages.seen = true;
        put(&mut import.out, "memory.hugepages", (*word).into());
    }
}

pub(super) fn write_tuning(rest: &mut Value, root: &mut Element) {
    let mut tune = Element::new("cputune");
    for pin in members(rest, "cpu.pin") {
        let made = whole(pin, |pin| {
            let mut element = Element::new("vcpupin");
            write(pin, PIN, &mut element);
            (element.attributes.len() == PIN.len()).then_some(element)
        });
        tune.children.extend(made);
    }
    write(rest, EMULATOR_PIN, &mut tune);
    let count = root
        .child("vcpu")
        .and_then(|v| v.text.parse::<u64>().ok())
        .unwrap_or(1);
    let mut scheduler = Element::new("vcpusched").with("vcpus", all_of(count));
    write(rest, SCHEDULER, &mut scheduler);
    if scheduler.get("scheduler").is_some() {
        if scheduler.get("scheduler").is_some_and(realtime) {
            write(rest, PRIORITY, &mut scheduler);
        }
        tune.push(scheduler);
    }
    if !tune.children.is_empty() {
        root.push(tune);
    }
}

const PIN: &[Row] = &[
    row("vcpu", "@vcpu", Form::Number),
    row("cpus", "@cpuset", Form::Text),
];
const EMULATOR_PIN: &[Row] = &[row("cpu.emulator_cpus", "emulatorpin/@cpuset", Form::Text)];
const SCHEDULER: &[Row] = &[row("cpu.scheduler", "@scheduler", rows::SCHEDULERS)];
const PRIORITY: &[Row] = &[row("cpu.priority", "@priority", Form::Number)];

fn realtime(scheduler: &str) -> bool {
    matches!(scheduler, "fifo" | "rr")
}

fn all_of(count: u64) -> String {
    match count {
        0 | 1 => "0".into(),
        n => format!("0-{}", n - 1),
    }
}

pub(super) fn read_tuning(root: &mut Element, into: &mut Value) {
    let count = root
        .child("vcpu")
        .and_then(|v| v.text.trim().parse::<usize>().ok())
        .unwrap_or(1);
    let Some(tune) = root.child_mut("cputune") else {
        return;
    };
    tune.seen = true;
    read(tune, EMULATOR_PIN, into);
    let mut pins = Vec::new();
    for child in tune.children.iter_mut().filter(|c| c.name == "vcpupin") {
        let mut pin = json!({});
        read(child, PIN, &mut pin);
        pins.push(pin);
    }
    if !pins.is_empty() {
        put(into, "cpu.pin", pins.into());
    }
    if one_scheduler(tune, count) {
        for child in tune.children.iter_mut().filter(|c| c.name == "vcpusched") {
            child.see("vcpus");
            read(child, SCHEDULER, into);
            read(child, PRIORITY, into);
        }
    }
}

/// Whether all vCPUs are scheduled alike, by one element or by several.
fn one_scheduler(tune: &Element, count: usize) -> bool {
    let mut covered = vec![false; count.min(MAX_VCPUS)];
    let mut first: Option<(Option<&str>, Option<&str>)> = None;
    for child in tune.children.iter().filter(|c| c.name == "vcpusched") {
        let this = (child.get("scheduler"), child.get("priority"));
        if *first.get_or_insert(this) != this {
            return false;
        }
        let Some(set) = child.get("vcpus") else {
            covered.fill(true);
            continue;
        };
        for part in set.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (Ok(from), Ok(to)) = (from.trim().parse(), to.trim().parse::<usize>()) else {
                return false;
            };
            let range: std::ops::RangeInclusive<usize> = from..=to;
            let Some(part) = covered.get_mut(range) else {
                return false;
            };
            part.fill(true);
        }
    }
    first.is_some() && covered.iter().all(|c| *c)
}

/// More than any machine of libvirt has.
const MAX_VCPUS: usize = 4096;

pub(super) fn write_cpu(rest: &mut Value, root: &mut Element) {
    let Some(cpu) = slot(rest, "cpu").filter(|c| c.is_object()) else {
        return;
    };
    let mut element = Element::new("cpu");
    write(cpu, rows::CPU, &mut element);
    if let Some(model) = element.child_mut("model") {
        model.set("fallback", "forbid");
    }
    if let Some(topology) = element.child_mut("topology") {
        // The schema demands all three; a part that nobody named is one.
        for part in ["sockets", "cores", "threads"] {
            if topology.get(part).is_none() {
                topology.set(part, "1");
            }
        }
    }
    if let Some(cache) = element.child_mut("cache")
        && cache.get("mode") == Some("emulate")
    {
        cache.set("level", EMULATED_LEVEL);
    }
    if let Some(Value::Object(features)) = slot(cpu, "features") {
        for (name, policy) in features {
            if !legal(name) {
                continue;
            }
            let mut feature = Element::new("feature");
            let mut one = json!({"policy": policy.clone()});
            write(&mut one, POLICY, &mut feature);
            if feature.get("policy").is_some() {
                feature.set("name", name.as_str());
                element.push(feature);
                policy.take();
            }
        }
    }
    if !element.attributes.is_empty() || !element.children.is_empty() {
        root.push(element);
    }
}

/// QEMU emulates the third level only, and libvirt wants it named.
const EMULATED_LEVEL: &str = "3";

const POLICY: &[Row] = &[row("policy", "@policy", rows::POLICIES)];

pub(super) fn read_cpu(root: &mut Element, into: &mut Value) {
    let Some(element) = root.child_mut("cpu") else {
        return;
    };
    element.seen = true;
    let mut cpu = into.get("cpu").cloned().unwrap_or_else(|| json!({}));
    read(element, rows::CPU, &mut cpu);
    if element.get("mode").is_none() && peek(&cpu, "model").is_some() {
        put(&mut cpu, "mode", "custom".into());
    }
    if let Some(model) = element.child_mut("model")
        && model.text.is_empty()
    {
        // What libvirt writes beside a mode that has no model of its own.
        model.see_if("fallback", "allow");
    }
    if let Some(cache) = element.child_mut("cache")
        && cache.get("mode") == Some("emulate")
    {
        cache.see_if("level", EMULATED_LEVEL);
    }
    let mut features = Map::new();
    for feature in element.children.iter_mut().filter(|c| c.name == "feature") {
        let mut policy = json!({"policy": "require"});
        if feature.get("policy").is_some() {
            policy = json!({});
            read(feature, POLICY, &mut policy);
        }
        let name = feature.get("name").map(str::to_owned);
        if let (Some(name), Some(policy)) = (name, policy.get("policy")) {
            feature.see("name");
            features.insert(name, policy.clone());
        }
    }
    if !features.is_empty() {
        put(&mut cpu, "features", Value::Object(features));
    }
    if cpu.as_object().is_some_and(|c| !c.is_empty()) {
        put(into, "cpu", cpu);
    }
}

pub(super) fn write_security(rest: &mut Value, root: &mut Element) {
    let Some(security) = slot(rest, "security").filter(|s| s.is_object()) else {
        return;
    };
    let policy = peek(security, "policy").and_then(Value::as_u64);
    let (kind, rows) = match peek_text(security, "type") {
        Some("none") => {
            take(security, "type");
            return;
        }
        Some("sev") => ("sev", rows::SEV),
        // libvirt tells SEV-ES from SEV by the policy alone.
        Some("sev-es") if policy.is_some_and(|p| p & ES != 0) => ("sev", rows::SEV),
        Some("sev-snp") => ("sev-snp", rows::SNP),
        _ => return,
    };
    take(security, "type");
    let mut element = Element::new("launchSecurity").with("type", kind);
    write(security, rows, &mut element);
    root.push(element);
}

pub(super) fn read_security(root: &mut Element, into: &mut Value) {
    let Some(element) = root.child_mut("launchSecurity") else {
        return;
    };
    let mut security = json!({});
    let (kind, rows) = match element.get("type") {
        Some("sev") => ("sev", rows::SEV),
        Some("sev-snp") => ("sev-snp", rows::SNP),
        _ => return,
    };
    element.see("type");
    read(element, rows, &mut security);
    let es = peek(&security, "policy")
        .and_then(Value::as_u64)
        .is_some_and(|p| p & ES != 0);
    let kind = if kind == "sev" && es { "sev-es" } else { kind };
    put(&mut security, "type", kind.into());
    put(into, "security", security);
}
