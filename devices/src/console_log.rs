//! What the guest said on its consoles: the tail of it, when it first spoke, and whether its kernel panicked.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

/// How much of the newest output is kept, bytes.
pub const KEPT: usize = 64 << 10;
/// What Linux's `panic()` prints before the reason (kernel/panic.c).
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// Longest reason kept, bytes: `panic()` formats into a buffer of 1024.
const REASON_MAX: usize = 1024;
/// The log file is written at every newline, and when this much has gathered without one.
const FILE_BATCH: usize = 4096;

/// A shared record of console output. Clones share one record.
#[derive(Clone, Default)]
pub struct ConsoleLog {
    inner: Arc<Mutex<Inner>>,
    programs: bool,
}

#[derive(Default)]
struct Inner {
    /// The newest output; the oldest byte is at `start` once the ring is full.
    ring: Vec<u8>,
    start: usize,
    total: u64,
    first: Option<Instant>,
    /// To be told of the first byte.
    listener: Option<EventFd>,
    panic: Matcher,
    file: Option<LogFile>,
}

struct LogFile {
    file: File,
    pending: Vec<u8>,
    error: Option<io::Error>,
}

impl ConsoleLog {
    /// An empty record without a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A record that also appends everything to a file, created with mode 0600 if there is none, or to a terminal or
    /// another character device.
    ///
    /// # Errors
    /// Of open(2); `InvalidInput` for a pipe, a socket, a block device: a log must neither wait for a reader nor lose
    /// what a slow one leaves.
    pub fn with_file(path: &Path) -> io::Result<Self> {
        let refused = || {
            let why = "it is neither a regular file nor a terminal";
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        // Non-blocking, so that a pipe without a reader is an error. Regular files do not look at it.
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| match e.raw_os_error() {
                // What open(2) says of a pipe without a reader, and of a socket.
                Some(libc::ENXIO) => refused(),
                _ => e,
            })?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(refused());
        }
        if kind.is_char_device() {
            // A terminal that is slower than the guest is waited for, not left out.
            file = OpenOptions::new()
                .append(true)
                .custom_flags(libc::O_NOCTTY)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        }
        let log = Self::new();
        log.lock().file = Some(LogFile {
            file,
            pending: Vec::with_capacity(FILE_BATCH),
            error: None,
        });
        Ok(log)
    }

    /// The same record for a console that the kernel does not print on: nothing there is a panic, whatever it says.
    pub fn of_programs(&self) -> Self {
        Self {
            programs: true,
            ..self.clone()
        }
    }

    /// Records output.
    pub fn push(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = self.lock();
        if inner.first.is_none() {
            inner.first = Some(Instant::now());
            inner.tell();
        }
        inner.total += bytes.len() as u64;
        if !self.programs {
            inner.panic.feed(bytes);
        }
        if let Some(file) = &mut inner.file {
            file.push(bytes);
        }
        inner.keep(&bytes[bytes.len().saturating_sub(KEPT)..]);
    }

    /// When the first byte came.
    pub fn first_byte(&self) -> Option<Instant> {
        self.lock().first
    }

    /// Raises an event at the first byte; at once when that has come already.
    pub fn tell_first_byte(&self, event: EventFd) {
        let mut inner = self.lock();
        inner.listener = Some(event);
        if inner.first.is_some() {
            inner.tell();
        }
    }

    /// Bytes recorded since the start, also those no longer kept.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// The reason of the first kernel panic, as far as it has been printed.
    pub fn panic(&self) -> Option<String> {
        let inner = self.lock();
        let reason = String::from_utf8_lossy(&inner.panic.reason);
        (inner.panic.seen).then(|| reason.trim_end().to_owned())
    }

    /// The last `n` lines kept, oldest first, without line ends; a started line counts as one. Bytes that are not
    /// UTF-8 are replaced.
    pub fn last_lines(&self, n: usize) -> Vec<String> {
        let bytes = self.kept();
        let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if body.is_empty() {
            return Vec::new();
        }
        let mut lines: Vec<_> = body
            .rsplit(|&b| b == b'\n')
            .take(n)
            .map(|line| {
                String::from_utf8_lossy(line)
                    .trim_end_matches('\r')
                    .to_owned()
            })
            .collect();
        lines.reverse();
        lines
    }

    /// The newest output, at most [`KEPT`] bytes.
    pub fn kept(&self) -> Vec<u8> {
        let inner = self.lock();
        let (new, old) = inner.ring.split_at(inner.start);
        [old, new].concat()
    }

    /// Writes what the file is still owed (a line without its end).
    ///
    /// # Errors
    /// The first error that writing the file has met since the start; the file then lacks some output.
    pub fn flush(&self) -> io::Result<()> {
        match &mut self.lock().file {
            Some(file) => {
                file.flush();
                file.error.take().map_or(Ok(()), Err)
            }
            None => Ok(()),
        }
    }

    /// As [`Self::flush`], keeping the error for it.
    pub(crate) fn write_pending(&self) {
        if let Some(file) = &mut self.lock().file {
            file.flush();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self) {
        if let Some(event) = self.listener.take() {
            // A counter that is full is a reader that will wake anyway.
            let _ = event.write(1);
        }
    }

    /// Appends at most [`KEPT`] bytes to the ring.
    fn keep(&mut self, bytes: &[u8]) {
        let room = KEPT - self.ring.len();
        let (grow, wrap) = bytes.split_at(room.min(bytes.len()));
        self.ring.extend_from_slice(grow);
        let (head, tail) = wrap.split_at(wrap.len().min(KEPT - self.start));
        self.ring[self.start..self.start + head.len()].copy_from_slice(head);
        self.ring[..tail.len()].copy_from_slice(tail);
        self.start = (self.start + wrap.len()) % KEPT;
    }
}

