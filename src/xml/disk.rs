//! Disks, and the controllers whose options are said at the disk in our language.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::domain::Wide;
use super::element::Element;
use super::import::Import;
use super::rows;
use super::table::{
    Form, Row, members, peek, peek_text, put, read, row, slot, take, take_if, take_text, write,
};

/// What all SCSI disks share because it belongs to their controller.
const SHARED: [&str; 3] = ["iothread", "queues", "iommu"];

const CONTROLLER: &[Row] = &[
    row("queues", "driver/@queues", Form::Number),
    row("iothread", "driver/@iothread", Form::Number),
    row("iommu", "driver/@iommu", super::table::ON),
];

pub(super) fn write_disks(rest: &mut Value, devices: &mut Element, wide: Wide) {
    let mut controller = None;
    for disk in members(rest, "disks").iter_mut().filter(|d| d.is_object()) {
        if bus_of_disk(disk) == Some("scsi") {
            let shared = controller.get_or_insert_with(|| json!({}));
            for key in SHARED {
                let value = peek(disk, key).cloned();
                if let Some(value) = value
                    && peek(shared, key).is_none_or(|v| *v == value)
                {
                    put(shared, key, value);
                    take(disk, key);
                }
            }
        }
        devices.push(write_disk(disk, wide));
    }
    if let Some(mut shared) = controller {
        let model = if wide.modern_only {
            MODERN
        } else {
            "virtio-scsi"
        };
        let mut element = controller_element("scsi").with("model", model);
        write(&mut shared, CONTROLLER, &mut element);
        devices.push(element);
    }
}

/// The controllers that are not of the disks. USB comes last: libvirt puts the one that it adds itself there, and the
/// order decides over the addresses.
pub(super) fn write_controllers(rest: &mut Value, devices: &mut Element, wide: Wide) {
    if has_ports(rest) {
        write_port_controller(devices, wide);
    }
    if let Some(model) = peek_text(rest, "usb.model").map(str::to_owned) {
        let mut element = controller_element("usb");
        write(rest, rows::USB, &mut element);
        if element.get("model") == Some(model.as_str()) {
            devices.push(element);
        }
    }
}

/// The model of a virtio device that has no legacy interface.
pub(super) const MODERN: &str = "virtio-non-transitional";

pub(super) fn controller_element(kind: &str) -> Element {
    Element::new("controller")
        .with("type", kind)
        .with("index", "0")
}

fn write_disk(disk: &mut Value, wide: Wide) -> Element {
    let mut element = Element::new("disk");
    let block = peek_text(disk, "type") == Some("block");
    if block || peek_text(disk, "type") == Some("file") {
        take(disk, "type");
    }
    element.set("type", if block { "block" } else { "file" });
    write(disk, rows::DISK, &mut element);
    let virtio = matches!(bus_of_disk(disk), None | Some("virtio"));
    if virtio {
        write(disk, rows::VIRTIO_DRIVER, &mut element);
        if wide.modern_only {
            element.set("model", MODERN);
        }
    } else if peek(disk, "iommu") == Some(&Value::Bool(false)) {
        // Only virtio can be behind one.
        take(disk, "iommu");
    }
    if let Some(driver) = element.child_mut("driver") {
        let rest = std::mem::take(&mut driver.attributes);
        driver.set("name", "qemu");
        driver.attributes.extend(rest);
    }
    if let Some(path) = take_text(disk, "path") {
        let attribute = if block { "dev" } else { "file" };
        let source = element.push(Element::new("source").with(attribute, path));
        if peek_text(disk, "encryption") == Some("luks") {
            take(disk, "encryption");
            let encryption = source.push(Element::new("encryption").with("format", "luks"));
            write(disk, SECRET, encryption);
            if let Some(secret) = encryption.child_mut("secret") {
                secret.attributes.reverse();
                secret.set("type", "passphrase");
                secret.attributes.reverse();
            }
        }
    }
    take_if(disk, "encryption", "none");
    write_backing(disk, &mut element);
    write(disk, rows::DISK_END, &mut element);
    if let Some(blocks) = element.child_mut("blockio")
        && let Some(size) = blocks.get("logical_block_size").map(str::to_owned)
    {
        // QEMU refuses logical blocks that are larger than physical ones, which are 512 by default.
        blocks.set("physical_block_size", size);
    }
    element
}

const SECRET: &[Row] = &[row("secret.uuid", "secret/@uuid", Form::Text)];

