//! Saved machines that run: in the background, once at a time, killed and started again.

use super::*;

#[test]
fn a_run_here_ends_with_the_guests_code_and_is_remembered() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("here");
    home.save("a", "test=none exit=7");
    let result = home.0.path("result.json");
    home.expect(&["start", "a", "--result", result.to_str().unwrap()], 7);
    let result: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(result["exit_code"], 7);
    let status = home.run(&["status", "a"]);
    expect_code(&status, 3);
    assert_eq!(
        text(&status.stdout),
        "a is shut off; its last run: exited, exit code 7\n"
    );
}

#[test]
fn a_detached_vm_runs_until_it_is_stopped() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("detached");
    let place = home.save("a", LONG);
    assert_eq!(home.json(&["list"])[0]["state"], "shut off");
    let said = home.expect(&["start", "a", "--detach"], 0);
    let pid = home.pid("a");
    let log = place.join("console.log");
    assert_eq!(
        said,
        format!(
            "a is running, pid {pid}; its console is {}\n",
            log.display()
        )
    );
    assert_eq!(mode(&log), 0o600);
    // Its first byte ends the wait for it.
    soon(|| fs::read_to_string(&log).unwrap().starts_with("vsc guest\n"));
    expect_code(&home.run(&["status", "a"]), 0);
    let row = &home.json(&["list"])[0];
    assert_eq!(
        (&row["name"], &row["state"], &row["host"]),
        (&"a".into(), &"running".into(), &"localhost".into())
    );
    let machines = home.json(&["ps"]);
    let machine = machines
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["pid"] == pid);
    assert_eq!(machine.unwrap()["saved"], "a");
    // It has a session of its own, and nothing of ours.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split(' ')
        .nth(4)
        .unwrap()
        .to_owned();
    assert_eq!(session, pid.to_string());
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/fd/0")).unwrap(),
        Path::new("/dev/null")
    );
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/1")).unwrap(), log);
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    for arguments in [
        &["start", "a"][..],
        &["start", "a", "--detach"],
        &["delete", "a"],
        &["a.yaml", "--save", "--overwrite"],
    ] {
        let refused = home.expect(arguments, 125);
        assert!(
            refused.contains(&format!("a is already running, pid {pid}")),
            "{refused}"
        );
    }
    assert!(
        fs::read_to_string(&log).unwrap().starts_with("vsc guest\n"),
        "the log is still its own"
    );
    assert_eq!(home.expect(&["stop", "a"], 0), "a has ended\n");
    soon(|| !alive(pid));
    let status = home.run(&["status", "a"]);
    expect_code(&status, 3);
    assert!(
        text(&status.stdout).contains("interrupted, exit code 143"),
        "{status:?}"
    );
    assert_eq!(home.expect(&["stop", "a"], 0), "a is not running\n");
    assert_eq!(home.expect(&["delete", "a"], 0), "a is deleted\n");
    assert!(!place.exists());
    expect_code(&home.run(&["status", "a"]), 125);
}

#[test]
fn of_racing_starts_one_runs() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("starts");
    home.save("a", LONG);
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = home.vsc(&["start", "a", "--detach"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = racers.into_iter().map(finish).collect();
    let won = outputs
        .iter()
        .filter(|o| o.status.code() == Some(0))
        .count();
    assert_eq!(won, 1, "{outputs:?}");
    for lost in outputs.iter().filter(|o| o.status.code() != Some(0)) {
        expect_code(lost, 125);
        assert!(
            text(&lost.stderr).contains("a is already running"),
            "{lost:?}"
        );
    }
    home.expect(&["stop", "--force", "a"], 0);
    assert_eq!(home.json(&["status", "a"])["ended"]["outcome"], "killed");
}

#[test]
fn killed_it_is_shut_off_and_starts_again() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("killed");
    let place = home.save("a", LONG);
    for _ in 0..2 {
        home.expect(&["start", "a", "--detach"], 0);
        let pid = home.pid("a");
        kill(pid, libc::SIGKILL);
        soon(|| !alive(pid));
        assert_eq!(home.json(&["list"])[0]["state"], "shut off");
        assert_eq!(home.expect(&["stop", "a"], 0), "a is not running\n");
    }
    let mut names: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.yaml",
            "console.log",
            "domain.xml",
            "scenario.yaml",
            "state.json"
        ]
    );
}

