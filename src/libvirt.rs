//! The other libvirt: questions and orders to a hypervisor through `virsh`, executed directly.
//!
//! Nothing goes through a shell, what is secret goes through standard input, and no answer is waited for longer than a
//! time that the caller can set.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

mod lives;
mod machines;
mod secrets;

pub use lives::{
    Event, Events, Existing, HandOverError, SHUT_OFF, Undo, identified, is_active, uuid_of,
};
pub use machines::{Machine, machines};

/// Most that is read of each output: more than the XML of any domain and the capabilities of any host.
const MOST: u64 = 16 << 20;
/// How long an answer may take when the caller sets no time: a hypervisor behind ssh may be asked for a name first.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to be made to one hypervisor.
#[derive(Debug, Clone)]
pub struct Virsh {
    program: PathBuf,
    url: String,
    patience: Duration,
}

/// What virsh said when it succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The answer.
    pub stdout: String,
    /// Warnings.
    pub stderr: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum VirshError {
    /// The program is not installed.
    #[error("there is no {}: it is in the package libvirt-clients (apt-get install libvirt-clients)", .0.display())]
    Missing(PathBuf),
    /// The program did not start, or could not be spoken with.
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    /// There is nobody at the other end.
    #[error("cannot connect to the hypervisor {url}: {message}")]
    Connect {
        /// The hypervisor's address.
        url: String,
        /// libvirt's words.
        message: String,
    },
    /// libvirt said no.
    #[error("{url} refuses {command}: {message}")]
    Refused {
        /// The hypervisor's address.
        url: String,
        /// What it was asked for, such as `define`.
        command: String,
        /// libvirt's words.
        message: String,
    },
    /// No answer in time.
    #[error("{url} has not answered {command} within {} s", .patience.as_secs_f32())]
    TimedOut {
        /// The hypervisor's address.
        url: String,
        /// What it was asked for.
        command: String,
        /// How long was waited.
        patience: Duration,
    },
    /// The answer is longer than anything libvirt has to say.
    #[error("the answer of {url} to {command} is longer than {} MiB", MOST >> 20)]
    TooLong {
        /// The hypervisor's address.
        url: String,
        /// What it was asked for.
        command: String,
    },
}

impl Virsh {
    /// The hypervisor at a libvirt address such as `qemu:///system`.
    pub fn new(url: impl Into<String>) -> Self {
        Virsh {
            program: "virsh".into(),
            url: url.into(),
            patience: PATIENCE,
        }
    }

    /// Waits this long for each answer.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Another program in the place of virsh.
    #[must_use]
    pub fn program(mut self, program: impl AsRef<Path>) -> Self {
        self.program = program.as_ref().to_owned();
        self
    }

    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs one command of virsh: `args` are its words, `stdin` is what it reads.
    ///
    /// # Errors
    /// What went wrong, with libvirt's own words where it has some.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        args: &[A],
        stdin: Option<&[u8]>,
    ) -> Result<Output, VirshError> {
        let deadline = Instant::now() + self.patience;
        let what = args.first().map_or_else(
            || "nothing".into(),
            |word| word.as_ref().to_string_lossy().into_owned(),
        );
        let mut child = self.start(args, stdin.is_some())?;
        let failed = |e| VirshError::Run(self.program.clone(), e);
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), stdin) {
            let bytes = bytes.to_vec();
            // A program that ends without reading it all says why in its own way.
            spawn(move || pipe.write_all(&bytes).ok()).map_err(failed)?;
        }
        let answer = listen(&mut child, deadline);
        if !matches!(answer, Ok(Some(_))) {
            // It may have ended meanwhile; nobody asks for it again.
            let _ = child.kill();
            let _ = child.wait();
        }
        let Some((out, err, status)) = answer.map_err(failed)? else {
            return Err(VirshError::TimedOut {
                url: self.url.clone(),
                command: what,
                patience: self.patience,
            });
        };
        if out.len() as u64 > MOST || err.len() as u64 > MOST {
            let url = self.url.clone();
            return Err(VirshError::TooLong { url, command: what });
        }
        let output = Output {
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).into_owned(),
        };
        if status.success() {
            return Ok(output);
        }
        Err(self.refusal(what, &output.stderr, status))
    }

    /// The program, by its whole name. Where it is not to be found it is named so that nothing is.
    fn found(&self) -> PathBuf {
        let name = match self.program.to_str() {
            Some(name) if !name.contains('/') => name,
            _ => return self.program.clone(),
        };
        let search = std::env::var_os("PATH");
        crate::trust::program(name, search.as_deref())
            .unwrap_or_else(|| Path::new("/nonexistent").join(name))
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(self.found());
        command
            .arg("-c")
            .arg(&self.url)
            .args(args)
            // Its messages are looked into.
            .env("LC_ALL", "C")
            .env_remove("LANGUAGE")
            .env_remove("VIRSH_DEBUG")
            .env_remove("LIBVIRT_DEBUG");
        command
    }

    fn start<A: AsRef<OsStr>>(&self, args: &[A], stdin: bool) -> Result<Child, VirshError> {
        let mut command = self.command(args);
        command
            .stdin(if stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => VirshError::Missing(self.program.clone()),
            _ => VirshError::Run(self.program.clone(), e),
        })
    }

    fn refusal(&self, command: String, stderr: &str, status: ExitStatus) -> VirshError {
        let lines: Vec<&str> = stderr
            .lines()
            .map(|line| line.strip_prefix("error: ").unwrap_or(line).trim())
            .filter(|line| !line.is_empty())
            .collect();
        let url = self.url.clone();
        match lines.iter().position(|line| *line == CONNECT) {
            Some(at) => {
                let mut others = lines;
                others.remove(at);
                let message = match others.is_empty() {
                    true => "libvirt gives no reason".into(),
                    false => others.join(": "),
                };
                VirshError::Connect { url, message }
            }
            None => VirshError::Refused {
                url,
                command,
                message: match lines.is_empty() {
                    true => format!("it ended with {status} and said nothing"),
                    false => lines.join(": "),
                },
            },
        }
    }
}

