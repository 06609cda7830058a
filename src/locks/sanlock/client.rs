//! A connection to sanlock's daemon. Each request has a time limit: a daemon that hangs is an error, not a wait
//! without end.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::LOCKSPACE;
use super::error::SanlockError;
use super::status::{LeaseOf, Status};
use super::wire::{self, Command, HEADER, Header, PROTOCOL, RESOURCE, State};

/// The daemon's socket in its directory.
const SOCKET: &str = "sanlock.sock";
/// How long the daemon may take for what it does at once.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);
/// After this time it is said what is waited for.
const NOTICE: Duration = Duration::from_secs(2);
/// Longest answer that is believed, bytes: a thousand clients with their texts are less.
const ANSWER_MAX: usize = 16 << 20;
/// An answer's flags and result words that the caller of a registered connection gives: itself (`data2`).
const SELF: u32 = u32::MAX;

use SanlockError as Error;

/// Who hears what is waited for.
type Tell<'a> = &'a mut dyn FnMut(&str);

/// How long a request may take, and who is told that it takes a while.
pub(super) struct Patience<'a> {
    limit: Duration,
    tell: Option<(String, Tell<'a>)>,
}

impl<'a> Patience<'a> {
    /// What the daemon does without storage.
    pub(super) fn at_once() -> Self {
        Self {
            limit: AT_ONCE,
            tell: None,
        }
    }

