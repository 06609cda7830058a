//! `(scenario, facts) → Plan`: pure, one file per family of keys. What a scenario leaves open is decided here, and
//! what cannot work is said here, with the place that asked for it.

#![forbid(unsafe_code)]

mod about;
mod answers;
mod backing;
mod console;
mod cpu;
mod devices;
mod disk;
mod domain;
mod events;
mod here;
mod host;
mod kernel;
mod limits;
mod locks;
mod make;
mod memory;
mod pairs;
mod placement;
mod ports;
mod rights;
mod runner;
mod threads;

use serde::{Deserialize, Serialize};
use vsc_devices::virtio::rng::RngSpec;
use vsc_vmm::resources::{Irqchip, Pages, Payload, VmResources};

use crate::diag::{Diagnostic, Diagnostics, Origin};
use crate::domain::Domain;
use crate::facts::Facts;
use crate::scenario::{Parsed, Scenario, Setting, old, presets, value, word};

use about::{is_about_libvirt, is_about_this_host};
use rights::Lacks;

pub use answers::answers;
pub use devices::{DevicePair, device_pairs, machine_pairs};
pub use host::{HostChange, HostPlan};
pub(crate) use kernel::ALWAYS;
pub use limits::{Cgroup, Limit};
pub use make::Making;
pub use pairs::{DomainDevice, domain_devices};
pub use runner::{InitrdPlan, RootPlan, RunPlan, SecretPlan, Stdio};
pub use threads::{Share, shares};

/// What `root.device` says when disks are data, and the initrd is the root.
pub(crate) const NO_ROOT: &str = "none";

/// Messages while compiling.
type Problems = Vec<Diagnostic>;

/// Everything that a run needs to know, as plain data.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The machine.
    pub resources: VmResources,
    /// What it is for.
    pub run: RunPlan,
    /// What is to be changed on the host for it.
    pub host: HostPlan,
    /// Images that are made first.
    pub images: Vec<Making>,
    /// What is legal but unwise.
    pub warnings: Diagnostics,
    parsed: Parsed,
}

impl Plan {
    /// Every value with its origin, for `plan` and `explain`.
    pub fn settings(&self) -> Vec<Setting> {
        self.parsed.settings()
    }

    /// The scenario as it was read.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }
}

/// A scenario as something to look at or to hand over, whether the monitor of this build can run it or not.
#[derive(Debug, Clone)]
pub struct Description {
    /// The machine for exporters.
    pub domain: Domain,
    /// What would be changed on the host.
    pub host: HostPlan,
    /// Images that are made first.
    pub images: Vec<Making>,
    /// What is legal but unwise.
    pub warnings: Diagnostics,
    /// The machine for the monitor, or why it cannot run it here.
    pub monitor: Result<(VmResources, RunPlan), Diagnostics>,
    /// What the monitor leaves out of what presets and settings recommend.
    pub left_out: Vec<String>,
    gave_way: Vec<Difference>,
    parsed: Parsed,
}

/// A value that is not what the presets recommend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The key, such as `disk.cache`; `disks[1].cache` where there are several.
    pub key: String,
    /// What the presets say, or the default; `None` where they say nothing.
    pub recommended: Option<String>,
    /// What holds.
    pub current: String,
    /// Who says so.
    pub origin: Origin,
    /// The key that the recommendation does not go with, where nobody said anything of this one itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gave_way_to: Option<String>,
}

impl Description {
    /// Every value with its origin. Where a recommendation gave way it is the value that holds.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = self.parsed.settings();
        for setting in &mut settings {
            if let Some(now) = self.gave_way.iter().find(|d| d.key == setting.key) {
                setting.value.clone_from(&now.current);
                setting.origin = now.origin.clone();
            }
        }
        settings
    }

    /// The scenario as it was read.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// The domain before the changes that `xml` asks for.
    pub(crate) fn domain_without_patches(&self) -> Domain {
        let mut domain = self.domain.clone();
        if let Some(map) = domain.0.as_object_mut() {
            map.remove("xml");
        }
        domain
    }

    /// Every value that was written over a recommendation and is not the same.
    pub fn differences(&self) -> Vec<Difference> {
        let mut all = self.parsed.differences();
        all.extend(self.gave_way.iter().cloned());
        all
    }
}

