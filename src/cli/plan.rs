//! `plan`: what a scenario would become here, and what of it is not what was recommended. Nothing is touched, and no
//! program is executed.
//!
//! `plan --json` is one object; fields are added, never renamed:
//!
//! | Field | What |
//! | --- | --- |
//! | `name` | name of the machine |
//! | `presets` | names of the presets and feature sets that it starts from |
//! | `sources` | where values came from, the later over the earlier: `preset NAME`, `feature NAME`, `settings FILE`, the scenario's file, `command line` |
//! | `differences` | what is not as recommended: `key`, `recommended` (`null`: nothing is), `current`, `origin`; `gave_way_to` where the recommendation does not go with that key |
//! | `settings` | every value: `key`, `value`, `origin` |
//! | `answers` | what nobody said and the domain needs, in the form of `settings` |
//! | `devices` | the machine's devices: `key`, `guest`, `host`, `monitor` (whether the monitor of this build has it) |
//! | `host` | `changes`: `what`, `path`, `old` (`null`: no such knob), `new`, `origin`, `skipped` (why; `null`: it is not), `note` (what else is to be known), `act` (what does it; `null` where it cannot be done), `required` (without it there is no run); `skipped_all`: why none is made |
//! | `locks` | how the monitor locks the images (`null`: it does not run it): `driver`, `config` (directories of lockspaces), `disks`: `disk`, `image`, `access`, `bytes` of the image, `besides`: byte 0 of the image or a file of a lockspace, `alone` (a write lock there) |
//! | `held` | images that others have at this moment; nothing is locked to find out: `disk`, `image` (or the file of a lockspace), `by`, `pid` (`null`: not seen here), `access` (of theirs), `refused` (a run now would be), `why` |
//! | `sandbox` | the confinement of the run (`null`: the monitor does not run it): `enabled`; `system_calls`: `thread`, `allowed` (how many); `seccomp`, `landlock` (ABI version, 0 for none): of this host (`null`: a directory stands for it); `paths`: `path`, `access`; `capabilities` that may be left; `limits`: `heap_more` (bytes), `files_more`, `core` |
//! | `images` | images that the first run makes: `disk`, `path`, `size` (bytes), `format` |
//! | `xml_changes` | what `xml` and `--xml-set` change of the domain XML: `path`, `old`, `new` (`null`: nothing) |
//! | `monitor` | `runs`; `devices`: `guest`, `host`, `id` of what it would run; `shares`: `what`, `how`, what the host gives it where that is not as usual; `cgroup`: `directory` (its name ends with the number of the process, `PID` here), `slices` that are made, `controllers`: file, what it says, what it is to say, `values`: `key`, `file`, `new`, `advice`: lines about the whole slice (`null`: no limit needs one); `left_out`: keys; `problems`: why it cannot, as messages |
//! | `domain` | the machine with every open question answered, in canonical keys |
//! | `warnings` | what is legal but unwise, as messages |
//!
//! An `origin` has `from`: `default`, `preset` (`name`, `line`), `settings` and `file` (`file`, `line`, `column`), or
//! `flag` (`text`). Messages are those of `check --json`.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vsc::compile::{
    Cgroup, Description, DevicePair, Difference, DomainDevice, HostPlan, Limit, Making, Share,
    answers, domain_devices, machine_pairs, shares,
};
use vsc::diag::{Origin, Record, Severity, shown};
use vsc::domain::Domain;
use vsc::locks::now::{self, HeldNow};
use vsc::locks::{LockPlan, Place};
use vsc::scenario::keys::{self, Kind};
use vsc::scenario::presets::{FEATURES, PRESETS};
use vsc::scenario::{Layer, Override, Setting};
use vsc::xml::Changed;

