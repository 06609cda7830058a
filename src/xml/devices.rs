//! Networks, shares, and the devices of which a machine has one.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::disk::{object, read_virtio, see_model, write_virtio};
use super::domain::Wide;
use super::element::Element;
use super::import::Import;
use super::rows;
use super::table::{
    Form, Row, members, peek, peek_text, put, read, row, slot, take, take_if, whole, write,
};

const USER_SOURCE: &[Row] = &[];
const NETWORK_SOURCE: &[Row] = &[row("source", "source/@network", Form::Text)];
const BRIDGE_SOURCE: &[Row] = &[row("source", "source/@bridge", Form::Text)];
const DIRECT_SOURCE: &[Row] = &[row("source", "source/@dev", Form::Text)];

/// Where the other end of an interface of each kind is named.
fn source_of(kind: Option<&str>) -> &'static [Row] {
    match kind {
        Some("network") => NETWORK_SOURCE,
        Some("bridge") => BRIDGE_SOURCE,
        Some("direct") => DIRECT_SOURCE,
        _ => USER_SOURCE,
    }
}

pub(super) fn write_nets(rest: &mut Value, devices: &mut Element) {
    for net in members(rest, "nets").iter_mut().filter(|n| n.is_object()) {
        let kind = peek_text(net, "type").map(str::to_owned);
        let mut element = Element::new("interface");
        write(net, rows::NET, &mut element);
        write(net, source_of(kind.as_deref()), &mut element);
        write(net, rows::NET_END, &mut element);
        devices.push(element);
    }
}

pub(super) fn read_nets(devices: &mut Element, import: &mut Import) {
    let mut nets = Vec::new();
    for element in devices
        .children
        .iter_mut()
        .filter(|c| c.name == "interface")
    {
        let mut net = json!({});
        read(element, &rows::NET[..1], &mut net);
        // An interface of another kind is noted as a whole.
        let Some(kind) = peek_text(&net, "type").map(str::to_owned) else {
            continue;
        };
        read(element, rows::NET, &mut net);
        read(element, source_of(Some(&kind)), &mut net);
        if let Some(target) = element.child_mut("target")
            && target
                .get("dev")
                .is_some_and(|d| d.starts_with("vnet") || d.starts_with("macvtap"))
        {
            // libvirt numbers these itself and drops the names that it reads.
            target.see_all();
        }
        let target = element.child("target").is_some_and(|t| !t.seen);
        let rows = if target {
            rows::NET_END
        } else {
            &rows::NET_END[1..]
        };
        read(element, rows, &mut net);
        nets.push(net);
    }
    if !nets.is_empty() {
        put(&mut import.out, "nets", nets.into());
    }
}

pub(super) fn write_shares(rest: &mut Value, devices: &mut Element, wide: Wide) {
    for share in members(rest, "shares").iter_mut().filter(|s| s.is_object()) {
        let mut element = Element::new("filesystem").with("type", "mount");
        let own = peek(share, "iommu").is_some();
        write(share, rows::SHARE, &mut element);
        write(share, rows::IOMMU, &mut element);
        write_virtio(&mut element, wide, own);
        devices.push(element);
    }
}

pub(super) fn read_shares(devices: &mut Element, import: &mut Import, wide: Wide) {
    let mut shares = Vec::new();
    for element in devices
        .children
        .iter_mut()
        .filter(|c| c.name == "filesystem")
    {
        if element.get("type").is_some_and(|t| t != "mount") {
            continue;
        }
        element.seen = true;
        let mut share = json!({});
        read_virtio(element, import, wide);
        read(element, rows::SHARE, &mut share);
        shares.push(share);
    }
    if !shares.is_empty() {
        put(&mut import.out, "shares", shares.into());
    }
}

/// The kinds of input device, each a key of `input`, in an order in which no two of ours end the list as libvirt's
/// own pair does.
const INPUTS: [&str; 3] = ["tablet", "keyboard", "mouse"];
/// What libvirt adds to every PC, at the end and in this order.
const PS2: [&str; 2] = ["mouse", "keyboard"];
const BUS: &[Row] = &[row("bus", "@bus", Form::Words(&["virtio", "ps2", "usb"]))];

