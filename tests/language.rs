//! The language as a whole: every key matters or is refused, what is accepted becomes valid XML, and XML says the same
//! as the scenario that it came from and as the machine that runs.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "language/published.rs"]
mod published;
#[path = "language/whole.rs"]
mod whole;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{TempDir, skip};
use proptest::prelude::*;
use serde_json::{Value, json};
use vsc::compile::Description;
use vsc::descriptors::{DescriptorFile, Found};
use vsc::diag::{Diagnostics, Severity};
use vsc::domain::Domain;
use vsc::facts::{FileInfo, FileKind, HostFacts};
use vsc::scenario::keys::{KEYS, Key, Kind};
use vsc::scenario::{Input, Layer, Override, parse, presets};
use vsc::xml;

/// A host that has what scenarios ask for: images, kernels, firmware, a QEMU with qxl.
fn facts() -> HostFacts {
    let mut facts = HostFacts::default();
    let regular = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    for file in [
        "/lab/vmlinuz",
        "/lab/initrd.img",
        "/lab/a.img",
        "/lab/b.img",
        "/fw/CODE.fd",
        "/fw/VARS.fd",
        "/fw/CODE.sev.fd",
    ] {
        facts.files.insert(file.into(), Ok(regular));
    }
    for file in [
        "/usr/lib/x86_64-linux-gnu/qemu",
        "/usr/lib/x86_64-linux-gnu/qemu/hw-display-qxl.so",
    ] {
        facts.texts.insert(file.into(), String::new());
    }
    for (name, text) in [
        (
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never",
        ),
        ("/sys/kernel/mm/ksm/run", "0"),
        ("/sys/kernel/mm/ksm/merge_across_nodes", "1"),
        ("/proc/sys/vm/swappiness", "60"),
    ] {
        facts.texts.insert(name.into(), text.into());
    }
    facts.devices.insert("/".into(), "nvme0n1".into());
    facts.texts.insert(
        "/sys/block/nvme0n1/queue/scheduler".into(),
        "[none] mq-deadline bfq".into(),
    );
    facts.firmware = vec![
        descriptor(
            "40-plain.json",
            "/fw/CODE.fd",
            Some("/fw/VARS.fd"),
            &["acpi-s3", "verbose-dynamic"],
        ),
        descriptor(
            "60-sev.json",
            "/fw/CODE.sev.fd",
            None,
            &["amd-sev", "amd-sev-es", "amd-sev-snp", "verbose-dynamic"],
        ),
    ];
    facts
}

fn descriptor(file: &str, code: &str, vars: Option<&str>, features: &[&str]) -> DescriptorFile {
    let mapping = match vars {
        Some(vars) => json!({
            "device": "flash",
            "executable": {"filename": code, "format": "raw"},
            "nvram-template": {"filename": vars, "format": "raw"},
        }),
        None => json!({"device": "memory", "filename": code}),
    };
    let text = json!({
        "description": "for tests", "interface-types": ["uefi"], "mapping": mapping,
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*", "pc-i440fx-*"]}],
        "features": features, "tags": [],
    });
    DescriptorFile {
        path: Path::new("/usr/share/qemu/firmware").join(file),
        found: Found::Text(text.to_string()),
    }
}

fn describe(text: &str, flags: &[String]) -> Result<Description, Diagnostics> {
    let layers = flags
        .iter()
        .map(|f| Layer::Option(Override::option(f)))
        .collect();
    let parsed = parse(&Input {
        file: Some((Path::new("/lab/lab.yaml"), text.as_bytes())),
        settings: None,
        layers,
        home: Some("/home/u".into()),
    });
    vsc::describe(parsed, &facts())
}

fn strings(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|f| (*f).to_owned()).collect()
}

/// Every key that takes a value, in the form of `-o`, with values to try.
fn leaves(keys: &'static [Key], path: &str, out: &mut Vec<(String, &'static Key)>) {
    for key in keys {
        let here = format!("{path}{}", key.name);
        match key.kind {
            Kind::Map { keys, .. } => leaves(keys, &format!("{here}."), out),
            Kind::List { keys, .. } => leaves(keys, &format!("{here}.0."), out),
            Kind::Alias(_) => {}
            _ => out.push((here, key)),
        }
    }
}

