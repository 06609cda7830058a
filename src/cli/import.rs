//! `vsc-run import`: files of libvirt and of virt-scenario turned into a scenario.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use vsc::SettingsFrom;
use vsc::diag::{Diagnostic, Diagnostics, Severity, Sources, Span, shown};
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::hosts::Hosts;
use vsc::scenario::{Input, Layer, Override, old, parse, presets, write};
use vsc::xml;

use super::Common;
use super::run::{or_report, report};
use crate::say;

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// libvirt's domain XML, a virtscenario.yaml or a virthosts.yaml; told apart by content. `-` is standard input.
    file: PathBuf,
    /// The preset that the scenario starts from.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

/// A scenario made of a file.
struct Import {
    /// What the file was, a word that stays.
    kind: &'static str,
    /// The same for people.
    what: &'static str,
    scenario: Value,
    notes: Diagnostics,
}

pub(super) fn run(args: &ImportArgs, common: &Common) -> u8 {
    let imported = read(&args.file)
        .and_then(|bytes| convert(&args.file, &bytes, common))
        .map(with_fitting_name)
        .and_then(|import| with_preset(import, args.preset.as_deref()));
    let Some(import) = or_report(imported, common) else {
        return crate::FAILED;
    };
    let text = format!(
        "# From {}, {}.\n{}",
        name(&args.file),
        import.what,
        write(&import.scenario)
    );
    let doubts = doubts(&text);
    if common.json {
        let notes = [&import.notes, &doubts].map(Diagnostics::records).concat();
        let told = json!({
            "kind": import.kind,
            "file": args.file,
            "scenario": import.scenario,
            "notes": notes,
        });
        say::out(&format!("{told:#}\n"));
        return if doubts.list.is_empty() {
            0
        } else {
            crate::FAILED
        };
    }
    report(&import.notes, common);
    report(&doubts, common);
    say::out(&text);
    if doubts.list.is_empty() {
        return 0;
    }
    say::error("the scenario is not usable as it is: correct what `check` refuses in it");
    crate::FAILED
}

/// libvirt's names have blanks and letters of all kinds; here a name is a word.
fn with_fitting_name(mut import: Import) -> Import {
    let Some(name) = import.scenario.get("name").and_then(Value::as_str) else {
        return import;
    };
    let fit = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-_.+:".contains(c) => c,
        _ => '-',
    };
    let fitting: String = name.chars().map(fit).take(64).collect();
    if fitting != name && !fitting.is_empty() {
        let message = format!("The name {} becomes {fitting}", shown(name));
        let d = Diagnostic::warning("W-XML", Span::NONE, message);
        import
            .notes
            .list
            .push(d.why("A name has 1 to 64 letters, digits, `-`, `_`, `.`, `+`, `:`"));
        import.scenario["name"] = json!(fitting);
    }
    import
}

/// What the scenario's own language says against what was written: libvirt takes some names that we do not.
fn doubts(text: &str) -> Diagnostics {
    let parsed = parse(&Input {
        file: Some((Path::new("the scenario"), text.as_bytes())),
        ..Input::default()
    });
    let mut list = parsed.problems;
    list.retain(|d| d.severity == Severity::Error);
    for problem in &mut list {
        problem.severity = Severity::Warning;
        problem.message += " (`check` refuses it)";
    }
    Diagnostics::new(list, parsed.sources)
}

/// One error without a place.
fn error(message: impl Into<String>, help: impl Into<String>) -> Diagnostics {
    let d = Diagnostic::error("E-IMPORT", Span::NONE, message).help(help);
    Diagnostics::new(vec![d], Arc::new(Sources::default()))
}

