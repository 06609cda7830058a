//! Changed, and put back.

use super::*;

/// Everything below a directory but the tuner's own: names, bytes, permissions, owners.
fn picture(host: &Host) -> Vec<(String, u32, u32, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let root = host.0.path("");
    let mut found = Vec::new();
    let mut places = vec![root.clone()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if name.starts_with("var/lib/vsc") || name.starts_with("run/vsc") || name == "dev" {
                continue;
            }
            let bytes = match meta.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            if meta.is_dir() && !["var", "var/lib", "run"].contains(&name.as_str()) {
                places.push(path);
            }
            if !["var", "var/lib", "run"].contains(&name.as_str()) {
                found.push((name, meta.mode(), meta.uid(), bytes));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_enabled_is_undone_byte_for_byte() {
    use std::os::unix::fs::PermissionsExt;
    // No newline at the end, blanks, a carriage return: all of it comes back.
    let odd = "GRUB_TIMEOUT=5\r\n\tX=1\n\nGRUB_CMDLINE_LINUX_DEFAULT='quiet  '  # mine\nLAST=1";
    for (name, release, files, how) in [
        (
            "debian",
            DEBIAN,
            vec![("etc/default/grub", GRUB_DEBIAN)],
            "cmdline",
        ),
        ("odd", DEBIAN, vec![("etc/default/grub", odd)], "modprobe"),
        (
            "drop",
            UBUNTU,
            vec![
                ("etc/default/grub", GRUB_DEBIAN),
                ("etc/default/grub.d/1.cfg", "GRUB_CMDLINE_LINUX_DEFAULT=x\n"),
            ],
            "cmdline",
        ),
        (
            "fedora",
            FEDORA,
            vec![
                ("etc/default/grub", GRUB_FEDORA),
                ("boot/loader/entries/a.conf", ENTRY),
                ("boot/loader/entries/b.conf", ENTRY),
            ],
            "modprobe",
        ),
        (
            "suse",
            SUSE,
            vec![("etc/default/grub", GRUB_DEBIAN)],
            "modprobe",
        ),
    ] {
        let host = off(&format!("round-{name}"), release, &files);
        fs::create_dir_all(host.0.path("etc/modprobe.d")).unwrap();
        for (path, _) in &files {
            fs::set_permissions(host.0.path(path), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let before = picture(&host);
        let planned = plan(&host, &["--how", how]);
        let same = json(&host.run(&["enable", "--plan", "--json", "--how", how]));
        assert_eq!(
            (picture(&host), &same),
            (before.clone(), &planned),
            "a plan changes nothing"
        );

        let output = host.run(&["enable", "--json", "--how", how]);
        expect_code(&output, 0);
        let done = json(&output);
        assert!(
            done["done"]
                .as_array()
                .unwrap()
                .iter()
                .all(|d| d["verdict"]["verdict"] == "done"),
            "{done:#}"
        );
        for (path, new) in edits(&planned) {
            let path = host.0.path(&path[1..]);
            assert_eq!(fs::read_to_string(&path).unwrap(), new);
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let wanted = if path.ends_with("vsc-sev.conf") || path.ends_with("zz-vsc-sev.cfg") {
                0o644
            } else {
                0o640
            };
            assert_eq!(mode, wanted, "{path:?}");
        }
        // Twice is once.
        let again = json(&host.run(&["enable", "--json", "--how", how]));
        assert_eq!(
            (edits(&again).len(), again["done"].as_array().unwrap().len()),
            (0, 0),
            "{again:#}"
        );

        // That is not what `host apply` did.
        let enabled = picture(&host);
        let output = run(vsc()
            .args(["host", "undo", "--host-root"])
            .arg(host.0.path("")));
        expect_code(&output, 0);
        assert_eq!(picture(&host), enabled, "{name}");
        assert!(text(&output.stderr).contains("`vsc-run sev enable --undo`"));
        let output = run(vsc()
            .args(["host", "status", "--host-root"])
            .arg(host.0.path("")));
        let shown = text(&output.stdout);
        assert!(
            shown.contains("`sev enable`") && !shown.contains("host apply"),
            "{shown}"
        );

        let output = host.run(&["enable", "--undo", "--json"]);
        expect_code(&output, 0);
        assert_eq!(picture(&host), before, "{name}");
        assert_eq!(
            commands(&json(&output)),
            commands(&plan(&host, &[])),
            "{name}"
        );
        // There is nothing more to undo.
        let output = host.run(&["enable", "--undo"]);
        expect_code(&output, 0);
        assert!(
            text(&output.stdout).contains("Nothing"),
            "{}",
            text(&output.stdout)
        );
        assert_eq!(picture(&host), before);
    }
}

#[test]
fn a_file_that_somebody_changed_is_not_undone_unasked() {
    let host = off(
        "meanwhile",
        DEBIAN,
        &[
            ("etc/default/grub", GRUB_DEBIAN),
            ("etc/modprobe.d/x.conf", ""),
        ],
    );
    expect_code(&host.run(&["enable", "--how", "modprobe"]), 0);
    let path = host.0.path("etc/default/grub");
    let theirs = fs::read_to_string(&path)
        .unwrap()
        .replace("GRUB_TIMEOUT=5", "GRUB_TIMEOUT=9");
    fs::write(&path, &theirs).unwrap();
    let changed = picture(&host);
    for _ in 0..2 {
        let output = host.run(&["enable", "--undo"]);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("  - GRUB_TIMEOUT=5\n  + GRUB_TIMEOUT=9"),
            "{said}"
        );
        // Nothing at all is undone, and it is not forgotten.
        assert_eq!(picture(&host), changed);
    }
    expect_code(&host.run(&["enable", "--undo", "--force"]), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), GRUB_DEBIAN);
    assert!(!host.0.path("etc/modprobe.d/vsc-sev.conf").exists());
    // Put back by hand is put back.
    expect_code(&host.run(&["enable"]), 0);
    fs::write(&path, GRUB_DEBIAN).unwrap();
    expect_code(&host.run(&["enable", "--undo"]), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), GRUB_DEBIAN);
}

#[test]
fn a_file_behind_a_link_is_the_one_that_changes() {
    let host = off(
        "link",
        SUSE,
        &[("etc/sysconfig/grub", GRUB_DEBIAN), ("etc/default/x", "")],
    );
    std::os::unix::fs::symlink("/etc/sysconfig/grub", host.0.path("etc/default/grub")).unwrap();
    expect_code(&host.run(&["enable"]), 0);
    assert!(
        fs::symlink_metadata(host.0.path("etc/default/grub"))
            .unwrap()
            .is_symlink()
    );
    let new = fs::read_to_string(host.0.path("etc/sysconfig/grub")).unwrap();
    assert!(new.contains(LINE), "{new}");
    expect_code(&host.run(&["enable", "--undo"]), 0);
    assert_eq!(
        fs::read_to_string(host.0.path("etc/sysconfig/grub")).unwrap(),
        GRUB_DEBIAN
    );
}

#[test]
fn who_may_not_write_changes_nothing() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let host = off("denied", DEBIAN, &[("etc/default/grub", GRUB_DEBIAN)]);
    if fs::metadata(host.0.path("etc")).unwrap().uid() != 0 {
        return common::skip("to be nobody one must be root");
    }
    let program = host.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    for directory in ["run", "var/lib"] {
        fs::create_dir_all(host.0.path(directory)).unwrap();
        fs::set_permissions(host.0.path(directory), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let output = run(std::process::Command::new(program)
        .args(["sev", "enable", "--host-root"])
        .arg(host.0.path(""))
        .stdin(std::process::Stdio::null())
        .uid(65534)
        .gid(65534));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("nothing was changed") && said.contains("as root"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(host.0.path("etc/default/grub")).unwrap(),
        GRUB_DEBIAN
    );
}
