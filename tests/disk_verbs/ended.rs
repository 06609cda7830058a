//! Ended in the middle, by a signal or by what runs out: nothing is left.

use super::*;

/// Looks again and again until `what` is there; `None`: the process has done its work first.
fn await_in<T>(child: &mut Child, what: &str, look: impl Fn(u32) -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look(child.id()) {
            return Some(found);
        }
        if let Some(ended) = child.try_wait().unwrap() {
            if ended.success() {
                return None;
            }
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

/// A process that makes an image of 3 GiB, and who writes it, once that many bytes are written. On a busy host it may
/// be done before anybody looks: then another one begins.
fn writing(file: &Path, format: &str, bytes: u64) -> (Child, u32) {
    for _ in 0..20 {
        let words = format!("create FILE 3G --format {format} --preallocation full");
        let mut child = start(&mut disk(&words, file));
        if let Some(writer) = await_writing(&mut child, format, bytes) {
            return (child, writer);
        }
        fs::remove_file(file).unwrap();
    }
    panic!("{format}: nobody is ever seen writing");
}

fn await_writing(child: &mut Child, format: &str, bytes: u64) -> Option<u32> {
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
        let (child, writer) = writing(&file, format, 16 << 20);
        kill(child.id(), signal);
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
        let (mut child, writer) = writing(&file, format, 1 << 20);
        let named = !dir.names().is_empty();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        if named {
            return skip("this file system has no O_TMPFILE");
        }
        assert_eq!(dir.names(), [""; 0]);
        // What it started does not go on for nobody.
        soon(|| !alive(writer));
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
