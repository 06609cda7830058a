//! `vsc-run doctor`, on this host and on made-up ones.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use common::{TempDir, expect_code, have_kvm, json, run, text, vsc};
use serde_json::Value;

/// A root directory with these files; a name that ends in `/` is a directory.
fn tree(name: &str, files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new(name);
    for (path, content) in files {
        let path = dir.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content {
            &"/" => fs::create_dir_all(&path).unwrap(),
            content => fs::write(&path, content).unwrap(),
        }
    }
    dir
}

fn doctor(root: &TempDir) -> (Output, Value) {
    let output = run(vsc()
        .args(["doctor", "--json", "--host-root"])
        .arg(root.path(""))
        .env_remove("container"));
    let report = json(&output);
    (output, report)
}

fn check<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["id"] == id)
        .unwrap_or(&Value::Null)
}

#[test]
fn doctor_tells_hosts_that_run_machines_apart() {
    const NODE: (&str, &str) = ("dev/kvm", "");
    let vmlinuz = ("boot/vmlinuz-6.12.1", "");
    let amd = [
        NODE,
        ("sys/module/kvm_amd/parameters/nested", "1\n"),
        vmlinuz,
    ];
    let (output, report) = doctor(&tree("doctor-amd", &amd));
    expect_code(&output, 0);
    assert_eq!(
        (&report["kvm"]["kind"], &report["runs"]),
        (&"hardware".into(), &true.into())
    );
    for id in ["kvm", "stock-kernels", "nested"] {
        assert_eq!(
            (&check(&report, id)["works"], &check(&report, id)["remedy"]),
            (&true.into(), &Value::Null),
            "{id}"
        );
    }

    let intel = [NODE, ("sys/module/kvm_intel/parameters/nested", "N\n")];
    let (output, report) = doctor(&tree("doctor-intel", &intel));
    expect_code(&output, 0);
    assert_eq!(report["kvm"]["kind"], "hardware");
    let remedy = "sudo modprobe -r kvm_intel && sudo modprobe kvm_intel nested=1";
    assert_eq!(check(&report, "nested")["remedy"], remedy);
    assert_eq!(
        check(&report, "stock-kernels")["remedy"],
        "sudo apt install linux-image-cloud-amd64"
    );

    let pvm = [
        NODE,
        ("sys/module/kvm_pvm", "/"),
        vmlinuz,
        ("usr/share/vsc/kernels/vmlinux-cpl3", ""),
    ];
    let (output, report) = doctor(&tree("doctor-pvm", &pvm));
    expect_code(&output, 0);
    assert_eq!(report["kvm"]["kind"], "software-paging");
    assert_eq!(check(&report, "stock-kernels")["works"], false);
    assert_eq!(check(&report, "cpl3-kernel")["works"], true);
}

#[test]
fn doctor_names_the_command_that_mends_a_host_without_kvm() {
    let cpu = |flags: &str| format!("processor\t: 0\nflags\t\t: fpu {flags}\n");
    for (name, files, word, remedy) in [
        (
            "svm",
            vec![("proc/cpuinfo", cpu("svm"))],
            "does not exist",
            "sudo modprobe kvm_amd",
        ),
        (
            "vmx",
            vec![("proc/cpuinfo", cpu("vmx"))],
            "does not exist",
            "sudo modprobe kvm_intel",
        ),
        (
            "off",
            vec![("proc/cpuinfo", cpu("sse"))],
            "firmware",
            "sudo systemctl reboot --firmware-setup",
        ),
        (
            "guest",
            vec![("proc/cpuinfo", cpu("hypervisor"))],
            "virtual machine",
            "tests/rig/run -- vsc-run",
        ),
        (
            "docker",
            vec![(".dockerenv", String::new())],
            "docker",
            "docker run --device=/dev/kvm -it debian bash",
        ),
    ] {
        let files: Vec<_> = files
            .iter()
            .map(|(path, content)| (*path, content.as_str()))
            .collect();
        let root = tree(&format!("doctor-none-{name}"), &files);
        let (output, report) = doctor(&root);
        expect_code(&output, 1);
        assert_eq!(
            (&report["runs"], &report["kvm"]["missing"]),
            (&false.into(), &"absent".into()),
            "{name}"
        );
        let kvm = check(&report, "kvm");
        assert!(kvm["detail"].as_str().unwrap().contains(word), "{kvm}");
        assert_eq!(kvm["remedy"], remedy);
        let said = run(vsc()
            .args(["doctor", "--host-root"])
            .arg(root.path(""))
            .env_remove("container"));
        expect_code(&said, 1);
        let said = text(&said.stdout);
        assert!(
            said.contains(&format!("try: {remedy}\n"))
                && said.ends_with("No machine runs on this host.\n"),
            "{said}"
        );
    }
}

