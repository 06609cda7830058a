//! `vsc-run shell`: as a person uses it, as a script does, and what its commands come to in the XML. `vsc-run info`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};
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

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
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
fn scripts_stop_where_something_fails() {
    let home = Home::new("scripts");
    let script = home.write(
        "lab.vsc",
        "# Comments and empty lines are nothing.\n\nname lab1\nvcpu zero\n!echo reached\n",
    );
    let told = "lab.vsc:4: this command failed: vcpu zero";
    let script = script.to_str().unwrap();
    let output = run(&mut home.vsc(&["shell", script]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains(told),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(text(&output.stdout), "");
    let output = run(&mut home.vsc(&["shell", "--keep-going", script]));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "reached\n");
    // The same from standard input, where no command reads what follows it.
    let stdin =
        fs::File::open(home.write("in", "name lab1\n!cat\nshow\nnonsense\nshow\n")).unwrap();
    let output = run(home.vsc(&["shell"]).stdin(Stdio::from(stdin)));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "User Settings\n  name  lab1\n");
    assert!(
        text(&output.stderr).contains("standard input:4:"),
        "{}",
        text(&output.stderr)
    );
    // Good ones end well, files within files too; without a terminal there is no prompt.
    home.write("inner.vsc", "memory 2\n");
    let outer = home.write(
        "outer.vsc",
        "source inner.vsc\nvcpu 2\r\nshow\nquit\nnonsense\n",
    );
    let output = run(&mut home.vsc(&["shell", outer.to_str().unwrap()]));
    expect_code(&output, 0);
    assert_eq!(
        text(&output.stdout),
        "User Settings\n  memory  2G\n  vcpu    2\n"
    );
    assert_eq!(text(&output.stderr), "");
    home.write("loop.vsc", "source loop.vsc\n");
    let (_, stderr) = home.expect("source loop.vsc", 125);
    assert!(stderr.contains("one file too many"), "{stderr}");
    // A file that is no script.
    fs::write(home.work("binary"), b"name x\n\xff\xfe\n").unwrap();
    let output = run(&mut home.vsc(&["shell", "binary"]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("binary:2: it is not UTF-8 text"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&mut home.vsc(&["shell", "/dev/zero"]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("bytes at most"),
        "{}",
        text(&output.stderr)
    );
    assert!(!home.history().exists(), "scripts are not remembered");
}

#[test]
fn the_code_of_a_run_is_the_codes_of_its_script() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("codes");
    let guest = "set guest.parameters test=none exit=7";
    home.expect(&format!("{guest}; run"), 7);
    let (out, err) = home.expect(&format!("{guest}; run; !echo reached"), 7);
    assert!(
        !out.contains("reached") && err.contains("command:2: the exit code is 7"),
        "{err}"
    );
    let output = run(&mut home.vsc(&[
        "shell",
        "--keep-going",
        "-c",
        &format!("{guest}; run; !echo reached; set guest.parameters test=none exit=0; run"),
    ]));
    expect_code(&output, 0);
    assert!(
        text(&output.stdout).contains("reached"),
        "{}",
        text(&output.stdout)
    );
    // A file that ends early does so for who sourced it.
    home.write(
        "ends.vsc",
        &format!("{}\n!echo reached\n", guest.to_owned() + "\nrun"),
    );
    let (out, err) = home.expect("source ends.vsc; !echo reached", 7);
    assert!(
        !out.contains("reached") && err.contains("ends.vsc:2: the exit code is 7"),
        "{err}"
    );
    // Saved, listed, started, asked for, deleted.
    let (out, _) = home.expect(
        &format!("{guest}; name lab1; save; unset; show; list; start lab1"),
        7,
    );
    assert!(
        out.contains("lab1 is saved in") && out.contains("Nothing is set\n"),
        "{out}"
    );
    assert!(out.contains("shut off"), "{out}");
    let (out, _) = home.expect("status lab1; !echo reached", 0);
    assert!(
        out.contains("lab1 is shut off") && out.contains("reached"),
        "{out}"
    );
    home.expect("status lab1", 3);
    home.expect("stop lab1; delete lab1", 0);
    home.expect("start lab1", 125);
}

#[test]
fn each_command_of_the_predecessor_reaches_the_xml() {
    let home = Home::new("commands");
    home.write("cd.iso", "");
    let made = run(&mut home.vsc(&["disk", "create", "old.qcow2", "1M", "--format", "qcow2"]));
    expect_code(&made, 0);
    home.write("vm.data", "");
    fs::create_dir(home.work("images")).unwrap();
    let work = fs::canonicalize(home.work("")).unwrap();
    let at = |name: &str| work.join(name).display().to_string();
    let image = format!("<source file='{}'/>", at("images/desktop.qcow2"));
    let old = format!("<source file='{}'/>", at("old.qcow2"));
    let data = format!("<source file='{}'/>", at("vm.data"));
    let cd = format!("<source file='{}'/>", at("cd.iso"));
    for (commands, there, not_there) in [
        (
            "name lab-1",
            vec!["<name>lab-1</name>"],
            vec!["<name>desktop"],
        ),
        ("vcpu 3", vec![">3</vcpu>"], vec![]),
        ("memory 3", vec![">3145728</memory>"], vec![]),
        ("memory 512M", vec![">524288</memory>"], vec![]),
        ("machine pc-q35-6.2", vec!["machine='pc-q35-6.2'"], vec![]),
        (
            "bootdev network",
            vec!["<boot dev='network'/>"],
            vec!["<boot dev='hd'/>"],
        ),
        (
            "vnet lab",
            vec!["<source network='lab'/>"],
            vec!["'default'"],
        ),
        (
            "diskpath images",
            vec![&*image],
            vec!["/var/lib/libvirt/images"],
        ),
        (
            "cdrom cd.iso",
            vec![
                &*cd,
                "device='cdrom'",
                "<boot dev='cdrom'/>",
                "<readonly/>",
                "desktop.qcow2",
            ],
            vec!["'cd.iso'"],
        ),
        (
            "cdrom cd.iso; bootdev hd",
            vec![&*cd, "<boot dev='hd'/>"],
            vec!["<boot dev='cdrom'/>"],
        ),
        (
            "vmimage old.qcow2",
            vec![&*old, "type='qcow2'"],
            vec!["desktop.qcow2", "'old.qcow2'"],
        ),
        (
            "format raw; vmimage ./vm.data",
            vec![&*data, "type='raw'"],
            vec!["desktop.qcow2"],
        ),
        (
            "vmimage old.qcow2; cdrom \"cd.iso\"",
            vec![&*old, &*cd],
            vec!["desktop.qcow2"],
        ),
        (
            "format raw",
            vec!["desktop.raw", "type='raw'"],
            vec!["qcow2"],
        ),
        ("encryption on", vec!["<encryption format='luks'>"], vec![]),
        (
            "encryption on; encryption off",
            vec!["desktop.qcow2"],
            vec!["<encryption"],
        ),
        (
            "cache directsync",
            vec!["cache='directsync'"],
            vec!["cache='none'"],
        ),
        (
            "mode guest; overwrite on; capacity 9",
            vec!["desktop.qcow2"],
            vec![],
        ),
        ("set video.0.heads 2", vec!["heads='2'"], vec!["heads='1'"]),
        ("vcpu 3; unset vcpu", vec![">4</vcpu>"], vec![]),
        (
            "vcpu 3; cdrom cd.iso; unset",
            vec![">4</vcpu>"],
            vec!["cdrom"],
        ),
        (
            "set memory.size 1G; memory 2",
            vec![">2097152</memory>"],
            vec![],
        ),
    ] {
        let xml = home.xml(commands, "desktop");
        for part in there {
            assert!(xml.contains(part), "{commands}: no {part} in\n{xml}");
        }
        for part in not_there {
            assert!(!xml.contains(part), "{commands}: {part} in\n{xml}");
        }
    }
    // The whole size of an image is in no XML.
    let (out, _) = home.expect("capacity 9; plan desktop", 0);
    assert!(out.contains("9G"), "{out}");
    // A network of libvirt is one whatever the scenario has; a scenario's own CD-ROM is changed, not doubled.
    assert!(
        home.xml("vnet lab", "testing-os")
            .contains("<source network='lab'/>")
    );
    home.write(
        "own.yaml",
        "disks: [{path: other.iso, device: cdrom}, {path: x.img}]\n",
    );
    let xml = home.xml("cdrom cd.iso", "own.yaml");
    assert_eq!(
        (xml.matches("cdrom'").count(), xml.matches("<disk ").count()),
        (2, 2),
        "{xml}"
    );
    assert!(xml.contains(&cd) && !xml.contains("other.iso"), "{xml}");
    // A settings file under it, and none.
    home.write("s.yaml", "STORAGE_DATA:\n  - disk_cache: writeback\n");
    assert!(
        home.xml("conf s.yaml", "desktop")
            .contains("cache='writeback'")
    );
    assert!(
        home.xml("conf s.yaml; unset conf", "desktop")
            .contains("cache='none'")
    );
    assert!(
        home.xml("conf s.yaml; cache unsafe", "desktop")
            .contains("cache='unsafe'")
    );
}

#[test]
fn scenarios_are_saved_for_the_predecessor_and_nothing_leaks() {
    let home = Home::new("scenarios");
    home.write("cd.iso", "");
    let (out, _) = home.expect(
        "name vm1; cdrom cd.iso; mode guest; desktop; unset cdrom; name vm2; desktop; show",
        0,
    );
    let first = fs::read_to_string(home.saved("vm1", "domain.xml")).unwrap();
    let second = fs::read_to_string(home.saved("vm2", "domain.xml")).unwrap();
    assert!(
        first.contains("cd.iso") && !second.contains("cdrom"),
        "{second}"
    );
    assert!(
        out.ends_with("User Settings\n  mode      guest\n  name      vm2\n  scenario  desktop\n"),
        "{out}"
    );
    let config = fs::read_to_string(home.saved("vm1", "config.yaml")).unwrap();
    assert!(
        config.starts_with("attestation: false\n") && config.ends_with("name: vm1\n"),
        "{config}"
    );
    assert_eq!(mode(&home.saved("vm1", "")), 0o700);
    assert_eq!(mode(&home.saved("vm1", "domain.xml")), 0o600);
    for part in ["Parameter", "Recommended", "User Settings", "cdrom"] {
        assert!(out.contains(part), "no {part}: {out}");
    }
    for file in ["domain.xml", "config.yaml"] {
        assert!(
            out.contains(&*home.saved("vm1", file).to_string_lossy()),
            "{out}"
        );
    }
    assert!(!out.contains("/sys/kernel"), "mode guest: {out}");
    // A name that is taken is taken, until the user says otherwise.
    let (_, err) = home.expect("name vm1; vcpu 2; computation", 125);
    assert!(
        err.contains("vm1 exists already") && err.contains("overwrite on"),
        "{err}"
    );
    assert_eq!(
        fs::read_to_string(home.saved("vm1", "domain.xml")).unwrap(),
        first
    );
    home.expect(
        "name vm1; vcpu 2; mode guest; overwrite on; computation; overwrite off",
        0,
    );
    assert!(
        fs::read_to_string(home.saved("vm1", "domain.xml"))
            .unwrap()
            .contains(">2</vcpu>")
    );
    // The host's side alone; no VM is saved then. Encryption has no say in the mode.
    let nothing = home.write("nothing", "");
    fs::create_dir_all(nothing.with_file_name("host")).unwrap();
    let mut shell = home.vsc(&[
        "shell",
        "-c",
        "mode host; encryption off; name vm3; desktop",
    ]);
    let output = run(shell.arg("--host-root").arg(nothing.with_file_name("host")));
    expect_code(&output, 0);
    let out = text(&output.stdout);
    assert!(
        out.contains("skipped: this host has no /proc/sys/vm/swappiness"),
        "{out}"
    );
    assert!(!home.saved("vm3", "").exists());
    let (out, _) = home.expect("mode guest; encryption off; name vm4; desktop", 0);
    assert!(!out.contains("swappiness"), "{out}");
    // After a scenario its name is a setting as well.
    let (out, _) = home.expect(
        "mode guest; name vm5; computation; xml; unset computation; name vm6; xml",
        0,
    );
    assert!(
        out.contains("i6300esb") && out.contains("<name>vm6</name>"),
        "{out}"
    );
    assert_eq!(out.matches("i6300esb").count(), 1, "{out}");
    let (_, err) = home.expect("force_sev on; mode guest; name vm7; securevm", 0);
    assert!(
        err.contains("not secure") && err.contains("no certificate was exported"),
        "{err}"
    );
    let xml = fs::read_to_string(home.saved("vm7", "domain.xml")).unwrap();
    assert!(xml.contains("<launchSecurity type='sev'"), "{xml}");
    let config = fs::read_to_string(home.saved("vm7", "config.yaml")).unwrap();
    assert!(config.starts_with("attestation: true\n"), "{config}");
}

#[test]
fn what_is_wrong_is_refused_at_once_with_one_message() {
    let home = Home::new("wrong");
    home.write("x.bin", "");
    fs::create_dir(home.work("dir")).unwrap();
    for (commands, told) in [
        ("name \u{e9}1", "may not stand in a name"),
        ("name", "`name` needs a value"),
        ("name .x", "starts with a dot"),
        ("name ../x", "may not stand in a name"),
        ("vcpu 0", "at least one vCPU"),
        ("vcpu \u{b2}", "a whole number"),
        ("vcpu -1", "a whole number"),
        ("memory 0", "needs memory"),
        ("memory lots", "an amount of memory"),
        ("machine q36", "did you mean `q35`?"),
        ("machine foo", "q35, pc, pc-q35-VERSION"),
        ("bootdev usb", "hd (the first disk); cdrom"),
        ("diskpath nowhere", "there is none of this name"),
        ("diskpath x.bin", "it is a file"),
        ("cdrom nowhere.iso", "there is none of this name"),
        ("cdrom dir", "it is a directory"),
        ("vmimage x.bin", "does not tell its format"),
        ("capacity 0", "no size"),
        ("capacity x", "an amount"),
        ("format vdmk", "did you mean `vmdk`?"),
        ("encryption maybe", "luks (LUKS;"),
        ("cache banana", "writethrough"),
        ("mode all", "guest or host or both"),
        ("overwrite yes", "on or off"),
        ("force_sev 1", "on or off"),
        ("conf nowhere.yaml", "there is none of this name"),
        ("hvconf nowhere.yaml", "there is none of this name"),
        ("hvconf x.bin", "x.bin"),
        ("hvselect nowhere", "it has \"localhost\""),
        ("set memroy.size 2G", "did you mean `memory`?"),
        ("set memory.size", "needs a key and a value"),
        ("set name [", "not YAML"),
        ("unset memroy", "did you mean `memory`?"),
        ("desktp", "did you mean `desktop`?"),
        ("cpu 3", "`set cpu VALUE`"),
        ("desktop now", "takes nothing"),
        ("plan desktop computation", "One scenario at a time"),
        ("xml --all", "is no scenario"),
        ("run 'x", "not closed"),
        ("shell", "There is no command"),
        ("source", "needs a file"),
        ("source nowhere", "cannot be read"),
        ("help nonsense", "There is no command"),
        ("xml nowhere.yaml", "cannot be read"),
    ] {
        let (out, err) = home.expect(commands, 125);
        assert!(err.contains(told), "{commands}: {err}");
        assert_eq!(out, "", "{commands}");
        assert!(err.contains("this command failed"), "{commands}: {err}");
        assert!(!err.contains("panicked"), "{commands}: {err}");
    }
    // What was refused is not set, and what stood there before stays.
    let output = run(&mut home.vsc(&[
        "shell",
        "--keep-going",
        "-c",
        "vcpu 2; vcpu 0; memory 0; show",
    ]));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "User Settings\n  vcpu  2\n");
    // More than this host has is fine for another one, and said.
    let (_, err) = home.expect("memory 100000", 0);
    assert!(err.contains("more than this host has"), "{err}");
}

#[test]
fn hypervisors_are_listed_selected_and_asked() {
    let home = Home::new("hosts");
    let bin = home.work("bin");
    fs::create_dir(&bin).unwrap();
    let virsh = bin.join("virsh");
    fs::write(
        &virsh,
        "#!/bin/sh\n[ \"$2\" = test:///lab ] || { echo 'error: failed to connect to the hypervisor' >&2; exit 1; }\n\
         case $3 in\n\
         capabilities) echo \"<capabilities><guest><arch name='x86_64'><machine>pc-q35-5.0</machine></arch></guest></capabilities>\";;\n\
         net-list) printf 'blue\\ngreen\\n\\n';;\n\
         *) exit 9;;\nesac\n",
    )
    .unwrap();
    fs::set_permissions(&virsh, fs::Permissions::from_mode(0o755)).unwrap();
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
fn every_command_has_help() {
    let home = Home::new("help");
    let (all, _) = home.expect("help", 0);
    for line in all.lines() {
        let word = line.split(' ').next().unwrap();
        let (one, _) = home.expect(&format!("help {word}"), 0);
        assert!(one.starts_with(word) && one.lines().count() == 1, "{one}");
    }
    assert!(all.lines().count() > 40, "{all}");
    assert_eq!(home.expect("?", 0).0, all);
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
