//! What KVM refused.

use std::io;

/// A KVM call that failed, named after what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm could not be opened.
    #[error("Open /dev/kvm")]
    Open(#[source] io::Error),
    /// The KVM of this host speaks another API.
    #[error("KVM API version is {0}, not 12")]
    Version(i32),
    /// A call on the machine.
    #[error("{call} failed")]
    Call {
        /// The ioctl's name.
        call: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A call on one vCPU.
    #[error("{call} failed on vCPU {vcpu}")]
    Vcpu {
        /// The ioctl's name.
        call: &'static str,
        /// The vCPU.
        vcpu: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// More vCPUs than the host's KVM takes.
    #[error("{asked} vCPUs are more than the {max} that this host's KVM takes")]
    TooManyVcpus {
        /// vCPUs asked for.
        asked: u32,
        /// KVM_CAP_MAX_VCPUS.
        max: u32,
    },
    /// The host cannot show SVM or VMX to a guest.
    #[error(
        "Nested virtualization is not available: the host's KVM shows neither SVM nor VMX to guests"
    )]
    NoNested,
}

impl KvmError {
    pub(crate) fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Call {
            call,
            source: io::Error::from_raw_os_error(e.errno()),
        }
    }

    pub(crate) fn vcpu(call: &'static str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Vcpu {
            call,
            vcpu,
            source: io::Error::from_raw_os_error(e.errno()),
        }
    }
}
