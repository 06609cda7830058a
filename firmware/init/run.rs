//! The command: its streams, its start, what happens while it runs, how it ended.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::control::{Control, Request};
use crate::end::Ending;
use crate::machine::{self, cannot_open, patience, show};
use crate::ports::{self, Events};
use crate::relay::Relay;
use crate::spec::{Spec, Stdio};
use crate::sys::{self, EACCES, ENOENT, ENOTDIR, Errno, Fd, PollFd};

/// What a shell assumes too (Debian's login(1), busybox).
const DEFAULT_PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the command may take to end by itself when the guest asked for the end of the machine, and how long after
/// SIGTERM, in milliseconds.
const OWN_TIME: u64 = 300;
const TERM_TIME: u64 = 5000;

/// How the command ended.
pub enum Outcome {
    Exit(i32),
    Signal(i32),
    NotExecuted(Errno, CString),
}

pub struct Finished {
    pub outcome: Outcome,
    /// What the guest itself asked for, if it did.
    pub ending: Option<Ending>,
    /// The terminal whose output is still on its way.
    pub terminal: Option<Fd>,
}

struct Streams {
    child: [Fd; 3],
    terminal: Option<Fd>,
    input: Option<Relay>,
    output: Vec<Relay>,
}

/// A machine asked to end, and the next step.
struct Stop {
    at: u64,
    step: Step,
    by_guest: bool,
}

#[derive(PartialEq)]
enum Step {
    Terminate,
    Kill,
    Wait,
}

pub fn run(spec: &Spec, control: &mut Control) -> Finished {
    let signals = sys::signal_fd();
    let mut streams = open_streams(spec, control);
    let mut finished = Finished {
        outcome: Outcome::Exit(0),
        ending: None,
        terminal: streams.terminal,
    };
    match start(spec, &streams) {
        Ok(pid) => {
            control.say(format_args!("started {pid}"));
            streams.close_child();
            attend(pid, signals.ok(), &mut streams, &mut finished, control);
        }
        Err((errno, path)) => finished.outcome = Outcome::NotExecuted(errno, path),
    }
    finished
}

fn open_streams(spec: &Spec, control: &mut Control) -> Streams {
    let events = Events::new();
    let wait = patience(spec);
    let stdio = match spec.stdio {
        Stdio::Auto if control.attached() => events
            .until(wait, || {
                if ports::port_exists("vsc.stdout") {
                    Some(Stdio::Pipes)
                } else if ports::port_exists("vsc.console") {
                    // Without streams of its own; says that none are to be waited for.
                    Some(Stdio::Console)
                } else {
                    ports::port_exists("vsc.tty").then_some(Stdio::Terminal)
                }
            })
            .unwrap_or(Stdio::Console),
        Stdio::Pipes | Stdio::Terminal if !control.attached() => Stdio::Console,
        Stdio::Auto => Stdio::Console,
        given => given,
    };
    match stdio {
        Stdio::Pipes => pipes(wait, &events, control),
        Stdio::Terminal => {
            let path = if spec.tty.is_empty() {
                CString::from(c"/dev/hvc0")
            } else {
                sys::c_string(&spec.tty)
            };
            let streams = terminal(&path, wait, &events, control);
            if let Some(fd) = streams.terminal
                && (spec.rows, spec.columns) != (0, 0)
            {
                let size = |value| u16::try_from(value).unwrap_or(u16::MAX);
                if let Err(errno) =
                    machine::set_window_size(fd, size(spec.rows), size(spec.columns))
                {
                    control.error(format_args!(
                        "Cannot set the size of {}: {errno}",
                        show(&path)
                    ));
                }
            }
            streams
        }
        _ => terminal(&ports::console(), wait, &events, control),
    }
}