use super::Common;
use super::confinement::Confinement;
use super::export::{describe, domain_xml};
use super::run::{KeyArgs, Source, command_layer};
use super::table::table;
use crate::say;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// A scenario or a preset; without one, the defaults.
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Sets a place of the exported XML, as with --export-xml.
    #[arg(long, value_name = "XPATH=VALUE")]
    xml_set: Vec<String>,
    /// Every setting with its origin, defaults as well.
    #[arg(long)]
    all: bool,
    /// Of a run without confinement.
    #[arg(long)]
    no_sandbox: bool,
    /// Lists the presets and the feature sets instead.
    #[arg(long, conflicts_with_all = ["scenario", "all", "no_sandbox", "xml_set", "command"])]
    list: bool,
    /// The command to run in the guest.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The JSON form of `plan`.
#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    presets: &'a [&'static str],
    sources: Vec<String>,
    differences: Vec<Difference>,
    settings: Vec<Setting>,
    answers: Vec<Setting>,
    devices: Vec<Device>,
    host: &'a HostPlan,
    locks: Option<&'a LockPlan>,
    held: Vec<HeldNow>,
    /// How the monitor's process is confined; none where it does not run the machine.
    sandbox: Option<Confinement>,
    images: &'a [Making],
    xml_changes: Vec<Changed>,
    monitor: Monitor<'a>,
    domain: &'a Domain,
    warnings: Vec<Record>,
}

#[derive(Serialize)]
struct Device {
    #[serde(flatten)]
    device: DomainDevice,
    monitor: bool,
}

/// The cgroup of a run.
#[derive(Serialize)]
struct Kept<'a> {
    directory: PathBuf,
    #[serde(flatten)]
    cgroup: &'a Cgroup,
}

#[derive(Serialize)]
struct Monitor<'a> {
    runs: bool,
    devices: Vec<DevicePair>,
    shares: Vec<Share>,
    cgroup: Option<Kept<'a>>,
    left_out: &'a [String],
    problems: Vec<Record>,
}

/// One line of `plan --list`.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    kind: &'static str,
    about: &'static str,
}

pub(super) fn plan(args: &PlanArgs, common: &Common) -> u8 {
    if args.list {
        return list(common);
    }
    let mut layers = args.keys.layers();
    if args.no_sandbox {
        let flag = Override::flag("--no-sandbox", "sandbox", "false");
        layers.push(Layer::Flag(flag));
    }
    layers.extend(args.keys.overrides());
    layers.extend(command_layer(&args.command));
    let file = args.scenario.as_deref();
    let Some(description) = describe(Source { file, layers }, common) else {
        return crate::FAILED;
    };
    let patched = !args.xml_set.is_empty() || !description.domain.list("xml").is_empty();
    let xml_changes = match patched.then(|| domain_xml(&description, &args.xml_set, common)) {
        None => Vec::new(),
        Some(Some(exported)) => exported.changed,
        Some(None) => return crate::FAILED,
    };
    let live = common.host_root == std::path::Path::new("/");
    let mut answer = Answer::of(&description, xml_changes, live);
    if let Ok((resources, run)) = &description.monitor {
        let proc = common.host_root.join("proc");
        answer.held = now::held(&proc, &run.locks, &resources.disks);
    }
    if common.json {
        say::out(&(serde_json::to_string_pretty(&answer).unwrap_or_default() + "\n"));
    } else {
        say::out(&answer.text(args.all));
    }
    0
}

