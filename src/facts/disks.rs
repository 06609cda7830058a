//! Which disks hold a file: from its path over the mount to the devices below it, all through files.
//!
//! For `/` the kernel tells the device of a file (stat(2)); a file system on several devices or on none of its own,
//! as btrfs, is looked up in /proc/self/mountinfo. For another root that file is looked at first, so that a tree of
//! files says which device a path is on: `ROOT/proc/self/mountinfo` names `8:1` or `/dev/sda1`, and
//! `ROOT/sys/dev/block/8:1` (a link) or `ROOT/sys/block/sda/sda1` is that device. A tree without a mountinfo has
//! `ROOT/sys/dev/block/MAJOR:MINOR` for the device that the tree itself is on.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::Root;

/// Deepest stack of devices that is followed: a loop device on LUKS on LVM on RAID is five.
const DEEPEST: u32 = 16;

/// The whole disks that requests for `path` end at, by their names below /sys/block, and why there are none.
pub(super) fn below(root: &Root, path: &Path) -> Result<Vec<String>, String> {
    let mut search = Search {
        root,
        found: Vec::new(),
        follows: true,
    };
    search.file(path, 0)?;
    Ok(search.found)
}

/// The device that `path` is or is on, whatever that itself is on; of several the first.
pub(super) fn first(root: &Root, path: &Path) -> Option<String> {
    let mut search = Search {
        root,
        found: Vec::new(),
        follows: false,
    };
    search.file(path, 0).ok()?;
    search.found.into_iter().next()
}

struct Search<'a> {
    root: &'a Root,
    found: Vec<String>,
    /// Goes on to what a device is on.
    follows: bool,
}

/// A line of mountinfo.
struct Mount {
    point: PathBuf,
    number: (u32, u32),
    filesystem: String,
    source: String,
}

