//! AMD's encrypted guests (SEV, SEV-ES, SEV-SNP): what a host has of it, what it still needs, and launch policies.
//!
//! Nothing here changes a host.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

pub mod enable;
mod entries;
mod grub;
pub mod host;
pub mod loader;
mod modprobe;
pub mod policy;
pub mod renew;
mod shell;
pub mod stack;
pub mod version;
mod words;

/// How much of a guest the processor keeps from its host; each level has what is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing.
    None,
    /// Memory is encrypted.
    Sev,
    /// Registers too.
    SevEs,
    /// Memory cannot be exchanged either.
    SevSnp,
}

impl Level {
    /// As scenarios say it: `security.type`.
    pub fn word(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Sev => "sev",
            Level::SevEs => "sev-es",
            Level::SevSnp => "sev-snp",
        }
    }
}