fn list(common: &Common) -> u8 {
    let listed = |kind| {
        move |preset: &vsc::scenario::presets::Preset| Listed {
            name: preset.name,
            kind,
            about: preset.about(),
        }
    };
    let presets = PRESETS.iter().map(listed("preset"));
    let all: Vec<Listed> = presets
        .chain(FEATURES.iter().map(listed("feature")))
        .collect();
    if common.json {
        say::out(&(serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"));
        return 0;
    }
    let row = |l: &Listed| vec![l.name.to_owned(), l.kind.to_owned(), l.about.to_owned()];
    let rows: Vec<_> = all.iter().map(row).collect();
    say::out(&table(&["NAME", "KIND", "WHAT"], &rows));
    0
}

/// Where values came from, each once, the later over the earlier.
fn sources(settings: &[Setting]) -> Vec<String> {
    let mut all: Vec<(u8, String)> = Vec::new();
    for setting in settings {
        let source = match &setting.origin {
            Origin::Default => continue,
            Origin::Preset { name, .. } => (u8::from(name.starts_with("feature ")), name.clone()),
            Origin::Settings { file, .. } => (2, format!("settings {file}")),
            Origin::File { file, .. } => (3, file.clone()),
            // A preset's name in place of a scenario's.
            Origin::Flag { .. } if matches!(setting.key.as_str(), "preset" | "feature") => continue,
            Origin::Flag { .. } => (4, "command line".to_owned()),
        };
        if !all.contains(&source) {
            all.push(source);
        }
    }
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, source)| source).collect()
}

/// Whether the monitor of this build has such a disk as `disks[N]`: no word of it is for the domain XML only.
fn disk_is_here(domain: &Domain, key: &str) -> bool {
    let devices = domain.list("disks").iter().enumerate();
    let disk = devices
        .filter(|(number, _)| key == format!("disks[{number}]"))
        .find_map(|(_, disk)| disk.as_object());
    disk.is_some_and(|disk| {
        disk.iter().all(|(name, value)| {
            let (Some(key), Some(value)) = (keys::at(&["disks", name]), value.as_str()) else {
                return true;
            };
            let Kind::Word(words) = key.kind else {
                return true;
            };
            let word = words.iter().find(|word| word.name == value);
            let as_is = key.as_is.contains(&value) || key.as_is.contains(&"*");
            word.is_none_or(|word| word.elsewhere.is_none()) && (key.elsewhere.is_none() || as_is)
        })
    })
}

