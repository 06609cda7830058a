//! `vsc-run stop NAME`: asks the guest to end, or ends it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use vsc::libvirt::{Virsh, is_active};

use crate::say;
use vsc::store::{Ended, Entry, Handle, Name, Remote, State, Store, StoreError, now};

use super::super::Common;
use super::remote::{RemoteError, wait_for_end};
use super::{SHUT_OFF, StoreArgs, answer, failed, time};
use crate::run::ending::SIGNAL_BASE;

/// How long a guest on a libvirt has, which may ask it to end and not make it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `stop`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    /// The saved VM.
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Ends it at once, without asking the guest: like pulling the plug.
    #[arg(long, short)]
    force: bool,
    /// Waits this long at most: 90s, 2m. A guest that was asked has limits.stop_grace anyway.
    #[arg(long, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
}

/// Why a VM is not stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is there and cannot be reached.
    #[error("cannot reach the process of {name}, pid {pid}: {error}")]
    Process {
        name: String,
        pid: u32,
        #[source]
        error: std::io::Error,
    },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its time was over.
    #[error("{name} has not ended in {} s; it was asked to, and --force ends it at once", .waited.as_secs_f32())]
    StillRunning { name: String, waited: Duration },
}

pub(in crate::cli) fn stop(args: &StopArgs, common: &Common) -> u8 {
    match end(args, common) {
        Ok(text) => {
            let told = json!({"name": args.name, "state": SHUT_OFF, "message": text});
            answer(common, &told, &format!("{text}\n"));
            0
        }
        Err(e) => failed(&e),
    }
}

fn end(args: &StopArgs, common: &Common) -> Result<String, StopError> {
    let name = Name::existing(&args.name)?;
    let store = args.store.of(&name, common)?;
    let entry = store.entry(&name)?;
    if let Some(remote) = &entry.state.handed_to {
        return elsewhere(args, remote);
    }
    let Some((handle, pid)) = running(&entry)? else {
        // Where its process cannot be seen, in another PID namespace, its lock tells.
        store.idle(&name, |_| Ok(()))?;
        return Ok(format!("{} is not running", args.name));
    };
    let unreachable = |error| StopError::Process {
        name: args.name.clone(),
        pid,
        error,
    };
    let signal = if args.force {
        libc::SIGKILL
    } else {
        libc::SIGTERM
    };
    handle.signal(signal).map_err(unreachable)?;
    let until = args.timeout.map(|time| Instant::now() + time);
    if !handle.wait(until).map_err(unreachable)? {
        return Err(StopError::StillRunning {
            name: args.name.clone(),
            waited: args.timeout.unwrap_or_default(),
        });
    }
    if args.force {
        note_kill(&store, &name)?;
    }
    Ok(format!("{} has ended", args.name))
}

/// The same on the libvirt that has it.
fn elsewhere(args: &StopArgs, remote: &Remote) -> Result<String, StopError> {
    let name = args.name.as_str();
    let virsh = Virsh::new(remote.url.as_str());
    let state = virsh.state(name).map_err(RemoteError::from)?;
    if !state.is_some_and(|s| is_active(&s)) {
        return Ok(format!("{name} is not running on {}", remote.host));
    }
    let order = if args.force { "destroy" } else { "shutdown" };
    let waited = args.timeout.unwrap_or(PATIENCE);
    let ask = || {
        let asked = virsh.run(&[order, "--", name], None).map(drop);
        if asked.is_ok() && !args.force {
            say::note(&format!(
                "asked {name} to shut down; waiting {} s at most (--force destroys it)",
                waited.as_secs()
            ));
        }
        asked
    };
    if !wait_for_end(&virsh, name, Some(Instant::now() + waited), ask)? {
        return Err(StopError::StillRunning {
            name: name.to_owned(),
            waited,
        });
    }
    Ok(format!("{name} on {} has ended", remote.host))
}

fn running(entry: &Entry) -> Result<Option<(Handle, u32)>, StopError> {
    let State { process, ended, .. } = &entry.state;
    let Some(process) = process.as_ref().filter(|_| ended.is_none()) else {
        return Ok(None);
    };
    let pid = process.pid;
    match process.open() {
        Ok(handle) => Ok(handle.map(|handle| (handle, pid))),
        Err(error) => Err(StopError::Process {
            name: entry.name.clone(),
            pid,
            error,
        }),
    }
}

/// A killed process cannot say how it ended. Whoever has started the VM again meanwhile knows better.
fn note_kill(store: &Store, name: &Name) -> Result<(), StoreError> {
    let noted = store.idle(name, |held| {
        if held.entry.state.ended.is_some() {
            return Ok(());
        }
        let mut state = held.entry.state.clone();
        state.ended = Some(Ended {
            outcome: "killed".into(),
            exit_code: SIGNAL_BASE.saturating_add(libc::SIGKILL as u8),
            message: Some("it was stopped by force".into()),
            at: now(),
        });
        held.write_state(&state)
    });
    match noted {
        Err(StoreError::Running { .. }) => Ok(()),
        noted => noted,
    }
}
