use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::*;
use crate::diag::Diagnostics;
use crate::facts::{FileInfo, FileKind, HostFacts};

mod whole;

/// Every section and key that virt-scenario knows, as its users write them.
pub(super) const SAMPLE: &str = "\
# virt-scenario
config:
  - path: /etc/virt-scenario
  - vm-config-store: ~/.local/virt-scenario/vmconfig
hypervisors:
  - hvconf: /etc/virt-scenario/virthosts.yaml
emulator:
  - emulator: /usr/bin/qemu-system-x86_64
  - fw_meta: /usr/share/qemu/firmware
input:
  - keyboard: virtio
  - mouse: ps2
architecture:
  - arch: x86_64
STORAGE_DATA:
  - disk_type: file
  - disk_cache: none
  - disk_target: vda
  - disk_bus: virtio
  - path: /var/livirt/images
  - format: qcow2
  - unit: G
  - capacity: 8
  - cluster_size: 1024k
  - lazy_refcounts: on
  - encryption: Off
  - preallocation: off
  - compression_type: zlib
host_filesystem:
  - fmode: 644
  - dmode: 0755
  - source_dir: /tmp
  - target_dir: /tmp/host
";

fn host() -> HostFacts {
    let entry = |path: &str, kind| {
        let info = FileInfo {
            kind,
            length: 0,
            writable: true,
        };
        (PathBuf::from(path), Ok(info))
    };
    HostFacts {
        files: BTreeMap::from([
            entry("/", FileKind::Directory),
            entry("/var", FileKind::Directory),
            entry("/tmp", FileKind::Directory),
            entry("/home/u/.local/virt-scenario", FileKind::Directory),
            entry("/usr/share/qemu/firmware", FileKind::Directory),
            entry("/usr/bin/qemu-system-x86_64", FileKind::Regular),
            entry("/etc/virt-scenario/virthosts.yaml", FileKind::Regular),
        ]),
        ..HostFacts::default()
    }
}

fn imported(text: &str) -> Result<(Json, Diagnostics), Diagnostics> {
    import(
        "old.yaml",
        text.as_bytes(),
        "/cwd".into(),
        Some("/home/u".into()),
        &host(),
    )
}

/// The code, line and column of each message.
fn told(messages: &Diagnostics) -> Vec<(String, usize, usize)> {
    let place = |r: &crate::diag::Record| r.place.as_ref().map_or((0, 0), |p| (p.line, p.column));
    messages
        .records()
        .iter()
        .map(|r| (r.code.clone(), place(r).0, place(r).1))
        .collect()
}

#[track_caller]
fn good(text: &str) -> (Json, Vec<(String, usize, usize)>) {
    let (scenario, messages) = imported(text).unwrap_or_else(|m| panic!("{text}\n{m}"));
    (scenario, told(&messages))
}

#[track_caller]
fn bad(text: &str) -> Vec<(String, usize, usize)> {
    told(
        &imported(text)
            .map(|(scenario, _)| scenario)
            .expect_err(text),
    )
}

fn at(code: &str, line: usize, column: usize) -> (String, usize, usize) {
    (code.to_owned(), line, column)
}

#[test]
fn every_key_of_the_sample_is_taken() {
    let (scenario, messages) = good(SAMPLE);
    assert_eq!(
        scenario,
        json!({
            "store": "/home/u/.local/virt-scenario/vmconfig",
            "hosts": "/etc/virt-scenario/virthosts.yaml",
            "emulator": "/usr/bin/qemu-system-x86_64",
            "firmware": {"descriptors": "/usr/share/qemu/firmware"},
            "input": {"keyboard": "virtio", "mouse": "ps2"},
            "arch": "x86_64",
            "storage": {
                "cache": "none", "target": "vda", "bus": "virtio", "dir": "/var/livirt/images", "format": "qcow2",
                "size": 8u64 << 30, "cluster_size": 1 << 20, "lazy_refcounts": true, "encryption": "none",
                "preallocation": "off", "compression_type": "zlib",
            },
            "shares": [{"source": "/tmp", "target": "/tmp/host", "fmode": "0644", "dmode": "0755"}],
        })
    );
    assert_eq!(messages, [at("W-UNUSED", 3, 5), at("W-PATH", 20, 11)]);
    let (_, messages) = imported(SAMPLE).unwrap();
    let text = messages.render(false);
    assert!(
        text.contains("/var/livirt/images: this directory does not exist"),
        "{text}"
    );
    assert!(text.contains("/var/livirt is not there, /var is"), "{text}");
}