/// Recommendations that do not hold, since they do not go with what somebody wants.
fn differences_of(
    parsed: &Parsed,
    domain: &Domain,
    gave_way: Vec<domain::GaveWay>,
) -> Vec<Difference> {
    let mut out: Vec<Difference> = Vec::new();
    for domain::GaveWay { key, to } in gave_way {
        let Some(recommended) = parsed
            .text_of(&key)
            .filter(|_| !out.iter().any(|d| d.key == key))
        else {
            continue;
        };
        let path = key.replace('[', ".").replace(']', "");
        let current =
            match path
                .split('.')
                .try_fold(&domain.0, |value, name| match name.parse::<usize>() {
                    Ok(index) => value.get(index),
                    Err(_) => value.get(name),
                }) {
                None => "none".to_owned(),
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
        if current != recommended {
            let origin = parsed.sources.origin(parsed.span_of(&to));
            out.push(Difference {
                key,
                recommended: Some(recommended),
                current,
                origin,
                gave_way_to: Some(to),
            });
        }
    }
    out
}

/// Compiles for the monitor. All errors and warnings of the scenario come out together, parse errors first.
///
/// # Errors
/// All messages, when at least one is an error.
pub fn compile(parsed: Parsed, facts: &dyn Facts) -> Result<Plan, Diagnostics> {
    let compiled = both(&parsed, facts, Target::Monitor);
    let Compiled {
        resources,
        run,
        domain: _,
        host,
        images,
        scenario,
        here,
        left_out: _,
        gave_way: _,
    } = compiled;
    let mut all: Problems = scenario
        .into_iter()
        .filter(|d| !is_about_libvirt(d))
        .collect();
    all.extend(here);
    let messages = Diagnostics::new(all, parsed.sources.clone());
    match resources {
        Some(resources) if !messages.has_errors() => Ok(Plan {
            images: images
                .into_iter()
                .filter(|i| {
                    // The domain's paths are absolute.
                    let here = facts.directory();
                    resources.disks.iter().any(|d| here.join(&d.path) == i.path)
                })
                .collect(),
            resources,
            run,
            host,
            warnings: messages,
            parsed,
        }),
        _ => Err(messages),
    }
}

/// Compiles to look at it or to hand it over: what this host or this build's monitor cannot do is no error.
///
/// # Errors
/// All messages, when at least one is an error wherever the machine would run.
pub fn describe(parsed: Parsed, facts: &dyn Facts) -> Result<Description, Diagnostics> {
    let compiled = both(&parsed, facts, Target::Libvirt);
    let Compiled {
        resources,
        run,
        domain,
        host,
        images,
        scenario,
        here,
        left_out,
        gave_way,
    } = compiled;
    let warnings = Diagnostics::new(scenario, parsed.sources.clone());
    if warnings.has_errors() {
        return Err(warnings);
    }
    let here = Diagnostics::new(here, parsed.sources.clone());
    let monitor = match resources {
        Some(resources) if !here.has_errors() => Ok((resources, run)),
        _ => Err(here),
    };
    Ok(Description {
        domain,
        host,
        images,
        warnings,
        monitor,
        left_out,
        gave_way,
        parsed,
    })
}

/// Who the machine is compiled for. A run wants no firmware of QEMU's, and nothing of a plan to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Monitor,
    Libvirt,
}

/// What one pass of the compiler yields.
struct Compiled {
    resources: Option<VmResources>,
    run: RunPlan,
    domain: Domain,
    host: HostPlan,
    images: Vec<Making>,
    /// What is wrong wherever the machine runs.
    scenario: Problems,
    /// What is wrong on this host, with this build's monitor.
    here: Problems,
    left_out: Vec<String>,
    gave_way: Vec<Difference>,
}

