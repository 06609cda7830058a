//! What tests need of the host beside a compiler, and honest skips where it is not there.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::io::Write;
use std::path::{Path, PathBuf};

/// Says why a test does nothing, in the form that `.ci/run` counts. Where the means must be there, it is a failure.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|value| value.is_empty()),
        "in CI this test must run: {why}"
    );
    // Not eprintln, which the test harness catches.
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}

/// Whether these programs are installed; what is missing was reported.
pub fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(program).exists())
    };
    let missing: Vec<_> = programs.iter().copied().filter(|p| !found(p)).collect();
    if !missing.is_empty() {
        skip(&format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// One of `../shared/kernels` beside the repository.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/kernels")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("there is no {}", path.display()));
    None
}

/// Where a linux-image package of Debian was unpacked.
pub fn package() -> Option<PathBuf> {
    let package = std::env::var_os("VSC_TEST_KERNEL_PACKAGE").map(PathBuf::from);
    if package.is_none() {
        skip("$VSC_TEST_KERNEL_PACKAGE names no unpacked linux-image package");
    }
    package
}
