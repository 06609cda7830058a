//! Serial lines on UNIX sockets, and `attach`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};

use common::process::{PATIENCE, awaited, guest, kill, soon};
use common::{TempDir, expect_code, finish, kernel, run, text, vsc};
use pty::Pty;

/// A Linux with its shell on a serial line that listens on `socket`.
fn serial_machine(kernel: &Path, dir: &TempDir, socket: &Path) -> Child {
    let image = dir.path("t.img");
    expect_code(&run(vsc().args(["image", "tiny", "-o"]).arg(&image)), 0);
    vsc()
        .arg(&image)
        .arg("--kernel")
        .arg(kernel)
        .arg("-o")
        .arg(format!("serials.0.to=unix:{}", socket.display()))
        .args(["-o", "limits.stop_grace=200ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn listens(socket: &Path) -> bool {
    fs::symlink_metadata(socket).is_ok_and(|m| m.file_type().is_socket())
}

/// Reads from `client` until `what` comes.
#[track_caller]
fn hear(client: &mut UnixStream, what: &str) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(what.as_bytes()) {
        let n = client.read(&mut byte).unwrap_or(0);
        assert!(n == 1, "{what:?} did not come, but: {}", text(&heard));
        heard.extend(byte);
    }
}

#[test]
fn a_serial_socket_serves_clients_in_turn_and_goes_with_the_machine() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("socket");
    let socket = dir.path("serial.socket");
    // One that nobody listens on any more is replaced.
    drop(UnixListener::bind(&socket).unwrap());
    assert!(listens(&socket));
    let mut child = serial_machine(&kernel, &dir, &socket);
    let connect = || awaited(|| UnixStream::connect(&socket).ok());
    let mut first = connect();
    assert_eq!(
        fs::symlink_metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    first.write_all(b"echo fi''rst\r").unwrap();
    hear(&mut first, "\r\nfirst\r\n");
    drop(first);
    let mut second = connect();
    second.write_all(b"echo sec''ond\r").unwrap();
    hear(&mut second, "\r\nsecond\r\n");
    // No other process may have it, and nothing listens elsewhere.
    let output = run(guest("test=none")
        .arg("-o")
        .arg(format!("serials.0.to=unix:{}", socket.display())));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("another process does"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(internet_sockets(child.id()), 0);
    drop(second);

    // `attach`, from a terminal, with its escape key.
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let mut attached = pty.spawn(vsc().arg("attach").arg(&socket));
    pty.expect("attached");
    pty.send("echo at''tached; echo x\r");
    pty.expect("\r\nattached\r\n");
    assert!(pty.settings().is_raw());
    pty.send("\x01h");
    pty.expect("Ctrl-A x: quit");
    pty.send("\x01x");
    pty.expect_code(&mut attached, 0);
    assert_eq!(pty.settings(), before);
    assert!(child.try_wait().unwrap().is_none(), "leaving is not ending");

    let mut last = connect();
    last.write_all(b"exit\r").unwrap();
    hear(&mut last, "reboot: Power down");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn sigterm_takes_the_socket_away_too() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("socket-term");
    let socket = dir.path("serial.socket");
    let child = serial_machine(&kernel, &dir, &socket);
    soon(|| listens(&socket));
    kill(child.id(), libc::SIGTERM);
    expect_code(&finish(child), 143);
    assert!(!socket.exists());
}

#[test]
fn attach_says_when_nobody_listens() {
    let dir = TempDir::new("attach");
    let output = run(vsc().arg("attach").arg(dir.path("none")));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("cannot attach to"),
        "{}",
        text(&output.stderr)
    );
}

/// Sockets of a process other than UNIX ones.
fn internet_sockets(pid: u32) -> usize {
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| {
            let target = fs::read_link(fd.ok()?.path()).ok()?;
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    [
        "tcp", "tcp6", "udp", "udp6", "packet", "netlink", "raw", "raw6",
    ]
    .iter()
    .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
    .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
    .filter(|line| {
        line.split_ascii_whitespace()
            .any(|word| inodes.iter().any(|i| i == word))
    })
    .count()
}

#[test]
fn attach_takes_a_pipe_and_ends_with_the_machine() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("attach-pipe");
    let socket = dir.path("serial.socket");
    let machine = serial_machine(&kernel, &dir, &socket);
    soon(|| listens(&socket));
    let input = dir.write("in", "echo pi''ped\nexit\n");
    let output = run(vsc()
        .arg("attach")
        .arg(&socket)
        .stdin(fs::File::open(input).unwrap()));
    expect_code(&output, 0);
    let said = text(&output.stdout);
    assert!(said.contains("\r\npiped\r\n"), "{said}");
    assert!(said.contains("reboot: Power down"), "{said}");
    expect_code(&finish(machine), 0);
}

#[test]
fn attach_puts_the_terminal_back_and_leaves_a_guest_that_does_not_read() {
    // Not a machine: somebody who accepts and never reads.
    let dir = TempDir::new("attach-end");
    let socket = dir.path("s");
    let listener = UnixListener::bind(&socket).unwrap();
    for (signal, code) in [
        (Some(libc::SIGTERM), 143),
        (Some(libc::SIGHUP), 129),
        (None, 0),
    ] {
        let mut pty = Pty::new(24, 80);
        let before = pty.settings();
        let mut child = pty.spawn(vsc().arg("attach").arg(&socket));
        pty.expect("attached");
        assert!(pty.settings().is_raw());
        let (client, _) = listener.accept().unwrap();
        match signal {
            Some(signal) => kill(child.id(), signal),
            None => {
                // More than its socket holds.
                for _ in 0..100 {
                    pty.send([b'x'; 4000]);
                }
                pty.send("\x01x");
            }
        }
        pty.expect_code(&mut child, code);
        assert_eq!(pty.settings(), before);
        drop(client);
    }
}
