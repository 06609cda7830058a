//! Standard streams of a command: slow, closed, full and absent ones, and what is never mixed with them.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{TempDir, expect_code, finish, have_kvm, kernel, run, text, vsc};

/// `vsc-run … -- busybox sh -c SCRIPT`, which has busybox' commands.
fn script(kernel: &Path, script: &str) -> Command {
    let mut command = vsc();
    command.arg("--kernel").arg(kernel).args([
        "--timeout",
        "170s",
        "--",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_slow_reader_gets_everything_and_the_status_waits_for_it() {
    let Some(kernel) = kernel() else { return };
    let mut child = script(&kernel, "head -c 3000000 /dev/zero; echo done >&2; exit 4")
        .spawn()
        .unwrap();
    // The guest is done with it long before anything is read: only then does this reader begin.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut stdout = child.stdout.take().unwrap();
    let mut first = vec![0; 1 << 20];
    stdout.read_exact(&mut first).unwrap();
    assert!(
        child.try_wait().unwrap().is_none(),
        "two thirds are still to come"
    );
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(first.len() + rest.len(), 3_000_000);
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn what_was_written_last_is_read_after_the_guest_has_gone() {
    let Some(kernel) = kernel() else { return };
    // More than a pipe holds, by a command that ends at once; standard error says when its machine is at its end.
    let mut child = script(&kernel, "head -c 200000 /dev/zero").spawn().unwrap();
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    let output = finish(child);
    expect_code(&output, 0);
    assert_eq!(output.stdout.len() + 1, 200_000);
}

#[test]
fn a_reader_that_leaves_breaks_the_commands_pipe() {
    let Some(kernel) = kernel() else { return };
    // By SIGPIPE, as in a pipe of the host.
    let mut child = script(&kernel, "yes; echo status $? >&2; exit 6")
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "y\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(text(&output.stderr), "status 141\n");
    // By EPIPE where that is ignored.
    let ignoring = "trap '' PIPE; echo go >&2; while echo x 2>/dev/null; do :; done; exit 5";
    let mut child = script(&kernel, ignoring).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"));
    // Standard error is like that too.
    let mut child = script(&kernel, "yes >&2; echo status $?; exit 7")
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(7), "status 141\n".to_owned())
    );
}

#[test]
fn a_full_disk_ends_the_output_as_a_broken_pipe() {
    let Some(kernel) = kernel() else { return };
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut child = script(&kernel, "yes; echo status $? >&2; exit 8");
    let output = child
        .stdout(full)
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert!(
        text(&output.stderr).contains("status 141\n"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn input_from_nowhere_ends_at_once() {
    let Some(kernel) = kernel() else { return };
    let output = script(&kernel, "wc -c; exit 3")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    expect_code(&output, 3);
    assert_eq!(text(&output.stdout), "0\n");
    let mut child = script(&kernel, "wc -c")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    assert_eq!(text(&finish(child).stdout), "0\n");
}

#[test]
fn a_command_that_reads_nothing_does_not_wait_for_its_input() {
    let Some(kernel) = kernel() else { return };
    // The writer's end stays open.
    let (input, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"never read\n").unwrap();
    let output = finish(script(&kernel, "echo out").stdin(input).spawn().unwrap());
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "out\n");
    drop(writer);
}

#[test]
fn a_file_is_input_and_output_as_a_whole() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("files");
    let data: Vec<u8> = (0..10_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let input = dir.write("in", &data);
    let path = dir.path("out");
    std::fs::write(&path, "before\n").unwrap();
    // Opened as the shell's >> does, and shared with us: the flags and the place in it stay ours too.
    let mut out = File::options().append(true).open(&path).unwrap();
    let status = script(&kernel, "cat")
        .stdin(File::open(&input).unwrap())
        .stdout(out.try_clone().unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    out.write_all(b"after\n").unwrap();
    assert_eq!(out.stream_position().unwrap(), 7 + 10_000_000 + 6);
    let written = std::fs::read(&path).unwrap();
    assert!(
        written
            .strip_prefix(b"before\n")
            .and_then(|w| w.strip_suffix(b"after\n"))
            == Some(&data)
    );
}

#[test]
fn shared_descriptors_stay_blocking() {
    let Some(kernel) = kernel() else { return };
    let (input, writer) = std::io::pipe().unwrap();
    let (mut reader, output) = std::io::pipe().unwrap();
    // SAFETY: F_GETFL changes nothing.
    let flags = |fd: i32| unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let before = (flags(input.as_raw_fd()), flags(output.as_raw_fd()));
    let mut child = script(&kernel, "echo ready; cat")
        .stdin(input.try_clone().unwrap())
        .stdout(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    reader.read_exact(&mut ready).unwrap();
    assert_eq!(
        (flags(input.as_raw_fd()), flags(output.as_raw_fd())),
        before,
        "while it runs"
    );
    drop(writer);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        (flags(input.as_raw_fd()), flags(output.as_raw_fd())),
        before,
        "afterwards"
    );
}

#[test]
fn what_programs_read_about_a_run_is_never_in_its_output() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("told");
    let result = dir.path("result.json");
    let guest = |options: &[&str]| {
        let output = run(vsc()
            .args(["-o", "guest.parameters=test=none exit=3"])
            .args(options));
        expect_code(&output, 3);
        output
    };
    let plain = guest(&[]);
    for options in [
        &["--json"][..],
        &["--timing"],
        &["--result", result.to_str().unwrap()],
        &["--json", "--timing", "-v"],
    ] {
        let output = guest(options);
        assert_eq!(output.stdout, plain.stdout, "{options:?}");
        if options == ["--json"] {
            let told: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
            assert_eq!(
                (&told["outcome"], &told["exit_code"]),
                (&"exited".into(), &3.into())
            );
        }
    }
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert_eq!(told["exit_code"], 3);
    assert_eq!(text(&plain.stderr), "");
}

#[test]
fn a_commands_output_is_alone_on_standard_output_whatever_is_asked_for() {
    let Some(kernel) = kernel() else { return };
    let output = run(vsc()
        .args(["--json", "--timing", "-v", "--kernel"])
        .arg(&kernel)
        .args([
            "--",
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 2",
        ]));
    expect_code(&output, 2);
    assert_eq!(text(&output.stdout), "out\n");
    let said = text(&output.stderr);
    assert!(said.contains("err\n"), "{said}");
    assert!(!said.contains("vsc-run: "), "{said}");
    let line = said.lines().find(|l| l.starts_with('{')).expect(&said);
    let told: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(told["outcome"], "exited");
    assert!(told["timing_ms"]["ready"].is_number(), "{told}");
    assert!(said.contains("[    0."), "-v shows the console: {said}");
}

#[test]
fn descriptors_closed_by_the_caller_are_nobodys() {
    if !have_kvm() {
        return;
    }
    for closed in [&[0][..], &[1], &[2], &[0, 1], &[0, 1, 2]] {
        let mut command = vsc();
        command.args(["-o", "guest.parameters=test=hello exit=3"]);
        // SAFETY: close is async-signal-safe; the test's own descriptors stay as they are.
        unsafe {
            command.pre_exec(move || {
                for &fd in closed {
                    libc::close(fd);
                }
                Ok(())
            });
        }
        let output = run(command.stdin(Stdio::piped()));
        expect_code(&output, 3);
        assert!(
            !text(&output.stderr).contains("panicked"),
            "{closed:?}: {}",
            text(&output.stderr)
        );
        assert_eq!(
            output.stdout.starts_with(b"vsc guest"),
            !closed.contains(&1),
            "{closed:?}"
        );
    }
}

#[test]
fn descriptors_closed_by_the_caller_do_not_reach_a_command() {
    let Some(kernel) = kernel() else { return };
    let mut command = vsc();
    command.arg("--kernel").arg(&kernel).args([
        "--",
        "busybox",
        "sh",
        "-c",
        "wc -c; echo out; echo err >&2; exit 4",
    ]);
    // SAFETY: as above.
    unsafe {
        command.pre_exec(|| {
            for fd in 0..3 {
                libc::close(fd);
            }
            Ok(())
        });
    }
    let output = run(&mut command);
    expect_code(&output, 4);
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
}

#[test]
fn a_serial_line_that_nobody_reads_can_be_ended() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("unread");
    let image = dir.path("t.img");
    expect_code(
        &run(vsc()
            .args(["image", "tiny", "--run", "yes yes yes yes", "-o"])
            .arg(&image)),
        0,
    );
    let mut child = vsc()
        .arg(&image)
        .arg("--kernel")
        .arg(&kernel)
        .args(["--timeout", "5s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    // A page, so that the vCPU soon waits inside its register access.
    // SAFETY: a plain system call on our own pipe.
    unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    let mut said = String::new();
    // Ends when the program does.
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(124), "{said}");
    assert!(said.contains("time limit of 5 s"), "{said}");
}
