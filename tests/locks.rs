//! Locks on images, through the program and against those of others: QEMU, libvirt's virtlockd, flock.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
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
        "E-LOCKED: {} is held by vm 'a', pid {}, since ",
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

/// QEMU with an image, standing still before its first instruction.
fn qemu(image: &Path, options: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-accel",
            "tcg",
            "-S",
            "-display",
            "none",
            "-nodefaults",
            "-monitor",
            "stdio",
        ])
        .args(["-name", "guest=theirs,debug-threads=on", "-m", "16"])
        .args([
            "-drive",
            &format!("file={},format=raw,if=none,id=d{options}", image.display()),
        ])
        .args(["-device", "virtio-blk-pci,drive=d"]);
    command
}

#[test]
fn qemu_holds_us_off_and_we_hold_off_qemu() {
    if !have_kvm() || !have("qemu-system-x86_64", "qemu-system-x86") {
        return;
    }
    let dir = TempDir::new("locks-qemu");
    let image = image(&dir, "x.img");
    let ro = ["disks.0.read_only=true"];
    let stays = |options: &str| {
        let child = qemu(&image, options)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let running = Running(child.unwrap());
        locked(&image);
        running
    };
    {
        let holder = stays("");
        let said = refused(&brief("b", &image, &[]));
        let wanted = format!("held by vm 'theirs', pid {}, since ", holder.pid());
        assert!(
            said.contains(&wanted) && said.contains("(qemu-system-x86_64)"),
            "{said}"
        );
        refused(&brief("b", &image, &ro));
        assert_eq!(locked(&image)["access"], "rw");
    }
    {
        let _holder = stays(",readonly=on");
        refused(&brief("b", &image, &[]));
        expect_code(&brief("b", &image, &ro), 0);
    }
    // It would stay, too: `quit` ends it once it has started.
    let starts = |options: &str| {
        let mut child = qemu(&image, options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"quit\n").ok();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    {
        let _ours = staying("a", &image, &[]);
        let (good, said) = starts("");
        assert!(
            !good && said.contains("Failed to get \"write\" lock"),
            "{said}"
        );
        let (good, said) = starts(",readonly=on");
        assert!(!good && said.contains("lock"), "{said}");
    }
    {
        let _ours = staying("a", &image, &ro);
        let (good, said) = starts("");
        assert!(!good && said.contains("lock"), "{said}");
        let (good, said) = starts(",readonly=on");
        assert!(good, "{said}");
    }
    assert!(starts("").0);
}

#[test]
fn qemu_io_and_flock_count_and_lslocks_shows_ours() {
    if !have_kvm() || !have("qemu-io", "qemu-utils") || !have("flock", "util-linux") {
        return;
    }
    let dir = TempDir::new("locks-others");
    let image = image(&dir, "x.img");
    {
        let _ours = staying("a", &image, &[]);
        let output = Command::new("qemu-io")
            .args(["-f", "raw", "-c", "write 0 512"])
            .arg(&image)
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains("lock"), "{output:?}");
        let output = Command::new("flock")
            .args(["-n", "-E", "77"])
            .arg(&image)
            .arg("true")
            .output();
        assert_eq!(output.unwrap().status.code(), Some(77));
        let output = Command::new("lslocks")
            .args(["-n", "-o", "COMMAND,PATH"])
            .output()
            .unwrap();
        let shown = text(&output.stdout);
        let ours = |line: &&str| line.starts_with("vsc-run") && line.contains("x.img");
        assert!(shown.lines().any(|l| ours(&l)), "{shown}");
    }
    {
        let mut holder = Command::new("qemu-io");
        holder
            .args(["-f", "raw"])
            .arg(&image)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let holder = Running(holder.spawn().unwrap());
        locked(&image);
        let said = refused(&brief("b", &image, &[]));
        assert!(
            said.contains(&format!("pid {}", holder.pid())) && said.contains("(qemu-io)"),
            "{said}"
        );
    }
    let mut holder = Command::new("flock");
    holder.arg(&image).args(["-c", "echo held; read x"]);
    let mut holder = Running(
        holder
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(holder.0.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said = refused(&brief("b", &image, &[]));
    assert!(
        said.contains("(flock)") || said.contains("(sh)") || said.contains("(dash)"),
        "{said}"
    );
}

fn lockd(space: &Path) -> String {
    format!(
        "locking={{driver: lockd, file_lockspace_dir: {}}}",
        space.display()
    )
}

/// The name of an image in a lockspace.
fn key(image: &Path) -> String {
    vsc::locks::keys::file_key(image)
}

#[test]
fn a_lockspace_has_a_file_while_the_machine_runs() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-space");
    let image = image(&dir, "x.img");
    let space = dir.path("space");
    std::fs::create_dir(&space).unwrap();
    let locking = lockd(&space);
    let file = space.join(key(&image));
    {
        let mut holder = staying("a", &image, &[&locking]);
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (0, 0o600));
        let told = locked(&file);
        assert_eq!(
            (told["pid"].as_u64(), told["access"].as_str()),
            (Some(holder.pid().into()), Some("libvirt"))
        );
        let said = refused(&brief("b", &image, &[&locking]));
        assert!(
            said.contains("vm 'a'") && said.contains(&format!("through {}", file.display())),
            "{said}"
        );
        // A killed machine leaves a file that means nothing.
        holder.kill();
    }
    assert!(file.exists());
    let output = run(vsc()
        .args(["locks", "gc", "--dry-run", "--file-lockspace-dir"])
        .arg(&space));
    expect_code(&output, 0);
    assert!(text(&output.stdout).contains("would be removed") && file.exists());
    expect_code(
        &run(vsc()
            .args(["locks", "gc", "--file-lockspace-dir"])
            .arg(&space)),
        0,
    );
    assert!(!file.exists());
    expect_code(&brief("b", &image, &[&locking]), 0);
    assert!(!file.exists(), "it goes with the machine");

    // Who locks in another way is refused, with both ways told.
    let other = format!(
        "locking={{driver: lockd, file_lockspace_dir: {0}, lvm_lockspace_dir: {0}}}",
        space.display()
    );
    let output = brief("b", &image, &[&other]);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("lvm=image") && said.contains("lvm=lockspace"),
        "{said}"
    );

    // What strangers put in its place is not followed.
    let victim = dir.write("victim", "precious");
    symlink(&victim, &file).unwrap();
    let output = brief("b", &image, &[&locking]);
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("is a symbolic link"));
    std::fs::remove_file(&file).unwrap();
    let fifo = Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(fifo.success());
    let output = brief("b", &image, &[&locking]);
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("is a pipe"));
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

