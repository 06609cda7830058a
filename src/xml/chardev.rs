//! Serial ports, virtio consoles and ports: streams whose host end is an endpoint text.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::element::{Element, legal};
use super::import::Import;
use super::table::{members, peek, peek_text, put, take, take_text};

/// The port of the QEMU guest agent.
const AGENT: &str = "org.qemu.guest_agent.0";
/// Where libvirt puts the host ends of channels that name none.
const AUTOMATIC: &str = "/var/lib/libvirt/qemu/channel/";

/// Fills a character device with the host end that an endpoint text names.
fn write_endpoint(element: &mut Element, endpoint: &str) -> bool {
    let (kind, path) = match endpoint.split_once(':') {
        Some(("file", path)) if legal(path) => ("file", Some(path)),
        Some(("unix", path)) if legal(path) => ("unix", Some(path)),
        None if matches!(endpoint, "stdio" | "stdin" | "stdout" | "stderr") => ("pty", None),
        None if endpoint == "null" => ("null", None),
        _ => {
            element.set("type", "null");
            return false;
        }
    };
    element.set("type", kind);
    if let Some(path) = path {
        let mut source = Element::new("source");
        if kind == "unix" {
            source.set("mode", "bind");
        }
        element.push(source.with("path", path));
    }
    true
}

/// Writes the endpoint at a key of an object; what XML cannot say stays behind and the device is there with `null`.
fn write_end(from: &mut Value, key: &str, element: &mut Element) {
    match peek_text(from, key).map(str::to_owned) {
        Some(endpoint) => {
            if write_endpoint(element, &endpoint) {
                take(from, key);
            }
        }
        None => {
            element.set("type", "null");
        }
    }
}

pub(super) fn write_all(rest: &mut Value, devices: &mut Element) {
    let mut log = take_text(rest, "console.log");
    // Its effect is in the lists of the domain.
    take(rest, "console.implicit");
    for (port, serial) in members(rest, "serials").iter_mut().enumerate() {
        let mut element = Element::new("serial");
        write_end(serial, "to", &mut element);
        if peek(serial, "log") != Some(&Value::Bool(false)) {
            write_log(&mut element, log.take());
        }
        element.push(Element::new("target").with("port", port.to_string()));
        devices.push(element);
    }
    let mut port = 0;
    for console in members(rest, "consoles") {
        let mut element;
        if peek(console, "tty").is_some() {
            element = Element::new("console");
            write_end(console, "tty", &mut element);
            write_log(&mut element, log.take());
            let target = Element::new("target")
                .with("type", "virtio")
                .with("port", port.to_string());
            element.push(target);
            port += 1;
        } else {
            element = Element::new("channel");
            write_port(console, &mut element);
        }
        devices.push(element);
    }
    if let Some(log) = log {
        put(rest, "console.log", log.into());
    }
    match peek(rest, "agent") {
        Some(Value::Bool(true)) => {
            let mut element = Element::new("channel").with("type", "unix");
            // Without a source: libvirt chooses the socket.
            element.push(port_target().with("name", AGENT));
            devices.push(element);
            take(rest, "agent");
        }
        Some(Value::Bool(false)) => {
            take(rest, "agent");
        }
        _ => {}
    }
}

fn port_target() -> Element {
    Element::new("target").with("type", "virtio")
}

/// Everything that is written to the first port or line goes to this file too.
fn write_log(element: &mut Element, log: Option<String>) {
    if let Some(path) = log {
        element.push(Element::new("log").with("file", path).with("append", "off"));
    }
}

/// A named port has one stream in XML: what goes out. Where the guest reads from is the same one or nothing.
fn write_port(console: &mut Value, element: &mut Element) {
    let text = |key| peek_text(console, key).map(str::to_owned);
    let (input, output) = (text("in"), text("out"));
    match (input.as_deref(), output.as_deref()) {
        (None | Some("null"), _) => {
            write_end(console, "out", element);
            take(console, "in");
        }
        // Both ways through one socket or one terminal.
        (Some(a), Some(b)) if a == b && !a.starts_with("file:") => {
            write_end(console, "out", element);
            if peek(console, "out").is_none() {
                take(console, "in");
            }
        }
        (Some("stdin"), Some("stdout")) => {
            write_end(console, "out", element);
            take(console, "in");
        }
        (Some(_), _) => write_end(console, "out", element),
    }
    let mut target = port_target();
    if let Some(name) = take_text(console, "name") {
        target.set("name", name);
    }
    element.push(target);
}

