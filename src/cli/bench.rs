//! `vsc-run bench`: how long a start takes, phase by phase. It measures and never judges.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::{Common, child};
use crate::say;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

/// What to measure.
#[derive(Debug, Subcommand)]
enum What {
    /// Boots again and again, and prints when each phase was reached: minimum, median, maximum.
    Boot(BootArgs),
}

/// Arguments of `bench boot`.
#[derive(Debug, Args)]
struct BootArgs {
    /// A scenario file. Without one: the built-in guest, or the command `true` where a kernel is given.
    scenario: Option<PathBuf>,
    /// Runs that count; one more comes first and does not.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// The kernel.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initrd, whose own init must end the machine.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Sets a scenario key, as for a run.
    #[arg(short = 'o', value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Gives up on a run after this long.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: String,
}

/// Phases in the order in which they are reached, as the result file names them; others follow.
const PHASES: [&str; 9] = [
    "build",
    "kvm",
    "kernel",
    "built",
    "vcpus",
    "first_output",
    "ready",
    "command",
    "end",
];
/// From before the process was started to when it was gone: what a user waits for.
const PROCESS: &str = "process";

/// The JSON form; fields are added, never renamed.
#[derive(Debug, Serialize)]
struct Report {
    payload: String,
    runs: u32,
    /// Milliseconds since the start of the program; `process` counts from before it.
    phases_ms: Vec<Row>,
    /// Exits of vCPUs, per run.
    exits: Vec<Row>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    min: f64,
    median: f64,
    max: f64,
    samples: Vec<f64>,
}

pub(super) fn run(args: &BenchArgs, common: &Common) -> u8 {
    let What::Boot(boot) = &args.what;
    match measure(boot, common) {
        Ok(report) if common.json => {
            say::out(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"));
            0
        }
        Ok(report) => {
            say::out(&text(&report));
            0
        }
        Err(message) => {
            say::error(&message);
            crate::FAILED
        }
    }
}

fn measure(args: &BootArgs, common: &Common) -> Result<Report, String> {
    let (payload, arguments) = payload(args, common);
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut exits: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for number in 0..=args.runs {
        let run =
            child::run(&arguments).map_err(|e| format!("cannot start this program again: {e}"))?;
        if let Some(failure) = run.failure() {
            return Err(format!(
                "run {number} of {} did not succeed: {failure}",
                args.runs
            ));
        }
        if number == 0 {
            // It filled the caches.
            continue;
        }
        let phases = run.result["timing_ms"].as_object().into_iter().flatten();
        for (name, ms) in phases.filter_map(|(name, ms)| Some((name, ms.as_f64()?))) {
            times.entry(name.clone()).or_default().push(ms);
        }
        times
            .entry(PROCESS.into())
            .or_default()
            .push(run.whole.as_secs_f64() * 1e3);
        for (name, count) in [
            ("to the monitor", &run.result["exits"]),
            ("all", &run.result["kvm"]["exits"]),
        ] {
            if let Some(count) = Value::as_f64(count) {
                exits.entry(name.into()).or_default().push(count);
            }
        }
    }
    Ok(Report {
        payload,
        runs: args.runs,
        phases_ms: rows(times),
        exits: rows(exits),
    })
}

/// What boots, in words and as arguments of a run.
fn payload(args: &BootArgs, common: &Common) -> (String, Vec<OsString>) {
    let BootArgs {
        scenario,
        runs: _,
        kernel,
        initrd,
        set,
        timeout,
    } = args;
    let mut out: Vec<OsString> = vec!["--timeout".into(), timeout.into()];
    if common.host_root != Path::new("/") {
        out.extend(["--host-root".into(), common.host_root.clone().into()]);
    }
    let own = |key: &String| key.starts_with("kernel") || key.starts_with("guest");
    let builtin =
        scenario.is_none() && kernel.is_none() && initrd.is_none() && !set.iter().any(own);
    if builtin {
        out.extend(["-o".into(), "guest.parameters=test=hello".into()]);
    }
    for key in set {
        out.extend(["-o".into(), key.into()]);
    }
    for (flag, file) in [("--kernel", kernel), ("--initrd", initrd)] {
        if let Some(file) = file {
            out.extend([flag.into(), file.into()]);
        }
    }
    let name = |p: &PathBuf| p.display().to_string();
    let words = match (scenario, kernel, initrd) {
        (Some(scenario), _, _) => {
            // A file named like a verb, or like an option, is a file here.
            let path = if scenario.is_relative() {
                Path::new(".").join(scenario)
            } else {
                scenario.clone()
            };
            out.push(path.into());
            name(scenario)
        }
        (None, Some(kernel), None) => {
            out.extend(["--".into(), "true".into()]);
            format!("{} with the command true", name(kernel))
        }
        (None, Some(kernel), Some(initrd)) => format!("{} with {}", name(kernel), name(initrd)),
        (None, None, Some(initrd)) => name(initrd),
        (None, None, None) if builtin => "the built-in guest, test=hello".into(),
        (None, None, None) => set.join(" "),
    };
    (words, out)
}

/// Rows in the order of [`PHASES`], then the unknown ones, then the whole.
fn rows(mut samples: BTreeMap<String, Vec<f64>>) -> Vec<Row> {
    let whole = samples.remove_entry(PROCESS);
    let known: Vec<_> = PHASES
        .iter()
        .filter_map(|name| samples.remove_entry(*name))
        .collect();
    known
        .into_iter()
        .chain(samples)
        .chain(whole)
        .map(|(name, samples)| row(name, samples))
        .collect()
}

fn row(name: String, samples: Vec<f64>) -> Row {
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    Row {
        name,
        min: at(0),
        median: if sorted.len() % 2 == 1 {
            at(middle)
        } else {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        },
        max: at(sorted.len().wrapping_sub(1)),
        samples,
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("{}; runs: {}\n\n", report.payload, report.runs);
    text += &format!(
        "{:<15} {:>10} {:>10} {:>10}\n",
        "MS SINCE START", "MIN", "MEDIAN", "MAX"
    );
    for row in &report.phases_ms {
        let name = row.name.replace('_', " ");
        text += &format!(
            "{name:<15} {:>10.2} {:>10.2} {:>10.2}\n",
            row.min, row.median, row.max
        );
    }
    text += &format!(
        "\n{:<15} {:>10} {:>10} {:>10}\n",
        "EXITS", "MIN", "MEDIAN", "MAX"
    );
    for row in &report.exits {
        text += &format!(
            "{:<15} {:>10.0} {:>10.0} {:>10.0}\n",
            row.name, row.min, row.median, row.max
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_runs() {
        let odd = row("end".into(), vec![3.0, 1.0, 20.0]);
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 3.0, 20.0));
        let even = row("end".into(), vec![4.0, 1.0, 2.0, 20.0]);
        assert_eq!((even.min, even.median, even.max), (1.0, 3.0, 20.0));
        assert_eq!(row("end".into(), vec![7.0]).median, 7.0);
    }

    #[test]
    fn phases_come_in_the_order_of_a_boot_and_none_is_lost() {
        let samples =
            ["process", "end", "later", "kvm", "build"].map(|name| (name.to_owned(), vec![1.0]));
        let names: Vec<_> = rows(samples.into()).into_iter().map(|r| r.name).collect();
        assert_eq!(names, ["build", "kvm", "end", "later", "process"]);
    }
}