pub(super) fn write_inputs(rest: &mut Value, devices: &mut Element, wide: Wide) {
    let Some(input) = slot(rest, "input") else {
        return;
    };
    for kind in INPUTS {
        if take_if(input, kind, "none") {
            continue;
        }
        let mut one = json!({"bus": peek(input, kind)});
        let mut element = Element::new("input").with("type", kind);
        write(&mut one, BUS, &mut element);
        if element.get("bus").is_none() {
            continue;
        }
        take(input, kind);
        if element.get("bus") == Some("virtio") {
            write_virtio(&mut element, wide, false);
        }
        devices.push(element);
    }
}

pub(super) fn read_inputs(devices: &mut Element, import: &mut Import, wide: Wide) {
    let mut inputs: Vec<&mut Element> = devices
        .children
        .iter_mut()
        .filter(|c| c.name == "input")
        .collect();
    let ps2 = |e: &Element, kind| e.get("type") == Some(kind) && e.get("bus") == Some("ps2");
    if import.on_pc()
        && let [.., mouse, keyboard] = inputs.as_mut_slice()
        && ps2(mouse, PS2[0])
        && ps2(keyboard, PS2[1])
    {
        mouse.see_all();
        keyboard.see_all();
        inputs.truncate(inputs.len() - PS2.len());
    }
    for element in inputs {
        let kind = element
            .get("type")
            .and_then(|t| INPUTS.iter().find(|k| **k == t));
        let Some(kind) = kind else { continue };
        let key = format!("input.{kind}");
        let mut one = json!({});
        if peek(&import.out, &key).is_some() {
            continue;
        }
        read(element, BUS, &mut one);
        let Some(bus) = peek_text(&one, "bus").map(str::to_owned) else {
            continue;
        };
        element.see("type");
        if bus == "virtio" {
            read_virtio(element, import, wide);
        }
        put(&mut import.out, &key, bus.into());
    }
}

pub(super) fn write_tpm(rest: &mut Value, devices: &mut Element) {
    if !object(rest, "tpm") || drop_none(rest, "tpm") {
        return;
    }
    let Some(tpm) = slot(rest, "tpm") else { return };
    let made = whole(tpm, |tpm| {
        let host = peek_text(tpm, "type") == Some("passthrough");
        let mut element = Element::new("tpm");
        write(tpm, rows::TPM, &mut element);
        if host {
            write(tpm, rows::TPM_PATH, &mut element);
        }
        let backend = element.child("backend")?;
        backend.get("type").is_some().then_some(element)
    });
    devices.children.extend(made);
}

/// A device that there is none of: nothing about it needs to be said.
fn drop_none(rest: &mut Value, key: &str) -> bool {
    let Some(value) = slot(rest, key) else {
        return true;
    };
    let none = peek_text(value, "model") == Some("none");
    if none {
        value.take();
    }
    none
}

pub(super) fn write_graphics(rest: &mut Value, devices: &mut Element) {
    for one in members(rest, "graphics")
        .iter_mut()
        .filter(|g| g.is_object())
    {
        if peek_text(one, "type") == Some("none") {
            one.take();
            continue;
        }
        devices.children.extend(whole(one, write_display));
    }
}

fn write_display(one: &mut Value) -> Option<Element> {
    let remote = matches!(peek_text(one, "type"), Some("vnc" | "spice"));
    let mut element = Element::new("graphics");
    let rows = if remote {
        rows::GRAPHICS
    } else {
        &rows::GRAPHICS[..1]
    };
    write(one, rows, &mut element);
    if element.get("port").is_some() {
        element.set("autoport", "no");
    } else if remote && peek(one, "socket").is_none() {
        // A SPICE server that is told nothing listens nowhere. In libvirt's own spelling only VNC has the number too.
        if element.get("type") == Some("vnc") {
            element.set("port", "-1");
        }
        element.set("autoport", "yes");
    }
    if remote {
        write(one, rows::KEYMAP, &mut element);
        for (row, kind) in [(ADDRESS, "address"), (SOCKET, "socket")] {
            let mut listen = Element::new("listen").with("type", kind);
            write(one, row, &mut listen);
            if listen.attributes.len() > 1 {
                element.push(listen);
            }
        }
    }
    element.get("type").is_some().then_some(element)
}

