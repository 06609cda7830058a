//! Confinement as the kernel shows it from outside, and what still works within.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::process::{PATIENCE, alive, children, soon, spinning};
use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};
use serde_json::Value;

/// A machine that runs until it is killed, killed by the end of the test.
struct Machine(Child);

impl Machine {
    /// The built-in guest, after its greeting.
    fn spinning(command: &mut Command) -> Self {
        let words = ["-o", "guest.parameters=test=blk,rng hello spin"];
        Self(spinning(command.args(words)))
    }

    fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.0.id()))
    }

    #[track_caller]
    fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: never");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn tasks(&self) -> Vec<Status> {
        let tasks = fs::read_dir(self.proc().join("task")).unwrap();
        tasks
            .filter_map(|task| {
                // A thread may end meanwhile.
                let text = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                Some(Status(text))
            })
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// /proc/PID/status.
struct Status(String);

impl Status {
    fn row(&self, name: &str) -> &str {
        let row = self.0.lines().find_map(|line| line.strip_prefix(name));
        row.and_then(|row| row.strip_prefix(':'))
            .unwrap_or("")
            .trim()
    }
}

/// Disks of every cache mode, consoles on a socket, a pipe and a file, an entropy source, several loops and vCPUs.
fn full(dir: &TempDir) -> Command {
    let mut yaml = String::from("cpu: 2\niothreads: 3\nrng: true\ndisks:\n");
    for (n, cache) in ["none", "writeback", "writethrough", "directsync", "unsafe"]
        .iter()
        .enumerate()
    {
        let image = dir.write(&format!("{n}.img"), vec![n as u8; 1 << 20]);
        yaml += &format!(
            "  - {{path: {}, id: d{n}, cache: {cache}}}\n",
            image.display()
        );
    }
    yaml += &format!(
        "serials:\n  - stdio\n  - {{to: unix:{}}}\n  - {{to: file:{}}}\n",
        dir.path("s.sock").display(),
        dir.path("s.log").display()
    );
    let scenario = dir.write("full.yaml", yaml);
    let mut command = vsc();
    command.arg(scenario);
    command
}

/// Each thread's own: those of the kernel's io_uring included.
#[test]
fn every_thread_is_confined_and_has_no_privileges() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-threads");
    let machine = Machine::spinning(&mut full(&dir));
    machine.wait_for("every thread has a filter", |m| {
        m.tasks().iter().all(|task| task.row("Seccomp") == "2")
    });
    let tasks = machine.tasks();
    for name in ["vsc-run", "vcpu0", "vcpu1", "io0", "io1", "io2"] {
        assert!(tasks.iter().any(|t| t.row("Name") == name), "no {name}");
    }
    for task in tasks {
        for (row, value) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            assert_eq!(task.row(row), value, "{row} of {}", task.0);
        }
    }
    let limits = fs::read_to_string(machine.proc().join("limits")).unwrap();
    let soft_and_hard = |name: &str| -> [u64; 2] {
        let row = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let mut words = row.split_whitespace().map(|w| w.parse().unwrap());
        [words.next().unwrap(), words.next().unwrap()]
    };
    assert!(soft_and_hard("Max core file size").iter().all(|&l| l <= 1));
    assert!(soft_and_hard("Max open files").iter().all(|&l| l < 1024));
    assert!(
        soft_and_hard("Max data size")
            .iter()
            .all(|&l| l < 256 << 20)
    );
}

/// Those that it was started with too.
#[test]
fn every_descriptor_is_closed_by_exec() {
    if !have_kvm() {
        return;
    }
    for more in [&[][..], &["--no-sandbox"]] {
        let dir = TempDir::new("sandbox-descriptors");
        let result = dir.path("r.json");
        let machine = Machine::spinning(
            full(&dir)
                .args(more)
                .arg("--control")
                .arg("--result")
                .arg(&result)
                .args(["-o", "events.on_reboot=restart"])
                .env("XDG_RUNTIME_DIR", dir.path(".")),
        );
        let mut looked_at = 0;
        for info in fs::read_dir(machine.proc().join("fdinfo")).unwrap() {
            let info = info.unwrap();
            let number: u32 = info.file_name().to_str().unwrap().parse().unwrap();
            if number <= 2 {
                continue;
            }
            let text = fs::read_to_string(info.path()).unwrap();
            let flags = text.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            let of = fs::read_link(machine.proc().join(format!("fd/{number}")));
            assert!(
                flags & libc::O_CLOEXEC as u32 != 0,
                "{number} {of:?}: {text}"
            );
            looked_at += 1;
        }
        assert!(looked_at > 20, "{looked_at}");
    }
}

