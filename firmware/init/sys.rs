//! The system calls that PID 1 needs, each with checked results. Numbers and constants: Linux
//! `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/`.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;
use core::fmt;

/// An open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fd(pub i32);

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

pub type Result<T> = core::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        $(#[allow(dead_code)] pub const $name: Errno = Errno($value);)*
        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str($text),)*
                    other => write!(f, "error {other}"),
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted (EPERM)";
    ENOENT = 2, "No such file or directory (ENOENT)";
    EINTR = 4, "Interrupted (EINTR)";
    EIO = 5, "Input/output error (EIO)";
    ENXIO = 6, "No such device or address (ENXIO)";
    E2BIG = 7, "Argument list too long (E2BIG)";
    ENOEXEC = 8, "Exec format error (ENOEXEC)";
    EAGAIN = 11, "Try again (EAGAIN)";
    ENOMEM = 12, "Out of memory (ENOMEM)";
    EACCES = 13, "Permission denied (EACCES)";
    EBUSY = 16, "Device or resource busy (EBUSY)";
    EEXIST = 17, "File exists (EEXIST)";
    ENODEV = 19, "No such device (ENODEV)";
    ENOTDIR = 20, "Not a directory (ENOTDIR)";
    EISDIR = 21, "Is a directory (EISDIR)";
    EINVAL = 22, "Invalid argument (EINVAL)";
    EFBIG = 27, "File too large (EFBIG)";
    EROFS = 30, "Read-only file system (EROFS)";
    EPIPE = 32, "Broken pipe (EPIPE)";
    ENOSYS = 38, "Function not implemented (ENOSYS)";
    EKEYREJECTED = 129, "Key was rejected (EKEYREJECTED)";
}

pub const O_RDONLY: i32 = 0;
pub const O_WRONLY: i32 = 1;
pub const O_RDWR: i32 = 2;
pub const O_NOCTTY: i32 = 0o400;
pub const O_NONBLOCK: i32 = 0o4000;
pub const O_DIRECTORY: i32 = 0o200_000;
pub const O_CLOEXEC: i32 = 0o2_000_000;

pub const S_IFCHR: u32 = 0o020_000;
pub const S_IFBLK: u32 = 0o060_000;

pub const MS_RDONLY: usize = 1;
pub const MS_NOSUID: usize = 2;
pub const MS_NODEV: usize = 4;
pub const MS_NOEXEC: usize = 8;
pub const MS_SYNCHRONOUS: usize = 16;
pub const MS_REMOUNT: usize = 32;
pub const MS_NOATIME: usize = 1024;
pub const MS_MOVE: usize = 8192;

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const POLLERR: i16 = 8;
pub const POLLHUP: i16 = 16;
pub const POLLNVAL: i16 = 32;

pub const SIGHUP: u32 = 1;
pub const SIGINT: u32 = 2;
pub const SIGKILL: u32 = 9;
pub const SIGUSR1: u32 = 10;
pub const SIGUSR2: u32 = 12;
pub const SIGTERM: u32 = 15;
pub const SIGCONT: u32 = 18;
pub const SIGPWR: u32 = 30;

pub const TCSBRK: usize = 0x5409;
pub const TIOCSCTTY: usize = 0x540e;
pub const TIOCSPGRP: usize = 0x5410;
pub const TIOCSWINSZ: usize = 0x5414;

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

/// # Safety
/// The arguments must be valid for system call `number`: pointers to memory of the size that it reads or writes.
unsafe fn call(number: usize, arguments: [usize; 5]) -> Result<usize> {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") 0_usize, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&result) {
        Err(Errno(-result as i32))
    } else {
        Ok(result as usize)
    }
}

fn number(value: i32) -> usize {
    value as isize as usize
}

fn descriptor(value: usize) -> Fd {
    Fd(value as i32)
}

pub fn read(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: read(2) writes at most buffer.len() bytes.
    unsafe {
        call(
            0,
            [
                number(fd.0),
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
            ],
        )
    }
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: write(2) reads bytes.len() bytes.
    unsafe {
        call(
            1,
            [number(fd.0), bytes.as_ptr() as usize, bytes.len(), 0, 0],
        )
    }
}

