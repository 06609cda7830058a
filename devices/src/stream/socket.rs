//! Listening UNIX sockets with an orderly life.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{Ends, ReadEnd, StreamError, WriteEnd};

/// A listening socket. Its file is removed when it is dropped, unless another file took its place.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    identity: (u64, u64),
    input: bool,
    output: bool,
}

impl Listener {
    /// Listens on `path`. A socket file that nobody listens on is replaced. Clients serve the directions given.
    ///
    /// # Errors
    /// [`StreamError`] when the path is taken by something alive or something else, or cannot be created.
    pub fn bind(path: &Path, input: bool, output: bool) -> Result<Self, StreamError> {
        let failed = |source| StreamError::Listen {
            path: path.to_owned(),
            source,
        };
        let socket = match bind_private(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                clear(path)?;
                bind_private(path)
            }
            other => other,
        }
        .map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let identity = (metadata.st_dev(), metadata.st_ino());
        Ok(Self {
            socket,
            path: path.to_owned(),
            identity,
            input,
            output,
        })
    }

    /// Takes the next client, if one waits.
    pub(super) fn accept(&self) -> io::Result<Ends> {
        let (client, _) = self.socket.accept()?;
        // The output end exists even where output is not wanted: it tells when the client leaves.
        let input = match self.input {
            true => Some(ReadEnd::new(client.try_clone()?.into())?),
            false => None,
        };
        let output = Some(WriteEnd::new(client.into())?);
        Ok(Ends {
            input,
            output,
            listener: None,
        })
    }

    /// Whether output goes to the client.
    pub(super) fn takes_output(&self) -> bool {
        self.output
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|m| (m.st_dev(), m.st_ino()) == self.identity);
        if ours {
            // It may have been removed meanwhile, which is just as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens on.
fn clear(path: &Path) -> Result<(), StreamError> {
    let path = path.to_owned();
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(StreamError::NotASocket { path });
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    match UnixStream::connect(&path) {
        Ok(_) => Err(StreamError::InUse { path }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).map_err(|source| StreamError::Listen { path, source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Full backlog, or not ours to connect to: somebody may well be alive behind it.
        Err(source) => Err(StreamError::Listen { path, source }),
    }
}

/// Creates the socket with mode 0600 from the start: Linux takes the mode of the file from the socket's own
/// (`unix_bind_bsd`, net/unix/af_unix.c), and the process's umask can only narrow it.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    use std::os::unix::ffi::OsStrExt as _;

    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() just returned it, nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no memory is passed.
    if unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) || bytes.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a UNIX socket has 1 to 107 bytes and no NUL",
        ));
    }
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is initialised and `length` is its size.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is passed.
    if unsafe { libc::listen(fd.as_raw_fd(), 16) } < 0 {
        let error = io::Error::last_os_error();
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(fd))
}
