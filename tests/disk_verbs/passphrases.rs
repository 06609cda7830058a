//! Passphrases: where they come from, and where they are not seen.

use super::*;

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
