//! What is said to sanlock's daemon and what it answers, as bytes (protocol 1 of sanlock 3.x: `struct sm_header` and
//! the structures of sanlock.h, in the host's byte order). Nothing that the daemon says is believed to be well formed.

#![forbid(unsafe_code)]

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// First word of each message (`SM_MAGIC`).
pub(super) const MAGIC: u32 = 0x0428_2010;
/// The protocol that is spoken here (`SM_PROTO`); another upper half is another protocol.
pub(super) const PROTOCOL: u32 = 1;
/// Bytes of a header.
pub(super) const HEADER: usize = 32;
/// Bytes of a name, which need not end in a zero (`SANLK_NAME_LEN`).
pub(super) const NAME: usize = 48;
/// Bytes of a path with the zero at its end (`SANLK_PATH_LEN`).
pub(super) const PATH: usize = 1024;
/// Bytes of the program for lost leases, and of its arguments, each with a zero at the end (`SANLK_HELPER_PATH_LEN`,
/// `SANLK_HELPER_ARGS_LEN`).
pub const HELPER: usize = 128;
/// Leases of one request (`SANLK_MAX_RESOURCES`).
pub(super) const LEASES: usize = 8;
/// Bytes of `struct sanlk_disk`, `sanlk_resource` without disks, `sanlk_lockspace`, `sanlk_host`, `sanlk_state`.
const DISK: usize = PATH + 16;
pub(super) const RESOURCE: usize = 2 * NAME + 32;
pub(super) const LOCKSPACE: usize = NAME + 16 + DISK;
pub(super) const HOST: usize = 32;
const STATE: usize = 80;
/// Longest text of a state (`SANLK_STATE_MAXSTR`), and most disks of a lease (`SANLK_MAX_DISKS`).
const TEXT_MAX: usize = 4096;
const DISKS_MAX: u32 = 4;
/// A lease that others have too (`SANLK_RES_SHARED`).
pub(super) const SHARED: u32 = 4;

/// What the daemon is asked for (`SM_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Command {
    Register = 1,
    AddLockspace = 2,
    Status = 5,
    Acquire = 7,
    Release = 8,
    Align = 12,
    HostStatus = 15,
    KillPath = 17,
    WriteLockspace = 18,
    WriteResource = 19,
    Owners = 24,
    Version = 28,
}

/// The fields of a header that mean something here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) command: u32,
    pub(super) flags: u32,
    /// Bytes of the message, this header included.
    pub(super) length: u32,
    pub(super) data: u32,
    pub(super) data2: u32,
}

impl Header {
    /// As bytes.
    pub(super) fn bytes(self) -> Vec<u8> {
        let words = [
            MAGIC,
            self.version,
            self.command,
            self.flags,
            self.length,
            0,
            self.data,
            self.data2,
        ];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// From bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn of(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let mut fields = Fields(bytes);
        let magic = fields.word();
        let header = Self {
            version: fields.word(),
            command: fields.word(),
            flags: fields.word(),
            length: fields.word(),
            data: {
                fields.word();
                fields.word()
            },
            data2: fields.word(),
        };
        if magic != MAGIC {
            return Err(format!("it begins with {magic:#010x}, not {MAGIC:#010x}"));
        }
        if (header.length as usize) < HEADER {
            return Err(format!("it is {} bytes long", header.length));
        }
        Ok(header)
    }

    /// What came of the request: 0, or an error.
    pub(super) fn result(self) -> i32 {
        self.data as i32
    }
}

