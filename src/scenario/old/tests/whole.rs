//! Settings files as a whole: on a host, among other layers, among other files, and anything at all.

use proptest::prelude::*;

use super::super::super::json;
use super::*;
use crate::diag::Sources;
use crate::scenario::{Input, Layer, Override, parse, write, yaml};

#[test]
fn places_that_are_not_there_are_named() {
    for (section, line, expected) in [
        ("STORAGE_DATA", "path: /tmp", None),
        (
            "STORAGE_DATA",
            "path: /tmp/new",
            Some("this directory does not exist"),
        ),
        (
            "STORAGE_DATA",
            "path: images",
            Some("/cwd/images: this directory does not exist"),
        ),
        (
            "STORAGE_DATA",
            "path: /usr/bin/qemu-system-x86_64",
            Some("is not a directory"),
        ),
        (
            "host_filesystem",
            "source_dir: /srv/nothing",
            Some("/srv is not there, / is"),
        ),
        (
            "emulator",
            "emulator: /usr/bin/qemu",
            Some("this file does not exist"),
        ),
        ("emulator", "emulator: /tmp", Some("is a directory")),
        (
            "emulator",
            "fw_meta: /usr/share/qemu/firmwares",
            Some("this directory does not exist"),
        ),
        (
            "hypervisors",
            "hvconf: /nowhere.yaml",
            Some("this file does not exist"),
        ),
        ("config", "vm-config-store: /tmp/new", None),
        (
            "config",
            "vm-config-store: /var/livirt/vmconfig",
            Some("/var/livirt is not there, /var is"),
        ),
    ] {
        let (_, messages) = imported(&format!("{section}:\n  - {line}\n")).unwrap();
        let text = messages.render(false);
        match expected {
            None => assert_eq!(text, "", "{line}"),
            Some(words) => assert!(
                text.contains(words) && text.contains("W-PATH"),
                "{line}: {text}"
            ),
        }
    }
}

#[test]
fn settings_go_over_a_preset_and_under_a_scenario() {
    let node = |text: &str| {
        let mut sources = Sources::default();
        let source = sources.add_file("s", text.into());
        yaml_node(text, source)
    };
    let mut problems = Vec::new();
    let base = Base::default();
    let old = settings(
        &node("host_filesystem:\n  - fmode: 600\nSTORAGE_DATA:\n  - format: raw\n"),
        &base,
        &mut problems,
    )
    .unwrap();
    let mut decoder = Decoder {
        base: &base,
        problems: &mut problems,
    };
    let mut tree = decoder.file(&node(
        "shares: [{source: /a, target: t, fmode: 644}, {source: /b, target: u}]\nstorage: {format: qcow2, cache: none}\n",
    ));
    tree::merge(&mut tree, old.tree.clone(), &mut problems);
    assert_eq!(
        json::of(&tree),
        json!({
            "shares": [{"source": "/a", "target": "t", "fmode": "0600"}, {"source": "/b", "target": "u"}],
            "storage": {"format": "raw", "cache": "none"},
        })
    );
    let mut alone = tree::empty();
    tree::merge(&mut alone, old.tree, &mut problems);
    assert_eq!(json::of(&alone)["shares"], json!([{"fmode": "0600"}]));
    assert!(problems.is_empty(), "{problems:?}");
}

fn yaml_node(text: &str, source: u16) -> Node {
    yaml::parse(text, source, 0, &mut Vec::new()).unwrap()
}

#[test]
fn the_search_path_is_that_of_virt_scenario() {
    let root = Root::default();
    let paths = |list: [&str; 4]| list.map(PathBuf::from).to_vec();
    assert_eq!(
        search_path(Some(Path::new("/home/u")), &root),
        paths([
            ".",
            "/home/u/.local/virt-scenario",
            "/etc/virt-scenario",
            "/etc"
        ])
    );
    assert_eq!(
        search_path(Some(Path::new("/home/u")), &Root("/mnt".into())),
        paths([
            ".",
            "/mnt/home/u/.local/virt-scenario",
            "/mnt/etc/virt-scenario",
            "/mnt/etc"
        ])
    );
    assert_eq!(search_path(None, &root).len(), 3);
}

