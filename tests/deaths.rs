//! Life and death: whatever ends a run, at whatever moment, the host is afterwards as it was before.
//!
//! The tests run in namespaces of their own (processes, mounts, network, IPC), so that a picture of the whole host can
//! be taken and compared. What a run kills it with, and when, comes from a seed; a failure tells it, and
//! `VSC_DEATHS_SEED=N` repeats it (as far as time repeats itself), `VSC_DEATHS=N` runs N instead of 200, `VSC_DEATHS_ONLY=NAME,…` those.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/inside.rs"]
mod inside;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};

/// Whether this is the process inside; if not, runs this test there, once more.
fn inside(test: &str) -> bool {
    let probe = "mount -t tmpfs t /run; test -w /dev/kvm";
    have_kvm() && inside::inside(test, "-nmpif --mount-proc", probe)
}

/// xorshift64*: Marsaglia, Vigna.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

/// Places where something might be left, all of this test alone.
struct World {
    dir: TempDir,
    kernel: Option<PathBuf>,
}

const PLACES: [&str; 7] = ["tmp", "run", "state", "cache", "home", "cwd", "host"];

impl World {
    fn new(name: &str) -> Self {
        // Numbers of processes are this namespace's own, and so the same in others.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let dir = TempDir::new(&format!("deaths-{name}-{}", now.unwrap().as_nanos()));
        for place in PLACES {
            fs::create_dir(dir.path(place)).unwrap();
        }
        let world = Self {
            dir,
            kernel: kernel(),
        };
        let output = run(Command::new("sh").args([
            "-ec",
            "for place in /run /dev/shm; do mount -t tmpfs -o mode=755 tmpfs $place; done; ip link set lo up",
        ]));
        expect_code(&output, 0);
        for (path, text) in [
            (KNOB, "always [madvise] never\n".to_owned()),
            ("proc/meminfo", fs::read_to_string("/proc/meminfo").unwrap()),
            ("run/stays", String::new()),
        ] {
            let path = world.dir.path("host").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for name in ["a.img", "b.img"] {
            world.dir.write(&format!("cwd/{name}"), vec![7; 1 << 20]);
        }
        world
    }

    fn vsc(&self) -> Command {
        let mut command = vsc();
        command.current_dir(self.dir.path("cwd"));
        for (name, place) in [
            ("TMPDIR", "tmp"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_DATA_HOME", "state"),
            ("XDG_CACHE_HOME", "cache"),
            ("HOME", "home"),
        ] {
            command.env(name, self.dir.path(place));
        }
        command
    }

    /// What is there: one line each.
    fn picture(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut lines = |kind: &str, text: String| {
            all.extend(text.lines().map(|line| format!("{kind}: {line}")));
        };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        lines("process", processes().join("\n"));
        // Locks of open files are of no namespace: those of our files.
        let inodes = inodes(&self.dir.path(""));
        let locks = read("/proc/locks");
        let locks = locks.lines().filter_map(|line| {
            let (_, rest) = line.split_once(": ")?;
            let inode = rest
                .split([' ', ':'])
                .filter_map(|field| field.parse().ok());
            inode
                .into_iter()
                .any(|n: u64| inodes.contains(&n))
                .then_some(rest)
        });
        lines("lock", locks.collect::<Vec<_>>().join("\n"));
        let links = read("/proc/net/dev");
        let links = links
            .lines()
            .filter_map(|l| Some(l.split_once(':')?.0.trim()));
        lines("link", links.collect::<Vec<_>>().join("\n"));
        lines("mount", read("/proc/self/mountinfo"));
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            lines(table, read(&format!("/proc/net/{table}")));
        }
        let sockets = read("/proc/net/unix");
        let sockets = sockets.lines().filter(|l| l.contains(" 00010000 "));
        lines("listening", sockets.collect::<Vec<_>>().join("\n"));
        for kind in ["shm", "sem", "msg"] {
            lines(kind, read(&format!("/proc/sysvipc/{kind}")));
        }
        let memory = read("/proc/meminfo");
        let memory = memory.lines().filter(|l| l.starts_with("HugePages_"));
        lines("memory", memory.collect::<Vec<_>>().join("\n"));
        for knob in [
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/sys/kernel/mm/ksm/run",
            "/proc/sys/vm/swappiness",
            "/proc/sys/vm/nr_hugepages",
        ] {
            lines(knob, read(knob));
        }
        // Other tests have theirs, at the same time.
        let theirs = |group: &PathBuf| group.to_string_lossy().contains("/vsc-test-");
        for group in cgroups(Path::new("/sys/fs/cgroup"), 3)
            .into_iter()
            .filter(|g| !theirs(g))
        {
            lines("cgroup", group.display().to_string());
        }
        let places = PLACES.map(|place| self.dir.path(place));
        for place in places
            .iter()
            .map(|p| &**p)
            .chain([Path::new("/run"), Path::new("/dev/shm")])
        {
            for line in files(place) {
                lines("file", line);
            }
        }
        all
    }
}

/// Living processes other than this one and those above it.
fn processes() -> Vec<String> {
    let ours = [1, std::process::id()];
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| !ours.contains(pid))
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let dead = stat.rsplit_once(')')?.1.starts_with(" Z");
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = text(&words).replace('\0', " ");
            (!dead).then(|| format!("{pid} {words}"))
        })
        .collect()
}

