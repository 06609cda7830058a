use std::cell::RefCell;
use std::fs::OpenOptions;
use std::path::PathBuf;

use super::*;

struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-lock-{name}-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).unwrap();
        Self(path)
    }

    fn open(&self, write: bool) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(write).open(&self.0).unwrap()
    }

    /// A new open file that is locked, or why not.
    fn lock(&self, write: bool, lock: Lock) -> Result<File, LockError> {
        let file = self.open(write);
        take(&file, access(write, lock)).map(|()| file)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn access(write: bool, lock: Lock) -> Access {
    Access {
        write,
        resize: false,
        lock,
        device: false,
        flock: true,
    }
}

#[test]
fn the_bytes_are_those_of_qemu_and_the_gate() {
    let of = |write, resize, lock| {
        Access {
            resize,
            ..access(write, lock)
        }
        .locked()
    };
    assert_eq!(of(true, false, Lock::Exclusive), [(99, 3), (201, 1)]);
    assert_eq!(of(false, false, Lock::Exclusive), [(99, 2), (201, 1)]);
    assert_eq!(of(true, false, Lock::Shared), [(99, 3)]);
    assert_eq!(
        of(true, true, Lock::Exclusive),
        [(99, 3), (103, 1), (201, 1), (203, 1)]
    );
    assert_eq!(
        of(false, true, Lock::Exclusive),
        [(99, 2), (201, 1), (203, 1)]
    );
    assert_eq!(of(true, true, Lock::Off), []);
}

#[test]
fn who_goes_with_whom() {
    use Lock::{Exclusive, Off, Shared};
    let (writer, reader, sharer) = ((true, Exclusive), (false, Exclusive), (true, Shared));
    let silent = (true, Off);
    for (first, second, good) in [
        (writer, writer, false),
        (writer, reader, false),
        (writer, sharer, false),
        (writer, silent, true),
        (reader, writer, false),
        (reader, reader, true),
        (reader, sharer, false),
        (sharer, writer, false),
        (sharer, reader, false),
        (sharer, sharer, true),
        (silent, writer, true),
    ] {
        let image = Image::new("pairs");
        let held = image.lock(first.0, first.1).unwrap();
        let other = image.lock(second.0, second.1);
        assert_eq!(other.is_ok(), good, "{first:?} then {second:?}");
        if let Err(e) = &other {
            assert!(matches!(e, LockError::Held(_)), "{e:?}");
        }
        drop((held, other));
        assert!(image.lock(second.0, second.1).is_ok(), "freed: {first:?}");
    }
}

#[test]
fn flock_and_whole_file_locks_of_others_count() {
    let image = Image::new("others");
    let other = image.open(true);
    assert!(Kernel.flock(other.as_raw_fd(), true).unwrap());
    for write in [true, false] {
        let refused = image.lock(write, Lock::Exclusive);
        assert!(matches!(refused, Err(LockError::Held(None))), "{refused:?}");
    }
    drop(other);

    // cloud-hypervisor: an OFD lock on all bytes, for reading or for writing.
    let whole = (0, 4096);
    let other = image.open(true);
    assert!(Kernel.set(other.as_raw_fd(), true, whole).unwrap());
    for write in [true, false] {
        let refused = image.lock(write, Lock::Exclusive);
        let Err(LockError::Held(Some(held))) = refused else {
            panic!("{refused:?}");
        };
        assert!(held.write && held.start == 0 && held.len == 4096 && held.pid.is_none());
    }
    drop(other);
    let other = image.open(false);
    assert!(Kernel.set(other.as_raw_fd(), false, whole).unwrap());
    assert!(image.lock(true, Lock::Exclusive).is_err());
    assert!(image.lock(true, Lock::Shared).is_err());
    // Two readers are no conflict, though it holds the bytes of a writer.
    assert!(image.lock(false, Lock::Exclusive).is_ok());
    // A writer that hides behind it is one.
    let hidden = image.open(true);
    assert!(Kernel.set(hidden.as_raw_fd(), false, (101, 1)).unwrap());
    assert!(image.lock(false, Lock::Exclusive).is_err());
    drop((other, hidden));

    // And the other way round.
    for (write, whole_write, good) in [
        (true, true, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        let ours = image.lock(write, Lock::Exclusive).unwrap();
        let other = image.open(true);
        let set = Kernel.set(other.as_raw_fd(), whole_write, whole).unwrap();
        assert_eq!(set, good, "{write} {whole_write}");
        drop(ours);
    }
}

#[test]
fn byte_0_is_libvirts_and_goes_with_all_others() {
    let image = Image::new("byte0");
    let _ours = image.lock(true, Lock::Exclusive).unwrap();
    let first = image.open(true);
    take_first_byte(&first, true).unwrap();
    let second = image.open(true);
    let refused = take_first_byte(&second, false);
    assert!(matches!(refused, Err(LockError::Held(Some(h))) if h.start == 0 && h.len == 1));
    drop(first);
    take_first_byte(&second, false).unwrap();
    take_first_byte(&image.open(true), false).unwrap();
}

/// A kernel that answers what it is told, and writes down what it is asked.
#[derive(Default)]
struct Fake {
    errno: Option<i32>,
    flock: Option<i32>,
    asked: RefCell<Vec<String>>,
}

impl Fake {
    fn answer(&self, errno: Option<i32>) -> io::Result<bool> {
        errno.map_or(Ok(true), |e| taken(Err(io::Error::from_raw_os_error(e))))
    }
}

impl Calls for Fake {
    fn set(&self, _: RawFd, write: bool, range: (u64, u64)) -> io::Result<bool> {
        let kind = if write { "write" } else { "read" };
        self.asked.borrow_mut().push(format!("{kind} {range:?}"));
        self.answer(self.errno)
    }

    fn test(&self, _: RawFd, range: (u64, u64)) -> io::Result<Option<Held>> {
        self.asked.borrow_mut().push(format!("test {range:?}"));
        Ok(None)
    }

    fn flock(&self, _: RawFd, alone: bool) -> io::Result<bool> {
        self.asked.borrow_mut().push(format!("flock {alone}"));
        self.answer(self.flock)
    }

    fn table(&self) -> io::Result<String> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn a_file_system_without_locks_is_never_taken_for_one_with() {
    for (errno, unsupported) in [
        (libc::ENOLCK, true),
        (libc::ENOSYS, true),
        (libc::EOPNOTSUPP, true),
        (libc::EINVAL, true),
        (libc::EIO, false),
    ] {
        let fake = Fake {
            errno: Some(errno),
            ..Fake::default()
        };
        let result = take_with(&fake, 3, access(true, Lock::Exclusive), || None);
        match result {
            Err(LockError::Unsupported(_)) => assert!(unsupported, "{errno}"),
            Err(LockError::Failed(_)) => assert!(!unsupported, "{errno}"),
            other => panic!("{errno}: {other:?}"),
        }
    }
    // flock is in addition.
    let fake = Fake {
        flock: Some(libc::ENOLCK),
        ..Fake::default()
    };
    assert!(take_with(&fake, 3, access(true, Lock::Exclusive), || None).is_ok());
}

#[test]
fn the_gate_comes_first_and_six_calls_are_all() {
    let asked = |access| {
        let fake = Fake::default();
        take_with(&fake, 3, access, || None).unwrap();
        fake.asked.into_inner()
    };
    assert_eq!(
        asked(access(true, Lock::Exclusive)),
        [
            "write (99, 1)",
            "read (100, 2)",
            "read (201, 1)",
            "test (101, 1)",
            "test (200, 2)",
            "flock true"
        ]
    );
    // udev locks block devices for a moment, and is no machine.
    let device = Access {
        device: true,
        ..access(true, Lock::Exclusive)
    };
    assert_eq!(asked(device).last().unwrap(), "flock false");
    let nfs = Access {
        flock: false,
        ..access(false, Lock::Exclusive)
    };
    assert_eq!(
        asked(nfs),
        [
            "read (99, 2)",
            "read (201, 1)",
            "test (101, 1)",
            "test (200, 1)"
        ]
    );
    assert_eq!(asked(access(true, Lock::Off)), [""; 0]);
    assert!(!flock_is_separate(0x6969) && flock_is_separate(0xef53));
}

#[test]
fn of_two_that_start_at_once_one_runs() {
    let image = Image::new("race");
    for _ in 0..200 {
        let barrier = std::sync::Barrier::new(2);
        let start = || {
            let file = image.open(true);
            barrier.wait();
            let taken = take(&file, access(true, Lock::Exclusive)).is_ok();
            barrier.wait();
            taken
        };
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(start);
            let two = start();
            (one.join().unwrap(), two)
        });
        assert!(one != two, "{one} {two}");
    }
}
