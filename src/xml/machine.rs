//! What is not a device and does not fit a row: metadata, huge pages, pinning, firmware, processor, security.

#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use super::element::{Element, legal};
use super::import::Import;
use super::rows;
use super::table::{
    Form, Row, bytes, members, peek, peek_text, put, read, row, slot, take, take_if, take_text,
    write,
};

/// libosinfo's namespace for the operating system of a domain.
const OSINFO: &str = "http://libosinfo.org/xmlns/libvirt/domain/1.0";
/// Ours, for every other entry of `metadata:`.
const OURS: &str = "urn:vsc:metadata";

pub(super) fn write_metadata(rest: &mut Value, root: &mut Element) {
    let mut metadata = Element::new("metadata");
    if let Some(os) = take_text(rest, "metadata.os") {
        let info =
            metadata.push(Element::new("libosinfo:libosinfo").with("xmlns:libosinfo", OSINFO));
        info.push(Element::new("libosinfo:os").with("id", os));
    }
    let mut ours = Element::new("vsc:vsc").with("xmlns:vsc", OURS);
    if let Some(Value::Object(map)) = slot(rest, "metadata") {
        for (name, value) in map {
            let Some(text) = value.as_str().filter(|text| legal(text) && legal(name)) else {
                continue;
            };
            let entry = ours.push(Element::new("vsc:entry").with("name", name.as_str()));
            text.clone_into(&mut entry.text);
            value.take();
        }
    }
    if !ours.children.is_empty() {
        metadata.push(ours);
    }
    if !metadata.children.is_empty() {
        root.push(metadata);
    }
}

pub(super) fn read_metadata(root: &mut Element, into: &mut Value) {
    let outer: Vec<(String, String)> = namespaces(root).collect();
    let Some(metadata) = root.child_mut("metadata") else {
        return;
    };
    metadata.seen = true;
    let outer: Vec<(String, String)> = namespaces(metadata).chain(outer).collect();
    for child in &mut metadata.children {
        let scope: Vec<(String, String)> = namespaces(child).chain(outer.iter().cloned()).collect();
        match within(&child.name, &scope) {
            (Some(OSINFO), "libosinfo") => read_osinfo(child, &scope, into),
            (Some(OURS), "vsc") => read_ours(child, &scope, into),
            _ => {}
        }
    }
}

fn read_osinfo(info: &mut Element, scope: &[(String, String)], into: &mut Value) {
    info.seen = true;
    let os = info
        .children
        .iter_mut()
        .find(|c| within(&c.name, scope) == (Some(OSINFO), "os"));
    if let Some(os) = os
        && let Some(id) = os.get("id").map(str::to_owned)
    {
        os.see("id");
        put_member(into, "os", &id);
    }
}

fn read_ours(ours: &mut Element, scope: &[(String, String)], into: &mut Value) {
    ours.seen = true;
    for entry in &mut ours.children {
        if within(&entry.name, scope) != (Some(OURS), "entry") {
            continue;
        }
        let Some(name) = entry.get("name").map(str::to_owned) else {
            continue;
        };
        if entry.children.is_empty() {
            put_member(into, &name, &entry.text);
            entry.see_all();
        }
    }
}

/// A name of a metadata entry may hold dots, so it is no path.
fn put_member(into: &mut Value, name: &str, text: &str) {
    if into.get("metadata").is_none() {
        put(into, "metadata", Value::Object(Map::new()));
    }
    if let Some(Value::Object(map)) = into.get_mut("metadata") {
        map.entry(name).or_insert_with(|| text.into());
    }
}

fn namespaces(element: &Element) -> impl Iterator<Item = (String, String)> + '_ {
    element.attributes.iter().filter_map(|a| {
        let prefix = match a.name.strip_prefix("xmlns") {
            Some("") => "",
            Some(rest) => rest.strip_prefix(':')?,
            None => return None,
        };
        Some((prefix.to_owned(), a.value.clone()))
    })
}

