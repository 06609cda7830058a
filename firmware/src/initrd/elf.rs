//! What a program needs to run: shared libraries and interpreters, found as the loaders of glibc (ld.so(8)) and musl do,
//! but without running them.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::newc::file_name;

mod cache;
mod parse;

use parse::Elf;
pub(crate) use parse::{Source, offset_at, range};

/// Where glibc looks last (Debian's and others' builds), and what `$LIB` stands for.
const DEFAULT_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
const LIB: [&str; 3] = ["lib/x86_64-linux-gnu", "lib64", "lib"];
/// Where musl looks, unless its path file says otherwise.
const MUSL_DIRECTORIES: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];
/// How much of a script's first line the kernel reads (BINPRM_BUF_SIZE).
const SCRIPT_LINE: usize = 256;
/// The kernel gives up after as many interpreters of interpreters (fs/exec.c).
const MAX_INTERPRETERS: usize = 5;

/// What a file is to the program that needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The program itself, or a program that runs it: `#!`.
    Program,
    /// A shared library.
    Library,
    /// The dynamic loader (PT_INTERP).
    Loader,
}

/// One file that must be in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The path by which it is looked for in the guest.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Whether the loader knows of it from `/etc/ld.so.cache` only.
    pub by_cache: bool,
}

/// Finds programs and libraries on this host.
#[derive(Debug)]
pub struct Finder {
    search: Vec<PathBuf>,
    cache: HashMap<String, Vec<PathBuf>>,
    configured: Vec<PathBuf>,
    musl: Vec<PathBuf>,
}

struct Object {
    path: PathBuf,
    origin: PathBuf,
    needed: Vec<String>,
    rpath: Vec<String>,
    runpath: Option<Vec<String>>,
    loaded_by: Option<usize>,
}

