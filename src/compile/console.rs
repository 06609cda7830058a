//! `serials`, `consoles`, `console`: byte streams between guest and host, and which of them the kernel talks on.

use std::collections::HashMap;

use vsc_devices::legacy::serial::SerialSpec;
use vsc_devices::stream::Endpoint;
use vsc_devices::virtio::console::ConsoleSpec;
use vsc_firmware::cmdline::Consoles;

use crate::diag::{Diagnostic, Span, Spanned, quoted};
use crate::facts::Terminals;
use crate::scenario::value::endpoint_text;
use crate::scenario::{Console, ConsolePort, Given, Serial};

use super::ports::{self, Port};
use super::{Problems, Stdio};

/// Everything about byte streams.
pub(super) struct Streams {
    pub(super) serials: Vec<SerialSpec>,
    pub(super) consoles: Vec<ConsoleSpec>,
    /// For the command line's lint.
    pub(super) there: Consoles,
    /// What `console=` says by default.
    pub(super) kernel_console: Option<&'static str>,
    /// How a command's standard streams travel.
    pub(super) stdio: Stdio,
}

/// The serial ports and virtio consoles.
pub(super) fn compile(
    (serials, ports, console): (&[Spanned<Serial>], &[Spanned<ConsolePort>], &Console),
    kernel_console: &Given<&'static str>,
    command: Option<Span>,
    terminals: Terminals,
    problems: &mut Problems,
) -> Streams {
    let Console { log: _, implicit } = console;
    let mut users = Users::default();
    let mut lines = Vec::new();
    for (index, serial) in serials.iter().enumerate() {
        let Serial { to, log } = &serial.value;
        let span = &serial.span;
        let Some(to) = to else {
            let d = Diagnostic::error("E-REQUIRED", *span, "This serial port has no `to`");
            problems.push(
                d.help("Say where it leads: `to: stdio`, `to: unix:serial.socket`, `to: null`"),
            );
            continue;
        };
        let what = format!("serials[{index}]");
        users.take(&to.value, Use::Both, to.span, &what, problems);
        lines.push(serial_spec(
            index,
            to.value.clone(),
            log.is_none_or(|l| l.value),
        ));
    }
    let mut device: Vec<Port> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        device.extend(explicit(index, port, &mut users, problems));
    }
    unique_names(ports, problems);

    let stdio = match command {
        None => Stdio::None,
        Some(span) => {
            let stdio = if terminals.stdin && terminals.stdout {
                Stdio::Terminal
            } else {
                Stdio::Pipes
            };
            users.take(&Endpoint::Stdio, Use::Both, span, "the command", problems);
            device.extend(ports::of_command(stdio));
            stdio
        }
    };
    let listed = !lines.is_empty() || device.iter().any(Port::is_console);
    let wanted = kernel_console.map(|k| k.value);
    if implicit.is_none_or(|i| i.value) && !(listed && command.is_none()) && lines.is_empty() {
        match (command.is_some(), wanted) {
            // The kernel's talk goes to the console log; standard output belongs to the command.
            (true, _) => lines.push(serial_spec(0, Endpoint::Null, true)),
            (false, Some("hvc0")) => device.push(Port::tty(None, Endpoint::Stdio)),
            (false, _) => lines.push(serial_spec(0, Endpoint::Stdio, true)),
        }
    }
    let hvc = device.iter().filter(|p| p.is_console()).count();
    let there = Consoles {
        serial: lines.iter().fold(0, |bits, line| {
            bits | 1u8.checked_shl(line.index.into()).unwrap_or(0)
        }),
        hvc: u8::try_from(hvc).unwrap_or(u8::MAX),
        vga: false,
    };
    let has = |console: &str| match console {
        "hvc0" => there.hvc > 0,
        _ => there.serial & 1 != 0,
    };
    let kernel_console = match wanted {
        Some("none") => None,
        Some(console) => Some(console),
        None => ["ttyS0", "hvc0"].into_iter().find(|c| has(c)),
    };
    Streams {
        serials: lines,
        consoles: ports::specs(device, kernel_console),
        there,
        kernel_console,
        stdio,
    }
}

fn serial_spec(index: usize, endpoint: Endpoint, log: bool) -> SerialSpec {
    SerialSpec {
        index: u8::try_from(index).unwrap_or(u8::MAX),
        endpoint,
        log,
    }
}

