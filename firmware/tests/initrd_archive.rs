//! Archives and images, checked with cpio(1), which knows nothing of this crate.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use vsc_firmware::init::{ELF, Spec, Stdio as Streams};
use vsc_firmware::initrd::newc::{Archive, Entry, concatenate};
use vsc_firmware::initrd::{
    Compression, ImageError, Overlay, RunRequest, TinyImage, overlay_segment, run_initrd,
};

fn path() -> OsString {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
}

fn pipe(program: &str, arguments: &[&str], input: &[u8], directory: &Path) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (apt install {program}): {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// What `cpio -tv` lists: path to type and permissions, and where links lead.
fn listing(archive: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8(pipe(
        "cpio",
        &["-tv", "--numeric-uid-gid", "--quiet"],
        archive,
        Path::new("/"),
    ))
    .unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let mode = words.next()?.to_owned();
        assert_eq!(words.nth(1), Some("0"), "user of {line}");
        assert_eq!(words.next(), Some("0"), "group of {line}");
        // The date of time 0; in UTC or a zone west of it.
        assert!(line.contains("1970") || line.contains("1969"), "{line}");
        let name = line
            .split("1970 ")
            .nth(1)
            .or_else(|| line.split("1969 ").nth(1))?;
        let (name, link) = name
            .split_once(" -> ")
            .map_or((name, ""), |(name, link)| (name, link));
        Some((
            name.to_owned(),
            format!("{mode} {link}").trim_end().to_owned(),
        ))
    };
    text.lines().filter_map(line).collect()
}

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-archive-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn cpio_lists_and_unpacks_what_was_put_in() {
    let mut archive = Archive::new();
    archive.file("/deep/er/file", 0o640, "content").unwrap();
    archive.file("/deep/empty", 0o4755, "").unwrap();
    archive.link("/deep/link", "er/file").unwrap();
    archive.directory("/sticky", 0o1777).unwrap();
    archive
        .add(Path::new("/null"), Entry::Device(0o666, 1, 3))
        .unwrap();
    let bytes = archive.write().unwrap();
    assert_eq!(bytes.len() % 512, 0);
    let listed = listing(&bytes);
    let expected = [
        ("deep", "drwxr-xr-x"),
        ("deep/empty", "-rwsr-xr-x"),
        ("deep/er", "drwxr-xr-x"),
        ("deep/er/file", "-rw-r-----"),
        ("deep/link", "lrwxrwxrwx er/file"),
        ("null", "crw-rw-rw-"),
        ("sticky", "drwxrwxrwt"),
    ];
    assert_eq!(
        listed,
        expected
            .map(|(path, mode)| (path.to_owned(), mode.to_owned()))
            .into()
    );
    let place = Place::new("unpack");
    pipe("cpio", &["-id", "--quiet", "deep/*"], &bytes, &place.0);
    assert_eq!(fs::read(place.0.join("deep/link")).unwrap(), b"content");
    // Two things in one place are refused, the same thing twice is not.
    archive.link("/deep/link", "er/file").unwrap();
    assert!(matches!(
        archive.link("/deep/link", "other"),
        Err(ImageError::Conflict { .. })
    ));
    assert!(matches!(
        archive.file("/null/below", 0o644, ""),
        Err(ImageError::Conflict { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_content_comes_out_again(
        files in proptest::collection::btree_map("[a-zA-Z0-9._-]{1,9}", proptest::collection::vec(any::<u8>(), 0..600), 1..6)
    ) {
        let files: BTreeMap<_, _> = files.into_iter().filter(|(name, _)| name != "." && name != "..").collect();
        let mut archive = Archive::new();
        for (name, data) in &files {
            archive.file(Path::new("/d").join(name), 0o644, data.as_slice()).unwrap();
        }
        let place = Place::new("any");
        pipe("cpio", &["-id", "--quiet"], &archive.write().unwrap(), &place.0);
        for (name, data) in &files {
            prop_assert_eq!(&fs::read(place.0.join("d").join(name)).unwrap(), data);
        }
    }
}

#[test]
fn the_tiny_image_has_what_make_tiny_image_puts_in() {
    let image = TinyImage {
        search: path(),
        ..TinyImage::default()
    };
    let built = image.build().unwrap();
    assert_eq!(image.build().unwrap(), built, "two builds differ");
    let listed = listing(&built.bytes);
    for expected in [
        "bin/busybox",
        "init",
        "dev",
        "proc",
        "sys",
        "dev/console",
        "vsc/init",
        "vsc/run",
        "etc/passwd",
    ] {
        assert!(listed.contains_key(expected), "no {expected}");
    }
    assert_eq!(listed["bin/sh"], "lrwxrwxrwx busybox");
    assert_eq!(listed["dev/null"], "crw-rw-rw-");
    let busybox = Command::new("busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(busybox.stdout)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        assert!(listed.contains_key(&format!("bin/{applet}")), "no {applet}");
    }
    for (compression, program) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
        let image = TinyImage {
            compression,
            ..image.clone()
        };
        let packed = image.build().unwrap().bytes;
        assert!(
            packed == image.build().unwrap().bytes,
            "two {program} builds differ"
        );
        assert!(packed.len() < built.bytes.len());
        assert!(
            pipe(program, &["-dc"], &packed, Path::new("/")) == built.bytes,
            "{program}"
        );
    }
}

#[test]
fn programs_and_files_come_with_all_that_they_need() {
    let place = Place::new("copy");
    let directory = place.0.join("directory");
    fs::create_dir_all(directory.join("below")).unwrap();
    fs::write(directory.join("below/file"), "text").unwrap();
    fs::set_permissions(
        directory.join("below/file"),
        fs::Permissions::from_mode(0o751),
    )
    .unwrap();
    symlink("/etc/shadow", directory.join("out")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(directory.join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    symlink("directory", place.0.join("way")).unwrap();
    let image = TinyImage {
        programs: vec!["env".into(), "ls".into()],
        copy: vec!["/etc/os-release".into(), place.0.join("way")],
        search: path(),
        ..TinyImage::default()
    };
    let built = image.build().unwrap();
    let listed = listing(&built.bytes);
    let inside = |path: &Path| path.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
    for program in ["/usr/bin/env", "/usr/bin/ls"] {
        let ldd = Command::new("ldd").arg(program).output().unwrap();
        let ldd = String::from_utf8(ldd.stdout).unwrap();
        for library in ldd.split_whitespace().filter(|word| word.starts_with('/')) {
            let real = inside(&fs::canonicalize(library).unwrap());
            assert!(listed.contains_key(&real), "{library} of {program}");
        }
        assert!(
            built.report.contains(&format!("Copy bin {program}")),
            "{:?}",
            built.report
        );
    }
    assert!(
        built
            .report
            .iter()
            .any(|line| line.starts_with("Copy lib ") && line.ends_with("/libc.so.6"))
    );
    assert!(listed.contains_key("etc/os-release"));
    assert_eq!(
        listed[&inside(&place.0.join("way"))],
        "lrwxrwxrwx directory"
    );
    assert_eq!(listed[&inside(&directory.join("below/file"))], "-rwxr-x--x");
    // Links that lead out stay links; what they lead to was not asked for.
    assert_eq!(
        listed[&inside(&directory.join("out"))],
        "lrwxrwxrwx /etc/shadow"
    );
    assert!(!listed.contains_key("etc/shadow"));
    assert!(!listed.contains_key(&inside(&directory.join("fifo"))));
    assert!(
        built
            .report
            .iter()
            .any(|line| line.starts_with("Skip ") && line.contains("fifo"))
    );

    for (image, text) in [
        (
            TinyImage {
                copy: vec!["/no/such".into()],
                ..image.clone()
            },
            "Cannot read /no/such",
        ),
        (
            TinyImage {
                copy: vec!["/dev/null".into()],
                ..image.clone()
            },
            "/dev/null is not a file or directory",
        ),
        (
            TinyImage {
                programs: vec!["no-such".into()],
                ..image.clone()
            },
            "Cannot find the program no-such in /usr/local",
        ),
    ] {
        let error = image.build().map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn without_busybox_the_command_and_its_needs_are_enough() {
    let place = Place::new("nobusybox");
    for name in ["sh", "cat", "sort"] {
        symlink(format!("/usr/bin/{name}"), place.0.join(name)).unwrap();
    }
    let image = |run: &str| {
        let image = TinyImage {
            run: Some(run.into()),
            search: place.0.clone().into(),
            ..TinyImage::default()
        };
        listing(&image.build().unwrap().bytes)
    };
    let plain = image("cat /proc/cpuinfo");
    assert!(plain.contains_key("usr/bin/cat") && !plain.contains_key("bin/busybox"));
    assert!(
        !plain
            .keys()
            .any(|path| path.ends_with("bin/sh") || path.ends_with("bin/dash"))
    );
    let piped = image("cat /proc/cpuinfo | sort");
    for expected in ["usr/bin/cat", "usr/bin/sort", "usr/bin/dash"] {
        assert!(piped.contains_key(expected), "no {expected}");
    }
}

#[test]
fn run_initrds_and_overlays_hold_our_init_and_repeat_byte_for_byte() {
    let spec = Spec {
        argv: vec![b"uname".to_vec(), b"-r".to_vec()],
        stdio: Streams::Pipes,
        ..Spec::default()
    };
    let request = RunRequest {
        spec: spec.clone(),
        search: path(),
        ..RunRequest::default()
    };
    let initrd = run_initrd(&request).unwrap();
    assert!(initrd == run_initrd(&request).unwrap());
    let listed = listing(&initrd);
    assert!(listed.contains_key("usr/bin/uname") && listed.contains_key("init"));
    assert_eq!(listed["vsc/run"], "-rw-------");
    assert!(initrd.len() < 4 << 20, "{} bytes", initrd.len());

    let segment = overlay_segment(&Overlay {
        spec,
        ..Overlay::default()
    })
    .unwrap();
    let listed: Vec<String> = listing(&segment).into_keys().collect();
    assert_eq!(listed, ["vsc", "vsc/init", "vsc/run"]);
    assert!(segment.len() < ELF.len() + 4096);
    let joined = concatenate([b"odd".as_slice(), &segment]);
    assert_eq!(&joined[512..518], b"070701");

    let nothing = RunRequest {
        search: path(),
        ..RunRequest::default()
    };
    assert!(matches!(run_initrd(&nothing), Err(ImageError::NoCommand)));
}
