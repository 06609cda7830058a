//! `vsc-run image`: a small initrd from this host's programs, files and modules; a look into disk images.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use vsc_firmware::initrd::{Compression, TinyImage};

use super::Common;
use crate::run::result::write_bytes;
use crate::{run, say};

mod look;

/// Arguments of `image`.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    kind: Kind,
}

/// Kinds of images.
#[derive(Debug, Subcommand)]
enum Kind {
    /// An initrd with busybox (if this host has it), our init, and what you name.
    Tiny(TinyArgs),
    /// Lists the partitions of a disk image, or what is in a directory of it. Nothing is mounted.
    Ls(look::LsArgs),
    /// Prints a file of a disk image.
    Cat(look::CatArgs),
    /// Copies a file or a directory out of a disk image.
    Cp(look::CpArgs),
    /// The process that looks into an image: standard input.
    #[command(hide = true)]
    Inside {
        /// What is wanted, as JSON.
        request: String,
    },
}

/// Arguments of `image tiny`.
#[derive(Debug, Args)]
struct TinyArgs {
    /// Programs to add, by name or path, with the libraries they need.
    programs: Vec<String>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE", default_value = "tiny.img")]
    output: PathBuf,
    /// Shell command to run instead of an interactive shell; `vsc-run IMAGE` ends with its status.
    #[arg(long, value_name = "CMD")]
    run: Option<String>,
    /// Copies a file, or a directory with all below it, to the same path.
    #[arg(long, value_name = "PATH")]
    copy: Vec<PathBuf>,
    /// Adds a kernel module with its dependencies; it is inserted at boot.
    #[arg(long, value_name = "MODULE")]
    kmod: Vec<String>,
    /// The kernel the image is for (default: the newest in /boot).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its modules (default: beside the kernel, or /lib/modules).
    #[arg(long, value_name = "DIR")]
    modules_dir: Option<PathBuf>,
    /// How the image is compressed.
    #[arg(long, value_enum, default_value_t = Packing::Gzip)]
    compress: Packing,
}

/// Compressions of an image.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

pub(super) fn run(args: ImageArgs, common: &Common) -> u8 {
    match args.kind {
        Kind::Tiny(args) => tiny(args, common),
        Kind::Ls(args) => look::ls(&args, common),
        Kind::Cat(args) => look::cat(&args),
        Kind::Cp(args) => look::cp(&args, common),
        Kind::Inside { request } => look::inside(&request),
    }
}

fn tiny(args: TinyArgs, common: &Common) -> u8 {
    let image = TinyImage {
        programs: args.programs,
        copy: args.copy,
        modules: args.kmod,
        run: args.run,
        kernel: args.kernel,
        modules_directory: args.modules_dir,
        search: std::env::var_os("PATH").unwrap_or_default(),
        compression: match args.compress {
            Packing::None => Compression::None,
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::Zstd,
        },
    };
    let built = match image.build() {
        Ok(built) => built,
        Err(e) => {
            say::error(&run::chain(&e));
            return crate::FAILED;
        }
    };
    if let Err(e) = write_bytes(&args.output, &built.bytes) {
        say::error(&format!("cannot write {}: {e}", args.output.display()));
        return crate::FAILED;
    }
    if common.json {
        let told = serde_json::json!({
            "file": args.output,
            "bytes": built.bytes.len(),
            "kernel_version": built.kernel_version,
            "report": built.report,
        });
        say::out(&format!("{told:#}\n"));
        return 0;
    }
    if !common.quiet {
        for line in &built.report {
            say::err_raw(&format!("{line}\n"));
        }
    }
    let kernel = built
        .kernel_version
        .map_or_else(|| "any kernel".into(), |v| format!("kernel {v}"));
    say::out(&format!(
        "{} ({} bytes) for {kernel}\n",
        args.output.display(),
        built.bytes.len()
    ));
    0
}
