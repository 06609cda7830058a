//! Descriptors that never make the caller wait, whatever flags they share with other processes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

/// What a [`Mode::Guarded`] descriptor takes at once: a pipe that polls as writable has room for PIPE_BUF (pipe(7)).
const GUARDED_MAX: usize = libc::PIPE_BUF;
/// A terminal that polls as writable may have room for little (Linux WAKEUP_CHARS, drivers/tty/n_tty.c, is 256).
const GUARDED_TTY_MAX: usize = 64;

/// How not to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Files: the kernel does not wait for anybody. Or O_NONBLOCK on an open file description of our own.
    Direct,
    /// MSG_DONTWAIT per call.
    Socket,
    /// Ask poll(2) first, then move at most this many bytes.
    Guarded(usize),
}

#[derive(Debug)]
struct End {
    fd: OwnedFd,
    mode: Mode,
}

impl End {
    fn new(fd: OwnedFd, access: libc::c_int) -> io::Result<Self> {
        let stat = stat(&fd)?;
        let mode = match stat.st_mode & libc::S_IFMT {
            libc::S_IFSOCK => Mode::Socket,
            libc::S_IFIFO => return Ok(Self::reopened(fd, access, GUARDED_MAX)),
            // A terminal that can be opened anew: virtual and serial ones (4), pseudo-terminal slaves (136 to 143,
            // Documentation/admin-guide/devices.txt). Opening a master anew would make another pair.
            libc::S_IFCHR if matches!(libc::major(stat.st_rdev), 4 | 136..=143) => {
                return Ok(Self::reopened(fd, access, GUARDED_TTY_MAX));
            }
            libc::S_IFCHR => Mode::Guarded(GUARDED_TTY_MAX),
            _ => Mode::Direct,
        };
        Ok(Self { fd, mode })
    }

    /// A second open file description of the same pipe or terminal, so that O_NONBLOCK is ours alone. Not possible
    /// without /proc, for another user's pipe, or for a named pipe whose reader is gone.
    fn reopened(fd: OwnedFd, access: libc::c_int, guarded: usize) -> Self {
        let path = format!("/proc/self/fd/{}\0", fd.as_raw_fd());
        let flags = access | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let new = unsafe { libc::open(path.as_ptr().cast(), flags) };
        if new < 0 {
            return Self {
                fd,
                mode: Mode::Guarded(guarded),
            };
        }
        Self {
            // SAFETY: open() just returned it, nobody else has it.
            fd: unsafe { OwnedFd::from_raw_fd(new) },
            mode: Mode::Direct,
        }
    }

    /// The vectors to use for one call, and whether the descriptor may be used now.
    fn admit<'a>(
        &self,
        vectors: &'a [libc::iovec],
        short: &'a mut libc::iovec,
        events: libc::c_short,
    ) -> io::Result<&'a [libc::iovec]> {
        let Mode::Guarded(most) = self.mode else {
            return Ok(&vectors[..vectors.len().min(libc::UIO_MAXIOV as usize)]);
        };
        if !ready(self.fd.as_raw_fd(), events)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(first) = vectors.iter().find(|v| v.iov_len > 0) else {
            return Ok(&[]);
        };
        *short = libc::iovec {
            iov_base: first.iov_base,
            iov_len: first.iov_len.min(most),
        };
        Ok(std::slice::from_ref(short))
    }
}

fn stat(fd: &OwnedFd) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: `stat` has room for what the kernel writes.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstat succeeded, so it is filled.
    Ok(unsafe { stat.assume_init() })
}

fn ready(fd: RawFd, events: libc::c_short) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call; a timeout of 0 returns at once.
    match unsafe { libc::poll(&mut poll, 1, 0) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

fn header(vectors: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: no name, no vectors, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_ptr().cast_mut();
    header.msg_iovlen = vectors.len();
    header
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Where input comes from. Reads return `WouldBlock` instead of waiting, and 0 at the end of the input.
#[derive(Debug)]
pub struct ReadEnd(End);

impl ReadEnd {
    /// Takes over a readable descriptor.
    ///
    /// # Errors
    /// When it is not open.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(End::new(fd, libc::O_RDONLY)?))
    }

    /// Reads into `buf`.
    ///
    /// # Errors
    /// Of readv(2) or recvmsg(2); `WouldBlock` when there is nothing yet.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let vector = libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: the vector is the whole of `buf`, which is borrowed for the call.
        unsafe { self.readv(&[vector]) }
    }

    /// Reads into several places, at most UIO_MAXIOV of them.
    ///
    /// # Errors
    /// As for [`Self::read`].
    ///
    /// # Safety
    /// Every vector must be memory that may be written for the length of the call.
    pub unsafe fn readv(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let mut short = EMPTY;
        let vectors = self.0.admit(vectors, &mut short, libc::POLLIN)?;
        let fd = self.0.fd.as_raw_fd();
        outcome(match self.0.mode {
            // SAFETY: the caller vouches for the vectors; the header lives as long as the call.
            Mode::Socket => unsafe { libc::recvmsg(fd, &mut header(vectors), libc::MSG_DONTWAIT) },
            // SAFETY: the caller vouches for the vectors.
            _ => unsafe { libc::readv(fd, vectors.as_ptr(), vectors.len() as libc::c_int) },
        })
    }
}

/// Where output goes. Writes return `WouldBlock` instead of waiting. SIGPIPE must be ignored, as Rust programs do.
#[derive(Debug)]
pub struct WriteEnd(End);

impl WriteEnd {
    /// Takes over a writable descriptor.
    ///
    /// # Errors
    /// When it is not open.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(End::new(fd, libc::O_WRONLY)?))
    }

    /// Writes from `buf`.
    ///
    /// # Errors
    /// Of writev(2) or sendmsg(2); `WouldBlock` when there is no room, `BrokenPipe` when nobody reads any more.
    pub fn write(&self, buf: &[u8]) -> io::Result<usize> {
        let vector = libc::iovec {
            iov_base: buf.as_ptr().cast_mut().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: the vector is the whole of `buf`, which is borrowed for the call and only read.
        unsafe { self.writev(&[vector]) }
    }

    /// Writes from several places, at most UIO_MAXIOV of them.
    ///
    /// # Errors
    /// As for [`Self::write`].
    ///
    /// # Safety
    /// Every vector must be memory that may be read for the length of the call.
    pub unsafe fn writev(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let mut short = EMPTY;
        let vectors = self.0.admit(vectors, &mut short, libc::POLLOUT)?;
        let fd = self.0.fd.as_raw_fd();
        outcome(match self.0.mode {
            // SAFETY: the caller vouches for the vectors; the header lives as long as the call.
            Mode::Socket => unsafe {
                libc::sendmsg(
                    fd,
                    &header(vectors),
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            },
            // SAFETY: the caller vouches for the vectors.
            _ => unsafe { libc::writev(fd, vectors.as_ptr(), vectors.len() as libc::c_int) },
        })
    }
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

impl AsRawFd for ReadEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl AsRawFd for WriteEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}