#[test]
fn the_sample_has_every_key_of_the_table() {
    for section in SECTIONS {
        assert!(
            SAMPLE.contains(&format!("\n{}:\n", section.name)),
            "{}",
            section.name
        );
        for key in section.keys {
            assert!(
                SAMPLE.contains(&format!("\n  - {}: ", key.name)),
                "{}",
                key.name
            );
        }
        let (name, _) = section.example.split_once(':').unwrap();
        assert!(
            section.keys.iter().any(|k| k.name == name),
            "{}",
            section.example
        );
    }
    assert_eq!(SECTIONS.iter().map(|s| s.keys.len()).sum::<usize>(), 25);
}

/// The value that one line below a section ends as, with the messages.
fn one(section: &str, line: &str, path: &str) -> (Json, Vec<(String, usize, usize)>) {
    let (scenario, messages) = good(&format!("{section}:\n  - {line}\n"));
    (
        scenario.pointer(path).cloned().unwrap_or_default(),
        messages,
    )
}

#[test]
fn spellings_of_one_value_are_one_value() {
    for spelling in [
        "on", "On", "oN", "yes", "YES", "true", "True", "\"on\"", "'yes'",
    ] {
        let line = format!("lazy_refcounts: {spelling}");
        assert_eq!(
            one("STORAGE_DATA", &line, "/storage/lazy_refcounts").0,
            json!(true),
            "{spelling}"
        );
        let line = format!("encryption: {spelling}");
        assert_eq!(
            one("STORAGE_DATA", &line, "/storage/encryption").0,
            json!("luks"),
            "{spelling}"
        );
    }
    for spelling in ["off", "OFF", "oFF", "no", "No", "false", "FALSE", "\"off\""] {
        let line = format!("lazy_refcounts: {spelling}");
        assert_eq!(
            one("STORAGE_DATA", &line, "/storage/lazy_refcounts").0,
            json!(false),
            "{spelling}"
        );
        let line = format!("encryption: {spelling}");
        assert_eq!(
            one("STORAGE_DATA", &line, "/storage/encryption").0,
            json!("none"),
            "{spelling}"
        );
        let line = format!("preallocation: {spelling}");
        assert_eq!(
            one("STORAGE_DATA", &line, "/storage/preallocation").0,
            json!("off"),
            "{spelling}"
        );
    }
    for spelling in ["644", "0644", "0o644", "\"0644\"", "'644'"] {
        assert_eq!(
            one(
                "host_filesystem",
                &format!("fmode: {spelling}"),
                "/shares/0/fmode"
            )
            .0,
            json!("0644"),
            "{spelling}"
        );
    }
    for spelling in ["1024", "1024k", "1024K", "1M", "1MiB", "\"1024\""] {
        assert_eq!(
            one(
                "STORAGE_DATA",
                &format!("cluster_size: {spelling}"),
                "/storage/cluster_size"
            )
            .0,
            json!(1 << 20),
            "{spelling}"
        );
    }
}

#[test]
fn a_capacity_has_the_unit_that_was_given() {
    for (lines, bytes) in [
        ("capacity: 20", 20u64 << 30),
        ("capacity: 20\n  - unit: G", 20 << 30),
        ("unit: M\n  - capacity: 512", 512 << 20),
        ("capacity: 2\n  - unit: t", 2 << 40),
        ("capacity: 1.5\n  - unit: K", 1536),
        ("capacity: \"8\"", 8 << 30),
        ("capacity: 8M", 8 << 20),
    ] {
        let (size, messages) = one("STORAGE_DATA", lines, "/storage/size");
        assert_eq!((size, messages), (json!(bytes), vec![]), "{lines}");
    }
    let (size, messages) = one("STORAGE_DATA", "capacity: 8M\n  - unit: G", "/storage/size");
    assert_eq!(
        (size, messages),
        (json!(8 << 20), vec![at("W-OLD-FORM", 2, 15)])
    );
    let (scenario, messages) = good("STORAGE_DATA:\n  - unit: G\n");
    assert_eq!(
        (scenario, messages),
        (json!({}), vec![at("W-UNUSED", 2, 5)])
    );
    for (lines, message) in [
        ("capacity: 8\n  - unit: X", at("E-VALUE", 3, 11)),
        ("capacity: 8\n  - unit: [G]", at("E-TYPE", 3, 11)),
        ("capacity: 8\n  - unit:", at("E-TYPE", 3, 9)),
        ("capacity: 0", at("E-RANGE", 2, 15)),
        ("capacity: eight", at("E-VALUE", 2, 15)),
        ("capacity: -8", at("E-VALUE", 2, 15)),
        ("capacity: [8]", at("E-TYPE", 2, 15)),
        ("capacity: 99999999999999999999", at("E-VALUE", 2, 15)),
        ("capacity:", at("E-TYPE", 2, 5)),
    ] {
        assert_eq!(
            bad(&format!("STORAGE_DATA:\n  - {lines}\n")),
            [message],
            "{lines}"
        );
    }
}

