//! Any domain: what is said comes back, what is not said is listed, and nothing else happens.

use proptest::prelude::*;

use super::*;

/// Where any text may stand.
const FREE: [&str; 27] = [
    "name",
    "uuid",
    "title",
    "description",
    "metadata.os",
    "metadata.owner",
    "arch",
    "emulator",
    "cpu.model",
    "cpu.pin[1].cpus",
    "cpu.emulator_cpus",
    "firmware.path",
    "firmware.nvram",
    "firmware.nvram_template",
    "kernel.path",
    "kernel.initrd[0]",
    "kernel.cmdline",
    "clock.timezone",
    "disks[0].path",
    "disks[0].id",
    "disks[0].secret.uuid",
    "nets[0].mac",
    "nets[1].source",
    "nets[2].source",
    "shares[0].source",
    "shares[1].target",
    "graphics[0].listen",
];

/// Keys without which the others of their object are nothing.
const KEPT: [&str; 10] = [
    "vcpu", "cpus", "model", "bus", "target", "to", "tty", "out", "type", "policy",
];

#[derive(Debug, Clone)]
enum Fate {
    Keep,
    Drop,
    Text(String),
}

fn text() -> impl Strategy<Value = String> {
    let nasty = prop::sample::select(vec![
        '\'', '"', '&', '<', '>', ';', '#', ' ', '\t', '\n', '\r', '\u{0}', '\u{1b}', '\u{85}',
        '\u{fffe}', '\u{feff}', ']',
    ]);
    prop::collection::vec(prop_oneof![2 => nasty, 3 => any::<char>()], 0..12)
        .prop_map(|c| c.into_iter().collect())
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![3 => Just(Fate::Keep), 2 => Just(Fate::Drop), 2 => text().prop_map(Fate::Text)]
}

fn mutate(value: &mut Value, path: &str, fates: &mut impl Iterator<Item = Fate>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                mutate(value, &format!("{path}{dot}{name}"), fates);
            }
        }
        Value::Array(list) => {
            for (n, value) in list.iter_mut().enumerate() {
                mutate(value, &format!("{path}[{n}]"), fates);
            }
        }
        leaf => match fates.next() {
            Some(Fate::Drop)
                if !KEPT.iter().any(|k| path.ends_with(k))
                    && path.contains(['.'])
                    && !path.ends_with(']') =>
            {
                *leaf = Value::Null
            }
            Some(Fate::Text(text)) if FREE.contains(&path) => *leaf = text.into(),
            Some(Fate::Text(_)) if leaf.is_boolean() => {
                *leaf = Value::Bool(leaf == &Value::Bool(false))
            }
            _ => {}
        },
    }
}

/// The leaves of a domain, by path.
fn leaves(value: &Value, path: String, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Null => {}
        Value::Object(map) => {
            let dot = if path.is_empty() { "" } else { "." };
            map.iter()
                .for_each(|(name, value)| leaves(value, format!("{path}{dot}{name}"), out));
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(n, value)| leaves(value, format!("{path}[{n}]"), out)),
        leaf => out.push((path, leaf.clone())),
    }
}

