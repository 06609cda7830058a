//! What a run leaves for machines to read: the result file, `--json`, `--timing`.

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use vsc_vmm::control::Stop;
use vsc_vmm::vm::{Marks, Report, Vm};

use super::ending::Ending;

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
        .filter_map(|(name, at)| Some((name, at?.saturating_duration_since(zero).as_secs_f64() * 1e3)))
        .collect()
    }
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Summary {
    /// How it ended.
    pub ending: Ending,
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
    restarts: u32,
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
            ending,
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
            ending,
            report: None,
            restarts: 0,
            moments: Moments::default(),
        }
    }

    /// The guest's last lines on its console.
    pub(crate) fn console_tail(&self) -> &[String] {
        self.report.as_ref().map_or(&[], |r| &r.console_tail)
    }

    /// Where the guest was when it was cut off.
    pub(crate) fn whereabouts(&self) -> Option<String> {
        self.report.as_ref().and_then(super::diagnosis::whereabouts)
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> String {
        let report = self.report.as_ref();
        let form = Form {
            ending: &self.ending,
            exit_code: self.ending.code(),
            message: self.ending.sentence(),
            restarts: self.restarts,
            stop: report.map(|r| &r.stop),
            timing_ms: self.moments.milliseconds().into_iter().map(|(n, v)| (n.to_owned(), v.into())).collect(),
            exits: report.map(|r| r.exits),
            kvm: report.into_iter().flat_map(|r| &r.kvm).map(|(n, v)| (n.clone(), (*v).into())).collect(),
            devices: report
                .into_iter()
                .flat_map(|r| &r.devices)
                .map(|(n, c)| (n.clone(), serde_json::to_value(c).unwrap_or_default()))
                .collect(),
            vcpus: report.map(|r| r.vcpus.as_slice()),
            console_tail: self.console_tail(),
        };
        serde_json::to_string_pretty(&form).unwrap_or_default() + "\n"
    }

    /// The line of `--timing`.
    pub(crate) fn timing(&self) -> String {
        let moments: Vec<_> =
            self.moments.milliseconds().into_iter().map(|(name, ms)| format!("{name} {ms:.2}")).collect();
        let exits = self.report.as_ref().map_or(0, |r| r.exits);
        let kvm = self.report.as_ref().and_then(|r| r.kvm.iter().find(|(n, _)| n == "exits")).map(|(_, v)| *v);
        let kvm = kvm.map_or_else(String::new, |n| format!(" of {n}"));
        format!("timing, ms since start: {}; exits to the monitor: {exits}{kvm}", moments.join(", "))
    }
}

/// Writes `text` to `path` as a whole or not at all.
///
/// # Errors
/// The system's reason.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    write_bytes(path, text.as_bytes())
}

/// The same for bytes.
///
/// # Errors
/// The system's reason.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_says_which_ending_it_was() {
        let json: serde_json::Value = serde_json::from_str(&Summary::failed("no KVM".into()).json()).unwrap();
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
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing half-written stays");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
