//! XML to a scenario, and a word about everything that has no equivalent.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::{Map, Value};

use super::domain::Wide;
use super::element::{Attribute, Element, Place};
use super::parse::parse;
use super::table::{members, peek, peek_text, put, read, slot};
use super::{absent, chardev, devices, disk, machine, metadata, os, rows};
use crate::diag::{Diagnostic, Diagnostics, Sources, Span};

/// What an XML document says in our language.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The scenario, in canonical keys.
    pub scenario: Value,
    /// What has no equivalent, by line.
    pub notes: Diagnostics,
}

/// Most notes of one document; more are counted.
const MAX_NOTES: usize = 500;

/// The state of one import.
pub(super) struct Import {
    pub(super) out: Value,
    /// Whether a stream is on the terminal already; only one can be.
    pub(super) terminal: bool,
    notes: Vec<Diagnostic>,
    unlisted: usize,
    placed: Vec<Place>,
    source: u16,
}

/// Reads the domain XML of libvirt. Everything of it that our language does not have is in the notes, except what
/// libvirt writes with one value only or anew for each run.
///
/// # Errors
/// The text is not well-formed, or not a domain.
pub fn import(name: &str, text: &str) -> Result<Imported, Diagnostics> {
    let mut sources = Sources::default();
    let source = sources.add_file(name, veiled(text).into());
    let fail = |sources, diagnostic| Err(Diagnostics::new(vec![diagnostic], Arc::new(sources)));
    let mut root = match parse(text) {
        Ok(root) => root,
        Err(wrong) => {
            let span = Span::new(source, wrong.place.start, wrong.place.end);
            let mut d = Diagnostic::error("E-XML", span, wrong.message);
            if !wrong.help.is_empty() {
                d = d.help(wrong.help);
            }
            return fail(sources, d);
        }
    };
    if root.name != "domain" {
        let span = Span::new(source, root.place.start, root.place.end);
        let message = format!("This is a <{}>, not a <domain>", root.name);
        let d = Diagnostic::error("E-XML", span, message);
        return fail(
            sources,
            d.help("`virsh dumpxml --inactive NAME` writes the XML of a domain"),
        );
    }
    if let Some(protection) = root.child("launchSecurity")
        && !matches!(protection.get("type"), Some("sev" | "sev-snp"))
    {
        let span = Span::new(source, protection.place.start, protection.place.end);
        let kind = protection.get("type").unwrap_or("of no type");
        let d = Diagnostic::error(
            "E-XML",
            span,
            format!("This machine is protected by {kind}, which scenarios cannot say"),
        );
        return fail(
            sources,
            d.why("Without it the scenario would be a machine that nobody protects")
                .help("Take <launchSecurity> out of the document if that is meant"),
        );
    }
    let mut import = Import {
        out: Value::Object(Map::new()),
        terminal: false,
        notes: Vec::new(),
        unlisted: 0,
        placed: Vec::new(),
        source,
    };
    import.domain(&mut root);
    import.leftovers(&root);
    import.finish();
    Ok(Imported {
        scenario: import.out,
        notes: Diagnostics::new(import.notes, Arc::new(sources)),
    })
}

impl Import {
    fn domain(&mut self, root: &mut Element) {
        root.seen = true;
        let wide = Wide::new(
            root.child("os")
                .and_then(|os| os.child("type"))
                .and_then(|t| t.get("machine")),
            root.child("launchSecurity").and_then(|s| s.get("type")),
            false,
        );
        let out = &mut self.out;
        read(root, rows::HEAD, out);
        metadata::read_metadata(root, out);
        read(root, rows::MEMORY, out);
        machine::read_pages(root, self);
        let out = &mut self.out;
        machine::read_tuning(root, out);
        os::read_os(root, out);
        read(root, rows::FEATURES, out);
        machine::read_cpu(root, out);
        read(root, rows::CLOCK, out);
        read(root, rows::EVENTS, out);
        machine::read_security(root, out);
        let mut none = Element::new("devices");
        let devices = root.child_mut("devices").unwrap_or(&mut none);
        devices.seen = true;
        self.devices(devices, wide);
        absent::complete(root, self);
        self.iommu(wide);
        os::keep_cmdline(root, self);
        self.volatile(root);
    }

