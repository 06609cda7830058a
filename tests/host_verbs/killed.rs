//! Whoever is killed when: runs, wardens, or both.

use super::*;

#[test]
fn a_run_that_is_killed_is_put_back_by_its_warden() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("killed");
    let before = tree.whole();
    for (how, group) in [
        (libc::SIGKILL, false),
        (libc::SIGTERM, true),
        (libc::SIGINT, true),
        (libc::SIGHUP, true),
    ] {
        let child = tree.spinning("one");
        let warden = warden(&child).unwrap();
        signal(if group { -pid(&child) } else { pid(&child) }, how);
        // Nobody else holds the streams: this comes to an end.
        let output = finish(child);
        assert_ne!(output.status.code(), Some(0));
        soon(|| tree.whole() == before);
        soon(|| !alive(warden as u32));
    }
}

/// As in a container that has this host's /run: here the number of the run is another process's, or nobody's.
#[test]
fn a_run_in_another_pid_namespace_keeps_what_it_has() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("namespace");
    let before = tree.whole();
    let inside = |words: &[&str]| {
        let vsc = tree.vsc(words);
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(vsc.get_program())
            .args(vsc.get_args())
            .current_dir(tree.0.path(""));
        command
    };
    let probe = inside(&["host", "status"]).output().unwrap();
    if text(&probe.stderr).contains("unshare: ") {
        return skip(&text(&probe.stderr));
    }
    expect_code(&probe, 0);
    let run_inside = spinning(inside(&["one.yaml"]).process_group(0));
    let status = |output: Output| {
        expect_code(&output, 0);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let dead = status["changes"].as_array().unwrap().iter();
        dead.map(|change| change["dead"].as_bool().unwrap())
            .collect::<Vec<_>>()
    };
    let words = ["host", "status", "--json"];
    for output in [run(&mut tree.vsc(&words)), run(&mut inside(&words))] {
        assert_eq!(status(output), [false; 3]);
    }
    let gc = run(&mut tree.vsc(&["gc"]));
    expect_code(&gc, 0);
    assert_eq!(text(&gc.stdout), "nothing to do\n");
    // One here that wants the same is not the last one; its number is not the other's, wherever that is looked at.
    ended(tree.spinning("two"), libc::SIGTERM);
    assert_eq!(tree.read(SWAPPINESS), "10");
    // The first process of the namespace: with it goes everybody in there, its warden too.
    let unshare = pid(&run_inside);
    let first = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    signal(first.trim().parse().unwrap(), libc::SIGKILL);
    finish(run_inside);
    soon(|| status(run(&mut tree.vsc(&words))) == [true; 3]);
    expect_code(&run(&mut tree.vsc(&["gc"])), 0);
    assert_eq!(tree.whole(), before);
}

/// The kernel kills without a word; the warden, which is not in that cgroup, has one. Then nobody waits for it.
#[test]
fn a_run_that_its_memory_limit_ends_says_so() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("limit");
    for (file, text) in [
        ("cgroup.controllers", "cpu io memory pids"),
        ("cgroup.subtree_control", "memory pids"),
        ("cgroup.procs", "1"),
        ("machine.slice/cgroup.procs", ""),
        ("machine.slice/cgroup.subtree_control", ""),
    ] {
        tree.write(&format!("sys/fs/cgroup/{file}"), text);
    }
    for (oom, kills, said) in [
        (2, 1, Some("limits.memory_max")),
        (0, 1, Some("in a cgroup above")),
        (0, 0, None),
    ] {
        // The number of the process is known before it is this program.
        let mut command = Command::new("sh");
        command.args(["-c", "read word && exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_vsc-run"));
        command.arg("--host-root").arg(tree.0.path("root"));
        command.arg(tree.scenario("one")).args([
            "-o",
            "limits.slice=machine.slice",
            "-o",
            "limits.memory_max=768M",
        ]);
        command.env("NO_COLOR", "1").stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let cgroup = format!("sys/fs/cgroup/machine.slice/vsc-one-{}", child.id());
        for (file, text) in [
            ("cgroup.procs", String::new()),
            ("memory.max", "max\n".to_owned()),
            (
                "memory.events",
                format!("low 0\nmax 3\noom {oom}\noom_kill {kills}\n"),
            ),
        ] {
            tree.write(&format!("{cgroup}/{file}"), &text);
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let child = greeted(child);
        let warden = warden(&child).unwrap();
        signal(pid(&child), libc::SIGKILL);
        let output = finish(child);
        let told = text(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{told}");
        match said {
            Some(said) => assert!(told.contains(said), "{told}"),
            None => assert!(!told.contains("killed"), "{told}"),
        }
        soon(|| !alive(warden as u32));
    }
}

#[test]
fn a_warden_that_is_killed_is_done_without() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("warden");
    let before = tree.whole();
    let child = tree.spinning("one");
    signal(warden(&child).unwrap(), libc::SIGKILL);
    let output = ended(child, libc::SIGTERM);
    expect_code(&output, 128 + libc::SIGTERM);
    let gc = run(&mut tree.vsc(&["gc"]));
    expect_code(&gc, 0);
    assert_eq!(tree.whole(), before, "{}", text(&output.stderr));
}

