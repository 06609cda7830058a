//! What each preset makes of a host, through the program and on a tree of files: which files it writes, which bytes,
//! and that all of them are back afterwards.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/host.rs"]
mod fake;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{TempDir, expect_code, run, text, vsc};
use serde_json::Value;

const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const SHMEM: &str = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
const KSM: &str = "sys/kernel/mm/ksm/run";
const MERGE: &str = "sys/kernel/mm/ksm/merge_across_nodes";
const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const PAGES: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// A host with two disks: `/` with all images of presets is on a partition of the one, `/fast` on LVM on the other.
fn host(name: &str) -> TempDir {
    let dir = TempDir::new(name);
    fake::fake_host(&dir);
    let mounts = "\
22 1 8:2 / / rw - ext4 /dev/sda2 rw
23 22 253:0 / /fast rw - xfs /dev/mapper/vg-fast rw
24 22 0:30 / /tmp rw - tmpfs tmpfs rw
";
    for (file, text) in [
        ("proc/self/mountinfo", mounts),
        (
            "sys/block/sda/queue/scheduler",
            "[mq-deadline] kyber bfq none\n",
        ),
        ("sys/block/sda/sda2/partition", "2\n"),
        (
            "sys/block/nvme0n1/queue/scheduler",
            "[none] mq-deadline kyber\n",
        ),
        ("sys/block/nvme0n1/nvme0n1p1/partition", "1\n"),
        ("sys/block/dm-0/queue/scheduler", "none\n"),
        ("sys/block/dm-0/slaves/nvme0n1p1/partition", "1\n"),
        ("sys/block/dm-0/dm/name", "vg-fast\n"),
        ("sys/block/sdb/queue/scheduler", "[mq-deadline] none\n"),
    ] {
        put(&dir, file, text);
    }
    for (number, place) in [("8:2", "sda/sda2"), ("253:0", "dm-0")] {
        let link = dir.path("root/sys/dev/block").join(number);
        std::os::unix::fs::symlink(format!("../../block/{place}"), link).unwrap();
    }
    dir
}

fn put(dir: &TempDir, file: &str, text: &str) {
    let path = dir.path("root").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Every file of the tree.
fn tree(dir: &TempDir) -> BTreeMap<PathBuf, String> {
    let root = dir.path("root");
    let mut places = vec![root.clone()];
    let mut files = BTreeMap::new();
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if std::fs::symlink_metadata(&path).unwrap().is_dir() {
                places.push(path);
            } else if path.is_file() {
                let text = std::fs::read_to_string(&path).unwrap();
                files.insert(path.strip_prefix(&root).unwrap().to_owned(), text);
            }
        }
    }
    files
}

/// The books of what is changed are no part of the host.
fn without_books(mut tree: BTreeMap<PathBuf, String>) -> BTreeMap<PathBuf, String> {
    tree.retain(|path, _| !path.starts_with("run/vsc") && !path.starts_with("var/lib/vsc"));
    tree
}

fn verb(dir: &TempDir, args: &[&str]) -> std::process::Output {
    let mut command = vsc();
    command
        .args(args)
        .args(["--host-root", "root"])
        .env("HOME", dir.path("home"))
        .env_remove("container")
        .current_dir(dir.path("."));
    run(&mut command)
}

/// Files that the presets write, and what is in them then.
const WRITTEN: [(&str, &[(&str, &str)]); 6] = [
    (
        "desktop",
        &[
            (THP, "always"),
            (SHMEM, "advise"),
            (KSM, "1"),
            (SWAPPINESS, "35"),
        ],
    ),
    (
        "computation",
        &[
            (THP, "always"),
            (SHMEM, "advise"),
            (KSM, "1"),
            (SWAPPINESS, "0"),
        ],
    ),
    (
        "securevm",
        &[
            (THP, "always"),
            (MERGE, "0"),
            (SWAPPINESS, "0"),
            ("sys/block/sda/queue/scheduler", "bfq"),
        ],
    ),
    (
        "soft-rt",
        &[
            (THP, "never"),
            (SWAPPINESS, "0"),
            ("sys/block/sda/queue/scheduler", "none"),
            (PAGES, "512\n"),
        ],
    ),
    ("testing-os", &[]),
    ("easy-migration", &[]),
];