impl Finder {
    /// A finder that looks for programs in these directories (`PATH`'s syntax), and for libraries where this host's
    /// loaders do.
    pub fn new(search: &OsStr) -> Self {
        let search = search
            .as_bytes()
            .split(|&byte| byte == b':')
            .filter(|directory| directory.starts_with(b"/"))
            .map(|directory| PathBuf::from(OsStr::from_bytes(directory)))
            .collect();
        let list = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            Some(
                text.split([':', '\n'])
                    .filter(|line| !line.is_empty())
                    .map(PathBuf::from)
                    .collect(),
            )
        };
        Self {
            search,
            cache: fs::read("/etc/ld.so.cache")
                .map(|bytes| cache::parse(&bytes))
                .unwrap_or_default(),
            configured: cache::configured_directories(Path::new("/etc/ld.so.conf")),
            musl: list("/etc/ld-musl-x86_64.path")
                .unwrap_or_else(|| MUSL_DIRECTORIES.map(PathBuf::from).into()),
        }
    }

    /// The file that a command's first word means: searched unless it contains a slash.
    ///
    /// # Errors
    /// No such executable file.
    pub fn program(&self, name: &str) -> Result<PathBuf, ImageError> {
        if name.contains('/') {
            let path = std::path::absolute(name).map_err(|source| ImageError::Read {
                path: name.into(),
                source,
            })?;
            fs::metadata(&path).map_err(|source| ImageError::Read {
                path: path.clone(),
                source,
            })?;
            return Ok(path);
        }
        let executable = |path: &PathBuf| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(path)
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        self.search
            .iter()
            .map(|directory| directory.join(name))
            .find(executable)
            .ok_or_else(|| {
                let searched: Vec<String> = self
                    .search
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                ImageError::NoProgram {
                    name: name.into(),
                    searched: searched.join(":"),
                }
            })
    }

    /// The program and all files it needs to start, in the order in which they are found.
    ///
    /// # Errors
    /// A file that cannot be read, is of the wrong kind or missing; the error says who needs it.
    pub fn closure(&self, program: &Path) -> Result<Vec<Needed>, ImageError> {
        let mut needed = Vec::new();
        let mut path = program.to_path_buf();
        for _ in 0..MAX_INTERPRETERS {
            push(&mut needed, &path, Kind::Program, false);
            let source = Source::open(&path)?;
            let start = source.start(SCRIPT_LINE);
            let Some(line) = start.strip_prefix(b"#!") else {
                self.elf_closure(&path, &source, &mut needed)?;
                return Ok(needed);
            };
            let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
            let words: Vec<&str> = std::str::from_utf8(line)
                .unwrap_or_default()
                .split_ascii_whitespace()
                .collect();
            let Some(interpreter) = words.first() else {
                return Err(ImageError::NotAProgram { path });
            };
            let interpreter = PathBuf::from(interpreter);
            if !interpreter.exists() {
                return Err(ImageError::NoInterpreter {
                    interpreter,
                    needed_by: path,
                });
            }
            // `#!/usr/bin/env [-S] [NAME=VALUE…] python3`: both are needed.
            let target = (file_name(&interpreter) == "env")
                .then(|| {
                    words
                        .iter()
                        .skip(1)
                        .find(|word| !word.starts_with('-') && !word.contains('='))
                })
                .flatten();
            if let Some(target) = target {
                let name = path.clone();
                push(&mut needed, &interpreter, Kind::Program, false);
                self.elf_closure(&interpreter, &Source::open(&interpreter)?, &mut needed)?;
                path = self
                    .program(target)
                    .map_err(|_| ImageError::NoInterpreter {
                        interpreter: target.into(),
                        needed_by: name,
                    })?;
            } else {
                path = interpreter;
            }
        }
        Err(ImageError::Interpreters {
            path: program.to_path_buf(),
        })
    }

    fn elf_closure(
        &self,
        program: &Path,
        source: &Source,
        needed: &mut Vec<Needed>,
    ) -> Result<(), ImageError> {
        if !source.start(4).starts_with(b"\x7fELF") {
            return Err(ImageError::NotAProgram {
                path: program.to_path_buf(),
            });
        }
        let elf = Elf::parse(program, source)?;
        let Some(loader) = elf.interpreter.clone() else {
            return Ok(());
        };
        if !Path::new(&loader).exists() {
            return Err(ImageError::NoInterpreter {
                interpreter: loader.into(),
                needed_by: program.into(),
            });
        }
        push(needed, Path::new(&loader), Kind::Loader, false);
        let musl = file_name(Path::new(&loader))
            .as_bytes()
            .starts_with(b"ld-musl-");

        // Breadth first, as the loaders do. The kernel names the program by its real path.
        let real = fs::canonicalize(program).unwrap_or_else(|_| program.into());
        let mut loaded: HashMap<String, usize> = HashMap::new();
        let mut real_paths: HashMap<PathBuf, usize> = HashMap::new();
        let mut objects = vec![object(&real, elf, None)];
        let mut queue = VecDeque::from([0]);
        while let Some(index) = queue.pop_front() {
            for name in objects[index].needed.clone() {
                if loaded.contains_key(&name) || is_loader(&name, &loader, musl) {
                    continue;
                }
                let Some((path, source, by_cache)) = self.library(&name, index, &objects, musl)
                else {
                    return Err(ImageError::NoLibrary {
                        name,
                        needed_by: objects[index].path.clone(),
                    });
                };
                push(needed, &path, Kind::Library, by_cache);
                let canonical = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                if let Some(&present) = real_paths.get(&canonical) {
                    loaded.insert(name, present);
                    continue;
                }
                let elf = Elf::parse(&path, &source)?;
                if let Some(own) = &elf.soname {
                    loaded.insert(own.clone(), objects.len());
                }
                loaded.insert(name, objects.len());
                real_paths.insert(canonical, objects.len());
                queue.push_back(objects.len());
                objects.push(object(&path, elf, Some(index)));
            }
        }
        Ok(())
    }

    /// The first file of that name which is for this machine, opened, and whether only the cache knew it.
    fn library(
        &self,
        name: &str,
        needed_by: usize,
        objects: &[Object],
        musl: bool,
    ) -> Option<(PathBuf, Source, bool)> {
        let user = &objects[needed_by];
        if name.contains('/') {
            let (path, source) = expand(name, &user.origin).into_iter().find_map(usable)?;
            return Some((path, source, false));
        }
        let mut directories = Vec::new();
        let mut add = |list: &[String], origin: &Path| {
            directories.extend(list.iter().flat_map(|directory| expand(directory, origin)));
        };
        if user.runpath.is_none() || musl {
            // DT_RPATH holds for what the libraries of the object need, too. musl treats both tags that way.
            let mut next = Some(needed_by);
            while let Some(object) = next.and_then(|index| objects.get(index)) {
                if object.runpath.is_none() {
                    add(&object.rpath, &object.origin);
                } else if musl && let Some(runpath) = &object.runpath {
                    add(runpath, &object.origin);
                }
                next = object.loaded_by;
            }
        }
        if !musl && let Some(runpath) = &user.runpath {
            add(runpath, &user.origin);
        }
        let in_any = |directories: &[PathBuf]| {
            directories
                .iter()
                .map(|directory| directory.join(name))
                .find_map(usable)
        };
        if let Some((path, source)) = in_any(&directories) {
            return Some((path, source, false));
        }
        if musl {
            return in_any(&self.musl).map(|(path, source)| (path, source, false));
        }
        let defaults = DEFAULT_DIRECTORIES.map(PathBuf::from);
        if let Some((path, source)) = self
            .cache
            .get(name)
            .and_then(|paths| paths.iter().cloned().find_map(usable))
        {
            let known = path
                .parent()
                .is_some_and(|parent| defaults.iter().any(|default| default == parent));
            return Some((path, source, !known));
        }
        if let Some((path, source)) = in_any(&defaults) {
            return Some((path, source, false));
        }
        // A host whose cache is older than the library. In the guest, its cache would not know it either, so this only
        // helps to name the library's directory in the error of the guest's loader.
        in_any(&self.configured).map(|(path, source)| (path, source, true))
    }
}

