//! Disk images: made, never overwritten, and looked at without being opened as what they claim to be.
//!
//! [`create`] prepares an image under no name (or a temporary one beside the target), makes it durable, and gives it
//! its name last and only if nobody has that name. Whatever ends it earlier, nothing of it is left. Raw images are
//! made here; other formats by `qemu-img`, which gets a descriptor of the nameless file and a passphrase that no other
//! process can see. [`check`] says beforehand what is wrong, [`info`] reads a header.

#![forbid(unsafe_code)]

pub(crate) mod chain;
mod disk;
pub(crate) mod info;
pub(crate) mod origin;
mod place;
mod qcow2;
mod qemu_img;
mod raw;
mod secret;
mod vmdk;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use vsc_devices::block::luks;

pub use crate::diag::Severity;
pub use info::{Info, InfoError, info};
pub use qcow2::{BadHeader, Header};
pub use secret::{Handed, Secret, SecretSource};

use place::{Draft, Place};

/// What a file system counts `st_blocks` in, and the smallest sector of a disk (man 2 stat).
const SECTOR: u64 = 512;
/// Smallest and largest cluster of a qcow2 image (QEMU docs/interop/qcow2.rst: `cluster_bits` is at least 9;
/// `MAX_CLUSTER_BITS` of QEMU is 21).
pub const CLUSTER_MIN: u64 = 512;
/// How long the computation of a key takes by default, as in cryptsetup and QEMU: what each start waits, and each guess of
/// somebody who has the image.
pub const ITER_TIME: Duration = Duration::from_secs(2);
/// See [`CLUSTER_MIN`].
pub const CLUSTER_MAX: u64 = 2 << 20;

/// A choice of the user by its word, as in scenarios.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The words, in their order.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The choice that `word` stands for.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }

            /// Its word.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

words! {
    /// Format of an image.
    ImageFormat {
        /// The bytes of the file are the bytes of the disk.
        Raw = "raw",
        /// QEMU copy-on-write, version 3 (`compat=1.1`).
        Qcow2 = "qcow2",
    }
}

words! {
    /// What is allocated before a guest writes.
    Preallocation {
        /// Nothing: the file grows as the guest writes.
        Off = "off",
        /// The format's tables (qcow2).
        Metadata = "metadata",
        /// Room on the file system, by fallocate.
        Falloc = "falloc",
        /// Zeros are written.
        Full = "full",
    }
}

words! {
    /// Compression of clusters that a tool compresses (qcow2).
    CompressionType {
        /// deflate; every QEMU reads it.
        Zlib = "zlib",
        /// Zstandard; QEMU 5.1 and later.
        Zstd = "zstd",
    }
}

words! {
    /// Encryption of an image.
    Encryption {
        /// None.
        None = "none",
        /// LUKS, unlocked by a passphrase.
        Luks = "luks",
    }
}

/// An image that is to be.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// Where.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// What the guest sees, bytes: a multiple of 512.
    pub size: u64,
    /// What is allocated at once.
    pub preallocation: Preallocation,
    /// Bytes of a cluster (qcow2); not given: 64 KiB, QEMU's default.
    pub cluster_size: Option<u64>,
    /// Reference counts are written late (qcow2): faster, and a crash asks for a repair. Not given: off.
    pub lazy_refcounts: Option<bool>,
    /// Compression of compressed clusters (qcow2); not given: zlib.
    pub compression_type: Option<CompressionType>,
    /// Whether the content is encrypted.
    pub encryption: Encryption,
    /// How long the computation of the key from the passphrase is to take on this host.
    pub iter_time: Duration,
    /// The passphrase of an encrypted image.
    pub secret: Option<SecretSource>,
    /// Permissions of the file; the umask takes nothing from them.
    pub mode: u32,
    /// Missing directories are made.
    pub parents: bool,
}

impl ImageSpec {
    /// An image with nothing special: nothing preallocated, not encrypted, for its owner only.
    pub fn new(path: impl Into<PathBuf>, format: ImageFormat, size: u64) -> Self {
        Self {
            path: path.into(),
            format,
            size,
            preallocation: Preallocation::Off,
            cluster_size: None,
            lazy_refcounts: None,
            compression_type: None,
            encryption: Encryption::None,
            iter_time: ITER_TIME,
            secret: None,
            mode: 0o600,
            parents: false,
        }
    }

