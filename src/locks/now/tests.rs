use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::locks::lockspace;

fn access(write: bool, lock: lock::Lock) -> Access {
    Access {
        write,
        resize: false,
        lock,
        device: false,
        flock: false,
    }
}

/// What the kernel shows of the locks on a file; this process's own are among them.
fn shown(file: &File) -> Vec<Lock> {
    let inode = file.metadata().unwrap().ino();
    let all = fs::read_to_string("/proc/locks").unwrap();
    let lines = all.lines().filter_map(|line| line.split_once(": "));
    let locks = lines.filter_map(|(_, line)| Lock::parse(line));
    locks
        .filter(|(_, of)| *of == inode)
        .map(|(lock, _)| lock)
        .collect()
}

fn directory(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("vsc-now-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn it_says_of_every_pair_what_the_locks_themselves_say() {
    let dir = directory("pairs");
    let path = dir.join("x.img");
    fs::write(&path, [0; 512]).unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let all = [
        access(true, lock::Lock::Exclusive),
        access(true, lock::Lock::Shared),
        access(false, lock::Lock::Exclusive),
        access(false, lock::Lock::Shared),
        Access {
            resize: true,
            ..access(true, lock::Lock::Exclusive)
        },
        access(true, lock::Lock::Off),
    ];
    let mut refused = 0;
    for first in all {
        for second in all {
            let (one, two) = (open(), open());
            lock::take(&one, first).unwrap();
            let told = shown(&one)
                .iter()
                .any(|held| is_in_the_way(held, second, None));
            let kernel = lock::take(&two, second).is_err();
            assert_eq!(told, kernel, "{first:?} and then {second:?}");
            refused += u32::from(kernel);
        }
    }
    assert!(refused > 10, "{refused}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn byte_0_counts_where_virtlockd_is_asked_to_count() {
    let dir = directory("byte");
    let path = dir.join("x.img");
    fs::write(&path, [0; 512]).unwrap();
    let held = lockspace::take_image(&path, true).unwrap();
    let file = File::open(&path).unwrap();
    let locks = shown(&file);
    assert!(!locks.is_empty());
    let writer = access(true, lock::Lock::Exclusive);
    let stops = |byte| locks.iter().any(|held| is_in_the_way(held, writer, byte));
    assert_eq!(
        (stops(None), stops(Some(false)), stops(Some(true))),
        (false, true, true)
    );
    drop(held);
    fs::remove_dir_all(&dir).unwrap();
}
