//! What the compiler asks about the host: each fact on its own, read when it is first wanted, and never changed.
//!
//! [`LiveFacts`] reads a host below a root directory, so that any directory can stand in for `/`. [`HostFacts`] is the
//! same as plain data: recorded on one machine, replayed on another, or made up by a test.

#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::fs;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vsc_vmm::kvm::{Host, HostKind};

pub use recorded::HostFacts;

use crate::descriptors::{DescriptorFile, SYSTEM_DIRECTORIES, read_directories};
use kernels::kernels_in;

mod kernels;
mod recorded;

/// Most that is read of a file that tells a fact, bytes: a page, as much as a file of sysfs has.
const MOST_TEXT: u64 = 4096;

/// Where the host's own tree starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(pub PathBuf);

impl Default for Root {
    fn default() -> Self {
        Root(PathBuf::from("/"))
    }
}

impl Root {
    /// A path of the host below this root.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The host's RAM, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// `MemTotal` of /proc/meminfo.
    pub total: u64,
    /// `MemAvailable` of /proc/meminfo.
    pub available: u64,
}

/// What KVM itself says, from the monitor's probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmFacts {
    /// `KVM_CAP_MAX_VCPUS`.
    pub max_vcpus: u32,
}

/// A kernel file that was found installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledKernel {
    /// The file.
    pub path: PathBuf,
    /// It is from one of our own directories, not the distribution's.
    pub ours: bool,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A pipe, a socket, a character device.
    Other,
}

/// What can be said of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes; 0 where that means nothing.
    pub length: u64,
    /// This process may write it.
    pub writable: bool,
}

/// Why nothing can be said of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum FileError {
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// This user may not read it.
    #[error("this user may not read it")]
    Denied,
    /// Anything else, in the system's words.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => FileError::Missing,
            io::ErrorKind::PermissionDenied => FileError::Denied,
            _ => FileError::Other(error.to_string()),
        }
    }
}

/// Which of our own standard streams are terminals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminals {
    /// Standard input is one.
    pub stdin: bool,
    /// Standard output is one.
    pub stdout: bool,
}

/// What the host's CPU can do to keep a guest's memory from it (CPUID 0x8000001F), where KVM has it switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SevFacts {
    /// Bit of a page table entry that says encrypted (EBX, bits 0 to 5).
    pub cbitpos: u32,
    /// Physical address bits that encryption costs (EBX, bits 6 to 11).
    pub reduced_phys_bits: u32,
    /// Registers can be encrypted too.
    pub es: bool,
    /// Secure nested paging.
    pub snp: bool,
}

/// Everything the compiler may ask. Each answer is the same however often it is asked.
pub trait Facts {
    /// RAM; `None` where /proc does not tell.
    fn memory(&self) -> Option<HostMemory>;
    /// CPUs online.
    fn online_cpus(&self) -> Option<u32>;
    /// What KVM says, once it was asked.
    fn kvm(&self) -> Option<KvmFacts>;
    /// The kind of KVM.
    fn host_kind(&self) -> HostKind;
    /// Whether KVM lets guests run machines of their own (the parameter `nested` of kvm_amd or kvm_intel).
    fn nested(&self) -> bool;
    /// Whether this runs in a container, and which.
    fn container(&self) -> Option<String>;
    /// Kernels found installed, best first within each directory.
    fn kernels(&self) -> Vec<InstalledKernel>;
    /// Our standard streams.
    fn terminals(&self) -> Terminals;
    /// A file that shall be read, and perhaps written.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn file(&self, path: &Path) -> Result<FileInfo, FileError>;
    /// The content of a small file of the host, such as one below /sys, without blanks at its ends.
    fn text(&self, _path: &Path) -> Option<String> {
        None
    }
    /// Whether the host has a file or a directory of this name.
    fn exists(&self, _path: &Path) -> bool {
        false
    }
    /// Whether guests can have encrypted memory, and how.
    fn sev(&self) -> Option<SevFacts> {
        None
    }
    /// The whole disk, by its name below /sys/block, that holds a file or will hold it.
    fn device_of(&self, _path: &Path) -> Option<String> {
        None
    }
    /// The first bytes of a regular file.
    fn head(&self, _path: &Path) -> Option<[u8; 4]> {
        None
    }
    /// Where relative paths start.
    fn directory(&self) -> PathBuf {
        PathBuf::from("/")
    }
    /// CPUs that the host's scheduler leaves alone (the kernel's `isolcpus=`).
    fn isolated_cpus(&self) -> Vec<u32> {
        cpu_list(
            &self
                .text(Path::new("/sys/devices/system/cpu/isolated"))
                .unwrap_or_default(),
        )
    }
    /// The firmware descriptors of this host, or those in `directory` instead; see [`crate::descriptors`].
    fn firmware(&self, _directory: Option<&Path>) -> Vec<DescriptorFile> {
        Vec::new()
    }
    /// Looks for a firmware image; `path` is as the host itself names it.
    ///
    /// # Errors
    /// Why no machine can have it.
    fn firmware_image(&self, path: &Path) -> Result<(), FileError> {
        match self.file(path)?.kind {
            FileKind::Regular => Ok(()),
            _ => Err(FileError::Other(NOT_REGULAR.into())),
        }
    }
}

