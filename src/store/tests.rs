use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Barrier;

use super::*;

/// A directory of this test's own, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-store-{name}-{}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn store(&self) -> Store {
        Store::new(&self.0.join("deep/vms")).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn contents(text: &str) -> Contents {
    Contents {
        domain: format!("<domain>{text}</domain>\n"),
        scenario: format!("name: {text}\n"),
        attestation: false,
        host: "localhost".into(),
        on: None,
        settings: None,
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_saved_vm_is_four_files_that_come_back() {
    let dir = Dir::new("save");
    let store = dir.store();
    assert_eq!(
        store.entries().unwrap().len(),
        0,
        "no store is an empty one"
    );
    let place = store.save(&name("a"), &contents("one"), false).unwrap();
    assert_eq!(place, dir.0.join("deep/vms/a"));
    assert_eq!(names(&place), [CONFIG, DOMAIN, SCENARIO, STATE]);
    for directory in ["deep", "deep/vms", "deep/vms/a"] {
        assert_eq!(mode(&dir.0.join(directory)), 0o700);
    }
    for file in names(&place) {
        assert_eq!(mode(&place.join(&file)), 0o600, "{file}");
    }
    let entries = store.entries().unwrap();
    let [entry] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!((entry.name.as_str(), &entry.problems), ("a", &vec![]));
    let config = entry.config.as_ref().unwrap();
    assert_eq!(config.domain_config, place.join(DOMAIN));
    assert_eq!(entry.file(SCENARIO).unwrap(), "name: one\n");
    assert_eq!(store.entry(&name("a")).unwrap().config, entry.config);
    assert!(matches!(
        store.entry(&name("b")),
        Err(StoreError::Unknown { .. })
    ));
}

#[test]
fn overwriting_is_asked_for_and_keeps_what_is_not_said_anew() {
    let dir = Dir::new("overwrite");
    let store = dir.store();
    let place = store.save(&name("a"), &contents("one"), true).unwrap();
    let Err(StoreError::Exists(named)) = store.save(&name("a"), &contents("two"), false) else {
        panic!("it exists");
    };
    assert_eq!(named, place);
    let held = store.hold(&name("a")).unwrap();
    let state = State {
        created_disks: vec!["/x".into()],
        ..State::default()
    };
    held.write_state(&state).unwrap();
    fs::write(place.join("a.qcow2"), "image").unwrap();
    let inode = |file: &str| fs::metadata(place.join(file)).unwrap().ino();
    let image = inode("a.qcow2");
    assert!(
        matches!(
            store.save(&name("a"), &contents("two"), true),
            Err(StoreError::Running { .. })
        ),
        "it is held"
    );
    drop(held);
    store.save(&name("a"), &contents("two"), true).unwrap();
    let entry = store.entry(&name("a")).unwrap();
    assert_eq!(entry.file(SCENARIO).unwrap(), "name: two\n");
    assert_eq!(entry.state, state);
    assert_eq!(inode("a.qcow2"), image);
    fs::create_dir(place.join("directory")).unwrap();
    let refused = store
        .save(&name("a"), &contents("three"), true)
        .unwrap_err();
    assert!(refused.to_string().contains("holds directory"), "{refused}");
    assert_eq!(
        store.entry(&name("a")).unwrap().file(SCENARIO).unwrap(),
        "name: two\n"
    );
    assert_eq!(names(&store.0), ["a"], "nothing half-written stays");
}

#[test]
fn of_twenty_racing_saves_one_wins_and_the_last_overwrite_is_whole() {
    let dir = Dir::new("race");
    let store = dir.store();
    let start = Barrier::new(20);
    let race = |overwrite: bool| -> usize {
        std::thread::scope(|scope| {
            let racers: Vec<_> = (0..20)
                .map(|n| {
                    let (store, start) = (&store, &start);
                    scope.spawn(move || {
                        start.wait();
                        match store.save(&name("a"), &contents(&n.to_string()), overwrite) {
                            Ok(_) => 1,
                            Err(StoreError::Exists(_)) => 0,
                            Err(e) => panic!("{e}"),
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|r| r.join().unwrap()).sum()
        })
    };
    assert_eq!(race(false), 1);
    assert_eq!(race(true), 20);
    let entry = store.entry(&name("a")).unwrap();
    assert_eq!(entry.problems, [""; 0]);
    let scenario = entry.file(SCENARIO).unwrap();
    let number = scenario.strip_prefix("name: ").unwrap().trim();
    assert_eq!(entry.file(DOMAIN).unwrap(), contents(number).domain);
    assert_eq!(names(&store.0), ["a"]);
}

#[test]
fn one_of_many_starts_has_it() {
    let dir = Dir::new("hold");
    let store = dir.store();
    store.save(&name("a"), &contents("one"), false).unwrap();
    let start = Barrier::new(20);
    let held: Vec<Held> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    match store.hold(&name("a")) {
                        Ok(held) => Some(held),
                        Err(StoreError::Running { pid: None, .. }) => None,
                        Err(e) => panic!("{e}"),
                    }
                })
            })
            .collect();
        racers
            .into_iter()
            .filter_map(|r| r.join().unwrap())
            .collect()
    });
    let [held] = &held[..] else {
        panic!("{}", held.len())
    };
    let state = State {
        process: Process::current(),
        ..State::default()
    };
    held.write_state(&state).unwrap();
    let pid = std::process::id();
    for refused in [
        store.hold(&name("a")).unwrap_err(),
        store.delete(&name("a"), true).unwrap_err(),
    ] {
        assert_eq!(
            refused.to_string(),
            format!("a is already running, pid {pid}; vsc-run stop a ends it")
        );
    }
}

