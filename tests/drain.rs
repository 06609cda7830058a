//! The last output of a machine reaches its reader, however late that is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::process::kill;
use common::{kernel, vsc};

const LEN: usize = 48 * 65_536;
/// Writes [`LEN`] bytes with what a shell alone can do.
const WRITE: &str = "i=0; while [ $i -lt 48 ]; do printf %065536d 0; i=$((i+1)); done";

fn start(kernel: &std::path::Path, options: &[&str], script: &str) -> Child {
    vsc()
        .arg("--kernel")
        .arg(kernel)
        .args(["-o", "limits.stop_grace=500ms"])
        .args(options)
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets time pass: a reader that pauses is what these tests are about.
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn a_reader_that_pauses_longer_than_the_grace_period_gets_every_byte() {
    let Some(kernel) = kernel() else { return };
    let mut child = start(&kernel, &[], WRITE);
    let mut stdout = child.stdout.take().unwrap();
    pause(Duration::from_secs(3));
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len(), child.wait().unwrap().code()), (LEN, Some(0)));
}

#[test]
fn an_interrupt_that_the_command_handles_cuts_nothing_off() {
    let Some(kernel) = kernel() else { return };
    let script = format!("trap '{WRITE}; exit 3' INT; echo ready; while :; do read x; done");
    let mut child = start(&kernel, &[], &script);
    let mut stdout = child.stdout.take().unwrap();
    let mut line = [0; 6];
    stdout.read_exact(&mut line).unwrap();
    kill(child.id(), libc::SIGINT);
    pause(Duration::from_secs(2));
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len(), child.wait().unwrap().code()), (LEN, Some(3)));
}

#[test]
fn a_signal_or_the_time_limit_ends_the_wait_for_a_reader_and_says_so() {
    let Some(kernel) = kernel() else { return };
    for (options, signal, code) in [
        (vec!["--timeout", "3s"], None, 124),
        (vec![], Some(libc::SIGTERM), 143),
    ] {
        let begin = Instant::now();
        let mut child = start(&kernel, &options, WRITE);
        // Nobody reads; the machine itself is done long before.
        pause(Duration::from_secs(2));
        let ended = child.try_wait().unwrap();
        let in_time = signal.is_some() || begin.elapsed() < Duration::from_secs(3);
        assert!(ended.is_none() || !in_time, "it waits for its reader");
        if let Some(signal) = signal {
            kill(child.id(), signal);
        }
        // Kept open, so that only its end ends the wait.
        let stdout = child.stdout.take();
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{said}");
        drop(stdout);
        let told = said.contains("the time limit of 3 s was reached");
        assert_eq!(told, signal.is_none(), "{said}");
    }
}
