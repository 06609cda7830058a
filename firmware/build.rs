//! Builds the freestanding programs that this crate embeds: each is one `no_std`, `no_main` Rust program, linked
//! statically without libc, so that the crate needs nothing but the compiler that builds it.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!(
                "cargo::error={}",
                error.to_string().replace('\n', "\ncargo::error=")
            );
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    // The specification of what PID 1 does is shared between it and this crate.
    println!("cargo::rerun-if-changed=src/init/spec.rs");
    build_freestanding("init", "init/main.rs", None, &[])?;
    let small = ["-C", "opt-level=z"];
    build_freestanding("guest", "guest/main.rs", Some("guest/link.ld"), &small)?;
    Ok(())
}

/// Compiles `main_source` (a path below the crate, whose directory is watched for changes) into
/// `$OUT_DIR/<name>.elf`, a static x86-64 ELF file without a dynamic section.
///
/// `linker_script` (a path below the crate) replaces the linker's own layout. `extra` goes to rustc as it is, after
/// the common options. Flags of `.cargo/config.toml` do not reach this compilation.
fn build_freestanding(
    name: &str,
    main_source: &str,
    linker_script: Option<&str>,
    extra: &[&str],
) -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let source = root.join(main_source);
    let directory = source.parent().unwrap_or(&root);
    println!("cargo::rerun-if-changed={}", directory.display());
    let elf = Path::new(&variable("OUT_DIR")?).join(format!("{name}.elf"));

    let mut rustc = Command::new(variable("RUSTC")?);
    // Cargo's own environment must not leak into this compilation: a wrapper meant for the crate, or its flags.
    rustc
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    rustc.args([
        "--edition",
        "2024",
        "--crate-type",
        "bin",
        "--crate-name",
        name,
    ]);
    rustc.args([
        "--target",
        "x86_64-unknown-linux-gnu",
        "--cap-lints",
        "warn",
    ]);
    for option in [
        "panic=abort",
        "relocation-model=static",
        "target-feature=+crt-static",
        "opt-level=s",
        "lto=fat",
        "codegen-units=1",
        "debuginfo=0",
        "strip=symbols",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-Wl,--build-id=none",
        // Unwind tables describe code that never unwinds.
        "force-unwind-tables=no",
    ] {
        rustc.args(["-C", option]);
    }
    if let Some(script) = linker_script {
        let script = root.join(script);
        println!("cargo::rerun-if-changed={}", script.display());
        rustc.args(["-C", &format!("link-arg=-Wl,-T,{}", script.display())]);
    }
    // The paths of the machine that builds are no part of the program.
    rustc.arg(format!("--remap-path-prefix={}=firmware", root.display()));
    rustc.args(extra).arg("-o").arg(&elf).arg(&source);
    let output = rustc
        .output()
        .map_err(|error| format!("Cannot run {rustc:?}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("Building {name} failed ({}):\n{messages}", output.status).into());
    }
    for line in messages.lines().filter(|line| !line.is_empty()) {
        println!("cargo::warning={line}");
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).map_err(|error| format!("${name}: {error}").into())
}
