//! `vsc-run`: one table of verbs and options feeds parsing and `--help`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::run::result::Summary;
use crate::run::signals::Parent;
use crate::say::{self, Fault};

mod attach;
mod bench;
mod child;
mod confinement;
mod cpu;
mod ctl;
mod describe;
mod disk;
mod doctor;
mod explain;
mod export;
mod firmware;
mod gc;
mod host;
mod hosts;
mod image;
mod import;
mod info;
mod last;
mod locks;
mod machines;
mod made;
mod net;
mod payload;
mod plan;
mod ps;
mod reference;
mod registered;
mod released;
mod run;
mod schema;
mod secrets;
mod sev;
mod shell;
mod table;
mod tuned;

/// Boots one virtual machine now, and puts everything back as it was.
#[derive(Debug, Parser)]
#[command(
    name = "vsc-run",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true,
    after_help = "Without SCENARIO and CMD, the built-in guest tests this host and ends.\n\
                  Exit codes: the guest's own 0..255; 120 panic, 121 hung or triple fault, 122 ended without a status,\n\
                  124 timeout, 125 our error, 126/127 command cannot be executed, 128+n signal."
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    run: run::RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Where `--help` shows the options of [`Common`].
const EVERY_VERB: &str = "Options of every verb";

/// Options that every verb takes.
#[derive(Debug, Args)]
struct Common {
    /// Machine-readable output.
    #[arg(long, global = true, help_heading = EVERY_VERB)]
    json: bool,
    /// Reads the host's facts below this directory instead of /.
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        help_heading = EVERY_VERB,
        default_value = "/",
        hide_default_value = true
    )]
    host_root: PathBuf,
    /// The settings for all machines, instead of a virtscenario.yaml where virt-scenario looks for it; `none`: none.
    #[arg(long, value_name = "FILE", global = true, help_heading = EVERY_VERB)]
    settings: Option<PathBuf>,
    /// Says less.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = EVERY_VERB)]
    quiet: bool,
    /// Says more: the guest's console on standard error.
    #[arg(short, long, global = true, help_heading = EVERY_VERB)]
    verbose: bool,
}