pub(super) fn read_disks(devices: &mut Element, import: &mut Import, wide: Wide) {
    let controllers = read_controllers(devices, import, wide);
    let (mut disks, mut warned) = (Vec::new(), false);
    for element in devices.children.iter_mut().filter(|c| c.name == "disk") {
        let block = match element.get("type") {
            None | Some("file") => false,
            Some("block") => true,
            // Another kind of source is a disk that our language does not have: it is noted as a whole.
            Some(_) => continue,
        };
        element.see("type");
        let mut disk = json!({"type": if block { "block" } else { "file" }});
        read_disk(element, block, wide, &mut disk);
        if peek_text(&disk, "bus") == Some("scsi") {
            if controllers.is_empty() && !warned && import.on_pc() {
                import.note(element.place, LSILOGIC.into(), LSILOGIC_HELP);
                warned = true;
            }
            let index = element
                .child("address")
                .filter(|a| a.get("type") == Some("drive"))
                .and_then(|a| a.get("controller"))
                .unwrap_or("0");
            let of = controllers
                .iter()
                .find(|c| c.0 == index)
                .or(controllers.first());
            for key in SHARED {
                if let Some(value) = of.and_then(|(_, options)| peek(options, key)) {
                    put(&mut disk, key, value.clone());
                }
            }
        }
        disks.push(disk);
    }
    if !disks.is_empty() {
        put(&mut import.out, "disks", disks.into());
    }
}

fn read_disk(element: &mut Element, block: bool, wide: Wide, disk: &mut Value) {
    read(element, rows::DISK, disk);
    read(element, rows::VIRTIO_DRIVER, disk);
    read(element, rows::DISK_END, disk);
    if let Some(blocks) = element.child_mut("blockio")
        && let Some(size) = blocks.get("logical_block_size").map(str::to_owned)
    {
        blocks.see_if("physical_block_size", &size);
    }
    if let Some(source) = element.child_mut("source") {
        let rows: &[Row] = if block { DEV } else { FILE };
        read(source, rows, disk);
        source.see_if("startupPolicy", "mandatory");
        read_encryption(source, disk);
    }
    // The older place of the same element.
    read_encryption(element, disk);
    if peek(disk, "bus").is_none()
        && let Some(bus) = element
            .child("target")
            .and_then(|t| t.get("dev"))
            .and_then(bus_of)
        && element
            .child("target")
            .is_some_and(|t| t.get("bus").is_none())
    {
        put(disk, "bus", bus.into());
    }
    if wide.modern_only {
        element.see_if("model", MODERN);
    } else {
        element.see_if("model", "virtio");
    }
    element.see_if("snapshot", "internal");
    read_backing(element, disk);
}

/// The chain, and its end: libvirt looks for no more than it is told.
fn write_backing(disk: &mut Value, element: &mut Element) {
    let count = members(disk, "backing").len();
    let mut at = element;
    for index in 0..count {
        let Some(member) = members(disk, "backing").get_mut(index) else {
            return;
        };
        let (Some(path), format) = (take_text(member, "path"), take_text(member, "format")) else {
            return;
        };
        at = at.push(Element::new("backingStore").with("type", "file"));
        at.push(Element::new("format").with("type", format.unwrap_or_else(|| "raw".into())));
        at.push(Element::new("source").with("file", path));
    }
    if count > 0 {
        at.push(Element::new("backingStore"));
    }
}

/// Formats that a member of a chain may have here.
const CHAINED: [&str; 5] = ["raw", "qcow2", "vmdk", "vdi", "vhdx"];

fn read_backing(element: &mut Element, disk: &mut Value) {
    let mut chain = Vec::new();
    let mut at = element;
    while let Some(backing) = at.child_mut("backingStore") {
        if backing.children.is_empty() && backing.attributes.is_empty() {
            backing.see_all();
            break;
        }
        let format = backing.child("format").and_then(|f| f.get("type"));
        let format = format.filter(|f| CHAINED.contains(f)).map(str::to_owned);
        let path = backing.child("source").and_then(|s| s.get("file"));
        let (Some(format), Some(path)) = (format, path.map(str::to_owned)) else {
            break;
        };
        if !backing.see_if("type", "file") {
            break;
        }
        if let Some(child) = backing.child_mut("format") {
            child.see("type");
        }
        if let Some(child) = backing.child_mut("source") {
            child.see("file");
        }
        chain.push(json!({"path": path, "format": format}));
        at = backing;
    }
    if !chain.is_empty() {
        put(disk, "backing", chain.into());
    }
}

/// What libvirt adds for SCSI disks on a PC when nobody names a model.
const LSILOGIC: &str = "libvirt takes an lsilogic controller here; `bus: scsi` is virtio-scsi";
const LSILOGIC_HELP: &str = "A guest of Linux 2.6.24 or later has both drivers";

const FILE: &[Row] = &[row("path", "@file", Form::Text)];
const DEV: &[Row] = &[row("path", "@dev", Form::Text)];

