//! Which system calls each kind of thread makes, and why. What is not here does not happen.
//!
//! Arguments are looked at where they decide what a call can do: which ioctl, whether memory becomes executable,
//! whether clone makes a thread or a process, whom a signal is for.
#![forbid(unsafe_code)]

use super::Thread;

/// Calls that are there for one reason.
pub(super) struct Group {
    /// Who needs them; for those who read the table, and for the test that no row is without a reason.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "documentation that a test reads")
    )]
    pub(super) why: &'static str,
    pub(super) calls: &'static [Call],
}

/// A call, whatever its arguments are, or only if all tests pass. A number may have several rows: one that passes is
/// enough.
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) when: &'static [Test],
}

/// 32 bits of an argument, under a mask, are one of these.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Test {
    /// Its number: of the lower half; with [`UPPER`], of the upper one.
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) any: &'static [u32],
}

/// A call that fails with an errno instead of ending the process: libraries make it, and can do without.
pub(super) struct Refusal {
    pub(super) number: i64,
    pub(super) errno: i32,
}

/// Added to the number of an argument.
pub(super) const UPPER: u8 = 8;

/// Stands for this process' number.
pub(super) const OWN_PID: u32 = u32::MAX;

const fn any(number: i64) -> Call {
    Call { number, when: &[] }
}

const fn only(number: i64, when: &'static [Test]) -> Call {
    Call { number, when }
}

const fn arg(argument: u8, any: &'static [u32]) -> Test {
    let mask = u32::MAX;
    Test {
        argument,
        mask,
        any,
    }
}

/// No bit of `mask` is set.
const fn without(argument: u8, mask: u32) -> Test {
    let any = &[0];
    Test {
        argument,
        mask,
        any,
    }
}

/// All bits of `bits` are set.
const fn with(argument: u8, bits: &'static [u32; 1]) -> Test {
    Test {
        argument,
        mask: bits[0],
        any: bits,
    }
}

const NOT_EXECUTABLE: &[Test] = &[without(2, libc::PROT_EXEC as u32)];
/// What pthread_create always asks for: a thread of this process.
const THREAD: &[Test] = &[with(0, &[(libc::CLONE_THREAD | libc::CLONE_VM) as u32])];
const OWN: &[Test] = &[arg(0, &[OWN_PID])];
/// About the calling thread, and no other process.
const SELF: &[Test] = &[arg(0, &[0])];
/// Limits of this process are looked at, not set.
const LIMITS_READ: &[Test] = &[arg(0, &[0]), arg(2, &[0]), arg(2 | UPPER, &[0])];
/// SOCK_TYPE_MASK (linux/net.h): without the flags.
const UNIX_STREAM: &[Test] = &[
    arg(0, &[libc::AF_UNIX as u32]),
    Test {
        argument: 1,
        mask: 0xf,
        any: &[libc::SOCK_STREAM as u32],
    },
];
/// A filter, without flags.
const FILTER: &[Test] = &[arg(0, &[libc::SECCOMP_SET_MODE_FILTER]), arg(1, &[0])];

/// Any thread of a Rust program on glibc.
const RUNTIME: Group = Group {
    why: "the allocator, locks, thread ends, panics and aborts",
    calls: &[
        any(libc::SYS_futex),
        any(libc::SYS_brk),
        only(libc::SYS_mmap, NOT_EXECUTABLE),
        only(libc::SYS_mprotect, NOT_EXECUTABLE),
        any(libc::SYS_mremap),
        any(libc::SYS_munmap),
        any(libc::SYS_munlock),
        any(libc::SYS_madvise),
        any(libc::SYS_sigaltstack),
        any(libc::SYS_rt_sigprocmask),
        any(libc::SYS_rt_sigaction),
        any(libc::SYS_rt_sigreturn),
        any(libc::SYS_restart_syscall),
        any(libc::SYS_sched_yield),
        any(libc::SYS_sched_getaffinity),
        any(libc::SYS_clock_gettime),
        any(libc::SYS_clock_nanosleep),
        any(libc::SYS_nanosleep),
        any(libc::SYS_getrandom),
        // Builds for debugging look whether what they close is open.
        only(libc::SYS_fcntl, &[arg(1, &[libc::F_GETFD as u32])]),
        any(libc::SYS_getpid),
        any(libc::SYS_gettid),
        any(libc::SYS_exit),
        any(libc::SYS_exit_group),
        only(libc::SYS_tgkill, OWN),
        only(libc::SYS_kill, OWN),
    ],
};

