//! `vsc-run disk`: makes disk images, and says what one is.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use vsc::compile::Making;
use vsc::diag::{Diagnostic, Diagnostics, Severity, Sources, Span};
use vsc::images::{
    self, CompressionType, Created, Encryption, ImageError, ImageFormat, ImageSpec, Info,
    Preallocation, Progress, Remark, SecretSource,
};

use super::Common;
use super::export::describe;
use super::run::{KeyArgs, Source};
use crate::run::ending::SIGNAL_BASE;
use crate::run::signals::Signals;
use crate::say::Fault;
use crate::{run, say};

mod bar;
mod prompt;

use bar::Bar;

/// Arguments of `disk`.
#[derive(Debug, Args)]
pub(super) struct DiskArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Makes an image. What exists is never overwritten, and what fails or is interrupted leaves nothing.
    Create(Box<CreateArgs>),
    /// Makes the images that a scenario wants and that are not there yet.
    Make(MakeArgs),
    /// Says what an image's header says, without opening anything that it refers to.
    Info(InfoArgs),
}

/// Arguments of `disk make`.
#[derive(Debug, Args)]
struct MakeArgs {
    /// A scenario file, or the name of a preset.
    scenario: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Arguments of `disk create`.
#[derive(Debug, Args)]
struct CreateArgs {
    /// The image to make.
    file: PathBuf,
    /// What the guest sees: 20G, 512M; a bare number is MiB, as in scenarios.
    #[arg(value_parser = images::parse_size)]
    size: u64,
    /// Its format (default: raw). Formats other than raw are made by qemu-img.
    #[arg(long, value_parser = word(ImageFormat::WORDS, ImageFormat::parse))]
    format: Option<ImageFormat>,
    /// What is allocated at once: nothing, the tables (qcow2), room on the file system, or written zeros.
    #[arg(long, default_value = "off", value_parser = word(Preallocation::WORDS, Preallocation::parse))]
    preallocation: Preallocation,
    /// Size of a cluster (qcow2): a power of two from 512B to 2M (default: 64K).
    #[arg(long, value_name = "SIZE", value_parser = images::parse_size)]
    cluster_size: Option<u64>,
    /// Writes reference counts late (qcow2).
    #[arg(long, value_name = "on|off", value_parser = word(&["on", "off"], on_off))]
    lazy_refcounts: Option<bool>,
    /// How clusters are compressed by tools that compress them (qcow2).
    #[arg(long, value_parser = word(CompressionType::WORDS, CompressionType::parse))]
    compression_type: Option<CompressionType>,
    /// Encrypts the content: LUKS within qcow2, or a LUKS container (version 1) around raw. The passphrase is asked for on the terminal unless it comes from elsewhere.
    #[arg(long, default_value = "none", value_parser = word(Encryption::WORDS, Encryption::parse))]
    encryption: Encryption,
    /// How long the computation of the key is to take on this host, milliseconds: what each start waits.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    iter_time: u64,
    /// A file with the passphrase, which nobody else can read; one newline at its end does not belong to it.
    #[arg(long, value_name = "FILE", conflicts_with = "secret_fd")]
    secret_file: Option<PathBuf>,
    /// A descriptor to read the passphrase from, in the same way.
    #[arg(long, value_name = "N")]
    secret_fd: Option<u32>,
    /// A credential of the service that has the passphrase (systemd.exec(5)).
    #[arg(long, value_name = "NAME", conflicts_with_all = ["secret_file", "secret_fd"])]
    secret_credential: Option<String>,
    /// Makes missing directories.
    #[arg(long)]
    parents: bool,
}

/// Arguments of `disk info`.
#[derive(Debug, Args)]
struct InfoArgs {
    /// The image: a file or a block device.
    file: PathBuf,
    /// Its format; it is never guessed, because a guest can write any header to a raw disk.
    #[arg(long, default_value = "raw", value_parser = word(ImageFormat::WORDS, ImageFormat::parse))]
    format: ImageFormat,
}

/// A parser of one word out of some.
fn word<T: Clone + Send + Sync + 'static>(
    words: &'static [&'static str],
    parse: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words)
        .try_map(move |word| parse(&word).ok_or_else(|| format!("{word} is not one of the words")))
}

