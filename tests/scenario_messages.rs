//! What the user reads when a scenario is wrong: each message, whole, as a golden file under `tests/golden/scenario`.
//! `VSC_BLESS=1 cargo test --test scenario_messages` writes them anew.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vsc::facts::{FileError, FileInfo, FileKind, HostFacts, HostMemory, KvmFacts};
use vsc::scenario::{Input, Layer, Override};
use vsc_vmm::kvm::HostKind;

/// A host with 24 GiB, 4 CPUs, and a few files.
fn host() -> HostFacts {
    let file = |length| {
        Ok(FileInfo {
            kind: FileKind::Regular,
            length,
            writable: true,
        })
    };
    let files: [(&str, Result<FileInfo, FileError>); 12] = [
        ("lab/vmlinuz", file(8 << 20)),
        ("lab/huge", file(900 << 20)),
        ("lab/empty", file(0)),
        ("lab/secret", Err(FileError::Denied)),
        (
            "lab/dir",
            Ok(FileInfo {
                kind: FileKind::Directory,
                length: 0,
                writable: false,
            }),
        ),
        (
            "lab/pipe",
            Ok(FileInfo {
                kind: FileKind::Other,
                length: 0,
                writable: false,
            }),
        ),
        ("lab/a.img", file(1 << 30)),
        ("lab/b.img", file(1 << 30)),
        ("lab/odd.img", file((1 << 20) + 7)),
        (
            "lab/locked.img",
            Ok(FileInfo {
                kind: FileKind::Regular,
                length: 1 << 20,
                writable: false,
            }),
        ),
        ("lab/initrd", file(4 << 20)),
        ("flag.img", file(1 << 20)),
    ];
    HostFacts {
        memory: Some(HostMemory {
            total: 24 << 30,
            available: 10 << 30,
        }),
        online_cpus: Some(4),
        kvm: Some(KvmFacts { max_vcpus: 255 }),
        host_kind: HostKind::Hardware,
        files: files
            .into_iter()
            .map(|(path, info)| (PathBuf::from(path), info))
            .collect::<BTreeMap<_, _>>(),
        ..HostFacts::default()
    }
}

