//! `vsc-run firmware`: the firmware of this host, and which one a machine would get.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use vsc::descriptors::{
    Catalogue, Descriptor, Device, Feature, Interface, Reason, Selection, Skipped, Wanted, Why,
    matches, select,
};
use vsc::diag::{Diagnostic, Diagnostics, Sources, Span, shown};
use vsc::facts::{LiveFacts, Root, Variables};

use super::Common;
use super::run::report;
use crate::say;

/// Arguments of `firmware`.
#[derive(Debug, Args)]
pub(super) struct FirmwareArgs {
    #[command(subcommand)]
    what: What,
    /// Reads the descriptors in this directory instead of QEMU's three.
    #[arg(long, value_name = "DIR", global = true)]
    descriptors: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prints the executable of the first firmware that fits.
    Select(SelectArgs),
    /// Lists all descriptors, those that have no say included.
    List,
}

/// Arguments of `firmware select`.
#[derive(Debug, Args)]
struct SelectArgs {
    /// QEMU's name of the architecture (default: this processor's).
    #[arg(short, long, value_name = "ARCH")]
    arch: Option<String>,
    /// The machine: a concrete name such as pc-q35-8.2, or q35, pc, virt (default: any).
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// A feature that it must have, such as secure-boot or amd-sev; repeatable.
    #[arg(short, long = "feature", value_name = "FEATURE")]
    features: Vec<String>,
    /// A feature that it must not have; repeatable.
    #[arg(long, value_name = "FEATURE")]
    without: Vec<String>,
    /// What it offers to the guest: uefi, bios, openfirmware or uboot.
    #[arg(short, long, value_name = "INTERFACE", default_value = "uefi")]
    interface: String,
    /// How the machine gets it (default: in any way).
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Device::KNOWN))]
    device: Option<String>,
    /// It must keep no variables.
    #[arg(long)]
    stateless: bool,
    /// The machine has no System Management Mode.
    #[arg(long)]
    no_smm: bool,
    /// Prints all that fit, the preferred one first.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &FirmwareArgs, common: &Common) -> u8 {
    // Below another root, too, paths are as that host names them.
    let directory = args.descriptors.as_deref().map(std::path::absolute);
    let directory = match directory.transpose() {
        Ok(directory) => directory,
        Err(e) => {
            say::error(&format!("--descriptors: {e}"));
            return crate::FAILED;
        }
    };
    let facts = LiveFacts::new(Root(common.host_root.clone()), Variables::of_process());
    let catalogue = Catalogue::read(&facts, directory.as_deref());
    if let Some(directory) = directory
        && let Some(skipped) = catalogue.skipped.iter().find(|s| s.file == directory)
    {
        let Skipped { file, why } = skipped;
        let file = shown(&file.to_string_lossy());
        say::error(&format!("--descriptors {file}: {why}"));
        return crate::FAILED;
    }
    match &args.what {
        What::Select(args) => choose(args, &catalogue, common),
        What::List => list(&catalogue, common),
    }
}

fn choose(args: &SelectArgs, catalogue: &Catalogue, common: &Common) -> u8 {
    let tell = |list| {
        report(
            &Diagnostics::new(list, Arc::new(Sources::default())),
            common,
        )
    };
    tell(catalogue.warnings());
    let wanted = match wanted(args, &catalogue.descriptors) {
        Ok(wanted) => wanted,
        Err(mistake) => {
            tell(vec![*mistake]);
            return crate::FAILED;
        }
    };
    match select(&catalogue.descriptors, &wanted) {
        Ok(first) => {
            let selected = match args.all {
                true => matches(&catalogue.descriptors, &wanted),
                false => vec![first],
            };
            if common.json {
                let told = match &*selected {
                    [one] if !args.all => json!(one),
                    all => json!(all),
                };
                say::out(&format!("{told:#}\n"));
            } else {
                let lines = selected
                    .iter()
                    .map(|s| format!("{}\n", s.executable.display()));
                say::out(&lines.collect::<String>());
            }
            0
        }
        Err(none) => {
            let nearest = json!(none.nearest);
            tell(vec![none.diagnostic(Span::NONE)]);
            if common.json {
                let error = say::first_error();
                let told = json!({ "executable": null, "nearest": nearest, "error": error });
                say::out(&format!("{told:#}\n"));
            }
            crate::FAILED
        }
    }
}