/// What would be changed on the host, for people.
pub(super) fn host_changes(plan: &HostPlan) -> String {
    let rows = plan.changes.iter().map(|change| {
        let old = change.old.as_deref().unwrap_or("-");
        let skipped = change.skipped.as_ref().map(|why| format!("skipped: {why}"));
        let remarks: Vec<String> = skipped.into_iter().chain(change.note.clone()).collect();
        vec![
            change.what.clone(),
            change.path.display().to_string(),
            format!("{old} → {}", change.new),
            change.origin.to_string(),
            remarks.join("; "),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut text = table(&["KEY", "FILE", "CHANGE", "ORIGIN", ""], &rows);
    if let Some(why) = &plan.skipped_all {
        text += &format!("Nothing of it is done: {}\n", shown(why));
    }
    text
}

/// How each image is locked.
fn lock_table(locks: &LockPlan) -> String {
    let rows = locks.disks.iter().map(|disk| {
        let bytes = (!disk.bytes.is_empty()).then(|| format!("bytes {}", disk.bytes));
        let besides = disk.besides.iter().map(|place| match place {
            Place::Image => "byte 0".to_owned(),
            place => place.file(&disk.image).display().to_string(),
        });
        let all: Vec<String> = bytes.into_iter().chain(besides).collect();
        vec![
            disk.disk.clone(),
            disk.access.clone(),
            match all.is_empty() {
                true => "none".to_owned(),
                false => all.join("; "),
            },
        ]
    });
    let rows: Vec<_> = rows.collect();
    table(&["DISK", "ACCESS", "LOCKED"], &rows)
}

/// Who has images now.
fn held_now(held: &[HeldNow]) -> String {
    let line = |held: &HeldNow| {
        let HeldNow {
            disk, image, by, ..
        } = held;
        let then = match held.refused {
            true => "the run would be refused now",
            false => "a run goes with that",
        };
        let line = format!("{disk}: {} is held by {by}: {then}", image.display());
        shown(&line) + "\n"
    };
    held.iter().map(line).collect()
}

impl<'a> Answer<'a> {
    fn of(description: &'a Description, xml_changes: Vec<Changed>, live: bool) -> Self {
        let Description {
            domain,
            host,
            images,
            warnings,
            monitor,
            left_out,
            ..
        } = description;
        let has = |key: &str| {
            let top = key.split(['.', '[']).next().unwrap_or_default();
            let kind = match top {
                "serials" | "consoles" | "rng" => true,
                "disks" => disk_is_here(domain, key),
                _ => false,
            };
            kind && !left_out.iter().any(|out| out == top || out == key)
        };
        let device = |device: DomainDevice| Device {
            monitor: has(&device.key),
            device,
        };
        let settings = description.settings();
        Self {
            name: domain.text("name").unwrap_or_default(),
            presets: &description.parsed().presets,
            sources: sources(&settings),
            differences: description.differences(),
            answers: answers(&settings, domain),
            settings,
            devices: domain_devices(domain).into_iter().map(device).collect(),
            host,
            locks: monitor.as_ref().ok().map(|(_, run)| &run.locks),
            held: Vec::new(),
            sandbox: monitor
                .as_ref()
                .ok()
                .map(|(resources, run)| Confinement::of(resources, run, live)),
            images,
            xml_changes,
            monitor: Monitor {
                runs: monitor.is_ok(),
                devices: match monitor {
                    Ok((resources, _)) => machine_pairs(resources),
                    Err(_) => Vec::new(),
                },
                shares: match monitor {
                    Ok((resources, _)) => shares(resources),
                    Err(_) => Vec::new(),
                },
                cgroup: match monitor {
                    Ok((_, run)) => run.cgroup.as_ref().map(|cgroup| Kept {
                        directory: cgroup.directory("PID"),
                        cgroup,
                    }),
                    Err(_) => None,
                },
                left_out,
                problems: match monitor {
                    Ok(_) => Vec::new(),
                    Err(problems) => problems.records(),
                },
            },
            domain,
            warnings: warnings.records(),
        }
    }

    fn text(&self, all: bool) -> String {
        let from = match self.sources.is_empty() {
            true => "the defaults alone".to_owned(),
            false => shown(&self.sources.join(", ")),
        };
        let mut text = format!("{}: from {from}\n", shown(self.name));
        let mut section = |title: &str, body: String| text += &format!("\n{title}\n{body}");
        section("Recommended against current", self.recommended());
        if all {
            let row = |s: &Setting| vec![s.key.clone(), s.value.clone(), s.origin.to_string()];
            let rows: Vec<_> = self.settings.iter().map(row).collect();
            section("Settings", table(&["KEY", "VALUE", "ORIGIN"], &rows));
            let rows: Vec<_> = self.answers.iter().map(row).collect();
            section(
                "What the domain XML needs besides",
                table(&["KEY", "VALUE", "ORIGIN"], &rows),
            );
        }
        section("Devices", self.pairs());
        if !self.host.changes.is_empty() {
            section("Host", host_changes(self.host));
        }
        if let Some(locks) = self.locks.filter(|locks| !locks.disks.is_empty()) {
            section("Locks", lock_table(locks) + &held_now(&self.held));
        }
        if !self.images.is_empty() {
            section("Images that the first run makes", self.images());
        }
        if !self.xml_changes.is_empty() {
            section("Changes of the domain XML", self.xml_changes());
        }
        section("Monitor", self.monitor());
        if let Some(sandbox) = &self.sandbox {
            section("Confinement, after set-up", sandbox.text());
        }
        text
    }

    fn recommended(&self) -> String {
        if self.differences.is_empty() {
            return match self.presets.is_empty() {
                true => "No preset recommends anything, and every value is the default.\n".into(),
                false => "Every value is as recommended.\n".into(),
            };
        }
        let row = |d: &Difference| {
            let recommended = d.recommended.clone().unwrap_or_else(|| "-".into());
            vec![
                d.key.clone(),
                recommended,
                d.current.clone(),
                match &d.gave_way_to {
                    Some(key) => format!("gave way to {key} ({})", d.origin),
                    None => d.origin.to_string(),
                },
            ]
        };
        let rows: Vec<_> = self.differences.iter().map(row).collect();
        // Without a preset nobody recommends anything.
        let recommended = match self.presets.is_empty() {
            true => "DEFAULT",
            false => "RECOMMENDED",
        };
        table(&["KEY", recommended, "CURRENT", "ORIGIN"], &rows)
    }

    fn pairs(&self) -> String {
        if self.monitor.runs && self.monitor.left_out.is_empty() {
            let row = |d: &DevicePair| vec![d.guest.clone(), d.host.clone(), d.id.clone()];
            let rows: Vec<_> = self.monitor.devices.iter().map(row).collect();
            return table(&["GUEST", "HOST", "ID"], &rows);
        }
        let row = |d: &Device| {
            let DomainDevice { key, guest, host } = d.device.clone();
            let monitor = if d.monitor { "yes" } else { "no" };
            vec![guest, host, key, monitor.to_owned()]
        };
        let rows: Vec<_> = self.devices.iter().map(row).collect();
        table(&["GUEST", "HOST", "KEY", "MONITOR"], &rows)
    }

    fn images(&self) -> String {
        let rows = self.images.iter().map(|making| {
            let size = making.size;
            let size = match size.is_multiple_of(1 << 30) {
                true => format!("{}G", size >> 30),
                false => format!("{size} bytes"),
            };
            vec![
                format!("disks[{}]", making.disk),
                making.path.display().to_string(),
                making.format.word().to_owned(),
                size,
            ]
        });
        let rows: Vec<_> = rows.collect();
        table(&["KEY", "FILE", "FORMAT", "SIZE"], &rows)
    }

    fn xml_changes(&self) -> String {
        let rows = self.xml_changes.iter().map(|change| {
            let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            vec![change.path.clone(), side(&change.old), side(&change.new)]
        });
        let rows: Vec<_> = rows.collect();
        table(&["PLACE", "OLD", "NEW"], &rows)
    }

    fn monitor(&self) -> String {
        let left_out = match self.monitor.left_out {
            [] => String::new(),
            keys => format!(", leaving out {}", keys.join(", ")),
        };
        if self.monitor.runs {
            let rows = self.monitor.shares.iter();
            let rows: Vec<_> = rows.map(|s| vec![s.what.clone(), s.how.clone()]).collect();
            let shares = match rows.is_empty() {
                true => String::new(),
                false => table(&["FOR", "WHAT THE HOST GIVES"], &rows),
            };
            let limits = self
                .monitor
                .cgroup
                .as_ref()
                .map_or_else(String::new, limits);
            return format!("The monitor of this program runs it{left_out}.\n{shares}{limits}");
        }
        let mut text = "The monitor of this program cannot run it:\n".to_owned();
        let errors = self.monitor.problems.iter();
        for problem in errors.filter(|p| p.severity == Severity::Error) {
            let mut line = format!("  {}: {}", problem.code, shown(&problem.message));
            if let Some(help) = &problem.help {
                line += &format!(" ({})", shown(help));
            }
            text += &(line + "\n");
        }
        text
    }
}

/// What a cgroup keeps, and how.
fn limits(kept: &Kept<'_>) -> String {
    let row = |value: &Limit| vec![value.key.clone(), value.file.clone(), value.new.clone()];
    let rows: Vec<_> = kept.cgroup.values.iter().map(row).collect();
    let mut text = format!("In the cgroup {}\n", kept.directory.display());
    if !rows.is_empty() {
        text += &table(&["KEY", "FILE", "LIMIT"], &rows);
    }
    for path in &kept.cgroup.slices {
        text += &format!(
            "in {}, which is made where it is not there\n",
            path.display()
        );
    }
    for (path, now, then) in kept.cgroup.controllers.iter().filter(|(_, a, b)| a != b) {
        text += &format!("{}: {now:?} → {then:?}\n", path.display());
    }
    for line in &kept.cgroup.advice {
        text += &format!("{line}\n");
    }
    text
}
