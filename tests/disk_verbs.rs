//! `disk create` and `disk info`, checked with QEMU's own tools: what is made, what is refused, and that nothing is
//! left of what fails.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{TempDir, expect_code, finish, run, skip, text, vsc};
use pty::Pty;
use serde_json::Value;

const PASSPHRASE: &str = "correct horse, battery=staple $(id)";

/// Whether QEMU's tools are here.
fn have_qemu_img() -> bool {
    let have = Command::new("qemu-img").arg("--version").output().is_ok();
    if !have {
        skip("no qemu-img (qemu-utils)");
    }
    have
}

fn disk(words: &str, file: &Path) -> Command {
    let mut command = vsc();
    command.arg("disk");
    for word in words.split_whitespace() {
        match word {
            "FILE" => command.arg(file),
            word => command.arg(word),
        };
    }
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)))
}

/// A QEMU tool on an image, unlocked by the passphrase in `key` if there is one.
fn qemu(tool: &str, words: &[&str], image: &Path, format: &str, key: Option<&Path>) -> Output {
    let mut command = Command::new(tool);
    command.args(words);
    match key {
        None if tool == "qemu-img" => command.args(["-f", format]).arg(image),
        _ => {
            let mut options = format!("driver={format},file.filename={}", image.display());
            if let Some(key) = key {
                let object = format!("secret,id=k,file={}", key.display());
                command.args(["--object", &object]);
                options += ",encrypt.key-secret=k";
            }
            command.args(["--image-opts", &options])
        }
    };
    command.output().unwrap()
}

