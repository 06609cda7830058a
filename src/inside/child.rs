//! The child: it has an image and a pipe, and nothing else.

#![forbid(unsafe_code)]

use std::io::{BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::blocks::{Blocks, Part, Raw};
use super::frames::Frame;
use super::qcow2::Qcow2;
use super::tree::Tree;
use super::{Content, DEPTH, Entry, Format, Kind, Partition, Request, Wanted, jail, table};

/// Seconds of the processor for anything.
const SECONDS: u64 = 60;
/// Bytes of an image for which there is one more.
const PER_SECOND: u64 = 16 << 20;
/// Most files of a tree.
const MOST: usize = 1 << 22;

/// Answers `request` about `image`, the standard input, on `to`, the standard output, and confines this process for good before it reads a byte of it.
///
/// # Errors
/// Nobody listens.
pub fn answer(
    image: BorrowedFd<'static>,
    to: impl Write,
    request: &Request,
) -> std::io::Result<()> {
    let mut to = BufWriter::new(to);
    let answered = confined(image).and_then(|raw| serve(raw, request, &mut to));
    match answered {
        Ok(()) => Frame::Done,
        Err(why) => Frame::Failed(why),
    }
    .write(&mut to)?;
    to.flush()
}

fn confined(image: BorrowedFd<'static>) -> Result<Raw, String> {
    let raw = Raw::new(image).map_err(|e| e.to_string())?;
    let seconds = SECONDS.saturating_add(raw.size() / PER_SECOND);
    jail::enter(seconds).map_err(|e| format!("the parser cannot be confined: {e}"))?;
    Ok(raw)
}

fn serve(raw: Raw, request: &Request, to: &mut impl Write) -> Result<(), String> {
    let told = |e: std::io::Error| e.to_string();
    let whole: Rc<dyn Blocks> = match request.format {
        Format::Raw => {
            let mut head = [0; 4];
            if raw.read_at(0, &mut head).is_ok() && head == *b"QFI\xfb" {
                return Err("it begins as a qcow2 image does: --format qcow2 looks into it".into());
            }
            Rc::new(raw)
        }
        Format::Qcow2 => Rc::new(Qcow2::new(raw).map_err(told)?),
    };
    let partitions = table::partitions(&whole).map_err(told)?;
    let mut send = |frame: Frame| frame.write(to).map_err(told);
    let path = match &request.wanted {
        Wanted::Partitions => {
            for partition in partitions {
                send(Frame::Partition(partition))?;
            }
            return Ok(());
        }
        Wanted::List(path) | Wanted::Read(path) | Wanted::Tree(path) => path,
    };
    let partition = chosen(&partitions, request.partition)?;
    let part = Part::new(whole, partition.start, partition.length).map_err(told)?;
    let tree = Tree::open(part, partition.content)?;
    let about = |why: String| format!("{}: {why}", String::from_utf8_lossy(path));
    let top = tree.stat(path).map_err(about)?;
    match &request.wanted {
        Wanted::List(_) if top.kind == Kind::Directory => {
            for entry in tree.children(path).map_err(about)? {
                send(Frame::Entry(entry))?;
            }
            Ok(())
        }
        Wanted::Tree(_) => walk(&tree, path, top, &mut send),
        Wanted::List(_) => send(Frame::Entry(top)),
        Wanted::Read(_) => {
            send(Frame::Entry(top))?;
            tree.read(path, &mut |bytes| send(Frame::Data(bytes.to_vec())))
                .map_err(about)
        }
        Wanted::Partitions => Ok(()),
    }
}

/// The partition that is meant.
fn chosen(all: &[Partition], number: Option<u32>) -> Result<&Partition, String> {
    let list = || {
        let lines = all.iter().filter_map(|p| {
            let name = p.name.as_ref().map_or(String::new(), |n| format!(" {n:?}"));
            Some(format!(
                "#{}: {}{name}, {} bytes",
                p.number?,
                p.content.word(),
                p.length
            ))
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    if let Some(number) = number {
        return all
            .iter()
            .find(|p| p.number == Some(number))
            .ok_or_else(|| match all {
                [Partition { number: None, .. }] => "it has no partitions".to_owned(),
                _ => format!("it has no partition {number}; it has\n{}", list()),
            });
    }
    let known: Vec<&Partition> = all.iter().filter(|p| p.content.is_known()).collect();
    match (known.as_slice(), all) {
        ([one], _) => Ok(one),
        (_, [one]) if one.number.is_none() => match one.content {
            Content::Unknown => Err(
                "it has neither a partition table nor a file system that is known here".to_owned(),
            ),
            _ => Ok(one),
        },
        ([], _) => Err(format!(
            "no partition has a file system that is known here\n{}",
            list()
        )),
        _ => Err(format!(
            "say which partition, as in IMAGE#2:/path; it has\n{}",
            list()
        )),
    }
}

/// A file, or a directory with all below it.
fn walk(
    tree: &Tree,
    path: &[u8],
    top: Entry,
    send: &mut dyn FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    // What is still to be told of each directory that is open, and its path.
    let mut open: Vec<(Vec<u8>, std::vec::IntoIter<Entry>)> = Vec::new();
    let mut next = Some((path.to_vec(), top));
    let mut count = 0;
    loop {
        if let Some((path, entry)) = next.take() {
            let about = |why: String| format!("{}: {why}", String::from_utf8_lossy(&path));
            count += 1;
            if count > MOST {
                return Err(format!("it has more than {MOST} files"));
            }
            let kind = entry.kind;
            send(Frame::Entry(entry))?;
            match kind {
                Kind::File => tree
                    .read(&path, &mut |bytes| send(Frame::Data(bytes.to_vec())))
                    .map_err(about)?,
                Kind::Directory if open.len() >= DEPTH => {
                    return Err(about(format!("more than {DEPTH} directories deep")));
                }
                Kind::Directory => {
                    let children = tree.children(&path).map_err(about)?;
                    open.push((path, children.into_iter()));
                }
                Kind::Link | Kind::Other => {}
            }
        }
        let Some((path, entries)) = open.last_mut() else {
            return Ok(());
        };
        match entries.next() {
            Some(entry) => {
                let mut below = path.clone();
                below.push(b'/');
                below.extend(&entry.name);
                next = Some((below, entry));
            }
            None => {
                open.pop();
                send(Frame::Up)?;
            }
        }
    }
}