/// Reads fields one after the other; what is not there is zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        let (field, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        field
    }

    fn word(&mut self) -> u32 {
        self.take(4).try_into().map_or(0, u32::from_ne_bytes)
    }

    fn long(&mut self) -> u64 {
        self.take(8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// A text up to its zero, or its end.
    fn text(&mut self, n: usize) -> String {
        let field = self.take(n);
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    }
}

/// A text in `n` bytes, filled up with zeros. A longer one is cut: names are checked by whoever makes them.
pub(super) fn field(text: &[u8], n: usize) -> Vec<u8> {
    let mut bytes = text[..text.len().min(n)].to_vec();
    bytes.resize(n, 0);
    bytes
}

/// `struct sanlk_disk` at the start of a file. `None`: the path is too long for it.
pub(super) fn disk(path: &Path) -> Option<Vec<u8>> {
    let path = path.as_os_str().as_bytes();
    if path.len() >= PATH {
        return None;
    }
    let mut bytes = field(path, PATH);
    bytes.resize(DISK, 0);
    Some(bytes)
}

/// `struct sanlk_lockspace`.
pub(super) fn lockspace(name: &str, host_id: u64, path: &Path) -> Option<Vec<u8>> {
    let mut bytes = field(name.as_bytes(), NAME);
    bytes.extend(host_id.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(disk(path)?);
    Some(bytes)
}

/// `struct sanlk_resource`, of `disks` disks that follow it.
pub(super) fn resource(lockspace: &str, name: &str, shared: bool, disks: u32) -> Vec<u8> {
    let mut bytes = field(lockspace.as_bytes(), NAME);
    bytes.extend(field(name.as_bytes(), NAME));
    bytes.extend([0; 24]);
    bytes.extend(if shared { SHARED } else { 0 }.to_ne_bytes());
    bytes.extend(disks.to_ne_bytes());
    bytes
}

/// `struct sanlk_options`: a name for people.
pub(super) fn options(owner: &str) -> Vec<u8> {
    let mut bytes = field(owner.as_bytes(), NAME - 1);
    bytes.resize(NAME + 8, 0);
    bytes
}

/// Number and flags of a host in an answer.
pub(super) fn host(bytes: &[u8]) -> u64 {
    Fields(bytes).long()
}

/// Something that the daemon tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Daemon {
        host: String,
    },
    Client {
        pid: u32,
        name: String,
    },
    Lockspace {
        name: String,
        host_id: u64,
        path: String,
    },
    Resource {
        lockspace: String,
        name: String,
        pid: u32,
        shared: bool,
        path: String,
    },
    Host {
        host_id: u32,
        owner: String,
    },
    Other,
}

/// States until the end of an answer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn states(mut bytes: &[u8]) -> Result<Vec<State>, String> {
    let mut states = Vec::new();
    let cut = || "it ends within a record".to_owned();
    while !bytes.is_empty() {
        let (record, rest) = bytes.split_at_checked(STATE).ok_or_else(cut)?;
        let mut fields = Fields(record);
        let kind = fields.word();
        fields.word();
        let number = fields.word();
        fields.word();
        fields.long();
        let name = fields.text(NAME);
        let length = fields.word() as usize;
        if length > TEXT_MAX {
            return Err(format!("a text of {length} bytes"));
        }
        let (text, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        bytes = rest;
        states.push(match kind {
            1 => State::Daemon { host: name },
            2 => State::Client { pid: number, name },
            3 => {
                let (body, rest) = bytes.split_at_checked(LOCKSPACE).ok_or_else(cut)?;
                bytes = rest;
                let mut fields = Fields(body);
                let name = fields.text(NAME);
                let host_id = fields.long();
                fields.long();
                let path = fields.text(PATH);
                State::Lockspace {
                    name,
                    host_id,
                    path,
                }
            }
            4 => {
                let (body, rest) = bytes.split_at_checked(RESOURCE).ok_or_else(cut)?;
                bytes = rest;
                let mut fields = Fields(body);
                let lockspace = fields.text(NAME);
                let name = fields.text(NAME);
                fields.take(24);
                let shared = fields.word() & SHARED != 0;
                let disks = fields.word();
                if disks > DISKS_MAX {
                    return Err(format!("a lease on {disks} disks"));
                }
                let all = DISK * disks as usize;
                let (body, rest) = bytes.split_at_checked(all).ok_or_else(cut)?;
                bytes = rest;
                State::Resource {
                    lockspace,
                    name,
                    pid: number,
                    shared,
                    path: Fields(body).text(PATH),
                }
            }
            5 => {
                let text = Fields(text).text(length);
                let owner = text.split_once("owner_name=").map_or("", |(_, name)| name);
                State::Host {
                    host_id: number,
                    owner: owner.to_owned(),
                }
            }
            _ => State::Other,
        });
    }
    Ok(states)
}

