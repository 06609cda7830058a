//! Each kind of change: looking, doing, undoing.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::change::{Act, UnitState, value};
use super::error::Cannot;
use super::state::{Before, Got, Item, OldFile};
use super::unit::Units;
use super::{merged, touch};
use crate::facts::Root;

/// What touches the host.
#[derive(Debug)]
pub(super) struct Hands<'a> {
    pub(super) root: &'a Root,
    pub(super) units: &'a dyn Units,
}

/// How something is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) now: Before,
    /// It is what is wanted.
    pub(super) so: bool,
}

/// What came of putting something back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Restored {
    /// It is as it was before.
    Back,
    /// It was so already.
    Same,
    /// Somebody else has changed it since: left alone.
    Left { now: String },
}

fn read(path: &Path) -> Result<String, Cannot> {
    touch::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Cannot::Missing(path.to_owned()),
        io::ErrorKind::InvalidInput => Cannot::NoFile(path.to_owned()),
        io::ErrorKind::InvalidData => Cannot::NoText {
            path: path.to_owned(),
        },
        _ => Cannot::Read {
            path: path.to_owned(),
            error,
        },
    })
}

fn count(path: &Path) -> Result<u64, Cannot> {
    read(path)?.trim().parse().map_err(|_| Cannot::NoText {
        path: path.to_owned(),
    })
}

fn put(path: &Path, text: &str) -> Result<(), Cannot> {
    touch::put(path, text).map_err(|error| Cannot::Write {
        path: path.to_owned(),
        value: text.trim_end().to_owned(),
        error,
    })
}

/// Writes a counter.
pub(super) fn put_number(path: &Path, number: u64) -> Result<(), Cannot> {
    touch::put_number(path, number).map_err(|error| Cannot::Write {
        path: path.to_owned(),
        value: number.to_string(),
        error,
    })
}

/// What makes a file say `to`. Which controllers a cgroup hands down is read as a list and written as a difference
/// (Documentation/admin-guide/cgroup-v2.rst, "Enabling and Disabling").
fn spelled<'a>(path: &Path, to: &'a str) -> Result<Cow<'a, str>, Cannot> {
    let make = |error| Cannot::Make {
        action: "look at",
        path: path.to_owned(),
        error,
    };
    if !path.ends_with("cgroup.subtree_control") || !touch::is_kernels(path).map_err(make)? {
        return Ok(to.into());
    }
    Ok(difference(&read(path)?, to).into())
}

/// `+a -b`, from one list to another.
fn difference(from: &str, to: &str) -> String {
    let words = |text: &'_ str| -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    };
    let (from, to) = (words(from), words(to));
    let more = to
        .iter()
        .filter(|w| !from.contains(w))
        .map(|w| format!("+{w}"));
    let less = from
        .iter()
        .filter(|w| !to.contains(w))
        .map(|w| format!("-{w}"));
    more.chain(less).collect::<Vec<_>>().join(" ")
}

