//! `check` and `explain`: a scenario looked at, never run.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vsc::compile::{DevicePair, RunPlan, answers, domain_devices, machine_pairs};
use vsc::diag::{Diagnostics, Origin, shown};
use vsc::scenario::explain::{self, Article, Said};
use vsc::scenario::presets::{self, Preset};
use vsc::scenario::{self, Input, Layer, Override, Parsed};
use vsc_vmm::resources::{InitrdPart, Payload, VmResources};

use super::Common;
use super::reference;
use super::run::{KeyArgs, Source, compile, or_report, read, report};
use super::table::table;
use crate::say;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Checks it for libvirt: what this build's monitor cannot do is no mistake then.
    #[arg(long)]
    libvirt: bool,
    /// The scenario.
    scenario: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A scenario, a preset, a feature set, or a key (a file of such a name is ./NAME); without one, the defaults.
    what: Option<PathBuf>,
    /// A key such as disks.cache: what WHAT says of it.
    #[arg(conflicts_with = "devices")]
    key: Option<String>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Explains every key.
    #[arg(long, conflicts_with_all = ["what", "devices"])]
    all: bool,
    /// Prints the reference of the language as a page in Markdown.
    #[arg(long, conflicts_with_all = ["what", "devices", "all"])]
    markdown: bool,
    /// Only the devices: what the guest sees beside what stands behind it on the host.
    #[arg(long)]
    devices: bool,
}

pub(super) fn check(args: &CheckArgs, common: &Common) -> u8 {
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    let source = Source {
        file: Some(&args.scenario),
        layers,
    };
    if common.json {
        say::silence();
    }
    if args.libvirt {
        return checked(super::export::describe(source, common).is_some(), common);
    }
    match compile(source, common) {
        Some(_) => checked(true, common),
        None => checked(false, common),
    }
}

/// The answer of `check`: an exit code, and with `--json` the same with all messages.
fn checked(good: bool, common: &Common) -> u8 {
    if common.json {
        let mut answer = serde_json::json!({ "ok": good, "messages": say::kept() });
        if !good {
            answer["error"] = serde_json::json!(say::first_error());
        }
        say::out(&format!("{answer:#}\n"));
    }
    if good { 0 } else { crate::FAILED }
}

/// The JSON form of `explain`.
#[derive(Serialize)]
struct Explained<'a> {
    resources: &'a VmResources,
    run: &'a RunPlan,
    devices: &'a [DevicePair],
}

pub(super) fn explain(args: &ExplainArgs, common: &Common) -> u8 {
    if args.all {
        return reference::all(common);
    }
    if args.markdown {
        return reference::page(common);
    }
    match (&args.what, &args.key) {
        (Some(what), Some(key)) => key_of(what, key, args, common),
        (Some(what), None) if !args.devices => match Subject::of(what) {
            Subject::Scenario => machine(args, common),
            Subject::Key(key) => a_key(&key, common),
            Subject::Preset(preset) => a_preset(preset, "preset", args, common),
            Subject::Feature(set) => a_preset(set, "feature", args, common),
            Subject::Nothing(name) => {
                report(&explain::neither(name), common);
                crate::FAILED
            }
        },
        _ => machine(args, common),
    }
}

