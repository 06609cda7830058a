//! `vsc-run start NAME`: a saved VM runs, here or detached.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde_json::json;
use vsc::SettingsFrom;
use vsc::facts::Variables;
use vsc::libvirt::{Existing, Virsh, identified, is_active, uuid_of};
use vsc::scenario::{Input, Layer, Override, Parsed};
use vsc::store::{Ended, Held, Name, Process, Remote, SCENARIO, State, Store, StoreError, now};

use super::super::Common;
use super::super::export::describe_parsed;
use super::super::last::tell;
use super::super::run::{Launch, compile_to_run, or_report, report};
use super::luggage::{LuggageError, give_secrets, make_images};
use super::remote::{self, Passenger, RemoteError, started};
use super::{RUNNING, StoreArgs, answer, time};
use crate::run::detach;
use crate::run::outside::Errand;
use crate::run::ready::{LIFE, Ready};
use crate::run::result::{self, Summary};
use crate::run::signals::Parent;
use crate::say;

/// How long the guest of a saved VM may take to end when it is asked to, where its scenario does not say: services
/// stop, file systems are written. A run at the terminal has the shorter default, since somebody waits for it.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(60);

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
    /// Hands it to the libvirt of this name, of `vsc-run hosts`, and waits for its end.
    #[arg(long, value_name = "HOST")]
    on: Option<String>,
    /// With --on: replaces a domain of that name there, whoever defined it.
    #[arg(long)]
    overwrite: bool,
    /// Ends the run after this long: 90s, 2m, 1h (exit code 124).
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// Writes how the run ended to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// Runs without confinement: a guest that breaks out of the machine can do whatever you can.
    #[arg(long, conflicts_with = "on")]
    no_sandbox: bool,
    /// This is the process that --detach starts; standard input is the pipe to whoever waits for it.
    #[arg(long, hide = true, conflicts_with = "detach")]
    detached: bool,
}

impl StartArgs {
    /// The guest's output goes elsewhere than to ours.
    pub(in crate::cli) fn is_detached(&self) -> bool {
        self.detach
    }
}

pub(in crate::cli) fn start(args: &StartArgs, common: &Common, parent: Parent) -> u8 {
    let started = Instant::now();
    if common.json {
        say::silence();
    }
    let failed = |e: &dyn std::error::Error| {
        match args.detach {
            true => say::error(&e.to_string()),
            false => say::error_unkept(&e.to_string()),
        };
        Summary::failed(e.to_string())
    };
    let there = match target(args, common) {
        Ok(None) => None,
        Ok(Some(remote)) => match elsewhere(args, common, &remote) {
            Ok(None) => return 0,
            Ok(Some(summary)) => Some(summary),
            Err(e) => Some(failed(&e)),
        },
        Err(e) => Some(failed(&e)),
    };
    if let Some(mut summary) = there {
        return tell(&mut summary, args.result.as_deref(), common.json);
    }
    if args.detach {
        return launcher(args, common).unwrap_or_else(|e| super::failed(&e));
    }
    let (parent, pipe) = match args.detached.then(detach::leave).transpose() {
        Ok(None) => (parent, None),
        Ok(pipe) => (Parent::nobody(), pipe),
        Err(e) => return super::failed(&e),
    };
    let ready = match pipe.map(Ready::new).transpose() {
        Ok(ready) => ready,
        Err(e) => return super::failed(&e),
    };
    let mut summary = match run(args, common, parent, ready, started) {
        Ok(summary) => summary,
        Err(e) => failed(&e),
    };
    tell(&mut summary, args.result.as_deref(), common.json)
}

/// Why a saved VM is not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Luggage(#[from] LuggageError),
    /// It runs on the libvirt that it was handed to.
    #[error("{name} is already running on {host}")]
    Elsewhere { name: String, host: String },
    #[error("--overwrite is for a start on a libvirt (--on HOST)")]
    NothingThere,
    #[error("--no-sandbox is for a start on this host: libvirt confines its machines itself")]
    Confined,
    #[error("--timeout is for a start that is waited for")]
    Unwatched,
}

