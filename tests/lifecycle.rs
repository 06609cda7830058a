//! Life and death of the program: what it leaves behind (nothing), whom it outlives (nobody), what it inherits.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "lifecycle/inherits.rs"]
mod inherits;
#[path = "common/pty.rs"]
mod pty;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::process::{alive, greeted, guest, kill, soon, spinning, time_to_end};
use common::{TempDir, expect_code, finish, have_kvm, kernel, run, skip, text, vsc};

/// A home for everything that a program might leave somewhere.
struct Home(TempDir);

impl Home {
    fn new(name: &str) -> Self {
        let dir = TempDir::new(name);
        for name in ["tmp", "run", "cwd", "home"] {
            fs::create_dir(dir.path(name)).unwrap();
        }
        Self(dir)
    }

    fn of<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("TMPDIR", self.0.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.0.path("run"))
            .env("HOME", self.0.path("home"))
            .env_remove("XDG_CACHE_HOME")
            .current_dir(self.0.path("cwd"))
    }

    #[track_caller]
    fn is_empty(&self) {
        let left: Vec<_> = ["tmp", "run", "cwd", "home"]
            .iter()
            .flat_map(|name| files(&self.0.path(name)))
            .collect();
        // What is kept on purpose: kernels in the form that guests map.
        let cache = self.0.path("home").join(".cache/vsc/kernels");
        let cached =
            |p: &PathBuf| p.parent() == Some(&*cache) && p.extension().is_some_and(|e| e == "elf");
        assert!(left.iter().all(cached), "left behind: {left:?}");
    }
}

/// Everything below `dir` that is no directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn killed_it_leaves_nothing() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("killed");
    let mut child = spinning(home.of(&mut guest("test=none hello spin")));
    kill(child.id(), libc::SIGKILL);
    child.wait().unwrap();
    home.is_empty();
}

