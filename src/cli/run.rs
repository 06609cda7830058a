//! `vsc-run [SCENARIO] [-- CMD [ARG…]]`: the main job.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use vsc::compile::{Plan, Stdio};
use vsc::diag::Diagnostics;
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::runs::{self, RunsError};
use vsc::scenario::{Layer, Override, Parsed};
use vsc_devices::stream::Endpoint;
use vsc_devices::virtio::console::{ConsoleSpec, PortSpec};
use vsc_vmm::kvm::Host;
use vsc_vmm::resources::Payload;

use super::Common;
use super::export::{describe_parsed, domain_xml};
use super::last::{ended, failed, finish, last_words, tell};
use super::machines::{self, StoreArgs};
use super::made;
use super::payload::{is_initrd, kernel_cache};
use super::tuned;
use crate::run::ending::Ending;
use crate::run::outside::Errands;
use crate::run::ready::Ready;
use crate::run::result::{self, Summary};
use crate::run::signals::Parent;
use crate::run::{self, Job, Verbosity, command};
use crate::say;

/// Options of a run, shared by the verbs that look at a scenario.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// A scenario file, an initrd, or nothing: the keys then come from the options alone.
    #[arg(value_name = "SCENARIO")]
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Ends the run after this long: 90s, 2m, 1h (exit code 124).
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// Writes how the run ended to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) result: Option<PathBuf>,
    /// Prints libvirt domain XML of the scenario instead of running it. `--export-xml network -- KEY=VALUE…` and
    /// `--export-xml pool -- KEY=VALUE…` print that of a network or a storage pool.
    #[arg(long)]
    export_xml: bool,
    /// Sets a place of the exported XML: `devices/video/model/@heads=2`.
    #[arg(long, value_name = "XPATH=VALUE", requires = "export_xml")]
    xml_set: Vec<String>,
    /// The run has a control socket, for `vsc-run ctl`.
    #[arg(long, conflicts_with_all = ["export_xml", "on"])]
    control: bool,
    /// Shows the machine to other users: `vsc-run ps --all`, machinectl.
    #[arg(long, conflicts_with_all = ["export_xml", "on"])]
    register: bool,
    /// Runs without confinement: a guest that breaks out of the machine can do whatever you can.
    #[arg(long, conflicts_with_all = ["export_xml", "on"])]
    no_sandbox: bool,
    /// Says on standard error where the time went.
    #[arg(long)]
    pub(super) timing: bool,
    /// Saves the scenario as a VM under its name, for `start`, and runs nothing.
    #[arg(long, conflicts_with_all = ["timeout", "result", "timing", "export_xml", "detach"])]
    save: bool,
    /// With --save or --on: replaces a VM of that name.
    #[arg(long, conflicts_with = "export_xml")]
    overwrite: bool,
    /// Hands the machine to the libvirt of this name, of `vsc-run hosts`, and waits for its end.
    #[arg(long, value_name = "HOST", conflicts_with_all = ["timing", "export_xml"])]
    on: Option<String>,
    /// With --on: returns when the machine has started.
    #[arg(long, conflicts_with_all = ["result", "export_xml"])]
    detach: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// The command to run in the guest.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl RunArgs {
    /// Nothing is run: what is asked for is a text.
    pub(super) fn is_export(&self) -> bool {
        self.export_xml || self.save
    }
}

/// Options that stand for keys.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Sets a scenario key, as in `-o memory.size=2G`; later ones win.
    // Not among the global options: `image tiny -o FILE` means a file.
    #[arg(short = 'o', value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The kernel: ELF, bzImage or compressed vmlinux.
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// The initrd.
    #[arg(long, value_name = "FILE")]
    initrd: Option<String>,
    /// Guest memory: 512M, 2G; a bare number is MiB.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Number of vCPUs.
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
}

impl KeyArgs {
    pub(super) fn layers(&self) -> Vec<Layer> {
        [
            ("--kernel", "kernel.path", &self.kernel),
            ("--initrd", "kernel.initrd", &self.initrd),
            ("--memory", "memory.size", &self.memory),
            ("--cpus", "cpu.count", &self.cpus),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| {
            Some(Layer::Flag(Override::flag(flag, key, value.as_deref()?)))
        })
        .collect()
    }

    /// The layers of `-o`, in order; they come after every other.
    pub(super) fn overrides(&self) -> impl Iterator<Item = Layer> {
        self.set
            .iter()
            .map(|text| Layer::Option(Override::option(text)))
    }
}

/// What to compile: a file or none, and what the command line adds.
pub(super) struct Source<'a> {
    pub(super) file: Option<&'a Path>,
    pub(super) layers: Vec<Layer>,
}