fn read_encryption(source: &mut Element, disk: &mut Value) {
    let Some(encryption) = source.child_mut("encryption") else {
        return;
    };
    if peek(disk, "encryption").is_none() && encryption.see_if("format", "luks") {
        put(disk, "encryption", "luks".into());
        encryption.see_if("engine", "qemu");
        if let Some(secret) = encryption.child_mut("secret")
            && secret.see_if("type", "passphrase")
        {
            read(encryption, SECRET, disk);
        }
    }
}

fn bus_of_disk(disk: &Value) -> Option<&str> {
    peek_text(disk, "bus").or_else(|| peek_text(disk, "target").and_then(bus_of))
}

/// The bus that libvirt concludes from the name of a disk.
fn bus_of(target: &str) -> Option<&'static str> {
    let buses = [
        ("vd", "virtio"),
        ("sd", "scsi"),
        ("hd", "ide"),
        ("fd", "fdc"),
        ("ubd", "usb"),
    ];
    buses.iter().find(|b| target.starts_with(b.0)).map(|b| b.1)
}

/// Reads what controllers say; gives the options of the SCSI controllers by index.
fn read_controllers(
    devices: &mut Element,
    import: &mut Import,
    wide: Wide,
) -> Vec<(String, Value)> {
    let mut scsi = Vec::new();
    let mut usb = false;
    for element in devices
        .children
        .iter_mut()
        .filter(|c| c.name == "controller")
    {
        let index = element.get("index").unwrap_or("0").to_owned();
        match element.get("type") {
            // Where they sit is libvirt's choice: the same machine and devices get the same ones again.
            Some("pci" | "sata" | "ide" | "fdc" | "ccid") if placed(element) => {
                import.placed(element);
            }
            Some("virtio-serial") if index == "0" => {
                element.see("type");
                element.see("index");
                see_model(element, wide);
                if element.children.iter().any(|c| c.name == "driver") {
                    let mut options = json!({});
                    read(element, rows::IOMMU, &mut options);
                    import.wide_iommu(&options);
                }
            }
            Some("scsi") => {
                let known = element.get("model").is_none_or(|m| m == "virtio-scsi")
                    || (wide.modern_only && element.get("model") == Some(MODERN));
                if known {
                    let mut options = json!({});
                    for name in ["type", "index", "model"] {
                        element.see(name);
                    }
                    read(element, CONTROLLER, &mut options);
                    if element.get("model").is_none() && import.on_pc() {
                        import.note(element.place, LSILOGIC.into(), LSILOGIC_HELP);
                    }
                    scsi.push((index, options));
                }
            }
            Some("usb") if index == "0" && !usb => {
                element.see("type");
                element.see("index");
                read(element, rows::USB, &mut import.out);
                usb = true;
            }
            _ => {}
        }
    }
    scsi
}

/// Whether a controller says nothing but where it is.
fn placed(element: &Element) -> bool {
    element
        .children
        .iter()
        .all(|c| matches!(c.name.as_str(), "model" | "target" | "address" | "alias"))
        && element
            .children
            .iter()
            .filter(|c| c.name == "target")
            .all(|t| {
                t.attributes.iter().all(|a| {
                    matches!(
                        a.name.as_str(),
                        "chassis" | "port" | "chassisNr" | "busNr" | "index"
                    )
                }) && t.children.is_empty()
            })
}

/// Accepts the model that follows from the machine.
pub(super) fn see_model(element: &mut Element, wide: Wide) {
    let model = if wide.modern_only { MODERN } else { "virtio" };
    element.see_if("model", model);
}

/// Adds the controller of virtio ports where it has to say something.
fn write_port_controller(devices: &mut Element, wide: Wide) {
    if !wide.iommu && !wide.modern_only {
        return;
    }
    let mut element = controller_element("virtio-serial");
    if wide.modern_only {
        element.set("model", MODERN);
    }
    if wide.iommu {
        element.push(Element::new("driver").with("iommu", "on"));
    }
    devices.push(element);
}

/// Whether the domain has anything that sits on the controller of virtio ports.
fn has_ports(rest: &Value) -> bool {
    peek(rest, "agent") == Some(&Value::Bool(true))
        || peek(rest, "consoles")
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
}

/// The same for any device without a key of its own: `driver iommu='on'` and the model that the machine demands.
pub(super) fn write_virtio(element: &mut Element, wide: Wide, own: bool) {
    if wide.modern_only {
        element.set("model", MODERN);
    }
    if wide.iommu && !own {
        element.need("driver").set("iommu", "on");
    }
}

/// Reads what [`write_virtio`] wrote.
pub(super) fn read_virtio(element: &mut Element, import: &mut Import, wide: Wide) {
    see_model(element, wide);
    let mut options = json!({});
    read(element, rows::IOMMU, &mut options);
    import.wide_iommu(&options);
}

pub(super) fn object(value: &mut Value, key: &str) -> bool {
    slot(value, key).is_some_and(|v| v.is_object())
}
