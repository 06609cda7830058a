//! Weak spots 17 to 30: robustness.

use std::process::Stdio;

use super::*;

/// Row 17: success was reported after failures, the exit code was 0 whatever happened.
#[test]
fn row_17_a_failure_is_no_success() {
    let lab = Lab::new("codes");
    lab.write("work/bad.yaml", "preset: desktop\ndisk: {cache: banana}\n");
    for words in [
        &["bad.yaml", "--export-xml"][..],
        &["bad.yaml", "--save"],
        &["plan", "bad.yaml"],
        &["disk", "make", "bad.yaml"],
    ] {
        let said = lab.refused(words);
        assert!(
            said.contains("error[E-VALUE]") && said.contains("bad.yaml:2:15"),
            "{words:?} {said}"
        );
    }
    for words in [
        &["start", "nobody"][..],
        &["status", "nobody"],
        &["stop", "nobody"],
        &["delete", "nobody"],
    ] {
        let said = lab.refused(words);
        assert!(said.contains("no saved VM \"nobody\""), "{words:?} {said}");
    }
    // Where it would run, what the monitor lacks is said as well.
    for words in [
        &["check", "bad.yaml"][..],
        &["bad.yaml"],
        &["bad.yaml", "--", "true"],
    ] {
        let output = lab.run(words);
        expect_code(&output, 125);
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(
            text(&output.stderr).contains("error[E-VALUE]"),
            "{output:?}"
        );
    }
}

/// Row 18: `overwrite on` crashed where a domain was defined, and took the old one away before the new one was good.
#[test]
fn row_18_the_old_one_stays_until_the_new_one_is_good() {
    let lab = Lab::new("overwrite");
    lab.write("work/a.yaml", "preset: desktop\n");
    lab.write("work/bad.yaml", "preset: desktop\nname: a\nvcpu: 0\n");
    lab.ok(&["a.yaml", "--save"]);
    let domain = lab.path("data/vsc/vms/a/domain.xml");
    let first = fs::read_to_string(&domain).unwrap();
    assert!(lab.refused(&["a.yaml", "--save"]).contains("--overwrite"));
    lab.refused(&["bad.yaml", "--save", "--overwrite"]);
    assert_eq!(fs::read_to_string(&domain).unwrap(), first);
    lab.ok(&["a.yaml", "--save", "--overwrite", "-o", "vcpu=3"]);
    let second = fs::read_to_string(&domain).unwrap();
    assert!(second.contains(">3</vcpu>") && second != first, "{second}");
}

/// Row 19: the store's directory was made before the run failed, and blocked the name from then on.
#[test]
fn row_19_a_failed_run_leaves_no_directory() {
    let lab = Lab::new("blocked");
    lab.write("work/a.yaml", "preset: desktop\nnets: [{type: bridge}]\n");
    lab.refused(&["a.yaml", "--save"]);
    assert!(!lab.path("data").exists());
    lab.write(
        "work/a.yaml",
        "preset: desktop\nnets: [{type: bridge, source: br0}]\n",
    );
    lab.ok(&["a.yaml", "--save"]);
    // Looking at it makes none either.
    let before = lab.content();
    lab.ok(&["plan", "a.yaml", "-o", "name=b"]);
    lab.export(&["a.yaml", "-o", "name=b"]);
    lab.run(&["status", "b"]);
    lab.run(&["start", "b"]);
    assert_eq!(lab.content(), before);
}

/// Row 20: what was said for one VM was in the next one.
#[test]
fn row_20_nothing_leaks_from_one_machine_to_the_next() {
    // In one process, in any order, each is as if it were alone.
    let texts = [
        "preset: desktop\ncdrom: x\n",
        "preset: securevm\n",
        "preset: computation\nvcpu: 2\n",
        "preset: desktop\n",
    ];
    let of = |text: &str| {
        describe(text, &[]).map_or_else(|e| e.to_string(), |d| xml::export(&d.domain).text)
    };
    let first: Vec<String> = texts.iter().map(|t| of(t)).collect();
    let again: Vec<String> = texts.iter().rev().map(|t| of(t)).collect();
    assert!(first.iter().eq(again.iter().rev()));
    // In one session of the shell, what is taken back is gone.
    let lab = Lab::new("leaks");
    lab.write("work/cd.iso", "x");
    let session = "mode guest; name vm-one; cdrom cd.iso; machine pc-q35-6.2; bootdev network; computation; unset; mode guest; name vm-two; computation";
    lab.ok(&["shell", "-c", session]);
    lab.ok(&["computation", "--save", "-o", "name=vm-alone"]);
    let saved = |name: &str| {
        let file = lab.path(&format!("data/vsc/vms/{name}/domain.xml"));
        let text = fs::read_to_string(file).unwrap().replace(name, "NAME");
        // These are the name's.
        let own = |l: &&str| !l.contains("<uuid>") && !l.contains("<mac ");
        text.lines().filter(own).collect::<Vec<_>>().join("\n")
    };
    assert!(saved("vm-one").contains("cd.iso") && saved("vm-one").contains("pc-q35-6.2"));
    assert_eq!(saved("vm-two"), saved("vm-alone"));
}

