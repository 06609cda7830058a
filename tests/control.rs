//! The control socket of a run, and who sees a run at all.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/home.rs"]
mod home;
#[path = "common/inside.rs"]
mod inside;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::process::{greeted, soon};
use common::{expect_code, finish, run, skip, text};
use home::{Home, inside};
use serde_json::{Value, json};

fn connect(socket: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    BufReader::new(stream)
}

fn say(client: &mut BufReader<UnixStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).unwrap();
}

fn hear(client: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_run_that_asks_for_a_socket_has_one_and_no_other_has() {
    if !inside("a_run_that_asks_for_a_socket_has_one_and_no_other_has") {
        return;
    }
    let home = Home::new("one");
    let plain = home.machine(&[]);
    assert_eq!(home.runs(), [""; 0].map(PathBuf::from));
    end(plain);

    let child = home.machine(&["-o", "name=lab", "-o", "control=true"]);
    let [directory] = &home.runs()[..] else {
        panic!("{:?}", home.runs())
    };
    let socket = directory.join("control.sock");
    let of = |path: &Path| fs::symlink_metadata(path).unwrap();
    assert_eq!(of(directory).permissions().mode() & 0o7777, 0o700);
    assert_eq!(of(&socket).permissions().mode() & 0o7777, 0o600);
    assert!(of(&socket).file_type().is_socket());
    assert_eq!(of(&socket).uid(), of(directory).uid());

    let output = run(home.vsc().args(["ps", "--json"]));
    expect_code(&output, 0);
    let machines: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let ours = machines.iter().find(|m| m["pid"] == child.id()).unwrap();
    let id = directory.file_name().unwrap().to_str().unwrap();
    assert_eq!(ours["run"], id);
    assert_eq!(ours["control"], socket.to_str().unwrap());
    assert_eq!(ours["registered"], false);
    let table = text(&run(home.vsc().arg("ps")).stdout);
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head[4..],
        ["RUN", "REGISTERED", "SAVED"],
        "a column of its own each"
    );
    // Machines of other tests may have its name.
    let pid = child.id().to_string();
    let rows = table.lines().map(|line| line.split_whitespace().collect());
    let row: Vec<Vec<_>> = rows.filter(|row: &Vec<_>| row[1] == pid).collect();
    // MEMORY has a blank in it.
    assert_eq!(row.len(), 1, "{table}");
    assert_eq!(row[0][0], "lab", "{table}");
    assert_eq!(row[0][5..], [id, "no", "-"], "{table}");

    // By its name, its number, its process, its socket.
    for way in ["lab", id, &pid, socket.to_str().unwrap()] {
        let output = home.ctl(&[way, "status", "--json"]);
        expect_code(&output, 0);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["name"], "lab");
        assert_eq!(status["pid"], child.id());
        assert_eq!(status["id"], id);
        assert_eq!(status["state"], "running");
        assert_eq!(status["alive"], true);
        assert_eq!(status["console_tail"][0], "vsc guest");
        assert!(status["uptime_seconds"].as_f64().unwrap() > 0.0);
    }
    let output = home.ctl(&["lab"]);
    let told = text(&output.stdout);
    assert!(told.starts_with("lab is running, pid "), "{told}");
    assert!(told.contains("\n  | vsc guest\n"), "{told}");

    expect_code(&home.ctl(&["lab", "kill"]), 0);
    expect_code(&finish(child), 137);
    assert_eq!(home.runs(), [""; 0].map(PathBuf::from));
    let output = home.ctl(&["lab"]);
    expect_code(&output, 125);
    let told = text(&output.stderr);
    assert!(
        told.contains("no run \"lab\" has a control socket"),
        "{told}"
    );
}

#[test]
fn two_runs_of_one_scenario_have_a_socket_each() {
    if !inside("two_runs_of_one_scenario_have_a_socket_each") {
        return;
    }
    let home = Home::new("two");
    let twins = ["-o", "name=twin", "--control"];
    let (one, two) = (home.machine(&twins), home.machine(&twins));
    assert_eq!(home.runs().len(), 2);
    let output = home.ctl(&["twin", "kill"]);
    expect_code(&output, 125);
    let told = text(&output.stderr);
    assert!(told.contains("\"twin\" is 2 runs"), "{told}");
    expect_code(&home.ctl(&[&one.id().to_string(), "kill"]), 0);
    expect_code(&finish(one), 137);
    expect_code(&home.ctl(&["twin", "kill"]), 0);
    expect_code(&finish(two), 137);
    assert_eq!(home.runs().len(), 0);
}

