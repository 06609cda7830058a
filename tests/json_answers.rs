//! With `--json` every verb answers with exactly one JSON document on standard output, also when it fails; and what is
//! wrong has one form on standard error, whichever verb says it.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output};

use common::{TempDir, expect_code, run, text, vsc};
use serde_json::Value;

/// Of verbs that fail in ways of their own: the words, and the code of the error.
const FAILURES: &[(&str, &str)] = &[
    ("doctor --self-test --host-root root", "E-DOCTOR"),
    ("image tiny no-such-program", "E-IMAGE"),
    ("image tiny -o none/x.img", "E-IMAGE"),
    ("image ls none.img", "E-IMAGE"),
    ("image cat none.img:/x", "E-IMAGE"),
    ("image cat bad.yaml", "E-IMAGE"),
    ("image cp none.img:/ .", "E-IMAGE"),
    ("image cp bad.yaml .", "E-IMAGE"),
    ("firmware list --descriptors none", "E-FIRMWARE"),
    ("firmware select --feature nonsense", "E-FIRMWARE"),
    ("firmware select --host-root root", "E-FIRMWARE"),
    ("disk create x.qcow2 1M", "E-DISK"),
    ("disk create bad.yaml 1M", "E-DISK"),
    ("disk create none/x.raw 1M", "E-DISK"),
    ("disk make bad.yaml", "E-UNKNOWN-KEY"),
    ("disk make none.yaml", ""),
    ("disk info none.img", "E-DISK"),
    ("locks list none.img", "E-LOCKS"),
    (
        "locks size --hosts 1 --vms 1 --disks 1 --sector 3",
        "E-LOCKS",
    ),
    ("locks gc --file-lockspace-dir none", "E-LOCKSPACE"),
    ("locks setup sanlock --plan --host-id 0", "E-LOCKS"),
    ("import none.xml", ""),
    ("import bad.yaml", ""),
    ("hosts select none", "E-HOSTS"),
    ("hosts networks --on none", "E-HOSTS"),
    ("hosts machines --on none", "E-HOSTS"),
    ("hosts list --hosts none.yaml", ""),
    ("ctl none", "E-CTL"),
    ("list --store bad.yaml", "E-VM"),
    ("status none", "E-VM"),
    ("stop none", "E-VM"),
    ("delete none", "E-VM"),
    ("start none --detach", "E-VM"),
    ("attach none.socket", "E-ATTACH"),
    ("check bad.yaml", "E-UNKNOWN-KEY"),
    ("check bad.yaml --libvirt", "E-UNKNOWN-KEY"),
    ("explain nonsense.key", "E-UNKNOWN-KEY"),
    ("explain bad.yaml", "E-UNKNOWN-KEY"),
    ("explain desktop no.key", "E-UNKNOWN-KEY"),
    ("plan bad.yaml", "E-UNKNOWN-KEY"),
    ("plan none.yaml", ""),
    ("net plan bad.yaml", "E-UNKNOWN-KEY"),
    ("net plan long.yaml", "E-NET-NAME"),
    ("host plan bad.yaml", "E-UNKNOWN-KEY"),
    ("host apply bad.yaml", "E-UNKNOWN-KEY"),
    ("cpu show --a none.txt", "E-CPU"),
    ("cpu diff --a none.txt", "E-CPU"),
    ("sev policy 0xzz", "E-SEV"),
    ("sev plan --host-root root", "E-SEV"),
    ("sev enable --host-root root", "E-SEV"),
    ("shell -c nonsense", "E-SHELL"),
    ("bench boot --kernel none --runs 1", "E-BENCH"),
    ("man nonsense", "E-PROGRAM"),
    ("--export-xml bad.yaml", "E-UNKNOWN-KEY"),
    ("--export-xml network -- nonsense=1", "E-RUN"),
];

fn directory(name: &str) -> TempDir {
    let dir = TempDir::new(name);
    dir.write("bad.yaml", "memroy: 1G\n");
    dir.write(
        "long.yaml",
        "net: {type: bridge, source: a-name-that-no-interface-has}\n",
    );
    std::fs::create_dir(dir.path("root")).unwrap();
    std::fs::create_dir(dir.path("home")).unwrap();
    dir
}

