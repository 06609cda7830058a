//! The host ends of serial lines and console ports: as plain data, and opened.
//!
//! Standard input and output are shared with whoever started us, and so is their O_NONBLOCK flag: it is never
//! touched. [`ReadEnd`] and [`WriteEnd`] get non-blocking behaviour without it.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod end;
mod link;
mod socket;

pub use end::{ReadEnd, WriteEnd};
pub(crate) use link::{Link, LinkEvent};
pub use socket::Listener;

/// What a guest's byte stream is connected to on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// Output is dropped (it still reaches the console log), input never comes.
    Null,
    /// Standard input and standard output of this process.
    Stdio,
    /// Standard input only.
    Stdin,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
    /// Output appended to a file of mode 0600; as the input of a console port: read from the file.
    File(PathBuf),
    /// A listening UNIX stream socket of mode 0600, created at start, removed at exit. Output without a client is
    /// kept in the console log only; clients come and go, one at a time, the next waits until the one before left.
    Unix(PathBuf),
    /// A descriptor that the caller gives at build time under this name (see [`HostEnds`]).
    Given(String),
}

/// Descriptors that an embedder or the runner supplies for [`Endpoint::Given`]: a socket or a pipe end, taken over.
pub type HostEnds = HashMap<String, OwnedFd>;

/// Looks at, and may change, what is typed on the host before the guest sees it (an escape key).
pub trait InputFilter: Send {
    /// Takes bytes out of, or puts bytes into, a piece of input. Called on an I/O loop; must not block.
    fn filter(&mut self, bytes: &mut Vec<u8>);
}

