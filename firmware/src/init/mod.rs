//! Our PID 1 for Linux guests and the specification that tells it what to do.
//!
//! The program's sources are in `firmware/init`; `build.rs` compiles them. How it and the host talk:
//!
//! - It reads [`Spec`] from [`spec::PATH`] of the initrd that it was started from.
//! - On the virtio console port `vsc.ctl` it writes the lines `ready`, `started PID`, `error TEXT` and, at the end, one
//!   of `exit N`, `signal N`, `noexec ERRNO PATH`. It obeys the lines `signal N` (to the command's process group),
//!   `winsize ROWS COLS` and `poweroff` (SIGTERM to all, SIGKILL after 5 s or at the second `poweroff`).
//! - A port `vsc.console` says that the streams are the machine's console, where the specification leaves it open.
//! - The ports `vsc.stdin`, `vsc.stdout`, `vsc.stderr` are relayed to pipes of the command. A host that closes a port
//!   (`PORT_OPEN` 0, VIRTIO 5.3.6.2) ends its stdin, or breaks its output pipe.
//! - Linux drops what arrives at a port before the guest has opened it, so the host sends neither data nor the end of
//!   the input before the guest's `PORT_OPEN` 1. It sends its own `PORT_OPEN` 1 before or with `PORT_NAME`.
//! - At the end all output is in the rings of its ports, the ports are closed (the driver waits until the host has used
//!   the control message), and only then the status is written and `vsc.ctl` closed. A host that drains a port's
//!   transmit queue when it sees `PORT_OPEN` 0, or all of them when it sees the status or the power off, loses nothing.
#![forbid(unsafe_code)]

extern crate alloc;

pub mod spec;

pub use spec::{Spec, SpecError, Stdio};

/// The program: a static x86-64 Linux executable that needs no libc and no other file.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init.elf"));

#[cfg(test)]
mod tests;
