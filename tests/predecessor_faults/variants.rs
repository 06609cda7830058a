//! Variants of scenarios that became invalid files, or files that libvirt refuses.

use super::*;

/// Every preset is valid; qxl, which this QEMU lacks, is not in it.
#[test]
fn variant_computation_without_qxl() {
    let lab = Lab::new("qxl");
    let mut bare = facts();
    bare.texts
        .retain(|path, _| !path.ends_with("hw-display-qxl.so"));
    for preset in ["desktop", "computation", "securevm"] {
        let description = describe_on(&bare, &format!("preset: {preset}\n"), &[]).unwrap();
        let xml = xml::export(&description.domain).text;
        assert!(!xml.contains("qxl"), "{xml}");
        if valid(&lab, &xml).is_none() {
            return;
        }
        assert_eq!(valid(&lab, &xml), Some(true), "{xml}");
    }
}

/// securevm in guest mode: accepted, and not secure. See also security_4.
#[test]
fn variant_securevm_in_guest_mode() {
    let lab = Lab::new("guestmode");
    lab.ok(&[
        "shell",
        "-c",
        &format!(
            "mode guest; set firmware.path {}; securevm",
            lab.path("root/fw/CODE.fd").display()
        ),
    ]);
    let place = lab.path("data/vsc/vms/securevm");
    let domain = tree(&fs::read_to_string(place.join("domain.xml")).unwrap());
    assert_eq!(attribute(&domain, "launchSecurity", "type"), Some("sev"));
    let config = fs::read_to_string(place.join("config.yaml")).unwrap();
    assert!(config.starts_with("attestation: true\n"), "{config}");
    // A libvirt without SEV is not asked to start it as if nothing were.
    let said = lab.refused(&["start", "securevm"]);
    assert!(said.contains("attested"), "{said}");
}

/// A relative path was kept, which is not valid.
#[test]
fn variant_relative_cdrom() {
    let lab = Lab::new("relative");
    lab.write("work/cd.iso", "x");
    lab.write(
        "work/s.yaml",
        "preset: desktop\ndisks: [{size: 1G}, {path: cd.iso, device: cdrom}]\nboot: cdrom\n",
    );
    let xml = lab.export(&["s.yaml"]);
    let here = fs::canonicalize(lab.path("work")).unwrap();
    let sources: Vec<_> = all(&tree(&xml), "devices/disk/source")
        .iter()
        .map(|s| s.get("file").unwrap().to_owned())
        .collect();
    assert_eq!(sources[1], here.join("cd.iso").display().to_string());
    assert_ne!(valid(&lab, &xml), Some(false), "{xml}");
    let xml = lab.export(&[
        "desktop",
        "-o",
        "disks.0.path=cd.iso",
        "-o",
        "disks.0.device=cdrom",
    ]);
    assert_ne!(valid(&lab, &xml), Some(false), "{xml}");
    assert!(
        xml.contains(&format!("file='{}'", here.join("cd.iso").display())),
        "{xml}"
    );
}

/// Controllers of q35 on i440fx.
#[test]
fn variant_i440fx() {
    let lab = Lab::new("i440fx");
    for preset in ["desktop", "computation"] {
        for machine in ["pc", "pc-i440fx-7.2"] {
            let xml = lab.export(&[
                preset,
                "-o",
                &format!("machine={machine}"),
                "-o",
                "video=vga",
            ]);
            assert!(!xml.contains("pcie-"), "{xml}");
            assert_eq!(attribute(&tree(&xml), "os/type", "machine"), Some(machine));
            assert_ne!(valid(&lab, &xml), Some(false), "{xml}");
        }
        let cdrom = ["machine=pc", "disks=[{path: /c.iso, device: cdrom}]"];
        let domain = exported(&described(&format!("preset: {preset}\n"), &cdrom));
        assert_eq!(
            attribute(&domain, "devices/disk/target", "bus"),
            Some("ide")
        );
    }
    let wrong = conflict(
        "preset: desktop\n",
        &["machine=q35", "disks=[{path: /a.img, bus: ide}]"],
    );
    assert_eq!(wrong, ("E-CONFLICT".into(), "ide".into(), "q35".into()));
}

