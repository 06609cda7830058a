//! Where an image goes: a directory that is held open, a file without a name in it, and the name at the end.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ImageError;

/// A name that is not taken yet, in a directory that stays the same whatever is renamed meanwhile.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    shown: PathBuf,
    name: OsString,
    /// Directories that were made for this, outermost first; gone again unless the image gets its name.
    made: std::cell::RefCell<Vec<PathBuf>>,
}

impl Place {
    /// Directory and name of an image.
    pub(super) fn names(path: &Path) -> Option<(PathBuf, &OsStr)> {
        // `file_name` forgives a slash at the end, which asks for a directory.
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return None;
        }
        let name = path.file_name()?;
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        Some((directory.unwrap_or(Path::new(".")).to_owned(), name))
    }

    /// Opens the directory, or makes it where `parents` says so; the name must be free.
    pub(super) fn open(path: &Path, parents: bool) -> Result<Self, ImageError> {
        let (shown, name) =
            Self::names(path).ok_or_else(|| ImageError::NoDirectory(path.to_owned()))?;
        let mut made = Made(Vec::new());
        if parents {
            made.directories(&shown)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&shown, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => ImageError::NoDirectory(shown.clone()),
            e => ImageError::Directory(shown.clone(), e.into()),
        })?;
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(ImageError::Exists(path.to_owned())),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(ImageError::Directory(shown, e.into())),
        }
        Ok(Self {
            directory,
            name: name.to_owned(),
            shown,
            made: std::mem::take(&mut made.0).into(),
        })
    }

    fn path(&self) -> PathBuf {
        self.shown.join(&self.name)
    }

    /// The directory's own entry is durable. One that may be searched but not read cannot be asked for that.
    fn sync(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, ".", flags, Mode::empty()) {
            Ok(readable) => Ok(rustix::fs::fsync(readable)?),
            Err(Errno::ACCESS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(Made(self.made.take()));
    }
}

/// Directories that go when this does, if they are still empty.
struct Made(Vec<PathBuf>);

impl Made {
    fn directories(&mut self, wanted: &Path) -> Result<(), ImageError> {
        let missing: Vec<_> = wanted
            .ancestors()
            .take_while(|d| !d.as_os_str().is_empty() && d.symlink_metadata().is_err())
            .collect();
        for directory in missing.into_iter().rev() {
            match DirBuilder::new().create(directory) {
                Ok(()) => self.0.push(directory.to_owned()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(ImageError::MakeDirectory(directory.to_owned(), e)),
            }
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            // Not empty: somebody uses it.
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// The image before it has its name. Dropped, it is gone: with the last descriptor where the file system knows files
/// without names (O_TMPFILE), even after SIGKILL; else its temporary name is removed.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    place: &'a Place,
    file: File,
    temporary: Option<OsString>,
}

impl<'a> Draft<'a> {
    /// Makes the file.
    pub(super) fn open(place: &'a Place, mode: u32) -> Result<Self, ImageError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&place.directory, ".", flags, Mode::RUSR | Mode::WUSR);
        match opened {
            Ok(fd) => {
                let file: File = fd.into();
                match Path::new(&own_descriptor(&file)).exists() {
                    true => Self::with_mode(place, file, None, mode),
                    // Without /proc it could not be given a name at the end.
                    false => Self::named(place, mode),
                }
            }
            // What kernels and file systems without it say (man 2 open).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                Self::named(place, mode)
            }
            Err(e) => Err(ImageError::MakeFile(place.shown.clone(), e.into())),
        }
    }

    /// The way without O_TMPFILE.
    pub(super) fn named(place: &'a Place, mode: u32) -> Result<Self, ImageError> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut attempts = 0;
        loop {
            let random = RandomState::new().build_hasher().finish();
            let name = OsString::from(format!(".vsc-disk-{random:016x}"));
            match rustix::fs::openat(&place.directory, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(fd) => return Self::with_mode(place, fd.into(), Some(name), mode),
                Err(Errno::EXIST) if attempts < 16 => attempts += 1,
                Err(e) => return Err(ImageError::MakeFile(place.shown.clone(), e.into())),
            }
        }
    }

    fn with_mode(
        place: &'a Place,
        file: File,
        temporary: Option<OsString>,
        mode: u32,
    ) -> Result<Self, ImageError> {
        let draft = Self {
            place,
            file,
            temporary,
        };
        draft
            .file
            .set_permissions(Permissions::from_mode(mode & 0o777))
            .map_err(|e| ImageError::MakeFile(place.shown.clone(), e))?;
        Ok(draft)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, if nobody has it.
    pub(super) fn publish(mut self) -> Result<(), ImageError> {
        let Place {
            directory, name, ..
        } = self.place;
        let named = match &self.temporary {
            None => link_nameless(&self.file, directory, name),
            Some(temporary) => {
                match rustix::fs::renameat_with(
                    directory,
                    temporary,
                    directory,
                    name,
                    RenameFlags::NOREPLACE,
                ) {
                    Ok(()) => {
                        self.temporary = None;
                        Ok(())
                    }
                    // File systems that cannot promise it; a link never replaces, and the draft's name goes below.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        rustix::fs::linkat(directory, temporary, directory, name, AtFlags::empty())
                    }
                    Err(e) => Err(e),
                }
            }
        };
        named.map_err(|e| match e {
            Errno::EXIST => ImageError::Exists(self.place.path()),
            e => ImageError::Publish(self.place.path(), e.into()),
        })?;
        self.place.made.take();
        self.place.sync().map_err(ImageError::Sync)
    }
}

/// By its entry in /proc, which needs no privilege (man 2 open, O_TMPFILE).
fn link_nameless(file: &File, directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let nameless = own_descriptor(file);
    rustix::fs::linkat(CWD, nameless, directory, name, AtFlags::SYMLINK_FOLLOW)
}

/// The name under which a process reaches one of its descriptors.
pub(super) fn own_descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // It is ours by O_EXCL; whoever removed it already did the same.
            let _ = rustix::fs::unlinkat(&self.place.directory, name, AtFlags::empty());
        }
    }
}
