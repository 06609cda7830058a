//! Leases of a real sanlock: its daemon as each of two hosts, and its own client as the judge. Nothing of it is the
//! system's: each daemon has a directory of its own, no watchdog and no privileges (SANLOCK_PRIVILEGED=0).

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::process::Running;
use common::{expect_code, have_kvm, run, skip, text, vsc};
use serde_json::Value;

/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Storage that hosts share, on a disk: sanlock reads and writes it directly.
struct Storage(PathBuf);

impl Storage {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.join(format!("sanlock-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("leases")).unwrap();
        let image = std::fs::File::create(dir.join("x.img")).unwrap();
        image.set_len(1 << 20).unwrap();
        Self(dir)
    }

    fn image(&self) -> PathBuf {
        self.0.join("x.img")
    }

    fn leases(&self) -> PathBuf {
        self.0.join("leases")
    }

    /// The image's lease.
    fn lease(&self) -> (String, PathBuf) {
        let name = vsc::locks::keys::lease_name(&self.image());
        let path = self.leases().join(&name);
        (name, path)
    }

    /// The lease as sanlock's own programs have it written.
    fn resource(&self) -> String {
        let (name, path) = self.lease();
        format!("__LIBVIRT__DISKS__:{name}:{}:0", path.display())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon: a host.
struct Host<'a> {
    storage: &'a Storage,
    id: u32,
    directory: PathBuf,
    daemon: Running,
}

impl<'a> Host<'a> {
    fn new(storage: &'a Storage, id: u32, name: &str) -> Self {
        let directory = storage.0.join(name);
        std::fs::create_dir(&directory).unwrap();
        let mut command = Command::new("sanlock");
        command
            .args([
                "daemon", "-D", "-w", "0", "-L", "-1", "-S", "-1", "-g", "30",
            ])
            .args(["-U", "root", "-G", "root", "-e", name])
            .env("SANLOCK_PRIVILEGED", "0")
            .env("SANLOCK_RUN_DIR", &directory)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(storage.0.join(format!("{name}.log"))).unwrap());
        let daemon = Running(command.spawn().unwrap());
        let host = Self {
            storage,
            id,
            directory,
            daemon,
        };
        host.until("its socket", || {
            host.directory.join("sanlock.sock").exists()
        });
        host
    }

    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "no {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        let log = self.directory.with_extension("log");
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// sanlock's own program.
    fn sanlock(&self, args: &[&str]) -> Command {
        let mut command = Command::new("sanlock");
        command.args(args).env("SANLOCK_RUN_DIR", &self.directory);
        command
    }

    fn status(&self) -> String {
        let output = self.sanlock(&["client", "status"]).output().unwrap();
        text(&output.stdout)
    }

    /// Whether sanlock says that this process has the lease.
    fn has(&self, pid: u32) -> bool {
        let wanted = format!("r {}:", self.storage.resource());
        let status = self.status();
        let mut lines = status.lines();
        lines.any(|line| line.starts_with(&wanted) && line.ends_with(&format!(" p {pid}")))
    }

    /// This program on this host.
    fn vsc(&self) -> Command {
        let mut command = vsc();
        command.env("SANLOCK_RUN_DIR", &self.directory);
        command
    }

    fn machine(&self, name: &str, options: &[&str]) -> Command {
        let mut command = self.vsc();
        let own = [
            format!("name={name}"),
            format!("disks.0.path={}", self.storage.image().display()),
            "locking.driver=sanlock".into(),
            format!("locking.host_id={}", self.id),
            format!("locking.disk_lease_dir={}", self.storage.leases().display()),
            "locking.io_timeout=1".into(),
        ];
        for option in own
            .iter()
            .map(String::as_str)
            .chain(options.iter().copied())
        {
            command.args(["-o", option]);
        }
        command
    }

    /// One that ends at once.
    fn brief(&self, name: &str, options: &[&str]) -> Output {
        run(&mut self.machine(name, options))
    }

    /// One that stays, once it has its lease.
    fn staying(&self, name: &str, options: &[&str]) -> Running {
        let mut command = self.machine(name, options);
        command.args([
            "-o",
            "limits.boot_deadline=none",
            "-q",
            "-o",
            "guest.parameters=silent spin",
        ]);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let running = Running(child);
        self.until("lease", || self.has(running.pid()));
        running
    }

    /// Another program of this host that takes the lease, and whether it got it.
    fn foreign(&self, mode: &str) -> Option<Running> {
        let resource = self.storage.resource() + mode;
        let args = [
            "client",
            "command",
            "-r",
            &resource,
            "-c",
            "/bin/sleep",
            "600",
        ];
        let mut command = self.sanlock(&args);
        let mut running = Running(command.stdout(Stdio::null()).spawn().unwrap());
        let pid = running.pid();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                assert!(!status.success());
                return None;
            }
            if self.has(pid) {
                return Some(running);
            }
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same, once the daemon has given up what a process had that has ended.
    fn foreign_soon(&self, mode: &str) -> Running {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(running) = self.foreign(mode) {
                return running;
            }
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// That a run was refused, nothing is left of it, and what it said.
fn refused(output: &Output, code: &str) -> String {
    expect_code(output, 125);
    let said = text(&output.stderr);
    assert!(said.contains(code), "{said}");
    said
}

fn can_run() -> bool {
    let there = Command::new("sanlock").arg("version").output().is_ok();
    if !there {
        skip("sanlock (Debian: sanlock)");
    }
    there && have_kvm()
}

#[test]
fn a_lease_keeps_other_machines_off_on_this_host_and_on_others() {
    if !can_run() {
        return;
    }
    let storage = Storage::new("two");
    let (name, path) = storage.lease();
    let one = Host::new(&storage, 1, "one");
    let two = Host::new(&storage, 2, "two");

    // What is only read has none, and needs no lockspace.
    expect_code(&one.brief("r", &["disks.0.read_only=true"]), 0);
    assert!(
        std::fs::read_dir(storage.leases())
            .unwrap()
            .next()
            .is_none()
    );

    let mut a = one.staying("a", &[]);
    assert!(
        one.status().contains(&format!("p {} a\n", a.pid())),
        "{}",
        one.status()
    );
    let dump = two
        .sanlock(&["direct", "dump", path.to_str().unwrap()])
        .output()
        .unwrap();
    let dump = text(&dump.stdout);
    assert!(
        dump.contains(&name) && dump.contains(" 0001 0001 "),
        "{dump}"
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);

    let here = refused(&one.brief("b", &[]), "E-LOCKED");
    let wanted = format!("is held by vm 'a', pid {}, since ", a.pid());
    assert!(here.contains(&wanted) && here.contains(&name), "{here}");
    let there = refused(&two.brief("b", &[]), "E-LOCKED");
    assert!(
        there.contains("is held by another host, host_id 1"),
        "{there}"
    );
    refused(&two.brief("b", &["disks.0.shareable=true"]), "E-LOCKED");
    assert!(one.foreign("").is_none() && two.foreign("").is_none());

    let list = |host: &Host<'_>| -> Value {
        let output = run(host
            .vsc()
            .args(["locks", "list", "--json"])
            .arg(storage.image()));
        expect_code(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let held = list(&one)["leases"][0].clone();
    assert_eq!((&held["pid"], &held["vm"]), (&a.pid().into(), &"a".into()));
    assert_eq!(held["image"], storage.image().to_str().unwrap());
    let elsewhere = list(&two)["leases"][0].clone();
    assert!(elsewhere["pid"].is_null(), "{elsewhere}");
    assert!(
        elsewhere["hosts"][0]
            .as_str()
            .unwrap()
            .starts_with("host_id 1"),
        "{elsewhere}"
    );
    let drivers = text(&run(one.vsc().args(["locks", "drivers"])).stdout);
    assert!(drivers.contains("available; its daemon 3."), "{drivers}");
    let gc = |host: &Host<'_>, args: &[&str]| {
        let output = run(host.vsc().args(["locks", "gc"]).args(args));
        expect_code(&output, 0);
        text(&output.stdout)
    };
    assert!(gc(&one, &[]).contains(&format!("held by 'a', pid {}", a.pid())));
    assert!(gc(&two, &[]).contains("held by host_id 1"));

    // Nobody asks it to give anything up: the daemon sees that it has gone.
    a.kill();
    expect_code(&one.brief("c", &[]), 0);
    expect_code(&two.brief("c", &[]), 0);

    let mut other = two.foreign_soon("");
    let said = refused(&one.brief("d", &[]), "E-LOCKED");
    assert!(
        said.contains("is held by another host, host_id 2"),
        "{said}"
    );
    other.kill();
    let mut other = two.foreign_soon(":SH");
    let shared = one.staying("d", &["disks.0.shareable=true"]);
    refused(&two.brief("e", &[]), "E-LOCKED");
    drop(shared);
    refused(&one.brief("d", &[]), "E-LOCKED");
    other.kill();

    two.until("release", || {
        gc(&two, &["--dry-run"]).contains("would be removed")
    });
    assert!(path.exists());
    assert!(gc(&one, &[]).contains("removed"));
    assert!(!path.exists() && storage.leases().join("__LIBVIRT__DISKS__").exists());
    expect_code(&two.brief("f", &[]), 0);
    assert!(path.exists());
    let all: Vec<_> = std::fs::read_dir(storage.leases()).unwrap().collect();
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn two_hosts_of_one_number_are_told_apart() {
    if !can_run() {
        return;
    }
    let storage = Storage::new("number");
    let one = Host::new(&storage, 1, "one");
    let twin = Host::new(&storage, 1, "twin");
    expect_code(&one.brief("a", &[]), 0);
    // Its daemon is in the lockspace, whoever runs machines.
    let another = refused(&one.brief("b", &["locking.host_id=2"]), "E-SANLOCK");
    assert!(another.contains("already, with host_id 1"), "{another}");
    let said = refused(&twin.brief("a", &[]), "E-SANLOCK");
    assert!(said.contains("host_id 1 is another host's"), "{said}");
    assert!(
        said.contains("waiting for sanlock to take host_id 1"),
        "{said}"
    );
}

#[test]
fn a_daemon_that_does_not_answer_holds_nobody_up() {
    if !can_run() {
        return;
    }
    let storage = Storage::new("hung");
    let host = Host::new(&storage, 1, "one");
    let signal = |name: &str| {
        let pid = host.daemon.pid().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    let said = refused(&host.brief("a", &[]), "E-SANLOCK");
    signal("-CONT");
    assert!(said.contains("has not answered for 10 s"), "{said}");
    expect_code(&host.brief("a", &[]), 0);
}

/// What another host asks for with `sanlock client request`, once the run heard of it and did as it was told. Each
/// action has storage of its own: a daemon hears nothing from a host that asked it some seconds ago.
fn loses(action: &str) {
    if !can_run() {
        return;
    }
    let storage = Storage::new(&format!("lost-{action}"));
    let one = Host::new(&storage, 1, "one");
    let two = Host::new(&storage, 2, "two");
    expect_code(&two.brief("b", &[]), 0);
    let name = format!("lost-{action}-{}", std::process::id());
    let result = storage.0.join(action);
    let option = format!("events.on_lockfailure={action}");
    let long = "limits.boot_deadline=none";
    let mut command = one.machine(&name, &["control=true", long, &option]);
    command.args(["-q", "-o", "guest.parameters=silent spin", "--result"]);
    let child = command.arg(&result).stdout(Stdio::null()).spawn().unwrap();
    let mut machine = Running(child);
    one.until("lease", || one.has(machine.pid()));
    let ctl = |order: &str| -> Option<Value> {
        let output = run(one.vsc().args(["ctl", &name, order, "--json"]));
        let answer = output.status.success().then_some(output.stdout)?;
        serde_json::from_slice(&answer).ok()
    };
    one.until("control socket", || ctl("status").is_some());
    let held = one.status();
    let held = held.lines().find(|l| l.starts_with("r ")).unwrap();
    let version = held
        .split(" p ")
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap();
    let version: u64 = version.parse().unwrap();
    let resource = format!("{}:{}", storage.resource(), version + 1);
    let mut asked = two.sanlock(&["client", "request", "-r", &resource, "-f", "2"]);
    expect_code(&asked.output().unwrap(), 0);
    let is = |key: &str, wanted: Value| ctl("status").is_some_and(|s| s[key] == wanted);
    match action {
        "poweroff" => {
            machine.0.wait().unwrap();
        }
        "pause" => {
            one.until("pause", || is("state", "paused".into()));
            assert!(!one.has(machine.pid()), "{}", one.status());
            // Whoever wanted the lease has it; then there is none to be had again.
            let mut other = two.foreign_soon("");
            assert!(ctl("resume").is_none() && is("state", "paused".into()));
            other.kill();
            one.until("resume", || ctl("resume").is_some());
            assert!(is("state", "running".into()) && one.has(machine.pid()));
        }
        "ignore" => {
            one.until("release", || !one.has(machine.pid()));
            assert!(is("state", "running".into()));
        }
        _ => {
            one.until("restart", || is("restarts", 1.into()));
            assert!(one.has(machine.pid()), "{}", one.status());
        }
    }
    if action != "poweroff" {
        assert!(ctl("kill").is_some());
        machine.0.wait().unwrap();
    }
    let told: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    let failure = &told["lock_failure"];
    assert_eq!(
        (&failure["action"], &failure["times"]),
        (&action.into(), &1.into())
    );
    assert_eq!(failure["released"], action != "poweroff", "{failure}");
    let back = ["pause", "restart"].contains(&action);
    assert_eq!(failure["recovered"], back, "{failure}");
    let said = told["messages"].to_string();
    assert!(said.contains("E-LOCK-LOST"), "{told}");
    if action == "poweroff" {
        assert_eq!(told["outcome"], "leases-lost");
        assert_eq!(told["exit_code"], 125);
    }
}

#[test]
fn a_machine_that_loses_its_leases_is_ended() {
    loses("poweroff");
}

#[test]
fn a_machine_that_loses_its_leases_stands_still_until_it_has_them_again() {
    loses("pause");
}

#[test]
fn a_machine_that_loses_its_leases_goes_on_without() {
    loses("ignore");
}

#[test]
fn a_machine_that_loses_its_leases_starts_again_with_new_ones() {
    loses("restart");
}
