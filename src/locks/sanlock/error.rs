//! Why sanlock does not do what it is asked for.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use super::wire::{self, PROTOCOL};

/// Why sanlock does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each says itself what it is")]
pub enum SanlockError {
    #[error(
        "E-SANLOCK: sanlock's daemon does not run here: nobody listens on {}; `vsc-run locks setup sanlock --plan` \
         shows how to start it", .0.display()
    )]
    Absent(PathBuf),
    #[error(
        "E-SANLOCK: may not speak to sanlock's daemon at {}: it listens to root and to the group of its socket, \
         `sanlock`; add this user to it, or run as root", .0.display()
    )]
    Denied(PathBuf),
    #[error("E-SANLOCK: cannot speak to sanlock's daemon at {}", .socket.display())]
    Connection {
        socket: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "E-SANLOCK: sanlock's daemon has not answered for {seconds} s: {what}; `sanlock client status` and \
         /var/log/sanlock.log tell more"
    )]
    Silent { what: String, seconds: u64 },
    #[error("E-SANLOCK: sanlock's daemon has closed the connection: {what}")]
    Closed { what: String },
    #[error("E-SANLOCK: the answer of sanlock's daemon makes no sense: {what}: {why}")]
    Nonsense { what: String, why: String },
    #[error(
        "E-SANLOCK: sanlock's daemon {version} speaks protocol {theirs:#010x}, this program {PROTOCOL:#010x}: \
         sanlock 3.x is wanted (Debian 12: 3.8.5)"
    )]
    Protocol { theirs: u32, version: String },
    #[error("E-SANLOCK: sanlock refuses: {what}: {}", wire::meaning(*.result))]
    Refused { what: String, result: i32 },
    #[error("{sentence}")]
    Locked { sentence: String },
    #[error("E-SANLOCK: {sentence}")]
    Host { sentence: String },
    #[error("E-SANLOCK: {what} {}", .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "E-SANLOCK: cannot give {} to user {uid} and group {gid}, who own its directory: sanlock could not use it; a \
         server that maps root to nobody needs no_root_squash in its /etc/exports", .path.display()
    )]
    Squashed {
        path: PathBuf,
        uid: u32,
        gid: u32,
        #[source]
        error: io::Error,
    },
    #[error("E-SANLOCK: the path {} is too long for sanlock, which takes {} bytes", .0.display(), wire::PATH - 1)]
    Long(PathBuf),
}
