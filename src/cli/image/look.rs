//! `vsc-run image ls|cat|cp`: what is in a disk image, without mounting it.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use vsc::diag::shown;
use vsc::inside::copy::Copier;
use vsc::inside::frames::Frame;
use vsc::inside::parent::{Image, InsideError};
use vsc::inside::{ENTRIES, Entry, Format, Kind, Partition, Request, Wanted, child};

use super::Common;
use crate::cli::table::table;
use crate::run::ending::SIGNAL_BASE;
use crate::run::signals::Signals;
use crate::{run, say};

/// An image, and what is meant of it.
#[derive(Debug, Args)]
struct Place {
    /// The image, `#2` for its second partition, `:/etc` for a path in it: disk.img, disk.img:/etc, disk.img#2:/etc.
    #[arg(value_name = "IMAGE[#N][:/PATH]")]
    image: PathBuf,
    /// How the image's file is arranged. It is never guessed.
    #[arg(long, value_enum, default_value_t = Arranged::Raw)]
    format: Arranged,
}

/// How an image's file is arranged.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Arranged {
    /// As the guest sees it.
    Raw,
    /// QEMU's qcow2, without backing file, data file or encryption.
    Qcow2,
}

/// Arguments of `image ls`.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    place: Place,
    /// Permissions, owners and lengths too.
    #[arg(short, long)]
    long: bool,
    /// Most files that are listed.
    #[arg(long, value_name = "N", default_value_t = ENTRIES)]
    entries: u64,
}

/// Arguments of `image cat`.
#[derive(Debug, Args)]
pub(super) struct CatArgs {
    #[command(flatten)]
    place: Place,
}

/// Arguments of `image cp`.
#[derive(Debug, Args)]
pub(super) struct CpArgs {
    #[command(flatten)]
    place: Place,
    /// The directory of this host to copy into. What is there already is not replaced.
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// Most bytes of all files, with a unit such as 2G (default: as many as the image's file has, four times that for qcow2).
    #[arg(long, value_name = "SIZE", value_parser = vsc::images::parse_size)]
    limit: Option<u64>,
    /// Most files, directories and links.
    #[arg(long, value_name = "N", default_value_t = ENTRIES)]
    entries: u64,
}

/// The parts of `IMAGE[#N][:/PATH]`.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    image: PathBuf,
    partition: Option<u32>,
    path: Option<Vec<u8>>,
}

impl Place {
    fn parts(&self) -> Parts {
        parts(&self.image)
    }

    /// The image, and what is asked about the path in it. That there is none is said, with an example.
    fn ask(
        &self,
        missing: &str,
        example: &str,
        wanted: fn(Vec<u8>) -> Wanted,
    ) -> Option<(PathBuf, Request)> {
        let Parts {
            image,
            partition,
            path,
        } = self.parts();
        let Some(path) = path else {
            let shown = image.display();
            say::error(&format!("{shown}: {missing}, as in {shown}:{example}"));
            return None;
        };
        Some((image, self.request(partition, wanted(path))))
    }

    fn request(&self, partition: Option<u32>, wanted: Wanted) -> Request {
        Request {
            format: match self.format {
                Arranged::Raw => Format::Raw,
                Arranged::Qcow2 => Format::Qcow2,
            },
            partition,
            wanted,
        }
    }
}

fn parts(text: &Path) -> Parts {
    let bytes = text.as_os_str().as_bytes();
    let (image, path) = match bytes.windows(2).position(|pair| pair == b":/") {
        Some(at) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
        None => (bytes, None),
    };
    let mut split = image.rsplitn(2, |b| *b == b'#');
    let (last, before) = (split.next().unwrap_or_default(), split.next());
    let number = std::str::from_utf8(last)
        .ok()
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|n| n.parse().ok());
    let file = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    match (before, number) {
        (Some(before), Some(number)) => Parts {
            image: file(before),
            partition: Some(number),
            path,
        },
        _ => Parts {
            image: file(image),
            partition: None,
            path,
        },
    }
}

fn failed(error: &InsideError) -> u8 {
    say::error(&run::chain(error));
    crate::FAILED
}

/// The process that looks into an image.
pub(super) fn inside(request: &str) -> u8 {
    use std::os::fd::AsFd;
    let Ok(request) = serde_json::from_str::<Request>(request) else {
        say::error("this verb is for vsc-run itself");
        return crate::FAILED;
    };
    let stdin: &'static io::Stdin = Box::leak(Box::new(io::stdin()));
    match child::answer(stdin.as_fd(), io::stdout().lock(), &request) {
        Ok(()) => 0,
        // Whoever asked has gone.
        Err(_) => crate::FAILED,
    }
}