fn values(key: &'static Key) -> Vec<String> {
    let mut out = vec![key.example.to_owned()];
    match key.kind {
        Kind::Word(words) => out.extend(
            words
                .iter()
                .filter(|w| w.refused.is_none())
                .map(|w| w.name.to_owned()),
        ),
        Kind::Bool => out.extend(["true".to_owned(), "false".to_owned()]),
        _ => {}
    }
    out
}

/// What must be there for a key to mean something.
fn around(path: &str) -> Vec<String> {
    let flags: &[&str] = match path.split('.').next().unwrap_or(path) {
        "disks" => match path {
            "disks.0.path" => &[],
            // One place for a passphrase is enough: what names another is a conflict, and that is an answer too.
            path if path.starts_with("disks.0.secret") || path == "disks.0.encryption" => &[
                "disks.0.path=/lab/new.qcow2",
                "disks.0.format=qcow2",
                "disks.0.encryption=luks",
                "disks.0.size=64M",
                "disks.0.secret_file=/lab/key",
            ],
            "disks.0.cluster_size"
            | "disks.0.lazy_refcounts"
            | "disks.0.compression_type"
            | "disks.0.preallocation"
            | "disks.0.size" => &[
                "disks.0.path=/lab/new.qcow2",
                "disks.0.format=qcow2",
                "disks.0.size=1G",
            ],
            "disks.0.iothread" => &["disks.0.path=/lab/a.img", "iothreads=2"],
            _ => &["disks.0.path=/lab/a.img"],
        },
        "storage" => match path {
            "storage.secret_file" | "storage.encryption" => &[
                "disks.0.id=x",
                "storage.size=1G",
                "storage.format=qcow2",
                "storage.encryption=luks",
                "storage.secret_file=/lab/key",
            ],
            _ => &[
                "disks.0.id=x",
                "storage.dir=/lab",
                "storage.size=2G",
                "storage.format=qcow2",
            ],
        },
        "nets" => &["nets.0.type=network"],
        "shares" => &["shares.0.source=/srv", "shares.0.target=srv"],
        "graphics" => &["graphics.0.type=vnc"],
        "video" => match path {
            "video.0.ram" | "video.0.vram" | "video.0.vgamem" => &["video.0.model=qxl"],
            _ => &["video.0.model=virtio"],
        },
        "serials" => &["serials.0.to=null"],
        "consoles" => match path {
            "consoles.0.tty" => &[],
            _ => &["consoles.0.name=a"],
        },
        "tpm" if path == "tpm.path" => &["tpm.type=passthrough"],
        "clock" if path == "clock.timezone" => &["clock.offset=timezone"],
        "firmware" => match path {
            "firmware.type" | "firmware.features" | "firmware.descriptors" => {
                &["kernel.path=/lab/vmlinuz", "firmware.type=efi"]
            }
            _ => &[
                "firmware.path=/fw/CODE.fd",
                "firmware.nvram_template=/fw/VARS.fd",
            ],
        },
        "root" if path != "root.device" => &["kernel.path=/lab/vmlinuz", "root.device=/dev/vda"],
        "kernel" | "initrd" | "cmdline" | "root" | "irqchip" | "timers" | "console" => match path {
            "kernel.path" => &[],
            _ => &["kernel.path=/lab/vmlinuz"],
        },
        "command" => &["kernel.path=/lab/vmlinuz"],
        "env" | "workdir" => &["kernel.path=/lab/vmlinuz", "command=ls"],
        "memory" if path == "memory.current" => &["memory.size=4G", "balloon=virtio"],
        "memory" if path == "memory.size" => &[],
        "cpu" if path == "cpu.model" => &["cpu.mode=custom"],
        "cpu" if path == "cpu.priority" => &["cpu.scheduler=fifo"],
        "cpu" if path.starts_with("cpu.topology") || path == "cpu.ht" => &["cpu.count=2"],
        "cpu" if path.starts_with("cpu.pin") => &["cpu.pin.0.cpus=1", "cpu.count=2"],
        "security" => match path {
            "security.type" => &[],
            p if [
                "id_block",
                "id_auth",
                "host_data",
                "workarounds",
                "author_key",
                "vcek",
            ]
            .iter()
            .any(|k| p.contains(k)) =>
            {
                &["security.type=sev-snp"]
            }
            _ => &["security.type=sev"],
        },
        "boot" if path == "boot.menu_timeout" => &["boot.menu=true"],
        "rng" if path != "rng.enabled" => &["rng.enabled=true", "rng.rate_bytes=64"],
        "host" => &["disks.0.path=/lab/a.img"],
        "iommu" => &["disks.0.path=/lab/a.img"],
        _ => &[],
    };
    let all = strings(flags);
    all.into_iter()
        .filter(|f| !f.starts_with(&format!("{path}=")))
        .collect()
}