fn both(parsed: &Parsed, facts: &dyn Facts, target: Target) -> Compiled {
    let mut problems = Problems::new();
    // Of presets that do not go together no machine comes that anybody asked for.
    if parsed
        .problems
        .iter()
        .any(|d| d.code.starts_with("E-PRESET"))
    {
        return Compiled {
            resources: None,
            run: RunPlan::default(),
            domain: Domain::default(),
            host: HostPlan::default(),
            images: Vec::new(),
            scenario: parsed.problems.clone(),
            here: Problems::new(),
            left_out: Vec::new(),
            gave_way: Vec::new(),
        };
    }
    let mut left_out = here::gate(parsed, &mut problems);
    let mut here = std::mem::take(&mut problems);
    let mut lacks = Lacks::default();
    let (resources, run, about) = build(parsed, facts, &mut problems, &mut lacks);
    left_out.extend(lacks.left_out(&mut here));
    let (host, everywhere): (Problems, Problems) =
        problems.into_iter().partition(is_about_this_host);
    here.extend(host);
    let mut scenario = parsed.problems.clone();
    scenario.extend(old::check(&parsed.places, facts));
    scenario.extend(everywhere);
    let around = domain::Around {
        name: &about.name,
        cpus: about.cpus,
        memory: about.memory,
        cmdline: about.cmdline,
        command: parsed.scenario.command.is_some(),
        target,
    };
    // What could not be read has been said; the rest of it would only repeat that.
    let (domain, gave_way) = domain::build(parsed, &around, facts, &mut scenario);
    let gave_way = differences_of(parsed, &domain, gave_way);
    let machine = match target {
        Target::Monitor => host::Machine::of_monitor(&domain, resources.as_ref(), &left_out),
        Target::Libvirt => host::Machine::of_libvirt(&domain),
    };
    let host = host::plan(parsed, &machine, facts, &mut here);
    let images = make::plan(parsed, &domain, facts, &mut scenario);
    Compiled {
        resources,
        run,
        domain,
        host,
        images,
        scenario,
        here,
        left_out,
        gave_way,
    }
}

/// What the domain shares with the machine for the monitor.
struct About {
    name: String,
    cpus: vsc_vmm::resources::Cpus,
    memory: u64,
    cmdline: Option<String>,
}