/// Why a host end could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file could not be opened.
    #[error("Cannot open {path}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket could not be created or bound.
    #[error("Cannot listen on {path}", path = .path.display())]
    Listen {
        /// The socket file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something listens on the socket already.
    #[error("Cannot listen on {path}: another process does", path = .path.display())]
    InUse {
        /// The socket file.
        path: PathBuf,
    },
    /// The path exists and is not a socket.
    #[error("Cannot listen on {path}: it exists and is not a socket", path = .path.display())]
    NotASocket {
        /// The file in the way.
        path: PathBuf,
    },
    /// Nobody gave a descriptor of that name, or it is used twice.
    #[error("No descriptor was given under the name {name}, or it is used twice")]
    NotGiven {
        /// The name.
        name: String,
    },
    /// Input and output of one port name two sockets.
    #[error("Input and output of one port cannot be two different sockets")]
    TwoSockets,
    /// A standard or given descriptor cannot be used.
    #[error("Cannot use the descriptor for {what}")]
    Descriptor {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An event descriptor or timer could not be made.
    #[error("Cannot create {what}")]
    Create {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The name in [`HostEnds`] of a descriptor to read instead of standard input.
pub const STDIN: &str = "stdin";

/// An endpoint, opened.
#[derive(Debug, Default)]
pub struct Ends {
    /// Where input comes from.
    pub input: Option<ReadEnd>,
    /// Where output goes.
    pub output: Option<WriteEnd>,
    /// Where a client for both connects.
    pub listener: Option<Listener>,
}

/// Opens an endpoint that serves both directions.
///
/// # Errors
/// [`StreamError`]; nothing stays behind then.
pub fn open(endpoint: &Endpoint, ends: &mut HostEnds) -> Result<Ends, StreamError> {
    match endpoint {
        Endpoint::Given(name) => {
            let fd = take(name, ends)?;
            given(fd, true, true).map_err(|source| descriptor(name, source))
        }
        Endpoint::Unix(path) => Ok(Ends {
            listener: Some(Listener::bind(path, true, true)?),
            ..Ends::default()
        }),
        Endpoint::File(_) => Ok(Ends {
            output: open_output(endpoint)?,
            ..Ends::default()
        }),
        _ => Ok(Ends {
            input: replaced(endpoint, ends)?
                .map_or_else(|| open_input(endpoint), |end| Ok(Some(end)))?,
            output: open_output(endpoint)?,
            listener: None,
        }),
    }
}

/// Opens one endpoint for input and one for output. The same socket or the same given descriptor may serve both.
///
/// # Errors
/// [`StreamError`]; nothing stays behind then.
pub fn open_pair(
    input: &Endpoint,
    output: &Endpoint,
    ends: &mut HostEnds,
) -> Result<Ends, StreamError> {
    let mut opened = Ends::default();
    match (input, output) {
        (Endpoint::Unix(a), Endpoint::Unix(b)) if a != b => return Err(StreamError::TwoSockets),
        (Endpoint::Unix(path), Endpoint::Unix(_)) => {
            opened.listener = Some(Listener::bind(path, true, true)?);
        }
        (Endpoint::Unix(path), _) => opened.listener = Some(Listener::bind(path, true, false)?),
        (_, Endpoint::Unix(path)) => opened.listener = Some(Listener::bind(path, false, true)?),
        (Endpoint::Given(a), Endpoint::Given(b)) if a == b => {
            let fd = take(a, ends)?;
            return given(fd, true, true).map_err(|source| descriptor(a, source));
        }
        _ => {}
    }
    if let Endpoint::Given(name) = input {
        let fd = take(name, ends)?;
        opened.input = Some(ReadEnd::new(fd).map_err(|source| descriptor(name, source))?);
    } else if let Some(end) = replaced(input, ends)? {
        opened.input = Some(end);
    } else {
        opened.input = open_input(input)?;
    }
    if let Endpoint::Given(name) = output {
        let fd = take(name, ends)?;
        opened.output = Some(WriteEnd::new(fd).map_err(|source| descriptor(name, source))?);
    } else {
        opened.output = open_output(output)?;
    }
    Ok(opened)
}

/// The descriptor that stands in for standard input: who owns the terminal filters its escape key first.
fn replaced(input: &Endpoint, ends: &mut HostEnds) -> Result<Option<ReadEnd>, StreamError> {
    match input {
        Endpoint::Stdio | Endpoint::Stdin => ends
            .remove(STDIN)
            .map(|fd| ReadEnd::new(fd).map_err(|source| descriptor(STDIN, source)))
            .transpose(),
        _ => Ok(None),
    }
}

fn take(name: &str, ends: &mut HostEnds) -> Result<OwnedFd, StreamError> {
    ends.remove(name).ok_or_else(|| StreamError::NotGiven {
        name: name.to_owned(),
    })
}

fn descriptor(what: &str, source: io::Error) -> StreamError {
    StreamError::Descriptor {
        what: what.to_owned(),
        source,
    }
}

/// Uses a descriptor for the directions it was opened for.
fn given(fd: OwnedFd, input: bool, output: bool) -> io::Result<Ends> {
    // SAFETY: F_GETFL takes no argument and changes nothing.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = flags & libc::O_ACCMODE;
    let mut opened = Ends::default();
    if input && mode != libc::O_WRONLY {
        opened.input = Some(ReadEnd::new(fd.try_clone()?)?);
    }
    if output && mode != libc::O_RDONLY {
        opened.output = Some(WriteEnd::new(fd)?);
    }
    Ok(opened)
}

fn open_input(endpoint: &Endpoint) -> Result<Option<ReadEnd>, StreamError> {
    match endpoint {
        Endpoint::Stdio | Endpoint::Stdin => {
            let stdin = io::stdin();
            let end = own(stdin.as_fd()).and_then(ReadEnd::new);
            Ok(Some(
                end.map_err(|source| descriptor("standard input", source))?,
            ))
        }
        Endpoint::File(path) => {
            let open = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path);
            let end = open.and_then(|file| ReadEnd::new(file.into()));
            Ok(Some(end.map_err(|source| StreamError::Open {
                path: path.clone(),
                source,
            })?))
        }
        _ => Ok(None),
    }
}

fn open_output(endpoint: &Endpoint) -> Result<Option<WriteEnd>, StreamError> {
    let (fd, what) = match endpoint {
        Endpoint::Stdio | Endpoint::Stdout => (own(io::stdout().as_fd()), "standard output"),
        Endpoint::Stderr => (own(io::stderr().as_fd()), "standard error"),
        Endpoint::File(path) => {
            // O_NONBLOCK: a FIFO without a reader is an error, not a wait.
            let open = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(path);
            let end = open.and_then(|file| WriteEnd::new(file.into()));
            return Ok(Some(end.map_err(|source| StreamError::Open {
                path: path.clone(),
                source,
            })?));
        }
        _ => return Ok(None),
    };
    let end = fd.and_then(WriteEnd::new);
    Ok(Some(end.map_err(|source| descriptor(what, source))?))
}

fn own(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
