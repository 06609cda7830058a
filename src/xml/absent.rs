//! What libvirt and QEMU take where a document says nothing, and our language would take something else.
//!
//! The values are those that libvirt 9.0 writes into a domain that it defines from such a document; `dumpxml` always
//! shows them, so they matter for documents written by hand.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::element::Element;
use super::import::Import;
use super::table::{members, peek, peek_text, put, slot};

/// Says aloud what `root` says by leaving it out.
pub(super) fn complete(root: &Element, import: &mut Import) {
    let pc = import.on_pc();
    let out = &mut import.out;
    let mut default = |key: &str, value: Value| {
        if peek(out, key).is_none() {
            put(out, key, value);
        }
    };
    // Without the element the guest has none.
    default("features.acpi", false.into());
    default("events.on_reboot", "restart".into());
    default("cpu.count", 1.into());
    if pc {
        default("features.apic", false.into());
        default("machine", "pc".into());
    }
    let has = |name: &str| {
        root.child("devices")
            .is_some_and(|d| d.child(name).is_some())
    };
    if !has("memballoon") {
        default("balloon.model", "virtio".into());
    }
    if has("rng") && peek(out, "rng.enabled").is_some() && peek(out, "rng.source").is_none() {
        put(out, "rng.source", "/dev/random".into());
    }
    if pc {
        complete_pc(root, out);
    }
    for share in members(out, "shares") {
        let virtiofs = peek_text(share, "driver") == Some("virtiofs");
        if !virtiofs && peek(share, "accessmode").is_none() {
            put(share, "accessmode", "passthrough".into());
        }
    }
    let talks = |console: &Value| peek(console, "tty").is_some();
    let terminals = members(out, "consoles").iter().any(talks);
    if !terminals && members(out, "serials").is_empty() {
        put(out, "console.implicit", false.into());
    }
    let ordered = ["disks", "nets"].iter().any(|list| {
        members(out, list)
            .iter()
            .any(|device| peek(device, "boot").is_some())
    });
    let kernel = peek(out, "kernel.path").is_some();
    if !ordered && !kernel && peek(out, "boot.devices").is_none() {
        put(out, "boot.devices", json!(["hd"]));
    }
}

fn complete_pc(root: &Element, out: &mut Value) {
    let cpu = root.child("cpu");
    let mode = cpu.and_then(|c| c.get("mode"));
    if matches!(mode, None | Some("custom")) && peek(out, "cpu.model").is_none() {
        put(out, "cpu.mode", "custom".into());
        put(out, "cpu.model", "qemu64".into());
        if peek(out, "cpu.check").is_none() {
            put(out, "cpu.check", "none".into());
        }
    }
    // A controller of a model that is unknown here was noted.
    let usb = |c: &Element| c.name == "controller" && c.get("type") == Some("usb");
    let named = |c: &Element| usb(c) && c.get("model").is_some();
    let devices = root.child("devices");
    if !devices.is_some_and(|d| d.children.iter().any(named)) {
        let machine = peek_text(out, "machine").unwrap_or_default();
        let model = match machine == "q35" || machine.starts_with("pc-q35") {
            true => "qemu-xhci",
            false => "piix3-uhci",
        };
        put(out, "usb.model", model.into());
    }
    for net in members(out, "nets") {
        if peek(net, "model").is_none() {
            put(net, "model", "rtl8139".into());
        }
    }
    if let Some(tpm) = slot(out, "tpm") {
        if peek(tpm, "model").is_none() {
            put(tpm, "model", "tpm-tis".into());
        }
        let emulated = peek_text(tpm, "type") == Some("emulator");
        if emulated && peek(tpm, "version").is_none() {
            let old = peek_text(tpm, "model") == Some("tpm-tis");
            put(tpm, "version", if old { "1.2" } else { "2.0" }.into());
        }
    }
}
