//! The verbs that look at the host and at the program: cpu, bench, version, completions, man.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{TempDir, expect_code, have_kvm, json, kernel, run, text, vsc};
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
        assert_eq!(json(&nested)["error"]["code"], "E-NESTED");
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

#[test]
fn an_empty_answer_is_a_sentence() {
    let root = TempDir::new("verbs-empty");
    for (words, sentence, json) in [
        (&["ps"][..], "no machine runs\n", "[]"),
        (&["ps", "--all"], "no machine runs\n", "[]"),
        (
            &["locks", "list"],
            "no image is locked\n",
            r#"{"hidden":[],"holders":[],"leases":[]}"#,
        ),
        (&["locks", "gc"], "nothing to remove\n", "[]"),
    ] {
        let of = |more: &[&str]| {
            let mut command = vsc();
            command.args(words).args(more);
            let output = run(command.arg("--host-root").arg(root.path("")));
            expect_code(&output, 0);
            text(&output.stdout)
        };
        assert_eq!(of(&[]), sentence);
        let answer: Value = serde_json::from_str(&of(&["--json"])).unwrap();
        assert_eq!(answer.to_string(), json);
    }
}

#[test]
fn an_answer_that_does_not_get_out_is_no_success() {
    for words in [
        &["schema"][..],
        &["explain", "--all"],
        &["--export-xml", "testing-os"],
    ] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = vsc()
            .args(words)
            .args(["-q", "--settings", "none"])
            .stdout(full)
            .output()
            .unwrap();
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains("cannot write to standard output"), "{said}");
    }
}

#[test]
fn what_is_nearly_right_is_told_so() {
    for (line, wanted) in [
        ("plan computatoin", "preset `computation`"),
        ("disk create d 99999999T", "is too large"),
        ("plan -o memory.hugepages=1G -o memory=256M", "`memory: 1G`"),
    ] {
        let output = run(vsc().args(line.split(' ')));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains(wanted), "{line}: {said}");
    }
    for words in [&["nodbg es"][..], &["nodbg", "es"], &["nodbg,es"]] {
        expect_code(&run(vsc().args(["sev", "policy"]).args(words)), 0);
    }
}
