use super::*;
use crate::scenario::{Input, Layer, Override, parse};
use std::path::Path;

fn key(text: &str) -> Article {
    explain(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn every_way_to_name_a_key_leads_to_it() {
    for (text, full) in [
        ("disks[].cache", "disks[].cache"),
        ("disks[0].cache", "disks[].cache"),
        ("disk.cache_type", "disks[].cache"),
        ("disks.12.cache", "disks[].cache"),
        ("disks", "disks"),
        ("cpus", "cpu.count"),
        ("vcpus", "cpu.count"),
        ("vnet", "nets[].source"),
        ("cpu.pin.cpus", "cpu.pin[].cpus"),
        ("cpu.pin[3].cpus", "cpu.pin[].cpus"),
        ("mem.size", "memory.size"),
    ] {
        assert_eq!(key(text).key, full, "{text}");
    }
    for text in [
        "",
        ".",
        "disks.",
        "cpu.",
        "cpu.count.x",
        "disks[0][1]",
        "cpu[0]",
        "disks[x]",
        "disks[path]",
        "disks[0",
        "disks[]]",
        "cpu]",
    ] {
        assert!(explain(text).is_err(), "{text}");
    }
}

#[test]
fn every_key_of_the_table_has_an_article_whose_example_and_option_are_right() {
    let all = all();
    assert!(all.len() > 200);
    for article in &all {
        assert_eq!(key(&article.key).key, article.key);
        for other in article.aliases.iter().chain(&article.short) {
            if !other.starts_with("a bare") {
                assert_eq!(key(other).key, article.key, "{other}");
            }
        }
        let file = Some((Path::new("s.yaml"), article.example.as_bytes()));
        let flags = article.option.iter();
        let layers: Vec<Layer> = flags.map(|o| Layer::Option(Override::option(o))).collect();
        for (file, layers) in [(file, Vec::new()), (None, layers)] {
            if file.is_none() && layers.is_empty() {
                continue;
            }
            let home = Some("/root".into());
            let parsed = parse(&Input {
                file,
                layers,
                home,
                ..Input::default()
            });
            let problems: Vec<_> = parsed.problems.iter().map(|d| &d.message).collect();
            assert!(problems.is_empty(), "{}: {problems:?}", article.example);
            let said = parsed.said(article);
            // It becomes one more of `disks`.
            let moved = article.example.starts_with("cdrom");
            assert!(
                moved || said.iter().any(|s| s.origin != Origin::Default),
                "{}: {said:?}",
                article.example
            );
        }
    }
}

#[test]
fn what_a_scenario_says_is_found_with_its_reason() {
    let text = "preset: securevm\ndisks: [a, {path: b, cache: none}]\n";
    let parsed = parse(&Input {
        file: Some((Path::new("s.yaml"), text.as_bytes())),
        ..Input::default()
    });
    let said = parsed.said(&key("host.ksm"));
    let [
        Said {
            value,
            reason: Some(reason),
            origin: Origin::Preset { name, .. },
            ..
        },
    ] = said.as_slice()
    else {
        panic!("{said:?}");
    };
    assert_eq!(
        (value.as_str(), name.as_str()),
        ("false", "preset securevm")
    );
    assert!(!reason.why.is_empty() && !reason.risk.is_empty() && !reason.see.is_empty());

    let paths = |text: &str| -> Vec<String> {
        parsed.said(&key(text)).into_iter().map(|s| s.key).collect()
    };
    assert_eq!(paths("disks.path"), ["disks[0].path", "disks[1].path"]);
    assert_eq!(paths("disks[1].path"), ["disks[1].path"]);
    assert_eq!(
        paths("cpu.topology"),
        ["cpu.topology.sockets", "cpu.topology.threads"]
    );
    assert_eq!(parsed.said(&key("irqchip"))[0].origin, Origin::Default);
    assert!(parsed.sayings().iter().all(|s| s.origin != Origin::Default));
}

#[test]
fn a_place_is_not_the_beginning_of_another() {
    for (place, key, wanted) in [
        ("cpu", "cpu.count", true),
        ("cpu", "cpus", false),
        ("memory.size", "memory.size", true),
        ("disks", "disks[0].path", true),
        ("disks[].path", "disks[10].path", true),
        ("disks[1].path", "disks[10].path", false),
        ("disks[].path", "disks[0].paths", false),
        ("storage.size", "storage", false),
    ] {
        assert_eq!(below(place, key), wanted, "{place} {key}");
    }
}

#[test]
fn a_group_of_keys_is_suggested_before_what_is_further_away() {
    for (text, wanted) in [
        ("hots", "did you mean `host`?"),
        ("hosst", "did you mean `host`?"),
        ("limts", "did you mean `limits`?"),
        ("computatoin", "did you mean `computation`?"),
        ("hostfs_", "did you mean `host_fs`?"),
        ("hugepage", "did you mean `memory.hugepages`?"),
    ] {
        let message = neither(text).render(false);
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn what_was_probably_meant_is_said() {
    for (text, wanted) in [
        ("memroy", "did you mean `memory`?"),
        ("cpu.cuont", "did you mean `count`?"),
        ("hugepages", "There is `memory.hugepages`"),
        ("cache", "`cpu.cache`"),
        ("split_irqchip", "write `irqchip: split`"),
        ("cpu.count.x", "No keys are below it"),
        ("hugepage", "did you mean `memory.hugepages`?"),
        ("qwertyuiop", "`vsc-run explain --all` lists the keys"),
    ] {
        let message = explain(text).unwrap_err().render(false);
        assert!(
            message.contains("E-UNKNOWN-KEY") && message.contains(wanted),
            "{message}"
        );
    }
}