pub(super) fn ls(args: &LsArgs, common: &Common) -> u8 {
    let Parts {
        image,
        partition,
        path,
    } = args.place.parts();
    let done = match (path, partition) {
        (None, None) => partitions(args, &image, common),
        (path, _) => {
            let path = path.unwrap_or_else(|| b"/".to_vec());
            entries(args, &image, partition, path, common)
        }
    };
    match done {
        Ok(()) => 0,
        Err(e) => failed(&e),
    }
}

/// Without a path: the partitions, or the first directory of what has none.
fn partitions(args: &LsArgs, image: &Path, common: &Common) -> Result<(), InsideError> {
    let mut found: Vec<Partition> = Vec::new();
    let request = args.place.request(None, Wanted::Partitions);
    Image::open(image)?.ask(&request, &mut |frame| {
        if let Frame::Partition(partition) = frame {
            found.push(partition);
        }
        match found.len() as u64 > args.entries {
            true => Err(InsideError::TooMany(image.to_owned(), args.entries)),
            false => Ok(()),
        }
    })?;
    if let [all] = found.as_slice()
        && all.number.is_none()
        && all.content.is_known()
    {
        return entries(args, image, None, b"/".to_vec(), common);
    }
    if common.json {
        say::out(&format!("{:#}\n", json!({ "partitions": found })));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|p| {
            vec![
                p.number.map_or_else(|| "all".into(), |n| format!("#{n}")),
                p.start.to_string(),
                p.length.to_string(),
                p.content.word().to_owned(),
                p.name.clone().unwrap_or_default(),
                p.kind.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = ["PARTITION", "START", "BYTES", "CONTENT", "NAME", "TYPE"];
    say::out(&table(&head, &rows));
    Ok(())
}

fn entries(
    args: &LsArgs,
    image: &Path,
    partition: Option<u32>,
    path: Vec<u8>,
    common: &Common,
) -> Result<(), InsideError> {
    let request = args.place.request(partition, Wanted::List(path));
    let opened = Image::open(image)?;
    let mut count = 0;
    // A table is as wide as its widest line, and a document is whole: both wait for the end. Names come as they are told.
    let mut found: Vec<Entry> = Vec::new();
    let streams = !common.json && !args.long;
    opened.ask(&request, &mut |frame| {
        let Frame::Entry(entry) = frame else {
            return Ok(());
        };
        count += 1;
        if count > args.entries {
            return Err(InsideError::TooMany(image.to_owned(), args.entries));
        }
        match streams {
            true => say::out(&(shown(&String::from_utf8_lossy(&entry.name)) + "\n")),
            false => found.push(entry),
        }
        Ok(())
    })?;
    if common.json {
        let list: Vec<Value> = found.iter().map(record).collect();
        say::out(&format!("{:#}\n", json!({ "entries": list })));
    } else if args.long {
        let rows: Vec<Vec<String>> = found.iter().map(long).collect();
        say::out(&table(&[], &rows));
    }
    Ok(())
}

fn record(entry: &Entry) -> Value {
    let Entry {
        name,
        kind,
        mode,
        uid,
        gid,
        size,
        modified,
        target,
    } = entry;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut told = json!({
        "name": text(name),
        "kind": kind,
        "mode": format!("{mode:04o}"),
        "uid": uid,
        "gid": gid,
        "size": size,
        "modified": modified,
        "target": target.as_deref().map(text),
    });
    if std::str::from_utf8(name).is_err() {
        told["name_bytes"] = json!(name);
    }
    told
}

fn long(entry: &Entry) -> Vec<String> {
    let kind = match entry.kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Link => 'l',
        Kind::Other => '?',
    };
    let bit = |at: u32, letter: char| match entry.mode >> at & 1 {
        1 => letter,
        _ => '-',
    };
    let mode: String = (0..9)
        .rev()
        .zip("rwxrwxrwx".chars())
        .map(|(at, letter)| bit(at, letter))
        .collect();
    let special = match entry.mode >> 9 & 7 {
        0 => String::new(),
        bits => format!("+{bits}"),
    };
    let mut name = String::from_utf8_lossy(&entry.name).into_owned();
    if let Some(target) = &entry.target {
        name += &format!(" -> {}", String::from_utf8_lossy(target));
    }
    vec![
        format!("{kind}{mode}{special}"),
        entry.uid.to_string(),
        entry.gid.to_string(),
        entry.size.to_string(),
        name,
    ]
}

pub(super) fn cat(args: &CatArgs) -> u8 {
    let asked = args
        .place
        .ask("say which file", "/etc/os-release", Wanted::Read);
    let Some((image, request)) = asked else {
        return crate::FAILED;
    };
    let mut out = io::stdout().lock();
    // What is in an image could tell a terminal anything.
    let terminal = out.is_terminal();
    let mut gone = false;
    let mut write = |bytes: &[u8]| {
        say::answered();
        let written = match terminal {
            false => out.write_all(bytes),
            true => {
                let text = String::from_utf8_lossy(bytes);
                let parts = text.split_inclusive(['\n', '\t']).map(|part| {
                    let plain = part.trim_end_matches(['\n', '\t']);
                    shown(plain) + &part[plain.len()..]
                });
                out.write_all(parts.collect::<String>().as_bytes())
            }
        };
        // A reader that went away has seen enough.
        written.inspect_err(|e| gone = e.kind() == io::ErrorKind::BrokenPipe)
    };
    let done = Image::open(&image).and_then(|image| {
        image.ask(&request, &mut |frame| match frame {
            Frame::Data(bytes) => {
                write(&bytes).map_err(|e| InsideError::Write("standard output".into(), e))
            }
            _ => Ok(()),
        })
    });
    match done.and_then(|()| {
        out.flush()
            .map_err(|e| InsideError::Write("standard output".into(), e))
    }) {
        Ok(()) => 0,
        Err(_) if gone => 0,
        Err(e) => failed(&e),
    }
}

pub(super) fn cp(args: &CpArgs, common: &Common) -> u8 {
    let asked = args.place.ask("say what to copy", "/etc", Wanted::Tree);
    let Some((image, request)) = asked else {
        return crate::FAILED;
    };
    // From here on a signal is an end like any other, which leaves nothing.
    let mut signals = match Signals::take() {
        Ok(signals) => signals,
        Err(e) => return say::error(&format!("cannot watch for signals: {e}")),
    };
    let mut ended_by = None;
    let copied = Image::open(&image).and_then(|image| {
        // Of what is compressed there is more.
        let times = match args.place.format {
            Arranged::Raw => 1,
            Arranged::Qcow2 => 4,
        };
        let limit = match args.limit {
            Some(limit) => limit,
            None => image.length()?.saturating_mul(times),
        };
        let mut copier = Copier::new(&image, &args.to, limit, args.entries)?;
        image.ask(&request, &mut |frame| {
            while let Some(signal) = signals.next() {
                if signal != libc::SIGWINCH {
                    ended_by = Some(signal);
                    return Err(InsideError::Interrupted(image.path.clone()));
                }
            }
            copier.take(frame)
        })?;
        copier.finish()
    });
    let copied = match copied {
        Ok(copied) => copied,
        Err(e) => {
            // What came from a terminal came to the child too, which was faster.
            let by = ended_by.or_else(|| signals.next().filter(|s| *s != libc::SIGWINCH));
            return match by.and_then(|signal| u8::try_from(signal).ok()) {
                Some(signal) => {
                    failed(&InsideError::Interrupted(image));
                    SIGNAL_BASE.saturating_add(signal)
                }
                None => failed(&e),
            };
        }
    };
    if common.json {
        let left_out = copied.left_out.iter();
        let left_out: Vec<Value> = left_out
            .map(|(name, why)| json!({ "name": name, "why": why }))
            .collect();
        let told = json!({
            "files": copied.files,
            "directories": copied.directories,
            "links": copied.links,
            "bytes": copied.bytes,
            "left_out": left_out,
        });
        say::out(&format!("{told:#}\n"));
    } else if !common.quiet {
        for (name, why) in &copied.left_out {
            say::warning(&format!("left out {name:?}: {why}"));
        }
        let many = |count: u64, one: &str, more: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {more}"),
        };
        say::err_raw(&format!(
            "{}, {}, {}, {}\n",
            many(copied.files, "file", "files"),
            many(copied.directories, "directory", "directories"),
            many(copied.links, "link", "links"),
            many(copied.bytes, "byte", "bytes")
        ));
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_a_partition_and_a_path_are_told_apart() {
        for (text, image, partition, path) in [
            ("a.img", "a.img", None, None),
            ("a.img:/etc", "a.img", None, Some("/etc")),
            ("a.img#2:/etc", "a.img", Some(2), Some("/etc")),
            ("a#b.img#12", "a#b.img", Some(12), None),
            ("a#b.img", "a#b.img", None, None),
            ("a#:/x", "a#", None, Some("/x")),
            ("./a:b:/c:/d", "./a:b", None, Some("/c:/d")),
            ("/dev/sda#1:/", "/dev/sda", Some(1), Some("/")),
        ] {
            let found = parts(Path::new(text));
            let path = path.map(|p| p.as_bytes().to_vec());
            let image = PathBuf::from(image);
            assert_eq!(
                found,
                Parts {
                    image,
                    partition,
                    path
                },
                "{text}"
            );
        }
    }
}
