//! `vsc-run ps`: running machines, found by the memfd that holds their RAM. No file is kept for this anywhere.

use std::fs;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use vsc::store::Stat;

use super::Common;
use super::machines::{StoreArgs, clock};
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
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    store: StoreArgs,
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
    if common.json {
        say::out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&machines).unwrap_or_default()
        ));
        return 0;
    }
    let mut text = format!(
        "{:<24} {:>8} {:>10} {:>10}  SAVED\n",
        "NAME", "PID", "UPTIME", "MEMORY"
    );
    for m in machines {
        let uptime = clock(m.uptime_seconds);
        let mib = m.memory_bytes >> 20;
        let saved = m.saved.map_or_else(String::new, |name| format!("  {name}"));
        text += &format!(
            "{:<24} {:>8} {:>10} {:>6} MiB{saved}\n",
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
        uptime_seconds: Stat::of(proc, pid)
            .and_then(|stat| stat.uptime(proc))
            .map_or(0, |up| up.as_secs()),
        saved: None,
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
                saved: None
            }]
        );
    }
}
