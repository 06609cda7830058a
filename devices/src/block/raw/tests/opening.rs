//! What cannot be opened, and what is said of it.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn each_unusable_image_is_named_for_what_it_is() {
    let open = |path: &Path, options| RawFile::open(path, options).err().expect("not a disk");
    let said = |path: &Path, options| open(path, options).to_string();
    let none = Path::new("/nonexistent/disk.img");
    assert_eq!(
        said(none, read_only()),
        "Disk /nonexistent/disk.img: no such file"
    );
    let dir = Path::new("/usr");
    for options in [RawOptions::default(), read_only()] {
        assert!(matches!(open(dir, options), OpenError::Directory { .. }));
    }
    let device = Path::new("/dev/null");
    assert!(said(device, read_only()).contains("is a character device"));
    assert!(matches!(
        open(Path::new("/proc/sys/kernel/osrelease"), read_only()),
        OpenError::Empty { .. }
    ));

    let empty = Image::new(MEMORY, 0);
    assert!(said(&empty.0, RawOptions::default()).contains("is empty; `truncate -s 1G FILE`"));
    let odd = Image::new(MEMORY, 1000);
    let said_odd = said(&odd.0, RawOptions::default());
    assert!(
        said_odd.contains("its 1000 bytes are not a multiple of 512; `truncate -s %512 FILE`"),
        "{said_odd}"
    );
    let sectors = Image::new(MEMORY, 1536);
    let big = RawOptions {
        block: 4096,
        ..RawOptions::default()
    };
    assert!(matches!(
        open(&sectors.0, big),
        OpenError::OddSize {
            size: 1536,
            block: 4096,
            ..
        }
    ));

    let fifo = std::ffi::CString::new(format!("/dev/shm/vsc-fifo-{}", std::process::id())).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let path = Path::new(std::ffi::OsStr::new(fifo.to_str().unwrap()));
    assert!(
        said(path, read_only()).contains("is a pipe"),
        "and opening it does not wait for a writer"
    );
    std::fs::remove_file(path).unwrap();

    let socket = PathBuf::from(format!("/dev/shm/vsc-socket-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(said(&socket, read_only()).contains("is a socket"));
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
}

/// Runs `test` as user nobody on a thread of its own, with no capabilities. False: we are not root.
fn as_nobody(test: impl FnOnce() + Send + 'static) -> bool {
    // SAFETY: takes no argument.
    if unsafe { libc::geteuid() } != 0 {
        return false;
    }
    std::thread::spawn(move || {
        // The raw system call concerns this thread only.
        // SAFETY: integers only.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        test();
    })
    .join()
    .unwrap();
    true
}

#[test]
fn a_file_that_may_only_be_read_is_offered_as_such() {
    let image = Image::new(MEMORY, 512);
    std::fs::set_permissions(&image.0, PermissionsExt::from_mode(0o444)).unwrap();
    let path = image.0.clone();
    as_nobody(move || {
        let refused = RawFile::open(&path, RawOptions::default())
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.ends_with("permission denied for writing; it can be given as read-only"),
            "{refused}"
        );
        assert!(RawFile::open(&path, read_only()).is_ok());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap_err();
    });
    std::fs::set_permissions(&image.0, PermissionsExt::from_mode(0o000)).unwrap();
    let path = image.0.clone();
    as_nobody(move || {
        let refused = RawFile::open(&path, read_only()).err().unwrap().to_string();
        assert!(refused.ends_with("permission denied"), "{refused}");
    });
}

/// Runs `test` on a tmpfs of 64 KiB mounted with `flags` for its thread only; it gets the directory. False: we are
/// not root.
pub(super) fn on_small_tmpfs(
    flags: libc::c_ulong,
    test: impl FnOnce(&Path) + Send + 'static,
) -> bool {
    // SAFETY: takes no argument.
    if unsafe { libc::geteuid() } != 0 {
        return false;
    }
    std::thread::spawn(move || {
        let dir = format!("/dev/shm/vsc-mount-{}-{flags}", std::process::id());
        std::fs::create_dir(&dir).unwrap();
        let at = std::ffi::CString::new(dir.clone()).unwrap();
        let (tmpfs, none) = (c"tmpfs".as_ptr(), std::ptr::null());
        // SAFETY: NUL-terminated strings; the thread's mount namespace is its own from the first call on.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
            let private = libc::MS_REC | libc::MS_PRIVATE;
            assert_eq!(
                libc::mount(none, c"/".as_ptr(), none, private, none.cast()),
                0
            );
            let size = c"size=64k".as_ptr().cast();
            assert_eq!(libc::mount(tmpfs, at.as_ptr(), tmpfs, 0, size), 0);
        }
        let image = Path::new(&dir).join("disk.img");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        // SAFETY: as above.
        unsafe {
            let again = flags | libc::MS_REMOUNT;
            assert_eq!(
                libc::mount(tmpfs, at.as_ptr(), tmpfs, again, none.cast()),
                0
            );
        }
        test(&image);
        // SAFETY: as above.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        std::fs::remove_dir(&dir).unwrap();
    })
    .join()
    .unwrap();
    true
}

#[test]
fn a_read_only_file_system_is_named() {
    let error = io::Error::from_raw_os_error(libc::EROFS);
    let error = open::open_error(Path::new("/cdrom/disk.img"), false, error);
    assert!(matches!(error, OpenError::ReadOnlyFileSystem { .. }));
    on_small_tmpfs(libc::MS_RDONLY, |image| {
        let refused = RawFile::open(image, RawOptions::default())
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.ends_with("give the disk as read-only or copy it"),
            "{refused}"
        );
        assert!(RawFile::open(image, read_only()).is_ok());
    });
}