#[test]
fn when_both_are_killed_the_next_run_or_gc_puts_it_back() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("both");
    let before = tree.whole();
    let killed = || {
        let child = tree.spinning("one");
        signal(warden(&child).unwrap(), libc::SIGKILL);
        ended(child, libc::SIGKILL);
        assert_eq!(tree.read(SWAPPINESS), "10");
    };
    killed();
    let status = tree.json(&["host", "status"]);
    assert_eq!(status["changes"][0]["dead"], true);
    let found = tree.json(&["gc", "--dry-run"]);
    let found = found["found"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|found| found["kept"] == false));
    assert_eq!(tree.read(SWAPPINESS), "10", "a dry run touches nothing");
    let found = tree.json(&["gc"]);
    assert_eq!(found["found"].as_array().unwrap().len(), 3);
    assert_eq!(tree.whole(), before);
    killed();
    // A run that wants nothing of the host itself.
    let next = run(&mut tree.vsc(&["-o", "guest.parameters=test=hello"]));
    expect_code(&next, 0);
    assert!(
        text(&next.stderr).contains("put back what the run of one, pid"),
        "{}",
        text(&next.stderr)
    );
    assert_eq!(tree.whole(), before);
    // A torn line is nothing.
    killed();
    let sound = tree.read(JOURNAL);
    tree.write(JOURNAL, &format!("{sound}00000000 {{"));
    tree.json(&["gc"]);
    assert_eq!(tree.whole(), before);
    // After a reboot the values are the kernel's own.
    killed();
    tree.write(BOOT, "another-boot\n");
    let found = tree.json(&["gc"]);
    let outcome = found["found"][0]["outcome"].as_str().unwrap();
    assert!(outcome.contains("reset by a reboot"), "{outcome}");
    assert!(!tree.at(JOURNAL).exists());
    assert_eq!(tree.read(SWAPPINESS), "10");
}

#[test]
fn runs_that_are_killed_at_any_moment_leave_nothing() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("random");
    let before = tree.whole();
    // How long set-up takes here and now.
    let started = Instant::now();
    let child = tree.spinning("one");
    let span = started.elapsed();
    ended(child, libc::SIGTERM);
    let (mut cut, mut round) = (0, 0);
    // The more rounds, the later the moments: on a host that gets busy they come late enough, too.
    while round < 60 || (cut <= 5 && round < 600) {
        let started = Instant::now();
        let child = tree
            .vsc(&["-q", "one.yaml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Moments spread over set-up and a little beyond.
        std::thread::sleep((span * round / 40).saturating_sub(started.elapsed()));
        let how = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT][round as usize % 3];
        if round % 4 == 3
            && let Some(warden) = warden(&child)
        {
            // SAFETY: a plain system call on a process that this test started.
            unsafe { libc::kill(warden, libc::SIGKILL) };
        }
        cut += usize::from(tree.at("run/vsc/host").exists());
        ended(child, how);
        round += 1;
    }
    // The last wardens may be at it.
    soon(|| {
        expect_code(&run(&mut tree.vsc(&["gc"])), 0);
        tree.whole() == before
    });
    assert!(cut > 5, "{cut} of them had begun");
}
