//! VMs that are handed to a libvirt, and watched until they end.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use vsc::compile::Description;
use vsc::diag::Diagnostics;
use vsc::facts::{Root, Variables};
use vsc::hosts::{Hosts, HostsError};
use vsc::libvirt::{Event, Events, Existing, HandOverError, Virsh, VirshError, is_active};
use vsc::store::Remote;
use vsc::xml::Exported;

use super::super::Common;
use super::super::export::is_made;
use super::luggage::{LuggageError, give_secrets, make_images};
use super::{RUNNING, answer, is_secure};
use crate::run::ending::Ending;
use crate::run::poll::Poll;
use crate::run::result::Summary;
use crate::run::signals::Signals;
use crate::say;

/// How long nothing may be heard of a start before the hypervisor is asked: the listener may have come too late.
const LOOK: Duration = Duration::from_secs(2);

/// Why nothing was handed over, or nobody knows how it ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum RemoteError {
    /// The list of hypervisors is wrong.
    #[error("{}", .0.list.iter().map(|d| d.message.clone()).collect::<Vec<_>>().join("; "))]
    List(Box<Diagnostics>),
    /// The hypervisor is not in it.
    #[error(transparent)]
    Host(#[from] HostsError),
    /// What libvirt says.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// What libvirt says.
    #[error(transparent)]
    Virsh(#[from] VirshError),
    /// It would lack something there.
    #[error(transparent)]
    Luggage(#[from] LuggageError),
    /// Encrypted guests are not started without attestation.
    #[error(
        "E-LATER: {0} has encrypted memory, and its start has to be attested, which is not in this build yet; \
         --export-xml has what virsh starts without that"
    )]
    Attestation(String),
    /// The connection broke.
    #[error("the connection to {url} broke; {name} is still running there")]
    Lost {
        /// The hypervisor's address.
        url: String,
        /// The VM.
        name: String,
    },
    /// Of waiting.
    #[error("cannot wait for {name}: {error}")]
    Wait {
        /// The VM.
        name: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

impl RemoteError {
    /// Whether it is certain that the VM does not run there.
    pub(super) fn nothing_started(&self) -> bool {
        match self {
            Self::List(_) | Self::Host(_) | Self::Attestation(_) | Self::Luggage(_) => true,
            Self::HandOver(HandOverError::Virsh(e)) => {
                !matches!(e, VirshError::TimedOut { .. } | VirshError::TooLong { .. })
            }
            Self::HandOver(_) => true,
            Self::Virsh(_) | Self::Lost { .. } | Self::Wait { .. } => false,
        }
    }
}

/// The hypervisor of this name, by the list that a scenario's key `hosts` names or the usual one.
pub(in crate::cli) fn resolve(
    name: &str,
    list: Option<&Path>,
    common: &Common,
) -> Result<Remote, RemoteError> {
    let root = Root(common.host_root.clone());
    let hosts = Hosts::load(
        list,
        common.settings(&root),
        &Variables::of_process(),
        &root,
    )
    .map_err(|messages| RemoteError::List(Box::new(messages)))?;
    let host = hosts.get(name)?;
    Ok(Remote {
        host: host.name.clone(),
        url: host.url()?.to_owned(),
    })
}

/// A VM on its way to a libvirt.
pub(in crate::cli) struct Passenger<'a> {
    pub(in crate::cli) name: &'a str,
    pub(in crate::cli) xml: &'a str,
    pub(in crate::cli) existing: Existing,
    /// Its end is not waited for.
    pub(in crate::cli) detach: bool,
    /// `limits.timeout`, which libvirt does not know.
    pub(in crate::cli) timeout: Option<Duration>,
}

/// Keys that this program sees to while it waits for the end of a domain.
const SEEN_TO: [&str; 1] = ["limits.timeout"];

impl Passenger<'_> {
    /// What is lost on the way is said.
    fn warn(&self, exported: &Exported) {
        let here = |key: &str| !self.detach && SEEN_TO.contains(&key);
        let lost = exported.unsaid.iter().map(String::as_str);
        let lost: Vec<&str> = lost.filter(|key| !here(key) && !is_made(key)).collect();
        if !lost.is_empty() {
            say::warning(&format!("libvirt's domain cannot say {}", lost.join(", ")));
        }
    }

    /// Defines and starts it, and waits for its end. `None`: it runs, and nobody waits.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub(in crate::cli) fn travel(
        &self,
        remote: &Remote,
        common: &Common,
    ) -> Result<Option<Ending>, RemoteError> {
        let virsh = Virsh::new(remote.url.as_str());
        let waiting = |error| RemoteError::Wait {
            name: self.name.to_owned(),
            error,
        };
        if self.detach {
            let undo = virsh.hand_over(self.name, self.xml, self.existing)?;
            virsh.start_handed_over(&undo)?;
            return Ok(None);
        }
        // A signal from here on is for the guest.
        let signals = Signals::take().map_err(waiting)?;
        let undo = virsh.hand_over(self.name, self.xml, self.existing)?;
        // Before the start: what happens after it is heard.
        let events = virsh.listen(self.name)?;
        virsh.start_handed_over(&undo)?;
        let watch = Watch {
            virsh: &virsh,
            name: self.name,
            host: &remote.host,
            quiet: common.quiet,
            limit: self.timeout.map(|time| (Instant::now() + time, time)),
            asked: None,
            heard: false,
        };
        watch.attend(events, signals).map(Some)
    }
}

