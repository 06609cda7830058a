//! How a run ended: one value, one exit code, one sentence, one JSON object.

use serde::Serialize;
use vsc_vmm::control::Stop;
use vsc_vmm::vm::Report;

/// The guest's kernel panicked.
pub(crate) const PANIC: u8 = 120;
/// The guest hung, died of a triple fault, or a watchdog ended it.
pub(crate) const HUNG: u8 = 121;
/// A command was to run, and the machine ended without its status.
pub(crate) const NO_STATUS: u8 = 122;
/// The time limit was reached.
pub(crate) const TIMEOUT: u8 = 124;
/// Our own error, before or besides the guest.
pub(crate) const OUR_ERROR: u8 = 125;
/// The command exists but cannot be executed.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// There is no such command.
pub(crate) const NOT_FOUND: u8 = 127;
/// Signals are added to this, as shells do.
pub(crate) const SIGNAL_BASE: u8 = 128;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub(crate) enum Ending {
    /// The command ended with a status.
    Exited {
        /// The status.
        status: u8,
    },
    /// A signal killed the command.
    Signalled {
        /// The signal's number.
        signal: u8,
    },
    /// The command could not be executed.
    NotExecuted {
        /// errno in the guest.
        errno: i32,
        /// The path that was tried.
        path: String,
    },
    /// The guest powered off, and nothing else was asked of it.
    PoweredOff,
    /// The guest asked for a reset, and `on_reboot` says that this ends the run.
    Rebooted,
    /// The machine ended before the command's status came.
    NoStatus {
        /// What ended it.
        how: String,
    },
    /// Kernel panic.
    Panicked {
        /// The kernel's message, if it was seen.
        // `message` is the sentence, for every ending.
        #[serde(rename = "panic")]
        message: Option<String>,
    },
    /// The guest hung: no life, sleep without end, or a fault that the machine does not survive.
    Hung {
        /// What was found.
        diagnosis: String,
    },
    /// The time limit was reached.
    TimedOut {
        /// The limit, seconds.
        seconds: f64,
    },
    /// A signal to this process ended the run.
    Interrupted {
        /// The signal's number.
        signal: u8,
    },
    /// The user quit with the escape key.
    Quit,
    /// The leases of its images were lost, and `on_lockfailure` says that this ends the run.
    LeasesLost {
        /// What has become of them.
        why: String,
    },
    /// The monitor failed.
    Failed {
        /// What failed; the sentence says no more.
        #[serde(skip)]
        message: String,
    },
}