/// Row 21: without a settings file every scenario crashed.
#[test]
fn row_21_settings_are_not_needed() {
    let lab = Lab::new("settings");
    for preset in ["desktop", "computation", "securevm"] {
        assert!(
            lab.export(&[preset])
                .contains(&format!("<name>{preset}</name>"))
        );
    }
    let said = lab.export_refused(&["desktop", "--settings", "gone.yaml"]);
    assert!(
        said.contains("gone.yaml") && said.contains("no such file"),
        "{said}"
    );
    // Empty, a map where a list was expected: crashes there.
    lab.write("work/virtscenario.yaml", "");
    lab.export(&["desktop"]);
    lab.write(
        "work/virtscenario.yaml",
        "input:\n  keyboard: ps2\nSTORAGE_DATA:\n",
    );
    let domain = tree(&lab.export(&["desktop"]));
    let keyboard = all(&domain, "devices/input")
        .into_iter()
        .find(|i| i.get("type") == Some("keyboard"));
    assert!(
        keyboard.is_none_or(|k| k.get("bus") == Some("ps2")),
        "what the map says holds"
    );
}

/// Row 22: without a hypervisor of the name localhost every scenario crashed.
#[test]
fn row_22_no_hypervisor_has_to_be_called_localhost() {
    let lab = Lab::new("localhost");
    lab.write("work/virthosts.yaml", "lab:\n  url: test:///lab\n");
    lab.export(&["desktop"]);
    lab.ok(&["desktop", "--save"]);
    let told = lab.json(&["hosts", "list"]);
    assert_eq!(told["selected"], "lab");
    assert_eq!(told["hosts"].as_array().unwrap().len(), 1);
    let said = lab.refused(&["hosts", "networks", "--on", "localhost"]);
    assert!(said.contains("localhost") && said.contains("lab"), "{said}");
    lab.write("work/virthosts.yaml", "");
    let said = lab.refused(&["hosts", "list"]);
    assert!(
        said.contains("There is no hypervisor in this list"),
        "{said}"
    );
}

/// Row 23: without a libvirt one scenario crashed and the others went on after an error.
#[test]
fn row_23_a_libvirt_that_is_away_is_said_where_it_is_needed() {
    let lab = Lab::new("away");
    lab.write(
        "work/virthosts.yaml",
        "here:\n  url: \"qemu+unix:///system?socket=/nonexistent/s\"\n",
    );
    let empty = lab.path("empty");
    fs::create_dir(&empty).unwrap();
    // Nothing is executed to describe a machine.
    let root = lab.path("root");
    for preset in ["desktop", "securevm"] {
        let mut command = lab.vsc(&[
            preset,
            "--export-xml",
            "--host-root",
            root.to_str().unwrap(),
        ]);
        expect_code(&run(command.env("PATH", &empty)), 0);
    }
    let output = run(lab.vsc(&["hosts", "networks"]).env("PATH", &empty));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("libvirt-clients"),
        "{output:?}"
    );
    lab.write("work/a.yaml", "memory: 128M\nfirmware: bios\ntype: qemu\n");
    let script = "#!/bin/sh\necho 'error: failed to connect to the hypervisor' >&2\necho 'error: nobody is there' >&2\nexit 1\n";
    let bin = program(&lab, "virsh", script);
    for words in [
        &["hosts", "networks"][..],
        &["hosts", "machines"],
        &["a.yaml", "--on", "here"],
        &["a.yaml", "--on", "here", "--detach"],
    ] {
        let before = lab.content();
        let output = run(lab.vsc(words).env("PATH", before_path(&bin)));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        let about = said
            .lines()
            .filter(|l| l.contains("cannot connect to the hypervisor"))
            .count();
        assert_eq!(about, 1, "{words:?}: {said}");
        assert!(said.contains("nobody is there"), "{said}");
        assert_eq!(lab.content(), before);
    }
}