/// What an error of the daemon means, for people (sanlock_rv.h; others are the system's).
pub(super) fn meaning(result: i32) -> String {
    let text = match result {
        -201 => "an error of its own",
        -202 => "the storage did not answer in time",
        -203 => "its watchdog daemon (wdmd) does not answer",
        -211 | -210 | -221 | -220 => "it cannot read or write the lease",
        -223 => "the file has no lease in it",
        -214..=-212 | -229..=-222 => "what is in the lease file is damaged, or another program's",
        -231 | -230 => "the lockspace has no room for this host_id",
        -242..=-240 => "the lease and this host's own do not fit together",
        -246 => "too many hosts want to share the lease at once",
        -247..=-243 => "another host has the lease",
        -251 | -250 => "the lease is no longer this host's",
        -261 | -260 => "another host has taken this host's number",
        -262 => "another host has this host_id",
        _ => {
            let error = std::io::Error::from_raw_os_error(result.saturating_neg());
            return format!("{error}, result {result}");
        }
    };
    format!("{text}, result {result}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_went() {
        let header = Header {
            version: PROTOCOL,
            command: Command::Acquire as u32,
            flags: 8,
            length: 32,
            data: (-17i32) as u32,
            data2: u32::MAX,
        };
        let bytes: [u8; HEADER] = header.bytes().try_into().unwrap();
        assert_eq!(Header::of(&bytes), Ok(header));
        assert_eq!(header.result(), -17);
        let mut wrong = bytes;
        wrong[0] ^= 1;
        assert!(Header::of(&wrong).unwrap_err().contains("0x04282011"));
        let short = Header {
            length: 31,
            ..header
        };
        assert!(Header::of(&short.bytes().try_into().unwrap()).is_err());
    }

    #[test]
    fn structures_have_the_sizes_of_the_header_file() {
        let path = Path::new("/leases/x");
        assert_eq!(disk(path).unwrap().len(), 1040);
        assert_eq!(lockspace("L", 7, path).unwrap().len(), LOCKSPACE);
        assert_eq!(LOCKSPACE, 1104);
        assert_eq!(resource("L", "R", true, 1).len(), RESOURCE);
        assert_eq!(RESOURCE, 128);
        assert_eq!(options(&"x".repeat(100)).len(), 56);
        let long = format!("/{}", "x".repeat(PATH - 1));
        assert_eq!(disk(Path::new(&long)), None);
        assert!(disk(Path::new(&long[1..])).is_some());
    }

    /// A record as the daemon sends it.
    fn record(kind: u32, number: u32, name: &str, text: &str) -> Vec<u8> {
        let mut bytes: Vec<u8> = [kind, 0, number, 0, 0, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.extend(field(name.as_bytes(), NAME));
        bytes.extend((text.len() as u32).to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn states_are_read_whole_or_not_at_all() {
        let mut all = record(1, 0, "here", "our_host_name=here");
        all.extend(record(2, 77, "vm", "pid=77\0"));
        all.extend(record(3, 0, "L", "list=spaces\0"));
        all.extend(lockspace("L", 7, Path::new("/l/L")).unwrap());
        all.extend(record(4, 77, "R", ""));
        all.extend(resource("L", "R", true, 1));
        all.extend(disk(Path::new("/l/R")).unwrap());
        all.extend(record(5, 9, "", "io_timeout=10 owner_name=there\0"));
        all.extend(record(99, 0, "", ""));
        let told = states(&all).unwrap();
        assert_eq!(told.len(), 6);
        assert_eq!(
            told[2],
            State::Lockspace {
                name: "L".into(),
                host_id: 7,
                path: "/l/L".into()
            }
        );
        assert_eq!(
            told[3],
            State::Resource {
                lockspace: "L".into(),
                name: "R".into(),
                pid: 77,
                shared: true,
                path: "/l/R".into()
            }
        );
        assert_eq!(
            told[4],
            State::Host {
                host_id: 9,
                owner: "there".into()
            }
        );
        let whole = all.len() - STATE;
        for cut in 1..whole {
            // A cut at the end of a record is an answer of fewer records, never another one.
            if let Ok(fewer) = states(&all[..cut]) {
                assert_eq!(fewer, told[..fewer.len()]);
            }
        }
        let mut long = record(1, 0, "here", "");
        long[72..76].copy_from_slice(&5000u32.to_ne_bytes());
        assert!(states(&long).unwrap_err().contains("5000"));
        let mut many = record(4, 1, "R", "");
        many.extend(resource("L", "R", false, 5));
        assert!(states(&many).unwrap_err().contains("5 disks"));
    }

    #[test]
    fn results_have_meanings() {
        assert!(meaning(-262).contains("another host has this host_id"));
        assert!(meaning(-2).contains("No such file"));
        assert!(meaning(i32::MIN).contains("result -2147483648"));
    }
}