fn cgroups(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for entry in entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        if entry.file_name().to_string_lossy().contains("vsc") {
            all.push(entry.path());
        }
        if depth > 0 {
            all.extend(cgroups(&entry.path(), depth - 1));
        }
    }
    all
}

fn inodes(dir: &Path) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        all.insert(metadata.ino());
        if metadata.is_dir() {
            all.extend(inodes(&path));
        }
    }
    all
}

/// Everything below a directory, with what tells that it is another.
fn files(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let mut hasher = DefaultHasher::new();
        if metadata.is_dir() {
            all.extend(files(&path));
        } else if metadata.is_file() && metadata.len() <= 1 << 21 {
            fs::read(&path).unwrap().hash(&mut hasher);
        }
        // What is kept on purpose: kernels in the form that guests map, whole.
        let kept = path.extension().is_some_and(|e| e == "elf")
            || path.ends_with("cache/vsc")
            // The place for the state of runs, as long as the system runs.
            || path.ends_with("run/vsc")
            || path.ends_with("cache/vsc/kernels");
        if !kept {
            let kind = match metadata.file_type() {
                kind if kind.is_dir() => "directory",
                kind if kind.is_socket() => "socket",
                kind if kind.is_fifo() => "fifo",
                kind if kind.is_symlink() => "link",
                _ => "file",
            };
            all.push(format!(
                "{} {kind} mode {:o}, {} bytes, {:x}",
                path.display(),
                metadata.mode() & 0o7777,
                if metadata.is_dir() { 0 } else { metadata.len() },
                hasher.finish()
            ));
        }
    }
    all
}

/// A way to run, and how long it takes if nobody ends it, about.
struct Flavour {
    name: &'static str,
    words: &'static [&'static str],
    longest: Duration,
    /// Files that it may make for good, whole: their size.
    makes: &'static [(&'static str, u64)],
}

