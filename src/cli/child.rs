//! This program once more, as a child: for verbs that look at whole runs.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A run that was.
pub(super) struct Run {
    /// How the process ended.
    pub(super) status: ExitStatus,
    /// Its result file; null when it wrote none.
    pub(super) result: serde_json::Value,
    /// What it wrote to standard output.
    pub(super) stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub(super) stderr: Vec<u8>,
    /// From before it was started to when it was gone.
    pub(super) whole: Duration,
}

impl Run {
    /// One sentence on why it is no success; `None` when it is one.
    pub(super) fn failure(&self) -> Option<String> {
        if self.status.success() {
            return None;
        }
        // Its own sentence, else the last line of what it said.
        let told = self.result["message"].as_str().map(str::to_owned);
        let said = String::from_utf8_lossy(&self.stderr);
        let last = said.trim_end().lines().last();
        let last = last.map(|last| last.strip_prefix("vsc-run: ").unwrap_or(last).to_owned());
        Some(match told.or(last) {
            Some(why) => format!("{}: {why}", self.status),
            None => self.status.to_string(),
        })
    }
}

/// Runs this program with `arguments`, without input, to its end.
///
/// # Errors
/// The system's reason.
pub(super) fn run(arguments: &[OsString]) -> io::Result<Run> {
    let directory = TempDir::new()?;
    let path = directory.0.join("result.json");
    let mut command = Command::new(std::env::current_exe()?);
    // The runs are compared with each other: none of them may read what the first one consumed.
    command
        .stdin(Stdio::null())
        .arg("--result")
        .arg(&path)
        .args(arguments);
    let begin = Instant::now();
    let output = command.output()?;
    let whole = begin.elapsed();
    Ok(Run {
        status: output.status,
        result: read(&path),
        stdout: output.stdout,
        stderr: output.stderr,
        whole,
    })
}

fn read(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// A directory that nobody else has, gone with the value.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsc-run-{}-{count}", std::process::id()));
        // Not create_dir_all: what is there already is not ours.
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A leftover in the temporary directory is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