#[test]
fn each_preset_writes_these_bytes_and_undo_brings_the_old_ones_back() {
    for (preset, written) in WRITTEN {
        let dir = host(&format!("host-{preset}"));
        let before = tree(&dir);
        let applied = verb(&dir, &["host", "apply", preset]);
        expect_code(&applied, 0);
        let mut want = before.clone();
        for (file, text) in written {
            let old = want.insert((*file).into(), (*text).to_owned());
            assert!(old.is_some(), "{file}");
        }
        assert_eq!(without_books(tree(&dir)), want, "{preset}");
        // A second time there is nothing left to do.
        let again = verb(&dir, &["plan", preset, "--json"]);
        expect_code(&again, 0);
        let plan: Value = serde_json::from_slice(&again.stdout).unwrap();
        let changes = plan["host"]["changes"].as_array().unwrap().iter();
        // No kernel makes the pages of this host free.
        for change in changes.filter(|c| c["what"] != "memory.hugepages") {
            assert!(change["skipped"].is_string(), "{preset}: {change}");
        }
        let undone = verb(&dir, &["host", "undo"]);
        expect_code(&undone, 0);
        assert_eq!(tree(&dir), before, "{preset}");
    }
}

/// The published table of virt-scenario's three scenarios, row by row.
#[test]
fn the_knobs_of_the_predecessor_have_its_values() {
    let dir = host("host-table");
    for (preset, row) in [
        ("securevm", ["always", "0", "0", "0", "bfq"]),
        ("computation", ["always", "1", "1", "0", "mq-deadline"]),
        ("desktop", ["always", "1", "1", "35", "mq-deadline"]),
    ] {
        let output = verb(&dir, &["host", "plan", preset, "--json"]);
        expect_code(&output, 0);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let keys = [
            "host.thp",
            "host.ksm",
            "host.ksm_merge_across_nodes",
            "host.swappiness",
            "host.io_scheduler",
        ];
        for (key, want) in keys.into_iter().zip(row) {
            let all = plan["changes"].as_array().unwrap();
            let mut its = all.iter().filter(|c| c["what"] == key);
            assert_eq!(its.next().unwrap()["new"], want, "{preset} {key}");
            assert!(its.next().is_none(), "{preset} {key}");
        }
    }
}

/// `old → new` for each file of a plan, and what is said of it.
fn lines(output: &std::process::Output) -> Vec<String> {
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = plan["host"]["changes"].as_array().unwrap();
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let line = |c: &Value| {
        let (path, old, new) = (word(&c["path"]), word(&c["old"]), word(&c["new"]));
        format!("{path} {old} {new} {}", word(&c["skipped"]))
    };
    all.iter().map(line).collect()
}

#[test]
fn only_the_disks_below_the_images_are_touched() {
    let dir = host("host-disks");
    let plan = |paths: &str| {
        let text = format!("disks: {paths}\nhost: {{io_scheduler: bfq}}\n");
        dir.write("s.yaml", text);
        let output = verb(&dir, &["plan", "--json", "s.yaml"]);
        expect_code(&output, 0);
        lines(&output)
    };
    let sda = "/sys/block/sda/queue/scheduler mq-deadline bfq -";
    let nvme = "/sys/block/nvme0n1/queue/scheduler none bfq not offered: [none] mq-deadline kyber";
    assert_eq!(plan("[/var/lib/a.img]"), [sda]);
    assert_eq!(plan("[/fast/deep/b.img]"), [nvme]);
    assert_eq!(plan("[/a.img, /fast/b.img, /c.img]"), [sda, nvme]);
    assert_eq!(
        plan("[/tmp/a.img]"),
        ["/tmp/a.img - bfq /tmp is tmpfs (tmpfs), which is on no disk of this host"]
    );
    // What is not offered is not written.
    let before = tree(&dir);
    dir.write(
        "s.yaml",
        "disks: [/fast/b.img, /a.img]\nhost: {io_scheduler: bfq}\n",
    );
    expect_code(&verb(&dir, &["host", "apply", "s.yaml"]), 0);
    let after = without_books(tree(&dir));
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, text)| before.get(*path) != Some(*text))
        .collect();
    let file = PathBuf::from("sys/block/sda/queue/scheduler");
    assert_eq!(changed, [(&file, &"bfq".to_owned())]);
    expect_code(&verb(&dir, &["host", "undo"]), 0);
    assert_eq!(tree(&dir), before);
}

