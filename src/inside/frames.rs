//! What the child tells: frames of one kind, a length, and that many bytes.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Entry, Partition};

/// Most bytes of a frame.
pub const MOST: usize = 64 << 10;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A part of the image.
    Partition(Partition),
    /// A file. In a tree, what is in a directory follows it, until [`Frame::Up`]; of a file, its bytes.
    Entry(Entry),
    /// The next bytes of the file.
    Data(Vec<u8>),
    /// The directory has no more.
    Up,
    /// It did not work, and why.
    Failed(String),
    /// That was all.
    Done,
}

const PARTITION: u8 = b'P';
const ENTRY: u8 = b'E';
const DATA: u8 = b'D';
const UP: u8 = b'U';
const FAILED: u8 = b'X';
const DONE: u8 = b'O';

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Frame {
    /// Writes it.
    ///
    /// # Errors
    /// The system's; or it is too long.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Frame::Partition(p) => (PARTITION, json(p)?),
            Frame::Entry(e) => (ENTRY, json(e)?),
            Frame::Data(bytes) => return put(to, DATA, bytes),
            Frame::Up => (UP, Vec::new()),
            Frame::Failed(why) => {
                let bytes = why.as_bytes();
                (FAILED, bytes.get(..MOST).unwrap_or(bytes).to_vec())
            }
            Frame::Done => (DONE, Vec::new()),
        };
        put(to, kind, &bytes)
    }

    /// Reads one; `None`: the other end is closed.
    ///
    /// # Errors
    /// The system's, or what came is none.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
        if length > MOST {
            return Err(bad("a frame is longer than frames are"));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Ok(Some(match kind[0] {
            PARTITION => Frame::Partition(parse(&bytes)?),
            ENTRY => Frame::Entry(parse(&bytes)?),
            DATA => Frame::Data(bytes),
            UP => Frame::Up,
            FAILED => Frame::Failed(String::from_utf8_lossy(&bytes).into_owned()),
            DONE => Frame::Done,
            _ => return Err(bad("a frame is of no kind")),
        }))
    }
}

fn put(to: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    if bytes.len() > MOST {
        return Err(bad("a frame is longer than frames are"));
    }
    to.write_all(&[kind])?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::from)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::from)
}