/// Descriptors that are open already.
const STREAMS: Group = Group {
    why: "events, timers, messages on standard error, the host ends of consoles",
    calls: &[
        any(libc::SYS_read),
        any(libc::SYS_readv),
        any(libc::SYS_write),
        any(libc::SYS_writev),
        // Of several parts. All sockets are streams: what is sent goes to the other end, whatever address is given.
        any(libc::SYS_recvmsg),
        any(libc::SYS_sendmsg),
        any(libc::SYS_recvfrom),
        any(libc::SYS_sendto),
        any(libc::SYS_shutdown),
        any(libc::SYS_poll),
        any(libc::SYS_ppoll),
        any(libc::SYS_timerfd_settime),
        any(libc::SYS_close),
    ],
};

/// Descriptors in all their ways.
const DESCRIPTORS: Group = Group {
    why: "clients that connect are looked at; copies, locks and flags of descriptors",
    calls: &[
        any(libc::SYS_fstat),
        only(
            libc::SYS_newfstatat,
            &[with(3, &[libc::AT_EMPTY_PATH as u32])],
        ),
        only(libc::SYS_statx, &[with(2, &[libc::AT_EMPTY_PATH as u32])]),
        any(libc::SYS_lseek),
        only(
            libc::SYS_fcntl,
            &[arg(
                1,
                &[
                    libc::F_DUPFD_CLOEXEC as u32,
                    libc::F_GETFD as u32,
                    libc::F_SETFD as u32,
                    libc::F_GETFL as u32,
                    libc::F_SETFL as u32,
                    libc::F_OFD_SETLK as u32,
                    libc::F_OFD_GETLK as u32,
                    libc::F_SETLK as u32,
                    libc::F_GETLK as u32,
                ],
            )],
        ),
        any(libc::SYS_flock),
    ],
};

/// ioctl numbers (linux/kvm.h; the size in bits 16 to 29 is that of the structure).
mod kvm {
    pub(super) const RUN: u32 = 0xae80;
    pub(super) const GET_REGS: u32 = 0x8090_ae81;
    pub(super) const GET_SREGS: u32 = 0x8138_ae83;
    pub(super) const GET_MP_STATE: u32 = 0x8004_ae98;
    pub(super) const IRQ_LINE: u32 = 0x4008_ae61;
    pub(super) const SIGNAL_MSI: u32 = 0x4020_aea5;
    pub(super) const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
    pub(super) const IRQFD: u32 = 0x4020_ae76;
    pub(super) const IOEVENTFD: u32 = 0x4040_ae79;
    /// All of KVM's have this type (bits 8 to 15).
    pub(super) const TYPE: u32 = 0xae00;
    pub(super) const TYPE_MASK: u32 = 0xff00;
}

const VCPU: Group = Group {
    why: "runs the guest and says where it is",
    calls: &[only(
        libc::SYS_ioctl,
        &[arg(
            1,
            &[kvm::RUN, kvm::GET_REGS, kvm::GET_SREGS, kvm::GET_MP_STATE],
        )],
    )],
};

const INTERRUPTS: Group = Group {
    why: "devices interrupt the guest, and its driver says where to",
    calls: &[only(
        libc::SYS_ioctl,
        &[arg(
            1,
            &[
                kvm::SIGNAL_MSI,
                kvm::IRQ_LINE,
                kvm::SET_GSI_ROUTING,
                kvm::IRQFD,
                kvm::IOEVENTFD,
            ],
        )],
    )],
};

const TERMINAL: Group = Group {
    why: "the user's terminal is put back as it was, whichever thread fails",
    calls: &[
        only(
            libc::SYS_ioctl,
            &[
                arg(0, &[0, 1, 2]),
                arg(
                    1,
                    &[
                        libc::TCGETS as u32,
                        libc::TCSETS as u32,
                        libc::TCSETSW as u32,
                        libc::TCSETSF as u32,
                        TCGETS2,
                        TCSETS2,
                        TCSETSW2,
                        TCSETSF2,
                        libc::TIOCGPGRP as u32,
                        libc::TIOCGWINSZ as u32,
                    ],
                ),
            ],
        ),
        any(libc::SYS_getpgrp),
        any(libc::SYS_getpgid),
    ],
};

