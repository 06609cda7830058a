//! The table of verbs, and what is understood of words.

use super::*;
use clap::CommandFactory;

#[test]
fn a_result_is_found_among_mistakes() {
    for (line, result, json) in [
        ("--nonsense --result r.json", Some("r.json"), false),
        ("--result=r.json -q -v --json", Some("r.json"), true),
        ("--result a --result b", Some("b"), false),
        ("--result --nonsense", None, false),
        ("--nonsense -- --json --result r", None, false),
        ("doctor --json --result r", None, true),
        ("--json doctor --nonsense", None, true),
        ("doctor -- --json", None, false),
    ] {
        let words: Vec<OsString> = ["vsc-run"]
            .into_iter()
            .chain(line.split(' '))
            .map(Into::into)
            .collect();
        let result = result.map(PathBuf::from);
        let verb = line.contains("doctor");
        assert_eq!(Wanted::of(&words), Wanted { result, json, verb }, "{line}");
    }
}

#[test]
fn the_table_is_sound_and_its_verbs_are_listed() {
    let mut command = Cli::command();
    command.clone().debug_assert();
    Short::command().debug_assert();
    command.build();
    let verbs: Vec<_> = command
        .get_subcommands()
        .map(|verb| verb.get_name())
        .collect();
    assert_eq!(verbs, VERBS);
    assert!(
        command
            .get_subcommands()
            .all(|verb| verb.get_all_aliases().next().is_none())
    );
    assert!(LATER.iter().all(|later| !VERBS.contains(later)));
}

/// Each command with those below it, by its words.
fn each(command: &clap::Command, above: &str, look: &mut impl FnMut(&str, &clap::Command)) {
    let name = format!("{above} {}", command.get_name());
    look(name.trim(), command);
    for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
        each(below, &name, look);
    }
}

#[test]
fn help_keeps_the_options_of_every_verb_apart() {
    let mut command = Cli::command();
    command.build();
    let mut seen = 0;
    each(&command, "", &mut |name, command| {
        let help = command.clone().render_help().to_string();
        let heading = format!("\n{EVERY_VERB}:\n");
        let (before, after) = help.split_once(&heading).expect(name);
        let ours = [
            "--json",
            "--host-root",
            "--settings",
            "--quiet",
            "--verbose",
        ];
        let lists = |text: &str, option: &str| {
            let mut lines = text.lines().map(str::trim_start);
            lines.any(|line| line.starts_with('-') && line.contains(option))
        };
        for option in ours {
            assert!(lists(after, option) && !lists(before, option), "{help}");
        }
        assert!(!lists(after, "--help"), "{help}");
        seen += 1;
    });
    assert!(seen > 40, "{seen}");
}

#[test]
fn options_of_every_verb_may_stand_before_it() {
    let parsed = |line: &str| {
        let words: Vec<OsString> = ["vsc-run"]
            .into_iter()
            .chain(line.split(' '))
            .map(Into::into)
            .collect();
        parse(&words)
            .map(|cli| format!("{cli:?}"))
            .map_err(|e| e.to_string())
    };
    for (before, after) in [
        ("--json doctor --self-test", "doctor --json --self-test"),
        (
            "-q --host-root /x plan a.yaml",
            "plan -q --host-root /x a.yaml",
        ),
        ("--settings=none --json list", "list --settings=none --json"),
    ] {
        assert_eq!(parsed(before), parsed(after), "{before}");
        assert!(parsed(after).is_ok());
    }
    // A scenario's name stays one.
    assert!(parsed("--json ./plan").is_ok_and(|cli| cli.contains("scenario: Some(\"./plan\")")));
}

#[test]
fn the_short_way_understands_words_as_the_long_one_does() {
    for line in [
        "",
        "a.yaml",
        "-q a.yaml -o memory=1G --cpus 2 -- doctor --help",
        "--json --result r.json --timeout 2s --timing -m 2G -v",
        "doctor",
        "doctor --json",
        "./doctor",
        "--kernel doctor",
        "a.yaml doctor",
        "doctr",
        "-- ps",
        "--help",
        "-h",
        "-V",
        "help cpu",
        "--no-such-option",
        "-q -v",
        "a.yaml b.yaml",
    ] {
        let words: Vec<OsString> = ["vsc-run"]
            .into_iter()
            .chain(line.split_whitespace())
            .map(Into::into)
            .collect();
        let shown = |parsed: Result<Cli, clap::Error>| match parsed {
            Ok(cli) => format!("{cli:?}"),
            Err(e) => e.to_string(),
        };
        assert_eq!(
            shown(parse(&words)),
            shown(Cli::try_parse_from(&words)),
            "{line}"
        );
    }
}
