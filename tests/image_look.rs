//! `vsc-run image ls|cat|cp`: what is in disk images, compared with what e2fsprogs, mtools and qemu-img say.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "image_look/hostile.rs"]
mod hostile;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::process::{alive, children, soon};
use common::{TempDir, expect_code, run, text, vsc};
use serde_json::Value;

const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Whether these programs are here; what is missing is said.
fn have(programs: &[&str]) -> bool {
    let found = |name: &&&str| {
        let mut directories = PATH.split(':');
        !directories.any(|d| Path::new(d).join(name).exists())
    };
    match programs.iter().find(found) {
        Some(missing) => {
            common::skip(&format!("no {missing}"));
            false
        }
        None => true,
    }
}

#[track_caller]
fn tool(directory: &TempDir, line: &[&str]) -> Output {
    let output = Command::new(line[0])
        .args(&line[1..])
        .env("PATH", PATH)
        .env("MTOOLS_SKIP_CHECK", "1")
        .current_dir(directory.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line:?}: {}",
        text(&output.stderr)
    );
    output
}

fn image(directory: &TempDir, arguments: &[&str]) -> Output {
    run(vsc()
        .arg("image")
        .args(arguments)
        .current_dir(directory.path("")))
}

#[track_caller]
fn fails(directory: &TempDir, arguments: &[&str]) -> String {
    let output = image(directory, arguments);
    expect_code(&output, 125);
    text(&output.stderr)
}

fn entries(directory: &TempDir, place: &str) -> Vec<Value> {
    let output = image(directory, &["ls", "--json", place]);
    expect_code(&output, 0);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    told["entries"].as_array().unwrap().clone()
}

