//! Opening an image, and finding out what it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::super::lock::{self, Access, Lock, LockError};
use super::super::{Geometry, OpenError};
use super::RawOptions;
use super::bounce::Buffer;

// linux/fs.h: _IO(0x12, n), _IOR(0x12, 114, size_t).
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
// linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// What O_DIRECT demands, bytes; 1 where nothing is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Align {
    /// Of addresses in memory.
    pub(super) memory: usize,
    /// Of offsets and lengths.
    pub(super) offset: u64,
}

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) geometry: Geometry,
    /// End of the file; up to a block less than the size of the disk.
    pub(super) end: u64,
    pub(super) align: Align,
    /// The store is memory: no call on it waits for a device.
    pub(super) memory: bool,
}

/// Opens and locks `path`.
pub(super) fn open(path: &Path, options: &RawOptions) -> Result<Opened, OpenError> {
    let read_only = options.read_only;
    let failed = |source| OpenError::Inspect {
        path: path.to_owned(),
        source,
    };
    if let Some(file) = options.keep.get().map_err(failed)? {
        return inspect(path, file, options);
    }
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            // Non-blocking, lest a pipe holds us up.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags)
            .open(path)
            .map_err(|e| open_error(path, read_only, e))
    };
    let mut file = open(0)?;
    let device = |file: &File| file.metadata().map(|m| (m.file_type(), m.rdev()));
    if let Ok((kind, number)) = device(&file)
        && kind.is_block_device()
        && !read_only
        && options.lock == Lock::Exclusive
    {
        // Locks are of the node, and a device can have several; the kernel's own claim (man 2 open, O_EXCL) is of the
        // device, and what is mounted or part of a volume has it.
        file = open(libc::O_EXCL)?;
        if !matches!(device(&file), Ok((kind, now)) if kind.is_block_device() && now == number) {
            return Err(OpenError::Busy {
                path: path.to_owned(),
            });
        }
    }
    let opened = inspect(path, file, options)?;
    options.keep.put(&opened.file).map_err(failed)?;
    Ok(opened)
}

fn lock(file: &File, device: bool, fs_type: i64, options: &RawOptions) -> Result<(), LockError> {
    let access = Access {
        write: !options.read_only,
        resize: false,
        lock: options.lock,
        device,
        flock: lock::flock_is_separate(fs_type),
    };
    match lock::take(file, access) {
        Err(LockError::Unsupported(why)) if options.lockspace => {
            let note = &options.note;
            note(&format!(
                "its file system has no locks ({why}): only the lockspace protects it"
            ));
            Ok(())
        }
        other => other,
    }
}

pub(super) fn open_error(path: &Path, read_only: bool, source: io::Error) -> OpenError {
    let path = path.to_owned();
    let kind = |p: &Path| p.metadata().ok().map(|m| m.file_type());
    match source.raw_os_error() {
        Some(libc::ENOENT) => OpenError::Missing { path },
        Some(libc::EISDIR) => OpenError::Directory { path },
        Some(libc::EACCES | libc::EPERM) => {
            let readable = !read_only && File::open(&path).is_ok();
            let hint = if readable {
                " for writing; it can be given as read-only"
            } else {
                ""
            };
            OpenError::Permission { path, hint }
        }
        Some(libc::EROFS) => OpenError::ReadOnlyFileSystem { path },
        Some(libc::EBUSY | libc::ETXTBSY) => OpenError::Busy { path },
        Some(libc::ENXIO) if kind(&path).is_some_and(|k| k.is_socket()) => OpenError::NotADisk {
            path,
            what: "a socket",
        },
        _ => OpenError::Open { path, source },
    }
}