fn within<'a>(name: &'a str, scope: &'a [(String, String)]) -> (Option<&'a str>, &'a str) {
    let (prefix, local) = name.split_once(':').unwrap_or(("", name));
    let space = scope.iter().find(|(p, _)| p == prefix);
    (space.map(|(_, uri)| uri.as_str()), local)
}

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
        let mut element = Element::new("vcpupin");
        write(pin, PIN, &mut element);
        if element.attributes.len() == 2 {
            tune.push(element);
        }
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
        .and_then(|v| v.text.trim().parse::<u64>().ok())
        .unwrap_or(1);
    let Some(tune) = root.child_mut("cputune") else {
        return;
    };
    tune.seen = true;
    read(tune, EMULATOR_PIN, into);
    let mut pins = Vec::new();
    let mut scheduled = false;
    for child in &mut tune.children {
        match child.name.as_str() {
            "vcpupin" => {
                let mut pin = json!({});
                read(child, PIN, &mut pin);
                pins.push(pin);
            }
            "vcpusched" if !scheduled => {
                let vcpus = child.get("vcpus").map(str::to_owned);
                if vcpus.is_none_or(|v| v == all_of(count)) {
                    child.see("vcpus");
                    read(child, SCHEDULER, into);
                    read(child, PRIORITY, into);
                    scheduled = true;
                }
            }
            _ => {}
        }
    }
    if !pins.is_empty() {
        put(into, "cpu.pin", pins.into());
    }
}

pub(super) fn write_os(rest: &mut Value, root: &mut Element) {
    let mut os = Element::new("os");
    write(rest, rows::OS, &mut os);
    os.need("type").text = "hvm".into();
    write_firmware(rest, &mut os);
    write_kernel(rest, &mut os);
    // libvirt refuses both orders at once; the one of the devices is the finer one.
    let per_device = ["disks", "nets"].iter().any(|list| {
        members(rest, list)
            .iter()
            .any(|m| peek(m, "boot").is_some())
    });
    if !per_device {
        for device in members(rest, "boot.devices") {
            let word = device.as_str();
            if let Some((_, dev)) = rows::BOOT_DEVICES.iter().find(|w| Some(w.0) == word) {
                os.push(Element::new("boot").with("dev", *dev));
                device.take();
            }
        }
    }
    if let Some(menu) = peek(rest, "boot.menu").and_then(Value::as_bool) {
        take(rest, "boot.menu");
        let element =
            os.push(Element::new("bootmenu").with("enable", if menu { "yes" } else { "no" }));
        write(rest, MENU_TIMEOUT, element);
    }
    root.push(os);
}

const MENU_TIMEOUT: &[Row] = &[row("boot.menu_timeout", "@timeout", Form::Number)];
const MENU: &[Row] = &[
    row("boot.menu", "bootmenu/@enable", super::table::YES),
    row("boot.menu_timeout", "bootmenu/@timeout", Form::Number),
];

fn write_kernel(rest: &mut Value, os: &mut Element) {
    let mut initrd = None;
    if let Some(slot) = slot(rest, "kernel.initrd") {
        // There is one <initrd>; what comes after the first is reported.
        let first = if let Value::Array(list) = slot {
            list.first_mut()
        } else {
            Some(slot)
        };
        if let Some(first) = first
            && first.as_str().is_some_and(legal)
        {
            initrd = first.take().as_str().map(str::to_owned);
        }
    }
    write(rest, &rows::KERNEL[..1], os);
    if let Some(path) = initrd {
        os.need("initrd").text = path;
    }
    write(rest, &rows::KERNEL[1..], os);
}

fn write_firmware(rest: &mut Value, os: &mut Element) {
    let Some(firmware) = slot(rest, "firmware").filter(|f| f.is_object()) else {
        return;
    };
    let efi = matches!(peek_text(firmware, "type"), Some("efi" | "auto"));
    let mut loader = Element::new("loader");
    if let Some(path) = take_text(firmware, "path") {
        let flash = peek_text(firmware, "device") != Some("rom");
        if flash {
            loader.set("readonly", "yes");
        }
        take_if(firmware, "format", "raw");
        write(firmware, rows::LOADER, &mut loader);
        if flash {
            loader.set("type", "pflash");
        }
        loader.text = path;
        // A pflash is UEFI and a rom of unknown kind is what the path says: the type adds nothing to a path.
        if efi || !flash {
            take(firmware, "type");
        }
        os.push(loader);
    } else if efi {
        take(firmware, "type");
        os.set("firmware", "efi");
        let mut wanted = Element::new("firmware");
        for feature in members(firmware, "features") {
            let word = feature.as_str().filter(|w| FEATURES.contains(w));
            if let Some(word) = word {
                let element = Element::new("feature")
                    .with("enabled", "yes")
                    .with("name", word);
                wanted.push(element);
                feature.take();
            }
        }
        if !wanted.children.is_empty() {
            os.push(wanted);
        }
        take_if(firmware, "format", "raw");
        write(firmware, AUTO_LOADER, &mut loader);
        if !loader.attributes.is_empty() {
            os.push(loader);
        }
    } else {
        // Without a loader a PC has its BIOS.
        take_if(firmware, "type", "bios");
    }
    let mut nvram = Element::new("nvram");
    write(firmware, rows::NVRAM, &mut nvram);
    if let Some(path) = take_text(firmware, "nvram") {
        nvram.text = path;
    }
    if !nvram.attributes.is_empty() || !nvram.text.is_empty() {
        os.push(nvram);
    }
}

