//! What the kernel and other users of the host do to a run: little memory, merged pages, full disks, held locks.

use super::*;

const RULE: &str = "/sys/kernel/mm/ksm/merge_across_nodes";

#[test]
fn fewer_huge_pages_than_are_required_are_an_error_with_numbers_and_are_given_back() {
    let host = Host::new("fewer");
    let most = Path::new(PAGES).with_file_name("most");
    host.write(most.to_str().unwrap(), "7\n");
    let free = Path::new(PAGES).with_file_name("free_hugepages");
    host.write(free.to_str().unwrap(), "5\n");
    let before = host.whole();
    let run = host.run(1);
    let required = Change {
        required: true,
        ..more(10)
    };
    let error = host
        .begin(&run, &[set(SWAPPINESS, "0"), required, set(KSM, "1")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("memory.hugepages cannot be had: the kernel gave 4 of 10 pages, 5 are free"),
        "{error}"
    );
    assert_eq!(host.whole(), before);
    // What is merely recommended is taken as it comes, and goes back.
    let begun = host.begin(&run, &[more(10)]).unwrap();
    assert!(matches!(
        begun.told[0].verdict,
        Verdict::Less { got: 4, .. }
    ));
    assert_eq!(host.read(PAGES).trim(), "7");
    host.end(&run);
    assert_eq!(host.whole(), before);
}

#[test]
fn merging_goes_on_whoever_is_killed_while_pages_are_taken_apart() {
    let mut stopped = [false; 2];
    for at in 0..200 {
        let host = Host::new("apart");
        host.write(KSM, "1\n");
        host.write(RULE, "1\n");
        host.write("/sys/kernel/mm/ksm/pages_shared", "9\n");
        host.write("/sys/kernel/mm/ksm/pages_sharing", "9\n");
        host.write("/proc/meminfo", "MemAvailable: 4096 kB\n");
        let before = host.whole();
        let run = host.run(1);
        // The rule alone: nobody has asked for `run` to be changed.
        let begun = crash::at(at, || host.begin(&run, &[set(RULE, "0")]).unwrap());
        stopped[0] |= host.read(KSM).trim() == "2";
        let ended = begun.and_then(|begun| {
            assert_eq!(begun.told[0].verdict, Verdict::Done, "{at}");
            assert_eq!(
                (host.read(KSM).trim(), host.read(RULE).trim()),
                ("1", "0"),
                "{at}"
            );
            crash::at(at, || host.tuner().end(&run).unwrap())
        });
        stopped[1] |= host.read(KSM).trim() == "2";
        host.kill(&run);
        host.tuner().replay().unwrap();
        let text = |path: &str| host.read(path).trim().to_owned();
        assert_eq!((text(KSM), text(RULE)), ("1".into(), "1".into()), "{at}");
        // The value, if not the blanks around it, and no journal.
        host.write(KSM, "1\n");
        assert_eq!(host.whole(), before, "{at}");
        if ended.is_some() {
            assert_eq!(stopped, [true; 2], "nobody was killed at the point");
            return;
        }
    }
    panic!("more than 200 steps");
}

#[test]
fn a_lock_that_is_held_is_told_with_its_holder() {
    let host = Host::new("locked");
    let run = host.run(1);
    host.begin(&run, &[set(SWAPPINESS, "0")]).unwrap();
    let directory = fs::File::open(host.at("/run/vsc/host")).unwrap();
    directory.lock().unwrap();
    let mut tuner = host.tuner();
    tuner.volatile.as_mut().unwrap().patience = Some(std::time::Duration::from_millis(10));
    let error = tuner.status().unwrap_err();
    let TuneError::Busy {
        holder: Some(holder),
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(holder.pid, std::process::id());
    let way_out = format!("`kill -KILL {}`", holder.pid);
    assert!(error.to_string().contains(&way_out), "{error}");
    drop(directory);
    host.end(&run);
}

#[test]
fn what_has_an_undoing_of_its_own_is_not_undone_with_the_rest() {
    let host = Host::new("purposes");
    let before = host.whole();
    let (sev, apply) = (host.run(1), host.run(2));
    let tuner = host.tuner();
    let (all, stands) = (everything(), true);
    tuner
        .begin_as(&sev, &all[4..6], "sev enable", stands, |_| Ok(()))
        .unwrap();
    let enabled = host.whole();
    tuner
        .begin_as(&apply, &all[..4], "desktop", stands, |_| Ok(()))
        .unwrap();
    host.kill(&sev);
    host.kill(&apply);
    for foreign in [Foreign::Keep, Foreign::Force] {
        tuner.undo(foreign, &["sev.enable"]).unwrap();
        let kept = host.whole();
        assert_eq!(
            kept.get("etc/default/grub"),
            enabled.get("etc/default/grub")
        );
        assert_eq!(host.read(SWAPPINESS), "60\n");
        assert_eq!(tuner.kept("sev.enable").unwrap().len(), 2);
    }
    tuner.undo_kept("sev.enable", Foreign::Forget).unwrap();
    assert_eq!(host.whole(), before);
}

#[test]
fn books_that_cannot_be_begun_leave_nothing() {
    let host = Host::new("unbegun");
    let before = host.whole();
    let run = host.run(1);
    crash::FULL.set(true);
    let outcome = host.begin(&run, &everything());
    crash::FULL.set(false);
    assert!(outcome.is_err());
    assert_eq!(host.whole(), before);
    assert!(!host.tuner().is_used());
}

#[test]
fn a_full_disk_keeps_nothing_from_being_put_back_but_what_needs_a_note() {
    let host = Host::new("full");
    let before = host.whole();
    let run = host.run(1);
    host.begin(&run, &everything()).unwrap();
    crash::FULL.set(true);
    host.tuner().end(&run).unwrap_err();
    crash::FULL.set(false);
    assert_eq!(host.read(THP), "always [madvise] never\n");
    assert!(!host.at(MODPROBE).exists());
    assert_eq!(host.read(PAGES).trim(), "13", "it cannot be noted down");
    host.end(&run);
    assert_eq!(host.whole(), before);
}

#[test]
fn a_file_that_would_be_put_back_by_halves_is_not_touched() {
    let host = Host::new("long-file");
    let long = "# comment\n".repeat(7000);
    host.write(GRUB, &long);
    let run = host.run(1);
    let act = Act::File {
        path: GRUB.into(),
        old: Some(long[..64 << 10].into()),
        new: "short\n".into(),
        mode: 0o644,
    };
    let begun = host.begin(&run, &[change("sev.enable", act)]).unwrap();
    let why = begun.told[0].complaint().unwrap();
    assert!(why.contains("more than 64 KiB"), "{why}");
    assert_eq!(host.read(GRUB), long);
}

#[test]
fn the_journal_of_another_user_is_nothing_to_one_who_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = Host::new("others");
    let directory = host.at("/run/vsc/host");
    fs::create_dir_all(&directory).unwrap();
    for path in [host.at("/run/vsc"), directory] {
        std::os::unix::fs::chown(path, Some(65534), None).unwrap();
    }
    let tuner = host.tuner();
    assert!(!tuner.is_used());
    assert_eq!(tuner.status().unwrap(), []);
    assert_eq!(tuner.replay().unwrap(), []);
    let refused = host.begin(&host.run(1), &[set(KSM, "1")]).unwrap_err();
    assert!(matches!(refused, TuneError::Stranger { .. }));
}

#[test]
fn pages_of_nodes_and_of_the_host_are_the_same_pages() {
    let node = |n: u32| {
        format!("/sys/devices/system/node/node{n}/hugepages/hugepages-2048kB/nr_hugepages")
    };
    let beside = |path: &str, name: &str| {
        let path = Path::new(path).with_file_name(name);
        path.to_str().unwrap().to_owned()
    };
    // Who begins first, who ends first, and what somebody else adds meanwhile.
    for (first, last, foreign) in [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (1, 1, 0),
        (0, 0, 6),
        (1, 0, 6),
    ] {
        let host = Host::new("nodes");
        let (a, b) = (node(0), node(1));
        for node in [&a, &b] {
            host.write(node, "5");
            host.write(&beside(node, "whole"), host.at(PAGES).to_str().unwrap());
        }
        host.write(PAGES, "10");
        let nodes = format!("{}\n{}\n", host.at(&a).display(), host.at(&b).display());
        host.write(&beside(PAGES, "nodes"), &nodes);
        let before = host.whole();
        let of_node = change(
            "memory.hugepages",
            Act::Add {
                path: a.clone().into(),
                by: 4,
            },
        );
        let changes = [more(10), of_node];
        let runs = [host.run(1), host.run(2)];
        for n in [first, 1 - first] {
            host.begin(&runs[n], &changes[n..=n]).unwrap();
        }
        assert_eq!(host.read(PAGES), "24");
        if foreign > 0 {
            host.write(
                &a,
                &(host.read(&a).parse::<u32>().unwrap() + foreign).to_string(),
            );
            host.write(PAGES, &(24 + foreign).to_string());
        }
        for n in [last, 1 - last] {
            host.end(&runs[n]);
        }
        let case = format!("{first} begins, {last} ends, {foreign} more");
        assert_eq!(host.read(PAGES), (10 + foreign).to_string(), "{case}");
        if foreign == 0 {
            assert_eq!(host.whole(), before, "{case}");
        }
    }
}
