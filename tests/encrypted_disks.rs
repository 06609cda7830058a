//! Encrypted disks of a run: where passphrases come from, and where they are never to be found.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{TempDir, expect_code, finish, have_kvm, run, skip, text, vsc};

const PASSPHRASE: &str = "xyzzy-correct-horse-battery-staple";

/// A directory with an encrypted disk of 8 MiB and the file that opens it.
fn lab(name: &str) -> TempDir {
    let dir = TempDir::new(name);
    dir.secret("key", format!("{PASSPHRASE}\n"));
    let mut command = vsc();
    command.current_dir(dir.path(""));
    command.args([
        "disk",
        "create",
        "d.luks",
        "8M",
        "--encryption",
        "luks",
        "--iter-time",
        "10",
    ]);
    expect_code(&run(command.args(["--secret-file", "key"])), 0);
    dir
}

fn scenario(dir: &TempDir, secret: &str) -> Command {
    let text = format!(
        "disks: [{{path: d.luks, encryption: luks, discard: unmap, secret: {secret}}}]\nguest: {{parameters: test=blk}}\n"
    );
    dir.write("s.yaml", text);
    let mut command = vsc();
    command.current_dir(dir.path("")).arg("s.yaml");
    command
}

/// A program that may be missing.
fn have(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skip(&format!("no {program}"));
    }
    found
}

#[test]
fn a_guest_uses_an_encrypted_disk_and_qemu_reads_what_it_wrote() {
    if !have_kvm() || !have("qemu-io") {
        return;
    }
    let dir = lab("luks-guest");
    for cache in ["writeback", "none", "writethrough"] {
        let mut command = scenario(&dir, "{file: key}");
        let cache = format!("disks.0.cache={cache}");
        // Every request that there is, discards and zeroes too.
        command.args(["-o", &cache, "-o", "guest.parameters=test=blk write"]);
        let output = run(&mut command);
        expect_code(&output, 0);
        let said = text(&output.stdout);
        for test in [
            "blk0.write",
            "blk0.discard",
            "blk0.zeroes",
            "blk0.flush",
            "blk0.depth",
        ] {
            assert!(
                said.contains(&format!("ok {test} ")) || said.contains(&format!("ok {test}\n")),
                "{test}: {said}"
            );
        }
    }
    // What QEMU writes is what the guest reads.
    let exact = dir.secret("exact", PASSPHRASE);
    let object = format!("secret,id=s,file={}", exact.display());
    let image = format!(
        "driver=luks,key-secret=s,file.filename={}",
        dir.path("d.luks").display()
    );
    let mut qemu = Command::new("qemu-io");
    qemu.args([
        "--object",
        &object,
        "--image-opts",
        &image,
        "-c",
        "write -P 0x5a 0 8M",
    ]);
    expect_code(&run(&mut qemu), 0);
    let output = run(&mut scenario(&dir, "{file: key}"));
    expect_code(&output, 0);
    assert!(text(&output.stdout).contains("ok blk0.read.plain 16384 sectors"));
}

#[test]
fn passphrases_come_from_files_descriptors_credentials_and_variables() {
    if !have_kvm() {
        return;
    }
    let dir = lab("luks-sources");
    let good = |command: &mut Command| {
        let output = run(command);
        expect_code(&output, 0);
        text(&output.stderr)
    };
    assert_eq!(good(&mut scenario(&dir, "{file: key}")), "");
    let mut older = scenario(&dir, "{}");
    assert_eq!(good(older.args(["-o", "disks.0.secret_file=key"])), "");

    // A pipe, and a file that was read before.
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(PASSPHRASE.as_bytes()).unwrap();
    drop(writer);
    let mut file = File::open(dir.path("key")).unwrap();
    file.read_exact(&mut [0; 4]).unwrap();
    for fd in [OwnedFd::from(reader), OwnedFd::from(file)] {
        let mut command = scenario(&dir, "{fd: 9}");
        let number = fd.as_raw_fd();
        // SAFETY: dup2 may be called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::dup2(number, 9) {
                9 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        assert_eq!(good(&mut command), "");
    }
    let mut command = scenario(&dir, "{fd: 0}");
    let output = {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(PASSPHRASE.as_bytes())
            .unwrap();
        finish(child)
    };
    expect_code(&output, 0);

    fs::create_dir(dir.path("credentials")).unwrap();
    fs::copy(dir.path("key"), dir.path("credentials/disk")).unwrap();
    let mut command = scenario(&dir, "{credential: disk}");
    command.env("CREDENTIALS_DIRECTORY", dir.path("credentials"));
    assert_eq!(good(&mut command), "");
    let mut command = scenario(&dir, "{env: DISK_KEY}");
    let said = good(command.env("DISK_KEY", PASSPHRASE));
    assert!(
        said.contains("environment of whoever started this"),
        "{said}"
    );
    assert!(!said.contains("xyzzy"), "{said}");
}

