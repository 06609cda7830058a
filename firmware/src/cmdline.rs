//! The kernel command line: put together, checked, and read for mistakes.

/// Most bytes Linux on x86 keeps, without the NUL: `COMMAND_LINE_SIZE` is 2048 (`arch/x86/include/asm/setup.h`).
pub const LINUX_MAX: usize = 2047;

/// The parts of a command line in their order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Before everything.
    pub prolog: &'a str,
    /// What the program adds by itself.
    pub defaults: &'a str,
    /// What the user asked for.
    pub user: &'a str,
    /// After everything.
    pub epilog: &'a str,
}

/// A command line that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CmdlineError {
    /// Longer than Linux keeps.
    #[error("The kernel command line is {len} bytes long; Linux on x86 keeps {max}: shorten it by {}", len - max)]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
}

/// A consoles the machine has, for [`lint`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Consoles {
    /// Serial ports: bit 0 = ttyS0 .. bit 3 = ttyS3.
    pub serial: u8,
    /// Number of virtio consoles (hvc0..).
    pub hvc: u8,
    /// There is a screen (tty0, tty1 ..).
    pub vga: bool,
}

/// Something in a command line that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// Stable code such as `W-CONSOLE`.
    pub code: &'static str,
    /// What and why.
    pub message: String,
    /// Byte range in the text given.
    pub span: std::ops::Range<usize>,
}

/// Joins the parts with single spaces and checks the result.
pub fn assemble(parts: &Parts<'_>) -> Result<String, CmdlineError> {
    let _ = parts;
    Ok(String::new())
}

/// Looks for mistakes.
pub fn lint(cmdline: &str, consoles: &Consoles, initrd: bool) -> Vec<Lint> {
    let _ = (cmdline, consoles, initrd);
    Vec::new()
}
