//! `vsc-run firmware`: the firmware of this host, and which one a machine would get.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use common::{TempDir, expect_code, json, run, skip, text, vsc};
use serde_json::{Value, json};

const SHARE: &str = "usr/share/qemu/firmware";
const ETC: &str = "etc/qemu/firmware";

/// Whether this host has the descriptors of Debian's ovmf and no others: bookworm's and trixie's are the same.
fn debian() -> bool {
    let names = |directory: &str| {
        let mut names: Vec<_> = std::fs::read_dir(Path::new("/").join(directory))
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("x86_64"))
            .collect();
        names.sort();
        names
    };
    let ovmf = [
        "40-edk2-x86_64-secure-enrolled.json",
        "50-edk2-x86_64-secure.json",
        "60-edk2-x86_64.json",
    ];
    let there = names(SHARE) == ovmf && names(ETC) == [""; 0];
    if !there {
        skip("the firmware descriptors of Debian's package ovmf, and no others");
    }
    there
}

fn firmware(arguments: &str) -> Output {
    // A home of somebody's own would have a say for who is not root.
    let words = arguments.split_whitespace();
    run(vsc()
        .arg("firmware")
        .args(words)
        .env("XDG_CONFIG_HOME", "/none"))
}

fn selected(arguments: &str) -> Vec<String> {
    let output = firmware(&format!("select --arch x86_64 {arguments}"));
    expect_code(&output, 0);
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout).lines().map(str::to_owned).collect()
}

// What is expected here was read in the descriptors, file by file.

#[test]
fn the_first_of_debians_descriptors_that_fits_is_selected() {
    if !debian() {
        return;
    }
    let ms = "/usr/share/OVMF/OVMF_CODE_4M.ms.fd";
    let secboot = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
    let plain = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    for (arguments, expected) in [
        ("--feature amd-sev", &[ms][..]),
        ("--machine q35 --feature amd-sev", &[ms]),
        ("--machine pc-q35-7.2 -f secure-boot -f amd-sev", &[ms]),
        ("--machine q35 --feature secure-boot", &[ms]),
        (
            "--machine q35 --feature secure-boot --without enrolled-keys",
            &[secboot],
        ),
        ("--machine q35 --feature amd-sev --no-smm", &[plain]),
        ("--machine pc", &[plain]),
        ("--machine pc-i440fx-2.12 --device flash", &[plain]),
        ("--all", &[ms, secboot, plain]),
        ("--all --machine pc --feature amd-sev", &[plain]),
        ("--all --without requires-smm", &[plain]),
    ] {
        assert_eq!(selected(arguments), expected, "{arguments}");
    }
}

