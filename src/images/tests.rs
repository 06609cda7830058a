use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;

/// A directory of this test's own, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-images-{name}-{}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn raw(path: PathBuf, size: u64, preallocation: Preallocation) -> ImageSpec {
    ImageSpec {
        preallocation,
        ..ImageSpec::new(path, ImageFormat::Raw, size)
    }
}

/// Breaks at the `n`th call, and does `then` at that moment.
struct Watch<F: FnMut()> {
    left: u32,
    stop: bool,
    then: F,
    seen: Vec<(u64, Option<u64>)>,
}

impl<F: FnMut()> Watch<F> {
    fn new(left: u32, stop: bool, then: F) -> Self {
        Self {
            left,
            stop,
            then,
            seen: Vec::new(),
        }
    }
}

impl<F: FnMut()> Progress for Watch<F> {
    fn advance(&mut self, done: u64, total: Option<u64>) -> ControlFlow<()> {
        self.seen.push((done, total));
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            (self.then)();
            if self.stop {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn raw_images_are_made_without_a_program() {
    let dir = Dir::new("raw");
    const SIZE: u64 = (3 << 20) + 512;
    for (name, preallocation) in [
        ("off", Preallocation::Off),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ] {
        let path = dir.0.join(name);
        let made = create(&raw(path.clone(), SIZE, preallocation), &mut Unwatched).unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.len(), made.size), (SIZE, SIZE), "{name}");
        assert_eq!(file.permissions().mode() & 0o7777, 0o600, "{name}");
        assert_eq!(file.blocks() * 512, made.allocated, "{name}");
        match preallocation {
            Preallocation::Off => assert!(made.allocated < 1 << 20),
            _ => assert!(made.allocated >= SIZE, "{name}: {}", made.allocated),
        }
        assert!(fs::read(&path).unwrap().iter().all(|&b| b == 0));
    }
    assert_eq!(dir.names(), ["falloc", "full", "off"]);
}

#[test]
fn progress_counts_up_to_all_of_it() {
    let dir = Dir::new("progress");
    const SIZE: u64 = 5 << 20;
    let mut watch = Watch::new(0, false, || {});
    let spec = raw(dir.0.join("d"), SIZE, Preallocation::Full);
    create(&spec, &mut watch).unwrap();
    assert_eq!(watch.seen.last(), Some(&(SIZE, Some(SIZE))));
    assert!(watch.seen.is_sorted(), "{:?}", watch.seen);
    let mut watch = Watch::new(0, false, || {});
    create(
        &raw(dir.0.join("off"), SIZE, Preallocation::Off),
        &mut watch,
    )
    .unwrap();
    assert_eq!(watch.seen, []);
}

#[test]
fn nothing_is_overwritten() {
    let dir = Dir::new("exists");
    let path = dir.0.join("disk");
    let spec = raw(path.clone(), 1 << 20, Preallocation::Full);
    fs::write(&path, "precious").unwrap();
    assert!(matches!(create(&spec, &mut Unwatched), Err(ImageError::Exists(p)) if p == path));
    fs::remove_file(&path).unwrap();
    symlink("nowhere", &path).unwrap();
    assert!(matches!(
        create(&spec, &mut Unwatched),
        Err(ImageError::Exists(_))
    ));
    fs::remove_file(&path).unwrap();
    // Somebody takes the name while the image is made.
    let mut race = Watch::new(1, false, || fs::write(&path, "first").unwrap());
    let error = create(&spec, &mut race).unwrap_err();
    assert!(matches!(error, ImageError::Exists(_)), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "first");
    assert_eq!(dir.names(), ["disk"]);
}

#[test]
fn what_is_interrupted_leaves_nothing() {
    let dir = Dir::new("interrupted");
    for (call, preallocation) in [
        (1, Preallocation::Falloc),
        (1, Preallocation::Full),
        (4, Preallocation::Full),
    ] {
        let mut spec = raw(dir.0.join("new/deep/disk"), 8 << 20, preallocation);
        spec.parents = true;
        let result = create(&spec, &mut Watch::new(call, true, || {}));
        assert!(matches!(result, Err(ImageError::Interrupted)));
        assert_eq!(dir.names(), [""; 0]);
    }
}

#[test]
fn directories_are_made_when_asked_for() {
    let dir = Dir::new("parents");
    let mut spec = raw(dir.0.join("a/b/disk"), 1 << 20, Preallocation::Off);
    let error = create(&spec, &mut Unwatched).unwrap_err();
    assert!(
        matches!(&error, ImageError::NoDirectory(d) if d.ends_with("a/b")),
        "{error}"
    );
    assert_eq!(dir.names(), [""; 0]);
    spec.parents = true;
    create(&spec, &mut Unwatched).unwrap();
    assert!(spec.path.is_file());
    fs::write(dir.0.join("file"), "").unwrap();
    spec.path = dir.0.join("file/disk");
    let error = create(&spec, &mut Unwatched).unwrap_err();
    assert!(matches!(&error, ImageError::Directory(..)), "{error:?}");
}

#[test]
fn without_nameless_files_a_temporary_name_does() {
    let dir = Dir::new("named");
    let path = dir.0.join("disk");
    let place = Place::open(&path, false).unwrap();
    let draft = Draft::named(&place, 0o640).unwrap();
    let names = dir.names();
    assert!(
        names.len() == 1 && names[0].starts_with(".vsc-disk-"),
        "{names:?}"
    );
    drop(draft);
    assert_eq!(dir.names(), [""; 0]);

    let draft = Draft::named(&place, 0o640).unwrap();
    draft.file().set_len(4096).unwrap();
    draft.publish().unwrap();
    assert_eq!(dir.names(), ["disk"]);
    let file = fs::metadata(&path).unwrap();
    assert_eq!(
        (file.len(), file.permissions().mode() & 0o7777),
        (4096, 0o640)
    );

    let draft = Draft::named(&place, 0o600).unwrap();
    assert!(matches!(draft.publish(), Err(ImageError::Exists(p)) if p == path));
    assert_eq!(dir.names(), ["disk"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn options_that_a_format_has_not() {
    let keys = |spec: &ImageSpec| -> Vec<(Severity, &'static str)> {
        check(spec).iter().map(|r| (r.severity, r.key)).collect()
    };
    let plain = ImageSpec::new("d", ImageFormat::Raw, 1 << 20);
    assert_eq!(check(&plain), []);
    let all = ImageSpec {
        cluster_size: Some(1),
        lazy_refcounts: Some(true),
        compression_type: Some(CompressionType::Zlib),
        encryption: Encryption::Luks,
        preallocation: Preallocation::Metadata,
        ..plain.clone()
    };
    let (error, warning) = (Severity::Error, Severity::Warning);
    assert_eq!(
        keys(&all),
        [
            (error, "secret_file"),
            (error, "preallocation"),
            (warning, "cluster_size"),
            (warning, "lazy_refcounts"),
            (warning, "compression_type"),
        ]
    );
    assert!(
        check(&all)[3]
            .message
            .starts_with("lazy_refcounts needs qcow2")
    );
    let lazy_off = ImageSpec {
        lazy_refcounts: Some(false),
        ..plain.clone()
    };
    assert_eq!(check(&lazy_off), []);
    let qcow2 = ImageSpec {
        format: ImageFormat::Qcow2,
        ..all
    };
    assert_eq!(
        keys(&qcow2),
        [(error, "secret_file"), (error, "cluster_size")]
    );
    for (cluster, good) in [
        (256, false),
        (512, true),
        (65536, true),
        (65537, false),
        (2 << 20, true),
        (4 << 20, false),
    ] {
        let spec = ImageSpec {
            format: ImageFormat::Qcow2,
            cluster_size: Some(cluster),
            ..plain.clone()
        };
        assert_eq!(check(&spec).is_empty(), good, "{cluster}");
    }
    let secret = ImageSpec {
        secret: Some(SecretSource::Descriptor(0)),
        ..plain.clone()
    };
    assert_eq!(keys(&secret), [(error, "encryption")]);
    for size in [0, 511, 1025, u64::MAX - 511] {
        let spec = ImageSpec {
            size,
            ..plain.clone()
        };
        assert_eq!(keys(&spec), [(error, "size")], "{size}");
    }
    for path in ["", "/", "dir/", "..", "a/.."] {
        let spec = ImageSpec {
            path: path.into(),
            ..plain.clone()
        };
        assert_eq!(keys(&spec), [(error, "path")], "{path}");
    }
    assert!(
        matches!(create(&lazy_off_nowhere(), &mut Unwatched), Err(ImageError::Refused(r)) if r.len() == 1)
    );
}

/// A mistake that is found before the host is looked at.
fn lazy_off_nowhere() -> ImageSpec {
    ImageSpec::new("/nowhere/disk", ImageFormat::Raw, 0)
}

#[test]
fn passphrases_are_read_and_refused() {
    let dir = Dir::new("secret");
    let path = dir.0.join("s");
    let read = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        SecretSource::File(path.clone()).read(&mut Vec::new())
    };
    let good = Secret::typed(b"p w\"$(id)".to_vec()).unwrap();
    assert_eq!(read(b"p w\"$(id)").unwrap(), good);
    assert_eq!(read(b"p w\"$(id)\n").unwrap(), good);
    assert_ne!(read(b"p w\"$(id)\n\n").unwrap(), good);
    for (content, why) in [
        (&b""[..], "empty"),
        (b"\n", "empty"),
        (&[b'x'; (64 << 10) + 1], "longer"),
    ] {
        let error = read(content).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(read(&[b'x'; 64 << 10]).is_ok());
    assert!(Secret::typed(Vec::new()).is_err());
    assert_eq!(
        format!("{:?}", SecretSource::Given(good.clone())),
        "Given(Secret(…))"
    );
    // Only QEMU is choosy.
    for (content, why) in [(&b"a\0b"[..], "NUL"), (b"\xff", "UTF-8")] {
        let refused = read(content).unwrap().for_qemu().unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(good.for_qemu().is_ok());
    let mut notes = Vec::new();
    for mode in [0o644, 0o640, 0o602, 0o610] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = SecretSource::File(path.clone())
            .read(&mut notes)
            .unwrap_err();
        let help = refused.help().unwrap_or_default();
        assert!(help.contains("chmod 600"), "{refused}: {help}");
    }
    assert_eq!(notes, [""; 0]);
    let missing = SecretSource::File(dir.0.join("none")).read(&mut notes);
    assert!(matches!(missing, Err(ImageError::ReadSecret(..))));
}

#[test]
fn the_program_gets_our_words_only() {
    let mut spec = ImageSpec::new("/d/$(id),x", ImageFormat::Qcow2, 1 << 30);
    assert_eq!(
        qemu_img::arguments(&spec),
        ["-q", "-f", "qcow2", "-o", "compat=1.1,preallocation=off"]
    );
    spec.preallocation = Preallocation::Metadata;
    spec.cluster_size = Some(1 << 20);
    spec.lazy_refcounts = Some(true);
    spec.compression_type = Some(CompressionType::Zstd);
    spec.encryption = Encryption::Luks;
    spec.secret = Some(SecretSource::Given(
        Secret::typed(b"hunter2".to_vec()).unwrap(),
    ));
    let arguments = qemu_img::arguments(&spec).join(" ");
    assert_eq!(
        arguments,
        "-q -f qcow2 --object secret,id=disk,file=/proc/self/fd/0 -o compat=1.1,preallocation=metadata,\
         cluster_size=1048576,lazy_refcounts=on,compression_type=zstd,encrypt.format=luks,encrypt.key-secret=disk,encrypt.iter-time=2000"
    );
}

#[test]
fn a_program_is_looked_for_in_absolute_directories() {
    let dir = Dir::new("find");
    let program = dir.0.join("qemu-img");
    let search = std::env::join_paths([Path::new(""), Path::new("relative"), &dir.0]).unwrap();
    assert_eq!(qemu_img::find(Some(&search)), None);
    fs::write(&program, "").unwrap();
    assert_eq!(qemu_img::find(Some(&search)), None);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(qemu_img::find(Some(&search)), Some(program));
    assert_eq!(qemu_img::find(None), None);
}

/// A program in qemu-img's place.
fn with_program(name: &str, script: &str) -> (Dir, PathBuf, File) {
    let dir = Dir::new(name);
    let program = dir.0.join("qemu-img");
    // Written by another process: one that a fork of this one's threads has open for writing cannot be started.
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh")
        .args(["-c", write])
        .arg(&program)
        .arg(script)
        .status();
    assert!(written.unwrap().success());
    let image = dir.0.join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(image)
        .unwrap();
    (dir, program, file)
}

#[test]
fn a_program_that_fails_is_quoted_and_bounded() {
    let script = "#!/bin/sh\nfor a; do t=$s; s=$a; done\necho \"qemu-img: Error when deleting file $t: Operation not permitted\" >&2\necho \"qemu-img: $t: \x1b[1mno\" >&2\ni=0\n\
                  while [ $i -lt 3000 ]; do echo 'much more of the same, and more still' >&2; i=$((i+1)); done\nexit 7\n";
    let (dir, program, file) = with_program("fails", script);
    let spec = ImageSpec::new(dir.0.join("my disk"), ImageFormat::Qcow2, 1 << 20);
    let error = qemu_img::create(&program, &spec, &file, None, &mut Unwatched).unwrap_err();
    let ImageError::QemuImg { status, message } = error else {
        panic!("{error:?}");
    };
    assert_eq!(status, "exit code 7");
    assert!(!message.contains("deleting"), "{message}");
    let name = spec.path.display();
    assert!(
        message.starts_with(&format!("{name}: \\u{{1b}}[1mno; much")),
        "{message}"
    );
    assert!(message.len() < 8192, "{}", message.len());

    let (dir, program, file) = with_program("killed", "#!/bin/sh\nkill -9 $$\n");
    let spec = ImageSpec::new(dir.0.join("d"), ImageFormat::Qcow2, 1 << 20);
    let error = qemu_img::create(&program, &spec, &file, None, &mut Unwatched).unwrap_err();
    assert_eq!(
        error.to_string(),
        "qemu-img refused (killed by signal 9): it said nothing"
    );
}

#[test]
fn a_measurement_that_failed_is_made_again() {
    let dir = Dir::new("again-count");
    let count = dir.0.join("count");
    let script = |succeeds: bool| {
        let (count, succeeds) = (count.display(), i32::from(succeeds));
        format!(
            "#!/bin/sh\necho >> {count}\n[ {succeeds} = 1 ] && [ $(/usr/bin/wc -l < {count}) = 3 ] && exit 0\n\
             echo 'qemu-img: x: Unable to get accurate CPU usage' >&2\nexit 1\n"
        )
    };
    let runs = || fs::read_to_string(&count).unwrap().len();
    let (_dir, program, file) = with_program("again", &script(true));
    let spec = ImageSpec::new("d", ImageFormat::Qcow2, 1 << 20);
    qemu_img::create(&program, &spec, &file, None, &mut Unwatched).unwrap();
    assert_eq!(runs(), 3);
    let (_dir, program, file) = with_program("again", &script(false));
    let result = qemu_img::create(&program, &spec, &file, None, &mut Unwatched);
    assert!(matches!(result, Err(ImageError::QemuImg { .. })));
    assert_eq!(runs(), 3 + 40);
}

#[test]
fn a_program_is_told_little_and_ends_with_an_interruption() {
    let script = "#!/bin/sh\nexec >&2\nenv\ncat <&0\nfor a; do t=$s; s=$a; done\ntest -w \"$t\" && echo reachable\nexit 1\n";
    let (dir, program, file) = with_program("little", script);
    let spec = ImageSpec::new(dir.0.join("d"), ImageFormat::Qcow2, 1 << 20);
    let error = qemu_img::create(&program, &spec, &file, None, &mut Unwatched).unwrap_err();
    let ImageError::QemuImg { message, .. } = error else {
        panic!("{error:?}");
    };
    let mut words: Vec<_> = message.split("; ").collect();
    // A shell adds these by itself.
    words.retain(|w| {
        !["PWD=", "OLDPWD=", "SHLVL=", "_="]
            .iter()
            .any(|own| w.starts_with(own))
    });
    assert_eq!(words, ["LC_ALL=C", "reachable"]);

    // What it reads on its standard input never ends, so only a kill does.
    let (dir, program, file) = with_program("hangs", "#!/bin/sh\nexec /bin/sleep 1000\n");
    let spec = ImageSpec::new(dir.0.join("d"), ImageFormat::Qcow2, 1 << 20);
    let started = Instant::now();
    let result = qemu_img::create(
        &program,
        &spec,
        &file,
        None,
        &mut Watch::new(2, true, || {}),
    );
    assert!(matches!(result, Err(ImageError::Interrupted)));
    assert!(started.elapsed().as_secs() < 100);
}

#[test]
fn sizes_are_those_of_scenarios() {
    for (text, bytes) in [("20G", 20 << 30), ("512", 512 << 20), ("1024k", 1 << 20)] {
        assert_eq!(parse_size(text), Ok(bytes));
    }
    for (text, why) in [
        ("20GB", "1000 or 1024"),
        ("big", "write 20G"),
        ("-1", "write 20G"),
    ] {
        let message = parse_size(text).unwrap_err();
        assert!(message.contains(why) && message.contains(text), "{message}");
    }
}

#[test]
fn information_is_read_and_never_guessed() {
    let dir = Dir::new("info");
    let path = dir.0.join("d");
    fs::write(&path, [&b"QFI\xfb"[..], &[0; 1020]].concat()).unwrap();
    let told = info(&path, ImageFormat::Raw).unwrap();
    assert_eq!((told.virtual_size, told.looks_like), (1024, Some("qcow2")));
    let error = info(&path, ImageFormat::Qcow2).unwrap_err();
    assert!(matches!(
        error,
        InfoError::Header(_, "qcow2", BadHeader::Version(0))
    ));
    assert!(matches!(
        info(&dir.0, ImageFormat::Raw),
        Err(InfoError::Kind(_))
    ));
    fs::write(&path, "").unwrap();
    let told = info(&path, ImageFormat::Raw).unwrap();
    assert_eq!((told.virtual_size, told.looks_like), (0, None));
    assert!(matches!(
        info(&dir.0.join("none"), ImageFormat::Raw),
        Err(InfoError::Open(..))
    ));
}
