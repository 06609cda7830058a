use super::*;
use crate::facts::{FileInfo, FileKind, HostFacts};

mod files;
mod machines;

/// A descriptor in the form of Debian's.
fn flash(code: &str, machines: &[&str], features: &[&str]) -> String {
    serde_json::json!({
        "description": "for tests",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": { "filename": format!("/fw/{code}.fd"), "format": "raw" },
            "nvram-template": { "filename": "/fw/VARS.fd", "format": "raw" },
        },
        "targets": [{ "architecture": "x86_64", "machines": machines }],
        "features": features,
        "tags": ["amd-sev-es"],
    })
    .to_string()
}

fn memory(file: &str, features: &[&str]) -> String {
    serde_json::json!({
        "interface-types": ["uefi"],
        "mapping": { "device": "memory", "filename": format!("/fw/{file}.fd") },
        "targets": [{ "architecture": "x86_64", "machines": ["pc-q35-*"] }],
        "features": features,
    })
    .to_string()
}

const Q35: &[&str] = &["pc-q35-*"];
const BOTH: &[&str] = &["pc-i440fx-*", "pc-q35-*"];

/// The five descriptors of Debian sid with ovmf-generic, ovmf-amdsev and ovmf-inteltdx.
fn sid() -> Vec<(&'static str, String)> {
    let secure = [
        "acpi-s3",
        "amd-sev",
        "requires-smm",
        "secure-boot",
        "verbose-dynamic",
    ];
    let enrolled = [&secure[..], &["enrolled-keys"]].concat();
    vec![
        ("40-enrolled.json", flash("MS", Q35, &enrolled)),
        ("50-secure.json", flash("SECBOOT", Q35, &secure)),
        (
            "60-amdsev.json",
            memory(
                "AMDSEV",
                &["amd-sev", "amd-sev-es", "amd-sev-snp", "verbose-dynamic"],
            ),
        ),
        (
            "60-plain.json",
            flash("CODE", BOTH, &["acpi-s3", "amd-sev", "verbose-dynamic"]),
        ),
        (
            "60-tdx.json",
            memory(
                "TDX",
                &[
                    "enrolled-keys",
                    "intel-tdx",
                    "secure-boot",
                    "verbose-dynamic",
                ],
            ),
        ),
    ]
}

const IMAGES: [&str; 6] = ["MS", "SECBOOT", "CODE", "VARS", "AMDSEV", "TDX"];

/// A host as plain data: these descriptors, and all images of the tests.
fn facts(files: Vec<(&str, String)>) -> HostFacts {
    let file = FileInfo {
        kind: FileKind::Regular,
        length: 1,
        writable: false,
    };
    HostFacts {
        firmware: files
            .into_iter()
            .map(|(name, text)| DescriptorFile {
                path: Path::new("/d").join(name),
                found: Found::Text(text),
            })
            .collect(),
        files: IMAGES
            .iter()
            .map(|i| (format!("/fw/{i}.fd").into(), Ok(file)))
            .collect(),
        ..HostFacts::default()
    }
}

fn read(files: Vec<(&str, String)>) -> Vec<Descriptor> {
    let catalogue = Catalogue::read(&facts(files), None);
    assert_eq!(catalogue.skipped, []);
    catalogue.descriptors
}

fn wanted(machine: &str, features: &[&str]) -> Wanted {
    Wanted {
        arch: "x86_64".into(),
        machine: Some(machine.into()),
        features: features.iter().map(|f| Feature::from(*f)).collect(),
        ..Wanted::default()
    }
}

