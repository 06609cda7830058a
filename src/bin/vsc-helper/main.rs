//! `vsc-helper BRIDGE QUEUES`: makes a tap, puts it into a bridge, sets it up, passes its descriptors over the socket
//! that is its standard input, and ends. See [`vsc::net`]; `vsc::net::tap` is its client.
//!
//! It is installed setuid root, or with the file capability `cap_net_admin+ep`, or started by sudo(8) or pkexec(1).
//! Whoever starts it may mean harm: all that comes from them is two words, and a socket. Before it looks at either it
//! gives up every right but CAP_NET_ADMIN ([`privileges`]); who may have what is root's to say
//! ([`vsc::net::policy`]). It ends within ten seconds.
//!
//! Whoever has a tap's descriptor may make the tap persistent (TUNSETPERSIST asks for no rights), as with every
//! program that passes one on: a bridge is allowed to users who are trusted with that.

mod interface;
mod privileges;

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType};
use vsc::net::policy::{self, Names, PolicyError};
use vsc::net::{ANSWER_MAX, GRANTED, QUEUES_OF_A_REQUEST, REFUSED, TEMPLATE, is_interface_name};

use interface::InterfaceError;
use privileges::PrivilegeError;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error(
        "usage: vsc-helper BRIDGE QUEUES, with a UNIX socket as standard input; vsc-run starts it"
    )]
    Usage,
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("cannot pass the tap on: {0}")]
    Passing(#[source] io::Error),
}

fn main() -> ExitCode {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    match serve(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("{REFUSED}{e}");
            while text.len() > ANSWER_MAX {
                text.pop();
            }
            if !is_socket(socket) || send(socket, &text, &[]).is_err() {
                // Nobody listens but perhaps a person.
                let _ = writeln!(io::stderr(), "vsc-helper: {e}");
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: BorrowedFd<'_>) -> Result<(), HelperError> {
    let who = privileges::settle()?;
    let mut words = std::env::args_os().skip(1);
    let mut word = || words.next().and_then(|word| word.into_string().ok());
    let (bridge, queues) = match (word(), word(), word()) {
        (Some(bridge), Some(queues), None) if is_socket(socket) => (bridge, queues),
        _ => return Err(HelperError::Usage),
    };
    let queues = queues.parse().ok();
    let queues = queues.filter(|n| (1..=QUEUES_OF_A_REQUEST).contains(n));
    let queues = queues.ok_or(HelperError::Usage)?;
    if !is_interface_name(&bridge) {
        return Err(HelperError::Usage);
    }
    let rules = policy::read()?;
    policy::decide(&rules, &bridge, &who, &Names::read("/".as_ref()))?;
    let tap = interface::tap(TEMPLATE, &bridge, queues)?;
    let descriptors: Vec<BorrowedFd<'_>> = tap.queues.iter().map(AsFd::as_fd).collect();
    send(socket, &format!("{GRANTED}{}", tap.name), &descriptors).map_err(HelperError::Passing)
}

/// A message must arrive whole, and with its descriptors.
fn is_socket(fd: BorrowedFd<'_>) -> bool {
    let unix = rustix::net::sockopt::socket_domain(fd);
    let kind = rustix::net::sockopt::socket_type(fd);
    unix == Ok(rustix::net::AddressFamily::UNIX) && kind == Ok(SocketType::SEQPACKET)
}

fn send(socket: BorrowedFd<'_>, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(QUEUES_OF_A_REQUEST as usize))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
