//! Storage pool XML of libvirt: where a host keeps its volumes.

#![forbid(unsafe_code)]

use super::element::{Element, legal};
use crate::diag::shown;

/// Where the volumes of a pool are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Files in a directory.
    Dir {
        /// The directory.
        path: String,
    },
    /// Files in a file system that libvirt mounts.
    Fs {
        /// The block device.
        device: String,
        /// Where it is mounted.
        path: String,
        /// Its file system; libvirt finds out when there is none.
        format: Option<String>,
    },
    /// Files in a network file system that libvirt mounts.
    NetFs {
        /// The server.
        host: String,
        /// The directory of the server.
        dir: String,
        /// Where it is mounted.
        path: String,
        /// `nfs`, `glusterfs`, `cifs`; libvirt finds out when there is none.
        format: Option<String>,
    },
    /// Logical volumes of a volume group.
    Logical {
        /// The group.
        group: String,
        /// Devices to make it from; none for a group that exists.
        devices: Vec<String>,
        /// Directory of its device nodes.
        path: String,
    },
    /// LUNs of an iSCSI target.
    Iscsi {
        /// The portal.
        host: String,
        /// Its port; 3260 when there is none.
        port: Option<u16>,
        /// Name of the target.
        iqn: String,
        /// Name that this host logs in with.
        initiator: Option<String>,
        /// Directory of the device nodes. Those of /dev/disk/by-path keep their names from boot to boot.
        path: String,
    },
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Name of the pool.
    pub name: String,
    /// Where its volumes are.
    pub kind: Kind,
}

/// Why there is no such pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Not `key=value`.
    #[error("`{}` is not of the form key=value", shown(.0))]
    Word(String),
    /// No such key for this type.
    #[error(
        "`{}` is no key of a pool of type {kind}; there are {keys}",
        shown(key)
    )]
    Key {
        /// The key.
        key: String,
        /// The type.
        kind: &'static str,
        /// The keys of that type.
        keys: String,
    },
    /// Twice.
    #[error("`{}` is given twice", shown(.0))]
    Twice(String),
    /// A key that this type needs.
    #[error("a pool of type {kind} needs {key}=…")]
    Missing {
        /// The type.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A value that cannot be.
    #[error("{key}={}: {expected}", shown(value))]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// The types of pool and the keys of each; those after `;` may be left out.
const KINDS: [(&str, &[&str], &[&str]); 5] = [
    ("dir", &["path"], &[]),
    ("fs", &["device", "path"], &["format"]),
    ("netfs", &["host", "dir", "path"], &["format"]),
    ("logical", &["group"], &["devices", "path"]),
    ("iscsi", &["host", "iqn"], &["port", "initiator", "path"]),
];

/// Where udev names block devices after the way to them.
const BY_PATH: &str = "/dev/disk/by-path";

impl PoolSpec {
    /// Reads `type=iscsi name=san host=192.0.2.7 iqn=iqn.2026-11.org.example:target`. The types and their keys:
    /// `dir` (path), `fs` (device, path, format), `netfs` (host, dir, path, format), `logical` (group, devices
    /// separated by commas, path), `iscsi` (host, port, iqn, initiator, path).
    ///
    /// # Errors
    /// A word is not understood, or the pool cannot be.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, PoolError> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for word in words {
            let word = word.as_ref();
            let (key, text) = word
                .split_once('=')
                .ok_or_else(|| PoolError::Word(word.to_owned()))?;
            if given.iter().any(|g| g.0 == key) {
                return Err(PoolError::Twice(key.to_owned()));
            }
            given.push((key, text));
        }
        let get = |key: &str| given.iter().find(|g| g.0 == key).map(|g| g.1.to_owned());
        let kind = get("type").unwrap_or_else(|| "dir".into());
        let Some((kind, needed, optional)) = KINDS.iter().find(|k| k.0 == kind) else {
            return Err(PoolError::Value {
                key: "type",
                value: kind,
                expected: "one of dir, fs, netfs, logical, iscsi",
            });
        };
        let known = || ["type", "name"].iter().chain(*needed).chain(*optional);
        if let Some((key, _)) = given.iter().find(|g| !known().any(|k| *k == g.0)) {
            return Err(PoolError::Key {
                key: (*key).to_owned(),
                kind,
                keys: known().copied().collect::<Vec<_>>().join(", "),
            });
        }
        let need = |key: &'static str| get(key).ok_or(PoolError::Missing { kind, key });
        let name = need("name")?;
        let spec = PoolSpec {
            name,
            kind: match *kind {
                "dir" => Kind::Dir {
                    path: need("path")?,
                },
                "fs" => Kind::Fs {
                    device: need("device")?,
                    path: need("path")?,
                    format: get("format"),
                },
                "netfs" => Kind::NetFs {
                    host: need("host")?,
                    dir: need("dir")?,
                    path: need("path")?,
                    format: get("format"),
                },
                "logical" => {
                    let group = need("group")?;
                    Kind::Logical {
                        path: get("path").unwrap_or_else(|| format!("/dev/{group}")),
                        devices: get("devices")
                            .map(|d| d.split(',').map(str::to_owned).collect())
                            .unwrap_or_default(),
                        group,
                    }
                }
                _ => Kind::Iscsi {
                    host: need("host")?,
                    port: get("port").map(|p| port(&p)).transpose()?,
                    iqn: need("iqn")?,
                    initiator: get("initiator"),
                    path: get("path").unwrap_or_else(|| BY_PATH.into()),
                },
            },
        };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), PoolError> {
        super::network::check_name("name", &self.name).map_err(|_| PoolError::Value {
            key: "name",
            value: self.name.clone(),
            expected: "1 to 200 bytes without `/` and control characters",
        })?;
        match &self.kind {
            Kind::Dir { path } => absolute("path", path),
            Kind::Fs {
                device,
                path,
                format,
            } => {
                absolute("device", device)?;
                absolute("path", path)?;
                one_of("format", format.as_deref(), &FILE_SYSTEMS)
            }
            Kind::NetFs {
                host,
                dir,
                path,
                format,
            } => {
                host_name(host)?;
                absolute("dir", dir)?;
                absolute("path", path)?;
                one_of(
                    "format",
                    format.as_deref(),
                    &["auto", "nfs", "glusterfs", "cifs"],
                )
            }
            Kind::Logical {
                group,
                devices,
                path,
            } => {
                absolute("path", path)?;
                let right = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
                if group.is_empty()
                    || !group.chars().all(right)
                    || matches!(group.as_str(), "." | "..")
                {
                    return refuse("group", group, "the name of a volume group");
                }
                devices.iter().try_for_each(|d| absolute("devices", d))
            }
            Kind::Iscsi {
                host,
                iqn,
                initiator,
                path,
                ..
            } => {
                host_name(host)?;
                absolute("path", path)?;
                qualified("iqn", iqn)?;
                initiator
                    .as_ref()
                    .map_or(Ok(()), |i| qualified("initiator", i))
            }
        }
    }
}