/// Row 24: no dry run, no way without a person, no undo. Undo and its log come with the issue about the host's
/// settings; until then the host is left as it is.
#[test]
fn row_24_a_plan_touches_nothing_and_nobody_is_asked() {
    let lab = Lab::new("plan");
    for (file, content) in [
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        ),
        ("sys/kernel/mm/ksm/run", "0\n"),
        ("sys/kernel/mm/ksm/merge_across_nodes", "1\n"),
        ("proc/sys/vm/swappiness", "60\n"),
    ] {
        let path = lab.path("root").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let root = lab.path("root");
    let root = root.to_str().unwrap();
    let before = lab.content();
    let mut command = lab.vsc(&["plan", "desktop", "--json", "--host-root", root]);
    let output = run(command.stdin(Stdio::null()).env("PATH", lab.path("empty")));
    expect_code(&output, 0);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let changes = plan["host"]["changes"].as_array().unwrap();
    let of = |key: &str| changes.iter().find(|c| c["what"] == key).unwrap();
    assert_eq!(
        (&of("host.swappiness")["old"], &of("host.swappiness")["new"]),
        (&"60".into(), &"35".into())
    );
    assert_eq!(
        (&of("host.thp")["old"], &of("host.thp")["new"]),
        (&"madvise".into(), &"always".into())
    );
    assert_eq!(of("host.ksm_merge_across_nodes")["skipped"], "already so");
    lab.ok(&["explain", "desktop", "--host-root", root]);
    lab.export(&["desktop"]);
    assert_eq!(lab.content(), before);
}

/// Row 25: `--list` crashed without a settings file. bsc#1216383: and without a store.
#[test]
fn row_25_a_list_of_nothing_is_empty() {
    let lab = Lab::new("list");
    assert_eq!(lab.json(&["list"]), Value::Array(Vec::new()));
    let store = lab.path("nowhere/vms");
    assert_eq!(
        lab.json(&["list", "--store", store.to_str().unwrap()]),
        Value::Array(Vec::new())
    );
    lab.write(
        "work/virtscenario.yaml",
        format!("config:\n  - vm-config-store: {}\n", store.display()),
    );
    assert_eq!(lab.json(&["list"]), Value::Array(Vec::new()));
    assert!(!lab.path("nowhere").exists() && !lab.path("data").exists());
}

/// Row 26: an image that was there was truncated without a question.
#[test]
fn row_26_an_image_that_is_there_is_never_touched() {
    let lab = Lab::new("image");
    fs::create_dir(lab.path("images")).unwrap();
    qcow2(&lab.path("images/desktop.qcow2"), None);
    let image = lab.path("images/desktop.qcow2").display().to_string();
    let before = fs::read(&image).unwrap();
    let directory = format!("storage.dir={}", lab.path("images").display());
    let words = ["disk", "make", "desktop", "-o", directory.as_str()];
    let output = lab.run(&words);
    assert!(fs::read(&image).unwrap() == before, "{output:?}");
    expect_code(&output, 0);
    for format in ["raw", "qcow2"] {
        let said = lab.refused(&["disk", "create", &image, "1M", "--format", format]);
        assert!(said.contains("never overwritten"), "{said}");
    }
    // It is not an image to make, either.
    let plan = lab.json(&["plan", "desktop", "-o", directory.as_str()]);
    assert_eq!(plan["images"], Value::Array(Vec::new()));
}

