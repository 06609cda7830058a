//! One door to all decoders.

use super::{Compression, lz4};
use liblzma::stream::{Action, Status, Stream};
use std::ops::Range;
use zstd::zstd_safe;

/// Most memory a decoder may take for its dictionary: Linux's build uses 32 MiB (xz) and 128 MiB (zstd --ultra -22).
const DICTIONARY_MAX: u64 = 160 << 20;
/// libdeflate decodes whole files only, and stops before a stored block (at most 64 KiB) or match (258 bytes) that does not
/// fit: up to here before the end of a full output, what it wrote is the data.
pub(super) const DEFLATE_SLACK: usize = (64 << 10) + 512;

/// How far a decoding got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes decoded.
    pub(super) len: usize,
    /// It was the whole, checksums included where the format has them, rather than the output filled.
    pub(super) complete: bool,
}

/// What went wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    Corrupt(String),
    Unsupported,
}

impl Compression {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Lzma => "lzma",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Bzip2 => "bzip2",
        }
    }

    /// Recognises compressed data by its first bytes.
    pub(super) fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, 8, ..] => Some(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Compression::Lz4),
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ] => Some(Compression::Bzip2),
            // lc=3 lp=0 pb=2, a dictionary of a power of two from 64 KiB, and a size that is unknown or below 4 GiB.
            [0x5d, 0, 0, d1, d2, rest @ ..]
                if u16::from_le_bytes([*d1, *d2]).is_power_of_two()
                    && (rest.get(..8) == Some(&[0xff; 8]) || rest.get(4..8) == Some(&[0; 4])) =>
            {
                Some(Compression::Lzma)
            }
            _ => None,
        }
    }
}

/// Decodes `input` into `out` until either ends. Of a full output the last [`DEFLATE_SLACK`] bytes may be missing (gzip);
/// `len` says what is there. With `holes`, `out` must be all zero; ranges left unwritten are reported there.
pub(super) fn decode(
    compression: Compression,
    input: &[u8],
    out: &mut [u8],
    holes: Option<&mut Vec<Range<usize>>>,
) -> Result<Progress, DecodeError> {
    let corrupt = |detail: &str| DecodeError::Corrupt(detail.to_owned());
    match compression {
        Compression::Lz4 => {
            let progress = lz4::decode(input, out, holes).map_err(corrupt)?;
            Ok(Progress {
                len: progress.len,
                complete: progress.complete,
            })
        }
        Compression::Gzip => match libdeflater::Decompressor::new().gzip_decompress(input, out) {
            Ok(len) => Ok(Progress {
                len,
                complete: true,
            }),
            Err(libdeflater::DecompressionError::InsufficientSpace) => Ok(Progress {
                len: out.len().saturating_sub(DEFLATE_SLACK),
                complete: false,
            }),
            Err(libdeflater::DecompressionError::BadData) => Err(corrupt("bad data or checksum")),
        },
        Compression::Zstd => zstd(input, out),
        Compression::Xz => lzma(
            Stream::new_stream_decoder(DICTIONARY_MAX, 0).map_err(|e| corrupt(&e.to_string()))?,
            input,
            out,
        ),
        Compression::Lzma => lzma(
            Stream::new_lzma_decoder(DICTIONARY_MAX).map_err(|e| corrupt(&e.to_string()))?,
            input,
            out,
        ),
        Compression::Bzip2 => Err(DecodeError::Unsupported),
    }
}

fn zstd(input: &[u8], out: &mut [u8]) -> Result<Progress, DecodeError> {
    let corrupt = |code| DecodeError::Corrupt(zstd_safe::get_error_name(code).to_owned());
    let memory = || DecodeError::Corrupt("no memory for the decoder".to_owned());
    // In one go when the size is known and fits: no window to copy out of.
    if let Ok(Some(size)) = zstd_safe::get_frame_content_size(input)
        && size <= out.len() as u64
        && let Ok(frame) = zstd_safe::find_frame_compressed_size(input)
    {
        let mut context = zstd_safe::DCtx::try_create().ok_or_else(memory)?;
        let len = context
            .decompress(out, &input[..frame.min(input.len())])
            .map_err(corrupt)?;
        return Ok(Progress {
            len,
            complete: true,
        });
    }
    let mut context = zstd_safe::DCtx::try_create().ok_or_else(memory)?;
    let mut from = zstd_safe::InBuffer::around(input);
    let mut to = zstd_safe::OutBuffer::around(out);
    loop {
        let before = (from.pos(), to.pos());
        let more = context
            .decompress_stream(&mut to, &mut from)
            .map_err(corrupt)?;
        if more == 0 {
            return Ok(Progress {
                len: to.pos(),
                complete: true,
            });
        }
        if to.pos() == to.capacity() {
            return Ok(Progress {
                len: to.pos(),
                complete: false,
            });
        }
        if before == (from.pos(), to.pos()) {
            return Err(DecodeError::Corrupt(
                "the data ends in the middle".to_owned(),
            ));
        }
    }
}

fn lzma(mut stream: Stream, input: &[u8], out: &mut [u8]) -> Result<Progress, DecodeError> {
    loop {
        let (read, written) = (stream.total_in() as usize, stream.total_out() as usize);
        if written == out.len() {
            return Ok(Progress {
                len: written,
                complete: false,
            });
        }
        let status = stream
            .process(&input[read..], &mut out[written..], Action::Run)
            .map_err(|error| DecodeError::Corrupt(error.to_string()))?;
        let moved = stream.total_in() as usize != read || stream.total_out() as usize != written;
        match status {
            Status::StreamEnd => {
                return Ok(Progress {
                    len: stream.total_out() as usize,
                    complete: true,
                });
            }
            _ if moved => {}
            _ => {
                return Err(DecodeError::Corrupt(
                    "the data ends in the middle".to_owned(),
                ));
            }
        }
    }
}
