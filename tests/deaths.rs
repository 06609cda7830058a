//! Life and death: whatever ends a run, at whatever moment, the host is afterwards as it was before.
//!
//! The tests run in namespaces of their own (processes, mounts, network, IPC), so that a picture of the whole host can
//! be taken and compared. What a run kills it with, and when, comes from a seed; a failure tells it, and
//! `VSC_DEATHS_SEED=N` repeats it (as far as time repeats itself), `VSC_DEATHS=N` runs N instead of 200, `VSC_DEATHS_ONLY=NAME,…` those.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/inside.rs"]
mod inside;
#[path = "deaths/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::process::{PATIENCE, alive, kill, soon, time_to_end};
use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};

/// Whether this is the process inside; if not, runs this test there, once more.
fn inside(test: &str) -> bool {
    let probe = "mount -t tmpfs t /run; test -w /dev/kvm";
    have_kvm() && inside::inside(test, "-nmpif --mount-proc", probe)
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
        let ours = locked_as(&self.dir.path(""));
        let locks = read("/proc/locks");
        let locks = locks.lines().filter_map(|line| {
            let (_, lock) = line.split_once(": ")?;
            let mut words = lock.split_ascii_whitespace();
            words.any(|word| ours.contains(word)).then_some(lock)
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
        .filter(|pid| alive(*pid))
        .map(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = text(&words).replace('\0', " ");
            format!("{pid} {words}")
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

/// What is below a directory, by the names that it has in /proc/locks: MAJOR:MINOR:INODE, of the device that is
/// mounted there (stat tells another one where files are of several).
fn locked_as(dir: &Path) -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // proc_pid_mountinfo(5): the third word is the device, the fifth the place.
    let mounts = mounts.lines().filter_map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let (major, minor) = words[2].split_once(':')?;
        let device: (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        dir.starts_with(words[4])
            .then_some((words[4].len(), device))
    });
    // Of several at one place the last is on top.
    let (_, (major, minor)) = mounts.max_by_key(|(length, _)| *length).unwrap();
    let inodes = inodes(dir).into_iter();
    inodes
        .map(|inode| format!("{major:02x}:{minor:02x}:{inode}"))
        .collect()
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

/// A knob of the tree that stands in for the host.
const KNOB: &str = "sys/kernel/mm/transparent_hugepage/enabled";

const SPIN: &str = "guest.parameters=test=none hello spin";

/// Waits until nobody is there but who was before.
fn settled(before: &BTreeSet<String>, what: &str) {
    let deadline = Instant::now() + PATIENCE;
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

/// What of a picture is the whole machine's: others change it, too.
const OF_ALL: [&str; 4] = ["memory: ", "cgroup: ", "/sys/", "/proc/sys/"];

#[track_caller]
fn compare(before: &BTreeSet<String>, world: &World, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = world.picture();
        let changed: Vec<_> = before.symmetric_difference(&after).collect();
        if changed.is_empty() {
            return;
        }
        // What others take, they give back; what we left stays.
        let of_all = |line: &&String| OF_ALL.iter().any(|of| line.starts_with(of));
        if !changed.iter().all(of_all) || Instant::now() >= deadline {
            let gone: Vec<_> = before.difference(&after).collect();
            let new: Vec<_> = after.difference(before).collect();
            panic!("{what}:\nnew {new:#?}\ngone {gone:#?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
        let program = format!("{} -o", command.get_program().display());
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
            let found = all.iter().find_map(|p| {
                p.split_once(' ')
                    .filter(|(_, words)| words.starts_with(&program))
            });
            found.and_then(|(pid, _)| pid.parse::<u32>().ok())
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
        let mut end_of_parents = || {
            kill(parent, libc::SIGKILL);
            if parent != shell.id() {
                kill(shell.id(), libc::SIGKILL);
            }
            shell.wait().unwrap();
        };
        if goes_on {
            end_of_parents();
            // What would end it comes at once; what does not come can only be waited for.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(machine(), Some(pid), "{how}");
            kill(pid, libc::SIGKILL);
        } else {
            let took = time_to_end(pid, end_of_parents);
            assert!(took < Duration::from_secs(1), "{how} {took:?}");
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
    // A place where something is mounted could not be removed.
    shell("umount full");
}