impl Common {
    /// What is wrong with the directory that stands in for the host.
    fn no_root(&self) -> Option<String> {
        let root = &self.host_root;
        if root == Path::new("/") {
            return None;
        }
        let why = match std::fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => return None,
            Ok(_) => "it is no directory".to_owned(),
            Err(e) => e.to_string(),
        };
        let root = root.display();
        Some(format!("there is no directory {root} (--host-root): {why}"))
    }

    /// Where the settings are.
    fn settings<'a>(&'a self, root: &'a vsc::facts::Root) -> vsc::SettingsFrom<'a> {
        match self.settings.as_deref() {
            None => vsc::SettingsFrom::Search(root),
            Some(path) if path.as_os_str() == "none" => vsc::SettingsFrom::Nowhere,
            Some(path) => vsc::SettingsFrom::File(path),
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Says what this host can run, and the one command that mends what it cannot.
    Doctor(doctor::DoctorArgs),
    /// Builds initrds, and looks into disk images.
    Image(image::ImageArgs),
    /// Lists the firmware of this host, and selects by what it can do.
    Firmware(firmware::FirmwareArgs),
    /// Makes disk images, and says what one is.
    Disk(disk::DiskArgs),
    /// Says who holds which image, and what keeps other machines off.
    Locks(locks::LocksArgs),
    /// Turns domain XML of libvirt, or files of virt-scenario, into a scenario.
    Import(import::ImportArgs),
    /// Lists hypervisors, selects one, and asks it what it has.
    Hosts(hosts::HostsArgs),
    /// Lists running machines.
    Ps(ps::PsArgs),
    /// Asks a run with a control socket how it is, or to end (scenario key `control`).
    Ctl(ctl::CtlArgs),
    /// Lists saved VMs.
    List(machines::ListArgs),
    /// Runs a saved VM.
    Start(machines::StartArgs),
    /// Says whether a saved VM runs: exit code 0 if it does, 3 if not.
    Status(machines::StatusArgs),
    /// Asks the guest of a saved VM to end.
    Stop(machines::StopArgs),
    /// Deletes a saved VM.
    Delete(machines::DeleteArgs),
    /// Connects this terminal to a machine's serial socket.
    Attach(attach::AttachArgs),
    /// Checks a scenario without running it.
    Check(explain::CheckArgs),
    /// Shows what a scenario becomes, or tells about a key of the language, a preset, a feature set.
    Explain(explain::ExplainArgs),
    /// Shows what a scenario would become here: recommended against current, devices, host changes. Touches nothing.
    Plan(plan::PlanArgs),
    /// Shows what a scenario's bridges need of the host, as commands, and who would do it. Touches nothing.
    Net(net::NetArgs),
    /// Prepares this host for a scenario, shows what is changed on it, and puts it back.
    Host(host::HostArgs),
    /// Puts back and removes what runs left that were killed.
    Gc(gc::GcArgs),
    /// Prints the JSON Schema of the scenario language.
    Schema,
    /// Shows the CPU features of the host, of a guest, and how they differ.
    Cpu(cpu::CpuArgs),
    /// Says what this host's CPU, memory and KVM are.
    Info,
    /// Encrypted guests (AMD SEV): what this host has of it, what it needs, launch policies.
    Sev(sev::SevArgs),
    /// Asks for commands and sets up virtual machines with them: the shell of virt-scenario, and more.
    Shell(shell::ShellArgs),
    /// Measures how long starts take.
    Bench(bench::BenchArgs),
    /// Prints the version and what this build can do.
    Version,
    /// Prints a script that completes this program's arguments in a shell.
    Completions(describe::CompletionsArgs),
    /// Prints a manual page, for `man -l -`.
    Man(describe::ManArgs),
}

impl Verb {
    /// The end of the code of what has none of its own: `E-DISK`.
    fn subject(&self) -> &'static str {
        match self {
            Self::Doctor(_) => "DOCTOR",
            Self::Image(_) => "IMAGE",
            Self::Firmware(_) => "FIRMWARE",
            Self::Disk(_) => "DISK",
            Self::Locks(_) => "LOCKS",
            Self::Import(_) => "IMPORT",
            Self::Hosts(_) => "HOSTS",
            Self::Ps(_) => "PS",
            Self::Ctl(_) => "CTL",
            Self::List(_) | Self::Start(_) | Self::Status(_) | Self::Stop(_) | Self::Delete(_) => {
                "VM"
            }
            Self::Attach(_) => "ATTACH",
            Self::Check(_) | Self::Explain(_) | Self::Plan(_) => "SCENARIO",
            Self::Net(_) => "NET",
            Self::Host(_) => "HOST",
            Self::Gc(_) => "GC",
            Self::Cpu(_) => "CPU",
            Self::Info => "INFO",
            Self::Sev(_) => "SEV",
            Self::Shell(_) => "SHELL",
            Self::Bench(_) => "BENCH",
            Self::Schema | Self::Version | Self::Completions(_) | Self::Man(_) => "PROGRAM",
        }
    }
}

/// Names that ARCHITECTURE keeps for verbs which are not in this build.
const LATER: &[&str] = &["top"];

/// [`Cli`] as far as a run needs it. The table of verbs takes most of the time that parsing takes, and a run is what
/// must start fast.
#[derive(Debug, Parser)]
#[command(name = "vsc-run", disable_help_flag = true)]
struct Short {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    run: run::RunArgs,
}

/// Words that clap takes for verbs.
const VERBS: &[&str] = &[
    "doctor",
    "image",
    "firmware",
    "disk",
    "locks",
    "import",
    "hosts",
    "ps",
    "ctl",
    "list",
    "start",
    "status",
    "stop",
    "delete",
    "attach",
    "check",
    "explain",
    "plan",
    "net",
    "host",
    "gc",
    "schema",
    "cpu",
    "info",
    "sev",
    "shell",
    "bench",
    "version",
    "completions",
    "man",
    "help",
];

