//! vsc: one virtual machine, now. The library behind `vsc-run`.
//!
//! A scenario is read ([`load`]), checked and compiled against the facts of the host ([`compile()`]) into a
//! [`compile::Plan`], which is plain data. [`check`] does both and keeps only the messages. None of them changes
//! anything, prints, or exits.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod compile;
pub mod descriptors;
pub mod diag;
pub mod domain;
pub mod facts;
pub mod hosts;
pub mod images;
pub mod inside;
pub mod libvirt;
pub mod locks;
pub mod net;
pub mod runs;
pub mod scenario;
pub mod sev;
pub mod store;
mod sys;
pub mod trust;
pub mod tune;
pub mod xml;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compile::{Description, Plan};
use diag::{Diagnostic, Diagnostics, Sources, Span};
use facts::{Facts, Root};
use scenario::{Input, Layer, Override, Parsed, old, presets};

/// Where the settings file is, which goes between presets and scenario.
#[derive(Debug, Clone, Copy)]
pub enum SettingsFrom<'a> {
    /// The first `virtscenario.yaml` of virt-scenario's search path below this root, if there is one.
    Search(&'a Root),
    /// This file.
    File(&'a Path),
    /// There is none.
    Nowhere,
}

/// The settings file that holds, if there is one.
pub fn settings_file(settings: SettingsFrom<'_>, home: Option<&Path>) -> Option<PathBuf> {
    match settings {
        SettingsFrom::File(path) => Some(path.to_owned()),
        SettingsFrom::Search(root) => find_old(old::SETTINGS, home, root),
        SettingsFrom::Nowhere => None,
    }
}

/// What the settings say about the places of other things: the store, the list of hypervisors. Without settings there
/// is nothing in it.
///
/// # Errors
/// The settings file, and why it cannot be read.
pub fn settings_places(
    settings: SettingsFrom<'_>,
    home: Option<&Path>,
) -> Result<old::Named, (PathBuf, String)> {
    let Some(path) = settings_file(settings, home) else {
        return Ok(old::Named::default());
    };
    if let (SettingsFrom::Search(_), Some(why)) = (settings, trust::stranger(&path)) {
        return Err((
            path,
            format!(
                "{why}, and nobody named it: --settings FILE does, --settings none does without"
            ),
        ));
    }
    match read_text(&path, scenario::MAX_BYTES + 1) {
        Ok(bytes) => Ok(old::named(&bytes, &path, home)),
        Err(why) => Err((path, why)),
    }
}

/// The first file or directory of this name on virt-scenario's search path.
pub fn find_old(name: &str, home: Option<&Path>, root: &Root) -> Option<PathBuf> {
    let absent = |error: std::io::Error| {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        matches!(error.kind(), NotFound | NotADirectory)
    };
    old::search_path(home, root)
        .into_iter()
        .map(|directory| match directory == Path::new(".") {
            true => PathBuf::from(name),
            false => directory.join(name),
        })
        // What may not be looked at is there, and is reported when it is read.
        .find(|path| std::fs::metadata(path).map_or_else(|e| !absent(e), |_| true))
}

/// Reads and parses a scenario: a file, or none for a scenario that the layers alone describe. Mistakes in the text
/// are in [`Parsed::problems`], to be reported together with those that [`compile()`] finds.
///
/// # Errors
/// The file cannot be read.
pub fn load(
    file: Option<&Path>,
    layers: Vec<Layer>,
    home: Option<PathBuf>,
    settings: SettingsFrom<'_>,
) -> Result<Parsed, Diagnostics> {
    let alone = |d: Box<Diagnostic>| Diagnostics::new(vec![*d], Arc::new(Sources::default()));
    let mut layers = layers;
    // A preset's name stands for a scenario that says only `preset: NAME`; a file of that name is ./NAME.
    let preset = file.and_then(Path::to_str).and_then(presets::find);
    if let Some(preset) = preset {
        layers.insert(
            0,
            Layer::Flag(Override::flag("SCENARIO", "preset", preset.name)),
        );
    }
    let file = file.filter(|_| preset.is_none());
    let bytes = file.map(read).transpose().map_err(alone)?;
    let may_have_preset = || {
        let told = |text: &str| {
            text.contains("preset") || text.contains("feature") || text.contains("scenario")
        };
        let written = bytes
            .as_deref()
            .is_some_and(|b| told(&String::from_utf8_lossy(b)));
        written || layers.iter().any(|layer| told(layer.text()))
    };
    let found = matches!(settings, SettingsFrom::Search(_));
    let settings = match settings {
        SettingsFrom::Search(_) if !may_have_preset() => None,
        settings => settings_file(settings, home.as_deref()),
    };
    let settings_bytes = settings
        .as_deref()
        .map(|path| read_settings(path, found))
        .transpose()
        .map_err(alone)?;
    Ok(scenario::parse(&Input {
        file: file.zip(bytes.as_deref()),
        settings: settings.as_deref().zip(settings_bytes.as_deref()),
        layers,
        home,
    }))
}

/// Compiles a parsed scenario for this host.
///
/// # Errors
/// All messages about the scenario, when at least one is an error.
pub fn compile(parsed: Parsed, facts: &dyn Facts) -> Result<Plan, Diagnostics> {
    compile::compile(parsed, facts)
}

/// Compiles a parsed scenario to look at it or to hand it over to another hypervisor.
///
/// # Errors
/// All messages about the scenario, when at least one is an error wherever the machine would run.
pub fn describe(parsed: Parsed, facts: &dyn Facts) -> Result<Description, Diagnostics> {
    compile::describe(parsed, facts)
}

/// Writes a described scenario as domain XML. `sets` are changes to make after the scenario's own (`xml`), each
/// `PATH=VALUE`.
///
/// # Errors
/// A change that cannot be made, with its place.
pub fn export(description: &Description, sets: &[String]) -> Result<xml::Exported, Diagnostics> {
    let parsed = description.parsed();
    let mut sources = Sources::clone(&parsed.sources);
    let mut wrong = Vec::new();
    let mut domain = description.domain.clone();
    let own = domain.list("xml").len();
    let mut places = Vec::new();
    for set in sets {
        let text = format!("--xml-set {set}");
        let source = sources.add_flag(text.as_str().into());
        let span = Span::new(source, text.len() - set.len(), text.len());
        let Some((path, value)) = xml::patch::assignment(set) else {
            let d = Diagnostic::error("E-XML-SET", span, "This change has no `=`");
            wrong.push(d.help("Write PATH=VALUE, for example devices/video/model/@heads=2"));
            continue;
        };
        places.push(span);
        if let Some(map) = domain.0.as_object_mut()
            && let Some(list) = map
                .entry("xml")
                .or_insert_with(|| serde_json::json!([]))
                .as_array_mut()
        {
            list.push(serde_json::json!({ "path": path, "value": value }));
        }
    }
    let exported = xml::export(&domain);
    for (index, error) in &exported.refused {
        let span = match index.checked_sub(own) {
            Some(set) => places.get(set).copied().unwrap_or_default(),
            None => parsed.span_of(&format!("xml[{index}].path")),
        };
        wrong.push(Diagnostic::error(
            "E-XML-SET",
            span,
            format!("This change of the XML cannot be made: {error}"),
        ));
    }
    // A protection that is asked for is not taken away by the back door.
    if domain.get("security").is_some()
        || domain
            .list("disks")
            .iter()
            .any(|d| d.get("encryption").is_some())
    {
        let before = xml::protection(&xml::export(&description.domain_without_patches()).text);
        if before != xml::protection(&exported.text) {
            let span = places
                .first()
                .copied()
                .unwrap_or_else(|| parsed.span_of("xml"));
            let d = Diagnostic::error(
                "E-XML-SET",
                span,
                "These changes touch what protects the guest from the host",
            );
            wrong.push(d.why("launchSecurity, loader, variable store, encryption of disks, iommu, locked memory and the kind of hypervisor are set by keys").help(
                "Use the keys of `security`, `firmware`, `memory` and `disks`; `security: none` gives the protection up",
            ));
        }
    }
    if wrong.is_empty() {
        Ok(exported)
    } else {
        Err(Diagnostics::new(wrong, Arc::new(sources)))
    }
}

/// Everything there is to say about a scenario. Without an error in it, [`compile()`] succeeds.
pub fn check(parsed: Parsed, facts: &dyn Facts) -> Diagnostics {
    compile(parsed, facts).map_or_else(|messages| messages, |plan| plan.warnings)
}

/// The bytes of a settings file. One that was found, and that nobody named, has to be trusted.
fn read_settings(path: &Path, found: bool) -> Result<Vec<u8>, Box<Diagnostic>> {
    let most = scenario::MAX_BYTES + 1;
    let read = match found {
        true => trust::read(path, most),
        false => read_text(path, most).map_err(trust::Refusal::Unreadable),
    };
    let shown = path.display();
    read.map_err(|refusal| {
        Box::new(match refusal {
            trust::Refusal::Stranger(why) => {
                let message = format!("The settings in {shown} are not trusted: {why}");
                Diagnostic::error("E-SETTINGS", Span::NONE, message)
                    .why("They were found there, nobody named them, and they can name programs to run")
                    .help(format!("--settings {shown} uses them all the same; --settings none does without"))
            }
            trust::Refusal::Unreadable(why) => {
                let message = format!("The settings {shown} cannot be read: {why}");
                Diagnostic::error("E-SETTINGS", Span::NONE, message).help("--settings none does without")
            }
        })
    })
}

/// The bytes of a scenario, no more than one may have and one byte to tell that there were more.
fn read(path: &Path) -> Result<Vec<u8>, Box<Diagnostic>> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let message = format!("The scenario {shown} cannot be read: {}", reason(&error));
        let d = Diagnostic::error("E-SCENARIO", Span::NONE, message);
        if error.kind() == std::io::ErrorKind::NotFound
            && let Some(near) = scenario::near_preset(path)
        {
            return Box::new(d.help(format!(
                "Did you mean the preset `{near}`? `vsc-run plan --list` shows all of them"
            )));
        }
        Box::new(d.help("Give the name of a scenario file; a command for a guest comes after `--`"))
    };
    let kind = std::fs::metadata(path).map_err(failed)?;
    if kind.is_dir() {
        let d = Diagnostic::error(
            "E-SCENARIO",
            Span::NONE,
            format!("{shown} is a directory, not a scenario"),
        );
        return Err(Box::new(d.help(format!(
            "Name the file in it: {}",
            path.join("scenario.yaml").display()
        ))));
    }
    let mut bytes = Vec::new();
    let limit = scenario::MAX_BYTES as u64 + 1;
    File::open(path)
        .map_err(failed)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// The bytes of a text, `limit` at most: one more than it may have tells that there were more.
///
/// # Errors
/// Why it cannot be read, as the end of a sentence.
pub fn read_text(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit as u64).read_to_end(&mut bytes))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::IsADirectory => "it is a directory".into(),
            _ => reason(&e),
        })?;
    Ok(bytes)
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "this user may not read it".into(),
        _ => error.to_string(),
    }
}
