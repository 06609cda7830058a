use proptest::prelude::*;

use super::super::tables::{Needs, REFUSALS, groups};
use super::super::{Thread, compile};
use super::*;

const PID: u32 = 4242;

/// What the kernel would answer (net/core/filter.c), and after how many steps.
fn run(program: &[sock_filter], number: u32, arch: u32, args: [u64; 6]) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    for arg in args {
        data.extend(arg.to_le_bytes());
    }
    let (mut at, mut a) = (0, 0u32);
    for steps in 1.. {
        let i = program[at];
        at += 1;
        match i.code {
            LOAD => {
                let k = i.k as usize;
                a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
            }
            AND => a &= i.k,
            JUMP => at += i.k as usize,
            IF_EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
            IF_AT_LEAST => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
            RETURN => return (i.k, steps),
            other => panic!("code {other:#x}"),
        }
    }
    unreachable!()
}

/// The same from the tables, without a program.
fn wanted(groups: &[&Group], number: u32, args: [u64; 6]) -> u32 {
    let calls = || groups.iter().flat_map(|g| g.calls);
    let same = |call: &&Call| call.number as u32 == number;
    let passes = |test: &Test| {
        let arg = args[usize::from(test.argument % UPPER)];
        let half = (arg >> (32 * (test.argument / UPPER))) as u32;
        let is = half & test.mask;
        test.any
            .iter()
            .any(|&v| is == if v == OWN_PID { PID } else { v })
    };
    if calls()
        .filter(same)
        .any(|call| call.when.iter().all(passes))
    {
        return libc::SECCOMP_RET_ALLOW;
    }
    let refusal = REFUSALS.iter().find(|r| r.number as u32 == number);
    match refusal {
        Some(r) if !calls().any(|call| same(&call)) => libc::SECCOMP_RET_ERRNO | r.errno as u32,
        _ => libc::SECCOMP_RET_TRAP,
    }
}

fn all_needs() -> impl Iterator<Item = Needs> {
    (0..8).map(|bits| Needs {
        rebuild: bits & 1 != 0,
        unlink: bits & 2 != 0,
        disk_threads: bits & 4 != 0,
    })
}

fn kinds() -> impl Iterator<Item = (Thread, Needs)> {
    Thread::ALL
        .into_iter()
        .flat_map(|thread| all_needs().map(move |needs| (thread, needs)))
}

fn programs() -> Vec<(Vec<&'static Group>, Program)> {
    kinds()
        .map(|(thread, needs)| {
            let groups = groups(thread, needs);
            let first = (thread == Thread::Vcpu).then_some(libc::SYS_ioctl);
            let program = program(&groups, REFUSALS, first, PID);
            (groups, program)
        })
        .collect()
}

