//! Images that nobody vouches for: their format is never guessed, they name no other file and claim no size unless the
//! scenario said so, in whichever way they are used.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "image_rules/hidden.rs"]
mod hidden;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use common::{TempDir, expect_code, have_kvm, program, run, skip, text, vsc};

/// A directory, and `qemu-img` in it.
fn lab(name: &str) -> Option<TempDir> {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        skip("no qemu-img");
    }
    there.then(|| TempDir::new(name))
}

fn qemu_img(dir: &TempDir, words: &str) {
    let mut command = Command::new("qemu-img");
    command.current_dir(dir.path("")).args(words.split(' '));
    expect_code(&run(&mut command), 0);
}

/// All ways to use the scenario; the codes and places of what each says.
fn ways(dir: &TempDir, scenario: &str) -> Vec<(&'static str, i32, String)> {
    dir.write("s.yaml", scenario);
    let all: [(&str, &[&str]); 5] = [
        ("check", &["check", "s.yaml"]),
        ("plan", &["plan", "s.yaml"]),
        ("export", &["--export-xml", "s.yaml"]),
        ("run", &["s.yaml"]),
        ("on", &["--on", "nowhere", "s.yaml"]),
    ];
    all.map(|(way, words)| {
        let mut command = vsc();
        command.current_dir(dir.path("")).args(words);
        if way == "on" {
            hypervisor(dir, &mut command);
        }
        let output = run(&mut command);
        (way, output.status.code().unwrap(), text(&output.stderr))
    })
    .to_vec()
}

/// A libvirt to hand VMs to, which notes what it was asked in the file `asked`, and knows nothing.
fn hypervisor(dir: &TempDir, command: &mut Command) {
    if !dir.path("bin/virsh").exists() {
        let script = "#!/bin/sh\necho \"$3\" >>\"$ASKED\"\n[ \"$3\" != define ]\n";
        program(&dir.path("bin/virsh"), script);
        dir.write("virthosts.yaml", "nowhere: {url: 'test:///nowhere'}\n");
    }
    let path = format!("{}:/usr/bin:/bin", dir.path("bin").display());
    command
        .env("PATH", path)
        .env("ASKED", dir.path("asked"))
        .env("XDG_DATA_HOME", dir.path("data"));
}

/// What the hypervisor was told since the last time.
fn asked(dir: &TempDir) -> String {
    let asked = fs::read_to_string(dir.path("asked")).unwrap_or_default();
    fs::remove_file(dir.path("asked")).ok();
    asked
}

#[track_caller]
fn refused(dir: &TempDir, scenario: &str, code: &str, says: &[&str]) {
    for (way, status, said) in ways(dir, scenario) {
        assert_eq!(status, 125, "{way}: {said}");
        assert!(said.contains(&format!("error[{code}]")), "{way}: {said}");
        assert!(said.contains("s.yaml:1:"), "{way}: {said}");
        for word in says {
            assert!(said.contains(word), "{way}: {word}: {said}");
        }
    }
    assert!(!asked(dir).contains("define"));
}

