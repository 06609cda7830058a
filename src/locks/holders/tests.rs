use std::os::unix::fs::symlink;

use super::*;

#[test]
fn lines_of_the_kernel_are_read() {
    let parse = |line| Lock::parse(line).unwrap();
    let (lock, inode) = parse("OFDLCK ADVISORY  READ -1 fd:00:42 100 101");
    assert_eq!(
        (lock.kind, lock.write, inode, lock.start, lock.end),
        (Kind::Ofd, false, 42, 100, Some(101))
    );
    assert_eq!(lock.bytes(), "100-101");
    assert_eq!(lock.parts(), [Part::Reads, Part::Writes]);
    let (lock, _) = parse("FLOCK  ADVISORY  WRITE 7 00:1a:42 0 EOF");
    assert_eq!((lock.kind, lock.end), (Kind::Flock, None));
    assert_eq!(lock.bytes(), "flock");
    let (lock, _) = parse("POSIX  ADVISORY  WRITE 7 fd:00:42 0 0");
    assert_eq!(lock.parts(), [Part::Libvirt]);
    let (lock, _) = parse("OFDLCK ADVISORY  WRITE -1 fd:00:42 0 4095");
    assert_eq!(lock.parts(), [Part::Writes, Part::Alone]);
    // Who waits holds nothing.
    assert!(Lock::parse("-> POSIX  ADVISORY  WRITE 7 fd:00:42 0 0").is_none());
    assert!(Lock::parse("OFDLCK").is_none());
}

/// A /proc of our own, with one process that has `file` open.
fn tree(name: &str, file: &Path, vm: &str, lines: &str) -> PathBuf {
    let proc = std::env::temp_dir().join(format!("vsc-holders-{name}-{}", std::process::id()));
    fs::remove_dir_all(&proc).ok();
    let dir = proc.join("4711");
    for part in ["fd", "fdinfo"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    symlink(file, dir.join("fd/5")).unwrap();
    symlink(format!("/memfd:vsc:{vm} (deleted)"), dir.join("fd/3")).unwrap();
    let inode = fs::metadata(file).unwrap().ino();
    fs::write(
        dir.join("fdinfo/5"),
        format!("pos:\t0\nino:\t{inode}\n{lines}").replace("INODE", &inode.to_string()),
    )
    .unwrap();
    fs::write(dir.join("comm"), "qemu-kvm\n").unwrap();
    fs::write(dir.join("cmdline"), b"qemu\0-name\0guest=lab,x=y\0").unwrap();
    fs::write(
        dir.join("stat"),
        format!("4711 (a) S {} 590 0", ["0"; 18].join(" ")),
    )
    .unwrap();
    fs::write(proc.join("uptime"), "65.10 1.0\n").unwrap();
    fs::write(
        proc.join("locks"),
        format!(
            "1: OFDLCK ADVISORY  READ -1 fd:00:{inode} 100 101\n2: POSIX  ADVISORY  WRITE 9 fd:00:{inode} 0 0\n"
        ),
    )
    .unwrap();
    proc
}

#[test]
fn a_holder_is_named_with_its_machine_and_its_time() {
    let image = std::env::temp_dir().join(format!("vsc-holders-image-{}", std::process::id()));
    fs::write(&image, "x").unwrap();
    let lines = "lock:\t1: OFDLCK ADVISORY  READ -1 fd:00:INODE 100 101\n\
                 lock:\t2: OFDLCK ADVISORY  READ -1 fd:00:INODE 201 201\n";
    let proc = tree("named", &image, "a", lines);
    let found = file_holders(&proc, &image).unwrap();
    let holder = &found.seen[0];
    assert_eq!((found.seen.len(), holder.pid), (1, 4711));
    assert_eq!((holder.vm.as_deref(), holder.access()), (Some("a"), "rw"));
    assert_eq!(holder.program, "qemu-kvm");
    // What nobody seen accounts for.
    assert_eq!(found.hidden.len(), 1);
    assert_eq!(found.hidden[0].parts(), [Part::Libvirt]);
    let said = held_by(&proc, &image, false, &[]);
    let since = clock(holder.since.unwrap());
    assert_eq!(
        said,
        format!(
            "E-LOCKED: {} is held by vm 'a', pid 4711, since {since} (qemu-kvm); it writes it: end that machine or use \
             a copy",
            image.display()
        )
    );
    assert_eq!(all_holders(&proc).len(), 1);
    // Another file with such locks is no concern of this one.
    let other = image.with_extension("other");
    fs::write(&other, "x").unwrap();
    assert!(file_holders(&proc, &other).unwrap().seen.is_empty());
    let said = held_by(&proc, &other, false, &[]);
    for part in ["a process that", "on another host", "use a copy"] {
        assert!(said.contains(part), "{said}");
    }
    fs::remove_dir_all(&proc).unwrap();
    fs::remove_file(&other).unwrap();

    fs::remove_file(proc.join("4711/fd/3")).ok();
    let proc = tree("qemu", &image, "a", lines);
    fs::remove_file(proc.join("4711/fd/3")).unwrap();
    let found = file_holders(&proc, &image).unwrap();
    assert_eq!(found.seen[0].vm.as_deref(), Some("lab"));
    fs::remove_dir_all(&proc).unwrap();
    fs::remove_file(&image).unwrap();
}

#[test]
fn times_are_of_today_or_have_a_date() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(!clock(now).contains('-'));
    assert_eq!(clock(now).len(), 5);
    assert!(clock(0).starts_with("19"), "{}", clock(0));
}
