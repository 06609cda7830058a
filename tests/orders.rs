//! What a run does that is told to end, and what it finds that others left.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/home.rs"]
mod home;
#[path = "common/inside.rs"]
mod inside;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use common::{expect_code, finish, kernel, text};
use home::{Home, inside};
use serde_json::Value;

/// A command in Linux with a control socket, which has begun.
fn command(home: &Home, kernel: &Path, options: &[&str], script: &str) -> Child {
    let mut child = home
        .vsc()
        .arg("--kernel")
        .arg(kernel)
        .args(["--control", "-o", "name=lab"])
        .args(options)
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut ready);
    if read.is_err() {
        panic!("{}", text(&finish(child).stderr));
    }
    child
}

#[test]
fn the_power_button_ends_a_command_and_that_is_its_status() {
    if !inside("the_power_button_ends_a_command_and_that_is_its_status") {
        return;
    }
    let Some(kernel) = kernel() else { return };
    let home = Home::new("button");
    let result = home.0.path("r.json");
    let path = result.to_str().unwrap();
    // What hears SIGTERM ends of it; what ignores everything is killed 5 s later.
    for (script, signal) in [
        ("echo ready; while :; do read x; done", 15),
        ("trap '' TERM HUP; echo ready; while :; do read x; done", 9),
    ] {
        let child = command(&home, &kernel, &["--result", path], script);
        let output = home.ctl(&["lab", "powerdown"]);
        expect_code(&output, 0);
        let told = text(&output.stdout);
        assert!(
            told.contains("if the guest does not end: vsc-run ctl lab stop"),
            "{told}"
        );
        expect_code(&finish(child), 128 + signal);
        let result: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(result["outcome"], "signalled", "{result}");
        assert_eq!(result["signal"], signal);
        assert_eq!(result["exit_code"], 128 + signal);
    }
}

#[test]
fn stop_insists_with_a_command_that_ignores_it() {
    if !inside("stop_insists_with_a_command_that_ignores_it") {
        return;
    }
    let Some(kernel) = kernel() else { return };
    let home = Home::new("insist");
    let grace = ["-o", "limits.stop_grace=1s"];
    // It spins when its word has got out: nothing makes the cpl3 kernel take a processor away from what spins.
    let script = "trap '' TERM HUP; echo ready; read x; while :; do :; done";
    let mut child = command(&home, &kernel, &grace, script);
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let output = home.ctl(&["lab", "stop"]);
    expect_code(&output, 0);
    let told = text(&output.stdout);
    assert!(
        told.contains("ended by force after 1 s (limits.stop_grace)"),
        "{told}"
    );
    expect_code(&finish(child), 143);
}

#[test]
fn what_dead_runs_left_goes_with_the_next_run() {
    if !inside("what_dead_runs_left_goes_with_the_next_run") {
        return;
    }
    let home = Home::new("sweep");
    let alive = home.machine(&["--control", "-o", "name=alive"]);
    let kept = home.runs();
    // As a crash of the host's session leaves it: with nobody who holds its lock.
    let dead = home.base().join("1000.000001-7");
    fs::create_dir(&dead).unwrap();
    fs::set_permissions(&dead, PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["control.sock", "run.json"] {
        fs::write(dead.join(name), "{}").unwrap();
    }
    // What is not ours stays.
    let strange = home.base().join("1000.000002-7");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("other"), "").unwrap();
    let next = home.machine(&["--control", "-o", "name=next"]);
    assert!(!dead.exists());
    assert!(strange.join("other").exists());
    assert!(kept[0].join("control.sock").exists());
    expect_code(&home.ctl(&["alive", "kill"]), 0);
    expect_code(&finish(alive), 137);
    expect_code(&home.ctl(&["next", "kill"]), 0);
    expect_code(&finish(next), 137);
    assert_eq!(home.runs(), [strange]);
}
