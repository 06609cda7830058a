//! Images that the first run makes.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::diag::{Diagnostic, Severity};
use crate::domain::Domain;
use crate::facts::{Facts, FileError};
use crate::images::{
    self, CompressionType, Encryption, ImageFormat, ImageSpec, Preallocation, SecretSource,
};
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
    pub path: std::path::PathBuf,
    /// Its size, bytes.
    pub size: u64,
    /// Its format.
    pub format: String,
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
        let word = |key: &str| value.get(key).and_then(Value::as_str);
        let number = |key: &str| value.get(key).and_then(Value::as_u64);
        let (Some(path), Some(size), Some(format)) = (word("path"), number("size"), word("format"))
        else {
            continue;
        };
        let here = |key: &str| format!("disks[{disk}].{key}");
        let Some(image_format) = ImageFormat::parse(format) else {
            let d = Diagnostic::error(
                "E-DISK-OPTION",
                parsed.span_of(&here("format")),
                format!("This program makes raw and qcow2 images, not {format}"),
            );
            problems.push(d.help("Make it with qemu-img and leave `size` out"));
            continue;
        };
        let spec = ImageSpec {
            preallocation: word("preallocation")
                .and_then(Preallocation::parse)
                .unwrap_or(Preallocation::Off),
            cluster_size: number("cluster_size"),
            lazy_refcounts: value.get("lazy_refcounts").and_then(Value::as_bool),
            compression_type: word("compression_type").and_then(CompressionType::parse),
            encryption: word("encryption")
                .and_then(Encryption::parse)
                .unwrap_or(Encryption::None),
            secret: word("secret_file").map(|file| SecretSource::File(file.into())),
            ..ImageSpec::new(path, image_format, size)
        };
        for remark in images::check(&spec) {
            // A passphrase can be asked for when the image is made.
            if remark.key == "secret" || remark.key == "secret_file" {
                continue;
            }
            let span = parsed.span_of(&here(remark.key));
            let d = match remark.severity {
                Severity::Error => Diagnostic::error(remark.code, span, remark.message),
                Severity::Warning => Diagnostic::warning(remark.code, span, remark.message),
            };
            problems.push(d.help(remark.help));
        }
        if facts.file(Path::new(path)) == Err(FileError::Missing) {
            out.push(Making {
                disk,
                path: path.into(),
                size,
                format: format.to_owned(),
                spec,
            });
        }
    }
    out
}