#[test]
fn without_confinement_nothing_is_and_that_is_said() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-off");
    let scenario = dir.write("off.yaml", "sandbox: false\n");
    for off in ["--no-sandbox", scenario.to_str().unwrap()] {
        let mut machine = Machine::spinning(vsc().arg(off));
        for task in machine.tasks() {
            assert_eq!(task.row("Seccomp"), Status(own_status()).row("Seccomp"));
            assert_eq!(
                task.row("NoNewPrivs"),
                Status(own_status()).row("NoNewPrivs")
            );
        }
        machine.0.kill().unwrap();
        let mut said = String::new();
        machine
            .0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains("not confined") && said.contains("can do whatever"),
            "{said}"
        );
    }
    let result = facts(vsc().arg("--no-sandbox"), &dir);
    assert_eq!(result["enabled"], false);
    assert_eq!(result["seccomp"], serde_json::json!([]));
}

fn own_status() -> String {
    fs::read_to_string("/proc/self/status").unwrap()
}

/// `sandbox` of a run's result.
fn facts(command: &mut Command, dir: &TempDir) -> Value {
    let file = dir.path("facts.json");
    let output = run(command
        .args(["-o", "guest.parameters=test=none"])
        .arg("--result")
        .arg(&file));
    expect_code(&output, 0);
    let result: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    result["sandbox"].clone()
}

#[test]
fn a_result_says_what_was_in_force_and_a_plan_what_will_be() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-facts");
    let facts = facts(&mut vsc(), &dir);
    let output = run(vsc().args(["plan", "--json"]));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plan = &plan["sandbox"];
    assert_eq!(facts["enabled"], true);
    assert_eq!(plan["enabled"], true);
    assert_eq!(plan["seccomp"], true);
    assert_eq!(facts["no_new_privileges"], true);
    assert_eq!(facts["landlock"].as_u64().unwrap_or(0), plan["landlock"]);
    assert_eq!(facts["paths"], serde_json::json!([]));
    assert_eq!(facts["capabilities"], serde_json::json!([]));
    // A machine without devices has no loop.
    for kind in ["main", "vcpu"] {
        let kinds = facts["seccomp"].as_array().unwrap();
        assert!(kinds.iter().any(|k| k == kind), "{facts}");
    }
    // The limit is what was in use, a few MiB, and what the plan says.
    let more = plan["limits"]["heap_more"].as_u64().unwrap();
    let data = facts["limits"]["data"].as_u64().unwrap();
    assert!((more..more + (64 << 20)).contains(&data), "{data} {more}");
    let again = run(vsc().args(["plan", "--json", "-o", "events.on_reboot=restart"]));
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    let paths = again["sandbox"]["paths"].as_array().unwrap();
    assert!(paths.iter().any(|p| p["path"] == "/dev/kvm"), "{paths:?}");
    let calls = |plan: &Value| plan["system_calls"][2]["allowed"].as_u64().unwrap();
    assert!(calls(&again["sandbox"]) > calls(plan));
    let text_form = text(&run(vsc().arg("plan").args(["-o", "sandbox=false"])).stdout);
    assert!(text_form.contains("a guest that breaks out"), "{text_form}");
}

/// All that a machine has, closed and opened again: images with their locks, sockets, logs.
#[test]
fn a_confined_machine_starts_again_with_all_its_devices() {
    if !have_kvm() {
        return;
    }
    for (parameters, key) in [
        ("test=blk,rng poweroff", "on_poweroff"),
        ("test=blk,rng reboot", "on_reboot"),
        ("triple", "on_crash"),
    ] {
        let dir = TempDir::new("sandbox-restart");
        let result = dir.path("r.json");
        let output = run(full(&dir)
            .args(["-o", &format!("guest.parameters={parameters}")])
            .args(["-o", &format!("events.{key}=restart")])
            .args(["-o", "events.max_restarts=2"])
            .args([
                "-o",
                &format!("console.log={}", dir.path("c.log").display()),
            ])
            .arg("--result")
            .arg(&result));
        let said = text(&output.stderr);
        let lives = text(&output.stdout).matches("vsc guest").count();
        assert_eq!(lives, 3, "{parameters}: {said}");
        assert!(!said.contains("blocked"), "{said}");
        let result: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
        assert_eq!(result["restarts"], 2, "{result}");
        assert_eq!(result["sandbox"]["enabled"], true);
        let log = fs::read_to_string(dir.path("c.log")).unwrap();
        assert_eq!(log.matches("vsc guest").count(), 3);
        // What listened is gone.
        assert!(!dir.path("s.sock").exists());
    }
}

