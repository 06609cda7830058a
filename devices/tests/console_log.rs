//! The console log on a terminal.
#![allow(clippy::unwrap_used)]

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use vsc_devices::console_log::ConsoleLog;

#[test]
fn a_slow_terminal_gets_all_of_it() {
    const LEN: usize = 300_000;
    let mut master = File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx")
        .unwrap();
    let mut name = [0; 64];
    // SAFETY: an open master; the name's buffer is as long as is said.
    unsafe {
        assert_eq!(libc::grantpt(master.as_raw_fd()), 0);
        assert_eq!(libc::unlockpt(master.as_raw_fd()), 0);
        let result = libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len());
        assert_eq!(result, 0);
    }
    // SAFETY: ptsname_r ended it with a NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    let log = ConsoleLog::with_file(Path::new(OsStr::from_bytes(name.to_bytes()))).unwrap();
    let guest = std::thread::spawn(move || {
        for _ in 0..LEN / 1000 {
            log.push(&[b'x'; 1000]);
        }
        log.flush()
    });
    let mut got = vec![0; LEN];
    // More than a terminal holds: the writer is well ahead of this reader, or waits for it.
    for chunk in got.chunks_mut(50_000) {
        std::thread::sleep(std::time::Duration::from_millis(20));
        master.read_exact(chunk).unwrap();
    }
    assert!(got.iter().all(|&b| b == b'x'));
    guest.join().unwrap().unwrap();
}
