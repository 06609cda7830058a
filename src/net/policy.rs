//! Who may have a tap in which bridge: `/etc/vsc/helper.conf`.
//!
//! ```text
//! # comment
//! deny  br0 guest       this user not
//! allow br0 @kvm        members of this group
//! allow br1 1000        this user, by number or name
//! allow br2             everybody
//! deny                  the rest (which is denied anyway)
//! ```
//!
//! The first line that fits decides; where none does, the answer is no. Names are looked up in `/etc/passwd` and
//! `/etc/group` only: no plug-in of the C library is loaded into a program with rights; users from elsewhere are
//! written as numbers. The file and its directory must be root's and nobody else's to change, and no links.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::is_interface_name;

/// The directory that the file is in.
pub const DIRECTORY: &str = "/etc/vsc";
/// The file's name.
pub const FILE: &str = "helper.conf";
/// Longest file that is read, bytes.
const LONGEST: u64 = 64 << 10;

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Nobody has allowed anything.
    #[error("{} does not exist, so nobody may have a tap; root allows it with a line `allow BRIDGE USER`", .0.display())]
    Missing(PathBuf),
    /// Others could have written it.
    #[error("{} is not obeyed: {why}", .path.display())]
    Unsafe {
        /// The file or its directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is there and cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Unreadable {
        /// The file or its directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
    /// A line makes no sense; nothing is allowed until it does.
    #[error("{}:{line}: {why}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It says no.
    #[error("user {user} may not have a tap in {bridge}: {}{}", .path.display(), .line.map_or_else(|| " has no line that allows it".to_owned(), |line| format!(":{line} denies it")))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The line that said so, if one did.
        line: Option<usize>,
        /// The user.
        user: u32,
        /// The bridge.
        bridge: String,
    },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The user.
    pub user: u32,
    /// Their groups, as far as the process knows them.
    pub groups: Vec<u32>,
}

/// What `/etc/passwd` and `/etc/group` say.
#[derive(Debug, Clone, Default)]
pub struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// Reads them below `root`; what cannot be read has no names.
    pub fn read(root: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(root.join("etc").join(name));
        Self {
            passwd: read("passwd").unwrap_or_default(),
            group: read("group").unwrap_or_default(),
        }
    }

    /// Field `index` of the line whose first field is `name` (passwd(5), group(5)).
    fn field<'a>(text: &'a str, name: &str, index: usize) -> Option<&'a str> {
        let mut lines = text.lines();
        lines.find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(index - 1))?
        })
    }

    fn user(&self, name: &str) -> Option<u32> {
        number(name).or_else(|| number(Self::field(&self.passwd, name, 2)?))
    }

    fn group(&self, name: &str) -> Option<u32> {
        number(name).or_else(|| number(Self::field(&self.group, name, 2)?))
    }

    /// Whether a user is in a group, by its line or by their own: for who came by way of sudo or pkexec, which tell
    /// one group or none.
    fn lists(&self, group: u32, user: u32) -> bool {
        let mut users = self.passwd.lines().map(|line| line.split(':'));
        let is_own = users.any(|mut fields| {
            fields.nth(2).and_then(number) == Some(user)
                && fields.next().and_then(number) == Some(group)
        });
        let mut groups = self.group.lines().map(|line| line.split(':'));
        let is_member = groups.any(|mut fields| {
            let is_meant = fields.nth(2).and_then(number) == Some(group);
            let mut members = fields.next().unwrap_or_default().split(',');
            is_meant
                && members.any(|member| {
                    Self::field(&self.passwd, member, 2).and_then(number) == Some(user)
                })
        });
        is_own || is_member
    }
}