/// asm-generic/ioctls.h, of struct termios2; newer C libraries use these.
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSW2: u32 = 0x402c_542c;
const TCSETSF2: u32 = 0x402c_542d;

const LOOP: Group = Group {
    why: "an event loop, and clients of its listening sockets",
    calls: &[
        any(libc::SYS_epoll_wait),
        any(libc::SYS_epoll_pwait),
        any(libc::SYS_epoll_ctl),
        any(libc::SYS_accept4),
        // Of a listening socket: whether output is under way.
        only(
            libc::SYS_ioctl,
            &[arg(1, &[libc::FIONREAD as u32, libc::TIOCOUTQ as u32])],
        ),
    ],
};

const FILES: Group = Group {
    why: "disk images and logs that are open",
    calls: &[
        any(libc::SYS_pread64),
        any(libc::SYS_preadv),
        any(libc::SYS_preadv2),
        any(libc::SYS_pwrite64),
        any(libc::SYS_pwritev),
        any(libc::SYS_pwritev2),
        any(libc::SYS_fsync),
        any(libc::SYS_fdatasync),
        any(libc::SYS_fallocate),
        any(libc::SYS_io_uring_enter),
    ],
};

const DISK_THREADS: Group = Group {
    why: "disks start threads where there is no io_uring",
    calls: &[
        only(libc::SYS_clone, THREAD),
        any(libc::SYS_eventfd2),
        any(libc::SYS_set_robust_list),
        any(libc::SYS_rseq),
        only(libc::SYS_prctl, &[arg(0, &[libc::PR_SET_NAME as u32])]),
    ],
};

const MAIN: Group = Group {
    why: "waits for the machine, for its own parent and children, and tells how it ended",
    calls: &[
        any(libc::SYS_epoll_ctl),
        any(libc::SYS_getppid),
        any(libc::SYS_wait4),
        any(libc::SYS_waitid),
        any(libc::SYS_getuid),
        any(libc::SYS_geteuid),
        any(libc::SYS_getgid),
        any(libc::SYS_getegid),
        any(libc::SYS_getcwd),
        any(libc::SYS_uname),
        // Whether something exists.
        any(libc::SYS_newfstatat),
        any(libc::SYS_statx),
        any(libc::SYS_access),
        any(libc::SYS_faccessat2),
        any(libc::SYS_readlink),
        any(libc::SYS_set_robust_list),
        any(libc::SYS_getrusage),
        // The control socket: its clients, and who they are.
        any(libc::SYS_accept4),
        any(libc::SYS_getsockopt),
        only(libc::SYS_ioctl, &[arg(1, &[libc::FIONBIO as u32])]),
    ],
};

const UNLINK: Group = Group {
    why: "listening sockets and the run's own directory are removed at the end",
    calls: &[any(libc::SYS_unlink), any(libc::SYS_unlinkat)],
};

const REBUILD: Group = Group {
    why: "a machine that starts again is built again: files are opened (those that Landlock lets through), KVM is set up",
    calls: &[
        any(libc::SYS_open),
        any(libc::SYS_openat),
        any(libc::SYS_getdents64),
        any(libc::SYS_statfs),
        any(libc::SYS_fstatfs),
        only(
            libc::SYS_ioctl,
            &[Test {
                argument: 1,
                mask: kvm::TYPE_MASK,
                any: &[kvm::TYPE],
            }],
        ),
        only(libc::SYS_ioctl, &[arg(1, BLOCK_DEVICE)]),
        any(libc::SYS_memfd_create),
        any(libc::SYS_ftruncate),
        any(libc::SYS_eventfd2),
        any(libc::SYS_epoll_create1),
        any(libc::SYS_timerfd_create),
        any(libc::SYS_pipe2),
        only(libc::SYS_socket, UNIX_STREAM),
        only(libc::SYS_socketpair, UNIX_STREAM),
        any(libc::SYS_bind),
        any(libc::SYS_listen),
        any(libc::SYS_fchmod),
        any(libc::SYS_unlink),
        any(libc::SYS_unlinkat),
        any(libc::SYS_mlock),
        any(libc::SYS_mlock2),
        any(libc::SYS_mbind),
        only(libc::SYS_sched_setaffinity, SELF),
        only(libc::SYS_sched_setscheduler, SELF),
        only(libc::SYS_sched_setattr, SELF),
        only(libc::SYS_sched_getattr, SELF),
        only(libc::SYS_sched_getscheduler, SELF),
        only(libc::SYS_sched_getparam, SELF),
        any(libc::SYS_set_mempolicy),
        any(libc::SYS_get_mempolicy),
        any(libc::SYS_mincore),
        any(libc::SYS_munlockall),
        only(libc::SYS_prlimit64, LIMITS_READ),
        any(libc::SYS_io_uring_setup),
        any(libc::SYS_io_uring_register),
        only(libc::SYS_clone, THREAD),
        any(libc::SYS_set_robust_list),
        any(libc::SYS_rseq),
        only(
            libc::SYS_prctl,
            &[arg(
                0,
                &[
                    libc::PR_SET_NAME as u32,
                    libc::PR_SET_NO_NEW_PRIVS as u32,
                    libc::PR_CAP_AMBIENT as u32,
                ],
            )],
        ),
        any(libc::SYS_close_range),
        // Its threads are confined too.
        only(libc::SYS_seccomp, FILTER),
        any(libc::SYS_capget),
        any(libc::SYS_capset),
    ],
};