fn object(path: &Path, elf: Elf, loaded_by: Option<usize>) -> Object {
    Object {
        path: path.to_path_buf(),
        origin: path.parent().unwrap_or(Path::new("/")).to_path_buf(),
        needed: elf.needed,
        rpath: elf.rpath,
        runpath: elf.runpath,
        loaded_by,
    }
}

fn push(needed: &mut Vec<Needed>, path: &Path, kind: Kind, by_cache: bool) {
    if !needed.iter().any(|present| present.path == path) {
        needed.push(Needed {
            path: path.to_path_buf(),
            kind,
            by_cache,
        });
    }
}

/// The loader is a library that is always there; musl's is libc as well.
fn is_loader(name: &str, loader: &str, musl: bool) -> bool {
    file_name(Path::new(loader)) == name
        || (musl
            && (name == "libc.so"
                || name.starts_with("libc.musl-")
                || name.starts_with("ld-musl-")))
}

/// The paths that a path with `$ORIGIN`, `$LIB` and `$PLATFORM` may stand for.
fn expand(text: &str, origin: &Path) -> Vec<PathBuf> {
    let text = text
        .replace("${ORIGIN}", "$ORIGIN")
        .replace("${LIB}", "$LIB")
        .replace("${PLATFORM}", "$PLATFORM");
    let text = text
        .replace("$ORIGIN", &origin.to_string_lossy())
        .replace("$PLATFORM", "x86_64");
    if text.contains("$LIB") {
        LIB.iter()
            .map(|lib| PathBuf::from(text.replace("$LIB", lib)))
            .collect()
    } else {
        vec![PathBuf::from(text)]
    }
}

/// The file, opened, if it is an ELF file for this machine; the loaders pass over others.
fn usable(path: PathBuf) -> Option<(PathBuf, Source)> {
    let source = Source::open(&path).ok()?;
    parse::is_for_this_machine(&source).then_some((path, source))
}
