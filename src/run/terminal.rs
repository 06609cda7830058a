//! The user's terminal: raw while the guest has it, as it was before whatever happens.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The settings to restore, also by the panic hook and by the handler of fatal signals.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// The guest is to have the terminal.
static WANTED: AtomicBool = AtomicBool::new(false);
/// It has: the terminal is raw, or about to be.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end a process without a chance to run its destructors, except those that [`super::signals`] takes.
const FATAL: [i32; 16] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGXCPU,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];
/// What was to happen for [`FATAL`], in its order.
static BEFORE: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

/// The terminal of standard input, for raw mode; as it was when dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Standard input's terminal, unchanged so far; `None` when it is no terminal, or when another process group
    /// has it: `vsc-run … &` and `timeout 9 vsc-run …` must not change what their shell is using.
    ///
    /// # Errors
    /// The system's reason when the terminal refuses.
    pub(crate) fn claim() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || in_background(stdin.as_fd()) {
            return Ok(None);
        }
        let now = get(stdin.as_fd())?;
        SAVED.get_or_init(|| now);
        Ok(Some(Self(())))
    }

    /// Makes it raw.
    ///
    /// # Errors
    /// The system's reason when the terminal refuses.
    pub(crate) fn enter(&self) -> io::Result<()> {
        restore_on_panic();
        restore_on_fatal_signals();
        WANTED.store(true, Ordering::SeqCst);
        resume()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::SeqCst);
        restore();
    }
}

/// Gives the guest the terminal, again where it had it before; not while another process group has it.
///
/// # Errors
/// The system's reason when the terminal refuses.
pub(crate) fn resume() -> io::Result<()> {
    let Some(saved) = SAVED.get().filter(|_| WANTED.load(Ordering::SeqCst)) else {
        return Ok(());
    };
    if in_background(io::stdin().as_fd()) {
        RAW.store(false, Ordering::SeqCst);
        return Ok(());
    }
    let mut raw = *saved;
    // SAFETY: a plain function on a structure that tcgetattr filled in.
    unsafe { libc::cfmakeraw(&mut raw) };
    // Before the change: whatever comes in between puts back what is still there.
    RAW.store(true, Ordering::SeqCst);
    set(io::stdin().as_fd(), &raw)
}

/// Whether what is typed is the guest's.
pub(crate) fn is_raw() -> bool {
    RAW.load(Ordering::SeqCst)
}

/// Looks whether the terminal was lost to another process group, which alone sets it from then on.
pub(crate) fn lost() -> bool {
    let lost = in_background(io::stdin().as_fd());
    if lost {
        RAW.store(false, Ordering::SeqCst);
    }
    lost
}

/// Puts the terminal back, if it was changed and no other process group has it. Async-signal-safe.
pub(crate) fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // SAFETY: standard input's number, used during these calls only.
        let stdin = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
        if !in_background(stdin) {
            // A terminal that is gone needs no restoring.
            let _ = set(stdin, saved);
        }
    }
}

fn restore_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
}

fn restore_on_fatal_signals() {
    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    BEFORE.get_or_init(|| {
        FATAL.map(|signal| {
            // SAFETY: all-zero is a valid action; the handler makes async-signal-safe calls only.
            unsafe {
                let mut before = std::mem::zeroed::<libc::sigaction>();
                let mut ours = std::mem::zeroed::<libc::sigaction>();
                ours.sa_sigaction = on_fatal_signal as Handler as usize;
                // On the threads' own signal stacks: the fault may be the end of the stack.
                ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &ours, &mut before);
                if before.sa_sigaction == libc::SIG_IGN {
                    libc::sigaction(signal, &before, std::ptr::null_mut());
                }
                before
            }
        })
    });
}

