//! FAT: names that are found whatever their case is, and no permissions.

#![forbid(unsafe_code)]

use std::io::{self, Read};

use fatfs::{DateTime, Dir, DirEntry, FileSystem, FsOptions};

use super::blocks::Part;
use super::tree::{CHUNK, MOST_ENTRIES, Sink};
use super::{Entry, Kind};

/// A file system of FAT.
pub(super) struct Fat(FileSystem<Part>);

/// What a path leads to.
enum Found<'a> {
    Root,
    Entry(DirEntry<'a, Part>),
}

impl Fat {
    pub(super) fn open(part: Part) -> Result<Self, String> {
        let fs = FileSystem::new(part, FsOptions::new());
        fs.map(Fat).map_err(|e| told(&e))
    }

    fn find(&self, path: &[u8]) -> Result<Found<'_>, String> {
        let path = std::str::from_utf8(path).map_err(|_| "names of FAT are UTF-8".to_owned())?;
        let mut names: Vec<&str> = Vec::new();
        for name in path.split('/').filter(|n| !n.is_empty() && *n != ".") {
            match name {
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let mut directory = self.0.root_dir();
        let mut found = Found::Root;
        for name in names {
            if let Found::Entry(entry) = &found {
                if !entry.is_dir() {
                    return Err(
                        "there is no such file: a file is in the place of a directory".into(),
                    );
                }
                directory = entry.to_dir();
            }
            let mut entries = listed(&directory);
            let entry = loop {
                let entry = entries.next().ok_or("there is no such file")??;
                if entry.file_name().to_lowercase() == name.to_lowercase() {
                    break entry;
                }
            };
            found = Found::Entry(entry);
        }
        Ok(found)
    }

    pub(super) fn stat(&self, path: &[u8]) -> Result<Entry, String> {
        Ok(match self.find(path)? {
            Found::Root => Entry {
                name: Vec::new(),
                kind: Kind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                size: 0,
                modified: None,
                target: None,
            },
            Found::Entry(entry) => described(&entry),
        })
    }

    pub(super) fn children(&self, path: &[u8]) -> Result<Vec<Entry>, String> {
        let directory = match self.find(path)? {
            Found::Root => self.0.root_dir(),
            Found::Entry(entry) if entry.is_dir() => entry.to_dir(),
            Found::Entry(_) => return Err("it is no directory".into()),
        };
        listed(&directory)
            .map(|entry| entry.map(|e| described(&e)))
            .collect()
    }

    pub(super) fn read(&self, path: &[u8], sink: Sink<'_>) -> Result<(), String> {
        let Found::Entry(entry) = self.find(path)? else {
            return Err("it is a directory".into());
        };
        if entry.is_dir() {
            return Err("it is a directory".into());
        }
        let mut file = entry.to_file();
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).map_err(|e| told(&e))? {
                0 => return Ok(()),
                n => sink(chunk.get(..n).unwrap_or_default())?,
            }
        }
    }
}

/// What is in a directory, without itself and the one above.
fn listed<'a>(
    directory: &Dir<'a, Part>,
) -> impl Iterator<Item = Result<DirEntry<'a, Part>, String>> + use<'a> {
    let entries = directory.iter().enumerate().map(|(number, entry)| {
        let entry = entry.map_err(|e| told(&e))?;
        match number < MOST_ENTRIES {
            true => Ok(entry),
            false => Err(format!("a directory has more than {MOST_ENTRIES} entries")),
        }
    });
    entries.filter(|entry| {
        entry
            .as_ref()
            .map_or(true, |e| ![".", ".."].contains(&e.file_name().as_str()))
    })
}

fn described(entry: &DirEntry<'_, Part>) -> Entry {
    Entry {
        name: entry.file_name().into_bytes(),
        kind: match entry.is_dir() {
            true => Kind::Directory,
            false => Kind::File,
        },
        mode: match entry.is_dir() {
            true => 0o755,
            false => 0o644,
        },
        uid: 0,
        gid: 0,
        size: entry.len(),
        modified: Some(seconds(entry.modified())),
        target: None,
    }
}

/// Seconds since 1970, as if the clock there had been UTC.
fn seconds(time: DateTime) -> i64 {
    // Days of years that begin in March, so that the odd day is the last one.
    let year = i64::from(time.date.year) - i64::from(time.date.month < 3);
    let month = (i64::from(time.date.month) + 9) % 12;
    let days = 365 * year + year / 4 - year / 100
        + year / 400
        + (153 * month + 2) / 5
        + i64::from(time.date.day)
        - 719_469;
    let clock = time.time;
    ((days * 24 + i64::from(clock.hour)) * 60 + i64::from(clock.min)) * 60 + i64::from(clock.sec)
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fatfs::{Date, Time};

    #[test]
    fn days_are_counted() {
        let at = |year, month, day, hour| {
            seconds(DateTime {
                date: Date { year, month, day },
                time: Time {
                    hour,
                    min: 0,
                    sec: 0,
                    millis: 0,
                },
            })
        };
        // date -ud 1980-01-01 +%s, and so on.
        assert_eq!(at(1980, 1, 1, 0), 315_532_800);
        assert_eq!(at(2000, 2, 29, 12), 951_825_600);
        assert_eq!(at(2026, 11, 20, 0), 1_795_132_800);
    }
}
