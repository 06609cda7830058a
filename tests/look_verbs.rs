//! The verbs that look at the language and at a scenario, and touch nothing: explain, plan.
//! `VSC_BLESS=1 cargo test --test look_verbs` writes the golden files anew.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/host.rs"]
mod fake;

use std::path::Path;
use std::process::Command;

use common::{TempDir, expect_code, run, skip, text, vsc};
use serde_json::{Value, json};
use vsc::scenario::presets;

/// The text with no more than two blanks side by side.
fn narrow(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !(c == ' ' && out.ends_with("  ")) {
            out.push(c);
        }
    }
    out
}

/// What a verb answers, whole, as a golden file: standard output, then standard error.
#[track_caller]
fn golden(name: &str, dir: &TempDir, code: i32, args: &[&str]) {
    let output = run(vsc()
        .args(args)
        .env("HOME", dir.path("home"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("VSC_KERNELS")
        .env_remove("container")
        .current_dir(dir.path(".")));
    expect_code(&output, code);
    let got = text(&output.stdout) + &text(&output.stderr);
    let here = dir.path("").display().to_string();
    // How wide a column is depends on the directory's name then.
    let got = match got.contains(&here) && !name.ends_with(".json") {
        true => narrow(&got.replace(&here, "DIR/")),
        false => got.replace(&here, "DIR/"),
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/look/{name}"));
    if std::env::var_os("VSC_BLESS").is_some() {
        std::fs::write(&file, &got).unwrap();
    }
    let want = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        got == want && !got.is_empty(),
        "{name}: expected\n{want}\ngot\n{got}"
    );
}

const OF_A_SCENARIO: &str = "\
preset: computation
feature: cpu_perf
disks:
  - a.img
  - {path: b.img, cache: none}
";

#[test]
fn explain_tells_about_keys_presets_and_feature_sets() {
    let dir = TempDir::new("explain");
    dir.write("s.yaml", OF_A_SCENARIO);
    dir.write("kernel", "not a scenario");
    for (name, code, args) in [
        ("explain-key.txt", 0, &["explain", "disk.cache_type"][..]),
        (
            "explain-key.json",
            0,
            &["explain", "disks[0].cache", "--json"],
        ),
        ("explain-short.txt", 0, &["explain", "vcpu"]),
        ("explain-group.txt", 0, &["explain", "kernel"]),
        ("explain-elsewhere.txt", 0, &["explain", "watchdog.model"]),
        (
            "explain-preset-key.txt",
            0,
            &["explain", "securevm", "host.ksm"],
        ),
        (
            "explain-preset-key.json",
            0,
            &["explain", "securevm", "host.ksm", "--json"],
        ),
        ("explain-feature.txt", 0, &["explain", "cpu_perf"]),
        (
            "explain-feature.json",
            0,
            &["explain", "cpu_perf", "--json"],
        ),
        (
            "explain-feature-key.txt",
            0,
            &["explain", "cpu_perf", "cpu"],
        ),
        ("explain-both.txt", 0, &["explain", "firmware"]),
        (
            "explain-scenario-key.txt",
            0,
            &[
                "explain",
                "s.yaml",
                "disks.cache",
                "-o",
                "disks.0.cache=unsafe",
            ],
        ),
        ("explain-default.txt", 0, &["explain", "s.yaml", "irqchip"]),
        (
            "explain-unknown.txt",
            125,
            &["explain", "s.yaml", "disks.cahce"],
        ),
        ("explain-neither.txt", 125, &["explain", "securvm"]),
        ("explain-partly.txt", 125, &["explain", "cpu.topolgy.cores"]),
        ("explain-no-file.txt", 125, &["explain", "gone.yaml"]),
    ] {
        golden(name, &dir, code, args);
    }
}

#[test]
fn every_key_has_its_place_in_the_reference() {
    let all = run(vsc().args(["explain", "--all"]));
    let page = run(vsc().args(["explain", "--markdown"]));
    let data = run(vsc().args(["explain", "--all", "--json"]));
    for output in [&all, &page, &data] {
        expect_code(output, 0);
    }
    let articles: Vec<Value> = serde_json::from_slice(&data.stdout).unwrap();
    assert!(articles.len() > 200);
    let (all, page) = (text(&all.stdout), text(&page.stdout));
    for article in &articles {
        let key = article["key"].as_str().unwrap();
        assert!(all.lines().any(|line| line == key), "{key}");
        let on_the_page = page.contains(&format!("| `{key}`")) || article["members"].is_array();
        assert!(on_the_page, "{key}");
    }
    for conflict in [
        &["explain", "--all", "cpu"][..],
        &["explain", "--all", "--markdown"],
        &["explain", "cpu", "--markdown"],
        &["explain", "s.yaml", "cpu", "--devices"],
    ] {
        expect_code(&run(vsc().args(conflict)), 125);
    }
}

#[test]
fn what_nobody_said_is_told_with_its_origin() {
    let dir = TempDir::new("explain-empty");
    host(&dir);
    dir.write("empty.yaml", "");
    golden(
        "explain-empty.txt",
        &dir,
        0,
        &["explain", "empty.yaml", "--host-root", "root"],
    );
    let bash = run(vsc().args(["completions", "bash"]));
    for verb in ["plan", "schema", "explain"] {
        assert!(
            text(&bash.stdout).contains(&format!("vsc__run,{verb})")),
            "{verb}"
        );
        let page = run(vsc().args(["man", verb]));
        assert!(
            text(&page.stdout).contains(&format!("vsc\\-run\\-{verb}")),
            "{verb}"
        );
    }
}

/// With a word that is a file, `explain` is about what the file becomes, as without a word about the defaults.
#[test]
fn explain_of_a_scenario_shows_what_it_becomes() {
    let dir = TempDir::new("explain-machine");
    dir.write("memory", "memory: 64M\n");
    let plain = run(vsc().args(["explain"]));
    expect_code(&plain, 0);
    assert!(text(&plain.stdout).contains("GUEST"));
    let file = run(vsc()
        .args(["explain", "./memory"])
        .current_dir(dir.path(".")));
    expect_code(&file, 0);
    assert!(text(&file.stdout).contains("64 MiB  (./memory:1)"));
    let key = run(vsc().args(["explain", "memory"]).current_dir(dir.path(".")));
    expect_code(&key, 0);
    assert!(text(&key.stdout).starts_with("memory\n  Guest RAM."));
}

/// A host with the knobs that presets turn, below `root` in `dir`.
fn host(dir: &TempDir) {
    fake::fake_host(dir);
    // Files of scenarios are those of this host.
    dir.write("vmlinuz", "no kernel, but a file");
    dir.write("a.img", "x".repeat(1 << 16));
}

#[test]
fn plan_shows_each_preset_whole() {
    let dir = TempDir::new("plan-presets");
    host(&dir);
    for preset in presets::PRESETS {
        let args = ["plan", "--all", preset.name, "--host-root", "root"];
        golden(&format!("plan-{}.txt", preset.name), &dir, 0, &args);
    }
}

const PLANNED: &str = "\
# Lines, so that places are told apart.
preset: computation
memory: 2G
cpu:
  count: 6

disk: {cache: none, path: a.img}
";

#[test]
fn plan_shows_what_is_not_as_recommended() {
    let dir = TempDir::new("plan");
    host(&dir);
    dir.write("s.yaml", PLANNED);
    dir.write("own.yaml", "kernel: vmlinuz\ndisks: [a.img]\nrng: true\n");
    dir.write("wrong.yaml", "preset: desktop\nmemroy: 1G\n");
    dir.write(
        "settings.yaml",
        "input:\n  - keyboard: usb\n  - mouse: usb\n",
    );
    dir.write("odd.yaml", "kernel: \"a\\tb\\u202ec\"\n");
    let patches = "[{path: memory/text(), value: \"1\"}, {path: on_crash, delete: true}]";
    dir.write(
        "patched.yaml",
        format!("preset: soft-rt\nvideo: virtio\nxml: {patches}\n"),
    );
    for (name, code, args) in [
        ("plan-scenario.txt", 0, &["plan", "s.yaml"][..]),
        ("plan-scenario.json", 0, &["plan", "s.yaml", "--json", "-q"]),
        (
            "plan-flags.txt",
            0,
            &["plan", "s.yaml", "-o", "disks.0.cache=unsafe", "-m", "8G"],
        ),
        (
            "plan-settings.txt",
            0,
            &["plan", "s.yaml", "--settings", "settings.yaml"],
        ),
        ("plan-own.txt", 0, &["plan", "own.yaml"]),
        ("plan-defaults.txt", 0, &["plan"]),
        (
            "plan-command.txt",
            0,
            &["plan", "own.yaml", "--", "uname", "-r"],
        ),
        (
            "plan-xml.txt",
            0,
            &[
                "plan",
                "patched.yaml",
                "--xml-set",
                "devices/video/model/@heads=2",
            ],
        ),
        (
            "plan-xml-wrong.txt",
            125,
            &["plan", "--xml-set", "devices/@"],
        ),
        ("plan-list.txt", 0, &["plan", "--list"]),
        ("plan-list.json", 0, &["plan", "--list", "--json"]),
        ("plan-wrong.txt", 125, &["plan", "wrong.yaml"]),
        ("plan-odd.txt", 0, &["plan", "odd.yaml"]),
    ] {
        let args: Vec<&str> = match args.iter().position(|a| *a == "--") {
            Some(at) => [&args[..at], &["--host-root", "root"], &args[at..]].concat(),
            None => [args, &["--host-root", "root"]].concat(),
        };
        golden(name, &dir, code, &args);
    }
    dir.write("root/.dockerenv", "");
    golden(
        "plan-container.txt",
        &dir,
        0,
        &["plan", "-q", "securevm", "--host-root", "root"],
    );
}

/// The fields that the module documentation of `plan` promises.
#[test]
fn plan_answers_programs_in_the_form_that_is_promised() {
    let dir = TempDir::new("plan-json");
    host(&dir);
    let answer = |args: &[&str]| -> Value {
        let output = run(vsc()
            .args(["plan", "--json", "--host-root", "root"])
            .args(args)
            .current_dir(dir.path(".")));
        expect_code(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let fields =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let preset = answer(&["securevm"]);
    assert_eq!(
        fields(&preset),
        [
            "answers",
            "devices",
            "differences",
            "domain",
            "held",
            "host",
            "images",
            "locks",
            "monitor",
            "name",
            "presets",
            "sandbox",
            "settings",
            "sources",
            "warnings",
            "xml_changes"
        ]
    );
    assert_eq!(preset["monitor"]["runs"], false);
    assert!(!preset["monitor"]["problems"].as_array().unwrap().is_empty());
    assert_eq!(preset["domain"]["security"]["type"], "sev");
    assert_eq!(
        fields(&preset["devices"][0]),
        ["guest", "host", "key", "monitor"]
    );
    assert_eq!(
        fields(&preset["host"]["changes"][0]),
        [
            "act", "new", "note", "old", "origin", "path", "required", "skipped", "what"
        ]
    );
    assert_eq!(
        fields(&preset["images"][0]),
        ["disk", "format", "path", "size"]
    );
    let own = answer(&["-o", "cpu.count=2", "-o", "preset=soft-rt"]);
    assert_eq!(own["sources"], json!(["preset soft-rt", "command line"]));
}

/// Nothing that only looks executes a program or writes a file.
#[test]
fn looking_executes_nothing_and_writes_nothing() {
    let dir = TempDir::new("look-strace");
    host(&dir);
    dir.write("s.yaml", PLANNED);
    for args in [
        &["plan", "--all", "s.yaml"][..],
        &["plan", "securevm"],
        &["check", "s.yaml", "-o", "kernel=root/vmlinuz"],
        &["explain", "s.yaml", "disks"],
        &["explain", "--all"],
        &["schema"],
    ] {
        let trace = dir.path("trace");
        let strace = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&trace)
            .arg(vsc().get_program())
            .args(args)
            .current_dir(dir.path("."))
            .output();
        let Ok(output) = strace else {
            return skip("no strace");
        };
        if text(&output.stderr).contains("strace: ") {
            return skip(&text(&output.stderr));
        }
        let trace = std::fs::read_to_string(&trace).unwrap();
        assert!(trace.contains("exited with"), "{args:?}: {trace}");
        assert_eq!(trace.matches("execve(").count(), 1, "{args:?}");
        // O_RDWR alone tells whether a file could be written.
        let changes = [
            "fork(",
            "O_WRONLY",
            "O_CREAT",
            "O_TRUNC",
            "mkdir",
            "rename",
            "unlink",
            "truncate",
            "fallocate",
        ];
        let changing = |line: &&str| {
            let written = line
                .split_once(" write(")
                .map(|(_, to)| to.starts_with(['1', '2']));
            changes.iter().any(|call| line.contains(call)) || written == Some(false)
        };
        let lines: Vec<&str> = trace.lines().filter(changing).collect();
        assert_eq!(lines, [""; 0], "{args:?}");
    }
}
