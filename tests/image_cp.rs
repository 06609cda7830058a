//! `vsc-run image cp`, cut off: what has a name is whole, and what is left of a copy that was killed goes with the next.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{TempDir, expect_code, run, skip, vsc};

const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Files of a directory: copying them takes longer than noticing that it has begun.
const FILES: usize = 3000;

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Copies the directory, and sends a signal once the copy has begun.
fn cut(dir: &TempDir, signal: i32) -> Child {
    // It may be over before it is seen to have begun.
    for _ in 0..20 {
        let out = dir.path("out");
        fs::remove_dir_all(&out).ok();
        fs::create_dir(&out).unwrap();
        let mut child = vsc()
            .args(["image", "cp", "ext:/d", "out"])
            .current_dir(dir.path(""))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = || names(&out).iter().any(|n| n.starts_with(".vsc-copy-"));
        while !begun() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        // SAFETY: a plain system call on a process of this test, which is not waited for yet.
        unsafe { libc::kill(child.id() as i32, signal) };
        let status = child.wait().unwrap();
        if status.code() != Some(0) {
            return child;
        }
    }
    panic!("every copy was over before it was seen");
}

#[test]
fn a_copy_that_is_cut_off_leaves_nothing_or_what_the_next_one_removes() {
    if Command::new("mkfs.ext4")
        .arg("-V")
        .env("PATH", PATH)
        .output()
        .is_err()
    {
        return skip("no mkfs.ext4");
    }
    let dir = TempDir::new("image-cp");
    fs::create_dir_all(dir.path("source/d")).unwrap();
    for number in 0..FILES {
        fs::write(dir.path(&format!("source/d/f{number}")), "x").unwrap();
    }
    let made = run(Command::new("mkfs.ext4")
        .args(["-q", "-N", "8000", "-d", "source", "ext", "64M"])
        .env("PATH", PATH)
        .current_dir(dir.path("")));
    expect_code(&made, 0);
    let out = dir.path("out");

    for signal in [libc::SIGTERM, libc::SIGINT] {
        let status = cut(&dir, signal).wait().unwrap();
        assert_eq!(status.code(), Some(128 + signal), "{status}");
        assert_eq!(names(&out), [""; 0]);
    }

    let status = cut(&dir, libc::SIGKILL).wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    let left = names(&out);
    assert!(
        left.len() == 1 && left.iter().all(|n| n.starts_with(".vsc-copy-")),
        "{left:?}"
    );
    let whole = run(vsc()
        .args(["image", "cp", "ext:/d", "out"])
        .current_dir(dir.path("")));
    expect_code(&whole, 0);
    assert_eq!(names(&out), ["d"]);
    assert_eq!(names(&out.join("d")).len(), FILES);

    // As many as were agreed to, and no more.
    let few = run(vsc()
        .args(["image", "cp", "--entries", "10", "ext:/d", "."])
        .current_dir(dir.path("")));
    expect_code(&few, 125);
    assert!(!dir.path("d").exists());
    for words in [
        &["ls", "ext:/d"][..],
        &["ls", "-l", "ext:/d"],
        &["ls", "--json", "ext:/d"],
    ] {
        let few = run(vsc()
            .arg("image")
            .args(words)
            .args(["--entries", "10"])
            .current_dir(dir.path("")));
        expect_code(&few, 125);
    }
}
