//! `vsc-run start NAME`: a saved VM runs, here or detached.

#![forbid(unsafe_code)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde_json::json;
use vsc::scenario::{Layer, Override};
use vsc::store::{Ended, Held, Name, Process, SCENARIO, State, Store, StoreError, now};

use super::super::Common;
use super::super::run::{Launch, Source, compile, tell};
use super::{RUNNING, StoreArgs, answer, failed};
use crate::run::detach;
use crate::run::ready::{LIFE, Ready};
use crate::run::result::Summary;
use crate::run::signals::Parent;
use crate::say;

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    /// The saved VM.
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Returns as soon as the guest shows a sign of life; what it prints goes to console.log in the VM's directory.
    #[arg(long, conflicts_with = "result")]
    detach: bool,
    /// Ends the run after this long: 90s, 2m, 1h (exit code 124).
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// Writes how the run ended to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// This is the process that --detach starts; standard input is the pipe to whoever waits for it.
    #[arg(long, hide = true, conflicts_with = "detach")]
    detached: bool,
}

pub(in crate::cli) fn start(args: &StartArgs, common: &Common, parent: Parent) -> u8 {
    let started = Instant::now();
    if common.host_root != Path::new("/") {
        let message = "a run is on this host, not on a directory (--host-root)";
        say::err_unkept(message);
        let mut summary = Summary::failed(message.into());
        return tell(&mut summary, args.result.as_deref(), common.json);
    }
    if args.detach {
        return launcher(args, common).unwrap_or_else(|e| failed(&e));
    }
    if common.json {
        say::silence();
    }
    let (parent, pipe) = match args.detached.then(detach::leave).transpose() {
        Ok(None) => (parent, None),
        Ok(pipe) => (Parent::nobody(), pipe),
        Err(e) => return failed(&e),
    };
    let ready = match pipe.map(Ready::new).transpose() {
        Ok(ready) => ready,
        Err(e) => return failed(&e),
    };
    let mut summary = match run(args, common, parent, ready, started) {
        Ok(summary) => summary,
        Err(e) => {
            say::err_unkept(&e.to_string());
            Summary::failed(e.to_string())
        }
    };
    tell(&mut summary, args.result.as_deref(), common.json)
}

fn run(
    args: &StartArgs,
    common: &Common,
    parent: Parent,
    ready: Option<Ready>,
    started: Instant,
) -> Result<Summary, StoreError> {
    let name = Name::existing(&args.name)?;
    let held = args.store.open(None)?.hold(&name)?;
    // Its parts are looked at before anything is done: a link here would be read as if it were the scenario.
    held.entry.file(SCENARIO)?;
    let layers = args
        .timeout
        .iter()
        .map(|t| Layer::Flag(Override::flag("--timeout", "limits.timeout", t)));
    let file = held.entry.directory.join(SCENARIO);
    let source = Source {
        file: Some(&file),
        layers: layers.collect(),
    };
    let Some(plan) = compile(source, common) else {
        return Ok(Summary::failed("the scenario has errors".into()));
    };
    if args.detached {
        let (path, log) = held.new_log()?;
        detach::redirect(&log).map_err(|error| StoreError::System {
            action: "write to",
            path,
            error,
        })?;
    }
    let mut state = State {
        process: Process::current(),
        began: Some(now()),
        on: None,
        ended: None,
        ..held.entry.state.clone()
    };
    held.write_state(&state)?;
    let launch = Launch {
        image: false,
        command: &[],
        count: args.result.is_some() || common.json,
        started,
        ready,
    };
    let mut summary = launch.run(plan, common, parent);
    state.ended = Some(ended(&summary));
    write_end(&held, &state, &mut summary);
    Ok(summary)
}

/// That the end could not be noted is said, and changes nothing about how it ended.
fn write_end(held: &Held, state: &State, summary: &mut Summary) {
    if let Err(e) = held.write_state(state) {
        say::err(&e.to_string());
        if summary.code == 0 {
            summary.code = crate::FAILED;
        }
    }
}

/// How a run ended, as the store keeps it.
fn ended(summary: &Summary) -> Ended {
    let word = serde_json::to_value(&summary.ending).unwrap_or_default();
    Ended {
        outcome: word["outcome"].as_str().unwrap_or_default().to_owned(),
        exit_code: summary.code,
        message: summary.ending.sentence(),
        at: now(),
    }
}

/// Starts this program once more, detached, and waits until the guest lives or the run is over.
fn launcher(args: &StartArgs, common: &Common) -> Result<u8, StoreError> {
    let name = Name::existing(&args.name)?;
    let store = args.store.open(None)?;
    // Said here rather than by the other process, which would take a moment longer.
    store.entry(&name)?;
    let place = store.place(&name);
    let failed = |error| StoreError::System {
        action: "start",
        path: place.clone(),
        error,
    };
    let program = std::env::current_exe().map_err(failed)?;
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    let mut child = {
        let mut command = Command::new(program);
        command
            .args(["start", "--detached", "--store"])
            .arg(store.directory());
        for (flag, given) in [
            ("--json", common.json),
            ("--quiet", common.quiet),
            ("--verbose", common.verbose),
        ] {
            command.args(given.then_some(flag));
        }
        if let Some(timeout) = &args.timeout {
            command.arg("--timeout").arg(timeout);
        }
        command
            .args(["--", name.as_str()])
            .current_dir("/")
            .stdin(Stdio::from(writer));
        command.spawn().map_err(failed)?
    };
    let pid = child.id();
    let mut word = [0];
    let lives = matches!(reader.read(&mut word), Ok(1)) && word == [LIFE];
    let log = place.join(vsc::store::LOG);
    if lives {
        let shown = format!(
            "{} is running, pid {pid}; its console is {}\n",
            name.as_str(),
            log.display()
        );
        let told = json!({"name": name.as_str(), "state": RUNNING, "pid": pid, "log": log});
        answer(common, &told, &shown);
        return Ok(0);
    }
    let status = child.wait().map_err(failed)?;
    Ok(post_mortem(&store, &name, pid, status, &log))
}

/// What is to be said of a run that was over before its guest showed a sign of life.
fn post_mortem(
    store: &Store,
    name: &Name,
    pid: u32,
    status: std::process::ExitStatus,
    log: &Path,
) -> u8 {
    let state = store.entry(name).map(|e| e.state).unwrap_or_default();
    // A run that never came to be has said why itself, here.
    let ran = state.process.is_some_and(|p| p.pid == pid);
    if ran {
        let how = state.ended.and_then(|e| e.message);
        let how = how.unwrap_or_else(|| status.to_string());
        say::err(&format!(
            "{} has ended already: {how}; what it said is in {}",
            name.as_str(),
            log.display()
        ));
    }
    match status.code() {
        Some(code) => u8::try_from(code).unwrap_or(crate::FAILED),
        None => crate::FAILED,
    }
}
