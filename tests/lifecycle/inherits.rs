//! Where it lives: what it has from whoever started it, and nothing else.

use super::*;

/// What a process has from its parent, from inside that very environment.
fn inherited(pid: u32) -> Vec<(String, String)> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut all = vec![
        (
            "cgroup".into(),
            fs::read_to_string(proc.join("cgroup")).unwrap(),
        ),
        (
            "limits".into(),
            fs::read_to_string(proc.join("limits")).unwrap(),
        ),
        (
            "oom".into(),
            fs::read_to_string(proc.join("oom_score_adj")).unwrap(),
        ),
    ];
    let status = fs::read_to_string(proc.join("status")).unwrap();
    for name in [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "CapEff",
        "CapBnd",
        "Cpus_allowed",
        "Mems_allowed",
        "NoNewPrivs",
        "Seccomp",
    ] {
        let line = status
            .lines()
            .find(|l| l.split(':').next() == Some(name))
            .unwrap_or("none");
        all.push((name.into(), line.into()));
    }
    for space in fs::read_dir(proc.join("ns")).unwrap() {
        let space = space.unwrap();
        all.push((
            space.file_name().to_string_lossy().into(),
            fs::read_link(space.path()).unwrap().display().to_string(),
        ));
    }
    all
}

#[test]
fn it_lives_where_it_was_started() {
    if !have_kvm() {
        return;
    }
    // One of those that this test may use.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let allowed = lines.find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
    let cpu = allowed.unwrap().trim().rsplit([',', '-']).next().unwrap();
    for wrapper in [
        &["env"][..],
        &["taskset", "-c", cpu],
        &["unshare", "-n"],
        &["sh", "-c", "umask 0137; ulimit -n 300; exec \"$@\"", "sh"],
        &["nice", "-n", "5"],
    ] {
        let mut command = guest("test=none hello spin");
        // What confinement changes on purpose is for tests/sandbox.rs.
        command.arg("--no-sandbox");
        // The same wrapper around a program that only waits tells what to expect.
        let start = |program: &std::ffi::OsStr, arguments: Vec<std::ffi::OsString>| {
            Command::new(wrapper[0])
                .args(&wrapper[1..])
                .arg(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut plain = start(
            "sh".as_ref(),
            vec!["-c".into(), "echo started; read x".into()],
        );
        let mut first = [0; 8];
        if plain
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .is_err()
        {
            plain.wait().unwrap();
            skip(&format!("{wrapper:?} does not work here"));
            continue;
        }
        let mut ours = greeted(start(
            command.get_program(),
            command.get_args().map(ToOwned::to_owned).collect(),
        ));
        let (mut theirs, mut of_ours) = (inherited(plain.id()), inherited(ours.id()));
        if wrapper[0] == "unshare" {
            // A namespace each.
            theirs.retain(|(name, _)| name != "net");
            let own = fs::read_link("/proc/self/ns/net")
                .unwrap()
                .display()
                .to_string();
            of_ours.retain(|(name, value)| name != "net" || *value == own);
        }
        assert_eq!(of_ours, theirs, "{wrapper:?}");
        // Every thread, not only the first.
        let allowed = |task: &Path| {
            let status = fs::read_to_string(task.join("status")).unwrap();
            status
                .lines()
                .find(|l| l.starts_with("Cpus_allowed:"))
                .unwrap()
                .to_owned()
        };
        let main = allowed(Path::new(&format!("/proc/{}", ours.id())));
        for task in fs::read_dir(format!("/proc/{}/task", ours.id())).unwrap() {
            assert_eq!(allowed(&task.unwrap().path()), main);
        }
        kill(ours.id(), libc::SIGTERM);
        assert_eq!(ours.wait().unwrap().code(), Some(143));
        drop(plain.stdin.take());
        plain.wait().unwrap();
    }
}

#[test]
fn it_is_in_the_namespaces_and_the_cgroup_of_its_caller() {
    if !have_kvm() {
        return;
    }
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return skip("other namespaces and cgroups are root's");
    }
    let v2 = Path::new("/sys/fs/cgroup/cgroup.procs").exists();
    let above = if v2 {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/freezer"
    };
    let group = Path::new(above).join(format!("vsc-test-{}", std::process::id()));
    if fs::create_dir(&group).is_err() {
        return skip("no cgroup to be made");
    }
    let mut plain = Command::new("unshare")
        .args([
            "-nuimC",
            "sh",
            "-c",
            "echo $$ >\"$0/cgroup.procs\"; echo started; read x",
        ])
        .arg(&group)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 8];
    plain
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    let command = guest("test=none hello spin");
    let ours = Command::new("nsenter")
        .args([
            "-t",
            &plain.id().to_string(),
            "-n",
            "-u",
            "-i",
            "-m",
            "-C",
            "sh",
            "-c",
        ])
        .args(["echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
        .arg(&group)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut ours = greeted(ours.unwrap());
    let names = [
        "cgroup",
        "net",
        "uts",
        "ipc",
        "mnt",
        "pid",
        "user",
        "Cpus_allowed",
        "Mems_allowed",
    ];
    let here = inherited(std::process::id());
    let (theirs, of_ours) = (inherited(plain.id()), inherited(ours.id()));
    for name in names {
        let of = |all: &[(String, String)]| {
            all.iter()
                .filter(|(n, _)| n == name)
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&of_ours), of(&theirs), "{name}");
        assert!(!of(&of_ours).is_empty());
        let own = !matches!(name, "pid" | "user" | "Cpus_allowed" | "Mems_allowed");
        assert_eq!(of(&of_ours) != of(&here), own, "{name}");
    }
    kill(ours.id(), libc::SIGTERM);
    assert_eq!(ours.wait().unwrap().code(), Some(143));
    drop(plain.stdin.take());
    plain.wait().unwrap();
    fs::remove_dir(&group).unwrap();
}
