use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use super::*;

fn file(bytes: &[u8]) -> File {
    // SAFETY: a NUL-terminated name; the result is checked and owned by nobody else.
    let file = unsafe {
        let fd = libc::memfd_create(c"engine".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        <File as std::os::fd::FromRawFd>::from_raw_fd(fd)
    };
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn readable(fd: RawFd, timeout: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, timeout) == 1 }
}

fn all(engine: &mut Engine, mut out: Vec<Outcome>) -> Vec<Outcome> {
    while engine.in_flight() > 0 {
        engine.wait();
        engine.reap(&mut out);
    }
    out.sort_unstable();
    out
}

/// More calls than the engine is deep, with a failing one among them, and its descriptor's behaviour.
fn works(choice: Choice, depth: u32) {
    const CALLS: u32 = 300;
    let data: Vec<u8> = (0..CALLS * 512)
        .map(|i| (i / 512) as u8 ^ i as u8)
        .collect();
    let file = file(&data);
    let (mut engine, why) =
        Engine::new(file.as_raw_fd(), depth, choice, &Spare::default()).unwrap();
    assert!(why.is_none(), "io_uring: {why:?}");
    assert!(!readable(engine.ready_fd(), 0));
    engine.wait(); // Nothing in flight: returns.

    let mut buffers = vec![[0u8; 512]; CALLS as usize];
    let vectors: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|b| libc::iovec {
            iov_base: b.as_mut_ptr().cast(),
            iov_len: 512,
        })
        .collect();
    for (tag, vector) in (0..CALLS).zip(&vectors) {
        let call = Call::Read {
            iov: vector,
            count: 1,
            offset: u64::from(tag) * 512,
        };
        // SAFETY: vectors and buffers outlive the loop below.
        unsafe { engine.queue(tag, call) };
    }
    // SAFETY: no memory is involved.
    unsafe {
        engine.queue(
            CALLS,
            Call::Allocate {
                mode: 0x4000,
                offset: 0,
                len: 1,
            },
        )
    };
    engine.submit();
    assert!(readable(engine.ready_fd(), 10_000));
    // As a loop does: never waiting in the engine itself.
    let mut outcomes = Vec::new();
    while engine.in_flight() > 0 {
        assert!(readable(engine.ready_fd(), 10_000));
        engine.reap(&mut outcomes);
    }
    outcomes.sort_unstable();
    assert!(!readable(engine.ready_fd(), 0), "nothing is left to reap");

    let (last, reads) = outcomes.split_last().unwrap();
    assert_eq!(*last, (CALLS, -libc::EOPNOTSUPP));
    assert!(reads.iter().zip(0..CALLS).all(|(&o, tag)| o == (tag, 512)));
    assert!(buffers.concat() == data);
}

#[test]
fn io_uring_runs_more_calls_than_it_is_deep() {
    works(Choice::Auto, 4);
    works(Choice::Auto, 1);
}

#[test]
fn a_ring_made_before_is_the_one_that_is_used_and_does_nothing_but_a_disks_work() {
    let file = file(&[3; 512]);
    let spare = Spare::default();
    assert!(spare.make(), "io_uring");
    let number = match &*spare.0.lock().unwrap() {
        Some(Ok(ring)) => ring.ready_fd(),
        _ => panic!("no ring"),
    };
    let (engine, _) = Engine::new(file.as_raw_fd(), DEPTH, Choice::Auto, &spare).unwrap();
    assert_eq!(engine.ready_fd(), number);
    let Engine::Uring(mut ring) = engine else {
        panic!("not io_uring")
    };
    let path = c"/etc/passwd";
    let open = io_uring::opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), path.as_ptr());
    assert_eq!(ring.outcome_of(open.build()), -libc::EACCES);
}

#[test]
fn threads_run_calls() {
    works(Choice::Threads, 4);
}

#[test]
fn writes_syncs_and_holes_reach_the_file() {
    for choice in [Choice::Auto, Choice::Threads] {
        let file = file(&[7; 8192]);
        let (mut engine, _) = Engine::new(file.as_raw_fd(), 8, choice, &Spare::default()).unwrap();
        let data = [9u8; 512];
        let vector = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: 512,
        };
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        for (tag, call) in [
            (
                1,
                Call::Write {
                    iov: &raw const vector,
                    count: 1,
                    offset: 512,
                    durable: true,
                },
            ),
            (
                2,
                Call::Allocate {
                    mode: punch,
                    offset: 4096,
                    len: 4096,
                },
            ),
            (3, Call::Sync),
        ] {
            // SAFETY: the vector outlives the wait below.
            unsafe { engine.queue(tag, call) };
        }
        engine.submit();
        assert_eq!(all(&mut engine, Vec::new()), [(1, 512), (2, 0), (3, 0)]);
        let mut now = [0; 8192];
        file.read_exact_at(&mut now, 0).unwrap();
        let mut expected = [7; 8192];
        expected[512..1024].fill(9);
        expected[4096..].fill(0);
        assert!(now == expected);
    }
}

/// Forbids io_uring_setup on this thread, as container run-times do.
fn forbid_io_uring(errno: u32) {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(LOAD, 0, 0, 0), // seccomp_data.nr
        op(EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter concerns this thread only and is copied by the kernel.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(
            libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter),
            0
        );
    }
}

#[test]
fn threads_step_in_where_io_uring_is_forbidden() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::spawn(move || {
            forbid_io_uring(errno as u32);
            let file = file(&[1; 512]);
            let (engine, why) =
                Engine::new(file.as_raw_fd(), 8, Choice::Auto, &Spare::default()).unwrap();
            assert!(matches!(engine, Engine::Pool(_)));
            assert_eq!(why.unwrap().raw_os_error(), Some(errno));
        })
        .join()
        .unwrap();
    }
}
