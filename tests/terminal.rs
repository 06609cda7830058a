//! A person at a terminal: what is typed and shown, and that the terminal is left as it was.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::process::{guest, kill};
use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};
use pty::Pty;

const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

fn shell(kernel: &Path, options: &[&str]) -> Command {
    let mut command = vsc();
    command
        .arg("--kernel")
        .arg(kernel)
        .args(options)
        .args(["--", "busybox", "sh"]);
    command
}

#[test]
fn a_shell_is_as_at_home() {
    let Some(kernel) = kernel() else { return };
    let mut pty = Pty::new(33, 101);
    let before = pty.settings();
    let mut child = pty.spawn(&mut shell(&kernel, &[]));
    // Typed before there is anybody to read it.
    pty.send("echo ear''ly\r");
    pty.expect("\r\nearly\r\n");
    pty.expect("# ");
    assert!(pty.settings().is_raw());
    // Backspace, and the arrow keys of busybox' line editor.
    pty.send("echo xdixted\x1b[D\x1b[D\x1b[D\x7f\x1b[D\x1b[D\x7fe\r");
    pty.expect("\r\nedited\r\n");
    // An interrupt is for the guest's command.
    pty.expect("# ");
    // The shell's own echo comes before sleep has the terminal, and an interrupt in between is nobody's.
    pty.send("sh -c \"echo sta''rted; exec sleep 1000\"\r");
    pty.expect("\r\nstarted\r\n");
    pty.send(CTRL_C);
    pty.expect("# ");
    pty.send("echo status $?\r");
    pty.expect("\r\nstatus 130\r\n");
    assert!(child.try_wait().unwrap().is_none());
    // Size, and its changes.
    pty.send("stty size\r");
    pty.expect("\r\n33 101\r\n");
    pty.send("busybox sh -c \"trap 'stty size; exit' WINCH; echo ar''med; while :; do sleep 0.1; done\"\r");
    pty.expect("\r\narmed\r\n");
    pty.resize(44, 120);
    pty.expect("44 120\r\n");
    // Job control belongs to it.
    pty.expect("# ");
    pty.send("tty; ps -o pid,tty,args >/dev/null; (exit 7)\r");
    pty.expect("/dev/hvc0\r\n");
    pty.expect("# ");
    pty.send(CTRL_D);
    pty.expect_code(&mut child, 7);
    assert_eq!(pty.settings(), before);
}

#[test]
fn dash_on_a_terminal_is_quiet_about_it() {
    let Some(kernel) = kernel() else { return };
    let mut pty = Pty::new(24, 80);
    let mut child = pty.spawn(vsc().arg("--kernel").arg(&kernel).args(["--", "sh"]));
    pty.expect("# ");
    assert_eq!(
        pty.text(),
        "# ",
        "no complaint about job control, no banner"
    );
    pty.send("exit 3\r");
    pty.expect_code(&mut child, 3);
}

/// Every end but SIGKILL, after which nobody is there to do anything (`reset` or `stty sane` helps then).
#[test]
fn every_end_leaves_the_terminal_as_it_was() {
    let Some(kernel) = kernel() else { return };
    type End = fn(&mut Pty, &Child);
    let ends: [(&str, &[&str], End, i32); 8] = [
        ("exit", &[], |pty, _| pty.send("exit 5\r"), 5),
        // Which of these comes after the prompt, a busy host decides: the last one does.
        ("limit", &["--timeout", "3s"], |_, _| {}, 124),
        ("limit", &["--timeout", "10s"], |_, _| {}, 124),
        ("last limit", &["--timeout", "55s"], |_, _| {}, 124),
        (
            "SIGTERM",
            &["-o", "limits.stop_grace=200ms"],
            |_, child| kill(child.id(), libc::SIGTERM),
            143,
        ),
        (
            "SIGHUP",
            &[],
            |_, child| kill(child.id(), libc::SIGHUP),
            129,
        ),
        ("quit", &[], |pty, _| pty.send([CTRL_A, "x"].concat()), 130),
        (
            "crash",
            &[],
            |pty, _| pty.send("echo b > /proc/sysrq-trigger\r"),
            122,
        ),
    ];
    let mut limited = false;
    for (name, options, end, code) in ends {
        if name.contains("limit") && limited {
            continue;
        }
        let mut pty = Pty::new(24, 80);
        let before = pty.settings();
        let mut child = pty.spawn(&mut shell(&kernel, options));
        if name == "limit" {
            limited = pty.shows("# ", &mut child);
            if !limited {
                pty.expect_code(&mut child, code);
                assert_eq!(pty.settings(), before, "{name}");
                continue;
            }
        } else {
            pty.expect("# ");
        }
        assert!(pty.settings().is_raw(), "{name}");
        end(&mut pty, &child);
        pty.expect_code(&mut child, code);
        assert_eq!(pty.settings(), before, "{name}");
    }
}

