use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::*;

/// A directory of its own for one test, removed at the end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vsc-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: F_GETFL takes no argument and changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    assert!(flags >= 0);
    flags & libc::O_NONBLOCK != 0
}

fn block(path: &Path) -> Result<Listener, StreamError> {
    Listener::bind(path, true, true)
}

#[test]
fn a_shared_pipe_keeps_its_flags_and_still_does_not_block() {
    let (reader, writer) = io::pipe().unwrap();
    let input = ReadEnd::new(reader.try_clone().unwrap().into()).unwrap();
    let output = WriteEnd::new(writer.try_clone().unwrap().into()).unwrap();
    let mut buf = [0; 1 << 16];
    assert_eq!(
        input.read(&mut buf).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    let mut room = 0;
    let full = loop {
        match output.write(&buf) {
            Ok(n) => room += n,
            Err(e) => break e,
        }
    };
    assert_eq!((full.kind(), room), (io::ErrorKind::WouldBlock, 1 << 16));
    assert!(!is_nonblocking(reader.as_raw_fd()) && !is_nonblocking(writer.as_raw_fd()));

    assert_eq!(input.read(&mut buf).unwrap(), 1 << 16);
    drop((reader, input));
    assert_eq!(
        output.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[test]
fn a_pipe_that_cannot_be_opened_anew_is_asked_first() {
    let dir = Dir::new("stream-fifo");
    let path = dir.file("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let reader = || {
        let mut options = fs::File::options();
        options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap()
    };
    let first = reader();
    let writer = fs::File::options().write(true).open(&path).unwrap();
    drop(first);
    // Opening the writing end of a named pipe without a reader fails with ENXIO.
    let output = WriteEnd::new(writer.into()).unwrap();
    assert!(!is_nonblocking(output.as_raw_fd()), "it would block");
    assert_eq!(
        output.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    let _second = reader();
    let mut room = 0;
    let full = loop {
        match output.write(&[b'x'; 10_000]) {
            Ok(n) => room += n,
            Err(e) => break e,
        }
    };
    assert_eq!((full.kind(), room), (io::ErrorKind::WouldBlock, 1 << 16));

    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    let null = WriteEnd::new(null.into()).unwrap();
    assert_eq!(null.write(b"abc").unwrap(), 3);
    let zero = ReadEnd::new(fs::File::open("/dev/zero").unwrap().into()).unwrap();
    assert_eq!(zero.read(&mut [1; 300]).unwrap(), GUARDED);
}

/// What is read from an unknown character device at once.
const GUARDED: usize = 64;

#[test]
fn sockets_do_not_block_and_keep_their_flags() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut ends = HostEnds::from([("x".to_owned(), b.try_clone().unwrap().into())]);
    let opened = open(&Endpoint::Given("x".into()), &mut ends).unwrap();
    let (input, output) = (opened.input.unwrap(), opened.output.unwrap());
    let would = input.read(&mut [0; 8]).unwrap_err();
    assert_eq!(would.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(output.write(b"hello").unwrap(), 5);
    let mut buf = [0; 5];
    (&a).read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"hello");
    drop(a);
    assert_eq!(input.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(
        output.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    assert!(!is_nonblocking(b.as_raw_fd()));
    assert!(ends.is_empty());
    let again = open(&Endpoint::Given("x".into()), &mut ends);
    assert!(matches!(again, Err(StreamError::NotGiven { .. })));
}

#[test]
fn given_pipes_serve_the_direction_they_have() {
    let (reader, writer) = io::pipe().unwrap();
    let mut ends = HostEnds::from([
        ("r".to_owned(), reader.into()),
        ("w".to_owned(), writer.into()),
    ]);
    let both = open_pair(
        &Endpoint::Given("r".into()),
        &Endpoint::Given("w".into()),
        &mut ends,
    )
    .unwrap();
    assert_eq!(both.output.unwrap().write(b"ab").unwrap(), 2);
    assert_eq!(both.input.unwrap().read(&mut [0; 8]).unwrap(), 2);

    let (reader, _writer) = io::pipe().unwrap();
    ends.insert("r".to_owned(), reader.into());
    let opened = open(&Endpoint::Given("r".into()), &mut ends).unwrap();
    assert!(opened.input.is_some() && opened.output.is_none());
}

#[test]
fn files_are_appended_to_private_and_readable_as_input() {
    let dir = Dir::new("stream-file");
    let path = dir.file("out");
    let endpoint = Endpoint::File(path.clone());
    for part in [b"one\n", b"two\n"] {
        let opened = open(&endpoint, &mut HostEnds::new()).unwrap();
        assert!(opened.input.is_none());
        assert_eq!(opened.output.unwrap().write(part).unwrap(), 4);
    }
    assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let opened = open_pair(&endpoint, &Endpoint::Null, &mut HostEnds::new()).unwrap();
    let mut buf = [0; 16];
    assert_eq!(opened.input.unwrap().read(&mut buf).unwrap(), 8);
    let missing = Endpoint::File(dir.file("no/such"));
    let error = open(&missing, &mut HostEnds::new()).unwrap_err();
    assert!(matches!(error, StreamError::Open { .. }), "{error}");
}

#[test]
fn a_socket_file_is_private_and_removed_with_the_listener() {
    let dir = Dir::new("socket-life");
    let path = dir.file("s");
    let listener = block(&path).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());

    let listener = block(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    drop(listener);
    assert!(path.exists(), "not ours any more");
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = Dir::new("socket-stale");
    let path = dir.file("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind");
    let listener = block(&path).unwrap();
    let error = block(&path).unwrap_err();
    assert!(matches!(error, StreamError::InUse { .. }), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(listener);

    fs::write(&path, "data").unwrap();
    let error = block(&path).unwrap_err();
    assert!(matches!(error, StreamError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"data");

    let long = dir.file(&"x".repeat(120));
    assert!(matches!(block(&long), Err(StreamError::Listen { .. })));
    let nowhere = dir.file("no/such");
    assert!(matches!(block(&nowhere), Err(StreamError::Listen { .. })));
}

#[test]
fn one_socket_serves_both_directions_and_two_are_refused() {
    let dir = Dir::new("socket-pair");
    let (a, b) = (Endpoint::Unix(dir.file("a")), Endpoint::Unix(dir.file("b")));
    let error = open_pair(&a, &b, &mut HostEnds::new()).unwrap_err();
    assert!(matches!(error, StreamError::TwoSockets), "{error}");
    let opened = open_pair(&a, &a, &mut HostEnds::new()).unwrap();
    let listener = opened.listener.unwrap();
    let mut client = UnixStream::connect(dir.file("a")).unwrap();
    let ends = listener.accept().unwrap();
    client.write_all(b"hi").unwrap();
    assert_eq!(ends.input.unwrap().read(&mut [0; 9]).unwrap(), 2);
    assert!(listener.takes_output());

    let opened = open_pair(&Endpoint::Null, &b, &mut HostEnds::new()).unwrap();
    let _client = UnixStream::connect(dir.file("b")).unwrap();
    assert!(opened.listener.unwrap().accept().unwrap().input.is_none());
}

#[test]
fn a_pseudo_terminal_is_opened_anew_from_its_slave_only() {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both numbers outlive the call; the rest may be null.
    let done = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
    assert_eq!(done, 0);
    use std::os::fd::FromRawFd as _;
    // SAFETY: openpty() just returned both, nobody else has them.
    let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let output = WriteEnd::new(slave.try_clone().unwrap()).unwrap();
    let host = ReadEnd::new(master.try_clone().unwrap()).unwrap();
    assert_eq!(output.write(b"login: ").unwrap(), 7);
    let mut buf = [0; 32];
    assert_eq!(
        host.read(&mut buf).unwrap(),
        7,
        "the same pair, not a new one"
    );
    assert_eq!(
        host.read(&mut buf).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert!(!is_nonblocking(slave.as_raw_fd()) && !is_nonblocking(master.as_raw_fd()));
    let mut stuck = 0;
    while output.write(&[b'x'; 1000]).is_ok() {
        stuck += 1;
        assert!(stuck < 1000, "a terminal nobody reads takes everything");
    }
}
