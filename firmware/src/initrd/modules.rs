//! Kernel modules: where they are, what they depend on, in which order they are inserted.
//!
//! `modules.dep` and its companions are written by depmod(8) when a package is installed; a package that was only
//! unpacked has none, so that names, dependencies and aliases come from the modules themselves where the files are
//! missing. Every module chosen is read anyway, and must be of the kernel's version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::modinfo::{self, ModInfo};
use super::newc::file_name;

mod matching;
#[cfg(test)]
mod tests;

use matching::{matches, nearest};

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleTree {
    directory: PathBuf,
    version: String,
    files: BTreeMap<String, PathBuf>,
    /// Module to the modules it needs, as modules.dep has them: the last is inserted first.
    dependencies: Option<HashMap<String, Vec<String>>>,
    builtin: BTreeSet<String>,
    builtin_aliases: Vec<(String, String)>,
    aliases: Option<Vec<(String, String)>>,
}

/// One module to insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its name, as lsmod(8) says it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its content, decompressed.
    pub data: Vec<u8>,
}

/// Modules in the order in which they are inserted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The modules.
    pub modules: Vec<Selected>,
    /// Names that need no module.
    pub builtin: Vec<String>,
    /// What else a user may want to know, one line each.
    pub notes: Vec<String>,
}

