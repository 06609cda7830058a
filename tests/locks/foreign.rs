//! Locks of others: QEMU, its tools, flock(1), libvirt.

use super::*;

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
