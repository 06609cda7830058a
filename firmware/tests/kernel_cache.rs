//! The cache of mappable kernels.
#![allow(clippy::unwrap_used)]

mod kernel_common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel_common::*;
use vsc_firmware::kernel::Flavour;
use vsc_firmware::kernel::cache::Cache;

/// A directory that goes away with the value.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn cache(&self) -> Cache {
        Cache::new(&self.0)
    }

    /// All that is in it, sorted.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn only(&self) -> PathBuf {
        let names = self.names();
        assert_eq!(names.len(), 1, "{names:?}");
        self.0.join(&names[0])
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn linux() -> Temporary {
    Temporary::new(&ElfFile::linux().bytes())
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn the_second_time_it_is_there_and_says_the_same() {
    let dir = Dir::new("hit");
    let elf = ElfFile::linux();
    let file = Temporary::new(&elf.bytes());
    let mut first = None;
    for _ in 0..3 {
        let kernel = dir.cache().open(&file.0).unwrap();
        assert!(kernel.is_cached());
        assert_eq!(kernel.path(), file.0);
        assert_eq!(kernel.version(), Some("9.8.7-test"));
        assert_eq!(kernel.flavour().unwrap(), Flavour::Stock);
        let memory = anonymous_memory();
        elf.check(&memory, &kernel.load(&memory, &options()).unwrap());
        let entry = dir.only();
        let found = inode(&entry);
        assert_eq!(
            *first.get_or_insert(found),
            found,
            "it was not written again"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&entry), mode(&dir.0)), (0o400, 0o700));
    }
}

#[test]
fn a_kernel_that_was_touched_or_replaced_is_another() {
    let dir = Dir::new("stale");
    let file = linux();
    dir.cache().open(&file.0).unwrap();
    let before = dir.names();
    let stamp = SystemTime::now() - Duration::from_secs(1000);
    File::open(&file.0).unwrap().set_modified(stamp).unwrap();
    dir.cache().open(&file.0).unwrap();
    let after = dir.names();
    assert_eq!((before.len(), after.len()), (1, 2), "{after:?}");

    // As an editor or a compiler would: a new file under the old name, with the times of the old one.
    let mut elf = ElfFile::linux();
    elf.parts[0].data[1000..1026].copy_from_slice(b"Linux version 9.8.8-test (");
    let other = Temporary::new(&elf.bytes());
    File::open(&other.0).unwrap().set_modified(stamp).unwrap();
    fs::rename(&other.0, &file.0).unwrap();
    let kernel = dir.cache().open(&file.0).unwrap();
    assert_eq!(kernel.version(), Some("9.8.8-test"));
    assert_eq!(dir.names().len(), 3);
}

#[test]
fn what_an_earlier_boot_wrote_is_not_trusted() {
    let dir = Dir::new("boot");
    let file = linux();
    dir.cache().open(&file.0).unwrap();
    let entry = dir.only();
    let name = entry.file_name().unwrap().to_str().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim().replace('-', "");
    assert!(name.contains(&boot), "{name}");
    // Its pages may never have reached the disk before the power went.
    let torn = dir.0.join(name.replace(&boot, &"0".repeat(32)));
    fs::rename(&entry, &torn).unwrap();
    fs::remove_file(&torn).unwrap();
    fs::write(&torn, b"\x7fELF").unwrap();
    let kernel = dir.cache().open(&file.0).unwrap();
    assert!(kernel.is_cached());
    assert_eq!(kernel.version(), Some("9.8.7-test"));
    assert!(entry.exists());
}

#[test]
fn a_directory_that_others_can_write_is_not_used() {
    let dir = Dir::new("open");
    let file = linux();
    fs::create_dir(&dir.0).unwrap();
    for mode in [0o777, 0o770, 0o702] {
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(mode)).unwrap();
        assert!(dir.cache().open(&file.0).is_none(), "{mode:o}");
        assert_eq!(dir.names(), [""; 0], "{mode:o}: nothing is written there");
    }
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(dir.cache().open(&file.0).is_some());
    // An entry that others could have written, or of another kind, is not used either.
    let entry = dir.only();
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o602)).unwrap();
    let kernel = dir.cache().open(&file.0).unwrap();
    assert!(kernel.is_cached());
    assert_eq!(inode(&dir.only()), inode(&entry));
    let mode = fs::metadata(&entry).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o400, "it was written anew");
}

#[test]
fn a_directory_of_somebody_else_is_not_used() {
    let dir = Dir::new("foreign");
    let file = linux();
    fs::create_dir(&dir.0).unwrap();
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o700)).unwrap();
    let foreign = match std::os::unix::fs::chown(&dir.0, Some(65534), None) {
        Ok(()) => dir.0.clone(),
        // Only root can give files away; but root has some of its own.
        Err(_) => PathBuf::from("/"),
    };
    assert!(Cache::new(foreign).open(&file.0).is_none());
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn the_newest_four_are_kept() {
    let dir = Dir::new("kept");
    let files: Vec<_> = (0..6).map(|_| linux()).collect();
    let start = SystemTime::now() - Duration::from_secs(1000);
    let mut all = Vec::new();
    for (n, file) in (0..).zip(&files) {
        let before = dir.names();
        dir.cache().open(&file.0).unwrap();
        let new = dir.names().into_iter().find(|name| !before.contains(name));
        let new = dir.0.join(new.unwrap());
        let stamp = start + Duration::from_secs(n);
        File::open(&new).unwrap().set_modified(stamp).unwrap();
        all.push(new);
    }
    let left: Vec<_> = all.iter().map(|entry| entry.exists()).collect();
    assert_eq!(left, [false, false, true, true, true, true]);
}

#[test]
fn small_kernels_and_what_is_none_are_not_kept() {
    let dir = Dir::new("small");
    for bytes in [ElfFile::tiny().bytes(), b"text".to_vec()] {
        assert!(dir.cache().open(&Temporary::new(&bytes).0).is_none());
    }
    assert!(dir.cache().open(Path::new("/nonexistent")).is_none());
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn many_at_once_all_get_it_and_leave_one_entry() {
    let dir = Dir::new("race");
    let file = linux();
    let (cache, barrier) = (dir.cache(), std::sync::Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                let kernel = cache.open(&file.0).unwrap();
                assert!(kernel.is_cached());
                kernel.load(&anonymous_memory(), &options()).unwrap();
            });
        }
    });
    dir.only();
}

#[test]
fn temporaries_go_with_the_process_that_wrote_them() {
    let dir = Dir::new("temporaries");
    let file = linux();
    dir.cache().open(&file.0).unwrap();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let dead = dir.0.join(format!(".key.1-2.{}.0", child.id()));
    let alive = dir.0.join(format!(
        ".key.1-2.{}.0",
        std::os::unix::process::parent_id()
    ));
    let other = dir.0.join(".keep");
    for path in [&dead, &alive, &other] {
        fs::write(path, "half a kernel").unwrap();
    }
    dir.cache().open(&linux().0).unwrap();
    assert_eq!(
        [dead.exists(), alive.exists(), other.exists()],
        [false, true, true]
    );
}
