//! What a run leaves for machines to read: the result file, `--json`, `--timing`.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use vsc_vmm::control::Stop;
use vsc_vmm::vm::{Marks, Report, Vm};

use super::confine::Facts;
use super::ending::Ending;
use super::leases::LockFailure;
use super::outside::{Errand, Errands, Outside};

/// Moments of a run; the first machine's, when there were restarts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moments {
    started: Option<Instant>,
    marks: Option<Marks>,
    first_output: Option<Instant>,
    /// Init greeted.
    pub ready: Option<Instant>,
    /// The command was started.
    pub command: Option<Instant>,
    ended: Option<Instant>,
}

impl Moments {
    /// Notes when the program and the machine started.
    pub(crate) fn note_start(&mut self, started: Instant, marks: &Marks) {
        self.started.get_or_insert(started);
        self.marks.get_or_insert(*marks);
    }

    /// Notes when the machine ended and when its console first spoke.
    pub(crate) fn note_end(&mut self, vm: &Vm) {
        self.first_output = self.first_output.or(vm.console().first_byte());
        self.ended = Some(Instant::now());
    }

    /// (name, milliseconds since the program started), in order.
    pub(crate) fn milliseconds(&self) -> Vec<(&'static str, f64)> {
        let Some(zero) = self.started else {
            return Vec::new();
        };
        let marks = self.marks;
        [
            ("build", marks.map(|m| m.build)),
            ("kvm", marks.map(|m| m.machine)),
            ("kernel", marks.map(|m| m.kernel)),
            ("built", marks.map(|m| m.built)),
            ("vcpus", marks.and_then(|m| m.started)),
            ("first_output", self.first_output),
            ("ready", self.ready),
            ("command", self.command),
            ("end", self.ended),
        ]
        .into_iter()
        .filter_map(|(name, at)| {
            Some((
                name,
                at?.saturating_duration_since(zero).as_secs_f64() * 1e3,
            ))
        })
        .collect()
    }
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Summary {
    /// How it ended.
    pub ending: Ending,
    /// What was said to people besides the ending's sentence, as data.
    pub messages: Vec<serde_json::Value>,
    /// What was done to the host, and what was not.
    pub host: Vec<serde_json::Value>,
    /// The exit code: the ending's, or that of an error after it.
    pub code: u8,
    /// What the process was kept from.
    pub confinement: Facts,
    /// Writes what the process itself may not write any more.
    pub outside: Option<Outside>,
    /// What was done about lost leases, if any were.
    pub lock_failure: Option<LockFailure>,
    report: Option<Report>,
    restarts: u32,
    moments: Moments,
}

/// The result file's form; fields are added, never renamed.
#[derive(Serialize)]
struct Form<'a> {
    #[serde(flatten)]
    ending: &'a Ending,
    exit_code: u8,
    message: Option<String>,
    messages: &'a [serde_json::Value],
    /// Where something of the host was to be changed.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    host: &'a [serde_json::Value],
    restarts: u32,
    /// Where leases of the images were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_failure: Option<LockFailure>,
    sandbox: &'a Facts,
    stop: Option<&'a Stop>,
    timing_ms: serde_json::Map<String, serde_json::Value>,
    exits: Option<u64>,
    kvm: serde_json::Map<String, serde_json::Value>,
    devices: serde_json::Map<String, serde_json::Value>,
    vcpus: Option<&'a [Option<vsc_vmm::vcpu::CpuSnapshot>]>,
    console_tail: &'a [String],
}

impl Summary {
    /// A run that ended.
    pub(crate) fn new(ending: Ending, report: Report, restarts: u32, moments: Moments) -> Self {
        Self {
            code: ending.code(),
            ending,
            messages: Vec::new(),
            confinement: Facts::of(&None),
            outside: None,
            host: Vec::new(),
            lock_failure: None,
            report: Some(report),
            restarts,
            moments,
        }
    }

    /// A run that never was.
    pub(crate) fn failed(message: String) -> Self {
        Self::never_ran(Ending::Failed { message })
    }

    /// The same, for another reason than a failure of ours.
    pub(crate) fn never_ran(ending: Ending) -> Self {
        Self {
            code: ending.code(),
            ending,
            messages: Vec::new(),
            confinement: Facts::of(&None),
            outside: None,
            host: Vec::new(),
            lock_failure: None,
            report: None,
            restarts: 0,
            moments: Moments::default(),
        }
    }

    /// Whether there was a machine.
    pub(crate) fn has_run(&self) -> bool {
        self.report.is_some()
    }

    /// The guest's last lines on its console.
    pub(crate) fn console_tail(&self) -> &[String] {
        self.report.as_ref().map_or(&[], |r| &r.console_tail)
    }

