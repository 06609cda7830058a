//! Images that somebody else has at this moment: what `plan` says of them, and what a refused run leaves.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::{TempDir, expect_code, have_kvm, run, skip, text, vsc};
use serde_json::Value;
use vsc::locks::lockspace;
use vsc_devices::block::lock::{self, Access, Lock};

fn image(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path(name);
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    path
}

/// Locks an image as a machine would.
fn lock(path: &Path, write: bool) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let access = Access {
        write,
        resize: false,
        lock: Lock::Exclusive,
        device: false,
        flock: false,
    };
    lock::take(&file, access).unwrap();
    file
}

fn plan(scenario: &Path, json: bool) -> String {
    let mut command = vsc();
    command.arg("plan").arg(scenario);
    command.args(json.then_some("--json"));
    let output = run(&mut command);
    expect_code(&output, 0);
    text(&output.stdout)
}

#[test]
fn plan_says_who_has_an_image_now_and_takes_no_lock() {
    let dir = TempDir::new("held-plan");
    let path = image(&dir, "x.img");
    let scenario = dir.write("s.yaml", "disk: x.img\n");
    assert!(!plan(&scenario, false).contains("is held by"));
    let told: Value = serde_json::from_str(&plan(&scenario, true)).unwrap();
    assert_eq!(told["held"], serde_json::json!([]));

    let held = lock(&path, true);
    let said = plan(&scenario, false);
    let pid = std::process::id();
    let line = said.lines().find(|l| l.contains("is held by")).unwrap();
    assert!(
        line.contains(&format!("{} is held by pid {pid}, since ", path.display()))
            && line.ends_with("the run would be refused now"),
        "{line}"
    );
    let told: Value = serde_json::from_str(&plan(&scenario, true)).unwrap();
    let one = &told["held"][0];
    assert_eq!(one["refused"], true, "{told}");
    assert_eq!(one["pid"], pid);
    assert_eq!(one["access"], "rw");
    assert!(one["why"].as_str().unwrap().starts_with("E-LOCKED: "));
    // With the lock gone all is as before; that of a reader keeps a writer off, and no reader.
    drop(held);
    assert!(!plan(&scenario, false).contains("is held by"));
    let reads = lock(&path, false);
    assert!(plan(&scenario, false).contains("the run would be refused now"));
    let reader = dir.write("r.yaml", "disk: {path: x.img, read_only: true}\n");
    let said = plan(&reader, false);
    assert!(said.contains("a run goes with that"), "{said}");
    drop(reads);
}

/// The files of a directory, but for those that the test made.
fn left(dir: &TempDir, known: &[&str]) -> Vec<String> {
    let found = fs::read_dir(dir.path("")).unwrap();
    let names = found.map(|f| f.unwrap().file_name().into_string().unwrap());
    names.filter(|n| !known.contains(&n.as_str())).collect()
}

#[test]
fn a_run_that_is_refused_leaves_no_new_disk() {
    if !have_kvm() {
        return skip("/dev/kvm cannot be opened");
    }
    let dir = TempDir::new("held-refused");
    let path = image(&dir, "x.img");
    fs::create_dir(dir.path("space")).unwrap();
    let known = ["x.img", "s.yaml", "space"];
    let refused = |scenario: &str, why: &str| {
        let scenario = dir.write("s.yaml", scenario);
        let output = run(vsc().arg(scenario));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains(why), "{said}");
        assert_eq!(left(&dir, &known), [""; 0], "{said}");
        said
    };
    // Another disk of the machine is in use: nothing is made at all.
    let held = lock(&path, true);
    let said = refused(
        "disks: [{path: new.img, size: 1M}, {path: x.img}]\n",
        "E-LOCKED",
    );
    assert!(!said.contains("made "), "{said}");
    drop(held);
    // The lockspace has the new disk's name already.
    let spaced =
        "locking: {driver: lockd, file_lockspace_dir: space}\ndisk: {path: new.img, size: 1M}\n";
    let scenario = dir.write("s.yaml", spaced);
    let told: Value = serde_json::from_str(&plan(&scenario, true)).unwrap();
    let place = &told["locks"]["disks"][0]["besides"][0];
    let name = place["name"].as_str().unwrap();
    let held = lockspace::take(&dir.path("space"), name, true, &dir.path("new.img")).unwrap();
    let said = refused(spaced, "E-LOCKED");
    assert!(!said.contains("made "), "{said}");
    drop(held);
    // It is made, and the machine cannot be: it goes again.
    let said = refused(
        "disk: {path: new.img, size: 1M}\nserial: unix:none/such.socket\n",
        "such.socket",
    );
    assert!(said.contains("made for this run"), "{said}");
    // And without anything in the way it stays.
    let scenario = dir.write("s.yaml", "disk: {path: new.img, size: 1M}\n");
    let output = run(vsc().arg(scenario));
    expect_code(&output, 0);
    assert_eq!(left(&dir, &known), ["new.img"]);
}