fn pipes(wait: u64, events: &Events, control: &mut Control) -> Streams {
    let null = sys::open(c"/dev/null", sys::O_RDWR).unwrap_or(Fd(0));
    let mut streams = Streams {
        child: [null; 3],
        terminal: None,
        input: None,
        output: Vec::new(),
    };
    // The input comes last: see INPUT_GRACE.
    for (place, name) in [(1, "vsc.stdout"), (2, "vsc.stderr"), (0, "vsc.stdin")] {
        let Some(port) = events.until(wait, || ports::open_port(name)) else {
            control.error(format_args!("There is no port {name}"));
            continue;
        };
        match sys::pipe() {
            Ok((read, write)) if place == 0 => {
                streams.child[place] = read;
                let _ = sys::set_nonblocking(write);
                streams.input = Some(Relay::new(port, write, false));
            }
            Ok((read, write)) => {
                streams.child[place] = write;
                let _ = sys::set_nonblocking(read);
                streams.output.push(Relay::new(read, port, true));
            }
            Err(errno) => control.error(format_args!("Cannot make a pipe for {name}: {errno}")),
        }
    }
    streams
}

/// The terminal as all three streams. This program is its session's leader, not the command: when a session's leader
/// ends, the kernel hangs up the terminal and drops what it has not printed yet.
fn terminal(path: &CStr, wait: u64, events: &Events, control: &mut Control) -> Streams {
    let opened = ports::open_terminal(path, wait, events).or_else(|errno| {
        control.error(cannot_open(path, errno));
        sys::open(c"/dev/console", sys::O_RDWR | sys::O_NOCTTY)
    });
    let (fd, terminal) = match opened {
        Ok(fd) => (fd, Some(fd)),
        Err(errno) => {
            control.error(cannot_open(c"/dev/console", errno));
            (sys::open(c"/dev/null", sys::O_RDWR).unwrap_or(Fd(0)), None)
        }
    };
    if let Some(fd) = terminal {
        // Fails where this program leads a session already; then the terminal may be taken all the same.
        let _ = sys::setsid();
        if let Err(errno) = sys::ioctl(fd, sys::TIOCSCTTY, 0) {
            control.error(format_args!(
                "Cannot make {} the controlling terminal: {errno}",
                show(path)
            ));
        }
    }
    Streams {
        child: [fd; 3],
        terminal,
        input: None,
        output: Vec::new(),
    }
}

impl Streams {
    /// This program's copies of the command's ends of the pipes.
    fn close_child(&mut self) {
        if self.terminal.is_none() {
            let [input, output, _] = self.child;
            for (place, fd) in self.child.into_iter().enumerate() {
                let again = place > 0 && fd == input || place > 1 && fd == output;
                if fd.0 > 2 && !again {
                    sys::close(fd);
                }
            }
            self.child = [Fd(-1); 3];
        }
    }
}

