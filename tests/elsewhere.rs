//! VMs that are handed to a libvirt, which here is a script in the place of virsh. A real one: tests/libvirt.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use common::{TempDir, expect_code, finish, program, qcow2, run, text, vsc};
use serde_json::Value;

/// Notes its words, keeps one domain in the files `xml` and `state`, and tells listeners through the FIFO `events`.
const VIRSH: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
if [ "$2" = test:///away ]; then
    echo "error: failed to connect to the hypervisor" >&2
    echo "error: nobody is at home" >&2
    exit 1
fi
shift 2
echo "$*" >>words
tell() { [ -e mute ] || echo "event 'lifecycle' for domain 'a': $1" 1<>events; }
ends() { echo "shut off" >state; tell "Stopped $1"; }
case $1 in
list)
    echo " Id   Name   State"
    echo "----------------------"
    [ ! -e state ] || echo " 1    a      $(cat state)" ;;
domuuid) sed -n 's/.*<uuid>\(.*\)<.uuid>.*/\1/p' xml ;;
dumpxml) cat xml ;;
undefine) rm state xml ;;
define)
    cat >given
    if [ -e refuse ] && ! grep -q OLD given; then echo "error: no such machine" >&2; exit 1; fi
    cp given xml
    [ -e state ] || echo "shut off" >state ;;
start)
    echo running >state
    tell "Started Booted"
    if [ -e short ]; then ends Shutdown; fi ;;
shutdown) [ -e deaf ] || ends Shutdown ;;
destroy) ends Destroyed ;;
event) exec cat 0<>events ;;
secret-list) cat secrets 2>/dev/null || true ;;
secret-define) cat >secret-xml ;;
secret-set-value) cat >passphrase; echo "$2 volume" >>secrets ;;
esac
"#;

/// Holds the FIFO open, so that nothing that is told is lost.
struct Home(TempDir, Option<fs::File>);

impl Home {
    fn new(name: &str) -> Self {
        let mut home = Self(TempDir::new(&format!("elsewhere-{name}")), None);
        program(&home.0.path("bin/virsh"), VIRSH);
        let made = Command::new("mkfifo").arg(home.0.path("events")).status();
        assert!(made.unwrap().success());
        let events = fs::File::options()
            .read(true)
            .write(true)
            .open(home.0.path("events"));
        home.1 = Some(events.unwrap());
        home.0.write(
            "virthosts.yaml",
            "lab:\n  url: test:///lab\nfar:\n  url: test://far/x\naway:\n  url: test:///away\n",
        );
        home.0
            .write("a.yaml", "memory: 128M\nfirmware: bios\ntype: qemu\n");
        home
    }