    fn devices(&mut self, devices: &mut Element, wide: Wide) {
        if let Some(emulator) = devices.child_mut("emulator") {
            emulator.seen = true;
            emulator.text_seen = true;
            put(&mut self.out, "emulator", emulator.text.as_str().into());
        }
        disk::read_disks(devices, self, wide);
        devices::read_shares(devices, self, wide);
        devices::read_nets(devices, self);
        chardev::read_all(devices, self);
        devices::read_inputs(devices, self, wide);
        devices::read_tpm(devices, &mut self.out);
        devices::read_graphics(devices, self);
        devices::read_sound(devices, &mut self.out);
        devices::read_video(devices, self);
        devices::read_single(devices, "watchdog", rows::WATCHDOG, &mut self.out);
        devices::read_balloon(devices, &mut self.out);
        devices::read_rng(devices, &mut self.out, wide);
        devices::read_vsock(devices, self, wide);
    }

    /// Where all virtio devices are behind the IOMMU, those that are not must say so.
    fn iommu(&mut self, wide: Wide) {
        if !wide.iommu && peek_text(&self.out, "iommu") != Some("on") {
            return;
        }
        if wide.iommu
            && let Some(map) = self.out.as_object_mut()
        {
            // SEV means it already.
            map.remove("iommu");
        }
        let outside = |device: &mut Value, key: &str| {
            let model = peek_text(device, key);
            let virtio = model.is_some_and(|m| m.starts_with("virtio") || m == "scsi");
            if virtio && peek(device, "iommu").is_none() {
                put(device, "iommu", false.into());
            }
        };
        for (list, key) in [("disks", "bus"), ("nets", "model"), ("video", "model")] {
            members(&mut self.out, list)
                .iter_mut()
                .for_each(|device| outside(device, key));
        }
        if let Some(balloon) = slot(&mut self.out, "balloon") {
            outside(balloon, "model");
        }
        if let Some(rng) = slot(&mut self.out, "rng")
            && peek(rng, "iommu").is_none()
        {
            put(rng, "iommu", false.into());
        }
    }

    /// What libvirt writes anew for each run, and what it writes with one value only.
    fn volatile(&mut self, root: &mut Element) {
        root.see("id");
        let runs = [
            ("seclabel", "type", "dynamic"),
            ("seclabel", "type", "none"),
        ];
        for child in &mut root.children {
            if runs
                .iter()
                .any(|(name, key, value)| child.name == *name && child.get(key) == Some(value))
            {
                child.see_all();
            }
            if child.name == "resource"
                && child.children.len() == 1
                && child
                    .child("partition")
                    .is_some_and(|p| p.text == "/machine")
            {
                child.see_all();
            }
        }
        if let Some(devices) = root.child_mut("devices") {
            for device in &mut devices.children {
                self.addresses(device);
            }
        }
    }

    fn addresses(&mut self, device: &mut Element) {
        for child in &mut device.children {
            match child.name.as_str() {
                "address" => {
                    child.see_all();
                    self.placed.push(child.place);
                }
                "alias" => child.see_all(),
                "source" if device.name == "interface" => {
                    child.see("portid");
                    if child.get("network").is_some() {
                        child.see("bridge");
                    }
                }
                "source" if device.name == "disk" => child.see("index"),
                _ => {}
            }
        }
    }

    /// A controller that says nothing but where things are.
    pub(super) fn placed(&mut self, element: &mut Element) {
        element.see_all();
        self.placed.push(element.place);
    }

    /// Whether libvirt's choices for a PC hold.
    pub(super) fn on_pc(&self) -> bool {
        matches!(peek_text(&self.out, "arch"), None | Some("x86_64" | "i686"))
    }