#[test]
fn files_are_told_apart_by_content() {
    for (text, expected) in [
        (SAMPLE, Kind::Settings),
        ("\u{feff}\n  <domain/>", Kind::Xml),
        ("<?xml version='1.0'?>", Kind::Xml),
        ("localhost:\n  url: qemu:///system\n", Kind::Hosts),
        ("a: {sev-cert: /x}\nb:\n", Kind::Hosts),
        ("input: {keyboard: virtio}\n", Kind::Settings),
        ("memory: 2G\n", Kind::Scenario),
        (
            "memory: 2G\ninput: {keyboard: virtio}\nemulator: /x\nshares: [{source: /a}]\n",
            Kind::Scenario,
        ),
        ("memory: 2G\ninput:\n  - keyboard: virtio\n", Kind::Settings),
        ("input:\nconfig: []\n", Kind::Settings),
        ("whatever: 1\n", Kind::Other),
        ("", Kind::Other),
        ("[", Kind::Other),
    ] {
        assert_eq!(kind(text.as_bytes()), expected, "{text}");
    }
}

/// Old files made of the right words in the wrong places.
fn oldish() -> impl Strategy<Value = String> {
    let mut words = vec![
        "\n",
        "\n  - ",
        "\n- ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "~",
        "on",
        "Off",
        "0644",
        "1024k",
        "8",
        "''",
        "<<",
        "é",
        "/var/livirt",
        "&a ",
        "*a",
    ];
    for section in SECTIONS {
        words.push(section.name);
        words.extend(section.keys.iter().map(|k| k.name));
    }
    let line = (
        0..words.len(),
        0..words.len(),
        proptest::collection::vec(0..words.len(), 0..5),
    );
    proptest::collection::vec(line, 0..8).prop_map(move |lines| {
        let line = |(a, b, rest): (usize, usize, Vec<usize>)| {
            let rest: String = rest.into_iter().map(|n| words[n]).collect();
            format!("{}:\n  - {}: {rest}\n", words[a], words[b])
        };
        lines.into_iter().map(line).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics_and_nothing_is_lost(text in prop_oneof![oldish(), any::<String>()]) {
        let _ = kind(text.as_bytes());
        match imported(&text) {
            Err(messages) => prop_assert!(messages.has_errors() && !messages.render(true).is_empty()),
            Ok((scenario, messages)) => {
                prop_assert!(!messages.has_errors());
                prop_assert!(scenario != json!({}) || !messages.list.is_empty() || text.contains("disk_type"), "{}", text);
                let written = write(&scenario);
                let input = Input { file: Some((Path::new("/s"), written.as_bytes())), ..Default::default() };
                let back = parse(&input);
                prop_assert_eq!(back.data(), scenario, "{}", written);
            }
        }
    }
}

#[test]
fn a_scenario_with_a_preset_takes_the_settings() {
    let parsed = |scenario: &str, settings: &str, flag: &str| {
        parse(&Input {
            file: Some((Path::new("s.yaml"), scenario.as_bytes())),
            settings: Some((Path::new("/etc/virtscenario.yaml"), settings.as_bytes())),
            layers: vec![Layer::Option(Override::option(flag))],
            home: None,
        })
    };
    let old = "STORAGE_DATA:\n  - disk_cache: writethrough\n  - format: raw\n  - path: /var/livirt\n  - disk_bus: scsi\n";
    let told = parsed(
        "preset: desktop\nstorage: {format: qcow2}\n",
        old,
        "storage.bus=sata",
    );
    assert!(told.problems.is_empty(), "{:?}", told.problems);
    let settings = told.settings();
    let find = |key: &str| {
        let found = settings.iter().find(|s| s.key == key).unwrap();
        (found.value.as_str(), found.origin.to_string())
    };
    assert_eq!(
        find("storage.cache"),
        ("writethrough", "settings /etc/virtscenario.yaml:2".into())
    );
    assert_eq!(find("storage.format"), ("qcow2", "s.yaml:2".into()));
    assert_eq!(find("storage.bus").0, "sata");
    let missing = check(&told.places, &host());
    assert_eq!(missing.len(), 1);
    assert_eq!(
        told.sources.origin(missing[0].span).to_string(),
        "settings /etc/virtscenario.yaml:4"
    );

    let wrong = parsed(
        "preset: desktop\n",
        "STORAGE_DATA:\n  - disk_cache: banana\n",
        "memory=1G",
    );
    assert_eq!(wrong.problems.len(), 1, "{:?}", wrong.problems);
    assert_eq!(
        wrong.sources.origin(wrong.problems[0].span).to_string(),
        "settings /etc/virtscenario.yaml:2"
    );
    // Without a preset there is nothing that they are settings of.
    assert!(parsed("memory: 1G\n", "[", "cpus=1").problems.is_empty());
}
