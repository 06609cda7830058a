//! What the host gives a machine: memory that is locked, there, or its own; CPUs, policies, priorities; and what is
//! said where this host or this user cannot.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{expect_code, finish, have_kvm, process, run, skip, text, vsc};

/// A built-in guest that runs until it is ended, started with `options`: it has greeted.
fn spinning(options: &[&str]) -> Child {
    let mut command = vsc();
    for option in ["guest.parameters=test=none hello spin", "memory=64M"] {
        command.args(["-o", option]);
    }
    for option in options {
        command.args(["-o", option]);
    }
    process::spinning(&mut command)
}

fn end(child: Child) {
    process::kill(child.id(), libc::SIGTERM);
    expect_code(&finish(child), 143);
}

/// A line of a /proc/…/status.
fn status(path: PathBuf, name: &str) -> String {
    let all = fs::read_to_string(path.join("status")).unwrap();
    line_of(&all, name)
}

fn line_of(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// KiB in a line of /proc/PID/status.
fn kib(child: &Child, name: &str) -> u64 {
    let line = status(format!("/proc/{}", child.id()).into(), name);
    line.trim_end_matches(" kB").parse().unwrap()
}

/// A thread as the host runs it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    name: String,
    cpus: String,
    policy: i32,
    priority: u32,
}

/// That the threads are these: a thread may take a moment to be there, and to have its name.
#[track_caller]
fn seated(child: &Child, wanted: &[Seat]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while seats_now(child) != wanted && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(seats_now(child), wanted);
}

/// All threads, by name.
fn seats_now(child: &Child) -> Vec<Seat> {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let mut all: Vec<Seat> = tasks
        .filter_map(|task| {
            // A thread may end meanwhile.
            let path = task.ok()?.path();
            let read = |name| fs::read_to_string(path.join(name)).ok();
            let (stat, status, name) = (read("stat")?, read("status")?, read("comm")?);
            let (_, rest) = stat.rsplit_once(')').unwrap();
            // proc_pid_stat(5): the state is the third field, rt_priority the 40th, policy the 41st.
            let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3).unwrap().to_owned();
            Some(Seat {
                name: name.trim().into(),
                cpus: line_of(&status, "Cpus_allowed_list"),
                policy: field(41).parse().unwrap(),
                priority: field(40).parse().unwrap(),
            })
        })
        .collect();
    // KVM's own, which it makes of a vCPU's thread.
    all.retain(|seat| !seat.name.starts_with("kvm-"));
    all.sort();
    all
}

fn seat(name: &str, cpus: &str, policy: i32, priority: u32) -> Seat {
    Seat {
        name: name.into(),
        cpus: cpus.into(),
        policy,
        priority,
    }
}

/// The CPUs of this test, where there are two at least and they are the first ones.
fn two_cpus() -> Option<String> {
    let all = status("/proc/self".into(), "Cpus_allowed_list");
    let two = all.starts_with("0-");
    if !two {
        skip("a host with two CPUs that this test may use");
    }
    two.then_some(all)
}

#[test]
fn threads_run_where_they_are_told_and_the_others_where_they_were() {
    let (true, Some(all)) = (have_kvm(), two_cpus()) else {
        return;
    };
    let child = spinning(&[
        "cpu.count=3",
        "cpu.pin=[{vcpu: 0, cpus: \"1\"}, {vcpu: 2, cpus: \"0-1,^1\"}]",
        "cpu.emulator_cpus=0",
        "cpu.scheduler=batch",
    ]);
    let (other, batch) = (libc::SCHED_OTHER, libc::SCHED_BATCH);
    seated(
        &child,
        &[
            seat("io0", "0", other, 0),
            seat("vcpu0", "1", batch, 0),
            seat("vcpu1", &all, batch, 0),
            seat("vcpu2", "0", batch, 0),
            seat("vsc-run", "0", other, 0),
        ],
    );
    end(child);
    let child = spinning(&["cpu.pin=[{cpus: \"1\"}]"]);
    seated(
        &child,
        &[
            seat("io0", &all, other, 0),
            seat("vcpu0", "1", other, 0),
            seat("vsc-run", &all, other, 0),
        ],
    );
    end(child);
}

