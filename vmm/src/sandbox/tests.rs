//! Each test forks: the child confines itself for good, tries one thing, and its end is looked at. A child of a
//! program with threads may make few calls; those here take no lock that another thread could hold.

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::FromRawFd;

use super::*;

/// How a child ended, and what it wrote to standard error.
#[derive(Debug)]
struct End {
    status: i32,
    said: String,
}

/// Runs `attempt` in a child that is confined as `thread` is; its result is the exit status.
fn confined(thread: Thread, spec: Spec, attempt: impl FnOnce() -> i32) -> End {
    let sandbox = Sandbox::new(spec).unwrap();
    let mut pipe = [0; 2];
    // SAFETY: the array has room for two descriptors.
    let made = unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0);
    // SAFETY: the child makes few calls before it ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = || {
            // SAFETY: plain system calls on descriptors of ours.
            unsafe {
                libc::dup2(pipe[1], libc::STDERR_FILENO);
                // A child that hangs is a failure.
                libc::alarm(20);
            }
            if sandbox.begin(nothing).is_err() {
                return 101;
            }
            // Its filter is made here, for its own number.
            if sandbox.enter(thread, false).is_err() {
                return 102;
            }
            attempt()
        };
        let status = status();
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(status) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: plain system calls on descriptors and a child of ours.
    let mut reader = unsafe {
        libc::close(pipe[1]);
        std::fs::File::from_raw_fd(pipe[0])
    };
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    let status = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        1000 + libc::WTERMSIG(status)
    };
    End { status, said }
}

fn nothing() {}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The errno of an open, or 0.
fn open(path: &CStr, flags: i32) -> i32 {
    // SAFETY: a C string.
    if unsafe { libc::open(path.as_ptr(), flags) } < 0 {
        errno()
    } else {
        0
    }
}

fn blocked(thread: Thread, call: &str, attempt: impl FnOnce() -> i64) {
    let end = confined(thread, Spec::default(), || {
        attempt();
        7
    });
    assert_eq!(end.status, 125, "{thread:?} {call}: {end:?}");
    assert!(
        end.said.contains(&format!("({call}) of 0x"))
            && end
                .said
                .contains(&format!("in a thread of kind {}:", thread.word()))
            && end.said.contains("--no-sandbox"),
        "{end:?}"
    );
}

#[test]
fn what_is_forbidden_ends_the_process_with_a_message() {
    for thread in Thread::ALL {
        blocked(thread, "execve", || {
            let path = c"/bin/true";
            let argv = [path.as_ptr(), std::ptr::null()];
            // SAFETY: C strings and arrays that end with null.
            unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.as_ptr(), &argv[1]) }
        });
        for family in [libc::AF_INET, libc::AF_UNIX, libc::AF_NETLINK] {
            blocked(thread, "socket", || {
                // SAFETY: a plain system call.
                unsafe { libc::socket(family, libc::SOCK_STREAM, 0) }.into()
            });
        }
        blocked(thread, "ptrace", || {
            // SAFETY: a a plain system call, which stops nobody.
            unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0) }
        });
        blocked(thread, "mmap", || {
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) as i64 }
        });
        // SAFETY: plain system calls.
        blocked(thread, "fork", || unsafe { libc::syscall(libc::SYS_fork) });
        blocked(thread, "ioctl", || {
            // SAFETY: pushes a byte to a terminal, were it allowed.
            unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) }.into()
        });
        // SAFETY: as above.
        blocked(thread, "kill", || unsafe { libc::kill(1, 0) }.into());
        // SAFETY: as above.
        blocked(thread, "io_uring_setup", || unsafe {
            libc::syscall(libc::SYS_io_uring_setup, 0, 0)
        });
    }
}

#[test]
fn files_are_refused_not_opened() {
    for thread in Thread::ALL {
        let end = confined(thread, Spec::default(), || {
            open(c"/etc/passwd", libc::O_RDONLY)
        });
        assert_eq!(end.status, libc::EACCES, "{end:?}");
    }
}

