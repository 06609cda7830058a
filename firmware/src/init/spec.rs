//! What PID 1 of a guest is told to do, and how it is written into `/vsc/run` of an initrd.
//!
//! This file is compiled twice: into this crate, which encodes, and into the freestanding program, which decodes.
//! The encoding is one header (`MAGIC`, version, length of the body) and the fields in the order of [`Spec`]; numbers
//! are little-endian `u32`, byte strings and lists carry their length. Nothing may follow the body.

use super::alloc::vec::Vec;

/// The first bytes of an encoded [`Spec`].
pub const MAGIC: [u8; 8] = *b"VSC-RUN\n";
/// The version of the encoding. PID 1 and the file are built together, so only this one is understood.
pub const VERSION: u32 = 1;
/// The most bytes an encoded [`Spec`] may have. Linux passes at most 2 MiB of arguments and environment to a program
/// (a quarter of the 8 MiB default stack, execve(2)); the rest is small.
pub const LIMIT: usize = 4 << 20;
/// Where the initrd holds the encoded [`Spec`].
pub const PATH: &str = "/vsc/run";

/// What the command's standard streams are in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdio {
    /// Pipes if there is a port `vsc.stdout`, a terminal if there is a port `vsc.tty`, else the console.
    #[default]
    Auto,
    /// The ports `vsc.stdin`, `vsc.stdout` and `vsc.stderr`.
    Pipes,
    /// The terminal [`Spec::tty`].
    Terminal,
    /// What the kernel was given as its last `console=`.
    Console,
}

/// How the machine ends after the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// Power off, or restart where the kernel knows no way to power off (it would halt for ever).
    #[default]
    PowerOff,
    /// Restart: what ends a guest without ACPI quickest.
    Restart,
}

/// One kernel module to insert.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Module {
    /// The file in the initrd.
    pub path: Vec<u8>,
    /// Its parameters, `name=value` separated by spaces.
    pub options: Vec<u8>,
}

/// The file system to run the command in, instead of the initrd itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Root {
    /// A device node (`/dev/vda1`), which is waited for, or a name that the file system understands (a virtiofs tag).
    pub device: Vec<u8>,
    /// The file system type; empty: each that the kernel knows is tried.
    pub fstype: Vec<u8>,
    /// Options as in mount(8), comma separated: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, `sync` become flags, the
    /// others go to the file system.
    pub options: Vec<u8>,
}

/// All that PID 1 needs to know. Byte strings hold no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// The command and its arguments. The command is searched in `PATH` unless it contains a slash.
    pub argv: Vec<Vec<u8>>,
    /// The environment, `NAME=VALUE`. `PATH`, `HOME` and `TERM` are added where missing.
    pub env: Vec<Vec<u8>>,
    /// The working directory; empty: `/`.
    pub cwd: Vec<u8>,
    /// The host name; empty: left as it is.
    pub hostname: Vec<u8>,
    /// The standard streams.
    pub stdio: Stdio,
    /// The terminal device of [`Stdio::Terminal`]; empty: `/dev/hvc0`.
    pub tty: Vec<u8>,
    /// Rows of the terminal; 0: unknown.
    pub rows: u32,
    /// Columns of the terminal; 0: unknown.
    pub columns: u32,
    /// Modules to insert, in this order.
    pub modules: Vec<Module>,
    /// The root file system, if not the initrd.
    pub root: Option<Root>,
    /// How the machine ends.
    pub end: End,
    /// Whether a port `vsc.ctl` is certain to exist and is worth waiting for. Without it, PID 1 looks for the port
    /// only where a virtio console with several ports is plugged in.
    pub channel: bool,
    /// How long to wait for each port and device that is certain to exist, in milliseconds; 0: 5000.
    pub wait_ms: u32,
}

/// Why bytes are not an encoded [`Spec`], or a [`Spec`] cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecError {
    /// They do not begin with [`MAGIC`].
    Magic,
    /// They are of another version.
    Version(u32),
    /// The body is shorter or longer than the header says, or than its fields are.
    Length,
    /// There are more than [`LIMIT`] bytes.
    Limit,
    /// A number stands for nothing.
    Value(u32),
    /// A byte string contains a NUL.
    Nul,
}

impl core::fmt::Display for SpecError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => f.write_str("Not a vsc run specification"),
            Self::Version(version) => {
                write!(f, "Run specification of version {version}, not {VERSION}")
            }
            Self::Length => f.write_str("Run specification of the wrong length"),
            Self::Limit => write!(f, "Run specification of more than {LIMIT} bytes"),
            Self::Value(value) => write!(f, "Run specification with the unknown value {value}"),
            Self::Nul => f.write_str("Run specification with a NUL in a string"),
        }
    }
}

impl core::error::Error for SpecError {}