const ADDRESS: &[Row] = &[row("listen", "@address", Form::Text)];
const SOCKET: &[Row] = &[row("socket", "@socket", Form::Text)];

pub(super) fn read_graphics(devices: &mut Element, import: &mut Import) {
    let mut list = Vec::new();
    for element in devices.children.iter_mut().filter(|c| c.name == "graphics") {
        let mut one = json!({});
        read(element, &rows::GRAPHICS[..1], &mut one);
        if peek_text(&one, "type").is_none() {
            continue;
        }
        let automatic = element.get("autoport") == Some("yes") || element.get("port") == Some("-1");
        if automatic {
            element.see("port");
        } else {
            read(element, &rows::GRAPHICS[1..], &mut one);
        }
        element.see_if("autoport", "yes");
        element.see_if("autoport", "no");
        read(element, rows::KEYMAP, &mut one);
        for child in element.children.iter_mut().filter(|c| c.name == "listen") {
            match child.get("type") {
                Some("address") => {
                    child.see("type");
                    read(child, ADDRESS, &mut one);
                }
                Some("socket") => {
                    child.see("type");
                    read(child, SOCKET, &mut one);
                }
                _ => {}
            }
        }
        // The older spellings of the same.
        for (attribute, key) in [("listen", "listen"), ("socket", "socket")] {
            if let Some(value) = element.get(attribute).map(str::to_owned) {
                if peek(&one, key).is_none() {
                    put(&mut one, key, value.as_str().into());
                }
                if peek_text(&one, key) == Some(&value) {
                    element.see(attribute);
                }
            }
        }
        list.push(one);
    }
    if !list.is_empty() {
        put(&mut import.out, "graphics", list.into());
    }
}

pub(super) fn write_video(rest: &mut Value, devices: &mut Element) {
    for one in members(rest, "video").iter_mut().filter(|v| v.is_object()) {
        let made = whole(one, |one| {
            let mut element = Element::new("video");
            write(one, rows::VIDEO, &mut element);
            let model = element.child("model")?;
            model.get("type").is_some().then_some(element)
        });
        devices.children.extend(made);
    }
}

pub(super) fn read_video(devices: &mut Element, import: &mut Import) {
    let mut list = Vec::new();
    for element in devices.children.iter_mut().filter(|c| c.name == "video") {
        let mut one = json!({});
        read(element, rows::VIDEO, &mut one);
        if peek(&one, "model").is_some() {
            list.push(one);
        }
    }
    if !list.is_empty() {
        put(&mut import.out, "video", list.into());
    }
}

/// A device that is one element of its own name, where `model: none` is no element.
pub(super) fn write_single(rest: &mut Value, key: &str, rows: &[Row], devices: &mut Element) {
    if !object(rest, key) || drop_none(rest, key) {
        return;
    }
    let Some(value) = slot(rest, key) else { return };
    devices.children.extend(whole(value, |value| {
        let mut element = Element::new(key);
        write(value, rows, &mut element);
        element.get("model").is_some().then_some(element)
    }));
}

pub(super) fn read_single(devices: &mut Element, key: &str, rows: &[Row], into: &mut Value) {
    if let Some(element) = devices.child_mut(key) {
        let mut one = json!({});
        read(element, rows, &mut one);
        if peek(&one, "model").is_some() {
            put(into, key, one);
        }
    }
}

pub(super) fn read_tpm(devices: &mut Element, into: &mut Value) {
    if let Some(element) = devices.child_mut("tpm") {
        let mut one = json!({});
        read(element, rows::TPM, &mut one);
        read(element, rows::TPM_PATH, &mut one);
        if peek(&one, "type").is_some() {
            put(into, "tpm", one);
        }
    }
}

pub(super) fn write_balloon(rest: &mut Value, devices: &mut Element) {
    let Some(balloon) = slot(rest, "balloon") else {
        return;
    };
    devices.children.extend(whole(balloon, |balloon| {
        let mut element = Element::new("memballoon");
        write(balloon, rows::BALLOON, &mut element);
        element.get("model").is_some().then_some(element)
    }));
}

