//! Every fault of the predecessor, virt-scenario 2.1.2, as a test: what broke it gives a right result here, or one
//! clear error with nothing done. The rows are those of its description (weak spots 1 to 7 of security, 8 to 30, its
//! undetected conflicts, the variants that it made invalid files of, what its users asked for).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

#[path = "predecessor_faults/conflicts.rs"]
mod conflicts;
#[path = "predecessor_faults/robustness.rs"]
mod robustness;
#[path = "predecessor_faults/security.rs"]
mod security;
#[path = "predecessor_faults/values.rs"]
mod values;
#[path = "predecessor_faults/variants.rs"]
mod variants;
#[path = "predecessor_faults/wishes.rs"]
mod wishes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{TempDir, expect_code, mode, qcow2, run, skip, text, vsc};
use serde_json::Value;
use vsc::compile::Description;
use vsc::descriptors::{DescriptorFile, Found};
use vsc::diag::{Diagnostics, Record, Severity};
use vsc::facts::{FileInfo, FileKind, HostFacts};
use vsc::scenario::{Input, Layer, Override, parse};
use vsc::xml::{self, Element};

/// A firmware that knows SEV, as QEMU's descriptors tell of it.
const FIRMWARE: &str = r#"{"description": "for tests", "interface-types": ["uefi"],
    "mapping": {"device": "flash", "mode": "split",
        "executable": {"filename": "/fw/CODE.fd", "format": "raw"},
        "nvram-template": {"filename": "/fw/VARS.fd", "format": "raw"}},
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*", "pc-i440fx-*"]}],
    "features": ["acpi-s3", "amd-sev", "amd-sev-es", "amd-sev-snp", "verbose-dynamic"], "tags": []}"#;

/// A directory to work in, with a home and a host of its own.
struct Lab(TempDir);

impl Lab {
    fn new(name: &str) -> Self {
        let lab = Self(TempDir::new(&format!("faults-{name}")));
        for directory in ["work", "home", "root/fw", "root/usr/share/qemu/firmware"] {
            fs::create_dir_all(lab.path(directory)).unwrap();
        }
        lab.write("root/usr/share/qemu/firmware/50-test.json", FIRMWARE);
        lab.write("root/fw/CODE.fd", [0; 512]);
        lab.write("root/fw/VARS.fd", [0; 512]);
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        self.0.write(name, content).to_str().unwrap().to_owned()
    }

    /// The same, for its owner only.
    fn secret(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        self.0.secret(name, content).to_str().unwrap().to_owned()
    }

    /// The program in `work`.
    fn vsc(&self, words: &[&str]) -> Command {
        let mut command = vsc();
        command
            .args(words)
            .current_dir(self.path("work"))
            .env("HOME", self.path("home"));
        for (name, directory) in [
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_CACHE_HOME", "cache"),
        ] {
            command.env(name, self.path(directory));
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        run(&mut self.vsc(words))
    }

    /// The answer of a success.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        expect_code(&output, 0);
        text(&output.stdout)
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let told = self.ok(&[words, &["--json"]].concat());
        serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"))
    }

    /// The message of a refusal: exit code 125, no answer, one error, and nothing changed.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        let before = self.content();
        let output = self.run(words);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert_eq!(text(&output.stdout), "", "{said}");
        let errors = said.lines().filter(|l| l.starts_with("error[E-"));
        assert_eq!(errors.count(), 1, "{said}");
        assert_eq!(self.content(), before, "{said}");
        said
    }

    /// Domain XML for the host of this directory.
    #[track_caller]
    fn export(&self, words: &[&str]) -> String {
        let root = self.path("root");
        let root = ["--host-root", root.to_str().unwrap()];
        self.ok(&[words, &["--export-xml"], &root].concat())
    }

    #[track_caller]
    fn export_refused(&self, words: &[&str]) -> String {
        let root = self.path("root");
        let root = ["--host-root", root.to_str().unwrap()];
        self.refused(&[words, &["--export-xml"], &root].concat())
    }

    /// Every file with its mode and content.
    fn content(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let mut out = Vec::new();
        walk(&self.path(""), &mut out);
        out.sort();
        out
    }

    /// Whether something with this name is anywhere.
    fn has(&self, name: &str) -> bool {
        self.content().iter().any(|(path, ..)| path.ends_with(name))
    }
}

fn walk(directory: &Path, out: &mut Vec<(PathBuf, u32, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        out.push((path.clone(), mode(&path), content));
        if metadata.is_dir() {
            walk(&path, out);
        }
    }
}