    /// What may take as long as `limit`; `tell` hears `why` after two seconds.
    pub(super) fn of(limit: Duration, why: String, tell: Tell<'a>) -> Self {
        Self {
            limit,
            tell: Some((why, tell)),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Daemon {
    stream: UnixStream,
    socket: PathBuf,
    version: String,
    /// There can be no other connection: this process is confined.
    pub(super) only: bool,
}

impl Daemon {
    /// The socket in the daemon's directory.
    pub fn socket_in(directory: &Path) -> PathBuf {
        directory.join(SOCKET)
    }

    /// Connects, and looks whether the same is spoken.
    ///
    /// # Errors
    /// [`SanlockError`].
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let failed = |e: Errno| match e {
            Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR => Error::Absent(socket.to_owned()),
            Errno::ACCESS | Errno::PERM => Error::Denied(socket.to_owned()),
            // Its queue of connections is full.
            Errno::AGAIN => Error::Silent {
                what: "a new connection".into(),
                seconds: AT_ONCE.as_secs(),
            },
            e => Error::Connection {
                socket: socket.to_owned(),
                error: e.into(),
            },
        };
        let stream: OwnedFd = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        set_socket_timeout(&stream, Timeout::Send, Some(AT_ONCE)).map_err(failed)?;
        let address = SocketAddrUnix::new(socket).map_err(failed)?;
        connect(&stream, &address).map_err(failed)?;
        let stream = UnixStream::from(stream);
        let kept = stream.set_nonblocking(true);
        kept.map_err(|error| Error::Connection {
            socket: socket.to_owned(),
            error,
        })?;
        let mut daemon = Self {
            stream,
            socket: socket.to_owned(),
            version: String::new(),
            only: false,
        };
        let what = "its version";
        let header = daemon.ask(
            what,
            (Command::Version, 0, 0, 0),
            &[],
            &mut Patience::at_once(),
        )?;
        let [major, minor, patch, _] = header.data2.to_be_bytes();
        daemon.version = format!("{major}.{minor}.{patch}");
        if header.version >> 16 != PROTOCOL >> 16 || header.version == 0 {
            return Err(Error::Protocol {
                theirs: header.version,
                version: daemon.version,
            });
        }
        Ok(daemon)
    }

    /// Its version: `3.8.5`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Another connection to the same daemon.
    fn again(&self) -> Result<Self, Error> {
        if self.only {
            return Err(Error::Denied(self.socket.clone()));
        }
        Self::connect(&self.socket)
    }

    /// What the daemon keeps.
    ///
    /// # Errors
    /// [`SanlockError`].
    pub fn status(&self) -> Result<Status, Error> {
        // It closes the connection after this answer.
        let mut daemon = self.again()?;
        let what = "what it keeps";
        let mut patience = Patience::at_once();
        daemon.ask(what, (Command::Status, 0, 0, 0), &[], &mut patience)?;
        let mut status = Status::default();
        for state in daemon.states(what)? {
            match state {
                State::Daemon { host } => status.host = host,
                State::Client { pid, name } => status.clients.push((pid, name)),
                State::Lockspace {
                    name,
                    host_id,
                    path,
                } => status.lockspaces.push((name, host_id, path.into())),
                State::Resource {
                    lockspace,
                    name,
                    pid,
                    shared,
                    path,
                } => status.leases.push(LeaseOf {
                    lockspace,
                    name,
                    pid,
                    shared,
                    path: path.into(),
                }),
                State::Host { .. } | State::Other => {}
            }
        }
        Ok(status)
    }

    /// Names of the hosts of a lockspace, by their numbers, as far as this one has seen them.
    pub(super) fn hosts(&self, lockspace: &str) -> Result<Vec<(u64, String)>, Error> {
        let what = "the hosts of the lockspace";
        let mut daemon = self.again()?;
        let body = wire::lockspace(lockspace, 0, Path::new("")).unwrap_or_default();
        let mut patience = Patience::at_once();
        let request = (Command::HostStatus, 0, 0, 0);
        let header = daemon.ask(what, request, &body, &mut patience)?;
        done(what, header)?;
        let states = daemon.states(what)?.into_iter();
        Ok(states
            .filter_map(|state| match state {
                State::Host { host_id, owner } => Some((u64::from(host_id), owner)),
                _ => None,
            })
            .collect())
    }

    /// Numbers of the hosts that have a lease.
    pub(super) fn owners(
        &mut self,
        lockspace: &str,
        name: &str,
        path: &Path,
        limit: Duration,
    ) -> Result<Vec<u64>, Error> {
        let what = "who has the lease";
        let mut body = wire::resource(lockspace, name, false, 1);
        body.extend(wire::disk(path).ok_or_else(|| Error::Long(path.to_owned()))?);
        let patience = &mut Patience { limit, tell: None };
        let header = self.ask(what, (Command::Owners, 0, 0, 0), &body, patience)?;
        let answer = self.body(what, header, patience)?;
        done(what, header)?;
        let hosts = answer.get(RESOURCE..).unwrap_or_default();
        let count = header.data2 as usize;
        if hosts.len() != count.saturating_mul(wire::HOST) {
            let why = format!("{count} hosts in {} bytes", hosts.len());
            return Err(nonsense(what, why));
        }
        Ok(hosts.chunks_exact(wire::HOST).map(wire::host).collect())
    }

    /// The hosts besides `host_id` that have a lease, for people; none, where that cannot be found out.
    pub fn others(
        &mut self,
        host_id: u64,
        name: &str,
        path: &Path,
        limit: Duration,
    ) -> Vec<String> {
        let owners = self.owners(LOCKSPACE, name, path, limit);
        let owners = owners.unwrap_or_default().into_iter();
        let others: Vec<u64> = owners.filter(|id| *id != host_id).collect();
        let names = match others.is_empty() {
            true => Vec::new(),
            false => self.hosts(LOCKSPACE).unwrap_or_default(),
        };
        let told = |id: u64| match names.iter().find(|(number, _)| *number == id) {
            Some((_, name)) if !name.is_empty() => format!("host_id {id} ('{name}')"),
            _ => format!("host_id {id}"),
        };
        others.into_iter().map(told).collect()
    }

    /// Says that this process is the one whose leases come through this connection. There is no answer.
    pub(super) fn register(&mut self) -> Result<(), Error> {
        let what = "to know this process";
        self.send(
            what,
            (Command::Register, 0, 0, 0),
            &[],
            Instant::now() + AT_ONCE,
        )
    }

    /// What the daemon runs when the leases of this process are lost.
    pub(super) fn on_loss(&mut self, program: &str, arguments: &str) -> Result<(), Error> {
        let what = "what to run when leases are lost";
        let mut body = wire::field(program.as_bytes(), wire::HELPER);
        body.extend(wire::field(arguments.as_bytes(), wire::HELPER));
        let request = (Command::KillPath, 0, 0, SELF);
        let header = self.ask(what, request, &body, &mut Patience::at_once())?;
        done(what, header)
    }

    /// Bytes that a lease or a lockspace in this file takes.
    pub(super) fn room(&mut self, path: &Path) -> Result<u64, Error> {
        let what = format!("the size of a lease in {}", path.display());
        let body = wire::disk(path).ok_or_else(|| Error::Long(path.to_owned()))?;
        let request = (Command::Align, 0, 0, 0);
        let header = self.ask(&what, request, &body, &mut Patience::at_once())?;
        match header.result() {
            size @ ..0 => Err(Error::Refused { what, result: size }),
            // 1, 2, 4 or 8 MiB (sanlock(8)).
            size @ (0x10_0000 | 0x20_0000 | 0x40_0000 | 0x80_0000) => Ok(size as u64),
            size => Err(nonsense(&what, format!("{size} bytes"))),
        }
    }

    /// Writes an empty lockspace.
    pub(super) fn write_lockspace(
        &mut self,
        name: &str,
        path: &Path,
        io_timeout: u32,
        patience: &mut Patience<'_>,
    ) -> Result<(), Error> {
        let what = format!("to make the lockspace {}", path.display());
        let body = wire::lockspace(name, 0, path).ok_or_else(|| Error::Long(path.to_owned()))?;
        let request = (Command::WriteLockspace, 0, 0, io_timeout);
        let header = self.ask(&what, request, &body, patience)?;
        done(&what, header)
    }

    /// Writes a lease that nobody has.
    pub(super) fn write_lease(
        &mut self,
        lockspace: &str,
        name: &str,
        path: &Path,
        patience: &mut Patience<'_>,
    ) -> Result<(), Error> {
        let what = format!("to make the lease {}", path.display());
        let mut body = wire::resource(lockspace, name, false, 1);
        body.extend(wire::disk(path).ok_or_else(|| Error::Long(path.to_owned()))?);
        let request = (Command::WriteResource, 0, 0, 0);
        let header = self.ask(&what, request, &body, patience)?;
        done(&what, header)
    }

    /// Joins a lockspace; the result is the daemon's: 0, or an error.
    pub(super) fn add_lockspace(
        &mut self,
        name: &str,
        host_id: u64,
        path: &Path,
        io_timeout: u32,
        patience: &mut Patience<'_>,
    ) -> Result<i32, Error> {
        let what = format!("to join the lockspace {}", path.display());
        let body =
            wire::lockspace(name, host_id, path).ok_or_else(|| Error::Long(path.to_owned()))?;
        let request = (Command::AddLockspace, 0, io_timeout, 0);
        let header = self.ask(&what, request, &body, patience)?;
        Ok(header.result())
    }

    /// Takes leases for this process: all of them or none; the result is the daemon's.
    pub(super) fn acquire(
        &mut self,
        lockspace: &str,
        leases: &[(&str, &Path, bool)],
        owner: &str,
        now_or_never: bool,
        patience: &mut Patience<'_>,
    ) -> Result<i32, Error> {
        /// `SANLK_ACQUIRE_OWNER_NOWAIT`: an owner that may be dead is not waited for.
        const NOWAIT: u32 = 8;
        let mut body = Vec::new();
        for (name, path, shared) in leases {
            body.extend(wire::resource(lockspace, name, *shared, 1));
            body.extend(wire::disk(path).ok_or_else(|| Error::Long((*path).to_owned()))?);
        }
        body.extend(wire::options(owner));
        let count = u32::try_from(leases.len()).unwrap_or(u32::MAX);
        let flags = if now_or_never { NOWAIT } else { 0 };
        let request = (Command::Acquire, flags, count, SELF);
        let header = self.ask("the leases", request, &body, patience)?;
        Ok(header.result())
    }

    /// Gives leases up.
    pub(super) fn release(
        &mut self,
        lockspace: &str,
        names: &[&str],
        limit: Duration,
    ) -> Result<(), Error> {
        const GONE: i32 = -libc::ENOENT;
        let what = "to give the leases up";
        let leases = names.iter();
        let body: Vec<u8> = leases
            .flat_map(|name| wire::resource(lockspace, name, false, 0))
            .collect();
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let request = (Command::Release, 0, count, SELF);
        let patience = &mut Patience { limit, tell: None };
        let header = self.ask(what, request, &body, patience)?;
        // The process has none any more in any case; of a lease whose file is gone, nothing is left to be written.
        match header.result() {
            GONE => Ok(()),
            _ => done(what, header),
        }
    }

    /// Sends a request and reads the header of its answer.
    fn ask(
        &mut self,
        what: &str,
        request: (Command, u32, u32, u32),
        body: &[u8],
        patience: &mut Patience<'_>,
    ) -> Result<Header, Error> {
        let until = Instant::now() + patience.limit;
        self.send(what, request, body, until)?;
        let mut bytes = [0; HEADER];
        self.receive(what, &mut bytes, patience, until)?;
        let header = Header::of(&bytes).map_err(|why| nonsense(what, why))?;
        if header.command != request.0 as u32 {
            let why = format!("it is for request {}", header.command);
            return Err(nonsense(what, why));
        }
        Ok(header)
    }

    fn send(
        &mut self,
        what: &str,
        (command, flags, data, data2): (Command, u32, u32, u32),
        body: &[u8],
        until: Instant,
    ) -> Result<(), Error> {
        let header = Header {
            version: PROTOCOL,
            command: command as u32,
            flags,
            length: u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX),
            data,
            data2,
        };
        let mut bytes = header.bytes();
        bytes.extend(body);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(n) => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::OUT, until)? {
                        return Err(silent(what, AT_ONCE));
                    }
                }
                Err(e) if is_end(&e) => return Err(Error::Closed { what: what.into() }),
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        what: &str,
        mut into: &mut [u8],
        patience: &mut Patience<'_>,
        until: Instant,
    ) -> Result<(), Error> {
        let notice = Instant::now() + NOTICE;
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return Err(Error::Closed { what: what.into() }),
                Ok(n) => into = &mut into[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let first = patience.tell.as_ref().map_or(until, |_| notice.min(until));
                    if self.ready(PollFlags::IN, first)? {
                        continue;
                    }
                    if let Some((why, tell)) = patience.tell.take() {
                        tell(&why);
                    } else if Instant::now() >= until {
                        return Err(silent(what, patience.limit));
                    }
                }
                Err(e) if is_end(&e) => return Err(Error::Closed { what: what.into() }),
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    /// What follows a header.
    fn body(
        &mut self,
        what: &str,
        header: Header,
        patience: &mut Patience<'_>,
    ) -> Result<Vec<u8>, Error> {
        let length = header.length as usize - HEADER;
        if length > ANSWER_MAX {
            return Err(nonsense(what, format!("{length} bytes")));
        }
        let mut bytes = vec![0; length];
        let until = Instant::now() + AT_ONCE;
        self.receive(what, &mut bytes, patience, until)?;
        Ok(bytes)
    }

    /// What follows until the daemon closes the connection.
    fn states(&mut self, what: &str) -> Result<Vec<State>, Error> {
        let until = Instant::now() + AT_ONCE;
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::IN, until)? {
                        return Err(silent(what, AT_ONCE));
                    }
                }
                Err(e) if is_end(&e) => break,
                Err(e) => return Err(self.broken(e)),
            }
            if bytes.len() > ANSWER_MAX {
                return Err(nonsense(what, format!("more than {ANSWER_MAX} bytes")));
            }
        }
        wire::states(&bytes).map_err(|why| nonsense(what, why))
    }

    /// Waits for the connection; false: the time is over.
    fn ready(&self, flags: PollFlags, until: Instant) -> Result<bool, Error> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            });
            match poll(&mut [PollFd::new(&self.stream, flags)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.broken(e.into())),
            }
        }
    }

    fn broken(&self, error: io::Error) -> Error {
        Error::Connection {
            socket: self.socket.clone(),
            error,
        }
    }
}

impl AsFd for Daemon {
    /// Readable when the daemon has gone, or says something that nobody asked for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_end(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn silent(what: &str, limit: Duration) -> Error {
    Error::Silent {
        what: what.into(),
        seconds: limit.as_secs(),
    }
}

fn nonsense(what: &str, why: String) -> Error {
    Error::Nonsense {
        what: what.into(),
        why,
    }
}

/// An error where the daemon's result is one.
fn done(what: &str, header: Header) -> Result<(), Error> {
    match header.result() {
        0.. => Ok(()),
        result => Err(Error::Refused {
            what: what.into(),
            result,
        }),
    }
}

#[cfg(test)]
mod tests;
