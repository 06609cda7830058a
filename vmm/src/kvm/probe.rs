//! What kind of `/dev/kvm` this host has, and what that means.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};
use vsc_firmware::kernel::Flavour;

use super::KvmError;

/// The kinds of host this program meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// kvm_amd or kvm_intel: runs everything.
    Hardware,
    /// kvm_pvm: guest code at CPL 0 is emulated, so only kernels made for it boot.
    SoftwarePaging,
    /// No usable /dev/kvm.
    None,
}

/// Why /dev/kvm cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// There is no such node.
    Absent,
    /// The node may not be opened by this user.
    NotPermitted,
    /// The devices of this process's cgroup are others.
    Withheld,
    /// The node exists but has no driver behind it.
    NoDriver,
    /// Another hypervisor holds the processor's virtualization.
    Busy,
    /// Another error, by its number.
    Other(i32),
}

/// What a probe of the host found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The kind.
    pub kind: HostKind,
    /// Why there is none.
    pub missing: Option<Missing>,
}

impl Host {
    /// Classifies the host below `root` (normally `/`) from what the kernel shows there; `open` is the result of
    /// opening /dev/kvm.
    pub fn classify(root: &Path, open: Result<(), io::Error>) -> Self {
        if let Err(e) = open {
            return Self {
                kind: HostKind::None,
                missing: Some(Missing::from_error(&e)),
            };
        }
        let module = |name| root.join("sys/module").join(name).exists();
        let kind = if !module("kvm_amd") && !module("kvm_intel") && module("kvm_pvm") {
            HostKind::SoftwarePaging
        } else {
            HostKind::Hardware
        };
        Self {
            kind,
            missing: None,
        }
    }

    /// Opens `/dev/kvm` and classifies.
    pub fn probe() -> Self {
        let open = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map(drop);
        Self::classify(Path::new("/"), open)
    }

    /// Whether a kernel of this flavour boots here.
    pub fn boots(self, flavour: Flavour) -> bool {
        match self.kind {
            HostKind::Hardware => flavour != Flavour::Cpl3,
            HostKind::SoftwarePaging => flavour != Flavour::Stock,
            HostKind::None => false,
        }
    }

    /// One sentence: what this host is.
    pub fn describe(self) -> String {
        match (self.kind, self.missing) {
            (HostKind::Hardware, _) => "hardware KVM: everything runs".into(),
            (HostKind::SoftwarePaging, _) => {
                "software-paging KVM (kvm_pvm): kernel-mode guest code is emulated, so stock kernels do not boot; \
                 the built-in guest and vsc's own cpl3 kernel do"
                    .into()
            }
            (HostKind::None, Some(missing)) => missing.describe(),
            (HostKind::None, None) => "no KVM".into(),
        }
    }

    /// The one command, or step, that mends it on the host below `root`; `None` when nothing is wrong or nothing here
    /// can mend it.
    pub fn remedy(self, root: &Path) -> Option<String> {
        self.missing.map(|missing| missing.remedy(root))
    }
}