/// `--json doctor` as `doctor --json`: options that every verb takes may stand before it. `None`: there are none.
fn verb_first(words: &[OsString]) -> Option<Vec<OsString>> {
    let mut at = 1;
    loop {
        let word = words.get(at)?.to_str()?;
        at += match word {
            "--json" | "-q" | "--quiet" | "-v" | "--verbose" => 1,
            "--host-root" | "--settings" => 2,
            _ if word.starts_with("--host-root=") || word.starts_with("--settings=") => 1,
            _ => break,
        };
    }
    let verb = words
        .get(at)
        .filter(|word| at > 1 && VERBS.iter().any(|verb| *word == verb))?;
    let before = words.get(1..at)?;
    let rest = words.get(at + 1..)?;
    let turned = words
        .first()
        .into_iter()
        .chain([verb])
        .chain(before)
        .chain(rest);
    Some(turned.cloned().collect())
}

/// Parses `words`, the program's name first. What [`Short`] does not understand, mistakes and calls for help
/// included, is for [`Cli`].
fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    let turned = verb_first(words);
    let words = turned.as_deref().unwrap_or(words);
    let mut before_command = words.iter().skip(1).take_while(|word| *word != "--");
    if !before_command.any(|word| VERBS.iter().any(|verb| word == verb))
        && let Ok(Short { common, run }) = Short::try_parse_from(words)
    {
        return Ok(Cli {
            common,
            run,
            verb: None,
        });
    }
    Cli::try_parse_from(words)
}

/// Says what is wrong with the command line; where it asked for a result, that says so too.
fn mistake(words: &[OsString], error: &clap::Error) -> u8 {
    let wanted = Wanted::of(words);
    if wanted.verb {
        let code = usage(error).say();
        if wanted.json {
            say::close(code);
        }
        return code;
    }
    if let Some(verb) = words.get(1).and_then(|w| w.to_str())
        && LATER.contains(&verb)
    {
        let message = format!("the verb {verb} is not in this build yet");
        if !wanted.json {
            say::error(&message);
        }
        return last::tell(
            &mut Summary::failed(message),
            wanted.result.as_deref(),
            wanted.json,
        );
    }
    let fault = usage(error);
    let message = fault.message().to_owned();
    if !wanted.json {
        fault.say_unkept();
    }
    last::tell(
        &mut Summary::failed(message),
        wanted.result.as_deref(),
        wanted.json,
    )
}

/// What clap says, in the form of every message: tips and usage come after an empty line.
fn usage(error: &clap::Error) -> Fault {
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut parts = lines.split(|line| line.is_empty());
    let message = parts.next().unwrap_or_default().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let advice: Vec<&str> = parts.flatten().copied().collect();
    let fault = Fault::error(message).code("E-USAGE");
    match advice.is_empty() {
        true => fault,
        false => fault.help(advice.join("\n")),
    }
}

/// What of a command line that clap does not understand can be understood all the same.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    result: Option<PathBuf>,
    json: bool,
    /// Of a verb: it has no result, and its --json is about its answer.
    verb: bool,
}

impl Wanted {
    fn of(words: &[OsString]) -> Self {
        let mut wanted = Self::default();
        let mut words = words
            .iter()
            .skip(1)
            .take_while(|word| *word != "--")
            .peekable();
        while let Some(word) = words.next() {
            if VERBS.iter().any(|verb| word == verb) {
                wanted.verb = true;
                wanted.result = None;
            }
            if word == "--json" {
                wanted.json = true;
            } else if wanted.verb {
                continue;
            } else if word == "--result" {
                wanted.result = words
                    .next_if(|file| !file.as_bytes().starts_with(b"-"))
                    .map(PathBuf::from);
            } else if let Some(file) = word.as_bytes().strip_prefix(b"--result=") {
                wanted.result = Some(OsStr::from_bytes(file).into());
            }
        }
        wanted
    }
}