/// Whether anybody here gets real time: a cgroup of the CPU controller may have none to give, whatever one's rights.
fn real_time() -> bool {
    let tried = Command::new("chrt").args(["-f", "2", "true"]).status();
    let works = tried.is_ok_and(|status| status.success());
    if !works {
        skip("a cgroup and rights that give real time (chrt -f 2 true)");
    }
    works
}

#[test]
fn a_machine_that_starts_again_runs_where_it_ran() {
    let (true, Some(_)) = (have_kvm(), two_cpus()) else {
        return;
    };
    for options in [
        &["cpu.emulator_cpus=0", "cpu.scheduler=batch"][..],
        &["cpu.scheduler=fifo", "cpu.emulator_cpus=0"],
        &["memory.locked=true", "memory.allocation=immediate"],
    ] {
        if options.contains(&"cpu.scheduler=fifo") && !real_time() {
            continue;
        }
        let mut command = vsc();
        command.args([
            "-o",
            "guest.parameters=test=none reboot",
            "-o",
            "memory=64M",
        ]);
        command.args(["-o", "on_reboot=restart", "-o", "events.max_restarts=2"]);
        let output = run(command.args(options.iter().flat_map(|o| ["-o", o])));
        let said = text(&output.stderr);
        if said.contains("E-RTPRIO") || said.contains("E-MEMLOCK") {
            skip(&format!("the right to {options:?}"));
            continue;
        }
        // What the process gave up when it was confined it does not need again.
        let lives = text(&output.stdout).matches("vsc guest").count();
        assert_eq!(lives, 3, "{options:?}: {said}");
    }
}