fn names(directory: &TempDir, place: &str) -> Vec<String> {
    let entries = entries(directory, place);
    entries
        .iter()
        .map(|e| e["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Bytes that no two blocks share.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

/// What goes into the images: links, holes, odd names, a directory of more than one block.
fn source(directory: &TempDir) -> PathBuf {
    let top = directory.path("source");
    for below in ["etc", "usr/lib", "many"] {
        fs::create_dir_all(top.join(below)).unwrap();
    }
    fs::write(top.join("usr/lib/os-release"), "NAME=\"of the image\"\n").unwrap();
    std::os::unix::fs::symlink("../usr/lib/os-release", top.join("etc/os-release")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", top.join("etc/absolute")).unwrap();
    fs::write(top.join("big"), noise(700_001, 7)).unwrap();
    let hole = fs::File::create(top.join("hole")).unwrap();
    hole.write_all_at(b"end", 900_000).unwrap();
    for n in 0..300 {
        fs::write(
            top.join(format!("many/file-with-a-name-{n:03}")),
            format!("{n}\n"),
        )
        .unwrap();
    }
    fs::write(top.join("suid"), "x").unwrap();
    fs::set_permissions(top.join("suid"), fs::Permissions::from_mode(0o6755)).unwrap();
    top
}

/// Files below a directory, with their contents; links with where they lead.
fn contents(top: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut places = vec![top.to_owned()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                places.push(path);
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.push((name, target.into_os_string().into_encoded_bytes()));
            } else {
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn ext_of_each_generation_is_read_as_debugfs_reads_it() {
    if !have(&["mkfs.ext4", "debugfs"]) {
        return;
    }
    let dir = TempDir::new("look-ext");
    let source = source(&dir);
    for kind in ["ext2", "ext3", "ext4"] {
        let name = format!("{kind}.img");
        tool(
            &dir,
            &[
                "mkfs.ext4",
                "-q",
                "-t",
                kind,
                "-b",
                "1024",
                "-d",
                "source",
                &name,
                "8M",
            ],
        );
        let at = |path: &str| format!("{name}:{path}");
        assert_eq!(
            names(&dir, &at("/")),
            ["big", "etc", "hole", "lost+found", "many", "suid", "usr"]
        );
        assert_eq!(
            names(&dir, &name),
            names(&dir, &at("/")),
            "without a path it is the first directory"
        );
        assert_eq!(names(&dir, &at("/many")).len(), 300);
        for path in [
            "/big",
            "/hole",
            "/usr/lib/os-release",
            "/many/file-with-a-name-299",
        ] {
            if path == "/hole" && kind != "ext4" {
                // Not wrong bytes, but none: the crate does not know large holes of block maps.
                assert!(fails(&dir, &["cat", &at(path)]).contains("large holes"));
                continue;
            }
            let ours = image(&dir, &["cat", &at(path)]);
            expect_code(&ours, 0);
            tool(
                &dir,
                &["debugfs", "-R", &format!("dump {path} dumped"), &name],
            );
            let theirs = fs::read(dir.path("dumped")).unwrap();
            assert!(ours.stdout == theirs, "{kind} {path}");
            assert!(
                ours.stdout == fs::read(source.join(&path[1..])).unwrap(),
                "{kind} {path}"
            );
        }
        // A link is one of the image, wherever this host's file of that name is.
        let linked = image(&dir, &["cat", &at("/etc/os-release")]);
        assert_eq!(text(&linked.stdout), "NAME=\"of the image\"\n");
        let said = fails(&dir, &["cat", &at("/etc/absolute")]);
        assert!(said.contains("there is no such file"), "{said}");
        for (path, why) in [
            ("/no", "there is no such file"),
            ("/etc", "it is a directory"),
            ("/big/x", "no"),
        ] {
            let said = fails(&dir, &["cat", &at(path)]);
            assert!(said.contains(why), "{said}");
        }
        let suid = &entries(&dir, &at("/suid"))[0];
        assert_eq!(
            (&suid["mode"], &suid["kind"], &suid["size"]),
            (&"6755".into(), &"file".into(), &1.into())
        );
        let link = &entries(&dir, &at("/etc"))[1];
        assert_eq!(
            (&link["kind"], &link["target"]),
            (&"link".into(), &"../usr/lib/os-release".into())
        );
    }
}

#[test]
fn trees_are_copied_and_nothing_is_replaced() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-cp");
    let source = source(&dir);
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    fs::create_dir(dir.path("out")).unwrap();
    let output = image(&dir, &["cp", "--json", "a.img:/", "out"]);
    expect_code(&output, 0);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["left_out"][0]["name"], "etc/absolute");
    assert_eq!(told["left_out"].as_array().unwrap().len(), 1);
    let mut wanted = contents(&source);
    wanted.retain(|(name, _)| name != "etc/absolute");
    assert!(contents(&dir.path("out")) == wanted);
    let made = fs::metadata(dir.path("out/suid")).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o755);
    // Holes stay holes.
    assert!(fs::metadata(dir.path("out/hole")).unwrap().blocks() * 512 < 200_000);
    // One file, through a link, by the name that it was asked for; then it is there.
    fs::create_dir(dir.path("one")).unwrap();
    expect_code(&image(&dir, &["cp", "a.img:/etc/os-release", "one"]), 0);
    assert_eq!(
        contents(&dir.path("one")),
        [("os-release".into(), b"NAME=\"of the image\"\n".to_vec())]
    );
    let said = fails(&dir, &["cp", "a.img:/etc/os-release", "one"]);
    assert!(said.contains("one/os-release is there already"), "{said}");
    // A link where a file shall be is not followed.
    fs::write(dir.path("mine"), "mine").unwrap();
    std::os::unix::fs::symlink("../mine", dir.path("one/big")).unwrap();
    fails(&dir, &["cp", "a.img:/big", "one"]);
    assert_eq!(fs::read_to_string(dir.path("mine")).unwrap(), "mine");
    // More than was agreed to; no directory.
    let said = fails(&dir, &["cp", "--limit", "1K", "a.img:/big", "out/etc"]);
    assert!(said.contains("--limit"), "{said}");
    let said = fails(&dir, &["cp", "a.img:/big", "nowhere"]);
    assert!(said.contains("mkdir -p nowhere"), "{said}");
    // What fails leaves nothing of its own, and what was there before.
    fs::create_dir(dir.path("half")).unwrap();
    fs::write(dir.path("half/many"), "mine").unwrap();
    let said = fails(&dir, &["cp", "a.img:/", "half"]);
    assert!(said.contains("half/many is there already"), "{said}");
    assert_eq!(
        contents(&dir.path("half")),
        [("many".into(), b"mine".to_vec())]
    );
    fs::remove_file(dir.path("half/many")).unwrap();
    fails(&dir, &["cp", "--limit", "800K", "a.img:/", "half"]);
    assert_eq!(fs::read_dir(dir.path("half")).unwrap().count(), 0);
    expect_code(&image(&dir, &["cp", "a.img:/usr", "half"]), 0);
    for (place, wanted) in [
        ("a.img#x:/", "\"#x\" is no partition number"),
        (
            "a.img:/etc/absolute",
            "/etc/absolute is a link to /etc/passwd",
        ),
    ] {
        let said = fails(&dir, &["ls", place]);
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn a_file_of_nothing_but_holes_does_not_fill_the_disk() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-bomb");
    fs::create_dir_all(dir.path("source")).unwrap();
    let bomb = fs::File::create(dir.path("source/bomb")).unwrap();
    bomb.set_len(1 << 40).unwrap();
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    fs::create_dir(dir.path("out")).unwrap();
    let said = fails(&dir, &["cp", "a.img:/", "out"]);
    assert!(said.contains("8388608 bytes"), "{said}");
    assert!(!dir.path("out/bomb").exists());
}

#[test]
fn fat_is_read_as_mtools_wrote_it() {
    if !have(&["mkfs.vfat", "mcopy", "mmd"]) {
        return;
    }
    let dir = TempDir::new("look-fat");
    let big = noise(150_001, 9);
    dir.write("big", &big);
    dir.write("small", "small\n");
    for (bits, kib) in [("12", "2048"), ("16", "16384"), ("32", "40960")] {
        let name = format!("fat{bits}.img");
        tool(&dir, &["mkfs.vfat", "-F", bits, "-C", &name, kib]);
        tool(&dir, &["mmd", "-i", &name, "::/EFI", "::/EFI/a long name"]);
        tool(
            &dir,
            &["mcopy", "-i", &name, "big", "::/EFI/a long name/Größe.bin"],
        );
        tool(&dir, &["mcopy", "-i", &name, "small", "::/SMALL.TXT"]);
        assert_eq!(names(&dir, &name), ["EFI", "SMALL.TXT"]);
        let ours = image(
            &dir,
            &[
                "cat",
                &format!("{name}:/efi/A LONG NAME/../a long name/größe.bin"),
            ],
        );
        expect_code(&ours, 0);
        assert!(ours.stdout == big, "FAT{bits}");
        fails(&dir, &["cat", &format!("{name}:/SMALL.TXT/x")]);
        let out = dir.path(&format!("out{bits}"));
        fs::create_dir(&out).unwrap();
        expect_code(
            &image(
                &dir,
                &["cp", "-q", &format!("{name}:/EFI"), out.to_str().unwrap()],
            ),
            0,
        );
        assert!(contents(&out) == [("EFI/a long name/Größe.bin".into(), big.clone())]);
    }
}

/// A disk with a partition table of sfdisk, and images at the places of its partitions.
fn disk(dir: &TempDir, name: &str, script: &str, parts: &[(u64, &str)]) {
    use std::io::Write;
    let file = fs::File::create(dir.path(name)).unwrap();
    file.set_len(24 << 20).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", "--no-reread", name])
        .env("PATH", PATH)
        .current_dir(dir.path(""))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(sfdisk.wait().unwrap().success());
    for (mib, part) in parts {
        let bytes = fs::read(dir.path(part)).unwrap();
        file.write_all_at(&bytes, mib << 20).unwrap();
    }
}

#[test]
fn partitions_are_found_as_sfdisk_made_them() {
    if !have(&["sfdisk", "mkfs.ext4", "mkfs.vfat"]) {
        return;
    }
    let dir = TempDir::new("look-parts");
    fs::create_dir_all(dir.path("source")).unwrap();
    dir.write("source/hello", "hello\n");
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "ext", "4M"]);
    tool(&dir, &["mkfs.vfat", "-C", "fat", "4096"]);
    let partitions = |name: &str| {
        let output = image(&dir, &["ls", "--json", name]);
        expect_code(&output, 0);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let list = told["partitions"].as_array().unwrap().clone();
        list.iter()
            .map(|p| {
                let number = |key: &str| p[key].as_u64().unwrap();
                (
                    number("number"),
                    number("start") >> 20,
                    number("length") >> 20,
                    p["content"].as_str().unwrap().to_owned(),
                )
            })
            .collect::<Vec<_>>()
    };
    let one = |n, start, length, what: &str| (n, start, length, what.to_owned());
    disk(
        &dir,
        "gpt",
        "label: gpt\nstart=1MiB, size=4MiB, type=uefi, name=\"boot\"\nstart=6MiB, size=4MiB\nstart=12MiB, size=2MiB\n",
        &[(1, "fat"), (6, "ext")],
    );
    assert_eq!(
        partitions("gpt"),
        [
            one(1, 1, 4, "fat"),
            one(2, 6, 4, "ext"),
            one(3, 12, 2, "unknown")
        ]
    );
    let output = image(&dir, &["cat", "gpt#2:/hello"]);
    assert_eq!(text(&output.stdout), "hello\n");
    let said = fails(&dir, &["cat", "gpt:/hello"]);
    assert!(
        said.contains("#1: FAT \"boot\"") && said.contains("#2: ext2/3/4"),
        "{said}"
    );
    assert!(fails(&dir, &["ls", "gpt#3:/"]).contains("unknown"));
    assert!(fails(&dir, &["ls", "gpt#9:/"]).contains("no partition 9"));
    // The table at the end, when the first one is gone.
    let file = fs::File::options()
        .write(true)
        .open(dir.path("gpt"))
        .unwrap();
    file.write_all_at(&[0; 512], 512).unwrap();
    assert_eq!(partitions("gpt").len(), 3);

    disk(
        &dir,
        "mbr",
        "label: dos\nstart=1MiB, size=2MiB, type=82\nstart=4MiB, size=16MiB, type=5\nstart=5MiB, size=4MiB, type=83\nstart=10MiB, size=2MiB, type=83\n",
        &[(5, "ext")],
    );
    assert_eq!(
        partitions("mbr").iter().map(|p| p.0).collect::<Vec<_>>(),
        [1, 5, 6]
    );
    // The only one with a file system is meant.
    let output = image(&dir, &["cat", "mbr:/hello"]);
    assert_eq!(text(&output.stdout), "hello\n");
    // Nothing at all, something else, something encrypted.
    dir.write("zeros", vec![0; 1 << 20]);
    assert!(fails(&dir, &["ls", "zeros:/"]).contains("neither a partition table nor"));
    dir.write(
        "luks",
        [b"LUKS\xba\xbe\0\x02".to_vec(), vec![0; 1 << 16]].concat(),
    );
    assert!(fails(&dir, &["ls", "luks:/"]).contains("encrypted"));
    dir.write("empty", "");
    fails(&dir, &["ls", "empty:/"]);
    fails(&dir, &["ls", "nowhere:/"]);
    fails(&dir, &["ls", ".:/"]);
}

#[test]
fn qcow2_is_read_where_it_is_one_file() {
    if !have(&["qemu-img", "mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-qcow2");
    let source = source(&dir);
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    let big = fs::read(source.join("big")).unwrap();
    for (name, options) in [
        ("plain", &["-o", "compat=1.1"][..]),
        ("old", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=512"]),
        ("deflate", &["-c", "-o", "compression_type=zlib"]),
        ("zstd", &["-c", "-o", "compression_type=zstd"]),
    ] {
        tool(
            &dir,
            &[
                &["qemu-img", "convert", "-O", "qcow2"],
                options,
                &["a.img", name],
            ]
            .concat(),
        );
        let output = image(&dir, &["cat", "--format", "qcow2", &format!("{name}:/big")]);
        expect_code(&output, 0);
        assert!(output.stdout == big, "{name}");
        // It is never guessed.
        assert!(fails(&dir, &["ls", name]).contains("--format qcow2"));
    }
    tool(
        &dir,
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", "plain", "-F", "qcow2", "over",
        ],
    );
    assert!(fails(&dir, &["ls", "--format", "qcow2", "over"]).contains("backing"));
    tool(
        &dir,
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=elsewhere",
            "apart",
            "1M",
        ],
    );
    assert!(fails(&dir, &["ls", "--format", "qcow2", "apart"]).contains("another file"));
    fails(&dir, &["ls", "--format", "qcow2", "a.img"]);
}
