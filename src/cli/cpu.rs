//! `vsc-run cpu`: CPU features of the host, of a guest, and how they differ.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use vsc::facts::Root;
use vsc::scenario::Layer;
use vsc_vmm::kvm::{Host, HostKind, Leaf, leaves};

use super::Common;
use super::run::{KeyArgs, Source, compile};
use crate::{run, say};

mod flags;

/// Longest file that is read for its flags; /proc/cpuinfo of 8192 processors is shorter.
const FILE_MAX: u64 = 64 << 20;

/// Arguments of `cpu`.
#[derive(Debug, Args)]
pub(super) struct CpuArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prints one CPU's flags by their names in /proc/cpuinfo; with --json also the CPUID leaves, for a later diff.
    Show(ShowArgs),
    /// Prints which flags the second CPU has and the first has not, and the other way round.
    Diff(DiffArgs),
}

/// Arguments of `cpu show`.
#[derive(Debug, Args)]
struct ShowArgs {
    /// host (this processor), guest (what a machine shows), max (all that KVM can show), or a FILE: JSON of `cpu
    /// show`, or a copy of /proc/cpuinfo.
    #[arg(long, value_name = "WHICH", default_value = "host")]
    a: String,
    /// The scenario whose guest is meant.
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// The scenario whose guest is meant, and the keys on the command line.
struct Guest<'a> {
    scenario: Option<&'a Path>,
    layers: Vec<Layer>,
}

impl Guest<'_> {
    fn is_meant(&self) -> bool {
        self.scenario.is_some() || !self.layers.is_empty()
    }
}

/// Arguments of `cpu diff`.
#[derive(Debug, Args)]
struct DiffArgs {
    /// The first: host, guest, max, or a FILE.
    #[arg(long, value_name = "WHICH", default_value = "host")]
    a: String,
    /// The second: host, guest, max, or a FILE.
    #[arg(long, value_name = "WHICH", default_value = "guest")]
    b: String,
    /// The scenario whose guest is meant.
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// A CPU's features; also the form of `--json`, whose fields are added, never renamed.
#[derive(Debug, Serialize, Deserialize)]
struct Features {
    /// What was asked for.
    cpu: String,
    /// What to know about it.
    #[serde(default)]
    note: Option<String>,
    /// Names as in /proc/cpuinfo.
    flags: Vec<String>,
    /// What they were made of.
    #[serde(default)]
    leaves: Vec<Leaf>,
}

/// The difference in JSON.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    a: &'a str,
    b: &'a str,
    /// In b, not in a.
    added: Vec<&'a str>,
    /// In a, not in b.
    removed: Vec<&'a str>,
    notes: Vec<&'a str>,
}

pub(super) fn run(args: &CpuArgs, common: &Common) -> u8 {
    let answer = match &args.what {
        What::Show(ShowArgs { a, scenario, keys }) => {
            show(a, &guest(scenario.as_deref(), keys), common)
        }
        What::Diff(DiffArgs {
            a,
            b,
            scenario,
            keys,
        }) => diff(a, b, &guest(scenario.as_deref(), keys), common),
    };
    match answer {
        Ok(text) => {
            say::out(&text);
            0
        }
        Err(message) => {
            if let Some(message) = message {
                say::error(&message);
            }
            crate::FAILED
        }
    }
}

fn guest<'a>(scenario: Option<&'a Path>, keys: &KeyArgs) -> Guest<'a> {
    Guest {
        scenario,
        layers: keys.layers().into_iter().chain(keys.overrides()).collect(),
    }
}

/// A message; none when it was printed already.
type Failure = Option<String>;

fn show(which: &str, guest: &Guest<'_>, common: &Common) -> Result<String, Failure> {
    if which != "guest" && guest.is_meant() {
        return Err(Some(
            "a scenario and its keys say what a guest sees: add --a guest".into(),
        ));
    }
    let features = features(which, guest, common)?;
    if common.json {
        return Ok(serde_json::to_string_pretty(&features).unwrap_or_default() + "\n");
    }
    let mut text = format!(
        "{} ({} flags): {}\n",
        features.cpu,
        features.flags.len(),
        features.flags.join(" ")
    );
    if let Some(note) = &features.note {
        text += &format!("note: {note}\n");
    }
    Ok(text)
}