#[test]
fn deleting_takes_images_only_when_told_to() {
    let dir = Dir::new("delete");
    let store = dir.store();
    let place = store.save(&name("a"), &contents("one"), false).unwrap();
    let (made, given) = (dir.0.join("made.qcow2"), dir.0.join("given.qcow2"));
    for image in [&made, &given, &place.join("inside.qcow2")] {
        fs::write(image, "image").unwrap();
    }
    let link = dir.0.join("link");
    symlink(&given, &link).unwrap();
    let state = State {
        created_disks: vec![made.clone(), link.clone()],
        ..State::default()
    };
    store.hold(&name("a")).unwrap().write_state(&state).unwrap();
    let refused = store.delete(&name("a"), false).unwrap_err().to_string();
    assert!(
        refused.contains("inside.qcow2") && refused.contains("--disks"),
        "{refused}"
    );
    assert!(made.exists() && place.exists());
    let deleted = store.delete(&name("a"), true).unwrap();
    assert_eq!(deleted, [place.join("inside.qcow2"), made.clone()]);
    assert!(!made.exists() && given.exists() && link.is_symlink());
    assert_eq!(names(&store.0), [""; 0]);
    assert!(matches!(
        store.delete(&name("a"), false),
        Err(StoreError::Unknown { .. })
    ));
    // Nothing but what is ours and the predecessor's: no question.
    let place = store.save(&name("a"), &contents("one"), false).unwrap();
    for file in ["localhost.pdh", "tik.bin", LOG] {
        fs::write(place.join(file), "x").unwrap();
    }
    store.delete(&name("a"), false).unwrap();
    assert!(!place.exists());
}

#[test]
fn names_stay_in_the_store() {
    let dir = Dir::new("names");
    let store = dir.store();
    store.save(&name("a"), &contents("one"), false).unwrap();
    for bad in [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc",
        ".hidden",
        "a b",
        "a\0",
        "a\n",
        "x".repeat(65).as_str(),
        ".vsc-new=a",
        "a=b",
    ] {
        assert!(
            matches!(Name::new(bad), Err(StoreError::Name { .. })),
            "{bad:?}"
        );
        assert!(
            matches!(Name::existing(bad), Err(StoreError::Name { .. })),
            "{bad:?}"
        );
    }
    for good in ["a", "A.b-c_d+e:f", "-x", "x".repeat(64).as_str()] {
        assert_eq!(Name::new(good).unwrap().as_str(), good);
    }
    // The predecessor's isalnum().
    assert!(Name::existing("é1").is_ok() && Name::new("é1").is_err());
}

