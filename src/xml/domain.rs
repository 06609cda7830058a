//! Domain to XML: the order of libvirt's own documents.

#![forbid(unsafe_code)]

use serde_json::Value;

use super::element::Element;
use super::table::{peek, peek_text, take, take_if, take_text, write};
use super::{chardev, devices, disk, machine, metadata, os, rows};
use crate::compile::NO_ROOT;
use crate::domain::Domain;

/// What decides over every virtio device at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wide {
    /// Devices without a key of their own get `driver iommu='on'`.
    pub(super) iommu: bool,
    /// An encrypted guest on a machine with conventional PCI: a device there has a legacy interface, which cannot
    /// be behind an IOMMU, unless its model says that it has none.
    pub(super) modern_only: bool,
}

impl Wide {
    pub(super) fn new(machine: Option<&str>, security: Option<&str>, iommu: bool) -> Self {
        let sev = security.is_some_and(|t| t.starts_with("sev"));
        let conventional = machine
            .is_some_and(|m| m == "pc" || (m.starts_with("pc-") && !m.starts_with("pc-q35")));
        Wide {
            iommu: iommu || sev,
            modern_only: sev && conventional,
        }
    }
}

/// The tree of a domain before any patch, and the keys that XML cannot say.
pub fn tree(domain: &Domain) -> (Element, Vec<String>) {
    let mut rest = domain.0.clone();
    // Patches are of the document, not in it.
    take(&mut rest, "xml");
    let root = write_domain(&mut rest);
    let mut unsaid = Vec::new();
    left(&rest, &mut String::new(), &mut unsaid);
    (root, unsaid)
}

fn write_domain(rest: &mut Value) -> Element {
    let root = &mut Element::new("domain");
    let wide = Wide::new(
        peek_text(rest, "machine"),
        peek_text(rest, "security.type"),
        peek_text(rest, "iommu") == Some("on")
            || peek(rest, "console.iommu") == Some(&Value::Bool(true)),
    );
    // What they decide is said at the devices.
    if peek(rest, "console.iommu").is_some_and(Value::is_boolean) {
        take(rest, "console.iommu");
    }
    if matches!(peek_text(rest, "iommu"), Some("auto" | "on" | "off")) {
        take(rest, "iommu");
    }
    // They keep words off a command line that is whole here.
    take_if(rest, "kernel.console", "none");
    take_if(rest, "root.device", NO_ROOT);
    write(rest, rows::HEAD, root);
    metadata::write_metadata(rest, root);
    write(rest, rows::MEMORY, root);
    machine::write_pages(rest, root);
    if let Some(vcpu) = root.child_mut("vcpu") {
        vcpu.set("placement", "static");
    }
    machine::write_tuning(rest, root);
    os::write_os(rest, root);
    write(rest, rows::FEATURES, root);
    machine::write_cpu(rest, root);
    write(rest, rows::CLOCK, root);
    if let Some(clock) = root.child_mut("clock")
        && clock.get("offset").is_none()
    {
        // The schema demands one; this is libvirt's own default.
        clock.set("offset", "utc");
    }
    write(rest, rows::EVENTS, root);
    write_devices(rest, root.need("devices"), wide);
    machine::write_security(rest, root);
    std::mem::take(root)
}

fn write_devices(rest: &mut Value, devices: &mut Element, wide: Wide) {
    if let Some(emulator) = take_text(rest, "emulator") {
        devices.need("emulator").text = emulator;
    }
    disk::write_disks(rest, devices, wide);
    disk::write_controllers(rest, devices, wide);
    devices::write_shares(rest, devices, wide);
    devices::write_nets(rest, devices);
    chardev::write_all(rest, devices);
    devices::write_inputs(rest, devices, wide);
    devices::write_tpm(rest, devices);
    devices::write_graphics(rest, devices);
    devices::write_single(rest, "sound", rows::SOUND, devices);
    devices::write_video(rest, devices);
    devices::write_single(rest, "watchdog", rows::WATCHDOG, devices);
    devices::write_balloon(rest, devices);
    devices::write_rng(rest, devices, wide);
    devices::write_vsock(rest, devices, wide);
}

/// Collects what nobody said, by path. `null` is "no limit" and what was said.
fn left(value: &Value, path: &mut String, unsaid: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (name, value) in map {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                left(value, path, unsaid);
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                left(value, path, unsaid);
                path.truncate(length);
            }
        }
        _ => unsaid.push(path.clone()),
    }
}