#[test]
fn each_way_to_have_no_passphrase_is_one_message() {
    let dir = lab("luks-refused");
    dir.write("open-key", PASSPHRASE);
    dir.secret("wrong", "wrong");
    dir.secret("empty", "\n");
    dir.secret("long", vec![b'x'; (64 << 10) + 1]);
    for (secret, environment, says) in [
        ("{file: open-key}", None, "can be read by others"),
        ("{file: open-key}", None, "chmod 600 open-key"),
        ("{file: long}", None, "is longer than 64 KiB"),
        ("{file: none}", None, "cannot read the passphrase from"),
        ("{file: empty}", None, "is empty"),
        ("{fd: 77}", None, "descriptor 77"),
        (
            "{credential: disk}",
            None,
            "$CREDENTIALS_DIRECTORY is not set",
        ),
        ("{env: VSC_NONE}", None, "is not set"),
        ("{env: VSC_NONE}", Some(("VSC_NONE", "")), "is empty"),
        ("{}", None, "nobody says where its passphrase comes from"),
    ] {
        let mut command = scenario(&dir, secret);
        command
            .env_remove("CREDENTIALS_DIRECTORY")
            .envs(environment);
        let output = run(&mut command);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("error[E-SECRET]") && said.contains(says),
            "{secret}: {said}"
        );
        // The place is that of the key that was said.
        let key = secret.trim_matches(['{', '}']).split(": ").nth(1);
        if let Some(value) = key {
            let line = fs::read_to_string(dir.path("s.yaml")).unwrap();
            let column = line.find(&format!(" {value}}}")).unwrap() + 2;
            assert!(said.contains(&format!("s.yaml:1:{column}")), "{said}");
        }
    }
    let output = run(&mut scenario(&dir, "{file: key, env: X}"));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("error[E-CONFLICT]: The passphrase comes from two places")
    );
    if !have_kvm() {
        return;
    }
    let output = run(&mut scenario(&dir, "{file: wrong}"));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("error[E-SECRET]: s.yaml:1:73: Disk ")
            && said.contains("d.luks: cannot be opened with this passphrase (one newline"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    // Nor is the container the guest's, where a passphrase was named.
    for (format, code) in [("raw, secret: {file: key}", 125), ("raw, ", 0)] {
        let scenario = format!("disks: [{{path: d.luks, format: {format}}}]\n");
        dir.write("bare.yaml", scenario);
        let output = run(vsc().current_dir(dir.path("")).args(["check", "bare.yaml"]));
        expect_code(&output, code);
        let said = text(&output.stderr);
        assert_eq!(
            said.contains("begins as a LUKS container"),
            code != 0,
            "{said}"
        );
    }
    // What is not encrypted is not opened either.
    dir.write("d.luks", vec![0u8; 8 << 20]);
    let output = run(&mut scenario(&dir, "{file: key}"));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("not encrypted with LUKS"),
        "{}",
        text(&output.stderr)
    );
}

/// Runs of bytes that must not be found: the passphrase, and the key of the disk.
fn found(in_bytes: &[u8], what: &[Vec<u8>]) -> Vec<usize> {
    let mut hits = Vec::new();
    for (number, secret) in what.iter().enumerate() {
        let first = secret[0];
        let mut at = 0;
        while let Some(next) = in_bytes[at..].iter().position(|&b| b == first) {
            at += next;
            if in_bytes[at..].starts_with(secret) {
                hits.push(number);
                break;
            }
            at += 1;
        }
    }
    hits
}

/// The key that encrypts the disk, in pieces as a cipher has them, as cryptsetup tells it.
fn volume_key(dir: &TempDir) -> Option<Vec<Vec<u8>>> {
    if !have("cryptsetup") {
        return None;
    }
    let exact = dir.secret("exact", PASSPHRASE);
    let mut command = Command::new("cryptsetup");
    command.args(["luksDump", "-q", "--dump-volume-key", "--key-file"]);
    command
        .arg(exact)
        .arg("--volume-key-file")
        .arg(dir.path("volume-key"));
    expect_code(&run(command.arg(dir.path("d.luks"))), 0);
    let key = fs::read(dir.path("volume-key")).unwrap();
    assert_eq!(key.len(), 64);
    Some(key.chunks(16).map(<[u8]>::to_vec).collect())
}

