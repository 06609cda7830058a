//! Commands in a real Linux on this host: status, streams, environment, limits, endings.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{TempDir, expect_code, finish, kernel, run, text, vsc};

/// `vsc-run --kernel K … -- sh -c SCRIPT`.
fn script(kernel: &Path, options: &[&str], script: &str) -> Command {
    let mut command = vsc();
    command
        .arg("--kernel")
        .arg(kernel)
        .args(options)
        .args(["--", "sh", "-c", script]);
    command
}

#[test]
fn a_command_runs_without_any_file_and_its_output_is_all_there_is() {
    let Some(kernel) = kernel() else { return };
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--", "uname", "-s"]));
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "Linux\n");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn an_installed_kernel_is_found() {
    let Some(kernel) = kernel() else { return };
    if kernel.file_name().is_none_or(|n| n != "vmlinux-cpl3") {
        return common::skip("only the unpacked kernel of the tests is installed in $VSC_KERNELS");
    }
    let output = run(vsc().args(["--", "uname", "-s"]));
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "Linux\n");
}

#[test]
fn the_kernel_is_this_hosts_whatever_stands_in_for_the_rest_of_it() {
    let Some(kernel) = kernel() else { return };
    if kernel.file_name().is_none_or(|n| n != "vmlinux-cpl3") {
        return common::skip("only the unpacked kernel of the tests is installed in $VSC_KERNELS");
    }
    let root = TempDir::new("linux-root");
    let with_root = |command: &mut Command| {
        run(command
            .arg("--host-root")
            .arg(root.path(""))
            .args(["--", "uname", "-s"]))
    };
    let output = with_root(&mut vsc());
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "Linux\n");
    // Where there is none, it says where it would have been.
    let output = with_root(
        vsc()
            .env("VSC_KERNELS", root.path("none"))
            .env("XDG_DATA_HOME", root.path("")),
    );
    expect_code(&output, 125);
    let told = text(&output.stderr);
    assert!(told.contains("E-KERNEL-NONE"), "{told}");
    assert!(told.contains("Looked in $VSC_KERNELS"), "{told}");
}

#[test]
fn every_status_and_signal_comes_out() {
    let Some(kernel) = kernel() else { return };
    for status in [0, 1, 7, 125, 255] {
        expect_code(
            &run(&mut script(&kernel, &[], &format!("exit {status}"))),
            status,
        );
    }
    for signal in [1, 9, 15] {
        let output = run(&mut script(&kernel, &[], &format!("kill -{signal} $$")));
        expect_code(&output, 128 + signal);
        assert!(text(&output.stderr).contains(&format!("signal {signal}")));
    }
}