/// What a program writes to its standard output when it succeeds, without input.
///
/// # Errors
/// It does not start, fails, or takes longer than `patience`.
pub(crate) fn ask(program: &Path, arguments: &[&str], patience: Duration) -> io::Result<String> {
    let deadline = Instant::now() + patience;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let answer = listen(&mut child, deadline);
    if !matches!(answer, Ok(Some(_))) {
        // As above.
        let _ = child.kill();
        let _ = child.wait();
    }
    let (out, err, status) = answer?.ok_or(io::ErrorKind::TimedOut)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&out).into_owned());
    }
    let said = String::from_utf8_lossy(&err);
    Err(io::Error::other(format!("{status}: {}", said.trim())))
}

/// virsh's first line when nobody answers (virshConnect in libvirt's tools/virsh.c).
const CONNECT: &str = "failed to connect to the hypervisor";

type Heard = Receiver<Vec<u8>>;
/// Both outputs, and how it ended.
type Answer = (Vec<u8>, Vec<u8>, ExitStatus);

/// What it writes to both outputs, read as it comes so that neither fills its pipe, and how it ends; nothing when the
/// time is over before that.
fn listen(child: &mut Child, deadline: Instant) -> io::Result<Option<Answer>> {
    let out = child.stdout.take().map(collect).transpose()?;
    let err = child.stderr.take().map(collect).transpose()?;
    let hear = |stream: Option<Heard>| {
        let left = deadline.saturating_duration_since(Instant::now());
        stream?.recv_timeout(left).ok()
    };
    let (Some(out), Some(err)) = (hear(out), hear(err)) else {
        return Ok(None);
    };
    Ok(wait(child, deadline)?.map(|status| (out, err, status)))
}

fn collect(stream: impl Read + Send + 'static) -> io::Result<Heard> {
    let (send, receive) = mpsc::channel();
    spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is the answer.
        let _ = stream.take(MOST + 1).read_to_end(&mut bytes);
        send.send(bytes).ok()
    })?;
    Ok(receive)
}

/// A thread that nobody waits for: what it waits for may outlive the program that was started.
fn spawn(work: impl FnOnce() -> Option<()> + Send + 'static) -> io::Result<()> {
    let named = thread::Builder::new().name("virsh".into());
    named.spawn(work).map(drop)
}

/// The status of a program whose outputs are closed: it has ended, or is about to.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let process = sys::pidfd_open(child.id())?;
    match sys::wait_readable(&process, Some(deadline))? {
        true => child.wait().map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests;