impl Ending {
    /// The exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Exited { status } => *status,
            Self::Signalled { signal } | Self::Interrupted { signal } => {
                SIGNAL_BASE.saturating_add(*signal)
            }
            Self::NotExecuted { errno, .. } if *errno == libc::ENOENT => NOT_FOUND,
            Self::NotExecuted { .. } => CANNOT_EXECUTE,
            Self::PoweredOff | Self::Rebooted => 0,
            Self::NoStatus { .. } => NO_STATUS,
            Self::Panicked { .. } => PANIC,
            Self::Hung { .. } => HUNG,
            Self::TimedOut { .. } => TIMEOUT,
            Self::Quit => SIGNAL_BASE + libc::SIGINT as u8,
            Self::LeasesLost { .. } | Self::Failed { .. } => OUR_ERROR,
        }
    }

    /// A sentence for standard error; `None` where the exit code says it all.
    pub(crate) fn sentence(&self) -> Option<String> {
        Some(match self {
            Self::Exited { .. }
            | Self::PoweredOff
            | Self::Rebooted
            | Self::Quit
            | Self::Interrupted { .. } => {
                return None;
            }
            Self::Signalled { signal } => format!("the command was killed by signal {signal}"),
            Self::NotExecuted { errno, path } => {
                format!(
                    "cannot execute {path:?} in the guest: {}",
                    std::io::Error::from_raw_os_error(*errno)
                )
            }
            Self::NoStatus { how } => format!("{how} before the command's status came"),
            Self::Panicked {
                message: Some(message),
            } => format!("the guest's kernel panicked: {message}"),
            Self::Panicked { message: None } => "the guest's kernel panicked".into(),
            Self::Hung { diagnosis } => diagnosis.clone(),
            Self::TimedOut { seconds } => format!("the time limit of {seconds} s was reached"),
            Self::LeasesLost { why } => {
                format!("E-LOCK-LOST: sanlock's leases of the images are lost: {why}")
            }
            Self::Failed { message } => message.clone(),
        })
    }

    /// Whether the guest's last words help to understand it.
    pub(crate) fn wants_console(&self) -> bool {
        matches!(
            self,
            Self::NoStatus { .. }
                | Self::Panicked { .. }
                | Self::Hung { .. }
                | Self::TimedOut { .. }
                | Self::Failed { .. }
        )
    }

    /// What the machine itself says about its end; the command's status, where there is one, comes before it.
    pub(crate) fn of_machine(report: &Report, command: bool) -> Self {
        let panicked = || Self::Panicked {
            message: report.panic.clone(),
        };
        match &report.stop {
            Stop::Exit { status } => Self::Exited { status: *status },
            Stop::Panic => panicked(),
            Stop::Reset | Stop::TripleFault { .. } | Stop::PowerOff if report.panic.is_some() => {
                panicked()
            }
            Stop::PowerOff if command => Self::NoStatus {
                how: "the guest powered off".into(),
            },
            Stop::Reset if command => Self::NoStatus {
                how: "the guest rebooted".into(),
            },
            Stop::PowerOff => Self::PoweredOff,
            Stop::Reset => Self::Rebooted,
            Stop::Requested => Self::NoStatus {
                how: "the machine was stopped".into(),
            },
            Stop::TripleFault { .. } | Stop::Halted | Stop::NoLife | Stop::InternalError { .. } => {
                Self::Hung {
                    diagnosis: super::diagnosis::explain(report),
                }
            }
            Stop::Bug
            | Stop::NotConfined { .. }
            | Stop::FailEntry { .. }
            | Stop::VcpuError { .. }
            | Stop::Unexpected { .. } => Self::Failed {
                message: super::diagnosis::explain(report),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stop: Stop, panic: Option<&str>) -> Report {
        Report {
            stop,
            vcpus: vec![],
            exits: 0,
            kvm: vec![],
            devices: vec![],
            alive: true,
            panic: panic.map(str::to_owned),
            console_tail: vec![],
        }
    }

    #[test]
    fn every_ending_has_its_code() {
        for (ending, code) in [
            (Ending::Exited { status: 0 }, 0),
            (Ending::Exited { status: 255 }, 255),
            (Ending::Signalled { signal: 9 }, 137),
            (
                Ending::NotExecuted {
                    errno: libc::ENOENT,
                    path: "x".into(),
                },
                127,
            ),
            (
                Ending::NotExecuted {
                    errno: libc::EACCES,
                    path: "x".into(),
                },
                126,
            ),
            (Ending::PoweredOff, 0),
            (Ending::Rebooted, 0),
            (Ending::NoStatus { how: "x".into() }, 122),
            (Ending::Panicked { message: None }, 120),
            (
                Ending::Hung {
                    diagnosis: "x".into(),
                },
                121,
            ),
            (Ending::TimedOut { seconds: 1.0 }, 124),
            (Ending::Interrupted { signal: 2 }, 130),
            (Ending::Interrupted { signal: 15 }, 143),
            (Ending::Quit, 130),
            (
                Ending::Failed {
                    message: "x".into(),
                },
                125,
            ),
        ] {
            assert_eq!(ending.code(), code, "{ending:?}");
        }
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        let message = Some("Attempted to kill init!".to_owned());
        for stop in [
            Stop::Reset,
            Stop::PowerOff,
            Stop::TripleFault { vcpu: 0 },
            Stop::Panic,
        ] {
            let ending = Ending::of_machine(&report(stop, message.as_deref()), true);
            assert_eq!(
                ending,
                Ending::Panicked {
                    message: message.clone()
                }
            );
        }
    }

    #[test]
    fn power_off_means_success_only_without_a_command() {
        assert_eq!(
            Ending::of_machine(&report(Stop::PowerOff, None), false),
            Ending::PoweredOff
        );
        assert_eq!(
            Ending::of_machine(&report(Stop::PowerOff, None), true).code(),
            NO_STATUS
        );
        assert_eq!(
            Ending::of_machine(&report(Stop::Exit { status: 7 }, None), false).code(),
            7
        );
    }
}