impl Missing {
    fn from_error(e: &io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ENOENT) => Self::Absent,
            Some(libc::EACCES) => Self::NotPermitted,
            // devcgroup_check_permission of Linux.
            Some(libc::EPERM) => Self::Withheld,
            Some(libc::ENXIO | libc::ENODEV) => Self::NoDriver,
            Some(libc::EBUSY) => Self::Busy,
            other => Self::Other(other.unwrap_or(0)),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Absent => "no KVM: /dev/kvm does not exist".into(),
            Self::NotPermitted => "no KVM: /dev/kvm may not be opened by this user".into(),
            Self::Withheld => {
                "no KVM: /dev/kvm is none of the devices that this container or service may use"
                    .into()
            }
            Self::NoDriver => "no KVM: /dev/kvm has no driver behind it".into(),
            Self::Busy => "no KVM: another hypervisor holds the processor's virtualization".into(),
            Self::Other(errno) => {
                format!("no KVM: /dev/kvm: {}", io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn remedy(self, root: &Path) -> String {
        match self {
            Self::Absent | Self::NoDriver => {
                let vendor = if is_amd() { "kvm_amd" } else { "kvm_intel" };
                format!("sudo modprobe {vendor}")
            }
            Self::NotPermitted => {
                let node = std::fs::metadata(root.join("dev/kvm"));
                let node = node.map(|node| (node.permissions().mode(), node.gid()));
                let groups = std::fs::read_to_string(root.join("etc/group")).unwrap_or_default();
                permission(node.ok(), &groups)
            }
            Self::Withheld => {
                "start the container with --device=/dev/kvm, or the service with DeviceAllow=/dev/kvm rw".into()
            }
            Self::Busy => "sudo modprobe -r vboxnetadp vboxnetflt vboxdrv vmnet vmmon".into(),
            Self::Other(_) => "sudo dmesg | grep -i kvm".into(),
        }
    }
}

/// How a user comes to open /dev/kvm, by its mode and group and the lines of /etc/group (group(5)).
fn permission(node: Option<(u32, u32)>, groups: &str) -> String {
    /// Whoever has no number in this user namespace (/proc/sys/kernel/overflowgid, as it mostly is).
    const NOBODY: u32 = 65534;
    let found = |field: usize, value: &str| {
        groups.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.get(field) == Some(&value)).then(|| fields.first().copied().unwrap_or_default())
        })
    };
    let join = |group: &str| format!("sudo usermod -aG {group} \"$USER\" && newgrp {group}");
    match node {
        Some((_, NOBODY)) | None => join("kvm"),
        Some((mode, gid)) if mode & 0o060 == 0o060 && gid != 0 => {
            match found(2, &gid.to_string()) {
                Some(group) => join(group),
                None => format!(
                    "sudo groupadd -g {gid} kvm-{gid} && {}",
                    join(&format!("kvm-{gid}"))
                ),
            }
        }
        Some(_) => {
            let make = found(0, "kvm").map_or("sudo groupadd -r kvm && ", |_| "");
            format!(
                "{make}sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && {}",
                join("kvm")
            )
        }
    }
}

/// KVM_API_VERSION, constant since Linux 2.6.22.
pub const API_VERSION: i32 = 12;

/// What every machine of this monitor needs of KVM (Linux Documentation/virt/kvm/api.rst).
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::EnableCapVm, "KVM_CAP_ENABLE_CAP_VM"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
/// What some machines need, or all run worse without: `irqchip: kernel`, `pit`, kicks of busy queues, the diagnosis of
/// a hung guest, the guest's best timer, and more than 254 vCPUs.
const OPTIONAL: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
];

/// What KVM says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// KVM_GET_API_VERSION; [`API_VERSION`] is the one there is.
    pub api_version: i32,
    /// KVM_CAP_MAX_VCPUS.
    pub max_vcpus: u32,
    /// Capabilities without which no machine runs, and this KVM lacks.
    pub lacks: Vec<String>,
    /// Capabilities that only some machines need, and this KVM lacks.
    pub lacks_optional: Vec<String>,
}

impl Capabilities {
    /// Asks the KVM behind `device`, normally `/dev/kvm`.
    ///
    /// # Errors
    /// [`KvmError::Open`].
    pub fn of(device: &Path) -> Result<Self, KvmError> {
        let path =
            CString::new(device.as_os_str().as_bytes()).map_err(|e| KvmError::Open(e.into()))?;
        let open = |e: kvm_ioctls::Error| KvmError::Open(io::Error::from_raw_os_error(e.errno()));
        let kvm = Kvm::new_with_path(path).map_err(open)?;
        let lacking = |caps: &[(Cap, &str)]| {
            caps.iter()
                .filter(|(cap, _)| kvm.check_extension_raw(*cap as libc::c_ulong) <= 0)
                .map(|(_, name)| (*name).to_owned())
                .collect()
        };
        Ok(Self {
            api_version: kvm.get_api_version(),
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            lacks: lacking(&NEEDED),
            lacks_optional: lacking(&OPTIONAL),
        })
    }

