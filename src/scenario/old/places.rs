//! Directories and files that a settings file names, looked for on the host.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Spanned, shown};
use crate::facts::{Facts, FileError, FileKind};

/// Something that should be on the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// The old key that names it.
    pub(crate) key: &'static str,
    pub(crate) path: Spanned<PathBuf>,
    pub(crate) want: Want,
}

/// What it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A directory that is made when it is first needed, in one that is there.
    Parent,
}

/// Warns about each place that is not there.
pub(crate) fn check(places: &[Place], facts: &dyn Facts) -> Vec<Diagnostic> {
    places
        .iter()
        .filter_map(|place| missing(place, facts))
        .collect()
}

fn missing(place: &Place, facts: &dyn Facts) -> Option<Diagnostic> {
    let path = &place.path.value;
    let warn = |message: String| Diagnostic::warning("W-PATH", place.path.span, message);
    let found = facts.file(path).map(|info| info.kind);
    let name = shown(&path.display().to_string());
    match (place.want, found) {
        (Want::Directory | Want::Parent, Ok(FileKind::Directory)) => None,
        (Want::Directory | Want::Parent, Ok(_)) => Some(
            warn(format!("{name} is not a directory"))
                .help(format!("`{}` names a directory", place.key)),
        ),
        (Want::File, Ok(FileKind::Directory)) => Some(
            warn(format!("{name} is a directory")).help(format!("`{}` names a file", place.key)),
        ),
        (Want::File, Ok(_)) => None,
        (want, Err(FileError::Missing)) => {
            let (there, lost) = nearest(path, facts);
            if want == Want::Parent && lost.as_deref() == Some(path.as_path()) {
                return None;
            }
            let what = match want {
                Want::File => "file",
                Want::Directory | Want::Parent => "directory",
            };
            let mut d = warn(format!("{name}: this {what} does not exist"));
            if let Some(lost) = lost
                && lost != *path
            {
                d = d.label(format!(
                    "{} is not there, {} is",
                    shown(&lost.display().to_string()),
                    shown(&there.display().to_string())
                ));
            }
            Some(d.help(match want {
                Want::File => "Correct the name, or leave the key out for the default".into(),
                Want::Directory | Want::Parent => {
                    format!("Correct the name, or make it: mkdir -p {name}")
                }
            }))
        }
        // It is there, and what is wrong with it shows where it is used.
        (_, Err(_)) => None,
    }
}

/// The longest part of a path that is there, and the first that is not.
fn nearest(path: &Path, facts: &dyn Facts) -> (PathBuf, Option<PathBuf>) {
    let mut lost = None;
    for part in path.ancestors() {
        if part.as_os_str().is_empty() {
            return (PathBuf::from("."), lost);
        }
        if facts.file(part).is_ok() {
            return (part.to_owned(), lost);
        }
        lost = Some(part.to_owned());
    }
    (PathBuf::from("/"), lost)
}
