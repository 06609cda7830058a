//! Locks on images, through the program and against those of others: QEMU, libvirt's virtlockd, flock.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "locks/foreign.rs"]
mod foreign;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::process::Running;
use common::{TempDir, expect_code, have_kvm, run, skip, text, vsc};
use serde_json::Value;

fn image(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.write(name, "");
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    path
}

/// A machine with one disk that does nothing but be there; `options` as after `-o`.
fn machine(name: &str, image: &Path, options: &[&str]) -> Command {
    let mut command = vsc();
    command.args(["-o", &format!("name={name}")]);
    command.args(["-o", &format!("disks.0.path={}", image.display())]);
    for option in options {
        command.args(["-o", option]);
    }
    command
}

/// One that ends at once.
fn brief(name: &str, image: &Path, options: &[&str]) -> Output {
    run(&mut machine(name, image, options))
}

/// Waits until something holds a lock on `image`, as `locks list` tells.
fn locked(image: &Path) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let told = holders(image);
        if !told["holders"].as_array().unwrap().is_empty() {
            return told["holders"][0].clone();
        }
        assert!(
            Instant::now() < deadline,
            "nobody locks {}",
            image.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn holders(image: &Path) -> Value {
    let output = run(vsc().args(["locks", "list", "--json"]).arg(image));
    expect_code(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A machine that stays, once it has its image.
fn staying(name: &str, image: &Path, options: &[&str]) -> Running {
    let mut command = machine(name, image, options);
    command.args(["-q", "-o", "guest.parameters=silent spin"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    locked(image);
    running
}

/// Reads all that a child says until it says `word`.
fn until(child: &mut Child, word: &str) {
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 {
        if line.contains(word) {
            return;
        }
        line.clear();
    }
    let mut said = String::new();
    child.stderr.as_mut().map(|e| e.read_to_string(&mut said));
    panic!("it never said {word}: {said}");
}

/// That a run was refused, nothing is left of it, and what it said.
fn refused(output: &Output) -> String {
    expect_code(output, 125);
    let said = text(&output.stderr);
    assert!(said.contains("E-LOCKED"), "{said}");
    said
}

#[test]
fn of_two_machines_on_one_image_the_second_names_the_first() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-two");
    let image = image(&dir, "x.img");
    let mut first = staying("a", &image, &[]);
    let told = locked(&image);
    assert_eq!(
        (told["vm"].as_str(), told["access"].as_str()),
        (Some("a"), Some("rw"))
    );
    assert_eq!(told["pid"], first.pid());

    let said = refused(&brief("b", &image, &[]));
    let wanted = format!(
        "error[E-LOCKED]: {} is held by vm 'a', pid {}, since ",
        image.display(),
        first.pid()
    );
    assert!(
        said.contains(&wanted) && said.contains("(vsc-run)"),
        "{said}"
    );
    let result = dir.path("r.json");
    let output = run(machine("b", &image, &["disks.0.read_only=true"])
        .arg("--result")
        .arg(&result));
    refused(&output);
    let result: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert!(result.to_string().contains("E-LOCKED"), "{result}");
    refused(&brief("b", &image, &["disks.0.shareable=true"]));
    // Another name is the same image.
    let link = dir.path("link");
    symlink(&image, &link).unwrap();
    refused(&brief("b", &link, &[]));
    let output = brief("b", &image, &["locking=none"]);
    expect_code(&output, 0);
    assert!(text(&output.stderr).contains("W-LOCK-NONE"));
    assert_eq!(dir.names(), ["link", "r.json", "x.img"]);

    // The kernel gives the lock up, whatever ended the process.
    first.kill();
    expect_code(&brief("b", &image, &[]), 0);
    assert!(holders(&image)["holders"].as_array().unwrap().is_empty());
}

#[test]
fn readers_and_sharers_go_together() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-shared");
    let image = image(&dir, "x.img");
    let ro = ["disks.0.read_only=true"];
    let shared = ["disks.0.shareable=true"];
    {
        let _first = staying("a", &image, &ro);
        expect_code(&brief("b", &image, &ro), 0);
        let said = refused(&brief("b", &image, &[]));
        assert!(
            said.contains("it reads it") && said.contains("read_only: true"),
            "{said}"
        );
        refused(&brief("b", &image, &shared));
    }
    {
        let _first = staying("a", &image, &shared);
        expect_code(&brief("b", &image, &shared), 0);
        let said = refused(&brief("b", &image, &[]));
        assert!(said.contains("shareable: true"), "{said}");
        refused(&brief("b", &image, &ro));
    }
}

#[test]
fn one_image_twice_in_a_machine_is_named_by_both_disks() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-twice");
    let image = image(&dir, "x.img");
    let other = dir.path("y.img");
    std::fs::hard_link(&image, &other).unwrap();
    let second = format!("disks.1.path={}", other.display());
    let said = refused(&brief("a", &image, &[&second]));
    assert!(
        said.contains("disk0") && said.contains("disk1") && said.contains("the same file"),
        "{said}"
    );
    let ro = ["disks.0.read_only=true", "disks.1.read_only=true", &second];
    expect_code(&brief("a", &image, &ro), 0);
}

#[test]
fn a_restart_has_its_image_again() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-restart");
    let image = image(&dir, "x.img");
    let options = [
        "guest.parameters=silent reboot",
        "events.on_reboot=restart",
        "events.max_restarts=3",
    ];
    let output = run(machine("a", &image, &options).arg("--json"));
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(told["restarts"], 3, "{told}");
}

/// Between two lives of a machine nobody else gets its image.
#[test]
fn a_restart_does_not_let_go_of_its_image() {
    use vsc_devices::block::lock::{Access, Lock, LockError, take};
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-restart-held");
    let image = image(&dir, "x.img");
    let options = [
        "guest.parameters=silent reboot",
        "events.on_reboot=restart",
        "events.max_restarts=20",
    ];
    let access = Access {
        write: true,
        resize: false,
        lock: Lock::Exclusive,
        device: false,
        flock: false,
    };
    let mut run = machine("a", &image, &options)
        .arg("--json")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let inode = format!(":{} ", std::fs::metadata(&image).unwrap().ino());
    let table = || std::fs::read_to_string("/proc/locks").unwrap();
    while !table().contains(&inode) {
        assert!(run.try_wait().unwrap().is_none(), "it ended unlocked");
    }
    // Whoever wants the image tries all the time, and keeps it once it has it.
    let open = || {
        let mut options = std::fs::File::options();
        options.read(true).write(true).open(&image).unwrap()
    };
    let kept = loop {
        let file = open();
        match take(&file, access) {
            Err(LockError::Held(_)) => {}
            taken => break taken.map(|()| file).unwrap(),
        }
    };
    let mut text = String::new();
    let mut told = run.stderr.take().unwrap();
    told.read_to_string(&mut text).unwrap();
    let code = run.wait().unwrap();
    drop(kept);
    assert!(code.success(), "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["restarts"], 20, "{told}");
}

/// Whether a program is here.
fn have(program: &str, package: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} ({package})"));
    }
    there
}