impl LogFile {
    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.pending.len() >= FILE_BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            self.error.get_or_insert(error);
        }
        self.pending.clear();
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Finds [`PANIC`] where the kernel prints it, and keeps the rest of that line. Looks at every byte once.
///
/// That is at the start of a line, or after the time that printk puts in front ("[    1.234567] ", or with
/// CONFIG_PRINTK_CALLER "[    1.234567][    T1] "; kernel/printk/printk.c), which may follow half a line of a program.
#[derive(Default)]
struct Matcher {
    before: Before,
    /// Bytes of [`PANIC`] matched so far.
    at: usize,
    /// The text was found; `reason` grows until `done`.
    seen: bool,
    done: bool,
    reason: Vec<u8>,
}

/// What stands in front of the next byte.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Before {
    #[default]
    LineStart,
    /// A `[`, then what times, threads and processors are made of.
    Bracket,
    /// The `]` of that.
    Closed,
    /// And its space.
    Prefix,
    /// Anything else.
    Text,
}

impl Before {
    fn then(self, byte: u8) -> Self {
        match (self, byte) {
            (_, b'\n' | b'\r') => Self::LineStart,
            (_, b'[') => Self::Bracket,
            (Self::Bracket, b'0'..=b'9' | b' ' | b'.' | b'T' | b'C') => Self::Bracket,
            (Self::Bracket, b']') => Self::Closed,
            (Self::Closed, b' ') => Self::Prefix,
            _ => Self::Text,
        }
    }
}

impl Matcher {
    fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes.iter();
        while !self.seen {
            let Some(&byte) = rest.next() else { return };
            let starts = matches!(self.before, Before::LineStart | Before::Prefix);
            // No end of a line and no bracket is in PANIC, so a mismatch within it cannot begin it anew.
            self.at = match self.at {
                0 if starts && byte == PANIC[0] => 1,
                0 => 0,
                at if byte == PANIC[at] => at + 1,
                _ => 0,
            };
            self.before = self.before.then(byte);
            self.seen = self.at == PANIC.len();
        }
        let rest = rest.as_slice();
        if self.done || rest.is_empty() {
            return;
        }
        let end = rest.iter().position(|&b| b == b'\n');
        let text = &rest[..end.unwrap_or(rest.len())];
        let room = REASON_MAX - self.reason.len();
        self.reason.extend_from_slice(&text[..text.len().min(room)]);
        self.done = end.is_some() || self.reason.len() == REASON_MAX;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_tail_is_kept_and_split_into_lines() {
        let log = ConsoleLog::new();
        assert_eq!(log.last_lines(3), [""; 0]);
        assert!(log.first_byte().is_none());
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (early, late) = (event(), event());
        log.tell_first_byte(early.try_clone().unwrap());
        assert!(early.read().is_err());
        log.push(b"one\r\ntw");
        log.push(b"o\n\nfour");
        assert!(log.first_byte().is_some());
        log.tell_first_byte(late.try_clone().unwrap());
        assert_eq!((early.read().unwrap(), late.read().unwrap()), (1, 1));
        assert_eq!(log.last_lines(10), ["one", "two", "", "four"]);
        assert_eq!(log.last_lines(2), ["", "four"]);
        assert_eq!(log.total(), 14);

        let mut all: Vec<u8> = b"one\r\ntwo\n\nfour".to_vec();
        for i in 0..3000usize {
            let part: Vec<u8> = (0..i % 97).map(|k| (i * 31 + k) as u8).collect();
            log.push(&part);
            all.extend(part);
        }
        assert_eq!(log.kept(), all[all.len() - KEPT..]);
        log.push(&vec![7; KEPT - 1]);
        assert_eq!(log.kept()[1..], vec![7; KEPT - 1]);
        log.push(&[&vec![1; KEPT][..], b"x"].concat());
        let kept = log.kept();
        assert_eq!((kept.len(), kept[KEPT - 1], kept[0]), (KEPT, b'x', 1));
    }