/// Neither check nor export has anything against it; what is exported.
#[track_caller]
fn accepted(dir: &TempDir, scenario: &str) -> String {
    dir.write("s.yaml", scenario);
    let words = ["--export-xml", "s.yaml"];
    let output = run(vsc().current_dir(dir.path("")).args(words));
    expect_code(&output, 0);
    assert!(
        !text(&output.stderr).contains("error"),
        "{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

const DISK: &str = "disks: [{path: top.qcow2, format: qcow2}]\n";

/// What a guest can do to its raw disk: a header that names a file of the host.
fn attack(dir: &TempDir, image: &str) {
    qemu_img(
        dir,
        "create -q -f qcow2 -u -b /etc/shadow -F raw evil.qcow2 20G",
    );
    let evil = fs::read(dir.path("evil.qcow2")).unwrap();
    let file = File::options().write(true).open(dir.path(image)).unwrap();
    file.write_all_at(&evil[..4096], 0).unwrap();
}

#[test]
fn a_raw_disk_stays_raw_whatever_its_guest_writes() {
    if !have_kvm() {
        return;
    }
    let Some(dir) = lab("rules-raw") else { return };
    let start = |scenario: &str| {
        dir.write(
            "s.yaml",
            format!("{scenario}guest: {{parameters: test=blk}}\n"),
        );
        run(vsc().current_dir(dir.path("")).arg("s.yaml"))
    };
    let raw = |scenario: &str| {
        let output = start(scenario);
        expect_code(&output, 0);
        let said = text(&output.stdout);
        // The guest sees the bytes of the file, and not the 20 GiB that the header claims.
        assert!(said.contains("ok blk0.config 8388608 bytes"), "{said}");
    };
    // Made here, as raw, and so it stays; nobody says the format.
    let made = "disks: [{path: made.img, size: 8M}]\n";
    raw(made);
    attack(&dir, "made.img");
    let attribute = "user.vsc.format";
    let mut value = [0; 16];
    if rustix::fs::getxattr(dir.path("made.img"), attribute, &mut value[..]).is_ok() {
        raw(made);
        rustix::fs::removexattr(dir.path("made.img"), attribute).unwrap();
    }
    // Where it is not known who made it, nobody guesses.
    let output = start(made);
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("error[E-DISK-FORMAT]") && said.contains("s.yaml:1:16"),
        "{said}"
    );
    // Said to be raw, it is.
    let other = [
        &b"QFI\xfb\0\0\0\x03"[..],
        b"KDMV\x01\0\0\0",
        b"# Disk DescriptorFile\nRW 9 FLAT \"/etc/shadow\"\n",
        b"LUKS\xba\xbe\0\x01",
        b"vhdxfile",
        b"conectix",
        b"QED\0",
    ];
    for header in other {
        let file = File::options()
            .write(true)
            .open(dir.path("made.img"))
            .unwrap();
        file.write_all_at(header, 0).unwrap();
        raw("disks: [{path: made.img, format: raw}]\n");
        let output = start("disks: [{path: made.img}]\n");
        expect_code(&output, 125);
        assert!(text(&output.stderr).contains("E-DISK-FORMAT"));
    }
}

#[test]
fn an_image_names_no_file_of_the_host() {
    let Some(dir) = lab("rules-backing") else {
        return;
    };
    dir.write("plain.img", vec![0u8; 1 << 20]);
    for (name, format, says) in [
        ("/etc/shadow", "raw", "takes content from `/etc/shadow`"),
        ("../../etc/shadow", "raw", "`../../etc/shadow`"),
        ("json:{\"driver\":\"file\"}", "raw", "json:"),
        ("nbd://127.0.0.1:1/x", "raw", "nbd://127.0.0.1:1/x"),
        ("fat:rw:/etc", "raw", "fat:rw:/etc"),
    ] {
        qemu_img(
            &dir,
            &format!("create -q -f qcow2 -u -b {name} -F {format} top.qcow2 1M"),
        );
        refused(&dir, DISK, "E-BACKING", &[says]);
        // A name that is no plain file cannot be listed either.
        if name.contains(':') {
            let listed = format!(
                "disks: [{{path: top.qcow2, format: qcow2, backing: [{{path: '{name}'}}]}}]\n"
            );
            refused(&dir, &listed, "E-BACKING", &["Only plain files"]);
        }
    }
    // Another file has all the data.
    qemu_img(
        &dir,
        "create -q -f qcow2 -o data_file=outside.raw,data_file_raw=on top.qcow2 1M",
    );
    refused(
        &dir,
        DISK,
        "E-BACKING",
        &["keeps its data in another file", "outside.raw"],
    );
    let outside = dir.path("outside.raw");
    let listed = format!(
        "disks: [{{path: top.qcow2, format: qcow2, data_file: {}}}]\n",
        outside.display()
    );
    accepted(&dir, &listed);
    // In pieces.
    qemu_img(
        &dir,
        "create -q -f vmdk -o subformat=monolithicFlat top.qcow2 1M",
    );
    let vmdk = "disks: [{path: top.qcow2, format: vmdk}]\n";
    refused(&dir, vmdk, "E-BACKING", &["as one of them"]);
    qemu_img(&dir, "create -q -f vmdk top.qcow2 1M");
    accepted(&dir, vmdk);
}

#[test]
fn what_is_listed_is_followed_and_nothing_else() {
    let Some(dir) = lab("rules-chain") else {
        return;
    };
    let at = |name: &str| dir.path(name).display().to_string();
    qemu_img(&dir, "create -q -f raw base.img 1M");
    qemu_img(
        &dir,
        &format!(
            "create -q -f qcow2 -b {} -F raw middle.qcow2",
            at("base.img")
        ),
    );
    qemu_img(
        &dir,
        "create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2",
    );
    let with =
        |list: &str| format!("disks: [{{path: top.qcow2, format: qcow2, backing: [{list}]}}]\n");
    let (base, middle) = (at("base.img"), at("middle.qcow2"));
    let both = format!("{{path: {middle}, format: qcow2}}, {{path: {base}}}");
    let xml = accepted(&dir, &with(&both));
    let chain = format!(
        "<backingStore type='file'>\n        <format type='qcow2'/>\n        <source file='{middle}'/>\n"
    );
    assert!(
        xml.contains(&chain) && xml.contains("<backingStore/>"),
        "{xml}"
    );
    // The chain comes back out of the XML.
    dir.write("d.xml", &xml);
    let output = run(vsc().current_dir(dir.path("")).args(["import", "d.xml"]));
    expect_code(&output, 0);
    let back = text(&output.stdout);
    assert!(back.contains(&middle) && back.contains(&base), "{back}");

    refused(
        &dir,
        &with(&format!("{{path: {middle}, format: qcow2}}")),
        "E-BACKING",
        &[&base],
    );
    refused(
        &dir,
        &with(&format!("{{path: {middle}}}, {{path: {base}}}")),
        "E-BACKING",
        &["middle.qcow2"],
    );
    refused(
        &dir,
        &with(&format!(
            "{{path: {base}}}, {{path: {middle}, format: qcow2}}"
        )),
        "E-BACKING",
        &["middle.qcow2"],
    );
    fs::remove_file(&base).unwrap();
    refused(&dir, &with(&both), "E-BACKING", &["cannot be opened"]);
    // What lies there now waits for nobody.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &base,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    refused(&dir, &with(&both), "E-BACKING", &["cannot be opened"]);
    // Round and round.
    fs::remove_file(&base).unwrap();
    qemu_img(
        &dir,
        &format!("rebase -u -b {} -F qcow2 middle.qcow2", at("top.qcow2")),
    );
    let round = format!(
        "{{path: {middle}, format: qcow2}}, {{path: {}, format: qcow2}}",
        at("top.qcow2")
    );
    refused(
        &dir,
        &with(&round),
        "E-BACKING",
        &["which is one that takes content from it"],
    );
    // A format that the header does not say would be guessed: its extension gets another type.
    let mut bytes = fs::read(dir.path("top.qcow2")).unwrap();
    let extension = bytes
        .windows(4)
        .position(|w| w == 0xe279_2aca_u32.to_be_bytes())
        .unwrap();
    bytes[extension] = 0x12;
    fs::write(dir.path("top.qcow2"), &bytes).unwrap();
    refused(&dir, &with(&both), "E-BACKING", &["of no said format"]);
    // And what lists too much hears of it.
    qemu_img(&dir, "create -q -f qcow2 top.qcow2 1M");
    dir.write("s.yaml", with(&both));
    let output = run(vsc()
        .current_dir(dir.path(""))
        .args(["--export-xml", "s.yaml"]));
    expect_code(&output, 0);
    assert!(text(&output.stderr).contains("warning[W-UNUSED]: No image names"));
}

#[test]
fn an_image_claims_no_size_that_was_not_said() {
    let Some(dir) = lab("rules-size") else { return };
    qemu_img(&dir, "create -q -f qcow2 top.qcow2 8T");
    assert!(fs::metadata(dir.path("top.qcow2")).unwrap().len() < 1 << 20);
    refused(
        &dir,
        DISK,
        "E-SIZE",
        &["8796093022208 bytes", "max_virtual_size"],
    );
    let with = |keys: &str| format!("disks: [{{path: top.qcow2, format: qcow2, {keys}}}]\n");
    refused(
        &dir,
        &with("max_virtual_size: 4T"),
        "E-SIZE",
        &["4398046511104 are the most"],
    );
    refused(
        &dir,
        &with("size: 20G"),
        "E-SIZE",
        &["21474836480 are the most"],
    );
    accepted(&dir, &with("max_virtual_size: 8T"));
    // Then a hypervisor gets it.
    let mut command = vsc();
    command.args(["--on", "nowhere", "s.yaml"]);
    hypervisor(&dir, &mut command);
    expect_code(&run(command.current_dir(dir.path(""))), 125);
    assert!(asked(&dir).contains("define"));
    qemu_img(&dir, "create -q -f qcow2 top.qcow2 1T");
    accepted(&dir, DISK);
    refused(
        &dir,
        &with("max_virtual_size: 1G"),
        "E-SIZE",
        &["1099511627776 bytes"],
    );
    qemu_img(&dir, "create -q -f vdi top.qcow2 3T");
    refused(
        &dir,
        "disks: [{path: top.qcow2, format: vdi}]\n",
        "E-SIZE",
        &["3298534883328"],
    );
    // A raw image is as large as it is.
    dir.write("raw.img", vec![0u8; 2 << 20]);
    refused(
        &dir,
        "disks: [{path: raw.img, max_virtual_size: 1M}]\n",
        "E-SIZE",
        &["2097152 bytes"],
    );
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let Some(dir) = lab("rules-header") else {
        return;
    };
    qemu_img(&dir, "create -q -f qcow2 good.qcow2 1G");
    let good = fs::read(dir.path("good.qcow2")).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(dir.path("top.qcow2"), changed).unwrap();
    };
    for (at, bytes, says) in [
        (0, &b"QFJ"[..], "does not begin as"),
        (4, &[0, 0, 0, 9], "version 9"),
        (20, &[0, 0, 0, 63], "clusters of 2^63"),
        (36, &[0, 0, 0, 0], "first-level table"),
        (36, &[0xff; 4], "first-level table"),
        (40, &[0xff; 8], "first-level table"),
        (48, &[0, 0, 0, 0, 0, 0, 0, 1], "reference count table"),
        (56, &[0xff; 4], "reference count table"),
        (60, &[0xff; 4], "snapshot table"),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "feature of bit 63"),
        (79, &[2], "corrupt"),
        (96, &[0, 0, 0, 9], "reference counts"),
        (32, &[0, 0, 0, 7], "encryption method 7"),
    ] {
        with(at, bytes);
        refused(&dir, DISK, "E-DISK-HEADER", &[says]);
    }
    // Encryption is said or it is not.
    with(32, &[0, 0, 0, 2]);
    refused(
        &dir,
        DISK,
        "E-DISK-ENCRYPTION",
        &["is encrypted, and nobody says so"],
    );
    with(32, &[0, 0, 0, 1]);
    refused(&dir, DISK, "E-DISK-ENCRYPTION", &["protects nothing"]);
    with(0, b"QFI");
    dir.secret("key", "x");
    let said = "disks: [{path: top.qcow2, format: qcow2, encryption: luks, secret: {file: key}}]\n";
    refused(
        &dir,
        said,
        "E-DISK-ENCRYPTION",
        &["is not encrypted, and it is said to be"],
    );
    let plain = "disks: [{path: top.qcow2, format: raw, encryption: luks, secret: {file: key}}]\n";
    refused(
        &dir,
        plain,
        "E-DISK-ENCRYPTION",
        &["is not encrypted with LUKS"],
    );
}

