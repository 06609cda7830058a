//! The host around runs, and without one: prepared, shown, put back, whoever is killed when. On trees that stand in
//! for the host.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "host_verbs/journal.rs"]
mod journal;
#[path = "host_verbs/killed.rs"]
mod killed;
#[path = "host_verbs/rights.rs"]
mod rights;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use common::process::{alive, greeted, soon, spinning, stop};
use common::{TempDir, expect_code, finish, have_kvm, json, run, skip, text, vsc};
use serde_json::Value;

const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const KSM: &str = "sys/kernel/mm/ksm/run";
const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const BOOT: &str = "proc/sys/kernel/random/boot_id";
const JOURNAL: &str = "run/vsc/host/journal";

/// A tree that stands in for the host.
struct Tree(TempDir);

impl Tree {
    fn new(name: &str) -> Self {
        let tree = Tree(TempDir::new(&format!("host-{name}")));
        for (path, text) in [
            (THP, "always [madvise] never\n"),
            (KSM, "0\n"),
            (SWAPPINESS, "60\n"),
            (BOOT, "a-boot\n"),
        ] {
            tree.write(path, text);
        }
        for directory in ["run/vsc", "var/lib"] {
            fs::create_dir_all(tree.at(directory)).unwrap();
        }
        for (name, swappiness) in [("one", 10), ("two", 10), ("other", 20)] {
            let host = format!("host: {{thp: always, ksm: true, swappiness: {swappiness}}}");
            let guest = "guest: {parameters: test=none hello spin}";
            tree.0.write(
                &format!("{name}.yaml"),
                format!("name: {name}\n{host}\n{guest}\n"),
            );
        }
        let quick = "name: quick\nhost: {thp: always, ksm: true, swappiness: 10}\nguest: {parameters: test=hello}\n";
        tree.0.write("quick.yaml", quick);
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path("root").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn scenario(&self, name: &str) -> PathBuf {
        self.0.path(&format!("{name}.yaml"))
    }

    /// The program on this tree.
    fn vsc(&self, words: &[&str]) -> Command {
        let mut command = vsc();
        command
            .arg("--host-root")
            .arg(self.0.path("root"))
            .args(words)
            .current_dir(self.0.path(""));
        command
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = run(self.vsc(words).arg("--json"));
        expect_code(&output, 0);
        json(&output)
    }

    /// A machine that runs until it is ended, started: it has greeted.
    fn spinning(&self, name: &str) -> Child {
        let mut command = self.vsc(&[]);
        command.arg(self.scenario(name)).process_group(0);
        spinning(&mut command)
    }

    /// Every file, with mode and content.
    fn whole(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut places = vec![self.at("")];
        while let Some(place) = places.pop() {
            // What a warden removes meanwhile is not there.
            let Ok(entries) = fs::read_dir(place) else {
                continue;
            };
            for entry in entries {
                let path = entry.unwrap().path();
                let Ok(metadata) = fs::symlink_metadata(&path) else {
                    continue;
                };
                let mut content = format!("{:o}", metadata.permissions().mode());
                if metadata.is_dir() {
                    places.push(path.clone());
                } else {
                    match fs::read_to_string(&path) {
                        Ok(text) => content += &text,
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                        Err(e) => panic!("{}: {e}", path.display()),
                    }
                }
                all.insert(path, content);
            }
        }
        all
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call on processes of this test.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// The process that puts the host back after `child`.
fn warden(child: &Child) -> Option<i32> {
    let wanted = format!("vsc-run\0__host-warden\0{}\0", child.id());
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        (line == wanted.as_bytes()).then(|| path.file_name()?.to_str()?.parse().ok())?
    })
}

fn ended(child: Child, how: i32) -> Output {
    signal(pid(&child), how);
    finish(child)
}

#[test]
fn the_host_is_planned_changed_shown_and_put_back() {
    let tree = Tree::new("verbs");
    let before = tree.whole();
    let plan = tree.json(&["host", "plan", "one.yaml"]);
    assert_eq!(plan["name"], "one");
    let change = &plan["changes"][0];
    assert_eq!(
        (&change["what"], &change["old"], &change["new"]),
        (&"host.thp".into(), &"madvise".into(), &"always".into())
    );
    let act = &change["act"];
    assert_eq!(
        (&act["do"], &act["new"], &change["required"]),
        (&"write".into(), &"always".into(), &false.into())
    );
    assert_eq!(tree.whole(), before, "a plan touches nothing");
    let applied = run(&mut tree.vsc(&["host", "apply", "one.yaml"]));
    expect_code(&applied, 0);
    assert!(text(&applied.stdout).contains("madvise → always  done"));
    let values = [(THP, "always"), (KSM, "1"), (SWAPPINESS, "10")];
    for (path, value) in values {
        assert_eq!(tree.read(path), value, "exactly");
    }
    let status = tree.json(&["host", "status"]);
    let changes = status["changes"].as_array().unwrap();
    assert_eq!(changes.len(), values.len());
    for change in changes {
        assert_eq!(change["ours"], true);
        assert_eq!(change["dead"], false);
        assert_eq!(change["holder"]["standing"], true);
    }
    // Once more is the same, and what another scenario wants otherwise is not done.
    let again = tree.json(&["host", "apply", "other.yaml"]);
    let verdict = |n: usize| again["changes"][n]["verdict"]["verdict"].clone();
    assert_eq!(
        (verdict(0), verdict(1), verdict(2)),
        ("joined".into(), "joined".into(), "held".into())
    );
    // What somebody else changed is theirs, unless one insists.
    tree.write(SWAPPINESS, "33\n");
    let status = tree.json(&["host", "status"]);
    let theirs = status["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["what"] == "host.swappiness");
    assert_eq!(theirs.unwrap()["ours"], false);
    for _ in 0..2 {
        let undone = run(&mut tree.vsc(&["host", "undo"]));
        expect_code(&undone, 125);
        let said = text(&undone.stdout);
        assert!(
            said.contains(
                "/proc/sys/vm/swappiness was changed by somebody else since (now: 33); it is left so, before it was 60: `vsc-run host undo --force`"
            ),
            "{said}"
        );
        assert_eq!(tree.read(SWAPPINESS), "33\n");
    }
    assert_eq!(tree.read(KSM), "0\n", "the rest is back");
    // What was kept is there for whoever insists.
    expect_code(&run(&mut tree.vsc(&["host", "undo", "--force"])), 0);
    assert_eq!(tree.whole(), before);
    // It can be given up.
    tree.json(&["host", "apply", "one.yaml"]);
    tree.write(SWAPPINESS, "33\n");
    expect_code(&run(&mut tree.vsc(&["host", "undo"])), 125);
    expect_code(&run(&mut tree.vsc(&["host", "undo", "--forget"])), 0);
    assert_eq!(tree.read(SWAPPINESS), "33\n");
    tree.write(SWAPPINESS, "60\n");
    assert_eq!(tree.whole(), before);
    let nothing = run(&mut tree.vsc(&["host", "undo"]));
    expect_code(&nothing, 0);
    assert_eq!(text(&nothing.stdout), "nothing to undo\n");
    tree.json(&["host", "apply", "one.yaml"]);
    tree.write(SWAPPINESS, "33\n");
    tree.json(&["host", "undo", "--force"]);
    assert_eq!(tree.whole(), before);
    let nothing = run(&mut tree.vsc(&["gc"]));
    expect_code(&nothing, 0);
    assert_eq!(text(&nothing.stdout), "nothing to do\n");
    assert_eq!(tree.whole(), before);
}

#[test]
fn a_run_has_the_host_as_it_wants_it_and_leaves_it_as_it_was() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("run");
    let before = tree.whole();
    let child = tree.spinning("one");
    assert_eq!(tree.read(THP), "always");
    assert_eq!(tree.read(SWAPPINESS), "10");
    assert!(warden(&child).is_some());
    let output = ended(child, libc::SIGTERM);
    expect_code(&output, 128 + libc::SIGTERM);
    assert_eq!(tree.whole(), before);
    assert!(text(&output.stderr).contains("the machine runs on this host"));
    // A program reads what was done, and from what to what.
    let output = run(&mut tree.vsc(&["--json", "--result", "r.json", "quick.yaml"]));
    expect_code(&output, 0);
    let result: Value =
        serde_json::from_str(&fs::read_to_string(tree.0.path("r.json")).unwrap()).unwrap();
    let told = &result["host"][2];
    assert_eq!(told["what"], "host.swappiness");
    assert_eq!((&told["from"], &told["to"]), (&"60".into(), &"10".into()));
    assert_eq!(told["verdict"]["verdict"], "done");
    assert_eq!(tree.whole(), before);
    // Where all is so already, nothing is touched, no journal either.
    for (path, value) in [
        (THP, "[always] madvise never\n"),
        (KSM, "1\n"),
        (SWAPPINESS, "10\n"),
    ] {
        tree.write(path, value);
    }
    let before = tree.whole();
    let child = tree.spinning("one");
    assert_eq!(tree.whole(), before);
    assert_eq!(warden(&child), None);
    ended(child, libc::SIGTERM);
    assert_eq!(tree.whole(), before);
}

#[test]
fn of_two_runs_the_last_one_restores() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("two");
    let before = tree.whole();
    let one = tree.spinning("one");
    let two = tree.spinning("two");
    let other = tree.spinning("other");
    let other = ended(other, libc::SIGTERM);
    let said = text(&other.stderr);
    assert!(
        said.contains("W-HOST-HELD") && said.contains(&format!("pid {}", one.id())),
        "{said}"
    );
    assert_eq!(tree.read(SWAPPINESS), "10");
    ended(one, libc::SIGTERM);
    assert_eq!(
        (tree.read(SWAPPINESS), tree.read(THP)),
        ("10".into(), "always".into())
    );
    // Meanwhile somebody else changes one of them.
    tree.write(KSM, "2\n");
    let two = ended(two, libc::SIGTERM);
    assert!(
        text(&two.stderr)
            .contains("/sys/kernel/mm/ksm/run was changed by somebody else since (now: 2)"),
        "{}",
        text(&two.stderr)
    );
    assert_eq!(tree.read(KSM), "2\n");
    tree.write(KSM, "0\n");
    assert_eq!(tree.whole(), before);
}