/// Reads what is to be compiled. `None`: errors were printed.
pub(super) fn read(source: Source<'_>, common: &Common) -> Option<Parsed> {
    let root = Root(common.host_root.clone());
    let home = Variables::of_process().home;
    let settings = common.settings(&root);
    let parsed = vsc::load(source.file, source.layers, home, settings);
    or_report(parsed, common)
}

/// Reads, compiles, and says what there is to say about it. `None`: errors were printed.
pub(super) fn compile(source: Source<'_>, common: &Common) -> Option<Plan> {
    compile_parsed(read(source, common)?, common)
}

/// The same for what was read already.
pub(super) fn compile_parsed(parsed: Parsed, common: &Common) -> Option<Plan> {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root, Variables::of_process());
    or_report(vsc::compile(parsed, &facts), common).inspect(|plan| report(&plan.warnings, common))
}

/// The same for a run: with a directory in the place of the host, the machine still is this host's.
pub(super) fn compile_to_run(parsed: Parsed, common: &Common) -> Option<Plan> {
    let root = Root(common.host_root.clone());
    let mut facts = LiveFacts::new(root.clone(), Variables::of_process());
    if root != Root::default() {
        facts = facts.with_kvm(Host::probe(), None).with_kernels_here();
        if !common.quiet {
            say::note(&format!(
                "the host's facts are those of {}, and that is changed in its place; the machine runs on this host",
                root.0.display()
            ));
        }
    }
    or_report(vsc::compile(parsed, &facts), common).inspect(|plan| report(&plan.warnings, common))
}

/// What came of it; `None` after its errors are printed.
pub(super) fn or_report<T>(outcome: Result<T, Diagnostics>, common: &Common) -> Option<T> {
    outcome.map_err(|messages| report(&messages, common)).ok()
}

/// The layer of a command line. Only messages show it; the command gets its words as they are.
pub(super) fn command_layer(command: &[OsString]) -> Option<Layer> {
    let words = command
        .iter()
        .map(|word| word.to_string_lossy().into_owned());
    (!command.is_empty()).then(|| Layer::Command(words.collect()))
}

pub(super) fn report(messages: &Diagnostics, common: &Common) {
    let records = messages.records();
    if records.is_empty() {
        return;
    }
    for record in &records {
        say::keep(serde_json::to_value(record).unwrap_or_default());
    }
    if common.json {
        for record in &records {
            say::err_raw(&(serde_json::to_string(record).unwrap_or_default() + "\n"));
        }
    } else if !common.quiet || messages.has_errors() {
        say::err_raw(&messages.render(std::io::stderr().is_terminal()));
    }
}

pub(super) fn run(args: RunArgs, common: &Common, parent: Parent) -> u8 {
    let started = Instant::now();
    if args.export_xml
        && let Some(kind) = args.scenario.as_deref()
        && let Some(code) = super::export::other(kind, &args.command, common)
    {
        return code;
    }
    // A run tells everything in its result; an export's messages stand for themselves.
    if common.json && !args.export_xml {
        say::silence();
    }
    let mut layers = args.keys.layers();
    let mut file = args.scenario.as_deref();
    let mut image = false;
    if let Some(path) = file
        && is_initrd(path)
    {
        layers.push(Layer::Flag(Override::flag(
            "SCENARIO",
            "kernel.initrd",
            &path.to_string_lossy(),
        )));
        // As make-tiny-image does: what is asked for is the image's output, not the kernel's.
        layers.push(Layer::Flag(Override::flag(
            "SCENARIO",
            "kernel.prolog",
            "quiet",
        )));
        image = true;
        file = None;
    }
    if let Some(name) =
        file.filter(|p| super::LATER.iter().any(|verb| p.as_os_str() == *verb) && !p.exists())
    {
        let message = format!(
            "the verb {} is not in this build yet (a scenario of that name is ./{0})",
            name.display()
        );
        say::error_unkept(&message);
        return finish(Summary::failed(message), &args, common);
    }
    if let Some(timeout) = &args.timeout {
        layers.push(Layer::Flag(Override::flag(
            "--timeout",
            "limits.timeout",
            timeout,
        )));
    }
    for (flag, key, value, given) in [
        ("--control", "control", "true", args.control),
        ("--register", "register", "true", args.register),
        ("--no-sandbox", "sandbox", "false", args.no_sandbox),
    ] {
        layers.extend(given.then(|| Layer::Flag(Override::flag(flag, key, value))));
    }
    layers.extend(args.keys.overrides());
    layers.extend(command_layer(&args.command));
    if args.export_xml {
        return super::export::domain(Source { file, layers }, &args.xml_set, common);
    }
    let Some(parsed) = read(Source { file, layers }, common) else {
        return finish(Summary::failed(SCENARIO_ERRORS.into()), &args, common);
    };
    let on = args.on.clone().or_else(|| parsed.text("on"));
    if args.save || on.is_some() {
        let mut summary = match elsewhere(parsed, on.as_deref(), &args, common) {
            Ok(None) => return 0,
            Ok(Some(ending)) => machines::ended_elsewhere(ending),
            Err(message) => {
                match message == SCENARIO_ERRORS {
                    // Each has been said.
                    true => say::note_unkept(&message),
                    false => drop(say::error_unkept(&message)),
                }
                Summary::failed(message)
            }
        };
        return tell(&mut summary, args.result.as_deref(), common.json);
    }
    if args.overwrite || args.detach || args.store.store.is_some() {
        let message = "--store, --overwrite and --detach are for VMs that are saved (--save) or handed to libvirt (--on HOST); a saved one is \
                       detached by `start NAME --detach`";
        say::error_unkept(message);
        return finish(Summary::failed(message.into()), &args, common);
    }
    let summary = match compile_to_run(parsed, common) {
        Some(plan) => {
            let launch = Launch {
                image,
                command: &args.command,
                count: args.timing || args.result.is_some() || common.json,
                started,
                ready: None,
                errands: result::errands(args.result.as_deref()),
                made: None,
            };
            launch.run(plan, common, parent)
        }
        None => Summary::failed(SCENARIO_ERRORS.into()),
    };
    finish(summary, &args, common)
}

