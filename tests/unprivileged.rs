//! Everything that an ordinary user does, as one: a uid without capabilities, whose only privilege is the group of
//! /dev/kvm. In a mount namespace with a /dev, /run and /tmp of its own; the host's are not touched.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/inside.rs"]
mod inside;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{expect_code, finish, have_kvm, kernel, run, text};

const ADA: u32 = 12345;
const BOB: u32 = 12346;
/// The group of /dev/kvm in there. No line of /etc/group names it.
const KVM: u32 = 9999;
/// Without a file that says that this is a container, and with what users have: `$0` is the program, `$1` the kernels.
const WORLD: &str = r#"
mount --make-rprivate /
mount -t tmpfs -o mode=755 t /mnt
mkdir /mnt/bin /mnt/kernels /mnt/dev /mnt/root
cp "$0" /mnt/bin/vsc-run; cp "${0%-run}-helper" /mnt/bin/vsc-helper; chmod 755 /mnt/bin/*
[ -z "$1" ] || mount --bind "$1" /mnt/kernels
for n in null zero full random urandom; do mknod -m 666 /mnt/dev/$n c $(stat -c '0x%t 0x%T' /dev/$n); done
mkdir -m 1777 /mnt/dev/shm; ln -s /proc/self/fd /mnt/dev/fd
mknod -m 660 /mnt/dev/kvm c 10 232; chown 0:9999 /mnt/dev/kvm
mount -t tmpfs -o mode=755 t /mnt/root
cd /mnt/root
for d in /*; do
    if [ -L "$d" ]; then cp -a "$d" .; elif [ -d "$d" ]; then mkdir ".$d"; mount --rbind "$d" ".$d"; fi
done
mkdir old; pivot_root . old; cd /; umount -l /old; rmdir /old
mount --rbind /mnt/dev /dev
mount -t tmpfs -o mode=755 t /run; mount -t tmpfs -o mode=1777 t /tmp; mkdir /run/user
for u in 12345 12346; do install -d -m 700 -o $u -g $u /run/user/$u /tmp/$u; done
"#;

struct World;

impl World {
    /// `None`: this is not the process inside, or there is no inside to be had.
    #[track_caller]
    fn new(test: &str) -> Option<Self> {
        let probe = "mount -t tmpfs t /mnt; mknod -m 660 /mnt/kvm c 10 232; chown 0:9999 /mnt/kvm; \
                     setpriv --reuid 12345 --regid 12345 --groups 9999 sh -c ': <>/mnt/kvm'";
        if !have_kvm() || !inside::inside(test, "-m", probe) {
            return None;
        }
        let kernels = kernel().and_then(|path| Some(path.parent()?.to_owned()));
        let mut setup = Command::new("sh");
        setup.args(["-ec", WORLD, env!("CARGO_BIN_EXE_vsc-run")]);
        let output = run(setup.arg(kernels.unwrap_or_default()));
        expect_code(&output, 0);
        Some(Self)
    }

    fn home(user: u32) -> PathBuf {
        format!("/tmp/{user}").into()
    }

    /// A program as this user; `groups` besides their own.
    fn command(user: u32, groups: &[u32], program: &[&str]) -> Command {
        let mut all = vec![user.to_string()];
        all.extend(groups.iter().map(u32::to_string));
        let id = user.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--groups", &all.join(",")]);
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
        command.args(program).env_clear().stdin(Stdio::null());
        command.current_dir(Self::home(user));
        command.env("PATH", "/mnt/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("HOME", Self::home(user))
            .env("VSC_KERNELS", "/mnt/kernels");
        command.env("XDG_RUNTIME_DIR", format!("/run/user/{user}"));
        command
    }

    fn vsc(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = Self::command(user, &[KVM], &["vsc-run"]);
        command.args(arguments);
        command
    }

    /// What it said on standard error and output, if it ended so.
    #[track_caller]
    fn expect(&self, command: &mut Command, code: i32) -> String {
        let output = run(command);
        expect_code(&output, code);
        text(&output.stderr) + &text(&output.stdout)
    }

    #[track_caller]
    fn ada(&self, arguments: &[&str], code: i32) -> String {
        self.expect(&mut self.vsc(ADA, arguments), code)
    }

    /// Everything in it, none of it left out.
    #[track_caller]
    fn says(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        contains(&self.ada(arguments, code), parts);
    }

    /// A file of this user's.
    fn file(&self, user: u32, name: &str, mode: u32, bytes: &[u8]) -> String {
        let path = Self::home(0).with_file_name(name);
        fs::write(&path, bytes).unwrap();
        chown(&path, Some(user), Some(user)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A machine that runs until it is killed, and has greeted.
    fn machine(&self, user: u32, arguments: &[&str]) -> Running {
        let mut command = self.vsc(user, &["-q", "-o", "guest.parameters=test=none spin"]);
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut greeting = [0; 10];
        if child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut greeting)
            .is_err()
        {
            panic!("{}", text(&finish(child).stderr));
        }
        Running(child)
    }
}

struct Running(Child);

impl Running {
    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

/// All names below a directory.
fn below(directory: &str) -> Vec<String> {
    let output = run(Command::new("find").args([directory, "-mindepth", "1"]));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

const NOTHING: &str = "guest.parameters=test=none";

#[test]
fn a_machine_needs_no_setup_and_no_rights() {
    let Some(world) = World::new("a_machine_needs_no_setup_and_no_rights") else {
        return;
    };
    world.says(&[], 0, &["ok irq.timer", "end status=0"]);
    world.says(&["doctor"], 0, &["Machines run on this host."]);
    let mut machine = world.machine(ADA, &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", machine.0.id())).unwrap();
    let uid = format!("Uid:\t{ADA}\t{ADA}\t{ADA}\t{ADA}\n");
    let none = [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ];
    contains(&status, &[&uid, none[0], none[1], none[2], "Seccomp:\t2"]);
    machine.end();
    assert_eq!(below("/run/user/12345"), [""; 0]);
    assert_eq!(below("/tmp/12345"), [""; 0]);

    if kernel().is_some() {
        let output = run(&mut world.vsc(ADA, &["--", "sh", "-c", "echo out; exit 7"]));
        expect_code(&output, 7);
        assert_eq!(text(&output.stdout), "out\n");
        // Neither a home nor a session is needed.
        for home in [None, Some("/root"), Some("/nonexistent"), Some("/usr")] {
            let mut command = world.vsc(ADA, &["--", "echo", "hi"]);
            command.env_remove("XDG_RUNTIME_DIR").env_remove("HOME");
            let output = run(command.envs(home.map(|home| ("HOME", home))));
            expect_code(&output, 0);
            assert_eq!(text(&output.stdout), "hi\n");
        }
    }
}

#[test]
fn who_may_not_open_kvm_learns_which_group_may() {
    let Some(world) = World::new("who_may_not_open_kvm_learns_which_group_may") else {
        return;
    };
    let without = |arguments: &[&str]| {
        let mut command = World::command(ADA, &[], &["vsc-run"]);
        command.args(arguments);
        command
    };
    let named =
        "sudo groupadd -g 9999 kvm-9999 && sudo usermod -aG kvm-9999 \"$USER\" && newgrp kvm-9999";
    let said = world.expect(&mut without(&[]), 125);
    contains(&said, &["/dev/kvm may not be opened by this user", named]);
    contains(
        &world.expect(&mut without(&["doctor"]), 1),
        &[named, "No machine runs"],
    );
    // What needs no machine goes on.
    let said = world.expect(&mut without(&["plan", "computation"]), 0);
    contains(&said, &["computation"]);
    for (mode, group) in [(0o600, 0), (0o660, 0), (0o640, KVM)] {
        chown("/dev/kvm", None, Some(group)).unwrap();
        fs::set_permissions("/dev/kvm", PermissionsExt::from_mode(mode)).unwrap();
        world.says(
            &[],
            125,
            &["sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm"],
        );
    }
    fs::remove_file("/dev/kvm").unwrap();
    world.says(&[], 125, &["/dev/kvm does not exist", "modprobe"]);
}

#[test]
fn images_of_two_users() {
    let Some(world) = World::new("images_of_two_users") else {
        return;
    };
    let image = world.file(ADA, "x.img", 0o666, &[0; 1 << 20]);
    let disk = format!("disks.0.path={image}");
    let mut holder = world.machine(ADA, &["-o", "name=a", "-o", &disk]);
    let pid = holder.0.id();
    // One's own is named; another's, as far as its command line tells.
    let vm = format!("held by vm 'a', pid {pid}, since ");
    world.says(&["-o", &disk], 125, &["E-LOCKED", &vm]);
    let bob = |arguments: &[&str], code| world.expect(&mut world.vsc(BOB, arguments), code);
    let said = bob(&["-o", &disk], 125);
    let who = format!("by its command line pid {pid}, since ");
    let user = format!("(vsc-run) of user {ADA}");
    contains(
        &said,
        &[
            "E-LOCKED",
            "does not show to this user",
            &who,
            &user,
            "sudo vsc-run locks list",
        ],
    );
    contains(
        &bob(&["locks", "list"], 0),
        &["by a process that this user may look at"],
    );
    contains(
        &bob(&["locks", "list", &image], 0),
        &["processes that /proc does not show"],
    );
    contains(&bob(&["ps", "--all"], 0), &["no machine runs"]);
    holder.end();
    // One whose command line says nothing.
    let scenario = world.file(ADA, "s.yaml", 0o644, format!("disk: {image}\n").as_bytes());
    let mut holder = world.machine(ADA, &[&scenario]);
    let said = bob(&["-o", &disk], 125);
    contains(
        &said,
        &[
            "E-LOCKED",
            "that /proc does not show here: of another user",
            "sudo vsc-run locks list",
        ],
    );
    holder.end();
    bob(&["-q", "-o", &disk, "-o", NOTHING], 0);

    let theirs = world.file(BOB, "y.img", 0o644, &[0; 1 << 20]);
    let disk = format!("disks.0.path={theirs}");
    world.says(
        &["-o", &disk],
        125,
        &["E-DISK-READ-ONLY", "read_only: true"],
    );
    let only = [
        "-q",
        "-o",
        &disk,
        "-o",
        "disks.0.read_only=true",
        "-o",
        NOTHING,
    ];
    world.ada(&only, 0);
    world.file(BOB, "y.img", 0o600, &[0; 1 << 20]);
    world.says(
        &only,
        125,
        &["E-DISK-READ", "may not read it", "setfacl -m u:"],
    );

    let key = world.file(ADA, "key", 0o600, b"a passphrase");
    let luks = "/tmp/12345/d.luks";
    world.ada(
        &[
            "disk",
            "create",
            luks,
            "4M",
            "--encryption",
            "luks",
            "--secret-file",
            &key,
        ],
        0,
    );
    let disk =
        format!("disks=[{{path: {luks}, format: raw, encryption: luks, secret: {{file: {key}}}}}]");
    let run = ["-o", disk.as_str(), "-o", "guest.parameters=test=blk write"];
    world.says(&run, 0, &["ok blk0.write", "end status=0"]);
    world.file(ADA, "key", 0o644, b"a passphrase");
    world.says(
        &run,
        125,
        &["E-SECRET", "can be read by others", "chmod 600"],
    );
    world.file(BOB, "key", 0o600, b"a passphrase");
    world.says(&run, 125, &["E-SECRET", "Permission denied", "sudo chown"]);
}