#[test]
fn wrong_values_are_errors_at_their_place_in_the_old_file() {
    for (section, line, code) in [
        ("STORAGE_DATA", "disk_cache: banana", "E-VALUE"),
        ("STORAGE_DATA", "disk_cache: of", "E-VALUE"),
        ("STORAGE_DATA", "format: vmdx", "E-VALUE"),
        ("STORAGE_DATA", "disk_type: block", "E-VALUE"),
        ("STORAGE_DATA", "disk_type: [file]", "E-VALUE"),
        ("STORAGE_DATA", "disk_bus: virt", "E-VALUE"),
        ("STORAGE_DATA", "disk_target: \"a'b\"", "E-VALUE"),
        ("STORAGE_DATA", "cluster_size: big", "E-VALUE"),
        ("STORAGE_DATA", "cluster_size: 1024kk", "E-VALUE"),
        ("STORAGE_DATA", "lazy_refcounts: maybe", "E-VALUE"),
        ("STORAGE_DATA", "preallocation: some", "E-VALUE"),
        ("STORAGE_DATA", "compression_type: lz4", "E-VALUE"),
        ("STORAGE_DATA", "encryption: rot13", "E-VALUE"),
        ("STORAGE_DATA", "path: \"\"", "E-VALUE"),
        ("input", "keyboard: wireless", "E-VALUE"),
        ("architecture", "arch: x86-64-v3", "E-VALUE"),
        ("host_filesystem", "fmode: 999", "E-VALUE"),
        ("host_filesystem", "dmode: rwx", "E-VALUE"),
        ("config", "vm-config-store: ~other/x", "E-VALUE"),
        ("emulator", "emulator: {a: b}", "E-TYPE"),
    ] {
        let text = format!("{section}:\n  - {line}\n");
        let column = 5 + line.find(": ").unwrap() + 2;
        let messages = bad(&text);
        assert_eq!(messages.len(), 1, "{text}{messages:?}");
        assert_eq!((messages[0].0.as_str(), messages[0].1), (code, 2), "{text}");
        assert!(
            (column..column + 6).contains(&messages[0].2),
            "{text}{messages:?}"
        );
    }
    let text = imported("STORAGE_DATA:\n  - disk_cache: banana\n")
        .unwrap_err()
        .render(false);
    assert!(text.contains("old.yaml:2:17"), "{text}");
    assert!(
        text.contains("`disk_cache` of a settings file is `storage.cache` of a scenario"),
        "{text}"
    );
    assert!(text.contains("writethrough"), "{text}");
    let text = imported("STORAGE_DATA:\n  - cluster_size: big\n")
        .unwrap_err()
        .render(false);
    assert!(text.contains("For example `- cluster_size: 1M`"), "{text}");
    let text = imported("architecture:\n  - arch: amd65\n")
        .unwrap_err()
        .render(false);
    assert!(text.contains("aarch64"), "{text}");
}

