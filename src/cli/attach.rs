//! `vsc-run attach SOCKET`: this terminal on a serial line or console port that listens on a UNIX socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;

use super::Common;
use crate::run::poll::Poll;
use crate::run::signals::Signals;
use crate::run::terminal::{self, Escape, EscapeFilter, KEYS, RawTerminal};
use crate::say;

/// Typed bytes that wait for a guest which does not read, before the terminal holds what is typed, the escape key too.
const WAITING_MAX: usize = 1 << 20;

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The socket, as given in `serial: unix:SOCKET`.
    socket: PathBuf,
}

/// Why a session ended.
enum End {
    /// The machine's end, or the user left.
    Left,
    /// A signal to this process.
    Signal(i32),
}

pub(super) fn run(args: &AttachArgs, common: &Common) -> u8 {
    let stream = match UnixStream::connect(&args.socket) {
        Ok(stream) => stream,
        Err(e) => {
            say::error(&format!(
                "cannot attach to {}: {e}; is the machine running? (vsc-run ps)",
                args.socket.display()
            ));
            return crate::FAILED;
        }
    };
    // Before the terminal is changed: from here on a signal is an end like any other, which puts it back.
    let terminal = Signals::take().and_then(|signals| {
        let terminal = RawTerminal::claim()?;
        terminal.as_ref().map_or(Ok(()), RawTerminal::enter)?;
        Ok((signals, terminal))
    });
    let (signals, terminal) = match terminal {
        Ok(taken) => taken,
        Err(e) => {
            say::error(&format!("cannot set up signals or the terminal: {e}"));
            return crate::FAILED;
        }
    };
    say::answered();
    if terminal.is_some() && !common.quiet {
        say::err_raw("attached; Ctrl-A x leaves\r\n");
    }
    let result = Session {
        stream,
        signals,
        filter: terminal.is_some().then(EscapeFilter::default),
        waiting: Vec::new(),
        typing: true,
    }
    .pump();
    drop(terminal);
    match result {
        Ok(End::Left) => 0,
        Ok(End::Signal(signal)) => crate::run::ending::SIGNAL_BASE.saturating_add(signal as u8),
        Err(e) => {
            say::error(&format!("the connection broke: {e}"));
            crate::FAILED
        }
    }
}

struct Session {
    stream: UnixStream,
    signals: Signals,
    /// For a terminal only: what comes from elsewhere is passed on as it is.
    filter: Option<EscapeFilter>,
    /// On its way to the guest.
    waiting: Vec<u8>,
    /// Input may still come.
    typing: bool,
}

impl Session {
    /// Copies both ways until the guest's side closes or the user leaves. Only writing to our own output ever waits.
    fn pump(&mut self) -> io::Result<End> {
        let mut stdin = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut stdout = io::stdout().lock();
        let mut chunk = [0u8; 4096];
        self.stream.set_nonblocking(true)?;
        loop {
            let mut poll = Poll::new();
            let signal = poll.read(self.signals.fd());
            let from_guest = poll.read(self.stream.as_raw_fd());
            // A terminal is listened to for its escape key also while the guest does not read.
            let listen = self.typing
                && match self.filter {
                    Some(_) => terminal::is_raw() && self.waiting.len() < WAITING_MAX,
                    None => self.waiting.is_empty(),
                };
            let typed = listen.then(|| poll.read(libc::STDIN_FILENO));
            let room = (!self.waiting.is_empty()).then(|| poll.write(self.stream.as_raw_fd()));
            let ready = poll.wait(None)?;
            if ready.is(signal) {
                while let Some(signal) = self.signals.next() {
                    if signal != libc::SIGWINCH {
                        return Ok(End::Signal(signal));
                    }
                }
            }
            if ready.is(from_guest) {
                match self.stream.read(&mut chunk) {
                    Ok(0) => return Ok(End::Left),
                    Ok(n) => {
                        stdout.write_all(&chunk[..n])?;
                        stdout.flush()?;
                    }
                    Err(e) if is_passing(&e) => {}
                    Err(e) => return Err(e),
                }
            }
            if typed.is_some_and(|t| ready.is(t)) {
                match stdin.read(&mut chunk) {
                    Ok(n) if n > 0 => {
                        if self.take(&chunk[..n]) {
                            return Ok(End::Left);
                        }
                    }
                    // A terminal that hung up says EIO.
                    Ok(_) => self.typing = false,
                    Err(e) if is_passing(&e) => {}
                    Err(_) if self.filter.is_some() && terminal::lost() => {}
                    Err(_) => self.typing = false,
                }
                self.send()?;
            } else if room.is_some_and(|r| ready.is(r)) {
                self.send()?;
            }
        }
    }

    /// Takes typed bytes; true: the user leaves.
    fn take(&mut self, typed: &[u8]) -> bool {
        let Some(filter) = &mut self.filter else {
            self.waiting.extend_from_slice(typed);
            return false;
        };
        let (bytes, asked) = filter.filter(typed);
        self.waiting.extend(bytes);
        for escape in asked {
            match escape {
                Escape::Quit => return true,
                Escape::Help => say::err_raw(&format!("\r\n{KEYS}\r\n")),
                Escape::PowerButton => {
                    say::err_raw("\r\nthe power button is where the machine was started\r\n");
                }
            }
        }
        false
    }

    /// Writes what the guest takes now. The end of the input follows the last of it.
    fn send(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The machine has gone; its last words may still be there to be read.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.waiting.clear(),
                Err(e) => return Err(e),
            }
        }
        if !self.typing {
            // It fails where the machine has gone, which the next read tells.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
