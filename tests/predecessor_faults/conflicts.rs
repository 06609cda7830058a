//! Conflicts that the predecessor did not detect: each is one error with both places, or a right machine.

use super::*;

fn words(code: &str, place: &str, other: &str) -> (String, String, String) {
    (code.into(), place.into(), other.into())
}

/// qemu-img failed, and the run went on.
#[test]
fn conflict_raw_with_preallocation_of_metadata() {
    let options = ["storage.format=raw", "storage.preallocation=metadata"];
    assert_eq!(
        conflict("preset: desktop\n", &options),
        words("E-CONFLICT", "metadata", "raw")
    );
    // The preset's own advice is for qcow2, and gives way.
    let description = described("preset: desktop\n", &["storage.format=raw"]);
    assert_eq!(description.images[0].spec.preallocation.word(), "off");
    let lab = Lab::new("raw-metadata");
    let said = lab.refused(&[
        "disk",
        "create",
        "a.raw",
        "1M",
        "--preallocation",
        "metadata",
    ]);
    assert!(said.contains("E-DISK-OPTION"), "{said}");
}

/// The image was plain, and the XML said LUKS.
#[test]
fn conflict_raw_with_encryption() {
    // It is encrypted now, and a format that cannot be is a conflict.
    let scenario = "preset: desktop\ndisks: [{path: n.img, format: vmdk, encryption: luks}]\n";
    assert_eq!(conflict(scenario, &[]), words("E-CONFLICT", "luks", "vmdk"));
    let lab = Lab::new("raw-luks");
    lab.secret("work/key", "x");
    let create = ["disk", "create", "a.raw", "1M", "--encryption", "luks"];
    lab.ok(&[&create[..], &["--iter-time", "1", "--secret-file", "key"]].concat());
    let made = fs::read(lab.path("work/a.raw")).unwrap();
    assert_eq!(made.len(), 3 << 20);
    assert!(made.starts_with(b"LUKS\xba\xbe\0\x01aes"));
}

/// Crash in the middle of the XML, half of it written.
#[test]
fn conflict_encryption_of_an_image_that_exists() {
    // It is not encrypted by this, and nobody claims so without being told.
    let scenario = "preset: securevm\ndisks: [{path: a.img, format: qcow2}]\n";
    let description = described(scenario, &[]);
    assert!(all(&exported(&description), "devices/disk/source/encryption").is_empty());
    let warned: Vec<&str> = description.warnings.list.iter().map(|d| d.code).collect();
    assert!(warned.contains(&"W-DISK-PLAIN"), "{warned:?}");
    // Whoever says that it is gets an element with a secret, the same each time.
    let said = ["disks.0.encryption=luks"];
    let uuid = |options: &[&str]| {
        let domain = exported(&described(scenario, options));
        attribute(&domain, "devices/disk/source/encryption/secret", "uuid").map(str::to_owned)
    };
    assert!(uuid(&said).is_some_and(|u| u.len() == 36));
    assert_eq!(uuid(&said), uuid(&said));
}

/// Two devices at one address.
#[test]
fn conflict_cdrom_and_disk_of_the_same_name() {
    let scenario = "preset: desktop\ndisks: [{path: a.img, bus: sata, target: sda}, {path: c.iso, device: cdrom, target: sda}]\n";
    assert_eq!(conflict(scenario, &[]), words("E-CONFLICT", "sda", "sda"));
    // The old way of naming the disk leaves the CD-ROM another name.
    let lab = Lab::new("cdrom");
    lab.write(
        "work/set.yaml",
        "STORAGE_DATA:\n  - disk_bus: sata\n  - disk_target: sda\n",
    );
    lab.write(
        "work/s.yaml",
        "preset: desktop\ndisks: [{size: 1G}, {path: c.iso, device: cdrom}]\n",
    );
    let domain = tree(&lab.export(&["s.yaml", "--settings", "set.yaml"]));
    let targets: Vec<_> = all(&domain, "devices/disk/target")
        .iter()
        .map(|t| t.get("dev"))
        .collect();
    assert_eq!(targets, [Some("sda"), Some("sdb")]);
}

/// QEMU refuses virtio devices there that are told to translate DMA.
#[test]
fn conflict_securevm_on_i440fx() {
    let description = described("preset: securevm\n", &["machine=pc", "nets.0.model=virtio"]);
    let warning = description
        .warnings
        .records()
        .into_iter()
        .find(|d| d.code == "W-SEV-MACHINE")
        .unwrap();
    assert_eq!(warning.place.unwrap().text.marked, "pc");
    let domain = exported(&description);
    // All that translate are of the kind that can.
    for (path, model) in [
        ("devices/interface/model", "type"),
        ("devices/memballoon", "model"),
        ("devices/rng", "model"),
        ("devices/disk", "model"),
    ] {
        assert_eq!(
            attribute(&domain, path, model),
            Some("virtio-non-transitional"),
            "{path}"
        );
    }
}

/// An encrypted machine whose disk cannot be encrypted.
#[test]
fn conflict_securevm_without_qcow2() {
    // A raw one is a LUKS container as well.
    let raw = exported(&described("preset: securevm\n", &["storage.format=raw"]));
    assert_eq!(
        attribute(&raw, "devices/disk/source/encryption", "format"),
        Some("luks")
    );
    // That no such image can be made here is said as well.
    let told = describe("preset: securevm\n", &["storage.format=vmdk"]).unwrap_err();
    let marked = |code: &str| {
        let told = told.records().into_iter().find(|d| d.code == code).unwrap();
        told.place.unwrap().text.marked
    };
    assert_eq!(
        (
            marked("E-CONFLICT").as_str(),
            marked("E-DISK-OPTION").as_str()
        ),
        ("luks", "vmdk")
    );
    let plain = described(
        "preset: securevm\n",
        &["storage.format=raw", "storage.encryption=none"],
    );
    assert!(all(&exported(&plain), "devices/disk/source/encryption").is_empty());
}

/// Firmware that protects its variables with SMM, on a machine without it.
#[test]
fn conflict_secure_boot_without_smm() {
    let named = "preset: desktop\nfirmware: {path: /fw/CODE.fd, secure: true}\n";
    assert_eq!(
        conflict(named, &["features.smm=false"]),
        words("E-CONFLICT", "false", "true")
    );
    let domain = exported(&described(named, &[]));
    assert_eq!(attribute(&domain, "features/smm", "state"), Some("on"));
    assert_eq!(attribute(&domain, "os/loader", "secure"), Some("yes"));
    // What is selected brings it along, or is not selected.
    let mut secure = facts();
    secure.firmware[0].found = Found::Text(FIRMWARE.replace(
        "\"acpi-s3\"",
        "\"secure-boot\", \"requires-smm\", \"enrolled-keys\"",
    ));
    let scenario = "preset: desktop\nfirmware: {type: efi, features: [secure-boot]}\n";
    let domain = exported(&describe_on(&secure, scenario, &[]).unwrap());
    assert_eq!(attribute(&domain, "features/smm", "state"), Some("on"));
    assert_eq!(attribute(&domain, "os/loader", "secure"), Some("yes"));
    assert_eq!(
        attribute(&domain, "os/nvram", "template"),
        Some("/fw/VARS.fd")
    );
    let refused = describe_on(&secure, scenario, &["features.smm=false"]).unwrap_err();
    assert!(refused.to_string().contains("E-FIRMWARE"), "{refused}");
}
