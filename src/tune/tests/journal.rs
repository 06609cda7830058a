//! A journal that was cut off, damaged, or is somebody else's; files that are.

use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn a_torn_line_is_nothing_and_a_damaged_one_is_an_error() {
    let host = Host::new("torn");
    let before = host.whole();
    let run = host.run(1);
    host.begin(&run, &everything()).unwrap();
    let journal = host.at("/run/vsc/host/journal");
    let sound = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, format!("{sound}1234abcd {{\"rec")).unwrap();
    assert_eq!(host.tuner().status().unwrap().len(), everything().len());
    assert_eq!(fs::read_to_string(&journal).unwrap(), sound, "cut off");
    // Another run writes after it.
    let other = host.run(2);
    host.begin(&other, &[set(SWAPPINESS, "0")]).unwrap();
    let sound = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, sound.replacen("swappiness", "swappinets", 1)).unwrap();
    let error = host.tuner().end(&run).unwrap_err();
    assert!(matches!(error, TuneError::Damaged { line: 1, .. }));
    assert!(error.to_string().contains("host undo --force"));
    let refused = host.begin(&host.run(3), &[set(KSM, "0")]).unwrap_err();
    assert!(matches!(refused, TuneError::Damaged { .. }));
    fs::write(&journal, &sound).unwrap();
    host.end(&run);
    host.end(&other);
    assert_eq!(host.whole(), before);
}

#[test]
fn the_sound_lines_of_a_damaged_journal_are_undone_by_force() {
    let host = Host::new("damaged");
    let (a, b) = (host.run(1), host.run(2));
    host.begin(&a, &[set(KSM, "1")]).unwrap();
    host.begin(&b, &[set(SWAPPINESS, "0")]).unwrap();
    let journal = host.at("/run/vsc/host/journal");
    let sound = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, sound.replacen("ksm", "ksn", 1)).unwrap();
    host.kill(&b);
    let unwound = host.tuner().undo(Foreign::Force, &[]).unwrap();
    let [damage] = &unwound.damaged[..] else {
        panic!("{unwound:?}");
    };
    let lines: Vec<usize> = damage.lines.iter().map(|(line, _)| *line).collect();
    // The second one is about what the first one was to say.
    assert_eq!(lines, [1, 2]);
    assert_eq!(damage.kept, host.at("/run/vsc/journal.damaged"));
    assert!(host.read("/run/vsc/journal.damaged").contains("ksn"));
    assert_eq!(
        (host.read(SWAPPINESS), host.read(KSM)),
        ("60\n".into(), "1".into())
    );
    assert!(!host.at("/run/vsc/host").exists());
}

/// A line with an end was written to its end: it is not torn, but damaged.
#[test]
fn the_only_line_is_not_nothing_when_it_is_damaged() {
    let host = Host::new("only");
    let run = host.run(1);
    host.tuner()
        .begin_as(&run, &[set(KSM, "1")], "x", true, |_| Ok(()))
        .unwrap();
    let journal = host.at("/run/vsc/host/journal");
    let sound = fs::read_to_string(&journal).unwrap();
    let begin = sound.lines().next().unwrap();
    let refused = |text: &str| {
        fs::write(&journal, text).unwrap();
        let error = host.tuner().undo(Foreign::Keep, &[]);
        assert!(matches!(error, Err(TuneError::Damaged { line: 1, .. })));
    };
    refused(&format!("{}\n", begin.replacen("ksm", "ksn", 1)));
    // Another one is kept beside the first, and one that was kept already is not kept twice.
    for (round, name) in ["journal.damaged", "journal.damaged-2"]
        .into_iter()
        .enumerate()
    {
        fs::create_dir_all(journal.parent().unwrap()).unwrap();
        fs::set_permissions(journal.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        refused(&format!("{round} damaged\n"));
        let aside = host.at("/run/vsc").join(name);
        fs::hard_link(&journal, &aside).unwrap();
        let unwound = host.tuner().undo(Foreign::Force, &[]).unwrap();
        assert_eq!(unwound.damaged[0].kept, aside);
        assert_eq!(
            fs::read_to_string(aside).unwrap(),
            format!("{round} damaged\n")
        );
        assert!(!journal.exists());
    }
    // What a file system has not written of a line reads as zeros.
    let other = host.run(2);
    host.begin(&other, &[set(SWAPPINESS, "0")]).unwrap();
    let sound = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, format!("{sound}\0\0\0\n")).unwrap();
    host.end(&other);
    assert_eq!(host.read(SWAPPINESS), "60\n");
}

