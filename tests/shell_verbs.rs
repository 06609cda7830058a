//! `vsc-run shell`: as a person uses it, as a script does, and what its commands come to in the XML. `vsc-run info`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/pty.rs"]
mod pty;
#[path = "shell_verbs/scripts.rs"]
mod scripts;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{TempDir, expect_code, have_kvm, kernel, mode, program, run, text, vsc};
use pty::Pty;
use serde_json::Value;

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";
const TAB: &str = "\t";

/// A home with a store and nothing else.
struct Home(TempDir);

impl Home {
    fn new(name: &str) -> Self {
        let home = Self(TempDir::new(&format!("shell-{name}")));
        fs::create_dir(home.0.path("work")).unwrap();
        home
    }

    fn work(&self, name: &str) -> PathBuf {
        self.0.path("work").join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.work(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn vsc(&self, arguments: &[&str]) -> Command {
        let mut command = vsc();
        command
            .args(arguments)
            .env("HOME", self.0.path("home"))
            .env("XDG_DATA_HOME", self.0.path("data"))
            .env("XDG_STATE_HOME", self.0.path("state"))
            .env("XDG_CONFIG_HOME", self.0.path("config"))
            .env("TERM", "xterm")
            .current_dir(self.work(""));
        command
    }

    fn shell(&self, commands: &str) -> Output {
        run(&mut self.vsc(&["shell", "-c", commands]))
    }

    #[track_caller]
    fn expect(&self, commands: &str, code: i32) -> (String, String) {
        let output = self.shell(commands);
        expect_code(&output, code);
        (text(&output.stdout), text(&output.stderr))
    }

    /// The domain XML of a preset after these commands.
    #[track_caller]
    fn xml(&self, commands: &str, preset: &str) -> String {
        self.expect(&format!("{commands}; xml {preset}"), 0).0
    }

    fn saved(&self, name: &str, file: &str) -> PathBuf {
        self.0.path("data/vsc/vms").join(name).join(file)
    }

    fn history(&self) -> PathBuf {
        self.0.path("state/vsc/history")
    }
}

#[test]
fn a_person_sees_settings_and_is_helped() {
    let home = Home::new("person");
    home.write("disc one.iso", "");
    let mut pty = Pty::new(40, 120);
    let before = pty.settings();
    let mut child = pty.spawn(&mut home.vsc(&["shell"]));
    pty.expect("> ");
    // A command, by its beginning.
    pty.send(format!("vcp{TAB}3\r"));
    pty.expect("User Settings\r\n  vcpu  3\r\n");
    pty.expect("> ");
    // A value: machines, words of the table, and only those that fit.
    pty.send(format!("machine pc-q35-8{TAB}\r"));
    pty.expect("machine  pc-q35-8.2\r\n");
    pty.expect("> ");
    pty.send(format!("cache writet{TAB}\r"));
    pty.expect("cache    writethrough\r\n");
    pty.expect("> ");
    // A key, level by level, and its value.
    pty.send(format!("set mem{TAB}loc{TAB}t{TAB}\r"));
    pty.expect("memory.locked  true\r\n");
    pty.expect("> ");
    // A file.
    pty.send(format!("cdr{TAB}./dis{TAB}\r"));
    pty.expect("disc one.iso\r\n");
    pty.expect("> ");
    // Two that fit are both shown.
    pty.send(format!("write{CTRL_C}"));
    pty.expect("User Settings");
    pty.expect("> ");
    pty.send(format!("cache write{TAB}{TAB}"));
    pty.expect("writeback");
    pty.expect("writethrough");
    pty.expect("> cache write");
    pty.send(CTRL_C);
    pty.expect("User Settings");
    pty.expect("> ");
    // What was last typed, again; an empty line is not that.
    pty.send("vcpu 5\r");
    pty.expect("vcpu           5\r\n");
    pty.expect("> ");
    pty.send("!echo \"on\"ce\r");
    pty.expect("\r\nonce\r\n");
    pty.expect("exit code 0");
    pty.expect("> ");
    pty.send("\r");
    pty.expect("> ");
    pty.send(format!("{UP}{UP}\x7f7\r"));
    pty.expect("vcpu           7\r\n");
    pty.expect("> ");
    pty.send(CTRL_D);
    pty.expect_code(&mut child, 0);
    assert_eq!(
        pty.text().matches("\r\nonce\r\n").count(),
        1,
        "{}",
        pty.text()
    );
    assert_eq!(pty.settings(), before);
    // It is remembered, for this user alone.
    let kept = fs::read_to_string(home.history()).unwrap();
    assert!(
        kept.contains("vcpu 5") && !kept.contains("\nwrite\n"),
        "{kept}"
    );
    assert_eq!(mode(&home.history()), 0o600);
    assert_eq!(mode(&home.0.path("state/vsc")), 0o700);
    let mut pty = Pty::new(40, 120);
    let mut child = pty.spawn(&mut home.vsc(&["shell"]));
    pty.expect("> ");
    pty.send(format!("{UP}\r"));
    pty.expect("vcpu  7\r\n");
    pty.expect("> ");
    pty.send("set env {TOKEN: hunter2}\r");
    pty.expect("> ");
    pty.send(" vcpu 9\r");
    pty.expect("vcpu  9\r\n");
    pty.expect("> ");
    pty.send("quit\r");
    pty.expect_code(&mut child, 0);
    let kept = fs::read_to_string(home.history()).unwrap();
    assert!(
        !kept.contains("hunter2") && !kept.contains("vcpu 9"),
        "{kept}"
    );
    assert!(kept.contains("quit"), "{kept}");
}

#[test]
fn an_interrupt_is_for_the_command_that_runs() {
    let home = Home::new("interrupt");
    let mut pty = Pty::new(40, 120);
    let mut child = pty.spawn(&mut home.vsc(&["shell"]));
    pty.expect("> ");
    pty.send("!echo sta\"\"rted; cat\r");
    pty.expect("\r\nstarted\r\n");
    pty.send("meow\r");
    pty.expect("meow\r\nmeow\r\n");
    pty.send(CTRL_C);
    pty.expect("exit code 130");
    pty.expect("> ");
    pty.send("desktp\r");
    pty.expect("did you mean `desktop`?");
    pty.expect("> ");
    pty.send("exit\r");
    pty.expect_code(&mut child, 0);
}

#[test]
fn a_signal_that_ends_it_leaves_the_terminal_as_it_was() {
    let home = Home::new("signal");
    let mut pty = Pty::new(40, 120);
    let before = pty.settings();
    let mut child = pty.spawn(&mut home.vsc(&["shell"]));
    pty.expect("> ");
    assert_ne!(pty.settings(), before);
    // SAFETY: a plain system call on our own child.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(pty.wait(&mut child).signal(), Some(libc::SIGTERM));
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_guest_has_the_terminal_while_it_runs() {
    let Some(kernel) = kernel() else { return };
    let home = Home::new("guest");
    let mut pty = Pty::new(33, 101);
    let before = pty.settings();
    let mut child = pty.spawn(&mut home.vsc(&["shell"]));
    pty.expect("> ");
    pty.send(format!("set kernel.path {}\r", kernel.display()));
    pty.expect("User Settings");
    pty.expect("> ");
    pty.send("run -- busybox sh\r");
    pty.expect("# ");
    assert!(pty.settings().is_raw());
    // An interrupt is for the guest's command, not for this shell.
    pty.send("echo sta''rted; cat\r");
    pty.expect("\r\nstarted\r\n");
    pty.send("meow\r");
    pty.expect("meow\r\nmeow\r\n");
    pty.send(CTRL_C);
    pty.expect("# ");
    pty.send("exit 5\r");
    pty.expect("exit code 5");
    pty.expect("> ");
    // What is typed next is for the shell again.
    pty.send("!echo ba\"\"ck\r");
    pty.expect("\r\nback\r\n");
    pty.expect("> ");
    pty.send(CTRL_D);
    pty.expect_code(&mut child, 0);
    assert_eq!(pty.settings(), before);
}

#[test]
fn hypervisors_are_listed_selected_and_asked() {
    let home = Home::new("hosts");
    let bin = home.work("bin");
    program(
        &bin.join("virsh"),
        "#!/bin/sh\n[ \"$2\" = test:///lab ] || { echo 'error: failed to connect to the hypervisor' >&2; exit 1; }\n\
         case $3 in\n\
         capabilities) echo \"<capabilities><guest><arch name='x86_64'><machine>pc-q35-5.0</machine></arch></guest></capabilities>\";;\n\
         net-list) printf 'blue\\ngreen\\n\\n';;\n\
         *) exit 9;;\nesac\n",
    );
    home.write(
        "h.yaml",
        "lab:\n  url: test:///lab\nfar:\n  url: test:///far\n",
    );
    let shell = |commands: &str| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        run(home.vsc(&["shell", "-c", commands]).env("PATH", path))
    };
    let output = shell("hvconf h.yaml; hvlist; hvselect far; hvlist");
    expect_code(&output, 0);
    let lists = "* lab  test:///lab\n  far  test:///far\n  lab  test:///lab\n* far  test:///far\n";
    assert_eq!(text(&output.stdout), lists);
    // Without a selection nobody is asked.
    expect_code(&shell("machine pc-q35-9.0; vnet red"), 0);
    let select = "hvconf h.yaml; hvselect lab";
    expect_code(
        &shell(&format!("{select}; machine pc-q35-5.0; vnet green")),
        0,
    );
    for (commands, told) in [
        ("machine pc-q35-9.0", "lab has pc-q35-5.0"),
        ("set machine pc-q35-9.0", "lab has pc-q35-5.0"),
        ("vnet red", "lab has blue, green"),
        ("vnet gren", "did you mean `green`?"),
    ] {
        let output = shell(&format!("{select}; {commands}"));
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(told),
            "{commands}: {}",
            text(&output.stderr)
        );
    }
    // One that does not answer is no reason to fail.
    let output = shell("hvconf h.yaml; hvselect far; machine q35; vnet red");
    expect_code(&output, 0);
    assert!(
        text(&output.stderr).contains("far cannot be asked"),
        "{}",
        text(&output.stderr)
    );
    // TAB completes what it has.
    let mut pty = Pty::new(40, 120);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut child = pty.spawn(home.vsc(&["shell"]).env("PATH", path));
    pty.expect("> ");
    for (typed, shown) in [
        ("hvconf h.ya\t\r", "h.yaml\r\n"),
        ("hvsel\tla\t\r", "hvselect  lab\r\n"),
        ("machine p\t\r", "machine   pc-q35-5.0\r\n"),
        ("vnet g\t\r", "vnet      green\r\n"),
    ] {
        pty.send(typed);
        pty.expect("User Settings");
        pty.expect(shown);
        pty.expect("> ");
    }
    pty.send(CTRL_D);
    pty.expect_code(&mut child, 0);
    // The choice goes along.
    let output = shell(&format!("{select}; mode guest; desktop"));
    expect_code(&output, 0);
    let config = fs::read_to_string(home.saved("desktop", "config.yaml")).unwrap();
    assert!(config.contains("host: lab\n"), "{config}");
}

#[test]
fn answers_are_for_programs_too() {
    let home = Home::new("json");
    let output = run(&mut home.vsc(&[
        "shell",
        "--json",
        "-c",
        "name a; memory 2; show; mode guest; desktop; hvlist; vcpu 0",
    ]));
    expect_code(&output, 125);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0], serde_json::json!({"name": "a", "memory": "2G"}));
    assert!(
        lines[1]["directory"].as_str().unwrap().ends_with("/vms/a"),
        "{}",
        lines[1]
    );
    assert_eq!(
        lines[1]["differences"][0]["current"], "2 GiB",
        "{}",
        lines[1]
    );
    assert_eq!(lines[2]["selected"], "localhost");
    let record = text(&output.stderr);
    let record = record.lines().find(|l| l.contains("E-VCPU-COUNT")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(record).unwrap()["severity"],
        "error"
    );
}