fn number(text: &str) -> Option<u32> {
    // `+1` is a number to parse(), and no user.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// Reads the file of the host.
///
/// # Errors
/// Every [`PolicyError`] but `Line` and `Refused`.
pub fn read() -> Result<String, PolicyError> {
    read_in(Path::new(DIRECTORY), 0)
}

/// Reads the file in `directory`, where `owner` is who may have written it.
fn read_in(directory: &Path, owner: u32) -> Result<String, PolicyError> {
    let path = directory.join(FILE);
    let opened = open(CWD, directory, OFlags::DIRECTORY, &path, owner)?;
    let file = open(&opened, Path::new(FILE), OFlags::empty(), &path, owner)?;
    let unreadable = |error: io::Error| PolicyError::Unreadable {
        path: path.clone(),
        error,
    };
    let mut text = String::new();
    File::from(file)
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > LONGEST {
        return Err(PolicyError::Unsafe {
            path,
            why: format!("it is longer than {LONGEST} bytes"),
        });
    }
    Ok(text)
}

/// Opens a directory or a file that is nobody else's to change; no link is followed.
fn open(
    at: impl AsFd,
    name: &Path,
    kind: OFlags,
    file: &Path,
    owner: u32,
) -> Result<OwnedFd, PolicyError> {
    let shown = match kind.contains(OFlags::DIRECTORY) {
        true => name.to_owned(),
        false => file.to_owned(),
    };
    let untrusted = |why: String| PolicyError::Unsafe {
        path: shown.clone(),
        why,
    };
    // A FIFO without a writer must not hold us up.
    let flags = kind | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Err(PolicyError::Missing(file.to_owned())),
        // A link, where O_DIRECTORY is asked for as well, is no directory.
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(untrusted("it is a link, or not what it should be".into()));
        }
        Err(e) => {
            return Err(PolicyError::Unreadable {
                path: shown,
                error: e.into(),
            });
        }
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| PolicyError::Unreadable {
        path: shown.clone(),
        error: e.into(),
    })?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Err(untrusted("it is no file".into()));
    }
    if stat.st_uid != owner {
        return Err(untrusted(format!(
            "it belongs to user {}, not to root",
            stat.st_uid
        )));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(untrusted(
            "others may write to it (chmod go-w makes it safe)".into(),
        ));
    }
    Ok(fd)
}

/// Whether `who` may have a tap in `bridge`; the number of the line that says so.
///
/// # Errors
/// [`PolicyError::Line`], wherever in the file it is, and [`PolicyError::Refused`].
pub fn decide(text: &str, bridge: &str, who: &Who, names: &Names) -> Result<usize, PolicyError> {
    let path = Path::new(DIRECTORY).join(FILE);
    let mut decision = None;
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let wrong = |why: String| PolicyError::Line {
            path: path.clone(),
            line: line_number,
            why,
        };
        let code = line.split('#').next().unwrap_or_default();
        let mut words = code.split_ascii_whitespace();
        let allows = match words.next() {
            None => continue,
            Some("allow") => true,
            Some("deny") => false,
            Some(other) => {
                return Err(wrong(format!("{other:?} is neither `allow` nor `deny`")));
            }
        };
        let (at, whom) = (words.next(), words.next());
        if let Some(more) = words.next() {
            return Err(wrong(format!("{more:?} is one word too many")));
        }
        if at.is_none() && allows {
            return Err(wrong("`allow` needs a bridge".into()));
        }
        if let Some(name) = at.filter(|name| !is_interface_name(name)) {
            return Err(wrong(format!("{name:?} cannot be the name of a bridge")));
        }
        let is_meant = match whom {
            None => true,
            Some(whom) => names.means(whom, who).map_err(wrong)?,
        };
        if decision.is_none() && is_meant && at.is_none_or(|name| name == bridge) {
            decision = Some((allows, line_number));
        }
    }
    match decision {
        Some((true, line)) => Ok(line),
        other => Err(PolicyError::Refused {
            path,
            line: other.map(|(_, line)| line),
            user: who.user,
            bridge: bridge.to_owned(),
        }),
    }
}

