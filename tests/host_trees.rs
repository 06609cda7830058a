//! Trees that stand for a host and are not what they seem, files that have more than their text, and what a reboot or a
//! full disk leaves of the books.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{TempDir, expect_code, run, skip, text, vsc};
use serde_json::Value;

const SWAPPINESS: &str = "proc/sys/vm/swappiness";
const GRUB: &str = "etc/default/grub";
const BOOT: &str = "proc/sys/kernel/random/boot_id";

/// A host that has SEV switched off, and something outside of it.
fn host(name: &str) -> TempDir {
    let dir = TempDir::new(&format!("trees-{name}"));
    for (path, content) in [
        (SWAPPINESS, "60\n"),
        (BOOT, "a-boot\n"),
        ("proc/cpuinfo", "processor\t: 0\nflags\t\t: svm sev\n"),
        ("proc/cmdline", "ro\n"),
        ("etc/os-release", "ID=debian\n"),
        (GRUB, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n"),
        ("run/none", ""),
        ("var/lib/none", ""),
        (
            "var/cache/libvirt/qemu/capabilities/x.xml",
            "what libvirt knows",
        ),
    ] {
        put(&dir, &format!("root/{path}"), content);
    }
    put(&dir, "s.yaml", "name: s\nhost: {swappiness: 10}\n");
    fs::create_dir_all(dir.path("out")).unwrap();
    dir
}

fn put(dir: &TempDir, path: &str, content: &str) {
    let path = dir.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn verb(dir: &TempDir, words: &[&str]) -> Output {
    run(vsc()
        .args(words)
        .args(["--host-root", "root"])
        .current_dir(dir.path("."))
        .env_remove("container"))
}

fn apply(dir: &TempDir) -> Output {
    verb(dir, &["host", "apply", "s.yaml"])
}

/// Every file below a directory, with its bytes.
fn whole(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(whole(&entry.path())),
            false => drop(all.insert(entry.path(), fs::read(entry.path()).unwrap_or_default())),
        }
    }
    all
}

/// Moves a directory of the tree out of it, and leaves a link.
fn move_out(dir: &TempDir, directory: &str, absolute: bool) {
    let (from, to) = (dir.path("root").join(directory), dir.path("out/moved"));
    fs::rename(&from, &to).unwrap();
    let ups = "../".repeat(directory.split('/').count());
    let link = match absolute {
        true => to,
        false => format!("{ups}out/moved").into(),
    };
    symlink(link, from).unwrap();
}

#[test]
fn nothing_outside_of_the_tree_is_touched() {
    for (name, directory, words, said) in [
        (
            "value",
            "proc/sys/vm",
            &["host", "apply", "s.yaml"][..],
            "links lead from",
        ),
        ("file", "etc/default", &["sev", "enable"], "links lead from"),
        ("above", "etc", &["sev", "enable"], "links lead from"),
        ("run", "run", &["host", "apply", "s.yaml"], "out of"),
        ("books", "var/lib", &["sev", "enable"], "out of"),
    ] {
        for absolute in [true, false] {
            let dir = host(&format!("{name}-{absolute}"));
            move_out(&dir, directory, absolute);
            let before = whole(&dir.path("out"));
            let output = verb(&dir, words);
            let all = text(&output.stderr) + &text(&output.stdout);
            assert!(all.contains(said), "{name}: {all}");
            assert_eq!(whole(&dir.path("out")), before, "{name}");
        }
    }
    // Links within it are the host's own business.
    let dir = host("within");
    fs::rename(dir.path("root/etc/default"), dir.path("root/etc/real")).unwrap();
    symlink("real", dir.path("root/etc/default")).unwrap();
    expect_code(&verb(&dir, &["sev", "enable"]), 0);
    let grub = fs::read_to_string(dir.path("root/etc/real/grub")).unwrap();
    assert!(grub.contains("mem_encrypt=on"), "{grub}");
    expect_code(&verb(&dir, &["sev", "enable", "--undo"]), 0);
}

/// An access list and an attribute of the owner's stay, there and back. Without SELinux its label is one as any other.
#[test]
fn a_replaced_file_keeps_what_it_has_beside_its_text() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let dir = host("attributes");
    let grub = dir.path("root").join(GRUB);
    // acl(5), linux/posix_acl_xattr.h: version 2; tag, permissions, whose.
    let entries = [
        (1u16, 6u16, u32::MAX),
        (2, 4, 12345),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, whose) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(whose.to_le_bytes());
    }
    let label = b"system_u:object_r:bootloader_etc_t:s0\0".to_vec();
    let mut set = Vec::new();
    for (name, value) in [
        ("system.posix_acl_access", list),
        ("user.vsc", b"mine".to_vec()),
        ("security.selinux", label),
    ] {
        // Not every file system has each, and only root may give a label.
        if setxattr(&grub, name, &value, XattrFlags::empty()).is_ok() {
            set.push((name, value));
        }
    }
    if set.is_empty() {
        return skip("no extended attributes in the temporary directory");
    }
    let check = |when: &str| {
        for (name, value) in &set {
            let mut buffer = [0u8; 256];
            let length = getxattr(&grub, *name, &mut buffer)
                .unwrap_or_else(|e| panic!("{when}: {name}: {e}"));
            assert_eq!(&buffer[..length], value, "{when}: {name}");
        }
    };
    expect_code(&verb(&dir, &["sev", "enable"]), 0);
    check("enabled");
    expect_code(&verb(&dir, &["sev", "enable", "--undo"]), 0);
    check("undone");
}

#[test]
fn what_the_owner_has_changed_since_can_be_given_up() {
    let dir = host("forget");
    expect_code(&verb(&dir, &["sev", "enable"]), 0);
    let grub = dir.path("root").join(GRUB);
    let mine = fs::read_to_string(&grub).unwrap() + "GRUB_TIMEOUT=9\n";
    fs::write(&grub, &mine).unwrap();
    let output = verb(&dir, &["sev", "enable", "--undo"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("--forget"),
        "{}",
        text(&output.stderr)
    );
    expect_code(&verb(&dir, &["sev", "enable", "--undo", "--forget"]), 0);
    assert_eq!(fs::read_to_string(&grub).unwrap(), mine);
    assert!(!dir.path("root/var/lib/vsc").exists());
    let said = text(&verb(&dir, &["sev", "enable", "--undo"]).stdout);
    assert!(said.contains("Nothing is switched on"), "{said}");
}

#[test]
fn a_reboot_has_put_values_back_and_gc_says_so_beforehand() {
    let dir = host("reboot");
    expect_code(&apply(&dir), 0);
    put(&dir, &format!("root/{BOOT}"), "another\n");
    put(&dir, &format!("root/{SWAPPINESS}"), "60\n");
    let outcomes = |words: &[&str]| {
        let output = verb(&dir, words);
        expect_code(&output, 0);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = answer["found"].as_array().unwrap().clone();
        let of_host = |f: &&Value| f["kind"] == "host change";
        found
            .iter()
            .filter(of_host)
            .map(|f| f["outcome"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let dry = outcomes(&["gc", "--dry-run", "--json"]);
    assert_eq!(dry, ["was reset by a reboot: would be forgotten"]);
    let done = outcomes(&["gc", "--json"]);
    assert!(
        done.len() == 1 && done[0].ends_with("was reset by a reboot"),
        "{done:?}"
    );
    assert_eq!(outcomes(&["gc", "--dry-run", "--json"]).len(), 0);
}