#[test]
fn a_monitor_that_does_not_answer_is_waited_for_only_so_long() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("deaf");
    home.save("a", LONG);
    home.expect(&["start", "a", "--detach"], 0);
    let pid = home.pid("a");
    stop(pid);
    let refused = home.expect(&["stop", "a", "--timeout", "200ms"], 125);
    assert!(
        refused.contains("has not ended in 0.2 s; it was asked to, and --force ends it"),
        "{refused}"
    );
    home.expect(&["stop", "a", "--force"], 0);
    soon(|| !alive(pid));
}

#[test]
fn a_detached_start_that_fails_says_why() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("fails");
    // Before there is a machine: what is said comes here.
    let place = home.save("a", "test=none exit=3");
    fs::write(place.join("scenario.yaml"), "memory: 1\n").unwrap();
    let said = home.expect(&["start", "a", "--detach"], 125);
    assert!(
        said.contains("memory: 1") && said.contains("scenario.yaml:1:9"),
        "{said}"
    );
    assert!(!place.join("console.log").exists());
    // While it is built: what is said is in the log, and here.
    fs::write(
        place.join("scenario.yaml"),
        "serials: [\"file:/no/such/directory/log\"]\n",
    )
    .unwrap();
    let said = home.expect(&["start", "a", "--detach"], 125);
    assert!(
        said.contains("/no/such/directory/log") && said.contains("console.log"),
        "{said}"
    );
    let log = fs::read_to_string(place.join("console.log")).unwrap();
    assert!(log.contains("/no/such/directory/log"), "{log}");
    assert_eq!(home.json(&["status", "a"])["ended"]["exit_code"], 125);
    // A guest that is over before it said anything has its own code.
    fs::write(
        place.join("scenario.yaml"),
        "guest: test=none silent exit=9\n",
    )
    .unwrap();
    let said = home.expect(&["start", "a", "--detach"], 9);
    assert!(said.contains("a has ended already"), "{said}");
}

#[test]
fn images_are_made_at_the_first_start() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("images");
    home.0.write(
        "a.yaml",
        "guest: test=none exit=3\ndisks: [{path: d.img, size: 1M}]\n",
    );
    home.expect(&["a.yaml", "--save"], 0);
    let disk = home.0.path("d.img");
    for _ in 0..2 {
        home.expect(&["start", "a"], 3);
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 20);
    }
    let said = home.expect(&["delete", "a"], 0);
    assert_eq!(said, "a is deleted\n");
    assert!(disk.exists(), "a disk is deleted only when that is said");
    home.expect(&["a.yaml", "--save"], 0);
    fs::remove_file(&disk).unwrap();
    home.expect(&["start", "a"], 3);
    home.expect(&["delete", "a", "--disks"], 0);
    assert!(!disk.exists());
}

#[test]
fn a_saved_vm_runs_without_confinement_where_that_is_asked_for() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("unconfined");
    let place = home.save("vm", "{parameters: test=none hello spin}");
    let filtered = |home: &Home| {
        let pid = home.pid("vm");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().any(|line| line == "Seccomp:\t2")
    };
    for (more, confined) in [(&[][..], true), (&["--no-sandbox"][..], false)] {
        home.expect(&[&["start", "vm", "--detach"], more].concat(), 0);
        assert_eq!(filtered(&home), confined);
        home.expect(&["stop", "--force", "vm"], 0);
        let log = fs::read_to_string(place.join("console.log")).unwrap();
        assert_eq!(log.contains("not confined"), !confined, "{log}");
    }
    let said = home.expect(&["start", "vm", "--no-sandbox", "--on", "x"], 125);
    assert!(said.contains("--no-sandbox"), "{said}");
    let plan = home.json(&["plan", "--no-sandbox"]);
    assert_eq!(plan["sandbox"]["enabled"], false);
}
