//! Rules of the house that neither cargo nor clippy checks: who may name which crate, one copy of each rust-vmm crate,
//! rooms of 600 lines, nothing left for later.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rust files below `directories` of the repository, by their paths in it.
fn sources(directories: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places: Vec<PathBuf> = directories.iter().map(|d| root.join(d)).collect();
    let mut found = Vec::new();
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                places.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(
        found.len() > directories.len(),
        "no sources in {directories:?}"
    );
    found.sort();
    found
}

const EVERYWHERE: &[&str] = &["src", "vmm", "devices", "firmware", "tests"];

fn is_test(file: &str) -> bool {
    file.split('/')
        .any(|part| part == "tests" || part == "tests.rs")
}

/// Lines that name `word`, outside comments and files of which `allowed` says so.
fn named(word: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = false;
    for (file, text) in sources(EVERYWHERE) {
        if file == "tests/house.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.contains(word) {
                seen = true;
                if !allowed(&file) {
                    lines.push(format!("{file}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(seen, "nothing names {word}: this rule is stale");
    lines
}

#[test]
fn kvm_is_named_in_its_room_only() {
    let lines = named("kvm_ioctls", |file| file.starts_with("vmm/src/kvm"));
    assert_eq!(lines, [""; 0]);
}

#[test]
fn yaml_is_named_in_its_room_only() {
    let lines = named("saphyr", |file| file.starts_with("src/scenario/yaml"));
    assert_eq!(lines, [""; 0]);
}

#[test]
fn the_event_loop_is_named_where_loops_are_only() {
    let loops = ["devices/src/virtio/worker.rs", "vmm/src/io_thread.rs"];
    let lines = named("event_manager", |file| {
        loops.contains(&file) || is_test(file)
    });
    assert_eq!(lines, [""; 0]);
}

#[test]
fn imports_go_one_way() {
    for (directory, foreign) in [
        (
            "devices",
            &["vsc_firmware", "vsc_vmm", "saphyr", "kvm_"][..],
        ),
        ("firmware", &["vsc_devices", "vsc_vmm", "saphyr", "kvm_"]),
        ("vmm", &["saphyr"]),
    ] {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(directory)
            .join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap().replace('-', "_");
        for line in manifest.lines() {
            let dependency = line.split(['.', '=', ' ']).next().unwrap();
            let bad = foreign.iter().any(|name| dependency.starts_with(name));
            assert!(!bad, "{directory}/Cargo.toml: {line}");
        }
    }
}

#[test]
fn no_crate_of_the_rust_vmm_set_is_there_twice() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let mut counts: BTreeMap<&str, usize> = [
        "vm-memory",
        "vmm-sys-util",
        "kvm-bindings",
        "kvm-ioctls",
        "linux-loader",
        "virtio-queue",
        "event-manager",
    ]
    .map(|name| (name, 0))
    .into();
    let lock = fs::read_to_string(lock).unwrap();
    for line in lock.lines() {
        let name = line
            .strip_prefix("name = \"")
            .and_then(|l| l.strip_suffix('"'));
        if let Some(count) = name.and_then(|name| counts.get_mut(name)) {
            *count += 1;
        }
    }
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
}

#[test]
fn a_file_over_600_lines_is_two_rooms() {
    let long: Vec<_> = sources(EVERYWHERE)
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > 600)
        .collect();
    assert_eq!(long, []);
}

#[test]
fn nothing_is_left_for_later() {
    for (file, text) in sources(EVERYWHERE) {
        if file == "tests/house.rs" {
            continue;
        }
        for word in ["todo!", "unimplemented!", "FIXME", "#[ignore"] {
            assert!(!text.contains(word), "{file} has {word}");
        }
    }
}

#[test]
fn the_top_level_holds_what_the_plan_says() {
    const PLAN: [&str; 14] = [
        ".cargo",
        ".ci",
        ".git",
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "devices",
        "firmware",
        "src",
        "target",
        "tests",
        "vmm",
    ];
    let names = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut others: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // What the property tests keep of a failure is to become a test of its own.
        .filter(|name| !PLAN.contains(&name.as_str()))
        .collect();
    others.sort();
    assert_eq!(others, Vec::<String>::new());
}