const fn flavour(name: &'static str, words: &'static [&'static str], millis: u64) -> Flavour {
    Flavour {
        name,
        words,
        longest: Duration::from_millis(millis),
        makes: &[],
    }
}

/// A knob of the tree that stands in for the host.
const KNOB: &str = "sys/kernel/mm/transparent_hugepage/enabled";

const SPIN: &str = "guest.parameters=test=none hello spin";

const FLAVOURS: &[Flavour] = &[
    flavour(
        "tuned",
        &[
            "--host-root",
            "../host",
            "-o",
            "host.thp=always",
            "-o",
            SPIN,
        ],
        60,
    ),
    flavour(
        "tuned-control",
        &[
            "--host-root",
            "../host",
            "-o",
            "host.thp=never",
            "--control",
            "-o",
            SPIN,
        ],
        80,
    ),
    flavour("short", &["-o", "guest.parameters=test=none"], 30),
    flavour("self-test", &[], 60),
    flavour("spinning", &["-o", SPIN], 60),
    flavour("panicking", &["-o", "guest.parameters=panic"], 40),
    flavour(
        "restarting",
        &[
            "-o",
            "guest.parameters=reboot",
            "-o",
            "on_reboot=restart",
            "-o",
            "events.max_restarts=20",
        ],
        120,
    ),
    flavour(
        "disks",
        &[
            "-o",
            "disks.0.path=a.img",
            "-o",
            "disks.0.read_only=true",
            "-o",
            "disks.1.path=b.img",
            "-o",
            SPIN,
        ],
        60,
    ),
    Flavour {
        makes: &[("made.img", 4 << 20)],
        ..flavour(
            "made",
            &["-o", "disk.path=made.img", "-o", "disk.size=4M", "-o", SPIN],
            60,
        )
    },
    flavour("control", &["--control", "-o", SPIN], 60),
    flavour(
        "serial",
        &["-o", "serials.0.to=unix:serial.socket", "-o", SPIN],
        60,
    ),
    flavour(
        "everything",
        &[
            "--control",
            "-o",
            "serials.0.to=unix:serial.socket",
            "-o",
            "disk.path=a.img",
            "-o",
            "disks.0.read_only=true",
            "-o",
            "rng=true",
            "-o",
            "consoles.0.name=c",
            "-o",
            "consoles.0.tty=unix:port.socket",
            "-o",
            "cpus=3",
            "-o",
            SPIN,
        ],
        80,
    ),
];

/// What a run with a Linux takes, on a busy host.
const LINUX: Flavour = flavour(
    "linux",
    &["-o", "limits.stop_grace=100ms", "--", "sleep", "100"],
    1200,
);

#[derive(Debug, Clone, Copy)]
enum Killer {
    Signal(i32),
    /// First this one, a moment later SIGKILL.
    Both(i32),
    /// SIGKILL to the shell that started it.
    Parent,
}

const KILLERS: [Killer; 8] = [
    Killer::Signal(libc::SIGKILL),
    Killer::Signal(libc::SIGKILL),
    Killer::Signal(libc::SIGTERM),
    Killer::Signal(libc::SIGINT),
    Killer::Signal(libc::SIGHUP),
    Killer::Both(libc::SIGTERM),
    Killer::Both(libc::SIGHUP),
    Killer::Parent,
];

fn kill(pid: u32, signal: i32) {
    // SAFETY: a plain system call on a process of this test, which has not been waited for.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Waits for a child that must end now.
fn ended(child: &mut Child, what: &str) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: it lives on; {:?}",
            processes()
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until nobody is there but who was before; they have seconds, not minutes.
fn settled(before: &BTreeSet<String>, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let there = processes();
        let new: Vec<_> = there
            .iter()
            .filter(|p| !before.contains(&format!("process: {p}")))
            .collect();
        if new.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: still there: {new:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[track_caller]
fn compare(before: &BTreeSet<String>, world: &World, what: &str) {
    let after = world.picture();
    let gone: Vec<_> = before.difference(&after).collect();
    let new: Vec<_> = after.difference(before).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{what}:\nnew {new:#?}\ngone {gone:#?}"
    );
}

/// Waits until a run has a handle on its parent, or has ended.
fn knows_its_parent(pid: u32, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut links = fds
            .into_iter()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let knows = links.any(|link| link.to_string_lossy().contains("pidfd"));
        if knows
            || !processes()
                .iter()
                .any(|p| p.starts_with(&format!("{pid} ")))
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: it has no handle on its parent"
        );
        std::thread::yield_now();
    }
}

/// One run and its death.
fn die(world: &World, flavour: &Flavour, killer: Killer, delay: Duration, what: &str) {
    let mut command = world.vsc();
    if flavour.name == LINUX.name {
        command.arg("--kernel").arg(world.kernel.as_ref().unwrap());
    }
    command.args(flavour.words);
    let (mut child, pid) = match killer {
        Killer::Parent => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "\"$@\" >/dev/null 2>&1 & echo $!; wait", "sh"]);
            shell.arg(command.get_program()).args(command.get_args());
            shell.current_dir(command.get_current_dir().unwrap());
            shell.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
            let mut shell = shell
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(shell.stdout.as_mut().unwrap())
                .read_line(&mut line)
                .unwrap();
            let pid = line.trim().parse::<u32>().unwrap();
            (shell, pid)
        }
        _ => {
            let child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let pid = child.id();
            (child, pid)
        }
    };
    if let Killer::Parent = killer {
        // A parent that dies before the program's first instruction was never its parent.
        knows_its_parent(pid, what);
    }
    std::thread::sleep(delay);
    match killer {
        Killer::Signal(signal) => kill(pid, signal),
        Killer::Both(first) => {
            kill(pid, first);
            std::thread::sleep(delay / 10);
            kill(pid, libc::SIGKILL);
        }
        Killer::Parent => kill(child.id(), libc::SIGKILL),
    }
    let status = ended(&mut child, what);
    if let Killer::Signal(signal) = killer {
        // Ours, as a signal's or as a number; or it had ended by itself.
        let by = status.signal().or(status.code().map(|code| code - 128));
        let own = status.code().is_some_and(|code| code < 124);
        assert!(by == Some(signal) || own, "{what}: {status}");
    }
}