/// Whether a process waits for something to read, and so has said what it had to say.
fn hears(pid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    let number = call.split(' ').next().unwrap().parse();
    let waits = [
        libc::SYS_read,
        libc::SYS_recvfrom,
        libc::SYS_poll,
        libc::SYS_ppoll,
    ];
    // "running" is no number.
    number.is_ok_and(|number| waits.contains(&number))
}

#[test]
fn orders_are_obeyed_and_the_end_is_told_to_those_who_wait() {
    if !inside("orders_are_obeyed_and_the_end_is_told_to_those_who_wait") {
        return;
    }
    let home = Home::new("orders");
    let child = home.machine(&[
        "--control",
        "-o",
        "name=lab",
        "-o",
        "limits.stop_grace=200ms",
    ]);
    let waiting = home
        .vsc()
        .args(["ctl", "lab", "wait", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let socket = home.runs()[0].join("control.sock");
    let mut client = connect(&socket);
    say(&mut client, "{\"do\":\"wait\"}\n{\"do\":\"powerdown\"}\n");
    assert_eq!(hear(&mut client), json!({"ok": true}));
    // It spins, and listens to no button.
    assert_eq!(hear(&mut client), json!({"ok": true, "heard": false}));
    // One that says its last word and still wants to hear the end.
    let mut half = connect(&socket);
    say(&mut half, "{\"do\":\"wait\"}\n");
    half.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(hear(&mut half), json!({"ok": true}));
    // The other process waits by now: whoever is asked later is answered later.
    soon(|| {
        let connected = fs::read_to_string("/proc/net/unix").unwrap();
        let path = socket.to_str().unwrap();
        connected.lines().filter(|l| l.ends_with(path)).count() >= 4 && hears(waiting.id())
    });
    expect_code(&home.ctl(&["lab", "status"]), 0);
    expect_code(&home.ctl(&["lab", "stop"]), 0);
    for client in [&mut client, &mut half] {
        let end = hear(client);
        assert_eq!(end["event"], "end");
        assert_eq!(end["result"]["exit_code"], 143);
        assert_eq!(end["result"]["outcome"], "interrupted");
        let mut rest = String::new();
        assert_eq!(client.read_line(&mut rest).unwrap(), 0);
    }
    expect_code(&finish(child), 143);
    let output = finish(waiting);
    expect_code(&output, 143);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["signal"], 15);
}

#[test]
fn clients_that_are_slow_or_hostile_hurt_nobody() {
    if !inside("clients_that_are_slow_or_hostile_hurt_nobody") {
        return;
    }
    let home = Home::new("hostile");
    let child = home.machine(&["--control", "-o", "name=lab"]);
    let socket = home.runs()[0].join("control.sock");
    // Nonsense is answered, and the line after it.
    let mut client = connect(&socket);
    say(
        &mut client,
        "nonsense\n{\"do\":\"reboot\"}\n\n{\"do\":\"status\",\"x\":1}\n\u{1}\n{\"do\":\"status\"}\n",
    );
    for _ in 0..5 {
        let answer = hear(&mut client);
        assert_eq!(answer["ok"], false, "{answer}");
        assert!(answer["error"].is_string());
    }
    assert_eq!(hear(&mut client)["ok"], true);
    // A line without an end is the end of the connection.
    let mut endless = connect(&socket);
    let _ = endless.get_mut().write_all(&[b'x'; 1 << 16]);
    let mut rest = Vec::new();
    // It may be told by a reset.
    let _ = endless.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    // Asks and never listens: it is dropped, and until then others are served.
    let deaf = UnixStream::connect(&socket).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let mut asked = 0;
    while asked < 20_000 {
        match (&deaf).write(b"{\"do\":\"status\"}\n") {
            Ok(_) => asked += 1,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                say(&mut client, "{\"do\":\"status\"}\n");
                assert_eq!(hear(&mut client)["ok"], true);
                break;
            }
            Err(_) => break,
        }
    }
    assert!(asked > 100, "{asked}");
    // A crowd: one more than there is room for takes the place of one that is silent.
    let crowd: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    let mut last = connect(&socket);
    say(&mut last, "{\"do\":\"status\"}\n");
    let status = hear(&mut last);
    assert_eq!(status["ok"], true);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    assert!(descriptors.count() < 60);
    // Before its time is over nobody takes a waiting client's place.
    drop((crowd, deaf));
    say(&mut last, "{\"do\":\"kill\"}\n");
    assert_eq!(hear(&mut last), json!({"ok": true}));
    expect_code(&finish(child), 137);
    assert_eq!(home.runs().len(), 0);
}