/// The file systems of libvirt's schema for pools of type `fs`.
const FILE_SYSTEMS: [&str; 14] = [
    "auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat", "hfs+", "xfs",
    "ocfs2", "vmfs",
];

fn refuse<T>(key: &'static str, value: &str, expected: &'static str) -> Result<T, PoolError> {
    Err(PoolError::Value {
        key,
        value: value.to_owned(),
        expected,
    })
}

fn port(text: &str) -> Result<u16, PoolError> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => refuse("port", text, "a port from 1 to 65535"),
    }
}

fn absolute(key: &'static str, path: &str) -> Result<(), PoolError> {
    if !path.starts_with('/') || !legal(path) || path.contains(['\n', '\t', '\r']) {
        return refuse(key, path, "an absolute path without control characters");
    }
    Ok(())
}

fn one_of(
    key: &'static str,
    value: Option<&str>,
    words: &'static [&'static str],
) -> Result<(), PoolError> {
    match value {
        Some(value) if !words.contains(&value) => {
            refuse(key, value, "not a format that libvirt knows for this type")
        }
        _ => Ok(()),
    }
}

fn host_name(host: &str) -> Result<(), PoolError> {
    let right = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(right) {
        return refuse("host", host, "a host name or an address");
    }
    Ok(())
}

/// iSCSI names (RFC 3720, 3.2.6): `iqn.`, `eui.` or `naa.`, then letters, digits, `-`, `.`, `:`; at most 223 bytes.
fn qualified(key: &'static str, name: &str) -> Result<(), PoolError> {
    let known = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|p| name.len() > p.len() && name.starts_with(p));
    let right = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
    if !known || name.len() > 223 || !name.chars().all(right) {
        return refuse(
            key,
            name,
            "an iSCSI name, such as iqn.2026-11.org.example:target",
        );
    }
    Ok(())
}

/// Writes a storage pool as libvirt's XML.
///
/// # Errors
/// The pool cannot be.
pub fn export(spec: &PoolSpec) -> Result<String, PoolError> {
    spec.check()?;
    let mut root = Element::new("pool");
    let mut source = Element::new("source");
    let host = |source: &mut Element, name: &str| {
        source.need("host").set("name", name);
    };
    let (kind, target) = match &spec.kind {
        Kind::Dir { path } => ("dir", path),
        Kind::Fs {
            device,
            path,
            format,
        } => {
            source.need("device").set("path", device.as_str());
            set_format(&mut source, format.as_deref());
            ("fs", path)
        }
        Kind::NetFs {
            host: server,
            dir,
            path,
            format,
        } => {
            host(&mut source, server);
            source.need("dir").set("path", dir.as_str());
            set_format(&mut source, format.as_deref());
            ("netfs", path)
        }
        Kind::Logical {
            group,
            devices,
            path,
        } => {
            for device in devices {
                source.push(Element::new("device").with("path", device.as_str()));
            }
            source.need("name").text.clone_from(group);
            set_format(&mut source, Some("lvm2"));
            ("logical", path)
        }
        Kind::Iscsi {
            host: portal,
            port,
            iqn,
            initiator,
            path,
        } => {
            host(&mut source, portal);
            if let Some(port) = port {
                source.need("host").set("port", port.to_string());
            }
            source.need("device").set("path", iqn.as_str());
            if let Some(initiator) = initiator {
                source
                    .need("initiator")
                    .need("iqn")
                    .set("name", initiator.as_str());
            }
            ("iscsi", path)
        }
    };
    root.set("type", kind);
    root.need("name").text.clone_from(&spec.name);
    if !source.children.is_empty() {
        root.push(source);
    }
    root.need("target").need("path").text.clone_from(target);
    Ok(root.write())
}

fn set_format(source: &mut Element, format: Option<&str>) {
    if let Some(format) = format {
        source.need("format").set("type", format);
    }
}
