//! Initrds for Linux guests: archives, ELF and script dependencies, kernel modules, and what is built of them.
//!
//! Everything is read from the host's files and put together in memory, the same bytes for the same input. Nothing is
//! executed, and no device is opened.
#![forbid(unsafe_code)]

mod assemble;
mod busybox;
mod compress;
mod copy;
pub mod elf;
mod error;
pub mod kernel;
mod modinfo;
pub mod modules;
pub mod newc;
pub mod run;
pub mod tiny;

pub use compress::Compression;
pub use error::ImageError;
pub use run::{Overlay, RunRequest, overlay_segment, run_initrd};
pub use tiny::{Image, TinyImage};
