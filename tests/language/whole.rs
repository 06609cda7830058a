//! Mixtures of keys: what is accepted becomes XML that libvirt knows, and comes back from it.

use super::*;

/// Three keys at once, over a preset or alone: always the same ones.
pub(super) fn mixtures(number: usize) -> Vec<(String, Domain)> {
    let mut all = Vec::new();
    leaves(KEYS, "", &mut all);
    // Where descriptors are is not in the domain, and decides what may be.
    all.retain(|(path, _)| path != "firmware.descriptors" && !path.starts_with("xml."));
    let mut state = 1u64;
    let mut below = |n: usize| {
        // Knuth's linear congruential generator (MMIX).
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut out = Vec::new();
    while out.len() < number {
        let mut flags = Vec::new();
        for _ in 0..3 {
            let (path, key) = &all[below(all.len())];
            let values = values(key);
            let value = &values[below(values.len())];
            flags.extend(
                around(path)
                    .into_iter()
                    .filter(|f| !f.contains("descriptors")),
            );
            flags.push(format!("{path}={value}"));
        }
        let text = match below(10) {
            n if n < presets::PRESETS.len() => format!("preset: {}\n", presets::PRESETS[n].name),
            _ => String::new(),
        };
        let option = |f: &String| {
            ["store", "hosts", "on", "preset", "feature"]
                .iter()
                .any(|k| f.starts_with(&format!("{k}=")))
        };
        flags.retain(|f| !option(f));
        if let Ok(d) = describe(&text, &flags) {
            out.push((format!("{text:?} {}", flags.join(" ")), d.domain));
        }
    }
    out
}

#[test]
fn what_is_accepted_becomes_valid_xml() {
    let schema = Path::new("/usr/share/libvirt/schemas/domain.rng");
    if Command::new("xmllint").arg("--version").output().is_err() || !schema.exists() {
        return skip("xmllint and libvirt's schemas (libxml2-utils, libvirt0)");
    }
    // What libvirt 9.0's schema does not know yet; each has a warning.
    let newer = [
        "sev-snp",
        "watchdog.model=itco",
        "sound.model=virtio",
        "=vhdx",
        "loongarch64",
        "firmware.format=qcow2",
    ];
    let dir = TempDir::new("valid-xml");
    let mut files: Vec<PathBuf> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (index, (name, domain)) in domains().into_iter().enumerate() {
        if newer.iter().any(|n| name.contains(n)) {
            continue;
        }
        files.push(dir.write(&format!("{index}.xml"), &xml::export(&domain).text));
        names.push(name);
    }
    assert!(files.len() > 250, "{}", files.len());
    let run = Command::new("xmllint")
        .args(["--noout", "--relaxng"])
        .arg(schema)
        .args(&files)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stderr);
    let (_, complaints): (Vec<&str>, Vec<&str>) =
        told.lines().partition(|l| l.ends_with(" validates"));
    let complaints = complaints.join("\n");
    let wrong: Vec<String> = files
        .iter()
        .zip(&names)
        .filter(|(file, _)| !told.contains(&format!("{} validates", file.display())))
        .map(|(file, name)| format!("{name}\n{}", std::fs::read_to_string(file).unwrap()))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} are not valid:\n{}\n{complaints}",
        wrong.len(),
        files.len(),
        wrong.join("\n")
    );
}

/// What XML can say of a domain.
fn sayable(domain: &Domain, unsaid: &[String]) -> Value {
    let mut value = domain.0.clone();
    // From the end: what is taken out of a list moves the rest.
    for path in unsaid.iter().rev() {
        remove(&mut value, path);
    }
    // No XML says any of it, and a list without its members would stay.
    remove(&mut value, "limits");
    prune(&mut value);
    value
}

fn remove(value: &mut Value, path: &str) {
    let names: Vec<&str> = path
        .split(['.', '[', ']'])
        .filter(|n| !n.is_empty())
        .collect();
    let Some((last, front)) = names.split_last() else {
        return;
    };
    let mut at = value;
    for name in front {
        let next = match name.parse::<usize>() {
            Ok(index) => at.get_mut(index),
            Err(_) => at.get_mut(*name),
        };
        match next {
            Some(next) => at = next,
            None => return,
        }
    }
    match (at, last.parse::<usize>()) {
        (Value::Array(list), Ok(index)) if index < list.len() => drop(list.remove(index)),
        (Value::Object(map), _) => drop(map.remove(*last)),
        _ => {}
    }
}

fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(prune);
        map.retain(|_, v| {
            !matches!(v, Value::Object(m) if m.is_empty())
                && !matches!(v, Value::Array(l) if l.is_empty())
        });
    }
}

#[test]
fn a_scenario_comes_back_from_its_xml() {
    let mut wrong = Vec::new();
    let all = domains();
    for (name, domain) in &all {
        let exported = xml::export(domain);
        let imported = match xml::import("domain.xml", &exported.text) {
            Ok(imported) => imported,
            Err(messages) => {
                wrong.push(format!("{name}: {messages}"));
                continue;
            }
        };
        let text = vsc::scenario::write(&imported.scenario);
        match describe(&text, &[]) {
            Ok(again) => {
                let first = sayable(domain, &exported.unsaid);
                let second = sayable(&again.domain, &xml::export(&again.domain).unsaid);
                if first != second {
                    wrong.push(format!(
                        "{name}:\n  {}",
                        differences(&first, &second, "").join("\n  ")
                    ));
                } else if xml::export(&again.domain).text != exported.text {
                    wrong.push(format!("{name}: the XML is another"));
                }
            }
            Err(messages) => wrong.push(format!("{name}: {messages}\n{text}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
}