pub(super) fn old_file(path: &Path) -> Result<Option<OldFile>, Cannot> {
    let make = |error| Cannot::Make {
        action: "look at",
        path: path.to_owned(),
        error,
    };
    let Some(metadata) = touch::metadata(path).map_err(make)? else {
        return Ok(None);
    };
    if !metadata.is_file() {
        return Err(Cannot::NoFile(path.to_owned()));
    }
    Ok(Some(OldFile {
        text: read(path)?,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

/// Which file it is, for a journal. Nothing that happens to a socket changes when it was written last.
pub(super) fn made_of(metadata: &fs::Metadata) -> Got {
    let at = (metadata.mtime(), metadata.mtime_nsec());
    Got::Inode {
        id: (metadata.dev(), metadata.ino()),
        at: (!metadata.is_dir()).then_some(at),
    }
}

/// What a written value is expected to read as.
pub(super) fn expected(item: &Item) -> Option<&str> {
    match (&item.got, &item.change.act) {
        (Some(Got::Value { value }), _) => Some(value),
        (_, Act::Write { new, .. }) => Some(new),
        _ => None,
    }
}

/// A state as far as a change is about it: nothing else is put back.
fn only(state: &UnitState, change: &UnitState) -> UnitState {
    UnitState {
        active: state.active.filter(|_| change.active.is_some()),
        enabled: state.enabled.filter(|_| change.enabled.is_some()),
    }
}

impl Hands<'_> {
    fn at(&self, path: &Path) -> Result<PathBuf, Cannot> {
        let at = self.root.at(path);
        match self.root.holds(&at) {
            Ok(true) => Ok(at),
            Ok(false) => Err(Cannot::Outside {
                path: at,
                root: self.root.0.clone(),
            }),
            Err(error) => Err(Cannot::Read { path: at, error }),
        }
    }

    /// Writes a value, where need be with merged pages out of the way.
    fn set(&self, path: &Path, text: &str) -> Result<(), Cannot> {
        let at = self.at(path)?;
        match put(&at, &spelled(&at, text)?) {
            Err(Cannot::Write { error, .. })
                if error.raw_os_error() == Some(libc::EBUSY) && merged::is_rule(path) =>
            {
                merged::put_apart(self.root, path, text).map_err(|error| Cannot::Write {
                    path: at,
                    value: text.trim_end().to_owned(),
                    error,
                })
            }
            outcome => outcome,
        }
    }

    /// The value in a file now.
    pub(super) fn value(&self, path: &Path) -> Result<String, Cannot> {
        Ok(value(&read(&self.at(path)?)?).to_owned())
    }

    /// A counter now.
    pub(super) fn count(&self, path: &Path) -> Result<u64, Cannot> {
        count(&self.at(path)?)
    }

    /// How it is now.
    pub(super) fn look(&self, act: &Act) -> Result<Seen, Cannot> {
        let path = self.at(act.target())?;
        let make = |error| Cannot::Make {
            action: "look at",
            path: path.clone(),
            error,
        };
        let (now, so) = match act {
            Act::Write { new, .. } => {
                let text = read(&path)?;
                let now = value(&text).to_owned();
                let so = now == value(new);
                let kernels = touch::is_kernels(&path).map_err(make)?;
                let raw = (!kernels).then_some(text);
                (Before::Value { value: now, raw }, so)
            }
            Act::Add { by, .. } => {
                let count = count(&path)?;
                (Before::Count { count }, *by == 0)
            }
            Act::File { new, .. } => {
                let file = old_file(&path)?;
                let so = file.as_ref().is_some_and(|file| file.text == *new);
                (Before::File { file }, so)
            }
            Act::Directory { .. } => match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => (Before::Directory, true),
                Ok(_) => return Err(make(io::ErrorKind::AlreadyExists.into())),
                Err(e) if touch::absent(&e) => (Before::Directory, false),
                Err(e) => return Err(make(e)),
            },
            Act::Unit { name, now, .. } => {
                let state = self.units.state(name)?;
                let so = [(state.active, now.active), (state.enabled, now.enabled)]
                    .iter()
                    .all(|(is, wanted)| wanted.is_none() || is == wanted);
                (Before::Unit { state }, so)
            }
            Act::Leftover { .. } => {
                let id = touch::identity(&path).map_err(make)?;
                (Before::Inode { id }, false)
            }
        };
        Ok(Seen { now, so })
    }

    /// Whether this user may do it; nothing is done.
    pub(super) fn may(&self, act: &Act) -> Result<(), Cannot> {
        let path = self.at(act.target())?;
        let denied = |error: io::Error, value: &str| match error.kind() {
            io::ErrorKind::PermissionDenied => Cannot::Denied { path: path.clone() },
            io::ErrorKind::InvalidInput => Cannot::NoFile(path.clone()),
            _ => Cannot::Write {
                path: path.clone(),
                value: value.to_owned(),
                error,
            },
        };
        match act {
            Act::Write { new, .. } => touch::may_put(&path).map_err(|e| denied(e, new)),
            Act::Add { by, .. } => touch::may_put(&path).map_err(|e| denied(e, &format!("+{by}"))),
            Act::File { .. } | Act::Directory { .. } => {
                use rustix::fs::{Access, AtFlags, CWD, accessat};
                let above = path.parent().unwrap_or(Path::new("/"));
                let how = Access::WRITE_OK | Access::EXEC_OK;
                accessat(CWD, above, how, AtFlags::EACCESS).map_err(|e| match e {
                    rustix::io::Errno::ACCESS => Cannot::Denied { path: path.clone() },
                    e => Cannot::Make {
                        action: "make",
                        path: path.clone(),
                        error: e.into(),
                    },
                })
            }
            Act::Unit { .. } | Act::Leftover { .. } => Ok(()),
        }
    }

    /// Does it. `before` is what [`Hands::look`] saw.
    pub(super) fn perform(&self, act: &Act, before: &Before) -> Result<Got, Cannot> {
        let path = self.at(act.target())?;
        let make = |action| {
            let path = path.clone();
            move |error| Cannot::Make {
                action,
                path,
                error,
            }
        };
        match act {
            Act::Write {
                path: host, new, ..
            } => {
                self.set(host, new)?;
                // Written is written, whether or not it can be read back.
                let now = read(&path).map_or_else(|_| new.clone(), |text| value(&text).to_owned());
                match before {
                    Before::Value { value: old, .. } if now == *old && now != value(new) => {
                        Err(Cannot::NotTaken {
                            wanted: new.clone(),
                            now,
                        })
                    }
                    _ => Ok(Got::Value { value: now }),
                }
            }
            Act::Add { by, .. } => {
                let before = count(&path)?;
                let wanted = before.saturating_add(*by);
                put_number(&path, wanted)?;
                let now = count(&path).unwrap_or(wanted);
                let gave = now.saturating_sub(before).min(*by);
                Ok(Got::Count { gave, now })
            }
            Act::File { old, new, mode, .. } => {
                let Before::File { file } = before else {
                    return Err(Cannot::Changed { path });
                };
                if file.as_ref().map(|f| &f.text) != old.as_ref() {
                    return Err(Cannot::Changed { path });
                }
                let (mode, owner) = match file {
                    Some(file) => (file.mode, Some((file.uid, file.gid))),
                    None => (*mode, None),
                };
                touch::replace(&path, new, mode, owner).map_err(make("write"))?;
                Ok(Got::Exactly)
            }
            Act::Directory { .. } => {
                touch::make_directory(&path).map_err(make("make"))?;
                let id = touch::identity(&path).ok().flatten();
                Ok(id.map_or(Got::Exactly, |id| Got::Inode { id, at: None }))
            }
            Act::Unit { name, now, .. } => {
                let done = self.units.set(name, *now);
                if done.is_err()
                    && let Before::Unit { state } = before
                {
                    // It may have come half way; the first error is the one to tell.
                    let _ = self.units.set(name, only(state, now));
                }
                done.map(|()| Got::Exactly)
            }
            Act::Leftover { .. } => Ok(Got::Exactly),
        }
    }

    /// How many pages of a pool are free, where the file is a pool's.
    pub(super) fn free(&self, path: &Path) -> u64 {
        let free = self.at(&path.with_file_name("free_hugepages"));
        free.and_then(|free| count(&free)).unwrap_or(0)
    }

    /// Puts it back, where it is still what was made of it. Counters are not restored here.
    pub(super) fn restore(&self, item: &Item, force: bool) -> Result<Restored, Cannot> {
        let path = self.at(item.change.act.target())?;
        let make = |action| {
            let path = path.clone();
            move |error| Cannot::Make {
                action,
                path,
                error,
            }
        };
        match (&item.change.act, &item.before) {
            (
                Act::Write {
                    path: host, new, ..
                },
                Before::Value { value: old, raw },
            ) => {
                let text = read(&path)?;
                let now = value(&text);
                match raw {
                    Some(raw) if text == *raw => return Ok(Restored::Same),
                    None if now == old => return Ok(Restored::Same),
                    _ => {}
                }
                // Merged pages were being taken apart when the run was killed, before it came to this one.
                let apart = item.got.is_none() && merged::is_run(host) && now == merged::APART;
                let ours = Some(now) == expected(item) || now == value(new) || now == old || apart;
                if !ours && !force {
                    return Ok(Restored::Left { now: now.into() });
                }
                self.set(host, raw.as_ref().unwrap_or(old))?;
                let now = value(&read(&path)?).to_owned();
                match now == *old {
                    true => Ok(Restored::Back),
                    false => Err(Cannot::NotTaken {
                        wanted: old.clone(),
                        now,
                    }),
                }
            }
            (Act::File { new, .. }, Before::File { file: old }) => {
                touch::tidy(&path).map_err(make("tidy"))?;
                let now = old_file(&path)?;
                if now == *old {
                    return Ok(Restored::Same);
                }
                let ours = now.as_ref().is_some_and(|now| now.text == *new);
                if !ours && !force {
                    let now = match now {
                        Some(_) => "another text",
                        None => "no file",
                    };
                    return Ok(Restored::Left { now: now.into() });
                }
                match old {
                    Some(old) => {
                        let owner = Some((old.uid, old.gid));
                        touch::replace(&path, &old.text, old.mode, owner).map_err(make("write"))?;
                    }
                    None => touch::remove(&path).map_err(make("remove"))?,
                }
                Ok(Restored::Back)
            }
            (Act::Directory { .. }, Before::Directory) => {
                let id = touch::identity(&path).map_err(make("look at"))?;
                let Some(id) = id else {
                    return Ok(Restored::Same);
                };
                if let Some(Got::Inode { id: made, .. }) = item.got
                    && made != id
                {
                    let now = "another directory".to_owned();
                    return Ok(Restored::Left { now });
                }
                match touch::remove_directory(&path) {
                    Ok(()) => Ok(Restored::Back),
                    Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                        let now = "something in it".to_owned();
                        Ok(Restored::Left { now })
                    }
                    Err(e) => Err(make("remove")(e)),
                }
            }
            (
                Act::Unit {
                    name, now: wanted, ..
                },
                Before::Unit { state: old },
            ) => {
                let now = self.units.state(name)?;
                let (now, old) = (only(&now, wanted), only(old, wanted));
                if now == old {
                    return Ok(Restored::Same);
                }
                // What is not as before is as it was made: there is no third way for somebody else.
                let differs = |now: Option<bool>, old: Option<bool>| old.filter(|_| now != old);
                let old = UnitState {
                    active: differs(now.active, old.active),
                    enabled: differs(now.enabled, old.enabled),
                };
                self.units.set(name, old)?;
                Ok(Restored::Back)
            }
            (Act::Leftover { .. }, Before::Inode { id: old }) => self.clear(&path, *old, item),
            // Nothing that was written could be that.
            _ => Err(Cannot::Changed { path }),
        }
    }

    /// Removes what a run left at `path`, where it is the run's.
    fn clear(&self, path: &Path, old: Option<(u64, u64)>, item: &Item) -> Result<Restored, Cannot> {
        let make = |error| Cannot::Make {
            action: "remove",
            path: path.to_owned(),
            error,
        };
        let Some(metadata) = touch::metadata(path).map_err(make)? else {
            return Ok(Restored::Same);
        };
        let id = (metadata.dev(), metadata.ino());
        if old == Some(id) {
            return Ok(Restored::Same);
        }
        let ours = match &item.got {
            Some(made @ Got::Inode { .. }) => *made == made_of(&metadata),
            // Nobody could say which file it is: then all that is sure is what is still in use.
            _ => {
                metadata.uid() == rustix::process::geteuid().as_raw()
                    && !(metadata.file_type().is_socket() && touch::is_listened_to(path))
            }
        };
        if !ours {
            let now = "somebody else's file".to_owned();
            return Ok(Restored::Left { now });
        }
        match metadata.is_dir() {
            true => touch::remove_directory(path),
            false => touch::remove(path),
        }
        .map_err(make)?;
        Ok(Restored::Back)
    }
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn controllers_are_written_as_a_difference() {
        for (from, to, written) in [
            ("", "cpu memory", "+cpu +memory"),
            ("cpu memory\n", "memory", "-cpu"),
            ("cpu io", "io memory", "+memory -cpu"),
            ("pids", "pids", ""),
        ] {
            assert_eq!(difference(from, to), written);
        }
    }
}
