//! What all images have in common: our init, directories, device nodes, small files of `/etc`, programs, modules.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::copy::{copy_path, inside_path, read};
use super::elf::{Finder, Kind, Needed};
use super::modules::Selection;
use super::newc::{Archive, Entry};
use crate::init::spec::{self, Module, Spec};

/// Where our own files are, out of the way of a user's.
const INIT: &str = "/vsc/init";

pub(super) struct Assembly {
    pub(super) archive: Archive,
    pub(super) finder: Finder,
    pub(super) report: Vec<String>,
    by_cache: bool,
}

impl Assembly {
    pub(super) fn new(search: &OsStr) -> Self {
        Self {
            archive: Archive::new(),
            finder: Finder::new(search),
            report: Vec::new(),
            by_cache: false,
        }
    }

    /// Directories and devices that our init or the kernel mounts on or opens.
    pub(super) fn skeleton(&mut self) -> Result<(), ImageError> {
        for (path, mode) in [
            ("/dev", 0o755),
            ("/proc", 0o555),
            ("/sys", 0o555),
            ("/run", 0o755),
            ("/tmp", 0o1777),
            ("/root", 0o700),
            ("/etc", 0o755),
        ] {
            self.archive.directory(path, mode)?;
        }
        // Numbers: Documentation/admin-guide/devices.txt. devtmpfs brings the others.
        for (path, mode, major, minor) in [
            ("/dev/console", 0o600, 5, 1),
            ("/dev/kmsg", 0o644, 1, 11),
            ("/dev/null", 0o666, 1, 3),
            ("/dev/random", 0o666, 1, 8),
            ("/dev/tty", 0o666, 5, 0),
            ("/dev/ttyS0", 0o600, 4, 64),
            ("/dev/hvc0", 0o600, 229, 0),
            ("/dev/urandom", 0o666, 1, 9),
            ("/dev/zero", 0o666, 1, 5),
        ] {
            self.archive
                .add(Path::new(path), Entry::Device(mode, major, minor))?;
        }
        Ok(())
    }

    /// The program with all that it needs.
    pub(super) fn program(&mut self, program: &Path) -> Result<(), ImageError> {
        let closure = self.finder.closure(program)?;
        self.add(closure)
    }

    /// All that the program needs, but not itself.
    pub(super) fn libraries(&mut self, program: &Path) -> Result<(), ImageError> {
        let mut closure = self.finder.closure(program)?;
        closure.retain(|needed| needed.path != program);
        self.add(closure)
    }

    fn add(&mut self, closure: Vec<Needed>) -> Result<(), ImageError> {
        for needed in closure {
            let copied = copy_path(&mut self.archive, &needed.path)?;
            self.by_cache |= needed.by_cache;
            if copied.fresh {
                let what = if needed.kind == Kind::Program {
                    "bin"
                } else {
                    "lib"
                };
                self.report
                    .push(format!("Copy {what} {}", needed.path.display()));
            }
        }
        Ok(())
    }

    /// Puts modules below `directory` of the image: the list for the specification.
    pub(super) fn modules(
        &mut self,
        selection: &Selection,
        place: impl Fn(&Path) -> PathBuf,
    ) -> Result<Vec<Module>, ImageError> {
        use std::os::unix::ffi::OsStrExt;
        let mut list = Vec::new();
        for module in &selection.modules {
            let path = place(&module.path).with_file_name(decompressed_name(&module.path));
            let inside = inside_path(&self.archive, &path);
            self.archive.file(&inside, 0o644, module.data.as_slice())?;
            self.report
                .push(format!("Copy mod {}", module.path.display()));
            list.push(Module {
                path: inside.as_os_str().as_bytes().to_vec(),
                options: Vec::new(),
            });
        }
        self.report.extend(
            selection
                .builtin
                .iter()
                .map(|name| format!("Module {name}: already built in")),
        );
        self.report.extend(selection.notes.iter().cloned());
        Ok(list)
    }

    /// Our init, what it is told, and files that programs expect, where nothing else brought them.
    pub(super) fn finish(&mut self, spec: &Spec) -> Result<(), ImageError> {
        self.init(spec)?;
        for (path, text) in [
            (
                "/etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
            ),
            ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
            ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ] {
            let path = inside_path(&self.archive, Path::new(path));
            if self.archive.get(&path).is_none() {
                self.archive.file(&path, 0o644, text)?;
            }
        }
        // Without it, the guest's loader would not look where this one found some libraries.
        if self.by_cache {
            copy_path(&mut self.archive, Path::new("/etc/ld.so.cache"))?;
        }
        Ok(())
    }

    pub(super) fn init(&mut self, spec: &Spec) -> Result<(), ImageError> {
        self.archive.file(INIT, 0o755, crate::init::ELF)?;
        self.archive.file(spec::PATH, 0o600, spec.encode()?)
    }

    /// A file of the host under another path.
    pub(super) fn file_as(&mut self, from: &Path, to: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = read(from)?;
        self.archive.file(to, 0o755, bytes.as_slice())?;
        Ok(bytes)
    }
}

fn decompressed_name(path: &Path) -> PathBuf {
    match path.extension().and_then(OsStr::to_str) {
        Some("xz" | "gz" | "zst") => path.file_stem().unwrap_or_default().into(),
        _ => path.file_name().unwrap_or_default().into(),
    }
}
