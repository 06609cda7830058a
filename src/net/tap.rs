//! Asks `vsc-helper` for a tap.

#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::{ANSWER_MAX, GRANTED, QUEUES_OF_A_REQUEST, REFUSED, commands, is_interface_name};
use crate::sys;

/// The program's file name.
pub const PROGRAM: &str = "vsc-helper";
/// Where it is looked for besides the directory of the running program.
const PLACES: [&str; 2] = ["/usr/libexec/vsc", "/usr/lib/vsc"];
/// How long it may take; by itself it gives up earlier.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long whoever is asked for a password may take.
const PATIENCE_OF_PEOPLE: Duration = Duration::from_secs(300);

/// How the helper comes by its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// Its file has them: setuid root, or `cap_net_admin+ep`.
    #[default]
    Itself,
    /// sudo(8) gives them, and asks at the terminal if it has to.
    Sudo,
    /// pkexec(1) does.
    Pkexec,
}

/// A tap that is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// The bridge.
    pub bridge: String,
    /// Pairs of queues, 1 to 64; each is a descriptor.
    pub queues: u16,
    /// The helper, if it is to be another than that which is found.
    pub helper: Option<PathBuf>,
    /// How it comes by its rights.
    pub by: By,
}

/// A tap in a bridge, set up. It goes with its descriptors.
#[derive(Debug)]
pub struct Tap {
    /// Its name on the host.
    pub name: String,
    /// A descriptor for each queue: frames with a virtio-net header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR).
    pub queues: Vec<OwnedFd>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can be called so, or have so many queues.
    #[error("{0}")]
    Request(String),
    /// There is no helper.
    #[error("{PROGRAM} is not there ({}); {}", places(.looked), advice(.request))]
    NoHelper {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
        /// What was wanted.
        request: Box<Request>,
    },
    /// It cannot be started, or talked to.
    #[error("cannot {action} {}: {error}", .helper.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// The helper.
        helper: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
    /// It says no.
    #[error("{PROGRAM}: {why}; {}", advice(.request))]
    Refused {
        /// Its words.
        why: String,
        /// What was wanted.
        request: Box<Request>,
    },
    /// It ended without a word, or what it said makes no sense.
    #[error("{} ended without an answer that makes sense", .0.display())]
    Nonsense(PathBuf),
    /// It took too long.
    #[error("{} has not answered in {} s", .helper.display(), .waited.as_secs())]
    Late {
        /// The helper.
        helper: PathBuf,
        /// How long it had.
        waited: Duration,
    },
}

fn places(looked: &[PathBuf]) -> String {
    let shown: Vec<String> = looked.iter().map(|p| p.display().to_string()).collect();
    format!("looked at {}", shown.join(", "))
}

/// What root would do by hand, and what needs no root.
fn advice(request: &Request) -> String {
    let by_hand = commands("vsc0", &request.bridge, request.queues, None).join("; ");
    format!("by hand it is: {by_hand}; without any rights: `nets: [{{type: user}}]`")
}

/// The helper of this host: beside this program, or where packages put such programs.
///
/// # Errors
/// Where it was looked for.
pub fn find() -> Result<PathBuf, Vec<PathBuf>> {
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let places = own.into_iter().chain(PLACES.map(PathBuf::from));
    let looked: Vec<PathBuf> = places.map(|place| place.join(PROGRAM)).collect();
    match looked.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(looked),
    }
}

/// Why a helper that this process starts would have no CAP_NET_ADMIN; `None`: it would.
pub fn powerless(helper: &Path) -> Option<String> {
    use rustix::fs::{StatVfsMountFlags, getxattr, statvfs};
    use rustix::thread::{CapabilitySet, capabilities};
    let own = capabilities(None).is_ok_and(|c| c.permitted.contains(CapabilitySet::NET_ADMIN));
    if sys::user() == 0 && own {
        return None;
    }
    let meta = std::fs::metadata(helper).ok()?;
    // S_ISUID; capabilities(7) for the attribute's name.
    let setuid = meta.mode() & 0o4000 != 0 && meta.uid() == 0;
    let capable = getxattr(helper, "security.capability", &mut [0u8; 64][..]).is_ok();
    let shown = helper.display();
    if !setuid && !capable {
        return Some(format!(
            "{shown} has no CAP_NET_ADMIN; root gives it: sudo setcap cap_net_admin+ep {shown}"
        ));
    }
    let nosuid = statvfs(helper).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::NOSUID));
    if nosuid {
        return Some(format!(
            "{shown} lies on a file system that is mounted nosuid"
        ));
    }
    let bound = rustix::thread::no_new_privs().unwrap_or(false);
    bound.then(|| {
        "no program that this process starts may have more rights than it (no_new_privs)".to_owned()
    })
}

impl Request {
    /// A tap with one queue in `bridge`, by the helper that is found.
    pub fn new(bridge: &str) -> Self {
        Self {
            bridge: bridge.to_owned(),
            queues: 1,
            helper: None,
            by: By::Itself,
        }
    }

