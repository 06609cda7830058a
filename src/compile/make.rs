//! Images that the first run makes.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Serialize;

use crate::diag::{Diagnostic, Severity};
use crate::domain::Domain;
use crate::facts::{Facts, FileError};
use crate::images::{self, ImageFormat, ImageSpec};
use crate::scenario::Parsed;

use super::Problems;

/// An image to make.
#[derive(Debug, Clone, Serialize)]
pub struct Making {
    /// The disk's place in `disks`.
    pub disk: usize,
    /// What to make.
    #[serde(skip)]
    pub spec: ImageSpec,
    /// The image.
    pub path: PathBuf,
    /// Its size, bytes.
    pub size: u64,
    /// Its format.
    pub format: ImageFormat,
}

/// The images of disks that have a size and are not there yet.
pub(super) fn plan(
    parsed: &Parsed,
    domain: &Domain,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> Vec<Making> {
    let mut out = Vec::new();
    for (disk, value) in domain.list("disks").iter().enumerate() {
        let here = |key: &str| format!("disks[{disk}].{key}");
        let spec = match ImageSpec::of_disk(value) {
            Ok(Some(spec)) => spec,
            Ok(None) => continue,
            Err(remark) => {
                let d = Diagnostic::error(
                    remark.code,
                    parsed.span_of(&here(remark.key)),
                    remark.message,
                );
                problems.push(d.help(remark.help));
                continue;
            }
        };
        for remark in images::check(&spec) {
            // What raw images lack has been said; a passphrase can be asked for when the image is made.
            let said = spec.format == ImageFormat::Raw
                && !matches!(remark.key, "size" | "path" | "secret_file");
            if said || remark.key == "secret" || remark.key == "secret_file" {
                continue;
            }
            let span = parsed.span_of(&here(remark.key));
            let d = match remark.severity {
                Severity::Error => Diagnostic::error(remark.code, span, remark.message),
                Severity::Warning => Diagnostic::warning(remark.code, span, remark.message),
            };
            problems.push(d.help(remark.help));
        }
        if facts.file(&spec.path) == Err(FileError::Missing) {
            out.push(Making {
                disk,
                path: spec.path.clone(),
                size: spec.size,
                format: spec.format,
                spec,
            });
        }
    }
    out
}