/// Goes on with a file opened elsewhere, and locks it before anything of it is read; `path` is for messages.
/// [`RawOptions::block`]: the size is made a multiple of it, or has to be one.
pub(super) fn inspect(path: &Path, file: File, options: &RawOptions) -> Result<Opened, OpenError> {
    let RawOptions {
        read_only,
        direct,
        block,
        ..
    } = *options;
    let failed = |source| OpenError::Inspect {
        path: path.to_owned(),
        source,
    };
    let meta = file.metadata().map_err(failed)?;
    let kind = meta.file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        return Err(OpenError::Directory {
            path: path.to_owned(),
        });
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a character device")
    };
    if let Some(what) = what {
        return Err(OpenError::NotADisk {
            path: path.to_owned(),
            what,
        });
    }
    let device = kind.is_block_device();
    let fs_type = if device { 0 } else { fs_type(&file) };
    lock(&file, device, fs_type, options).map_err(|error| {
        let path = path.to_owned();
        match error {
            LockError::Held(by) => OpenError::Locked {
                path,
                read_only,
                by,
            },
            LockError::Unsupported(source) => OpenError::NoLocks { path, source },
            LockError::Failed(source) => OpenError::Lock { path, source },
        }
    })?;
    set_direct(&file, direct).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => OpenError::NoDirectIo {
            path: path.to_owned(),
        },
        _ => failed(source),
    })?;

    let memory = matches!(fs_type, TMPFS_MAGIC | RAMFS_MAGIC);
    let end = if device {
        device_u64(&file, BLKGETSIZE64).map_err(failed)?
    } else {
        meta.len()
    };
    if end == 0 {
        return Err(OpenError::Empty {
            path: path.to_owned(),
        });
    }
    let align = if direct && !memory {
        direct_align(&file, device)
    } else {
        Align {
            memory: 1,
            offset: 1,
        }
    };
    // Alignments are powers of two, at most a few pages.
    let block = block.max(align.offset as u32);
    let size = end.next_multiple_of(u64::from(block));
    if size != end && !read_only {
        return Err(OpenError::OddSize {
            path: path.to_owned(),
            size: end,
            block,
        });
    }
    let physical = if device {
        device_u32(&file, BLKPBSZGET)
    } else {
        u32::try_from(meta.blksize()).ok()
    };
    let physical = physical
        .filter(|b| b.is_power_of_two() && (512..=1 << 20).contains(b))
        .unwrap_or(4096);
    let optimal_io = if device {
        device_u32(&file, BLKIOOPT).unwrap_or(0)
    } else {
        0
    };
    Ok(Opened {
        geometry: Geometry {
            size,
            read_only,
            physical_block: physical,
            optimal_io,
            discard_granularity: physical,
        },
        file,
        end,
        align,
        memory,
    })
}

/// Sets the file's status flags to O_DIRECT or nothing: O_NONBLOCK would make io_uring give up instead of wait.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: fcntl with an integer argument on an open descriptor.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The type of the file system (man 2 statfs), 0 where it does not say.
fn fs_type(file: &File) -> i64 {
    let mut info = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: statfs fills the structure it is given; all zeroes is a valid one anyway.
    let info = unsafe {
        if libc::fstatfs(file.as_raw_fd(), info.as_mut_ptr()) != 0 {
            return 0;
        }
        info.assume_init()
    };
    info.f_type
}

fn direct_align(file: &File, device: bool) -> Align {
    let mut info = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; statx fills the structure it is given,
    // and all zeroes is a valid one anyway.
    let info = unsafe {
        // Not libc::statx: the standard library names that symbol as one that may be missing, and in a static program,
        // where nobody else asks for it, it then is.
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            info.as_mut_ptr(),
        );
        info.assume_init()
    };
    let (memory, offset) = (info.stx_dio_mem_align, info.stx_dio_offset_align);
    let known = info.stx_mask & libc::STATX_DIOALIGN != 0;
    if known && memory.is_power_of_two() && offset.is_power_of_two() && offset <= 1 << 16 {
        return Align {
            memory: memory as usize,
            offset: u64::from(offset),
        };
    }
    // Linux before 6.1, or a file system that does not say.
    let sector = device.then(|| device_u32(file, BLKSSZGET)).flatten();
    if let Some(sector) = sector.filter(|s| s.is_power_of_two()) {
        return Align {
            memory: sector as usize,
            offset: u64::from(sector),
        };
    }
    let step = if reads_at(file, 512) { 512 } else { 4096 };
    Align {
        memory: step,
        offset: step as u64,
    }
}

fn reads_at(file: &File, step: usize) -> bool {
    let mut buffer = Buffer::new(2 * step, 4096);
    let part = buffer.bytes().get_mut(step..);
    part.is_some_and(|part| file.read_at(part, step as u64).is_ok())
}

fn device_u64(file: &File, request: libc::c_ulong) -> io::Result<u64> {
    let mut value = 0u64;
    // SAFETY: the request writes one u64.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn device_u32(file: &File, request: libc::c_ulong) -> Option<u32> {
    let mut value = 0u32;
    // SAFETY: the request writes one 32-bit integer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
    (result == 0).then_some(value)
}
