//! The journal, users, crashes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::place::Place;
use super::touch::crash;
use super::unit::Units;
use super::*;
use crate::facts::Root;

mod crashes;
mod journal;
mod kernel;
mod random;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const KSM: &str = "/sys/kernel/mm/ksm/run";
const SWAPPINESS: &str = "/proc/sys/vm/swappiness";
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const GRUB: &str = "/etc/default/grub";
const MODPROBE: &str = "/etc/modprobe.d/vsc-sev.conf";
const BOOT: &str = "boot-1";

/// A host in a directory.
struct Host {
    dir: PathBuf,
    units: Rc<RefCell<BTreeMap<String, UnitState>>>,
}

/// Units that are only remembered.
#[derive(Debug)]
struct Remembered(Rc<RefCell<BTreeMap<String, UnitState>>>);

thread_local! {
    /// What somebody else does when next somebody asks for a unit.
    static MEANWHILE: RefCell<Option<(Tuner, Run)>> = const { RefCell::new(None) };
}

impl Units for Remembered {
    fn state(&self, name: &str) -> Result<UnitState, error::Cannot> {
        if let Some((tuner, run)) = MEANWHILE.take() {
            tuner.end(&run).unwrap();
        }
        let state = self.0.borrow().get(name).copied();
        state.ok_or(error::Cannot::Unit {
            name: name.into(),
            why: "there is none".into(),
        })
    }

    fn set(&self, name: &str, to: UnitState) -> Result<(), error::Cannot> {
        if let Some(enabled) = to.enabled {
            touch::step();
            self.0.borrow_mut().get_mut(name).unwrap().enabled = Some(enabled);
        }
        if let Some(active) = to.active {
            touch::step();
            self.0.borrow_mut().get_mut(name).unwrap().active = Some(active);
        }
        Ok(())
    }
}