#[test]
fn information_says_what_would_be_refused() {
    let Some(dir) = lab("rules-info") else { return };
    let info = |words: &[&str]| {
        let output = run(vsc()
            .current_dir(dir.path(""))
            .args(["disk", "info"])
            .args(words));
        expect_code(&output, 0);
        text(&output.stdout)
    };
    qemu_img(
        &dir,
        "create -q -f qcow2 -u -b /etc/shadow -F raw evil.qcow2 8T",
    );
    let said = info(&["evil.qcow2", "--format", "qcow2"]);
    assert!(
        said.contains("refused") && said.contains("takes content from `/etc/shadow`"),
        "{said}"
    );
    assert!(
        said.contains("claims to be a disk of 8796093022208 bytes"),
        "{said}"
    );
    qemu_img(&dir, "create -q -f qcow2 good.qcow2 1G");
    assert!(!info(&["good.qcow2", "--format", "qcow2"]).contains("refused"));
    dir.secret("key", "x");
    let create = "disk create d.luks 8M --encryption luks --iter-time 1 --secret-file key";
    expect_code(
        &run(vsc().current_dir(dir.path("")).args(create.split(' '))),
        0,
    );
    let said = info(&["d.luks"]);
    assert!(
        said.contains("version 1, aes-xts-plain64 with 512 bits, 1 key slots in use, 8 MiB"),
        "{said}"
    );
}