fn run(
    args: &StartArgs,
    common: &Common,
    parent: Parent,
    ready: Option<Ready>,
    started: Instant,
) -> Result<Summary, StartError> {
    if args.overwrite {
        return Err(StartError::NothingThere);
    }
    let name = Name::existing(&args.name)?;
    let held = args.store.of(&name, common)?.hold(&name)?;
    not_elsewhere(&held)?;
    attested(&held)?;
    let errors = || Summary::failed("the scenario has errors".into());
    let Some(parsed) = parsed(&held, args, common)? else {
        return Ok(errors());
    };
    let Some(mut plan) = compile_to_run(parsed, common) else {
        say::note(&format!(
            "a machine that libvirt is to run: vsc-run start {} --on HOST",
            args.name
        ));
        return Ok(errors());
    };
    if args.detached {
        let (path, log) = held.new_log()?;
        detach::redirect(&log).map_err(|error| StoreError::System {
            action: "write to",
            path,
            error,
        })?;
    }
    let state = RefCell::new(State {
        process: Process::current(),
        began: Some(now()),
        handed_to: None,
        ended: None,
        ..held.entry.state.clone()
    });
    held.write_state(&state.borrow())?;
    let mut errands = result::errands(args.result.as_deref());
    errands.add(Errand::State, |text| {
        let state = at_its_end(&state.borrow(), text)?;
        held.write_state(&state).map_err(|e| e.to_string())
    });
    // What is made for this VM goes with it.
    let note = |path: &Path| {
        state.borrow_mut().created_disks.push(path.to_owned());
        held.write_state(&state.borrow()).map_err(|e| e.to_string())
    };
    let launch = Launch {
        image: false,
        command: &[],
        count: args.result.is_some() || common.json,
        started,
        ready,
        errands,
        made: Some(&note),
    };
    let said = plan
        .settings()
        .iter()
        .any(|s| s.key == "limits.stop_grace" && s.origin != vsc::diag::Origin::Default);
    if !said {
        plan.resources.limits.stop_grace = STOP_GRACE;
    }
    let mut summary = launch.run(plan, common, parent);
    let mut state = state.into_inner();
    let before = &held.entry.state.created_disks;
    // No machine came of it, and they are gone again.
    state
        .created_disks
        .retain(|path| before.contains(path) || path.symlink_metadata().is_ok());
    write_end(&held, state, &mut summary);
    Ok(summary)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What the scenario of a saved VM says. `None`: errors were printed.
fn parsed(held: &Held, args: &StartArgs, common: &Common) -> Result<Option<Parsed>, StoreError> {
    let timeout = args.timeout.as_deref();
    let unconfined = args.no_sandbox.then_some("false");
    let layers = [
        ("--timeout", "limits.timeout", timeout),
        ("--no-sandbox", "sandbox", unconfined),
    ]
    .into_iter()
    .filter_map(|(flag, key, value)| Some(Layer::Flag(Override::flag(flag, key, value?))))
    .collect();
    let home = Variables::of_process().home;
    let parsed = match held.entry.file(SCENARIO) {
        Ok(_) => {
            let settings = match &held.entry.state.settings {
                Some(file) => SettingsFrom::File(file),
                None => SettingsFrom::Nowhere,
            };
            let file = held.entry.directory.join(SCENARIO);
            let parsed = vsc::load(Some(&file), layers, home, settings);
            let Some(parsed) = or_report(parsed, common) else {
                return Ok(None);
            };
            parsed
        }
        Err(e) if !held.entry.directory.join(SCENARIO).exists() => {
            // The predecessor's: all that there is, is the domain.
            let Some(config) = &held.entry.config else {
                return Err(e);
            };
            let file = config.domain_config.clone();
            let text = held.entry.domain()?;
            let imported = vsc::xml::import(&file.to_string_lossy(), &text);
            let Some(imported) = or_report(imported, common) else {
                return Ok(None);
            };
            report(&imported.notes, common);
            let text = vsc::scenario::write(&imported.scenario);
            let said = file.with_extension("xml, as a scenario");
            vsc::scenario::parse(&Input {
                file: Some((&said, text.as_bytes())),
                layers,
                home,
                ..Input::default()
            })
        }
        Err(e) => return Err(e),
    };
    Ok(Some(parsed))
}

/// Where the last start was on a libvirt, that one must have ended.
fn not_elsewhere(held: &Held) -> Result<(), StartError> {
    let Some(remote) = &held.entry.state.handed_to else {
        return Ok(());
    };
    let name = &held.entry.name;
    let state = Virsh::new(remote.url.as_str()).state(name);
    if state
        .map_err(RemoteError::from)?
        .is_some_and(|s| is_active(&s))
    {
        return Err(StartError::Elsewhere {
            name: name.clone(),
            host: remote.host.clone(),
        });
    }
    Ok(())
}

/// What is to be attested is not started without that, wherever that would be and whatever its parts say.
fn attested(held: &Held) -> Result<(), RemoteError> {
    match &held.entry.config {
        Some(config) if config.attestation => {
            Err(RemoteError::Attestation(held.entry.name.clone()))
        }
        _ => Ok(()),
    }
}

/// Hands a saved VM to a libvirt. `None`: it runs, and nobody waits.
fn elsewhere(
    args: &StartArgs,
    common: &Common,
    remote: &Remote,
) -> Result<Option<Summary>, StartError> {
    if args.no_sandbox {
        return Err(StartError::Confined);
    }
    let name = Name::existing(&args.name)?;
    let held = args.store.of(&name, common)?.hold(&name)?;
    not_elsewhere(&held)?;
    attested(&held)?;
    let mut xml = held.entry.domain()?;
    let described = parsed(&held, args, common)?;
    let Some(description) = described.and_then(|parsed| describe_parsed(parsed, common)) else {
        return Ok(Some(Summary::failed("the scenario has errors".into())));
    };
    let timeout = match args.timeout.as_deref().map(time).transpose() {
        Ok(Some(_)) if args.detach => return Err(StartError::Unwatched),
        Ok(timeout) => timeout,
        Err(why) => {
            return Err(StartError::Store(StoreError::Damaged {
                path: "--timeout".into(),
                why,
            }));
        }
    };
    if let Some(uuid) = description.domain.text("uuid") {
        // The predecessor's have none, and would be strangers at their next start.
        xml = identified(&xml, uuid);
    }
    let mut state = held.entry.state.clone();
    make_images(description.images, remote, common, |path| {
        state.created_disks.push(absolute(path));
        held.write_state(&state).map_err(StartError::from)
    })?;
    give_secrets(&description.domain, remote).map_err(RemoteError::from)?;
    let before = state.clone();
    state = State {
        process: None,
        began: Some(now()),
        handed_to: Some(remote.clone()),
        uuid: uuid_of(&xml),
        ended: None,
        ..state
    };
    let passenger = Passenger {
        name: name.as_str(),
        xml: &xml,
        existing: match args.overwrite {
            true => Existing::Replace,
            false => Existing::ReplaceOurs,
        },
        detach: args.detach,
        timeout,
    };
    // Noted first: a domain that nobody knows of would be worse than a note of one that did not start.
    held.write_state(&state)?;
    let ending = match passenger.travel(remote, common) {
        Ok(Some(ending)) => ending,
        Ok(None) => {
            started(name.as_str(), remote, common);
            return Ok(None);
        }
        Err(e) => {
            if e.nothing_started() {
                held.write_state(&before)?;
            }
            return Err(e.into());
        }
    };
    let mut summary = remote::ended(ending);
    state.ended = Some(ended(&summary));
    write_end(&held, state, &mut summary);
    Ok(Some(summary))
}

/// The libvirt that a start is for: what the command line says, else what was saved.
fn target(args: &StartArgs, common: &Common) -> Result<Option<Remote>, StartError> {
    if args.detached {
        return Ok(None);
    }
    match &args.on {
        Some(host) => Ok(Some(remote::resolve(host, None, common)?)),
        None => {
            let name = Name::existing(&args.name)?;
            Ok(args.store.of(&name, common)?.entry(&name)?.state.on)
        }
    }
}

/// The state of a VM that ran, from what its process says of the end. That is all that comes from there, since a guest
/// may have taken it over: the rest says which files go with the VM when it is removed.
fn at_its_end(before: &State, said: &[u8]) -> Result<State, String> {
    let ended: Ended = serde_json::from_slice(said).map_err(|e| e.to_string())?;
    Ok(State {
        ended: Some(ended),
        ..before.clone()
    })
}

/// That the end could not be noted is said, and changes nothing about how it ended.
fn write_end(held: &Held, mut state: State, summary: &mut Summary) {
    let ended = ended(summary);
    let written = match &mut summary.outside {
        Some(outside) => {
            let text = serde_json::to_vec(&ended).unwrap_or_default();
            outside.run(Errand::State, &text)
        }
        None => {
            state.ended = Some(ended);
            held.write_state(&state).map_err(|e| e.to_string())
        }
    };
    if let Err(e) = written {
        say::error(&e);
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
fn launcher(args: &StartArgs, common: &Common) -> Result<u8, StartError> {
    if args.overwrite {
        return Err(StartError::NothingThere);
    }
    let name = Name::existing(&args.name)?;
    let store = args.store.of(&name, common)?;
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
        if common.host_root != Path::new("/") {
            let root = std::path::absolute(&common.host_root).map_err(failed)?;
            command.arg("--host-root").arg(root);
        }
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
            .args(args.no_sandbox.then_some("--no-sandbox"))
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
        say::error(&format!(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_how_it_ended_and_nothing_else_about_its_vm() {
        let before = State {
            created_disks: vec!["/vms/a.img".into()],
            began: Some(1),
            ..State::default()
        };
        let mut said = json!({
            "outcome": "exited",
            "exit_code": 3,
            "message": null,
            "at": 7,
            "created_disks": ["/etc/passwd"],
            "settings": "/tmp/mine.yaml",
            "began": 99,
        });
        let after = at_its_end(&before, said.to_string().as_bytes()).unwrap();
        assert_eq!(
            after.ended.as_ref().map(|e| (e.exit_code, e.at)),
            Some((3, 7))
        );
        let rest = State {
            ended: None,
            ..after
        };
        assert_eq!(
            serde_json::to_value(rest).unwrap(),
            serde_json::to_value(&before).unwrap()
        );
        // A state is no end.
        said["outcome"].take();
        let state = serde_json::to_vec(&before).unwrap();
        for text in [&state[..], said.to_string().as_bytes(), b"", b"{}"] {
            assert!(at_its_end(&before, text).is_err());
        }
    }
}
