//! Everything that an ordinary user does, as one: a uid without capabilities, whose only privilege is the group of
//! /dev/kvm. In a mount namespace with a /dev, /run and /tmp of its own; the host's are not touched.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/inside.rs"]
mod inside;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{expect_code, kernel, run, text};
use world::{KVM, World, below, contains, me, runtime, them};

const NOTHING: &str = "guest.parameters=test=none";

#[test]
fn a_machine_needs_no_setup_and_no_rights() {
    let Some(world) = World::new("a_machine_needs_no_setup_and_no_rights") else {
        return;
    };
    world.says(&[], 0, &["ok irq.timer", "end status=0"]);
    world.says(&["doctor"], 0, &["Machines run on this host."]);
    let mut machine = world.machine(me(), &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", machine.0.id())).unwrap();
    let uid = format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", me());
    let none = [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ];
    contains(&status, &[&uid, none[0], none[1], none[2], "Seccomp:\t2"]);
    machine.kill();
    assert_eq!(below(&runtime(me())), [""; 0]);
    assert_eq!(below("/tmp/me"), [""; 0]);

    if kernel().is_some() {
        let output = run(&mut world.vsc(me(), &["--", "sh", "-c", "echo out; exit 7"]));
        expect_code(&output, 7);
        assert_eq!(text(&output.stdout), "out\n");
        // Neither a home nor a session is needed.
        for home in [None, Some("/root"), Some("/nonexistent"), Some("/usr")] {
            let mut command = world.vsc(me(), &["--", "echo", "hi"]);
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
        let mut command = World::command(me(), &[], &["vsc-run"]);
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
    let image = world.file(me(), "x.img", 0o666, &[0; 1 << 20]);
    let disk = format!("disks.0.path={image}");
    let mut holder = world.machine(me(), &["-o", "name=a", "-o", &disk]);
    let pid = holder.0.id();
    // One's own is named; another's, as far as its command line tells.
    let vm = format!("held by vm 'a', pid {pid}, since ");
    world.says(&["-o", &disk], 125, &["E-LOCKED", &vm]);
    let bob = |arguments: &[&str], code| world.expect(&mut world.vsc(them(), arguments), code);
    let said = bob(&["-o", &disk], 125);
    let who = format!("by its command line pid {pid}, since ");
    let user = format!("(vsc-run) of user {}", me());
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
    holder.kill();
    // One whose command line says nothing.
    let scenario = world.file(me(), "s.yaml", 0o644, format!("disk: {image}\n").as_bytes());
    let mut holder = world.machine(me(), &[&scenario]);
    let said = bob(&["-o", &disk], 125);
    contains(
        &said,
        &[
            "E-LOCKED",
            "that /proc does not show here: of another user",
            "sudo vsc-run locks list",
        ],
    );
    holder.kill();
    bob(&["-q", "-o", &disk, "-o", NOTHING], 0);

    let theirs = world.file(them(), "y.img", 0o644, &[0; 1 << 20]);
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
    world.file(them(), "y.img", 0o600, &[0; 1 << 20]);
    world.says(
        &only,
        125,
        &["E-DISK-READ", "may not read it", "setfacl -m u:"],
    );

    let key = world.file(me(), "key", 0o600, b"a passphrase");
    let luks = "/tmp/me/d.luks";
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
    world.file(me(), "key", 0o644, b"a passphrase");
    world.says(
        &run,
        125,
        &["E-SECRET", "can be read by others", "chmod 600"],
    );
    world.file(them(), "key", 0o600, b"a passphrase");
    world.says(&run, 125, &["E-SECRET", "Permission denied", "sudo chown"]);
}

#[test]
fn what_this_user_may_not_have_is_said_with_what_grants_it() {
    let Some(world) = World::new("what_this_user_may_not_have_is_said_with_what_grants_it") else {
        return;
    };
    let limited = |limit: &str, arguments: &[&str]| {
        let mut words = vec!["prlimit", limit, "vsc-run", "-q", "-o", NOTHING];
        words.extend(arguments);
        World::command(me(), &[KVM], &words)
    };
    let locked = |limit: &str, memory: &str, code| {
        let arguments = ["-o", "memory.locked=true", "-o", memory];
        world.expect(&mut limited(limit, &arguments), code)
    };
    let said = locked("--memlock=65536:65536", "memory=64M", 125);
    contains(
        &said,
        &[
            "E-MEMLOCK",
            "RLIMIT_MEMLOCK is 65536 bytes",
            "67108864",
            "ulimit -l 65536",
            "limits.d",
        ],
    );
    // The hard limit is what counts: 8 MiB on every Debian.
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let row = limits
        .lines()
        .find(|l| l.starts_with("Max locked memory"))
        .unwrap();
    let hard = row.split_whitespace().nth(4).unwrap().parse();
    if hard.map_or(true, |hard: u64| hard >= 8 << 20) {
        contains(
            &locked("--memlock=65536:8388608", "memory=8M", 0),
            &["vsc guest"],
        );
    }
    let said = locked("--memlock=65536:131072", "memory=8M", 125);
    contains(&said, &["this process may lock 128 KiB", "ulimit -l 8192"]);
    let said = world.expect(
        &mut limited("--rtprio=0:0", &["-o", "cpu.scheduler=fifo"]),
        125,
    );
    contains(&said, &["E-RTPRIO", "RLIMIT_RTPRIO is 0", "limits.d"]);

    // More than any host of tests has free.
    let pages = ["-o", "memory.hugepages=1G", "-o", "memory=512G"];
    world.says(&pages, 125, &["E-HUGEPAGES", "pages of 1 GiB"]);

    let limits = ["-o", "limits.pids_max=100"];
    let slice = ["-o", "limits.slice=machine.slice"];
    let cgroups = "umount -l /sys/fs/cgroup; mount -t cgroup2 c /sys/fs/cgroup";
    let mounted = run(Command::new("sh").args(["-ec", cgroups]));
    expect_code(&mounted, 0);
    let there = Path::new("/sys/fs/cgroup/machine.slice").exists();
    let why = if there {
        "This user may not"
    } else {
        "may not make the cgroup /sys/fs/cgroup/machine.slice"
    };
    let advice = "systemd-run --user --scope -p Delegate=yes vsc-run";
    world.says(&slice, 125, &["E-CGROUP", why, advice]);
    world.says(
        &limits,
        125,
        &[
            "E-CGROUP",
            "limits.pids_max would be kept by a cgroup of the run's own",
            advice,
        ],
    );
    let unmounted = run(Command::new("umount").args(["-l", "/sys/fs/cgroup"]));
    expect_code(&unmounted, 0);
    world.says(&limits, 125, &["E-CGROUP", "limits are kept by cgroup v2"]);
}

/// Knobs that the preset `computation` turns.
const KNOBS: [&str; 3] = [
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/ksm/run",
    "/proc/sys/vm/swappiness",
];

#[test]
fn the_host_is_planned_and_left_as_it_is() {
    let Some(world) = World::new("the_host_is_planned_and_left_as_it_is") else {
        return;
    };
    let knobs = || KNOBS.map(|path| fs::read_to_string(path).unwrap());
    let before = knobs();
    // One knob that certainly is another, and nothing else.
    let other = (before[2].trim().parse::<u32>().unwrap() + 1) % 100;
    let scenario = format!("host: {{swappiness: {other}}}\n");
    let scenario = world.file(me(), "h.yaml", 0o644, scenario.as_bytes());
    let plan = world.ada(&["host", "plan", &scenario], 0);
    contains(&plan, &["/proc/sys/vm/swappiness"]);
    let container = plan.contains("in container");
    let (noted, denied) = match container {
        true => (
            "in container: host tuning disabled",
            "the host stays as it is: in container",
        ),
        false => (
            "this user may not write it: as root",
            "this user may not write /proc/sys/vm/swappiness",
        ),
    };
    contains(&plan, &[noted]);
    contains(
        &world.ada(&["host", "apply", &scenario], 125).to_lowercase(),
        &[denied],
    );
    world.says(
        &["host", "status"],
        0,
        &["nothing of the host is changed by vsc"],
    );
    // What is recommended only keeps no machine from running, nor does what the scenario says without requiring it.
    for what in ["computation", &scenario] {
        let said = world.ada(&[what, "-o", NOTHING], 0);
        contains(&said, &["W-HOST", "vsc guest"]);
    }
    world.says(&["host", "undo"], 0, &["nothing to undo"]);
    world.says(&["gc"], 0, &["nothing to do"]);
    assert_eq!(knobs(), before);
    assert_eq!(below(&runtime(me())), [""; 0]);
}

#[test]
fn places_of_a_user() {
    let Some(world) = World::new("places_of_a_user") else {
        return;
    };
    let with = |runtime: Option<&str>, arguments: &[&str], code| {
        let mut command = world.vsc(me(), arguments);
        command.env_remove("XDG_RUNTIME_DIR");
        world.expect(
            command.envs(runtime.map(|path| ("XDG_RUNTIME_DIR", path))),
            code,
        )
    };
    // What root left there, of whatever kind, is nobody else's.
    for mode in [0o700, 0o755] {
        fs::create_dir_all("/run/vsc/host").unwrap();
        fs::create_dir_all("/run/vsc/1700000000.000001-7").unwrap();
        fs::write("/run/vsc/host/journal", "root's").unwrap();
        fs::set_permissions("/run/vsc", PermissionsExt::from_mode(mode)).unwrap();
        let before = below("/run/vsc");
        world.ada(&["--control", "-o", NOTHING], 0);
        world.says(&["ps", "--all"], 0, &["no machine runs"]);
        world.says(&["gc"], 0, &["nothing to do"]);
        world.says(&["host", "status"], 0, &["nothing of the host"]);
        assert_eq!(below("/run/vsc"), before);
    }
    // Whom nobody told of their session has it all the same; without one the message says how to get such a place.
    let control = ["--control", "-o", NOTHING];
    with(None, &control, 0);
    assert_eq!(below(&runtime(me())), [format!("{}/vsc", runtime(me()))]);
    assert_eq!(below(&format!("{}/vsc", runtime(me()))), [""; 0]);
    let (mine, theirs) = (runtime(me()), runtime(them()));
    let (chmod, whose) = (
        format!("chmod 700 {mine}"),
        format!("belongs to user {}", them()),
    );
    for (mode, runtime, why) in [
        (0o777, Some(mine.as_str()), chmod.as_str()),
        (
            0o777,
            None,
            "mkdir -m 700 ~/.vsc-run; export XDG_RUNTIME_DIR=~/.vsc-run",
        ),
        (0o700, Some(theirs.as_str()), whose.as_str()),
        (0o700, Some("/nope"), "it is not there"),
    ] {
        fs::set_permissions(&mine, PermissionsExt::from_mode(mode)).unwrap();
        contains(&with(runtime, &control, 125), &[why]);
        // What needs no such place works without.
        with(runtime, &["-q", "computation", "-o", NOTHING], 0);
        for verb in [&["ps"][..], &["gc"], &["host", "status"]] {
            with(runtime, verb, 0);
        }
    }
    let register = ["--register", "-o", NOTHING];
    world.says(
        &register,
        0,
        &["machinectl does not list this machine", "vsc guest"],
    );

    for (home, store) in [
        (
            None,
            "neither $XDG_DATA_HOME nor $HOME is set; --store names another",
        ),
        (
            Some("/nonexistent"),
            "this user may not make /nonexistent; --store names another",
        ),
        (
            Some("/usr"),
            "this user may not make /usr/.local; --store names another",
        ),
    ] {
        let mut command = world.vsc(me(), &["--save", "-o", "name=m"]);
        command
            .env_remove("HOME")
            .envs(home.map(|home| ("HOME", home)));
        contains(&world.expect(&mut command, 125), &[store]);
        world.expect(command.args(["--store", "/tmp/me/store", "--overwrite"]), 0);
    }
}

#[test]
fn machines_of_two_users_that_stay() {
    let Some(world) = World::new("machines_of_two_users_that_stay") else {
        return;
    };
    let bob = |arguments: &[&str], code| world.expect(&mut world.vsc(them(), arguments), code);
    let mut machine = world.machine(me(), &["--control", "-o", "name=twin"]);
    let mut other = world.machine(them(), &["--control", "-o", "name=twin"]);
    let pid = format!("pid {}", machine.0.id());
    world.says(&["ctl", "twin"], 0, &["twin is running", &pid]);
    let pid = format!("pid {}", other.0.id());
    contains(&bob(&["ctl", "twin"], 0), &["twin is running", &pid]);
    let both = text(&run(Command::new("/mnt/bin/vsc-run").args(["ps", "--all"])).stdout);
    for pid in [machine.0.id(), other.0.id()] {
        contains(&both, &[&format!("twin  {pid} ")]);
    }
    // Killed, nothing but an empty directory that says whose it was is left, which the next look clears away.
    machine.kill();
    world.says(&["ps"], 0, &["no machine runs"]);
    world.ada(&["gc"], 0);
    assert!(
        below(&runtime(me()))
            .iter()
            .all(|path| *path == format!("{}/vsc", runtime(me())))
    );
    contains(&bob(&["ctl", "twin", "kill"], 0), &["the machine is ended"]);
    assert_eq!(other.0.wait().unwrap().code(), Some(137));

    for user in [me(), them()] {
        let run = |arguments: &[&str], code| world.expect(&mut world.vsc(user, arguments), code);
        run(
            &[
                "--save",
                "-o",
                "name=s",
                "-o",
                "guest.parameters=test=none spin",
            ],
            0,
        );
        contains(&run(&["start", "s", "--detach"], 0), &["s is running, pid"]);
        contains(&run(&["status", "s"], 0), &["s is running"]);
    }
    world.ada(&["stop", "s", "--force"], 0);
    world.says(&["status", "s"], 3, &["s is shut off"]);
    contains(&bob(&["status", "s"], 0), &["s is running"]);
    bob(&["stop", "s", "--force"], 0);
    bob(&["delete", "s"], 0);
}

#[test]
fn root_that_is_none() {
    let Some(world) = World::new("root_that_is_none") else {
        return;
    };
    let unshare = ["unshare", "-Ur", "vsc-run"];
    let tried = run(&mut World::command(
        me(),
        &[KVM],
        &["unshare", "-Ur", "true"],
    ));
    if !tried.status.success() {
        return common::skip(&format!(
            "no user namespace to be had: {}",
            text(&tried.stderr)
        ));
    }
    let inner = |arguments: &[&str], code| {
        let mut command = World::command(me(), &[KVM], &unshare);
        world.expect(command.args(arguments), code)
    };
    contains(&inner(&[], 0), &["end status=0"]);
    inner(&["doctor"], 0);
    // /run is not this root's: what belongs to a run is where the user's is.
    for mode in [None, Some(0o755), Some(0o700)] {
        if let Some(mode) = mode {
            fs::create_dir_all("/run/vsc").unwrap();
            fs::set_permissions("/run/vsc", PermissionsExt::from_mode(mode)).unwrap();
        }
        contains(&inner(&["--control", "-o", NOTHING], 0), &["vsc guest"]);
        contains(
            &inner(&["computation", "-o", NOTHING], 0),
            &["W-HOST", "container", "vsc guest"],
        );
        contains(&inner(&["gc"], 0), &["nothing to do"]);
    }
    contains(
        &inner(&["host", "apply", "computation"], 125),
        &["container"],
    );
    contains(
        &inner(&["-o", "memory.locked=true", "-o", "memory=64G"], 125),
        &["E-MEMLOCK"],
    );

    // As in a container: root, but /sys is read-only, and there are no cgroups.
    let script = "umount -l /sys/fs/cgroup; mount -o remount,ro,bind /sys";
    expect_code(&run(Command::new("sh").args(["-ec", script])), 0);
    let contained = |arguments: &[&str], code| {
        let mut command = Command::new("/mnt/bin/vsc-run");
        command
            .stdin(Stdio::null())
            .env("HOME", "/tmp/root")
            .args(arguments);
        world.expect(&mut command, code)
    };
    contains(&contained(&["-o", NOTHING], 0), &["vsc guest"]);
    contains(
        &contained(&["computation", "-o", NOTHING], 0),
        &["W-HOST", "vsc guest"],
    );
    contains(
        &contained(&["host", "apply", "computation"], 125),
        &["in container"],
    );
    contains(
        &contained(&["-o", "limits.pids_max=100"], 125),
        &["E-CGROUP", "timeout"],
    );
    contains(
        &contained(&["-o", "memory.hugepages=1G", "-o", "memory=512G"], 125),
        &["E-HUGEPAGES"],
    );
}

#[test]
fn images_and_networks_that_are_looked_at() {
    let Some(world) = World::new("images_and_networks_that_are_looked_at") else {
        return;
    };
    let image = world.file(me(), "fs.img", 0o644, &[0; 4 << 20]);
    let tree = world.file(me(), "word", 0o644, b"a word\n");
    let script = format!("mke2fs -q -F {image}; debugfs -w -R 'write {tree} word' {image}");
    expect_code(&run(Command::new("sh").args(["-ec", &script])), 0);
    world.says(&["image", "ls", &format!("{image}:/")], 0, &["word"]);
    let word = format!("{image}:/word");
    world.says(&["image", "cat", &word], 0, &["a word\n"]);
    world.ada(&["image", "cp", &word, "/tmp/me/"], 0);
    assert_eq!(fs::read("/tmp/me/word").unwrap(), b"a word\n");

    let mut bridge = Command::new("unshare");
    let script = "mount -t sysfs s /sys; ip link add br0 type bridge; mkdir -p /mnt/etc/vsc; \
                  cp /etc/passwd /etc/group /mnt/etc; echo 'allow br0' >/mnt/etc/vsc/helper.conf; \
                  mount --bind /mnt/etc /etc; \"$@\"; setcap cap_net_admin+ep /mnt/bin/vsc-helper; \"$@\"";
    let plan = world.vsc(
        me(),
        &[
            "net",
            "plan",
            "-o",
            "nets.0.type=bridge",
            "-o",
            "nets.0.source=br0",
        ],
    );
    bridge
        .args(["-mn", "sh", "-ec", script, "sh"])
        .arg(plan.get_program())
        .args(plan.get_args());
    bridge.env("PATH", "/mnt/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let said = world.expect(&mut bridge, 0);
    let powerless =
        "/mnt/bin/vsc-helper has no CAP_NET_ADMIN; root gives it: sudo setcap cap_net_admin+ep";
    contains(
        &said,
        &[
            "ip tuntap add",
            "ip link set",
            "master br0 up",
            powerless,
            "nets: [{type: user}]",
        ],
    );
    assert_eq!(said.matches(powerless).count(), 1, "{said}");
    contains(&said, &["done by /mnt/bin/vsc-helper"]);
    let helper = world.expect(
        &mut World::command(me(), &[KVM], &["sh", "-c", "vsc-helper br0 1; exit 1"]),
        1,
    );
    contains(&helper, &["vsc-helper: "]);
}
