//! The control socket of a run (`control: true`): what may be asked of a machine while it runs, and what it answers.
//!
//! A UNIX stream socket, mode 0600, in the run's own directory ([`vsc::runs`]). Who connects must be this user or root
//! (SO_PEERCRED, unix(7)). Lines of JSON, each at most [`LINE_MAX`] bytes; every request has one answer, in order:
//!
//! ```text
//! {"do":"status"}     {"ok":true,"id":…,"name":…,"pid":…,"state":"running","uptime_seconds":1.5,"alive":true,
//!                      "exits":1234,"restarts":0,"console_tail":["…"]}
//! {"do":"powerdown"}  {"ok":true,"heard":true}   the power button; heard: the guest listens to it
//! {"do":"stop"}       {"ok":true,"grace_seconds":10.0}   as SIGTERM: the guest is asked, and after that time made to
//!                     {"ok":true,"forced":true}  there was nobody to ask: the machine is ended
//! {"do":"kill"}       {"ok":true}                the machine ends at once, the run with exit code 137
//! {"do":"resume"}     {"ok":true}                a machine that stands still without its leases has them, and goes on
//! {"do":"wait"}       {"ok":true}                and at the end {"event":"end","result":{…}}: that of --result
//! anything else       {"ok":false,"error":"…"}
//! ```
//!
//! `state` is `running`, `paused` while it stands still because its leases are lost (`on_lockfailure: pause`), or
//! `ending` while the machine has stopped and its last output is on its way. Nobody can pause a machine from here:
//! KVM's clocks go on.
//!
//! The main thread serves it between other things and never waits for a client: what one does not read is kept up to
//! [`UNREAD_MAX`] bytes, then it is dropped. There are [`CLIENTS_MAX`] at most; one more takes the place of that which
//! has been silent the longest and waits for nothing.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vsc::runs::{RunDir, RunsError};

use super::poll::{Poll, Ready, Token};
use crate::say;

/// Longest request, bytes.
const LINE_MAX: usize = 1024;
/// Answers that wait for a client, bytes.
const UNREAD_MAX: usize = 256 << 10;
/// Clients at a time.
const CLIENTS_MAX: usize = 16;

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// How it is.
    Status,
    /// Press the power button.
    Powerdown,
    /// Ask the guest to end, and see to it that it does.
    Stop,
    /// End it at once.
    Kill,
    /// Go on, with its leases.
    Resume,
    /// Tell how it ended.
    Wait,
}

/// A line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    /// The request.
    #[serde(rename = "do")]
    pub(crate) what: Request,
}

/// Which client.
pub(super) type Id = u64;
/// A request, or why it is none.
pub(super) type Asked = Result<Request, String>;

/// The socket, and who is connected to it.
#[derive(Debug)]
pub(super) struct ControlSocket {
    directory: RunDir,
    /// Nobody connects any more once it failed.
    listener: Option<UnixListener>,
    /// The longest silent first.
    clients: VecDeque<Client>,
    next: Id,
}

#[derive(Debug)]
struct Client {
    id: Id,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It wants to know the end.
    waits: bool,
    /// Nothing more is read: the client has said all, or what it says makes no sense.
    deaf: bool,
    gone: bool,
}

/// What a round of poll(2) tells of it.
#[derive(Debug)]
pub(super) struct Watch {
    listener: Option<Token>,
    clients: Vec<(Id, Token)>,
}