fn answer(dir: &TempDir, words: &[&str]) -> Output {
    let mut command: Command = vsc();
    command
        .args(words)
        .env("HOME", dir.path("home"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_CONFIG_HOME")
        .current_dir(dir.path("."));
    run(&mut command)
}

/// The one document on standard output.
#[track_caller]
fn document(words: &[&str], output: &Output) -> Value {
    let all: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect();
    match all.as_deref() {
        Ok([one]) => one.clone(),
        _ => panic!("{words:?}: no single document: {output:?}"),
    }
}

/// That the first line of what was said is an error in the one form, and says what the document does.
#[track_caller]
fn alike(words: &[&str], document: &Value, output: &Output) {
    let error = &document["error"];
    let (code, message) = (&error["code"], &error["message"]);
    let (Some(code), Some(message)) = (code.as_str(), message.as_str()) else {
        panic!("{words:?}: no error: {document}");
    };
    assert_eq!(error["severity"], "error", "{document}");
    assert!(
        code.starts_with("E-") && !message.is_empty() && !message.starts_with(code),
        "{words:?}: {document}"
    );
    let said = text(&output.stderr);
    let first = message.lines().next().unwrap();
    let people = format!("error[{code}]: {first}");
    // Messages about scenarios are lines for programs there.
    let programs = said
        .lines()
        .any(|line| serde_json::from_str::<Value>(line).is_ok_and(|told| told["code"] == code));
    let silent = words.first() == Some(&"check") || words.contains(&"--detach");
    assert!(
        said.contains(&people) || programs || silent,
        "{words:?}: {document}\n{said}"
    );
}

/// Every verb with all its parts, as `--help` lists them.
fn leaves(words: &[String], out: &mut Vec<Vec<String>>) {
    let output = run(vsc().args(words).arg("--help"));
    expect_code(&output, 0);
    let help = text(&output.stdout);
    let mut below = Vec::new();
    if let Some((_, rest)) = help.split_once("\nCommands:\n") {
        let lines = rest.lines().take_while(|line| !line.is_empty());
        // Continued descriptions stand further in.
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        below.extend(
            names
                .filter_map(|line| line.split_whitespace().next())
                .map(str::to_owned),
        );
    }
    below.retain(|name| name != "help");
    if below.is_empty() {
        assert!(help.contains("--json"), "{words:?} has no --json: {help}");
        out.push(words.to_vec());
    }
    for name in below {
        leaves(&[words, &[name]].concat(), out);
    }
}

#[test]
fn every_verb_that_fails_answers_with_one_document() {
    let dir = directory("json-failures");
    let mut all = Vec::new();
    leaves(&[], &mut all);
    assert!(all.len() > 40, "{all:?}");
    for leaf in &all {
        let mut words: Vec<&str> = leaf.iter().map(String::as_str).collect();
        words.extend(["--json", "--no-such-option"]);
        let output = answer(&dir, &words);
        expect_code(&output, 125);
        let told = document(&words, &output);
        assert_eq!(told["error"]["code"], "E-USAGE", "{words:?}: {told}");
        alike(&words, &told, &output);
        // What can fail by more than its words has a row. What is read from the host alone has none.
        let name = leaf.join(" ");
        let cannot = [
            "doctor",
            "locks drivers",
            "ps",
            "host status",
            "host undo",
            "gc",
            "schema",
            "info",
            "sev check",
            "version",
            "completions",
            "net polkit",
        ];
        let has_row = FAILURES.iter().any(|(words, _)| {
            words
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.starts_with(' '))
        });
        assert!(
            has_row || cannot.contains(&name.as_str()),
            "no row for {name}"
        );
    }
}

#[test]
fn what_fails_says_so_in_one_form() {
    let dir = directory("json-rows");
    for (line, code) in FAILURES {
        let mut words = vec!["--json"];
        words.extend(line.split(' '));
        if line.starts_with("--export-xml") {
            words.swap(0, 1);
        }
        let output = answer(&dir, &words);
        assert_ne!(output.status.code(), Some(0), "{line}: {output:?}");
        let told = document(&words, &output);
        alike(&words[1..], &told, &output);
        if !code.is_empty() {
            assert_eq!(told["error"]["code"], *code, "{line}: {told}");
        }
        // And to people the same, with nothing on standard output but an answer.
        let words: Vec<&str> = line.split(' ').collect();
        let output = answer(&dir, &words);
        let said = text(&output.stderr);
        let wanted = format!("error[{}]: ", told["error"]["code"].as_str().unwrap());
        assert!(
            said.lines().any(|line| line.starts_with(&wanted)),
            "{line}: {said}"
        );
        // The forms that there were once.
        let old = ["error: ", "vsc-run: E-", "  help: "];
        assert!(
            !said
                .lines()
                .any(|line| old.iter().any(|form| line.starts_with(form))),
            "{line}: {said}"
        );
    }
}

#[test]
fn texts_for_other_programs_are_a_field_with_json() {
    let dir = directory("json-texts");
    for (words, field) in [
        (&["man", "--json"][..], "page"),
        (&["man", "plan", "--json"], "page"),
        (&["completions", "bash", "--json"], "script"),
        (
            &["net", "polkit", "--helper", "/x/vsc-helper", "--json"],
            "text",
        ),
    ] {
        let output = answer(&dir, words);
        expect_code(&output, 0);
        let told = document(words, &output);
        assert!(told[field].as_str().unwrap().len() > 100, "{told}");
    }
}

#[test]
fn a_run_that_fails_tells_it_where_its_result_is() {
    let dir = directory("json-run");
    for words in [&["bad.yaml", "--json"][..], &["start", "none", "--json"]] {
        let output = answer(&dir, words);
        expect_code(&output, 125);
        assert!(output.stdout.is_empty(), "{output:?}");
        let told: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(told["outcome"], "failed");
    }
}