#[test]
fn a_real_time_guest_that_spins_on_the_only_cpu_can_be_ended() {
    let (true, Some(_), true) = (have_kvm(), two_cpus(), real_time()) else {
        return;
    };
    let options = [
        "cpu.scheduler=fifo",
        "cpu.priority=5",
        "cpu.pin=[{cpus: \"1\"}]",
        "cpu.emulator_cpus=1",
    ];
    let mut command = vsc();
    command.args(options.iter().flat_map(|o| ["-o", o]));
    let probe = run(command.args(["-o", "guest.parameters=test=none"]));
    if probe.status.code() == Some(125) && text(&probe.stderr).contains("E-RTPRIO") {
        return skip("the right to real-time priorities");
    }
    expect_code(&probe, 0);
    let child = spinning(&options);
    let fifo = libc::SCHED_FIFO;
    seated(
        &child,
        &[
            seat("io0", "1", fifo, 6),
            seat("vcpu0", "1", fifo, 5),
            seat("vsc-run", "1", fifo, 6),
        ],
    );
    let start = Instant::now();
    end(child);
    let mut command = vsc();
    command.args(options.iter().flat_map(|o| ["-o", o]));
    command.args(["-o", "guest.parameters=spin", "--timeout", "300ms"]);
    expect_code(&run(&mut command), 124);
    // The host's own 5 % of each second would do it in time, too, but not at once.
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn memory_is_locked_or_there_or_the_process_own() {
    if !have_kvm() {
        return;
    }
    let child = spinning(&[]);
    assert_eq!(kib(&child, "VmLck"), 0);
    assert!(kib(&child, "RssShmem") < 32 << 10, "only what was touched");
    end(child);
    let child = spinning(&["memory.allocation=immediate"]);
    assert!(kib(&child, "RssShmem") >= 64 << 10);
    end(child);
    let parameters = "guest.parameters=test=none";
    let probe = run(vsc().args(["-o", "memory.locked=true", "-o", parameters]));
    if probe.status.code() == Some(125) && text(&probe.stderr).contains("E-MEMLOCK") {
        skip("the right to lock 256 MiB");
    } else {
        expect_code(&probe, 0);
        let child = spinning(&["memory.locked=true"]);
        assert_eq!(kib(&child, "VmLck"), 64 << 10);
        assert!(
            kib(&child, "RssShmem") < 32 << 10,
            "each page from its first use on"
        );
        end(child);
    }
    let child = spinning(&[
        "memory.source=anonymous",
        "memory.allocation=immediate",
        "name=own",
    ]);
    assert!(kib(&child, "RssAnon") >= 64 << 10);
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    let merging = fs::metadata("/sys/kernel/mm/ksm/run").is_ok();
    let mergeable = |maps: &str| {
        maps.lines()
            .any(|l| l.starts_with("VmFlags:") && l.contains(" mg"))
    };
    assert_eq!(mergeable(&maps), merging);
    let listed: Vec<serde_json::Value> =
        serde_json::from_slice(&run(vsc().args(["ps", "--json"])).stdout).unwrap();
    let ours = listed.iter().find(|m| m["pid"] == child.id()).unwrap();
    assert_eq!(ours["name"], "own");
    assert_eq!(ours["memory_bytes"], 64 << 20);
    end(child);
    let child = spinning(&["memory.source=anonymous", "memory.nosharepages=true"]);
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    assert!(!mergeable(&maps));
    end(child);
}

#[test]
fn huge_pages_that_are_not_there_are_counted() {
    let number = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    let (Some(free), Some(promised)) = (number("free_hugepages"), number("resv_hugepages")) else {
        return skip("a host with pages of 2 MiB");
    };
    if !have_kvm() || free - promised >= 128 {
        return skip("a host without 128 free pages of 2 MiB (the rig has a case with them)");
    }
    let output = run(vsc().args(["-o", "memory.hugepages=2M"]));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    // Whether the host could give more is another question on each host.
    assert!(
        said.contains("128") && said.contains("2 MiB") && said.contains(&format!("{free}")),
        "{said}"
    );
    // What a set recommends gives way, and is told where one asks.
    let output = run(vsc().args([
        "-v",
        "-o",
        "feature=memory_perf",
        "-o",
        "guest.parameters=test=none",
    ]));
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(
        said.contains("ordinary pages instead of 128 pages of 2 MiB"),
        "{said}"
    );
}

/// Runs us without rights over priorities and locked memory.
fn without_rights(options: &[&str]) -> std::process::Output {
    let program = vsc();
    let mut command = Command::new("setpriv");
    command
        .args([
            "--bounding-set=-sys_nice,-ipc_lock",
            "--inh-caps=-all",
            "prlimit",
        ])
        .args(["--memlock=65536:65536", "--rtprio=0:0"])
        .arg(program.get_program())
        .stdin(Stdio::null());
    for option in options {
        command.args(["-o", option]);
    }
    run(&mut command)
}

#[test]
fn what_this_user_may_not_is_an_error_with_numbers_or_left_out() {
    if !have_kvm() {
        return;
    }
    let probe = without_rights(&["guest.parameters=test=none"]);
    if probe.status.code() != Some(0) {
        return skip("setpriv and prlimit with the right to drop capabilities");
    }
    let output = without_rights(&["memory.locked=true", "cpu.scheduler=fifo", "cpu.priority=3"]);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    for wanted in [
        "E-MEMLOCK",
        "this process may lock 64 KiB",
        "268435456 bytes are needed",
        "memlock 262144",
        "E-RTPRIO",
        "RLIMIT_RTPRIO is 0, 4 is needed",
        "rtprio 4",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let output = without_rights(&["preset=soft-rt", "guest.parameters=test=none", "memory=64M"]);
    let said = text(&output.stderr);
    expect_code(&output, 0);
    for left in ["`memory.locked` is left out", "`cpu.scheduler` is left out"] {
        assert!(said.contains(left), "{left}: {said}");
    }
}

#[test]
fn cpus_that_it_may_not_use_are_named() {
    let Some(_) = two_cpus() else { return };
    let of = |wrapper: &[&str], option: &str| {
        let program = vsc();
        let mut command = Command::new(wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(program.get_program())
            .args(["-o", option])
            .stdin(Stdio::null());
        let output = run(&mut command);
        expect_code(&output, 125);
        text(&output.stderr)
    };
    let said = of(&["env"], "cpu.emulator_cpus=4000-4001");
    assert!(
        said.contains("E-CPU-HOST") && said.contains("CPU 4000-4001"),
        "{said}"
    );
    let said = of(&["taskset", "-c", "0"], "cpu.pin=[{cpus: \"0-1\"}]");
    assert!(said.contains("CPU 1 of this host (it may on 0)"), "{said}");
    let said = of(&["env"], "cpu.emulator_cpus=0,^0");
    assert!(said.contains("no CPUs at all"), "{said}");
    let said = of(&["env"], "memory.numa_nodes=1000");
    assert!(
        said.contains("E-NODE-HOST") && said.contains("node 1000"),
        "{said}"
    );
    let most = ["cpu.scheduler=fifo", "cpu.priority=99"];
    let output = run(vsc().args(most.iter().flat_map(|o| ["-o", o])));
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("1 to 98"));
}

/// A host of `cpus` in a directory, for `plan`: what its kernel says, and what this user may.
fn host(dir: &common::TempDir, cpus: &str, isolated: &str, rights: bool) -> PathBuf {
    let capabilities = if rights { "0000000000804000" } else { "0" };
    for (path, text) in [
        ("sys/devices/system/cpu/online", cpus.to_owned()),
        ("sys/devices/system/cpu/isolated", isolated.to_owned()),
        ("sys/devices/system/node/has_memory", "0-1".to_owned()),
        (
            "proc/self/status",
            format!("CapEff:\t{capabilities}\nCpus_allowed_list:\t0-1\nMems_allowed_list:\t0-1\n"),
        ),
        (
            "proc/self/limits",
            "Max locked memory  65536  65536  bytes\nMax realtime priority  0  0  \n".to_owned(),
        ),
        ("proc/self/uid_map", "0 0 4294967295".to_owned()),
    ] {
        let path = dir.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir.path("")
}

#[test]
fn soft_rt_runs_as_far_as_the_host_lets_it() {
    let plan = |root: &std::path::Path, options: &[&str]| -> serde_json::Value {
        let mut command = vsc();
        command
            .args(["plan", "soft-rt", "--json", "--host-root"])
            .arg(root);
        command.args(["-o", "guest.parameters=test=none"]);
        for option in options {
            command.args(["-o", option]);
        }
        let output = run(&mut command);
        expect_code(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let shares = |plan: &serde_json::Value| -> Vec<String> {
        let rows = plan["monitor"]["shares"].as_array().unwrap();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        rows.iter()
            .map(|row| format!("{}: {}", text(row, "what"), text(row, "how")))
            .collect()
    };
    let memory = "memory: 1 GiB in a memfd, pages of 2 MiB (ordinary ones where there are too few), all there before the start";
    let eight = common::TempDir::new("rt-8");
    let root = host(&eight, "0-7", "2-7", true);
    let planned = plan(&root, &["memory.numa_nodes=1"]);
    assert_eq!(
        shares(&planned),
        [
            &format!("{memory}, never swapped out, from NUMA nodes 1"),
            "vcpu0: CPU 2, fifo, priority 1",
            "vcpu1: CPU 3, fifo, priority 1",
            "other threads: fifo, priority 2",
        ],
        "{planned}"
    );
    // The machine that runs and the one that libvirt would run are one.
    assert_eq!(planned["domain"]["cpu"]["pin"][1]["cpus"], "3");
    let two = common::TempDir::new("rt-2");
    let planned = plan(&host(&two, "0-1", "", true), &[]);
    assert_eq!(
        shares(&planned),
        [
            &format!("{memory}, never swapped out"),
            "vcpu0: fifo, priority 1",
            "vcpu1: fifo, priority 1",
            "other threads: fifo, priority 2",
        ]
    );
    assert!(planned["warnings"].to_string().contains("W-ISOLCPUS"));
    let nobody = common::TempDir::new("rt-0");
    let planned = plan(&host(&nobody, "0-1", "", false), &[]);
    assert_eq!(shares(&planned), [memory]);
    let left_out = planned["monitor"]["left_out"].to_string();
    for key in ["memory.locked", "cpu.scheduler"] {
        assert!(left_out.contains(key), "{left_out}");
    }
}

/// A thread that computes under such a limit gets SIGXCPU and then SIGKILL, which no capability keeps off.
#[test]
fn a_limit_of_real_time_is_told_before_it_kills() {
    if !have_kvm() {
        return;
    }
    let limited = |options: &[&str]| {
        let mut command = Command::new("prlimit");
        command
            .arg("--rttime=200000:200000")
            .arg(vsc().get_program());
        for option in options {
            command.args(["-o", option]);
        }
        run(command.stdin(Stdio::null()))
    };
    let output = limited(&["cpu.scheduler=fifo", "guest.parameters=test=none spin"]);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    for wanted in ["E-RTTIME", "RLIMIT_RTTIME is 200000 microseconds"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let none = "guest.parameters=test=none";
    let output = limited(&["preset=soft-rt", none, "memory=64M"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(said.contains("`cpu.scheduler` is left out"), "{said}");
    expect_code(&limited(&[none]), 0);
}

#[test]
fn plan_shows_the_cgroup_and_what_limits_its_slice() {
    let dir = common::TempDir::new("slice");
    let root = host(&dir, "0-1", "", true);
    for (file, text) in [
        ("cgroup.controllers", "cpu io memory pids"),
        ("cgroup.subtree_control", "memory pids"),
        ("cgroup.procs", "1"),
        ("machine.slice/cgroup.procs", ""),
        ("machine.slice/cgroup.subtree_control", ""),
    ] {
        let path = dir.path(&format!("sys/fs/cgroup/{file}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(
        dir.path("proc/self/cgroup"),
        "0::/user.slice/session-1.scope\n",
    )
    .unwrap();
    fs::write(
        dir.path("proc/meminfo"),
        "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
    )
    .unwrap();
    let output = run(vsc()
        .args(["plan", "--host-root"])
        .arg(&root)
        .args(["-o", "limits.slice=machine.slice", "-o", "memory=4G"])
        .args(["-o", "limits.memory_max=5G", "-o", "limits.cpu_max=150%"]));
    expect_code(&output, 0);
    let said = text(&output.stdout);
    for wanted in [
        "In the cgroup /sys/fs/cgroup/machine.slice/vsc-vsc-PID",
        "limits.memory_max  memory.max  5368709120",
        "limits.cpu_max     cpu.max     150000 100000",
        "/sys/fs/cgroup/cgroup.subtree_control: \"memory pids\" → \"cpu io memory pids\"",
        "systemctl set-property machine.slice MemoryMax=14336M",
        "/etc/systemd/system/machine.slice.d/90-MemoryMax.conf",
        "one machine can still starve the others",
    ] {
        assert!(said.contains(wanted), "{wanted}:\n{said}");
    }
    // The limit of libvirt's page: RAM and 256 MiB; less than that is none.
    for (limit, code) in [("4456448K", 0), ("4300M", 125)] {
        let limit = format!("memory.hard_limit={limit}");
        let mut command = vsc();
        command.args(["plan", "--json", "--host-root"]).arg(&root);
        let output = run(command.args(["-o", "memory=4G", "-o", &limit]));
        expect_code(&output, 0);
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(plan["monitor"]["runs"], code == 0, "{plan}");
    }
}