#[test]
fn verbs_tell_and_compute() {
    let output = run(vsc().args(["locks", "drivers", "--json"]));
    expect_code(&output, 0);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["driver"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["files", "lockd", "sanlock", "none"]);
    assert_eq!(told[0]["state"], "default");

    let size = |extra: &[&str]| {
        run(vsc()
            .args([
                "locks", "size", "--hosts", "20", "--vms", "50", "--disks", "2",
            ])
            .args(extra))
    };
    assert_eq!(text(&size(&[]).stdout), "2000 MB\n");
    assert_eq!(text(&size(&["--sector", "4096"]).stdout), "16000 MB\n");
    expect_code(&size(&["--sector", "520"]), 125);

    let dir = TempDir::new("locks-setup");
    std::fs::create_dir_all(dir.path("etc/libvirt")).unwrap();
    dir.write(
        "etc/libvirt/qemu.conf",
        format!("{}lock_manager = \"sanlock\"\n", "# x\n".repeat(5000)),
    );
    let setup = |args: &[&str]| {
        let root = dir.path("");
        run(vsc()
            .args(["locks", "setup", "sanlock", "--json", "--host-root"])
            .arg(root)
            .args(args))
    };
    let output = setup(&["--plan", "--export", "nfs:/e", "--host-id", "2000"]);
    expect_code(&output, 0);
    let steps: Value = serde_json::from_slice(&output.stdout).unwrap();
    let step = |part: &str| {
        let all = steps.as_array().unwrap();
        all.iter()
            .find(|s| s["what"].as_str().unwrap().contains(part))
            .unwrap()
            .clone()
    };
    assert!(
        step("wdmd")["why"]
            .as_str()
            .unwrap()
            .contains("the host will reboot")
    );
    assert_eq!(step("lock_manager")["done"], true);
    assert_eq!(step("host_id = 2000")["done"], false);
    assert_eq!(
        step("/etc/fstab")["what"],
        "/etc/fstab: nfs:/e /var/lib/libvirt/sanlock nfs hard,nointr 0 0"
    );
    for bad in [
        &["--plan", "--host-id", "0"][..],
        &["--plan", "--host-id", "2001"],
        &[],
    ] {
        expect_code(&setup(bad), 125);
    }
}