/// A host with what scenarios ask for; its QEMU has qxl.
fn facts() -> HostFacts {
    let mut facts = HostFacts::default();
    let regular = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    for file in [
        "/lab/vmlinuz",
        "/lab/a.img",
        "/lab/b.img",
        "/fw/CODE.fd",
        "/fw/VARS.fd",
    ] {
        facts.files.insert(file.into(), Ok(regular));
    }
    for (name, content) in [
        ("/usr/lib/x86_64-linux-gnu/qemu", ""),
        ("/usr/lib/x86_64-linux-gnu/qemu/hw-display-qxl.so", ""),
        (
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never",
        ),
        ("/sys/kernel/mm/ksm/run", "0"),
        ("/sys/kernel/mm/ksm/merge_across_nodes", "0"),
        ("/proc/sys/vm/swappiness", "60"),
        (
            "/sys/block/nvme0n1/queue/scheduler",
            "[none] mq-deadline bfq",
        ),
        ("/sys/block/sda/queue/scheduler", "[none] mq-deadline bfq"),
    ] {
        facts.texts.insert(name.into(), content.into());
    }
    facts.devices.insert("/".into(), "nvme0n1".into());
    facts.firmware = vec![DescriptorFile {
        path: "/usr/share/qemu/firmware/50-test.json".into(),
        found: Found::Text(FIRMWARE.into()),
    }];
    facts
}

fn describe_on(
    facts: &HostFacts,
    scenario: &str,
    options: &[&str],
) -> Result<Description, Diagnostics> {
    let option = |o: &&str| Layer::Option(Override::option(o));
    let parsed = parse(&Input {
        file: Some((Path::new("/lab/s.yaml"), scenario.as_bytes())),
        settings: None,
        layers: options.iter().map(option).collect(),
        home: Some("/home/u".into()),
    });
    vsc::describe(parsed, facts)
}

fn describe(scenario: &str, options: &[&str]) -> Result<Description, Diagnostics> {
    describe_on(&facts(), scenario, options)
}

#[track_caller]
fn described(scenario: &str, options: &[&str]) -> Description {
    describe(scenario, options).unwrap_or_else(|e| panic!("{e}"))
}

/// The only error of a scenario.
#[track_caller]
fn error(scenario: &str, options: &[&str]) -> Record {
    let messages = describe(scenario, options).expect_err("it is refused");
    let mut errors: Vec<Record> = messages.records();
    errors.retain(|d| d.severity == Severity::Error);
    assert_eq!(errors.len(), 1, "{messages}");
    errors.remove(0)
}

/// The only error: its code, and what is marked in both places.
#[track_caller]
fn conflict(scenario: &str, options: &[&str]) -> (String, String, String) {
    let error = error(scenario, options);
    let also = error.also.first().map(|p| p.text.marked.clone());
    let place = error.place.map(|p| p.text.marked);
    (
        error.code,
        place.unwrap_or_default(),
        also.unwrap_or_default(),
    )
}

fn exported(description: &Description) -> Element {
    xml::parse::parse(&xml::export(&description.domain).text).unwrap()
}

fn tree(xml: &str) -> Element {
    xml::parse::parse(xml).unwrap_or_else(|e| panic!("{e}: {xml}"))
}

/// The elements at a path of names below an element.
fn all<'a>(element: &'a Element, path: &str) -> Vec<&'a Element> {
    let mut found = vec![element];
    for name in path.split('/') {
        found = found
            .into_iter()
            .flat_map(|e| e.children.iter().filter(|c| c.name == name))
            .collect();
    }
    found
}

/// An attribute of the first element at a path.
fn attribute<'a>(element: &'a Element, path: &str, name: &str) -> Option<&'a str> {
    all(element, path).first()?.get(name)
}

/// Whether libvirt's own check takes a domain; `None`: the tool is not here, which was said.
fn valid(lab: &Lab, xml: &str) -> Option<bool> {
    let schema = Path::new("/usr/share/libvirt/schemas/domain.rng");
    let file = lab.write("valid.xml", xml);
    let run = Command::new("xmllint")
        .args(["--noout", "--relaxng"])
        .arg(schema)
        .arg(&file)
        .output();
    fs::remove_file(file).unwrap();
    match run {
        Ok(run) if schema.exists() => Some(run.status.success()),
        _ => {
            skip("xmllint and libvirt's schemas (libxml2-utils, libvirt0)");
            None
        }
    }
}

fn have_qemu_img() -> bool {
    let have = Command::new("qemu-img").arg("--version").output().is_ok();
    if !have {
        skip("qemu-img (qemu-utils)");
    }
    have
}

/// Puts a script in the place of a program, in a directory for `$PATH`.
fn program(lab: &Lab, name: &str, script: &str) -> PathBuf {
    let directory = lab.path("bin");
    common::program(&directory.join(name), script);
    directory
}

/// `$PATH` with a directory before everything else.
fn before_path(directory: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(
        [directory.to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&path)),
    )
    .unwrap()
}
