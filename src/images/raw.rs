//! Raw images, made without any program.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{ImageError, ImageSpec, Preallocation, Progress};

/// What is reserved by one call: little enough that an interruption is not late.
const RESERVE: u64 = 256 << 20;
/// What is written by one call.
const WRITE: usize = 1 << 20;
/// What is written before it is waited for: the bar shows what is on the disk, not what is in memory.
const FLUSH: u64 = 32 << 20;

/// Gives the empty `file` its size and what is to be allocated.
pub(super) fn fill(
    file: &File,
    spec: &ImageSpec,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let bytes = spec.length();
    match spec.preallocation {
        Preallocation::Falloc => reserve(file, bytes, &mut |done| {
            progress.advance(done, Some(bytes)).is_break()
        }),
        Preallocation::Full => {
            // First, so that too little room is known now and not after an hour of writing.
            match reserve(file, bytes, &mut |_| {
                progress.advance(0, Some(bytes)).is_break()
            }) {
                Err(ImageError::Reserve { source, .. })
                    if source.kind() == io::ErrorKind::Unsupported => {}
                other => other?,
            }
            write_zeros(file, bytes, progress)
        }
        // `check` refuses metadata.
        Preallocation::Off | Preallocation::Metadata => file
            .set_len(bytes)
            .map_err(|source| ImageError::Length { bytes, source }),
    }
}

/// Reserves room step by step; the file grows with it.
fn reserve(
    file: &File,
    bytes: u64,
    interrupted: &mut dyn FnMut(u64) -> bool,
) -> Result<(), ImageError> {
    let mut done = 0;
    while done < bytes {
        if interrupted(done) {
            return Err(ImageError::Interrupted);
        }
        let step = RESERVE.min(bytes - done);
        match rustix::fs::fallocate(file, FallocateFlags::empty(), done, step) {
            Ok(()) => done += step,
            Err(Errno::INTR) => {}
            Err(e) => {
                let source = e.into();
                return Err(ImageError::Reserve { bytes, source });
            }
        }
    }
    match interrupted(done) {
        true => Err(ImageError::Interrupted),
        false => Ok(()),
    }
}

fn write_zeros(file: &File, bytes: u64, progress: &mut dyn Progress) -> Result<(), ImageError> {
    let zeros = vec![0u8; WRITE];
    let (mut done, mut stable) = (0, 0);
    while done < bytes {
        let left = usize::try_from(bytes - done).unwrap_or(WRITE).min(WRITE);
        let failed = |source| ImageError::Write {
            done,
            bytes,
            source,
        };
        let piece = zeros.get(..left).unwrap_or(&zeros);
        match file.write_at(piece, done) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        }
        if done - stable >= FLUSH || done == bytes {
            file.sync_data().map_err(ImageError::Sync)?;
            stable = done;
        }
        if progress.advance(done, Some(bytes)).is_break() {
            return Err(ImageError::Interrupted);
        }
    }
    Ok(())
}