/// Name, scenario, flags.
const CASES: &[(&str, &str, &[&str])] = &[
    // The rows of the "Bad input".
    ("vcpus-0", "cpus: 0\n", &[]),
    ("vcpus-256", "cpu:\n  count: 256\n", &[]),
    ("vcpus-negative", "cpus: -1\n", &[]),
    ("vcpus-words", "cpus: four\n", &[]),
    ("vcpus-many-for-the-host", "cpus: 64\n", &[]),
    ("threads-odd", "cpu: {count: 3, ht: on}\n", &[]),
    (
        "threads-odd-33",
        "cpu:\n  count: 33\n  topology: {threads: 2}\n",
        &[],
    ),
    (
        "topology-product",
        "cpu:\n  count: 4\n  topology:\n    sockets: 1\n    cores: 3\n",
        &[],
    ),
    ("memory-0", "memory: 0\n", &[]),
    ("memory-tiny", "memory: 256K\n", &[]),
    ("memory-more-than-host", "memory: 64G\n", &[]),
    ("memory-overcommit", "memory: 12G\n", &[]),
    ("memory-unit", "memory: 256MB\n", &[]),
    ("memory-text", "memory: lots\n", &[]),
    ("memory-odd", "memory: 16777217B\n", &[]),
    ("kernel-missing", "kernel: vmlinus\n", &[]),
    ("kernel-unreadable", "kernel: secret\n", &[]),
    ("kernel-directory", "kernel: {path: dir}\n", &[]),
    ("kernel-pipe", "kernel: pipe\n", &[]),
    ("kernel-empty", "kernel: empty\n", &[]),
    (
        "kernel-larger-than-memory",
        "kernel: huge\nmemory: 256M\n",
        &[],
    ),
    (
        "initrd-missing",
        "kernel: {path: vmlinuz, initrd: [initrd, nothing]}\n",
        &[],
    ),
    (
        "disk-missing",
        "disks:\n  - a.img\n  - path: rootfs.ext4\n",
        &[],
    ),
    ("disk-read-only", "disk: locked.img\n", &[]),
    ("disk-odd-size", "disk: odd.img\n", &[]),
    (
        "disk-odd-block",
        "disk: {path: a.img, block_size: 1024}\n",
        &[],
    ),
    ("disk-directory", "disk: dir\n", &[]),
    ("disk-empty", "disk: empty\n", &[]),
    (
        "disk-twice-one-id",
        "disks:\n  - {path: a.img, id: data}\n  - {path: b.img, id: data}\n",
        &[],
    ),
    ("disk-twice-one-image", "disks: [a.img, a.img]\n", &[]),
    ("disk-format", "disk: {path: a.img, format: qcow2}\n", &[]),
    (
        "disk-cache-typo",
        "disk:\n  path: a.img\n  cache: writebak\n",
        &[],
    ),
    ("disk-without-path", "disks:\n  - id: data\n", &[]),
    (
        "disk-id-too-long",
        "disk: {path: a.img, id: a-name-longer-than-twenty}\n",
        &[],
    ),
    ("key-unknown", "memroy: 256M\nname: x\n", &[]),
    (
        "key-unknown-deep",
        "disk:\n  path: a.img\n  readonyl: yes\n",
        &[],
    ),
    ("key-in-the-wrong-place", "cache: none\n", &[]),
    (
        "key-of-libkrun",
        "disable_implicit_console: true\nsplit_irqchip: true\n",
        &[],
    ),
    ("key-duplicate", "memory: 1G\nname: x\nmemory: 2G\n", &[]),
    (
        "key-duplicate-in-two-spellings",
        "cpus: 2\ncpu: {count: 4}\n",
        &[],
    ),
    ("key-merge", "a: &a {x: 1}\n<<: *a\n", &[]),
    ("type-list", "memory: [1, 2]\n", &[]),
    ("type-map", "name: {a: b}\n", &[]),
    ("type-nothing", "memory:\n", &[]),
    ("type-bool", "rng: maybe\n", &[]),
    ("type-scalar-for-map", "events: restart\n", &[]),
    ("type-whole", "- a\n- b\n", &[]),
    ("yaml-unclosed", "disks: [a.img, b.img\nname: x\n", &[]),
    ("yaml-tab", "cpu:\n\tcount: 2\n", &[]),
    ("yaml-tag", "name: !!str x\n", &[]),
    ("yaml-two-documents", "name: a\n---\nname: b\n", &[]),
    ("yaml-control", "name: \"a\u{1b}[31mred\"\n", &[]),
    (
        "yaml-deep",
        "a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
        &[],
    ),
    ("stdio-twice", "serials: [stdio, stdio]\n", &[]),
    (
        "stdio-and-command",
        "kernel: vmlinuz\nserial: stdio\ncommand: uname -r\n",
        &[],
    ),
    ("socket-twice", "serials: [\"unix:s\", \"unix:s\"]\n", &[]),
    ("stream-typo", "serial: tcp:1234\n", &[]),
    ("port-without-name", "consoles: [{out: \"file:x\"}]\n", &[]),
    (
        "port-both",
        "consoles: [{name: a, tty: stdio, in: stdin}]\n",
        &[],
    ),
    (
        "port-names",
        "consoles: [{name: a}, {name: a}, {name: vsc.ctl}]\n",
        &[],
    ),
    ("port-direction", "consoles: [{name: a, in: stdout}]\n", &[]),
    ("poweroff-restart", "on_poweroff: restart\n", &[]),
    ("crash-preserve", "events: {on_crash: preserve}\n", &[]),
    (
        "console-hvc0-missing",
        "kernel: {path: vmlinuz, console: hvc0}\nserial: \"unix:s\"\n",
        &[],
    ),
    (
        "console-lab-line",
        "kernel:\n  path: vmlinuz\n  cmdline: root=/dev/vda loglevel=15 console=hvc0\ndisk: a.img\nserial: unix:s\n",
        &[],
    ),
    (
        "cmdline-too-long",
        "kernel: {path: vmlinuz, cmdline: LONG}\n",
        &[],
    ),
    ("split-pit", "irqchip: split\ntimers: {pit: true}\n", &[]),
    ("nested", "cpu: {nested: on}\n", &[]),
    ("preset", "preset: desktop\n", &[]),
    ("later", "nets: [{tap: tap0}]\n", &[]),
    (
        "workdir-relative",
        "command: ls\nworkdir: srv\nkernel: vmlinuz\n",
        &[],
    ),
    (
        "command-quote",
        "command: sh -c 'echo\nkernel: vmlinuz\n",
        &[],
    ),
    ("command-without-kernel", "command: uname\n", &[]),
    ("env-without-command", "env: {A: b}\n", &[]),
    (
        "env-list",
        "command: ls\nkernel: vmlinuz\nenv: [PATH]\n",
        &[],
    ),
    (
        "many-at-once",
        "cpus: 0\nmemroy: 1G\nmemory: 0\ndisk: nothing.img\nrng: perhaps\n",
        &[],
    ),
    // Flags.
    ("flag-unknown", "", &["cpu.cuont=4"]),
    ("flag-value", "", &["memory=2X"]),
    ("flag-without-value", "", &["memory"]),
    ("flag-empty", "", &["memory="]),
    ("flag-index", "disks: [a.img]\n", &["disks.3.cache=none"]),
    (
        "flag-not-an-index",
        "disks: [a.img]\n",
        &["disks.x.cache=none"],
    ),
    ("flag-too-deep", "", &["memory.size.x=1"]),
    ("flag-yaml", "", &["disks=[a, b"]),
    ("flag-list", "", &["disks=[flag.img, gone.img]"]),
    ("flag-alias", "disk: a.img\n", &["disks.0.id=b", "cpus=0"]),
];