/// Parses, runs, and returns the exit code.
pub(crate) fn main(parent: Parent) -> u8 {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == vsc::tune::WARDEN) {
        return match vsc::tune::warden(crate::run::detach::last_word) {
            Ok(()) => 0,
            Err(e) => {
                say::error(&format!("no run has started this process: {e}"));
                crate::FAILED
            }
        };
    }
    if let [_, first, rest @ ..] = &words[..]
        && first == crate::run::registration::REGISTRAR
    {
        return crate::run::registration::registrar(rest);
    }
    if let [_, first, rest @ ..] = &words[..]
        && first == crate::run::leases::LOST
    {
        return crate::run::leases::tell_lost(rest);
    }
    let cli = match parse(&words) {
        Ok(cli) => cli,
        Err(e) => {
            if e.use_stderr() {
                return mistake(&words, &e);
            }
            // clap's own printing: help and version go to standard output.
            let _ = e.print();
            return 0;
        }
    };
    let subject = cli.verb.as_ref().map_or("RUN", Verb::subject);
    say::about(subject);
    if let Some(message) = cli.common.no_root() {
        let wanted = Wanted::of(&words);
        if wanted.verb {
            let code = say::error(&message);
            if wanted.json {
                say::close(code);
            }
            return code;
        }
        if !wanted.json {
            say::error(&message);
        }
        let mut summary = Summary::failed(message);
        return last::tell(&mut summary, wanted.result.as_deref(), wanted.json);
    }
    // Standard output is a guest's: what there is to tell is in the object at the end, on standard error.
    let guests = match &cli.verb {
        None => true,
        Some(Verb::Start(args)) => !args.is_detached(),
        Some(_) => false,
    };
    let exports = cli.verb.is_none() && cli.run.is_export();
    let answers = cli.common.json && (!guests || exports);
    let code = verb(cli, parent);
    if answers {
        say::close(code);
    }
    code
}

fn verb(cli: Cli, parent: Parent) -> u8 {
    match cli.verb {
        None => run::run(cli.run, &cli.common, parent),
        Some(Verb::Doctor(args)) => doctor::run(&args, &cli.common),
        Some(Verb::Image(args)) => image::run(args, &cli.common),
        Some(Verb::Firmware(args)) => firmware::run(&args, &cli.common),
        Some(Verb::Disk(args)) => disk::run(args, &cli.common),
        Some(Verb::Locks(args)) => locks::run(&args, &cli.common),
        Some(Verb::Import(args)) => import::run(&args, &cli.common),
        Some(Verb::Hosts(args)) => hosts::run(&args, &cli.common),
        Some(Verb::Ps(args)) => ps::run(&args, &cli.common),
        Some(Verb::Ctl(args)) => ctl::run(&args, &cli.common),
        Some(Verb::List(args)) => machines::list(&args, &cli.common),
        Some(Verb::Start(args)) => machines::start(&args, &cli.common, parent),
        Some(Verb::Status(args)) => machines::status(&args, &cli.common),
        Some(Verb::Stop(args)) => machines::stop(&args, &cli.common),
        Some(Verb::Delete(args)) => machines::delete(&args, &cli.common),
        Some(Verb::Attach(args)) => attach::run(&args, &cli.common),
        Some(Verb::Check(args)) => explain::check(&args, &cli.common),
        Some(Verb::Explain(args)) => explain::explain(&args, &cli.common),
        Some(Verb::Plan(args)) => plan::plan(&args, &cli.common),
        Some(Verb::Net(args)) => net::run(&args, &cli.common),
        Some(Verb::Host(args)) => host::run(&args, &cli.common),
        Some(Verb::Gc(args)) => gc::run(&args, &cli.common),
        Some(Verb::Schema) => schema::run(),
        Some(Verb::Cpu(args)) => cpu::run(&args, &cli.common),
        Some(Verb::Info) => info::run(&cli.common),
        Some(Verb::Sev(args)) => sev::run(&args, &cli.common),
        Some(Verb::Shell(args)) => shell::run(args, &cli.common),
        Some(Verb::Bench(args)) => bench::run(&args, &cli.common),
        Some(Verb::Version) => describe::version(&cli.common),
        Some(Verb::Completions(args)) => describe::completions(&args, &cli.common),
        Some(Verb::Man(args)) => describe::man(&args, &cli.common),
    }
}

#[cfg(test)]
mod tests;