impl ControlSocket {
    /// Makes the directory of the run `id` in `base`, and the socket in it.
    ///
    /// # Errors
    /// [`RunsError`]; nothing is left then.
    pub(super) fn open(base: &Path, id: &str, name: &str) -> Result<Self, RunsError> {
        vsc::runs::sweep(base);
        let directory = RunDir::make(base, id, name)?;
        let path = directory.socket();
        let failed = |error| RunsError::System {
            action: "make the control socket",
            path: path.clone(),
            error,
        };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // Nobody else gets into the directory, so nobody was quicker.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            directory,
            listener: Some(listener),
            clients: VecDeque::new(),
            next: 0,
        })
    }

    /// The run's name.
    pub(super) fn id(&self) -> &str {
        self.directory.id()
    }

    /// Adds what is waited for.
    pub(super) fn watch(&self, poll: &mut Poll) -> Watch {
        let client = |client: &Client| {
            let fd = client.stream.as_raw_fd();
            let token = match (client.output.is_empty(), client.deaf) {
                (false, _) => poll.write(fd),
                (true, false) => poll.read(fd),
                // Only that it has gone.
                (true, true) => poll.closed(fd),
            };
            (client.id, token)
        };
        let clients = self.clients.iter().map(client).collect();
        Watch {
            listener: self.listener.as_ref().map(|l| poll.read(l.as_raw_fd())),
            clients,
        }
    }

    /// What is asked, by whom, in the order of the answers; or why it is no request.
    pub(super) fn requests(&mut self, watch: &Watch, ready: &Ready) -> Vec<(Id, Asked)> {
        let mut asked = Vec::new();
        let is_ready = |id: Id| {
            let token = watch.clients.iter().find(|(client, _)| *client == id);
            token.is_some_and(|(_, token)| ready.is(*token))
        };
        let mut heard = Vec::new();
        for client in self.clients.iter_mut().filter(|c| is_ready(c.id)) {
            client.write();
            // Who does not take answers is not asked for more requests.
            if client.output.is_empty() {
                client.read();
            }
            let requests = client.take_requests();
            if !requests.is_empty() {
                heard.push(client.id);
            }
            asked.extend(requests.into_iter().map(|request| (client.id, request)));
        }
        self.clients.retain(|client| !client.gone);
        for id in heard {
            if let Some(at) = self.clients.iter().position(|c| c.id == id)
                && let Some(client) = self.clients.remove(at)
            {
                self.clients.push_back(client);
            }
        }
        if watch.listener.is_some_and(|token| ready.is(token)) {
            self.accept();
        }
        asked
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, id: Id, answer: &Value) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.say(answer);
        }
        self.clients.retain(|client| !client.gone);
    }

    /// The client is told the end.
    pub(super) fn will_wait(&mut self, id: Id) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.waits = true;
        }
    }

    /// Tells those who wait for it how the run ended.
    pub(super) fn tell_end(mut self, result: &Value) {
        let end = json!({"event": "end", "result": result});
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.say(&end);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if is_passing(&e) => return,
            Err(e) => {
                // It would be ready again at once.
                say::warning(&format!("the control socket of this run is lost: {e}"));
                self.listener = None;
                return;
            }
        };
        if !may_ask(&stream) || stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= CLIENTS_MAX {
            let Some(at) = self.clients.iter().position(|client| !client.waits) else {
                return;
            };
            self.clients.remove(at);
        }
        self.next += 1;
        self.clients.push_back(Client {
            id: self.next,
            stream,
            input: Vec::new(),
            output: Vec::new(),
            waits: false,
            deaf: false,
            gone: false,
        });
    }
}

/// Whether whoever connected is this user or root.
fn may_ask(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn is_passing(e: &io::Error) -> bool {
    // ECONNABORTED: it has gone again.
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

impl Client {
    fn read(&mut self) {
        let mut chunk = [0; LINE_MAX];
        if self.deaf {
            // Only its end can have woken us.
            self.gone = true;
            return;
        }
        match self.stream.read(&mut chunk) {
            // Whoever waits may have closed its side for writing.
            Ok(0) if self.waits => self.deaf = true,
            Ok(0) => self.gone = true,
            Ok(n) => self.input.extend_from_slice(&chunk[..n]),
            Err(e) if is_passing(&e) => {}
            Err(_) => self.gone = true,
        }
    }

    /// Complete lines. One read has so few of them that the machine need not wait for its turn.
    fn take_requests(&mut self) -> Vec<Asked> {
        let mut requests = Vec::new();
        while let Some(end) = self.input.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let ask = serde_json::from_slice::<Ask>(&line);
            requests.push(ask.map(|ask| ask.what).map_err(|e| e.to_string()));
        }
        // Without an end, nobody would know where the next one begins.
        self.gone |= self.input.len() > LINE_MAX;
        requests
    }

    fn say(&mut self, what: &Value) {
        self.output
            .extend_from_slice(format!("{what}\n").as_bytes());
        self.write();
        self.gone |= self.output.len() > UNREAD_MAX;
    }

    fn write(&mut self) {
        while !self.output.is_empty() && !self.gone {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}