pub fn open(path: &CStr, flags: i32) -> Result<Fd> {
    // SAFETY: open(2) reads a C string; O_CREAT is never given.
    unsafe {
        call(
            2,
            [path.as_ptr() as usize, number(flags | O_CLOEXEC), 0, 0, 0],
        )
    }
    .map(descriptor)
}

pub fn close(fd: Fd) {
    // SAFETY: close(2) takes a number; an error leaves the descriptor closed.
    let _ = unsafe { call(3, [number(fd.0), 0, 0, 0, 0]) };
}

/// Waits until a file is ready, at most `timeout` milliseconds; negative: for ever. An interruption counts as none.
pub fn poll(fds: &mut [PollFd], timeout: i32) -> usize {
    // SAFETY: poll(2) reads and writes fds.len() structures.
    unsafe {
        call(
            7,
            [fds.as_mut_ptr() as usize, fds.len(), number(timeout), 0, 0],
        )
    }
    .unwrap_or(0)
}

pub fn map_memory(size: usize) -> Result<usize> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
    let arguments = [0, size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, usize::MAX];
    // SAFETY: mmap(2) of new anonymous memory where the kernel likes (offset, the sixth argument, is 0).
    unsafe { call(9, arguments) }
}

/// An ioctl whose argument is a number.
pub fn ioctl(fd: Fd, request: usize, argument: usize) -> Result<usize> {
    // SAFETY: used for requests with a plain number only.
    unsafe { call(16, [number(fd.0), request, argument, 0, 0]) }
}

/// An ioctl whose argument is a structure that the kernel reads, and writes at most in full.
pub fn ioctl_with<T>(fd: Fd, request: usize, argument: &mut T) -> Result<usize> {
    // SAFETY: callers give the structure that the request is defined with.
    unsafe {
        call(
            16,
            [
                number(fd.0),
                request,
                core::ptr::from_mut(argument) as usize,
                0,
                0,
            ],
        )
    }
}

pub fn dup2(from: Fd, to: i32) -> Result<usize> {
    // SAFETY: dup2(2) takes numbers.
    unsafe { call(33, [number(from.0), number(to), 0, 0, 0]) }
}

pub fn socket(domain: usize, kind: usize, protocol: usize) -> Result<Fd> {
    const SOCK_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: socket(2) takes numbers.
    unsafe { call(41, [domain, kind | SOCK_CLOEXEC, protocol, 0, 0]) }.map(descriptor)
}

pub fn bind(fd: Fd, address: &[u8]) -> Result<usize> {
    // SAFETY: bind(2) reads address.len() bytes.
    unsafe {
        call(
            49,
            [number(fd.0), address.as_ptr() as usize, address.len(), 0, 0],
        )
    }
}

/// A child process: `None` in it, its process id in the parent.
pub fn fork() -> Result<Option<i32>> {
    // SAFETY: fork(2); the program has one thread and the child its own copy of everything.
    let pid = unsafe { call(57, [0; 5]) }?;
    Ok((pid != 0).then_some(pid as i32))
}

/// Returns only if the program cannot be executed. Both vectors end with a null pointer.
pub fn execve(path: &CStr, argv: &[*const i8], env: &[*const i8]) -> Errno {
    debug_assert!(argv.last().is_some_and(|last| last.is_null()));
    debug_assert!(env.last().is_some_and(|last| last.is_null()));
    let arguments = [
        path.as_ptr() as usize,
        argv.as_ptr() as usize,
        env.as_ptr() as usize,
        0,
        0,
    ];
    // SAFETY: execve(2) reads C strings up to the null pointers.
    unsafe { call(59, arguments) }.err().unwrap_or(EINVAL)
}

pub fn exit(status: i32) -> ! {
    // SAFETY: exit_group(2) does not return.
    unsafe {
        let _ = call(231, [number(status), 0, 0, 0, 0]);
        asm!("ud2", options(noreturn));
    }
}

/// One child that ended: its process id and wait status; `None` if none ended yet or there are none.
pub fn reap() -> Option<(i32, i32)> {
    const WNOHANG: usize = 1;
    let mut status = 0_i32;
    let arguments = [
        usize::MAX,
        core::ptr::from_mut(&mut status) as usize,
        WNOHANG,
        0,
        0,
    ];
    // SAFETY: wait4(2) writes an int.
    match unsafe { call(61, arguments) } {
        Ok(pid) if pid != 0 => Some((pid as i32, status)),
        _ => None,
    }
}

