//! Saved VMs, as `vsc-run` keeps, runs and forgets them.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "store/running.rs"]
mod running;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::process::{alive, kill, soon, stop};
use common::{TempDir, expect_code, finish, have_kvm, mode, run, skip, text, vsc};
use serde_json::Value;

/// A home with a store, where nothing runs on when the test is over.
struct Home(TempDir);

impl Home {
    fn new(name: &str) -> Self {
        Self(TempDir::new(&format!("store-{name}")))
    }

    fn vsc(&self, arguments: &[&str]) -> Command {
        let mut command = vsc();
        command
            .args(arguments)
            .env("XDG_DATA_HOME", self.0.path("data"))
            .env("HOME", self.0.path("home"))
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
        match code {
            0 => text(&output.stdout),
            _ => text(&output.stderr),
        }
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    fn store(&self) -> PathBuf {
        self.0.path("data/vsc/vms")
    }

    /// A saved VM that runs the built-in guest.
    fn save(&self, name: &str, guest: &str) -> PathBuf {
        let file = self
            .0
            .write(&format!("{name}.yaml"), format!("guest: {guest}\n"));
        self.expect(&[file.to_str().unwrap(), "--save"], 0);
        self.store().join(name)
    }

    fn pid(&self, name: &str) -> u32 {
        let pid = self.json(&["status", name])["pid"]
            .as_u64()
            .expect("it runs");
        u32::try_from(pid).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let names = fs::read_dir(self.store()).into_iter().flatten().flatten();
        for name in names {
            let name = name.file_name().into_string().unwrap();
            let _ = self.run(&["stop", "--force", &name]);
        }
    }
}

const LONG: &str = "test=none spin";

#[test]
fn a_saved_vm_is_private_whatever_the_umask() {
    for umask in ["000", "077", "777"] {
        let home = Home::new(&format!("umask-{umask}"));
        home.0.write("a.yaml", "guest: test=none exit=3\n");
        let plain = home.vsc(&["a.yaml", "--save"]);
        let mut wrapped = Command::new("sh");
        wrapped
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
            .arg(plain.get_program())
            .args(plain.get_args())
            .env("XDG_DATA_HOME", home.0.path("data"))
            .current_dir(home.0.path(""));
        expect_code(&run(&mut wrapped), 0);
        let place = home.store().join("a");
        for directory in [&home.store(), &place] {
            assert_eq!(mode(directory), 0o700, "{umask} {}", directory.display());
        }
        let files: Vec<_> = fs::read_dir(&place)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        assert_eq!(files.len(), 4, "{files:?}");
        for file in files {
            assert_eq!(mode(&file), 0o600, "{umask} {}", file.display());
        }
    }
}

#[test]
fn saving_twice_is_refused_and_overwriting_is_said() {
    let home = Home::new("twice");
    let place = home.save("a", "test=none exit=3");
    let refused = home.expect(&["a.yaml", "--save"], 125);
    assert!(
        refused.contains(place.to_str().unwrap()) && refused.contains("--overwrite"),
        "{refused}"
    );
    home.expect(&["a.yaml", "--save", "--overwrite", "-m", "300M"], 0);
    let scenario = fs::read_to_string(place.join("scenario.yaml")).unwrap();
    assert!(scenario.contains("memory: 300M"), "{scenario}");
    for (arguments, needle) in [
        (&["a.yaml", "--overwrite"][..], "are for VMs that are saved"),
        (&["a.yaml", "--store", "s"], "are for VMs that are saved"),
        (&["a.yaml", "--detach"], "are for VMs that are saved"),
        (&["a.yaml", "--save", "--detach"], "cannot be used with"),
        (&["a.yaml", "--save", "--export-xml"], "cannot be used with"),
        (&["start", "a", "--overwrite"], "on a libvirt"),
        (&["start", "a", "--overwrite", "--detach"], "on a libvirt"),
    ] {
        let refused = home.expect(arguments, 125);
        assert!(refused.contains(needle), "{arguments:?}: {refused}");
    }
}

#[test]
fn of_twenty_racing_saves_one_wins() {
    let home = Home::new("race");
    home.0.write("a.yaml", "guest: test=none exit=3\n");
    let racers: Vec<_> = (0..20)
        .map(|_| {
            let mut command = home.vsc(&["a.yaml", "--save"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let codes: Vec<_> = racers
        .into_iter()
        .map(|r| finish(r).status.code().unwrap())
        .collect();
    assert_eq!(codes.iter().filter(|c| **c == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == 125).count(), 19, "{codes:?}");
    assert_eq!(home.json(&["list"])[0]["problems"], Value::Array(vec![]));
    assert_eq!(fs::read_dir(home.store()).unwrap().count(), 1);
}

#[test]
fn what_is_saved_means_the_same_wherever_it_is_started() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("paths");
    fs::create_dir(home.0.path("lab")).unwrap();
    home.0.write(
        "lab/a.yaml",
        "guest: test=none exit=4\nserials: [\"file:serial.log\"]\n",
    );
    home.expect(
        &[
            "lab/a.yaml",
            "--save",
            "-o",
            "console.log=con.log",
            "-o",
            "name=b",
        ],
        0,
    );
    expect_code(&run(home.vsc(&["start", "b"]).current_dir("/")), 4);
    assert!(home.0.path("lab/serial.log").exists());
    // A path of the command line starts where the command was given.
    assert!(home.0.path("con.log").exists());
}

#[test]
fn no_name_leaves_the_store() {
    let home = Home::new("names");
    home.save("a", "test=none exit=3");
    fs::create_dir(home.0.path("outside")).unwrap();
    fs::copy(
        home.store().join("a/config.yaml"),
        home.0.path("outside/config.yaml"),
    )
    .unwrap();
    for name in [
        "..",
        ".",
        "../outside",
        "../../../outside",
        "/etc",
        "a/../a",
        ".a",
        "",
        "a b",
        "x\ny",
    ] {
        for verb in ["start", "status", "stop", "delete"] {
            let refused = home.expect(&[verb, "--", name], 125);
            assert!(
                refused.contains("is no name for a saved VM"),
                "{verb} {name}: {refused}"
            );
        }
    }
    let refused = home.expect(&["a.yaml", "--save", "-o", "name=.a"], 125);
    assert!(refused.contains("it starts with a dot"), "{refused}");
    assert!(home.0.path("outside/config.yaml").exists());
}

#[test]
fn links_in_the_store_lead_nowhere() {
    let home = Home::new("links");
    let place = home.save("a", "test=none exit=3");
    let outside = home.0.path("outside");
    fs::rename(&place, &outside).unwrap();
    symlink(&outside, &place).unwrap();
    let list = home.run(&["list"]);
    expect_code(&list, 0);
    assert!(
        text(&list.stderr).contains("it is a symbolic link"),
        "{list:?}"
    );
    assert!(text(&list.stdout).contains("damaged"), "{list:?}");
    for arguments in [
        &["start", "a"][..],
        &["stop", "a"],
        &["a.yaml", "--save", "--overwrite"],
    ] {
        let refused = home.expect(arguments, 125);
        assert!(refused.contains("it is a symbolic link"), "{refused}");
    }
    home.expect(&["delete", "a", "--disks"], 0);
    assert!(outside.join("config.yaml").exists() && !place.is_symlink());
    // A scenario that is a link is not read either.
    let place = home.save("b", "test=none exit=3");
    fs::remove_file(place.join("scenario.yaml")).unwrap();
    symlink(home.0.path("b.yaml"), place.join("scenario.yaml")).unwrap();
    let refused = home.expect(&["start", "b"], 125);
    assert!(
        refused.contains("scenario.yaml: it is a symbolic link"),
        "{refused}"
    );
}

#[test]
fn what_is_damaged_hides_nothing() {
    let home = Home::new("damaged");
    for name in ["a", "b", "c"] {
        home.save(name, "test=none exit=3");
    }
    fs::write(home.store().join("b/config.yaml"), [0xff, 0xfe, 0]).unwrap();
    fs::create_dir(home.store().join("half")).unwrap();
    let list = home.run(&["list"]);
    expect_code(&list, 0);
    let shown: Vec<_> = text(&list.stdout)
        .lines()
        .skip(1)
        .map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(shown, ["a shut", "b damaged", "c shut", "half damaged"]);
    let said = text(&list.stderr);
    assert!(
        said.contains("/b: config.yaml: ") && said.contains("/half: config.yaml: "),
        "{said}"
    );
    expect_code(&home.run(&["status", "half"]), 3);
    home.expect(&["delete", "half"], 0);
}

#[test]
fn the_predecessor_reads_what_is_saved_and_is_read() {
    let home = Home::new("predecessor");
    let place = home.save("a", "test=none exit=3");
    let config = fs::read_to_string(place.join("config.yaml")).unwrap();
    let domain = place.join("domain.xml");
    assert_eq!(
        config,
        format!(
            "attestation: false\ndomain-config: {}\nhost: localhost\nname: a\n",
            domain.display()
        )
    );
    let python = "import sys, yaml; c = yaml.full_load(open(sys.argv[1])); \
                  assert c['attestation'] is False and c['name'] == 'a'; print(open(c['domain-config']).read())";
    // Debian's own has its packages, where there is another one too.
    let read = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find_map(|interpreter| {
            let mut command = Command::new(interpreter);
            command.args(["-c", python]).arg(place.join("config.yaml"));
            let output = command.output().ok()?;
            (!text(&output.stderr).contains("No module named 'yaml'")).then_some(output)
        });
    match read {
        Some(output) => {
            expect_code(&output, 0);
            assert!(
                text(&output.stdout).contains("<name>a</name>"),
                "{output:?}"
            );
        }
        None => skip("no python3-yaml"),
    }
    // What it writes, with its modes: shown as it is.
    let theirs = home.store().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::copy(&domain, theirs.join("domain.xml")).unwrap();
    let text = format!(
        "attestation: true\ndomain-config: {}\nhost: localhost\nname: theirs\n",
        theirs.join("domain.xml").display()
    );
    fs::write(theirs.join("config.yaml"), text).unwrap();
    let rows = home.json(&["list"]);
    assert_eq!(rows[1]["name"], "theirs");
    assert_eq!(rows[1]["attestation"], true);
    assert_eq!(rows[1]["problems"], Value::Array(vec![]));
}

#[test]
fn another_store_is_named_by_option_or_key() {
    let home = Home::new("other");
    home.0.write("a.yaml", "guest: test=none exit=3\n");
    home.expect(&["a.yaml", "--save", "-o", "store=s1"], 0);
    home.expect(&["a.yaml", "--save", "--store", "s2"], 0);
    for store in ["s1", "s2"] {
        let rows = home.json(&["list", "--store", store]);
        assert_eq!(rows[0]["name"], "a");
        let directory = home.0.path(store).join("a");
        assert_eq!(
            rows[0]["directory"].as_str().unwrap(),
            directory.to_str().unwrap()
        );
        let scenario = fs::read_to_string(directory.join("scenario.yaml")).unwrap();
        assert!(!scenario.contains("store"), "{scenario}");
    }
    assert_eq!(home.json(&["list"]), Value::Array(vec![]));
}

#[test]
fn the_settings_name_the_store_and_the_predecessors_is_found() {
    let home = Home::new("settings");
    home.0.write("a.yaml", "guest: test=none exit=3\n");
    // The predecessor's own, on its search path; what is saved goes to ours.
    let theirs = home.0.path("vmconfig/theirs");
    fs::create_dir_all(&theirs).unwrap();
    fs::write(
        theirs.join("domain.xml"),
        "<domain type='kvm'><name>theirs</name></domain>\n",
    )
    .unwrap();
    let config = format!(
        "attestation: false\ndomain-config: {}\nhost: localhost\nname: theirs\n",
        theirs.join("domain.xml").display()
    );
    fs::write(theirs.join("config.yaml"), config).unwrap();
    home.expect(&["a.yaml", "--save"], 0);
    let names = |rows: Value| -> Vec<String> {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|r| r["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(home.json(&["list"])), ["a", "theirs"]);
    expect_code(&home.run(&["status", "theirs"]), 3);
    // One that others can change is nobody's to trust, and hides nothing.
    fs::set_permissions(
        home.0.path("vmconfig"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let list = home.run(&["list"]);
    expect_code(&list, 0);
    assert!(
        text(&list.stdout).contains("\na ") && !text(&list.stdout).contains("theirs"),
        "{list:?}"
    );
    home.expect(&["start", "theirs"], 125);
    // Where the settings name one, it is that one.
    home.0
        .write("virtscenario.yaml", "config:\n - vm-config-store: named\n");
    assert_eq!(home.json(&["list"]), Value::Array(vec![]));
    home.expect(&["a.yaml", "--save"], 0);
    assert!(home.0.path("named/a/config.yaml").exists());
    assert_eq!(names(home.json(&["list"])), ["a"]);
    home.expect(&["delete", "a"], 0);
    assert!(!home.0.path("named/a").exists() && home.store().join("a").exists());
}

#[test]
fn a_preset_is_saved_as_a_preset() {
    let home = Home::new("preset");
    let output = home.run(&["desktop", "--save", "-m", "2G"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(
        said.contains("cannot be run by this program here") && said.contains("--on HOST"),
        "{said}"
    );
    let scenario = fs::read_to_string(home.store().join("desktop/scenario.yaml")).unwrap();
    assert!(
        scenario.contains("preset: [desktop]") && scenario.contains("memory: 2G"),
        "{scenario}"
    );
    let domain = fs::read_to_string(home.store().join("desktop/domain.xml")).unwrap();
    assert!(
        domain.contains("<name>desktop</name>")
            && domain.contains("<memory unit='KiB'>2097152</memory>"),
        "{domain}"
    );
    home.expect(&["start", "desktop"], 125);
}
