//! The choice: what is wanted, what fits, and what the others lack.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::machines::speaks_of;
use super::{Descriptor, Device, Feature, Interface, Mode, Selection};
use crate::diag::{Diagnostic, Span, shown};
use crate::facts::FileError;

/// How many of the near misses a message tells.
const TOLD: usize = 3;

/// What a firmware must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// QEMU's name of the architecture.
    pub arch: String,
    /// The machine: a concrete name (`pc-q35-8.2`), or an alias (`q35`, `pc`, `virt`). None: any of the architecture.
    pub machine: Option<String>,
    /// What it offers to the guest's system.
    pub interface: Interface,
    /// Features it must have.
    pub features: Vec<Feature>,
    /// Features it must not have.
    pub forbid: Vec<Feature>,
    /// Whether variables are lost when the machine ends; none: either.
    pub stateless: Option<bool>,
    /// The machine can have System Management Mode. Wanting a feature that encrypts the CPU's state rules it out, too.
    pub smm: bool,
    /// How the machine gets it; none: in any way.
    pub device: Option<Device>,
}

impl Default for Wanted {
    /// UEFI for this processor, whatever it can do.
    fn default() -> Self {
        Wanted {
            arch: match std::env::consts::ARCH {
                "x86" => "i386",
                other => other,
            }
            .into(),
            machine: None,
            interface: Interface::Uefi,
            features: Vec::new(),
            forbid: Vec::new(),
            stateless: None,
            smm: true,
            device: None,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} firmware for {}", self.interface, shown(&self.arch))?;
        if let Some(machine) = &self.machine {
            write!(f, ", machine {}", shown(machine))?;
        }
        for (word, list) in [("with", &self.features), ("without", &self.forbid)] {
            if !list.is_empty() {
                write!(f, ", {word} {}", and(list))?;
            }
        }
        match self.stateless {
            Some(true) => f.write_str(", stateless")?,
            Some(false) => f.write_str(", with a variable store")?,
            None => {}
        }
        if let Some(device) = self.device {
            write!(f, ", for {device}")?;
        }
        if !self.smm {
            f.write_str(", on a machine without SMM")?;
        }
        Ok(())
    }
}

/// Why a descriptor does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It has other interfaces.
    Interface {
        /// Those it has.
        has: Vec<Interface>,
        /// What was wanted.
        wanted: Interface,
    },
    /// It is for other architectures.
    Architecture {
        /// Those.
        has: Vec<String>,
        /// What was wanted.
        wanted: String,
    },
    /// It is for other machines of the architecture.
    Machine {
        /// The patterns.
        has: Vec<String>,
        /// What was wanted.
        wanted: String,
    },
    /// Wanted features that it lacks.
    Lacks(Vec<Feature>),
    /// Features that it has and must not have.
    Has(Vec<Feature>),
    /// It needs SMM, and the machine has none, or this feature rules SMM out.
    Smm(Option<Feature>),
    /// It needs a variable store that the monitor keeps, which was not asked for.
    Vars,
    /// It needs what this program does not know.
    Unknown(Feature),
    /// It keeps variables.
    Stateful(Mode),
    /// It keeps no variables.
    Stateless,
    /// It is for another device.
    Device {
        /// The one it is for.
        has: Device,
        /// What was wanted.
        wanted: Device,
    },
    /// An image is not on this host.
    Missing(PathBuf, FileError),
}

