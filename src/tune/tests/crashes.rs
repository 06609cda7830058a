//! Killed between any two steps: nothing is lost.

use super::*;

/// How many steps something takes at most.
const MOST: u32 = 400;

fn everyone_gone(host: &Host) {
    for pid in 1..10 {
        fs::remove_dir_all(host.at(&format!("/processes/{pid}"))).ok();
    }
}

#[test]
fn a_run_that_is_killed_anywhere_is_put_back_and_so_is_whoever_puts_it_back() {
    let mut endings = 0;
    for first in 0..MOST {
        let mut second = 0;
        loop {
            let host = Host::new("crash");
            let before = host.whole();
            let run = host.run(1);
            let begun = crash::at(first, || host.begin(&run, &everything()).unwrap());
            if begun.is_some() {
                host.write("/run/left", "a file of the run");
            }
            host.kill(&run);
            // Then whoever puts it back.
            let replayed = crash::at(second, || host.tuner().replay().unwrap());
            if replayed.is_none() {
                host.tuner().replay().unwrap();
            }
            host.tuner().replay().unwrap();
            assert_eq!(
                host.whole(),
                before,
                "begun until {first}, put back until {second}"
            );
            match (begun, replayed) {
                (Some(_), Some(_)) => {
                    assert!(first > 30 && endings > 300, "{first} {endings}");
                    return;
                }
                (None, Some(_)) => break,
                (_, None) => {
                    second += 1;
                    endings += 1;
                }
            }
        }
    }
    panic!("more than {MOST} steps");
}

#[test]
fn a_run_beside_another_that_is_killed_keeps_what_it_has() {
    let changes = |by| vec![set(THP, "always"), more(by), everything()[7].clone()];
    for at in 0..MOST {
        let host = Host::new("beside");
        let before = host.whole();
        let (a, b) = (host.run(1), host.run(2));
        host.begin(&a, &changes(4)).unwrap();
        let killed = crash::at(at, || {
            host.begin(&b, &changes(8)).unwrap();
            host.tuner().end(&b).unwrap();
        });
        host.kill(&b);
        host.tuner().replay().unwrap();
        assert_eq!(host.read(THP), "always", "{at}");
        assert_eq!(host.read(PAGES).trim(), "7", "{at}");
        assert!(host.at("/run/group").is_dir(), "{at}");
        // The first one's end is cut off as well, wherever.
        for at in 0..MOST {
            if crash::at(at, || host.tuner().end(&a).unwrap()).is_some() {
                break;
            }
        }
        assert_eq!(host.whole(), before, "{at}");
        if killed.is_some() {
            assert!(at > 10, "{at}");
            return;
        }
        everyone_gone(&host);
    }
    panic!("more than {MOST} steps");
}

#[test]
fn a_journal_that_grew_long_is_rewritten_and_that_may_be_cut_off_too() {
    let host = Host::new("long");
    let before = host.whole();
    let a = host.run(1);
    host.begin(&a, &everything()).unwrap();
    let journal = host.at("/run/vsc/host/journal");
    let mut rewritten = false;
    for round in 0..300 {
        let b = host.run(2);
        crash::at(round % 37, || {
            host.begin(&b, &everything()).unwrap();
            host.tuner().end(&b).unwrap();
        });
        host.kill(&b);
        host.tuner().replay().unwrap();
        let long = |path: &Path| fs::metadata(path).unwrap().len();
        rewritten |= round > 0 && long(&journal) < 10_000 && round > 20;
        assert!(long(&journal) < 200_000);
        assert_eq!(host.tuner().status().unwrap().len(), everything().len());
    }
    assert!(rewritten);
    host.end(&a);
    assert_eq!(host.whole(), before);
}
