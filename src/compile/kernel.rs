//! `kernel`, `guest`, `root`: what the machine starts, and its command line.

use std::path::{Path, PathBuf};

use vsc_firmware::cmdline::{self, Consoles, Parts};
use vsc_vmm::kvm::HostKind;
use vsc_vmm::resources::{InitrdPart, KernelSpec, Payload};

use crate::diag::{Diagnostic, Span};
use crate::facts::{Facts, FileError, FileKind, InstalledKernel};
use crate::scenario::value::size_text;
use crate::scenario::{Given, Kernel, Root, word};

use super::Problems;

/// Words that every Linux gets: end by a reset that needs no probing, never wait after a panic, and be content with
/// an empty PCI bus (see `vsc_devices::legacy::pci_config`).
pub(crate) const ALWAYS: &str = "reboot=k panic=-1 pci=conf1,noearly";
/// Words for a kernel that runs a command: keep its talk off the console, start our PID 1.
const FOR_COMMAND: &str = "quiet rdinit=/vsc/init";

/// What the rest of the machine means for the kernel.
pub(super) struct Around<'a> {
    /// A command will run.
    pub(super) command: bool,
    /// The command's root file system, or the machine's.
    pub(super) root: &'a Root,
    /// The first disk can be written, or there is no disk.
    pub(super) first_disk: Option<bool>,
    /// Guest RAM, bytes.
    pub(super) memory: u64,
    /// The consoles there are.
    pub(super) consoles: Consoles,
    /// What `console=` says by default.
    pub(super) console: Option<&'static str>,
}

/// The payload. `None` where an error was reported.
pub(super) fn compile(
    kernel: &Kernel,
    guest_parameters: &Given<String>,
    around: &Around<'_>,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> Option<Payload> {
    let Kernel {
        path,
        initrd,
        cmdline,
        prolog,
        epilog,
        format,
        entry,
        console,
        devices_on_cmdline,
    } = kernel;
    let spoken = [cmdline, prolog, epilog]
        .into_iter()
        .flatten()
        .map(|s| s.span);
    let words = [format, entry].into_iter().flatten().map(|s| s.span);
    let mut linux_only = initrd.iter().map(|i| i.span).chain(spoken).chain(words);
    let path = match (path, around.command || linux_only.next().is_some()) {
        (Some(path), _) => {
            if let Some(parameters) = guest_parameters {
                let d = Diagnostic::warning(
                    "W-UNUSED",
                    parameters.span,
                    "`guest` is for the built-in guest only",
                );
                problems.push(d.also(path.span, "this kernel starts instead"));
            }
            check_file(
                "kernel",
                &path.value,
                path.span,
                around.memory,
                facts,
                problems,
            );
            path.value.clone()
        }
        (None, true) => choose(facts, problems)?,
        (None, false) => {
            let parameters = guest_parameters
                .as_ref()
                .map(|p| p.value.clone())
                .unwrap_or_default();
            return Some(Payload::Builtin { parameters });
        }
    };
    for part in initrd {
        check_file(
            "initrd",
            &part.value,
            part.span,
            around.memory,
            facts,
            problems,
        );
    }

    let text = |given: &Given<String>| {
        given
            .as_ref()
            .map(|g| g.value.trim().to_owned())
            .unwrap_or_default()
    };
    let (prolog_text, user, epilog_text) = (text(prolog), text(cmdline), text(epilog));
    let written = [&prolog_text, &user, &epilog_text];
    // `name=` is said with any value, any other word only as it is.
    let said = |w: &str, word: &str| {
        if word.ends_with('=') {
            w.starts_with(word)
        } else {
            w == word
        }
    };
    let says = |word: &str| {
        written
            .iter()
            .any(|t| t.split_ascii_whitespace().any(|w| said(w, word)))
    };
    let defaults = defaults(around, &says, initrd.is_empty());
    let parts = Parts {
        prolog: &prolog_text,
        defaults: &defaults,
        user: &user,
        epilog: &epilog_text,
    };
    let places = [
        (prolog, &prolog_text),
        (cmdline, &user),
        (epilog, &epilog_text),
    ];
    let longest = places
        .iter()
        .max_by_key(|(_, t)| t.len())
        .and_then(|(g, _)| g.as_ref())
        .map(|g| g.span);
    let line = match cmdline::assemble(&parts) {
        Ok(line) => line,
        Err(error) => {
            problems.push(Diagnostic::error(
                "E-CMDLINE",
                longest.unwrap_or_default(),
                error.to_string(),
            ));
            String::new()
        }
    };
    let with_initrd = !initrd.is_empty() || around.command;
    for lint in cmdline::lint(&line, &around.consoles, with_initrd) {
        let mut span = place_in_parts(&line, lint.span, &places);
        if let (true, "W-CONSOLE", Some(asked)) = (span.is_none(), lint.code, console) {
            span = asked.span;
        }
        problems.push(Diagnostic::warning(lint.code, span, lint.message));
    }
    Some(Payload::Kernel(KernelSpec {
        path,
        initrd: initrd
            .iter()
            .map(|part| InitrdPart::File(part.value.clone()))
            .collect(),
        cmdline: line,
        cache: None,
        format: word(*format).unwrap_or_default(),
        entry: word(*entry).unwrap_or_default(),
        devices_on_cmdline: match devices_on_cmdline.map_or("auto", |d| d.value) {
            "auto" => says("acpi=off"),
            word => word == "true",
        },
    }))
}

