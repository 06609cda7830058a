//! The host around runs, and without one: prepared, shown, put back, whoever is killed when. On trees that stand in
//! for the host.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{TempDir, expect_code, finish, have_kvm, run, skip, text, vsc};
use serde_json::Value;

const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const KSM: &str = "sys/kernel/mm/ksm/run";
const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const BOOT: &str = "proc/sys/kernel/random/boot_id";
const JOURNAL: &str = "run/vsc/host/journal";
/// How long something may take that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

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
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A machine that runs until it is ended, started: it has greeted.
    fn spinning(&self, name: &str) -> Child {
        let mut child = self
            .vsc(&[])
            .arg(self.scenario(name))
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut greeting = [0; 10];
        let mut stdout = child.stdout.take().unwrap();
        if stdout.read_exact(&mut greeting).is_err() {
            panic!("{:?}", text(&child.wait_with_output().unwrap().stderr));
        }
        child.stdout = Some(stdout);
        child
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

#[track_caller]
fn within(time: Duration, what: impl Fn() -> bool) {
    let deadline = Instant::now() + time;
    while !what() {
        assert!(Instant::now() < deadline, "not within {time:?}");
        std::thread::yield_now();
    }
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
fn a_run_that_is_killed_is_put_back_by_its_warden() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("killed");
    let before = tree.whole();
    for (how, group) in [
        (libc::SIGKILL, false),
        (libc::SIGTERM, true),
        (libc::SIGINT, true),
        (libc::SIGHUP, true),
    ] {
        let child = tree.spinning("one");
        let warden = warden(&child).unwrap();
        signal(if group { -pid(&child) } else { pid(&child) }, how);
        // Nobody else holds the streams: this comes to an end.
        let output = finish(child);
        assert_ne!(output.status.code(), Some(0));
        within(PATIENCE, || tree.whole() == before);
        within(PATIENCE, || !Path::new(&format!("/proc/{warden}")).exists());
    }
}

/// The kernel kills without a word; the warden, which is not in that cgroup, has one. Then nobody waits for it.
#[test]
fn a_run_that_its_memory_limit_ends_says_so() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("limit");
    for (file, text) in [
        ("cgroup.controllers", "cpu io memory pids"),
        ("cgroup.subtree_control", "memory pids"),
        ("cgroup.procs", "1"),
        ("machine.slice/cgroup.procs", ""),
        ("machine.slice/cgroup.subtree_control", ""),
    ] {
        tree.write(&format!("sys/fs/cgroup/{file}"), text);
    }
    for (oom, kills, said) in [
        (2, 1, Some("limits.memory_max")),
        (0, 1, Some("in a cgroup above")),
        (0, 0, None),
    ] {
        // The number of the process is known before it is this program.
        let mut command = Command::new("sh");
        command.args(["-c", "read word && exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_vsc-run"));
        command.arg("--host-root").arg(tree.0.path("root"));
        command.arg(tree.scenario("one")).args([
            "-o",
            "limits.slice=machine.slice",
            "-o",
            "limits.memory_max=768M",
        ]);
        command.env("NO_COLOR", "1").stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let cgroup = format!("sys/fs/cgroup/machine.slice/vsc-one-{}", child.id());
        for (file, text) in [
            ("cgroup.procs", String::new()),
            ("memory.max", "max\n".to_owned()),
            (
                "memory.events",
                format!("low 0\nmax 3\noom {oom}\noom_kill {kills}\n"),
            ),
        ] {
            tree.write(&format!("{cgroup}/{file}"), &text);
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut greeting = [0; 10];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut greeting).unwrap();
        child.stdout = Some(stdout);
        let warden = warden(&child).unwrap();
        signal(pid(&child), libc::SIGKILL);
        let output = finish(child);
        let told = text(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{told}");
        match said {
            Some(said) => assert!(told.contains(said), "{told}"),
            None => assert!(!told.contains("killed"), "{told}"),
        }
        within(PATIENCE, || !Path::new(&format!("/proc/{warden}")).exists());
    }
}

#[test]
fn a_warden_that_is_killed_is_done_without() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("warden");
    let before = tree.whole();
    let child = tree.spinning("one");
    signal(warden(&child).unwrap(), libc::SIGKILL);
    let output = ended(child, libc::SIGTERM);
    expect_code(&output, 128 + libc::SIGTERM);
    let gc = run(&mut tree.vsc(&["gc"]));
    expect_code(&gc, 0);
    assert_eq!(tree.whole(), before, "{}", text(&output.stderr));
}