    #[test]
    fn a_panic_is_found_however_the_output_is_cut() {
        let text = b"[ 0.9] Kernel panic\n[ 1.0] Kernel panic - not syncing: VFS: Unable to mount\r\n[ 1.1] CPU: 0\n";
        for cut in 1..text.len() {
            let log = ConsoleLog::new();
            for part in text.chunks(cut) {
                log.push(part);
            }
            assert_eq!(
                log.panic().as_deref(),
                Some("VFS: Unable to mount"),
                "chunks of {cut}"
            );
        }
        let log = ConsoleLog::new();
        log.push(b"Kernel panic - not syncin: x\n");
        assert_eq!(log.panic(), None);
        log.push(b"Kernel panic - not syncing: ");
        assert_eq!(log.panic().as_deref(), Some(""), "seen before its reason");
        log.push(&[b'a'; 5000]);
        assert_eq!(log.panic().map(|p| p.len()), Some(REASON_MAX), "bounded");
    }

    #[test]
    fn only_what_the_kernel_prints_is_a_panic() {
        let panic = |text: &str| {
            let log = ConsoleLog::new();
            log.push(text.as_bytes());
            log.panic()
        };
        let text = "Kernel panic - not syncing: why";
        for before in [
            "",
            "first line\n",
            "first line\r",
            "[    1.234567] ",
            "login: [ 12.0] ",
            "[    0.5][    T1] ",
            "[    0.5] [C0] ",
            "[[ 0.1] ",
        ] {
            assert_eq!(
                panic(&format!("{before}{text}\n")).as_deref(),
                Some("why"),
                "{before:?}"
            );
        }
        for before in [
            "echo ", "\"", "[ 1.0]", "[1.0]  ", "[x] ", "] ", "[ 1.0 ", "\n ",
        ] {
            assert_eq!(panic(&format!("{before}{text}\n")), None, "{before:?}");
        }
    }

    #[test]
    fn a_log_without_an_open_reader_or_a_place_on_disk_is_refused_at_once() {
        let dir = std::env::temp_dir().join(format!("vsc-log-kinds-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let fifo = dir.join("fifo");
        let status = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(status.unwrap().success());
        let (done, opened) = std::sync::mpsc::channel();
        let path = fifo.clone();
        std::thread::spawn(move || done.send(ConsoleLog::with_file(&path).err().map(|e| e.kind())));
        let refused = opened.recv_timeout(std::time::Duration::from_secs(10));
        let expected = Ok(Some(io::ErrorKind::InvalidInput));
        assert_eq!(refused, expected, "it must not wait for a reader");
        // Also with a reader: one that is slow would stop the guest.
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        assert!(ConsoleLog::with_file(&fifo).is_err());
        assert!(ConsoleLog::with_file(&dir).is_err());
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        assert!(ConsoleLog::with_file(&dir.join("socket")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_file_holds_all_of_it_and_is_private() {
        let dir = std::env::temp_dir().join(format!("vsc-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("console.log");
        std::fs::write(&path, "before\n").unwrap();
        let log = ConsoleLog::with_file(&path).unwrap();
        log.push(b"whole line\nstarted ");
        log.push(b"line");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"before\nwhole line\nstarted "
        );
        log.flush().unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"before\nwhole line\nstarted line"
        );
        log.push(b"!");
        drop(log);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"before\nwhole line\nstarted line!"
        );
        std::fs::remove_file(&path).unwrap();
        drop(ConsoleLog::with_file(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(ConsoleLog::with_file(&path).is_err());

        let full = ConsoleLog::with_file(Path::new("/dev/full")).unwrap();
        full.push(b"lost\n");
        assert_eq!(full.flush().unwrap_err().raw_os_error(), Some(28));
    }
}
