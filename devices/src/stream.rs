//! The host ends of serial lines and console ports, as plain data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Output appended to a file of mode 0600.
    File(PathBuf),
    /// A listening UNIX stream socket, created at start, removed at exit. Output before the first client is kept
    /// in the console log; clients come and go.
    Unix(PathBuf),
    /// A descriptor that the caller gives at build time under this name (see [`HostEnds`]).
    Given(String),
}

/// Descriptors that an embedder or the runner supplies for [`Endpoint::Given`]: a socket or a pipe end, taken over.
pub type HostEnds = std::collections::HashMap<String, std::os::fd::OwnedFd>;
