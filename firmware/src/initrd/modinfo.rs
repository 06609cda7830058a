//! The `.modinfo` section of a kernel module: what modpost writes about it.

use std::path::Path;

use super::ImageError;
use super::compress::decompress_module;
use super::copy::read;
use super::elf::{offset_at, range};
use crate::bytes::{u16_at, u32_at};

/// What a module says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    pub(crate) depends: Vec<String>,
    pub(crate) aliases: Vec<String>,
    /// `pre: a b post: c`, one per declaration.
    pub(crate) soft: Vec<String>,
    pub(crate) version: String,
}

/// Reads and decompresses a module file.
pub(crate) fn load(path: &Path) -> Result<(ModInfo, Vec<u8>), ImageError> {
    let bytes = decompress_module(path, read(path)?)?;
    let info = parse(&bytes).ok_or_else(|| ImageError::BrokenModule {
        path: path.to_path_buf(),
        reason: "it has no .modinfo section".into(),
    })?;
    Ok((info, bytes))
}

fn parse(bytes: &[u8]) -> Option<ModInfo> {
    let mut info = ModInfo::default();
    for line in modinfo(bytes)?.split(|&byte| byte == 0) {
        let Some((key, value)) = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once('='))
        else {
            continue;
        };
        match key {
            "depends" => {
                info.depends = value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
                    .collect()
            }
            "alias" => info.aliases.push(value.to_owned()),
            "softdep" => info.soft.push(value.to_owned()),
            // `6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions `.
            "vermagic" => info.version = value.split(' ').next().unwrap_or_default().to_owned(),
            _ => {}
        }
    }
    Some(info)
}

/// The content of the section of that name (System V gABI, chapter 4: section headers).
fn modinfo(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(b"\x7fELF")?;
    let (start, size) = (offset_at(bytes, 40)?, usize::from(u16_at(bytes, 58)?));
    let (count, names) = (
        usize::from(u16_at(bytes, 60)?),
        usize::from(u16_at(bytes, 62)?),
    );
    let header = |index: usize| range(bytes, start.checked_add(index.checked_mul(size)?)?, 64);
    let content = |header: &[u8]| {
        range(bytes, offset_at(header, 24)?, offset_at(header, 32)?).map(<[u8]>::to_vec)
    };
    let table = content(header(names)?)?;
    let header = (0..count).filter_map(header).find(|header| {
        u32_at(header, 0)
            .and_then(|at| table.get(at as usize..))
            .is_some_and(|name| name.starts_with(b".modinfo\0"))
    })?;
    range(bytes, offset_at(header, 24)?, offset_at(header, 32)?)
}
