//! Files of virt-scenario and of libvirt, as their users have them, through the program.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{TempDir, expect_code, run, skip, text, vsc};
use serde_json::{Value, json};

/// Every section and key of virt-scenario's settings, the typing errors of real files included.
const SETTINGS: &str = "\
config:
    - path: /etc/virt-scenario
    - vm-config-store: ~/vmconfig
hypervisors:
    - hvconf: virthosts.yaml
emulator:
    - emulator: /usr/bin/qemu-system-x86_64
    - fw_meta: /usr/share/qemu/firmware
input:
    - keyboard: virtio
    - mouse: virtio
architecture:
    - arch: x86_64
STORAGE_DATA:
    - disk_type: file
    - disk_cache: none
    - disk_target: vda
    - disk_bus: virtio
    - path: /var/livirt/images
    - format: qcow2
    - unit: G
    - capacity: 8
    - cluster_size: 1024k
    - lazy_refcounts: on
    - preallocation: off
    - compression_type: zlib
    - encryption: off
host_filesystem:
    - fmode: 644
    - dmode: 755
    - source_dir: /tmp
    - target_dir: /tmp/host
";

/// The program in a directory with a home and a configuration of its own.
fn at(dir: &TempDir, words: &[&str]) -> Command {
    let mut command = vsc();
    command
        .args(words)
        .current_dir(dir.path(""))
        .env("HOME", dir.path("home"))
        .env("XDG_CONFIG_HOME", dir.path("config"))
        .env("XDG_DATA_HOME", dir.path("data"));
    command
}

fn answer(dir: &TempDir, words: &[&str]) -> Output {
    run(&mut at(dir, words))
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
}