/// Words that nobody checked reached the XML, with a message of success.
#[test]
fn variant_words_that_do_not_exist() {
    let lab = Lab::new("words");
    lab.write("work/set.yaml", "STORAGE_DATA:\n  - disk_cache: banana\n");
    let said = lab.export_refused(&["desktop", "--settings", "set.yaml"]);
    assert!(
        said.contains("error[E-VALUE]")
            && said.contains("set.yaml:2:17")
            && said.contains("writethrough"),
        "{said}"
    );
    // A format that QEMU reads, and that this program does not make.
    lab.write("work/set.yaml", "STORAGE_DATA:\n  - format: vmdk\n");
    let said = lab.export_refused(&["desktop", "--settings", "set.yaml"]);
    assert!(
        said.contains("vmdk") && said.contains("set.yaml:2:13"),
        "{said}"
    );
    let xml = lab.export(&["desktop", "-o", "disks=[{path: /old.vmdk, format: vmdk}]"]);
    assert_ne!(valid(&lab, &xml), Some(false), "{xml}");
    // A section that does not exist is passed over, and said.
    lab.write("work/set.yaml", "STORAGE:\n  - disk_cache: none\n");
    let root = lab.path("root");
    let output = lab.run(&[
        "desktop",
        "--export-xml",
        "--settings",
        "set.yaml",
        "--host-root",
        root.to_str().unwrap(),
    ]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    assert!(
        said.contains("W-OLD-UNKNOWN") && said.contains("set.yaml:1:1"),
        "{said}"
    );
}

/// No vCPU and no memory.
#[test]
fn variant_vcpu_and_memory_of_zero() {
    let lab = Lab::new("zero");
    for (option, code) in [("vcpu=0", "E-VCPU-COUNT"), ("memory=0", "E-MEMORY")] {
        let said = lab.export_refused(&["desktop", "-o", option]);
        assert!(
            said.contains(&format!("error[{code}]")) && said.contains(&format!("-o {option}")),
            "{said}"
        );
    }
    // Both at once are told at once.
    let messages = describe("vcpu: 0\nmemory: 0\n", &[]).unwrap_err();
    let codes: Vec<&str> = messages.list.iter().map(|d| d.code).collect();
    assert_eq!(codes, ["E-VCPU-COUNT", "E-MEMORY"]);
}

/// `&` and `'` in a path: no XML at all, a part of the file left behind.
#[test]
fn variant_paths_with_markup() {
    let lab = Lab::new("markup");
    for directory in ["/a&b", "/a'b", "/a\"b", "/a<b>", "/a]]>b", "/ä ö"] {
        let xml = lab.export(&["desktop", "-o", &format!("storage.dir={directory}")]);
        let source = attribute(&tree(&xml), "devices/disk/source", "file").map(str::to_owned);
        assert_eq!(source.unwrap(), format!("{directory}/desktop.qcow2"));
        assert_ne!(valid(&lab, &xml), Some(false), "{xml}");
        // What libvirt would say of it is what was meant.
        let again = xml::import("d.xml", &xml).unwrap().scenario;
        assert_eq!(
            again["disks"][0]["path"],
            format!("{directory}/desktop.qcow2")
        );
    }
}

/// The format of an image came from the text of `qemu-img info`: a guest could write such a header itself.
#[test]
fn variant_formats_of_images_are_said_and_not_guessed() {
    let lab = Lab::new("format");
    qcow2(&lab.path("work/a.img"), None);
    lab.write("work/s.yaml", "disks: [{path: a.img}]\n");
    let said = text(&lab.run(&["check", "s.yaml"]).stderr);
    assert!(
        said.contains("error[E-DISK-FORMAT]") && said.contains("s.yaml:1:16"),
        "{said}"
    );
    expect_code(&lab.run(&["--export-xml", "s.yaml"]), 125);
    for format in ["raw", "qcow2"] {
        let option = format!("disks.0.format={format}");
        let domain = tree(&lab.export(&["s.yaml", "-o", &option]));
        assert_eq!(
            attribute(&domain, "devices/disk/driver", "type"),
            Some(format)
        );
        let said = text(&lab.run(&["check", "s.yaml", "-o", &option]).stderr);
        assert!(!said.contains("W-DISK-FORMAT"), "{said}");
    }
}
