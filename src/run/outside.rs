//! What is written after a machine has ended, when its process may open no file any more: by a child that was started
//! before the confinement, does the one or two errands it was made for, and ends with its parent.
//!
//! It knows where to write from the beginning; what comes through the socket is only what. So a guest that took over
//! the monitor could fill these files with nonsense, and nothing else.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// What is to be done with the bytes that it is given.
type Work<'a> = Box<dyn FnMut(&[u8]) -> Result<(), String> + 'a>;

/// Things that a run may have to do at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Errand {
    /// The result file.
    Result,
    /// The state of a saved VM.
    State,
    /// A file of a lockspace.
    Lock,
}

/// Errands to come.
#[derive(Default)]
pub(crate) struct Errands<'a> {
    work: Vec<(Errand, Work<'a>)>,
    /// What is written to is a descriptor of this process.
    keep_descriptors: bool,
}

impl<'a> Errands<'a> {
    /// Adds one.
    pub(crate) fn add(
        &mut self,
        errand: Errand,
        work: impl FnMut(&[u8]) -> Result<(), String> + 'a,
    ) {
        self.work.push((errand, Box::new(work)));
    }

    /// The child keeps the descriptors of this process, because an errand needs one of them.
    pub(crate) fn keep_descriptors(&mut self) {
        self.keep_descriptors = true;
    }
}

/// Longest text of an errand, bytes: a result has the guest's last lines in it, 64 KiB of them at most.
const LENGTH_MAX: u64 = 16 << 20;

/// The child.
#[derive(Debug)]
pub(crate) struct Outside {
    stream: UnixStream,
    child: libc::pid_t,
}

impl Outside {
    /// Starts the child, if there is anything to be done by it. This process must have no other thread yet.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) fn start(errands: Errands<'_>) -> io::Result<Option<Self>> {
        if errands.work.is_empty() {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: there is no other thread, so the child may do whatever the parent may.
        let child = unsafe { libc::fork() };
        match child {
            ..0 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                // The machine's name, if it shows one, is that of the process that runs it.
                let _ = rustix::thread::set_name(c"vsc-outside");
                serve(theirs, errands);
                // SAFETY: ends the child without the destructors of what belongs to the parent.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Some(Self {
                stream: ours,
                child,
            })),
        }
    }

    /// Has it done.
    ///
    /// # Errors
    /// What the errand says, or that the child is gone.
    pub(crate) fn run(&mut self, errand: Errand, text: &[u8]) -> Result<(), String> {
        let answer = self.ask(errand, text);
        let answer = answer.map_err(|e| format!("the process that was to do it is gone: {e}"))?;
        if answer.is_empty() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&answer).into_owned())
        }
    }

    fn ask(&mut self, errand: Errand, text: &[u8]) -> io::Result<Vec<u8>> {
        send(&mut self.stream, errand as u8, text)?;
        Ok(receive(&mut self.stream)?.1)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Shut down already when the child is gone.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let mut status = 0;
        // SAFETY: a child of ours, which ends when its socket does; nobody else waits for it.
        while unsafe { libc::waitpid(self.child, &mut status, 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

/// The child's life: errands until the parent is gone.
fn serve(mut stream: UnixStream, mut errands: Errands<'_>) {
    // SAFETY: all-zero is a valid set. What ends the parent by a key of the terminal must not end its errand.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
    if !errands.keep_descriptors {
        close_all_but(stream.as_raw_fd() as u32);
    }
    while let Ok((number, text)) = receive(&mut stream) {
        let work = errands
            .work
            .iter_mut()
            .find(|(errand, _)| *errand as u8 == number);
        let answer = match work {
            Some((_, work)) => work(&text).err().unwrap_or_default(),
            None => "there is no such errand".to_owned(),
        };
        if send(&mut stream, number, answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Closes what the machine has open: others wait for its end, or hold locks on it. Standard streams stay.
fn close_all_but(kept: u32) {
    let first = libc::STDERR_FILENO as u32 + 1;
    for (from, to) in [(first, kept - 1), (kept + 1, u32::MAX)] {
        if from <= to {
            // SAFETY: nothing uses these descriptors in this process. Linux before 5.9 keeps them, which costs their
            // peers a little patience.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    }
}

fn send(stream: &mut UnixStream, number: u8, text: &[u8]) -> io::Result<()> {
    let mut message = vec![number];
    message.extend((text.len() as u64).to_le_bytes());
    message.extend(text);
    stream.write_all(&message)
}

fn receive(stream: &mut UnixStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [number, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    if length > LENGTH_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok((number, text))
}
