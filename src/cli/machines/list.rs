//! `vsc-run list`, `vsc-run status NAME`.

#![forbid(unsafe_code)]

use clap::Args;
use vsc::libvirt::is_active;
use vsc::store::{Name, StoreError};

use super::super::Common;
use super::{Asked, DAMAGED, Row, StoreArgs, UNKNOWN, answer, failed};
use crate::say;

/// Exit code of `status` for a VM that does not run (LSB 5.0, 22.2: program is not running).
const NOT_RUNNING: u8 = 3;

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// The saved VM.
    name: String,
    #[command(flatten)]
    store: StoreArgs,
}

pub(in crate::cli) fn list(args: &ListArgs, common: &Common) -> u8 {
    let entries = match args.store.entries(common) {
        Ok(entries) => entries,
        Err(e) => return failed(&e),
    };
    let proc = common.host_root.join("proc");
    let mut asked = Asked::default();
    let rows = entries.into_iter().map(|e| Row::of(e, &proc, &mut asked));
    let rows: Vec<Row> = rows.collect();
    rows.iter().for_each(|row| complain(row, common));
    answer(common, &rows, &table(&rows));
    0
}

/// What is wrong with a VM; the answer for programs has it anyway.
fn complain(row: &Row, common: &Common) {
    for problem in row.problems.iter().filter(|_| !common.json) {
        say::warning(&format!("{}: {problem}", row.directory.display()));
    }
}

fn table(rows: &[Row]) -> String {
    let width = |head: &str, cells: &mut dyn Iterator<Item = usize>| {
        cells.chain([head.len()]).max().unwrap_or(0)
    };
    let names = width("NAME", &mut rows.iter().map(|r| r.name.chars().count()));
    let states = width("STATE", &mut rows.iter().map(|r| r.state.len()));
    let host = |row: &Row| row.host.clone().unwrap_or_else(|| "-".into());
    let hosts = width("HOST", &mut rows.iter().map(|r| host(r).chars().count()));
    let mut text = format!(
        "{:names$}  {:states$}  {:hosts$}  {:>8}  {:>10}\n",
        "NAME", "STATE", "HOST", "PID", "UPTIME"
    );
    for row in rows {
        let pid = row.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        let uptime = row.uptime_seconds.map_or_else(|| "-".into(), clock);
        text += &format!(
            "{:names$}  {:states$}  {:hosts$}  {pid:>8}  {uptime:>10}\n",
            row.name.escape_debug().to_string(),
            row.state,
            host(row).escape_debug().to_string(),
        );
    }
    text
}

/// Hours, minutes, seconds.
pub(in crate::cli) fn clock(seconds: u64) -> String {
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

pub(in crate::cli) fn status(args: &StatusArgs, common: &Common) -> u8 {
    match row(args, common) {
        Ok(row) => {
            complain(&row, common);
            let mut text = format!("{} is {}", row.name, row.state);
            if let Some(host) = row.host.as_ref().filter(|_| row.elsewhere) {
                text += &format!(" on {host}");
            }
            if let (Some(pid), Some(up)) = (row.pid, row.uptime_seconds) {
                text += &format!(", pid {pid}, up {}", clock(up));
            } else if let Some(ended) = &row.ended {
                text += &format!(
                    "; its last run: {}, exit code {}",
                    ended.outcome, ended.exit_code
                );
                if let Some(message) = &ended.message {
                    text += &format!(" ({message})");
                }
            }
            answer(common, &row, &(text + "\n"));
            match row.state.as_str() {
                UNKNOWN => crate::FAILED,
                DAMAGED => NOT_RUNNING,
                state if is_active(state) => 0,
                _ => NOT_RUNNING,
            }
        }
        Err(e) => failed(&e),
    }
}

fn row(args: &StatusArgs, common: &Common) -> Result<Row, StoreError> {
    let name = Name::existing(&args.name)?;
    let entry = args.store.of(&name, common)?.entry(&name)?;
    let proc = common.host_root.join("proc");
    Ok(Row::of(entry, &proc, &mut Asked::default()))
}
