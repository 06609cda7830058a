//! Names under which lockspaces know images, as libvirt's lockd and sanlock plug-ins make them.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::facts::{Facts, FileKind};

/// Text of an LVM volume's uuid: groups of 6, 4, 4, 4, 4, 4, 6 characters (lvm2, `id_write_format`).
const LVM_GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];
/// Characters of an LVM uuid without the dashes.
const LVM_UUID: usize = 32;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What lockd calls an image in `file_lockspace_dir`: SHA-256 of its absolute path, as it is written.
pub fn file_key(path: &Path) -> String {
    hex(&Sha256::digest(path.as_os_str().as_bytes()))
}

/// What sanlock's plug-in calls an image in `disk_lease_dir`: MD5 of its absolute path, as it is written.
pub fn lease_name(path: &Path) -> String {
    hex(&Md5::digest(path.as_os_str().as_bytes()))
}

/// Whether a file's name is that of a lease.
pub fn is_lease_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 of a text.
pub fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// The directory below /sys/block of a block device, if `path` is one.
fn device(path: &Path, facts: &dyn Facts) -> Option<String> {
    match facts.file(path) {
        Ok(file) if file.kind == FileKind::BlockDevice => facts.device_of(path),
        _ => None,
    }
}

fn sysfs(device: &str, name: &str, facts: &dyn Facts) -> Option<String> {
    let path = format!("/sys/block/{device}/{name}");
    let text = facts.text(Path::new(&path))?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The uuid of a logical volume, in the form of `lvs -o uuid`: the same whatever the volume is called, on every host.
/// Device-mapper has it (`LVM-`, the group's uuid, the volume's uuid).
pub fn lvm_key(path: &Path, facts: &dyn Facts) -> Option<String> {
    let uuid = sysfs(&device(path, facts)?, "dm/uuid", facts)?;
    let both = uuid.strip_prefix("LVM-")?;
    // Parts of a volume have a suffix: `-real`, `-cow`.
    let volume = both.get(LVM_UUID..2 * LVM_UUID)?;
    if !volume.bytes().all(|b| b.is_ascii_alphanumeric()) || both.len() != 2 * LVM_UUID {
        return None;
    }
    let mut rest = volume;
    let groups = LVM_GROUPS.map(|len| {
        let (group, tail) = rest.split_at(len);
        rest = tail;
        group
    });
    Some(groups.join("-"))
}

/// The identity of a SCSI unit, in the form of `scsi_id --whitelisted --replace-whitespace`: a digit for the kind of
/// designator (SPC-4, 7.8.6.1) and the designator. The same for each path that leads to the unit, multipath included.
pub fn scsi_key(path: &Path, facts: &dyn Facts) -> Option<String> {
    let device = device(path, facts)?;
    if let Some(uuid) = sysfs(&device, "dm/uuid", facts) {
        return uuid
            .strip_prefix("mpath-")
            .map(str::to_owned)
            .filter(|key| is_name(key));
    }
    let wwid = sysfs(&device, "device/wwid", facts)?;
    let key = if let Some(naa) = wwid.strip_prefix("naa.") {
        format!("3{}", naa.to_ascii_lowercase())
    } else if let Some(eui) = wwid.strip_prefix("eui.") {
        format!("2{}", eui.to_ascii_lowercase())
    } else {
        let words = wwid.strip_prefix("t10.")?.split_ascii_whitespace();
        format!("1{}", words.collect::<Vec<_>>().join("_"))
    };
    Some(key).filter(|key| is_name(key))
}

/// Whether a key can be the name of a file: a device tells it, and devices may be foreign.
fn is_name(key: &str) -> bool {
    let fit = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'+');
    (2..=200).contains(&key.len()) && !key.starts_with('.') && key.bytes().all(fit)
}