/// The file as messages name it.
fn name(file: &Path) -> String {
    match file == Path::new("-") {
        true => "standard input".into(),
        false => shown(&file.display().to_string()),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Diagnostics> {
    // Both languages have their own limits, and say so.
    let limit = xml::parse::MAX_BYTES + 1;
    let read = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let taken = std::io::stdin().take(limit as u64).read_to_end(&mut bytes);
        taken.map(|_| bytes).map_err(|e| e.to_string())
    } else {
        vsc::read_text(file, limit)
    };
    read.map_err(|why| {
        error(
            format!("{} cannot be read: {why}", name(file)),
            "Name the file to import; `-` is standard input",
        )
    })
}

fn convert(file: &Path, bytes: &[u8], common: &Common) -> Result<Import, Diagnostics> {
    let name = match file == Path::new("-") {
        true => "standard input".into(),
        false => file.display().to_string(),
    };
    let variables = Variables::of_process();
    let home = variables.home.clone();
    let root = Root(common.host_root.clone());
    let settings = || {
        // The scenario may be put anywhere: its paths must not depend on where it is.
        let directory = file.parent().unwrap_or(Path::new(""));
        let directory = std::path::absolute(Path::new(".").join(directory));
        let directory =
            directory.map_err(|e| error(format!("There is no current directory: {e}"), ""))?;
        let directory = directory.components().collect();
        let facts = LiveFacts::new(root.clone(), variables.clone());
        let (scenario, notes) = old::import(&name, bytes, directory, home, &facts)?;
        Ok(Import {
            kind: "settings",
            what: "settings of virt-scenario",
            scenario,
            notes,
        })
    };
    match old::kind(bytes) {
        old::Kind::Xml => {
            let text = std::str::from_utf8(bytes).map_err(|e| {
                error(
                    format!(
                        "{}: byte {} is not UTF-8 text",
                        shown(&name),
                        e.valid_up_to()
                    ),
                    "Convert it: iconv -t UTF-8",
                )
            })?;
            let imported = xml::import(&name, text)?;
            Ok(Import {
                kind: "domain-xml",
                what: "domain XML of libvirt",
                scenario: imported.scenario,
                notes: imported.notes,
            })
        }
        old::Kind::Hosts => {
            let mut notes =
                Hosts::load(Some(file), SettingsFrom::Nowhere, &variables, &root)?.messages;
            let path = std::path::absolute(file)
                .map_err(|e| error(format!("There is no current directory: {e}"), ""))?;
            let message = "A list of hypervisors is read as it is: the scenario names it";
            notes.list.push(
                Diagnostic::warning("W-IMPORT", Span::NONE, message)
                    .help(format!("vsc-run hosts --hosts {} list", shown(&name))),
            );
            Ok(Import {
                kind: "hosts",
                what: "a list of hypervisors",
                scenario: json!({ "hosts": path.to_string_lossy() }),
                notes,
            })
        }
        old::Kind::Scenario => Err(error(
            format!("{} is a scenario already", shown(&name)),
            format!("vsc-run check {} says what is wrong with it", shown(&name)),
        )),
        old::Kind::Settings | old::Kind::Other => settings(),
    }
}

fn with_preset(mut import: Import, preset: Option<&str>) -> Result<Import, Diagnostics> {
    let Some(name) = preset else {
        return Ok(import);
    };
    if presets::find(name).is_none() {
        let names: Vec<_> = presets::PRESETS.iter().map(|p| p.name).collect();
        return Err(error(
            format!("There is no preset {}", shown(name)),
            format!("Presets are {}", names.join(", ")),
        ));
    }
    // The settings change the preset's share; a list in a scenario would take the place of the preset's.
    if import.kind == "settings" {
        let layers = vec![Layer::Flag(Override::flag("--preset", "preset", name))];
        let preset = parse(&Input {
            layers,
            ..Input::default()
        });
        let share = |of: &Value| of.pointer("/shares/0").and_then(Value::as_object).cloned();
        if let (Some(mut whole), Some(set)) = (share(&preset.data()), share(&import.scenario)) {
            whole.extend(set);
            import.scenario["shares"][0] = Value::Object(whole);
        } else if share(&preset.data()).is_none()
            && let Value::Object(map) = &mut import.scenario
            && map.remove("shares").is_some()
        {
            let message =
                format!("{name} shares no directory of the host, so host_filesystem is left out");
            let d = Diagnostic::warning("W-UNUSED", Span::NONE, message);
            import.notes.list.push(d.help(
                "Add `shares: [{source: DIR, target: TAG, read_only: true}]` if it is wanted",
            ));
        }
    }
    if let Value::Object(map) = &mut import.scenario {
        map.insert("preset".into(), json!(name));
    }
    Ok(import)
}