fn on_off(word: &str) -> Option<bool> {
    match word {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

pub(super) fn run(args: DiskArgs, common: &Common) -> u8 {
    match args.what {
        What::Create(args) => create(*args, common),
        What::Info(args) => info(&args, common),
        What::Make(args) => make_of(&args, common),
    }
}

/// Says what is wrong, as `check` does for scenarios.
fn tell(remarks: Vec<Remark>) {
    let list = remarks
        .into_iter()
        .map(|remark| {
            let d = match remark.severity {
                Severity::Error => Diagnostic::error(remark.code, Span::NONE, remark.message),
                Severity::Warning => Diagnostic::warning(remark.code, Span::NONE, remark.message),
            };
            d.help(remark.help)
        })
        .collect();
    let color = io::stderr().is_terminal();
    let messages = Diagnostics::new(list, Arc::new(Sources::default()));
    for record in messages.records() {
        say::keep(serde_json::to_value(record).unwrap_or_default());
    }
    say::err_raw(&messages.render(color));
}

fn failed(error: ImageError) -> u8 {
    match error {
        ImageError::Refused(remarks) => tell(remarks),
        error => {
            let fault = Fault::error(&run::chain(&error));
            match error.help() {
                Some(help) => fault.help(help).say(),
                None => fault.say(),
            };
        }
    }
    crate::FAILED
}

fn create(args: CreateArgs, common: &Common) -> u8 {
    let extension = args.file.extension().and_then(|e| e.to_str());
    if args.format.is_none()
        && let Some(named @ ("qcow2" | "qcow" | "qed" | "vmdk" | "vdi" | "vhd" | "vhdx")) =
            extension
    {
        say::error(&format!(
            "the name ends in .{named}, and without --format the image would be raw: say --format qcow2 or --format raw"
        ));
        return crate::FAILED;
    }
    let secret = args
        .secret_file
        .map(SecretSource::File)
        .or(args.secret_fd.map(SecretSource::Descriptor))
        .or(args.secret_credential.map(SecretSource::Credential));
    let spec = ImageSpec {
        preallocation: args.preallocation,
        cluster_size: args.cluster_size,
        lazy_refcounts: args.lazy_refcounts,
        compression_type: args.compression_type,
        encryption: args.encryption,
        iter_time: std::time::Duration::from_millis(args.iter_time),
        secret,
        parents: args.parents,
        ..ImageSpec::new(
            args.file,
            args.format.unwrap_or(ImageFormat::Raw),
            args.size,
        )
    };
    let asks = spec.encryption == Encryption::Luks && spec.secret.is_none();
    let mut remarks = images::check(&spec);
    remarks.retain(|remark| !(asks && remark.key == "secret_file"));
    let refused = remarks.iter().any(|r| r.severity == Severity::Error);
    tell(remarks);
    if refused {
        return crate::FAILED;
    }
    if images::is_taken(&spec.path) {
        return failed(ImageError::Exists(spec.path));
    }
    match make(spec, common) {
        Ok(created) => {
            if common.json {
                let record = serde_json::to_string_pretty(&created).unwrap_or_default();
                say::out(&(record + "\n"));
            }
            0
        }
        Err(code) => code,
    }
}

/// Makes an image, with its progress on the terminal; asks for a passphrase that is needed and not given. An error has
/// been said, and is its exit code here.
pub(super) fn make(mut spec: ImageSpec, common: &Common) -> Result<Created, u8> {
    // Whoever waits for a pipe here can still be interrupted: nothing has been made.
    let mut notes = Vec::new();
    if let Some(source) = spec.secret.take() {
        let secret = source.read(&mut notes).map_err(failed)?;
        spec.secret = Some(SecretSource::Given(secret));
    }
    let signals = Signals::take().map_err(|e| {
        say::error(&format!("cannot watch for signals: {e}"));
        crate::FAILED
    })?;
    let mut watch = Watch {
        bar: (!common.quiet && !common.json).then(|| Bar::new(&spec.path)),
        signals,
        ended_by: None,
    };
    if spec.encryption == Encryption::Luks && spec.secret.is_none() {
        match prompt::passphrase(&spec.path, &mut watch.signals) {
            Ok(secret) => spec.secret = Some(SecretSource::Given(secret)),
            Err(prompt::Failure::Signal(signal)) => return Err(signal_code(signal)),
            Err(prompt::Failure::Error(message)) => {
                say::error(&message);
                return Err(crate::FAILED);
            }
        }
    }
    let result = images::create(&spec, &mut watch);
    if let Some(bar) = &mut watch.bar {
        bar.clear();
    }
    match result {
        Ok(mut created) => {
            notes.append(&mut created.notes);
            for note in &notes {
                say::note(note);
            }
            created.notes = notes;
            if !common.quiet && !common.json {
                let path = vsc::diag::shown(&created.path.to_string_lossy());
                say::note(&format!(
                    "made {path}: {}, {}",
                    created.format.word(),
                    bar::amount(created.size)
                ));
            }
            Ok(created)
        }
        Err(e) => {
            let code = failed(e);
            Err(watch.ended_by.map_or(code, signal_code))
        }
    }
}

/// Makes the images of a scenario that are not there yet. An error has been said.
pub(super) fn make_all(images: Vec<Making>, common: &Common) -> Result<Vec<Created>, u8> {
    images
        .into_iter()
        .map(|image| make(image.spec, common))
        .collect()
}

/// `disk make SCENARIO`.
fn make_of(args: &MakeArgs, common: &Common) -> u8 {
    let source = Source {
        file: Some(&args.scenario),
        layers: args.keys.overrides().collect(),
    };
    let Some(description) = describe(source, common) else {
        return crate::FAILED;
    };
    match make_all(description.images, common) {
        Ok(created) => {
            if common.json {
                say::out(&(serde_json::to_string_pretty(&created).unwrap_or_default() + "\n"));
            }
            0
        }
        Err(code) => code,
    }
}

/// As a shell says that a signal ended a program.
fn signal_code(signal: i32) -> u8 {
    SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(0))
}

/// Shows how far it is, and looks for signals.
struct Watch {
    bar: Option<Bar>,
    signals: Signals,
    ended_by: Option<i32>,
}

impl Progress for Watch {
    fn advance(&mut self, done: u64, total: Option<u64>) -> ControlFlow<()> {
        while let Some(signal) = self.signals.next() {
            if signal != libc::SIGWINCH {
                self.ended_by = Some(signal);
                return ControlFlow::Break(());
            }
        }
        if let (Some(bar), Some(total)) = (&mut self.bar, total) {
            bar.advance(done, total);
        }
        ControlFlow::Continue(())
    }
}

fn info(args: &InfoArgs, common: &Common) -> u8 {
    let told = match images::info(&args.file, args.format) {
        Ok(told) => told,
        Err(e) => {
            say::error(&run::chain(&e));
            return crate::FAILED;
        }
    };
    let proc = common.host_root.join("proc");
    let holders = vsc::locks::file_holders(&proc, &args.file).unwrap_or_default();
    let machines = holders.seen.iter().filter(|h| h.access() != "other");
    let held: Vec<String> = machines
        .map(|h| format!("{} ({})", h.sentence(), h.access()))
        .collect();
    if common.json {
        let mut told = serde_json::json!(told);
        told["held_by"] = serde_json::json!(held);
        say::out(&format!("{told:#}\n"));
    } else {
        say::out(&info_text(&args.file, &told, &held));
    }
    0
}

fn info_text(path: &Path, told: &Info, held: &[String]) -> String {
    let exact = |bytes: u64| format!("{} ({bytes} bytes)", bar::amount(bytes));
    let mut rows = vec![
        ("image", vsc::diag::shown(&path.to_string_lossy())),
        ("format", told.format.word().to_owned()),
        ("virtual size", exact(told.virtual_size)),
        ("length", exact(told.length)),
        ("allocated", exact(told.allocated)),
    ];
    if let Some(header) = &told.header {
        let yes_no = |yes: bool| if yes { "on" } else { "off" };
        rows.extend([
            ("version", header.version.to_string()),
            ("cluster size", exact(header.cluster_size)),
            ("compression type", header.compression_type.to_owned()),
            ("lazy refcounts", yes_no(header.lazy_refcounts).to_owned()),
            ("encryption", header.encryption.unwrap_or("none").to_owned()),
            ("snapshots", header.snapshots.to_string()),
        ]);
        if let Some(backing) = &header.backing_file {
            let format = header.backing_format.as_deref().unwrap_or("not said");
            rows.push(("backing file", format!("{backing} (format: {format})")));
        }
        if let Some(data) = &header.data_file {
            rows.push(("data file", data.clone()));
        }
        if !header.incompatible_features.is_empty() {
            rows.push(("features", header.incompatible_features.join(", ")));
        }
    }
    for why in &told.refused {
        rows.push(("refused", why.clone()));
    }
    if let Some(luks) = &told.luks {
        let size = told.length.saturating_sub(luks.offset);
        rows.push((
            "LUKS",
            format!(
                "version {}, {} with {} bits, {} key slots in use, {} of content from byte {}",
                luks.version,
                luks.cipher,
                luks.key_bits,
                luks.slots,
                bar::amount(size),
                luks.offset
            ),
        ));
    }
    if let Some(format) = told.looks_like {
        rows.push((
            "hint",
            format!("the first bytes look like {format}; a guest can write them to a raw disk, so it counts as raw unless --format says otherwise"),
        ));
    }
    rows.extend(held.iter().map(|held| ("held by", vsc::diag::shown(held))));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.into_iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}
