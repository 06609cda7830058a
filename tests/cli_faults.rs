//! The command line's own faults: what a run must not destroy, misread, or leave unsaid.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::process::{awaited, greeted, guest, kill, soon, spinning};
use common::{TempDir, expect_code, have_kvm, kernel, run, text, vsc};
use pty::Pty;

fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

fn told(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[test]
fn the_result_goes_where_links_lead_and_into_what_is_no_file() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("result-link");
    std::os::unix::fs::symlink("real.json", dir.path("link.json")).unwrap();
    expect_code(
        &run(guest("test=none exit=3")
            .arg("--result")
            .arg(dir.path("link.json"))),
        3,
    );
    assert!(dir.path("link.json").is_symlink());
    assert_eq!(dir.names(), ["link.json", "real.json"]);
    // Through a link, so that nobody's device is lost should this ever fail.
    std::os::unix::fs::symlink("/dev/null", dir.path("null")).unwrap();
    expect_code(
        &run(guest("test=none exit=3")
            .arg("--result")
            .arg(dir.path("null"))),
        3,
    );
    assert!(dir.path("null").is_symlink());
    use std::os::unix::fs::FileTypeExt;
    assert!(
        std::fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    // A descriptor: after what the guest wrote there, not over it.
    let output = run(guest("test=hello exit=3").args(["--result", "/dev/stdout"]));
    expect_code(&output, 3);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("vsc guest\n") && said.ends_with("}\n"),
        "{said}"
    );
}

#[test]
fn a_scenario_may_come_through_a_pipe() {
    if !have_kvm() {
        return;
    }
    let program = vsc();
    let program = program.get_program();
    // The word is what a shell makes of <(…).
    for script in [
        "printf 'guest: test=none exit=3' | \"$0\" /dev/stdin",
        "printf 'guest: test=none exit=3' | { exec 7<&0 </dev/null; exec \"$0\" /dev/fd/7; }",
    ] {
        expect_code(
            &run(Command::new("sh").args(["-c", script]).arg(program)),
            3,
        );
    }
}

#[test]
fn a_parent_that_ends_before_the_machine_starts_ends_it() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("orphan");
    let (scenario, result) = (dir.path("s.yaml"), dir.path("r.json"));
    fifo(&scenario);
    // The shell has something to do afterwards, and so stays the parent until it is killed.
    let mut shell = Command::new("sh")
        .args(["-c", "\"$0\" \"$1\" --result \"$2\"; true"])
        .arg(vsc().get_program())
        .args([&scenario, &result])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Opens when the program does, which waits here for its scenario.
    let mut pipe = std::fs::File::options()
        .write(true)
        .open(&scenario)
        .unwrap();
    shell.kill().unwrap();
    shell.wait().unwrap();
    // The limit ends it should this fail.
    pipe.write_all(b"guest: test=none spin\nlimits: { timeout: 50s }\n")
        .unwrap();
    drop(pipe);
    let told = awaited(|| told(&result));
    assert_eq!(
        (&told["outcome"], &told["signal"]),
        (&"interrupted".into(), &1.into()),
        "{told}"
    );
}

#[test]
fn the_end_of_the_thread_that_started_it_is_not_the_parents() {
    if !have_kvm() {
        return;
    }
    let start = || {
        // SAFETY: a plain system call.
        (
            unsafe { libc::gettid() },
            spinning(&mut guest("test=none spin")),
        )
    };
    let (thread, mut child) = std::thread::spawn(start).join().unwrap();
    let thread = format!("/proc/self/task/{thread}");
    soon(|| !Path::new(&thread).exists());
    // Of pending signals the lowest comes first: a SIGHUP from the kernel would win.
    kill(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    if !have_kvm() {
        return;
    }
    // A shell without job control starts `command &` without SIGINT and SIGQUIT, nohup without SIGHUP.
    for (wrapper, signals) in [
        (
            "\"$@\" & echo $! >&2; wait $!",
            &[libc::SIGINT, libc::SIGQUIT][..],
        ),
        (
            "echo $$ >&2; trap '' HUP INT; exec \"$@\"",
            &[libc::SIGHUP, libc::SIGINT],
        ),
    ] {
        let guest = guest("test=none spin");
        let mut shell = Command::new("sh")
            .args(["-c", wrapper, "sh"])
            .arg(guest.get_program())
            .args(guest.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        std::io::BufReader::new(shell.stderr.as_mut().unwrap())
            .read_line(&mut pid)
            .unwrap();
        let pid = pid.trim().parse().unwrap();
        let mut shell = greeted(shell);
        for &signal in signals {
            kill(pid, signal);
        }
        // Of pending signals the lowest comes first: any of those would win.
        kill(pid, libc::SIGTERM);
        assert_eq!(shell.wait().unwrap().code(), Some(143), "{wrapper}");
    }
}

#[test]
fn fatal_signals_leave_the_terminal_as_it_was() {
    use std::os::unix::process::ExitStatusExt;
    if !have_kvm() {
        return;
    }
    for signal in [
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGSEGV,
        libc::SIGUSR1,
        libc::SIGALRM,
    ] {
        let mut pty = Pty::new(24, 80);
        let before = pty.settings();
        let mut child = pty.spawn(&mut guest("test=none spin"));
        pty.expect("vsc guest");
        soon(|| pty.settings().is_raw());
        // It is no end at all.
        kill(child.id(), libc::SIGXFSZ);
        kill(child.id(), signal);
        assert_eq!(pty.wait(&mut child).signal(), Some(signal));
        assert_eq!(pty.settings(), before, "{signal}");
    }
}

#[test]
fn a_result_that_is_over_the_limit_of_file_sizes_is_an_error() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("limit");
    let output = run(Command::new("sh")
        .args([
            "-c",
            "ulimit -f 0; exec \"$0\" -o guest.parameters='test=none exit=3' --result \"$1\"",
        ])
        .arg(vsc().get_program())
        .arg(dir.path("r.json")));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("File too large"),
        "{}",
        text(&output.stderr)
    );
    assert!(dir.names().is_empty(), "{:?}", dir.names());
}