#[test]
fn it_dies_with_what_started_it() {
    if !have_kvm() {
        return;
    }
    let command = guest("test=none hello spin");
    // A shell that has something to do after it, and so stays its parent.
    let mut shell = Command::new("sh")
        .args(["-c", "\"$@\" & echo $! >&2; wait", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(shell.stderr.as_mut().unwrap())
        .read_line(&mut pid)
        .unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    let mut greeting = [0; 10];
    shell
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut greeting)
        .unwrap();
    assert!(alive(pid));
    let took = time_to_end(pid, || {
        kill(shell.id(), libc::SIGKILL);
        shell.wait().unwrap();
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_hundred_short_runs_leave_nothing() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("hundred");
    let shm = || -> BTreeSet<_> {
        let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains("vsc")).collect()
    };
    let before = shm();
    for n in 0..100 {
        let output = run(home.of(&mut guest(&format!("test=none exit={n}"))));
        expect_code(&output, n);
    }
    home.is_empty();
    // Other programs may work there, too, and take away what is theirs; what we leave stays.
    soon(|| shm().is_subset(&before));
}

#[test]
fn two_runs_of_one_scenario_do_not_meet() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("twice");
    let scenario = dir.write("s.yaml", "name: twin\nguest: test=none hello spin\n");
    let children: Vec<_> = (0..2).map(|_| spinning(vsc().arg(&scenario))).collect();
    let listed = machines();
    for child in &children {
        assert!(
            listed
                .iter()
                .any(|m| m["pid"] == child.id() && m["name"] == "twin"),
            "{listed:?}"
        );
    }
    for mut child in children {
        kill(child.id(), libc::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(143));
    }
    assert_eq!(dir.names(), ["s.yaml"]);
}

fn machines() -> Vec<serde_json::Value> {
    let output = run(vsc().args(["ps", "--json"]));
    expect_code(&output, 0);
    assert_eq!(text(&output.stderr), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ps_lists_what_runs_and_nothing_after() {
    if !have_kvm() {
        return;
    }
    let begin = Instant::now();
    let child =
        spinning(guest("test=none hello spin").args(["-o", "name=listed-one", "-m", "300M"]));
    let pid = child.id();
    let found = machines()
        .into_iter()
        .find(|m| m["pid"] == pid)
        .expect("it is listed");
    assert_eq!(found["name"], "listed-one");
    assert_eq!(found["memory_bytes"], 300 << 20);
    // The kernel counts its beginning in ticks, from before this test's first moment on.
    assert!(found["uptime_seconds"].as_u64().unwrap() <= begin.elapsed().as_secs() + 1);
    let table = text(&run(vsc().arg("ps")).stdout);
    let row = table
        .lines()
        .find(|l| l.starts_with("listed-one "))
        .expect("it is in the table");
    assert!(
        row.contains(&format!(" {pid} ")) && row.contains(" 300 MiB "),
        "{row}"
    );
    kill(pid, libc::SIGTERM);
    expect_code(&finish(child), 143);
    assert!(machines().iter().all(|m| m["pid"] != pid));
}

#[test]
fn nothing_is_executed_and_little_is_asked_before_the_guest_runs() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("strace");
    let trace = dir.path("trace");
    let command = guest("test=hello");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-o"])
        .arg(&trace)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    strace.stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(child) = strace.spawn() else {
        return skip("no strace");
    };
    let output = finish(child);
    if text(&output.stderr).contains("strace: ") {
        return skip(&text(&output.stderr));
    }
    expect_code(&output, 0);
    let trace = fs::read_to_string(&trace).unwrap();
    assert_eq!(trace.matches("execve(").count(), 1, "only the first");
    assert_eq!(
        trace.matches("fork(").count() + trace.matches("SIGCHLD").count(),
        0
    );
    let before = trace.lines().take_while(|l| !l.contains("KVM_RUN")).count();
    let _ = writeln!(
        std::io::stderr(),
        "system calls before the first KVM_RUN: {before}"
    );
    assert!(before < 400, "{before}");
}

#[test]
fn the_timing_line_can_be_read_by_a_program() {
    if !have_kvm() {
        return;
    }
    let output = run(guest("test=hello").arg("--timing"));
    expect_code(&output, 0);
    let said = text(&output.stderr);
    let line = said
        .lines()
        .find_map(|l| l.strip_prefix("vsc-run: timing, ms since start: "))
        .expect(&said);
    let (moments, exits) = line.split_once("; exits to the monitor: ").unwrap();
    let moments: Vec<(&str, f64)> = moments
        .split(", ")
        .map(|m| {
            m.split_once(' ')
                .map(|(name, ms)| (name, ms.parse().unwrap()))
                .unwrap()
        })
        .collect();
    assert!(moments.is_sorted_by(|a, b| a.1 <= b.1), "{moments:?}");
    for name in [
        "build",
        "kvm",
        "kernel",
        "built",
        "vcpus",
        "first_output",
        "end",
    ] {
        assert!(moments.iter().any(|m| m.0 == name), "{name} in {moments:?}");
    }
    let exits: Vec<u64> = exits.split(" of ").map(|n| n.parse().unwrap()).collect();
    assert!(exits[0] > 0 && exits.is_sorted());
}

#[test]
fn what_cannot_run_is_refused_at_once_and_creates_nothing() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("refused");
    let refused = |command: &mut Command, needle: &str| {
        let child = home.of(command).stdout(Stdio::piped());
        let child = child.stderr(Stdio::piped()).spawn().unwrap();
        let took = time_to_end(child.id(), || ());
        let output = finish(child);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(needle),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(output.stdout, b"");
        home.is_empty();
        took
    };
    let took = refused(vsc().args(["-m", "1000000G"]), "more than this host has");
    assert!(took < Duration::from_secs(1), "{took:?}");
    refused(
        vsc().args(["--kernel", "/no/such/kernel", "--", "true"]),
        "/no/such/kernel",
    );

    let stock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/kernels/bzImage-min");
    if !Path::new("/sys/module/kvm_pvm").exists() || !stock.exists() {
        return skip(
            "stock kernels are refused with software paging only, and ../shared/kernels/bzImage-min is one",
        );
    }
    let took = refused(
        vsc().arg("--kernel").arg(&stock).args(["--", "true"]),
        "is a stock kernel",
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
    let said = text(&run(vsc().arg("--kernel").arg(&stock).args(["--", "true"])).stderr);
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    assert!(said.contains("install vsc's cpl3 kernel"), "{said}");
}

#[test]
fn the_time_limit_holds_while_nobody_reads() {
    let Some(kernel) = kernel() else { return };
    let start = Instant::now();
    let mut child = vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--timeout", "2s", "--", "busybox", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The pipe stays open and full.
    let stdout = child.stdout.take().unwrap();
    soon(|| !alive(child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(124));
    assert!(start.elapsed() >= Duration::from_secs(2));
    drop(stdout);
}

#[test]
fn sigterm_ends_a_run_that_is_still_being_prepared() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("huge");
    // 1 GiB of initrd, without a block on the disk: reading it takes a moment, in which the signal comes.
    let huge = dir.path("huge");
    let mut file = fs::File::create(&huge).unwrap();
    file.write_all(b"070701").unwrap();
    file.set_len(1 << 30).unwrap();
    let mut child = vsc()
        .arg(&huge)
        .arg("--kernel")
        .arg(&kernel)
        .args(["-m", "4G"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    soon(|| {
        !alive(child.id()) || maps(child.id()).contains("huge") || reads(child.id()) > 16 << 20
    });
    kill(child.id(), libc::SIGTERM);
    let start = Instant::now();
    let status = child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert!(
        status.code() == Some(143) || status.signal() == Some(libc::SIGTERM),
        "{status}"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(dir.names(), ["huge"]);
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// Bytes that a process has read.
fn reads(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines()
        .find_map(|l| l.strip_prefix("rchar: ")?.parse().ok())
        .unwrap_or(0)
}
