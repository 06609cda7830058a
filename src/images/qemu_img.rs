//! Images of formats that `qemu-img create` makes.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;

use super::place::own_descriptor;
use super::{Encryption, ImageError, ImageSpec, Progress, Secret, allocated};

/// What is kept of the program's messages, bytes; the rest is read and forgotten.
const MESSAGE: usize = 4 << 10;
/// What QEMU says when it could not tell how fast the processor is.
const BAD_MEASURE: &str = "Unable to get accurate CPU usage";
/// How often it may measure; with each second one failing, less than one creation in 10^12 fails.
const MEASURES: u32 = 40;
/// How often progress is looked at, nanoseconds.
const TICK: i64 = 100_000_000;

/// The first `qemu-img` in `search`.
pub(super) fn find(search: Option<&OsStr>) -> Option<PathBuf> {
    crate::trust::program("qemu-img", search)
}

/// The arguments between `create` and the file: our own words and numbers, never the user's text.
pub(super) fn arguments(spec: &ImageSpec) -> Vec<String> {
    let mut options = vec![
        "compat=1.1".to_owned(),
        format!("preallocation={}", spec.preallocation.word()),
    ];
    if let Some(bytes) = spec.cluster_size {
        options.push(format!("cluster_size={bytes}"));
    }
    if let Some(lazy) = spec.lazy_refcounts {
        options.push(format!(
            "lazy_refcounts={}",
            if lazy { "on" } else { "off" }
        ));
    }
    if let Some(compression) = spec.compression_type {
        options.push(format!("compression_type={}", compression.word()));
    }
    let mut arguments = vec!["-q".to_owned(), "-f".into(), spec.format.word().into()];
    if spec.encryption == Encryption::Luks {
        options.push(format!(
            "encrypt.format=luks,encrypt.key-secret=disk,encrypt.iter-time={}",
            spec.iter_time.as_millis().max(1)
        ));
        arguments.extend([
            "--object".into(),
            "secret,id=disk,file=/proc/self/fd/0".into(),
        ]);
    }
    arguments.extend(["-o".into(), options.join(",")]);
    arguments
}

/// Runs the program on `image`, an empty file, which it inherits.
///
/// With LUKS, QEMU with its commit c72cab5ad9f8 (2024; Debian 12 has it) fails on fast processors, because it measures
/// the work of a key for less time than the kernel's clock resolves. It fails within a tenth of a second, here more
/// often than not, and starts from nothing each time.
pub(super) fn create(
    program: &Path,
    spec: &ImageSpec,
    image: &File,
    secret: Option<&Secret>,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let mut tries = 1;
    loop {
        match create_once(program, spec, image, secret, progress) {
            Err(ImageError::QemuImg { message, .. })
                if message.contains(BAD_MEASURE) && tries < MEASURES => {}
            result => return result,
        }
        tries += 1;
    }
}

fn create_once(
    program: &Path,
    spec: &ImageSpec,
    image: &File,
    secret: Option<&Secret>,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let failed = |e: io::Error| ImageError::Run(program.to_owned(), e);
    let handed = secret.map(Secret::hand_over).transpose()?;
    let stdin = match &handed {
        Some(handed) => handed.descriptor().map_err(ImageError::PassSecret)?.into(),
        None => Stdio::null(),
    };
    let target = own_descriptor(image);
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .arg("create")
        .args(arguments(spec))
        .arg(&target)
        .arg(spec.size.to_string())
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    crate::sys::end_with_this_thread(&mut command);
    // Inherited for a moment; a program that another thread starts just then would learn nothing secret by it.
    rustix::io::fcntl_setfd(image, FdFlags::empty()).map_err(|e| failed(e.into()))?;
    let started = command.spawn();
    rustix::io::fcntl_setfd(image, FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut running = Running::new(started.map_err(failed)?);
    let total = spec.to_allocate();
    let status = loop {
        if let Some(status) = running.step().map_err(failed)? {
            break status;
        }
        let done = allocated(image).map_err(failed)?;
        let done = total.map_or(done, |total| done.min(total));
        if progress.advance(done, total).is_break() {
            return Err(ImageError::Interrupted);
        }
    };
    if status.success() {
        return Ok(());
    }
    let shown = spec.path.display().to_string();
    Err(ImageError::QemuImg {
        status: status_text(status),
        message: running.message(&target, &shown),
    })
}

fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => status.to_string(),
    }
}

/// The program while it runs; killed when this goes.
struct Running {
    child: Child,
    /// Readable when it has ended; not there before Linux 5.3.
    ended: Option<OwnedFd>,
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        Self {
            ended: crate::sys::pidfd_open(child.id()).ok(),
            stderr: child.stderr.take(),
            said: Vec::new(),
            child,
        }
    }

    /// Waits until it says something, ends, or a tick is over; its status when it has ended.
    fn step(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut fds = Vec::with_capacity(2);
        if let Some(stderr) = &self.stderr {
            fds.push(PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN));
        }
        if let Some(ended) = &self.ended {
            fds.push(PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN));
        }
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK,
        };
        match rustix::event::poll(&mut fds, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let speaks =
            self.stderr.is_some() && fds.first().is_some_and(|fd| !fd.revents().is_empty());
        if speaks {
            self.listen()?;
            // More may be there, and counts until there is enough of it.
            if self.said.len() < MESSAGE {
                return Ok(None);
            }
        }
        self.child.try_wait()
    }

    fn listen(&mut self) -> io::Result<()> {
        let Some(stderr) = &mut self.stderr else {
            return Ok(());
        };
        let mut piece = [0; 4096];
        match stderr.read(&mut piece) {
            Ok(0) => self.stderr = None,
            Ok(n) => {
                let room = MESSAGE.saturating_sub(self.said.len()).min(n);
                self.said.extend(piece.iter().take(room));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// What it said, on one line, about the file that the user knows.
    fn message(&self, target: &str, shown: &str) -> String {
        // It cannot remove what has no name, and nobody wants it to.
        let deleting = format!("Error when deleting file {target}");
        let said = String::from_utf8_lossy(&self.said);
        let lines: Vec<_> = said
            .lines()
            .map(|line| line.strip_prefix("qemu-img: ").unwrap_or(line).trim())
            .filter(|line| !line.is_empty() && !line.starts_with(&deleting))
            .map(|line| crate::diag::shown(&line.replace(target, shown)))
            .collect();
        match lines.is_empty() {
            true => "it said nothing".into(),
            false => lines.join("; "),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