#[test]
fn images_in_use_are_not_deleted_and_say_by_whom_they_are_held() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-delete");
    let store = dir.path("store");
    let saved = |words: &[&str]| {
        run(vsc()
            .args(words)
            .arg("--store")
            .arg(&store)
            .current_dir(dir.path("")))
    };
    let image = dir.path("made.img");
    let scenario = format!(
        "name: kept\ndisks: [{{path: {}, size: 1M}}]\n",
        image.display()
    );
    let scenario = dir.write("kept.yaml", scenario);
    expect_code(&saved(&["--save", scenario.to_str().unwrap()]), 0);
    expect_code(&saved(&["start", "kept"]), 0);
    assert!(image.exists());
    let info = || {
        let output = run(vsc().args(["disk", "info", "--json"]).arg(&image));
        expect_code(&output, 0);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["held_by"].clone()
    };
    {
        let holder = staying("other", &image, &[]);
        assert!(
            info()[0]
                .as_str()
                .unwrap()
                .starts_with(&format!("vm 'other', pid {}", holder.pid()))
        );
        let output = saved(&["delete", "kept", "--disks"]);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("held by vm 'other'"),
            "{output:?}"
        );
        assert!(image.exists());
    }
    assert_eq!(info().as_array().unwrap().len(), 0);
    expect_code(&saved(&["delete", "kept", "--disks"]), 0);
    assert!(!image.exists());
}

#[test]
fn a_device_that_the_host_uses_is_not_written() {
    if !have_kvm() || !have("losetup", "mount") || !have("mkfs.ext4", "e2fsprogs") {
        return;
    }
    let dir = TempDir::new("locks-device");
    let image = image(&dir, "x.img");
    let set_up = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(&image)
        .output()
        .unwrap();
    if !set_up.status.success() {
        return skip("loop devices");
    }
    let device = PathBuf::from(text(&set_up.stdout).trim());
    let node = dir.path("node");
    // In namespaces of its own, so that the mount is gone with the holder.
    let script = "mkfs.ext4 -q -O ^has_journal $0 && mount $0 /mnt && echo mounted && read x";
    let mut holder = Command::new("unshare");
    holder
        .args(["--mount", "sh", "-c", script])
        .arg(&device)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut holder = Running(holder.spawn().unwrap());
    until(&mut holder.0, "mounted");
    let mounted = brief("b", &device, &[]);
    let read = brief("b", &device, &["disks.0.read_only=true"]);
    holder.kill();
    // Another node of the device: locks of files do not know it, the kernel's claim does.
    let meta = std::fs::metadata(&device).unwrap();
    let number = std::os::unix::fs::MetadataExt::rdev(&meta);
    let (major, minor) = (libc_major(number), libc_minor(number));
    let made = Command::new("mknod")
        .arg(&node)
        .args(["b", &major, &minor])
        .status()
        .unwrap();
    let (alias, twice) = {
        let _ours = staying("a", &device, &[]);
        (brief("b", &node, &[]), brief("b", &device, &[]))
    };
    let free = brief("b", &device, &[]);
    let detached = Command::new("losetup")
        .arg("-d")
        .arg(&device)
        .status()
        .unwrap();
    assert!(detached.success() && made.success());
    expect_code(&mounted, 125);
    assert!(
        text(&mounted.stderr).contains("in use by another program or mounted"),
        "{mounted:?}"
    );
    expect_code(&read, 0);
    for other in [alias, twice] {
        let said = refused(&other);
        assert!(said.contains("held by vm 'a', pid "), "{said}");
    }
    expect_code(&free, 0);
}

/// As makedev(3) packs them for the few that loop devices have.
fn libc_major(number: u64) -> String {
    (number >> 8 & 0xfff).to_string()
}

fn libc_minor(number: u64) -> String {
    (number & 0xff).to_string()
}