#[test]
fn where_a_run_may_have_no_state_it_says_so() {
    if !inside("where_a_run_may_have_no_state_it_says_so") {
        return;
    }
    let home = Home::new("nowhere");
    let refused = |command: &mut Command, needle: &str| {
        let output = run(command.args(["--control", "-o", "guest.parameters=test=none"]));
        expect_code(&output, 125);
        let told = text(&output.stderr);
        assert!(told.contains(needle), "{told}");
    };
    // Something of another's making in our place.
    fs::create_dir(home.0.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(home.0.path("elsewhere"), home.base()).unwrap();
    refused(&mut home.vsc(), "it is no directory");
    assert_eq!(fs::read_dir(home.0.path("elsewhere")).unwrap().count(), 0);
    fs::remove_file(home.base()).unwrap();
    fs::create_dir(home.base()).unwrap();
    fs::set_permissions(home.base(), PermissionsExt::from_mode(0o777)).unwrap();
    refused(&mut home.vsc(), "others may write to it");
    assert_eq!(home.runs().len(), 0);
}

/// Another user of this host, where tests run as root.
fn stranger(command: &mut Command) -> Option<&mut Command> {
    // SAFETY: a plain system call.
    if unsafe { libc::getuid() } != 0 {
        skip("another user is to be had by root only");
        return None;
    }
    Some(command.uid(65534).gid(65534))
}

#[test]
fn others_see_and_reach_nothing_unless_it_is_registered() {
    if !inside("others_see_and_reach_nothing_unless_it_is_registered") {
        return;
    }
    let home = Home::new("others");
    let secret = home.machine(&["--control", "-o", "name=secret"]);
    // A process beside it writes the result.
    let result = home.0.path("r.json");
    // Of all machines of this host this one has it.
    let name = format!("shown-{}", std::process::id());
    let shown = home.machine(&[
        "--register",
        "-o",
        &format!("name={name}"),
        "--result",
        result.to_str().unwrap(),
    ]);
    // The program where everybody may read it.
    let program = home.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let list = |all: &[&str]| -> Option<Vec<Value>> {
        let mut command = Command::new(&program);
        command.args(["ps", "--json"]).args(all).current_dir("/");
        let output = run(stranger(&mut command)?);
        expect_code(&output, 0);
        Some(serde_json::from_slice(&output.stdout).unwrap())
    };
    let mine: Vec<Value> =
        serde_json::from_slice(&run(home.vsc().args(["ps", "--json"])).stdout).unwrap();
    let of = |list: &[Value], child: &Child| {
        let found = list.iter().find(|m| m["pid"] == child.id()).cloned();
        found.map(|m| (m["name"].clone(), m["registered"].clone()))
    };
    assert_eq!(of(&mine, &secret), Some((json!("secret"), json!(false))));
    assert_eq!(of(&mine, &shown), Some((json!(name), json!(true))));
    let all = run(home.vsc().args(["ps", "--all", "--json"]));
    let all: Vec<Value> = serde_json::from_slice(&all.stdout).unwrap();
    let named = all.iter().filter(|m| m["name"] == name.as_str());
    assert_eq!(named.count(), 1, "{all:?}");
    if let (Some(private), Some(all)) = (list(&[]), list(&["--all"])) {
        assert_eq!(of(&private, &secret), None);
        assert_eq!(of(&private, &shown), None);
        assert_eq!(of(&all, &secret), None);
        assert_eq!(of(&all, &shown), Some((json!(name), json!(true))));
        // Even with the directory open to all, a stranger is not answered.
        let directory = &home.runs()[0];
        let socket = directory.join("control.sock");
        for path in [&home.base(), directory, &socket] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let mut command = Command::new(&program);
        command.arg("ctl").arg(&socket).arg("kill").current_dir("/");
        let output = run(stranger(&mut command).unwrap());
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("ended without an answer")
                || text(&output.stderr).contains("cannot reach"),
            "{}",
            text(&output.stderr)
        );
        expect_code(&home.ctl(&[socket.to_str().unwrap(), "status"]), 0);
    }
    end(shown);
    expect_code(
        &home.ctl(&[
            home.runs()[0].join("control.sock").to_str().unwrap(),
            "kill",
        ]),
        0,
    );
    expect_code(&finish(secret), 137);
}

