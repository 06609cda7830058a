//! The devices of a domain as pairs: what the guest sees beside what stands behind it, whoever runs the machine.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::Domain;
use crate::scenario::value::size_text;
use crate::sev::{Level, policy};

/// A device of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainDevice {
    /// The scenario's key, such as `disks[0]` or `watchdog`.
    pub key: String,
    /// What the guest sees.
    pub guest: String,
    /// What stands behind it.
    pub host: String,
}

/// What stands behind a device that needs nothing of the host.
const EMULATOR: &str = "the emulator";

/// What the guest sees of the n-th member of a list, and what stands behind it; nothing where it is no device.
type Pair<'a> = &'a dyn Fn(usize, &Value) -> Option<(String, String)>;

/// Every device that a domain names, in the order of the key table.
pub fn domain_devices(domain: &Domain) -> Vec<DomainDevice> {
    let mut out = Vec::new();
    let mut add = |key: String, guest: String, host: String| {
        out.push(DomainDevice { key, guest, host });
    };
    let lists: [(&str, Pair<'_>); 7] = [
        ("disks", &disk),
        ("serials", &|number, value| {
            Some((format!("isa-serial ttyS{number}"), text(value, "to")))
        }),
        ("consoles", &|number, value| {
            let before = domain.list("consoles").get(..number).unwrap_or_default();
            let consoles = before.iter().filter(|c| c.get("tty").is_some()).count();
            Some(console(consoles, value))
        }),
        ("nets", &net),
        ("shares", &share),
        ("video", &video),
        ("graphics", &screen),
    ];
    for (list, pair) in lists {
        for (number, value) in domain.list(list).iter().enumerate() {
            if let Some((guest, host)) = pair(number, value) {
                add(format!("{list}[{number}]"), guest, host);
            }
        }
    }
    if let Some(kind) = domain.text("security.type") {
        let policy = domain.number("security.policy").unwrap_or_default();
        let host = format!("policy {policy:#06x}: {}", policy_in_words(kind, policy));
        add(
            "security".into(),
            format!("encrypted memory ({kind})"),
            host,
        );
    }
    if domain.flag("rng.enabled") {
        let source = domain.text("rng.source").unwrap_or("getrandom(2)");
        add("rng".into(), "virtio-rng".into(), source.to_owned());
    }
    if domain.flag("agent") {
        let guest = "virtio-port org.qemu.guest_agent.0";
        add("agent".into(), guest.into(), "a socket of libvirt".into());
    }
    let model = |key: &str| {
        let model = domain.text(&format!("{key}.model"));
        model.filter(|model| *model != "none")
    };
    if let Some(watchdog) = model("watchdog") {
        let action = domain.text("watchdog.action").unwrap_or("reset");
        add(
            "watchdog".into(),
            format!("watchdog {watchdog}"),
            format!("action {action}"),
        );
    }
    if let Some(tpm) = model("tpm") {
        let version = domain.text("tpm.version").unwrap_or("2.0");
        let host = match (domain.text("tpm.type"), domain.text("tpm.path")) {
            (Some("passthrough"), path) => path.unwrap_or("/dev/tpm0"),
            _ => "swtpm",
        };
        add("tpm".into(), format!("{tpm} {version}"), host.to_owned());
    }
    if let Some(balloon) = model("balloon") {
        add(
            "balloon".into(),
            format!("balloon {balloon}"),
            "the host's memory".into(),
        );
    }
    if let Some(sound) = model("sound") {
        add("sound".into(), format!("sound {sound}"), EMULATOR.into());
    }
    for what in ["keyboard", "mouse", "tablet"] {
        let key = format!("input.{what}");
        if let Some(bus) = domain.text(&key).filter(|bus| *bus != "none") {
            add(key, format!("{what} {bus}"), EMULATOR.into());
        }
    }
    if let Some(usb) = model("usb") {
        add("usb".into(), format!("usb {usb}"), EMULATOR.into());
    }
    match (domain.number("vsock.cid"), domain.flag("vsock.auto")) {
        (Some(cid), _) => add("vsock".into(), "virtio-vsock".into(), format!("cid {cid}")),
        (None, true) => {
            let host = "a cid that libvirt chooses";
            add("vsock".into(), "virtio-vsock".into(), host.into());
        }
        (None, false) => {}
    }
    out
}

fn text(value: &Value, key: &str) -> String {
    word(value, key).unwrap_or("-").to_owned()
}

fn word<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// `what (detail, detail)`
fn with(what: String, details: Vec<String>) -> String {
    match details.is_empty() {
        true => what,
        false => format!("{what} ({})", details.join(", ")),
    }
}

fn disk(_: usize, value: &Value) -> Option<(String, String)> {
    let bus = match (word(value, "bus"), word(value, "device")) {
        (None | Some("virtio"), None | Some("disk")) => "virtio-blk".to_owned(),
        (bus, device) => format!("{} {}", bus.unwrap_or("virtio"), device.unwrap_or("disk")),
    };
    let mut details = Vec::new();
    for key in ["cache", "io", "discard", "encryption"] {
        if let Some(word) = word(value, key).filter(|word| *word != "none" || key == "cache") {
            details.push(format!("{key}={word}"));
        }
    }
    for key in ["read_only", "shareable", "transient"] {
        if flag(value, key) {
            details.push(key.to_owned());
        }
    }
    let host = match word(value, "path") {
        None => "nothing".to_owned(),
        Some(path) => with(
            format!("{}:{path}", word(value, "format").unwrap_or("raw")),
            details,
        ),
    };
    Some((format!("{bus} {}", text(value, "target")), host))
}

fn console(consoles: usize, value: &Value) -> (String, String) {
    if let Some(end) = word(value, "tty") {
        return (format!("virtio-console hvc{consoles}"), end.to_owned());
    }
    let end = |key: &str| word(value, key).unwrap_or("null");
    let host = format!("in {}, out {}", end("in"), end("out"));
    (format!("virtio-port {}", text(value, "name")), host)
}

fn net(_: usize, value: &Value) -> Option<(String, String)> {
    let model = word(value, "model").unwrap_or("virtio");
    if model == "none" {
        return None;
    }
    let kind = word(value, "type").unwrap_or("network");
    let host = match word(value, "source") {
        Some(source) => format!("{kind} {source}"),
        None => kind.to_owned(),
    };
    let driver = word(value, "driver").map(str::to_owned);
    let guest = match word(value, "mac") {
        Some(mac) => format!("net {model} {mac}"),
        None => format!("net {model}"),
    };
    Some((guest, with(host, driver.into_iter().collect())))
}

fn share(_: usize, value: &Value) -> Option<(String, String)> {
    let kind = match word(value, "driver") {
        Some("virtiofs") => "virtiofs",
        _ => "9p",
    };
    let mut details: Vec<String> = word(value, "accessmode")
        .into_iter()
        .map(str::to_owned)
        .collect();
    if flag(value, "read_only") {
        details.push("read_only".into());
    }
    let host = with(text(value, "source"), details);
    Some((format!("{kind} {}", text(value, "target")), host))
}

fn video(_: usize, value: &Value) -> Option<(String, String)> {
    let model = word(value, "model").filter(|model| *model != "none")?;
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let mut details = Vec::new();
    if let Some(heads) = number("heads").filter(|heads| *heads > 1) {
        details.push(format!("{heads} heads"));
    }
    if let Some(vram) = number("vram") {
        details.push(format!("{} of video memory", size_text(vram << 10)));
    }
    Some((with(format!("video {model}"), details), EMULATOR.into()))
}

fn screen(_: usize, value: &Value) -> Option<(String, String)> {
    let kind = word(value, "type").filter(|kind| *kind != "none")?;
    let port = value.get("port").and_then(Value::as_u64);
    let host = match (word(value, "socket"), word(value, "listen"), port) {
        (Some(socket), _, _) => format!("{kind} {socket}"),
        (None, Some(address), Some(port)) => format!("{kind} {address}:{port}"),
        (None, Some(address), None) => format!("{kind} {address}"),
        (None, None, _) => kind.to_owned(),
    };
    Some(("screen".into(), host))
}

/// The bits of a launch policy by their names.
fn policy_in_words(kind: &str, policy: u64) -> String {
    let level = match kind {
        "sev-snp" => Level::SevSnp,
        _ => Level::Sev,
    };
    let names = policy::names(level, policy);
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_device_has_its_pair() {
        let domain = Domain(json!({
            "disks": [
                {"path": "/a.qcow2", "format": "qcow2", "target": "vda", "cache": "none", "encryption": "none"},
                {"bus": "sata", "device": "cdrom", "target": "sda", "read_only": true},
            ],
            "serials": [{"to": "null"}],
            "consoles": [{"name": "log", "out": "file:l"}, {"tty": "stdio"}, {"tty": "null"}],
            "nets": [{"type": "user", "model": "e1000"}, {"model": "none"}],
            "shares": [{"source": "/srv", "target": "data", "driver": "virtiofs", "read_only": true}],
            "video": [{"model": "qxl", "heads": 2, "vram": 65536}, {"model": "none"}],
            "graphics": [{"type": "vnc", "listen": "127.0.0.1", "port": 5901}, {"type": "none"}],
            "rng": {"enabled": true}, "agent": true,
            "watchdog": {"model": "i6300esb"}, "tpm": {"model": "none"},
            "balloon": {"model": "virtio"}, "sound": {"model": "none"},
            "input": {"keyboard": "ps2", "mouse": "none"}, "usb": {"model": "none"},
            "vsock": {"cid": 42},
        }));
        let lines: Vec<String> = domain_devices(&domain)
            .into_iter()
            .map(|d| format!("{}: {} <- {}", d.key, d.guest, d.host))
            .collect();
        assert_eq!(
            lines,
            [
                "disks[0]: virtio-blk vda <- qcow2:/a.qcow2 (cache=none)",
                "disks[1]: sata cdrom sda <- nothing",
                "serials[0]: isa-serial ttyS0 <- null",
                "consoles[0]: virtio-port log <- in null, out file:l",
                "consoles[1]: virtio-console hvc0 <- stdio",
                "consoles[2]: virtio-console hvc1 <- null",
                "nets[0]: net e1000 <- user",
                "shares[0]: virtiofs data <- /srv (read_only)",
                "video[0]: video qxl (2 heads, 64 MiB of video memory) <- the emulator",
                "graphics[0]: screen <- vnc 127.0.0.1:5901",
                "rng: virtio-rng <- getrandom(2)",
                "agent: virtio-port org.qemu.guest_agent.0 <- a socket of libvirt",
                "watchdog: watchdog i6300esb <- action reset",
                "balloon: balloon virtio <- the host's memory",
                "input.keyboard: keyboard ps2 <- the emulator",
                "vsock: virtio-vsock <- cid 42",
            ]
        );
        assert!(domain_devices(&Domain(json!({}))).is_empty());
    }
}
