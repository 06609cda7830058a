//! `vsc-run ps`: running machines, found by the memfd that holds their RAM. No file is kept for this anywhere.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::Common;
use crate::say;

/// A running machine.
#[derive(Debug, PartialEq, Serialize)]
struct Machine {
    name: String,
    pid: u32,
    uptime_seconds: u64,
    memory_bytes: u64,
}

pub(super) fn run(common: &Common) -> u8 {
    let machines = scan(&common.host_root.join("proc"));
    if common.json {
        say::out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&machines).unwrap_or_default()
        ));
        return 0;
    }
    let mut text = format!(
        "{:<24} {:>8} {:>10} {:>10}\n",
        "NAME", "PID", "UPTIME", "MEMORY"
    );
    for m in machines {
        let up = Duration::from_secs(m.uptime_seconds).as_secs();
        let uptime = format!("{}:{:02}:{:02}", up / 3600, up / 60 % 60, up % 60);
        let mib = m.memory_bytes >> 20;
        text += &format!(
            "{:<24} {:>8} {:>10} {:>6} MiB\n",
            m.name, m.pid, uptime, mib
        );
    }
    say::out(&text);
    0
}

fn scan(proc: &Path) -> Vec<Machine> {
    let mut machines: Vec<_> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| machine(proc, entry.file_name().to_str()?.parse().ok()?))
        .collect();
    machines.sort_by_key(|m| m.pid);
    machines
}

fn machine(proc: &Path, pid: u32) -> Option<Machine> {
    let dir = proc.join(pid.to_string());
    let (name, memory_bytes) = fs::read_dir(dir.join("fd"))
        .ok()?
        .flatten()
        .find_map(|fd| {
            let target = fs::read_link(fd.path()).ok()?;
            let name = target.to_str()?.strip_prefix("/memfd:vsc:")?;
            let name = name.strip_suffix(" (deleted)").unwrap_or(name).to_owned();
            Some((name, fs::metadata(fd.path()).map_or(0, |m| m.len())))
        })?;
    Some(Machine {
        name,
        pid,
        uptime_seconds: uptime(proc, &dir).unwrap_or(0),
        memory_bytes,
    })
}

/// Seconds since the process started: field 22 of stat is in clock ticks after boot (man proc_pid_stat).
fn uptime(proc: &Path, dir: &Path) -> Option<u64> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The command name may hold anything, so count from its closing parenthesis, after which field 3 comes.
    let started: f64 = stat
        .rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let up: f64 = fs::read_to_string(proc.join("uptime"))
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    // SAFETY: a plain question to the C library.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // Whole seconds of the difference, not the difference of whole seconds.
    (ticks > 0).then(|| (up - started / ticks as f64).max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn machines_are_found_by_their_memory_and_others_are_not() {
        let proc = std::env::temp_dir().join(format!("vsc-ps-{}", std::process::id()));
        for (pid, target) in [
            ("100", "/memfd:vsc:my vm (deleted)"),
            ("200", "/memfd:other (deleted)"),
            ("self", "x"),
        ] {
            fs::create_dir_all(proc.join(pid).join("fd")).unwrap();
            symlink(target, proc.join(pid).join("fd/3")).unwrap();
            let fields = format!("{pid} (a ) b) S {} 590 0", ["0"; 18].join(" "));
            fs::write(proc.join(pid).join("stat"), fields).unwrap();
        }
        fs::write(proc.join("uptime"), "65.10 1.0\n").unwrap();
        let machines = scan(&proc);
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(
            machines,
            [Machine {
                name: "my vm".into(),
                pid: 100,
                uptime_seconds: 59,
                memory_bytes: 0
            }]
        );
    }
}
