//! How a run would be confined, for `plan`, and whether this host can confine one, for `doctor`.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Serialize;
use vsc::compile::RunPlan;
use vsc_vmm::resources::VmResources;
use vsc_vmm::sandbox::{self, Access, Allowed, Spec, Thread};

use super::doctor::Check;
use crate::run::{confine, may_restart};

/// The confinement of a machine after its set-up; as JSON its fields are added, never renamed.
#[derive(Debug, Serialize)]
pub(super) struct Confinement {
    /// Off: `sandbox: false`.
    enabled: bool,
    /// How many system calls each kind of thread may make.
    system_calls: Vec<Calls>,
    /// This kernel filters system calls; without, nothing runs confined. None: not known of a directory.
    seccomp: Option<bool>,
    /// This kernel's version of Landlock, 0 for none. None: not known of a directory.
    landlock: Option<u32>,
    /// What may still be opened or removed.
    paths: Vec<Path>,
    /// Capabilities that the main thread keeps, where it has them; the others keep none.
    capabilities: Vec<&'static str>,
    limits: Limits,
    /// It may start again.
    #[serde(skip)]
    again: bool,
}

#[derive(Debug, Serialize)]
struct Calls {
    thread: Thread,
    allowed: usize,
}

#[derive(Debug, Serialize)]
struct Path {
    path: PathBuf,
    access: Access,
}

/// What may be used besides what is in use after set-up.
#[derive(Debug, Serialize)]
struct Limits {
    /// Private memory, bytes.
    heap_more: u64,
    /// Descriptors.
    files_more: u64,
    /// A core file.
    core: bool,
}

impl Confinement {
    /// Of a machine on this host; `live` is false for a directory that stands for another.
    pub(super) fn of(resources: &VmResources, run: &RunPlan, live: bool) -> Self {
        let again = may_restart(resources);
        let removes = run.locks.directories();
        // What it makes is removed by the warden; by itself where that is not to be had, or what a dead run left is in its place.
        let spec = &confine::spec(
            resources,
            again,
            true,
            removes.iter().map(PathBuf::as_path),
            &run.descriptors,
        );
        let Spec {
            rebuild, allowed, ..
        } = spec;
        let calls = |thread| Calls {
            thread,
            allowed: sandbox::system_calls(thread, *rebuild),
        };
        Self {
            enabled: !run.unconfined,
            system_calls: Thread::ALL.map(calls).into(),
            seccomp: live.then(|| sandbox::seccomp_works().is_ok()),
            landlock: live.then(|| sandbox::landlock_abi().unwrap_or(0)),
            paths: allowed
                .iter()
                .filter_map(|a| match a {
                    Allowed::Path(path, access) => Some(Path {
                        path: path.clone(),
                        access: *access,
                    }),
                    Allowed::Descriptor(_) => None,
                })
                .collect(),
            capabilities: sandbox::kept_capabilities(*rebuild),
            limits: Limits {
                heap_more: sandbox::heap(spec),
                files_more: sandbox::files(spec),
                core: false,
            },
            again,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        if !self.enabled {
            return "None (sandbox: false, --no-sandbox): a guest that breaks out can do whatever this user can.\n"
                .into();
        }
        let calls: Vec<_> = self
            .system_calls
            .iter()
            .map(|c| format!("{} {}", c.thread.word(), c.allowed))
            .collect();
        let seccomp = match self.seccomp {
            Some(false) => "; this kernel cannot filter them, so that nothing runs",
            _ => "",
        };
        let landlock = match self.landlock {
            None => "Landlock, as far as that kernel has it",
            Some(0) if self.again => confine::ANY_PATH,
            Some(0) => "not kept apart: this kernel has no Landlock",
            Some(_) => "Landlock",
        };
        let abi = match self.landlock {
            None | Some(0) => String::new(),
            Some(abi @ 1..4) => format!(" ABI {abi} (TCP and signals are left to seccomp)"),
            Some(abi @ 4..6) => format!(" ABI {abi}, no TCP"),
            Some(abi) => {
                format!(" ABI {abi}, no TCP, no signals to others, no abstract sockets of others")
            }
        };
        let paths = self.paths.iter().map(|p| {
            let what = match p.access {
                Access::Read => "read",
                Access::ReadWrite => "read and write",
                Access::Sockets => "make and remove sockets in",
                Access::Remove => "remove in",
            };
            format!(";\n              {what} {}", p.path.display())
        });
        let paths: String = match self.paths.is_empty() {
            true => "; none can be opened any more".into(),
            false => paths.collect(),
        };
        let left = match self.capabilities.is_empty() {
            true => "no capabilities".to_owned(),
            false => format!("capabilities at most {}", self.capabilities.join(", ")),
        };
        format!(
            "System calls  seccomp: {} allowed; another one ends the run with 125{seccomp}\n\
             Paths         {landlock}{abi}{paths}\n\
             Privileges    no new ones, {left}\n\
             Limits        {} MiB more heap, {} more descriptors, no core file\n",
            calls.join(", "),
            self.limits.heap_more >> 20,
            self.limits.files_more
        )
    }
}

/// Whether runs can be confined here.
pub(super) fn check() -> Check {
    let mut check = Check {
        id: "confinement",
        what: "confinement",
        works: true,
        needed: false,
        detail: String::new(),
        remedy: None,
    };
    match (sandbox::seccomp_works(), sandbox::landlock_abi()) {
        (Err(e), _) => {
            check.works = false;
            check.detail = format!(
                "this kernel cannot filter system calls (seccomp: {e}): runs need --no-sandbox"
            );
        }
        (Ok(()), None) => {
            check.works = false;
            check.detail = "seccomp and limits; this kernel has no Landlock, or it is not switched on, so that paths \
                            are kept by seccomp alone"
                .into();
            check.remedy = Some(
                "cat /sys/kernel/security/lsm   # then boot with lsm=landlock, and these".into(),
            );
        }
        (Ok(()), Some(abi)) => {
            check.detail = format!("seccomp, Landlock ABI {abi}, limits");
        }
    }
    check
}