#[test]
fn two_hundred_deaths_leave_the_host_as_it_was() {
    if !inside("two_hundred_deaths_leave_the_host_as_it_was") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("VSC_DEATHS_SEED").unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        time.unwrap().as_nanos() as u64 | 1
    });
    let rounds = number("VSC_DEATHS").unwrap_or(200);
    let mut dice = Dice(seed);
    let world = World::new("random");
    let before = world.picture();
    let begin = Instant::now();
    let mut linux = 0;
    let only = std::env::var("VSC_DEATHS_ONLY").unwrap_or_default();
    let flavours: Vec<_> = FLAVOURS
        .iter()
        .filter(|f| only.is_empty() || only.split(',').any(|o| o == f.name))
        .collect();
    for round in 0..rounds {
        let flavour = match dice.roll(20) {
            // Each takes its time.
            0 if world.kernel.is_some() => {
                linux += 1;
                &LINUX
            }
            _ => flavours[dice.roll(flavours.len())],
        };
        let killer = KILLERS[dice.roll(KILLERS.len())];
        let delay = flavour.longest * dice.roll(1000) as u32 / 1000;
        let what = format!(
            "VSC_DEATHS_SEED={seed}, round {round}: {}, {killer:?} after {delay:?}",
            flavour.name
        );
        die(&world, flavour, killer, delay, &what);
        settled(&before, &what);
        for (name, size) in flavour.makes {
            let path = world.dir.path("cwd").join(name);
            match fs::metadata(&path) {
                Ok(made) => {
                    assert_eq!(made.len(), *size, "{what}: {name} is not whole");
                    fs::remove_file(path).unwrap();
                }
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{what}"),
            }
        }
        compare(&before, &world, &what);
    }
    let took = begin.elapsed();
    let _ = writeln!(
        std::io::stderr(),
        "{rounds} deaths, {linux} of them with Linux, in {took:.1?}; seed {seed}"
    );
    gc_finds_nothing(&world);
    compare(&before, &world, "gc");
}

fn gc_finds_nothing(world: &World) {
    let output = run(world.vsc().args(["gc", "--dry-run", "--json"]));
    expect_code(&output, 0);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["found"], serde_json::json!([]));
}

#[test]
fn it_dies_with_its_parent_unless_it_was_told_to_go_on() {
    if !inside("it_dies_with_its_parent_unless_it_was_told_to_go_on") {
        return;
    }
    let world = World::new("parent");
    let before = world.picture();
    for (how, goes_on) in [
        ("", false),
        ("trap \"\" HUP; ", true),
        ("exec setpriv --no-new-privs ", false),
    ] {
        let command = world.vsc();
        let mut shell = Command::new("sh");
        // A second process stays between us and it, unless it is to take the shell's place.
        let script = format!("sh -c '{how}\"$@\"' sh \"$@\" & echo $!; wait");
        shell
            .args(["-c", &script, "sh"])
            .arg(command.get_program())
            .args(["-o", SPIN]);
        shell.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        shell.current_dir(world.dir.path("cwd"));
        let mut shell = shell
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(shell.stdout.take().unwrap());
        let (mut first, mut greeting) = (String::new(), String::new());
        out.read_line(&mut first).unwrap();
        out.read_line(&mut greeting).unwrap();
        assert_eq!(greeting, "vsc guest\n");
        let machine = || {
            let all = processes();
            let found = all
                .iter()
                .find(|p| p.contains("debug/vsc-run -o") && !p.contains("sh -c"));
            found.and_then(|p| p.split(' ').next()?.parse::<u32>().ok())
        };
        let pid = machine().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let parent: u32 = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let begin = Instant::now();
        kill(parent, libc::SIGKILL);
        if parent != shell.id() {
            kill(shell.id(), libc::SIGKILL);
        }
        shell.wait().unwrap();
        if goes_on {
            // What would end it comes at once; what does not come can only be waited for.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(machine(), Some(pid), "{how}");
            kill(pid, libc::SIGKILL);
        } else {
            settled(&before, how);
            assert!(
                begin.elapsed() < Duration::from_secs(1),
                "{how} {:?}",
                begin.elapsed()
            );
        }
        settled(&before, how);
        compare(&before, &world, how);
    }
}

