//! `vsc-run ctl RUN [ORDER]`: the client of a run's control socket (see [`crate::run::control`]).

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use vsc::diag::shown;
use vsc::runs::Found;

use super::Common;
use super::machines::clock;
use crate::run::control::{Ask, Request};
use crate::say;

/// Longest answer that is believed, bytes.
const ANSWER_MAX: u64 = 16 << 20;
/// How long a run may take to answer: it looks at its socket at least that often, unless it is stopped or building.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// The run: its NAME in `ps`, its RUN or its PID there, or its socket.
    run: String,
    /// What it is asked.
    #[arg(value_enum, default_value_t = Order::Status)]
    order: Order,
}

/// What a run may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// How it is.
    Status,
    /// Press the power button; a command is sent SIGTERM by its init.
    Powerdown,
    /// Ask the guest to end, as SIGTERM does; after limits.stop_grace it is ended by force.
    Stop,
    /// End it at once.
    Kill,
    /// Go on after its leases were lost (events.on_lockfailure: pause): they are taken again first.
    Resume,
    /// Wait for its end, and end with its exit code.
    Wait,
}

impl Order {
    fn request(self) -> Request {
        match self {
            Self::Status => Request::Status,
            Self::Powerdown => Request::Powerdown,
            Self::Stop => Request::Stop,
            Self::Kill => Request::Kill,
            Self::Resume => Request::Resume,
            Self::Wait => Request::Wait,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error("no run {0:?} has a control socket (`control: true`); vsc-run ps lists machines")]
    Unknown(String),
    #[error("{name:?} is {} runs: {}; say which", .runs.len(), .runs.join(", "))]
    Several { name: String, runs: Vec<String> },
    #[error("cannot reach {}: {error}", .socket.display())]
    Connection {
        socket: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("the run ended without an answer")]
    Gone,
    #[error("the run refuses: {0}")]
    Refused(String),
    #[error("the answer of the run makes no sense: {0}")]
    Nonsense(#[from] serde_json::Error),
}

pub(super) fn run(args: &CtlArgs, common: &Common) -> u8 {
    match ask(args, common) {
        Ok((answer, code)) => {
            if common.json {
                let text = serde_json::to_string_pretty(&answer).unwrap_or_default();
                say::out(&format!("{text}\n"));
            } else {
                say::out(&told(args, &answer));
            }
            code
        }
        Err(e) => {
            say::error(&e.to_string());
            crate::FAILED
        }
    }
}

/// The answer, and the exit code that comes of it.
fn ask(args: &CtlArgs, common: &Common) -> Result<(Value, u8), CtlError> {
    let socket = socket(&args.run, super::ps::runs_of(common))?;
    let failed = |error| CtlError::Connection {
        socket: socket.clone(),
        error,
    };
    let mut stream = UnixStream::connect(&socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let ask = Ask {
        what: args.order.request(),
    };
    let line = serde_json::to_string(&ask)? + "\n";
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let patient = stream.try_clone().map_err(failed)?;
    let mut lines = BufReader::new(stream.take(ANSWER_MAX));
    let mut next = || -> Result<Value, CtlError> {
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) => Err(CtlError::Gone),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(CtlError::Gone),
            Err(e) => Err(failed(e)),
        }
    };
    let answer = next()?;
    if answer["ok"] != true {
        let why = answer["error"].as_str().unwrap_or("it does not say why");
        return Err(CtlError::Refused(shown(why)));
    }
    if args.order != Order::Wait {
        return Ok((answer, 0));
    }
    patient.set_read_timeout(None).map_err(failed)?;
    let mut end = next()?;
    let result = end["result"].take();
    let code = result["exit_code"].as_u64();
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok((result, code.unwrap_or(crate::FAILED)))
}

/// The socket of a run.
fn socket(run: &str, all: Vec<Found>) -> Result<PathBuf, CtlError> {
    let path = Path::new(run);
    if run.contains('/') && path.metadata().is_ok_and(|m| m.file_type().is_socket()) {
        return Ok(path.to_owned());
    }
    let is_it = |found: &Found| {
        let record = found.record.as_ref();
        found.id == run || record.is_some_and(|r| r.name == run || r.process.pid.to_string() == run)
    };
    let mut fitting: Vec<(String, PathBuf)> = all
        .into_iter()
        .filter(|found| found.lives && is_it(found))
        .filter_map(|found| Some((found.id.clone(), found.socket()?)))
        .collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some((_, socket)), true) => Ok(socket),
        (None, _) => Err(CtlError::Unknown(run.to_owned())),
        (Some((last, _)), false) => {
            let others = fitting.into_iter().map(|(id, _)| id);
            Err(CtlError::Several {
                name: run.to_owned(),
                runs: others.chain([last]).collect(),
            })
        }
    }
}

/// The answer for people.
fn told(args: &CtlArgs, answer: &Value) -> String {
    let stop = || format!("vsc-run ctl {} stop", shown(&args.run));
    let text = |key: &str| shown(answer[key].as_str().unwrap_or_default());
    match args.order {
        Order::Status => {
            let uptime = answer["uptime_seconds"].as_f64().unwrap_or(0.0);
            let mut out = format!(
                "{} is {}, pid {}, up {}, run {}; {} exits, {} restarts\n",
                text("name"),
                text("state"),
                answer["pid"],
                clock(uptime as u64),
                text("id"),
                answer["exits"],
                answer["restarts"]
            );
            let tail = answer["console_tail"].as_array();
            for line in tail.into_iter().flatten() {
                out += &format!("  | {}\n", shown(line.as_str().unwrap_or_default()));
            }
            out
        }
        Order::Powerdown if answer["heard"] == true => format!(
            "the power button is pressed; if the guest does not end: {}\n",
            stop()
        ),
        Order::Powerdown => format!(
            "the power button is pressed; the guest does not listen to it: {}\n",
            stop()
        ),
        Order::Stop => match answer["grace_seconds"].as_f64() {
            Some(grace) => format!(
                "the guest is asked to end; ended by force after {grace} s (limits.stop_grace)\n"
            ),
            None => "the machine is ended\n".to_owned(),
        },
        Order::Kill => "the machine is ended\n".to_owned(),
        Order::Resume => "the machine goes on\n".to_owned(),
        Order::Wait => match answer["message"].as_str() {
            Some(message) => format!("{}\n", shown(message)),
            None => format!("ended with {}\n", answer["exit_code"]),
        },
    }
}