/// The command line for another hypervisor: without the words that only this program's machine and its PID 1 need.
pub(super) fn elsewhere(line: &str, kernel: &Kernel) -> String {
    const OURS: [&str; 2] = ["pci=conf1,noearly", "rdinit=/vsc/init"];
    let said = |word: &str| {
        let texts = [&kernel.cmdline, &kernel.prolog, &kernel.epilog];
        texts
            .into_iter()
            .flatten()
            .any(|t| t.value.split_ascii_whitespace().any(|w| w == word))
    };
    let words = line
        .split_ascii_whitespace()
        .filter(|w| !OURS.contains(w) || said(w));
    words.collect::<Vec<_>>().join(" ")
}

/// The words that the program adds, each only where the user does not say otherwise.
fn defaults(around: &Around<'_>, says: &dyn Fn(&str) -> bool, no_initrd: bool) -> String {
    let Around {
        command,
        root,
        first_disk,
        memory: _,
        consoles: _,
        console,
    } = around;
    let mut words: Vec<String> = Vec::new();
    if let Some(console) = console
        && !says("console=")
    {
        words.push(format!("console={console}"));
    }
    words.extend(
        ALWAYS
            .split(' ')
            .filter(|w| !says(w.split_inclusive('=').next().unwrap_or(w)))
            .map(str::to_owned),
    );
    if *command {
        words.push(FOR_COMMAND.to_owned());
    } else {
        let Root {
            device,
            fstype,
            options,
        } = root;
        let by_default = if no_initrd && first_disk.is_some() {
            Some("/dev/vda".to_owned())
        } else {
            None
        };
        if let Some(device) = device.as_ref().map(|d| d.value.clone()).or(by_default)
            && device != super::NO_ROOT
            && !says("root=")
        {
            words.push(format!("root={device}"));
            words.extend(fstype.as_ref().map(|t| format!("rootfstype={}", t.value)));
            let options = options
                .as_ref()
                .map(|o| o.value.as_str())
                .unwrap_or_default();
            let mut rest: Vec<&str> = options.split(',').filter(|o| !o.is_empty()).collect();
            let read_only =
                rest.contains(&"ro") || (!rest.contains(&"rw") && *first_disk == Some(false));
            rest.retain(|o| *o != "ro" && *o != "rw");
            if !says("rw") && !says("ro") {
                words.push(if read_only { "ro" } else { "rw" }.to_owned());
            }
            if !rest.is_empty() {
                words.push(format!("rootflags={}", rest.join(",")));
            }
        }
    }
    words.join(" ")
}

/// Where the bytes `range` of the whole line were written.
fn place_in_parts(
    line: &str,
    range: std::ops::Range<usize>,
    parts: &[(&Given<String>, &String)],
) -> Span {
    for (given, text) in parts {
        let Some(given) = given else { continue };
        let Some(at) = line.find(text.as_str()).filter(|_| !text.is_empty()) else {
            continue;
        };
        if range.start >= at && range.end <= at + text.len() {
            // Only a text that stands in its file as it is can be pointed into.
            let lead = given.value.len() - given.value.trim_start().len();
            let exact = given.span.len() == given.value.len();
            let (from, to) = (lead + range.start - at, lead + range.end - at);
            return if exact {
                given.span.part(from, to)
            } else {
                given.span
            };
        }
    }
    Span::NONE
}

