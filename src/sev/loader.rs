//! Which boot loader a host has, and the files that its kernels' command lines come from.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::Root;

use super::grub;

/// Most that a configuration file may have, bytes: more than the tuner replaces.
const MOST: usize = 64 << 10;
/// Most links that lead to a file.
const LINKS: usize = 8;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The processor has none.
    #[error(
        "this processor has no SEV (no sev among its flags, none in CPUID): there is nothing to switch on"
    )]
    NoSev,
    /// The files of the boot loader are not known.
    #[error(
        "no boot loader that is known here: no /etc/default/grub, no /etc/kernel/cmdline, no loader/entries; add `{0}` to the kernel's command line by hand"
    )]
    NoLoader(String),
    /// The command line is in the kernel's image.
    #[error(
        "no file here has the kernel's command line: no /etc/kernel/cmdline, no boot loader entry with options, so that it is built into the kernel's image; write that of /proc/cmdline and `{0}` to /etc/kernel/cmdline, and have the image made again"
    )]
    BuiltIn(String),
    /// The distribution makes these files from something else.
    #[error(
        "NixOS makes its boot loader's files itself: add `{0}` to boot.kernelParams in its configuration, then nixos-rebuild boot"
    )]
    Declared(String),
    /// There is no module whose options could be set.
    #[error(
        "kvm_amd is built into this kernel (modules.builtin), so that no file of modprobe's says anything to it: use `--how cmdline`"
    )]
    NoModule,
    /// Another file of modprobe's has the last word.
    #[error("{} says `{words}` after {ours}, and the last one holds: take it out, or use `--how cmdline`", .path.display())]
    Overruled {
        /// The file.
        path: PathBuf,
        /// What it says.
        words: String,
        /// Ours.
        ours: &'static str,
    },
    /// A file is a program more than a text.
    #[error("{}: what it makes of {variable} is not understood here, so it is not edited; add `{words}` to it by hand", .path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
        /// The variable in it.
        variable: &'static str,
        /// What it needs.
        words: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {why}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// A distribution, by /etc/os-release (os-release(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Distribution {
    /// `PRETTY_NAME`.
    pub name: String,
    /// `ID` and those of `ID_LIKE`.
    pub ids: Vec<String>,
}

impl Distribution {
    pub(super) fn of(root: &Root) -> Result<Self, PlanError> {
        let text = match read(root, Path::new("/etc/os-release"))? {
            Some(text) => text,
            None => read(root, Path::new("/usr/lib/os-release"))?.unwrap_or_default(),
        };
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|l| l.trim().strip_prefix(name)?.strip_prefix('='));
            let value = line.unwrap_or_default().trim();
            value.trim_matches(['"', '\'']).to_owned()
        };
        let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
        Ok(Distribution {
            name: match value("PRETTY_NAME") {
                name if name.is_empty() => "an unknown distribution".to_owned(),
                name => name,
            },
            ids: ids.split_ascii_whitespace().map(str::to_owned).collect(),
        })
    }

    fn is_any(&self, names: &[&str]) -> bool {
        self.ids.iter().any(|id| names.contains(&id.as_str()))
    }

    pub(super) fn is_debian(&self) -> bool {
        self.is_any(&["debian", "ubuntu"])
    }

    pub(super) fn is_fedora(&self) -> bool {
        self.is_any(&["fedora", "rhel", "centos"])
    }

    pub(super) fn is_suse(&self) -> bool {
        self.ids.iter().any(|id| id.contains("suse"))
    }
}

/// A boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// GRUB with a configuration that is generated from /etc/default/grub.
    Grub,
    /// GRUB that reads boot loader entries (Fedora and its kin).
    GrubBls,
    /// systemd-boot.
    SystemdBoot,
    /// The system is an image (rpm-ostree), which has a command for this.
    Ostree,
}

/// The variable in which a boot loader says its name (systemd's Boot Loader Interface).
const LOADER_INFO: &str =
    "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Directories where the boot loader's partition may be.
const BOOT: [&str; 3] = ["/boot", "/efi", "/boot/efi"];