#[test]
fn a_confined_linux_starts_again() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("sandbox-linux");
    let result = dir.path("r.json");
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["-o", "events.on_reboot=restart"])
        .args(["-o", "events.max_restarts=1"])
        .arg("--result")
        .arg(&result)
        .args(["--", "sh", "-c", "echo b > /proc/sysrq-trigger; read x"]));
    expect_code(&output, 122);
    let result: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(result["restarts"], 1, "{result}");
}

#[test]
fn it_lives_where_it_was_started_confined_too() {
    if !have_kvm() {
        return;
    }
    let machine = Machine::spinning(&mut vsc());
    let of = |proc: &Path, file: &str| fs::read_to_string(proc.join(file)).unwrap();
    let own = Path::new("/proc/self");
    assert_eq!(of(&machine.proc(), "cgroup"), of(own, "cgroup"));
    assert_eq!(
        Status(of(&machine.proc(), "status")).row("Cpus_allowed"),
        Status(of(own, "status")).row("Cpus_allowed")
    );
    for name in ["net", "mnt", "pid", "user", "ipc", "uts", "cgroup"] {
        let name = format!("ns/{name}");
        assert_eq!(
            fs::read_link(machine.proc().join(&name)).unwrap(),
            fs::read_link(own.join(&name)).unwrap()
        );
    }
}

#[test]
fn ps_finds_a_confined_machine_and_its_socket_goes_with_it() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-ps");
    let mut machine = Machine::spinning(&mut full(&dir));
    let listed = text(&run(vsc().args(["ps", "--json"])).stdout);
    assert!(listed.contains(&machine.0.id().to_string()), "{listed}");
    let socket = dir.path("s.sock");
    let kind = fs::symlink_metadata(&socket).unwrap().file_type();
    assert!(kind.is_socket());
    // SAFETY: a plain system call on a child of ours.
    unsafe { libc::kill(machine.0.id() as i32, libc::SIGTERM) };
    assert_eq!(machine.0.wait().unwrap().code(), Some(143));
    assert!(!socket.exists());
    // Another process does that: who may remove a socket may remove all that lies beside it.
    let facts = facts(
        full(&dir)
            .arg("--control")
            .env("XDG_RUNTIME_DIR", dir.path(".")),
        &dir,
    );
    assert_eq!(facts["paths"], serde_json::json!([]));
    assert!(!socket.exists());
    let left: Vec<_> = walk(&dir.path("vsc"));
    assert_eq!(left, [""; 0]);
}

/// Whatever is left of sockets and records of runs in a directory.
fn walk(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if ["socket", "run", "control"]
            .iter()
            .any(|word| name.contains(word))
        {
            all.push(path.display().to_string());
        }
        all.extend(walk(&path));
    }
    all
}

/// Threads have stacks, disks have rings: the limits have room for those of the largest machine.
#[test]
fn a_machine_with_many_vcpus_and_disks_starts_and_starts_again() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-many");
    let mut yaml = String::from("cpu: 200\niothreads: 8\nrng: true\ndisks:\n");
    for n in 0..40 {
        let image = dir.write(&format!("{n}.img"), vec![0; 512]);
        yaml += &format!("  - {{path: {}, id: d{n}, cache: none}}\n", image.display());
    }
    let scenario = dir.write("many.yaml", yaml);
    let result = dir.path("r.json");
    for more in [&[][..], &["-o", "events.on_reboot=restart"]] {
        let mut command = vsc();
        command
            .arg(&scenario)
            .args(["-o", "guest.parameters=test=none reboot"])
            .args(["-o", "events.max_restarts=1"])
            .args(more)
            .arg("--result")
            .arg(&result);
        let output = run(&mut command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(!said.contains("disks use threads"), "{said}");
        let result: Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(result["restarts"], u64::from(!more.is_empty()), "{result}");
    }
}