/// The confined monitor has no right to another user's directory any more, root's neither.
#[test]
fn a_lock_file_goes_from_another_users_lockspace_too() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("locks-foreign-space");
    let image = image(&dir, "x.img");
    let space = dir.path("space");
    std::fs::create_dir(&space).unwrap();
    if std::os::unix::fs::chown(&space, Some(65534), Some(65534)).is_err() {
        skip("this test gives a directory to another user, which only root may");
        return;
    }
    for shared in ["disks.0.shareable=false", "disks.0.shareable=true"] {
        let options = [lockd(&space), shared.to_owned()];
        let output = brief("a", &image, &options.each_ref().map(String::as_str));
        expect_code(&output, 0);
        assert!(!space.join(key(&image)).exists(), "{shared}: it stays");
    }
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
fn gc_finds_what_killed_machines_left_in_libvirts_lockspaces() {
    let dir = TempDir::new("locks-gc");
    let space = dir.path("var/lib/libvirt/lockd/lvmvolumes");
    std::fs::create_dir_all(&space).unwrap();
    let file = space.join("06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky");
    std::fs::write(&file, "").unwrap();
    std::fs::write(space.join("other"), "").unwrap();
    let gc = |args: &[&str]| {
        let output = run(vsc().args(args).arg("--host-root").arg(dir.path("")));
        expect_code(&output, 0);
        text(&output.stdout)
    };
    assert!(gc(&["gc", "--dry-run"]).contains("would be removed"));
    assert!(gc(&["locks", "gc", "--dry-run"]).contains("would be removed") && file.exists());
    assert!(gc(&["gc"]).contains("lock file: "));
    assert!(!file.exists() && space.join("other").exists());
}

/// Locks of files stay as long as they are held, so an action for their loss would never come.
#[test]
fn an_action_for_lost_locks_is_refused_where_none_can_be_lost() {
    let dir = TempDir::new("locks-failure");
    let image = image(&dir, "x.img");
    for action in ["poweroff", "restart", "pause", "ignore"] {
        let output = brief("a", &image, &[&format!("events.on_lockfailure={action}")]);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("E-UNSUPPORTED") && said.contains("cannot be revoked"),
            "{said}"
        );
    }
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

#[test]
fn sanlock_is_refused_with_what_to_start() {
    let dir = TempDir::new("locks-sanlock");
    let image = image(&dir, "x.img");
    if Path::new("/run/sanlock/sanlock.sock").exists() {
        return skip("a host whose sanlock does not run");
    }
    let output = brief("a", &image, &["locking=sanlock"]);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("E-SANLOCK") && said.contains("locks setup sanlock --plan"),
        "{said}"
    );
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

/// POSIX locks of a process, as virtlockd takes them, on byte 0 of the image itself.
#[test]
fn byte_0_of_the_image_is_libvirts() {
    if !have_kvm() || !have("python3", "python3") {
        return;
    }
    let dir = TempDir::new("locks-byte0");
    let image = image(&dir, "x.img");
    let program = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,0)\n\
                   print('held',flush=True)\nsys.stdin.read()";
    let mut holder = Command::new("python3");
    holder
        .args(["-c", program])
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut holder = Running(holder.spawn().unwrap());
    until(&mut holder.0, "held");
    // Without lockd nobody looks at it, as QEMU does not.
    expect_code(&brief("b", &image, &[]), 0);
    let said = refused(&brief("b", &image, &["locking=lockd"]));
    assert!(said.contains(&format!("pid {}", holder.pid())), "{said}");
    holder.kill();
    let _ours = staying("a", &image, &["locking=lockd"]);
    let mut other = Command::new("python3");
    let output = other.args(["-c", program]).arg(&image).output().unwrap();
    assert!(
        text(&output.stderr).contains("BlockingIOError"),
        "{}",
        text(&output.stderr)
    );
}