#[test]
fn a_journal_of_somebody_else_is_refused() {
    let host = Host::new("stranger");
    let run = host.run(1);
    let refused = || host.begin(&run, &[set(KSM, "1")]).unwrap_err();
    fs::create_dir_all(host.at("/run/vsc/host")).unwrap();
    fs::set_permissions(host.at("/run/vsc"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(refused(), TuneError::Stranger { .. }));
    fs::set_permissions(host.at("/run/vsc"), fs::Permissions::from_mode(0o755)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(host.at("/run/vsc/host"), Some(65534), None).unwrap();
        assert!(matches!(refused(), TuneError::Stranger { .. }));
    }
    fs::remove_dir_all(host.at("/run/vsc")).unwrap();
    fs::create_dir_all(host.at("/elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", host.at("/run/vsc")).unwrap();
    assert!(matches!(refused(), TuneError::Journal { .. }));
    assert_eq!(host.read(KSM), "0\n");
    // A link in the place of a value is not followed either.
    fs::remove_file(host.at("/run/vsc")).unwrap();
    fs::remove_file(host.at(KSM)).unwrap();
    std::os::unix::fs::symlink(host.at(SWAPPINESS), host.at(KSM)).unwrap();
    let begun = host.begin(&run, &[set(KSM, "1")]).unwrap();
    assert!(matches!(begun.told[0].verdict, Verdict::Skipped { .. }));
    assert_eq!(host.read(SWAPPINESS), "60\n");
}

#[test]
fn only_its_own_leftover_is_removed() {
    let host = Host::new("leftover");
    let run = host.run(1);
    let left = |path: &str| change("machine", Act::Leftover { path: path.into() });
    host.write("/run/old", "was there");
    let all =
        ["old", "pinned", "reused", "ours", "never"].map(|name| left(&format!("/run/{name}")));
    host.begin(&run, &all).unwrap();
    for name in ["pinned", "reused", "ours"] {
        drop(UnixListener::bind(host.at(&format!("/run/{name}"))).unwrap());
    }
    host.tuner().pin(&run).unwrap();
    // An inode that is in use is not given to another file.
    fs::hard_link(host.at("/run/pinned"), host.at("/run/kept")).unwrap();
    fs::remove_file(host.at("/run/pinned")).unwrap();
    drop(UnixListener::bind(host.at("/run/pinned")).unwrap());
    // One that is not may be: then it was written at another time, by a clock that may be slow.
    let reused = host.at("/run/reused");
    let at = || fs::metadata(&reused).unwrap().modified().unwrap();
    let before = at();
    while at() == before {
        fs::remove_file(&reused).unwrap();
        drop(UnixListener::bind(&reused).unwrap());
    }
    let undone = host.end(&run);
    let left = undone.iter().filter(|u| matches!(u.how, How::Left { .. }));
    assert_eq!(left.count(), 2, "{undone:?}");
    assert_eq!(host.read("/run/old"), "was there");
    assert!(host.at("/run/pinned").exists() && host.at("/run/reused").exists());
    assert!(!host.at("/run/ours").exists() && !host.at("/run/vsc/host").exists());
}

/// Nobody said which file it is: a journal of an earlier version, or all were killed before.
#[test]
fn a_socket_that_somebody_listens_on_is_no_leftover() {
    let host = Host::new("listening");
    let run = host.run(1);
    let all = ["dead", "alive", "file"].map(|name| {
        let path = format!("/run/{name}").into();
        change("machine", Act::Leftover { path })
    });
    host.begin(&run, &all).unwrap();
    drop(UnixListener::bind(host.at("/run/dead")).unwrap());
    let alive = UnixListener::bind(host.at("/run/alive")).unwrap();
    host.write("/run/file", "ours");
    host.kill(&run);
    let undone = host.tuner().replay().unwrap();
    let told = undone.iter().find(|u| u.target.ends_with("alive")).unwrap();
    assert!(told.to_string().contains("somebody else"), "{told}");
    drop(alive);
    let there = ["dead", "alive", "file"].map(|name| host.at(&format!("/run/{name}")).exists());
    assert_eq!(there, [false, true, false]);
}

#[test]
fn a_configuration_file_that_was_edited_meanwhile_is_left() {
    let host = Host::new("edited");
    let run = host.run(1);
    let changes = everything();
    host.write(GRUB, "something new\n");
    let begun = host.begin(&run, &changes[4..5]).unwrap();
    assert!(begun.told[0].complaint().unwrap().contains("plan again"));
    assert_eq!(host.read(GRUB), "something new\n");
    let run = host.run(2);
    host.begin(&run, &changes[5..6]).unwrap();
    host.write(MODPROBE, "options kvm_amd sev=1 nested=0\n");
    let undone = host.end(&run);
    assert!(matches!(undone[0].how, How::Left { .. }));
    assert!(host.at(MODPROBE).exists());
}

#[test]
fn no_run_fails_because_a_long_journal_cannot_be_made_short() {
    let host = Host::new("cannot-rewrite");
    let before = host.whole();
    let a = host.run(1);
    host.begin(&a, &everything()).unwrap();
    let in_the_way = host.at("/run/vsc/host/journal.new");
    fs::create_dir(&in_the_way).unwrap();
    let journal = host.at("/run/vsc/host/journal");
    while fs::metadata(&journal).unwrap().len() < 100_000 {
        let b = host.run(2);
        host.begin(&b, &everything()).unwrap();
        host.end(&b);
    }
    assert_eq!(host.tuner().status().unwrap().len(), everything().len());
    fs::remove_dir(in_the_way).unwrap();
    host.end(&a);
    assert_eq!(host.whole(), before);
}

/// Its number says nothing here: whoever has it is another process, or nobody has.
#[test]
fn a_run_of_another_pid_namespace_lives_as_long_as_its_lock() {
    let host = Host::new("namespace");
    let before = host.whole();
    let elsewhere = |pid, namespace| Run {
        namespace: Some(namespace),
        ..host.run(pid)
    };
    let (a, b, c) = (elsewhere(1, 1), elsewhere(2, 2), elsewhere(3, 3));
    let lasting = &everything()[4..5];
    assert!(lasting[0].act.is_lasting());
    let begun = host.begin(&a, lasting).unwrap();
    let other = host.begin(&b, &[set(SWAPPINESS, "0")]).unwrap();
    host.kill(&a);
    assert_eq!(host.tuner().replay().unwrap(), []);
    let dead = || {
        let active = host.tuner().status().unwrap();
        active.iter().map(|a| a.dead).collect::<Vec<_>>()
    };
    assert_eq!(dead(), [false; 2]);
    drop(other);
    // The process that has its number here is not it.
    assert_eq!(dead(), [true, false]);
    host.begin(&c, &[set(KSM, "1")]).unwrap();
    assert_eq!(host.read(SWAPPINESS).trim(), "60");
    drop(begun);
    host.tuner().replay().unwrap();
    assert_eq!(host.whole(), before);
}

#[test]
fn a_run_of_an_earlier_version_is_told_by_its_number() {
    let host = Host::new("earlier");
    let before = host.whole();
    let run = host.run(1);
    host.write("/processes/self/ns/pid", "");
    drop(host.begin(&run, &[set(SWAPPINESS, "0")]).unwrap());
    let journal = host.read("/run/vsc/host/journal");
    assert!(!journal.contains("namespace"), "{journal}");
    assert_eq!(host.tuner().replay().unwrap(), []);
    host.kill(&run);
    assert_eq!(host.tuner().replay().unwrap().len(), 1);
    assert_eq!(host.whole(), before);
    // Two that have the same number at the same time are two.
    let twin = |namespace| Run {
        namespace,
        ..run.clone()
    };
    let bytes = [
        twin(None).byte(),
        twin(Some(1)).byte(),
        twin(Some(2)).byte(),
    ];
    assert!(bytes[0] != bytes[1] && bytes[1] != bytes[2]);
    assert!(bytes.iter().all(|byte| *byte < 1 << 62));
}