/// CPUs in the form of /sys: `2-3,5`.
fn cpu_list(text: &str) -> Vec<u32> {
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
            out.extend(from..=to.min(from.saturating_add(4096)));
        }
    }
    out
}

const NOT_REGULAR: &str = "it is not a regular file";

/// The host itself. Facts are read when asked for, once.
#[derive(Debug, Default)]
pub struct LiveFacts {
    root: Root,
    variables: Variables,
    kvm: Option<KvmFacts>,
    host: OnceCell<Host>,
    memory: OnceCell<Option<HostMemory>>,
}

/// The environment variables that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// `$HOME`
    pub home: Option<PathBuf>,
    /// `$XDG_DATA_HOME`
    pub data_home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`
    pub config_home: Option<PathBuf>,
    /// `$VSC_KERNELS`, a list of directories separated by colons.
    pub kernels: Option<PathBuf>,
    /// `$container`, set by systemd, podman and others.
    pub container: Option<String>,
    /// This process is root's.
    pub privileged: bool,
}

impl Variables {
    /// From this process's environment.
    pub fn of_process() -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        Variables {
            home: path("HOME"),
            data_home: path("XDG_DATA_HOME").filter(|p| p.is_absolute()),
            config_home: path("XDG_CONFIG_HOME").filter(|p| p.is_absolute()),
            kernels: path("VSC_KERNELS"),
            container: std::env::var("container").ok(),
            privileged: crate::sys::user() == 0,
        }
    }
}

impl LiveFacts {
    /// The host below `root`.
    pub fn new(root: Root, variables: Variables) -> Self {
        LiveFacts {
            root,
            variables,
            ..LiveFacts::default()
        }
    }

    /// Adds what a probe of KVM found, so that neither is asked for twice.
    pub fn with_kvm(mut self, host: Host, kvm: Option<KvmFacts>) -> Self {
        self.host = OnceCell::from(host);
        self.kvm = kvm;
        self
    }

    /// The probe of /dev/kvm.
    pub fn host(&self) -> Host {
        *self.host.get_or_init(|| {
            let open = fs::File::options()
                .read(true)
                .write(true)
                .open(self.root.at("/dev/kvm"));
            Host::classify(&self.root.0, open.map(drop))
        })
    }

    /// Whether the CPU's flags name `svm`, `vmx` or `hypervisor`.
    pub fn cpu_flags(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.at("/proc/cpuinfo")).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("flags"))
            .unwrap_or_default();
        let flags = line
            .trim_start_matches([' ', '\t', ':'])
            .split_ascii_whitespace();
        flags
            .filter(|f| ["svm", "vmx", "hypervisor"].contains(f))
            .map(str::to_owned)
            .collect()
    }

    /// Directories that hold kernels of this project, in the order of preference.
    pub fn kernel_directories(&self) -> Vec<PathBuf> {
        let Variables {
            home,
            data_home,
            kernels,
            config_home: _,
            container: _,
            privileged: _,
        } = &self.variables;
        let mut out: Vec<PathBuf> = kernels.iter().flat_map(std::env::split_paths).collect();
        let data = data_home
            .clone()
            .or_else(|| home.as_ref().map(|h| h.join(".local/share")));
        out.extend(data.map(|d| d.join("vsc/kernels")));
        out.extend(["/usr/local/share/vsc/kernels", "/usr/share/vsc/kernels"].map(PathBuf::from));
        out.retain(|d| !d.as_os_str().is_empty());
        out
    }

    /// Directories that hold firmware descriptors, from general to specific. Root's home is not among them (libvirt,
    /// qemu_interop_config.c: the system daemon does not look there either).
    pub fn firmware_directories(&self) -> Vec<PathBuf> {
        let mut out: Vec<PathBuf> = SYSTEM_DIRECTORIES.map(PathBuf::from).into();
        let config = self.variables.config_home.clone();
        let home = || Some(self.variables.home.as_ref()?.join(".config"));
        if let Some(config) = config.or_else(home)
            && !self.variables.privileged
        {
            out.push(config.join("qemu/firmware"));
        }
        out
    }
}

impl Facts for LiveFacts {
    fn memory(&self) -> Option<HostMemory> {
        *self.memory.get_or_init(|| {
            let text = fs::read_to_string(self.root.at("/proc/meminfo")).ok()?;
            let field = |name: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(name))?;
                let number = line
                    .trim_start_matches(':')
                    .trim()
                    .strip_suffix("kB")?
                    .trim();
                number.parse::<u64>().ok()?.checked_mul(1024)
            };
            Some(HostMemory {
                total: field("MemTotal")?,
                available: field("MemAvailable")?,
            })
        })
    }

    fn online_cpus(&self) -> Option<u32> {
        let text = fs::read_to_string(self.root.at("/sys/devices/system/cpu/online")).ok()?;
        count_list(text.trim())
    }

    fn kvm(&self) -> Option<KvmFacts> {
        self.kvm
    }

    fn host_kind(&self) -> HostKind {
        self.host().kind
    }

    fn nested(&self) -> bool {
        ["kvm_amd", "kvm_intel"].iter().any(|module| {
            let file = self
                .root
                .at("/sys/module")
                .join(module)
                .join("parameters/nested");
            fs::read_to_string(file).is_ok_and(|text| matches!(text.trim(), "1" | "Y" | "y"))
        })
    }

    fn container(&self) -> Option<String> {
        if let Some(name) = &self.variables.container {
            return Some(name.clone());
        }
        let marks = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
        marks
            .iter()
            .find(|(file, _)| self.root.at(file).exists())
            .map(|(_, name)| (*name).to_owned())
    }

    fn kernels(&self) -> Vec<InstalledKernel> {
        let ours = self
            .kernel_directories()
            .into_iter()
            .flat_map(|d| kernels_in(&self.root.at(d), true));
        ours.chain(kernels_in(&self.root.at("/boot"), false))
            .collect()
    }

    fn terminals(&self) -> Terminals {
        Terminals {
            stdin: io::stdin().is_terminal(),
            stdout: io::stdout().is_terminal(),
        }
    }

    fn file(&self, path: &Path) -> Result<FileInfo, FileError> {
        let meta = fs::metadata(path)?;
        let kind = match meta.file_type() {
            t if t.is_file() => FileKind::Regular,
            t if t.is_dir() => FileKind::Directory,
            t if t.is_block_device() => FileKind::BlockDevice,
            _ => FileKind::Other,
        };
        if matches!(kind, FileKind::Directory | FileKind::Other) {
            // Opening a pipe would wait for its other end.
            return Ok(FileInfo {
                kind,
                length: 0,
                writable: false,
            });
        }
        let (mut file, writable) = match fs::File::options().read(true).write(true).open(path) {
            Ok(file) => (file, true),
            Err(_) => (fs::File::open(path)?, false),
        };
        let length = match kind {
            FileKind::BlockDevice => file.seek(SeekFrom::End(0))?,
            _ => meta.len(),
        };
        Ok(FileInfo {
            kind,
            length,
            writable,
        })
    }

    fn text(&self, path: &Path) -> Option<String> {
        let mut text = String::new();
        let path = self.root.at(path);
        if !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let file = fs::File::open(path).ok()?;
        file.take(MOST_TEXT).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    fn exists(&self, path: &Path) -> bool {
        fs::symlink_metadata(self.root.at(path)).is_ok()
    }

    fn device_of(&self, path: &Path) -> Option<String> {
        use std::os::linux::fs::MetadataExt;
        let existing = path
            .ancestors()
            .find_map(|p| fs::metadata(self.root.at(p)).ok())?;
        let number = match existing.file_type().is_block_device() {
            true => existing.st_rdev(),
            false => existing.st_dev(),
        };
        let (major, minor) = (libc::major(number), libc::minor(number));
        let device =
            fs::canonicalize(self.root.at(format!("/sys/dev/block/{major}:{minor}"))).ok()?;
        // A partition lies in the directory of its disk.
        let whole = if device.join("partition").exists() {
            device.parent()?.to_owned()
        } else {
            device
        };
        Some(whole.file_name()?.to_string_lossy().into_owned())
    }

    fn head(&self, path: &Path) -> Option<[u8; 4]> {
        let path = self.root.at(path);
        let kind = fs::metadata(&path).ok()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return None;
        }
        let mut head = [0; 4];
        fs::File::open(path).ok()?.read_exact(&mut head).ok()?;
        Some(head)
    }

    fn directory(&self) -> PathBuf {
        std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
    }

    fn sev(&self) -> Option<SevFacts> {
        let on = |name: &str| {
            let path = format!("/sys/module/kvm_amd/parameters/{name}");
            self.text(Path::new(&path))
                .is_some_and(|text| matches!(text.as_str(), "Y" | "1"))
        };
        if !on("sev") {
            return None;
        }
        // CPUID 0x8000001F (AMD64 APM 3, appendix E).
        const LEAF: u32 = 0x8000_001f;
        let most = std::arch::x86_64::__cpuid(0x8000_0000).eax;
        let leaf = (most >= LEAF).then(|| std::arch::x86_64::__cpuid(LEAF))?;
        Some(SevFacts {
            cbitpos: leaf.ebx & 0x3f,
            reduced_phys_bits: leaf.ebx >> 6 & 0x3f,
            es: on("sev_es"),
            snp: on("sev_snp"),
        })
    }

    fn firmware(&self, directory: Option<&Path>) -> Vec<DescriptorFile> {
        match directory {
            Some(directory) => read_directories(&self.root, &[directory.to_owned()], true),
            None => read_directories(&self.root, &self.firmware_directories(), false),
        }
    }

    fn firmware_image(&self, path: &Path) -> Result<(), FileError> {
        let path = self.root.at(path);
        if !fs::metadata(&path)?.is_file() {
            return Err(FileError::Other(NOT_REGULAR.into()));
        }
        Ok(fs::File::open(&path).map(drop)?)
    }
}

/// How many numbers a kernel list such as `0-3,8` names.
fn count_list(text: &str) -> Option<u32> {
    text.split(',').try_fold(0u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests;
