use super::*;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// A daemon that answers each connection's first bytes with these, and holds the connection as long as it lives.
struct Fake {
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn new(name: &str, answers: Vec<Vec<u8>>) -> Self {
        let socket = std::env::temp_dir().join(format!("vsc-san-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut header = [0; HEADER];
                stream.read_exact(&mut header).unwrap();
                stream.write_all(&answer).unwrap();
                open.push(stream);
            }
        });
        Self {
            socket,
            thread: Some(thread),
        }
    }

    fn connect(&mut self) -> Result<Daemon, Error> {
        let daemon = Daemon::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        daemon
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn version(protocol: u32) -> Header {
    Header {
        version: protocol,
        command: Command::Version as u32,
        flags: 0,
        length: HEADER as u32,
        data: 0,
        data2: 0x0308_0500,
    }
}

fn said(name: &str, answer: Vec<u8>) -> String {
    Fake::new(name, vec![answer])
        .connect()
        .unwrap_err()
        .to_string()
}

#[test]
fn who_does_not_listen_is_absent() {
    let none = Daemon::connect(Path::new("/nowhere/sanlock.sock")).unwrap_err();
    assert!(matches!(none, Error::Absent(_)), "{none}");
    assert!(none.to_string().contains("locks setup sanlock --plan"));
}

#[test]
fn only_our_protocol_is_spoken() {
    let daemon = Fake::new("same", vec![version(PROTOCOL).bytes()]).connect();
    assert_eq!(daemon.unwrap().version(), "3.8.5");
    let other = said("other", version(0x0002_0000).bytes());
    assert!(
        other.contains("sanlock's daemon 3.8.5 speaks protocol 0x00020000"),
        "{other}"
    );
    let none = said("none", version(0).bytes());
    assert!(none.contains("protocol 0x00000000"), "{none}");
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let mut magic = version(PROTOCOL).bytes();
    magic[0] ^= 1;
    assert!(said("magic", magic).contains("it begins with"));
    let of_another = Header {
        command: 5,
        ..version(PROTOCOL)
    };
    assert!(said("request", of_another.bytes()).contains("request 5"));
    let short = version(PROTOCOL).bytes()[..20].to_vec();
    let cut = said("cut", short);
    assert!(cut.contains("closed the connection"), "{cut}");
}

/// A connection whose other end is ours.
fn pair() -> (Daemon, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let daemon = Daemon {
        stream: ours,
        socket: "/run/x".into(),
        version: String::new(),
        only: false,
    };
    (daemon, theirs)
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for() {
    let (mut daemon, _theirs) = pair();
    let mut heard = Vec::new();
    let mut tell = |text: &str| heard.push(text.to_owned());
    let mut patience = Patience::of(Duration::from_millis(20), "slow".into(), &mut tell);
    let e = daemon
        .ask("x", (Command::Version, 0, 0, 0), &[], &mut patience)
        .unwrap_err();
    assert!(e.to_string().contains("has not answered"), "{e}");
    let (mut daemon, theirs) = pair();
    drop(theirs);
    let mut patience = Patience::at_once();
    let e = daemon
        .ask("x", (Command::Version, 0, 0, 0), &[], &mut patience)
        .unwrap_err();
    assert!(matches!(e, Error::Closed { .. }), "{e}");
}

#[test]
fn hosts_of_a_lease_are_counted() {
    let answer = |count: u32, hosts: usize, length: u32| {
        let (mut daemon, mut theirs) = pair();
        let header = Header {
            version: PROTOCOL,
            command: Command::Owners as u32,
            flags: 0,
            length,
            data: 0,
            data2: count,
        };
        theirs.write_all(&header.bytes()).unwrap();
        theirs.write_all(&[0; RESOURCE]).unwrap();
        for n in 0..hosts {
            theirs.write_all(&(n as u64 + 7).to_ne_bytes()).unwrap();
            theirs.write_all(&[0; wire::HOST - 8]).unwrap();
        }
        daemon
            .owners("L", "R", Path::new("/x"), AT_ONCE)
            .map_err(|e| e.to_string())
    };
    let length = |hosts: usize| (HEADER + RESOURCE + hosts * wire::HOST) as u32;
    assert_eq!(answer(2, 2, length(2)), Ok(vec![7, 8]));
    assert_eq!(answer(0, 0, length(0)), Ok(vec![]));
    assert!(
        answer(3, 2, length(2))
            .unwrap_err()
            .contains("3 hosts in 64 bytes")
    );
    assert!(answer(u32::MAX, 2, length(2)).is_err());
    assert!(
        answer(1, 1, u32::MAX)
            .unwrap_err()
            .contains("makes no sense")
    );
}