#[test]
fn when_both_are_killed_the_next_run_or_gc_puts_it_back() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("both");
    let before = tree.whole();
    let killed = || {
        let child = tree.spinning("one");
        signal(warden(&child).unwrap(), libc::SIGKILL);
        ended(child, libc::SIGKILL);
        assert_eq!(tree.read(SWAPPINESS), "10");
    };
    killed();
    let status = tree.json(&["host", "status"]);
    assert_eq!(status["changes"][0]["dead"], true);
    let found = tree.json(&["gc", "--dry-run"]);
    let found = found["found"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|found| found["kept"] == false));
    assert_eq!(tree.read(SWAPPINESS), "10", "a dry run touches nothing");
    let found = tree.json(&["gc"]);
    assert_eq!(found["found"].as_array().unwrap().len(), 3);
    assert_eq!(tree.whole(), before);
    killed();
    // A run that wants nothing of the host itself.
    let next = run(&mut tree.vsc(&["-o", "guest.parameters=test=hello"]));
    expect_code(&next, 0);
    assert!(
        text(&next.stderr).contains("put back what the run of one, pid"),
        "{}",
        text(&next.stderr)
    );
    assert_eq!(tree.whole(), before);
    // A torn line is nothing.
    killed();
    let sound = tree.read(JOURNAL);
    tree.write(JOURNAL, &format!("{sound}00000000 {{"));
    tree.json(&["gc"]);
    assert_eq!(tree.whole(), before);
    // After a reboot the values are the kernel's own.
    killed();
    tree.write(BOOT, "another-boot\n");
    let found = tree.json(&["gc"]);
    let outcome = found["found"][0]["outcome"].as_str().unwrap();
    assert!(outcome.contains("reset by a reboot"), "{outcome}");
    assert!(!tree.at(JOURNAL).exists());
    assert_eq!(tree.read(SWAPPINESS), "10");
}

#[test]
fn a_damaged_journal_is_an_error_that_says_what_to_do() {
    let tree = Tree::new("damaged");
    tree.json(&["host", "apply", "one.yaml"]);
    let before = tree.whole();
    let sound = tree.read(JOURNAL);
    tree.write(JOURNAL, &sound.replacen("madvise", "madness", 1));
    for words in [
        &["host", "status"][..],
        &["host", "undo"],
        &["gc"],
        &["host", "apply", "two.yaml"],
    ] {
        let output = run(&mut tree.vsc(words));
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("vsc-run host undo --force"),
            "{}",
            text(&output.stderr)
        );
    }
    if have_kvm() {
        // Recommendations give way.
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains("The host stays as it is"));
    }
    tree.write(JOURNAL, &sound);
    assert_eq!(tree.whole(), before);
    expect_code(&run(&mut tree.vsc(&["host", "undo"])), 0);
    assert!(!tree.at(JOURNAL).exists());
}

#[test]
fn what_a_damaged_journal_does_not_say_any_more_is_not_lost_without_a_word() {
    let tree = Tree::new("unread");
    tree.json(&["host", "apply", "one.yaml"]);
    let damaged = tree.read(JOURNAL).replacen("madvise", "madness", 1);
    tree.write(JOURNAL, &damaged);
    let output = run(&mut tree.vsc(&["host", "undo", "--force"]));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    let kept = tree.at("run/vsc/journal.damaged");
    assert!(
        said.contains("line 1: its checksum does not fit") && said.contains(kept.to_str().unwrap()),
        "{said}"
    );
    assert_eq!(text(&output.stdout), "");
    assert_eq!(fs::read_to_string(kept).unwrap(), damaged);
    assert_eq!(tree.read(THP), "always");
    // From here on there is a sound one: none.
    let output = run(&mut tree.vsc(&["host", "undo"]));
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "nothing to undo\n");
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
fn runs_that_are_killed_at_any_moment_leave_nothing() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("random");
    let before = tree.whole();
    let mut cut = 0;
    for round in 0..60u64 {
        let started = Instant::now();
        let child = tree
            .vsc(&["-q", "one.yaml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Moments spread over set-up and a little beyond.
        let moment = Duration::from_micros(round * 1500);
        while started.elapsed() < moment {
            std::hint::spin_loop();
        }
        let how = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT][round as usize % 3];
        if round % 4 == 3
            && let Some(warden) = warden(&child)
        {
            // SAFETY: a plain system call on a process that this test started.
            unsafe { libc::kill(warden, libc::SIGKILL) };
        }
        cut += usize::from(tree.at("run/vsc/host").exists());
        ended(child, how);
    }
    // The last wardens may be at it.
    within(PATIENCE, || {
        expect_code(&run(&mut tree.vsc(&["gc"])), 0);
        tree.whole() == before
    });
    assert!(cut > 5, "{cut} of them had begun");
}

#[test]
fn in_a_container_the_host_stays_and_the_guest_runs() {
    let tree = Tree::new("container");
    tree.write(".dockerenv", "");
    let before = tree.whole();
    let refused = run(&mut tree.vsc(&["host", "apply", "one.yaml"]));
    expect_code(&refused, 125);
    let said = text(&refused.stderr);
    assert!(
        said.contains("in container: host tuning disabled (docker"),
        "{said}"
    );
    if have_kvm() {
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains("in container: host tuning disabled (docker"));
        let quiet = run(&mut tree.vsc(&["-q", "quick.yaml"]));
        expect_code(&quiet, 0);
        assert_eq!(text(&quiet.stderr), "");
    }
    assert_eq!(tree.whole(), before);
}