#[test]
fn what_is_damaged_is_told_and_hides_nothing() {
    let dir = Dir::new("damaged");
    let store = dir.store();
    let place = |text: &str| store.place(&name(text));
    for text in [
        "bad-config",
        "bad-state",
        "good",
        "no-domain",
        "renamed",
        "socket",
        "huge",
        "theirs",
        "linked-file",
    ] {
        store.save(&name(text), &contents(text), false).unwrap();
    }
    fs::write(place("bad-config").join(CONFIG), "name: [").unwrap();
    fs::write(place("bad-state").join(STATE), "{\"process\":").unwrap();
    fs::remove_file(place("no-domain").join(DOMAIN)).unwrap();
    fs::rename(place("renamed"), place("other")).unwrap();
    fs::create_dir(place("half")).unwrap();
    fs::create_dir(place("theirs-too")).unwrap();
    fs::set_permissions(place("theirs"), fs::Permissions::from_mode(0o777)).unwrap();
    symlink(place("good"), place("link")).unwrap();
    symlink("nowhere", place("dangling")).unwrap();
    fs::write(place("file"), "not a VM").unwrap();
    let config = place("socket").join(CONFIG);
    fs::remove_file(&config).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&config).unwrap();
    fs::write(place("huge").join(CONFIG), "#".repeat(2 << 20)).unwrap();
    fs::remove_file(place("linked-file").join(CONFIG)).unwrap();
    symlink("/etc/passwd", place("linked-file").join(CONFIG)).unwrap();
    let entries = store.entries().unwrap();
    drop(socket);
    let found: Vec<(&str, String)> = entries
        .iter()
        .map(|e| (e.name.as_str(), e.problems.join("; ")))
        .collect();
    let expected = [
        ("bad-config", "config.yaml: "),
        ("bad-state", "state.json: EOF"),
        ("dangling", "it is a symbolic link"),
        ("good", ""),
        ("half", "config.yaml: there is no such file"),
        ("huge", "config.yaml: it is longer"),
        ("link", "it is a symbolic link"),
        ("linked-file", "config.yaml: it is a symbolic link"),
        ("no-domain", "there is no file "),
        ("other", "config.yaml is that of \"renamed\""),
        ("socket", "config.yaml: it is no regular file"),
        ("theirs", "everybody may write to it"),
        ("theirs-too", "config.yaml: there is no such file"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((found, problems), (name, needle)) in found.iter().zip(expected) {
        assert_eq!(*found, name);
        assert!(problems.contains(needle), "{name}: {problems}");
        assert_eq!(problems.is_empty(), needle.is_empty(), "{name}: {problems}");
    }
    // None of them can be run or written through; a link is deleted, not what it leads to.
    for text in ["link", "dangling", "theirs"] {
        assert!(
            matches!(store.hold(&name(text)), Err(StoreError::Damaged { .. })),
            "{text}"
        );
        let refused = store.save(&name(text), &contents(text), true);
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{text}");
    }
    store.delete(&name("link"), true).unwrap();
    assert!(place("good").join(CONFIG).exists() && !place("link").is_symlink());
    // Half an entry can be written again.
    store.save(&name("half"), &contents("half"), true).unwrap();
    assert_eq!(store.entry(&name("half")).unwrap().problems, [""; 0]);
}

#[test]
fn a_store_that_others_may_write_to_is_refused() {
    let dir = Dir::new("open");
    let store = Store::new(&dir.0).unwrap();
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o1777)).unwrap();
    for refused in [
        store.entries().map(drop),
        store.save(&name("a"), &contents("a"), false).map(drop),
        store.entry(&name("a")).map(drop),
        store.hold(&name("a")).map(drop),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("everybody may write to it"), "{refused}");
    }
    assert_eq!(names(&dir.0), [""; 0]);
    let file = dir.0.join("file");
    fs::write(&file, "").unwrap();
    let refused = Store::new(&file)
        .unwrap()
        .entries()
        .unwrap_err()
        .to_string();
    assert!(refused.contains("no directory"), "{refused}");
}

#[test]
fn what_killed_processes_left_is_cleared_or_put_back() {
    let dir = Dir::new("sweep");
    let store = dir.store();
    store.save(&name("a"), &contents("a"), false).unwrap();
    store.save(&name("b"), &contents("b"), false).unwrap();
    // Killed while writing, while deleting, between the two steps of replacing, and after them.
    for left in [".vsc-new=c", ".vsc-gone=d"] {
        fs::create_dir(store.0.join(left)).unwrap();
        fs::write(store.0.join(left).join(CONFIG), "x").unwrap();
    }
    fs::rename(store.place(&name("b")), store.0.join(".vsc-old=b")).unwrap();
    fs::create_dir(store.0.join(".vsc-old=a")).unwrap();
    assert_eq!(store.entries().unwrap().len(), 1, "looking changes nothing");
    store.save(&name("c"), &contents("c"), false).unwrap();
    assert_eq!(names(&store.0), ["a", "b", "c"]);
    assert_eq!(store.entry(&name("b")).unwrap().problems, [""; 0]);
}

#[test]
fn a_log_and_a_temporary_file_are_no_way_out_of_the_store() {
    let dir = Dir::new("ways-out");
    let store = dir.store();
    let place = store.save(&name("a"), &contents("a"), false).unwrap();
    let outside = dir.0.join("outside");
    fs::write(&outside, "untouched").unwrap();
    symlink(&outside, place.join(LOG)).unwrap();
    symlink(&outside, place.join(format!("{NEW}{STATE}"))).unwrap();
    fs::remove_file(place.join(STATE)).unwrap();
    symlink(&outside, place.join(STATE)).unwrap();
    let held = store.hold(&name("a")).unwrap();
    held.write_state(&State::default()).unwrap();
    let (log, _) = held.new_log().unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert!(!log.is_symlink() && mode(&log) == 0o600);
    assert!(!place.join(STATE).is_symlink());
}

#[test]
fn a_moments_look_is_waited_for() {
    let dir = Dir::new("idle");
    let store = dir.store();
    store.save(&name("a"), &contents("one"), false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| store.idle(&name("a"), |_| Ok(())).unwrap());
        }
    });
    let _held = store.hold(&name("a")).unwrap();
    let refused = store.idle(&name("a"), |_| Ok(()));
    assert!(matches!(refused, Err(StoreError::Running { .. })));
}