/// Starts the command: its process id, or why not and what was tried.
fn start(spec: &Spec, streams: &Streams) -> Result<i32, (Errno, CString)> {
    let strings: Vec<CString> = spec.argv.iter().map(sys::c_string).collect();
    let Some(command) = strings.first().filter(|command| !command.is_empty()) else {
        return Err((ENOENT, CString::default()));
    };
    let env = environment(spec, streams.terminal.is_some());
    let pointers = |strings: &[CString]| -> Vec<*const i8> {
        strings
            .iter()
            .map(|text| text.as_ptr())
            .chain([core::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(&strings), pointers(&env));
    let candidates = candidates(command, &env);
    let directory = if spec.cwd.is_empty() {
        CString::from(c"/")
    } else {
        sys::c_string(&spec.cwd)
    };

    let fail = |errno| (errno, command.clone());
    let (report, failure) = sys::pipe().map_err(fail)?;
    let Some(pid) = sys::fork().map_err(fail)? else {
        become_command(streams, &directory, &candidates, &argv, &envp, failure);
    };
    sys::close(failure);
    // The pipe ends without a byte when execve succeeded.
    let mut bytes = [0_u8; 8];
    let count = loop {
        match sys::read(report, &mut bytes) {
            Err(sys::EINTR) => {}
            other => break other.unwrap_or(0),
        }
    };
    sys::close(report);
    if count < bytes.len() {
        return Ok(pid);
    }
    let [a, b, c, d, at @ ..] = bytes;
    let errno = Errno(i32::from_ne_bytes([a, b, c, d]));
    let path = candidates
        .get(u32::from_ne_bytes(at) as usize)
        .unwrap_or(&directory);
    // A command that was searched is named as it was asked for.
    let searched = errno == ENOENT && candidates.len() > 1 && path != &directory;
    Err((
        errno,
        if searched {
            command.clone()
        } else {
            path.clone()
        },
    ))
}

/// The child's side: never returns.
fn become_command(
    streams: &Streams,
    directory: &CStr,
    candidates: &[CString],
    argv: &[*const i8],
    envp: &[*const i8],
    failure: Fd,
) -> ! {
    if let Some(terminal) = streams.terminal {
        let _ = sys::setpgid();
        // All signals are still blocked, SIGTTOU too: a background process may take the terminal.
        let mut group = sys::process_id();
        let _ = sys::ioctl_with(terminal, sys::TIOCSPGRP, &mut group);
    } else {
        let _ = sys::setsid();
    }
    for (place, fd) in (0..).zip(streams.child) {
        let _ = sys::dup2(fd, place);
    }
    let report = |errno: Errno, place: usize| -> ! {
        let mut bytes = [0_u8; 8];
        bytes[..4].copy_from_slice(&errno.0.to_ne_bytes());
        bytes[4..].copy_from_slice(&u32::try_from(place).unwrap_or(u32::MAX).to_ne_bytes());
        let _ = sys::write(failure, &bytes);
        sys::exit(127)
    };
    if let Err(errno) = sys::chdir(directory) {
        report(errno, usize::MAX);
    }
    sys::set_signal_mask(0);
    // As execvp(3): a file that may not be executed is reported only if no other directory has one that may.
    let mut worst = (ENOENT, 0);
    for (place, path) in candidates.iter().enumerate() {
        match sys::execve(path, argv, envp) {
            ENOENT | ENOTDIR => {}
            EACCES => worst = (EACCES, place),
            errno => report(errno, place),
        }
    }
    report(worst.0, worst.1)
}

fn candidates(command: &CStr, env: &[CString]) -> Vec<CString> {
    let command = command.to_bytes();
    if command.contains(&b'/') {
        return [sys::c_string(command)].into();
    }
    let path = env
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or_default();
    path.split(|&byte| byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() {
                &b"."[..]
            } else {
                directory
            };
            sys::c_string([directory, b"/", command].concat())
        })
        .collect()
}

fn environment(spec: &Spec, terminal: bool) -> Vec<CString> {
    let mut env: Vec<CString> = spec.env.iter().map(sys::c_string).collect();
    let term = if terminal {
        &b"TERM=linux"[..]
    } else {
        b"TERM=dumb"
    };
    for default in [DEFAULT_PATH, b"HOME=/root", term] {
        let name = default
            .split_inclusive(|&byte| byte == b'=')
            .next()
            .unwrap_or_default();
        if !env.iter().any(|entry| entry.to_bytes().starts_with(name)) {
            env.push(sys::c_string(default));
        }
    }
    env
}

/// Serves the command until it has ended and all its output is on its way.
fn attend(
    pid: i32,
    signals: Option<Fd>,
    streams: &mut Streams,
    finished: &mut Finished,
    control: &mut Control,
) {
    let mut ended = false;
    let mut stop: Option<Stop> = None;
    let mut abandon = false;
    loop {
        // Without signalfd(2) the end of children is looked for now and then.
        let mut timeout = if signals.is_some() { -1 } else { 10 };
        while let Some((child, status)) = sys::reap() {
            if child == pid {
                ended = true;
                finished.outcome = outcome(status);
                // What the command left running has lost its terminal and its reason, and must not hold its pipes.
                let _ = sys::kill(-1, sys::SIGKILL);
                streams.input.iter_mut().for_each(Relay::close);
            }
        }
        for relay in streams.input.iter_mut().chain(&mut streams.output) {
            relay.pump(&mut timeout);
        }
        if ended && (abandon || streams.output.iter().all(Relay::finished)) {
            break;
        }
        control.flush();
        advance(&mut stop, &mut timeout);

        let mut fds = [PollFd {
            fd: -1,
            events: 0,
            revents: 0,
        }; 8];
        if let Some(fd) = signals {
            fds[0] = PollFd {
                fd: fd.0,
                events: sys::POLLIN,
                revents: 0,
            };
        }
        if let Some(entry) = control.interest(&mut timeout) {
            fds[1] = entry;
        }
        let relays = streams.input.iter().chain(&streams.output);
        for (entries, relay) in fds[2..].chunks_exact_mut(2).zip(relays) {
            for (entry, interest) in entries.iter_mut().zip(relay.interest()) {
                *entry = interest.unwrap_or(*entry);
            }
        }
        sys::poll(&mut fds, timeout);

        let relays = streams.input.iter_mut().chain(&mut streams.output);
        for (entries, relay) in fds[2..].chunks_exact(2).zip(relays) {
            relay.noticed(entries[1].revents);
        }
        while let Some(signal) = signals.and_then(sys::next_signal) {
            if let Some(ending) = asked_by(signal) {
                finished.ending = Some(ending);
                let at = sys::now() + OWN_TIME;
                stop.get_or_insert(Stop {
                    at,
                    step: Step::Terminate,
                    by_guest: true,
                });
            }
        }
        control.receive(fds[1].revents, |request| match request {
            Request::Signal(signal) if !ended => drop(sys::kill(-pid, signal)),
            Request::Signal(_) => {}
            Request::WindowSize(rows, columns) => {
                if let Some(terminal) = streams.terminal {
                    let _ = machine::set_window_size(terminal, rows, columns);
                }
            }
            Request::PowerOff => {
                let step = if stop.is_some() {
                    Step::Kill
                } else {
                    Step::Terminate
                };
                abandon |= ended;
                stop = Some(Stop {
                    at: 0,
                    step,
                    by_guest: false,
                });
            }
        });
    }
    let by_guest = stop.is_some_and(|stop| stop.by_guest);
    if by_guest && matches!(finished.outcome, Outcome::Signal(_)) {
        // `poweroff` typed in a shell is a way to end it, not a failure of it.
        finished.outcome = Outcome::Exit(0);
    }
}

/// Takes the next step of stopping all processes when its time has come, and has the loop wake up for the one after.
fn advance(stop: &mut Option<Stop>, timeout: &mut i32) {
    let Some(stop) = stop else { return };
    let now = sys::now();
    if now >= stop.at {
        match stop.step {
            Step::Terminate => {
                // Interactive shells ignore SIGTERM, stopped processes everything.
                for signal in [sys::SIGTERM, sys::SIGHUP, sys::SIGCONT] {
                    let _ = sys::kill(-1, signal);
                }
                (stop.step, stop.at) = (Step::Kill, now + TERM_TIME);
            }
            Step::Kill => {
                let _ = sys::kill(-1, sys::SIGKILL);
                (stop.step, stop.at) = (Step::Wait, u64::MAX);
            }
            Step::Wait => {}
        }
    }
    if stop.step != Step::Wait {
        let left = i32::try_from(stop.at.saturating_sub(now)).unwrap_or(i32::MAX);
        *timeout = if *timeout < 0 {
            left
        } else {
            left.min(*timeout)
        };
    }
}

/// What busybox's and sysvinit's commands, and the kernel on Ctrl-Alt-Del, mean by a signal to PID 1.
fn asked_by(signal: u32) -> Option<Ending> {
    match signal {
        sys::SIGUSR1 | sys::SIGUSR2 | sys::SIGPWR => Some(Ending::PowerOff),
        sys::SIGTERM | sys::SIGINT => Some(Ending::Restart),
        _ => None,
    }
}

/// A wait status: the low 7 bits are the signal, the next byte the exit status (wait(2)).
fn outcome(status: i32) -> Outcome {
    match status & 0x7f {
        0 => Outcome::Exit(status >> 8 & 0xff),
        signal => Outcome::Signal(signal),
    }
}

impl core::fmt::Display for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "exit {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotExecuted(errno, path) => {
                f.write_str(&format!("noexec {} {}", errno.0, show(path)))
            }
        }
    }
}