/// Sizes of a block device (linux/fs.h).
const BLOCK_DEVICE: &[u32] = &[
    // BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKALIGNOFF, BLKIOMIN, BLKIOOPT, BLKROGET, BLKDISCARDZEROES
    0x8008_1272,
    0x1268,
    0x127b,
    0x127a,
    0x1278,
    0x1279,
    0x125e,
    0x127c,
];

const fn refuse(number: i64, errno: i32) -> Refusal {
    Refusal { number, errno }
}

/// The same for all.
pub(super) const REFUSALS: &[Refusal] = &[
    // glibc falls back to clone, whose flags can be seen.
    refuse(libc::SYS_clone3, libc::ENOSYS),
    // The allocator looks into /proc and /sys; a panic's backtrace wants the program and its map.
    refuse(libc::SYS_open, libc::EACCES),
    refuse(libc::SYS_openat, libc::EACCES),
    refuse(libc::SYS_readlink, libc::EACCES),
    refuse(libc::SYS_getcwd, libc::EACCES),
    // Best effort everywhere: what is left then is found by others.
    refuse(libc::SYS_unlink, libc::EACCES),
    refuse(libc::SYS_unlinkat, libc::EACCES),
    // Whether somebody listens on a socket that is in the way: of one that came up after the first start, that is not
    // found out. Landlock does not keep the sockets of others apart, which may be those of root's services.
    refuse(libc::SYS_connect, libc::EACCES),
    // Which memory of a panicking thread is a stack's guard.
    refuse(libc::SYS_newfstatat, libc::EACCES),
    refuse(libc::SYS_statx, libc::EACCES),
];

/// What the machine's life needs besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// It may be built again.
    pub(super) rebuild: bool,
    /// Listening sockets are to be removed.
    pub(super) unlink: bool,
    /// There is no io_uring.
    pub(super) disk_threads: bool,
}

const VCPU_THREAD: &[&Group] = &[&VCPU, &INTERRUPTS, &RUNTIME, &STREAMS, &TERMINAL];
const LOOP_THREAD: &[&Group] = &[
    &INTERRUPTS,
    &RUNTIME,
    &STREAMS,
    &DESCRIPTORS,
    &FILES,
    &LOOP,
    &TERMINAL,
];

/// What a kind of thread may do.
pub(super) fn groups(thread: Thread, needs: Needs) -> Vec<&'static Group> {
    let mut groups = match thread {
        Thread::Vcpu => VCPU_THREAD.to_vec(),
        Thread::Loop => LOOP_THREAD.to_vec(),
        Thread::Main => vec![
            &RUNTIME,
            &STREAMS,
            &DESCRIPTORS,
            &FILES,
            &INTERRUPTS,
            &TERMINAL,
            &MAIN,
        ],
    };
    match thread {
        Thread::Vcpu => {}
        Thread::Loop => groups.extend(needs.disk_threads.then_some(&DISK_THREADS)),
        Thread::Main => {
            groups.extend(needs.unlink.then_some(&UNLINK));
            if needs.rebuild {
                // Its threads inherit from it, and cannot do what it could not.
                groups.extend([&REBUILD, &VCPU, &LOOP]);
            }
        }
    }
    groups
}