#[test]
fn a_hundred_runs_with_state_leave_no_state() {
    if !inside("a_hundred_runs_with_state_leave_no_state") {
        return;
    }
    let world = World::new("hundred");
    let before = world.picture();
    for n in 0..100 {
        let output = run(world
            .vsc()
            .args(["--control", "-o", "name=n", "-o"])
            .arg(format!("guest.parameters=test=none exit={n}")));
        expect_code(&output, n);
    }
    settled(&before, "the last of them");
    compare(&before, &world, "after a hundred runs");
    gc_finds_nothing(&world);
}

#[test]
fn what_runs_out_ends_a_run_and_leaves_nothing() {
    if !inside("what_runs_out_ends_a_run_and_leaves_nothing") {
        return;
    }
    let world = World::new("out");
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        let output = run(command
            .arg("-ec")
            .arg(script)
            .current_dir(world.dir.path("cwd")));
        expect_code(&output, 0);
    };
    // A file system with a page left, and one with none.
    shell(
        "mkdir full; mount -t tmpfs -o size=64k t full; head -c 61440 /dev/zero >full/filler; test -e full/filler",
    );
    let before = world.picture();
    let ends = |arguments: &[&str], code: i32, needle: &str| {
        let output = run(world.vsc().args(arguments));
        expect_code(&output, code);
        let told = text(&output.stderr);
        assert!(told.contains(needle), "{arguments:?}: {told}");
        settled(&before, needle);
        compare(&before, &world, needle);
    };
    let short = "guest.parameters=test=none";
    shell("head -c 4096 /dev/zero >full/last || true");
    let before_full = world.picture();
    let output = run(world
        .vsc()
        .args(["-o", short, "--result", "full/result.json"]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("No space left"),
        "{}",
        text(&output.stderr)
    );
    compare(&before_full, &world, "a result that does not fit");
    let output = run(world.vsc().args([
        "-o",
        short,
        "-o",
        "disk.path=full/new.qcow2",
        "-o",
        "disk.size=1G",
        "-o",
        "disk.format=qcow2",
    ]));
    expect_code(&output, 125);
    compare(&before_full, &world, "an image that does not fit");
    shell("rm full/last");
    // The state of a run.
    shell("mount -t tmpfs -o size=4k t /run; head -c 4096 /dev/zero >/run/filler || true");
    let full_run = world.picture();
    let output = run(world.vsc().args(["-o", short, "--control"]));
    let told = text(&output.stderr);
    // A directory takes no page of a tmpfs, a file does.
    expect_code(&output, 125);
    assert!(
        told.contains("No space left") && told.contains("run.json"),
        "{told}"
    );
    settled(&full_run, "no room for the state");
    // Nor for the journal, of which the beginning may be there.
    expect_code(&run(world.vsc().arg("gc")), 0);
    compare(&full_run, &world, "no room for the state");
    shell("umount /run");
    compare(&before, &world, "as before");
    // A guest that dies.
    ends(
        &["-o", "guest.parameters=panic", "--control"],
        120,
        "panicked",
    );
    ends(&["-o", "guest.parameters=triple", "--control"], 121, "");
    // Address space, from less than the program itself needs to enough: it never hangs, and nothing stays.
    for mib in [1, 8, 16, 32, 64, 96, 128, 192, 256, 300, 320, 350, 400, 800] {
        let command = world.vsc();
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            &format!("ulimit -v {}; exec \"$@\"", mib * 1024),
            "sh",
        ]);
        shell
            .arg(command.get_program())
            .args(["--control", "-o", short]);
        shell.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let output = run(shell.current_dir(world.dir.path("cwd")));
        let what = format!("{mib} MiB: {}", output.status);
        assert!(!output.status.success() || mib >= 256, "{what}");
        assert!(
            mib < 800 || output.status.success(),
            "{what}: {}",
            text(&output.stderr)
        );
        settled(&before, &what);
        compare(&before, &world, &what);
    }
    gc_finds_nothing(&world);
}
