//! Users in any order, killed anywhere, and others who change the same things.

use super::*;

#[derive(Debug, Clone)]
enum Event {
    /// A user begins, with one of two wishes, and is killed at a step or not.
    Begin(u32, bool, Option<u32>),
    End(u32, Option<u32>),
    Kill(u32),
    Foreign(u8),
    More(u8),
    Replay,
}

fn event() -> impl Strategy<Value = Event> {
    let killed = || prop_oneof![3 => Just(None), 1 => (0u32..60).prop_map(Some)];
    prop_oneof![
        4 => (1u32..5, any::<bool>(), killed()).prop_map(|(u, w, k)| Event::Begin(u, w, k)),
        3 => (1u32..5, killed()).prop_map(|(u, k)| Event::End(u, k)),
        1 => (1u32..5).prop_map(Event::Kill),
        1 => any::<u8>().prop_map(Event::Foreign),
        1 => (0u8..9).prop_map(Event::More),
        1 => Just(Event::Replay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: a live user's values are there, and in the end there is what others wrote last.
    #[test]
    fn in_the_end_there_is_what_others_wrote(events in prop::collection::vec(event(), 0..40)) {
        let host = Host::new("random");
        let mut theirs = "60".to_owned();
        let mut pages = 3u64;
        // Who lives, what they have of swappiness (unless somebody took it), and of pages.
        let mut live: BTreeMap<u32, (Run, Option<&str>, u64)> = BTreeMap::new();
        for event in events {
            match event {
                Event::Begin(user, wish, killed) if !live.contains_key(&user) => {
                    let wanted = if wish { "0" } else { "35" };
                    let run = host.run(user);
                    let changes = [set(SWAPPINESS, wanted), more(u64::from(user))];
                    let begin = || host.begin(&run, &changes).unwrap();
                    let begun = match killed {
                        Some(at) => crash::at(at, begin),
                        None => Some(begin()),
                    };
                    match begun {
                        Some(begun) => {
                            let has = begun.told[0].complaint().is_none().then_some(wanted);
                            live.insert(user, (run, has, u64::from(user)));
                        }
                        None => host.kill(&run),
                    }
                }
                Event::End(user, killed) => {
                    if let Some((run, ..)) = live.remove(&user) {
                        let end = || host.tuner().end(&run).unwrap();
                        match killed {
                            Some(at) => drop(crash::at(at, end)),
                            None => drop(end()),
                        }
                        host.kill(&run);
                    }
                }
                Event::Kill(user) => {
                    if let Some((run, ..)) = live.remove(&user) {
                        host.kill(&run);
                    }
                }
                Event::Foreign(value) => {
                    theirs = format!("foreign{value}");
                    host.write(SWAPPINESS, &theirs);
                    for (_, has, _) in live.values_mut() {
                        *has = None;
                    }
                }
                Event::More(by) => {
                    // Not between a kill and what puts it right: whose pages were whose is not known then.
                    host.tuner().replay().unwrap();
                    let count: u64 = host.read(PAGES).trim().parse().unwrap();
                    host.write(PAGES, &format!("{}\n", count + u64::from(by)));
                    pages += u64::from(by);
                }
                Event::Begin(..) => {}
                Event::Replay => drop(host.tuner().replay().unwrap()),
            }
            for (_, has, _) in live.values() {
                if let Some(has) = has {
                    let now = host.read(SWAPPINESS);
                    prop_assert_eq!(now.trim(), *has);
                }
            }
        }
        host.tuner().replay().unwrap();
        let ours: u64 = live.values().map(|(.., pages)| pages).sum();
        let count: u64 = host.read(PAGES).trim().parse().unwrap();
        prop_assert_eq!(count, pages + ours);
        for (run, ..) in live.values() {
            host.end(run);
        }
        host.tuner().replay().unwrap();
        let now = host.read(SWAPPINESS);
        prop_assert_eq!(now.trim(), theirs);
        let count: u64 = host.read(PAGES).trim().parse().unwrap();
        prop_assert_eq!(count, pages);
        prop_assert!(!host.at("/run/vsc/host").exists());
    }
}
