//! What a host has, and what is said to do about the rest.

use super::*;

#[test]
fn four_verdicts_are_told_apart() {
    let on = |names: &[&'static str]| names.iter().map(|n| (*n, "Y")).collect::<Vec<_>>();
    for (name, flags, parameters, leaf, level, processor) in [
        ("none", "svm", vec![], Some([0; 4]), "none", "none"),
        ("intel", "vmx", vec![], None, "none", "none"),
        // Whole words: sev_es alone is not sev.
        (
            "words",
            "svm sev_es sevx xsev",
            on(&["sev", "sev_es"]),
            Some(NAPLES),
            "none",
            "none",
        ),
        (
            "sev",
            "svm sev",
            vec![("sev", "1")],
            Some([2, 47 | 5 << 6, 15, 1]),
            "sev",
            "sev",
        ),
        (
            "es",
            "svm sme sev sev_es",
            vec![("sev", "1"), ("sev_es", "Y")],
            Some(NAPLES),
            "sev-es",
            "sev-es",
        ),
        (
            "snp",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            Some(MILAN),
            "sev-snp",
            "sev-snp",
        ),
        // Without CPUID the flags count.
        (
            "flags",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            None,
            "sev-snp",
            "sev-snp",
        ),
        // The processor could do more than the kernel has on.
        (
            "half",
            ALL_FLAGS,
            vec![("sev", "Y"), ("sev_es", "N"), ("sev_snp", "N")],
            Some(MILAN),
            "sev",
            "sev-snp",
        ),
        (
            "off",
            "svm sev sev_es",
            vec![("sev", "N"), ("sev_es", "Y")],
            Some(NAPLES),
            "none",
            "sev-es",
        ),
        // CPUID has the last word on what flags say.
        (
            "less",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            Some(NAPLES),
            "sev-es",
            "sev-es",
        ),
    ] {
        let host = Host::amd(name, flags, &parameters, leaf);
        let (code, report) = host.check();
        let usable = level != "none";
        assert_eq!(
            (
                code,
                &report["level"],
                &report["processor"],
                &report["usable"]
            ),
            (
                i32::from(!usable),
                &json!(level),
                &json!(processor),
                &json!(usable)
            ),
            "{name}: {report:#}"
        );
        let said = text(&host.run(&["check"]).stdout);
        let last = said.lines().last().unwrap();
        assert!(last.starts_with(&format!("{level}: ")), "{name}: {last}");
        for f in report["findings"].as_array().unwrap() {
            assert_eq!(
                f["works"] == false,
                f["remedy"].is_string(),
                "{name}: what does not work has its remedy: {f}"
            );
        }
    }
}

#[test]
fn the_c_bit_is_the_processors() {
    for (name, leaf, cbitpos) in [("47", NAPLES, 47), ("51", MILAN, 51)] {
        let host = Host::amd(&format!("cbit-{name}"), "sev", &[("sev", "1")], Some(leaf));
        let (_, report) = host.check();
        assert_eq!(
            (&report["cbitpos"], &report["reduced_phys_bits"]),
            (&json!(cbitpos), &json!(5))
        );
        // The compiler has the same from the same place.
        let info = run(vsc()
            .args(["info", "--json", "--host-root"])
            .arg(host.0.path("")));
        assert_eq!(json(&info)["sev"]["enabled"]["cbitpos"], cbitpos);
    }
    let unknown = Host::amd("cbit-unknown", "sev", &[("sev", "1")], None);
    assert_eq!(unknown.check().1["cbitpos"], Value::Null);
    // A directory is no host: this machine's own processor does not answer for it.
    let info = run(vsc()
        .args(["info", "--json", "--host-root"])
        .arg(unknown.0.path("")));
    assert_eq!(json(&info)["sev"]["enabled"], Value::Null);
}

#[test]
fn each_obstacle_has_its_own_remedy() {
    let remedy = |host: &Host, id: &str| {
        let report = host.check().1;
        finding(&report, id)["remedy"]
            .as_str()
            .unwrap_or_else(|| panic!("{id}: {report:#}"))
            .to_owned()
    };
    // Firmware that hides what the processor has.
    let hidden = Host::amd("hidden", "svm", &[("sev", "N")], Some(NAPLES));
    assert!(remedy(&hidden, "cpu-flags").contains("SMEE"));
    // The module is off, or not there.
    let off = Host::amd("module-off", "sev", &[("sev", "0")], Some(NAPLES));
    assert_eq!(remedy(&off, "kvm-sev"), "sudo vsc-run sev enable");
    assert_eq!(off.check().0, 1);
    let away = Host::amd("module-away", "sev", &[], Some(NAPLES));
    assert_eq!(remedy(&away, "kvm-sev"), "sudo modprobe kvm_amd");
    // SEV-ES without numbers, SNP on an old kernel, SNP without translated addresses.
    let numbers = Host::amd(
        "numbers",
        "sev sev_es",
        &[("sev", "Y"), ("sev_es", "N")],
        Some(NO_ES),
    );
    assert!(remedy(&numbers, "kvm-sev-es").contains("ASID"));
    let old = Host::amd(
        "old",
        ALL_FLAGS,
        &[("sev", "Y"), ("sev_es", "Y")],
        Some(MILAN),
    );
    assert!(remedy(&old, "kvm-sev-snp").contains("6.11"));
    assert!(remedy(&old, "iommu").contains("IOMMU"));
    old.file("sys/class/iommu/ivhd0/x", "");
    assert_eq!(finding(&old.check().1, "iommu")["works"], true);
    old.file("proc/cmdline", "root=/dev/sda iommu=pt mem_encrypt=on\n");
    assert!(remedy(&old, "iommu").contains("iommu=pt"));
    assert_eq!(finding(&old.check().1, "mem-encrypt")["works"], true);
    // The last one counts.
    old.file("proc/cmdline", "mem_encrypt=on mem_encrypt=off\n");
    assert_eq!(finding(&old.check().1, "mem-encrypt")["works"], false);
    // No device.
    fs::remove_file(off.0.path("dev/sev")).unwrap();
    off.file("sys/module/kvm_amd/parameters/sev", "Y\n");
    assert!(remedy(&off, "dev-sev").contains("modprobe ccp"));
    assert_eq!(off.check().1["level"], "none");
}

#[test]
fn who_may_open_the_device_is_said() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let host = Host::amd("device", "sev", &[("sev", "1")], Some(NAPLES));
    host.file("etc/group", "root:x:0:\nkvm:x:105:\n");
    host.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    let device = host.0.path("dev/sev");
    let mode = |mode| fs::set_permissions(&device, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    if fs::metadata(&device).unwrap().uid() != 0 {
        return common::skip("to give files away one must be root");
    }
    let detail = || {
        finding(&host.check().1, "dev-sev")["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(detail(), "root:root 0600: its owner may open it");
    std::os::unix::fs::chown(&device, Some(0), Some(105)).unwrap();
    mode(0o660);
    assert_eq!(
        detail(),
        "root:kvm 0660: its owner and the group kvm may open it"
    );
    // Somebody else may not, and is told how to.
    let program = host.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let output = run(std::process::Command::new(program)
        .args(["sev", "check", "--json", "--host-root"])
        .arg(host.0.path(""))
        .stdin(std::process::Stdio::null())
        .uid(65534)
        .gid(65534));
    expect_code(&output, 1);
    let report = json(&output);
    assert_eq!(
        (&report["level"], &report["usable"]),
        (&json!("sev"), &json!(false))
    );
    let told = finding(&report, "dev-sev")["remedy"].as_str().unwrap();
    assert!(told.contains("udev"), "{told}");
    // A directory in its place is none.
    fs::remove_file(&device).unwrap();
    fs::create_dir(&device).unwrap();
    assert_eq!(host.check().1["level"], "none");
}

#[test]
fn policies_are_read_and_written() {
    let policy = |arguments: &[&str]| {
        let output = run(vsc().args(["sev", "policy"]).args(arguments));
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let first = |arguments: &[&str]| {
        let (code, out, err) = policy(arguments);
        assert_eq!(code, 0, "{err}");
        out.lines().next().unwrap().to_owned()
    };
    assert_eq!(first(&["0x0003"]), "0x0003  sev  NODBG,NOKS");
    assert_eq!(first(&["3"]), "0x0003  sev  NODBG,NOKS");
    assert_eq!(first(&["0x7"]), "0x0007  sev-es  NODBG,NOKS,ES");
    assert_eq!(
        first(&["0x3f"]),
        "0x003f  sev-es  NODBG,NOKS,ES,NOSEND,DOMAIN,SEV"
    );
    assert_eq!(first(&["nodbg,noks,es"]), "0x0007  sev-es  NODBG,NOKS,ES");
    assert_eq!(first(&["0xb0000"]), "0xb0000  sev-snp  SMT,DEBUG");
    assert_eq!(first(&["smt"]), "0x30000  sev-snp  SMT");
    assert_eq!(first(&["0"]), "0x0000  sev  nothing");
    let (_, _, err) = policy(&["0x2"]);
    assert!(err.contains("may decrypt its memory"), "{err}");
    for illegal in [
        &["0x40"][..],
        &["0x100000000"],
        &["0x30000", "--type", "sev"],
        &["0x3", "--type", "sev-es"],
        &["0x10000", "--type", "sev-snp"],
        &["0x8000000000020000"],
        &["nodbg,smt"],
        &["nodbug"],
        &["12x"],
        &["0x"],
    ] {
        let (code, out, err) = policy(illegal);
        assert_eq!((code, out.as_str()), (125, ""), "{illegal:?}: {err}");
        assert!(err.starts_with("error[E-SEV]: "), "{err}");
    }
    let told = run(vsc().args(["sev", "policy", "0x18000007", "--json"]));
    let told = json(&told);
    assert_eq!(
        (
            &told["type"],
            &told["least_version"],
            &told["names"],
            &told["bits"][2]["set"]
        ),
        (
            &json!("sev-es"),
            &json!("0.24"),
            &json!(["NODBG", "NOKS", "ES"]),
            &json!(true)
        )
    );
}

#[test]
fn doctor_matches_whole_words() {
    for (flags, wanted) in [
        (
            "sev_es pse36 pdpe1gbx sev_snpx",
            [false, false, false, true, false],
        ),
        ("pse pdpe1gb", [true, true, false, false, false]),
        ("sev", [false, false, true, false, false]),
        ("pse pdpe1gb sev sev_es sev_snp", [true; 5]),
    ] {
        let host = Host::new(
            "doctor",
            &[("proc/cpuinfo", &format!("processor: 0\nflags\t: {flags}\n"))],
        );
        let output = run(vsc()
            .args(["doctor", "--json", "--host-root"])
            .arg(host.0.path("")));
        let report = json(&output);
        let works = |id: &str| {
            let checks = report["checks"].as_array().unwrap();
            let check = checks.iter().find(|c| c["id"] == id).unwrap();
            check["works"].as_bool().unwrap()
        };
        let found = [
            "flag-pse",
            "flag-pdpe1gb",
            "flag-sev",
            "flag-sev-es",
            "flag-sev-snp",
        ]
        .map(works);
        assert_eq!(found, wanted, "{flags}");
    }
}

#[test]
fn what_is_not_there_is_no_host() {
    let output = run(vsc().args(["sev", "check", "--json", "--host-root", "/nonexistent"]));
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("there is no directory /nonexistent"));
    let empty = TempDir::new("sev-empty");
    let mut command = vsc();
    command.args(["sev", "check", "--json", "--host-root"]);
    let output = run(command.arg(empty.path("")));
    expect_code(&output, 1);
    assert_eq!(json(&output)["level"], "none");
}
