//! Machines of processes that may open few files.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;

use common::{TempDir, expect_code, have_kvm, run, text};

/// `vsc-run SCENARIO` under `ulimit OPTION 40`, with a machine that needs more.
fn limited(dir: &TempDir, option: &str) -> Command {
    let mut yaml = String::from("disks:\n");
    for n in 0..32 {
        let image = dir.write(&format!("{n}.img"), [n; 4096]);
        yaml += &format!("  - {{path: {}, id: disk-{n}}}\n", image.display());
    }
    let scenario = dir.write("s.yaml", yaml);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit {option} 40; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_vsc-run"))
        .args(["--timeout", "150s"])
        .arg(scenario);
    command
}

#[test]
fn the_soft_limit_is_raised() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("soft-limit");
    expect_code(&run(&mut limited(&dir, "-Sn")), 0);
}

#[test]
fn a_hard_limit_that_is_too_low_is_told_before_the_guest_runs() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("hard-limit");
    let output = run(&mut limited(&dir, "-n"));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(said.contains("Too many open files"), "{said}");
}