fn build(
    parsed: &Parsed,
    facts: &dyn Facts,
    problems: &mut Problems,
    lacks: &mut Lacks,
) -> (Option<VmResources>, RunPlan, About) {
    let Scenario {
        name,
        cpu,
        memory,
        backing,
        kernel,
        root,
        command,
        env,
        workdir,
        disks,
        serials,
        consoles,
        console,
        rng,
        irqchip,
        pit,
        iothreads,
        events,
        limits,
        guest_parameters,
        control: _,
        register: _,
        locking,
        sandbox: _,
    } = &parsed.scenario;

    let command_span = command.as_ref().map(|c| c.span);
    if let Some(command) = command
        && command
            .value
            .first()
            .is_none_or(|first| first.value.is_empty())
    {
        let d = Diagnostic::error("E-VALUE", command.span, "The command is empty");
        problems.push(d.help("For example `command: uname -r`"));
    }
    if command.is_none() {
        let unused = [
            ("env", env.first().map(|(name, _)| name.span)),
            ("workdir", workdir.as_ref().map(|w| w.span)),
        ];
        for (key, span) in unused
            .into_iter()
            .filter_map(|(key, span)| Some((key, span?)))
        {
            let d = Diagnostic::warning(
                "W-UNUSED",
                span,
                format!("`{key}` is for a command, and there is none"),
            );
            problems.push(d.help("Add `command: …`, or `-- CMD` on the command line"));
        }
    }
    if let Some(dir) = workdir
        && !dir.value.starts_with('/')
    {
        let d = Diagnostic::error(
            "E-VALUE",
            dir.span,
            "`workdir` is a directory of the guest and starts with `/`",
        );
        problems.push(d.help(format!("Write `workdir: /{}`", dir.value)));
    }

    let vcpus = cpu::compile(cpu, facts, problems);
    let ram = memory::compile(memory, facts, problems);
    let hard_limit = backing.hard_limit;
    let backing = backing::compile(backing, ram, parsed, facts, lacks);
    let placement = placement::compile(cpu, vcpus.count, parsed, facts, problems, lacks);
    let mut blocks = disk::compile(disks, parsed.is_written("storage"), facts, problems);
    let locks = locks::compile(locking, disks, &mut blocks, facts, problems);
    let terminals = if command.is_some() {
        facts.terminals()
    } else {
        Default::default()
    };
    let streams = (serials.as_slice(), consoles.as_slice(), console);
    let streams = console::compile(streams, &kernel.console, command_span, terminals, problems);
    let around = kernel::Around {
        command: command.is_some(),
        root,
        // The disk that a preset implies is not there in this build's monitor.
        first_disk: disks
            .iter()
            .find(|d| d.value.path.is_some() && d.value.device.is_none_or(|d| d.value == "disk"))
            .map(|d| !d.value.read_only.is_some_and(|r| r.value)),
        memory: ram,
        consoles: streams.there,
        console: streams.kernel_console,
    };
    let payload = kernel::compile(kernel, guest_parameters, &around, facts, problems);
    if let (Some(Payload::Builtin { .. }), None, [preset, ..]) =
        (&payload, guest_parameters, parsed.presets.as_slice())
        // Nothing would make the monitor start such a one.
        && !here::is_encrypted(parsed)
    {
        let d = Diagnostic::error(
            "E-BOOT",
            parsed.span_of("preset"),
            format!(
                "{preset} boots from its disk, and the monitor of this build has no firmware to do so"
            ),
        );
        problems.push(d.help("Give a kernel (--kernel FILE) or a command (-- CMD); --export-xml and --on HOST hand the machine to libvirt"));
    }
    // Split starts and ends faster; only it has no PIT.
    let chip = word(*irqchip).unwrap_or(match pit {
        Some(pit) if pit.value => Irqchip::Kernel,
        _ => Irqchip::Split,
    });
    if let (Irqchip::Split, Some(pit)) = (chip, pit)
        && pit.value
    {
        let mut d = Diagnostic::error("E-CONFLICT", pit.span, "A split irqchip has no PIT");
        if let Some(irqchip) = irqchip {
            d = d.also(irqchip.span, "split here");
        }
        problems
            .push(d.why("KVM keeps the PIT with the PIC, and a split irqchip has none of them"));
    }

    let mut run = runner::plan(parsed, &around, streams.stdio, payload.as_ref(), problems);
    run.locks = locks;
    let name = machine_name(parsed, name.as_ref().map(|n| n.value.as_str()));
    let about = About {
        name: name.clone(),
        cpus: vcpus,
        memory: ram,
        cmdline: match &payload {
            Some(Payload::Kernel(spec)) => Some(kernel::elsewhere(&spec.cmdline, kernel)),
            _ => None,
        },
    };
    let iothreads = iothreads.map_or(1, |n| u32::try_from(n.value).unwrap_or(1));
    let kept = limits::Around {
        name: &name,
        memory: match backing.pages == Pages::Normal || backing.or_small_pages {
            true => ram,
            false => 0,
        },
        threads: u64::from(vcpus.count) + u64::from(iothreads.max(1)),
        hard_limit,
        real_time: placement.policy.priority().is_some(),
        images: disks
            .iter()
            .map(|d| Some(facts.directory().join(&d.value.path.as_ref()?.value)))
            .collect(),
    };
    run.cgroup = limits::compile(limits, &kept, parsed, facts, problems, lacks);
    let resources = payload.map(|payload| VmResources {
        name,
        cpus: vcpus,
        memory: ram,
        backing,
        placement,
        irqchip: chip,
        pit: pit.is_some_and(|p| p.value),
        payload,
        serials: streams.serials,
        consoles: streams.consoles,
        disks: blocks,
        rng: if rng.is_some_and(|r| r.value) {
            Some(RngSpec::default())
        } else {
            None
        },
        console_log: console.log.as_ref().map(|l| l.value.clone()),
        iothreads,
        events: events::compile(events, problems),
        limits: events::limits(limits, problems),
    });
    (resources, run, about)
}

/// The given name, or the file's without its ending, made fit for a name.
fn machine_name(parsed: &Parsed, given: Option<&str>) -> String {
    let stem = || {
        let stem = parsed
            .file
            .as_ref()?
            .file_stem()?
            .to_string_lossy()
            .into_owned();
        let fit = |c: char| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+') {
                c
            } else {
                '-'
            }
        };
        let name: String = stem.chars().map(fit).take(64).collect();
        value::name(&name, 64).ok()
    };
    let preset = || {
        parsed
            .presets
            .iter()
            .find(|p| presets::find(p).is_some())
            .map(|p| (*p).to_owned())
    };
    given
        .map(str::to_owned)
        .or_else(stem)
        .or_else(preset)
        .unwrap_or_else(|| "vsc".to_owned())
}

#[cfg(test)]
mod tests;