#[test]
fn bad_ends_of_the_built_in_guest_leave_the_terminal_as_it_was() {
    if !have_kvm() {
        return;
    }
    for (parameters, code) in [
        ("test=hello exit=9", 9),
        ("panic", 120),
        ("triple", 121),
        ("hang", 121),
        ("poweroff", 0),
    ] {
        let mut pty = Pty::new(24, 80);
        let before = pty.settings();
        let mut child = pty.spawn(&mut guest(parameters));
        pty.expect_code(&mut child, code);
        assert_eq!(pty.settings(), before, "{parameters}");
        assert!(!pty.text().contains("panicked at"), "{}", pty.text());
    }
    // Nothing is taken by what fails before there is a machine.
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let mut child = pty.spawn(vsc().args(["-o", "memory=1000000G"]));
    pty.expect_code(&mut child, 125);
    assert_eq!(pty.settings(), before);
}

#[test]
fn the_escape_key_quits_helps_and_can_be_typed() {
    let Some(kernel) = kernel() else { return };
    let mut pty = Pty::new(24, 80);
    let mut child = pty.spawn(vsc().arg("--kernel").arg(&kernel).args([
        "--",
        "busybox",
        "sh",
        "-c",
        "stty raw -echo; echo ready; dd bs=1 count=3 2>/dev/null | od -An -tx1; echo; sleep 1000",
    ]));
    pty.expect("ready");
    pty.send([CTRL_A, "h"].concat());
    pty.expect("Ctrl-A x: quit");
    pty.send([CTRL_A, CTRL_A, "a", CTRL_A, "b"].concat());
    // The third byte: a Ctrl-A before any other key passes with it.
    pty.expect("01 61 01");
    pty.send(CTRL_A);
    pty.send("x");
    pty.expect_code(&mut child, 130);
}

#[test]
fn help_is_shown_on_the_terminal_not_in_the_output() {
    if !have_kvm() {
        return;
    }
    // Standard output is the guest's; with a terminal it is one and the same place, so here it is a file.
    let mut pty = Pty::new(24, 80);
    let dir = TempDir::new("help");
    let out = dir.path("out");
    let mut command = guest("test=none read");
    pty.lead(&mut command);
    let stdout = std::fs::File::create(&out).unwrap();
    let mut child = command
        .stdin(pty.stdio())
        .stdout(stdout)
        .stderr(pty.stdio())
        .spawn()
        .unwrap();
    pty.send([CTRL_A, "h"].concat());
    pty.expect("Ctrl-A x: quit");
    pty.send([CTRL_A, "x"].concat());
    pty.expect_code(&mut child, 130);
    assert!(!text(&std::fs::read(&out).unwrap()).contains("Ctrl-A"));
}

#[test]
fn with_a_pipe_for_output_the_terminal_stays_cooked() {
    let Some(kernel) = kernel() else { return };
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let mut command = vsc();
    command.arg("--kernel").arg(&kernel).args([
        "--",
        "busybox",
        "sh",
        "-c",
        "echo ready; test -t 0 || echo no tty; cat",
    ]);
    pty.lead(&mut command);
    let mut child = command
        .stdin(pty.stdio())
        .stdout(Stdio::piped())
        .stderr(pty.stdio())
        .spawn()
        .unwrap();
    let mut ready = [0; 13];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    assert_eq!(&ready, b"ready\nno tty\n");
    assert_eq!(pty.settings(), before, "cooked while it runs");
    // The host's line editing: the erased byte never reaches the guest, and Ctrl-D is the end of the input.
    pty.send(format!("tx\x7fyped\r{CTRL_D}"));
    let mut rest = String::new();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    assert_eq!(rest, "typed\n");
    pty.expect_code(&mut child, 0);
    assert_eq!(pty.settings(), before);
}

