//! The passphrases that a run needs: read once, before anything else of it starts, and handed to the monitor in files
//! without a name.

#![forbid(unsafe_code)]

use std::sync::Arc;

use vsc::compile::Plan;
use vsc::diag::{Diagnostic, Diagnostics, Origin, Span, shown};
use vsc::images::{ImageError, Secret, SecretSource};

use super::Common;
use super::run::report;
use crate::run::DiskSecret;
use crate::{run, say};

/// Reads the passphrases of a plan; the images that are to be made get theirs. An error has been said, and is its
/// sentence here.
pub(super) fn read(plan: &mut Plan, common: &Common) -> Result<Vec<DiskSecret>, String> {
    let mut known: Vec<(SecretSource, Secret)> = Vec::new();
    let mut out = Vec::new();
    for wanted in std::mem::take(&mut plan.run.secrets) {
        // A descriptor can be read once, and several disks may have one passphrase.
        let secret = match known.iter().find(|(from, _)| *from == wanted.from) {
            Some((_, secret)) => secret.clone(),
            None => {
                let mut notes = Vec::new();
                let secret = wanted
                    .from
                    .read(&mut notes)
                    .map_err(|e| refused(e, plan, wanted.disk, common))?;
                for note in notes {
                    say::warning(&note);
                }
                known.push((wanted.from.clone(), secret.clone()));
                secret
            }
        };
        for image in plan.images.iter_mut().filter(|i| i.disk == wanted.disk) {
            image.spec.secret = Some(SecretSource::Given(secret.clone()));
        }
        let handed = secret
            .hand_over()
            .map_err(|e| refused(e, plan, wanted.disk, common))?;
        let place = match plan.parsed().sources.origin(place(plan, wanted.disk)) {
            Origin::File { file, line, column } => format!("{}:{line}:{column}", shown(&file)),
            other => other.to_string(),
        };
        out.push(DiskSecret {
            end: wanted.end,
            handed,
            place,
        });
    }
    Ok(out)
}

/// Where it is written from where a disk has its passphrase, or that it is encrypted.
fn place(plan: &Plan, disk: usize) -> Span {
    let parsed = plan.parsed();
    let keys = [
        "secret.file",
        "secret.fd",
        "secret.credential",
        "secret.env",
        "secret_file",
    ];
    let written = keys
        .map(|key| format!("disks[{disk}].{key}"))
        .into_iter()
        .find(|key| parsed.is_written(key));
    let key = written.unwrap_or_else(|| format!("disks[{disk}].encryption"));
    parsed.span_of(&key)
}

/// Says at the disk's place why there is no passphrase; gives the sentence back.
fn refused(error: ImageError, plan: &Plan, disk: usize, common: &Common) -> String {
    let sentence = format!("disks[{disk}]: {}", run::chain(&error));
    let mut d = Diagnostic::error("E-SECRET", place(plan, disk), sentence.clone());
    d.help = error.help();
    report(
        &Diagnostics::new(vec![d], Arc::clone(&plan.parsed().sources)),
        common,
    );
    sentence
}
