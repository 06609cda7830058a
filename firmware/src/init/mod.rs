//! Our PID 1 for Linux guests and the specification that tells it what to do.
#![forbid(unsafe_code)]

/// The program: a static x86-64 Linux executable that needs no libc and no other file.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init.elf"));
