use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::super::{DiskLock, Driver, LockPlan, Place};
use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("vsc-lockspace-{name}-{}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
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

const DEMO: &str = "/var/lib/libvirt/images/demo.img";
const NAME: &str = "6f716e8c06fc109acd342e3c129a17ccf3c473c1c76363b543a1cbb55d1cd778";

fn demo(space: &Dir, write: bool) -> Result<Held, LockspaceError> {
    take(&space.0, NAME, write, Path::new(DEMO))
}

#[test]
fn the_file_is_virtlockds_and_goes_with_the_lock() {
    let space = Dir::new("file");
    let held = demo(&space, true).unwrap();
    let meta = fs::metadata(space.0.join(NAME)).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (0, 0o600));
    for write in [true, false] {
        let refused = demo(&space, write).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!(
                "E-LOCKED: {DEMO} is held by pid {}, since",
                std::process::id()
            )),
            "{refused}"
        );
        assert!(refused.contains(&format!("through {}", space.0.join(NAME).display())));
    }
    drop(held);
    assert_eq!(space.names(), [""; 0]);

    // The last one of those that share it removes it.
    let (one, two) = (demo(&space, false).unwrap(), demo(&space, false).unwrap());
    assert!(demo(&space, true).is_err());
    drop(one);
    assert_eq!(space.names(), [NAME]);
    drop(two);
    assert_eq!(space.names(), [""; 0]);
}

/// virtlockd's lock: a POSIX one of another process.
#[test]
fn posix_locks_of_others_are_in_the_way() {
    let space = Dir::new("posix");
    fs::write(space.0.join(NAME), "").unwrap();
    let program = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,0)\n\
                   print('held',flush=True)\nsys.stdin.read()";
    let spawned = Command::new("python3")
        .args(["-c", program])
        .arg(space.0.join(NAME))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        return; // tests/locks.rs has the same with virtlockd itself.
    };
    let mut line = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    let refused = demo(&space, true).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("pid {}", child.id())),
        "{refused}"
    );
    let swept = sweep(&space.0, Space::File, false).unwrap();
    assert!(
        matches!(&swept[..], [(_, Swept::Held { by: Some(_) })]),
        "{swept:?}"
    );
    drop(child.stdin.take());
    child.wait().unwrap();
    drop(demo(&space, true).unwrap());
    assert_eq!(space.names(), [""; 0]);
}

#[test]
fn what_strangers_put_there_is_not_followed() {
    let space = Dir::new("strange");
    let victim = space.0.join("victim");
    fs::write(&victim, "precious").unwrap();
    let path = space.0.join(NAME);
    symlink(&victim, &path).unwrap();
    let refused = demo(&space, true).unwrap_err().to_string();
    assert!(
        refused.contains("is a symbolic link, not a lock file"),
        "{refused}"
    );
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let refused = demo(&space, true).unwrap_err().to_string();
    assert!(refused.contains("is a pipe"), "{refused}");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let refused = demo(&space, true).unwrap_err().to_string();
    assert!(refused.contains("is a directory"), "{refused}");
    fs::remove_dir(&path).unwrap();
    symlink(&victim, space.0.join(CONFIG)).unwrap();
    assert!(agree(&space.0, &Config::default()).is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    let missing = take(&space.0.join("none"), NAME, true, Path::new(DEMO)).unwrap_err();
    assert!(matches!(missing, LockspaceError::Directory(..)));
}

#[test]
fn hosts_that_lock_in_another_way_are_told() {
    let space = Dir::new("config");
    let files = Config {
        file: Some(space.0.clone()),
        ..Config::default()
    };
    agree(&space.0, &files).unwrap();
    agree(&space.0, &files).unwrap();
    // Where a host mounts it is its own affair.
    let elsewhere = Config {
        file: Some("/mnt/locks".into()),
        ..Config::default()
    };
    agree(&space.0, &elsewhere).unwrap();
    assert_eq!(space.names(), [CONFIG]);
    assert_eq!(
        fs::metadata(space.0.join(CONFIG)).unwrap().mode() & 0o222,
        0o200
    );
    let both = Config {
        lvm: Some("/lvm".into()),
        ..files.clone()
    };
    let refused = agree(&space.0, &both).unwrap_err().to_string();
    assert!(
        refused.contains(&files.line()) && refused.contains(&both.line()),
        "{refused}"
    );
    assert_ne!(files.line()[..64], both.line()[..64]);
    // Half a file is another configuration, not none.
    fs::write(space.0.join(CONFIG), "# x\n12").unwrap();
    assert!(matches!(
        agree(&space.0, &files),
        Err(LockspaceError::Config { .. })
    ));
}

#[test]
fn a_file_that_its_owner_removes_meanwhile_is_no_lock() {
    let space = Dir::new("race");
    // Each takes, looks whether it is alone, and releases, which removes the file under the others.
    let inside = std::sync::atomic::AtomicU32::new(0);
    let taken = std::sync::atomic::AtomicU32::new(0);
    use std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    if let Ok(held) = demo(&space, true) {
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "two hold it");
                        taken.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        drop(held);
                    }
                }
            });
        }
    });
    assert!(taken.into_inner() > 0);
    assert_eq!(space.names(), [""; 0]);
}

