//! A place of runs for one test, and its machines.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::common::process::spinning;
use super::common::{TempDir, expect_code, have_kvm, run, vsc};

/// Whether this is the process inside; if not, runs this test there, once more: root's runs have one place.
pub fn inside(test: &str) -> bool {
    have_kvm() && super::inside::inside(test, "-m", "mount -t tmpfs t /run; test -w /dev/kvm")
}

/// A home of runs, and of this test alone.
pub struct Home(pub TempDir);

impl Home {
    pub fn new(name: &str) -> Self {
        let output =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "t", "/run"]));
        expect_code(&output, 0);
        Self(TempDir::new(&format!("ctl-{name}")))
    }

    /// Where directories of runs are.
    pub fn base(&self) -> PathBuf {
        // SAFETY: a plain system call.
        match unsafe { libc::geteuid() } {
            0 => "/run/vsc".into(),
            _ => self.0.path("vsc"),
        }
    }

    pub fn vsc(&self) -> Command {
        let mut command = vsc();
        command.env("XDG_RUNTIME_DIR", self.0.path(""));
        command
    }

    /// A machine that runs until it is ended, and has greeted.
    pub fn machine(&self, arguments: &[&str]) -> Child {
        let spin = ["-o", "guest.parameters=test=none hello spin"];
        spinning(self.vsc().args(spin).args(arguments))
    }

    pub fn ctl(&self, arguments: &[&str]) -> std::process::Output {
        run(self.vsc().arg("ctl").args(arguments))
    }

    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.base()).into_iter().flatten().flatten();
        // The journal of what is to be undone is there, too.
        let runs = entries.filter(|entry| entry.file_name() != "host");
        runs.map(|entry| entry.path()).collect()
    }
}