/// Hands what a scenario describes to a libvirt, and waits for its end. `None`: it runs, and nobody waits.
///
/// # Errors
/// [`RemoteError`].
pub(in crate::cli) fn hand_over(
    description: &Description,
    exported: &Exported,
    remote: &Remote,
    (overwrite, detach): (bool, bool),
    common: &Common,
) -> Result<Option<Ending>, RemoteError> {
    let name = description.domain.text("name").unwrap_or_default();
    if is_secure(description) {
        return Err(RemoteError::Attestation(name.to_owned()));
    }
    let timeout = description.domain.get("limits.timeout");
    let timeout = timeout.and_then(serde_json::Value::as_f64);
    let passenger = Passenger {
        name,
        xml: &exported.text,
        existing: match overwrite {
            true => Existing::Replace,
            false => Existing::Refuse,
        },
        detach,
        timeout: timeout.and_then(|t| Duration::try_from_secs_f64(t).ok()),
    };
    passenger.warn(exported);
    let images = description.images.clone();
    make_images(images, remote, common, |_| Ok::<_, RemoteError>(()))?;
    give_secrets(&description.domain, remote)?;
    let ending = passenger.travel(remote, common)?;
    if ending.is_none() {
        started(name, remote, common);
        say::note(&format!(
            "virsh -c {} shutdown {name} ends it; what is saved (--save, start --on) is ended by vsc-run stop",
            remote.url
        ));
    } else if !overwrite {
        // It was defined for this run only. Who hung up left it running.
        let virsh = Virsh::new(remote.url.as_str());
        if virsh.state(name)?.is_some_and(|state| !is_active(&state)) {
            virsh.undefine(name)?;
        }
    }
    Ok(ending)
}

/// The answer of `--detach`.
pub(super) fn started(name: &str, remote: &Remote, common: &Common) {
    let told = json!({"name": name, "state": RUNNING, "host": remote.host, "url": remote.url});
    let text = format!("{name} is running on {}, {}\n", remote.host, remote.url);
    answer(common, &told, &text);
}

/// What is told of an end on a libvirt.
pub(in crate::cli) fn ended(ending: Ending) -> Summary {
    let sentence = match &ending {
        // There was no command.
        Ending::NoStatus { how } => Some(how.clone()),
        ending => ending.sentence(),
    };
    if let Some(sentence) = sentence {
        super::super::last::ended(&ending, &sentence);
    }
    Summary::never_ran(ending)
}

/// Waits until a domain has ended, `until` at most; returns whether it has.
pub(super) fn wait_for_end(
    virsh: &Virsh,
    name: &str,
    until: Option<Instant>,
    ask: impl FnOnce() -> Result<(), VirshError>,
) -> Result<bool, RemoteError> {
    let waiting = |error| RemoteError::Wait {
        name: name.to_owned(),
        error,
    };
    let gone =
        || -> Result<bool, VirshError> { Ok(!virsh.state(name)?.is_some_and(|s| is_active(&s))) };
    let mut events = virsh.listen(name)?;
    ask()?;
    loop {
        // The listener may have come too late to hear of the end.
        if gone()? {
            return Ok(true);
        }
        let look = Instant::now() + LOOK;
        let mut poll = Poll::new();
        let heard = poll.read(events.as_fd().as_raw_fd());
        let ready = poll
            .wait(Some(until.map_or(look, |until| until.min(look))))
            .map_err(waiting)?;
        if ready.is(heard) && events.read().map_err(waiting)?.is_none() && !gone()? {
            return Err(RemoteError::Lost {
                url: virsh.url().to_owned(),
                name: name.to_owned(),
            });
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(gone()?);
        }
    }
}