    /// Where the guest was when it was cut off.
    pub(crate) fn whereabouts(&self) -> Option<String> {
        self.report.as_ref().and_then(super::diagnosis::whereabouts)
    }

    /// The result file: one JSON object.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(&self.form()).unwrap_or_default() + "\n"
    }

    /// The same on one line, without its end.
    pub(crate) fn json_line(&self) -> String {
        serde_json::to_string(&self.form()).unwrap_or_default()
    }

    /// The same as data.
    pub(crate) fn value(&self) -> serde_json::Value {
        serde_json::to_value(self.form()).unwrap_or_default()
    }

    fn form(&self) -> Form<'_> {
        let report = self.report.as_ref();
        Form {
            ending: &self.ending,
            exit_code: self.code,
            message: self.ending.sentence(),
            messages: &self.messages,
            host: &self.host,
            restarts: self.restarts,
            lock_failure: self.lock_failure,
            sandbox: &self.confinement,
            stop: report.map(|r| &r.stop),
            timing_ms: self
                .moments
                .milliseconds()
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v.into()))
                .collect(),
            exits: report.map(|r| r.exits),
            kvm: report
                .into_iter()
                .flat_map(|r| &r.kvm)
                .map(|(n, v)| (n.clone(), (*v).into()))
                .collect(),
            devices: report
                .into_iter()
                .flat_map(|r| &r.devices)
                .map(|(n, c)| (n.clone(), serde_json::to_value(c).unwrap_or_default()))
                .collect(),
            vcpus: report.map(|r| r.vcpus.as_slice()),
            console_tail: self.console_tail(),
        }
    }

    /// The line of `--timing`.
    pub(crate) fn timing(&self) -> String {
        let moments: Vec<_> = self
            .moments
            .milliseconds()
            .into_iter()
            .map(|(name, ms)| format!("{name} {ms:.2}"))
            .collect();
        let exits = self.report.as_ref().map_or(0, |r| r.exits);
        let kvm = self
            .report
            .as_ref()
            .and_then(|r| r.kvm.iter().find(|(n, _)| n == "exits"))
            .map(|(_, v)| *v);
        let kvm = kvm.map_or_else(String::new, |n| format!(" of {n}"));
        format!(
            "timing, ms since start: {}; exits to the monitor: {exits}{kvm}",
            moments.join(", ")
        )
    }
}

/// The errand of writing the result to `path`, if it is wanted, once the process may not.
pub(crate) fn errands(path: Option<&Path>) -> Errands<'_> {
    let mut errands = Errands::default();
    let Some(path) = path else { return errands };
    if matches!(Target::of(path), Ok(Target::Other(_))) {
        errands.keep_descriptors();
    }
    errands.add(Errand::Result, move |text| {
        write_bytes(path, text).map_err(|e| e.to_string())
    });
    errands
}

/// Writes `text` to `path`: a file as a whole or not at all, anything else as it is.
///
/// # Errors
/// The system's reason.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    write_bytes(path, text.as_bytes())
}

/// The same for bytes. Symbolic links are followed, and what they lead to is written.
///
/// # Errors
/// The system's reason.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match Target::of(path)? {
        Target::File(path) => replace(&path, bytes),
        Target::Other(path) => {
            // Never waits for the reader of a FIFO: without one, this is an error. A file that was passed as a
            // descriptor has text in it already.
            let mut file = OpenOptions::new()
                .append(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)?;
            // SAFETY: a plain system call on a descriptor of ours, whose open file is no other's.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) } != 0 {
                return Err(io::Error::last_os_error());
            }
            file.write_all(bytes)
        }
    }
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// A file, or nothing yet.
    File(PathBuf),
    /// A device, a FIFO, an open descriptor (`/dev/stdout`, `/dev/fd/3`): nothing to be replaced.
    Other(PathBuf),
}

impl Target {
    fn of(path: &Path) -> io::Result<Self> {
        // MAXSYMLINKS of Linux.
        const LINKS_MAX: u32 = 40;
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
            let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
            let directory = directory.unwrap_or_else(|| Path::new(".")).canonicalize()?;
            let place = directory.join(name);
            let kind = match std::fs::symlink_metadata(&place) {
                Ok(metadata) => metadata.file_type(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::File(place)),
                Err(e) => return Err(e),
            };
            // Links in /proc are descriptors; where they seem to lead is not where they do.
            if directory.starts_with("/proc") || !(kind.is_file() || kind.is_symlink()) {
                return Ok(Self::Other(place));
            }
            if kind.is_file() {
                return Ok(Self::File(place));
            }
            path = directory.join(std::fs::read_link(&place)?);
        }
        Err(io::Error::from_raw_os_error(libc::ELOOP))
    }
}