impl Loader {
    pub(super) fn of(root: &Root, distribution: &Distribution) -> Result<Option<Self>, PlanError> {
        if exists(root, "/run/ostree-booted") {
            return Ok(Some(Loader::Ostree));
        }
        let suse = read(root, Path::new("/etc/sysconfig/bootloader"))?.unwrap_or_default();
        match grub::values(&suse, "LOADER_TYPE").as_str() {
            "systemd-boot" | "grub2-bls" => return Ok(Some(Loader::SystemdBoot)),
            _ => {}
        }
        let running = fs::read(root.at(LOADER_INFO)).unwrap_or_default();
        // UTF-16 behind four bytes of attributes; the name is ASCII.
        let running: String = running
            .iter()
            .skip(4)
            .filter(|b| **b != 0)
            .map(|b| char::from(*b))
            .collect();
        let grub = read(root, Path::new("/etc/default/grub"))?;
        if let Some(text) = grub
            && !running.starts_with("systemd-boot")
        {
            let entries = distribution.is_fedora()
                && grub::is_true(&text, "GRUB_ENABLE_BLSCFG") != Some(false)
                && !entries(root)?.is_empty();
            return Ok(Some(match entries {
                true => Loader::GrubBls,
                false => Loader::Grub,
            }));
        }
        let systemd = exists(root, "/etc/kernel/cmdline")
            || BOOT
                .iter()
                .any(|boot| exists(root, &format!("{boot}/loader/loader.conf")))
            || !entries(root)?.is_empty();
        Ok(systemd.then_some(Loader::SystemdBoot))
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Loader::Grub => "GRUB",
            Loader::GrubBls => "GRUB with boot loader entries",
            Loader::SystemdBoot => "systemd-boot",
            Loader::Ostree => "rpm-ostree",
        }
    }
}

fn exists(root: &Root, path: &str) -> bool {
    fs::symlink_metadata(root.at(path)).is_ok()
}

/// Boot loader entries (UAPI.1, type #1), each in a file of its own, in the order of their names.
pub(super) fn entries(root: &Root) -> Result<Vec<PathBuf>, PlanError> {
    for boot in BOOT {
        let directory = Path::new(boot).join("loader/entries");
        let found = listed(root, &directory, "conf")?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The files of a directory with this ending, in the order of their names.
pub(super) fn listed(
    root: &Root,
    directory: &Path,
    extension: &str,
) -> Result<Vec<PathBuf>, PlanError> {
    let failed = |e: io::Error| PlanError::Read {
        path: directory.to_owned(),
        why: crate::reason(&e),
    };
    let list = match fs::read_dir(root.at(directory)) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        list => list.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in list {
        let name = PathBuf::from(entry.map_err(failed)?.file_name());
        if name.extension().is_some_and(|e| e == extension) {
            found.push(directory.join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// The text of a configuration file; `None`: there is none.
pub(super) fn read(root: &Root, path: &Path) -> Result<Option<String>, PlanError> {
    let failed = |why: String| PlanError::Read {
        path: path.to_owned(),
        why,
    };
    let real = root.at(resolved(root, path)?);
    match fs::symlink_metadata(&real) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(failed(crate::reason(&e))),
        Ok(meta) if !meta.is_file() => return Err(failed("it is not a regular file".into())),
        Ok(_) => {}
    }
    let bytes = crate::read_text(&real, MOST).map_err(failed)?;
    if bytes.len() >= MOST {
        return Err(failed(format!("it is longer than {} KiB", MOST >> 10)));
    }
    let text = String::from_utf8(bytes);
    text.map(Some)
        .map_err(|_| failed("it is not a text (UTF-8)".into()))
}

/// The file that a path of the host ends at when its last part is a link: what is replaced is the file, not the link.
pub(super) fn resolved(root: &Root, path: &Path) -> Result<PathBuf, PlanError> {
    let mut now = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(root.at(&now)) else {
            return Ok(now);
        };
        let joined = match target.is_absolute() {
            true => target,
            false => now.parent().unwrap_or(Path::new("/")).join(target),
        };
        let mut plain = PathBuf::from("/");
        for part in joined.components() {
            match part {
                std::path::Component::ParentDir => drop(plain.pop()),
                std::path::Component::Normal(name) => plain.push(name),
                _ => {}
            }
        }
        now = plain;
    }
    Err(PlanError::Read {
        path: path.to_owned(),
        why: format!("more than {LINKS} links lead to it"),
    })
}