    /// Whether machines of this monitor run on it.
    pub fn suffice(&self) -> bool {
        self.api_version == API_VERSION && self.lacks.is_empty()
    }
}

fn is_amd() -> bool {
    // CPUID leaf 0: EBX holds the first letters of the vendor ("Auth" or "Genu").
    std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Auth")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(modules: &[&str]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!(
            "vsc-probe-{}-{}",
            std::process::id(),
            modules.join("-")
        ));
        for module in modules {
            std::fs::create_dir_all(root.join("sys/module").join(module)).unwrap();
        }
        root
    }

    #[test]
    fn hosts_are_told_apart_by_their_modules() {
        for (modules, kind) in [
            (vec!["kvm", "kvm_amd"], HostKind::Hardware),
            (vec!["kvm", "kvm_intel"], HostKind::Hardware),
            (vec!["kvm", "kvm_pvm"], HostKind::SoftwarePaging),
            // Built into the kernel: no module directory without parameters.
            (vec!["kvm"], HostKind::Hardware),
            (vec!["kvm_amd", "kvm_pvm"], HostKind::Hardware),
        ] {
            let root = root(&modules);
            assert_eq!(Host::classify(&root, Ok(())).kind, kind, "{modules:?}");
            std::fs::remove_dir_all(root).ok();
        }
    }

    #[test]
    fn each_way_to_lack_kvm_has_its_remedy() {
        for (errno, missing, word) in [
            (libc::ENOENT, Missing::Absent, "modprobe"),
            (libc::EACCES, Missing::NotPermitted, "usermod"),
            (libc::EPERM, Missing::Withheld, "--device=/dev/kvm"),
            (libc::ENXIO, Missing::NoDriver, "modprobe"),
            (libc::EBUSY, Missing::Busy, "modprobe -r"),
            (libc::EIO, Missing::Other(libc::EIO), "dmesg"),
        ] {
            let nowhere = Path::new("/nonexistent");
            let host = Host::classify(nowhere, Err(io::Error::from_raw_os_error(errno)));
            assert_eq!((host.kind, host.missing), (HostKind::None, Some(missing)));
            assert!(host.remedy(nowhere).is_some_and(|r| r.contains(word)));
            assert!(host.describe().starts_with("no KVM: "));
            assert!(!host.boots(Flavour::Stock) && !host.boots(Flavour::Cpl3));
        }
    }

    #[test]
    fn permission_comes_from_the_group_that_the_node_has() {
        let groups = "root:x:0:\nkvm:x:108:ada\nvirt:x:200:\n";
        let join = "sudo usermod -aG kvm \"$USER\" && newgrp kvm";
        for node in [None, Some((0o660, 65534))] {
            assert_eq!(permission(node, "nogroup:x:65534:"), join);
        }
        assert_eq!(permission(Some((0o20660, 108)), groups), join);
        assert_eq!(
            permission(Some((0o660, 200)), groups),
            join.replace("kvm", "virt")
        );
        let unnamed = permission(Some((0o660, 300)), groups);
        let named = join.replace("kvm", "kvm-300");
        assert_eq!(unnamed, format!("sudo groupadd -g 300 kvm-300 && {named}"));
        let open = format!("sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && {join}");
        for node in [(0o600, 0), (0o660, 0), (0o640, 108)] {
            assert_eq!(permission(Some(node), groups), open, "{node:?}");
        }
        let both = permission(Some((0o600, 0)), "root:x:0:\n");
        assert_eq!(both, format!("sudo groupadd -r kvm && {open}"));
    }

    #[test]
    fn a_file_that_is_no_kvm_has_no_capabilities() {
        let capabilities = Capabilities::of(Path::new("/dev/null")).unwrap();
        assert_eq!(capabilities.api_version, -1);
        assert_eq!(capabilities.lacks.len(), NEEDED.len());
        assert!(!capabilities.suffice());
        assert!(matches!(
            Capabilities::of(Path::new("/dev/no-such-node")),
            Err(KvmError::Open(_))
        ));
    }
}
