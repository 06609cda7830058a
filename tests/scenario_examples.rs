//! The example scenarios beside this file: read from the file system as the program reads them, and compiled.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use vsc::facts::{
    Facts, FileInfo, FileKind, HostFacts, InstalledKernel, LiveFacts, Root, Variables,
};
use vsc_vmm::kvm::HostKind;

fn examples() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
    let mut all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    all.sort();
    assert!(all.len() >= 4);
    all
}

/// A host that has every file an example names.
fn host(example: &Path) -> HostFacts {
    let directory = example.parent().unwrap();
    let file = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    let names = [
        "alpine-bzImage",
        "rootfs.ext4",
        "vmlinuz",
        "base.cpio",
        "extra.cpio",
        "data.img",
    ];
    HostFacts {
        host_kind: HostKind::Hardware,
        kernels: vec![InstalledKernel {
            path: "/boot/vmlinuz-6.12".into(),
            ours: false,
        }],
        files: names.map(|n| (directory.join(n), Ok(file))).into(),
        ..HostFacts::default()
    }
}

#[test]
fn every_example_compiles_without_a_warning() {
    for example in examples() {
        let parsed =
            vsc::load(Some(&example), Vec::new(), None, vsc::SettingsFrom::Nowhere).unwrap();
        let plan = vsc::compile(parsed, &host(&example))
            .unwrap_or_else(|e| panic!("{}:\n{e}", example.display()));
        assert!(
            plan.warnings.list.is_empty(),
            "{}:\n{}",
            example.display(),
            plan.warnings
        );
        assert_eq!(plan.resources.validate(), Ok(()));
        assert_eq!(
            Some(plan.resources.name.as_str()),
            example.file_stem().and_then(|s| s.to_str())
        );
        assert!(!vsc::compile::device_pairs(&plan).is_empty());
    }
}

#[test]
fn the_full_example_names_every_key_that_goes_without_a_command() {
    let example = examples()
        .into_iter()
        .find(|p| p.ends_with("full.yaml"))
        .unwrap();
    let plan = vsc::compile(
        vsc::load(Some(&example), Vec::new(), None, vsc::SettingsFrom::Nowhere).unwrap(),
        &host(&example),
    )
    .unwrap();
    let settings = plan.settings();
    let by_default: Vec<_> = settings
        .iter()
        .filter(|s| s.origin == vsc::diag::Origin::Default)
        .map(|s| s.key.as_str())
        .collect();
    let left = [
        "workdir",
        "disks[0].format",
        "disks[0].read_only",
        "disks[0].block_size",
        "disks[0].preallocation",
        "disks[0].encryption",
        "disks[1].preallocation",
        "disks[1].encryption",
        "serials[0].log",
    ];
    let more = ["consoles[0].in"];
    assert!(
        by_default
            .iter()
            .all(|k| left.contains(k) || more.contains(k)),
        "{by_default:?}"
    );
}

#[test]
fn files_that_are_no_scenarios_are_named_for_what_they_are() {
    let directory = std::env::temp_dir().join(format!("vsc-scenario-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let binary = directory.join("binary");
    std::fs::write(&binary, [0x7f, b'E', b'L', b'F', 0, 0, 0xff, 0xfe]).unwrap();
    let bomb = directory.join("bomb.yaml");
    std::fs::write(&bomb, "a: [".to_owned() + &"[".repeat(1 << 20)).unwrap();
    let facts = LiveFacts::new(Root::default(), Variables::default());
    let code =
        |path: &Path| match vsc::load(Some(path), Vec::new(), None, vsc::SettingsFrom::Nowhere) {
            Ok(parsed) => vsc::check(parsed, &facts as &dyn Facts).list[0].code,
            Err(messages) => messages.list[0].code,
        };
    assert_eq!(code(&binary), "E-ENCODING");
    assert_eq!(code(&bomb), "E-YAML-SIZE");
    assert_eq!(code(&directory), "E-SCENARIO");
    assert_eq!(code(&directory.join("gone.yaml")), "E-SCENARIO");
    let all = vsc::load(
        Some(Path::new("desktop")),
        Vec::new(),
        None,
        vsc::SettingsFrom::Nowhere,
    );
    let all = vsc::check(all.unwrap(), &facts as &dyn Facts).list;
    assert!(all.iter().any(|d| d.code == "E-BOOT"), "{all:?}");
    std::fs::remove_dir_all(directory).unwrap();
}
