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

pub use file::{FileError, FileInfo, FileKind};
pub use recorded::HostFacts;

use crate::descriptors::{DescriptorFile, SYSTEM_DIRECTORIES, read_directories};
use crate::sev::host::{Leaf, is_on, parameter};
use cpus::cpu_list;
use kernels::kernels_in;

mod container;
mod cpus;
mod disks;
mod file;
mod kernels;
mod links;
mod recorded;

/// Most that is read of a file that tells a fact, bytes: a page, as much as a file of sysfs has.
const MOST_TEXT: u64 = 4096;
/// The same of a list of mounts, which can be long.
const MOST_LONG_TEXT: u64 = 4 << 20;

/// Flags of /proc/cpuinfo that say whether machines run, what they run in, in pages of which size, and what of them is
/// kept from this host.
const FLAGS: [&str; 9] = [
    "svm",
    "vmx",
    "hypervisor",
    "sme",
    "sev",
    "sev_es",
    "sev_snp",
    "pdpe1gb",
    "pse",
];

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
    /// The links of a directory of the host: their names, and where they lead, as absolute paths.
    fn links(&self, _directory: &Path) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
    /// The path of a file that is there, with no links in it.
    fn resolved(&self, _path: &Path) -> Option<PathBuf> {
        None
    }
    /// Whether this process may write a file, or into a directory, of the host.
    fn may_write(&self, _path: &Path) -> bool {
        true
    }
    /// Whether guests can have encrypted memory, and how.
    fn sev(&self) -> Option<SevFacts> {
        None
    }
    /// The device, by its name below /sys/block, that holds a file or will hold it, or is it: of a partition the
    /// whole disk, of anything that lies on other devices that one itself.
    fn device_of(&self, _path: &Path) -> Option<String> {
        None
    }
    /// The whole disks, by their names below /sys/block, that hold a file or will hold it, however many layers
    /// (partitions, LVM, encryption, RAID, loop devices) there are between.
    ///
    /// # Errors
    /// Why no disk of this host does.
    fn disks_of(&self, _path: &Path) -> Result<Vec<String>, String> {
        Err("this host says nothing of its disks".into())
    }
    /// The names in a directory of the host, `node2` before `node10`; none where there is no directory.
    fn names(&self, _directory: &Path) -> Vec<String> {
        Vec::new()
    }
    /// The permission bits of a file of the host. Root may write what has none of them; a parameter of sysfs that is
    /// read-only cannot be written by anybody.
    fn mode(&self, _path: &Path) -> Option<u32> {
        None
    }
    /// How much runs of this program have added to a counter of the host, and may not have used yet.
    fn claimed(&self, _path: &Path) -> u64 {
        0
    }
    /// Opens an image to be looked at: a regular file or a block device, by its descriptor; without waiting, and without
    /// write access.
    ///
    /// # Errors
    /// It is not there, is neither, or may not be read.
    fn open_image(&self, _path: &Path) -> io::Result<fs::File> {
        Err(io::ErrorKind::NotFound.into())
    }
    /// A file of the kernel that is longer than a page.
    fn long_text(&self, path: &Path) -> Option<String> {
        self.text(path)
    }
    /// Where a symbolic link leads.
    fn link(&self, _path: &Path) -> Option<PathBuf> {
        None
    }
    /// The directory of sanlock's daemon.
    fn sanlock(&self) -> PathBuf {
        PathBuf::from("/run/sanlock")
    }
    /// Where relative paths start.
    fn directory(&self) -> PathBuf {
        PathBuf::from("/")
    }
    /// CPUs that the host's scheduler leaves alone (the kernel's `isolcpus=`).
    fn isolated_cpus(&self) -> Vec<u32> {
        let list = |name: &str| self.text(&Path::new("/sys/devices/system/cpu").join(name));
        let online = list("online").map(|text| cpu_list(&text));
        let mut isolated = cpu_list(&list("isolated").unwrap_or_default());
        // All that could ever be there (drivers/base/cpu.c, print_cpus_isolated).
        isolated.retain(|cpu| online.as_ref().is_none_or(|all| all.contains(cpu)));
        isolated
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

const NOT_REGULAR: &str = "it is not a regular file";

/// The host itself. Facts are read when asked for, once.
#[derive(Debug, Default)]
pub struct LiveFacts {
    root: Root,
    variables: Variables,
    /// Kernels are those of the host itself, whatever stands in for the rest of it.
    kernels_here: bool,
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
    /// `$SANLOCK_RUN_DIR`, which libsanlock knows too.
    pub sanlock: Option<PathBuf>,
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
            sanlock: path("SANLOCK_RUN_DIR").filter(|p| p.is_absolute()),
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

    /// Kernels are looked for on the host itself: they are to run there.
    pub fn with_kernels_here(mut self) -> Self {
        self.kernels_here = true;
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

    /// Those of the CPU's flags that matter here, as whole words: `sev_es` is not `sev`.
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
            .filter(|f| FLAGS.contains(f))
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
            sanlock: _,
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
        container::find(&self.root, &self.variables)
    }

    fn kernels(&self) -> Vec<InstalledKernel> {
        let root = match self.kernels_here {
            true => &Root::default(),
            false => &self.root,
        };
        let ours = self
            .kernel_directories()
            .into_iter()
            .flat_map(|d| kernels_in(&root.at(d), true));
        ours.chain(kernels_in(&root.at("/boot"), false)).collect()
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

    fn sanlock(&self) -> PathBuf {
        let given = self.variables.sanlock.clone();
        given.unwrap_or_else(|| PathBuf::from("/run/sanlock"))
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

    fn links(&self, directory: &Path) -> Vec<(String, PathBuf)> {
        links::in_directory(&self.root, directory)
    }

    fn resolved(&self, path: &Path) -> Option<PathBuf> {
        fs::canonicalize(path).ok()
    }

    fn may_write(&self, path: &Path) -> bool {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        accessat(CWD, self.root.at(path), Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    }

    fn device_of(&self, path: &Path) -> Option<String> {
        disks::first(&self.root, &self.directory().join(path))
    }

    fn disks_of(&self, path: &Path) -> Result<Vec<String>, String> {
        disks::below(&self.root, &self.directory().join(path))
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        disks::names(&self.root.at(directory))
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs::metadata(self.root.at(path)).ok()?;
        Some(meta.permissions().mode() & 0o7777)
    }

    fn claimed(&self, path: &Path) -> u64 {
        crate::tune::Tuner::new(&self.root).claimed(path)
    }

    fn open_image(&self, path: &Path) -> io::Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = fs::File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }

    fn long_text(&self, path: &Path) -> Option<String> {
        let mut text = String::new();
        let file = fs::File::open(self.root.at(path)).ok()?;
        file.take(MOST_LONG_TEXT).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn link(&self, path: &Path) -> Option<PathBuf> {
        fs::read_link(self.root.at(path)).ok()
    }

    fn directory(&self) -> PathBuf {
        std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
    }

    fn sev(&self) -> Option<SevFacts> {
        let on = |name: &str| is_on(self.text(&parameter(name)).as_deref());
        if !on("sev") {
            return None;
        }
        let leaf = Leaf::of(&self.root)?;
        Some(SevFacts {
            cbitpos: leaf.cbitpos(),
            reduced_phys_bits: leaf.reduced_phys_bits(),
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