/// Puts a file with `bytes` where `path` is, in one step.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (temporary, mut file) = temporary_beside(path)?;
    let written = std::fs::metadata(path)
        .map_or(Ok(()), |old| file.set_permissions(old.permissions()))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// A file that was not there before, whatever others put into the directory.
fn temporary_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    const TRIES: u32 = 100;
    let mut taken = io::ErrorKind::AlreadyExists.into();
    for _ in 0..TRIES {
        // Seeded from the system's random numbers.
        let random = RandomState::new().build_hasher().finish();
        let temporary = path.with_file_name(format!(".vsc-{random:016x}"));
        match File::create_new(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => taken = e,
            Err(e) => return Err(e),
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_says_which_ending_it_was() {
        let json: serde_json::Value =
            serde_json::from_str(&Summary::failed("no KVM".into()).json()).unwrap();
        assert_eq!(json["outcome"], "failed");
        assert_eq!(json["exit_code"], 125);
        assert_eq!(json["message"], "no KVM");
    }

    #[test]
    fn a_result_file_is_whole_or_absent() {
        let dir = std::env::temp_dir().join(format!("vsc-result-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("r.json");
        write_whole(&path, "{}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
        assert!(write_whole(&dir.join("none/r.json"), "{}").is_err());
        assert_eq!(
            std::fs::read_dir(&dir).unwrap().count(),
            1,
            "nothing half-written stays"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
    #[test]
    fn no_ending_has_a_key_twice() {
        let text = || "x".to_owned();
        for ending in [
            Ending::Exited { status: 1 },
            Ending::Signalled { signal: 9 },
            Ending::NotExecuted {
                errno: 2,
                path: text(),
            },
            Ending::PoweredOff,
            Ending::Rebooted,
            Ending::NoStatus { how: text() },
            Ending::Panicked {
                message: Some(text()),
            },
            Ending::Hung { diagnosis: text() },
            Ending::TimedOut { seconds: 1.0 },
            Ending::Interrupted { signal: 2 },
            Ending::Quit,
            Ending::LeasesLost { why: text() },
            Ending::Failed { message: text() },
        ] {
            let json = Summary::never_ran(ending.clone()).json();
            // The keys of the object itself are those behind two spaces.
            let mut keys: Vec<_> = json
                .lines()
                .filter_map(|l| l.strip_prefix("  \"")?.split_once("\":"))
                .map(|(key, _)| key)
                .collect();
            assert!(
                keys.contains(&"message") && keys.contains(&"outcome"),
                "{json}"
            );
            let all = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), all, "{json}");
            let told: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(
                told["message"].as_str().map(str::to_owned),
                ending.sentence()
            );
        }
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vsc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir.canonicalize().unwrap()
    }

    #[test]
    fn links_are_followed_and_stay() {
        let dir = directory("links");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        std::fs::create_dir(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/there"), "old").unwrap();
        std::os::unix::fs::symlink("sub/there", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("not-yet", dir.join("sub/dangling")).unwrap();
        std::os::unix::fs::symlink("sub/dangling", dir.join("chain")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        write_whole(&dir.join("link"), "new").unwrap();
        write_whole(&dir.join("chain"), "newer").unwrap();
        assert!(write_whole(&dir.join("loop"), "x").is_err());
        assert!(write_whole(&dir.join("sub"), "x").is_err());
        assert!(write_whole(&dir.join("sub/.."), "x").is_err());
        assert_eq!(
            (read("sub/there"), read("sub/not-yet")),
            ("new".into(), "newer".into())
        );
        for link in ["link", "chain", "sub/dangling"] {
            assert!(dir.join(link).is_symlink(), "{link}");
        }
        assert_eq!(
            std::fs::read_dir(dir.join("sub")).unwrap().count(),
            3,
            "nothing half-written stays"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_file_is_written_not_replaced() {
        let dir = directory("special");
        let fifo = dir.join("fifo");
        let name = std::ffi::CString::new(fifo.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a path that ends in a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(
            write_whole(&fifo, "nobody reads").is_err(),
            "and it does not wait"
        );
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        write_whole(&fifo, "told").unwrap();
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "told");
        assert_eq!(
            Target::of(Path::new("/dev/null")).unwrap(),
            Target::Other("/dev/null".into())
        );
        write_whole(Path::new("/dev/null"), "told").unwrap();
        // A descriptor of a file: what others wrote to it stays.
        std::fs::write(dir.join("out"), "guest\n").unwrap();
        let out = File::open(dir.join("out")).unwrap();
        write_whole(
            &PathBuf::from(format!("/dev/fd/{}", out.as_raw_fd())),
            "told",
        )
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.join("out")).unwrap(),
            "guest\ntold"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = directory("mode");
        let path = dir.join("r.json");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write_whole(&path, "new").unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