#[test]
fn nothing_listens_on_tcp_and_only_the_socket_on_unix() {
    if !inside("nothing_listens_on_tcp_and_only_the_socket_on_unix") {
        return;
    }
    let home = Home::new("tcp");
    for (arguments, sockets) in [(&[][..], 0), (&["--control"][..], 1)] {
        let child = home.machine(arguments);
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        let inodes: Vec<String> = fs::read_dir(proc.join("fd"))
            .unwrap()
            .filter_map(|fd| {
                let target = fs::read_link(fd.unwrap().path()).ok()?;
                let target = target.to_str()?.strip_prefix("socket:[")?.to_owned();
                Some(target.strip_suffix(']')?.to_owned())
            })
            .collect();
        for table in ["tcp", "tcp6", "udp", "udp6", "raw", "packet"] {
            let Ok(text) = fs::read_to_string(proc.join("net").join(table)) else {
                continue;
            };
            let ours = text.lines().skip(1).find(|line| {
                line.split_ascii_whitespace()
                    .any(|field| inodes.iter().any(|inode| inode == field))
            });
            assert_eq!(ours, None, "{table}");
        }
        // Flags 00010000 is __SO_ACCEPTCON: it listens (net/unix/af_unix.c).
        let unix = fs::read_to_string(proc.join("net/unix")).unwrap();
        let listening = unix.lines().skip(1).filter(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            fields[3] == "00010000" && inodes.iter().any(|inode| inode == fields[6])
        });
        assert_eq!(listening.count(), sockets);
        end(child);
        for directory in home.runs() {
            fs::remove_dir_all(directory).unwrap();
        }
    }
}

#[test]
fn a_registered_machine_is_machineds_as_long_as_it_lives() {
    if !inside("a_registered_machine_is_machineds_as_long_as_it_lives") {
        return;
    }
    let home = Home::new("machined");
    // No systemd: said, and no obstacle.
    let output = run(home
        .vsc()
        .args(["--register", "-o", "guest.parameters=test=none exit=3"]));
    expect_code(&output, 3);
    let told = text(&output.stderr);
    assert!(
        told.contains("machinectl does not list this machine: systemd does not run here"),
        "{told}"
    );
    // One that takes note of what it is asked; where there is none, tests cannot have one.
    fs::create_dir_all("/run/systemd/system").unwrap();
    let log = home.0.path("log");
    let fake = home.0.write(
        "busctl",
        format!("#!/bin/sh\necho \"$*\" >>{0}\ntest ! -e {0}.refuse || {{ echo 'Access denied' >&2; exit 1; }}\n", log.display()),
    );
    fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        home.0.path("").display(),
        std::env::var("PATH").unwrap()
    );
    let machine = |name: &str| {
        let mut command = home.vsc();
        command.env("PATH", &path).args([
            "--register",
            "-o",
            "guest.parameters=test=none hello spin",
            "-o",
        ]);
        command
            .arg(format!("name={name}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        greeted(command.spawn().unwrap())
    };
    let asked = || -> Vec<String> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let words = |line: &str| {
            line.split_once("Manager ")
                .map(|(_, words)| words.to_owned())
        };
        text.lines().filter_map(words).collect()
    };
    let before = fs::read_to_string("/proc/self/cgroup").unwrap();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        fs::write(&log, "").unwrap();
        let child = machine("lab_1");
        let pid = child.id();
        let name = format!("lab-1-{pid}");
        let register = format!("RegisterMachine sayssus {name} 0 vsc vm {pid} ");
        assert_eq!(asked(), std::slice::from_ref(&register));
        assert_eq!(
            fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(),
            before
        );
        // SAFETY: a plain system call on a child of this test.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
        finish(child);
        soon(|| asked().len() >= 2);
        assert_eq!(asked(), [register, format!("UnregisterMachine s {name}")]);
    }
    // One that says no is no obstacle either.
    home.0.write("log.refuse", "");
    let output = run(home.vsc().env("PATH", &path).args([
        "--register",
        "-o",
        "guest.parameters=test=none exit=4",
    ]));
    expect_code(&output, 4);
    let told = text(&output.stderr);
    assert!(
        told.contains("machinectl does not list this machine: Access denied"),
        "{told}"
    );
}
