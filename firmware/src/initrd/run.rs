//! Initrds for one command: `vsc-run -- uname -r`, and the part that is appended to a user's own initrd.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::assemble::Assembly;
use super::copy::{copy_tree, inside_path};
use super::modules::{ModuleTree, Selection};
use crate::init::Spec;

/// The drivers of the devices that this monitor offers, as module names.
pub const VIRTIO_MODULES: [&str; 4] = ["virtio_mmio", "virtio_console", "virtio_blk", "virtio_rng"];

/// One command of this host for an initrd.
#[derive(Debug, Default)]
pub struct RunRequest<'a> {
    /// What our init is told. `argv[0]` is looked for on this host; `modules` is filled here.
    pub spec: Spec,
    /// The directories to look for programs in, as in `PATH`.
    pub search: OsString,
    /// The kernel's modules, if it has any.
    pub modules: Option<&'a ModuleTree>,
    /// Modules beyond [`VIRTIO_MODULES`]; unknown ones are an error.
    pub extra_modules: Vec<String>,
    /// Further files and directories, to the same paths.
    pub copy: Vec<PathBuf>,
}

/// What is appended to a user's own initrd.
#[derive(Debug, Default)]
pub struct Overlay<'a> {
    /// What our init is told; `modules` is filled here. The kernel must be told `rdinit=/vsc/init`.
    pub spec: Spec,
    /// The kernel's modules, if it has any.
    pub modules: Option<&'a ModuleTree>,
    /// Modules beyond [`VIRTIO_MODULES`]; unknown ones are an error.
    pub extra_modules: Vec<String>,
}

/// An uncompressed initrd with our init, the command and all that it needs.
///
/// # Errors
/// The command or something that it needs cannot be found or read.
pub fn run_initrd(request: &RunRequest<'_>) -> Result<Vec<u8>, ImageError> {
    let mut assembly = Assembly::new(&request.search);
    assembly.skeleton()?;
    let mut spec = request.spec.clone();
    let command = spec.argv.first().ok_or(ImageError::NoCommand)?;
    let command = String::from_utf8_lossy(command).into_owned();
    let program = assembly.finder.program(&command)?;
    assembly.program(&program)?;
    // Found here, found there: the guest need not search, nor have the same PATH or working directory.
    spec.argv[0] = program.as_os_str().as_bytes().to_vec();
    for path in &request.copy {
        let path = std::path::absolute(path).map_err(|source| ImageError::Read {
            path: path.clone(),
            source,
        })?;
        copy_tree(&mut assembly.archive, &path, &mut assembly.report)?;
    }
    if spec.cwd.starts_with(b"/") {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&spec.cwd));
        let inside = inside_path(&assembly.archive, &path);
        assembly.archive.directory(&inside, 0o755)?;
    }
    insert_modules(
        &mut assembly,
        &mut spec,
        request.modules,
        &request.extra_modules,
    )?;
    assembly.finish(&spec)?;
    assembly.archive.link("/init", "vsc/init")?;
    assembly.archive.write()
}

/// An uncompressed archive with our init, its specification and modules only. Linux unpacks it after, and over, the
/// user's own (compressed or not) initrd that comes before it; see [`super::newc::concatenate`].
///
/// # Errors
/// A module cannot be found or read.
pub fn overlay_segment(overlay: &Overlay<'_>) -> Result<Vec<u8>, ImageError> {
    let mut assembly = Assembly::new("".as_ref());
    let mut spec = overlay.spec.clone();
    insert_modules(
        &mut assembly,
        &mut spec,
        overlay.modules,
        &overlay.extra_modules,
    )?;
    assembly.init(&spec)?;
    assembly.archive.write()
}

fn insert_modules(
    assembly: &mut Assembly,
    spec: &mut Spec,
    tree: Option<&ModuleTree>,
    extra: &[String],
) -> Result<(), ImageError> {
    let Some(tree) = tree else { return Ok(()) };
    let selection = select(tree, extra)?;
    spec.modules = assembly.modules(&selection, |path| {
        Path::new("/vsc/modules").join(path.file_name().unwrap_or_default())
    })?;
    Ok(())
}

/// Our devices' drivers, as far as this kernel has them as modules, and the extra ones.
pub(super) fn select(tree: &ModuleTree, extra: &[String]) -> Result<Selection, ImageError> {
    let ours = VIRTIO_MODULES
        .into_iter()
        .filter(|name| tree.contains(name));
    tree.select(ours.chain(extra.iter().map(String::as_str)))
}
