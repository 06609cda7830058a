//! Firmware by what it can do: QEMU's descriptor files and the choice among them.
//!
//! The rules are those of QEMU's docs/interop/firmware.json. Descriptors lie in three directories, from general to
//! specific: `/usr/share/qemu/firmware`, `/etc/qemu/firmware`, `$XDG_CONFIG_HOME/qemu/firmware` (not for root, as with
//! libvirt). Of files with the same name the most specific one counts; an empty one, or a link to /dev/null, masks the
//! others. The first by file name that has all that is wanted is taken.
//!
//! Measured against libvirt 9.0, which decides alike but for three things: it does not take a link to /dev/null for a
//! mask, it reads files whatever their name ends in, and where the first that fits requires SMM and the machine has it
//! turned off, it fails, and we take the next.
//!
//! [`Catalogue::read`] reads them through [`Facts`], which is the only thing here that touches the host; [`select`] is
//! a pure function over what was read, and explains when nothing fits.

#![forbid(unsafe_code)]

mod files;
mod machines;
mod parse;
mod select;
mod words;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Span, shown};
use crate::facts::{Facts, FileError};

pub use files::{DescriptorFile, Found, Ignored, MAX_BYTES, SYSTEM_DIRECTORIES, read_directories};
pub use parse::Invalid;
pub use select::{Miss, NoMatch, Reason, Wanted, matches, select};
pub use words::{Device, Feature, Format, Interface, Mode};

/// A firmware image as a descriptor names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Absolute path on the host.
    #[serde(rename = "filename")]
    pub path: PathBuf,
    /// Its format; raw where the descriptor has no word for it.
    pub format: Format,
}

/// An architecture, and the machines of it that can run a firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// QEMU's name of the architecture, such as `x86_64`.
    pub architecture: String,
    /// Patterns over concrete machine names, such as `pc-q35-*`.
    pub machines: Vec<String>,
}

/// One descriptor, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The file that says it.
    pub file: PathBuf,
    /// Interfaces to the guest's system, the most native one first.
    pub interfaces: Vec<Interface>,
    /// How the machine gets the executable.
    pub device: Device,
    /// Where variables are kept; only flash has a mode.
    pub mode: Option<Mode>,
    /// The firmware.
    pub executable: Image,
    /// What a machine's variable store starts as; only mode split has one. It is copied, never mapped.
    pub nvram_template: Option<Image>,
    /// What can run it.
    pub targets: Vec<Target>,
    /// What it can do, and what it needs.
    pub features: Vec<Feature>,
    /// Images that this host has not, and why.
    pub missing: Vec<(PathBuf, FileError)>,
}

impl Descriptor {
    /// Whether the descriptor names a feature.
    pub fn has(&self, feature: &Feature) -> bool {
        self.features.contains(feature)
    }
}

/// The firmware that was selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// The descriptor.
    pub file: PathBuf,
    /// The firmware.
    pub executable: PathBuf,
    /// Format of the executable.
    pub format: Format,
    /// What the machine's own variable store is a copy of.
    pub nvram_template: Option<Image>,
    /// How the machine gets the executable.
    pub device: Device,
    /// Where variables are kept; only flash has a mode. With [`Mode::Combined`] the executable is copied for each
    /// machine, and the copy is written.
    pub mode: Option<Mode>,
    /// All that the descriptor claims.
    pub features: Vec<Feature>,
    /// The machine must have System Management Mode.
    pub requires_smm: bool,
}

impl From<&Descriptor> for Selection {
    fn from(descriptor: &Descriptor) -> Self {
        Selection {
            file: descriptor.file.clone(),
            executable: descriptor.executable.path.clone(),
            format: descriptor.executable.format,
            nvram_template: descriptor.nvram_template.clone(),
            device: descriptor.device,
            mode: descriptor.mode,
            features: descriptor.features.clone(),
            requires_smm: descriptor.has(&Feature::RequiresSmm),
        }
    }
}

/// A file that has no say, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file, or the directory that cannot be read.
    pub file: PathBuf,
    /// Why.
    pub why: Why,
}

/// Why a file has no say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// A file of the same name in a more specific directory counts.
    #[error("masked by {}", shown(&.by.to_string_lossy()))]
    Masked {
        /// That file.
        by: PathBuf,
    },
    /// It is there to mask others.
    #[error("empty: masks files of this name")]
    Mask,
    /// By its name or kind it is no descriptor.
    #[error("{0}")]
    Ignored(Ignored),
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(FileError),
    /// It is no descriptor by its text.
    #[error("{0}")]
    Invalid(Invalid),
}

impl Why {
    /// Somebody must have meant something else: this is worth a warning.
    pub fn is_mistake(&self) -> bool {
        matches!(self, Why::Unreadable(_) | Why::Invalid(_))
    }
}

/// All descriptors of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Those that count, in the order of preference.
    pub descriptors: Vec<Descriptor>,
    /// The other files, by name.
    pub skipped: Vec<Skipped>,
}

impl Catalogue {
    /// Reads the descriptors of a host, or those of `directory` instead, and looks for the images they name.
    pub fn read(facts: &dyn Facts, directory: Option<&Path>) -> Self {
        let mut catalogue = Catalogue::default();
        for DescriptorFile { path, found } in facts.firmware(directory) {
            let why = match found {
                Found::Text(text) => match parse::descriptor(&path, &text) {
                    Ok(mut descriptor) => {
                        let images = [
                            Some(&descriptor.executable),
                            descriptor.nvram_template.as_ref(),
                        ];
                        let missing = images.into_iter().flatten().filter_map(|image| {
                            let error = facts.firmware_image(&image.path).err()?;
                            Some((image.path.clone(), error))
                        });
                        descriptor.missing = missing.collect();
                        catalogue.descriptors.push(descriptor);
                        continue;
                    }
                    Err(invalid) => Why::Invalid(invalid),
                },
                Found::TooLarge => Why::Invalid(Invalid::TooLarge),
                Found::NotText => Why::Invalid(Invalid::NotText),
                Found::Unreadable(error) => Why::Unreadable(error),
                Found::Empty => Why::Mask,
                Found::Masked { by } => Why::Masked { by },
                Found::Ignored(reason) => Why::Ignored(reason),
            };
            catalogue.skipped.push(Skipped { file: path, why });
        }
        catalogue
    }

    /// A warning for each file that looks like a mistake.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        let mistakes = self
            .skipped
            .iter()
            .filter(|skipped| skipped.why.is_mistake());
        mistakes
            .map(|Skipped { file, why }| {
                let file = shown(&file.to_string_lossy());
                let message = if file.ends_with(".json") {
                    format!("The firmware descriptor {file} is skipped: {why}")
                } else {
                    format!("The firmware descriptors in {file} cannot be read: {why}")
                };
                Diagnostic::warning("W-FIRMWARE", Span::NONE, message)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
