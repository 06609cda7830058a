//! The verbs that look at the host and at the program: doctor, cpu, bench, version, completions, man.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};
use serde_json::Value;

/// Flags that Linux derives from elsewhere than CPUID's feature bits, or makes up.
const LINUXS_OWN: [&str; 29] = [
    "rep_good",
    "nopl",
    "xtopology",
    "cpuid",
    "extd_apicid",
    "tsc_known_freq",
    "tsc_reliable",
    "vmmcall",
    "amd_dcm",
    "art",
    "pebs",
    "bts",
    "up",
    "pti",
    "ring3mwait",
    "cpuid_fault",
    "tpr_shadow",
    "flexpriority",
    "ept",
    "vpid",
    "ept_ad",
    "vnmi",
    "split_lock_detect",
    "ibrs_enhanced",
    "nonstop_tsc_s3",
    "tdx_guest",
    "tdx_host_platform",
    "k8",
    "3dnowprefetch",
];

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
}

fn flags(cpu: &Value) -> BTreeSet<String> {
    cpu["flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap().to_owned())
        .collect()
}

fn show(which: &str) -> BTreeSet<String> {
    let output = run(vsc().args(["cpu", "show", "--json", "--a", which]));
    expect_code(&output, 0);
    flags(&json(&output))
}

/// What a /proc/cpuinfo names and CPUID tells.
fn told_by_cpuid(cpuinfo: &str) -> BTreeSet<String> {
    let line = cpuinfo
        .lines()
        .find(|l| l.starts_with("flags\t"))
        .expect("a line of flags");
    let names = line.split_once(':').unwrap().1.split_ascii_whitespace();
    names
        .filter(|name| !LINUXS_OWN.contains(name))
        .map(str::to_owned)
        .collect()
}

fn missing(names: &BTreeSet<String>, from: &BTreeSet<String>) -> Vec<String> {
    names.difference(from).cloned().collect()
}

fn kind_of_host() -> String {
    json(&run(vsc().args(["doctor", "--json"])))["kvm"]["kind"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn the_hosts_flags_are_those_that_linux_prints() {
    let linux = told_by_cpuid(&fs::read_to_string("/proc/cpuinfo").unwrap());
    assert!(linux.len() > 30);
    assert_eq!(missing(&linux, &show("host")), [""; 0]);
}

#[test]
fn a_guests_own_cpuinfo_names_what_cpu_show_says() {
    let Some(kernel) = kernel() else { return };
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--", "cat", "/proc/cpuinfo"]));
    expect_code(&output, 0);
    let linux = told_by_cpuid(&text(&output.stdout));
    assert!(linux.len() > 20, "{linux:?}");
    // CPUID at CPL 3 is not intercepted by kvm_pvm: it shows the host's flags, whatever KVM was told.
    let which = if kind_of_host() == "software-paging" {
        "host"
    } else {
        "guest"
    };
    assert_eq!(missing(&linux, &show(which)), [""; 0]);

    let dir = TempDir::new("cpuinfo");
    let copy = dir.write("guest", &output.stdout);
    let diff = run(vsc()
        .args(["cpu", "diff", "--json", "--a", which, "--b"])
        .arg(&copy));
    expect_code(&diff, 0);
    let added = json(&diff)["added"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        missing(&added, &LINUXS_OWN.map(str::to_owned).into()),
        [""; 0]
    );
}

#[test]
fn a_guest_has_svm_or_vmx_exactly_when_nesting_is_on() {
    let Some(kernel) = kernel() else { return };
    let max = show("max");
    let can = ["svm", "vmx"].iter().any(|name| max.contains(*name));
    let hardware = kind_of_host() == "hardware";
    for nested in [false, true] {
        let key = format!("cpu.nested={nested}");
        let output = run(vsc().arg("--kernel").arg(&kernel).args([
            "-o",
            &key,
            "--",
            "cat",
            "/proc/cpuinfo",
        ]));
        if nested && !can {
            expect_code(&output, 125);
            assert!(
                text(&output.stderr).contains("E-NESTED"),
                "{}",
                text(&output.stderr)
            );
            continue;
        }
        expect_code(&output, 0);
        let flags = told_by_cpuid(&text(&output.stdout));
        // Without interception of CPUID the host's flags show through.
        if hardware {
            assert_eq!(
                flags.contains("svm") || flags.contains("vmx"),
                nested,
                "{flags:?}"
            );
        }
    }
}

#[test]
fn a_guest_sees_no_more_than_kvm_can_show_and_only_what_nesting_allows() {
    if !have_kvm() {
        return;
    }
    let (guest, max) = (show("guest"), show("max"));
    // What the monitor adds by itself: a hypervisor, x2APIC and the deadline timer, which KVM has and does not list.
    let added: BTreeSet<_> = [
        "hypervisor",
        "x2apic",
        "tsc_deadline_timer",
        "ht",
        "cmp_legacy",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(
        missing(&missing(&guest, &max).into_iter().collect(), &added),
        [""; 0]
    );
    assert!(guest.contains("hypervisor") && guest.contains("lm"));
    assert!(
        !guest.contains("svm") && !guest.contains("vmx"),
        "{guest:?}"
    );

    let nested = run(vsc().args([
        "cpu",
        "show",
        "--json",
        "--a",
        "guest",
        "-o",
        "cpu.nested=true",
    ]));
    if max.contains("svm") || max.contains("vmx") {
        expect_code(&nested, 0);
        let nested = flags(&json(&nested));
        assert!(
            nested.contains("svm") || nested.contains("vmx"),
            "{nested:?}"
        );
    } else {
        expect_code(&nested, 125);
        assert!(
            text(&nested.stderr).contains("E-NESTED"),
            "{}",
            text(&nested.stderr)
        );
        assert_eq!(nested.stdout, b"");
    }
    let two = run(vsc().args(["cpu", "show", "--json", "--a", "guest", "--cpus", "2"]));
    assert!(flags(&json(&two)).contains("ht"));
}

#[test]
fn differences_are_exact_and_json_comes_back() {
    let dir = TempDir::new("cpu-diff");
    let a = dir.write("a", "processor\t: 0\nflags\t\t: fpu sse avx\n");
    let output = run(vsc().args(["cpu", "show", "--json", "--a"]).arg(&a));
    expect_code(&output, 0);
    let b = dir.write(
        "b.json",
        text(&output.stdout).replace("\"avx\"", "\"avx2\", \"lm\""),
    );
    let output = run(vsc()
        .args(["cpu", "diff", "--a"])
        .arg(&a)
        .arg("--b")
        .arg(&b));
    expect_code(&output, 0);
    let (shown_a, shown_b) = (a.display(), b.display());
    assert_eq!(
        text(&output.stdout),
        format!("+ only {shown_b} (2): avx2 lm\n- only {shown_a} (1): avx\n")
    );
    let host = dir.write(
        "host.json",
        run(vsc().args(["cpu", "show", "--json"])).stdout,
    );
    let same = json(&run(vsc()
        .args(["cpu", "diff", "--json", "--a", "host", "--b"])
        .arg(host)));
    assert_eq!(
        (&same["added"], &same["removed"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    // Another root has another processor.
    fs::create_dir(dir.path("proc")).unwrap();
    fs::rename(&a, dir.path("proc/cpuinfo")).unwrap();
    let other = run(vsc().args(["cpu", "show", "--host-root"]).arg(dir.path("")));
    assert_eq!(text(&other.stdout), "host (3 flags): fpu sse avx\n");
}

#[test]
fn what_cpu_cannot_answer_it_refuses() {
    let dir = TempDir::new("cpu-errors");
    let no_flags = dir.write("no-flags", "model name : x\n");
    let other_json = dir.write("other.json", "{\"a\": 1}");
    for (arguments, word) in [
        (vec!["show", "--a", "/no/such/file"], "/no/such/file"),
        (
            vec!["show", "--a", no_flags.to_str().unwrap()],
            "no line `flags`",
        ),
        (
            vec!["show", "--a", other_json.to_str().unwrap()],
            "missing field `cpu`",
        ),
        (vec!["show", "-o", "cpu.count=2"], "--a guest"),
        (
            vec!["diff", "--b", "max", "some.yaml"],
            "no guest is compared",
        ),
        (
            vec!["show", "--a", "guest", "--host-root", "/tmp"],
            "running KVM",
        ),
        (
            vec!["show", "--a", "guest", "/no/such/scenario"],
            "/no/such/scenario",
        ),
    ] {
        let output = run(vsc().arg("cpu").args(&arguments));
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(word),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert_eq!(output.stdout, b"");
    }
}

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
    assert_eq!(
        check(&report, "kvm")["remedy"],
        "sudo usermod -aG kvm \"$USER\" && newgrp kvm"
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

/// The names of the phases, each checked for itself.
fn phases(report: &Value, runs: usize) -> Vec<String> {
    let rows = report["phases_ms"].as_array().unwrap().iter();
    rows.map(|row| {
        let number = |name: &str| {
            row[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{name}: {row}"))
        };
        assert!(
            0.0 <= number("min")
                && number("min") <= number("median")
                && number("median") <= number("max"),
            "{row}"
        );
        assert_eq!(row["samples"].as_array().unwrap().len(), runs, "{row}");
        row["name"].as_str().unwrap().to_owned()
    })
    .collect()
}

#[test]
fn bench_boots_the_builtin_guest_and_leaves_nothing_behind() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("bench");
    let output = run(vsc()
        .args(["bench", "boot", "--runs", "3", "--json"])
        .env("TMPDIR", dir.path("")));
    expect_code(&output, 0);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(dir.names(), [""; 0]);
    let report = json(&output);
    assert_eq!(report["runs"], 3);
    assert_eq!(
        phases(&report, 3),
        [
            "build",
            "kvm",
            "kernel",
            "built",
            "vcpus",
            "first_output",
            "end",
            "process"
        ]
    );
    assert!(
        report["exits"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["median"].as_f64().unwrap() > 0.0)
    );

    let table = text(&run(vsc().args(["bench", "boot", "--runs", "1"])).stdout);
    for word in [
        "MEDIAN",
        "first output",
        "process",
        "to the monitor",
        "test=hello; runs: 1",
    ] {
        assert!(table.contains(word), "{table}");
    }
}

#[test]
fn bench_boots_a_kernel_to_the_end_of_a_command() {
    let Some(kernel) = kernel() else { return };
    let output = run(vsc()
        .args(["bench", "boot", "--runs", "1", "--json", "--kernel"])
        .arg(&kernel));
    expect_code(&output, 0);
    let names = phases(&json(&output), 1);
    let at = |name: &str| {
        names
            .iter()
            .position(|n| n == name)
            .unwrap_or_else(|| panic!("{name}: {names:?}"))
    };
    assert!(
        at("ready") < at("command") && at("command") < at("end"),
        "{names:?}"
    );
}

#[test]
fn bench_says_why_a_run_failed() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("bench-fails");
    let scenario = dir.write("doctor", "guest: test=none exit=7\n");
    for (arguments, word) in [
        (vec!["-o", "guest.parameters=triple"], "triple fault"),
        (
            vec!["-o", "guest.parameters=spin", "--timeout", "300ms"],
            "time limit",
        ),
        (vec!["--kernel", "/no/such/kernel"], "exit status: 125"),
        (vec![scenario.to_str().unwrap()], "exit status: 7"),
    ] {
        let output = run(vsc()
            .args(["bench", "boot", "--runs", "1"])
            .args(&arguments)
            .env("TMPDIR", dir.path("")));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("run 0 of 1 did not succeed") && said.contains(word),
            "{said}"
        );
        assert_eq!(output.stdout, b"");
    }
    assert_eq!(dir.names(), ["doctor"]);
    expect_code(&run(vsc().args(["bench", "boot", "--runs", "0"])), 125);
}

#[test]
fn every_verb_has_completions_and_a_page() {
    let version = run(vsc().args(["version", "--json"]));
    expect_code(&version, 0);
    let version = json(&version);
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        version["features"]
            .as_array()
            .unwrap()
            .contains(&"virtio-blk".into())
    );
    let verbs: Vec<_> = version["verbs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect();
    assert!(
        verbs.contains(&"doctor".into()) && verbs.contains(&"man".into()),
        "{verbs:?}"
    );

    let dir = TempDir::new("completions");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(vsc().args(["completions", shell]));
        expect_code(&output, 0);
        let script = text(&output.stdout);
        assert!(
            script.contains("vsc-run") && verbs.iter().all(|verb| script.contains(verb)),
            "{shell}"
        );
        // Shells that are installed must take what was written for them.
        let file = dir.write(shell, script);
        if Path::new("/bin").join(shell).exists() {
            assert!(
                Command::new(shell)
                    .arg("-n")
                    .arg(file)
                    .status()
                    .unwrap()
                    .success(),
                "{shell}"
            );
        }
    }
    expect_code(&run(vsc().args(["completions", "cmd.exe"])), 125);

    let page = text(&run(vsc().arg("man")).stdout);
    assert!(
        page.contains(".TH vsc-run 1") && page.contains("Exit codes"),
        "{page}"
    );
    for verb in &verbs {
        let output = run(vsc().args(["man", verb]));
        expect_code(&output, 0);
        assert!(
            text(&output.stdout).contains(&format!(".TH vsc-run-{verb} 1")),
            "{verb}"
        );
    }
    expect_code(&run(vsc().args(["man", "no-such-verb"])), 125);
}
