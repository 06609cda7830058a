//! The facts as plain data: recorded on one machine, replayed on another, or made up by a test.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
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
    /// Disks, by the directories and files that they hold.
    #[serde(default)]
    pub devices: BTreeMap<PathBuf, String>,
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
            devices: BTreeMap::new(),
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
            devices: BTreeMap::new(),
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

    fn exists(&self, path: &Path) -> bool {
        self.texts.contains_key(path) || matches!(self.files.get(path), Some(Ok(_)))
    }

    fn head(&self, path: &Path) -> Option<[u8; 4]> {
        let text = self.texts.get(path)?;
        text.as_bytes().first_chunk().copied()
    }

    fn device_of(&self, path: &Path) -> Option<String> {
        path.ancestors().find_map(|p| self.devices.get(p).cloned())
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