#[test]
fn storage_elsewhere_is_advised_to_be_encrypted() {
    let dir = TempDir::new("rules-remote");
    let image = dir.write("d.img", vec![0u8; 1 << 20]);
    let above = image.parent().unwrap().display().to_string();
    fs::create_dir_all(dir.path("host/proc/self")).unwrap();
    let mounts = |kind: &str| {
        let line = format!(
            "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:50 / {above} rw shared:9 - {kind} host:/srv rw\n"
        );
        dir.write("host/proc/self/mountinfo", line);
    };
    let advice = |scenario: &str| {
        dir.write("s.yaml", scenario);
        let mut command = vsc();
        command
            .current_dir(dir.path(""))
            .arg("--host-root")
            .arg(dir.path("host"));
        let output = run(command.args(["plan", "s.yaml"]));
        expect_code(&output, 0);
        text(&output.stderr).contains("warning[W-DISK-REMOTE]")
    };
    let plain = "disks: [{path: d.img, format: raw}]\n";
    for (kind, told) in [
        ("nfs4", true),
        ("cifs", true),
        ("fuse.sshfs", true),
        ("ext4", false),
    ] {
        mounts(kind);
        assert_eq!(advice(plain), told, "{kind}");
    }
    mounts("nfs4");
    dir.secret("key", "x");
    let new = "disks: [{path: new.luks, size: 1M, encryption: luks, secret: {file: key}}]\n";
    assert!(!advice(new));
}