/// Processes that `pid` started.
fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Looks again and again until `what` is there; the process must be alive meanwhile.
fn await_in<T>(child: &mut Child, what: &str, mut look: impl FnMut(u32) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look(child.id()) {
            return found;
        }
        if let Some(ended) = child.try_wait().unwrap() {
            let mut said = String::new();
            let stderr = child
                .stderr
                .as_mut()
                .map(|pipe| pipe.read_to_string(&mut said));
            panic!("{what}: it ended with {ended}, saying {said:?} ({stderr:?})");
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Who writes the image, once that many bytes are written of 3 GiB.
fn await_writing(child: &mut Child, format: &str, bytes: u64) -> u32 {
    await_in(child, "the middle of writing", |pid| {
        let writer = match format {
            "raw" => pid,
            _ => children(pid).first().copied()?,
        };
        let io = fs::read_to_string(format!("/proc/{writer}/io")).ok()?;
        let written = io.lines().find_map(|line| line.strip_prefix("wchar: "))?;
        let written: u64 = written.parse().ok()?;
        (bytes..3 << 30).contains(&written).then_some(writer)
    })
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A program in qemu-img's place; the directory of it is the whole $PATH.
fn program(dir: &TempDir, script: &str) -> PathBuf {
    let bin = dir.path("bin");
    fs::create_dir_all(&bin).unwrap();
    // Written by another process: one that a fork of this one's threads has open for writing cannot be started.
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let file = bin.join("qemu-img");
    let mut command = Command::new("sh");
    command.args(["-c", write]).arg(file).arg(script);
    assert!(command.status().unwrap().success());
    bin
}

#[test]
fn twelve_images_are_what_was_asked_for() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new("disk-matrix");
    let key = dir.secret("key", PASSPHRASE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    const SIZE: u64 = 20 << 20;
    // (options, format, cluster, lazy, compression, encrypted, allocated at least)
    let mut cases = Vec::new();
    for preallocation in ["off", "falloc", "full"] {
        let room = if preallocation == "off" { 0 } else { SIZE };
        let options = format!("--format raw --preallocation {preallocation}");
        cases.push((options, "raw", 0, false, "", false, room));
    }
    for (preallocation, room) in [
        ("off", 0),
        ("metadata", 0),
        ("falloc", SIZE),
        ("full", SIZE),
    ] {
        let common = format!("--format qcow2 --preallocation {preallocation}");
        let options =
            format!("{common} --cluster-size 1M --lazy-refcounts on --compression-type zstd");
        cases.push((options, "qcow2", 1 << 20, true, "zstd", false, room));
        let options = format!("{common} --lazy-refcounts off --compression-type zlib");
        cases.push((options, "qcow2", 65536, false, "zlib", false, room));
    }
    let options = format!(
        "--format qcow2 --encryption luks --preallocation metadata --cluster-size 1024k --lazy-refcounts on \
         --secret-file {}",
        key.display()
    );
    cases.push((options, "qcow2", 1 << 20, true, "zlib", true, 0));
    assert_eq!(cases.len(), 12);

    for (n, (options, format, cluster, lazy, compression, encrypted, room)) in
        cases.into_iter().enumerate()
    {
        let file = dir.path(&format!("disk{n}"));
        let output = run(&mut disk(
            &format!("create FILE 20M --json {options}"),
            &file,
        ));
        expect_code(&output, 0);
        assert_eq!(text(&output.stderr), "", "{options}");
        let record = json(&output);
        assert_eq!(record["path"], *file.to_str().unwrap());
        assert_eq!(
            (&record["format"], &record["size"]),
            (&format.into(), &SIZE.into())
        );
        let on_disk = fs::metadata(&file).unwrap();
        assert_eq!(on_disk.permissions().mode() & 0o7777, 0o600);
        assert_eq!(record["allocated"], on_disk.blocks() * 512);
        assert!(on_disk.blocks() * 512 >= room, "{options}: {on_disk:?}");
        assert!(
            room > 0 || on_disk.blocks() * 512 < SIZE,
            "{options}: {on_disk:?}"
        );

        let key = encrypted.then_some(&*key);
        let theirs = json(&qemu(
            "qemu-img",
            &["info", "--output=json"],
            &file,
            format,
            key,
        ));
        let ours = run(&mut disk(
            &format!("info FILE --json --format {format}"),
            &file,
        ));
        expect_code(&ours, 0);
        let (ours, special) = (json(&ours), &theirs["format-specific"]["data"]);
        assert_eq!(theirs["format"], format, "{options}");
        assert_eq!(theirs["virtual-size"], SIZE, "{options}");
        assert_eq!(ours["virtual_size"], SIZE, "{options}");
        if format == "raw" {
            assert!(ours.get("header").is_none() && ours.get("looks_like").is_none());
            continue;
        }
        assert_eq!(theirs["cluster-size"], cluster, "{options}");
        assert_eq!(special["compat"], "1.1", "{options}");
        assert_eq!(special["lazy-refcounts"], lazy, "{options}");
        assert_eq!(special["compression-type"], compression, "{options}");
        assert_eq!(theirs["encrypted"] == true, encrypted, "{options}");
        assert_eq!(
            special["encrypt"]["format"] == "luks",
            encrypted,
            "{options}"
        );
        let header = &ours["header"];
        assert_eq!(header["version"], 3);
        for (ours, theirs) in [
            (&header["cluster_size"], &theirs["cluster-size"]),
            (&header["lazy_refcounts"], &special["lazy-refcounts"]),
            (&header["compression_type"], &special["compression-type"]),
            (&header["encryption"], &special["encrypt"]["format"]),
        ] {
            assert_eq!(ours, theirs, "{options}");
        }
        expect_code(&qemu("qemu-img", &["check"], &file, format, key), 0);
        // What was allocated and never written is zeros, which decrypted are something else.
        let pattern = if encrypted {
            "read 0 20M"
        } else {
            "read -P 0 0 20M"
        };
        let read = qemu("qemu-io", &["-c", pattern], &file, format, key);
        expect_code(&read, 0);
        if encrypted {
            let wrong = dir.write("wrong", "correct horse");
            let read = qemu(
                "qemu-io",
                &["-c", "read 0 64k"],
                &file,
                format,
                Some(&wrong),
            );
            assert_eq!(read.status.code(), Some(1), "{}", text(&read.stderr));
            assert!(
                text(&read.stderr).contains("Invalid password"),
                "{}",
                text(&read.stderr)
            );
        }
    }
}

#[test]
fn nothing_is_overwritten_and_one_of_many_wins() {
    let dir = TempDir::new("disk-race");
    let file = dir.write("disk", "precious");
    for options in ["", "--format qcow2", "--preallocation full"] {
        let output = run(&mut disk(&format!("create FILE 1M {options}"), &file));
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("exists already"),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
    fs::remove_file(&file).unwrap();
    let racers: Vec<_> = (1..=8u64)
        .map(|n| {
            let words = format!("create FILE {n}M --json --preallocation full");
            (n << 20, start(&mut disk(&words, &file)))
        })
        .collect();
    let mut winners = Vec::new();
    for (size, racer) in racers {
        let output = finish(racer);
        match output.status.code() {
            Some(0) => winners.push(size),
            _ => {
                expect_code(&output, 125);
                assert!(
                    text(&output.stderr).contains("exists already"),
                    "{}",
                    text(&output.stderr)
                );
            }
        }
    }
    assert_eq!(winners, [fs::metadata(&file).unwrap().len()]);
    assert_eq!(dir.names(), ["disk"]);
}

#[test]
fn a_signal_in_the_middle_leaves_nothing() {
    let dir = TempDir::new("disk-signal");
    let qemu = have_qemu_img();
    for (format, signal) in [
        ("raw", libc::SIGTERM),
        ("raw", libc::SIGINT),
        ("qcow2", libc::SIGTERM),
        ("qcow2", libc::SIGINT),
    ] {
        if format == "qcow2" && !qemu {
            continue;
        }
        let file = dir.path("disk");
        let words = format!("create FILE 3G --format {format} --preallocation full");
        let mut child = start(&mut disk(&words, &file));
        let writer = await_writing(&mut child, format, 16 << 20);
        let pid = i32::try_from(child.id()).unwrap();
        // SAFETY: a plain system call; the child was not waited for.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0);
        let output = finish(child);
        expect_code(&output, 128 + signal);
        assert!(
            text(&output.stderr).contains("interrupted"),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(text(&output.stdout), "");
        assert_eq!(dir.names(), [""; 0], "{format}");
        assert!(!Path::new(&format!("/proc/{writer}")).exists(), "{format}");
    }
}

/// Without a chance to tidy up, the kernel does.
#[test]
fn a_kill_leaves_nothing_where_files_need_no_name() {
    let dir = TempDir::new("disk-kill");
    for format in ["raw", "qcow2"] {
        if format == "qcow2" && !have_qemu_img() {
            return;
        }
        let file = dir.path("disk");
        let words = format!("create FILE 3G --format {format} --preallocation full");
        let mut child = start(&mut disk(&words, &file));
        let writer = await_writing(&mut child, format, 1 << 20);
        let named = !dir.names().is_empty();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        if named {
            return skip("this file system has no O_TMPFILE");
        }
        assert_eq!(dir.names(), [""; 0]);
        // What it started does not go on for nobody. It may be a zombie until init looks.
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read(format!("/proc/{writer}/cmdline")).is_ok_and(|words| !words.is_empty()) {
            assert!(
                Instant::now() < deadline,
                "{format}: process {writer} goes on"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_full_file_system_and_a_limit_leave_nothing() {
    let dir = TempDir::new("disk-full");
    fs::create_dir(dir.path("small")).unwrap();
    let small = dir.path("small");
    let qemu = have_qemu_img();
    let mount = "mount -t tmpfs -o size=4m none \"$0\" || exit 99\n\"$@\"\ncode=$?\nls -A \"$0\"\nexit $code";
    let limit = "ulimit -f 2048\n\"$@\"\ncode=$?\nls -A \"$0\"\nexit $code";
    for (script, reason) in [(mount, "No space left"), (limit, "too large")] {
        for options in [
            "--preallocation off",
            "--preallocation falloc",
            "--preallocation full",
            "--format qcow2 --preallocation falloc",
            "--format qcow2 --preallocation full",
        ] {
            if options.contains("qcow2") && !qemu {
                continue;
            }
            let verb = disk(&format!("create FILE 16M {options}"), &small.join("disk"));
            let mut command = match script == mount {
                true => {
                    let mut unshare = Command::new("unshare");
                    unshare.args(["-rm", "sh", "-c", script]);
                    unshare
                }
                false => {
                    let mut sh = Command::new("sh");
                    sh.args(["-c", script]);
                    sh
                }
            };
            command
                .arg(&small)
                .arg(verb.get_program())
                .args(verb.get_args());
            let output = run(&mut command);
            if script == mount && matches!(output.status.code(), Some(1 | 99)) {
                skip(&format!(
                    "no tmpfs of its own for a test: {}",
                    text(&output.stderr)
                ));
                break;
            }
            if script == mount && options.ends_with("off") {
                // Holes take no room.
                expect_code(&output, 0);
                assert_eq!(text(&output.stdout), "disk\n");
                continue;
            }
            expect_code(&output, 125);
            assert!(
                text(&output.stderr).contains(reason),
                "{options}: {}",
                text(&output.stderr)
            );
            if script == limit {
                assert!(
                    text(&output.stderr).contains("see ulimit -f"),
                    "{}",
                    text(&output.stderr)
                );
            }
            assert_eq!(text(&output.stdout), "", "{options}");
        }
    }
}

#[test]
fn without_proc_an_image_has_a_temporary_name() {
    let dir = TempDir::new("disk-proc");
    let file = dir.write("disk", "precious");
    let script = "mount -t tmpfs none /proc || exit 99\nexec \"$@\"";
    for (code, says) in [(125, "exists already"), (0, "")] {
        let verb = disk("create FILE 1M --preallocation full", &file);
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh"]);
        command.arg(verb.get_program()).args(verb.get_args());
        let output = run(&mut command);
        if matches!(output.status.code(), Some(1 | 99)) {
            return skip(&format!(
                "no /proc of its own for a test: {}",
                text(&output.stderr)
            ));
        }
        expect_code(&output, code);
        assert!(
            text(&output.stderr).contains(says),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(dir.names(), ["disk"]);
        if code == 0 {
            assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
        } else {
            fs::remove_file(&file).unwrap();
        }
    }
}

#[test]
fn a_passphrase_is_nowhere_to_be_seen() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new("disk-secret");
    let key = dir.secret("key", format!("{PASSPHRASE}\n"));
    let file = dir.path("disk");
    let words = format!(
        "create FILE 8M --format qcow2 --encryption luks --secret-file {}",
        key.display()
    );
    let mut command = disk(&words, &file);
    command.env("VSC_TEST_MARKER", "not for others");
    let mut child = start(&mut command);
    let contains =
        |bytes: &[u8], what: &str| bytes.windows(what.len()).any(|w| w == what.as_bytes());
    let mut seen = 0;
    let deadline = Instant::now() + Duration::from_secs(170);
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        let started = children(child.id());
        for &pid in started.iter().chain([&child.id()]) {
            let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let (arguments, environment) = (read("cmdline"), read("environ"));
            for bytes in [&arguments, &environment] {
                assert!(!contains(bytes, "correct horse"), "{}", text(bytes));
            }
            // Between fork and exec it still is what started it.
            if started.contains(&pid)
                && arguments.starts_with(b"/")
                && contains(&arguments, "qemu-img")
            {
                seen += 1;
                assert_eq!(text(&environment), "LC_ALL=C\0");
                assert!(
                    contains(&arguments, "file=/proc/self/fd/0"),
                    "{}",
                    text(&arguments)
                );
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = finish(child);
    expect_code(&output, 0);
    assert!(seen > 0, "qemu-img was never seen");
    assert!(
        !contains(&output.stderr, "correct"),
        "{}",
        text(&output.stderr)
    );
    // The newline is no part of it.
    let exact = dir.secret("exact", PASSPHRASE);
    let read = qemu(
        "qemu-io",
        &["-c", "read 0 64k"],
        &file,
        "qcow2",
        Some(&exact),
    );
    expect_code(&read, 0);
    assert!(!contains(&fs::read(&file).unwrap(), "correct horse"));
}

#[test]
fn a_passphrase_is_typed_twice_and_not_shown() {
    if !have_qemu_img() {
        return;
    }
    let dir = TempDir::new("disk-typed");
    let file = dir.path("disk");
    let ask = || disk("create FILE 8M --format qcow2 --encryption luks", &file);
    let mut pty = Pty::new(24, 80);
    let before = pty.settings();
    for (typed, code, says) in [
        ("\x03", 130, "\n"),
        ("\r", 125, "is empty"),
        ("\x04", 125, "is empty"),
    ] {
        let mut child = pty.spawn(&mut ask());
        pty.expect("Passphrase for ");
        pty.expect(": ");
        pty.send(typed);
        pty.expect(says);
        pty.expect_code(&mut child, code);
        assert_eq!(pty.settings(), before);
        assert_eq!(dir.names(), [""; 0]);
    }
    let mut child = pty.spawn(&mut ask());
    for (question, typed) in [
        ("Passphrase for ", "correct horse\r"),
        ("again: ", "correct hearse\r"),
        ("differ", ""),
        ("Passphrase for ", "grün horse\r"),
        ("again: ", "grün horse\r"),
    ] {
        pty.expect(question);
        if question.starts_with("Pass") {
            pty.expect(": ");
        }
        pty.send(typed);
    }
    pty.expect_code(&mut child, 0);
    assert_eq!(pty.settings(), before);
    assert!(!pty.text().contains("horse"), "{}", pty.text());
    let key = dir.secret("key", "grün horse");
    let read = qemu("qemu-io", &["-c", "read 0 64k"], &file, "qcow2", Some(&key));
    expect_code(&read, 0);
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    let dir = TempDir::new("disk-unasked");
    let file = dir.path("disk");
    let verb = disk("create FILE 8M --format qcow2 --encryption luks", &file);
    let mut command = Command::new("setsid");
    command
        .arg("-w")
        .arg(verb.get_program())
        .args(verb.get_args())
        .stdin(Stdio::null());
    let output = run(&mut command);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("--secret-file or --secret-fd"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn without_qemu_img_only_raw_images_are_made() {
    let dir = TempDir::new("disk-missing");
    let file = dir.path("new/disk");
    for path in ["", dir.path("nothing").to_str().unwrap()] {
        let mut command = disk("create FILE 8M --format qcow2 --parents", &file);
        let output = run(command.env("PATH", path));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("no qemu-img in $PATH") && said.contains("qemu-utils"),
            "{said}"
        );
        assert_eq!(dir.names(), [""; 0]);
    }
    let mut command = disk("create FILE 8M --preallocation falloc --parents", &file);
    expect_code(&run(command.env("PATH", "")), 0);
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 << 20);
}

#[test]
fn a_program_that_makes_something_else_is_found_out_and_the_bar_shows_its_work() {
    let dir = TempDir::new("disk-bar");
    let (file, gate) = (dir.path("disk"), dir.path("gate"));
    assert!(
        Command::new("mkfifo")
            .arg(&gate)
            .status()
            .unwrap()
            .success()
    );
    // Writes half of what is to be there and waits.
    let script = format!(
        "#!/bin/sh\nfor a; do t=$s; s=$a; done\n/usr/bin/head -c 2097152 /dev/zero > \"$t\"\nread x < {}\n",
        gate.display()
    );
    let path = program(&dir, &script);
    let mut pty = Pty::new(24, 100);
    let mut command = disk("create FILE 4M --format qcow2 --preallocation full", &file);
    let mut child = pty.spawn(command.env("PATH", &path));
    pty.expect("disk  [###");
    pty.expect("50 %  2 MiB of 4 MiB");
    fs::write(&gate, "go\n").unwrap();
    pty.expect("what it made is not the image: it does not begin as a qcow2 image does");
    pty.expect_code(&mut child, 125);
    assert_eq!(dir.names(), ["bin", "gate"]);

    // On no terminal it says nothing within ten seconds, and what it says otherwise comes through.
    let path = program(&dir, "#!/bin/sh\necho 'qemu-img: no mood' >&2\nexit 3\n");
    let mut command = disk("create FILE 4M --format qcow2 --preallocation full", &file);
    let output = run(command.env("PATH", &path));
    expect_code(&output, 125);
    assert_eq!(
        text(&output.stderr),
        "vsc-run: qemu-img refused (exit code 3): no mood\n"
    );
    assert_eq!(dir.names(), ["bin", "gate"]);
}

#[test]
fn options_are_refused_or_warned_about() {
    let dir = TempDir::new("disk-options");
    let key = dir.secret("key", "x");
    for (words, says) in [
        (
            "FILE 1M --preallocation metadata",
            "preallocation of metadata needs qcow2",
        ),
        ("FILE 1M --secret-file KEY", "nothing would be encrypted"),
        (
            "FILE 1M --format qcow2 --cluster-size 3K",
            "a power of two from 512 bytes to 2 MiB",
        ),
        ("FILE 1M --format qcow2 --cluster-size 4M", "a power of two"),
        ("FILE 0", "A disk of no size"),
        ("FILE 1000B", "whole sectors"),
        ("FILE 20GB", "1000 or 1024"),
        ("FILE 1M --format vmdk", "possible values: raw, qcow2"),
        ("FILE.qcow2 1M", "say --format qcow2 or --format raw"),
        ("FILE/none/disk 1M", "there is no directory"),
        ("FILE/ 1M", "does not name a file"),
        (
            "FILE 1M --format qcow2 --encryption luks --secret-fd 77",
            "cannot read the passphrase from descriptor 77",
        ),
        (
            "FILE 1M --format qcow2 --encryption luks --secret-file KEY --secret-fd 0",
            "cannot be used with",
        ),
    ] {
        let file = dir.path("disk");
        let mut command = vsc();
        command.args(["disk", "create"]);
        for word in words.split(' ') {
            let word = word.replace("FILE", file.to_str().unwrap());
            command.arg(word.replace("KEY", key.to_str().unwrap()));
        }
        let output = run(&mut command);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains(says), "{words}: {said}");
        assert_eq!(dir.names(), ["key"], "{words}");
    }
    let file = dir.path("disk");
    let words = "create FILE 1M --lazy-refcounts on --cluster-size 64K --compression-type zstd";
    let output = run(&mut disk(words, &file));
    expect_code(&output, 0);
    let said = text(&output.stderr);
    for key in ["lazy_refcounts", "cluster_size", "compression_type"] {
        let warning = format!("warning[W-DISK-OPTION]: {key} needs qcow2");
        assert!(said.contains(&warning), "{said}");
    }
    assert_eq!(text(&output.stdout), "");
    assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
}

#[test]
fn info_opens_nothing_else_and_guesses_nothing() {
    let dir = TempDir::new("disk-info");
    let tell = |words: &str, file: &Path| run(&mut disk(words, file));
    let raw = dir.write("raw", [&b"QFI\xfb\0\0\0\x03"[..], &[0xff; 4088]].concat());
    let output = tell("info FILE", &raw);
    expect_code(&output, 0);
    let said = text(&output.stdout);
    assert!(
        said.contains("format        raw\n") && said.contains("look like qcow2"),
        "{said}"
    );
    assert!(said.contains("virtual size  4 KiB (4096 bytes)"), "{said}");
    let output = tell("info FILE --format qcow2", &raw);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("is no qcow2 image: clusters of 2^"),
        "{}",
        text(&output.stderr)
    );
    expect_code(&tell("info FILE", &dir.path("none")), 125);
    let pipe = dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let output = tell("info FILE", &pipe);
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("neither a file nor a block device"));

    if !have_qemu_img() {
        return;
    }
    // A backing file that would keep whoever opens it waiting.
    let file = dir.path("overlay");
    let mut command = Command::new("qemu-img");
    command.args([
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-o",
        "compat=0.10",
        "-b",
    ]);
    assert!(
        command
            .arg(&pipe)
            .arg(&file)
            .arg("1G")
            .status()
            .unwrap()
            .success()
    );
    let output = tell("info FILE --format qcow2 --json", &file);
    expect_code(&output, 0);
    let header = json(&output)["header"].clone();
    assert_eq!(header["backing_file"], *pipe.to_str().unwrap());
    assert_eq!(
        (&header["backing_format"], &header["version"]),
        (&"raw".into(), &2.into())
    );
    let data = dir.path("data.raw");
    let file = dir.path("apart");
    let option = format!("data_file={}", data.display());
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-o", &option]);
    assert!(command.arg(&file).arg("1M").status().unwrap().success());
    fs::remove_file(&data).unwrap();
    let output = tell("info FILE --format qcow2", &file);
    expect_code(&output, 0);
    let said = text(&output.stdout);
    assert!(
        said.contains("data.raw\n") && said.contains("external data file"),
        "{said}"
    );
}
