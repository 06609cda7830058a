//! `vsc-run attach SOCKET`: this terminal on a serial line or console port that listens on a UNIX socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;

use super::Common;
use crate::run::poll::{Poll, Ready};
use crate::run::terminal::{Escape, EscapeFilter, KEYS, RawTerminal};
use crate::say;

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The socket, as given in `serial: unix:SOCKET`.
    socket: PathBuf,
}

pub(super) fn run(args: &AttachArgs, common: &Common) -> u8 {
    let stream = match UnixStream::connect(&args.socket) {
        Ok(stream) => stream,
        Err(e) => {
            say::err(&format!(
                "cannot attach to {}: {e}; is the machine running? (vsc-run ps)",
                args.socket.display()
            ));
            return crate::FAILED;
        }
    };
    let terminal = match RawTerminal::enter() {
        Ok(terminal) => terminal,
        Err(e) => {
            say::err(&format!("cannot make the terminal raw: {e}"));
            return crate::FAILED;
        }
    };
    if terminal.is_some() && !common.quiet {
        say::err_raw("attached; Ctrl-A x leaves\r\n");
    }
    let result = pump(stream, terminal.is_some());
    drop(terminal);
    match result {
        Ok(()) => 0,
        Err(e) => {
            say::err(&format!("the connection broke: {e}"));
            crate::FAILED
        }
    }
}

/// Copies both ways until the guest's side closes or the user leaves.
fn pump(mut stream: UnixStream, escapes: bool) -> io::Result<()> {
    let mut stdin = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = io::stdout().lock();
    let mut filter = EscapeFilter::default();
    let mut chunk = [0u8; 4096];
    let mut typing = true;
    loop {
        let mut poll = Poll::new();
        let from_guest = poll.read(stream.as_raw_fd());
        let typed = typing.then(|| poll.read(libc::STDIN_FILENO));
        let ready: Ready = poll.wait(None)?;
        if ready.is(from_guest) {
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            stdout.write_all(&chunk[..n])?;
            stdout.flush()?;
        }
        if typed.is_some_and(|t| ready.is(t)) {
            let n = stdin.read(&mut chunk)?;
            if n == 0 {
                typing = false;
                stream.shutdown(std::net::Shutdown::Write)?;
                continue;
            }
            let (bytes, asked) = if escapes {
                filter.filter(&chunk[..n])
            } else {
                (chunk[..n].to_vec(), vec![])
            };
            stream.write_all(&bytes)?;
            for escape in asked {
                match escape {
                    Escape::Quit => return Ok(()),
                    Escape::Help => say::err_raw(&format!("\r\n{KEYS}\r\n")),
                    Escape::PowerButton => {
                        say::err_raw("\r\nthe power button is where the machine was started\r\n")
                    }
                }
            }
        }
    }
}