/// Arguments that matter: those of the tables, their neighbours, and some others.
fn interesting() -> Vec<u32> {
    let mut values = vec![0, 1, 7, u32::MAX, PID, PID + 1, 0x8000_0000];
    for (thread, needs) in kinds() {
        for call in groups(thread, needs).iter().flat_map(|g| g.calls) {
            for test in call.when {
                for &v in test.any {
                    values.extend([v, v ^ 1, v ^ test.mask, v | !test.mask]);
                }
            }
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn programs_decide_what_the_tables_say() {
    let values = interesting();
    for (groups, program) in programs() {
        let looked_at: Vec<u32> = groups
            .iter()
            .flat_map(|g| g.calls)
            .filter(|call| !call.when.is_empty())
            .map(|call| call.number as u32)
            .collect();
        for number in 0..512 {
            let (got, _) = run(&program, number, X86_64, [0; 6]);
            assert_eq!(got, wanted(&groups, number, [0; 6]), "{number}");
        }
        for number in looked_at {
            for argument in 0..6 {
                for &value in &values {
                    let mut args = [0; 6];
                    for value in [u64::from(value), u64::from(value) << 32] {
                        args[argument] = value;
                        let (got, _) = run(&program, number, X86_64, args);
                        assert_eq!(got, wanted(&groups, number, args), "{number} {args:x?}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn programs_decide_what_the_tables_say_whatever_is_called(
        number in any::<u32>(),
        args in any::<[u64; 6]>(),
    ) {
        for (groups, program) in programs() {
            prop_assert_eq!(
                run(&program, number, X86_64, args).0,
                wanted(&groups, number, args)
            );
        }
    }
}

#[test]
fn other_architectures_and_x32_call_nothing() {
    // AUDIT_ARCH_I386; x32 calls have bit 30 set (asm/unistd.h).
    for (_, program) in programs() {
        for number in 0..512 {
            assert_eq!(
                run(&program, number, 0x4000_0003, [0; 6]).0,
                libc::SECCOMP_RET_TRAP
            );
            assert_eq!(
                run(&program, number | 1 << 30, X86_64, [0; 6]).0,
                libc::SECCOMP_RET_TRAP
            );
        }
    }
}

#[test]
fn the_guests_way_is_short_and_no_way_is_long() {
    let needs = Needs {
        rebuild: false,
        unlink: false,
        disk_threads: false,
    };
    let vcpu = compile(Thread::Vcpu, needs);
    // KVM_RUN.
    let (decision, steps) = run(
        &vcpu,
        libc::SYS_ioctl as u32,
        X86_64,
        [0, 0xae80, 0, 0, 0, 0],
    );
    assert_eq!(decision, libc::SECCOMP_RET_ALLOW);
    assert!(steps <= 7, "{steps} steps");
    // What is installed before the guest runs costs 0.3 us an instruction.
    assert!(vcpu.len() < 190, "{} instructions", vcpu.len());
    for (_, program) in programs() {
        // BPF_MAXINSNS.
        assert!(program.len() < 4096);
        for number in 0..512 {
            assert!(run(&program, number, X86_64, [0; 6]).1 < 80);
        }
    }
}

#[test]
fn nothing_that_matters_is_allowed_to_a_machine_that_runs_once() {
    let forbidden = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_register,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_setuid,
        libc::SYS_capset,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_memfd_create,
        libc::SYS_init_module,
    ];
    let needs = Needs {
        rebuild: false,
        unlink: false,
        disk_threads: false,
    };
    for thread in Thread::ALL {
        let program = compile(thread, needs);
        for number in forbidden {
            // TIOCSTI, PROT_EXEC, another process: whatever the arguments are.
            for value in [0, 1, 0x5412, u64::from(PID)] {
                let (got, _) = run(&program, number as u32, X86_64, [value; 6]);
                assert_ne!(got, libc::SECCOMP_RET_ALLOW, "{thread:?} {number}");
            }
        }
        let not = |number: i64, args: [u64; 6]| {
            let (got, _) = run(&program, number as u32, X86_64, args);
            assert_eq!(got, libc::SECCOMP_RET_TRAP, "{thread:?} {number} {args:x?}");
        };
        not(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]);
        not(libc::SYS_mmap, [0, 4096, 7, 0x22, 0, 0]);
        not(libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]);
        not(libc::SYS_tgkill, [1, 1, 9, 0, 0, 0]);
        not(libc::SYS_kill, [1, 9, 0, 0, 0, 0]);
        // KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION.
        not(libc::SYS_ioctl, [5, 0xae01, 0, 0, 0, 0]);
        not(libc::SYS_ioctl, [5, 0x4020_ae46, 0, 0, 0, 0]);
    }
}

#[test]
fn a_machine_that_is_built_again_touches_no_other_process() {
    let needs = Needs {
        rebuild: true,
        unlink: true,
        disk_threads: true,
    };
    let program = compile(Thread::Main, needs);
    let run = |number: i64, args| run(&program, number as u32, X86_64, args).0;
    for number in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setattr,
        libc::SYS_prlimit64,
    ] {
        assert_eq!(run(number, [0; 6]), libc::SECCOMP_RET_ALLOW);
        for other in [1, u64::from(PID + 1)] {
            let got = run(number, [other, 0, 0, 0, 0, 0]);
            assert_eq!(got, libc::SECCOMP_RET_TRAP, "{number}");
        }
    }
    // New limits, wherever they are in memory; a filter that tells somebody; a server of somebody else's.
    for limit in [0x7000, 0x7000 << 32] {
        let got = run(libc::SYS_prlimit64, [0, 7, limit, 0, 0, 0]);
        assert_eq!(got, libc::SECCOMP_RET_TRAP);
    }
    let listener = run(libc::SYS_seccomp, [1, 8, 0, 0, 0, 0]);
    assert_eq!(listener, libc::SECCOMP_RET_TRAP);
    // What is sent goes to whom it likes from a socket for datagrams.
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        let unix = |kind: i32| run(number, [1, kind as u64, 0, 0, 0, 0]);
        assert_eq!(
            unix(libc::SOCK_STREAM | libc::SOCK_CLOEXEC),
            libc::SECCOMP_RET_ALLOW
        );
        assert_eq!(
            unix(libc::SOCK_DGRAM | libc::SOCK_CLOEXEC),
            libc::SECCOMP_RET_TRAP
        );
    }
    let connect = run(libc::SYS_connect, [3, 0, 0, 0, 0, 0]);
    assert_eq!(connect, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32);
}

#[test]
fn only_disk_threads_make_threads_and_only_threads() {
    let needs = Needs {
        rebuild: false,
        unlink: false,
        disk_threads: true,
    };
    let program = compile(Thread::Loop, needs);
    // What pthread_create asks for, and what fork does.
    let thread = 0x003d_0f00;
    let clone = |flags| {
        run(
            &program,
            libc::SYS_clone as u32,
            X86_64,
            [flags, 0, 0, 0, 0, 0],
        )
        .0
    };
    assert_eq!(clone(thread), libc::SECCOMP_RET_ALLOW);
    assert_eq!(clone(0x0120_0011), libc::SECCOMP_RET_TRAP);
    assert_eq!(
        run(&program, libc::SYS_clone3 as u32, X86_64, [0; 6]).0,
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
    );
}

#[test]
fn every_group_says_why() {
    for (groups, _) in programs() {
        for group in groups {
            assert!(group.why.len() > 10 && !group.calls.is_empty());
            for test in group.calls.iter().flat_map(|c| c.when) {
                assert!(test.argument % UPPER < 6 && !test.any.is_empty());
                // What cannot match under its mask allows nothing: a mistake in the table.
                for value in test.any {
                    assert!(*value & !test.mask == 0, "{} {test:x?}", group.why);
                }
            }
        }
    }
}