    fn command(&self, helper: &Path) -> Command {
        let mut command = match self.by {
            By::Itself => Command::new(helper),
            By::Sudo => {
                let what = commands("vsc0", &self.bridge, self.queues, None).join("; ");
                let mut command = Command::new("sudo");
                command.arg("-p");
                command.arg(format!("[sudo] vsc wants: {what}\npassword of %p: "));
                command.arg("--").arg(helper);
                command
            }
            By::Pkexec => {
                let mut command = Command::new("pkexec");
                command.arg(helper);
                command
            }
        };
        command.arg(&self.bridge).arg(self.queues.to_string());
        command
    }
}

/// Makes a tap.
///
/// # Errors
/// [`TapError`]; nothing is left on the host then.
pub fn request(request: &Request) -> Result<Tap, TapError> {
    if !is_interface_name(&request.bridge) {
        let name = &request.bridge;
        return Err(TapError::Request(format!(
            "{name:?} cannot be the name of a bridge"
        )));
    }
    if !(1..=QUEUES_OF_A_REQUEST).contains(&request.queues) {
        let n = request.queues;
        return Err(TapError::Request(format!(
            "a tap has 1 to {QUEUES_OF_A_REQUEST} pairs of queues here, not {n}"
        )));
    }
    let helper = match &request.helper {
        Some(helper) => helper.clone(),
        None => find().map_err(|looked| TapError::NoHelper {
            looked,
            request: Box::new(request.clone()),
        })?,
    };
    let failed = |action| {
        let helper = helper.clone();
        move |error: io::Error| TapError::System {
            action,
            helper,
            error,
        }
    };
    // Messages keep their borders, and descriptors their message.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| failed("make a socket for")(e.into()))?;
    let mut command = request.command(&helper);
    let quiet = match request.by {
        By::Itself => Stdio::null(),
        // They say there why they refuse.
        By::Sudo | By::Pkexec => Stdio::inherit(),
    };
    command.stdin(theirs).stdout(Stdio::null()).stderr(quiet);
    let mut child = command.spawn().map_err(failed("start"))?;
    // Its end must be the only one, so that its death is the end of the conversation.
    drop(command);
    let patience = match request.by {
        By::Itself => PATIENCE,
        By::Sudo | By::Pkexec => PATIENCE_OF_PEOPLE,
    };
    let answer = match sys::wait_readable(&ours, Some(Instant::now() + patience)) {
        Ok(true) => receive(&ours).map_err(failed("hear from")),
        Ok(false) => Err(TapError::Late {
            helper: helper.clone(),
            waited: patience,
        }),
        Err(e) => Err(failed("wait for")(e)),
    };
    // It ends after its answer. sudo(8) asks on for as long as it likes, and is not ours to end: nobody waits for it.
    if answer.is_ok() || child.kill().is_ok() {
        child.wait().map_err(failed("wait for"))?;
    }
    let (text, queues) = answer?;
    if let Some(why) = text.strip_prefix(REFUSED) {
        return Err(TapError::Refused {
            why: crate::diag::shown(why),
            request: Box::new(request.clone()),
        });
    }
    match text.strip_prefix(GRANTED) {
        Some(name) if is_interface_name(name) && queues.len() == usize::from(request.queues) => {
            Ok(Tap {
                name: name.to_owned(),
                queues,
            })
        }
        _ => Err(TapError::Nonsense(helper)),
    }
}

fn receive(socket: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut text = [0; ANSWER_MAX];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(QUEUES_OF_A_REQUEST as usize))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let text = text.get(..received.bytes).unwrap_or_default();
    Ok((String::from_utf8_lossy(text).into_owned(), descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_cannot_be_asked_for_is_said_and_what_root_would_do() {
        let told = |r: &Request| request(r).unwrap_err().to_string();
        assert!(told(&Request::new("../br0")).contains("cannot be the name"));
        let many = Request {
            queues: 65,
            ..Request::new("br0")
        };
        assert!(told(&many).contains("not 65"));
        let absent = Request {
            helper: Some("/no/such/vsc-helper".into()),
            ..Request::new("br0")
        };
        assert!(told(&absent).contains("cannot start /no/such/vsc-helper"));
        let nobody = TapError::NoHelper {
            looked: vec!["/a".into()],
            request: Box::new(Request::new("br0")),
        };
        assert_eq!(
            nobody.to_string(),
            "vsc-helper is not there (looked at /a); by hand it is: ip tuntap add dev vsc0 mode tap vnet_hdr; \
             ip link set dev vsc0 address fe:76:73:63:XX:XX; ip link set dev vsc0 master br0 up; without any rights: `nets: [{type: user}]`"
        );
    }

    #[test]
    fn a_helper_that_says_nothing_is_no_hang() {
        let path = std::env::temp_dir().join(format!("vsc-mute-{}", std::process::id()));
        std::fs::write(&path, "#!/bin/sh\nexit 3\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let mute = Request {
            helper: Some(path.clone()),
            ..Request::new("br0")
        };
        let error = request(&mute);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(error, Err(TapError::Nonsense(_))), "{error:?}");
    }
}