/// Whether a name is one that [`file_key`] makes.
pub fn is_file_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a name is one that [`lvm_key`] makes.
pub fn is_lvm_key(name: &str) -> bool {
    let groups: Vec<&str> = name.split('-').collect();
    groups.len() == LVM_GROUPS.len()
        && groups.iter().zip(LVM_GROUPS).all(|(group, len)| {
            group.len() == len && group.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

/// Whether a name is one that [`scsi_key`] makes.
pub fn is_scsi_key(name: &str) -> bool {
    name.starts_with(['1', '2', '3']) && is_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{FileInfo, HostFacts};

    #[test]
    fn names_are_those_of_libvirt() {
        let image = Path::new("/var/lib/libvirt/images/demo.img");
        assert_eq!(
            file_key(image),
            "6f716e8c06fc109acd342e3c129a17ccf3c473c1c76363b543a1cbb55d1cd778"
        );
        assert_eq!(lease_name(image), "bfa0240911bc17753e0b473688822159");
        assert!(is_file_key(&file_key(image)) && !is_file_key(&lease_name(image)));
    }

    fn facts() -> HostFacts {
        let mut facts = HostFacts::default();
        let block = FileInfo {
            kind: FileKind::BlockDevice,
            length: 1 << 30,
            writable: true,
        };
        for (path, device) in [
            ("/dev/vg/lab", "dm-0"),
            ("/dev/mapper/vg-lab", "dm-0"),
            ("/dev/sdb", "sdb"),
            ("/dev/sdc", "sdc"),
            ("/dev/mapper/mpatha", "dm-1"),
            ("/dev/sdd", "sdd"),
            ("/dev/sde", "sde"),
            ("/dev/sdf", "sdf"),
        ] {
            facts.files.insert(path.into(), Ok(block));
            facts.devices.insert(path.into(), device.into());
        }
        for (path, text) in [
            (
                "/sys/block/dm-0/dm/uuid",
                "LVM-YxWPMqjVMVzWtoWUyQGc3cHmkkP0wMb606UgP52rhbw3Bo3mdRWeoLpytOSAa2ky",
            ),
            (
                "/sys/block/dm-1/dm/uuid",
                "mpath-3600508b400105e210000900000490000",
            ),
            (
                "/sys/block/sdb/device/wwid",
                "naa.600508B400105E210000900000490000",
            ),
            (
                "/sys/block/sdc/device/wwid",
                "naa.600508b400105e210000900000490000",
            ),
            (
                "/sys/block/sdd/device/wwid",
                "t10.ATA     QEMU HARDDISK   QM00001 ",
            ),
            ("/sys/block/sde/device/wwid", "eui.0025388B510A8A1B"),
            ("/sys/block/sdf/device/wwid", "t10.../../etc/passwd"),
        ] {
            facts.texts.insert(path.into(), text.into());
        }
        facts
    }

    #[test]
    fn a_volume_has_its_uuid_under_every_name() {
        let facts = facts();
        let key = lvm_key(Path::new("/dev/vg/lab"), &facts);
        assert_eq!(
            key.as_deref(),
            Some("06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky")
        );
        assert_eq!(key, lvm_key(Path::new("/dev/mapper/vg-lab"), &facts));
        assert!(is_lvm_key(&key.unwrap()));
        for other in ["/dev/sdb", "/dev/mapper/mpatha", "/lab/a.img"] {
            assert_eq!(lvm_key(Path::new(other), &facts), None, "{other}");
        }
    }

    #[test]
    fn a_unit_has_its_identity_on_every_path_to_it() {
        let facts = facts();
        let key = |path: &str| scsi_key(Path::new(path), &facts);
        let one = "3600508b400105e210000900000490000";
        for path in ["/dev/sdb", "/dev/sdc", "/dev/mapper/mpatha"] {
            assert_eq!(key(path).as_deref(), Some(one), "{path}");
        }
        assert_eq!(
            key("/dev/sdd").as_deref(),
            Some("1ATA_QEMU_HARDDISK_QM00001")
        );
        assert_eq!(key("/dev/sde").as_deref(), Some("20025388b510a8a1b"));
        for none in ["/dev/sdf", "/dev/vg/lab", "/lab/a.img"] {
            assert_eq!(key(none), None, "{none}");
        }
        assert!(is_scsi_key(one));
    }
}
