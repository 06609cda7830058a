use super::keys::{KEYS, Key, Kind, Word};
use super::*;
use proptest::prelude::*;

fn parsed(text: &str, flags: &[&str]) -> Parsed {
    let layers = flags
        .iter()
        .map(|f| Layer::Option(Override::option(f)))
        .collect();
    let file = Some((Path::new("lab/s.yaml"), text.as_bytes()));
    parse(&Input {
        file,
        settings: None,
        layers,
        home: Some("/home/u".into()),
    })
}

fn good(text: &str, flags: &[&str]) -> Scenario {
    let parsed = parsed(text, flags);
    let codes: Vec<_> = parsed
        .problems
        .iter()
        .map(|d| (d.code, &d.message))
        .collect();
    assert!(codes.is_empty(), "{text:?} {flags:?}: {codes:?}");
    parsed.scenario
}

/// Every key that takes a value, with its path, in the form of `-o`.
fn leaves(keys: &'static [Key], path: &str, out: &mut Vec<(String, &'static Key)>) {
    for key in keys {
        let here = format!("{path}{}", key.name);
        match key.kind {
            Kind::Map { keys, .. } => leaves(keys, &format!("{here}."), out),
            Kind::List { keys, .. } => leaves(keys, &format!("{here}.0."), out),
            _ => out.push((here, key)),
        }
    }
}

#[test]
fn every_key_of_the_table_reaches_the_scenario() {
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    assert!(all.len() > 50);
    for (path, key) in all {
        let flag = format!("{path}={}", key.example);
        good("", &[&flag]);
        let said = json::of(&parsed("", &[&flag]).tree);
        assert_ne!(said, serde_json::json!({}), "{flag} changed nothing");
        assert!(!key.meaning.is_empty(), "{path}");
    }
}

#[test]
fn members_are_named_with_dots_or_brackets() {
    let text = "disks: [a, b]\n";
    for flag in ["disks.1.cache=none", "disks[1].cache=none"] {
        let caches: Vec<_> = good(text, &[flag])
            .disks
            .iter()
            .map(|d| d.value.cache.map(|c| c.value))
            .collect();
        assert_eq!(caches, [None, Some("none")], "{flag}");
    }
    let first = good(text, &["disk.cache=unsafe"]);
    assert_eq!(first.disks[0].value.cache.map(|c| c.value), Some("unsafe"));
    let wrong = parsed(text, &["disks[x].cache=none"]);
    assert_eq!(wrong.problems[0].code, "E-INDEX");
}

#[test]
fn every_example_of_the_table_is_right() {
    for key in KEYS {
        good(&format!("{}: {}\n", key.name, key.example), &[]);
        for alias in key.aliases {
            assert_eq!(
                good(&format!("{alias}: {}\n", key.example), &[]),
                good(&format!("{}: {}\n", key.name, key.example), &[])
            );
        }
    }
}

#[test]
fn every_default_and_every_word_of_the_table_is_right() {
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    for (path, key) in &all {
        if !key.default.is_empty() && !key.default.contains("disk0") {
            good("", &[&format!("{path}={}", key.default)]);
        }
        let Kind::Word(words) = key.kind else {
            continue;
        };
        for Word { name, refused, .. } in words {
            let codes: Vec<_> = parsed("", &[&format!("{path}={name}")])
                .problems
                .iter()
                .map(|d| d.code)
                .collect();
            assert_eq!(
                codes,
                if refused.is_some() {
                    vec!["E-UNSUPPORTED"]
                } else {
                    vec![]
                },
                "{path}={name}"
            );
        }
    }
}

#[test]
fn words_of_the_table_are_those_of_the_specs() {
    use vsc_devices::virtio::blk::{Cache, Discard, Format, SyncMode};
    use vsc_vmm::resources::{Action, EntryChoice, Irqchip, KernelFormat};
    fn each<T: for<'de> Deserialize<'de>>(path: &[&str]) {
        let Some(Key {
            kind: Kind::Word(words),
            ..
        }) = keys::at(path)
        else {
            panic!("{path:?} has no words")
        };
        for w in words
            .iter()
            .filter(|w| w.refused.is_none() && w.elsewhere.is_none())
        {
            assert!(
                word::<T>(Some(Spanned::new(w.name, Span::NONE))).is_some(),
                "{path:?}: {}",
                w.name
            );
        }
    }
    each::<Cache>(&["disks", "cache"]);
    each::<Discard>(&["disks", "discard"]);
    each::<Format>(&["disks", "format"]);
    each::<SyncMode>(&["disks", "sync"]);
    each::<Action>(&["events", "on_crash"]);
    each::<EntryChoice>(&["kernel", "entry"]);
    each::<KernelFormat>(&["kernel", "format"]);
    each::<Irqchip>(&["irqchip"]);
}

#[test]
fn no_word_means_two_things() {
    fn look(keys: &'static [Key]) {
        let mut seen = std::collections::HashSet::new();
        for key in keys {
            for word in [key.name].iter().chain(key.aliases) {
                assert!(seen.insert(*word), "{word} is there twice");
            }
            keys::below(&key.kind).into_iter().for_each(look);
            if let Kind::Map {
                keys,
                scalar: Some(name),
            }
            | Kind::List {
                keys, scalar: name, ..
            } = key.kind
            {
                assert!(keys::find(keys, name).is_some(), "{name}");
            }
            if let Kind::Alias(path) = key.kind {
                assert!(keys::at(path).is_some(), "{path:?}");
            }
        }
    }
    look(KEYS);
}

