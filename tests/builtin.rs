//! The built-in guest in a machine of this host: every way to end, and every device it can drive.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::{Duration, Instant};

use common::{TempDir, expect_code, have_kvm, run, text, vsc};

fn guest(parameters: &str) -> std::process::Output {
    run(vsc()
        .arg("-o")
        .arg(format!("guest.parameters={parameters}")))
}

#[test]
fn without_arguments_the_self_test_runs_and_passes() {
    if !have_kvm() {
        return;
    }
    let output = run(&mut vsc());
    expect_code(&output, 0);
    let said = text(&output.stdout);
    assert!(said.starts_with("vsc guest"), "{said}");
    assert!(
        said.contains("\nend status=0 ") && !said.contains("FAIL"),
        "{said}"
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn each_ending_has_its_exit_code_and_its_sentence() {
    if !have_kvm() {
        return;
    }
    for (parameters, code, sentence) in [
        ("test=none exit=42", 42, ""),
        ("test=none exit=255", 255, ""),
        ("triple", 121, "triple fault on vCPU 0 at rip 0x"),
        (
            "hang",
            121,
            "every vCPU executed hlt with interrupts masked at rip 0x",
        ),
        ("panic", 120, "kernel panicked"),
        ("poweroff", 0, ""),
        ("reboot", 0, ""),
        ("nonsense", 64, ""),
    ] {
        let output = guest(parameters);
        expect_code(&output, code);
        let said = text(&output.stderr);
        assert!(
            said.contains(sentence) && said.is_empty() == sentence.is_empty(),
            "{parameters}: {said}"
        );
    }
}

#[test]
fn a_silent_guest_ends_with_its_instruction_pointer() {
    if !have_kvm() {
        return;
    }
    let start = Instant::now();
    let output = run(vsc().args([
        "-o",
        "guest.parameters=silent spin",
        "-o",
        "limits.boot_deadline=500ms",
    ]));
    expect_code(&output, 121);
    assert!(start.elapsed() < Duration::from_secs(20));
    let said = text(&output.stderr);
    assert!(
        said.contains("no sign of life") && said.contains("rip 0x"),
        "{said}"
    );
}

#[test]
fn a_guest_that_spins_is_ended_by_the_time_limit() {
    if !have_kvm() {
        return;
    }
    let output = run(vsc().args(["--timeout", "500ms", "-o", "guest.parameters=spin"]));
    expect_code(&output, 124);
    assert!(
        text(&output.stderr).contains("time limit of 0.5 s"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_result_file_says_which_ending_it_was() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("result");
    for (parameters, outcome, code) in [
        ("test=none exit=3", "exited", 3),
        ("triple", "hung", 121),
        ("panic", "panicked", 120),
        ("reboot", "rebooted", 0),
    ] {
        let path = dir.path("result.json");
        let output = run(vsc()
            .arg("--result")
            .arg(&path)
            .arg("-o")
            .arg(format!("guest.parameters={parameters}")));
        expect_code(&output, code);
        let result: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(result["outcome"], outcome);
        assert_eq!(result["exit_code"], code);
        assert!(result["exits"].as_u64().unwrap() > 0);
    }
    let path = dir.path("result.json");
    let output = run(vsc().arg("--result").arg(&path).args(["-o", "memory=0"]));
    expect_code(&output, 125);
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        (&result["outcome"], &result["exit_code"]),
        (&"failed".into(), &125.into())
    );
    assert_eq!(dir.names(), ["result.json"]);
}

#[test]
fn restarts_happen_as_the_events_say_and_are_bounded() {
    if !have_kvm() {
        return;
    }
    for (parameters, key) in [
        ("poweroff", "on_poweroff"),
        ("reboot", "on_reboot"),
        ("triple", "on_crash"),
        ("panic", "on_crash"),
    ] {
        let output = run(vsc()
            .arg("-o")
            .arg(format!("guest.parameters={parameters}"))
            .arg("-o")
            .arg(format!("events.{key}=restart"))
            .args(["-o", "events.max_restarts=2"]));
        let lives = text(&output.stdout).matches("vsc guest").count();
        assert_eq!(lives, 3, "{parameters}: {}", text(&output.stderr));
        let ended = run(vsc()
            .arg("-o")
            .arg(format!("guest.parameters={parameters}"))
            .arg("-o")
            .arg(format!("events.{key}=destroy")));
        assert_eq!(text(&ended.stdout).matches("vsc guest").count(), 1);
    }
}

#[test]
fn memory_up_to_above_the_hole_and_many_vcpus_are_what_the_guest_finds() {
    if !have_kvm() {
        return;
    }
    for (memory, vcpus) in [("64M", 2), ("3072M", 1), ("5G", 4), ("256M", 64)] {
        let output = run(vsc().args([
            "--memory",
            memory,
            "--cpus",
            &vcpus.to_string(),
            "-o",
            "guest.parameters=test=mem,cpu,acpi,smp",
        ]));
        expect_code(&output, 0);
        let said = text(&output.stdout);
        assert!(
            said.contains(&format!("info processors {vcpus} in the MADT")),
            "{said}"
        );
    }
}

#[test]
fn both_irqchips_serve_every_device_on_edge_and_on_shared_level_lines() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("irq");
    for irqchip in ["split", "kernel"] {
        for disks in [3, 18] {
            let mut command = vsc();
            command.args([
                "-o",
                "guest.parameters=test=irq,blk,rng",
                "-o",
                "rng=true",
                "-o",
                &format!("irqchip={irqchip}"),
            ]);
            for i in 0..disks {
                let image = dir.path(&format!("{i}.img"));
                std::fs::write(&image, vec![0; 1 << 20]).unwrap();
                command
                    .arg("-o")
                    .arg(format!("disks.{i}.path={}", image.display()));
            }
            let output = run(&mut command);
            expect_code(&output, 0);
            assert!(
                text(&output.stdout).contains(&format!("ok irq.virtio{disks} ")),
                "{}",
                text(&output.stdout)
            );
        }
    }
}

#[test]
fn a_disk_keeps_what_the_guest_wrote_and_a_read_only_one_what_it_had() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("disk");
    for cache in ["none", "writeback", "writethrough", "directsync", "unsafe"] {
        let image = dir.write("disk.img", vec![0u8; 8 << 20]);
        let disk = format!("disks.0.path={}", image.display());
        let cache = format!("disks.0.cache={cache}");
        let output = run(vsc().args([
            "-o",
            &disk,
            "-o",
            &cache,
            "-o",
            "guest.parameters=test=blk write blk=fill,verify",
        ]));
        expect_code(&output, 0);
        assert!(
            std::fs::read(&image).unwrap().iter().any(|&b| b != 0),
            "{cache}: nothing was written"
        );
        let before = std::fs::read(&image).unwrap();
        let output = run(vsc().args([
            "-o",
            &disk,
            "-o",
            &cache,
            "-o",
            "disks.0.read_only=true",
            "-o",
            "guest.parameters=test=blk write",
        ]));
        expect_code(&output, 0);
        assert!(
            std::fs::read(&image).unwrap() == before,
            "{cache}: a read-only disk changed"
        );
    }
}

#[test]
fn devices_survive_a_hostile_driver() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("evil");
    let image = dir.write("disk.img", vec![0u8; 4 << 20]);
    for seed in [1, 20_261_120] {
        let output = run(vsc().args([
            "-o",
            &format!("disks.0.path={}", image.display()),
            "-o",
            "rng=true",
            "-o",
            "limits.timeout=50s",
            "-o",
            &format!("guest.parameters=test=none evil=all seed={seed} rounds=40"),
        ]));
        expect_code(&output, 0);
    }
}

#[test]
fn input_reaches_the_guest_and_the_console_log_holds_all_output() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("log");
    let log = dir.path("console.log");
    let mut child = vsc()
        .args([
            "-o",
            "guest.parameters=test=none read",
            "-o",
            &format!("console.log={}", log.display()),
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = common::finish(child);
    expect_code(&output, 0);
    assert!(
        text(&output.stdout).contains("typed"),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(std::fs::read(&log).unwrap(), output.stdout);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn serial_lines_go_to_their_own_places() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("serials");
    let (one, two) = (dir.path("one"), dir.path("two"));
    let scenario = dir.write(
        "s.yaml",
        format!(
            "serials:\n  - to: file:{}\n  - to: file:{}\nguest: test=hello\n",
            one.display(),
            two.display()
        ),
    );
    let output = run(vsc().arg(&scenario));
    expect_code(&output, 0);
    assert_eq!(
        output.stdout, b"",
        "nothing was asked to go to standard output"
    );
    assert!(
        std::fs::read_to_string(&one)
            .unwrap()
            .starts_with("vsc guest")
    );
    assert!(std::fs::metadata(&two).unwrap().len() == 0);
}