pub(super) fn read_balloon(devices: &mut Element, into: &mut Value) {
    if let Some(element) = devices.child_mut("memballoon") {
        let mut one = json!({});
        read(element, rows::BALLOON, &mut one);
        if peek(&one, "model").is_some() {
            put(into, "balloon", one);
        }
    }
}

pub(super) fn write_rng(rest: &mut Value, devices: &mut Element, wide: Wide) {
    let Some(rng) = slot(rest, "rng").filter(|r| r.is_object()) else {
        return;
    };
    if peek(rng, "enabled") == Some(&Value::Bool(false)) {
        rng.take();
        return;
    }
    take(rng, "enabled");
    let mut element = Element::new("rng").with("model", "virtio");
    element.need("backend").set("model", "random");
    let period_alone = peek(rng, "rate_bytes").is_none();
    write(rng, &rows::RNG[..2], &mut element);
    if !period_alone {
        write(rng, &rows::RNG[2..3], &mut element);
    }
    write(rng, &rows::RNG[3..], &mut element);
    write_virtio(
        &mut element,
        Wide {
            iommu: false,
            ..wide
        },
        true,
    );
    element
        .children
        .sort_by_key(|c| c.name != "driver" && c.name != "rate");
    devices.push(element);
}

pub(super) fn read_rng(devices: &mut Element, into: &mut Value, wide: Wide) {
    if let Some(element) = devices.child_mut("rng") {
        if element.child("backend").and_then(|b| b.get("model")) != Some("random") {
            return;
        }
        see_model(element, wide);
        let mut one = json!({"enabled": true});
        let named = element.child("backend").is_some_and(|b| !b.text.is_empty());
        let rows = if named {
            rows::RNG
        } else {
            &rows::RNG[..rows::RNG.len() - 1]
        };
        read(element, rows, &mut one);
        put(into, "rng", one);
    }
}

pub(super) fn write_vsock(rest: &mut Value, devices: &mut Element, wide: Wide) {
    let Some(vsock) = slot(rest, "vsock").filter(|v| v.is_object()) else {
        return;
    };
    let automatic = peek(vsock, "auto") == Some(&Value::Bool(true));
    let cid = peek(vsock, "cid").is_some();
    if !automatic && !cid {
        if peek(vsock, "auto") == Some(&Value::Bool(false)) {
            vsock.take();
        }
        return;
    }
    let own = peek(vsock, "iommu").is_some();
    let mut element = Element::new("vsock").with("model", "virtio");
    write(vsock, rows::VSOCK, &mut element);
    write(vsock, rows::IOMMU, &mut element);
    write_virtio(&mut element, wide, own);
    devices.push(element);
}

pub(super) fn read_vsock(devices: &mut Element, import: &mut Import, wide: Wide) {
    if let Some(element) = devices.child_mut("vsock") {
        let mut one = json!({});
        read_virtio(element, import, wide);
        read(element, &rows::VSOCK[..1], &mut one);
        if peek(&one, "auto") == Some(&Value::Bool(true)) {
            // The number that libvirt gave this time.
            if let Some(cid) = element.child_mut("cid") {
                cid.see("address");
            }
        } else {
            read(element, &rows::VSOCK[1..], &mut one);
        }
        if one.as_object().is_some_and(|o| !o.is_empty()) {
            put(&mut import.out, "vsock", one);
        }
    }
}

pub(super) fn read_sound(devices: &mut Element, into: &mut Value) {
    read_single(devices, "sound", rows::SOUND, into);
    let spice = |c: &Element| c.name == "graphics" && c.get("type") == Some("spice");
    let spice = devices.children.iter().any(spice);
    for audio in devices.children.iter_mut().filter(|c| c.name == "audio") {
        // What libvirt adds for every machine since 7.4, and where it leads follows from the screen.
        let added = match audio.get("type") {
            Some("none") => true,
            Some("spice") => spice,
            _ => false,
        };
        if added && audio.get("id") == Some("1") && audio.children.is_empty() {
            audio.see_all();
        }
    }
}
