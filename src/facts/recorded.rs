//! The facts as plain data: recorded on one machine, replayed on another, or made up by a test.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vsc_vmm::kvm::HostKind;

use crate::descriptors::DescriptorFile;

use super::{
    Facts, FileError, FileInfo, HostMemory, InstalledKernel, KvmFacts, SevFacts, Terminals,
};

/// The facts as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// RAM.
    pub memory: Option<HostMemory>,
    /// CPUs online.
    pub online_cpus: Option<u32>,
    /// What KVM says.
    pub kvm: Option<KvmFacts>,
    /// The kind of KVM.
    pub host_kind: HostKind,
    /// Nested virtualization.
    pub nested: bool,
    /// Container.
    pub container: Option<String>,
    /// Installed kernels.
    pub kernels: Vec<InstalledKernel>,
    /// Standard streams.
    pub terminals: Terminals,
    /// Files; all others are missing.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, Result<FileInfo, FileError>>,
    /// Contents of small files.
    #[serde(default)]
    pub texts: BTreeMap<PathBuf, String>,
    /// Permission bits of those that not everybody may read and their owner write.
    #[serde(default)]
    pub modes: BTreeMap<PathBuf, u32>,
    /// What runs have added to counters.
    #[serde(default)]
    pub claims: BTreeMap<PathBuf, u64>,
    /// Disks, by the directories and files that they hold.
    #[serde(default)]
    pub devices: BTreeMap<PathBuf, String>,
    /// The disks at the bottom, or why there are none, where that is something else.
    #[serde(default)]
    pub disks: BTreeMap<PathBuf, Result<Vec<String>, String>>,
    /// Links, and where they lead.
    #[serde(default)]
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// Encrypted memory.
    #[serde(default)]
    pub sev: Option<SevFacts>,
    /// Firmware descriptors.
    #[serde(default)]
    pub firmware: Vec<DescriptorFile>,
}

impl Default for HostFacts {
    /// A host that says nothing of itself and has nothing.
    fn default() -> Self {
        HostFacts {
            memory: None,
            online_cpus: None,
            kvm: None,
            host_kind: HostKind::None,
            nested: false,
            container: None,
            kernels: Vec::new(),
            terminals: Terminals::default(),
            files: BTreeMap::new(),
            texts: BTreeMap::new(),
            modes: BTreeMap::new(),
            claims: BTreeMap::new(),
            devices: BTreeMap::new(),
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            sev: None,
            firmware: Vec::new(),
        }
    }
}

impl HostFacts {
    /// Asks for everything but files and firmware.
    pub fn of(facts: &dyn Facts) -> Self {
        HostFacts {
            memory: facts.memory(),
            online_cpus: facts.online_cpus(),
            kvm: facts.kvm(),
            host_kind: facts.host_kind(),
            nested: facts.nested(),
            container: facts.container(),
            kernels: facts.kernels(),
            terminals: facts.terminals(),
            files: BTreeMap::new(),
            texts: BTreeMap::new(),
            modes: BTreeMap::new(),
            claims: BTreeMap::new(),
            devices: BTreeMap::new(),
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            sev: facts.sev(),
            firmware: Vec::new(),
        }
    }
}

impl Facts for HostFacts {
    fn memory(&self) -> Option<HostMemory> {
        self.memory
    }

    fn online_cpus(&self) -> Option<u32> {
        self.online_cpus
    }

    fn kvm(&self) -> Option<KvmFacts> {
        self.kvm
    }

    fn host_kind(&self) -> HostKind {
        self.host_kind
    }

    fn nested(&self) -> bool {
        self.nested
    }

    fn container(&self) -> Option<String> {
        self.container.clone()
    }

    fn kernels(&self) -> Vec<InstalledKernel> {
        self.kernels.clone()
    }

    fn terminals(&self) -> Terminals {
        self.terminals
    }

    fn file(&self, path: &Path) -> Result<FileInfo, FileError> {
        self.files
            .get(path)
            .cloned()
            .unwrap_or(Err(FileError::Missing))
    }

    fn text(&self, path: &Path) -> Option<String> {
        self.texts.get(path).cloned()
    }

    fn open_image(&self, path: &Path) -> io::Result<File> {
        let text = self.texts.get(path).ok_or(io::ErrorKind::NotFound)?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file: File = rustix::fs::memfd_create("vsc-facts", flags)?.into();
        file.write_all(text.as_bytes())?;
        Ok(file)
    }

    fn exists(&self, path: &Path) -> bool {
        self.texts.contains_key(path) || matches!(self.files.get(path), Some(Ok(_)))
    }

    fn links(&self, directory: &Path) -> Vec<(String, PathBuf)> {
        let here = self.links.iter();
        let here = here.filter(|(link, _)| link.parent() == Some(directory));
        here.filter_map(|(link, to)| Some((link.file_name()?.to_str()?.to_owned(), to.clone())))
            .collect()
    }

    fn resolved(&self, path: &Path) -> Option<PathBuf> {
        self.links.get(path).cloned()
    }

    fn device_of(&self, path: &Path) -> Option<String> {
        path.ancestors().find_map(|p| self.devices.get(p).cloned())
    }

    fn disks_of(&self, path: &Path) -> Result<Vec<String>, String> {
        let known = path.ancestors().find_map(|p| {
            let device = self.devices.get(p).map(|device| Ok(vec![device.clone()]));
            self.disks.get(p).cloned().or(device)
        });
        known.unwrap_or_else(|| Err("this host says nothing of its disks".into()))
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let below = self.texts.keys().chain(self.files.keys());
        let name = |path: &PathBuf| {
            let first = path.strip_prefix(directory).ok()?.components().next()?;
            first.as_os_str().to_str().map(str::to_owned)
        };
        let names: BTreeSet<String> = below.filter_map(name).collect();
        names.into_iter().collect()
    }

    fn claimed(&self, path: &Path) -> u64 {
        self.claims.get(path).copied().unwrap_or(0)
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        let usual = self.exists(path).then_some(0o644);
        self.modes.get(path).copied().or(usual)
    }

    fn sev(&self) -> Option<SevFacts> {
        self.sev
    }

    fn firmware(&self, directory: Option<&Path>) -> Vec<DescriptorFile> {
        let files = self.firmware.iter();
        files
            .filter(|f| directory.is_none_or(|d| f.path.parent() == Some(d)))
            .cloned()
            .collect()
    }
}