#[test]
fn odd_forms_are_read_or_refused_and_always_reported() {
    // As a map, which virt-scenario crashes on.
    let (scenario, messages) = good("STORAGE_DATA:\n  format: raw\n  capacity: 3\n");
    assert_eq!(
        scenario,
        json!({"storage": {"format": "raw", "size": 3u64 << 30}})
    );
    assert_eq!(messages, [at("W-OLD-FORM", 1, 1)]);
    // Two keys in one member.
    let (scenario, messages) = good("input:\n  - keyboard: usb\n    mouse: usb\n");
    assert_eq!(
        (scenario, messages),
        (
            json!({"input": {"keyboard": "usb", "mouse": "usb"}}),
            vec![]
        )
    );
    // The last one of two counts.
    let (scenario, messages) = good("input:\n  - mouse: usb\n  - mouse: ps2\n");
    assert_eq!(scenario, json!({"input": {"mouse": "ps2"}}));
    assert_eq!(messages, [at("W-OLD-TWICE", 3, 5)]);
    for (text, expected) in [
        ("input:\n", at("W-OLD-EMPTY", 1, 1)),
        ("input: []\n", at("W-OLD-EMPTY", 1, 1)),
        ("input: {}\n", at("W-OLD-EMPTY", 1, 1)),
        ("input: ~\n", at("W-OLD-EMPTY", 1, 1)),
        ("input:\n  - keybord: usb\n", at("W-OLD-UNKNOWN", 2, 5)),
        ("input:\n  - zzz: usb\n", at("W-OLD-UNKNOWN", 2, 5)),
        (
            "input:\n  - mouse: usb\nSTORAGE_DTA:\n  - format: raw\n",
            at("W-OLD-UNKNOWN", 3, 1),
        ),
        (
            "input:\n  - mouse: usb\nfw_meta: /x\n",
            at("W-OLD-UNKNOWN", 3, 1),
        ),
        ("config:\n  - path: /x\n", at("W-UNUSED", 2, 5)),
    ] {
        assert_eq!(good(text).1, [expected], "{text}");
    }
    for (text, expected) in [
        ("", vec![at("E-IMPORT", 1, 1)]),
        ("# only a comment\n", vec![at("E-IMPORT", 1, 1)]),
        ("- format: raw\n", vec![at("E-IMPORT", 1, 1)]),
        ("just words\n", vec![at("E-IMPORT", 1, 1)]),
        (
            "nothing:\n  - known: 1\n",
            vec![at("E-IMPORT", 1, 1), at("W-OLD-UNKNOWN", 1, 1)],
        ),
        ("input: virtio\n", vec![at("E-TYPE", 1, 8)]),
        ("input:\n  - keyboard\n", vec![at("E-TYPE", 2, 5)]),
        (
            "input:\n  -\n  - [mouse]\n",
            vec![at("E-TYPE", 2, 4), at("E-TYPE", 3, 5)],
        ),
        ("input:\n\t- mouse: usb\n", vec![at("E-YAML", 2, 1)]),
        ("input: [\n", vec![at("E-YAML", 1, 9)]),
        (
            "input:\n  - mouse: usb\ninput:\n  - mouse: ps2\n",
            vec![at("E-DUPLICATE-KEY", 3, 1)],
        ),
        (
            "input: !!python/object:os.system\n",
            vec![at("E-YAML-TAG", 1, 8)],
        ),
        ("input: &a\n  - mouse: *a\n", vec![at("E-YAML", 2, 12)]),
    ] {
        assert_eq!(bad(text), expected, "{text}");
    }
    assert_eq!(bad("input:\n  - mouse: \u{7}\n")[0].0, "E-YAML");
    let latin = import(
        "l.yaml",
        b"input:\n  - mouse: \xe9\n",
        PathBuf::new(),
        None,
        &host(),
    );
    assert_eq!(told(&latin.unwrap_err()), [at("E-ENCODING", 2, 12)]);
}

#[test]
fn advice_names_what_was_meant() {
    for (text, advice) in [
        ("input:\n  - keybord: usb\n", "did you mean `keyboard`?"),
        (
            "input:\n  - arch: x86_64\n",
            "It belongs below `architecture:`",
        ),
        (
            "input:\n  - mouse: usb\nstorage-data:\n  - format: raw\n",
            "did you mean `STORAGE_DATA`?",
        ),
        (
            "input:\n  - mouse: usb\nfw_meta: /x\n",
            "It is a key of `emulator`",
        ),
        (
            "input:\n  - mouse: usb\nzzzzzz: /x\n",
            "The sections are config, hypervisors, emulator",
        ),
    ] {
        let (_, messages) = imported(text).unwrap();
        assert!(
            messages.render(false).contains(advice),
            "{advice}: {}",
            messages.render(false)
        );
    }
}