/// A module's name as the kernel has it: `i2c-core.ko.xz` is `i2c_core`.
pub fn normalize(name: &str) -> String {
    let stem = [".xz", ".gz", ".zst"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    stem.strip_suffix(".ko").unwrap_or(stem).replace('-', "_")
}

impl ModuleTree {
    /// The modules for the kernel file `kernel`, which is of `version`: beside it in an unpacked package
    /// (`../lib/modules/VERSION`), or installed on this host.
    ///
    /// # Errors
    /// There are none, or those beside the kernel are for another.
    pub fn for_kernel(kernel: &Path, version: &str) -> Result<Self, ImageError> {
        let kernel = std::path::absolute(kernel).unwrap_or_else(|_| kernel.to_path_buf());
        let beside = kernel.parent().unwrap_or(Path::new("/"));
        let package = beside.parent().unwrap_or(Path::new("/"));
        let mut candidates = vec![
            package.join("lib/modules").join(version),
            package.join("usr/lib/modules").join(version),
            Path::new("/lib/modules").join(version),
            Path::new("/usr/lib/modules").join(version),
        ];
        if file_name(beside) == version {
            candidates.insert(0, beside.to_path_buf());
        }
        candidates.dedup();
        if let Some(directory) = candidates.iter().find(|directory| directory.is_dir()) {
            return Self::open(directory, version);
        }
        let mut others: Vec<PathBuf> = ["lib/modules", "usr/lib/modules"]
            .iter()
            .filter_map(|below| fs::read_dir(package.join(below)).ok())
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        others.sort();
        if let Some(other) = others
            .into_iter()
            .next()
            .filter(|_| package != Path::new("/"))
        {
            let found = file_name(&other).to_string_lossy().into_owned();
            return Err(ImageError::ModuleMismatch {
                path: other,
                found,
                wanted: version.into(),
            });
        }
        let searched: Vec<String> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Err(ImageError::NoModules {
            version: version.into(),
            searched: searched.join(", "),
        })
    }

    /// The modules below a directory (`/lib/modules/VERSION`).
    ///
    /// # Errors
    /// It cannot be read, or is named after another version.
    pub fn open(directory: &Path, version: &str) -> Result<Self, ImageError> {
        let named = file_name(directory).to_string_lossy();
        if named != version && named.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(ImageError::ModuleMismatch {
                path: directory.into(),
                found: named.into_owned(),
                wanted: version.into(),
            });
        }
        let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let mut files = BTreeMap::new();
        let mut dependencies = None;
        if let Some(list) = text("modules.dep") {
            let name_of = |path: &str| normalize(path.rsplit('/').next().unwrap_or(path));
            let mut map = HashMap::new();
            for (path, needs) in list.lines().filter_map(|line| line.split_once(':')) {
                files.insert(name_of(path), directory.join(path));
                map.insert(
                    name_of(path),
                    needs.split_whitespace().map(name_of).collect(),
                );
            }
            dependencies = Some(map);
        } else {
            scan(directory, directory, &mut files)?;
        }
        let builtin = text("modules.builtin").unwrap_or_default();
        let builtin = builtin
            .lines()
            .map(|path| normalize(path.rsplit('/').next().unwrap_or(path)))
            .collect();
        // `NAME.alias=PATTERN`, each ended by a NUL.
        let declared = fs::read(directory.join("modules.builtin.modinfo")).unwrap_or_default();
        let builtin_aliases = declared
            .split(|&byte| byte == 0)
            .filter_map(|entry| {
                let (key, pattern) = std::str::from_utf8(entry).ok()?.split_once('=')?;
                let module = key.strip_suffix(".alias")?;
                Some((pattern.replace('-', "_"), module.replace('-', "_")))
            })
            .collect();
        let aliases = text("modules.alias").map(|list| {
            let alias = |line: &str| {
                let mut words = line.strip_prefix("alias ")?.split_whitespace();
                Some((
                    words.next()?.replace('-', "_"),
                    words.next()?.replace('-', "_"),
                ))
            };
            list.lines().filter_map(alias).collect()
        });
        Ok(Self {
            directory: directory.into(),
            version: version.into(),
            files,
            dependencies,
            builtin,
            builtin_aliases,
            aliases,
        })
    }

    /// The kernel's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The directory, which module paths are below.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether there is such a module file; built-in ones have none.
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(&normalize(name))
    }

    /// The modules of these names or aliases, all that they depend on, and the soft dependencies that exist, in the
    /// order in which they are inserted.
    ///
    /// # Errors
    /// A name that the kernel has neither as a module nor built in; a file that cannot be read or is for another
    /// kernel.
    pub fn select<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Selection, ImageError> {
        let mut walk = Walk {
            tree: self,
            done: BTreeSet::new(),
            open: Vec::new(),
            selection: Selection::default(),
            aliases: None,
        };
        for name in names {
            let found = walk.resolve(name)?;
            if found.is_empty() && !walk.is_builtin(name) {
                return Err(ImageError::NoModule {
                    name: name.into(),
                    version: self.version.clone(),
                    nearest: nearest(&normalize(name), self.files.keys().chain(&self.builtin)),
                });
            }
            if found.is_empty() {
                walk.selection.builtin.push(name.into());
            }
            for module in found {
                walk.visit(&module)?;
            }
        }
        Ok(walk.selection)
    }

    fn scanned_aliases(&self) -> Result<Vec<(String, String)>, ImageError> {
        let mut aliases = Vec::new();
        for (name, path) in &self.files {
            let (info, _) = modinfo::load(path)?;
            aliases.extend(
                info.aliases
                    .into_iter()
                    .map(|alias| (alias.replace('-', "_"), name.clone())),
            );
        }
        Ok(aliases)
    }
}

/// All module files below a directory. depmod(8) prefers `updates`, then others, to `kernel`.
fn scan(
    root: &Path,
    directory: &Path,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ImageError> {
    let failed = |source| ImageError::Read {
        path: directory.to_path_buf(),
        source,
    };
    let rank = |path: &Path| match path
        .strip_prefix(root)
        .ok()
        .and_then(|below| below.iter().next())
    {
        Some(first) if first == "updates" => 0,
        Some(first) if first == "kernel" => 2,
        _ => 1,
    };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if kind.is_dir() {
            scan(root, &path, files)?;
        } else if [".ko", ".ko.xz", ".ko.gz", ".ko.zst"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            let name = normalize(&name);
            if files
                .get(&name)
                .is_none_or(|present| (rank(&path), &path) < (rank(present), present))
            {
                files.insert(name, path);
            }
        }
    }
    Ok(())
}

struct Walk<'a> {
    tree: &'a ModuleTree,
    done: BTreeSet<String>,
    open: Vec<String>,
    selection: Selection,
    /// Patterns and modules, collected when first needed.
    aliases: Option<Vec<(String, String)>>,
}