fn name(selection: &Selection) -> String {
    selection
        .file
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn told(result: Result<Selection, NoMatch>) -> Vec<String> {
    result
        .unwrap_err()
        .nearest
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_first_that_has_all_is_taken() {
    let all = read(sid());
    for (machine, features, file) in [
        ("q35", &[][..], "40-enrolled.json"),
        ("pc", &[], "60-plain.json"),
        ("pc-q35-8.2", &["amd-sev"], "40-enrolled.json"),
        ("q35", &["secure-boot"], "40-enrolled.json"),
        ("q35", &["intel-tdx"], "60-tdx.json"),
        ("q35", &["amd-sev-snp"], "60-amdsev.json"),
        ("pc-i440fx-2.12", &["amd-sev"], "60-plain.json"),
    ] {
        let selected = select(&all, &wanted(machine, features)).unwrap();
        assert_eq!(name(&selected), file, "{machine} {features:?}");
    }
    let q35 = wanted("q35", &[]);
    let names = |wanted: &Wanted| matches(&all, wanted).iter().map(name).collect::<Vec<_>>();
    assert_eq!(
        names(&q35),
        [
            "40-enrolled.json",
            "50-secure.json",
            "60-amdsev.json",
            "60-plain.json",
            "60-tdx.json"
        ]
    );
    let some = |device| Wanted {
        device: Some(device),
        ..q35.clone()
    };
    assert_eq!(
        names(&some(Device::Memory)),
        ["60-amdsev.json", "60-tdx.json"]
    );
    assert_eq!(names(&some(Device::Kernel)), [""; 0]);
    let stateless = |stateless| Wanted {
        stateless: Some(stateless),
        ..q35.clone()
    };
    assert_eq!(names(&stateless(true)), ["60-amdsev.json", "60-tdx.json"]);
    assert_eq!(
        names(&stateless(false)),
        ["40-enrolled.json", "50-secure.json", "60-plain.json"]
    );
    let forbid = vec![Feature::EnrolledKeys];
    assert_eq!(
        names(&Wanted {
            forbid,
            ..wanted("q35", &["secure-boot"])
        }),
        ["50-secure.json"]
    );
}

#[test]
fn a_selection_says_all_that_a_machine_needs() {
    let all = read(sid());
    let image = |name: &str| Image {
        path: format!("/fw/{name}.fd").into(),
        format: Format::Raw,
    };
    let selected = select(&all, &wanted("q35", &["secure-boot"])).unwrap();
    assert_eq!(selected.executable, image("MS").path);
    assert_eq!(selected.nvram_template, Some(image("VARS")));
    assert_eq!(
        (selected.device, selected.mode),
        (Device::Flash, Some(Mode::Split))
    );
    assert!(selected.requires_smm && selected.features.contains(&Feature::EnrolledKeys));

    let selected = select(&all, &wanted("q35", &["amd-sev-es"])).unwrap();
    assert_eq!(
        (selected.executable, selected.nvram_template),
        (image("AMDSEV").path, None)
    );
    assert_eq!(
        (selected.device, selected.mode, selected.requires_smm),
        (Device::Memory, None, false)
    );
}

#[test]
fn firmware_that_requires_smm_is_for_machines_that_can_have_it() {
    let all = read(
        sid()
            .into_iter()
            .filter(|(name, _)| *name < "60-amdsev" || *name == "60-plain.json")
            .collect(),
    );
    let without = Wanted {
        smm: false,
        ..wanted("q35", &["amd-sev"])
    };
    let selected = select(&all, &without).unwrap();
    assert_eq!(
        (name(&selected), selected.requires_smm),
        ("60-plain.json".into(), false)
    );
    let without = Wanted {
        smm: false,
        ..wanted("q35", &["secure-boot"])
    };
    assert_eq!(
        told(select(&all, &without)),
        [
            "40-enrolled.json requires SMM (the machine has none)",
            "50-secure.json requires SMM (the machine has none)",
            "60-plain.json lacks secure-boot",
        ]
    );

    // Whoever hides registers has no SMM, even where the machine could have it.
    let mut both = flash("MS", Q35, &["amd-sev-es", "requires-smm"]);
    let hidden = read(vec![("1.json", both.clone())]);
    assert_eq!(
        told(select(&hidden, &wanted("q35", &["amd-sev-es"]))),
        ["1.json requires SMM (amd-sev-es rules it out)"]
    );
    both = both.replace("requires-smm", "acpi-s4");
    assert!(
        select(
            &read(vec![("1.json", both)]),
            &wanted("q35", &["amd-sev-es"])
        )
        .is_ok()
    );
}

#[test]
fn the_nearest_miss_comes_first() {
    let all = read(sid());
    assert_eq!(
        told(select(&all, &wanted("pc", &["secure-boot"]))),
        [
            "60-plain.json lacks secure-boot",
            "40-enrolled.json is for pc-q35-*, not pc",
            "50-secure.json is for pc-q35-*, not pc",
            "60-tdx.json is for pc-q35-*, not pc",
            "60-amdsev.json is for pc-q35-*, not pc and lacks secure-boot",
        ]
    );
    let other = Wanted {
        arch: "aarch64".into(),
        ..wanted("virt", &["secure-boot"])
    };
    assert_eq!(
        told(select(&all, &other))[0],
        "40-enrolled.json is for x86_64, not aarch64"
    );
    let bios = Wanted {
        interface: Interface::Bios,
        ..wanted("pc", &[])
    };
    assert_eq!(
        told(select(&all, &bios))[0],
        "60-plain.json offers uefi, not bios"
    );

    let wanted = Wanted {
        forbid: vec![Feature::AcpiS3, Feature::VerboseDynamic],
        stateless: Some(true),
        device: Some(Device::Memory),
        smm: false,
        ..wanted("pc-q35-9.0", &["acpi-s4", "secure-boot", "amd-sev-snp"])
    };
    let error = select(&all[..2], &wanted).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no uefi firmware for x86_64, machine pc-q35-9.0, with acpi-s4, secure-boot and amd-sev-snp, \
         without acpi-s3 and verbose-dynamic, stateless, for memory, on a machine without SMM"
    );
    assert_eq!(
        error.nearest[0].to_string(),
        "40-enrolled.json lacks acpi-s4 and amd-sev-snp, has acpi-s3 and verbose-dynamic, requires SMM \
         (amd-sev-snp rules it out), is not stateless (mode split) and is for flash, not memory"
    );
    let stateful = Wanted {
        stateless: Some(false),
        ..self::wanted("q35", &["intel-tdx"])
    };
    assert_eq!(
        told(select(&all[4..], &stateful)),
        ["60-tdx.json has no variable store"]
    );
}

#[test]
fn a_message_tells_three_near_misses_or_that_there_is_nothing() {
    let message = |all: &[Descriptor]| {
        let none = select(all, &wanted("pc", &["secure-boot"])).unwrap_err();
        none.diagnostic(Span::NONE)
    };
    let some = message(&read(sid()));
    assert_eq!(
        (some.code, &*some.message),
        (
            "E-FIRMWARE",
            "There is no uefi firmware for x86_64, machine pc, with secure-boot"
        )
    );
    assert_eq!(
        some.why.unwrap(),
        "60-plain.json lacks secure-boot; 40-enrolled.json is for pc-q35-*, not pc; 50-secure.json is for pc-q35-*, \
         not pc; 2 more"
    );
    assert!(
        !message(&read(sid().split_off(2)))
            .why
            .unwrap()
            .contains("more")
    );
    assert_eq!(
        message(&[]).why.unwrap(),
        "There are no firmware descriptors"
    );
}

#[test]
fn what_is_not_understood_is_not_demanded_of_a_machine() {
    let all = read(vec![
        ("1.json", memory("CODE", &["qemu-vars"])),
        ("2.json", memory("CODE", &["requires-magic"])),
        ("3.json", memory("CODE", &["sparkles"])),
    ]);
    assert_eq!(name(&select(&all, &wanted("q35", &[])).unwrap()), "3.json");
    assert_eq!(
        name(&select(&all, &wanted("q35", &["qemu-vars"])).unwrap()),
        "1.json"
    );
    assert_eq!(
        name(&select(&all, &wanted("q35", &["requires-magic"])).unwrap()),
        "2.json"
    );
    assert_eq!(
        told(select(&all[..2], &wanted("q35", &[]))),
        [
            "1.json needs a variable store of QEMU's own (qemu-vars)",
            "2.json has requires-magic, which this program does not know",
        ]
    );
    // What is forbidden is told once.
    let forbid = vec![Feature::QemuVars];
    assert_eq!(
        told(select(
            &all[..1],
            &Wanted {
                forbid,
                ..wanted("q35", &[])
            }
        )),
        ["1.json has qemu-vars"]
    );
}

#[test]
fn an_image_that_is_not_there_is_a_near_miss() {
    let mut host = facts(vec![
        ("1.json", flash("GONE", Q35, &[])),
        ("2.json", flash("CODE", Q35, &[])),
    ]);
    host.files
        .insert("/fw/VARS.fd".into(), Err(FileError::Denied));
    let all = Catalogue::read(&host, None).descriptors;
    assert_eq!(
        told(select(&all, &wanted("q35", &[]))),
        [
            "2.json names /fw/VARS.fd: this user may not read it",
            "1.json names /fw/GONE.fd: there is no such file and names /fw/VARS.fd: this user may not read it",
        ]
    );
    let directory = FileInfo {
        kind: FileKind::Directory,
        length: 0,
        writable: false,
    };
    host.files.insert("/fw/VARS.fd".into(), Ok(directory));
    let all = Catalogue::read(&host, None).descriptors;
    assert_eq!(
        told(select(&all[1..], &wanted("q35", &[]))),
        ["2.json names /fw/VARS.fd: it is not a regular file"]
    );
}

#[test]
fn broken_descriptors_are_skipped_with_the_reason() {
    let good = flash("CODE", Q35, &[]);
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let cases = [
        (
            "{".into(),
            "not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        ("[]".into(), "not a JSON object"),
        ("{}".into(), "lacks `interface-types`"),
        (with(r#"["uefi"]"#, "[]"), "`interface-types` is empty"),
        (
            with(r#"["uefi"]"#, "[1]"),
            "`interface-types` is not a list of words",
        ),
        (with("mapping", "maping"), "lacks `mapping`"),
        (
            with("flash", "tape"),
            "`mapping.device` is `tape`, which is not one of flash, kernel, memory",
        ),
        (with(r#""flash""#, "7"), "`mapping.device` is not text"),
        (
            with(r#""device""#, r#""mode":"both","device""#),
            "`mapping.mode` is `both`, which is not one of split, combined, stateless",
        ),
        (with("executable", "exe"), "lacks `mapping.executable`"),
        (
            with("nvram-template", "nvram"),
            "lacks `mapping.nvram-template`",
        ),
        (
            with(r#""/fw/CODE.fd""#, "null"),
            "`mapping.executable.filename` is not text",
        ),
        (
            with("/fw/CODE.fd", "CODE.fd"),
            "`mapping.executable.filename` is `CODE.fd`, which is not an absolute path",
        ),
        (
            with("/fw/CODE.fd", "/fw/\\u001b[2J"),
            "`mapping.executable.filename` is `/fw/\\u{1b}[2J`, which is not an absolute path",
        ),
        (
            with("raw", "vmdk"),
            "`mapping.nvram-template.format` is `vmdk`, which is not one of raw, qcow2",
        ),
        (with("targets", "target"), "lacks `targets`"),
        (
            with("architecture", "arch"),
            "lacks `targets[0].architecture`",
        ),
        (
            with(r#"["pc-q35-*"]"#, r#""pc-q35-*""#),
            "`targets[0].machines` is not a list",
        ),
        (with("features", "feature"), "lacks `features`"),
        (
            memory("CODE", &[]).replace("filename", "name"),
            "lacks `mapping.filename`",
        ),
        (
            "[".repeat(1000),
            "not valid JSON: recursion limit exceeded at line 1 column 128",
        ),
    ];
    for (text, expected) in cases {
        let found = Catalogue::read(
            &facts(vec![
                ("bad.json", text.clone()),
                ("good.json", good.clone()),
            ]),
            None,
        );
        assert_eq!(found.descriptors.len(), 1, "{text}");
        let [skipped] = &*found.skipped else {
            panic!("{text}: {:?}", found.skipped)
        };
        assert_eq!(skipped.why.to_string(), expected);
        let warnings = found.warnings();
        assert_eq!(warnings.len(), 1);
        assert_eq!(
            warnings[0].message,
            format!("The firmware descriptor /d/bad.json is skipped: {expected}")
        );
    }
}

#[test]
fn modes_and_formats() {
    let split = flash("CODE", Q35, &[]).replace("raw", "qcow2");
    let mode = |mode: &str| split.replace(r#""device""#, &format!(r#""mode":"{mode}","device""#));
    let kernel = memory("CODE", &[]).replace(r#""memory""#, r#""kernel""#);
    let all = read(vec![
        ("1.json", mode("combined")),
        ("2.json", mode("stateless")),
        ("3.json", mode("split")),
        ("4.json", kernel),
    ]);
    let shape = |d: &Descriptor| {
        (
            d.device,
            d.mode,
            d.executable.format,
            d.nvram_template.is_some(),
        )
    };
    assert_eq!(
        all.iter().map(shape).collect::<Vec<_>>(),
        [
            (Device::Flash, Some(Mode::Combined), Format::Qcow2, false),
            (Device::Flash, Some(Mode::Stateless), Format::Qcow2, false),
            (Device::Flash, Some(Mode::Split), Format::Qcow2, true),
            (Device::Kernel, None, Format::Raw, false),
        ]
    );
    let stateless = |stateless| Wanted {
        stateless: Some(stateless),
        ..wanted("q35", &[])
    };
    assert_eq!(name(&select(&all, &stateless(true)).unwrap()), "2.json");
    assert_eq!(name(&select(&all, &stateless(false)).unwrap()), "1.json");
}