fn codes(notes: &Value) -> Vec<(&str, u64)> {
    notes
        .as_array()
        .unwrap()
        .iter()
        .map(|n| {
            (
                n["code"].as_str().unwrap(),
                n["place"]["line"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn settings_become_a_scenario_that_is_right() {
    let dir = TempDir::new("old-import");
    dir.write("virtscenario.yaml", SETTINGS);
    dir.write("virthosts.yaml", "localhost:\n  url: qemu:///system\n");
    std::fs::create_dir(dir.path("home")).unwrap();
    let output = answer(
        &dir,
        &["import", "virtscenario.yaml", "--preset", "desktop"],
    );
    expect_code(&output, 0);
    let scenario = text(&output.stdout);
    assert!(
        scenario.starts_with("# From virtscenario.yaml, settings of virt-scenario.\n"),
        "{scenario}"
    );
    for line in [
        "preset: desktop",
        "arch: x86_64",
        "emulator: /usr/bin/qemu-system-x86_64",
        "  descriptors: /usr/share/qemu/firmware",
        "  dir: /var/livirt/images",
        "  size: 8G",
        "  cluster_size: 1M",
        "  lazy_refcounts: true",
        "  preallocation: \"off\"",
        "  encryption: none",
        "    fmode: \"0644\"",
        "    dmode: \"0755\"",
        "    target: /tmp/host",
        "  mouse: virtio",
    ] {
        assert!(
            scenario
                .lines()
                .any(|l| l.trim_start_matches("  - ") == line || l == line),
            "{line}:\n{scenario}"
        );
    }
    assert!(
        scenario.contains(&format!("store: {}\n", dir.path("home/vmconfig").display())),
        "{scenario}"
    );
    let messages = text(&output.stderr);
    assert!(
        messages.contains("/var/livirt/images: this directory does not exist"),
        "{messages}"
    );
    assert!(messages.contains("virtscenario.yaml:19:13"), "{messages}");

    // What was written says what the settings say where they are found: the same domain.
    dir.write("s.yaml", &scenario);
    let name = ["--export-xml", "-q", "-o", "name=a"];
    let imported = answer(
        &dir,
        &[&["s.yaml", "--settings", "none"], &name[..]].concat(),
    );
    expect_code(&imported, 0);
    let found = answer(&dir, &[&["desktop"], &name[..]].concat());
    expect_code(&found, 0);
    assert_eq!(text(&imported.stdout), text(&found.stdout));
    let without = answer(
        &dir,
        &[&["desktop", "--settings", "none"], &name[..]].concat(),
    );
    assert_ne!(text(&found.stdout), text(&without.stdout));
    for element in [
        "<type arch='x86_64'",
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
        "cache='none'",
        "file='/var/livirt/images/a.qcow2'",
        "<target dev='vda' bus='virtio'/>",
        "fmode='0644' dmode='0755'",
        "<target dir='/tmp/host'/>",
        "<input type='mouse' bus='virtio'/>",
    ] {
        assert!(
            text(&found.stdout).contains(element),
            "{element}: {}",
            text(&found.stdout)
        );
    }

    let output = answer(&dir, &["import", "virtscenario.yaml", "--json"]);
    expect_code(&output, 0);
    let told = json_of(&output);
    assert_eq!(told["kind"], "settings");
    assert_eq!(told["scenario"]["storage"]["cluster_size"], json!(1 << 20));
    assert_eq!(told["scenario"]["shares"][0]["fmode"], "0644");
    assert_eq!(told["scenario"]["preset"], Value::Null);
    let lines = codes(&told["notes"]);
    assert!(
        lines.contains(&("W-UNUSED", 2)) && lines.contains(&("W-PATH", 19)),
        "{lines:?}"
    );
}

/// Files that virt-scenario crashes on, or whose content it drops.
#[test]
fn broken_settings_have_one_clear_message() {
    let dir = TempDir::new("old-broken");
    for (content, code, words) in [
        ("", 125, "There is no section"),
        ("input:\n", 0, "The section `input` is empty"),
        (
            "input:\n  keyboard: ps2\n",
            0,
            "The section `input` is a map",
        ),
        (
            "input:\n  - keyboard: ps2\nunknown:\n  - a: b\n",
            0,
            "`unknown` is no section",
        ),
        (
            "STORAGE_DATA:\n  - disk_cach: none\n",
            0,
            "did you mean `disk_cache`?",
        ),
        (
            "STORAGE_DATA:\n  - disk_cache: banana\n",
            125,
            "`banana` is no value for `storage.cache`",
        ),
        (
            "STORAGE_DATA:\n  - format: qcow\n",
            125,
            "did you mean `qcow2`?",
        ),
        (
            "STORAGE_DATA:\n  - disk_type: block\n",
            125,
            "Allowed: file",
        ),
        ("STORAGE_DATA:\n  - capacity: 0\n", 125, "nothing at all"),
        ("architecture:\n  - arch: x86\n", 125, "aarch64"),
        ("input: [\n", 125, "This is not YAML"),
        ("a: 1\nb: 2\n", 125, "There is no section"),
        ("memory: 1G\n", 125, "is a scenario already"),
        (
            "input:\n  - keyboard: !!python/name:os.system x\n",
            125,
            "no use for YAML tags",
        ),
    ] {
        dir.write("v.yaml", content);
        let output = answer(&dir, &["import", "v.yaml"]);
        expect_code(&output, code);
        assert!(
            text(&output.stderr).contains(words),
            "{content}: {}",
            text(&output.stderr)
        );
        assert_eq!(output.stdout.is_empty(), code != 0, "{content}");
    }
    for (words, message) in [
        (&["import", "nothing.yaml"][..], "there is no such file"),
        (&["import", "."], "it is a directory"),
        (&["import", "v.yaml", "--preset", "desktp"], "v.yaml"),
    ] {
        dir.write("v.yaml", "input:\n  - mouse: ps3\n");
        let output = answer(&dir, words);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(message),
            "{words:?}: {}",
            text(&output.stderr)
        );
    }
    dir.write("v.yaml", "input:\n  - mouse: ps2\n");
    let output = answer(&dir, &["import", "v.yaml", "--preset", "desktp"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("Presets are desktop, computation"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn other_files_are_told_apart() {
    let dir = TempDir::new("old-kinds");
    dir.write("hosts.yaml", "localhost:\n  url: qemu:///system\n");
    let output = answer(&dir, &["import", "hosts.yaml"]);
    expect_code(&output, 0);
    let path = dir.path("hosts.yaml");
    assert!(
        text(&output.stdout).ends_with(&format!("\nhosts: {}\n", path.display())),
        "{}",
        text(&output.stdout)
    );
    assert!(
        text(&output.stderr).contains("vsc-run hosts --hosts hosts.yaml list"),
        "{}",
        text(&output.stderr)
    );

    let xml = "<domain type='kvm'><name>a&amp;b</name><memory unit='GiB'>2</memory><vcpu>3</vcpu>\
               <os><type arch='x86_64' machine='q35'>hvm</type></os><nonsense/></domain>";
    dir.write("domain.xml", xml);
    let output = answer(
        &dir,
        &["import", "--json", "domain.xml", "--preset", "securevm"],
    );
    expect_code(&output, 0);
    let told = json_of(&output);
    assert_eq!(told["kind"], "domain-xml");
    assert_eq!(told["scenario"]["memory"]["size"], json!(2u64 << 30));
    assert_eq!(told["scenario"]["cpu"]["count"], 3);
    assert_eq!(told["scenario"]["preset"], "securevm");
    assert_eq!(told["scenario"]["name"], "a-b");
    let codes: Vec<_> = told["notes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["code"])
        .collect();
    assert_eq!(codes, ["W-XML", "W-XML"], "the element and the name");
    // What the language refuses is printed, and is no success.
    let xml = xml.replace("<vcpu>3", "<vcpu>0").replace("a&amp;b", "a");
    dir.write("zero.xml", xml);
    let output = answer(&dir, &["import", "zero.xml"]);
    let refused = answer(&dir, &["check", "--libvirt", "zero.xml"]);
    expect_code(&refused, 125);
    assert!(!output.stdout.is_empty());
    dir.write("latin.xml", b"<domain><name>\xe9</name></domain>");
    let output = answer(&dir, &["import", "latin.xml"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("byte 14 is not UTF-8"),
        "{}",
        text(&output.stderr)
    );
}

const PRESETS: [&str; 6] = [
    "desktop",
    "computation",
    "securevm",
    "testing-os",
    "easy-migration",
    "soft-rt",
];

/// The settings of every preset, found and imported; and every preset's XML, imported: the same domain each time.
#[test]
fn every_preset_comes_back_from_settings_and_from_xml() {
    let dir = TempDir::new("old-presets");
    std::fs::create_dir(dir.path("home")).unwrap();
    dir.write("virthosts.yaml", HOSTS);
    let export = |file: &str, settings: &str| {
        let words = [
            file,
            "--settings",
            settings,
            "--export-xml",
            "-q",
            "-o",
            "name=a",
        ];
        let output = answer(&dir, &words);
        expect_code(&output, 0);
        text(&output.stdout)
    };
    dir.write("set.yaml", SETTINGS);
    for preset in PRESETS {
        let import = |words: &[&str]| {
            let output = answer(&dir, &[&["import"], words].concat());
            expect_code(&output, 0);
            dir.write("s.yaml", &output.stdout);
        };
        let plain = export(preset, "none");
        dir.write("a.xml", &plain);
        import(&["a.xml"]);
        assert_eq!(export("s.yaml", "none"), plain, "{preset}");
        let with = export(preset, "set.yaml");
        assert_ne!(with, plain, "{preset}");
        import(&["set.yaml", "--preset", preset]);
        assert_eq!(export("s.yaml", "none"), with, "{preset}");
        // The predecessor's securevm has its own keyboard whatever the settings say.
        assert!(
            with.contains("<input type='keyboard' bus='virtio'"),
            "{preset}: {with}"
        );
    }
}

const HOSTS: &str = "sev:\n  url: qemu+ssh://root@sev.example/system\n  sev-cert: sev.pdh\nhere:\n  url: test:///default\n";

#[test]
fn hosts_are_listed_and_one_is_selected() {
    let dir = TempDir::new("old-hosts");
    let list = |words: &[&str]| {
        let output = answer(&dir, &[&["hosts", "list", "--json"], words].concat());
        (
            output.status.code().unwrap(),
            json_of(&output),
            text(&output.stderr),
        )
    };
    let (code, told, _) = list(&[]);
    assert_eq!(
        (code, &told["file"], &told["selected"]),
        (0, &Value::Null, &json!("localhost"))
    );
    let url = told["hosts"][0]["url"].as_str().unwrap();
    assert!(["qemu:///system", "qemu:///session"].contains(&url));

    dir.write("virthosts.yaml", HOSTS);
    let (_, told, _) = list(&[]);
    assert_eq!(told["file"], "virthosts.yaml");
    assert_eq!(
        told["hosts"][0]["certificate"],
        json!({"state": "missing", "file": "sev.pdh"})
    );
    assert_eq!(told["hosts"][1]["certificate"], json!({"state": "none"}));
    dir.write("sev.pdh", "x");
    let output = answer(&dir, &["hosts", "list"]);
    expect_code(&output, 0);
    assert_eq!(
        text(&output.stdout),
        "   NAME  URL                                 SEV CERTIFICATE\n\
         *  sev   qemu+ssh://root@sev.example/system  present, not verified: sev.pdh\n   \
         here  test:///default                     none\n"
    );

    let output = answer(&dir, &["hosts", "select", "her"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("did you mean \"here\"?"),
        "{}",
        text(&output.stderr)
    );
    let output = answer(&dir, &["hosts", "select", "here"]);
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "here (test:///default)\n");
    assert_eq!(list(&[]).1["selected"], "here");
    assert_eq!(
        std::fs::read_to_string(dir.path("virthosts.yaml")).unwrap(),
        HOSTS
    );
    let mode = |name: &str| {
        std::fs::metadata(dir.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("config/vsc"), mode("config/vsc/host")),
        (0o700, 0o600)
    );

    // Another list, which has no such host: no other one takes its place.
    dir.write("other.yaml", "localhost: {url: \"qemu:///system\"}\n");
    let (code, told, messages) = list(&["--hosts", "other.yaml"]);
    assert_eq!((code, &told["selected"]), (125, &Value::Null));
    assert!(
        messages.contains("the selected hypervisor \"here\" is not in other.yaml"),
        "{messages}"
    );

    for (content, words) in [
        ("", "There is no hypervisor in this list"),
        ("a: {url: x}\na: {url: y}\n", "The key `a` is given twice"),
        ("a: x\n", "is a map of keys"),
    ] {
        dir.write("bad.yaml", content);
        let output = answer(&dir, &["hosts", "list", "--hosts", "bad.yaml"]);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains(words),
            "{content}: {}",
            text(&output.stderr)
        );
    }
    dir.write("bad.yaml", "a:\n  sev_cert: x\n");
    let output = answer(
        &dir,
        &["hosts", "networks", "--on", "a", "--hosts", "bad.yaml"],
    );
    expect_code(&output, 125);
    for words in ["has no url", "did you mean `sev-cert`?"] {
        assert!(
            text(&output.stderr).contains(words),
            "{words}: {}",
            text(&output.stderr)
        );
    }
}

/// virsh with libvirt's own test driver, which needs no daemon and no network.
#[test]
fn networks_and_machines_are_those_of_the_selected_host() {
    let dir = TempDir::new("old-networks");
    dir.write("virthosts.yaml", HOSTS);
    expect_code(&answer(&dir, &["hosts", "select", "here"]), 0);

    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("virsh").exists()) {
        let output = answer(&dir, &["hosts", "networks"]);
        expect_code(&output, 0);
        assert_eq!(text(&output.stdout), "default\n");
        dir.write(
            "gone.yaml",
            "here: {url: \"qemu+unix:///system?socket=/nonexistent/s\"}\n",
        );
        let output = answer(&dir, &["hosts", "networks", "--hosts", "gone.yaml"]);
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("cannot connect to the hypervisor"),
            "{}",
            text(&output.stderr)
        );
    } else {
        skip("there is no virsh (package libvirt-clients)");
    }

    // Another virsh, which says what a host with QEMU says.
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let with = |words: &[&str], path: &Path| run(at(&dir, words).env("PATH", path));
    let output = with(&["hosts", "machines"], &bin);
    expect_code(&output, 0);
    assert_eq!(
        text(&output.stdout),
        "MACHINE     ARCH     MAX VCPUS  STANDS FOR\npc-q35-7.2  x86_64   288\n\
         q35         x86_64   288        pc-q35-7.2\nvirt        aarch64  512\n"
    );
    let output = with(&["hosts", "machines", "--json", "--arch", "aarch64"], &bin);
    expect_code(&output, 0);
    assert_eq!(
        json_of(&output)["machines"],
        json!([{"arch": "aarch64", "name": "virt", "max_cpus": 512}])
    );
    let output = with(&["hosts", "machines", "--arch", "riscv64"], &bin);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("it runs x86_64, aarch64"),
        "{}",
        text(&output.stderr)
    );

    let output = with(&["hosts", "machines"], &dir.path("nothing"));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("apt-get install libvirt-clients"),
        "{}",
        text(&output.stderr)
    );
}