impl Search<'_> {
    fn file(&mut self, path: &Path, depth: u32) -> Result<(), String> {
        let root = self.root;
        let at = |path: &Path| root.at(path);
        // A file that is still to be made is on the device of its directory.
        let there = path
            .ancestors()
            .find(|p| fs::metadata(at(p)).is_ok())
            .unwrap_or(Path::new("/"));
        let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
        let meta = fs::metadata(at(there)).map_err(|e| e.to_string())?;
        if rest.as_os_str().is_empty() && meta.file_type().is_block_device() {
            let number = (libc::major(meta.st_rdev()), libc::minor(meta.st_rdev()));
            let name = self.numbered(number)?;
            return self.device(&name, depth);
        }
        let real = fs::canonicalize(at(there)).ok();
        let real = real.as_deref().and_then(|p| self.inside(p));
        let path = real.unwrap_or_else(|| there.to_owned()).join(rest);
        if let Ok(name) = path.strip_prefix("/dev")
            && root.0 != Path::new("/")
            && !name.as_os_str().is_empty()
        {
            let name = self.named(&path.to_string_lossy())?;
            return self.device(&name, depth);
        }
        let own = (libc::major(meta.st_dev()), libc::minor(meta.st_dev()));
        let live = root.0 == Path::new("/");
        if live && own.0 != 0 {
            let name = self.numbered(own)?;
            return self.device(&name, depth);
        }
        let Some(mounts) = self.mounts() else {
            let name = self.numbered(own)?;
            return self.device(&name, depth);
        };
        let mount = mounts
            .into_iter()
            .filter(|m| path.starts_with(&m.point))
            // Of those on one place the last is on top.
            .reduce(|best, m| match m.point.components().count() {
                n if n >= best.point.components().count() => m,
                _ => best,
            })
            .ok_or_else(|| "no mount holds it".to_owned())?;
        self.mounted(&mount, depth)
    }

    /// A path below the root as the host itself names it.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let root = fs::canonicalize(&self.root.0).ok()?;
        Some(Path::new("/").join(path.strip_prefix(root).ok()?))
    }

    fn mounts(&self) -> Option<Vec<Mount>> {
        let text = fs::read(self.root.at("/proc/self/mountinfo")).ok()?;
        Some(text.split(|b| *b == b'\n').filter_map(mount).collect())
    }

    fn mounted(&mut self, mount: &Mount, depth: u32) -> Result<(), String> {
        if mount.number.0 != 0 {
            let name = match self.numbered(mount.number) {
                Ok(name) => name,
                Err(why) => self.named(&mount.source).map_err(|_| why)?,
            };
            return self.device(&name, depth);
        }
        // A file system on several devices, or with subvolumes, has a number of its own (major 0).
        let sources: Vec<&str> = mount
            .source
            .split(':')
            .filter(|s| s.starts_with("/dev/"))
            .collect();
        if sources.is_empty() {
            return Err(format!(
                "{} is {} ({}), which is on no disk of this host",
                mount.point.display(),
                mount.filesystem,
                mount.source
            ));
        }
        for source in sources {
            let name = self.named(source)?;
            let all = match mount.filesystem.as_str() {
                "btrfs" => self.btrfs(&name),
                _ => Vec::new(),
            };
            if all.is_empty() {
                self.device(&name, depth)?;
            }
            for name in all {
                self.device(&name, depth)?;
            }
        }
        Ok(())
    }

    /// All devices of the btrfs that has this one.
    fn btrfs(&self, device: &str) -> Vec<String> {
        let pools = names(&self.root.at("/sys/fs/btrfs"));
        let devices = pools.iter().map(|pool| {
            let place = format!("/sys/fs/btrfs/{pool}/devices");
            names(&self.root.at(place))
        });
        devices
            .into_iter()
            .find(|all| all.iter().any(|d| d == device))
            .unwrap_or_default()
    }

    /// Follows a device, or a partition of one, down to the disks that requests for it end at.
    fn device(&mut self, name: &str, depth: u32) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("{name} is on itself"));
        }
        let disk = self.whole(name);
        if !self.follows {
            self.found.push(disk);
            return Ok(());
        }
        let place = self.root.at("/sys/block").join(&disk);
        let backing = fs::read_to_string(place.join("loop/backing_file"));
        if let Ok(backing) = backing {
            let backing = backing.trim_end();
            if backing.ends_with(" (deleted)") {
                return Err(format!("{disk} is a loop device, and its file was deleted"));
            }
            return self.file(Path::new(backing), depth + 1);
        }
        let mut slaves = names(&place.join("slaves"));
        // Multipath over whole requests queues them itself, and its paths take them past their schedulers
        // (block/blk-mq.c, blk_insert_cloned_request); other mapped devices have no queue and say `none`.
        if disk.starts_with("dm-")
            && fs::read_to_string(place.join("queue/scheduler")).is_ok_and(|t| t.contains('['))
        {
            slaves.clear();
        }
        for slave in &slaves {
            self.device(slave, depth + 1)?;
        }
        if slaves.is_empty() {
            for disk in self.paths_of(disk) {
                if !self.found.contains(&disk) {
                    self.found.push(disk);
                }
            }
        }
        Ok(())
    }

    /// The paths of an NVMe namespace that has several (`nvme0n1` over `nvme0c0n1`, `nvme0c1n1`): they have the
    /// queues, and it has none.
    fn paths_of(&self, disk: String) -> Vec<String> {
        let Some((subsystem, namespace)) = disk
            .strip_prefix("nvme")
            .and_then(|rest| rest.split_once('n'))
        else {
            return vec![disk];
        };
        let is_path = |name: &str| {
            let rest = name.strip_prefix("nvme");
            let rest = rest.and_then(|r| r.strip_prefix(subsystem)?.strip_prefix('c'));
            rest.and_then(|r| r.split_once('n'))
                .is_some_and(|(_, n)| n == namespace)
        };
        let mut all = names(&self.root.at("/sys/block"));
        all.retain(|name| is_path(name));
        if all.is_empty() { vec![disk] } else { all }
    }

    /// The disk of a partition, or the device itself.
    fn whole(&self, name: &str) -> String {
        let place = self.root.at("/sys/class/block").join(name);
        if place.join("partition").exists()
            && let Ok(place) = fs::canonicalize(place)
            && let Some(disk) = place.parent().and_then(Path::file_name)
        {
            return disk.to_string_lossy().into_owned();
        }
        let blocks = self.root.at("/sys/block");
        if blocks.join(name).exists() {
            return name.to_owned();
        }
        names(&blocks)
            .into_iter()
            .find(|disk| blocks.join(disk).join(name).join("partition").exists())
            .unwrap_or_else(|| name.to_owned())
    }

    /// The device of a number.
    fn numbered(&self, (major, minor): (u32, u32)) -> Result<String, String> {
        let link = format!("/sys/dev/block/{major}:{minor}");
        let unknown = || format!("{link} is not there");
        let place = fs::canonicalize(self.root.at(&link)).map_err(|_| unknown())?;
        // A partition lies in the directory of its disk.
        let place = match place.join("partition").exists() {
            true => place.parent().unwrap_or(&place),
            false => &place,
        };
        let name = place.file_name().ok_or_else(unknown)?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// The device that a path below /dev names.
    fn named(&self, path: &str) -> Result<String, String> {
        let node = self.root.at(path);
        if let Ok(meta) = fs::metadata(&node)
            && meta.file_type().is_block_device()
        {
            return self.numbered((libc::major(meta.st_rdev()), libc::minor(meta.st_rdev())));
        }
        // The node may be missing, in a tree of files above all: links still lead to its name.
        let real = fs::read_link(&node).ok();
        let name = real.as_deref().unwrap_or(Path::new(path)).file_name();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let class = self.root.at("/sys/class/block").join(&name);
        if class.exists() || self.root.at("/sys/block").join(self.whole(&name)).exists() {
            return Ok(name);
        }
        let blocks = self.root.at("/sys/block");
        let mapped = names(&blocks).into_iter().find(|disk| {
            fs::read_to_string(blocks.join(disk).join("dm/name")).is_ok_and(|t| t.trim() == name)
        });
        mapped.ok_or_else(|| format!("{path} is no device of /sys/block"))
    }
}

/// A line of mountinfo (proc_pid_mountinfo(5)): `27 1 254:0 / / rw - ext4 /dev/vda rw`.
fn mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let number = std::str::from_utf8(fields.get(2)?).ok()?;
    let (major, minor) = number.split_once(':')?;
    Some(Mount {
        point: unescaped(fields.get(4)?),
        number: (major.parse().ok()?, minor.parse().ok()?),
        filesystem: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: unescaped(fields.get(dash + 2)?)
            .to_string_lossy()
            .into_owned(),
    })
}

/// A field of mountinfo, where blanks, line ends and backslashes are `\040` and the like.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let code = code.and_then(|d| u8::from_str_radix(d, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The names in a directory, in order; none where there is no directory.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    all.sort_by_key(|name| natural(OsStr::new(name)));
    all
}

/// What sorts `node2` before `node10`.
fn natural(name: &OsStr) -> (Vec<u8>, u64) {
    let bytes = name.as_bytes();
    let digits = bytes
        .iter()
        .rev()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let (word, number) = bytes.split_at(bytes.len() - digits);
    let number = std::str::from_utf8(number)
        .ok()
        .and_then(|n| n.parse().ok());
    (word.to_owned(), number.unwrap_or(0))
}

#[cfg(test)]
mod tests;