impl Reason {
    /// How far from the wanted this is. Firmware of another architecture is no near miss, whatever it can do.
    fn distance(&self) -> usize {
        match self {
            Reason::Architecture { .. } | Reason::Interface { .. } => 1000,
            Reason::Machine { .. } => 10,
            Reason::Lacks(list) | Reason::Has(list) => list.len(),
            _ => 1,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Interface { has, wanted } => write!(f, "offers {}, not {wanted}", and(has)),
            Reason::Architecture { has, wanted } => {
                write!(f, "is for {}, not {}", or_none(has), shown(wanted))
            }
            Reason::Machine { has, wanted } => {
                write!(f, "is for {}, not {}", or_none(has), shown(wanted))
            }
            Reason::Lacks(list) => write!(f, "lacks {}", and(list)),
            Reason::Has(list) => write!(f, "has {}", and(list)),
            Reason::Smm(None) => f.write_str("requires SMM (the machine has none)"),
            Reason::Smm(Some(by)) => write!(f, "requires SMM ({by} rules it out)"),
            Reason::Vars => f.write_str("needs a variable store of QEMU's own (qemu-vars)"),
            Reason::Unknown(feature) => {
                write!(f, "has {feature}, which this program does not know")
            }
            Reason::Stateful(mode) => write!(f, "is not stateless (mode {mode})"),
            Reason::Stateless => f.write_str("has no variable store"),
            Reason::Device { has, wanted } => write!(f, "is for {has}, not {wanted}"),
            Reason::Missing(path, error) => {
                write!(f, "names {}: {error}", shown(&path.to_string_lossy()))
            }
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A descriptor that does not fit, and all that is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The descriptor.
    pub file: PathBuf,
    /// What is in the way.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.file_name().unwrap_or(self.file.as_os_str());
        write!(
            f,
            "{} {}",
            shown(&name.to_string_lossy()),
            and(&self.reasons)
        )
    }
}

/// No descriptor fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {wanted}")]
pub struct NoMatch {
    /// What was wanted, in words.
    pub wanted: String,
    /// All descriptors, the nearest first.
    pub nearest: Vec<Miss>,
}

impl NoMatch {
    /// As a message about the place that wants it.
    pub fn diagnostic(&self, span: Span) -> Diagnostic {
        let message = format!("There is no {}", self.wanted);
        let diagnostic = Diagnostic::error("E-FIRMWARE", span, message);
        if self.nearest.is_empty() {
            return diagnostic
                .why("There are no firmware descriptors")
                .help("Install firmware, on Debian the package ovmf (x86_64) or qemu-efi-aarch64");
        }
        let told = self.nearest.iter().take(TOLD).map(Miss::to_string);
        let mut why = told.collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = self.nearest.len().checked_sub(TOLD) {
            why += &format!("; {more} more");
        }
        diagnostic
            .why(why)
            .help("`vsc-run firmware list` shows what this host has")
    }
}

/// The first descriptor that fits.
///
/// # Errors
/// None does; the near misses are told.
pub fn select(descriptors: &[Descriptor], wanted: &Wanted) -> Result<Selection, NoMatch> {
    let mut nearest = Vec::new();
    for descriptor in descriptors {
        let reasons = misses(descriptor, wanted);
        if reasons.is_empty() {
            return Ok(descriptor.into());
        }
        let file = descriptor.file.clone();
        nearest.push(Miss { file, reasons });
    }
    // Stable: of two that are as near the preferred one comes first.
    nearest.sort_by_key(|miss| miss.reasons.iter().map(Reason::distance).sum::<usize>());
    Err(NoMatch {
        wanted: wanted.to_string(),
        nearest,
    })
}

/// All descriptors that fit, the preferred one first.
pub fn matches(descriptors: &[Descriptor], wanted: &Wanted) -> Vec<Selection> {
    let fit = descriptors.iter().filter(|d| misses(d, wanted).is_empty());
    fit.map(Selection::from).collect()
}

/// What is in the way of a descriptor.
fn misses(descriptor: &Descriptor, wanted: &Wanted) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !descriptor.interfaces.contains(&wanted.interface) {
        reasons.push(Reason::Interface {
            has: descriptor.interfaces.clone(),
            wanted: wanted.interface.clone(),
        });
    }
    reasons.extend(target(descriptor, wanted));
    let lacks = wanted.features.iter().filter(|f| !descriptor.has(f));
    let lacks: Vec<_> = lacks.cloned().collect();
    if !lacks.is_empty() {
        reasons.push(Reason::Lacks(lacks));
    }
    let has = wanted.forbid.iter().filter(|f| descriptor.has(f));
    let has: Vec<_> = has.cloned().collect();
    if !has.is_empty() {
        reasons.push(Reason::Has(has));
    }
    reasons.extend(requirements(descriptor, wanted));
    let keeps = descriptor.mode.filter(|mode| *mode != Mode::Stateless);
    match (wanted.stateless, keeps) {
        (Some(true), Some(mode)) => reasons.push(Reason::Stateful(mode)),
        (Some(false), None) => reasons.push(Reason::Stateless),
        _ => {}
    }
    if let Some(device) = wanted.device
        && device != descriptor.device
    {
        reasons.push(Reason::Device {
            has: descriptor.device,
            wanted: device,
        });
    }
    let missing = descriptor.missing.iter().cloned();
    reasons.extend(missing.map(|(path, error)| Reason::Missing(path, error)));
    reasons
}

/// Whether the architecture or the machine is in the way.
fn target(descriptor: &Descriptor, wanted: &Wanted) -> Option<Reason> {
    let targets = descriptor.targets.iter();
    let ours: Vec<_> = targets.filter(|t| t.architecture == wanted.arch).collect();
    if ours.is_empty() {
        let architectures = descriptor.targets.iter().map(|t| t.architecture.clone());
        return Some(Reason::Architecture {
            has: architectures.collect(),
            wanted: wanted.arch.clone(),
        });
    }
    let machine = wanted.machine.as_ref()?;
    let patterns = || ours.iter().flat_map(|t| &t.machines);
    let fits = patterns().any(|pattern| speaks_of(pattern, machine));
    (!fits).then(|| Reason::Machine {
        has: patterns().cloned().collect(),
        wanted: machine.clone(),
    })
}

/// Features that are demands on the machine, and are not met. One that is forbidden was told already.
fn requirements(descriptor: &Descriptor, wanted: &Wanted) -> Vec<Reason> {
    // Entering SMM saves and sets registers, which such a guest hides from its host (Linux, arch/x86/kvm:
    // svm_has_emulated_msr and tdx_has_emulated_msr refuse MSR_IA32_SMBASE, and with it KVM_CAP_X86_SMM).
    let hidden = [Feature::AmdSevEs, Feature::AmdSevSnp, Feature::IntelTdx];
    let hides = wanted.features.iter().find(|f| hidden.contains(f));
    let demands = descriptor
        .features
        .iter()
        .filter(|f| !wanted.forbid.contains(f));
    demands
        .filter_map(|feature| match feature {
            Feature::RequiresSmm if hides.is_some() => Some(Reason::Smm(hides.cloned())),
            Feature::RequiresSmm if !wanted.smm => Some(Reason::Smm(None)),
            Feature::QemuVars if !wanted.features.contains(feature) => Some(Reason::Vars),
            Feature::Other(word)
                if word.starts_with("requires-") && !wanted.features.contains(feature) =>
            {
                Some(Reason::Unknown(feature.clone()))
            }
            _ => None,
        })
        .collect()
}

/// `a`, `a and b`, `a, b and c`.
fn and<T: fmt::Display>(list: &[T]) -> String {
    let words: Vec<_> = list.iter().map(T::to_string).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "nothing".into(),
    }
}

/// Words of a file, escaped.
fn or_none(list: &[String]) -> String {
    let words: Vec<_> = list.iter().map(|word| shown(word)).collect();
    and(&words)
}
