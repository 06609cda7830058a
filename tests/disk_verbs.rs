//! `disk create` and `disk info`, checked with QEMU's own tools: what is made, what is refused, and that nothing is
//! left of what fails.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "disk_verbs/ended.rs"]
mod ended;
#[path = "disk_verbs/passphrases.rs"]
mod passphrases;
#[path = "common/pty.rs"]
mod pty;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::process::{alive, children, kill, soon};
use common::{TempDir, expect_code, finish, json, run, skip, text, vsc};
use pty::Pty;

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
    common::program(&bin.join("qemu-img"), script);
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
        "error[E-DISK]: qemu-img refused (exit code 3): no mood\n"
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
