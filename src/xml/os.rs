//! What runs first: firmware, kernel, the order of boot devices.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::element::{Element, legal};
use super::import::Import;
use super::rows;
use super::table::{
    Form, Row, YES, members, peek, peek_text, put, read, row, slot, take, take_if, take_text, write,
};
use crate::compile::{ALWAYS, NO_ROOT};

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
    row("boot.menu", "bootmenu/@enable", YES),
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
    let kernel = peek(rest, "kernel.path").is_some();
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
    } else if !kernel {
        // Without a loader a PC has its BIOS; with a kernel nobody asks which firmware it was.
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
    row("secure", "@secure", YES),
    row("stateless", "@stateless", YES),
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
        if !initrd.text.is_empty() {
            put(into, "kernel.initrd", json!([initrd.text]));
        }
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
        if !loader.text.is_empty() {
            put(&mut firmware, "path", loader.text.as_str().into());
            if peek_text(&firmware, "device") == Some("flash") {
                put(&mut firmware, "type", "efi".into());
            }
        }
        loader.text_seen = true;
    }
    if let Some(nvram) = os.child_mut("nvram") {
        nvram.seen = true;
        read(nvram, rows::NVRAM, &mut firmware);
        if nvram.children.is_empty() && !nvram.text.is_empty() {
            nvram.text_seen = true;
            put(&mut firmware, "nvram", nvram.text.as_str().into());
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

/// Keeps the compiler from adding to a command line what it adds where nothing is said.
pub(super) fn keep_cmdline(root: &Element, import: &mut Import) {
    if peek(&import.out, "kernel.path").is_none() {
        return;
    }
    let line = peek_text(&import.out, "kernel.cmdline").unwrap_or_default();
    let says = |name: &str| line.split_ascii_whitespace().any(|w| w.starts_with(name));
    let (console, root_device) = (says("console="), says("root="));
    let silent: Vec<&str> = ALWAYS
        .split(' ')
        .filter(|w| !says(w.split_inclusive('=').next().unwrap_or(w)))
        .filter(|w| !w.starts_with("pci="))
        .collect();
    if !silent.is_empty() {
        let os = root.child("os");
        let at = os.and_then(|os| os.child("cmdline").or(os.child("kernel")));
        let said = silent.join(" ");
        let text =
            format!("the command line of a scenario gets `{said}` where it says nothing of it");
        import.note(
            at.map(|e| e.place).unwrap_or_default(),
            text,
            "Say what is wanted instead",
        );
    }
    if !console {
        put(&mut import.out, "kernel.console", "none".into());
    }
    let disks = peek(&import.out, "disks").is_some();
    if !root_device && disks && peek(&import.out, "kernel.initrd").is_none() {
        put(&mut import.out, "root.device", NO_ROOT.into());
    }
}

const NVRAM_FILE: &[Row] = &[row("nvram", "source/@file", Form::Text)];