    /// Bytes of the file: what the guest sees, and what is before it.
    fn length(&self) -> u64 {
        match (self.format, self.encryption) {
            (ImageFormat::Raw, Encryption::Luks) => self.size.saturating_add(luks::PAYLOAD),
            _ => self.size,
        }
    }

    /// What will be allocated when it is made, as far as that takes time.
    fn to_allocate(&self) -> Option<u64> {
        matches!(
            self.preallocation,
            Preallocation::Falloc | Preallocation::Full
        )
        .then_some(self.length())
    }
}

/// Something to say about an [`ImageSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Errors keep [`create`] from making it.
    pub severity: Severity,
    /// Stable name, `E-…` or `W-…`.
    pub code: &'static str,
    /// The key of a disk that it is about.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Remark {
    fn error(code: &'static str, key: &'static str, message: String, help: &str) -> Self {
        Self {
            severity: Severity::Error,
            code,
            key,
            message,
            help: help.to_owned(),
        }
    }

    fn warning(key: &'static str, message: &str) -> Self {
        Self {
            severity: Severity::Warning,
            code: "W-DISK-OPTION",
            key,
            message: message.to_owned(),
            help: format!("Choose the format qcow2, or leave out {key}"),
        }
    }
}

/// What is wrong or unwise about an image, without looking at the host.
///
/// What a raw image cannot have is a warning where the image is as good without, and an error where it would not be
/// what it claims to be.
pub fn check(spec: &ImageSpec) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if Place::names(&spec.path).is_none() {
        remarks.push(Remark::error(
            "E-DISK-PATH",
            "path",
            format!("{} does not name a file", spec.path.display()),
            "Name the image: a directory and a file name",
        ));
    }
    if spec.size == 0 || !spec.size.is_multiple_of(SECTOR) || i64::try_from(spec.length()).is_err()
    {
        let message = match spec.size {
            0 => "A disk of no size".to_owned(),
            n if i64::try_from(spec.length()).is_err() => format!("No file can have {n} bytes"),
            n => format!("A disk has whole sectors of {SECTOR} bytes, and {n} bytes are not"),
        };
        remarks.push(Remark::error(
            "E-DISK-SIZE",
            "size",
            message,
            "Give a size such as 20G or 512M",
        ));
    }
    if spec.encryption == Encryption::None && spec.secret.is_some() {
        remarks.push(Remark::error(
            "E-DISK-SECRET",
            "encryption",
            "A passphrase is given, and nothing would be encrypted with it".into(),
            "Choose encryption luks, or give no passphrase",
        ));
    }
    if spec.encryption == Encryption::Luks && spec.secret.is_none() {
        remarks.push(Remark::error(
            "E-DISK-SECRET",
            "secret_file",
            "An encrypted image needs a passphrase, and none is given".into(),
            "Name a file that has it (secret_file)",
        ));
    }
    match spec.format {
        ImageFormat::Raw => check_raw(spec, &mut remarks),
        ImageFormat::Qcow2 => check_qcow2(spec, &mut remarks),
    }
    remarks
}

fn check_raw(spec: &ImageSpec, remarks: &mut Vec<Remark>) {
    if spec.preallocation == Preallocation::Metadata {
        remarks.push(Remark::error(
            "E-DISK-OPTION",
            "preallocation",
            "preallocation of metadata needs qcow2: a raw image has none".into(),
            "Choose off, falloc or full, or the format qcow2",
        ));
    }
    if spec.cluster_size.is_some() {
        remarks.push(Remark::warning(
            "cluster_size",
            "cluster_size needs qcow2: a raw image has no clusters",
        ));
    }
    if spec.lazy_refcounts == Some(true) {
        remarks.push(Remark::warning(
            "lazy_refcounts",
            "lazy_refcounts needs qcow2: a raw image counts no references",
        ));
    }
    if spec.compression_type.is_some() {
        remarks.push(Remark::warning(
            "compression_type",
            "compression_type needs qcow2: a raw image is not compressed",
        ));
    }
}