/// What is left to say once the messages about a scenario are out.
const SCENARIO_ERRORS: &str = "the scenario has errors";

/// Saves a scenario, or hands it to a libvirt. `None`: there is no end to tell of.
fn elsewhere(
    parsed: Parsed,
    on: Option<&str>,
    args: &RunArgs,
    common: &Common,
) -> Result<Option<Ending>, String> {
    let list = parsed.text("hosts").map(PathBuf::from);
    let on = on.map(|name| machines::resolve(name, list.as_deref(), common));
    let on = on.transpose().map_err(|e| e.to_string())?;
    let errors = || SCENARIO_ERRORS.to_owned();
    let description = describe_parsed(parsed, common).ok_or_else(errors)?;
    let exported = domain_xml(&description, &[], common).ok_or_else(errors)?;
    match on {
        on if args.save => {
            machines::save(
                &description,
                &exported,
                on,
                &args.store,
                args.overwrite,
                common,
            )
            .map_err(|e| e.to_string())?;
            Ok(None)
        }
        Some(on) => {
            let how = (args.overwrite, args.detach);
            machines::hand_over(&description, &exported, &on, how, common)
                .map_err(|e| e.to_string())
        }
        None => Ok(None),
    }
}

/// Where the runs of this user have their state.
pub(super) fn runs_base() -> Result<PathBuf, RunsError> {
    runs::base(
        std::env::var_os("XDG_RUNTIME_DIR")
            .as_deref()
            .map(Path::new),
    )
}

/// Where the init of an image of ours, if it is one, tells the status of what it ran, on the machine's console.
fn control_console() -> ConsoleSpec {
    let port = |name: &str, end: Endpoint| PortSpec {
        name: Some(name.to_owned()),
        console: false,
        input: end.clone(),
        output: end,
        log: false,
        kernel: false,
    };
    let control = Endpoint::Given(command::CONTROL_END.to_owned());
    ConsoleSpec {
        ports: vec![
            port(command::CONTROL_END, control),
            port(command::CONSOLE_MARK, Endpoint::Null),
        ],
        size: false,
    }
}

/// A plan about to be run, and what only the command line says of it.
pub(super) struct Launch<'a> {
    /// What was given in the scenario's place is an initrd.
    pub(super) image: bool,
    /// The command's words as they are.
    pub(super) command: &'a [OsString],
    /// KVM's counters are wanted.
    pub(super) count: bool,
    /// When the program started.
    pub(super) started: Instant,
    /// Whom to tell that the guest lives.
    pub(super) ready: Option<Ready>,
    /// What is written after its end.
    pub(super) errands: Errands<'a>,
    /// Hears of each image that is made for it.
    pub(super) made: Option<made::Note<'a>>,
}

impl Launch<'_> {
    /// Runs it to its end, and says what there is to say about that.
    pub(super) fn run(self, plan: Plan, common: &Common, parent: Parent) -> Summary {
        launch(plan, self, common, parent)
    }
}