/// The endpoint text for the host end of a character device.
fn read_endpoint(element: &mut Element, import: &mut Import) -> String {
    let kind = element.get("type").unwrap_or("pty").to_owned();
    let path = element
        .child("source")
        .and_then(|s| s.get("path"))
        .map(str::to_owned);
    match (kind.as_str(), path) {
        ("null", _) => {
            element.see("type");
            "null".into()
        }
        ("file", Some(path)) => {
            element.see("type");
            see_source(element);
            if let Some(source) = element.child_mut("source") {
                source.see_if("append", "off");
            }
            format!("file:{path}")
        }
        ("unix", Some(path))
            if element
                .child("source")
                .is_some_and(|s| s.get("mode").is_none_or(|m| m == "bind")) =>
        {
            element.see("type");
            see_source(element);
            format!("unix:{path}")
        }
        ("pty", path) => {
            element.see("type");
            // The number of a terminal lives as long as its run.
            element.see("tty");
            if path.is_some() {
                see_source(element);
            }
            if import.terminal {
                let text = "a second terminal has no equivalent; its host end becomes `null`";
                import.note(element.place, text.into(), "Name a socket: `unix:PATH`");
                return "null".into();
            }
            import.terminal = true;
            "stdio".into()
        }
        (kind, _) => {
            let text = format!("a host end of type `{kind}` has no equivalent; it becomes `null`");
            import.note(
                element.place,
                text,
                "Name a socket or a file: `unix:PATH`, `file:PATH`",
            );
            element.see("type");
            for child in &mut element.children {
                if matches!(child.name.as_str(), "source" | "protocol") {
                    child.see_all();
                }
            }
            "null".into()
        }
    }
}

fn see_source(element: &mut Element) {
    if let Some(source) = element.child_mut("source") {
        source.see("path");
        source.see_if("mode", "bind");
        source.seen = true;
    }
}

fn read_log(element: &mut Element, import: &mut Import) {
    let Some(log) = element.child_mut("log") else {
        return;
    };
    if let Some(file) = log.get("file").map(str::to_owned)
        && peek(&import.out, "console.log").is_none()
    {
        log.see("file");
        log.see_if("append", "off");
        put(&mut import.out, "console.log", file.into());
    }
}

pub(super) fn read_all(devices: &mut Element, import: &mut Import) {
    let (mut serials, mut consoles) = (Vec::new(), Vec::new());
    for element in &mut devices.children {
        let kind = element
            .child("target")
            .and_then(|t| t.get("type"))
            .map(str::to_owned);
        match (element.name.as_str(), kind.as_deref()) {
            ("serial", None | Some("isa-serial" | "serial" | "system-serial")) => {
                serials.push(read_serial(element, serials.len(), import));
            }
            ("console", None | Some("serial")) => {
                let port = element
                    .child("target")
                    .and_then(|t| t.get("port"))
                    .unwrap_or("0");
                if serials.is_empty() && port == "0" {
                    serials.push(read_serial(element, 0, import));
                } else if port.parse().is_ok_and(|p: usize| p < serials.len()) {
                    // libvirt shows the first serial port a second time, as a console.
                    element.see_all();
                }
            }
            ("console", Some("virtio")) => {
                let to = read_endpoint(element, import);
                read_log(element, import);
                see_target(element);
                consoles.push(json!({"tty": to}));
            }
            ("channel", Some("virtio")) => read_channel(element, &mut consoles, import),
            _ => {}
        }
    }
    for (key, list) in [("serials", serials), ("consoles", consoles)] {
        if !list.is_empty() {
            put(&mut import.out, key, list.into());
        }
    }
}

fn read_serial(element: &mut Element, port: usize, import: &mut Import) -> Value {
    let to = read_endpoint(element, import);
    read_log(element, import);
    if let Some(target) = element.child_mut("target") {
        target.see("type");
        target.see_if("port", &port.to_string());
        if let Some(model) = target.child_mut("model") {
            // The first is a PC's; the others are the ones of machines without an ISA bus.
            for name in ["isa-serial", "pl011", "16550a"] {
                model.see_if("name", name);
            }
        }
    }
    json!({"to": to})
}

fn see_target(element: &mut Element) {
    if let Some(target) = element.child_mut("target") {
        for name in ["type", "port", "state"] {
            target.see(name);
        }
    }
}

fn read_channel(element: &mut Element, consoles: &mut Vec<Value>, import: &mut Import) {
    let name = element
        .child("target")
        .and_then(|t| t.get("name"))
        .map(str::to_owned);
    let path = element.child("source").and_then(|s| s.get("path"));
    let automatic =
        element.get("type") == Some("unix") && path.is_none_or(|p| p.starts_with(AUTOMATIC));
    if automatic && name.as_deref() == Some(AGENT) && peek(&import.out, "agent").is_none() {
        element.see_all();
        put(&mut import.out, "agent", true.into());
        return;
    }
    if automatic {
        let text = "a channel whose socket libvirt chooses has no equivalent";
        import.note(
            element.place,
            text.into(),
            "Name its socket: `out: unix:PATH`",
        );
        element.see_all();
        return;
    }
    let out = read_endpoint(element, import);
    see_target(element);
    let mut console = json!({"out": out});
    if out.starts_with("unix:") || out == "stdio" {
        put(&mut console, "in", out.into());
    }
    if let Some(name) = name {
        if let Some(target) = element.child_mut("target") {
            target.see("name");
        }
        put(&mut console, "name", name.into());
    }
    consoles.push(console);
}