#[test]
fn a_host_that_is_not_there_is_an_error_of_every_verb() {
    let tree = Tree::new("nowhere");
    tree.0.write("file", "");
    for root in ["none", "file"] {
        for words in [
            &["host", "status"][..],
            &["gc"],
            &["plan", "one.yaml"],
            &["ps"],
            &["quick.yaml"],
            &["--json", "quick.yaml"],
        ] {
            let mut command = vsc();
            command.args(["--host-root", root]).args(words);
            let output = run(command.current_dir(tree.0.path("")));
            expect_code(&output, 125);
            let said = text(&output.stderr) + &text(&output.stdout);
            let message = format!("there is no directory {root} (--host-root)");
            assert!(said.contains(&message), "{words:?}: {said}");
        }
    }
}

#[test]
fn of_two_that_hold_a_value_the_end_is_told() {
    let tree = Tree::new("holders");
    let before = tree.whole();
    tree.json(&["host", "apply", "one.yaml"]);
    tree.json(&["host", "apply", "two.yaml"]);
    let output = run(&mut tree.vsc(&["host", "undo"]));
    expect_code(&output, 0);
    let said = text(&output.stdout);
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(
        said.lines().all(|line| line.contains(" is back at ")),
        "{said}"
    );
    assert_eq!(tree.whole(), before);
    if !have_kvm() {
        return;
    }
    let child = tree.spinning("one");
    let output = run(&mut tree.vsc(&["host", "undo"]));
    expect_code(&output, 0);
    let said = text(&output.stdout);
    let wanted = format!(
        "the run of one, pid {}, goes on and puts back at its end: /",
        child.id()
    );
    assert!(
        said.starts_with(&wanted) && said.contains("/proc/sys/vm/swappiness"),
        "{said}"
    );
    let held = tree.json(&["host", "undo"]);
    assert_eq!(held["held"].as_array().unwrap().len(), 3);
    assert_eq!(held["held"][0]["holder"]["pid"], child.id());
    ended(child, libc::SIGTERM);
    assert_eq!(tree.whole(), before);
}

