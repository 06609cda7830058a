//! What the runner does with the machine: the command, its streams, its root file system.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use vsc_vmm::resources::{InitrdPart, Payload};

use crate::scenario::{Parsed, Root, Scenario};

use super::{NO_ROOT, kernel};

/// What the runner does with the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunPlan {
    /// The command and its arguments; empty: none, the machine runs what it boots.
    pub command: Vec<String>,
    /// Its environment, names and values.
    pub env: Vec<(String, String)>,
    /// Its working directory, in the guest.
    pub workdir: String,
    /// The file system it runs in; `None` is the initrd.
    pub root: Option<RootPlan>,
    /// How its standard streams travel.
    pub stdio: Stdio,
    /// The initrd that the runner has to make.
    pub initrd: InitrdPlan,
    /// Descriptors of this process that streams of the scenario name as `fd:N`; each is the name of a
    /// [`vsc_devices::stream::Endpoint::Given`] and the number.
    pub descriptors: Vec<(String, u32)>,
}

/// A file system of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Device node in the guest.
    pub device: String,
    /// Type; empty: each that the kernel knows.
    pub fstype: String,
    /// Options as in mount(8).
    pub options: String,
}

/// How a command's standard streams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// There is no command.
    #[default]
    None,
    /// Three ports: `vsc.stdin`, `vsc.stdout`, `vsc.stderr`.
    Pipes,
    /// A terminal: `vsc.tty`, hvc0 in the guest.
    Terminal,
}

/// What the runner has to put into the initrd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitrdPlan {
    /// Nothing: the machine has all it needs.
    #[default]
    Nothing,
    /// PID 1, what it shall do, and modules for the devices: the command's files are on a disk or in the scenario's
    /// own initrd.
    InitOnly,
    /// The same and a small user space with the command's files.
    Tiny,
}

pub(super) fn plan(
    parsed: &Parsed,
    around: &kernel::Around<'_>,
    stdio: Stdio,
    payload: Option<&Payload>,
) -> RunPlan {
    let Scenario {
        command,
        env,
        workdir,
        root,
        serials,
        consoles,
        ..
    } = &parsed.scenario;
    let ends = serials.iter().filter_map(|s| s.value.to.as_ref());
    let ends = ends.chain(
        consoles
            .iter()
            .flat_map(|c| [&c.value.input, &c.value.output, &c.value.tty])
            .flatten(),
    );
    let descriptors = ends.filter_map(|end| {
        let vsc_devices::stream::Endpoint::Given(name) = &end.value else {
            return None;
        };
        Some((name.clone(), name.strip_prefix("fd:")?.parse().ok()?))
    });
    let descriptors = descriptors.collect();
    let Some(command) = command else {
        return RunPlan {
            descriptors,
            ..RunPlan::default()
        };
    };
    let own_initrd = matches!(payload, Some(Payload::Kernel(k)) if k.initrd.iter().any(|i| matches!(i, InitrdPart::File(_))));
    let Root {
        device,
        fstype,
        options,
    } = root;
    let text = |given: &crate::scenario::Given<String>| {
        given.as_ref().map(|g| g.value.clone()).unwrap_or_default()
    };
    let root = match (device, around.first_disk) {
        (Some(device), _) if device.value == NO_ROOT => None,
        (Some(device), _) => Some((device.value.clone(), around.first_disk != Some(false))),
        (None, Some(writable)) if !own_initrd => Some(("/dev/vda".to_owned(), writable)),
        (None, _) => None,
    };
    let root = root.map(|(device, writable)| {
        let options = match (text(options), writable) {
            (options, _) if !options.is_empty() => options,
            (_, true) => "rw".to_owned(),
            (_, false) => "ro".to_owned(),
        };
        RootPlan {
            device,
            fstype: text(fstype),
            options,
        }
    });
    RunPlan {
        command: command.value.iter().map(|w| w.value.clone()).collect(),
        env: env
            .iter()
            .map(|(name, value)| (name.value.clone(), value.clone()))
            .collect(),
        workdir: workdir
            .as_ref()
            .map_or_else(|| "/".to_owned(), |w| w.value.clone()),
        initrd: if root.is_some() || own_initrd {
            InitrdPlan::InitOnly
        } else {
            InitrdPlan::Tiny
        },
        root,
        stdio,
        descriptors,
    }
}
