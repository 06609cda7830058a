//! Namespaces of a test's own: it runs once more in there, as a process that touches nothing of the host's.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::io::Write;
use std::process::{Command, Stdio};

use super::common::{run, skip, text};

/// Whether this is the process inside; if not, runs this test there. `flags` are those of unshare(1), `probe` what
/// must work in there for the shell.
#[track_caller]
pub fn inside(test: &str, flags: &str, probe: &str) -> bool {
    if std::env::var_os("VSC_TEST_INSIDE").is_some() {
        return true;
    }
    // SAFETY: a plain system call.
    let user: &[&str] = match unsafe { libc::geteuid() } {
        0 => &[],
        _ => &["-r"],
    };
    let unshare = |words: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(user).args(flags.split(' ')).arg("--");
        // The first process of a namespace reaps what is orphaned.
        unshare
            .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
            .args(words);
        unshare.env("VSC_TEST_INSIDE", "1").stdin(Stdio::null());
        unshare
    };
    let tried = run(&mut unshare(&["sh", "-ec", probe]));
    if !tried.status.success() {
        skip(&format!("no namespaces to be had: {}", text(&tried.stderr)));
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let words = [this.to_str().unwrap(), "--exact", test, "--nocapture"];
    let output = run(&mut unshare(&words));
    let _ = std::io::stderr().write_all(&output.stderr);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(
        said.contains("1 passed"),
        "no test is called {test}: {said}"
    );
    false
}
