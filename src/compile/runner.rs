//! What the runner does with the machine: the command, its streams, its root file system.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use vsc_vmm::resources::{InitrdPart, Payload};

use crate::diag::Diagnostic;
use crate::images::SecretSource;
use crate::locks::LockPlan;
use crate::scenario::{Disk, Parsed, Root, Scenario, json as tree_json};

use super::{Cgroup, NO_ROOT, Problems, disk, kernel};

/// What the runner does with the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunPlan {
    /// How the images are locked.
    #[serde(default)]
    pub locks: LockPlan,
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
    /// Passphrases of encrypted disks: where they come from, never what they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretPlan>,
    /// The run listens on a control socket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub control: bool,
    /// The run is shown to others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub register: bool,
    /// The process is not confined after set-up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfined: bool,
    /// The cgroup in which it runs; `None`: that of whoever starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
}

/// The passphrase of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPlan {
    /// The disk's place in `disks`.
    pub disk: usize,
    /// Name of the descriptor that the monitor reads it from.
    pub end: String,
    /// Where it comes from.
    pub from: SecretSource,
}

/// Where the passphrases of the disks come from.
fn secrets(parsed: &Parsed, problems: &mut Problems) -> Vec<SecretPlan> {
    let disks = &parsed.scenario.disks;
    let is_encrypted = |disk: &Disk| disk.encryption.is_some_and(|e| e.value == "luks");
    let encrypted = disks.iter().enumerate();
    let mut encrypted = encrypted
        .filter(|(_, disk)| is_encrypted(&disk.value) && disk.value.path.is_some())
        .peekable();
    if encrypted.peek().is_none() {
        return Vec::new();
    }
    let written = tree_json::of(&parsed.tree);
    let mut out = Vec::new();
    for (index, disk) in encrypted {
        let said = written.get("disks").and_then(|all| all.get(index));
        // That there are two is said by the domain.
        let source = said.map_or(Ok(None), SecretSource::of_disk);
        match source {
            Ok(Some(from)) => out.push(SecretPlan {
                disk: index,
                end: disk::secret_end(index),
                from,
            }),
            Ok(None) => {
                let span = disk.value.encryption.map_or(disk.span, |e| e.span);
                let d = Diagnostic::error(
                    "E-SECRET",
                    span,
                    "This disk is encrypted, and nobody says where its passphrase comes from",
                );
                problems.push(
                    d.why("A secret of libvirt is libvirt's: no other program gets to know it")
                        .help("Say `secret: {file: disk.key}`, or `fd`, `credential` or `env` instead of `file`"),
                );
            }
            Err(_) => {}
        }
    }
    out
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
    problems: &mut Problems,
) -> RunPlan {
    let Scenario {
        command,
        env,
        workdir,
        root,
        serials,
        consoles,
        control,
        register,
        sandbox,
        ..
    } = &parsed.scenario;
    let unconfined = sandbox.is_some_and(|s| !s.value);
    let control = control.is_some_and(|c| c.value);
    let register = register.is_some_and(|r| r.value);
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
    let secrets = secrets(parsed, problems);
    let Some(command) = command else {
        return RunPlan {
            descriptors,
            secrets,
            control,
            register,
            unconfined,
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
        // Known once the disks are.
        locks: LockPlan::default(),
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
        secrets,
        control,
        register,
        unconfined,
        cgroup: None,
    }
}