#[test]
fn a_command_that_cannot_be_executed_says_so() {
    let Some(kernel) = kernel() else { return };
    for (command, code) in [
        ("/no/such/program", 127),
        ("no-such-program-here", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
    ] {
        let output = run(vsc().arg("--kernel").arg(&kernel).args(["--", command]));
        expect_code(&output, code);
        assert!(
            text(&output.stderr).contains(command),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn streams_stay_apart_and_keep_every_byte() {
    let Some(kernel) = kernel() else { return };
    let output = run(&mut script(
        &kernel,
        &[],
        "printf 'a\\000\\377\\r\\n'; printf 'b\\033' >&2",
    ));
    expect_code(&output, 0);
    assert_eq!(output.stdout, b"a\0\xff\r\n");
    assert_eq!(output.stderr, b"b\x1b");
}

#[test]
fn a_hundred_megabytes_go_through_intact() {
    let Some(kernel) = kernel() else { return };
    const LEN: usize = 100_000_000;
    let mut child = vsc()
        .arg("--kernel")
        .arg(&kernel)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 11) as u8;
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut at = 0;
        while at < LEN {
            let chunk: Vec<u8> = (at..LEN.min(at + 65_521)).map(byte).collect();
            stdin.write_all(&chunk).unwrap();
            at += chunk.len();
        }
    });
    let mut stdout = child.stdout.take().unwrap();
    let mut chunk = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let n = stdout.read(&mut chunk).unwrap();
        if n == 0 {
            break;
        }
        let wrong = chunk[..n].iter().zip(at..).find(|&(&b, i)| b != byte(i));
        assert_eq!(wrong, None, "a byte changed");
        at += n;
    }
    writer.join().unwrap();
    assert_eq!(at, LEN);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn arguments_environment_directory_and_stdin_arrive_as_given() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("args");
    let scenario = dir.write(
        "s.yaml",
        format!(
            "kernel: {}\nworkdir: /tmp\nenv:\n  WORD: \"two words; $HOME\"\n  LONG: \"{}\"\n",
            kernel.display(),
            "x".repeat(20_000)
        ),
    );
    let mut child = vsc()
        .arg(&scenario)
        .args([
            "--",
            "sh",
            "-c",
            "pwd; echo \"$WORD|${#LONG}|$1|$2\"; read line; echo \"$line\"",
            "sh",
            "a b",
            "-- ro=\"1\"",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"line of input\n")
        .unwrap();
    let output = finish(child);
    expect_code(&output, 0);
    let expected = "/tmp\ntwo words; $HOME|20000|a b|-- ro=\"1\"\nline of input\n";
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn the_time_limit_ends_a_command_and_shows_the_console() {
    let Some(kernel) = kernel() else { return };
    let start = Instant::now();
    let output = run(&mut script(
        &kernel,
        &["--timeout", "3s"],
        "while :; do :; done",
    ));
    expect_code(&output, 124);
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(text(&output.stderr).contains("time limit of 3 s"));
}

#[test]
fn a_kernel_panic_is_told_as_one() {
    let Some(kernel) = kernel() else { return };
    // An empty archive and no root: there is no PID 1.
    let dir = TempDir::new("panic");
    let mut trailer = Vec::from(&b"070701"[..]);
    trailer.extend([b'0'; 8 * 11]);
    trailer.extend(b"0000000B00000000TRAILER!!!\0\0\0\0");
    let initrd = dir.write("initrd", trailer);
    let output = run(vsc()
        .arg("--kernel")
        .arg(&kernel)
        .arg("--initrd")
        .arg(&initrd)
        .args(["-o", "kernel.cmdline=quiet"]));
    expect_code(&output, 120);
    assert!(
        text(&output.stderr).contains("kernel panicked: "),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_command_that_crashes_the_machine_has_no_status() {
    let Some(kernel) = kernel() else { return };
    let output = run(&mut script(
        &kernel,
        &[],
        "echo b > /proc/sysrq-trigger; sleep 30",
    ));
    expect_code(&output, 122);
}

#[test]
fn sigint_reaches_the_command_and_a_second_one_insists() {
    let Some(kernel) = kernel() else { return };
    let start = |body: &str| {
        let mut child = script(&kernel, &[], body)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        assert_eq!(&line, b"ready\n");
        child
    };
    let kill = |child: &std::process::Child, signal: i32| {
        // SAFETY: a plain system call on our own child.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    };
    let child = start("trap 'exit 9' INT; echo ready; while :; do read x; done");
    kill(&child, libc::SIGINT);
    expect_code(&finish(child), 9);

    let mut child = start("trap 'echo again' INT; echo ready; while :; do read x; done");
    kill(&child, libc::SIGINT);
    let mut line = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    kill(&child, libc::SIGINT);
    expect_code(&finish(child), 130);

    let child = start("echo ready; while :; do read x; done");
    kill(&child, libc::SIGTERM);
    expect_code(&finish(child), 143);
}

#[test]
fn named_ports_are_files_in_the_guest() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("ports");
    let (one, two) = (dir.path("one"), dir.path("two"));
    let scenario = dir.write(
        "s.yaml",
        format!(
            "kernel: {}\nconsoles:\n  - {{name: org.example.one, out: \"file:{}\"}}\n  - {{name: org.example.two, out: \"file:{}\"}}\n",
            kernel.display(),
            one.display(),
            two.display()
        ),
    );
    let body = "for n in /sys/class/virtio-ports/*; do read name < $n/name; \
                case $name in org.example.*) echo \"this is $name\" > /dev/${n##*/};; esac; done";
    let output = run(vsc().arg(&scenario).args(["--", "sh", "-c", body]));
    expect_code(&output, 0);
    assert_eq!(
        std::fs::read_to_string(&one).unwrap(),
        "this is org.example.one\n"
    );
    assert_eq!(
        std::fs::read_to_string(&two).unwrap(),
        "this is org.example.two\n"
    );
}

#[test]
fn disks_and_vcpus_are_what_linux_finds() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("linux-disk");
    let image = dir.write("disk.img", vec![b'x'; 3 << 20]);
    let scenario = dir.write(
        "s.yaml",
        format!(
            "kernel: {}\nmemory: 300M\nroot: {{device: none}}\ndisks:\n  - {{path: {}, id: my-serial}}\n",
            kernel.display(),
            image.display()
        ),
    );
    let body = "read s < /sys/block/vda/serial; read n < /sys/block/vda/size; echo $s $n; \
                while read k v u; do case $k in MemTotal:) echo $v;; esac; done < /proc/meminfo";
    let output = run(vsc().arg(&scenario).args(["--", "sh", "-c", body]));
    expect_code(&output, 0);
    let said = text(&output.stdout);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("my-serial 6144"));
    let total: u64 = lines.next().unwrap().parse().unwrap();
    assert!(
        (250_000..=300 * 1024).contains(&total),
        "MemTotal {total} kB of 300 MiB"
    );
}

#[test]
fn more_disks_than_interrupt_lines_all_work() {
    let Some(kernel) = kernel() else { return };
    const DISKS: usize = 24;
    let dir = TempDir::new("many-disks");
    let mut yaml = format!(
        "kernel: {}\nroot: {{device: none}}\ndisks:\n",
        kernel.display()
    );
    for n in 0..DISKS {
        let image = dir.write(&format!("{n}.img"), format!("{n:<511}\n").repeat(128));
        yaml += &format!("  - {{path: {}, id: serial-{n}}}\n", image.display());
    }
    let scenario = dir.write("s.yaml", yaml);
    // Every disk is read, so every line must bring interrupts, shared or not.
    let body = "for d in /dev/vd?; do read s < /sys/block/${d#/dev/}/serial; read n rest < $d; echo $s $n; done";
    let output = run(vsc()
        .arg(&scenario)
        .args(["--timeout", "30s", "--", "sh", "-c", body]));
    expect_code(&output, 0);
    let expected: String = (0..DISKS).map(|n| format!("serial-{n} {n}\n")).collect();
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn a_tiny_image_ends_with_the_status_of_what_it_ran() {
    let Some(kernel) = kernel() else { return };
    let dir = TempDir::new("image");
    let image = dir.path("t.img");
    let built = run(vsc()
        .args(["image", "tiny", "--run", "echo hello; exit 3", "--kernel"])
        .arg(&kernel)
        .arg("-o")
        .arg(&image));
    expect_code(&built, 0);
    let output = run(vsc().arg(&image).arg("--kernel").arg(&kernel));
    expect_code(&output, 3);
    assert!(
        text(&output.stdout).contains("hello"),
        "{}",
        text(&output.stdout)
    );
    assert!(
        !text(&output.stdout).contains("Linux version"),
        "the kernel talks on the image's output"
    );
}
