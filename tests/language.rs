//! The language as a whole: every key matters or is refused, what is accepted becomes valid XML, and XML says the same
//! as the scenario that it came from and as the machine that runs.

#![allow(clippy::unwrap_used)]

mod common;

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
    out.extend(mixtures(400));
    out
}

/// Three keys at once, over a preset or alone: always the same ones.
fn mixtures(number: usize) -> Vec<(String, Domain)> {
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    // Where descriptors are is not in the domain, and decides what may be.
    all.retain(|(path, _)| path != "firmware.descriptors" && !path.starts_with("xml."));
    let mut state = 1u64;
    let mut below = |n: usize| {
        // Knuth's linear congruential generator (MMIX).
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut out = Vec::new();
    while out.len() < number {
        let mut flags = Vec::new();
        for _ in 0..3 {
            let (path, key) = &all[below(all.len())];
            let values = values(key);
            let value = &values[below(values.len())];
            flags.extend(
                around(path)
                    .into_iter()
                    .filter(|f| !f.contains("descriptors")),
            );
            flags.push(format!("{path}={value}"));
        }
        let text = match below(10) {
            n if n < presets::PRESETS.len() => format!("preset: {}\n", presets::PRESETS[n].name),
            _ => String::new(),
        };
        let option = |f: &String| {
            ["store", "hosts", "on", "preset", "feature"]
                .iter()
                .any(|k| f.starts_with(&format!("{k}=")))
        };
        flags.retain(|f| !option(f));
        if let Ok(d) = describe(&text, &flags) {
            out.push((format!("{text:?} {}", flags.join(" ")), d.domain));
        }
    }
    out
}

#[test]
fn what_is_accepted_becomes_valid_xml() {
    let schema = Path::new("/usr/share/libvirt/schemas/domain.rng");
    if Command::new("xmllint").arg("--version").output().is_err() || !schema.exists() {
        return skip("xmllint and libvirt's schemas (libxml2-utils, libvirt0)");
    }
    // What libvirt 9.0's schema does not know yet; each has a warning.
    let newer = [
        "sev-snp",
        "watchdog.model=itco",
        "sound.model=virtio",
        "=vhdx",
        "loongarch64",
        "firmware.format=qcow2",
    ];
    let dir = TempDir::new("valid-xml");
    let mut files: Vec<PathBuf> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (index, (name, domain)) in domains().into_iter().enumerate() {
        if newer.iter().any(|n| name.contains(n)) {
            continue;
        }
        files.push(dir.write(&format!("{index}.xml"), &xml::export(&domain).text));
        names.push(name);
    }
    assert!(files.len() > 250, "{}", files.len());
    let run = Command::new("xmllint")
        .args(["--noout", "--relaxng"])
        .arg(schema)
        .args(&files)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stderr);
    let (_, complaints): (Vec<&str>, Vec<&str>) =
        told.lines().partition(|l| l.ends_with(" validates"));
    let complaints = complaints.join("\n");
    let wrong: Vec<String> = files
        .iter()
        .zip(&names)
        .filter(|(file, _)| !told.contains(&format!("{} validates", file.display())))
        .map(|(file, name)| format!("{name}\n{}", std::fs::read_to_string(file).unwrap()))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} are not valid:\n{}\n{complaints}",
        wrong.len(),
        files.len(),
        wrong.join("\n")
    );
}

/// What XML can say of a domain.
fn sayable(domain: &Domain, unsaid: &[String]) -> Value {
    let mut value = domain.0.clone();
    // From the end: what is taken out of a list moves the rest.
    for path in unsaid.iter().rev() {
        remove(&mut value, path);
    }
    // No XML says any of it, and a list without its members would stay.
    remove(&mut value, "limits");
    prune(&mut value);
    value
}

fn remove(value: &mut Value, path: &str) {
    let names: Vec<&str> = path
        .split(['.', '[', ']'])
        .filter(|n| !n.is_empty())
        .collect();
    let Some((last, front)) = names.split_last() else {
        return;
    };
    let mut at = value;
    for name in front {
        let next = match name.parse::<usize>() {
            Ok(index) => at.get_mut(index),
            Err(_) => at.get_mut(*name),
        };
        match next {
            Some(next) => at = next,
            None => return,
        }
    }
    match (at, last.parse::<usize>()) {
        (Value::Array(list), Ok(index)) if index < list.len() => drop(list.remove(index)),
        (Value::Object(map), _) => drop(map.remove(*last)),
        _ => {}
    }
}

fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(prune);
        map.retain(|_, v| {
            !matches!(v, Value::Object(m) if m.is_empty())
                && !matches!(v, Value::Array(l) if l.is_empty())
        });
    }
}