fn diff(a: &str, b: &str, guest: &Guest<'_>, common: &Common) -> Result<String, Failure> {
    if guest.is_meant() && a != "guest" && b != "guest" {
        return Err(Some(
            "a scenario and its keys say what a guest sees, and no guest is compared".into(),
        ));
    }
    let (a, b) = (features(a, guest, common)?, features(b, guest, common)?);
    let set = |features: &'_ Features| features.flags.iter().cloned().collect::<BTreeSet<_>>();
    let (in_a, in_b) = (set(&a), set(&b));
    let difference = Difference {
        a: &a.cpu,
        b: &b.cpu,
        added: in_b.difference(&in_a).map(String::as_str).collect(),
        removed: in_a.difference(&in_b).map(String::as_str).collect(),
        notes: [&a.note, &b.note]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect(),
    };
    if common.json {
        return Ok(serde_json::to_string_pretty(&difference).unwrap_or_default() + "\n");
    }
    let mut text = String::new();
    for (sign, whose, names) in [
        ('+', difference.b, &difference.added),
        ('-', difference.a, &difference.removed),
    ] {
        text += &format!(
            "{sign} only {whose} ({}): {}\n",
            names.len(),
            names.join(" ")
        );
    }
    for note in difference.notes {
        text += &format!("note: {note}\n");
    }
    Ok(text)
}

fn features(which: &str, guest: &Guest<'_>, common: &Common) -> Result<Features, Failure> {
    let live = common.host_root == Path::new("/");
    let (leaves, note) = match which {
        "host" if !live => {
            let path = Root(common.host_root.clone()).at("/proc/cpuinfo");
            return Ok(Features {
                cpu: "host".into(),
                ..read(&path)?
            });
        }
        "host" => (leaves::processor(), None),
        "guest" | "max" if !live => {
            return Err(Some(format!(
                "{which} needs a running KVM, which a directory (--host-root) has not"
            )));
        }
        "guest" => {
            let plan = compile(
                Source {
                    file: guest.scenario,
                    layers: guest.layers.clone(),
                },
                common,
            )
            .ok_or(None)?;
            let leaves =
                leaves::of_guest(&plan.resources.cpus).map_err(|e| Some(run::chain(&e)))?;
            let note = (Host::probe().kind == HostKind::SoftwarePaging).then(|| {
                "on this host (kvm_pvm) CPUID in a guest at CPL 3 is not intercepted and shows the host's flags; \
                 these are the flags that KVM was told"
                    .into()
            });
            (leaves, note)
        }
        "max" => (leaves::supported().map_err(|e| Some(run::chain(&e)))?, None),
        file => return read(Path::new(file)),
    };
    Ok(Features {
        cpu: which.into(),
        note,
        flags: flags::names(&leaves)
            .into_iter()
            .map(str::to_owned)
            .collect(),
        leaves,
    })
}

/// A file: JSON of `cpu show`, or a copy of /proc/cpuinfo.
fn read(path: &Path) -> Result<Features, Failure> {
    let name = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
        .map_err(|e| {
            Some(format!(
                "cannot read {name}: {e} (host, guest and max are no files)"
            ))
        })?;
    if text.trim_start().starts_with('{') {
        let features: Features = serde_json::from_str(&text)
            .map_err(|e| Some(format!("{name} is not from `vsc-run cpu show --json`: {e}")))?;
        return Ok(Features {
            cpu: name.to_string(),
            ..features
        });
    }
    let flags = flags::of_cpuinfo(&text).ok_or_else(|| {
        Some(format!("{name} is neither from `vsc-run cpu show --json` nor a copy of /proc/cpuinfo: no line `flags`"))
    })?;
    Ok(Features {
        cpu: name.to_string(),
        note: None,
        flags: flags.into_iter().map(str::to_owned).collect(),
        leaves: Vec::new(),
    })
}