#[test]
fn huge_pages_are_refused_where_the_memory_is_not_there() {
    let dir = host("host-pages");
    let scenario = |memory: &str| {
        dir.write("s.yaml", format!("memory: {memory}\n"));
        verb(&dir, &["check", "s.yaml"])
    };
    expect_code(&scenario("{size: 1G, hugepages: 2M}"), 0);
    let refused = scenario("{size: 13G, hugepages: 1G}");
    expect_code(&refused, 125);
    let message = text(&refused.stderr);
    assert!(
        message.contains("E-HUGEPAGES")
            && message.contains("12288 MiB of it can be had, 13312 MiB are needed"),
        "{message}"
    );
    put(
        &dir,
        "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        "2\n",
    );
    put(
        &dir,
        "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
        "2\n",
    );
    expect_code(&scenario("{size: 13G, hugepages: 1G}"), 0);
}

/// A scenario's name in the shell prepares the host too, as virt-scenario does, and says how to take that back.
#[test]
fn the_shell_prepares_the_host_where_it_is_meant() {
    let dir = host("host-shell");
    let before = tree(&dir);
    let shell = verb(&dir, &["shell", "-c", "mode host; desktop"]);
    expect_code(&shell, 0);
    assert!(
        text(&shell.stderr).contains("`vsc-run host undo` puts it back"),
        "{}",
        text(&shell.stderr)
    );
    let (after, swappiness) = (tree(&dir), PathBuf::from(SWAPPINESS));
    assert_eq!(after[&swappiness], "35");
    let again = verb(&dir, &["shell", "--json", "-c", "mode host; computation"]);
    expect_code(&again, 0);
    let line: Value = serde_json::from_slice(&again.stdout).unwrap();
    let changes = line["host_changes"].as_array().unwrap();
    assert!(changes.iter().any(|c| c["what"] == "host.ksm"), "{line}");
    expect_code(&verb(&dir, &["host", "undo"]), 0);
    assert_eq!(tree(&dir), before);
}

/// In a container the host is somebody else's: the plan says so and is no failure, and nothing is done.
#[test]
fn a_container_is_known_and_left_alone() {
    for (mark, content, name) in [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        (
            "run/systemd/container",
            "systemd-nspawn\n",
            "systemd-nspawn",
        ),
        ("proc/1/environ", "TERM=linux\0container=lxc\0", "lxc"),
        (
            "run/secrets/kubernetes.io/serviceaccount/token",
            "",
            "kubernetes",
        ),
        (
            "proc/sys/kernel/osrelease",
            "5.15.90.1-microsoft-standard-WSL2\n",
            "wsl",
        ),
    ] {
        let dir = host(&format!("host-in-{name}"));
        put(&dir, mark, content);
        let before = tree(&dir);
        let plan = verb(&dir, &["plan", "-q", "computation"]);
        expect_code(&plan, 0);
        let want = format!("in container: host tuning disabled ({name})");
        assert!(text(&plan.stdout).contains(&want), "{}", text(&plan.stdout));
        let apply = verb(&dir, &["host", "apply", "computation"]);
        expect_code(&apply, 125);
        assert!(
            text(&apply.stderr).contains(&want),
            "{}",
            text(&apply.stderr)
        );
        assert_eq!(tree(&dir), before);
    }
}

/// `unshare` as somebody without rights: the kernel's files are not theirs, root or not.
#[test]
fn a_user_namespace_is_a_container() {
    let unshare = |args: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(args).arg(vsc().get_program());
        command.args(["plan", "-q", "computation"]);
        command.env_remove("container");
        command.output()
    };
    let Ok(output) = unshare(&["--user", "--map-root-user"]) else {
        return common::skip("no unshare");
    };
    if text(&output.stderr).contains("unshare: ") {
        return common::skip(&text(&output.stderr));
    }
    expect_code(&output, 0);
    let told = text(&output.stdout);
    // The host of this test may be a container with a name itself.
    let named = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    assert!(
        told.contains("in container: host tuning disabled")
            && (named || told.contains("(a user namespace)")),
        "{told}"
    );
}