extern "C" fn on_fatal_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore();
    // SAFETY: the kernel gives a valid siginfo. Faults have positive codes; what a process sent has not.
    let fault = unsafe { (*info).si_code > 0 };
    let index = FATAL.iter().position(|&fatal| fatal == signal);
    let before = index.and_then(|index| BEFORE.get()?.get(index));
    // SAFETY: async-signal-safe calls with an action that the kernel gave, or an all-zero one, which is SIG_DFL.
    unsafe {
        match before {
            // The instruction faults again after the return, for whoever handled that before (Rust's runtime).
            Some(before) if fault => {
                libc::sigaction(signal, before, std::ptr::null_mut());
            }
            _ => {
                let default = std::mem::zeroed::<libc::sigaction>();
                libc::sigaction(signal, &default, std::ptr::null_mut());
                libc::raise(signal);
            }
        }
    }
}

/// Whether `fd` is this process's controlling terminal, and another process group is in its foreground.
fn in_background(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: plain system calls.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(fd.as_raw_fd()), libc::getpgrp()) };
    foreground > 0 && foreground != own
}

fn get(fd: BorrowedFd<'_>) -> io::Result<libc::termios> {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: the pointer is to a structure that the call fills in when it succeeds.
    if unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the call above.
    Ok(unsafe { settings.assume_init() })
}

fn set(fd: BorrowedFd<'_>, settings: &libc::termios) -> io::Result<()> {
    // A background process would be stopped by SIGTTOU for this; the guest's output is worth more than the stop.
    // SAFETY: plain system calls with valid pointers.
    unsafe {
        let mut block = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut block);
        libc::sigaddset(&mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &block, &mut before);
        let result = libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, settings);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        if result == 0 { Ok(()) } else { Err(error) }
    }
}

/// Rows and columns of the terminal on standard output or input; `None` when neither is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    for fd in [libc::STDOUT_FILENO, libc::STDIN_FILENO] {
        // SAFETY: all-zero is a valid winsize.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: TIOCGWINSZ fills in the structure it is given.
        if unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) } == 0 && size.ws_row > 0 {
            return Some((size.ws_row, size.ws_col));
        }
    }
    None
}

/// What the escape key asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// End the machine now.
    Quit,
    /// Press the power button.
    PowerButton,
    /// Show the keys.
    Help,
}

/// Takes the escape key out of typed bytes: Ctrl-A x quits, Ctrl-A p presses the power button, Ctrl-A h shows help,
/// Ctrl-A Ctrl-A is one Ctrl-A.
#[derive(Debug, Default)]
pub(crate) struct EscapeFilter {
    armed: bool,
}

/// Ctrl-A, as in QEMU and screen.
const KEY: u8 = 0x01;
/// The help for [`Escape::Help`].
pub(crate) const KEYS: &str =
    "Ctrl-A x: quit   Ctrl-A p: power button   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A h: this line";

impl EscapeFilter {
    /// Splits `typed` into what the guest gets and what the user asked for.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Escape>) {
        let mut guest = Vec::with_capacity(typed.len());
        let mut asked = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.armed) {
                self.armed = byte == KEY;
                if byte != KEY {
                    guest.push(byte);
                }
                continue;
            }
            match byte {
                KEY => guest.push(KEY),
                b'x' | b'X' => asked.push(Escape::Quit),
                b'p' | b'P' => asked.push(Escape::PowerButton),
                b'h' | b'H' | b'?' => asked.push(Escape::Help),
                other => guest.extend([KEY, other]),
            }
        }
        (guest, asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_works_across_reads_and_can_be_typed() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.filter(b"ls\r\x01"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(filter.filter(b"xy"), (b"y".to_vec(), vec![Escape::Quit]));
        assert_eq!(
            filter.filter(b"\x01\x01\x01q\x01h"),
            (b"\x01\x01q".to_vec(), vec![Escape::Help])
        );
    }

    #[test]
    fn every_other_byte_passes() {
        let all: Vec<u8> = (0..=255).filter(|&b| b != KEY).collect();
        assert_eq!(EscapeFilter::default().filter(&all), (all.clone(), vec![]));
    }
}