#[test]
fn a_scenario_comes_back_from_its_xml() {
    let mut wrong = Vec::new();
    let all = domains();
    for (name, domain) in &all {
        let exported = xml::export(domain);
        let imported = match xml::import("domain.xml", &exported.text) {
            Ok(imported) => imported,
            Err(messages) => {
                wrong.push(format!("{name}: {messages}"));
                continue;
            }
        };
        let text = vsc::scenario::write(&imported.scenario);
        match describe(&text, &[]) {
            Ok(again) => {
                let first = sayable(domain, &exported.unsaid);
                let second = sayable(&again.domain, &xml::export(&again.domain).unsaid);
                if first != second {
                    wrong.push(format!(
                        "{name}:\n  {}",
                        differences(&first, &second, "").join("\n  ")
                    ));
                } else if xml::export(&again.domain).text != exported.text {
                    wrong.push(format!("{name}: the XML is another"));
                }
            }
            Err(messages) => wrong.push(format!("{name}: {messages}\n{text}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
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

#[test]
fn presets_disagree_aloud() {
    let messages = describe("preset: [securevm, desktop]\n", &[]).unwrap_err();
    let conflicts: Vec<_> = messages
        .list
        .iter()
        .filter(|d| d.code == "E-PRESET-CONFLICT")
        .collect();
    assert!(conflicts.len() > 10);
    let told = messages.to_string();
    assert!(
        told.contains("The presets disagree on `host.ksm`"),
        "{told}"
    );
    assert!(
        told.contains("preset desktop:") && told.contains("preset securevm:"),
        "{told}"
    );
    // What the scenario decides is no conflict.
    let decided = describe("preset: [securevm, desktop]\nhost: {ksm: false}\n", &[]).unwrap_err();
    assert!(!decided.to_string().contains("`host.ksm`"));
}

#[test]
fn what_was_changed_is_told_beside_what_was_recommended() {
    let text = "preset: computation\nname: x\n\n\n\ndisk:\n  cache: none\nvcpu: 6\n";
    let d = describe(text, &strings(&["host.swappiness=10"])).unwrap();
    let rows: Vec<String> = d
        .differences()
        .into_iter()
        .map(|r| {
            format!(
                "{} {} {} ({})",
                r.key,
                r.recommended.unwrap_or_default(),
                r.current,
                r.origin
            )
        })
        .collect();
    assert!(
        rows.contains(&"disk.cache unsafe none (/lab/lab.yaml:7)".to_owned()),
        "{rows:?}"
    );
    assert!(
        rows.contains(&"host.swappiness 0 10 (-o host.swappiness=10)".to_owned()),
        "{rows:?}"
    );
    assert!(
        !rows.iter().any(|r| r.starts_with("cpu")),
        "the same as recommended: {rows:?}"
    );
}

/// A kernel on two disks with a serial port, as both say it.
#[test]
fn the_machine_that_runs_and_its_xml_agree() {
    let text = "name: both\ncpu: {count: 4, topology: {sockets: 1, cores: 2, threads: 2}}\nmemory: 512M\nkernel: {path: vmlinuz, initrd: initrd.img, cmdline: quiet}\n\
                disks: [{path: a.img, cache: none}, {path: b.img, id: data, read_only: true, block_size: 4096, discard: ignore}]\n\
                serials: [stdio, \"unix:/run/x.sock\", \"file:/tmp/out\"]\nrng: true\nconsole: {log: c.log}\nevents: {on_reboot: restart}\niothreads: 2\n";
    let d = describe(text, &[]).unwrap_or_else(|e| panic!("{e}"));
    let (resources, _) = d.monitor.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let xml = xml::export(&d.domain).text;
    let has = |what: String| assert!(xml.contains(&what), "{what} is not in\n{xml}");
    has(format!("<name>{}</name>", resources.name));
    has(format!(
        "<memory unit='KiB'>{}</memory>",
        resources.memory >> 10
    ));
    has(format!(">{}</vcpu>", resources.cpus.count));
    let t = resources.cpus.topology;
    has(format!(
        "<topology sockets='{}' cores='{}' threads='{}'/>",
        t.sockets, t.cores, t.threads
    ));
    has(format!("<iothreads>{}</iothreads>", resources.iothreads));
    let vsc_vmm::resources::Payload::Kernel(kernel) = &resources.payload else {
        panic!("no kernel")
    };
    has(format!("<kernel>{}</kernel>", kernel.path.display()));
    has("<initrd>/lab/initrd.img</initrd>".to_owned());
    let ours = ["pci=conf1,noearly"];
    let line: Vec<&str> = kernel
        .cmdline
        .split(' ')
        .filter(|w| !ours.contains(w))
        .collect();
    has(format!("<cmdline>{}</cmdline>", line.join(" ")));
    for disk in &resources.disks {
        let block = xml
            .split("<disk ")
            .find(|b| b.contains(&format!("<source file='{}'", disk.path.display())))
            .unwrap();
        let cache = serde_json::to_value(disk.cache).unwrap();
        assert!(
            block.contains(&format!("cache='{}'", cache.as_str().unwrap())),
            "{block}"
        );
        assert!(block.contains("type='raw'"));
        assert_eq!(block.contains("<readonly/>"), disk.read_only, "{block}");
        assert_eq!(
            block.contains("logical_block_size='4096'"),
            disk.logical_block_size == 4096,
            "{block}"
        );
    }
    assert_eq!(
        xml.matches("<serial type=").count(),
        resources.serials.len()
    );
    assert!(
        xml.contains("<source mode='bind' path='/run/x.sock'/>")
            && xml.contains("<source path='/tmp/out'/>"),
        "{xml}"
    );
    assert_eq!(xml.contains("<rng "), resources.rng.is_some());
    has("<on_reboot>restart</on_reboot>".to_owned());
    let mac = |n: usize| format!("<boot order='{n}'/>");
    assert!(!xml.contains(&mac(1)), "nobody asked for an order");
}

#[test]
fn goldens_of_the_presets() {
    for preset in presets::PRESETS {
        let d = describe(&format!("preset: {}\nname: {0}\n", preset.name), &[])
            .unwrap_or_else(|e| panic!("{e}"));
        let mut text = xml::export(&d.domain).text;
        text += "<!-- host\n";
        for change in &d.host.changes {
            text += &format!(
                "{} {} -> {}\n",
                change.path.display(),
                change.old.as_deref().unwrap_or("?"),
                change.new
            );
        }
        for image in &d.images {
            text += &format!("{:?}\n", image.spec);
        }
        text += "-->\n";
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/presets")
            .join(format!("{}.xml", preset.name));
        if std::env::var_os("VSC_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text, golden, "{} (VSC_BLESS=1 rewrites)", file.display());
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

/// The two machines of libvirt's page on launch security, from the scenarios in tests/examples/libvirt.
#[test]
fn the_published_sev_machines() {
    for (file, model, mac) in [
        ("sev-q35.yaml", "", "52:54:00:cc:56:90"),
        ("sev-i440fx.yaml", "-non-transitional", "52:54:00:d8:96:c8"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/examples/libvirt")
            .join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let d = describe(&text, &[]).unwrap_or_else(|e| panic!("{e}"));
        let xml = xml::export(&d.domain).text;
        let scsi = if model.is_empty() {
            "virtio-scsi"
        } else {
            "virtio-non-transitional"
        };
        let serial = if model.is_empty() {
            String::new()
        } else {
            " model='virtio-non-transitional'".into()
        };
        for wanted in [
            "<memory unit='KiB'>4194304</memory>".to_owned(),
            "<locked/>".into(),
            "<loader readonly='yes' type='pflash'>/usr/share/edk2/ovmf/OVMF_CODE.fd</loader>"
                .into(),
            format!(
                "<controller type='scsi' index='0' model='{scsi}'>\n      <driver iommu='on'/>"
            ),
            format!(
                "<controller type='virtio-serial' index='0'{serial}>\n      <driver iommu='on'/>"
            ),
            format!("<mac address='{mac}'/>"),
            format!("<model type='virtio{model}'/>\n      <driver iommu='on'/>"),
            format!("<memballoon model='virtio{model}'>\n      <driver iommu='on'/>"),
            format!("<rng model='virtio{model}'>"),
            "<target dev='sda' bus='scsi'/>".into(),
            "<launchSecurity type='sev'>".into(),
            "<cbitpos>47</cbitpos>".into(),
            "<reducedPhysBits>1</reducedPhysBits>".into(),
            "<policy>0x0003</policy>".into(),
        ] {
            assert!(xml.contains(&wanted), "{file}: {wanted}\n{xml}");
        }
        let codes: Vec<_> = d.warnings.list.iter().map(|d| d.code).collect();
        assert_eq!(
            codes.contains(&"W-SEV-MACHINE"),
            !model.is_empty(),
            "{codes:?}"
        );
        // A variable store is not measured; the published machines have one.
        assert!(codes.contains(&"W-SEV-NVRAM"), "{codes:?}");
        let again = describe(
            &vsc::scenario::write(&xml::import(file, &xml).unwrap().scenario),
            &[],
        )
        .unwrap();
        assert_eq!(xml::export(&again.domain).text, xml, "{file}");
    }
}