#[test]
fn doctor_tells_a_user_without_permission_how_to_get_it() {
    let root = tree(
        "doctor-denied",
        &[("dev/kvm", ""), ("sys/module/kvm_amd", "/")],
    );
    fs::set_permissions(root.path("dev/kvm"), fs::Permissions::from_mode(0o0)).unwrap();
    // Nobody's permissions bind root, so root becomes nobody, who may not be able to reach the build directory.
    let program = root.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let mut command = Command::new(&program);
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65534).gid(65534);
    }
    let output = run(command
        .args(["doctor", "--json", "--host-root"])
        .arg(root.path(""))
        .stdin(Stdio::null()));
    expect_code(&output, 1);
    let report = json(&output);
    assert_eq!(report["kvm"]["missing"], "not-permitted");
    // Nobody may, whatever the group; and there is no such group.
    assert_eq!(
        check(&report, "kvm")["remedy"],
        "sudo groupadd -r kvm && sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && \
         sudo usermod -aG kvm \"$USER\" && newgrp kvm"
    );
}

#[test]
fn doctor_asks_a_kvm_below_another_root_and_finds_out_impostors() {
    let root = tree(
        "doctor-impostor",
        &[("dev", "/"), ("sys/module/kvm_amd", "/")],
    );
    std::os::unix::fs::symlink("/dev/null", root.path("dev/kvm")).unwrap();
    let (output, report) = doctor(&root);
    expect_code(&output, 1);
    assert_eq!(
        (
            &check(&report, "kvm")["works"],
            &check(&report, "kvm-api")["works"]
        ),
        (&true.into(), &false.into())
    );
    assert_eq!(report["capabilities"]["api_version"], -1);

    if !have_kvm() {
        return;
    }
    fs::remove_file(root.path("dev/kvm")).unwrap();
    std::os::unix::fs::symlink("/dev/kvm", root.path("dev/kvm")).unwrap();
    let (output, report) = doctor(&root);
    expect_code(&output, 0);
    assert_eq!(report["capabilities"]["api_version"], 12);
    assert_eq!(report["capabilities"]["lacks"], Value::Array(vec![]));
    assert!(report["capabilities"]["max_vcpus"].as_u64().unwrap() >= 1);
    let refused = run(vsc()
        .args(["doctor", "--self-test", "--host-root"])
        .arg(root.path("")));
    expect_code(&refused, 125);
}

#[test]
fn doctors_self_test_boots_a_guest() {
    if !have_kvm() {
        return;
    }
    let output = run(vsc().args(["doctor", "--self-test", "--json"]));
    expect_code(&output, 0);
    let report = json(&output);
    assert_eq!(
        (
            &report["self_test"]["passed"],
            &report["self_test"]["exit_code"]
        ),
        (&true.into(), &0.into())
    );
    assert!(report["self_test"]["milliseconds"].as_f64().unwrap() > 0.0);
    assert_eq!(check(&report, "self-test")["works"], true);
    let quiet = run(vsc().args(["doctor", "--self-test", "--quiet"]));
    assert!(
        !text(&quiet.stdout).contains("works"),
        "{}",
        text(&quiet.stdout)
    );
}