fn launch(mut plan: Plan, how: Launch<'_>, common: &Common, parent: Parent) -> Summary {
    let image = how.image;
    let control_in = match plan.run.control.then(runs_base).transpose() {
        Ok(base) => base.map(|base| (base, runs::new_id())),
        Err(e) => {
            say::error_unkept(&e.to_string());
            return Summary::failed(e.to_string());
        }
    };
    let secrets = match super::secrets::read(&mut plan, common) {
        Ok(secrets) => secrets,
        Err(why) => return Summary::failed(why),
    };
    if let Payload::Kernel(kernel) = &mut plan.resources.payload {
        kernel.cache = kernel_cache();
    }
    if let Err(e) = command::prepare(&plan.run, how.command, &mut plan.resources) {
        let why = run::chain(&e);
        say::error_unkept(&why);
        return match command::not_executable(&plan.run, &e) {
            Some(ending) => {
                say::keep(serde_json::json!({ "message": why }));
                Summary::never_ran(ending)
            }
            None => Summary::failed(why),
        };
    }
    let command = plan.run.stdio != Stdio::None;
    if image && !command {
        plan.resources.consoles.push(control_console());
    }
    let on_terminal =
        |e: &vsc_devices::stream::Endpoint| *e == vsc_devices::stream::Endpoint::Stdio;
    let interactive = match plan.run.stdio {
        Stdio::Terminal => true,
        Stdio::Pipes => false,
        Stdio::None => {
            plan.resources
                .serials
                .iter()
                .any(|s| on_terminal(&s.endpoint))
                || plan
                    .resources
                    .consoles
                    .iter()
                    .flat_map(|c| &c.ports)
                    .any(|p| on_terminal(&p.input))
        }
    };
    if common.verbose {
        for serial in &mut plan.resources.serials {
            if serial.endpoint == vsc_devices::stream::Endpoint::Null {
                serial.endpoint = vsc_devices::stream::Endpoint::Stderr;
            }
        }
    }
    let shown = common.verbose
        || plan
            .resources
            .serials
            .iter()
            .any(|s| on_terminal(&s.endpoint));
    let mut job = Job {
        resources: plan.resources,
        command,
        control: command || image,
        descriptors: &plan.run.descriptors,
        secrets,
        interactive,
        verbosity: match (common.quiet, common.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        },
        count_exits: how.count,
        started: how.started,
        ready: how.ready,
        control_in,
        unconfined: plan.run.unconfined,
        swept: false,
        witness: None,
        removes: plan.run.locks.directories(),
        leases: None,
    };
    // Before this process is where its children would be, too.
    let registration =
        match super::registered::registered(plan.run.register, &job.resources.name, common) {
            Ok(registration) => registration,
            Err(why) => return failed(why),
        };
    // Given up after the machine has closed its images.
    job.leases = match super::released::leases(&plan.run.locks, &job.resources) {
        Ok(leases) => leases,
        Err(why) => return failed(why),
    };
    let images = std::mem::take(&mut plan.images);
    let disks = &job.resources.disks;
    let (locks, made) = match made::make(images, &plan.run.locks, disks, how.made, common) {
        Ok(both) => both,
        Err(made::Failure::Told(why)) => return failed(why),
        Err(made::Failure::Code(code)) => {
            let mut summary = Summary::failed("a disk image could not be made".to_owned());
            summary.code = code;
            return summary;
        }
    };
    // Before this process is in a group that is to go, or may do less than now.
    let limits = plan.run.cgroup.as_ref();
    let limits = limits.map(|cgroup| cgroup.changes(std::process::id()));
    let mut changes = limits.unwrap_or_default();
    let mut leftovers = run::leftovers::of(&job.resources, job.control_in.as_ref());
    let new = run::leftovers::are_new(&leftovers);
    if common.host_root == Path::new("/") {
        changes.append(&mut leftovers);
    }
    // What a run makes is this host's, whatever stands in for it elsewhere.
    let kept = match tuned::keep(&job.resources.name, &leftovers) {
        Ok(kept) => kept,
        Err(why) => return failed(why),
    };
    let tuned = match tuned::begin(&job.resources.name, &plan.host, changes, common) {
        Ok(tuned) => tuned,
        Err(why) => return failed(why),
    };
    let outside = super::released::outside(!job.unconfined, how.errands, &plan.run.locks);
    let mut outside = match outside {
        Ok(outside) => outside,
        Err(why) => return failed(why),
    };
    job.swept = new && (kept.is_some() || tuned.sweeps());
    if !run::leftovers::sockets(&job.resources).is_empty() {
        job.witness = match &kept {
            Some(kept) => kept.witness(),
            None => tuned.witness(),
        };
    }
    let inside = plan
        .run
        .cgroup
        .as_ref()
        .map(|cgroup| run::cgroup::enter(cgroup, &Root(common.host_root.clone())));
    if let Err(e) = inside.transpose() {
        return failed(run::chain(&e));
    }
    let mut summary = run::run(job, parent);
    summary.host.clone_from(&tuned.told);
    if summary.has_run() {
        made.keep();
    }
    drop(registration);
    super::released::locks(locks, &mut outside);
    summary.outside = outside;
    tuned.end(common);
    drop(kept);
    if let Some(sentence) = summary.ending.sentence() {
        if summary.ending.wants_console() && !common.quiet {
            last_words(&summary, shown);
        }
        ended(&summary.ending, &sentence);
    }
    summary
}