/// What the arguments ask for. A word that neither the specification nor any descriptor here has is a mistake.
fn wanted(args: &SelectArgs, descriptors: &[Descriptor]) -> Result<Wanted, Box<Diagnostic>> {
    let features = |option: &str, words: &[String]| {
        let features = words.iter().map(|word| {
            let feature = Feature::from(&**word);
            let known = !matches!(feature, Feature::Other(_))
                || descriptors.iter().any(|d| d.has(&feature));
            known
                .then_some(feature)
                .ok_or_else(|| unknown(option, word, Feature::KNOWN))
        });
        features.collect::<Result<Vec<_>, _>>()
    };
    let interface = Interface::from(&*args.interface);
    if matches!(interface, Interface::Other(_))
        && !descriptors
            .iter()
            .any(|d| d.interfaces.contains(&interface))
    {
        return Err(unknown("--interface", &args.interface, Interface::KNOWN));
    }
    let default = Wanted::default();
    Ok(Wanted {
        arch: args.arch.clone().unwrap_or(default.arch),
        machine: args.machine.clone(),
        interface,
        features: features("--feature", &args.features)?,
        forbid: features("--without", &args.without)?,
        stateless: args.stateless.then_some(true),
        smm: !args.no_smm,
        device: args.device.as_deref().and_then(Device::from_word),
    })
}

fn unknown(option: &str, word: &str, known: &[&str]) -> Box<Diagnostic> {
    let message = format!(
        "{option} {}: neither QEMU's specification nor a descriptor here has this word",
        shown(word)
    );
    let d = Diagnostic::error("E-FIRMWARE", Span::NONE, message);
    Box::new(d.help(format!("Known are {}", known.join(", "))))
}

/// A line of the list.
enum Line<'a> {
    Counts(&'a Descriptor),
    Skipped(&'a Skipped),
}

impl Line<'_> {
    fn file(&self) -> &Path {
        match self {
            Line::Counts(descriptor) => &descriptor.file,
            Line::Skipped(skipped) => &skipped.file,
        }
    }

    /// A word that stays, and why.
    fn status(&self) -> (&'static str, Option<String>) {
        match self {
            Line::Counts(descriptor) => {
                let missing = descriptor.missing.iter().cloned();
                let missing: Vec<_> = missing
                    .map(|(path, error)| Reason::Missing(path, error).to_string())
                    .collect();
                match missing.is_empty() {
                    true => ("usable", None),
                    false => ("unusable", Some(missing.join(", "))),
                }
            }
            Line::Skipped(skipped) => {
                let word = match skipped.why {
                    Why::Masked { .. } => "masked",
                    Why::Mask => "mask",
                    Why::Ignored(_) => "ignored",
                    Why::Unreadable(_) | Why::Invalid(_) => "skipped",
                };
                (word, Some(skipped.why.to_string()))
            }
        }
    }

    fn json(&self) -> Value {
        let mut told = match self {
            Line::Counts(descriptor) => {
                let mut told = json!(Selection::from(*descriptor));
                told["interfaces"] = json!(descriptor.interfaces);
                told["targets"] = json!(descriptor.targets);
                told
            }
            Line::Skipped(skipped) => json!({ "file": skipped.file }),
        };
        let (status, why) = self.status();
        told["status"] = json!(status);
        told["why"] = json!(why);
        told
    }

    fn cells(&self) -> [String; 7] {
        let path = |path: &Path| shown(&path.to_string_lossy());
        let status = match self.status() {
            (word, None) => word.to_owned(),
            (word, Some(why)) if why.starts_with(word) => why,
            (word, Some(why)) => format!("{word}: {why}"),
        };
        let nothing = || "-".to_owned();
        let join = |mut words: Vec<String>| {
            words.dedup();
            match words.is_empty() {
                true => nothing(),
                false => shown(&words.join(",")),
            }
        };
        let Line::Counts(d) = self else {
            let [a, b, c, d, e] = std::array::from_fn(|_| nothing());
            return [path(self.file()), a, b, c, d, e, status];
        };
        let template = d.nvram_template.as_ref();
        let mut machines: Vec<String> = d.targets.iter().flat_map(|t| t.machines.clone()).collect();
        machines.sort();
        [
            path(&d.file),
            path(&d.executable.path),
            template.map_or_else(nothing, |image| path(&image.path)),
            join(d.targets.iter().map(|t| t.architecture.clone()).collect()),
            join(machines),
            join(d.features.iter().map(ToString::to_string).collect()),
            status,
        ]
    }
}

const HEADER: [&str; 7] = [
    "FILE",
    "EXECUTABLE",
    "NVRAM TEMPLATE",
    "ARCHITECTURES",
    "MACHINES",
    "FEATURES",
    "STATUS",
];

fn list(catalogue: &Catalogue, common: &Common) -> u8 {
    let counts = catalogue.descriptors.iter().map(Line::Counts);
    let mut lines: Vec<_> = counts
        .chain(catalogue.skipped.iter().map(Line::Skipped))
        .collect();
    // Stable: of one name the file that counts comes first.
    lines.sort_by(|a, b| a.file().file_name().cmp(&b.file().file_name()));
    if common.json {
        let told: Vec<_> = lines.iter().map(Line::json).collect();
        say::out(&format!("{:#}\n", Value::from(told)));
        return 0;
    }
    let rows = std::iter::once(HEADER.map(str::to_owned)).chain(lines.iter().map(Line::cells));
    let rows: Vec<_> = rows.collect();
    let widths: [usize; 7] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    say::out(&text);
    0
}