/// What a single word is about.
enum Subject<'a> {
    Scenario,
    Key(Box<Article>),
    Preset(&'static Preset),
    Feature(&'static Preset),
    Nothing(&'a str),
}

impl<'a> Subject<'a> {
    fn of(word: &'a Path) -> Self {
        let Some(name) = word.to_str().filter(|name| !name.contains('/')) else {
            return Self::Scenario;
        };
        // A kernel's or an initrd's file often has the name of a key: a file of such a name is ./NAME.
        if let Ok(article) = explain::explain(name) {
            return Self::Key(Box::new(article));
        }
        match (presets::find(name), presets::feature(name)) {
            (Some(preset), _) => Self::Preset(preset),
            (_, Some(set)) => Self::Feature(set),
            _ if word.exists() || name.ends_with(".yaml") || name.ends_with(".yml") => {
                Self::Scenario
            }
            _ => Self::Nothing(name),
        }
    }
}

/// The JSON form of `explain` about a key: the article, and what a scenario says where one was named.
#[derive(Serialize)]
struct KeyAnswer<'a> {
    #[serde(flatten)]
    article: &'a Article,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<Vec<Said>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<PresetAnswer>,
}

/// The JSON form of `explain` about a preset or a feature set.
#[derive(Serialize)]
struct PresetAnswer {
    kind: &'static str,
    name: &'static str,
    about: &'static str,
    says: Vec<Said>,
}

fn json(answer: &impl Serialize) -> u8 {
    say::out(&(serde_json::to_string_pretty(answer).unwrap_or_default() + "\n"));
    0
}

fn a_key(article: &Article, common: &Common) -> u8 {
    // Some feature sets are named as the keys that they set.
    let feature = presets::feature(&article.key);
    let feature = feature.map(|set| PresetAnswer {
        kind: "feature",
        name: set.name,
        about: set.about(),
        says: scenario::parse(&Input {
            layers: vec![layer_of("feature", set)],
            ..Input::default()
        })
        .sayings()
        .into_iter()
        .filter(|said| matches!(said.origin, Origin::Preset { .. }))
        .collect(),
    });
    if common.json {
        return json(&KeyAnswer {
            article,
            said: None,
            feature,
        });
    }
    let mut text = reference::text(article);
    if let Some(set) = feature {
        text += &format!("\nA feature set has this name, too.\n{}", sayings(&set));
    }
    say::out(&text);
    0
}

fn layer_of(key: &'static str, preset: &Preset) -> Layer {
    Layer::Flag(Override::flag("WHAT", key, preset.name))
}

/// Reads a scenario without compiling it, and says what is wrong in it. `None`: something is.
fn read_right(source: Source<'_>, common: &Common) -> Option<Parsed> {
    let parsed = read(source, common)?;
    let messages = Diagnostics::new(parsed.problems.clone(), parsed.sources.clone());
    report(&messages, common);
    (!messages.has_errors()).then_some(parsed)
}

fn key_of(what: &Path, key: &str, args: &ExplainArgs, common: &Common) -> u8 {
    let Some(article) = or_report(explain::explain(key), common) else {
        return crate::FAILED;
    };
    let feature = what.to_str().and_then(presets::feature);
    let mut layers: Vec<Layer> = feature.iter().map(|s| layer_of("feature", s)).collect();
    layers.extend(args.keys.layers());
    layers.extend(args.keys.overrides());
    let file = Some(what).filter(|_| feature.is_none());
    let Some(parsed) = read_right(Source { file, layers }, common) else {
        return crate::FAILED;
    };
    let said = parsed.said(&article);
    if common.json {
        let (said, feature) = (Some(said), None);
        return json(&KeyAnswer {
            article: &article,
            said,
            feature,
        });
    }
    let name = shown(&what.to_string_lossy());
    let mut text = reference::text(&article);
    text += &match said.is_empty() {
        true => format!("\n{name} says nothing of it\n"),
        false => format!("\n{name}\n{}", reference::said(&said)),
    };
    say::out(&text);
    0
}

fn a_preset(
    preset: &'static Preset,
    kind: &'static str,
    args: &ExplainArgs,
    common: &Common,
) -> u8 {
    let mut layers = vec![layer_of(kind, preset)];
    layers.extend(args.keys.layers());
    layers.extend(args.keys.overrides());
    let Some(parsed) = read_right(Source { file: None, layers }, common) else {
        return crate::FAILED;
    };
    let mut says = parsed.sayings();
    says.retain(|said| said.key != kind);
    let answer = PresetAnswer {
        kind,
        name: preset.name,
        about: preset.about(),
        says,
    };
    if common.json {
        return json(&answer);
    }
    say::out(&sayings(&answer));
    0
}

/// A preset or feature set for people: what it says, and why.
fn sayings(answer: &PresetAnswer) -> String {
    let rows = answer.says.iter().map(|said| {
        let why = said.reason.as_ref().map(reference::reason);
        let origin = said.origin.to_string();
        vec![
            said.key.clone(),
            said.value.clone(),
            origin,
            why.unwrap_or_default(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    format!(
        "{} {}: {}\n\n{}",
        answer.kind,
        answer.name,
        answer.about,
        table(&["KEY", "VALUE", "ORIGIN", "WHY"], &rows)
    )
}

/// A scenario, or the defaults: what they become.
fn machine(args: &ExplainArgs, common: &Common) -> u8 {
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    let file = args.what.as_deref();
    let Some(description) = super::export::describe(Source { file, layers }, common) else {
        return crate::FAILED;
    };
    let domain = &description.domain;
    // Where the monitor cannot run it, the devices are those that libvirt makes.
    let rows: Vec<[String; 3]> = match &description.monitor {
        Ok((resources, _)) => {
            let pairs = machine_pairs(resources).into_iter();
            pairs.map(|d| [d.guest, d.host, d.id]).collect()
        }
        Err(_) => {
            let pairs = domain_devices(domain).into_iter();
            pairs.map(|d| [d.guest, d.host, d.key]).collect()
        }
    };
    if common.json {
        return match &description.monitor {
            Ok((resources, run)) => {
                let mut resources = resources.clone();
                if let Payload::Kernel(kernel) = &mut resources.payload {
                    // Built initrds are not part of the description.
                    kernel
                        .initrd
                        .retain(|part| matches!(part, InitrdPart::File(_)));
                }
                json(&Explained {
                    resources: &resources,
                    run,
                    devices: &machine_pairs(&resources),
                })
            }
            Err(messages) => json(&serde_json::json!({
                "domain": domain,
                "devices": domain_devices(domain),
                "monitor": messages.records(),
            })),
        };
    }
    let mut text = String::new();
    if !args.devices {
        let settings = description.settings();
        let width = settings.iter().map(|s| s.key.len()).max().unwrap_or(0);
        for setting in &settings {
            text += &format!(
                "{:width$}  {}  ({})\n",
                setting.key, setting.value, setting.origin
            );
        }
        let rows = answers(&settings, domain).into_iter();
        let rows: Vec<_> = rows
            .map(|a| vec![a.key, a.value, format!("({})", a.origin)])
            .collect();
        text += &format!(
            "\nWhat the domain XML needs besides\n{}\n",
            table(&[], &rows)
        );
    }
    let name = if description.monitor.is_ok() {
        "ID"
    } else {
        "KEY"
    };
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    text += &table(&["GUEST", "HOST", name], &rows);
    if let Err(messages) = &description.monitor {
        let codes: Vec<&str> = messages.list.iter().map(|d| d.code).collect();
        text += &format!(
            "\nThe monitor of this build cannot run it ({}): see `plan`\n",
            codes.join(", ")
        );
    }
    say::out(&text);
    0
}