#[test]
fn where_files_may_be_opened_landlock_says_which() {
    if landlock_abi().is_none() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("vsc-sandbox-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("allowed");
    std::fs::write(&file, "x").unwrap();
    let path = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
    let spec = || Spec {
        rebuild: true,
        unlink: false,
        threads: 0,
        disks: 0,
        allowed: vec![
            Allowed::Path(file.clone(), Access::Read),
            Allowed::Path("/no/such/file".into(), Access::ReadWrite),
            Allowed::Descriptor(0),
            Allowed::Descriptor(999),
        ],
    };
    for (path, flags, errno) in [
        (path.as_c_str(), libc::O_RDONLY, 0),
        (path.as_c_str(), libc::O_RDWR, libc::EACCES),
        (c"/etc/passwd", libc::O_RDONLY, libc::EACCES),
        (c"/tmp", libc::O_RDONLY | libc::O_DIRECTORY, libc::EACCES),
    ] {
        let end = confined(Thread::Main, spec(), || open(path, flags));
        assert_eq!(end.status, errno, "{path:?} {end:?}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_heap_is_bounded_and_what_exceeds_it_is_refused() {
    let map = |len: usize| {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping.
        unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) != libc::MAP_FAILED }
    };
    let end = confined(Thread::Loop, Spec::default(), || {
        let half = limits::HEAP as usize / 2;
        i32::from(map(half)) + 2 * i32::from(map(limits::HEAP as usize))
    });
    assert_eq!(end.status, 1, "{end:?}");
}

/// With a backtrace, which looks at the program and its map.
#[test]
fn a_panic_and_an_abort_are_told_whichever_thread_it_is() {
    for rebuild in [false, true] {
        for thread in Thread::ALL {
            let spec = || Spec {
                rebuild,
                ..Spec::default()
            };
            let end = confined(thread, spec(), || {
                // The harness keeps what its own hook says.
                std::panic::set_hook(Box::new(|info| {
                    let trace = std::backtrace::Backtrace::force_capture();
                    let text = format!("told: {info} {}\n", trace.to_string().len());
                    // SAFETY: a plain system call on a buffer of ours.
                    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
                }));
                let caught = std::panic::catch_unwind(|| panic!("of a kind"));
                i32::from(caught.is_err())
            });
            assert_eq!(end.status, 1, "{thread:?} {end:?}");
            assert!(
                end.said.contains("told: ") && end.said.contains("of a kind"),
                "{thread:?} {end:?}"
            );
            let end = confined(thread, spec(), || std::process::abort());
            assert_eq!(end.status, 1000 + libc::SIGABRT, "{thread:?} {end:?}");
        }
    }
}

#[test]
fn what_may_be_read_may_not_be_executed_whoever_started_this() {
    let sandbox = Sandbox::new(Spec::default()).unwrap();
    // SAFETY: the child makes few calls before it ends by _exit; they are plain system calls.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            let set = libc::personality(libc::READ_IMPLIES_EXEC as libc::c_ulong) >= 0;
            let begun = sandbox.begin(nothing).is_ok();
            let left = libc::personality(0xffff_ffff);
            libc::_exit(match set && begun {
                true => left >> 16,
                false => 99,
            })
        };
    }
    let mut status = 0;
    // SAFETY: a child of ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{status:#x}"
    );
}

#[test]
fn many_threads_may_start_after_the_limits_are_set() {
    const MANY: u32 = 300;
    let spec = Spec {
        threads: MANY,
        ..Spec::default()
    };
    let sandbox = Sandbox::new(spec).unwrap();
    // SAFETY: the child makes few calls before it ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let started = || {
            sandbox.begin(nothing).ok()?;
            let all: Option<Vec<_>> = (0..MANY)
                .map(|_| crate::thread().spawn(std::thread::park).ok())
                .collect();
            all
        };
        let status = if started().is_some() { 7 } else { 8 };
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: a child of ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7);
}

#[test]
fn no_descriptors_without_end() {
    let end = confined(Thread::Loop, Spec::default(), || {
        for n in 0..1000 {
            // SAFETY: a plain system call.
            if unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 0) } < 0 {
                return i32::from(errno() == libc::EMFILE && n <= limits::FILES as i32);
            }
        }
        2
    });
    assert_eq!(end.status, 1, "{end:?}");
}

#[test]
fn a_machine_that_starts_again_keeps_few_capabilities_and_gets_none_back() {
    let again = Spec {
        rebuild: true,
        ..Spec::default()
    };
    let end = confined(Thread::Main, again, || {
        let Some([effective, permitted, inheritable, high @ ..]) = privilege_words() else {
            return 1;
        };
        let few = privilege::kept(true).len() as u32;
        let left = permitted.count_ones() == few && effective & !permitted == 0;
        if !left || inheritable != 0 || high != [0; 3] {
            return 2;
        }
        // Bit 21, CAP_SYS_ADMIN, is not among them.
        let header = [0x2008_0522u32, 0];
        let wanted = [1 << 21, 1 << 21, 0, 0, 0, 0u32];
        // SAFETY: the structures are as the kernel wants them.
        i32::from(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), wanted.as_ptr()) } == 0)
    });
    assert_eq!(end.status, 0, "{end:?}");
    // What /proc says of a running machine is looked at by tests/sandbox.rs.
}

/// capget: effective, permitted, inheritable, and their upper halves.
fn privilege_words() -> Option<[u32; 6]> {
    let header = [0x2008_0522u32, 0];
    let mut data = [0u32; 6];
    // SAFETY: the structures are as the kernel wants them.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    (done == 0).then_some(data)
}