impl Host {
    fn new(name: &str) -> Self {
        let thread = std::thread::current().id();
        let dir =
            std::env::temp_dir().join(format!("vsc-tune-{name}-{}-{thread:?}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        let state = |active, enabled| UnitState {
            active: Some(active),
            enabled: Some(enabled),
        };
        let units = [("ksm.service", state(false, false))].map(|(n, s)| (n.to_owned(), s));
        let host = Host {
            dir,
            units: Rc::new(RefCell::new(units.into())),
        };
        for (path, text) in [
            (THP, "always [madvise] never\n"),
            (KSM, "0\n"),
            (SWAPPINESS, "60\n"),
            (PAGES, "3\n"),
            (
                GRUB,
                "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
            ),
            ("/proc/sys/kernel/random/boot_id", BOOT),
        ] {
            host.write(path, text);
        }
        for directory in ["/run", "/var/lib", "/etc/modprobe.d", "/processes"] {
            fs::create_dir_all(host.at(directory)).unwrap();
        }
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.join(&path[1..])
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn tuner(&self) -> Tuner {
        Tuner {
            root: Root(self.dir.clone()),
            proc: self.at("/processes"),
            volatile: Some(Place::new(self.at("/run"), true)),
            lasting: Some(Place::new(self.at("/var/lib"), false)),
            units: Box::new(Remembered(Rc::clone(&self.units))),
        }
    }

    /// A process that lives.
    fn run(&self, pid: u32) -> Run {
        static STARTS: AtomicU64 = AtomicU64::new(1000);
        let started = STARTS.fetch_add(1, Ordering::Relaxed);
        let fields = "0 ".repeat(18);
        self.write(
            &format!("/processes/{pid}/stat"),
            &format!("{pid} (x) S {fields}{started} 0"),
        );
        Run {
            pid,
            started,
            boot: BOOT.into(),
            namespace: None,
        }
    }

    fn kill(&self, run: &Run) {
        fs::remove_dir_all(self.at(&format!("/processes/{}", run.pid))).ok();
    }

    fn begin(&self, run: &Run, changes: &[Change]) -> Result<Begun, TuneError> {
        let name = format!("vm{}", run.pid);
        let begun = self
            .tuner()
            .begin_as(run, changes, &name, false, |_| Ok(()));
        begun.map(|(begun, _)| begun)
    }

    fn end(&self, run: &Run) -> Vec<Undone> {
        let undone = self.tuner().end(run).unwrap();
        self.kill(run);
        undone
    }

    /// Every file and directory but processes, with mode and content; and the units.
    fn whole(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, String> = self
            .units
            .borrow()
            .iter()
            .map(|(name, state)| (name.clone(), format!("{state:?}")))
            .collect();
        let mut places = vec![self.dir.clone()];
        while let Some(place) = places.pop() {
            for entry in fs::read_dir(place).unwrap() {
                let path = entry.unwrap().path();
                // The directory of runs stays.
                let shared =
                    path == self.at("/run/vsc") && fs::read_dir(&path).unwrap().count() == 0;
                if path == self.at("/processes") || shared {
                    continue;
                }
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content = match metadata.is_dir() {
                    true => "directory".into(),
                    false => fs::read_to_string(&path).unwrap(),
                };
                if metadata.is_dir() {
                    places.push(path.clone());
                }
                let name = path.strip_prefix(&self.dir).unwrap();
                all.insert(
                    name.display().to_string(),
                    format!("{:o} {content}", metadata.mode()),
                );
            }
        }
        all
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

fn set(path: &str, new: &str) -> Change {
    Change {
        what: format!("host.{}", Path::new(path).file_name().unwrap().display()),
        act: Act::Write {
            path: path.into(),
            old: String::new(),
            new: new.into(),
        },
        required: false,
    }
}

fn more(by: u64) -> Change {
    Change {
        what: "memory.hugepages".into(),
        act: Act::Add {
            path: PAGES.into(),
            by,
        },
        required: false,
    }
}

fn change(what: &str, act: Act) -> Change {
    Change {
        what: what.into(),
        act,
        required: false,
    }
}

/// One of each kind.
fn everything() -> Vec<Change> {
    let grub = "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n";
    vec![
        set(THP, "always"),
        set(KSM, "1"),
        set(SWAPPINESS, "0"),
        more(10),
        change(
            "sev.enable",
            Act::File {
                path: GRUB.into(),
                old: Some(grub.into()),
                new: grub.replace("quiet", "quiet mem_encrypt=on"),
                mode: 0o644,
            },
        ),
        change(
            "sev.enable",
            Act::File {
                path: MODPROBE.into(),
                old: None,
                new: "options kvm_amd sev=1\n".into(),
                mode: 0o640,
            },
        ),
        change(
            "host.ksm",
            Act::Unit {
                name: "ksm.service".into(),
                was: UnitState::default(),
                now: UnitState {
                    active: Some(true),
                    enabled: Some(true),
                },
            },
        ),
        change(
            "limits",
            Act::Directory {
                path: "/run/group".into(),
            },
        ),
        change(
            "machine",
            Act::Leftover {
                path: "/run/left".into(),
            },
        ),
    ]
}

#[test]
fn everything_is_done_and_undone() {
    let host = Host::new("all");
    let before = host.whole();
    let run = host.run(100);
    let begun = host.begin(&run, &everything()).unwrap();
    assert_eq!(begun.run.as_ref(), Some(&run));
    assert!(
        begun.told.iter().all(|told| told.verdict == Verdict::Done),
        "{:?}",
        begun.told
    );
    assert_eq!(host.read(THP), "always");
    assert_eq!(host.read(KSM), "1");
    assert_eq!(host.read(PAGES), "13\n");
    assert!(host.read(GRUB).contains("mem_encrypt"));
    let made = fs::metadata(host.at(MODPROBE)).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o640);
    assert!(host.at("/run/group").is_dir());
    host.write("/run/left", "socket");
    let status = host.tuner().status().unwrap();
    assert_eq!(status.len(), everything().len());
    assert!(status.iter().all(|s| s.ours && !s.dead), "{status:?}");
    let journal = fs::metadata(host.at("/run/vsc/host/journal")).unwrap();
    assert_eq!(journal.permissions().mode() & 0o777, 0o600);
    let directory = fs::metadata(host.at("/run/vsc/host")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    let undone = host.end(&run);
    assert!(
        undone.iter().all(|u| matches!(u.how, How::Back { .. })),
        "{undone:?}"
    );
    assert_eq!(host.whole(), before);
}

#[test]
fn nothing_to_do_touches_nothing() {
    let host = Host::new("nothing");
    let before = host.whole();
    let run = host.run(100);
    for changes in [vec![], vec![set(THP, "madvise"), set(KSM, "0")]] {
        let begun = host.begin(&run, &changes).unwrap();
        assert_eq!(begun.run, None);
        assert!(begun.told.iter().all(|t| t.verdict == Verdict::Already));
        assert_eq!(host.whole(), before);
    }
    // Nor does what cannot be done.
    let begun = host.begin(&run, &[set("/sys/none", "1")]).unwrap();
    assert_eq!(begun.told[0].complaint().unwrap(), {
        format!("there is no {}", host.at("/sys/none").display())
    });
    assert_eq!(host.whole(), before);
    assert_eq!(host.tuner().status().unwrap(), []);
}

#[test]
fn the_last_one_out_restores() {
    let host = Host::new("users");
    let before = host.whole();
    let (a, b, c) = (host.run(1), host.run(2), host.run(3));
    host.begin(&a, &[set(SWAPPINESS, "0"), more(2)]).unwrap();
    let told = host.begin(&b, &[set(SWAPPINESS, "0"), more(5)]).unwrap();
    let Verdict::Joined { with } = &told.told[0].verdict else {
        panic!("{told:?}");
    };
    assert_eq!(with.to_string(), "the run of vm1, pid 1");
    // Whoever wants it otherwise has to wait.
    let told = host.begin(&c, &[set(SWAPPINESS, "35")]).unwrap();
    assert!(matches!(&told.told[0].verdict, Verdict::Held { by } if by.pid == 1));
    assert_eq!(told.run, None);
    assert_eq!(host.read(PAGES), "10\n");
    let undone = host.end(&a);
    assert!(
        undone
            .iter()
            .any(|u| matches!(&u.how, How::Used { by } if by.pid == 2))
    );
    assert_eq!(
        (host.read(SWAPPINESS), host.read(PAGES)),
        ("0".into(), "8\n".into())
    );
    host.end(&b);
    assert_eq!(host.whole(), before);
}

#[test]
fn what_somebody_else_changed_is_left_and_becomes_the_value_before() {
    let host = Host::new("foreign");
    let (a, b) = (host.run(1), host.run(2));
    host.begin(&a, &[set(SWAPPINESS, "0"), set(KSM, "1")])
        .unwrap();
    host.write(SWAPPINESS, "10\n");
    assert!(!host.tuner().status().unwrap()[0].ours);
    host.begin(&b, &[set(SWAPPINESS, "0")]).unwrap();
    // The first one has again what it wants.
    host.end(&b);
    assert_eq!(host.read(SWAPPINESS), "0");
    host.write(KSM, "2\n");
    let undone = host.end(&a);
    let left = undone.iter().find(|u| u.target == Path::new(KSM)).unwrap();
    assert_eq!(
        left.how,
        How::Left {
            now: "2".into(),
            before: "0".into(),
            kept: false
        }
    );
    assert!(left.is_warning());
    assert_eq!(
        (host.read(SWAPPINESS), host.read(KSM)),
        ("10\n".into(), "2\n".into())
    );
    assert!(!host.at("/run/vsc/host").exists());
}

#[test]
fn a_counter_that_others_use_too() {
    for (meanwhile, after) in [
        (None, "3"),
        (Some("20"), "10"),
        (Some("5"), "3"),
        (Some("1"), "1"),
    ] {
        let host = Host::new("counter");
        let run = host.run(1);
        host.begin(&run, &[more(10)]).unwrap();
        if let Some(count) = meanwhile {
            host.write(PAGES, count);
        }
        host.end(&run);
        assert_eq!(host.read(PAGES).trim(), after, "{meanwhile:?}");
    }
}

#[test]
fn what_is_required_and_fails_leaves_nothing() {
    let host = Host::new("required");
    let before = host.whole();
    let run = host.run(1);
    let mut changes = everything();
    // A directory without the one above it fails after the others were made.
    changes.push(Change {
        required: true,
        ..change(
            "limits.memory_max",
            Act::Unit {
                name: "no.service".into(),
                was: UnitState::default(),
                now: UnitState::default(),
            },
        )
    });
    let error = host.begin(&run, &changes).unwrap_err().to_string();
    assert_eq!(
        error,
        "limits.memory_max cannot be had: the unit no.service: there is none"
    );
    assert_eq!(host.whole(), before);
}

#[test]
fn a_failure_in_the_middle_undoes_what_was_done() {
    let host = Host::new("middle");
    let before = host.whole();
    let run = host.run(1);
    let mut changes = everything();
    let path = PathBuf::from("/run/group/none");
    let (old, new) = ("0".into(), "1".into());
    changes.push(Change {
        required: true,
        // It is said to come with the directory that is made before it, and does not.
        ..change("limits.pids_max", Act::Write { path, old, new })
    });
    let error = host.begin(&run, &changes).unwrap_err();
    assert!(matches!(&error, TuneError::Required { what, .. } if what == "limits.pids_max"));
    assert!(
        error
            .to_string()
            .contains("/run/group/none cannot be set to 1"),
        "{error}"
    );
    assert_eq!(host.whole(), before);
    // A guard that cannot be started is the same.
    let refused = host.tuner().begin_as(&run, &everything(), "x", false, |_| {
        Err::<(), _>(std::io::ErrorKind::OutOfMemory.into())
    });
    assert!(matches!(refused, Err(TuneError::Warden(_))));
    assert_eq!(host.whole(), before);
}

#[test]
fn a_pid_that_is_used_again_and_a_reboot_are_noticed() {
    let host = Host::new("reuse");
    let before = host.whole();
    let run = host.run(1);
    host.begin(&run, &everything()).unwrap();
    assert_eq!(host.tuner().replay().unwrap(), []);
    host.write(
        "/processes/1/stat",
        &format!("1 (x) S {}99 0", "0 ".repeat(18)),
    );
    assert!(host.tuner().status().unwrap().iter().all(|s| s.dead));
    host.tuner().replay().unwrap();
    assert_eq!(host.whole(), before);
    // After a reboot the kernel's values are its own again; files are not.
    let run = host.run(2);
    host.begin(&run, &everything()).unwrap();
    host.write("/proc/sys/kernel/random/boot_id", "boot-2");
    host.write(SWAPPINESS, "60\n");
    let undone = host.tuner().replay().unwrap();
    let how = |path: &str| undone.iter().find(|u| u.target == Path::new(path)).unwrap();
    assert_eq!(how(SWAPPINESS).how, How::Rebooted);
    assert!(matches!(how(GRUB).how, How::Back { .. }));
    assert_eq!(host.read(KSM), "1", "not ours any more");
    assert!(!host.at(MODPROBE).exists());
    assert!(!host.at("/run/vsc/host").exists() && !host.at("/var/lib/vsc").exists());
}

#[test]
fn what_stands_stays_until_it_is_undone() {
    let host = Host::new("standing");
    let before = host.whole();
    let run = host.run(1);
    let tuner = host.tuner();
    tuner
        .begin_as(&run, &everything(), "desktop", true, |_| Ok(()))
        .unwrap();
    host.kill(&run);
    assert_eq!(tuner.replay().unwrap(), []);
    let other = host.run(2);
    let told = host
        .begin(&other, &[set(THP, "never"), set(KSM, "1")])
        .unwrap();
    assert_eq!(
        told.told[0].complaint().unwrap(),
        "`host apply` of desktop needs it as it is"
    );
    tuner.undo(Foreign::Keep, &[]).unwrap();
    assert_eq!(host.read(KSM), "1", "still used");
    host.end(&other);
    assert_eq!(host.whole(), before);
    // By force also where somebody else has changed it.
    tuner
        .begin_as(&run, &everything(), "desktop", true, |_| Ok(()))
        .unwrap();
    host.write(SWAPPINESS, "17\n");
    tuner.undo(Foreign::Force, &[]).unwrap();
    assert_eq!(host.whole(), before);
}

#[test]
fn a_run_that_ends_while_another_looks_takes_nothing_from_it() {
    let host = Host::new("meanwhile");
    let before = host.whole();
    let (a, b) = (host.run(1), host.run(2));
    host.begin(&a, &[set(SWAPPINESS, "0")]).unwrap();
    // All is as it wants it when it looks first, and by nobody when it looks again.
    MEANWHILE.set(Some((host.tuner(), a)));
    let stopped = UnitState {
        active: Some(false),
        enabled: None,
    };
    let unit = Act::Unit {
        name: "ksm.service".into(),
        was: stopped,
        now: stopped,
    };
    let begun = host.begin(&b, &[set(SWAPPINESS, "0"), change("host.ksm", unit)]);
    assert_eq!(begun.unwrap().told[0].verdict, Verdict::Done);
    assert_eq!(host.read(SWAPPINESS), "0");
    host.end(&b);
    assert_eq!(host.whole(), before);
}