#[test]
fn info_is_of_this_host_or_of_another() {
    let home = Home::new("info");
    let output = run(&mut home.vsc(&["info", "--json"]));
    expect_code(&output, 0);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(
        info["cpu"]["logical_cores"].as_u64().unwrap() >= cpus,
        "{info}"
    );
    let total = info["memory"]["total"].as_u64().unwrap();
    assert!(
        info["memory"]["available"].as_u64().unwrap() <= total,
        "{info}"
    );
    // The shell's is the same, with units.
    let (out, _) = home.expect("info", 0);
    assert!(
        out.contains(&format!("{:.2} GiB", total as f64 / 1073741824.0)),
        "{out}"
    );
    let root = home.0.path("root");
    for (file, content) in [
        (
            "proc/cpuinfo",
            "processor: 0\nmodel name: EPYC 7763\nphysical id: 0\ncore id: 0\nflags: pse36 svm sev_es_x npt\n\n\
             processor: 1\nphysical id: 0\ncore id: 0\n\n",
        ),
        (
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        ),
        ("sys/devices/system/node/node0/cpulist", "0-1\n"),
        (
            "sys/devices/system/node/node0/meminfo",
            "Node 0 MemTotal: 16777216 kB\nNode 0 MemFree: 1048576 kB\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "512\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "500\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
            "4\n",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        ),
        (
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
            "3529052\n",
        ),
        ("sys/module/kvm_amd/parameters/sev", "N\n"),
        ("run/.containerenv", ""),
    ] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let output = run(home
        .vsc(&["info", "--host-root"])
        .arg(&root)
        .env_remove("container"));
    expect_code(&output, 0);
    let out = text(&output.stdout);
    for line in [
        "CPU          EPYC 7763\n",
        "cores        1 physical, 2 logical\n",
        "frequency    3529 MHz at most\n",
        "flags        svm npt\n",
        "NUMA node    0: CPUs 0-1, 16.00 GiB (1.00 GiB free)\n",
        "memory       16.00 GiB, 8.00 GiB available\n",
        "huge pages   of 2 MiB: 512 (500 free, 4 reserved)\n",
        "transparent  madvise\n",
        "container    podman\n",
        "SEV          off (sev=N)\n",
    ] {
        assert!(out.contains(line), "no {line} in\n{out}");
    }
    // A host of which nothing is known.
    let nothing = home.work("nothing");
    fs::create_dir(&nothing).unwrap();
    let output = run(home.vsc(&["info", "--host-root"]).arg(&nothing));
    expect_code(&output, 0);
    assert!(
        text(&output.stdout).contains("memory       unknown\n"),
        "{}",
        text(&output.stdout)
    );
}