#[test]
fn short_forms_mean_the_long_ones() {
    for (short, long) in [
        ("cpus: 4", "cpu: {count: 4}"),
        ("cpu: 4", "cpu: {count: 4}"),
        ("memory: 512", "memory: {size: 512M}"),
        (
            "kernel: k\ninitrd: i\ncmdline: c",
            "kernel: {path: k, initrd: [i], cmdline: c}",
        ),
        ("disk: a", "disks: [{path: a}]"),
        (
            "disk: {path: a, ro: yes}",
            "disks: [{path: a, read_only: true}]",
        ),
        ("serial: stdio", "serials: [{to: stdio}]"),
        ("serial: ~", "serials: [{to: null}]"),
        ("root: /dev/vdb", "root: {device: /dev/vdb}"),
        ("command: sh -c 'a b'", "command: [sh, -c, a b]"),
        ("env: {A: 1, B: ~}", "env: [A=1, B=]"),
        ("timeout: 2m", "limits: {timeout: 120}"),
        ("on_crash: restart", "events: {on_crash: Restart}"),
    ] {
        assert_eq!(good(short, &[]), good(long, &[]), "{short}");
    }
}

#[test]
fn flags_win_over_the_file_and_later_flags_over_earlier() {
    let file =
        "cpus: 2\nmemory: 1G\ndisks: [a, {path: b, cache: none}]\nkernel: {path: k, cmdline: x}\n";
    let flags = [
        "cpu.count=4",
        "cpus=8",
        "memory=2G",
        "disks.1.cache=unsafe",
        "disks.2.path=c",
        "kernel=/k2",
    ];
    let s = good(file, &flags);
    assert_eq!(
        (s.cpu.count.unwrap().value, s.memory.unwrap().value),
        (8, 2 << 30)
    );
    let paths: Vec<_> = s
        .disks
        .iter()
        .map(|d| d.value.path.as_ref().unwrap().value.clone())
        .collect();
    assert_eq!(paths, [PathBuf::from("lab/a"), "lab/b".into(), "c".into()]);
    assert_eq!(s.disks[1].value.cache.unwrap().value, "unsafe");
    assert_eq!(s.kernel.path.unwrap().value, PathBuf::from("/k2"));
    assert_eq!(s.kernel.cmdline.unwrap().value, "x");
    assert_eq!(good(file, &["disks=[z]"]).disks.len(), 1);
    assert_eq!(
        good("", &["disks.0=a", "disks.1=~/b"]).disks[1]
            .value
            .path
            .as_ref()
            .unwrap()
            .value,
        Path::new("/home/u/b")
    );
}

#[test]
fn a_command_after_two_dashes_replaces_the_files() {
    let words = vec!["echo".to_owned(), "a b".to_owned()];
    let layers = vec![
        Layer::Command(words.clone()),
        Layer::Flag(Override::flag("--memory", "memory", "2G")),
    ];
    let file = Some((Path::new("s.yaml"), "command: false\n".as_bytes()));
    let parsed = parse(&Input {
        file,
        settings: None,
        layers,
        home: None,
    });
    let got: Vec<_> = parsed
        .scenario
        .command
        .unwrap()
        .value
        .into_iter()
        .map(|w| w.value)
        .collect();
    assert_eq!(got, words);
    let origin = parsed.sources.origin(parsed.scenario.memory.unwrap().span);
    assert_eq!(
        origin,
        Origin::Flag {
            text: "--memory 2G".into()
        }
    );
}

#[test]
fn settings_say_where_each_value_came_from() {
    let parsed = parsed(
        "memory: 1G\ndisks:\n- {path: a, cache: none}\n",
        &["cpus=2"],
    );
    let settings = parsed.settings();
    let find = |key: &str| {
        settings
            .iter()
            .find(|s| s.key == key)
            .map(|s| (s.value.as_str(), s.origin.to_string()))
    };
    assert_eq!(find("memory.size"), Some(("1 GiB", "lab/s.yaml:1".into())));
    assert_eq!(find("cpu.count"), Some(("2", "-o cpus=2".into())));
    assert_eq!(
        find("disks[0].cache"),
        Some(("none", "lab/s.yaml:3".into()))
    );
    assert_eq!(find("disks[0].discard"), Some(("unmap", "default".into())));
    assert_eq!(find("events.on_crash"), Some(("destroy", "default".into())));
}

/// Scenarios and flags made of the words of the table, mostly wrong.
fn scenarioish() -> impl Strategy<Value = String> {
    let mut words = vec![
        ": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "0", "1G", "yes", "stdio", "a.img", "~",
        "'",
    ];
    fn add(keys: &'static [Key], words: &mut Vec<&'static str>) {
        for key in keys {
            words.extend([key.name, key.example]);
            words.extend(key.aliases);
            keys::below(&key.kind)
                .into_iter()
                .for_each(|k| add(k, words));
        }
    }
    add(KEYS, &mut words);
    let line = (
        0..words.len(),
        0..words.len(),
        proptest::collection::vec(0..words.len(), 0..6),
    );
    let words = std::sync::Arc::new(words);
    proptest::collection::vec(line, 0..6).prop_map(move |lines| {
        let word = |n: usize| words[n];
        let line = |(a, b, rest): (usize, usize, Vec<usize>)| {
            let rest: String = rest.into_iter().map(word).collect();
            format!("{}: {}{rest}\n", word(a), word(b))
        };
        lines.into_iter().map(line).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_panics(text in scenarioish(), flag in ".{0,20}", flags in scenarioish()) {
        let flags: Vec<&str> = flags.lines().chain([flag.as_str()]).collect();
        let shown = parsed(&text, &flags);
        let messages = crate::diag::Diagnostics::new(shown.problems.clone(), shown.sources.clone());
        prop_assert_eq!(messages.render(false).is_empty(), shown.problems.is_empty());
        let _ = shown.settings();
    }
}