#[test]
fn ctrl_c_with_pipes_is_the_commands() {
    let Some(kernel) = kernel() else { return };
    let mut pty = Pty::new(24, 80);
    let mut command = vsc();
    command.arg("--kernel").arg(&kernel).args([
        "--",
        "busybox",
        "sh",
        "-c",
        "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done",
    ]);
    pty.lead(&mut command);
    let mut child = command
        .stdin(pty.stdio())
        .stdout(Stdio::piped())
        .stderr(pty.stdio())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    pty.send(CTRL_C);
    pty.expect_code(&mut child, 9);
}

#[test]
fn in_the_background_the_terminal_is_left_alone() {
    if !have_kvm() {
        return;
    }
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let guest = guest("test=none hello spin");
    let mut shell = Command::new("sh");
    shell.args(["-c", "set -m; \"$@\" & echo pid $!.; read line; echo \"line $line\"; kill $!; wait $!; echo status $?", "sh"]);
    let mut child = pty.spawn(shell.arg(guest.get_program()).args(guest.get_args()));
    pty.expect("vsc guest");
    assert_eq!(pty.settings(), before);
    // What is typed is the shell's, and the machine is not stopped for it.
    pty.send("typed\r");
    pty.expect("line typed");
    pty.expect("status 143");
    pty.expect_code(&mut child, 0);
    assert_eq!(pty.settings(), before);
}

/// A tiny image whose shell is on the serial console.
fn tiny(dir: &TempDir) -> std::path::PathBuf {
    let image = dir.path("t.img");
    expect_code(&run(vsc().args(["image", "tiny", "-o"]).arg(&image)), 0);
    image
}

#[test]
fn a_serial_console_takes_commands_and_ends_with_ctrl_d() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("tiny");
    let image = tiny(&dir);
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let mut child = pty.spawn(vsc().arg(&image).arg("--kernel").arg(&kernel));
    pty.expect("# ");
    assert!(pty.settings().is_raw());
    for command in ["uname -s", "df", "free"] {
        pty.send(format!("{command}\r"));
    }
    pty.expect("\r\nLinux\r\n");
    pty.expect("Filesystem");
    pty.expect("Mem:");
    // The shell's own echo comes before sleep has the terminal, and an interrupt in between is nobody's.
    pty.send("sh -c \"echo sta''rted; exec sleep 1000\"\r");
    pty.expect("\r\nstarted\r\n");
    // It also drops what was typed before it, so the prompt is awaited.
    pty.send(CTRL_C);
    pty.expect("# ");
    pty.send("echo ag''ain\r");
    pty.expect("\r\nagain\r\n");
    pty.expect("# ");
    pty.send(CTRL_D);
    pty.expect("reboot: Power down");
    pty.expect_code(&mut child, 0);
    assert_eq!(pty.settings(), before);
}

#[test]
fn nothing_typed_early_on_a_serial_console_is_lost() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("early");
    let image = tiny(&dir);
    // From a pipe, all at once, before the kernel has a driver: three times, as it was a matter of moments.
    for _ in 0..3 {
        let input = dir.write("in", "uname -s; echo status $((40+2))\nexit\n");
        let output = run(vsc()
            .arg(&image)
            .arg("--kernel")
            .arg(&kernel)
            .args(["--timeout", "170s"])
            .stdin(std::fs::File::open(input).unwrap()));
        expect_code(&output, 0);
        let said = text(&output.stdout);
        assert!(
            said.contains("\r\nLinux\r\nstatus 42\r\n"),
            "{}",
            &said[said.len().saturating_sub(600)..]
        );
    }
    // From a terminal, byte by byte.
    let mut pty = Pty::new(24, 80);
    let mut child = pty.spawn(vsc().arg(&image).arg("--kernel").arg(&kernel));
    for byte in "echo ear''ly; exit\r".bytes() {
        pty.send([byte]);
    }
    pty.expect("\r\nearly\r\n");
    pty.expect_code(&mut child, 0);
}
