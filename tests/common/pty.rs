//! A pseudo-terminal with a program on it, and what a person would see there.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use super::common::process::PATIENCE;

pub struct Pty {
    master: File,
    /// Kept open: the settings are looked at after the program has gone.
    slave: File,
    /// All that was shown.
    pub shown: Vec<u8>,
    /// What of it was expected already.
    at: usize,
}

/// The settings that a program may leave changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings(u32, u32, u32, u32, [u8; 32]);

impl Settings {
    pub fn is_raw(&self) -> bool {
        self.3 & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

impl Pty {
    pub fn new(rows: u16, columns: u16) -> Self {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // Close-on-exec from the start: children of other tests must not hold this terminal.
        // SAFETY: plain system calls, each on what the one before returned.
        let (master, slave) = unsafe {
            let master = libc::posix_openpt(flags);
            assert!(master >= 0 && libc::grantpt(master) == 0 && libc::unlockpt(master) == 0);
            (master, libc::ioctl(master, libc::TIOCGPTPEER, flags))
        };
        assert!(slave >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: descriptors just returned by the kernel.
        let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        let pty = Self {
            master,
            slave,
            shown: Vec::new(),
            at: 0,
        };
        pty.resize(rows, columns);
        pty
    }

    /// One more descriptor of the terminal.
    pub fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Makes `command` the leader of a session with this terminal, as a login does; its streams stay as they are.
    pub fn lead(&self, command: &mut Command) {
        let slave: RawFd = self.slave.as_raw_fd();
        // SAFETY: only system calls that may be made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::setsid() < 0 || libc::ioctl(slave, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }

    /// Starts `command` with the terminal as all its streams.
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.lead(command);
        command
            .stdin(self.stdio())
            .stdout(self.stdio())
            .stderr(self.stdio())
            .spawn()
            .expect("it starts")
    }

    pub fn settings(&self) -> Settings {
        // SAFETY: all-zero is a valid termios, which the call fills in.
        let t = unsafe {
            let mut t: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &mut t), 0);
            t
        };
        Settings(t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_cc)
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the structure outlives the call.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(result, 0);
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.master.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads until `what` appears after everything that was expected before.
    #[track_caller]
    pub fn expect(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let new = &self.shown[self.at..];
            if let Some(place) = new.windows(what.len()).position(|w| w == what.as_bytes()) {
                self.at += place + what.len();
                return;
            }
            let ended = !self.read_some(deadline);
            assert!(
                !ended,
                "{what:?} did not appear; the terminal shows: {}",
                self.text()
            );
        }
    }

    /// Reads until `what` appears after everything that was expected before; false: `child` ended without it.
    pub fn shows(&mut self, what: &str, child: &mut Child) -> bool {
        loop {
            let ended = child.try_wait().unwrap().is_some();
            // What it wrote before its end is there by now.
            while self.read_some(Instant::now() + Duration::from_millis(5)) {}
            let new = &self.shown[self.at..];
            if let Some(place) = new.windows(what.len()).position(|w| w == what.as_bytes()) {
                self.at += place + what.len();
                return true;
            }
            if ended {
                return false;
            }
        }
    }

    /// Waits for the end of `child` while its output is read, and shows what came when that takes too long.
    #[track_caller]
    pub fn wait(&mut self, child: &mut Child) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                while self.read_some(Instant::now()) {}
                return status;
            }
            if Instant::now() >= deadline {
                child.kill().ok();
                child.wait().ok();
                panic!("it did not end; the terminal shows: {}", self.text());
            }
            self.read_some(Instant::now() + Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn expect_code(&mut self, child: &mut Child, code: i32) {
        let status = self.wait(child);
        assert_eq!(
            status.code(),
            Some(code),
            "{status}; the terminal shows: {}",
            self.text()
        );
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// False: nothing came until `deadline`.
    fn read_some(&mut self, deadline: Instant) -> bool {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        let mut poll = libc::pollfd {
            fd: self.master.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd that outlives the call.
        if unsafe { libc::poll(&mut poll, 1, i32::try_from(left).unwrap()) } <= 0 {
            return false;
        }
        let mut chunk = [0; 4096];
        let n = self.master.read(&mut chunk).unwrap_or(0);
        self.shown.extend_from_slice(&chunk[..n]);
        n > 0
    }
}