/// Row 27: the password could be empty.
#[test]
fn row_27_a_password_is_not_empty() {
    if !have_qemu_img() {
        return;
    }
    let lab = Lab::new("empty");
    for content in ["", "\n"] {
        lab.secret("work/key", content);
        fs::set_permissions(
            lab.path("work/key"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        let words = [
            "disk",
            "create",
            "a.qcow2",
            "1M",
            "--format",
            "qcow2",
            "--encryption",
            "luks",
        ];
        let said = lab.refused(&[&words[..], &["--secret-file", "key"]].concat());
        assert!(said.contains("is empty"), "{said}");
    }
    // Nobody there to ask is no empty password.
    let said = lab.refused(&[
        "disk",
        "create",
        "a.qcow2",
        "1M",
        "--format",
        "qcow2",
        "--encryption",
        "luks",
    ]);
    assert!(said.contains("passphrase"), "{said}");
}

/// Row 28: the table was not printed when all six of its rows differed, and had no others.
#[test]
fn row_28_every_difference_has_its_row() {
    let lab = Lab::new("six");
    lab.write(
        "work/s.yaml",
        "preset: desktop\nname: x\nvcpu: 2\nmemory: 2G\nvideo: vga\nstorage:\n  dir: /srv\n  preallocation: \"off\"\n  \
         encryption: luks\n  cache: unsafe\n  lazy_refcounts: off\n  cluster_size: 64K\n  bus: sata\n",
    );
    let plan = lab.json(&["plan", "s.yaml"]);
    let rows: Vec<&str> = plan["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["key"].as_str().unwrap())
        .collect();
    for key in [
        "storage.dir",
        "storage.preallocation",
        "storage.encryption",
        "storage.cache",
        "storage.lazy_refcounts",
        "storage.cluster_size",
        "storage.bus",
        "cpu.count",
        "memory.size",
        "video[0].model",
    ] {
        assert!(rows.contains(&key), "{key}: {rows:?}");
    }
    let shown = lab.ok(&["plan", "s.yaml"]);
    assert!(
        shown.contains("s.yaml:10") && shown.contains("Recommended"),
        "{shown}"
    );
    for key in ["storage.format", "storage.size"] {
        assert!(!rows.contains(&key), "{key} is as recommended: {rows:?}");
    }
}

/// Row 29: networks were taken for IPv4 /24 ones.
#[test]
fn row_29_a_network_has_the_prefix_that_it_has() {
    let lab = Lab::new("prefix");
    for (address, mask, first, last) in [
        ("10.9.0.1/20", "255.255.240.0", "10.9.0.2", "10.9.15.254"),
        (
            "192.168.5.65/29",
            "255.255.255.248",
            "192.168.5.66",
            "192.168.5.70",
        ),
        (
            "172.16.0.1/16",
            "255.255.0.0",
            "172.16.0.2",
            "172.16.255.254",
        ),
    ] {
        let address = format!("address={address}");
        let network = tree(&lab.ok(&["--export-xml", "network", "--", "name=n", &address]));
        assert_eq!(
            attribute(&network, "ip", "netmask"),
            Some(mask),
            "{address}"
        );
        assert_eq!(
            attribute(&network, "ip/dhcp/range", "start"),
            Some(first),
            "{address}"
        );
        assert_eq!(
            attribute(&network, "ip/dhcp/range", "end"),
            Some(last),
            "{address}"
        );
    }
    for address in ["10.0.0.1", "10.0.0.1/31", "10.0.0.0/24", "10.0.0.256/24"] {
        let address = format!("address={address}");
        lab.refused(&["--export-xml", "network", "--", "name=n", &address]);
    }
}

/// Row 30: one disk, one card, no checks before the start.
#[test]
fn row_30_many_devices_and_checks_of_all_of_them() {
    let scenario = "preset: desktop\ndisks: [{path: a.img}, {path: b.img, bus: sata}, {path: c.iso, device: cdrom}]\n\
                    nets: [{}, {type: user}, {type: bridge, source: br0}]\n";
    let domain = exported(&described(scenario, &[]));
    let targets: Vec<_> = all(&domain, "devices/disk/target")
        .iter()
        .map(|t| t.get("dev"))
        .collect();
    assert_eq!(targets, [Some("vda"), Some("sda"), Some("sdb")]);
    assert_eq!(all(&domain, "devices/interface").len(), 3);
    let macs: std::collections::HashSet<_> = all(&domain, "devices/interface/mac")
        .iter()
        .map(|m| m.get("address"))
        .collect();
    assert_eq!(macs.len(), 3);
    for (option, code) in [
        ("vcpu=0", "E-VCPU-COUNT"),
        ("memory=0", "E-MEMORY"),
        ("memory=4095B", "E-MEMORY"),
    ] {
        assert_eq!(error("preset: desktop\n", &[option]).code, code, "{option}");
    }
    // More than this host has is an error where it would run, and none for another host.
    let mut small = facts();
    small.memory = Some(vsc::facts::HostMemory {
        total: 1 << 30,
        available: 1 << 29,
    });
    let large = describe_on(&small, "memory: 2G\nkernel: vmlinuz\n", &[]).unwrap();
    let codes: Vec<&str> = large
        .monitor
        .unwrap_err()
        .list
        .iter()
        .map(|d| d.code)
        .collect();
    assert_eq!(codes, ["E-MEMORY-HOST"]);
}
