//! A run that its own memory limit ended: the host's kernel kills it without a word, and only its cgroup can tell.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::change::{Act, Change};
use super::touch;
use crate::scenario::value::size_text;

/// The [`Change::what`] of the cgroup of a run.
pub const LIMITS: &str = "limits";

/// The cgroup of the run, where it has one.
pub(super) fn cgroup(changes: &[Change]) -> Option<&Path> {
    changes.iter().rev().find_map(|change| match &change.act {
        Act::Directory { path } if change.what == LIMITS => Some(path.as_path()),
        _ => None,
    })
}

/// Why the kernel killed the run in a cgroup, if it did (`memory.events`, Documentation/admin-guide/cgroup-v2.rst).
pub(super) fn why(cgroup: &Path) -> Option<String> {
    let events = read(cgroup.join("memory.events"))?;
    let count = |name: &str| {
        let mut words = events.lines().map(str::split_ascii_whitespace);
        words.find_map(|mut words| match words.next() {
            Some(word) if word == name => words.next()?.parse::<u64>().ok(),
            _ => None,
        })
    };
    if count("oom_kill")? == 0 {
        return None;
    }
    if count("oom").is_none_or(|n| n == 0) {
        let why = "killed by the host's kernel: no memory was left, on the host or in a cgroup above the run's own";
        return Some(why.to_owned());
    }
    let most = read(cgroup.join("memory.max")).and_then(|text| text.trim().parse().ok());
    let most = most.map_or_else(String::new, |most| format!(", {}", size_text(most)));
    Some(format!(
        "killed by the host's kernel: the run used more memory than limits.memory_max (memory.hard_limit) allows{most}"
    ))
}

fn read(path: PathBuf) -> Option<String> {
    touch::read(&path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_kernels_count_tells_whose_limit_it_was() {
        let dir = std::env::temp_dir().join(format!("vsc-killed-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(why(&dir), None);
        let told = |events: &str, max: &str| {
            fs::write(dir.join("memory.events"), events).unwrap();
            fs::write(dir.join("memory.max"), max).unwrap();
            why(&dir)
        };
        assert_eq!(told("", "max\n"), None);
        let all = |oom, kill| format!("low 0\nhigh 3\nmax 9\noom {oom}\noom_kill {kill}\n");
        assert_eq!(told(&all(0, 0), "402653184\n"), None);
        assert_eq!(
            told(&all(4, 0), "402653184\n"),
            None,
            "the reserve was enough"
        );
        let own = told(&all(1, 1), "402653184\n").unwrap();
        assert!(
            own.contains("limits.memory_max") && own.ends_with(", 384 MiB"),
            "{own}"
        );
        let above = told(&all(0, 1), "402653184\n").unwrap();
        assert!(
            above.contains("above") && !above.contains("limits"),
            "{above}"
        );
        let unlimited = told(&all(1, 1), "max\n").unwrap();
        assert!(unlimited.ends_with("allows"), "{unlimited}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