#[test]
fn what_an_apply_does_not_do_is_warned_of_and_shown_with_its_reason() {
    let tree = Tree::new("held");
    fs::remove_file(tree.at(KSM)).unwrap();
    let ends = "events: {on_poweroff: restart}\n";
    let other = fs::read_to_string(tree.scenario("other")).unwrap();
    tree.0.write("other.yaml", other + ends);
    tree.json(&["host", "apply", "one.yaml"]);
    let output = run(&mut tree.vsc(&["host", "apply", "other.yaml"]));
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(
        said.contains("W-HOST-HELD")
            && said.contains("host.swappiness: `host apply` of one needs it as it is"),
        "{said}"
    );
    assert!(
        said.contains("1 of 2 changes of the host was not made"),
        "{said}"
    );
    // It is not about the host.
    assert!(!said.contains("W-ENDLESS"), "{said}");
    let check = run(&mut tree.vsc(&["check", "other.yaml"]));
    assert!(text(&check.stderr).contains("W-ENDLESS"));
    let shown = text(&output.stdout);
    let skipped = shown.lines().find(|line| line.contains("host.ksm"));
    assert!(
        skipped.is_some_and(|line| line.contains("not done: this host has no")),
        "{shown}"
    );
    let applied = tree.json(&["host", "apply", "one.yaml"]);
    let changes = applied["changes"].as_array().unwrap().iter();
    let mut skipped = changes.filter(|c| c["verdict"]["verdict"] == "skipped");
    assert_eq!(skipped.next().unwrap()["what"], "host.ksm");
}

#[test]
fn a_saved_machine_is_tuned_too_and_a_detached_one_until_it_ends() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("saved");
    let before = tree.whole();
    expect_code(
        &run(&mut tree.vsc(&["--save", "--store", "store", "one.yaml"])),
        0,
    );
    let start = ["start", "one", "--store", "store"];
    let output = run(tree.vsc(&start).args(["--timeout", "1s", "-v"]));
    expect_code(&output, 124);
    let said = text(&output.stderr);
    assert!(
        said.contains("swappiness 60 → 10") && said.contains("swappiness is back at 60"),
        "{said}"
    );
    assert_eq!(tree.whole(), before);
    expect_code(&run(tree.vsc(&start).arg("--detach")), 0);
    assert_eq!(tree.read(SWAPPINESS), "10");
    expect_code(&run(&mut tree.vsc(&["stop", "one", "--store", "store"])), 0);
    soon(|| tree.whole() == before);
}
