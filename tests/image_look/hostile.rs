//! Images and names that mean harm, and the process that reads them.

use super::*;

#[test]
fn nothing_is_mounted_and_the_image_is_not_written() {
    if !have(&["mkfs.ext4", "strace"]) {
        return;
    }
    let dir = TempDir::new("look-strace");
    source(&dir);
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    fs::set_permissions(dir.path("a.img"), fs::Permissions::from_mode(0o444)).unwrap();
    let before = fs::read(dir.path("a.img")).unwrap();
    fs::create_dir(dir.path("out")).unwrap();
    for arguments in [
        &["ls", "a.img:/etc"][..],
        &["cat", "a.img:/etc/os-release"],
        &["cp", "-q", "a.img:/usr", "out"],
    ] {
        let output = run(Command::new("strace")
            .args(["-f", "-qq", "-o", "trace"])
            .arg(env!("CARGO_BIN_EXE_vsc-run"))
            .arg("image")
            .args(arguments)
            .current_dir(dir.path(""))
            .stdin(Stdio::null()));
        expect_code(&output, 0);
        let trace = fs::read_to_string(dir.path("trace")).unwrap();
        assert!(trace.contains("seccomp("), "the child confines itself");
        for call in [
            "mount(",
            "fsopen(",
            "open_tree(",
            "move_mount(",
            "fsconfig(",
            "umount2(",
            "losetup",
            "/dev/loop",
        ] {
            assert!(!trace.contains(call), "{arguments:?}: {call}");
        }
        let opened: Vec<&str> = trace
            .lines()
            .filter(|l| l.contains("\"a.img\"") && l.contains("open"))
            .collect();
        assert!(
            !opened.is_empty() && opened.iter().all(|l| l.contains("O_RDONLY")),
            "{opened:?}"
        );
    }
    assert!(fs::read(dir.path("a.img")).unwrap() == before);
}

#[test]
fn the_parser_is_confined_while_it_works() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-jail");
    source(&dir);
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    // Nobody reads what it says: it waits in the middle of the file.
    let mut child = vsc()
        .args([
            "image",
            "inside",
            r#"{"format":"raw","partition":null,"wanted":{"read":[47,98,105,103]}}"#,
        ])
        .stdin(fs::File::open(dir.path("a.img")).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let status = fs::read_to_string(process.join("status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
        assert!(status.lines().any(|l| l == line), "{line}: {status}");
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    for limit in [
        "Max open files            0",
        "Max file size             0",
        "Max core file size        0",
        "Max address space         1073741824",
    ] {
        assert!(limits.contains(limit), "{limit}: {limits}");
    }
    let mut open: Vec<String> = fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_parent_that_dies_takes_the_parser_along() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-orphan");
    source(&dir);
    tool(&dir, &["mkfs.ext4", "-q", "-d", "source", "a.img", "8M"]);
    let mut parent = vsc()
        .args(["image", "cat", "a.img:/big"])
        .current_dir(dir.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    parent
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    let [child] = children(parent.id())[..] else {
        panic!("{:?}", children(parent.id()))
    };
    assert!(alive(child));
    parent.kill().unwrap();
    parent.wait().unwrap();
    soon(|| !alive(child));
}

#[test]
fn names_that_lead_out_make_nothing_outside() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let dir = TempDir::new("look-names");
    for below in ["source/d", "work/out"] {
        fs::create_dir_all(dir.path(below)).unwrap();
    }
    dir.write("source/d/aa_evil", "evil");
    dir.write("source/d/bb_evil", "evil");
    // Without check sums, so that what is changed by hand is not noticed by them.
    tool(
        &dir,
        &[
            "mkfs.ext4",
            "-q",
            "-O",
            "^metadata_csum,^dir_index",
            "-d",
            "source",
            "a.img",
            "4M",
        ],
    );
    let clean = fs::read(dir.path("a.img")).unwrap();
    for evil in [
        &b"../evil_"[..],
        b"../../ev",
        b"/evil_xx",
        b"d/../../",
        b"aa\0evil_",
    ] {
        let mut bytes = clean.clone();
        let places: Vec<usize> = bytes
            .windows(8)
            .enumerate()
            .filter(|(_, w)| *w == b"aa_evil\0" || w.starts_with(b"aa_evil"))
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty());
        for at in places {
            // One longer than it was: into the padding, with its length before it.
            bytes[at..at + 8].copy_from_slice(evil);
            bytes[at - 2] = 8;
        }
        dir.write("b.img", &bytes);
        let output = image(&dir, &["cp", "b.img:/d", "work/out"]);
        assert_eq!(
            output.status.code(),
            Some(125),
            "{evil:?}: {}",
            text(&output.stderr)
        );
        assert_eq!(
            fs::read_dir(dir.path("work")).unwrap().count(),
            1,
            "{evil:?}"
        );
        assert!(!dir.path("evil_").exists() && !Path::new("/evil_xx").exists());
        fs::remove_dir_all(dir.path("work/out")).unwrap();
        fs::create_dir(dir.path("work/out")).unwrap();
    }
}

#[test]
fn damaged_images_end_in_words() {
    if !have(&["mkfs.ext4", "mkfs.vfat", "mcopy", "mmd", "qemu-img"]) {
        return;
    }
    let dir = TempDir::new("look-fuzz");
    fs::create_dir_all(dir.path("source/d/e")).unwrap();
    dir.write("source/d/file", noise(9000, 3));
    dir.write("source/d/e/x", "x");
    tool(
        &dir,
        &[
            "mkfs.ext4",
            "-q",
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^has_journal",
            "-d",
            "source",
            "ext",
            "512K",
        ],
    );
    tool(&dir, &["mkfs.vfat", "-C", "fat", "512"]);
    tool(&dir, &["mmd", "-i", "fat", "::/d"]);
    tool(&dir, &["mcopy", "-i", "fat", "source/d/file", "::/d/file"]);
    tool(
        &dir,
        &["qemu-img", "convert", "-c", "-O", "qcow2", "ext", "qcow2"],
    );
    let mut random = noise(1 << 16, 11).into_iter().cycle();
    let mut number = |below: usize| {
        let bytes: Vec<u8> = random.by_ref().take(4).collect();
        u32::from_le_bytes(bytes.try_into().unwrap()) as usize % below
    };
    let mut worked = 0;
    for (name, format) in [("ext", "raw"), ("fat", "raw"), ("qcow2", "qcow2")] {
        let clean = fs::read(dir.path(name)).unwrap();
        for round in 0..40 {
            let mut bytes = clean.clone();
            for _ in 0..1 + round / 4 {
                // Where the structures are: most of what there is are zeros.
                let at = loop {
                    let at = number(bytes.len().min(96 << 10));
                    if bytes[at] != 0 {
                        break at;
                    }
                };
                bytes[at] = number(256) as u8;
            }
            dir.write("bad", &bytes);
            let out = dir.path("out");
            fs::remove_dir_all(&out).ok();
            fs::create_dir(&out).unwrap();
            let output = image(&dir, &["cp", "-q", "--format", format, "bad:/d", "out"]);
            let said = text(&output.stderr);
            match output.status.code() {
                Some(0) => worked += 1,
                Some(125) => assert!(
                    said.starts_with("error[E-IMAGE]: ") && !said.contains("panicked"),
                    "{said}"
                ),
                other => panic!("{name} {round}: {other:?} {said}"),
            }
        }
    }
    // Not every change is noticed, and not every one ruins everything.
    assert!((1..120).contains(&worked), "{worked}");
}
