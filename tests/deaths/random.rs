//! Killed at a random moment, by a random hand.

use super::*;

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

/// Waits for a child that must end now.
fn ended(child: &mut Child, what: &str) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
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

/// Waits until a run has a handle on its parent, or has ended.
fn knows_its_parent(pid: u32) {
    soon(|| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut links = fds
            .into_iter()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links.any(|link| link.to_string_lossy().contains("pidfd")) || !alive(pid)
    });
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
        knows_its_parent(pid);
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
    if !inside("random::two_hundred_deaths_leave_the_host_as_it_was") {
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
