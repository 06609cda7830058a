//! `version`, `completions`, `man`: the program about itself, from the table that also parses.

use clap::{Args, CommandFactory, ValueEnum};
use serde::Serialize;

use super::{Cli, Common};
use crate::say;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Shells that completions are written for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The page of this verb; without one, of the program.
    verb: Option<String>,
}

/// What this build can do, in words that stay.
const FEATURES: [&str; 23] = [
    "acpi",
    "boot-bzimage",
    "boot-elf",
    "boot-linux64",
    "boot-pvh",
    "builtin-guest",
    "console-log",
    "events-restart",
    "firmware-descriptors",
    "host-kvm-hardware",
    "host-kvm-software-paging",
    "initrd-build",
    "iothreads",
    "irqchip-kernel",
    "irqchip-split",
    "nested",
    "pvpanic",
    "run-command",
    "serial-16550",
    "smp",
    "virtio-blk",
    "virtio-console",
    "virtio-rng",
];

/// The JSON form of `version`; fields are added, never renamed.
#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    features: &'static [&'static str],
    verbs: Vec<String>,
}

pub(super) fn version(common: &Common) -> u8 {
    let version = Version {
        name: "vsc-run",
        version: env!("CARGO_PKG_VERSION"),
        features: &FEATURES,
        verbs: Cli::command()
            .get_subcommands()
            .map(|verb| verb.get_name().to_owned())
            .collect(),
    };
    if common.json {
        say::out(&(serde_json::to_string_pretty(&version).unwrap_or_default() + "\n"));
    } else {
        let (features, verbs) = (version.features.join(" "), version.verbs.join(" "));
        say::out(&format!(
            "{} {}\nfeatures: {features}\nverbs: {verbs}\n",
            version.name, version.version
        ));
    }
    0
}

pub(super) fn completions(args: &CompletionsArgs, common: &Common) -> u8 {
    use clap_complete::shells;
    let mut command = Cli::command();
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    match args.shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, name, &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, name, &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, name, &mut script),
    }
    text("script", &script, common)
}

/// A text as the answer, or as a field of it.
fn text(name: &str, bytes: &[u8], common: &Common) -> u8 {
    let text = String::from_utf8_lossy(bytes);
    match common.json {
        true => say::out(&format!("{:#}\n", serde_json::json!({ name: text }))),
        false => say::out(&text),
    }
    0
}

pub(super) fn man(args: &ManArgs, common: &Common) -> u8 {
    let mut command = Cli::command();
    // Gives the verbs their full names and the options that all of them take.
    command.build();
    let page = match &args.verb {
        None => Some(command),
        Some(verb) => command.find_subcommand(verb).cloned().map(|found| {
            let name = format!("vsc-run-{verb}");
            found.name(name)
        }),
    };
    let Some(page) = page else {
        say::error(&format!(
            "there is no verb {}",
            args.verb.as_deref().unwrap_or_default()
        ));
        return crate::FAILED;
    };
    let mut bytes = Vec::new();
    if let Err(e) = clap_mangen::Man::new(page).render(&mut bytes) {
        say::error(&format!("cannot write the page: {e}"));
        return crate::FAILED;
    }
    text("page", &bytes, common)
}