#[test]
fn passphrase_and_key_are_nowhere_to_be_found() {
    if !have_kvm() || !have("gcore") {
        return;
    }
    let dir = lab("luks-core");
    let Some(key) = volume_key(&dir) else {
        return;
    };
    let secrets = [vec![PASSPHRASE.as_bytes().to_vec()], key].concat();
    assert_eq!(found(PASSPHRASE.as_bytes(), &secrets), [0]);
    for source in ["{file: key}", "{env: DISK_KEY}"] {
        let mut command = scenario(&dir, source);
        if source.contains("env") {
            command.env("DISK_KEY", PASSPHRASE);
        }
        // The guest reads the disk, then waits for ever.
        command.args([
            "-v",
            "-o",
            "guest.parameters=test=blk write hang",
            "--result",
        ]);
        command.arg(dir.path("result.json"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let (mut said, mut piece) = (Vec::new(), [0; 4096]);
        while !text(&said).contains("ok blk0.zeroes") {
            let n = output.read(&mut piece).unwrap();
            assert!(n > 0, "{}", text(&said));
            said.extend_from_slice(&piece[..n]);
        }
        let pid = child.id();
        let process = Path::new("/proc").join(pid.to_string());
        for name in ["cmdline", "environ"] {
            let bytes = fs::read(process.join(name)).unwrap();
            assert_eq!(found(&bytes, &secrets), [0; 0], "{name} after {source}");
        }
        let core = dir.path("core");
        let mut gcore = Command::new("gcore");
        expect_code(&run(gcore.arg("-o").arg(&core).arg(pid.to_string())), 0);
        let core = dir.path(&format!("core.{pid}"));
        let dump = fs::read(&core).unwrap();
        // It is a core with something in it.
        assert!(dump.len() > 1 << 20 && dump.starts_with(b"\x7fELF"));
        assert!(!found(&dump, &[b"d.luks".to_vec()]).is_empty());
        assert_eq!(found(&dump, &secrets), [0; 0], "core after {source}");
        fs::remove_file(core).unwrap();
        // SAFETY: a signal to our own child, which was not waited for yet.
        unsafe { libc::kill(pid as i32, libc::SIGTERM) };
        let mut errors = Vec::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_end(&mut errors)
            .unwrap();
        output.read_to_end(&mut said).unwrap();
        child.wait().unwrap();
        let result = fs::read(dir.path("result.json")).unwrap();
        for bytes in [&errors, &said, &result] {
            assert_eq!(found(bytes, &secrets), [0; 0]);
        }
    }
}

#[test]
fn a_machine_that_starts_again_opens_its_disk_again() {
    if !have_kvm() {
        return;
    }
    let dir = lab("luks-again");
    let mut command = scenario(&dir, "{file: key}");
    let again = ["events.on_reboot=restart", "events.max_restarts=1"];
    command.args(["-v", "-o", again[0], "-o", again[1]]);
    let output = run(command.args(["-o", "guest.parameters=test=blk reboot"]));
    let said = text(&output.stdout);
    assert_eq!(
        said.matches("ok blk0.read.plain 16384 sectors").count(),
        2,
        "{said}"
    );
    assert!(text(&output.stderr).contains("restart 1 of at most 1"));
}

#[test]
fn a_key_that_takes_minutes_can_be_interrupted() {
    if !have_kvm() {
        return;
    }
    let dir = lab("luks-slow");
    // Rounds of the first key slot (LUKS On-Disk Format 1.2.3, section 3): the most that are tried.
    let image = File::options()
        .write(true)
        .open(dir.path("d.luks"))
        .unwrap();
    image
        .write_all_at(&200_000_000u32.to_be_bytes(), 212)
        .unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut command = scenario(&dir, "{file: key}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let tasks = format!("/proc/{}/task", child.id());
        let computes = || {
            let all = fs::read_dir(&tasks).unwrap();
            let names = all.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
            names.flatten().any(|name| name == "key\n")
        };
        let from = Instant::now();
        while !computes() {
            assert!(child.try_wait().unwrap().is_none());
            assert!(from.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        // SAFETY: a signal to our own child, which was not waited for yet.
        unsafe { libc::kill(child.id() as i32, signal) };
        let from = Instant::now();
        let output = finish(child);
        assert!(from.elapsed() < Duration::from_secs(10));
        assert_eq!(output.status.signal(), Some(signal), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("while a passphrase was tried"), "{said}");
    }
    // More is refused, with its number.
    image
        .write_all_at(&200_000_001u32.to_be_bytes(), 212)
        .unwrap();
    let output = run(&mut scenario(&dir, "{file: key}"));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("asks for 200000001 rounds of PBKDF2"),
        "{said}"
    );
}