/// Said by leaving something out, or at another key.
fn said_by_absence(path: &str, value: &Value) -> bool {
    *value == false
        || *value == "none"
        || *value == ""
        || [
            "iommu",
            "firmware.format",
            "console.implicit",
            "console.iommu",
        ]
        .contains(&path)
        || path.starts_with("rng.")
        || path.starts_with("vsock.")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_key_comes_back_or_is_listed(fates in prop::collection::vec(fate(), 220)) {
        let mut domain = full();
        mutate(&mut domain, "", &mut fates.into_iter());
        let exported = export(&Domain(domain.clone()));
        let imported = import("d.xml", &exported.text).map_err(|e| TestCaseError::fail(format!("{e}\n{}", exported.text)))?;
        let known = |m: &str| m.starts_with("the command line of a scenario gets");
        prop_assert!(imported.notes.list.iter().all(|d| known(&d.message)), "{}\n{}", imported.notes, exported.text);
        let mut want = Vec::new();
        leaves(&domain, String::new(), &mut want);
        let mut came = Vec::new();
        leaves(&imported.scenario, String::new(), &mut came);
        for (path, value) in want {
            if exported.unsaid.contains(&path) || said_by_absence(&path, &value) {
                continue;
            }
            let got = came.iter().find(|c| c.0 == path).map(|c| &c.1);
            prop_assert_eq!(got, Some(&value), "{}\n{}", path, exported.text);
        }
        // From here on it is the same again and again.
        let second = export(&Domain(imported.scenario.clone()));
        prop_assert!(second.unsaid.is_empty(), "{:?}", second.unsaid);
        let again = import("d.xml", &second.text).unwrap();
        prop_assert_eq!(&again.scenario, &imported.scenario, "{}", second.text);
        prop_assert_eq!(export(&Domain(again.scenario)).text, second.text);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = import("d.xml", &text).map_err(|e| e.render(false));
        let _ = import("d.xml", &format!("<domain>{text}</domain>")).map_err(|e| e.render(false));
    }

    #[test]
    fn no_document_made_of_libvirt_words_panics(parts in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..60)) {
        let text = format!("<domain>{}</domain>", parts.concat());
        match import("d.xml", &text) {
            Ok(imported) => {
                let first = export(&Domain(imported.scenario.clone()));
                prop_assert!(parse::parse(&first.text).is_ok());
                imported.notes.render(true);
            }
            Err(error) => prop_assert_eq!(error.list.len(), 1),
        }
    }

    #[test]
    fn any_json_is_a_well_formed_document(domain in json_value()) {
        let exported = export(&Domain(domain));
        prop_assert!(parse::parse(&exported.text).is_ok(), "{}", exported.text);
    }
}

/// Values of the wrong kind at every key.
fn json_value() -> impl Strategy<Value = Value> {
    let keys: Vec<String> = full().as_object().unwrap().keys().cloned().collect();
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "x", null, {"type": 3, "model": [], "tty": 4}])),
        Just(
            json!({"type": "sev", "model": 7, "enabled": 3, "cid": "x", "features": [[]], "pin": {}})
        ),
    ];
    prop::collection::vec((prop::sample::select(keys), leaf), 0..12)
        .prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}

const WORDS: &[&str] = &[
    "<devices>",
    "</devices>",
    "<disk type='file' device='disk'>",
    "</disk>",
    "<source file='/a'/>",
    "<source/>",
    "<target dev='vda' bus='virtio'/>",
    "<target type='virtio' port='0'/>",
    "<target/>",
    "<driver iommu='on'/>",
    "<console type='pty'>",
    "</console>",
    "<channel type='unix'>",
    "</channel>",
    "<interface type='bridge'>",
    "</interface>",
    "<metadata>",
    "</metadata>",
    "<x xmlns='urn:vsc:metadata'/>",
    "<memory unit='PiB'>99999999999</memory>",
    "<vcpu>18446744073709551615</vcpu>",
    "<vcpu>0</vcpu>",
    "<cputune><vcpusched scheduler='rr'/></cputune>",
    "<os>",
    "</os>",
    "<loader/>",
    "<nvram/>",
    "<boot/>",
    "<boot dev='hd'/>",
    "<cpu>",
    "</cpu>",
    "<feature name=''/>",
    "<feature/>",
    "<model/>",
    "<cache mode='emulate'/>",
    "<launchSecurity type='sev'/>",
    "<controller type='scsi'/>",
    "<rng/>",
    "<rng><backend model='random'/></rng>",
    "<graphics type='vnc' port='-1'/>",
    "<tpm><backend type='emulator'/></tpm>",
    "text",
    "&amp;",
    "<!-- c -->",
    "<![CDATA[<&]]>",
    "<vsock><cid auto='no'/></vsock>",
    "<hugepages/>",
    "<memoryBacking><hugepages><page/></hugepages></memoryBacking>",
    "<input type='mouse' bus='ps2'/>",
    "<filesystem/>",
];