pub fn kill(pid: i32, signal: u32) -> Result<usize> {
    // SAFETY: kill(2) takes numbers.
    unsafe { call(62, [number(pid), signal as usize, 0, 0, 0]) }
}

pub fn chdir(path: &CStr) -> Result<usize> {
    // SAFETY: chdir(2) reads a C string.
    unsafe { call(80, [path.as_ptr() as usize, 0, 0, 0, 0]) }
}

pub fn mkdir(path: &CStr, mode: u32) -> Result<usize> {
    // SAFETY: mkdir(2) reads a C string.
    unsafe { call(83, [path.as_ptr() as usize, mode as usize, 0, 0, 0]) }
}

pub fn unlink(path: &CStr) -> Result<usize> {
    // SAFETY: unlink(2) reads a C string.
    unsafe { call(87, [path.as_ptr() as usize, 0, 0, 0, 0]) }
}

pub fn symlink(target: &CStr, path: &CStr) -> Result<usize> {
    // SAFETY: symlink(2) reads two C strings.
    unsafe {
        call(
            88,
            [target.as_ptr() as usize, path.as_ptr() as usize, 0, 0, 0],
        )
    }
}

pub fn umask(mask: u32) {
    // SAFETY: umask(2) takes a number and always succeeds.
    let _ = unsafe { call(95, [mask as usize, 0, 0, 0, 0]) };
}

pub fn setpgid() -> Result<usize> {
    // SAFETY: setpgid(2) takes numbers: this process, into a group of its own.
    unsafe { call(109, [0; 5]) }
}

pub fn process_id() -> i32 {
    // SAFETY: getpid(2) takes nothing and always succeeds.
    unsafe { call(39, [0; 5]) }.unwrap_or(0) as i32
}

pub fn setsid() -> Result<usize> {
    // SAFETY: setsid(2) takes nothing.
    unsafe { call(112, [0; 5]) }
}

pub fn mknod(path: &CStr, mode: u32, major: u32, minor: u32) -> Result<usize> {
    // new_encode_dev() of the kernel (include/linux/kdev_t.h).
    let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    // SAFETY: mknod(2) reads a C string.
    unsafe {
        call(
            133,
            [path.as_ptr() as usize, mode as usize, device as usize, 0, 0],
        )
    }
}

pub fn chroot(path: &CStr) -> Result<usize> {
    // SAFETY: chroot(2) reads a C string.
    unsafe { call(161, [path.as_ptr() as usize, 0, 0, 0, 0]) }
}

pub fn sync() {
    // SAFETY: sync(2) takes nothing and always succeeds.
    let _ = unsafe { call(162, [0; 5]) };
}

pub fn mount(
    source: &CStr,
    target: &CStr,
    fstype: &CStr,
    flags: usize,
    data: &CStr,
) -> Result<usize> {
    let arguments = [
        source.as_ptr() as usize,
        target.as_ptr() as usize,
        fstype.as_ptr() as usize,
        flags,
        data.as_ptr() as usize,
    ];
    // SAFETY: mount(2) reads C strings.
    unsafe { call(165, arguments) }
}

pub fn reboot(command: usize) -> Result<usize> {
    // LINUX_REBOOT_MAGIC1 and 2 (include/uapi/linux/reboot.h).
    // SAFETY: reboot(2) takes numbers; the command with an argument is not used.
    unsafe { call(169, [0xfee1_dead, 672_274_793, command, 0, 0]) }
}

pub fn set_host_name(name: &[u8]) -> Result<usize> {
    // SAFETY: sethostname(2) reads name.len() bytes.
    unsafe { call(170, [name.as_ptr() as usize, name.len(), 0, 0, 0]) }
}

pub fn directory_entries(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: getdents64(2) writes at most buffer.len() bytes.
    unsafe {
        call(
            217,
            [
                number(fd.0),
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
            ],
        )
    }
}

/// Milliseconds since the kernel started.
pub fn now() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: clock_gettime(2) writes a timespec of two 64-bit words.
    let _ = unsafe { call(228, [CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0]) };
    time[0] * 1000 + time[1] / 1_000_000
}

