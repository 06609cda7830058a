use std::time::{Duration, Instant};

use super::*;

/// A shell script in the place of virsh: `sh -c SCRIPT`, the words of the command are `$0`, `$1`, ….
fn script(text: &str) -> Virsh {
    Virsh::new(text).program("/bin/sh")
}

#[test]
fn an_answer_has_both_streams_and_the_input_arrives() {
    let virsh = script("echo \"$0 $1 $LC_ALL\"; cat; echo w >&2");
    let output = virsh.run(&["define", "a b;c"], Some(b"<x/>\n")).unwrap();
    assert_eq!(output.stdout, "define a b;c C\n<x/>\n");
    assert_eq!(output.stderr, "w\n");
    // Without input it reads nothing, not the terminal.
    assert_eq!(script("cat").run(&["x"], None).unwrap().stdout, "");
}

#[test]
fn much_input_and_much_output_do_not_wait_for_each_other() {
    let much = vec![b'x'; 1 << 20];
    let output = script("cat; head -c 1000000 /dev/zero >&2")
        .run(&["x"], Some(&much))
        .unwrap();
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (1 << 20, 1_000_000)
    );
    // It ends without reading: its own words count, not the broken pipe.
    let error = script("echo 'error: no' >&2; exit 1").run(&["x"], Some(&much));
    assert!(matches!(error, Err(VirshError::Refused { message, .. }) if message == "no"));
}

#[test]
fn failures_are_told_apart() {
    let missing = Virsh::new("qemu:///system")
        .program("/nonexistent/virsh")
        .run(&["list"], None)
        .unwrap_err();
    assert!(matches!(missing, VirshError::Missing(_)));
    assert!(missing.to_string().contains("libvirt-clients"), "{missing}");

    let denied = Virsh::new("x").program("/").run(&["list"], None);
    assert!(matches!(denied, Err(VirshError::Run(..))));

    let away = "echo 'error: failed to connect to the hypervisor' >&2; echo 'error: no socket' >&2; exit 1";
    match script(away).run(&["list"], None) {
        Err(VirshError::Connect { message, .. }) => assert_eq!(message, "no socket"),
        other => panic!("{other:?}"),
    }

    let refused =
        "echo 'error: Failed to define domain from x' >&2; echo 'error: out of luck' >&2; exit 1";
    match script(refused).run(&["define"], None) {
        Err(VirshError::Refused {
            command, message, ..
        }) => {
            assert_eq!(
                (command.as_str(), message.as_str()),
                ("define", "Failed to define domain from x: out of luck")
            );
        }
        other => panic!("{other:?}"),
    }

    let silent = script("exit 3").run(&["list"], None).unwrap_err();
    assert!(silent.to_string().contains("exit status: 3"), "{silent}");
    let killed = script("kill -9 $$").run(&["list"], None).unwrap_err();
    assert!(killed.to_string().contains("signal: 9"), "{killed}");
}

#[test]
fn silence_ends_with_the_patience() {
    for text in [
        "exec sleep 600",
        "sleep 5 & wait",
        "exec sleep 600 >&- 2>&-",
    ] {
        let begin = Instant::now();
        let error = script(text)
            .patience(Duration::from_millis(200))
            .run(&["list"], None);
        assert!(
            matches!(error, Err(VirshError::TimedOut { .. })),
            "{text}: {error:?}"
        );
        assert!(begin.elapsed() < Duration::from_secs(60), "{text}");
    }
}

#[test]
fn an_endless_answer_is_cut() {
    let error = script("exec cat /dev/zero")
        .patience(Duration::from_secs(120))
        .run(&["dumpxml"], None);
    assert!(
        matches!(error, Err(VirshError::TooLong { .. })),
        "{error:?}"
    );
}