/// The process that writes the result outlives nobody, and leaves nothing.
#[test]
fn nothing_stays_of_a_machine_that_was_killed() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("sandbox-killed");
    let mut machine = Machine::spinning(vsc().arg("--result").arg(dir.path("r.json")));
    let pid = machine.0.id();
    let children = children(pid);
    assert_eq!(children.len(), 1);
    // It holds nothing of the machine: standard streams and its socket.
    let open = format!("/proc/{}/fd", children[0]);
    soon(|| fs::read_dir(&open).unwrap().count() == 4);
    machine.0.kill().unwrap();
    machine.0.wait().unwrap();
    soon(|| !alive(children[0]));
    assert_eq!(dir.names(), [""; 0]);
}

/// Programs on a kernel that lacks `call`: it fails there with `errno`.
fn lacking(command: &mut Command, call: i64, errno: i32) -> &mut Command {
    let filter = [
        // The number; skip a return unless it is the call; fail; allow.
        (0x20, 0, 0, 0),
        (0x15, 0, 1, call as u32),
        (0x06, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            match libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

#[test]
fn a_kernel_without_seccomp_runs_nothing_confined() {
    if !have_kvm() {
        return;
    }
    let without = |more: &[&str]| run(lacking(vsc().args(more), libc::SYS_seccomp, libc::ENOSYS));
    let output = without(&[]);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("seccomp") && said.contains("--no-sandbox"),
        "{said}"
    );
    expect_code(&without(&["--no-sandbox"]), 0);
    let plan = text(&without(&["plan"]).stdout);
    assert!(plan.contains("cannot filter"), "{plan}");
    let doctor = text(&without(&["doctor"]).stdout);
    assert!(doctor.contains("runs need --no-sandbox"), "{doctor}");
}

#[test]
fn a_kernel_without_landlock_is_told_and_runs() {
    if !have_kvm() {
        return;
    }
    let call = libc::SYS_landlock_create_ruleset;
    let without = |more: &[&str]| run(lacking(vsc().args(more), call, libc::EOPNOTSUPP));
    let output = without(&["-v", "-o", "guest.parameters=test=none"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(said.contains("no Landlock"), "{said}");
    let dir = TempDir::new("sandbox-no-landlock");
    let facts = facts(lacking(&mut vsc(), call, libc::EOPNOTSUPP), &dir);
    assert_eq!(facts["landlock"], Value::Null);
    assert_eq!(facts["no_new_privileges"], true);
    let plan = text(&without(&["plan"]).stdout);
    assert!(plan.contains("this kernel has no Landlock"), "{plan}");
    // Then nothing says which files a machine opens that starts again.
    let again = ["-o", "events.on_reboot=restart"];
    let output = without(&[&again[..], &["-o", "guest.parameters=test=none"]].concat());
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(said.contains("can open whatever this user can"), "{said}");
    let plan = text(&without(&[&["plan"], &again[..]].concat()).stdout);
    assert!(plan.contains("can open whatever this user can"), "{plan}");
    let doctor = text(&without(&["doctor"]).stdout);
    assert!(doctor.contains("no Landlock"), "{doctor}");
}

/// Where io_uring is forbidden, disks have threads: confined like the loop that starts them.
#[test]
fn disks_work_with_threads_too() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("sandbox-threads-of-disks");
    let image = dir.write("d.img", vec![7; 8 << 20]);
    let disk = format!("disks=[{{path: {}, cache: none}}]", image.display());
    let root = "root={device: none}";
    for (io_uring, fill) in [(true, "count=2"), (false, "count=4")] {
        let mut command = vsc();
        command
            .arg("--kernel")
            .arg(&kernel)
            .args(["-o", &disk, "-o", root])
            .args([
                "--",
                "dd",
                "if=/dev/zero",
                "of=/dev/vda",
                "bs=1M",
                "oflag=direct",
                fill,
            ]);
        if !io_uring {
            lacking(&mut command, libc::SYS_io_uring_setup, libc::EPERM);
        }
        let output = run(&mut command);
        expect_code(&output, 0);
        let said = text(&output.stderr);
        assert_eq!(said.contains("disks use threads"), !io_uring, "{said}");
    }
    let written = fs::read(&image).unwrap();
    assert!(written[..4 << 20].iter().all(|&b| b == 0));
    assert_eq!(written[4 << 20], 7);
}
