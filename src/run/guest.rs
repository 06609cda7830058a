//! The control port of our init (`vsc.ctl`): what it tells and what it can be told.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Longest line that is believed; a longer one is a guest that does not speak the protocol.
const LINE_MAX: usize = 4096;

/// A line from init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// User space runs.
    Ready,
    /// The command runs.
    Started(u32),
    /// The command ended with this status.
    Exit(u8),
    /// A signal killed the command.
    Signal(u8),
    /// The command could not be executed: errno and path.
    NoExec(i32, String),
    /// Something else went wrong in init.
    Error(String),
}

/// The host's end of the control port.
#[derive(Debug)]
pub(crate) struct GuestControl {
    stream: UnixStream,
    pending: Vec<u8>,
    gone: bool,
}

impl GuestControl {
    /// A control port: our end, and the device's.
    ///
    /// # Errors
    /// The system's reason when there is no socket pair to be had.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, device) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let control = Self {
            stream: ours,
            pending: Vec::new(),
            gone: false,
        };
        Ok((control, device.into()))
    }

    /// The descriptor to poll, while there is something to come.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        (!self.gone).then(|| self.stream.as_raw_fd())
    }

    /// Reads what is there and returns the complete lines. Lines that make no sense become [`Said::Error`].
    pub(crate) fn read(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let mut chunk = [0u8; 4096];
        // A guest that never stops talking must not keep the caller here; what is left is there the next time.
        for _ in 0..16 {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.gone = true,
                Ok(n) => {
                    self.pending.extend_from_slice(&chunk[..n]);
                    self.take_lines(&mut said);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
            return said;
        }
        said
    }

    fn take_lines(&mut self, said: &mut Vec<Said>) {
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            said.push(parse(&String::from_utf8_lossy(&line[..end])));
        }
        if self.pending.len() > LINE_MAX {
            self.pending.clear();
            said.push(Said::Error(
                "a line on the control port was too long".into(),
            ));
        }
    }

    /// Sends a signal to the command.
    pub(crate) fn signal(&mut self, signal: i32) {
        self.send(&format!("signal {signal}\n"));
    }

    /// Tells the size of the terminal.
    pub(crate) fn winsize(&mut self, rows: u16, columns: u16) {
        self.send(&format!("winsize {rows} {columns}\n"));
    }

    /// Asks init to end the machine.
    pub(crate) fn power_off(&mut self) {
        self.send("poweroff\n");
    }

    fn send(&mut self, line: &str) {
        // The socket buffer holds hundreds of such lines; a guest that reads none of them is not asked again.
        if !self.gone && self.stream.write_all(line.as_bytes()).is_err() {
            self.gone = true;
        }
    }
}

fn parse(line: &str) -> Said {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let parsed = match word {
        "ready" => Some(Said::Ready),
        "started" => rest.parse().ok().map(Said::Started),
        "exit" => rest.parse().ok().map(Said::Exit),
        "signal" => rest.parse().ok().map(Said::Signal),
        "noexec" => rest
            .split_once(' ')
            .and_then(|(errno, path)| Some(Said::NoExec(errno.parse().ok()?, path.to_owned()))),
        "error" => Some(Said::Error(rest.to_owned())),
        _ => None,
    };
    parsed.unwrap_or_else(|| {
        Said::Error(format!(
            "the guest said {line:?}, which is not of the protocol"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_whole_however_they_arrive() {
        let (mut control, device) = GuestControl::pair().unwrap();
        let mut guest = UnixStream::from(device);
        guest.write_all(b"ready\nstarted 7\nexi").unwrap();
        assert_eq!(control.read(), [Said::Ready, Said::Started(7)]);
        guest
            .write_all(b"t 255\nsignal 9\nnoexec 2 /bin/no such\nerror mount /proc: x\n")
            .unwrap();
        assert_eq!(
            control.read(),
            [
                Said::Exit(255),
                Said::Signal(9),
                Said::NoExec(2, "/bin/no such".into()),
                Said::Error("mount /proc: x".into())
            ]
        );
        control.signal(2);
        control.winsize(24, 80);
        let expected = b"signal 2\nwinsize 24 80\n";
        let mut got = [0; 23];
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, expected);
    }

    #[test]
    fn nonsense_and_endless_lines_are_reported_not_kept() {
        let (mut control, device) = GuestControl::pair().unwrap();
        let mut guest = UnixStream::from(device);
        guest.write_all(b"exit 256\nhello\n").unwrap();
        assert!(control.read().iter().all(|s| matches!(s, Said::Error(_))));
        guest.write_all(&[b'x'; 2 * LINE_MAX]).unwrap();
        assert_eq!(control.read().len(), 1);
        assert!(control.pending.len() <= LINE_MAX);
        drop(guest);
        assert_eq!(control.read(), []);
        assert_eq!(control.fd(), None);
    }
}