impl Names {
    /// Whether `word` of a rule means who asks.
    fn means(&self, word: &str, who: &Who) -> Result<bool, String> {
        let unknown = |kind, file| {
            format!(
                "there is no {kind} {word:?} in {file} (one from elsewhere is written as a number)"
            )
        };
        match word.strip_prefix('@') {
            Some(group) => {
                let number = self
                    .group(group)
                    .ok_or_else(|| unknown("group", "/etc/group"))?;
                Ok(who.groups.contains(&number) || self.lists(number, who.user))
            }
            None => {
                let user = self
                    .user(word)
                    .ok_or_else(|| unknown("user", "/etc/passwd"))?;
                Ok(user == who.user)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn names() -> Names {
        Names {
            passwd: "root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:\n"
                .into(),
            group: "kvm:x:108:bob,nobody\nada:x:1000:\n".into(),
        }
    }

    fn says(text: &str, bridge: &str, user: u32, groups: &[u32]) -> Result<usize, String> {
        let who = Who {
            user,
            groups: groups.to_vec(),
        };
        decide(text, bridge, &who, &names()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_line_that_fits_decides() {
        let text = "# who\ndeny br0 bob # not him\n\nallow br0 @kvm\nallow br1 ada\nallow br2\n";
        assert_eq!(says(text, "br0", 1000, &[108]), Ok(4));
        assert_eq!(says(text, "br1", 1000, &[]), Ok(5));
        assert_eq!(says(text, "br2", 4711, &[]), Ok(6));
        let told = says(text, "br0", 1001, &[108]).unwrap_err();
        assert!(
            told.ends_with("in br0: /etc/vsc/helper.conf:2 denies it"),
            "{told}"
        );
        let told = says(text, "br0", 1000, &[]).unwrap_err();
        assert!(told.ends_with("has no line that allows it"), "{told}");
        // By the list of members, for who came by way of sudo.
        assert_eq!(says("allow br0 @kvm", "br0", 1001, &[]), Ok(1));
        assert!(says("allow br0 @kvm", "br0", 1000, &[]).is_err());
        // A number means the same group as its name, so that what is denied stays so; and so does one's own group.
        for group in ["@kvm", "@108", "@1001"] {
            let text = format!("deny br0 {group}\nallow br0");
            assert!(says(&text, "br0", 1001, &[]).is_err(), "{group}");
            assert_eq!(says(&text, "br0", 1000, &[]), Ok(2));
        }
        assert_eq!(says("allow br0 1002", "br0", 1002, &[]), Ok(1));
        assert!(says("deny\nallow br0", "br0", 0, &[]).is_err());
        assert!(says("", "br0", 0, &[]).is_err());
    }

    #[test]
    fn a_line_that_makes_no_sense_allows_nothing() {
        for (text, why) in [
            ("allow br0\npermit br1", "2: \"permit\" is neither"),
            ("allow", "1: `allow` needs a bridge"),
            ("allow br0 ada kvm", "1: \"kvm\" is one word too many"),
            ("allow ../x", "1: \"../x\" cannot be the name"),
            ("allow br0\nallow br0 eve", "2: there is no user \"eve\""),
            ("allow br0 @eve", "1: there is no group \"@eve\""),
            ("allow br0 +0", "1: there is no user \"+0\""),
        ] {
            let told = says(text, "br0", 0, &[]).unwrap_err();
            let start = format!("/etc/vsc/helper.conf:{why}");
            assert!(told.starts_with(&start), "{text:?}: {told}");
        }
    }

    #[test]
    fn what_others_may_have_written_is_not_obeyed() {
        let place = std::env::temp_dir().join(format!("vsc-policy-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let directory = place.join("vsc");
        let file = directory.join(FILE);
        let us = crate::sys::user();
        let told = || read_in(&directory, us).map_err(|e| e.to_string());
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        assert!(told().unwrap_err().contains("does not exist"));
        std::fs::create_dir(&directory).unwrap();
        mode(&directory, 0o755);
        assert!(told().unwrap_err().contains("does not exist"));
        std::fs::write(&file, "allow br0\n").unwrap();
        mode(&file, 0o644);
        assert_eq!(told().unwrap(), "allow br0\n");
        let other = read_in(&directory, us + 1).unwrap_err().to_string();
        assert!(other.contains("not to root"), "{other}");
        mode(&file, 0o664);
        assert!(told().unwrap_err().contains("others may write"));
        mode(&file, 0o644);
        mode(&directory, 0o777);
        assert!(told().unwrap_err().contains("others may write"));
        mode(&directory, 0o755);
        std::fs::rename(&file, place.join("real")).unwrap();
        symlink(place.join("real"), &file).unwrap();
        assert!(told().unwrap_err().contains("it is a link"));
        std::fs::remove_file(&file).unwrap();
        std::fs::rename(&directory, place.join("real-directory")).unwrap();
        std::fs::rename(place.join("real"), place.join("real-directory").join(FILE)).unwrap();
        symlink(place.join("real-directory"), &directory).unwrap();
        assert!(told().unwrap_err().contains("it is a link"));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
