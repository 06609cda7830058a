//! The parent: opens the image, starts the child, and believes nothing that it says.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Request;
use super::frames::Frame;
use crate::sys;

/// The hidden verb of the child.
pub const VERB: [&str; 2] = ["image", "inside"];
/// How long the child may be silent. It tells what it finds as it finds it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an image cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InsideError {
    /// It cannot be opened.
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("{} is neither a regular file nor a block device", .0.display())]
    NoImage(PathBuf),
    /// The child does not start.
    #[error("cannot start the process that looks into images")]
    Start(#[source] io::Error),
    /// What the child found wrong.
    #[error("{}: {}", .0.display(), .1)]
    Told(PathBuf, String),
    /// The child came to a bad end: something in the image led it astray.
    #[error("{}: the process that looks into it came to a bad end ({}): it is damaged, or made to do harm", .0.display(), .1)]
    Ended(PathBuf, ExitStatus),
    /// The child says nothing any more.
    #[error("{}: the process that looks into it has said nothing for {} s", .0.display(), .1.as_secs())]
    Silent(PathBuf, Duration),
    /// The child says what it should not.
    #[error("{}: the process that looks into it talks nonsense: {}", .0.display(), .1)]
    Nonsense(PathBuf, String),
    /// What stands behind `#` is no number.
    #[error("{}: {:?} is no partition number; {}#1 is its first partition", .0.display(), .1, .0.display())]
    NoNumber(PathBuf, String),
    /// There is nothing to copy into.
    #[error("there is no directory {}: mkdir -p {} makes it", .0.display(), .0.display())]
    NoDirectory(PathBuf),
    /// Something has the name already.
    #[error("{0} is there already, and nothing is replaced: remove it, or name another directory")]
    There(String),
    /// What was found cannot be written.
    #[error("cannot write {}", .0)]
    Write(String, #[source] io::Error),
    /// There are more files than was agreed to.
    #[error("{} tells of more than {} files; --entries N allows more", .0.display(), .1)]
    TooMany(PathBuf, u64),
    /// Directories within directories without end.
    #[error("{} tells of more than {} directories within each other", .0.display(), .1)]
    TooDeep(PathBuf, usize),
    /// A signal came.
    #[error("{}: the copy was interrupted, and nothing of it stays", .0.display())]
    Interrupted(PathBuf),
    /// There is more of it than was agreed to.
    #[error("{} holds files of more than {} bytes in all; --limit SIZE allows more", .0.display(), .1)]
    TooMuch(PathBuf, u64),
}

/// An image, open for reading.
#[derive(Debug)]
pub struct Image {
    /// Its name, for messages.
    pub path: PathBuf,
    file: File,
}

impl Image {
    /// Opens one. Nothing of it is read.
    ///
    /// # Errors
    /// It cannot be opened, or is something else.
    pub fn open(path: &Path) -> Result<Self, InsideError> {
        let file = OpenOptions::new()
            .read(true)
            // A pipe without a writer must not hold us up.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = file.map_err(|e| match no_number(path) {
            Some((image, word)) if e.kind() == io::ErrorKind::NotFound => {
                InsideError::NoNumber(image, word)
            }
            _ => InsideError::Open(path.to_owned(), e),
        })?;
        let kind = file.metadata().map(|m| m.file_type());
        let kind = kind.map_err(|e| InsideError::Open(path.to_owned(), e))?;
        if !kind.is_file() && !kind.is_block_device() {
            return Err(InsideError::NoImage(path.to_owned()));
        }
        Ok(Image {
            path: path.to_owned(),
            file,
        })
    }

    /// Length of the file, bytes.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn length(&self) -> Result<u64, InsideError> {
        let mut file = &self.file;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))
            .map_err(|e| InsideError::Open(self.path.clone(), e))
    }

    /// Asks a child of its own, and hands on what it tells.
    ///
    /// # Errors
    /// What went wrong, there or with what was told.
    pub fn ask(
        &self,
        request: &Request,
        each: &mut dyn FnMut(Frame) -> Result<(), InsideError>,
    ) -> Result<(), InsideError> {
        let request = serde_json::to_string(request).map_err(|e| InsideError::Start(e.into()))?;
        let image = self.file.try_clone().map_err(InsideError::Start)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(VERB)
            .arg(request)
            .env_clear()
            .current_dir("/")
            .stdin(image)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        sys::end_with_this_thread(&mut command);
        let mut running = Running(command.spawn().map_err(InsideError::Start)?);
        let pipe = running.0.stdout.take();
        let pipe = pipe.ok_or_else(|| InsideError::Start(io::ErrorKind::BrokenPipe.into()))?;
        let mut pipe = BufReader::with_capacity(super::frames::MOST, Timed(pipe));
        loop {
            match Frame::read(&mut pipe) {
                Ok(Some(Frame::Done)) => return Ok(()),
                Ok(Some(Frame::Failed(why))) => {
                    return Err(InsideError::Told(self.path.clone(), why));
                }
                Ok(Some(frame)) => each(frame)?,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    return Err(InsideError::Silent(self.path.clone(), PATIENCE));
                }
                Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(self.nonsense(&e.to_string()));
                }
                // It ended in the middle.
                Ok(None) | Err(_) => {
                    let status = running.0.wait().map_err(InsideError::Start)?;
                    return Err(InsideError::Ended(self.path.clone(), status));
                }
            }
        }
    }

    /// What the child says cannot be.
    pub(super) fn nonsense(&self, what: &str) -> InsideError {
        InsideError::Nonsense(self.path.clone(), what.to_owned())
    }
}

/// What stands before and from the last `#` on, where the former is the name of a file.
fn no_number(path: &Path) -> Option<(PathBuf, String)> {
    let bytes = path.as_os_str().as_bytes();
    let at = bytes.iter().rposition(|b| *b == b'#')?;
    let (image, word) = bytes.split_at_checked(at)?;
    let image = PathBuf::from(OsStr::from_bytes(image));
    let word = String::from_utf8_lossy(word).into_owned();
    image.is_file().then_some((image, word))
}

/// A child that is gone with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended on its own; nobody asks for it again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipe that is not waited for any longer than is agreed.
struct Timed(ChildStdout);

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match sys::wait_readable(&self.0, Some(Instant::now() + PATIENCE))? {
            true => self.0.read(buffer),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
