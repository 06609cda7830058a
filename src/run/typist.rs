//! What a person types, on its way from the terminal to the guest: without the escape key, and never in the way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::terminal::{self, Escape, EscapeFilter};

/// Typed bytes that wait for a guest which does not read, before no more are read: then the terminal holds what is
/// typed, the escape key too. More than anybody types, and than most people paste.
const TYPED_MAX: usize = 1 << 20;

/// What was typed, on its way to the guest.
pub(super) struct Typist {
    stdin: File,
    pipe: File,
    waiting: Vec<u8>,
    filter: EscapeFilter,
    open: bool,
}

impl Typist {
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (end, pipe) = io::pipe()?;
        let pipe = File::from(OwnedFd::from(pipe));
        // SAFETY: plain system call on a descriptor we own; the flag is on our end only.
        if unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let typist = Self {
            stdin: File::from(io::stdin().as_fd().try_clone_to_owned()?),
            pipe,
            waiting: Vec::new(),
            filter: EscapeFilter::default(),
            open: true,
        };
        Ok((typist, end.into()))
    }

    /// What to wait for input on, while the terminal is the guest's.
    pub(super) fn input(&self) -> Option<RawFd> {
        (self.has_room() && terminal::is_raw()).then(|| self.stdin.as_raw_fd())
    }

    /// Where to write next, while there is something to write.
    pub(super) fn output(&self) -> Option<RawFd> {
        (!self.waiting.is_empty()).then(|| self.pipe.as_raw_fd())
    }

    fn has_room(&self) -> bool {
        self.open && self.waiting.len() < TYPED_MAX
    }

    pub(super) fn read(&mut self) -> Vec<Escape> {
        let mut chunk = [0u8; 1024];
        match self.stdin.read(&mut chunk) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Vec::new()
            }
            // EIO, but not because it hung up.
            Err(_) if terminal::lost() => Vec::new(),
            Ok(0) | Err(_) => {
                self.open = false;
                Vec::new()
            }
            Ok(n) => {
                let (bytes, asked) = self.filter.filter(&chunk[..n]);
                self.waiting.extend(bytes);
                self.write();
                asked
            }
        }
    }

    pub(super) fn write(&mut self) {
        while !self.waiting.is_empty() {
            match self.pipe.write(&self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.waiting.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_reads_late_gets_all_that_was_typed() {
        let (typed, mut keyboard) = io::pipe().unwrap();
        let (mut typist, guest) = Typist::new().unwrap();
        typist.stdin = File::from(OwnedFd::from(typed));
        let pasted: Vec<u8> = (0..2 * TYPED_MAX as u32)
            .map(|n| (n / 7 % 100) as u8 + 32)
            .collect();
        let expected = pasted.clone();
        let person = std::thread::spawn(move || keyboard.write_all(&pasted));
        while typist.has_room() {
            typist.read();
        }
        assert!(typist.open && typist.waiting.len() < TYPED_MAX + 1024);
        let mut guest = File::from(guest);
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            guest.read_to_end(&mut got).map(|_| got)
        });
        while typist.open || !typist.waiting.is_empty() {
            if typist.has_room() {
                typist.read();
            }
            typist.write();
        }
        drop(typist);
        person.join().unwrap().unwrap();
        assert!(reader.join().unwrap().unwrap() == expected);
    }
}