    /// Remembers that a device without a key of its own is behind the IOMMU.
    pub(super) fn wide_iommu(&mut self, options: &Value) {
        if peek(options, "iommu") == Some(&Value::Bool(true)) {
            put(&mut self.out, "iommu", "on".into());
        }
    }

    pub(super) fn note(&mut self, place: Place, message: String, help: &str) {
        if self.notes.len() >= MAX_NOTES {
            self.unlisted += 1;
            return;
        }
        let span = Span::new(self.source, place.start, place.end);
        let mut d = Diagnostic::warning("W-XML", span, message);
        if !help.is_empty() {
            d = d.help(help);
        }
        self.notes.push(d);
    }

    /// One note for everything that nobody read; of an element that nobody touched, one for all of it.
    fn leftovers(&mut self, element: &Element) {
        if !element.touched() {
            let message = format!("<{}> has no equivalent in a scenario", shape(element));
            self.note(element.place, message, "");
            return;
        }
        for a in element.attributes.iter().filter(|a| !a.seen) {
            if a.name != "xmlns" && !a.name.starts_with("xmlns:") {
                let (said, name) = (spelled(a), &element.name);
                let message = format!("`{said}` of <{name}> has no equivalent in a scenario");
                self.note(a.place, message, "");
            }
        }
        if !element.text_seen && !element.text.trim().is_empty() {
            let message = format!(
                "The text of <{}> has no equivalent in a scenario",
                element.name
            );
            self.note(element.place, message, "");
        }
        for child in &element.children {
            self.leftovers(child);
        }
    }

    fn finish(&mut self) {
        self.notes.sort_by_key(|d| d.span.start());
        if let Some(first) = self.placed.first().copied() {
            let count = self.placed.len();
            let span = Span::new(self.source, first.start, first.end);
            let what = match count {
                1 => "1 address or controller was".to_owned(),
                n => format!("{n} addresses and controllers were"),
            };
            let message = format!("{what} left out: each side places its own devices");
            let d = Diagnostic::warning("W-XML", span, message).why(
                "A guest that names its interfaces after their PCI slots may name them otherwise",
            );
            self.notes.push(d);
        }
        if self.unlisted > 0 {
            let message = format!(
                "{} more parts have no equivalent in a scenario",
                self.unlisted
            );
            self.notes
                .push(Diagnostic::warning("W-XML", Span::NONE, message));
        }
    }
}

/// The attribute that holds the password of a display.
const SECRET: &str = "passwd";

/// The text for showing: passwords are stars, so that no message prints one. Every other byte stays in its place.
fn veiled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(SECRET) {
        let (before, from) = rest.split_at(at + SECRET.len());
        out.push_str(before);
        rest = from;
        let value = from.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '=');
        let Some(quote @ ('\'' | '"')) = value.chars().next() else {
            continue;
        };
        let start = from.len() - value.len() + 1;
        let length = value[1..].find(quote).unwrap_or(value.len() - 1);
        out.push_str(&from[..start]);
        out.extend(std::iter::repeat_n('*', length));
        rest = &from[start + length..];
    }
    out.push_str(rest);
    out
}

fn spelled(a: &Attribute) -> String {
    if a.name == SECRET {
        return a.name.clone();
    }
    format!("{}='{}'", a.name, head(&a.value, MAX_SHOWN))
}

/// Longest value in a message.
const MAX_SHOWN: usize = 60;

fn head(text: &str, most: usize) -> String {
    let mut out: String = text.chars().take(most).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

/// An element as its start tag shows it, shortened.
fn shape(element: &Element) -> String {
    let mut out = head(&element.name, MAX_SHOWN);
    for a in element.attributes.iter().take(3) {
        out.push(' ');
        out.push_str(&spelled(a));
    }
    out
}

impl Element {
    fn touched(&self) -> bool {
        self.seen || self.children.iter().any(Element::touched)
    }
}
