//! The built-in guest in another monitor: its own report must not depend on ours.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;

use vsc_firmware::guest::{ELF, JsonReport, Kind, Report, USAGE, json_line};

/// Boots the guest in QEMU without KVM; the console and the status. QEMU's debug exit turns status n into 2n + 1.
fn run(cmdline: &str) -> (String, i32) {
    let file = std::env::temp_dir().join(format!(
        "vsc-guest-{}-{}",
        std::process::id(),
        cmdline.len()
    ));
    std::fs::write(&file, ELF).unwrap();
    let output = Command::new("qemu-system-x86_64")
        .args([
            "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "64",
        ])
        .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1", "-kernel"])
        .arg(&file)
        .args(["-append", cmdline])
        .output();
    let _ = std::fs::remove_file(&file);
    let output = output.expect("qemu-system-x86_64 runs");
    let code = output.status.code().expect("QEMU ended by itself");
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        (code - 1) / 2,
    )
}

#[test]
fn the_self_test_passes() {
    if !common::have(&["qemu-system-x86_64"]) {
        return;
    }
    let (console, status) = run("report=json");
    let report = Report::parse(&console);
    assert!(report.passed(), "{console}");
    assert_eq!((status, report.status), (0, Some(0)));
    assert!(
        report
            .entries
            .iter()
            .any(|e| e.name == "smp" && e.text.starts_with("2 processors")),
        "{console}"
    );
    let json: JsonReport =
        serde_json::from_str(json_line(&console).expect("a JSON line")).expect("JSON");
    assert_eq!(json.entries, report.entries);
    assert_eq!(json.passed as usize, report.count(Kind::Ok));
}

#[test]
fn words_decide_the_end() {
    if !common::have(&["qemu-system-x86_64"]) {
        return;
    }
    assert_eq!(run("exit=42"), ("vsc guest\n".into(), 42));
    assert_eq!(run("silent exit=7"), (String::new(), 7));
    let (console, status) = run("test=nonsense quiet");
    assert_eq!(status, i32::from(USAGE));
    assert!(
        console.contains("FAIL parameters 2 not understood, the first: test=nonsense"),
        "{console}"
    );
}