/// All that a scenario comes to, as text that can be compared.
fn outcome(result: &Result<Description, Diagnostics>) -> String {
    let said = |d: &Diagnostics| {
        d.list
            .iter()
            .map(|d| format!("{} {}", d.code, d.message))
            .collect::<Vec<_>>()
            .join("\n")
    };
    match result {
        Err(messages) => format!("refused: {}", said(messages)),
        Ok(d) => {
            let monitor = match &d.monitor {
                Ok((resources, run)) => serde_json::to_string(&(resources, run)).unwrap(),
                Err(messages) => said(messages),
            };
            format!(
                "{}\n{:?}\n{monitor}\n{}\n{:?}",
                d.domain.0,
                d.host,
                said(&d.warnings),
                d.images
            )
        }
    }
}

#[test]
fn every_key_changes_something_or_is_refused() {
    // These say where things are; the verbs that look there have tests of their own.
    let elsewhere = [
        "store",
        "hosts",
        "on",
        "preset",
        "feature",
        "xml.0.path",
        "xml.0.value",
        "xml.0.delete",
    ];
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    assert!(all.len() > 180, "{}", all.len());
    let mut idle = Vec::new();
    for (path, key) in all {
        if elsewhere.contains(&path.as_str()) {
            continue;
        }
        let without = outcome(&describe("", &around(&path)));
        let changes = values(key).into_iter().any(|value| {
            let mut flags = around(&path);
            flags.push(format!("{path}={value}"));
            outcome(&describe("", &flags)) != without
        });
        if !changes {
            idle.push(path);
        }
    }
    assert_eq!(idle, Vec::<String>::new());
}

/// The domains that the language can make: each key once, the presets, and mixtures.
fn domains() -> Vec<(String, Domain)> {
    let mut out = Vec::new();
    for preset in presets::PRESETS {
        let d = describe(&format!("preset: {}\n", preset.name), &[])
            .unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        out.push((preset.name.to_owned(), d.domain));
    }
    for feature in presets::FEATURES {
        let d = describe(
            &format!("preset: desktop\nfeature: {}\n", feature.name),
            &[],
        );
        // Some sets cannot go with a desktop: that is said, not exported.
        if let Ok(d) = d {
            out.push((feature.name.to_owned(), d.domain));
        }
    }
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    for (path, key) in all {
        for value in values(key) {
            let mut flags = around(&path);
            flags.push(format!("{path}={value}"));
            if let Ok(d) = describe("", &flags) {
                out.push((flags.join(" "), d.domain));
            }
        }
    }
    out.extend(whole::mixtures(400));
    out
}

fn differences(a: &Value, b: &Value, path: &str) -> Vec<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let names: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            let null = Value::Null;
            let inner = |name: &String| {
                differences(
                    x.get(name).unwrap_or(&null),
                    y.get(name).unwrap_or(&null),
                    &format!("{path}.{name}"),
                )
            };
            names.into_iter().flat_map(inner).collect()
        }
        (a, b) if a == b => Vec::new(),
        (a, b) => vec![format!("{path}: {a} became {b}")],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the text, there is an answer; and what is accepted can be exported and read back.
    #[test]
    fn no_text_of_a_scenario_panics(lines in proptest::collection::vec(line(), 0..12)) {
        let text = lines.concat();
        if let Ok(d) = describe(&text, &[]) {
            prop_assert!(d.warnings.list.iter().all(|d| d.severity == Severity::Warning));
            let exported = xml::export(&d.domain);
            xml::import("x", &exported.text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        }
    }
}

/// A line of a scenario: a key with a value that fits it, or any text.
fn line() -> impl Strategy<Value = String> {
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    let fitting: Vec<String> = KEYS
        .iter()
        .map(|k| format!("{}: {}\n", k.name, k.example))
        .collect();
    prop_oneof![
        5 => proptest::sample::select(fitting),
        1 => (proptest::sample::select(KEYS.iter().map(|k| k.name).collect::<Vec<_>>()), "[ -~]{0,12}").prop_map(|(k, v)| format!("{k}: {v}\n")),
        1 => "[a-z:{}\\[\\], \"'-]{0,20}\n",
    ]
}
