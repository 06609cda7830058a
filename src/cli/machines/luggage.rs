//! What a VM needs where it is handed to: its images, and their passphrases.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use vsc::compile::Making;
use vsc::domain::Domain;
use vsc::images::{ImageError, SecretSource};
use vsc::libvirt::{Virsh, VirshError};
use vsc::store::Remote;

use super::super::Common;
use super::super::disk::make_all;
use crate::say;

/// Why a VM would lack something there.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum LuggageError {
    /// An image could not be made; that has been said.
    #[error("an image cannot be made")]
    Image(u8),
    /// An image is not made where the VM runs.
    #[error(
        "{} is to be made, and {host} is another machine: make it there first (vsc-run disk make SCENARIO)",
        path.display()
    )]
    Elsewhere {
        /// The image.
        path: PathBuf,
        /// The hypervisor's name.
        host: String,
    },
    /// The passphrase cannot be read.
    #[error(transparent)]
    Secret(#[from] ImageError),
    /// Nobody has told libvirt the passphrase.
    #[error(
        "{host} does not know the passphrase of {image}: name a file that has it (disks[].secret.file), or tell it \
         there: `virsh secret-define FILE` with the UUID {uuid}, then `virsh secret-set-value {uuid} --interactive`"
    )]
    NoSecret {
        /// The hypervisor's name.
        host: String,
        /// The image.
        image: String,
        /// The secret.
        uuid: String,
    },
    /// libvirt's words.
    #[error(transparent)]
    Virsh(#[from] VirshError),
}

/// Whether a libvirt URI (<https://libvirt.org/uri.html>) is of this host: it names none.
fn is_here(url: &str) -> bool {
    let authority = url
        .split_once("://")
        .map(|(_, rest)| rest.split('/').next().unwrap_or_default());
    authority.is_none_or(str::is_empty)
}

/// Makes the images that are to be made, one after the other; `made` hears of each.
///
/// # Errors
/// [`LuggageError`], or that of `made`.
pub(super) fn make_images<E: From<LuggageError>>(
    images: Vec<Making>,
    remote: &Remote,
    common: &Common,
    mut made: impl FnMut(&Path) -> Result<(), E>,
) -> Result<(), E> {
    for image in images {
        let path = image.path.clone();
        if !is_here(&remote.url) {
            let host = remote.host.clone();
            return Err(LuggageError::Elsewhere { path, host }.into());
        }
        make_all(vec![image], common).map_err(LuggageError::Image)?;
        made(&path)?;
    }
    Ok(())
}

/// Tells libvirt the passphrases that it does not know.
///
/// # Errors
/// [`LuggageError`].
pub(super) fn give_secrets(domain: &Domain, remote: &Remote) -> Result<(), LuggageError> {
    let virsh = Virsh::new(remote.url.as_str());
    for disk in domain.list("disks") {
        let text = |key: &str| disk.get(key).and_then(Value::as_str);
        let uuid = disk.get("secret").and_then(|s| s.get("uuid")?.as_str());
        let (Some("luks"), Some(uuid)) = (text("encryption"), uuid) else {
            continue;
        };
        if virsh.has_secret(uuid)? {
            continue;
        }
        let image = text("path").unwrap_or_default();
        let source = SecretSource::of_disk(disk).map_err(|r| ImageError::Refused(vec![r]))?;
        let Some(source) = source else {
            return Err(LuggageError::NoSecret {
                host: remote.host.clone(),
                image: image.to_owned(),
                uuid: uuid.to_owned(),
            });
        };
        let mut notes = Vec::new();
        let passphrase = source.read(&mut notes)?;
        for note in notes {
            say::warning(&note);
        }
        virsh.give_secret(uuid, image, passphrase.bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_here;

    #[test]
    fn addresses_without_a_host_are_here() {
        for url in [
            "qemu:///system",
            "qemu:///session?socket=/x",
            "qemu+unix:///system",
            "test:///default",
        ] {
            assert!(is_here(url), "{url}");
        }
        for url in [
            "qemu+ssh://root@lab/system",
            "qemu://lab/system",
            "qemu+tcp://[::1]:16509/system",
        ] {
            assert!(!is_here(url), "{url}");
        }
    }
}