#[test]
fn of_two_that_share_a_file_and_end_at_once_one_removes_it() {
    let space = Dir::new("sharers");
    let (one, two) = (demo(&space, false).unwrap(), demo(&space, false).unwrap());
    // Both look before either file is closed.
    assert!(!one.alone());
    assert!(two.alone());
    drop(one);
    assert_eq!(space.names(), [NAME]);
    drop(two);
    assert_eq!(space.names(), [""; 0]);
}

#[test]
fn only_what_nobody_has_is_swept() {
    let space = Dir::new("sweep");
    let other = NAME.replace('6', "7");
    let full = NAME.replace('6', "8");
    fs::write(space.0.join(&other), "").unwrap();
    fs::write(space.0.join(&full), "x").unwrap();
    fs::write(space.0.join("important"), "").unwrap();
    let held = demo(&space, true).unwrap();
    let states = |dry| {
        sweep(&space.0, Space::File, dry)
            .unwrap()
            .into_iter()
            .map(|(_, s)| s)
            .collect::<Vec<_>>()
    };
    assert!(matches!(
        &states(true)[..],
        [Swept::Held { .. }, Swept::Stale, Swept::Kept { .. }]
    ));
    assert!(matches!(
        &states(false)[..],
        [Swept::Held { .. }, Swept::Removed, Swept::Kept { .. }]
    ));
    assert_eq!(space.names(), [NAME, &full, "important"]);
    drop(held);
    assert!(sweep(&space.0, Space::Lvm, false).unwrap().is_empty());
}

#[test]
fn a_plan_takes_all_or_nothing() {
    let space = Dir::new("plan");
    let image = space.0.join("image");
    fs::write(&image, [0; 512]).unwrap();
    let disk = |name: &str, besides| DiskLock {
        disk: name.into(),
        image: image.clone(),
        access: "rw".into(),
        bytes: String::new(),
        besides,
        alone: true,
    };
    let in_space = |name: &str| Place::Lockspace {
        directory: space.0.clone(),
        name: name.into(),
    };
    let mut plan = LockPlan {
        driver: Driver::Lockd,
        config: Config {
            file: Some(space.0.clone()),
            ..Config::default()
        },
        disks: vec![disk("a", vec![Place::Image, in_space(NAME)])],
        sanlock: None,
    };
    let guard = plan.take().unwrap();
    assert!(take_image(&image, true).is_err() && demo(&space, true).is_err());
    drop(guard);
    plan.disks.push(disk("b", vec![in_space(NAME)]));
    assert!(plan.take().is_err());
    assert_eq!(space.names(), ["image", CONFIG]);
    drop(take_image(&image, true).unwrap());
}