#[test]
fn a_selection_is_told_as_data() {
    if !debian() {
        return;
    }
    let output = firmware("select --json --arch x86_64 --machine q35 --feature secure-boot");
    expect_code(&output, 0);
    let expected = json!({
        "file": "/usr/share/qemu/firmware/40-edk2-x86_64-secure-enrolled.json",
        "executable": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
        "format": "raw",
        "nvram_template": { "filename": "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "format": "raw" },
        "device": "flash",
        "mode": "split",
        "features": ["acpi-s3", "amd-sev", "enrolled-keys", "requires-smm", "secure-boot", "verbose-dynamic"],
        "requires_smm": true,
    });
    assert_eq!(json(&output), expected);
    let output = firmware("select --json --all --arch x86_64 --no-smm");
    expect_code(&output, 0);
    let all = json(&output);
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(
        all[0]["file"],
        "/usr/share/qemu/firmware/60-edk2-x86_64.json"
    );
}

#[test]
fn no_match_is_explained_by_the_nearest() {
    if !debian() {
        return;
    }
    for (arguments, why) in [
        (
            "--machine pc --feature secure-boot",
            "60-edk2-x86_64.json lacks secure-boot; 40-edk2-x86_64-secure-enrolled.json is for pc-q35-*, not pc; \
             50-edk2-x86_64-secure.json is for pc-q35-*, not pc",
        ),
        (
            "--machine q35 --feature amd-sev-es",
            "60-edk2-x86_64.json lacks amd-sev-es; 40-edk2-x86_64-secure-enrolled.json lacks amd-sev-es and requires \
             SMM (amd-sev-es rules it out); 50-edk2-x86_64-secure.json lacks amd-sev-es and requires SMM (amd-sev-es \
             rules it out)",
        ),
    ] {
        let output = firmware(&format!("select --arch x86_64 {arguments}"));
        expect_code(&output, 125);
        assert_eq!(text(&output.stdout), "");
        let said = text(&output.stderr);
        assert!(
            said.starts_with("error[E-FIRMWARE]: There is no uefi firmware for x86_64, machine"),
            "{said}"
        );
        assert!(said.contains(&format!("why: {why}")), "{said}");
    }
    let output = firmware("select --json --arch riscv64");
    expect_code(&output, 125);
    let told = json(&output);
    assert_eq!(told["executable"], Value::Null);
    let mut nearest = told["nearest"].as_array().unwrap().iter();
    assert!(nearest.any(|miss| miss["reasons"] == json!(["is for x86_64, not riscv64"])));
    let record: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(record["code"], "E-FIRMWARE");
}

/// A host in a directory, with one good descriptor and its image.
fn host(name: &str) -> TempDir {
    let root = TempDir::new(name);
    for directory in [SHARE, ETC, "fw"] {
        std::fs::create_dir_all(root.path(directory)).unwrap();
    }
    root.write("fw/code.fd", "image");
    root.write(
        &format!("{SHARE}/50-good.json"),
        descriptor("/fw/code.fd").to_string(),
    );
    root
}

fn descriptor(executable: &str) -> Value {
    json!({
        "interface-types": ["uefi"],
        "mapping": { "device": "memory", "filename": executable },
        "targets": [{ "architecture": "x86_64", "machines": ["pc-q35-*"] }],
        "features": ["amd-sev", "sparkles"],
    })
}

fn below(root: &TempDir, arguments: &str) -> Output {
    firmware(&format!(
        "--host-root {} {arguments}",
        root.path("").display()
    ))
}

#[test]
fn files_that_have_no_say_are_listed_with_the_reason() {
    let root = host("firmware-list");
    root.write(
        &format!("{SHARE}/10-masked.json"),
        descriptor("/fw/code.fd").to_string(),
    );
    symlink("/dev/null", root.path(&format!("{ETC}/10-masked.json"))).unwrap();
    root.write(&format!("{SHARE}/20-bad.json"), "{}");
    root.write(
        &format!("{SHARE}/30-gone.json"),
        descriptor("/fw/gone.fd").to_string(),
    );
    root.write(&format!("{SHARE}/README"), "x");

    let output = below(&root, "list");
    expect_code(&output, 0);
    let rows: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let good = "x86_64 pc-q35-* amd-sev,sparkles";
    assert_eq!(
        rows,
        [
            "FILE EXECUTABLE NVRAM TEMPLATE ARCHITECTURES MACHINES FEATURES STATUS".to_owned(),
            format!("/{ETC}/10-masked.json - - - - - mask: empty: masks files of this name"),
            format!("/{SHARE}/10-masked.json - - - - - masked by /{ETC}/10-masked.json"),
            format!("/{SHARE}/20-bad.json - - - - - skipped: lacks `interface-types`"),
            format!(
                "/{SHARE}/30-gone.json /fw/gone.fd - {good} unusable: names /fw/gone.fd: there is no such file"
            ),
            format!("/{SHARE}/50-good.json /fw/code.fd - {good} usable"),
            format!("/{SHARE}/README - - - - - ignored: the name does not end in .json"),
        ]
    );
    let told = json(&below(&root, "list --json"));
    let states: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        ["mask", "masked", "skipped", "unusable", "usable", "ignored"]
    );
    assert_eq!(
        (&told[4]["executable"], &told[4]["why"]),
        (&json!("/fw/code.fd"), &Value::Null)
    );

    // What looks like a mistake is told when something is selected, and is in nobody's way.
    let output = below(&root, "select --arch x86_64");
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "/fw/code.fd\n");
    assert_eq!(
        text(&output.stderr),
        format!(
            "warning[W-FIRMWARE]: The firmware descriptor /{SHARE}/20-bad.json is skipped: lacks `interface-types`\n"
        )
    );
    let output = below(&root, "select --arch x86_64 --quiet");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_directory_can_stand_for_qemus() {
    let root = host("firmware-dir");
    std::fs::create_dir_all(root.path("own")).unwrap();
    root.write("own/1.json", descriptor("/fw/own.fd").to_string());
    root.write("fw/own.fd", "image");
    let output = below(&root, "select --arch x86_64 --all --descriptors /own");
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "/fw/own.fd\n");
    // A relative name is below the working directory, as everywhere.
    let own = run(vsc()
        .args(["firmware", "list", "--json", "--descriptors", "own"])
        .current_dir(root.path("")));
    expect_code(&own, 0);
    assert_eq!(
        json(&own)[0]["file"],
        json!(root.path("own/1.json").canonicalize().unwrap())
    );
    for verb in ["list", "select"] {
        let output = below(&root, &format!("{verb} --descriptors /none"));
        expect_code(&output, 125);
        assert_eq!(
            text(&output.stderr),
            "error[E-FIRMWARE]: --descriptors /none: there is no such file\n"
        );
    }
}

#[test]
fn words_that_nobody_knows_are_mistakes() {
    let root = host("firmware-words");
    for (arguments, said) in [
        (
            "select --feature secure-bot",
            "--feature secure-bot: neither",
        ),
        ("select --without x", "--without x: neither"),
        (
            "select --interface efi",
            "Known are bios, openfirmware, uboot, uefi",
        ),
        (
            "select --device rom",
            "[possible values: flash, kernel, memory]",
        ),
        ("list --feature amd-sev", "unexpected argument"),
    ] {
        let output = below(&root, arguments);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(said),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(text(&output.stdout), "");
    }
    // A word of a specification later than this program.
    let output = below(&root, "select --arch x86_64 --feature sparkles");
    expect_code(&output, 0);
    let empty = TempDir::new("firmware-none");
    let output = below(&empty, "select");
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("There are no firmware descriptors"),
        "{}",
        text(&output.stderr)
    );
    expect_code(&below(&empty, "list"), 0);
}