/// One listed port. `None` where an error was reported.
fn explicit(
    index: usize,
    port: &Spanned<ConsolePort>,
    users: &mut Users,
    problems: &mut Problems,
) -> Option<Port> {
    let ConsolePort {
        name,
        input,
        output,
        tty,
    } = &port.value;
    let span = &port.span;
    let what = format!("consoles[{index}]");
    if let Some(name) = name
        && name.value.starts_with("vsc.")
    {
        let d = Diagnostic::error(
            "E-VALUE",
            name.span,
            "Names that start with `vsc.` are this program's own ports",
        );
        problems.push(d.help("Give the port another name"));
    }
    if let (Some(tty), Some(other)) = (tty, input.as_ref().or(output.as_ref())) {
        let d = Diagnostic::error(
            "E-CONFLICT",
            other.span,
            "A port with `tty` has no `in` and no `out`",
        );
        problems.push(
            d.also(tty.span, "the terminal")
                .why("`tty` is both directions"),
        );
        return None;
    }
    if let Some(tty) = tty {
        users.take(&tty.value, Use::Both, tty.span, &what, problems);
        return Some(Port::tty(
            name.as_ref().map(|n| n.value.clone()),
            tty.value.clone(),
        ));
    }
    let Some(name) = name else {
        let d = Diagnostic::error(
            "E-REQUIRED",
            *span,
            "This port has neither `name` nor `tty`",
        );
        problems.push(
            d.help("`{tty: stdio}` is a console, `{name: log, out: \"file:log.txt\"}` a port"),
        );
        return None;
    };
    let mut end = |given: &Given<Endpoint>, direction: Use| {
        let Some(given) = given else {
            return Endpoint::Null;
        };
        let wrong = match direction {
            Use::In => matches!(given.value, Endpoint::Stdout | Endpoint::Stderr),
            Use::Out | Use::Both => matches!(given.value, Endpoint::Stdin),
        };
        if wrong {
            let way = if direction == Use::In {
                "read from"
            } else {
                "written to"
            };
            let message = format!("{} cannot be {way}", endpoint_text(&given.value));
            problems.push(Diagnostic::error("E-VALUE", given.span, message));
        }
        users.take(&given.value, direction, given.span, &what, problems);
        given.value.clone()
    };
    let (input, output) = (end(input, Use::In), end(output, Use::Out));
    Some(Port::in_out(&name.value, input, output))
}

fn unique_names(ports: &[Spanned<ConsolePort>], problems: &mut Problems) {
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for name in ports.iter().filter_map(|p| p.value.name.as_ref()) {
        if let Some(first) = seen.get(name.value.as_str()) {
            let message = format!("Two ports have the name {}", quoted(&name.value));
            problems.push(
                Diagnostic::error("E-PORT-NAME", name.span, message).also(*first, "the first"),
            );
        }
        seen.entry(&name.value).or_insert(name.span);
    }
}

/// Which way bytes flow, seen from the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    In,
    Out,
    Both,
}

/// Who uses which end of the host: no two may read one, and no two may write one.
#[derive(Default)]
struct Users(HashMap<String, (Span, String)>);

impl Users {
    fn take(&mut self, end: &Endpoint, way: Use, span: Span, user: &str, problems: &mut Problems) {
        let (reads, writes) = (way != Use::Out, way != Use::In);
        let claims: Vec<String> = match end {
            Endpoint::Null => return,
            Endpoint::Stdio => {
                let both = [(reads, "standard input"), (writes, "standard output")];
                both.into_iter()
                    .filter(|(used, _)| *used)
                    .map(|(_, name)| name.to_owned())
                    .collect()
            }
            Endpoint::Stdin => vec!["standard input".to_owned()],
            Endpoint::Stdout => vec!["standard output".to_owned()],
            Endpoint::Stderr => vec!["standard error".to_owned()],
            // A file may be read by one and another file written; the same file for both is one user's affair.
            Endpoint::File(_) if !writes => return,
            Endpoint::File(_) | Endpoint::Unix(_) | Endpoint::Given(_) => vec![endpoint_text(end)],
        };
        for claim in claims {
            match self.0.get(&claim) {
                Some((first, other)) if other != user => {
                    let message = format!("{claim} is used twice: by {other} and by {user}");
                    let d = Diagnostic::error("E-STREAM-TWICE", span, message)
                        .also(*first, "the first");
                    let d = d.why("Their bytes would be mixed");
                    problems.push(d.help("Give each its own: null, file:PATH or unix:PATH"));
                    return;
                }
                _ => self.0.insert(claim, (span, user.to_owned())),
            };
        }
    }
}