fn check_qcow2(spec: &ImageSpec, remarks: &mut Vec<Remark>) {
    if let Some(n) = spec.cluster_size
        && !(n.is_power_of_two() && (CLUSTER_MIN..=CLUSTER_MAX).contains(&n))
    {
        remarks.push(Remark::error(
            "E-DISK-OPTION",
            "cluster_size",
            format!("A cluster of {n} bytes: it has a power of two from 512 bytes to 2 MiB"),
            "Give 64K (the default), or 1M for large disks",
        ));
    }
}

/// Who watches a creation, and may end it.
pub trait Progress {
    /// `done` bytes are on the disk, of `total` where there is much to write. Comes about ten times a second while
    /// something takes its time. `Break` ends the creation: it becomes [`ImageError::Interrupted`], and nothing of
    /// the image is left.
    fn advance(&mut self, done: u64, total: Option<u64>) -> ControlFlow<()>;
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn advance(&mut self, _: u64, _: Option<u64>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// An image that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// Where.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// What the guest sees, bytes.
    pub size: u64,
    /// What the file takes of its file system, bytes.
    pub allocated: u64,
    /// How long it took.
    pub seconds: f64,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum ImageError {
    #[error("{}", .0.iter().map(|r| r.message.as_str()).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Remark>),
    #[error("{} exists already, and a disk image is never overwritten", .0.display())]
    Exists(PathBuf),
    #[error("there is no directory {} for the image", .0.display())]
    NoDirectory(PathBuf),
    #[error("cannot make the directory {}", .0.display())]
    MakeDirectory(PathBuf, #[source] io::Error),
    #[error("cannot use the directory {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("cannot make a file in {}", .0.display())]
    MakeFile(PathBuf, #[source] io::Error),
    #[error("cannot make the image {bytes} bytes long")]
    Length {
        bytes: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot reserve {bytes} bytes for the image")]
    Reserve {
        bytes: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the image, {done} of {bytes} bytes were written")]
    Write {
        done: u64,
        bytes: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot bring the image to the disk")]
    Sync(#[source] io::Error),
    #[error("the image is made, but cannot be given its name {}", .0.display())]
    Publish(PathBuf, #[source] io::Error),
    #[error("{0} images are made by qemu-img, and there is no qemu-img in $PATH")]
    NoQemuImg(&'static str),
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    #[error("qemu-img refused ({status}): {message}")]
    QemuImg { status: String, message: String },
    #[error("qemu-img said that it was done, but what it made is not the image: {0}")]
    NotMade(String),
    #[error("cannot read the passphrase from {0}")]
    ReadSecret(String, #[source] io::Error),
    #[error("the passphrase from {from} {why}")]
    Secret { from: String, why: &'static str },
    #[error("the image")]
    Luks(#[source] luks::LuksError),
    #[error("cannot hand over the passphrase")]
    PassSecret(#[source] io::Error),
    #[error("interrupted; nothing of the image is left")]
    Interrupted,
}

impl ImageError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Refused(remarks) => remarks.first()?.help.clone(),
            Self::Exists(_) => "Take another name, or remove it if nobody needs it".into(),
            Self::NoDirectory(directory) => format!("Make it: mkdir -p {}", directory.display()),
            Self::Secret { from, why } if why.ends_with("read by others") => {
                format!("Let nobody else read it: chmod 600 {from}")
            }
            Self::ReadSecret(from, source) if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("It is to be this user's alone: sudo chown \"$USER\" {from}; chmod 600 {from}")
            }
            Self::NoQemuImg(_) => "Install it: apt-get install qemu-utils (SUSE: qemu-tools, Fedora: qemu-img); raw images need no program".into(),
            Self::Reserve { source, .. } if source.kind() == io::ErrorKind::Unsupported => {
                "This file system cannot reserve room: use preallocation full, or off".into()
            }
            Self::Length { source, .. } | Self::Reserve { source, .. } | Self::Write { source, .. }
                if source.kind() == io::ErrorKind::FileTooLarge =>
            {
                limit()?
            }
            // QEMU's sentence for EFBIG blames the format.
            Self::QemuImg { message, .. } if message.contains("too large") => limit()?,
            _ => return None,
        })
    }
}

/// That this process may not write long files, if it is so.
fn limit() -> Option<String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current?;
    Some(format!(
        "This process may write no file longer than {limit} bytes: see ulimit -f"
    ))
}

/// Makes an image. Nothing is overwritten, and when it fails nothing is left.
///
/// # Errors
/// See [`ImageError`]. What [`check`] calls an error is [`ImageError::Refused`].
pub fn create(spec: &ImageSpec, progress: &mut dyn Progress) -> Result<Created, ImageError> {
    let started = Instant::now();
    let errors: Vec<_> = check(spec)
        .into_iter()
        .filter(|remark| remark.severity == Severity::Error)
        .collect();
    if !errors.is_empty() {
        return Err(ImageError::Refused(errors));
    }
    let mut notes = Vec::new();
    let place = Place::open(&spec.path, spec.parents)?;
    let draft = Draft::open(&place, spec.mode)?;
    match spec.format {
        ImageFormat::Raw => {
            raw::fill(draft.file(), spec, progress)?;
            if let (Some(source), Encryption::Luks) = (&spec.secret, spec.encryption) {
                let secret = source.read(&mut notes)?;
                let draft_of = luks::Draft {
                    passphrase: secret.passphrase(),
                    time: spec.iter_time,
                };
                draft_of.write(draft.file()).map_err(ImageError::Luks)?;
            }
        }
        ImageFormat::Qcow2 => {
            let program = qemu_img::find(std::env::var_os("PATH").as_deref())
                .ok_or(ImageError::NoQemuImg(spec.format.word()))?;
            let secret = match (&spec.secret, spec.encryption) {
                (Some(source), Encryption::Luks) => {
                    let secret = source.read(&mut notes)?;
                    secret.for_qemu()?;
                    Some(secret)
                }
                _ => None,
            };
            qemu_img::create(&program, spec, draft.file(), secret.as_ref(), progress)?;
            verify(spec, draft.file())?;
        }
    }
    origin::mark(draft.file(), spec.format);
    draft.file().sync_all().map_err(ImageError::Sync)?;
    let allocated = allocated(draft.file()).map_err(ImageError::Sync)?;
    draft.publish()?;
    Ok(Created {
        path: spec.path.clone(),
        format: spec.format,
        size: spec.size,
        allocated,
        seconds: started.elapsed().as_secs_f64(),
        notes,
    })
}

/// That what another program made is what was asked for.
fn verify(spec: &ImageSpec, file: &std::fs::File) -> Result<(), ImageError> {
    let header = Header::read(file).map_err(|e| ImageError::NotMade(e.to_string()))?;
    let encrypted = spec.encryption == Encryption::Luks;
    if header.virtual_size != spec.size {
        let has = header.virtual_size;
        return Err(ImageError::NotMade(format!("it has {has} bytes")));
    }
    if encrypted != (header.encryption == Some("luks")) {
        return Err(ImageError::NotMade(
            "encryption is not as it was asked for".into(),
        ));
    }
    Ok(())
}

/// A path in JSON, also when it is no UTF-8.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn allocated(file: &std::fs::File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.blocks().saturating_mul(SECTOR))
}

/// A size as scenarios have it: `20G`, `512M`, and a bare number is MiB.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    crate::scenario::value::size(text).map_err(|fault| {
        if crate::scenario::value::is_beyond(text) {
            return format!(
                "{} is too large: the most is below 2^64 bytes, 16777216T",
                crate::diag::quoted(text)
            );
        }
        let why = match text.get(fault.from..fault.to) {
            Some(unit) if unit.len() < text.len() => {
                format!("{}: {}", crate::diag::quoted(unit), fault.message)
            }
            _ => "write 20G, 512M, 64K or 4096B".to_owned(),
        };
        format!("{} is not a size: {why}", crate::diag::quoted(text))
    })
}

/// Whether something has this name already: what [`create`] would find at its end, known at its start.
pub fn is_taken(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests;