/// The firmware features that domain XML can ask for (libvirt's `virDomainOsDefFirmwareFeature`).
const FEATURES: [&str; 2] = ["secure-boot", "enrolled-keys"];

/// What may be said of a loader that libvirt selects.
const AUTO_LOADER: &[Row] = &[
    row("secure", "@secure", super::table::YES),
    row("stateless", "@stateless", super::table::YES),
];

pub(super) fn read_os(root: &mut Element, into: &mut Value) {
    let Some(os) = root.child_mut("os") else {
        return;
    };
    os.seen = true;
    read(os, rows::OS, into);
    read_firmware(os, into);
    read(os, rows::KERNEL, into);
    if let Some(initrd) = os.child_mut("initrd") {
        initrd.seen = true;
        initrd.text_seen = true;
        put(into, "kernel.initrd", json!([initrd.text]));
    }
    let mut devices = Vec::new();
    for boot in os.children.iter_mut().filter(|c| c.name == "boot") {
        let dev = boot.get("dev");
        if let Some((word, _)) = rows::BOOT_DEVICES.iter().find(|w| Some(w.1) == dev) {
            devices.push(Value::from(*word));
            boot.see("dev");
        }
    }
    if !devices.is_empty() {
        put(into, "boot.devices", devices.into());
    }
    read(os, MENU, into);
}

fn read_firmware(os: &mut Element, into: &mut Value) {
    let mut firmware = json!({});
    if os.see_if("firmware", "efi") {
        put(&mut firmware, "type", "efi".into());
    }
    if os.see_if("firmware", "bios") {
        put(&mut firmware, "type", "bios".into());
    }
    if let Some(wanted) = os.child_mut("firmware") {
        let mut features = Vec::new();
        for feature in &mut wanted.children {
            let word = feature.get("name").filter(|w| FEATURES.contains(w));
            let word = word.map(str::to_owned);
            if let Some(word) = word
                && feature.see_if("enabled", "yes")
            {
                feature.see("name");
                features.push(Value::from(word));
            }
        }
        wanted.seen = wanted.seen || !features.is_empty();
        if !features.is_empty() {
            put(&mut firmware, "features", features.into());
        }
    }
    if let Some(loader) = os.child_mut("loader") {
        loader.seen = true;
        read(loader, rows::LOADER, &mut firmware);
        let path = loader.text.trim();
        if !path.is_empty() {
            put(&mut firmware, "path", path.into());
            if peek_text(&firmware, "device") == Some("flash") {
                put(&mut firmware, "type", "efi".into());
            }
        }
        loader.text_seen = true;
    }
    if let Some(nvram) = os.child_mut("nvram") {
        nvram.seen = true;
        read(nvram, rows::NVRAM, &mut firmware);
        if !nvram.text.trim().is_empty() {
            nvram.text_seen = true;
            put(&mut firmware, "nvram", nvram.text.trim().into());
        } else if nvram.see_if("type", "file") {
            read(nvram, NVRAM_FILE, &mut firmware);
        }
    }
    if firmware.as_object().is_some_and(|f| !f.is_empty()) {
        put(into, "firmware", firmware);
        return;
    }
    // A PC without a loader has its BIOS, unless it enters a kernel at once.
    let pc = os
        .child("type")
        .and_then(|t| t.get("arch"))
        .is_some_and(|a| matches!(a, "x86_64" | "i686"));
    if pc && os.child("kernel").is_none() {
        put(into, "firmware.type", "bios".into());
    }
}

const NVRAM_FILE: &[Row] = &[row("nvram", "source/@file", Form::Text)];

pub(super) fn write_cpu(rest: &mut Value, root: &mut Element) {
    let Some(cpu) = slot(rest, "cpu").filter(|c| c.is_object()) else {
        return;
    };
    let mut element = Element::new("cpu");
    write(cpu, rows::CPU, &mut element);
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
    if element.get("mode").is_none() && element.child("model").is_some() {
        put(&mut cpu, "mode", "custom".into());
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

/// Bit 2 of a SEV policy: the state of the processors is encrypted too.
const POLICY_ES: u64 = 4;

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
        Some("sev-es") if policy.is_some_and(|p| p & POLICY_ES != 0) => ("sev", rows::SEV),
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
        .is_some_and(|p| p & POLICY_ES != 0);
    let kind = if kind == "sev" && es { "sev-es" } else { kind };
    put(&mut security, "type", kind.into());
    put(into, "security", security);
}
