//! Scripts, and what each command does.

use super::*;

#[test]
fn scripts_stop_where_something_fails() {
    let home = Home::new("scripts");
    let script = home.write(
        "lab.vsc",
        "# Comments and empty lines are nothing.\n\nname lab1\nvcpu zero\n!echo reached\n",
    );
    let told = "lab.vsc:4: this command failed: vcpu zero";
    let script = script.to_str().unwrap();
    let output = run(&mut home.vsc(&["shell", script]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains(told),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(text(&output.stdout), "");
    let output = run(&mut home.vsc(&["shell", "--keep-going", script]));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "reached\n");
    // The same from standard input, where no command reads what follows it.
    let stdin =
        fs::File::open(home.write("in", "name lab1\n!cat\nshow\nnonsense\nshow\n")).unwrap();
    let output = run(home.vsc(&["shell"]).stdin(Stdio::from(stdin)));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "User Settings\n  name  lab1\n");
    assert!(
        text(&output.stderr).contains("standard input:4:"),
        "{}",
        text(&output.stderr)
    );
    // Good ones end well, files within files too; without a terminal there is no prompt.
    home.write("inner.vsc", "memory 2\n");
    let outer = home.write(
        "outer.vsc",
        "source inner.vsc\nvcpu 2\r\nshow\nquit\nnonsense\n",
    );
    let output = run(&mut home.vsc(&["shell", outer.to_str().unwrap()]));
    expect_code(&output, 0);
    assert_eq!(
        text(&output.stdout),
        "User Settings\n  memory  2G\n  vcpu    2\n"
    );
    assert_eq!(text(&output.stderr), "");
    home.write("loop.vsc", "source loop.vsc\n");
    let (_, stderr) = home.expect("source loop.vsc", 125);
    assert!(stderr.contains("one file too many"), "{stderr}");
    // A file that is no script.
    fs::write(home.work("binary"), b"name x\n\xff\xfe\n").unwrap();
    let output = run(&mut home.vsc(&["shell", "binary"]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("binary:2: it is not UTF-8 text"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&mut home.vsc(&["shell", "/dev/zero"]));
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("bytes at most"),
        "{}",
        text(&output.stderr)
    );
    assert!(!home.history().exists(), "scripts are not remembered");
}

#[test]
fn the_code_of_a_run_is_the_codes_of_its_script() {
    if !have_kvm() {
        return;
    }
    let home = Home::new("codes");
    let guest = "set guest.parameters test=none exit=7";
    home.expect(&format!("{guest}; run"), 7);
    let (out, err) = home.expect(&format!("{guest}; run; !echo reached"), 7);
    assert!(
        !out.contains("reached") && err.contains("command:2: the exit code is 7"),
        "{err}"
    );
    let output = run(&mut home.vsc(&[
        "shell",
        "--keep-going",
        "-c",
        &format!("{guest}; run; !echo reached; set guest.parameters test=none exit=0; run"),
    ]));
    expect_code(&output, 0);
    assert!(
        text(&output.stdout).contains("reached"),
        "{}",
        text(&output.stdout)
    );
    // A file that ends early does so for who sourced it.
    home.write(
        "ends.vsc",
        &format!("{}\n!echo reached\n", guest.to_owned() + "\nrun"),
    );
    let (out, err) = home.expect("source ends.vsc; !echo reached", 7);
    assert!(
        !out.contains("reached") && err.contains("ends.vsc:2: the exit code is 7"),
        "{err}"
    );
    // Saved, listed, started, asked for, deleted.
    let (out, _) = home.expect(
        &format!("{guest}; name lab1; save; unset; show; list; start lab1"),
        7,
    );
    assert!(
        out.contains("lab1 is saved in") && out.contains("Nothing is set\n"),
        "{out}"
    );
    assert!(out.contains("shut off"), "{out}");
    let (out, _) = home.expect("status lab1; !echo reached", 0);
    assert!(
        out.contains("lab1 is shut off") && out.contains("reached"),
        "{out}"
    );
    home.expect("status lab1", 3);
    home.expect("stop lab1; delete lab1", 0);
    home.expect("start lab1", 125);
}

#[test]
fn each_command_of_the_predecessor_reaches_the_xml() {
    let home = Home::new("commands");
    home.write("cd.iso", "");
    let made = run(&mut home.vsc(&["disk", "create", "old.qcow2", "1M", "--format", "qcow2"]));
    expect_code(&made, 0);
    home.write("vm.data", "");
    fs::create_dir(home.work("images")).unwrap();
    let work = fs::canonicalize(home.work("")).unwrap();
    let at = |name: &str| work.join(name).display().to_string();
    let image = format!("<source file='{}'/>", at("images/desktop.qcow2"));
    let old = format!("<source file='{}'/>", at("old.qcow2"));
    let data = format!("<source file='{}'/>", at("vm.data"));
    let cd = format!("<source file='{}'/>", at("cd.iso"));
    for (commands, there, not_there) in [
        (
            "name lab-1",
            vec!["<name>lab-1</name>"],
            vec!["<name>desktop"],
        ),
        ("vcpu 3", vec![">3</vcpu>"], vec![]),
        ("memory 3", vec![">3145728</memory>"], vec![]),
        ("memory 512M", vec![">524288</memory>"], vec![]),
        ("machine pc-q35-6.2", vec!["machine='pc-q35-6.2'"], vec![]),
        (
            "bootdev network",
            vec!["<boot dev='network'/>"],
            vec!["<boot dev='hd'/>"],
        ),
        (
            "vnet lab",
            vec!["<source network='lab'/>"],
            vec!["'default'"],
        ),
        (
            "diskpath images",
            vec![&*image],
            vec!["/var/lib/libvirt/images"],
        ),
        (
            "cdrom cd.iso",
            vec![
                &*cd,
                "device='cdrom'",
                "<boot dev='cdrom'/>",
                "<readonly/>",
                "desktop.qcow2",
            ],
            vec!["'cd.iso'"],
        ),
        (
            "cdrom cd.iso; bootdev hd",
            vec![&*cd, "<boot dev='hd'/>"],
            vec!["<boot dev='cdrom'/>"],
        ),
        (
            "vmimage old.qcow2",
            vec![&*old, "type='qcow2'"],
            vec!["desktop.qcow2", "'old.qcow2'"],
        ),
        (
            "format raw; vmimage ./vm.data",
            vec![&*data, "type='raw'"],
            vec!["desktop.qcow2"],
        ),
        (
            "vmimage old.qcow2; cdrom \"cd.iso\"",
            vec![&*old, &*cd],
            vec!["desktop.qcow2"],
        ),
        (
            "format raw",
            vec!["desktop.raw", "type='raw'"],
            vec!["qcow2"],
        ),
        ("encryption on", vec!["<encryption format='luks'>"], vec![]),
        (
            "encryption on; encryption off",
            vec!["desktop.qcow2"],
            vec!["<encryption"],
        ),
        (
            "cache directsync",
            vec!["cache='directsync'"],
            vec!["cache='none'"],
        ),
        (
            "mode guest; overwrite on; capacity 9",
            vec!["desktop.qcow2"],
            vec![],
        ),
        ("set video.0.heads 2", vec!["heads='2'"], vec!["heads='1'"]),
        ("vcpu 3; unset vcpu", vec![">4</vcpu>"], vec![]),
        (
            "vcpu 3; cdrom cd.iso; unset",
            vec![">4</vcpu>"],
            vec!["cdrom"],
        ),
        (
            "set memory.size 1G; memory 2",
            vec![">2097152</memory>"],
            vec![],
        ),
    ] {
        let xml = home.xml(commands, "desktop");
        for part in there {
            assert!(xml.contains(part), "{commands}: no {part} in\n{xml}");
        }
        for part in not_there {
            assert!(!xml.contains(part), "{commands}: {part} in\n{xml}");
        }
    }
    // The whole size of an image is in no XML.
    let (out, _) = home.expect("capacity 9; plan desktop", 0);
    assert!(out.contains("9G"), "{out}");
    // A network of libvirt is one whatever the scenario has; a scenario's own CD-ROM is changed, not doubled.
    assert!(
        home.xml("vnet lab", "testing-os")
            .contains("<source network='lab'/>")
    );
    home.write(
        "own.yaml",
        "disks: [{path: other.iso, device: cdrom}, {path: x.img}]\n",
    );
    let xml = home.xml("cdrom cd.iso", "own.yaml");
    assert_eq!(
        (xml.matches("cdrom'").count(), xml.matches("<disk ").count()),
        (2, 2),
        "{xml}"
    );
    assert!(xml.contains(&cd) && !xml.contains("other.iso"), "{xml}");
    // A settings file under it, and none.
    home.write("s.yaml", "STORAGE_DATA:\n  - disk_cache: writeback\n");
    assert!(
        home.xml("conf s.yaml", "desktop")
            .contains("cache='writeback'")
    );
    assert!(
        home.xml("conf s.yaml; unset conf", "desktop")
            .contains("cache='none'")
    );
    assert!(
        home.xml("conf s.yaml; cache unsafe", "desktop")
            .contains("cache='unsafe'")
    );
}

#[test]
fn scenarios_are_saved_for_the_predecessor_and_nothing_leaks() {
    let home = Home::new("scenarios");
    home.write("cd.iso", "");
    let (out, _) = home.expect(
        "name vm1; cdrom cd.iso; mode guest; desktop; unset cdrom; name vm2; desktop; show",
        0,
    );
    let first = fs::read_to_string(home.saved("vm1", "domain.xml")).unwrap();
    let second = fs::read_to_string(home.saved("vm2", "domain.xml")).unwrap();
    assert!(
        first.contains("cd.iso") && !second.contains("cdrom"),
        "{second}"
    );
    assert!(
        out.ends_with("User Settings\n  mode      guest\n  name      vm2\n  scenario  desktop\n"),
        "{out}"
    );
    let config = fs::read_to_string(home.saved("vm1", "config.yaml")).unwrap();
    assert!(
        config.starts_with("attestation: false\n") && config.ends_with("name: vm1\n"),
        "{config}"
    );
    assert_eq!(mode(&home.saved("vm1", "")), 0o700);
    assert_eq!(mode(&home.saved("vm1", "domain.xml")), 0o600);
    for part in ["Parameter", "Recommended", "User Settings", "cdrom"] {
        assert!(out.contains(part), "no {part}: {out}");
    }
    for file in ["domain.xml", "config.yaml"] {
        assert!(
            out.contains(&*home.saved("vm1", file).to_string_lossy()),
            "{out}"
        );
    }
    assert!(!out.contains("/sys/kernel"), "mode guest: {out}");
    // A name that is taken is taken, until the user says otherwise.
    let (_, err) = home.expect("name vm1; vcpu 2; computation", 125);
    assert!(
        err.contains("vm1 exists already") && err.contains("overwrite on"),
        "{err}"
    );
    assert_eq!(
        fs::read_to_string(home.saved("vm1", "domain.xml")).unwrap(),
        first
    );
    home.expect(
        "name vm1; vcpu 2; mode guest; overwrite on; computation; overwrite off",
        0,
    );
    assert!(
        fs::read_to_string(home.saved("vm1", "domain.xml"))
            .unwrap()
            .contains(">2</vcpu>")
    );
    // The host's side alone; no VM is saved then. Encryption has no say in the mode.
    let nothing = home.write("nothing", "");
    fs::create_dir_all(nothing.with_file_name("host")).unwrap();
    let mut shell = home.vsc(&[
        "shell",
        "-c",
        "mode host; encryption off; name vm3; desktop",
    ]);
    let output = run(shell.arg("--host-root").arg(nothing.with_file_name("host")));
    expect_code(&output, 0);
    let out = text(&output.stdout);
    assert!(
        out.contains("skipped: this host has no /proc/sys/vm/swappiness"),
        "{out}"
    );
    assert!(!home.saved("vm3", "").exists());
    let (out, _) = home.expect("mode guest; encryption off; name vm4; desktop", 0);
    assert!(!out.contains("swappiness"), "{out}");
    // After a scenario its name is a setting as well.
    let (out, _) = home.expect(
        "mode guest; name vm5; computation; xml; unset computation; name vm6; xml",
        0,
    );
    assert!(
        out.contains("i6300esb") && out.contains("<name>vm6</name>"),
        "{out}"
    );
    assert_eq!(out.matches("i6300esb").count(), 1, "{out}");
    let (_, err) = home.expect("force_sev on; mode guest; name vm7; securevm", 0);
    assert!(
        err.contains("not secure") && err.contains("no certificate was exported"),
        "{err}"
    );
    let xml = fs::read_to_string(home.saved("vm7", "domain.xml")).unwrap();
    assert!(xml.contains("<launchSecurity type='sev'"), "{xml}");
    let config = fs::read_to_string(home.saved("vm7", "config.yaml")).unwrap();
    assert!(config.starts_with("attestation: true\n"), "{config}");
}

#[test]
fn what_is_wrong_is_refused_at_once_with_one_message() {
    let home = Home::new("wrong");
    home.write("x.bin", "");
    fs::create_dir(home.work("dir")).unwrap();
    for (commands, told) in [
        ("name \u{e9}1", "may not stand in a name"),
        ("name", "`name` needs a value"),
        ("name .x", "starts with a dot"),
        ("name ../x", "may not stand in a name"),
        ("vcpu 0", "at least one vCPU"),
        ("vcpu \u{b2}", "a whole number"),
        ("vcpu -1", "a whole number"),
        ("memory 0", "needs memory"),
        ("memory lots", "an amount of memory"),
        ("machine q36", "did you mean `q35`?"),
        ("machine foo", "q35, pc, pc-q35-VERSION"),
        ("bootdev usb", "hd (the first disk); cdrom"),
        ("diskpath nowhere", "there is none of this name"),
        ("diskpath x.bin", "it is a file"),
        ("cdrom nowhere.iso", "there is none of this name"),
        ("cdrom dir", "it is a directory"),
        ("vmimage x.bin", "does not tell its format"),
        ("capacity 0", "no size"),
        ("capacity x", "an amount"),
        ("format vdmk", "did you mean `vmdk`?"),
        ("encryption maybe", "luks (LUKS;"),
        ("cache banana", "writethrough"),
        ("mode all", "guest or host or both"),
        ("overwrite yes", "on or off"),
        ("force_sev 1", "on or off"),
        ("conf nowhere.yaml", "there is none of this name"),
        ("hvconf nowhere.yaml", "there is none of this name"),
        ("hvconf x.bin", "x.bin"),
        ("hvselect nowhere", "it has \"localhost\""),
        ("set memroy.size 2G", "did you mean `memory`?"),
        ("set memory.size", "needs a key and a value"),
        ("set name [", "not YAML"),
        ("unset memroy", "did you mean `memory`?"),
        ("desktp", "did you mean `desktop`?"),
        ("cpu 3", "`set cpu VALUE`"),
        ("desktop now", "takes nothing"),
        ("plan desktop computation", "One scenario at a time"),
        ("xml --all", "is no scenario"),
        ("run 'x", "not closed"),
        ("shell", "There is no command"),
        ("source", "needs a file"),
        ("source nowhere", "cannot be read"),
        ("help nonsense", "There is no command"),
        ("xml nowhere.yaml", "cannot be read"),
    ] {
        let (out, err) = home.expect(commands, 125);
        assert!(err.contains(told), "{commands}: {err}");
        assert_eq!(out, "", "{commands}");
        assert!(err.contains("this command failed"), "{commands}: {err}");
        assert!(!err.contains("panicked"), "{commands}: {err}");
    }
    // What was refused is not set, and what stood there before stays.
    let output = run(&mut home.vsc(&[
        "shell",
        "--keep-going",
        "-c",
        "vcpu 2; vcpu 0; memory 0; show",
    ]));
    expect_code(&output, 125);
    assert_eq!(text(&output.stdout), "User Settings\n  vcpu  2\n");
    // More than this host has is fine for another one, and said.
    let (_, err) = home.expect("memory 100000", 0);
    assert!(err.contains("more than this host has"), "{err}");
}

#[test]
fn every_command_has_help() {
    let home = Home::new("help");
    let (all, _) = home.expect("help", 0);
    for line in all.lines() {
        let word = line.split(' ').next().unwrap();
        let (one, _) = home.expect(&format!("help {word}"), 0);
        assert!(one.starts_with(word) && one.lines().count() == 1, "{one}");
    }
    assert!(all.lines().count() > 40, "{all}");
    assert_eq!(home.expect("?", 0).0, all);
}