/// Waiting for the end of a domain, the user being there.
struct Watch<'a> {
    virsh: &'a Virsh,
    name: &'a str,
    host: &'a str,
    quiet: bool,
    limit: Option<(Instant, Duration)>,
    /// The signal that asked for the end.
    asked: Option<i32>,
    /// Something was heard of it: the listener listens.
    heard: bool,
}

impl Watch<'_> {
    fn attend(mut self, mut events: Events, mut signals: Signals) -> Result<Ending, RemoteError> {
        let name = self.name;
        let waiting = |error| RemoteError::Wait {
            name: name.to_owned(),
            error,
        };
        loop {
            let look = (!self.heard).then(|| Instant::now() + LOOK);
            let until = [look, self.limit.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let mut poll = Poll::new();
            let signal = poll.read(signals.fd());
            let happened = poll.read(events.as_fd().as_raw_fd());
            let ready = poll.wait(until).map_err(waiting)?;
            if ready.is(signal) {
                while let Some(signal) = signals.next() {
                    if let Some(ending) = self.on_signal(signal)? {
                        return Ok(ending);
                    }
                }
            }
            if let Some((_, time)) = self.limit.filter(|(at, _)| Instant::now() >= *at) {
                self.virsh.run(&["destroy", "--", self.name], None)?;
                return Ok(Ending::TimedOut {
                    seconds: time.as_secs_f64(),
                });
            }
            if ready.is(happened) {
                match events.read().map_err(waiting)? {
                    Some(list) => {
                        for event in list {
                            if let Some(ending) = self.on_event(&event)? {
                                return Ok(ending);
                            }
                        }
                    }
                    None => return self.lost(),
                }
            } else if !self.heard && !self.is_there()? {
                return Ok(self.ended("shut off before anything was heard of it"));
            }
        }
    }

    fn is_there(&self) -> Result<bool, VirshError> {
        Ok(self.virsh.state(self.name)?.is_some_and(|s| is_active(&s)))
    }

    /// A first signal asks the guest to end, a second one ends it; who hangs up leaves it alone.
    fn on_signal(&mut self, signal: i32) -> Result<Option<Ending>, RemoteError> {
        match signal {
            libc::SIGWINCH => return Ok(None),
            libc::SIGHUP => return Ok(Some(Ending::Interrupted { signal: 1 })),
            _ => {}
        }
        let order = match self.asked.replace(signal) {
            None if signal != libc::SIGQUIT => "shutdown",
            _ => "destroy",
        };
        match self.virsh.run(&[order, "--", self.name], None) {
            // It may have ended meanwhile, which is what was asked for.
            Err(VirshError::Refused { message, .. }) if self.is_there()? => {
                say::error(&format!("{} cannot be told to end: {message}", self.name));
            }
            Err(e @ VirshError::TimedOut { .. }) => drop(say::error(&e.to_string())),
            Ok(_) if order == "shutdown" && !self.quiet => {
                say::note(&format!(
                    "asked {} to shut down; a second time destroys it",
                    self.name
                ));
            }
            Err(VirshError::Refused { .. }) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(None)
    }

    fn on_event(&mut self, event: &Event) -> Result<Option<Ending>, RemoteError> {
        self.heard = true;
        let Event { what, detail } = event;
        if !self.quiet {
            say::note(&format!("{} on {}: {what} {detail}", self.name, self.host));
        }
        // A crash is the end where it is to be looked into, and none where it is followed by a restart.
        let preserved = what == "Crashed" && !self.is_there()?;
        if !event.is_end() && !preserved {
            return Ok(None);
        }
        Ok(Some(match (detail.as_str(), self.asked) {
            ("Crashed" | "Panicked", _) => Ending::Panicked { message: None },
            ("Failed", _) => Ending::Failed {
                message: format!(
                    "{} failed on {}; libvirt's log there says why",
                    self.name, self.host
                ),
            },
            (_, Some(signal)) => Ending::Interrupted {
                signal: signal as u8,
            },
            ("Shutdown", None) => Ending::PoweredOff,
            (how, None) => self.ended(&how.to_lowercase()),
        }))
    }

    fn ended(&self, how: &str) -> Ending {
        match self.asked {
            Some(signal) => Ending::Interrupted {
                signal: signal as u8,
            },
            None => Ending::NoStatus {
                how: format!("{} on {} was {how}", self.name, self.host),
            },
        }
    }

    /// There is nothing more to be heard: the hypervisor is asked once.
    fn lost(&self) -> Result<Ending, RemoteError> {
        if self.is_there()? {
            return Err(RemoteError::Lost {
                url: self.virsh.url().to_owned(),
                name: self.name.to_owned(),
            });
        }
        Ok(self.ended("shut off while nobody listened"))
    }
}