fn messages(text: &str, flags: &[&str]) -> String {
    let text = text.replace("LONG", &"word ".repeat(600));
    let layers = flags
        .iter()
        .map(|f| Layer::Option(Override::option(f)))
        .collect();
    let parsed = vsc::scenario::parse(&Input {
        file: Some((Path::new("lab/s.yaml"), text.as_bytes())),
        settings: None,
        layers,
        home: Some("/root".into()),
    });
    vsc::check(parsed, &host()).render(false)
}

#[test]
fn each_mistake_has_its_message() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scenario");
    let mut wrong = Vec::new();
    for (name, text, flags) in CASES {
        let got = messages(text, flags);
        let file = directory.join(format!("{name}.txt"));
        if std::env::var_os("VSC_BLESS").is_some() {
            std::fs::write(&file, &got).unwrap();
        }
        let want = std::fs::read_to_string(&file).unwrap_or_default();
        if got != want || got.is_empty() {
            wrong.push(format!("=== {name}: expected\n{want}\n=== got\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_golden_file_belongs_to_a_case() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scenario");
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            CASES.iter().any(|(case, ..)| name == format!("{case}.txt")),
            "{name} is nobody's"
        );
    }
}

#[test]
fn records_say_the_same_as_text() {
    for (name, text, flags) in CASES {
        let layers = flags
            .iter()
            .map(|f| Layer::Option(Override::option(f)))
            .collect();
        let file = Some((Path::new("lab/s.yaml"), text.as_bytes()));
        let parsed = vsc::scenario::parse(&Input {
            file,
            settings: None,
            layers,
            home: None,
        });
        let messages = vsc::check(parsed, &host());
        let json = serde_json::to_value(messages.records()).unwrap();
        let rendered = messages.render(false);
        for record in json.as_array().unwrap() {
            let code = record["code"].as_str().unwrap();
            assert!(rendered.contains(&format!("[{code}]")), "{name}: {code}");
            assert!(
                code.starts_with(if record["severity"] == "error" {
                    "E-"
                } else {
                    "W-"
                }),
                "{name}: {code}"
            );
        }
    }
}
