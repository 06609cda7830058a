//! Ports of virtio consoles: the step from what a scenario lists to [`ConsoleSpec`]s.

use vsc_devices::stream::Endpoint;
use vsc_devices::virtio::console::{ConsoleSpec, PortSpec};

use crate::scenario::value::endpoint_text;

use super::Stdio;

/// One port of a virtio console device.
pub(super) struct Port {
    name: Option<String>,
    ends: Ends,
}

enum Ends {
    /// A console (hvc0, …), both directions on one end.
    Tty(Endpoint),
    /// A byte pipe each way.
    InOut(Endpoint, Endpoint),
}

impl Port {
    pub(super) fn tty(name: Option<String>, end: Endpoint) -> Self {
        Port {
            name,
            ends: Ends::Tty(end),
        }
    }

    pub(super) fn in_out(name: &str, input: Endpoint, output: Endpoint) -> Self {
        Port {
            name: Some(name.to_owned()),
            ends: Ends::InOut(input, output),
        }
    }

    pub(super) fn is_console(&self) -> bool {
        matches!(self.ends, Ends::Tty(_))
    }
}

/// The terminal of a command: what it prints is the command's, the kernel's only if it was sent there.
const COMMAND_TTY: &str = "vsc.tty";

/// The ports of a command: control, and its standard streams.
pub(super) fn of_command(stdio: Stdio) -> Vec<Port> {
    let control = || {
        let end = Endpoint::Given("vsc.ctl".to_owned());
        Port::in_out("vsc.ctl", end.clone(), end)
    };
    match stdio {
        Stdio::None => Vec::new(),
        Stdio::Terminal => vec![
            Port::tty(Some(COMMAND_TTY.to_owned()), Endpoint::Stdio),
            control(),
        ],
        Stdio::Pipes => vec![
            control(),
            Port::in_out("vsc.stdin", Endpoint::Stdin, Endpoint::Null),
            Port::in_out("vsc.stdout", Endpoint::Null, Endpoint::Stdout),
            Port::in_out("vsc.stderr", Endpoint::Null, Endpoint::Stderr),
        ],
    }
}

/// All ports on one device, consoles first so that hvc0 is the first of them.
pub(super) fn specs(mut ports: Vec<Port>, kernel_console: Option<&str>) -> Vec<ConsoleSpec> {
    if ports.is_empty() {
        return Vec::new();
    }
    ports.sort_by_key(|port| !port.is_console());
    let ours = ports
        .iter()
        .any(|port| port.name.as_deref() == Some(COMMAND_TTY));
    let ports = ports.into_iter().map(|Port { name, ends }| match ends {
        Ends::Tty(end) => PortSpec {
            kernel: name.as_deref() != Some(COMMAND_TTY) || kernel_console == Some("hvc0"),
            name,
            console: true,
            input: end.clone(),
            output: end,
            log: true,
        },
        Ends::InOut(input, output) => PortSpec {
            name,
            console: false,
            input,
            output,
            log: false,
            kernel: false,
        },
    });
    vec![ConsoleSpec {
        ports: ports.collect(),
        size: !ours,
    }]
}

/// Guest, host and id of each port.
pub(super) fn pairs(console: &ConsoleSpec) -> Vec<(String, String, String)> {
    let ConsoleSpec { ports, size: _ } = console;
    let mut consoles = 0;
    let pair = |(index, port): (usize, &PortSpec)| {
        let PortSpec {
            name,
            console,
            input,
            output,
            log: _,
            kernel: _,
        } = port;
        let guest = if *console {
            consoles += 1;
            format!("virtio-console hvc{}", consoles - 1)
        } else {
            format!(
                "virtio-console /dev/virtio-ports/{}",
                name.as_deref().unwrap_or_default()
            )
        };
        let host = match (input == output, input, output) {
            (true, end, _) => endpoint_text(end),
            (_, input, Endpoint::Null) => endpoint_text(input),
            (_, Endpoint::Null, output) => endpoint_text(output),
            (_, input, output) => format!(
                "{} -> guest -> {}",
                endpoint_text(input),
                endpoint_text(output)
            ),
        };
        (
            guest,
            host,
            name.clone().unwrap_or_else(|| format!("console{index}")),
        )
    };
    ports.iter().enumerate().map(pair).collect()
}
