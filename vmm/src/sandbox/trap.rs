//! What a blocked system call ends in: a message, the terminal as it was, exit code 125.
//!
//! The handler runs on the thread that made the call, under that thread's filter, and makes only calls that every
//! filter allows: write, ioctl on a terminal, exit_group.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use super::Thread;
use super::names::name_of;

/// As all errors of this program's own.
const EXIT_CODE: i32 = 125;
/// SYS_SECCOMP: why a SIGSYS came (asm-generic/siginfo.h).
const SYS_SECCOMP: i32 = 1;

thread_local! {
    /// What the thread is; needs neither destructor nor allocation.
    static KIND: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// What is done before the process ends. Async-signal-safe.
static BEFORE: OnceLock<fn()> = OnceLock::new();

/// Registers of the first three arguments of a system call.
const ARGUMENTS: [usize; 3] = [
    libc::REG_RDI as usize,
    libc::REG_RSI as usize,
    libc::REG_RDX as usize,
];
/// Longest message, bytes.
const LENGTH: usize = 384;

/// The beginning of siginfo_t for SIGSYS (asm-generic/siginfo.h).
#[repr(C)]
struct Info {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    address: u64,
    call: i32,
    arch: u32,
}

/// Says what the calling thread is.
pub(super) fn mark(thread: Thread) {
    KIND.set(Some(thread));
}

/// From now on, a blocked call ends this process with a message. `before` is called first and must be
/// async-signal-safe.
pub(super) fn install(before: fn()) -> io::Result<()> {
    BEFORE.get_or_init(|| before);
    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    let handler: Handler = on_blocked;
    // SAFETY: all-zero is a valid action; the handler makes async-signal-safe calls only. The set is this thread's,
    // and inherited by those it starts: a blocked SIGSYS would end the process without a word.
    let failed = unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        libc::sigdelset(&mut action.sa_mask, libc::SIGSYS);
        let mut own = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut own);
        libc::sigaddset(&mut own, libc::SIGSYS);
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) != 0
            || libc::pthread_sigmask(libc::SIG_UNBLOCK, &own, std::ptr::null_mut()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_blocked(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is larger than its beginning.
    let info = unsafe { &*info.cast::<Info>() };
    let mut text = Text::default();
    if info.code == SYS_SECCOMP {
        text.add(b"vsc-run: sandbox: blocked system call ");
        text.number(info.call.unsigned_abs().into(), 10);
        if let Some(name) = name_of(info.call.into()) {
            text.add(b" (");
            text.add(name.as_bytes());
            text.add(b")");
        }
        // SAFETY: the kernel passes the registers of the call.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        for (number, argument) in ARGUMENTS.into_iter().enumerate() {
            text.add(if number == 0 { b" of 0x" } else { b", 0x" });
            text.number(registers[argument] as u64, 16);
        }
        text.add(b" in a thread of kind ");
        text.add(KIND.get().map_or("main", Thread::word).as_bytes());
        text.add(b": this is a bug of vsc-run, or an attack on it from the guest; with --no-sandbox it would have been let through\n");
    } else {
        text.add(b"vsc-run: ended by SIGSYS\n");
    }
    if let Some(before) = BEFORE.get() {
        before();
    }
    let text = text.bytes();
    // SAFETY: plain system calls on a buffer of ours. Nobody is left to be told that the message was not taken.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(EXIT_CODE);
    }
}

/// A message without an allocator.
struct Text {
    bytes: [u8; LENGTH],
    len: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            bytes: [0; LENGTH],
            len: 0,
        }
    }
}

impl Text {
    fn add(&mut self, more: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(more) {
            *to = *from;
            self.len += 1;
        }
    }

    fn number(&mut self, mut n: u64, base: u64) {
        // As many as u64 has in base 10.
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(n % base) as usize];
            n /= base;
            if n == 0 {
                break;
            }
        }
        self.add(&digits[at..]);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_made_without_an_allocator_and_never_overflows() {
        let mut text = Text::default();
        text.number(0, 10);
        text.add(b" ");
        text.number(u64::MAX, 10);
        text.add(b" ");
        text.number(0x5413, 16);
        assert_eq!(text.bytes(), b"0 18446744073709551615 5413");
        text.add(&[b'x'; 1000]);
        assert_eq!(text.bytes().len(), LENGTH);
    }
}