/// Where [`LiveFacts::kernels`](crate::facts::LiveFacts) looks.
const LOOKED: &str = "Looked in $VSC_KERNELS, ~/.local/share/vsc/kernels, /usr/local/share/vsc/kernels, /usr/share/vsc/kernels, /boot";

/// The kernel for a command when none is named: an installed one that this host can boot.
fn choose(facts: &dyn Facts, problems: &mut Problems) -> Option<PathBuf> {
    let installed = facts.kernels();
    let native = |kernel: &&InstalledKernel| {
        kernel
            .path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains("cpl3"))
    };
    let found = match facts.host_kind() {
        HostKind::SoftwarePaging => installed.iter().find(native),
        HostKind::Hardware | HostKind::None => installed.iter().find(|k| !native(k)),
    };
    if let Some(found) = found {
        return Some(found.path.clone());
    }
    let d = Diagnostic::error(
        "E-KERNEL-NONE",
        Span::NONE,
        "A command needs a Linux kernel, and none was found",
    );
    problems.push(match facts.host_kind() {
        HostKind::SoftwarePaging => d
            .why(format!("This host's KVM emulates kernel-mode code (kvm_pvm), so only vsc's own cpl3 kernel boots. {LOOKED}"))
            .help("Put vmlinux-cpl3 into ~/.local/share/vsc/kernels (firmware/kernel builds it), name its directory in $VSC_KERNELS, or name it: --kernel FILE"),
        HostKind::Hardware | HostKind::None => d
            .why(LOOKED)
            .help("Name one: --kernel FILE, or install one: apt install linux-image-cloud-amd64"),
    });
    None
}

/// A kernel or an initrd: it is there, it is a file, it can be read, and it is smaller than the memory it goes to.
fn check_file(
    what: &str,
    path: &Path,
    span: Span,
    memory: u64,
    facts: &dyn Facts,
    problems: &mut Problems,
) {
    let shown = path.display();
    let error = |kind: &str| {
        match what {
            "kernel" => [
                "E-KERNEL-MISSING",
                "E-KERNEL-READ",
                "E-KERNEL-KIND",
                "E-KERNEL-SIZE",
            ],
            _ => [
                "E-INITRD-MISSING",
                "E-INITRD-READ",
                "E-INITRD-KIND",
                "E-INITRD-SIZE",
            ],
        }
        .into_iter()
        .find(|code| code.ends_with(kind))
        .unwrap_or("E-KERNEL")
    };
    let d = match facts.file(path) {
        Err(FileError::Missing) => {
            let d = Diagnostic::error(
                error("MISSING"),
                span,
                format!("There is no {what} {shown}"),
            );
            d.help("Paths are relative to the scenario's directory, and those of flags to the current one")
        }
        Err(reason @ FileError::Denied) => {
            let d = Diagnostic::error(
                error("READ"),
                span,
                format!("The {what} {shown} cannot be read: {reason}"),
            );
            d.help(format!("As its owner or root: chmod +r {shown}"))
        }
        Err(reason) => Diagnostic::error(
            error("READ"),
            span,
            format!("The {what} {shown} cannot be read: {reason}"),
        ),
        Ok(file) => match file.kind {
            FileKind::Directory => Diagnostic::error(
                error("KIND"),
                span,
                format!("{shown} is a directory, not a {what}"),
            )
            .help(format!(
                "Name the file in it, for example {}",
                path.join("vmlinuz").display()
            )),
            FileKind::Other | FileKind::BlockDevice => Diagnostic::error(
                error("KIND"),
                span,
                format!("{shown} is not a regular file, so it is not a {what}"),
            ),
            FileKind::Regular if file.length == 0 => {
                Diagnostic::error(error("SIZE"), span, format!("The {what} {shown} is empty"))
            }
            FileKind::Regular if file.length >= memory => {
                let (file, memory) = (file.length >> 20, size_text(memory));
                let message = format!(
                    "The {what} {shown} has {file} MiB, and the machine only {memory} of memory"
                );
                Diagnostic::error(error("SIZE"), span, message)
                    .help(format!("Give it more, for example `memory: {}M`", file * 2))
            }
            FileKind::Regular => return,
        },
    };
    problems.push(d);
}