/// Blocks all signals (all that can be), and returns a descriptor that becomes readable when one is pending.
pub fn signal_fd() -> Result<Fd> {
    let all = u64::MAX;
    // SAFETY: signalfd4(2) reads 8 bytes of mask.
    let fd = unsafe {
        let mask = core::ptr::from_ref(&all) as usize;
        call(
            289,
            [usize::MAX, mask, 8, number(O_NONBLOCK | O_CLOEXEC), 0],
        )
    };
    set_signal_mask(all);
    fd.map(descriptor)
}

/// SIG_SETMASK of all 64 signals.
pub fn set_signal_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: rt_sigprocmask(2) reads 8 bytes.
    let _ = unsafe {
        call(
            14,
            [SIG_SETMASK, core::ptr::from_ref(&mask) as usize, 0, 8, 0],
        )
    };
}

/// The next pending signal of a signal descriptor.
pub fn next_signal(fd: Fd) -> Option<u32> {
    // struct signalfd_siginfo has 128 bytes, the first of which are ssi_signo.
    let mut info = [0_u8; 128];
    (read(fd, &mut info) == Ok(128))
        .then(|| u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// A pipe, both ends closed on exec: where to read and where to write.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut fds = [0_i32; 2];
    // SAFETY: pipe2(2) writes two ints.
    unsafe { call(293, [fds.as_mut_ptr() as usize, number(O_CLOEXEC), 0, 0, 0]) }?;
    Ok((Fd(fds[0]), Fd(fds[1])))
}

pub fn set_nonblocking(fd: Fd) -> Result<usize> {
    const F_SETFL: usize = 4;
    // SAFETY: fcntl(2) with a number. Of the status flags, only O_NONBLOCK is ever wanted here.
    unsafe { call(72, [number(fd.0), F_SETFL, number(O_NONBLOCK), 0, 0]) }
}

/// inotify(7) on new entries of a directory.
pub fn watch_directory(path: &CStr) -> Result<Fd> {
    const IN_CREATE: usize = 0x100;
    // SAFETY: inotify_init1(2) takes a number.
    let fd = unsafe { call(294, [number(O_NONBLOCK | O_CLOEXEC), 0, 0, 0, 0]) }.map(descriptor)?;
    // SAFETY: inotify_add_watch(2) reads a C string.
    unsafe { call(254, [number(fd.0), path.as_ptr() as usize, IN_CREATE, 0, 0]) }?;
    Ok(fd)
}

pub fn insert_module(fd: Fd, options: &CStr, flags: usize) -> Result<usize> {
    // SAFETY: finit_module(2) reads a C string.
    unsafe { call(313, [number(fd.0), options.as_ptr() as usize, flags, 0, 0]) }
}

/// All of a file, at most `limit` bytes.
pub fn read_file(path: &CStr, limit: usize) -> Result<Vec<u8>> {
    let fd = open(path, O_RDONLY)?;
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 4096];
    let result = loop {
        match read(fd, &mut buffer) {
            Ok(0) => break Ok(bytes),
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                if bytes.len() >= limit {
                    break Err(EFBIG);
                }
            }
            Err(EINTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    close(fd);
    result
}

/// A C string; bytes after a NUL are no part of it.
pub fn c_string(bytes: impl AsRef<[u8]>) -> CString {
    let bytes = bytes.as_ref();
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// Calls `visit` with the name of each entry of a directory but `.` and `..`, until it returns true.
pub fn any_entry(path: &CStr, mut visit: impl FnMut(&[u8]) -> bool) -> Result<bool> {
    let fd = open(path, O_RDONLY | O_DIRECTORY)?;
    let mut buffer = [0_u8; 2048];
    let mut found = Ok(false);
    'all: loop {
        let count = match directory_entries(fd, &mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(errno) => {
                found = Err(errno);
                break;
            }
        };
        let mut rest = &buffer[..count];
        // struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name with a NUL.
        while let (Some(&[low, high]), Some(tail)) = (
            rest.get(16..18).and_then(|b| b.first_chunk()),
            rest.get(19..),
        ) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let name = tail.split(|&byte| byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." && visit(name) {
                found = Ok(true);
                break 'all;
            }
            rest = rest.get(length.max(19)..).unwrap_or_default();
        }
    }
    close(fd);
    found
}
