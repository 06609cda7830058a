//! What of the host a machine still uses once it is built: all that its process keeps ([`vsc_vmm::sandbox`]).

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Serialize;
use vsc_devices::stream::Endpoint;
use vsc_vmm::resources::{InitrdPart, Payload, VmResources};
use vsc_vmm::sandbox::{Access, Allowed, Confinement, InForce, Sandbox, SandboxError, Spec};

use super::leftovers::{endpoints, sockets};
use super::terminal;

/// What is said of a run without confinement.
pub(super) const UNCONFINED: &str = "not confined (--no-sandbox, sandbox: false): a guest that breaks out of the \
                                     machine can do whatever this user can: open files, start programs, use the network";

/// Threads of a disk where there is no io_uring (devices/src/block/engine/mod.rs), or of an encrypted one (devices/src/block/luks/disk.rs).
const THREADS_OF_DISK: u32 = 4;

/// What a result says about confinement.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    enabled: bool,
    #[serde(flatten)]
    in_force: InForce,
}

impl Facts {
    pub(crate) fn of(confinement: &Confinement) -> Self {
        Self {
            enabled: confinement.is_some(),
            in_force: confinement
                .as_ref()
                .map(|sandbox| sandbox.in_force())
                .unwrap_or_default(),
        }
    }
}

/// What the machine of `resources` needs after its set-up. `removes`: directories in which the run
/// removes something of its own, besides sockets of streams, which it does itself unless they are `swept` by another
/// process; `descriptors`: numbers of streams that the scenario names.
pub(crate) fn spec<'a>(
    resources: &VmResources,
    rebuild: bool,
    swept: bool,
    removes: impl Iterator<Item = &'a Path>,
    descriptors: &[(String, u32)],
) -> Spec {
    let sockets = sockets(resources);
    // Whoever may remove a socket may remove all that is in its directory, and below.
    let mut allowed: Vec<Allowed> = sockets
        .iter()
        .filter(|_| rebuild || !swept)
        .map(|path| {
            let access = if rebuild {
                Access::Sockets
            } else {
                Access::Remove
            };
            Allowed::Path(directory(path), access)
        })
        .collect();
    allowed.extend(removes.map(|dir| Allowed::Path(dir.to_owned(), Access::Remove)));
    let unlink = !allowed.is_empty();
    if rebuild {
        allowed.extend(opened_again(resources, descriptors));
    }
    let disks = u32::try_from(resources.disks.len()).unwrap_or(u32::MAX);
    let threads = resources
        .cpus
        .count
        .saturating_add(resources.iothreads.max(1));
    Spec {
        rebuild,
        unlink,
        threads: threads.saturating_add(disks.saturating_mul(THREADS_OF_DISK)),
        disks,
        allowed,
    }
}

/// Confines what all threads have in common, before there are any.
pub(super) fn begin(spec: Spec) -> Result<Confinement, SandboxError> {
    let sandbox = Sandbox::new(spec)?;
    sandbox.begin(terminal::restore)?;
    Ok(Some(sandbox))
}

/// What is said of a machine whose process may open files, where nothing says which.
pub(crate) const ANY_PATH: &str = "this kernel has no Landlock, and a machine that may start again opens its files then: \
                                   a guest that breaks out of it can open whatever this user can";

/// What is in force, in one line.
pub(super) fn sentence(confinement: &Confinement, rebuild: bool) -> String {
    let landlock = confinement
        .as_ref()
        .and_then(|sandbox| sandbox.in_force().landlock);
    match landlock {
        Some(abi) => format!("confined: seccomp, Landlock ABI {abi}, limits, no privileges"),
        None if rebuild => format!("confined: seccomp, limits, few privileges; {ANY_PATH}"),
        None => "confined: seccomp, limits, no privileges; this kernel has no Landlock, so that paths are kept by \
                 seccomp alone"
            .into(),
    }
}

fn directory(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

/// What building the machine once more opens. Files that it makes are there from the first time, and images stay open.
fn opened_again(resources: &VmResources, descriptors: &[(String, u32)]) -> Vec<Allowed> {
    let mut allowed = vec![
        Allowed::Path("/dev/kvm".into(), Access::ReadWrite),
        // An output that is the null device; memory in use, for limits; the kind of KVM.
        Allowed::Path("/dev/null".into(), Access::ReadWrite),
        Allowed::Path("/proc/self".into(), Access::Read),
        Allowed::Path("/sys/module".into(), Access::Read),
    ];
    let file = |path: &Path, access| Allowed::Path(path.to_owned(), access);
    if let Payload::Kernel(kernel) = &resources.payload {
        allowed.push(file(&kernel.path, Access::Read));
        allowed.extend(kernel.cache.as_deref().map(|dir| file(dir, Access::Read)));
        allowed.extend(kernel.initrd.iter().filter_map(|part| match part {
            InitrdPart::File(path) => Some(file(path, Access::Read)),
            InitrdPart::Bytes(_) => None,
        }));
    }
    allowed.extend(endpoints(resources).filter_map(|end| match end {
        Endpoint::File(path) => Some(file(path, Access::ReadWrite)),
        _ => None,
    }));
    let log = resources.console_log.as_deref();
    allowed.extend(log.map(|path| file(path, Access::ReadWrite)));
    let given = descriptors
        .iter()
        .filter_map(|(_, number)| i32::try_from(*number).ok());
    allowed.extend((0..3).chain(given).map(Allowed::Descriptor));
    allowed
}
