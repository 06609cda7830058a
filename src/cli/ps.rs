//! `vsc-run ps`: running machines, found by the memfd that holds their RAM. No file is kept for this anywhere.
//!
//! Whose memory this user may see, those are listed: their own, and to root all. Machines of others are private unless
//! they were registered (`register: true`), which the name of their process says: the kernel shows that to everybody
//! and lets nobody else change it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vsc::runs::{self, Found};
use vsc::store::Stat;

use super::Common;
use super::machines::{StoreArgs, clock};
use super::table::table;
use crate::run::mark;
use crate::say;

/// A running machine.
#[derive(Debug, PartialEq, Serialize)]
struct Machine {
    name: String,
    pid: u32,
    uptime_seconds: u64,
    memory_bytes: u64,
    /// The saved VM that it is.
    saved: Option<String>,
    /// The run, where it has a control socket.
    run: Option<String>,
    /// That socket.
    control: Option<PathBuf>,
    /// It is shown to others.
    registered: bool,
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Registered machines of other users as well, by the first letters of their names.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &PsArgs, common: &Common) -> u8 {
    let proc = common.host_root.join("proc");
    let mut machines = scan(&proc);
    // Machines run without a store as well: what is wrong with it is for `list` to say.
    let saved = args.store.entries(common);
    for entry in saved.into_iter().flatten() {
        let process = entry.state.process.filter(|p| p.uptime(&proc).is_some());
        let machine = process.and_then(|p| machines.iter_mut().find(|m| m.pid == p.pid));
        if let Some(machine) = machine {
            machine.saved = Some(entry.name);
        }
    }
    for found in runs_of(common) {
        let record = found.record.as_ref().filter(|_| found.lives);
        let process = record.map(|r| &r.process);
        let process = process.filter(|p| p.uptime(&proc).is_some());
        let machine = process.and_then(|p| machines.iter_mut().find(|m| m.pid == p.pid));
        if let Some(machine) = machine {
            machine.control = found.socket();
            machine.run = Some(found.id);
        }
    }
    if args.all {
        let known: Vec<u32> = machines.iter().map(|m| m.pid).collect();
        machines.extend(others(&proc, &known));
        machines.sort_by_key(|m| m.pid);
    }
    if common.json {
        say::out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&machines).unwrap_or_default()
        ));
        return 0;
    }
    if machines.is_empty() {
        say::out("no machine runs\n");
        return 0;
    }
    let none = || "-".to_owned();
    let row = |m: Machine| {
        vec![
            m.name,
            m.pid.to_string(),
            clock(m.uptime_seconds),
            format!("{} MiB", m.memory_bytes >> 20),
            m.run.unwrap_or_else(none),
            if m.registered { "yes" } else { "no" }.to_owned(),
            m.saved.unwrap_or_else(none),
        ]
    };
    let rows: Vec<_> = machines.into_iter().map(row).collect();
    let head = [
        "NAME",
        "PID",
        "UPTIME",
        "MEMORY",
        "RUN",
        "REGISTERED",
        "SAVED",
    ];
    say::out(&table(&head, &rows));
    0
}

/// What this user's runs have as state; nothing where they cannot have any.
pub(super) fn runs_of(common: &Common) -> Vec<Found> {
    let found = super::run::runs_base().and_then(|base| {
        let below = base.strip_prefix("/").unwrap_or(&base);
        runs::list(&common.host_root.join(below))
    });
    found.unwrap_or_default()
}

/// Registered machines that are not among those known.
fn others(proc: &Path, known: &[u32]) -> Vec<Machine> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !known.contains(pid))
        .filter_map(|pid| {
            let dir = proc.join(u32::to_string(&pid));
            let name = mark::of(&dir)?;
            Some(Machine {
                name,
                uptime_seconds: uptime(proc, pid),
                // Others see only how much of it there is.
                memory_bytes: shared_memory(&dir),
                registered: true,
                saved: None,
                run: None,
                control: None,
                pid,
            })
        })
        .collect()
}

/// Shared memory of a process that is there, bytes: RssShmem of /proc/PID/status (proc_pid_status(5)).
fn shared_memory(dir: &Path) -> u64 {
    let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssShmem:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

fn uptime(proc: &Path, pid: u32) -> u64 {
    let stat = Stat::of(proc, pid);
    stat.and_then(|stat| stat.uptime(proc))
        .map_or(0, |up| up.as_secs())
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
        uptime_seconds: uptime(proc, pid),
        saved: None,
        run: None,
        control: None,
        registered: mark::of(&dir).is_some(),
        memory_bytes,
    })
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
                memory_bytes: 0,
                saved: None,
                run: None,
                control: None,
                registered: false,
            }]
        );
    }
}
