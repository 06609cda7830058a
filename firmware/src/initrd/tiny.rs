//! Small images to boot and look around in: busybox or any programs of this host, files, kernel modules.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::assemble::Assembly;
use super::busybox;
use super::copy::{copy_tree, inside_path};
use super::modules::ModuleTree;
use super::{Compression, ImageError, kernel};
use crate::init::{Spec, Stdio};

/// What goes into a tiny image.
#[derive(Debug, Clone, Default)]
pub struct TinyImage {
    /// Programs by name or path, with all that they need.
    pub programs: Vec<String>,
    /// Files and directories, to the same paths.
    pub copy: Vec<PathBuf>,
    /// Kernel modules by name or alias, with their dependencies; our init inserts them in order.
    pub modules: Vec<String>,
    /// The shell command to run; `None`: an interactive shell.
    pub run: Option<String>,
    /// The kernel; `None`: the newest of `/boot`, if there is one.
    pub kernel: Option<PathBuf>,
    /// Its modules; `None`: beside it or on this host.
    pub modules_directory: Option<PathBuf>,
    /// The directories to look for programs in, as in `PATH`.
    pub search: OsString,
    /// How the image is compressed.
    pub compression: Compression,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file's content.
    pub bytes: Vec<u8>,
    /// What was done, one line each: `Copy bin …`, `Copy lib …`, `Copy mod …`, what is built in.
    pub report: Vec<String>,
    /// The version of the kernel that it is for, if any is known.
    pub kernel_version: Option<String>,
}

impl TinyImage {
    /// Builds the image.
    ///
    /// # Errors
    /// Something that was asked for, or that it needs, cannot be found or read, or is for another kernel.
    pub fn build(&self) -> Result<Image, ImageError> {
        let mut assembly = Assembly::new(&self.search);
        let kernel = match &self.kernel {
            Some(path) => Some(path.clone()),
            // Without modules the image is good for any kernel.
            None if self.modules.is_empty() => kernel::newest(Path::new("/boot")).ok(),
            None => Some(kernel::newest(Path::new("/boot"))?),
        };
        let kernel_version = kernel.as_deref().map(kernel::version).transpose()?;

        assembly.skeleton()?;
        // Real directories, whatever they are on this host: the commands of busybox go there.
        assembly.archive.directory("/bin", 0o755)?;
        assembly.archive.directory("/sbin", 0o755)?;
        let applets = self.add_busybox(&mut assembly)?;
        for name in &self.programs {
            let program = assembly.finder.program(name)?;
            assembly.program(&program)?;
        }
        for path in &self.copy {
            let path = std::path::absolute(path).map_err(|source| ImageError::Read {
                path: path.clone(),
                source,
            })?;
            copy_tree(&mut assembly.archive, &path, &mut assembly.report)?;
        }
        let mut spec = Spec {
            stdio: Stdio::Auto,
            ..Spec::default()
        };
        spec.argv = self.command(&mut assembly, applets.is_some())?;
        if !self.modules.is_empty()
            && let (Some(kernel), Some(version)) = (&kernel, &kernel_version)
        {
            let tree = match &self.modules_directory {
                Some(directory) => ModuleTree::open(directory, version)?,
                None => ModuleTree::for_kernel(kernel, version)?,
            };
            let selection = tree.select(self.modules.iter().map(String::as_str))?;
            let place = Path::new("/lib/modules").join(version);
            spec.modules = assembly.modules(&selection, |path| {
                place.join(path.strip_prefix(tree.directory()).unwrap_or(path))
            })?;
        }
        assembly.finish(&spec)?;
        // Last: a program that was asked for is better than a command of busybox.
        for applet in applets.unwrap_or_default() {
            let path = inside_path(&assembly.archive, &Path::new("/bin").join(applet));
            if assembly.archive.get(&path).is_none() {
                assembly.archive.link(&path, "busybox")?;
            }
        }
        if assembly.archive.get(Path::new("/init")).is_none() {
            assembly.archive.link("/init", "vsc/init")?;
        }
        let Assembly {
            archive, report, ..
        } = assembly;
        Ok(Image {
            bytes: self.compression.apply(archive.write()?)?,
            report,
            kernel_version,
        })
    }

    /// This host's busybox as `/bin/busybox`, and its commands; `None` without busybox.
    fn add_busybox(&self, assembly: &mut Assembly) -> Result<Option<Vec<String>>, ImageError> {
        let Ok(path) = assembly.finder.program("busybox") else {
            return Ok(None);
        };
        let binary = assembly.file_as(&path, "/bin/busybox")?;
        assembly.report.push(format!("Copy bin {}", path.display()));
        assembly.libraries(&path)?;
        let mut applets = busybox::applets(&binary);
        if applets.is_empty() {
            assembly.report.push(format!(
                "{}: no table of commands, linked as sh only",
                path.display()
            ));
            applets.push("sh".into());
        }
        Ok(Some(applets))
    }

    /// The command as arguments. Without busybox, a command of plain words needs no shell; another, and none at all,
    /// gets this host's, with each program that the command seems to name.
    fn command(&self, assembly: &mut Assembly, busybox: bool) -> Result<Vec<Vec<u8>>, ImageError> {
        let bytes = |words: &[&str]| {
            words
                .iter()
                .map(|word| word.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        let command = self.run.as_deref();
        if !busybox {
            let plain = |text: &str| {
                text.chars()
                    .all(|c| c.is_ascii_alphanumeric() || " -_./,:=+@%".contains(c))
            };
            if let Some(text) = command.filter(|text| plain(text)) {
                let words: Vec<&str> = text.split_ascii_whitespace().collect();
                let first = words
                    .first()
                    .filter(|first| !first.contains('='))
                    .ok_or(ImageError::NoCommand)?;
                let program = assembly.finder.program(first)?;
                assembly.program(&program)?;
                return Ok(bytes(&words));
            }
            let shell = assembly.finder.program("sh")?;
            assembly.program(&shell)?;
        }
        let separate = |c: char| c.is_whitespace() || ";|&()<>`$\"'{}".contains(c);
        for word in command
            .unwrap_or_default()
            .split(separate)
            .filter(|word| !word.is_empty())
        {
            let in_busybox = busybox && !word.contains('/');
            if !in_busybox
                && let Ok(program) = assembly.finder.program(word)
                && is_program(&program)
            {
                assembly.program(&program)?;
            }
        }
        Ok(command.map_or_else(|| bytes(&["sh"]), |text| bytes(&["sh", "-c", text])))
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