/// Runs `words` of the program without rights: as nobody, or as a root that may no more than the files' owner.
fn without_rights(tree: &Tree, program: &Path, nobody: bool, words: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    match nobody {
        true => command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]),
        false => command.args(["--bounding-set=-all", "--inh-caps=-all"]),
    };
    command
        .arg(program)
        .arg("--host-root")
        .arg(tree.0.path("root"))
        .args(words)
        .current_dir(tree.0.path(""))
        .stdin(Stdio::null());
    run(&mut command)
}

#[test]
fn without_rights_what_cannot_be_done_is_said_in_one_line() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return skip("only root can do without its rights");
    }
    let tree = Tree::new("nobody");
    // Nobody may not be able to reach the build directory.
    let program = tree.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let verdicts = |output: &Output| -> Vec<String> {
        expect_code(output, 0);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let changes = answer["changes"].as_array().unwrap().iter();
        changes
            .map(|change| change["verdict"]["verdict"].as_str().unwrap().to_owned())
            .collect()
    };
    // One of the values is nobody's to write. Without a place for a journal it is not written either.
    chown(tree.at(KSM), Some(65534), None).unwrap();
    let before = tree.whole();
    let apply = ["host", "apply", "quick.yaml", "--json"];
    let refused = without_rights(&tree, &program, true, &apply);
    expect_code(&refused, 125);
    let said = text(&refused.stderr);
    assert!(
        said.contains("the journal of host changes is not to be trusted"),
        "{said}"
    );
    assert_eq!(tree.whole(), before);
    chown(tree.at("run/vsc"), Some(65534), None).unwrap();
    let applied = without_rights(&tree, &program, true, &apply);
    assert_eq!(verdicts(&applied), ["skipped", "done", "skipped"]);
    expect_code(&without_rights(&tree, &program, true, &["host", "undo"]), 0);
    assert_eq!(tree.whole(), before);
    if !have_kvm() {
        return;
    }
    // The same the other way round, since nobody may not use /dev/kvm everywhere.
    for path in [THP, SWAPPINESS] {
        chown(tree.at(path), Some(65534), None).unwrap();
    }
    chown(tree.at(KSM), Some(0), None).unwrap();
    chown(tree.at("run/vsc"), Some(0), None).unwrap();
    let output = without_rights(&tree, &program, false, &["quick.yaml"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("W-HOST"))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].contains("2 of 3 changes of the host were not made"),
        "{said}"
    );
    assert!(lines[0].contains("this user may not write"), "{said}");
    let quiet = without_rights(&tree, &program, false, &["-q", "quick.yaml"]);
    assert_eq!(text(&quiet.stderr), "");
    assert_eq!(tree.whole(), before);
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
    within(PATIENCE, || tree.whole() == before);
}

/// A process that has locked the journal and been stopped.
fn stopped_at_the_journal(tree: &Tree) -> Child {
    let mut holder = Command::new("flock")
        .arg(tree.at("run/vsc/host"))
        .args(["sh", "-c", "echo locked; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut locked = [0; 7];
    let stdout = holder.stdout.as_mut().unwrap();
    stdout.read_exact(&mut locked).unwrap();
    signal(pid(&holder), libc::SIGSTOP);
    holder
}

#[test]
fn a_stopped_process_at_the_journal_is_named_with_a_way_out() {
    let tree = Tree::new("stopped");
    tree.json(&["host", "apply", "one.yaml"]);
    let before = tree.whole();
    let mut holder = stopped_at_the_journal(&tree);
    let way_out = format!("`kill -CONT {}`", holder.id());
    for words in [&["host", "status"][..], &["host", "undo"], &["gc"]] {
        let output = run(&mut tree.vsc(words));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains("(flock), which is stopped"), "{said}");
        assert!(said.contains(&way_out), "{said}");
    }
    assert_eq!(tree.whole(), before);
    if have_kvm() {
        // Recommendations give way.
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains(&way_out));
    }
    signal(pid(&holder), libc::SIGCONT);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    expect_code(&run(&mut tree.vsc(&["host", "undo"])), 0);
    assert!(!tree.at(JOURNAL).exists());
}

#[test]
fn a_run_that_ends_while_somebody_is_stopped_at_the_journal_says_so_and_is_put_back_later() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("stopped-end");
    let before = tree.whole();
    let child = tree.spinning("one");
    let warden = warden(&child).unwrap();
    let mut holder = stopped_at_the_journal(&tree);
    let output = ended(child, libc::SIGTERM);
    let said = text(&output.stderr);
    let way_out = format!("`kill -CONT {}`", holder.id());
    assert!(
        said.contains("W-HOST-LEFT") && said.contains(&way_out),
        "{said}"
    );
    assert_eq!(tree.read(SWAPPINESS), "10");
    signal(pid(&holder), libc::SIGCONT);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    within(PATIENCE, || !Path::new(&format!("/proc/{warden}")).exists());
    assert_eq!(tree.whole(), before);
}