impl Walk<'_> {
    /// The modules that a name or alias means; none if it is built in or unknown.
    fn resolve(&mut self, name: &str) -> Result<Vec<String>, ImageError> {
        let wanted = normalize(name);
        if self.tree.files.contains_key(&wanted) {
            return Ok(vec![wanted]);
        }
        if self.tree.builtin.contains(&wanted) {
            return Ok(Vec::new());
        }
        if self.aliases.is_none() {
            self.aliases = Some(match &self.tree.aliases {
                Some(aliases) => aliases.clone(),
                None => self.tree.scanned_aliases()?,
            });
        }
        // As kmod does, modules go before what is built in: a faster implementation is a module's.
        let alias = name.replace('-', "_");
        let fits = |(pattern, module): &&(String, String)| {
            matches(pattern, &alias) && self.tree.files.contains_key(module)
        };
        let found: BTreeSet<&String> = self
            .aliases
            .iter()
            .flatten()
            .filter(fits)
            .map(|(_, module)| module)
            .collect();
        Ok(found.into_iter().cloned().collect())
    }

    fn is_builtin(&self, name: &str) -> bool {
        let alias = name.replace('-', "_");
        self.tree.builtin.contains(&normalize(name))
            || self
                .tree
                .builtin_aliases
                .iter()
                .any(|(pattern, _)| matches(pattern, &alias))
    }

    fn visit(&mut self, name: &str) -> Result<(), ImageError> {
        if self.done.contains(name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            return Err(ImageError::ModuleLoop { name: name.into() });
        }
        let Some(path) = self.tree.files.get(name) else {
            return Err(ImageError::NoModule {
                name: name.into(),
                version: self.tree.version.clone(),
                nearest: Vec::new(),
            });
        };
        let (info, data) = modinfo::load(path)?;
        if info.version != self.tree.version {
            return Err(ImageError::ModuleMismatch {
                path: path.clone(),
                found: info.version,
                wanted: self.tree.version.clone(),
            });
        }
        self.open.push(name.into());
        let (before, after) = soft_dependencies(&info);
        self.soft(name, &before)?;
        for needed in self.hard(name, &info) {
            if !self.tree.builtin.contains(&needed) {
                self.visit(&needed)?;
            }
        }
        self.open.pop();
        self.done.insert(name.into());
        self.selection.modules.push(Selected {
            name: name.into(),
            path: path.clone(),
            data,
        });
        self.soft(name, &after)
    }

    fn hard(&self, name: &str, info: &ModInfo) -> Vec<String> {
        match self
            .tree
            .dependencies
            .as_ref()
            .and_then(|map| map.get(name))
        {
            Some(list) => list.iter().rev().cloned().collect(),
            None => info.depends.iter().map(|name| normalize(name)).collect(),
        }
    }

    /// Soft dependencies are inserted where they exist, as modprobe(8) does, and reported always.
    fn soft(&mut self, name: &str, wanted: &[String]) -> Result<(), ImageError> {
        for soft in wanted {
            let found = self.resolve(soft)?;
            let what = if !found.is_empty() {
                found.join(", ")
            } else if self.is_builtin(soft) {
                "already built in".into()
            } else {
                "not in this kernel".into()
            };
            let note = format!("Soft dependency {soft} of {name}: {what}");
            if !self.selection.notes.contains(&note) {
                self.selection.notes.push(note);
            }
            for module in found {
                // A soft loop is a wish that cannot be granted, not an error.
                if !self.open.contains(&module) {
                    self.visit(&module)?;
                }
            }
        }
        Ok(())
    }
}

/// `pre: a b post: c` as two lists.
fn soft_dependencies(info: &ModInfo) -> (Vec<String>, Vec<String>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for declaration in &info.soft {
        let mut list = None;
        for word in declaration.split_whitespace() {
            match word {
                "pre:" => list = Some(&mut before),
                "post:" => list = Some(&mut after),
                name => {
                    if let Some(list) = list.as_deref_mut() {
                        list.push(name.to_owned());
                    }
                }
            }
        }
    }
    (before, after)
}