impl Spec {
    /// The bytes for `/vsc/run`.
    ///
    /// # Errors
    /// A string with a NUL, or more than [`LIMIT`] bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        // No `..`: a new field does not compile until it is written here.
        let Self {
            argv,
            env,
            cwd,
            hostname,
            stdio,
            tty,
            rows,
            columns,
            modules,
            root,
            end,
            channel,
            wait_ms,
        } = self;
        let mut writer = Writer(Vec::new());
        writer.list(argv)?;
        writer.list(env)?;
        writer.string(cwd)?;
        writer.string(hostname)?;
        writer.number(match stdio {
            Stdio::Auto => 0,
            Stdio::Pipes => 1,
            Stdio::Terminal => 2,
            Stdio::Console => 3,
        });
        writer.string(tty)?;
        writer.number(*rows);
        writer.number(*columns);
        writer.length(modules.len())?;
        for module in modules {
            writer.string(&module.path)?;
            writer.string(&module.options)?;
        }
        writer.number(u32::from(root.is_some()));
        if let Some(root) = root {
            writer.string(&root.device)?;
            writer.string(&root.fstype)?;
            writer.string(&root.options)?;
        }
        writer.number(match end {
            End::PowerOff => 0,
            End::Restart => 1,
        });
        writer.number(u32::from(*channel));
        writer.number(*wait_ms);
        let body = writer.0;
        let mut encoded = Writer(Vec::with_capacity(16 + body.len()));
        encoded.0.extend_from_slice(&MAGIC);
        encoded.number(VERSION);
        encoded.length(body.len())?;
        encoded.0.extend_from_slice(&body);
        if encoded.0.len() > LIMIT {
            return Err(SpecError::Limit);
        }
        Ok(encoded.0)
    }

    /// Reads what [`Spec::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        if bytes.len() > LIMIT {
            return Err(SpecError::Limit);
        }
        let mut reader = Reader(bytes.strip_prefix(&MAGIC).ok_or(SpecError::Magic)?);
        let version = reader.number()?;
        if version != VERSION {
            return Err(SpecError::Version(version));
        }
        if reader.length()? != reader.0.len() {
            return Err(SpecError::Length);
        }
        let spec = Self {
            argv: reader.list()?,
            env: reader.list()?,
            cwd: reader.string()?,
            hostname: reader.string()?,
            stdio: match reader.number()? {
                0 => Stdio::Auto,
                1 => Stdio::Pipes,
                2 => Stdio::Terminal,
                3 => Stdio::Console,
                other => return Err(SpecError::Value(other)),
            },
            tty: reader.string()?,
            rows: reader.number()?,
            columns: reader.number()?,
            modules: reader.modules()?,
            root: if reader.flag()? {
                Some(Root {
                    device: reader.string()?,
                    fstype: reader.string()?,
                    options: reader.string()?,
                })
            } else {
                None
            },
            end: match reader.number()? {
                0 => End::PowerOff,
                1 => End::Restart,
                other => return Err(SpecError::Value(other)),
            },
            channel: reader.flag()?,
            wait_ms: reader.number()?,
        };
        if !reader.0.is_empty() {
            return Err(SpecError::Length);
        }
        Ok(spec)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn length(&mut self, length: usize) -> Result<(), SpecError> {
        self.number(u32::try_from(length).map_err(|_| SpecError::Limit)?);
        Ok(())
    }

    fn string(&mut self, text: &[u8]) -> Result<(), SpecError> {
        if text.contains(&0) {
            return Err(SpecError::Nul);
        }
        self.length(text.len())?;
        self.0.extend_from_slice(text);
        Ok(())
    }

    fn list(&mut self, list: &[Vec<u8>]) -> Result<(), SpecError> {
        self.length(list.len())?;
        list.iter().try_for_each(|text| self.string(text))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SpecError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SpecError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, SpecError> {
        let (taken, rest) = self.0.split_first_chunk::<4>().ok_or(SpecError::Length)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }

    fn flag(&mut self) -> Result<bool, SpecError> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(SpecError::Value(other)),
        }
    }

    fn length(&mut self) -> Result<usize, SpecError> {
        usize::try_from(self.number()?).map_err(|_| SpecError::Length)
    }

    fn string(&mut self) -> Result<Vec<u8>, SpecError> {
        let length = self.length()?;
        let taken = self.take(length)?;
        if taken.contains(&0) {
            return Err(SpecError::Nul);
        }
        Ok(taken.to_vec())
    }

    /// The number of elements to come: each takes at least 4 bytes, so more than a quarter of the rest is a lie, and
    /// nothing is allocated for it.
    fn count(&mut self) -> Result<usize, SpecError> {
        let count = self.length()?;
        if count > self.0.len() / 4 {
            return Err(SpecError::Length);
        }
        Ok(count)
    }

    fn list(&mut self) -> Result<Vec<Vec<u8>>, SpecError> {
        let count = self.count()?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(self.string()?);
        }
        Ok(list)
    }

    fn modules(&mut self) -> Result<Vec<Module>, SpecError> {
        let count = self.count()?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(Module {
                path: self.string()?,
                options: self.string()?,
            });
        }
        Ok(list)
    }
}