/// A shell with jobs on a terminal, and a spinning guest in its foreground; the guest's process.
fn job(pty: &mut Pty, then: &str) -> (Child, u32) {
    let guest = guest("test=none spin");
    let script = format!("set -m; sh -c 'echo pid $$.; exec \"$@\"' sh \"$@\"; {then}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]);
    let shell = pty.spawn(shell.arg(guest.get_program()).args(guest.get_args()));
    pty.expect("vsc guest");
    soon(|| pty.settings().is_raw());
    let pid = pty
        .text()
        .split("pid ")
        .nth(1)
        .and_then(|rest| rest.split('.').next()?.parse().ok());
    (shell, pid.unwrap())
}

#[test]
fn a_stopped_job_gives_the_terminal_back_until_it_continues() {
    if !have_kvm() {
        return;
    }
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let (mut shell, pid) = job(
        &mut pty,
        "echo stopped $?; read line; echo \"line $line\"; fg >/dev/null; echo ended $?",
    );
    kill(pid, libc::SIGTSTP);
    pty.expect("stopped 148");
    assert_eq!(pty.settings(), before);
    pty.send("typed\r");
    pty.expect("line typed");
    soon(|| pty.settings().is_raw());
    pty.send("\x01x");
    pty.expect("ended 130");
    pty.expect_code(&mut shell, 0);
    assert_eq!(pty.settings(), before);
}

#[test]
fn a_job_that_continues_in_the_background_leaves_the_terminal_alone() {
    if !have_kvm() {
        return;
    }
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    let then = "bg >/dev/null; read line; echo \"line $line\"; fg >/dev/null; echo ended $?";
    let (mut shell, pid) = job(&mut pty, then);
    kill(pid, libc::SIGTSTP);
    // The stop puts it back; in the background nothing changes it again.
    awaited(|| (pty.settings() == before).then_some(()));
    pty.send("typed\r");
    pty.expect("line typed");
    soon(|| pty.settings().is_raw());
    pty.send("\x01x");
    pty.expect("ended 130");
    pty.expect_code(&mut shell, 0);
    assert_eq!(pty.settings(), before);
}

/// The one line on standard error.
#[track_caller]
fn json(output: &Output) -> serde_json::Value {
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn with_json_standard_error_is_one_object_on_one_line() {
    let dir = TempDir::new("json");
    let scenario = dir.write("s.yaml", "guest: test=none\nbogus: 1\n");
    let output = run(vsc().arg("--json").arg(scenario));
    expect_code(&output, 125);
    let told = json(&output);
    assert_eq!(
        (&told["outcome"], &told["exit_code"]),
        (&"failed".into(), &125.into())
    );
    assert_eq!(told["messages"][0]["severity"], "error", "{told}");
    assert!(
        told["messages"][0]["message"]
            .as_str()
            .unwrap()
            .contains("bogus"),
        "{told}"
    );

    let output = run(vsc().args(["--json", "--kernel", "/no/such", "--timing", "--", "true"]));
    expect_code(&output, 125);
    assert!(json(&output).to_string().contains("/no/such"));

    if !have_kvm() {
        return;
    }
    for (parameters, code) in [("test=none exit=3", 3), ("panic", 120), ("triple", 121)] {
        let output = run(guest(parameters).args(["--json", "--timing"]));
        expect_code(&output, code);
        let told = json(&output);
        assert_eq!(told["exit_code"], code);
        assert!(told["timing_ms"]["end"].is_number());
    }
    let output = run(guest("test=none exit=3").args(["--json", "--result", "/no/such/place"]));
    expect_code(&output, 125);
    let told = json(&output);
    assert_eq!(
        (&told["outcome"], &told["exit_code"]),
        (&"exited".into(), &125.into())
    );
    assert!(
        told["messages"][0]["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/place"),
        "{told}"
    );
}

#[test]
fn mistakes_on_the_command_line_are_a_result_too() {
    let dir = TempDir::new("mistake");
    let result = dir.path("r.json");
    let output = run(vsc().args(["--nonsense", "--result"]).arg(&result));
    expect_code(&output, 125);
    let told = told(&result).unwrap();
    assert_eq!(
        (&told["outcome"], &told["exit_code"]),
        (&"failed".into(), &125.into())
    );
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("'--nonsense'"), "{message}");
    assert!(
        text(&output.stderr).contains("Usage:"),
        "people read more than one sentence"
    );

    let output = run(vsc().args(["--json", "a.yaml", "b.yaml"]));
    expect_code(&output, 125);
    assert!(
        json(&output)["message"]
            .as_str()
            .unwrap()
            .contains("b.yaml")
    );
}

#[test]
fn words_of_a_command_are_bytes() {
    let Some(kernel) = kernel() else { return };
    let word = OsStr::from_bytes(b"a\xff\xfeb");
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--", "busybox", "printf", "%s"])
        .arg(word));
    expect_code(&output, 0);
    assert_eq!(output.stdout, word.as_bytes());
    // A program that is not there is named as far as it can be.
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--json", "--"])
        .arg(word));
    expect_code(&output, 127);
    assert_eq!(json(&output)["outcome"], "not-executed");
}