    fn vsc(&self, arguments: &[&str]) -> Command {
        let mut command = vsc();
        command
            .args(arguments)
            .env("XDG_DATA_HOME", self.0.path("data"))
            .env("HOME", self.0.path("home"))
            .env("FAKE", self.0.path(""))
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.0.path("bin").display()),
            )
            .current_dir(self.0.path(""));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.vsc(arguments))
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        expect_code(&output, code);
        text(if code == 0 {
            &output.stdout
        } else {
            &output.stderr
        })
    }

    /// A run that is attended: it has said that the domain started.
    fn started(&self, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStderr>) {
        let mut child = self
            .vsc(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("Started Booted") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "it did not start");
        }
        (child, said)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.0.path(name)).unwrap_or_default()
    }

    /// The orders so far, without the questions.
    fn orders(&self) -> Vec<String> {
        let words = self.file("words");
        let first = words
            .lines()
            .map(|l| l.split(' ').next().unwrap().to_owned());
        first
            .filter(|w| !["list", "domuuid", "event"].contains(&w.as_str()))
            .collect()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a plain system call on a child of this test.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[track_caller]
fn ends_with(mut child: Child, said: BufReader<std::process::ChildStderr>, code: i32) -> String {
    let rest: Vec<_> = said.lines().map(|l| l.unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(code), "{rest:?}");
    rest.join("\n")
}

#[test]
fn a_guest_that_powers_off_is_a_success() {
    let home = Home::new("poweroff");
    home.0.write("short", "");
    let output = home.run(&["a.yaml", "--on", "lab"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(
        said.contains("a on lab: Started Booted") && said.contains("a on lab: Stopped Shutdown"),
        "{said}"
    );
    // What was not saved was defined for this run only.
    assert_eq!(home.orders(), ["define", "start", "undefine"]);
    let given = home.file("given");
    assert!(
        given.contains("<name>a</name>") && given.contains("<domain type='qemu'>"),
        "{given}"
    );
    // The key does what the option does.
    home.expect(&["a.yaml", "-o", "on=lab", "--overwrite", "-q"], 0);
}

#[test]
fn a_first_interrupt_asks_and_a_second_one_ends() {
    for deaf in [false, true] {
        let home = Home::new(&format!("interrupt-{deaf}"));
        if deaf {
            home.0.write("deaf", "");
        }
        let (child, said) = home.started(&["a.yaml", "--on", "lab"]);
        signal(&child, libc::SIGINT);
        if deaf {
            // The order has been given when the next one is.
            while !home.file("words").contains("shutdown") {
                std::thread::yield_now();
            }
            signal(&child, libc::SIGINT);
        }
        let rest = ends_with(child, said, 130);
        let (order, how) = match deaf {
            true => (
                vec!["define", "start", "shutdown", "destroy", "undefine"],
                "Stopped Destroyed",
            ),
            false => (
                vec!["define", "start", "shutdown", "undefine"],
                "Stopped Shutdown",
            ),
        };
        assert_eq!(home.orders(), order);
        assert!(rest.contains(how), "{rest}");
    }
}

#[test]
fn who_hangs_up_leaves_it_running() {
    let home = Home::new("hangup");
    let (child, said) = home.started(&["a.yaml", "--on", "lab"]);
    signal(&child, libc::SIGHUP);
    ends_with(child, said, 129);
    assert_eq!(
        (home.orders(), home.file("state").trim()),
        (vec!["define".into(), "start".into()], "running")
    );
}

#[test]
fn an_end_that_nobody_heard_of_is_found() {
    let home = Home::new("unheard");
    home.0.write("short", "");
    home.0.write("mute", "");
    let output = home.run(&["a.yaml", "--on", "lab"]);
    expect_code(&output, 122);
    assert!(
        text(&output.stderr).contains("a on lab was shut off before anything was heard of it"),
        "{output:?}"
    );
}

#[test]
fn the_time_limit_is_kept_here() {
    let home = Home::new("limit");
    let (child, said) = home.started(&["a.yaml", "--on", "lab", "--timeout", "300ms"]);
    let rest = ends_with(child, said, 124);
    assert!(
        rest.contains("the time limit of 0.3 s was reached"),
        "{rest}"
    );
    assert_eq!(home.orders(), ["define", "start", "destroy", "undefine"]);
}

#[test]
fn a_domain_of_that_name_is_not_touched_unless_told_to() {
    let home = Home::new("existing");
    let old = "<domain><name>a</name><uuid>11111111-9d0e-4c51-9c3f-0a4d5e6f7a8b</uuid><!-- OLD --></domain>\n";
    home.0.write("state", "shut off\n");
    home.0.write("xml", old);
    let refused = home.expect(&["a.yaml", "--on", "lab"], 125);
    assert!(
        refused.contains("test:///lab has a domain a already; --overwrite replaces it"),
        "{refused}"
    );
    home.expect(&["a.yaml", "--save", "--on", "lab"], 0);
    // Nor by the start of a saved VM, whose definition it is not.
    home.expect(&["start", "a", "--detach"], 125);
    assert_eq!(home.file("xml"), old);
    // What libvirt refuses leaves what was.
    home.0.write("refuse", "");
    let refused = home.expect(&["a.yaml", "--on", "lab", "--overwrite"], 125);
    assert!(
        refused.contains("test:///lab refuses define: no such machine"),
        "{refused}"
    );
    assert_eq!(
        (home.file("xml").as_str(), home.file("state").trim()),
        (old, "shut off")
    );
    assert!(!home.orders().contains(&"start".to_owned()));
    fs::remove_file(home.0.path("refuse")).unwrap();
    let said = home.expect(&["a.yaml", "--on", "lab", "--overwrite", "--detach"], 0);
    assert_eq!(said, "a is running on lab, test:///lab\n");
    // What runs is not replaced at all.
    let refused = home.expect(&["a.yaml", "--on", "lab", "--overwrite"], 125);
    assert!(
        refused.contains("a is already running on test:///lab"),
        "{refused}"
    );
}

#[test]
fn a_saved_vm_lives_there() {
    let home = Home::new("saved");
    home.expect(&["a.yaml", "--save", "--on", "lab"], 0);
    let config = home.file("data/vsc/vms/a/config.yaml");
    assert!(config.contains("\nhost: lab\n"), "{config}");
    assert_eq!(home.file("words"), "", "saving asks nobody");
    assert_eq!(home.expect(&["status", "a"], 3), "");
    for _ in 0..2 {
        // The second time, what is there is ours.
        home.expect(&["start", "a", "--detach"], 0);
        assert_eq!(home.file("given"), home.file("data/vsc/vms/a/domain.xml"));
        assert_eq!(home.expect(&["status", "a"], 0), "a is running on lab\n");
        let row = &home.json(&["list"])[0];
        assert_eq!(
            (&row["state"], &row["host"], &row["pid"]),
            (&"running".into(), &"lab".into(), &Value::Null)
        );
        let refused = home.expect(&["start", "a"], 125);
        assert!(refused.contains("a is already running on lab"), "{refused}");
        let refused = home.expect(&["delete", "a"], 125);
        assert!(
            refused.contains("a is running on lab: stop it first"),
            "{refused}"
        );
        assert_eq!(home.expect(&["stop", "a"], 0), "a on lab has ended\n");
    }
    home.0.write("deaf", "");
    home.expect(&["start", "a", "--detach"], 0);
    let refused = home.expect(&["stop", "a", "--timeout", "300ms"], 125);
    assert!(
        refused.contains("a has not ended in 0.3 s; it was asked to, and --force ends it"),
        "{refused}"
    );
    home.expect(&["stop", "a", "--force"], 0);
    home.expect(&["delete", "a"], 0);
    assert_eq!(home.orders().last().unwrap(), "undefine");
    assert!(!home.0.path("state").exists());
    expect_code(&home.run(&["status", "a"]), 125);
}

#[test]
fn an_attended_start_is_remembered_with_its_end() {
    let home = Home::new("attended");
    home.expect(&["a.yaml", "--save"], 0);
    home.0.write("short", "");
    home.expect(&["start", "a", "--on", "lab"], 0);
    let row = home.json(&["status", "a"]);
    assert_eq!(
        (&row["state"], &row["host"]),
        (&"shut off".into(), &"lab".into())
    );
    assert_eq!(row["ended"]["outcome"], "powered-off");
}

#[test]
fn nobody_at_home_is_said() {
    let home = Home::new("away");
    let refused = home.expect(&["a.yaml", "--on", "away"], 125);
    assert!(
        refused.contains("cannot connect to the hypervisor test:///away: nobody is at home"),
        "{refused}"
    );
    let refused = home.expect(&["a.yaml", "--on", "lav"], 125);
    assert!(refused.contains("did you mean \"lab\"?"), "{refused}");
    home.expect(&["a.yaml", "--save", "--on", "lab"], 0);
    home.expect(&["start", "a", "--detach"], 0);
    let state = home.0.path("data/vsc/vms/a/state.json");
    let moved = fs::read_to_string(&state)
        .unwrap()
        .replace("test:///lab", "test:///away");
    fs::write(&state, moved).unwrap();
    expect_code(&home.run(&["status", "a"]), 125);
    let list = home.run(&["list"]);
    expect_code(&list, 0);
    assert!(
        text(&list.stdout).contains("unknown") && text(&list.stderr).contains("nobody is at home"),
        "{list:?}"
    );
    for verb in ["stop", "delete", "start"] {
        let refused = home.expect(&[verb, "a"], 125);
        assert!(refused.contains("nobody is at home"), "{verb}: {refused}");
    }
    let child = home
        .vsc(&["a.yaml", "--on", "lab", "--overwrite"])
        .env("PATH", "/nonexistent")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = finish(child.unwrap());
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("libvirt-clients"),
        "{output:?}"
    );
}

#[test]
fn what_is_to_be_attested_is_not_started() {
    let home = Home::new("secure");
    let firmware = home.0.write("sev.fd", "");
    let firmware = format!("firmware.path={}", firmware.display());
    let arguments = [
        "a.yaml",
        "-o",
        "security.type=sev",
        "-o",
        "type=kvm",
        "-o",
        "firmware.type=efi",
        "-o",
        &firmware,
    ];
    let refused = home.expect(&[&arguments[..], &["--on", "lab"]].concat(), 125);
    assert!(
        refused.contains("E-LATER") && refused.contains("attested"),
        "{refused}"
    );
    home.expect(&[&arguments[..], &["--save", "--on", "lab"]].concat(), 0);
    let config = home.file("data/vsc/vms/a/config.yaml");
    assert!(config.starts_with("attestation: true\n"), "{config}");
    let refused = home.expect(&["start", "a"], 125);
    assert!(refused.contains("E-LATER"), "{refused}");
    assert_eq!(home.file("words"), "");
}

#[test]
fn images_are_made_here_for_this_host_only() {
    let home = Home::new("images");
    let disk = home.0.path("d.img");
    let arguments = [
        "a.yaml",
        "-o",
        "disks.0.path=d.img",
        "-o",
        "disks.0.size=1M",
        "--save",
        "--on",
        "lab",
    ];
    home.expect(&arguments, 0);
    assert!(!disk.exists(), "saving makes nothing");
    let refused = home.expect(&["start", "a", "--on", "far"], 125);
    assert!(
        refused.contains("d.img is to be made, and far is another machine"),
        "{refused}"
    );
    assert_eq!(home.file("words"), "", "nobody was asked");
    home.0.write("short", "");
    for _ in 0..2 {
        home.expect(&["start", "a"], 0);
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 20);
    }
    let state: Value = serde_json::from_str(&home.file("data/vsc/vms/a/state.json")).unwrap();
    assert_eq!(state["created_disks"], serde_json::json!([disk]));
    let said = home.expect(&["delete", "a", "--disks"], 0);
    assert!(
        said.contains("d.img is deleted") && !disk.exists(),
        "{said}"
    );
}

#[test]
fn passphrases_are_told_where_they_are_lacking() {
    let home = Home::new("secrets");
    home.0.write("short", "");
    let key = home.0.secret("key", "geheim\n");
    qcow2(&home.0.path("d.qcow2"), Some(std::path::Path::new(&key)));
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let arguments = [
        "a.yaml",
        "-o",
        "disks.0.path=d.qcow2",
        "-o",
        "disks.0.format=qcow2",
        "-o",
        "disks.0.encryption=luks",
        "--on",
        "lab",
    ];
    let refused = home.expect(&arguments, 125);
    assert!(
        refused.contains("lab does not know the passphrase of")
            && refused.contains("secret-set-value"),
        "{refused}"
    );
    assert!(!home.orders().contains(&"define".to_owned()));
    let with_key = [&arguments[..], &["-o", "disks.0.secret_file=key"]].concat();
    home.expect(&with_key, 0);
    assert_eq!(home.file("passphrase"), "geheim");
    assert!(
        home.file("secret-xml").contains("d.qcow2</volume>"),
        "{}",
        home.file("secret-xml")
    );
    // It is known from then on.
    home.expect(&[&arguments[..], &["--overwrite"]].concat(), 0);
    assert!(!home.file("words").contains("geheim"));
    assert_eq!(home.file("words").matches("secret-set-value").count(), 1);
}

#[test]
fn a_vm_of_the_predecessor_is_handed_over_under_an_identity() {
    let home = Home::new("predecessor");
    let place = home.0.path("vmconfig/a");
    fs::create_dir_all(&place).unwrap();
    let domain = home.0.write(
        "vmconfig/a/domain.xml",
        "<domain type='qemu'><name>a</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>\n",
    );
    let config = format!(
        "attestation: false\ndomain-config: {}\nhost: localhost\nname: a\n",
        domain.display()
    );
    home.0.write("vmconfig/a/config.yaml", config);
    home.0.write("short", "");
    for _ in 0..2 {
        home.expect(&["start", "a", "--on", "lab"], 0);
    }
    let given = home.file("given");
    assert!(
        given.contains("<uuid>") && given.contains("<name>a</name>"),
        "{given}"
    );
    home.expect(&["delete", "a"], 0);
    assert_eq!(home.orders().last().unwrap(), "undefine");
    assert!(!place.exists());
}
