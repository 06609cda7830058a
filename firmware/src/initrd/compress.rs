use std::io::{self, Read};
use std::path::Path;

use super::ImageError;

/// How an initrd is compressed. The result depends on the content only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all: best in memory, where the guest would pay for it.
    #[default]
    None,
    /// As make-tiny-image does; every kernel reads it.
    Gzip,
    /// Kernels since 5.9 (`CONFIG_RD_ZSTD`).
    Zstd,
}

/// The most a compressed kernel module may hold, against compression bombs: the largest of Debian's have 10 MiB.
const MODULE_LIMIT: u64 = 256 << 20;

impl Compression {
    pub(crate) fn apply(self, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::None => Ok(bytes),
            Self::Gzip => {
                let mut compressor =
                    libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
                let mut output = vec![0; compressor.gzip_compress_bound(bytes.len())];
                let length = compressor
                    .gzip_compress(&bytes, &mut output)
                    .map_err(|error| ImageError::Compress(io::Error::other(error.to_string())))?;
                output.truncate(length);
                Ok(output)
            }
            // Level 15 keeps the window at 4 MiB, which every kernel accepts.
            Self::Zstd => {
                zstd::stream::encode_all(bytes.as_slice(), 15).map_err(ImageError::Compress)
            }
        }
    }
}

/// The content of a module file, decompressed as its name says.
pub(crate) fn decompress_module(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let broken = |reason: String| ImageError::BrokenModule {
        path: path.to_path_buf(),
        reason,
    };
    let drain = |reader: &mut dyn Read| {
        let mut output = Vec::new();
        reader
            .take(MODULE_LIMIT + 1)
            .read_to_end(&mut output)
            .map_err(|error| broken(error.to_string()))?;
        if output.len() as u64 > MODULE_LIMIT {
            return Err(broken("it is too large".into()));
        }
        Ok(output)
    };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => drain(&mut liblzma::read::XzDecoder::new(bytes.as_slice())),
        Some("zst") => {
            let mut reader = zstd::stream::Decoder::new(bytes.as_slice())
                .map_err(|error| broken(error.to_string()))?;
            drain(&mut reader)
        }
        Some("gz") => {
            // RFC 1952: the last four bytes are the length.
            let length = bytes
                .last_chunk::<4>()
                .map_or(0, |last| u64::from(u32::from_le_bytes(*last)));
            if length > MODULE_LIMIT {
                return Err(broken("it is too large".into()));
            }
            let mut output = vec![0; usize::try_from(length).unwrap_or(0)];
            let length = libdeflater::Decompressor::new()
                .gzip_decompress(&bytes, &mut output)
                .map_err(|error| broken(error.to_string()))?;
            output.truncate(length);
            Ok(output)
        }
        _ => Ok(bytes),
    }
}
