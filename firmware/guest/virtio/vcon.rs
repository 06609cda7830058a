//! virtio-console (VIRTIO 1.3, 5.3): single port and multiport.

use super::queue::{Queue, from, into};
use super::{Device, EVENT_IDX, INDIRECT};
use crate::arena;
use crate::clock::Clock;
use crate::out::{Ascii, Out, Outcome, Problem, ensure, fail, skip, text};
use crate::params::Params;
use crate::sys::{bytes, pause, read, tsc, write};

const SIZE: u64 = 1;
const MULTIPORT: u64 = 2;
const EMERGENCY: u64 = 4;

// Control events (VIRTIO 5.3.6.2).
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const DEVICE_REMOVE: u16 = 2;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

const PORTS: usize = 16;
const RING: u16 = 32;
const BUFFER: u32 = 4096;

#[derive(Clone, Copy)]
struct Port {
    present: bool,
    console: bool,
    open: bool,
    was_open: bool,
    name: [u8; 32],
    name_length: usize,
}

struct Pair {
    receive: Queue,
    send: Queue,
    buffers: u64,
}

struct Console {
    device: Device,
    multiport: bool,
    ports: [Port; PORTS],
    control: Option<Pair>,
    /// The pair of the one port that data goes through, chosen after the ports are known.
    size: (u16, u16),
    message: u64,
}

fn pair(device: &Device, index: u16, buffer: u32) -> Result<Pair, Problem> {
    let Some(receive) = device.queue(index, RING, 1)? else {
        fail!("no queue {index}")
    };
    let Some(send) = device.queue(index + 1, RING, 2)? else {
        fail!("no queue {}", index + 1)
    };
    let Some(buffers) = arena::take(u64::from(RING) * u64::from(buffer), 4096) else {
        skip!("RAM too small")
    };
    Ok(Pair {
        receive,
        send,
        buffers,
    })
}

impl Pair {
    /// Gives the device every receive buffer it has no use for yet.
    fn post(&mut self, buffer: u32) {
        while self.receive.room() > 0 {
            // A one-segment request takes the head that is free next: its number names the buffer.
            let head = self.receive.next_head();
            self.receive.add(
                &[into(
                    self.buffers + u64::from(head) * u64::from(buffer),
                    buffer,
                )],
                false,
            );
        }
        self.receive.kick();
    }
}

impl Console {
    /// Port 0 and, with multiport, all others: their queues exist before DRIVER_OK, so the port to use is chosen by
    /// a first pass that only listens.
    fn open(device: Device, data_port: Option<usize>) -> Result<(Self, Option<Pair>), Problem> {
        let mut device = device;
        arena::reset();
        device.open(SIZE | MULTIPORT | EMERGENCY | EVENT_IDX | INDIRECT)?;
        let multiport = device.has(MULTIPORT);
        let control = if multiport {
            Some(pair(&device, 2, 256)?)
        } else {
            None
        };
        let index = |port: usize| if port == 0 { 0 } else { 2 + port as u16 * 2 };
        let data = match data_port {
            Some(port) => Some(pair(&device, index(port), BUFFER)?),
            None => None,
        };
        device.start()?;
        let Some(message) = arena::take(64, 8) else {
            fail!("no memory")
        };
        let none = Port {
            present: false,
            console: false,
            open: false,
            was_open: false,
            name: [0; 32],
            name_length: 0,
        };
        let mut console = Self {
            device,
            multiport,
            ports: [none; PORTS],
            control,
            size: (0, 0),
            message,
        };
        if console.device.has(SIZE) {
            console.size = (console.device.config(0), console.device.config(2));
        }
        if multiport {
            if let Some(control) = &mut console.control {
                control.post(256);
            }
            console.tell(0, DEVICE_READY, 1)?;
            console.listen(super::SECOND_OR_SO / 20)?;
        } else {
            console.ports[0] = Port {
                present: true,
                console: true,
                open: true,
                ..none
            };
        }
        Ok((console, data))
    }

    fn tell(&mut self, port: u32, event: u16, value: u16) -> Result<(), Problem> {
        let at = self.message;
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        write(at, port);
        write(at + 4, event);
        write(at + 6, value);
        control.send.run(&[from(at, 8)], false)?;
        Ok(())
    }

    /// Follows the control queue until it has been quiet for `cycles`. Whether something came.
    fn listen(&mut self, cycles: u64) -> Result<bool, Problem> {
        let mut last = tsc();
        let mut any = false;
        while tsc() - last < cycles {
            let Some(control) = &mut self.control else {
                return Ok(false);
            };
            let Some((head, length)) = control.receive.poll()? else {
                pause();
                continue;
            };
            (last, any) = (tsc(), true);
            let at = control.buffers + u64::from(head) * 256;
            ensure!(
                (8..=256).contains(&length),
                "a control message of {length} bytes"
            );
            let (id, event, value): (u32, u16, u16) = (read(at), read(at + 4), read(at + 6));
            let mut name = [0_u8; 32];
            let rest = bytes(at + 8, length as usize - 8);
            let name_length = rest
                .iter()
                .position(|&b| b == 0)
                .unwrap_or(rest.len())
                .min(32);
            name[..name_length].copy_from_slice(&rest[..name_length]);
            let size: (u16, u16) = (read(at + 8), read(at + 10));
            control.post(256);
            let Some(port) = self.ports.get_mut(id as usize) else {
                continue;
            };
            ensure!(
                event == DEVICE_ADD || port.present,
                "event {event} for port {id}, which was not added"
            );
            match event {
                DEVICE_ADD => {
                    ensure!(!port.present, "port {id} was added twice");
                    port.present = true;
                    self.tell(id, PORT_READY, 1)?;
                    self.tell(id, PORT_OPEN, 1)?;
                }
                DEVICE_REMOVE => port.present = false,
                CONSOLE_PORT => port.console = true,
                RESIZE => self.size = size,
                PORT_OPEN => {
                    port.open = value != 0;
                    port.was_open |= port.open;
                }
                PORT_NAME => (port.name, port.name_length) = (name, name_length),
                other => fail!("control event {other}"),
            }
        }
        Ok(any)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.ports.iter().position(|p| match name {
            b"" => p.present && p.console,
            name => p.present && &p.name[..p.name_length] == name,
        })
    }
}

pub fn all(out: &mut Out, n: usize, device: Device, params: &Params, clock: &Clock) {
    let mut found = None;
    let outcome = survey(out, n, device, params.port(), &mut found);
    out.result(text!("vcon{n}.ports"), outcome);
    let Some(port) = found else {
        if params.echo || params.send > 0 {
            out.result(text!("vcon{n}.port"), no_port(params));
        }
        return;
    };
    if params.has("vcon") && params.port_length == 0 {
        out.result(text!("vcon{n}.write"), greet(device, port));
    }
    if params.send > 0 {
        let outcome = send(out, n, device, port, params.send, clock);
        out.result(text!("vcon{n}.send"), outcome);
    }
    if params.echo {
        out.result(text!("vcon{n}.echo"), echo(device, port));
    }
    let _ = device.reset();
}

fn no_port(params: &Params) -> Outcome {
    fail!("there is no port \"{}\"", Ascii(params.port()))
}

fn survey(
    out: &mut Out,
    n: usize,
    device: Device,
    name: &[u8],
    found: &mut Option<usize>,
) -> Outcome {
    let (console, _) = Console::open(device, None)?;
    let mut count = 0;
    for (i, port) in console.ports.iter().enumerate().filter(|(_, p)| p.present) {
        count += 1;
        if console.multiport {
            out.result(
                text!("vcon{n}.port{i}"),
                Ok(text!(
                    "\"{}\" {}{}",
                    Ascii(&port.name[..port.name_length]),
                    if port.console { "console " } else { "" },
                    if port.open { "open" } else { "closed" }
                )),
            );
        }
    }
    *found = console.find(name);
    let most: u32 = if console.multiport {
        console.device.config(4)
    } else {
        1
    };
    device.reset()?;
    ensure!(count > 0, "no port");
    Ok(text!(
        "{count} of {most} ports, {} columns {} rows",
        console.size.0,
        console.size.1
    ))
}

fn greet(device: Device, port: usize) -> Outcome {
    let (_console, Some(mut data)) = Console::open(device, Some(port))? else {
        fail!("no queues")
    };
    let words = b"vsc guest on virtio-console\n";
    for (i, &byte) in words.iter().enumerate() {
        write(data.buffers + i as u64, byte);
    }
    let length = words.len() as u32;
    // In one piece, and cut in two.
    data.send.run(&[from(data.buffers, length)], false)?;
    data.send.run(
        &[from(data.buffers, 5), from(data.buffers + 5, length - 5)],
        true,
    )?;
    device.reset()?;
    Ok(text!("{} bytes to port {port}", length * 2))
}

/// Byte n of the stream is n mod 251: any loss or repetition shows.
fn send(
    out: &mut Out,
    n: usize,
    device: Device,
    port: usize,
    total: u64,
    clock: &Clock,
) -> Outcome {
    let (mut console, Some(mut data)) = Console::open(device, Some(port))? else {
        fail!("no queues")
    };
    let start = tsc();
    let mut sent = 0;
    let mut back = 0;
    let mut left = total;
    while left > 0 || data.send.in_flight() > 0 {
        while left > 0 && data.send.room() > 0 {
            let length = left.min(BUFFER.into());
            let at = data.buffers + u64::from(data.send.next_head()) * u64::from(BUFFER);
            for i in 0..length {
                write(at + i, ((sent + i) % 251) as u8);
            }
            data.send.add(&[from(at, length as u32)], false);
            sent += length;
            left -= length;
        }
        data.send.kick();
        data.send.wait_for(super::SECOND_OR_SO * 30)?;
        back += 1;
    }
    let cycles = tsc() - start;
    out.bench(
        text!("vcon{n}.send"),
        sent / clock.microseconds(cycles).max(1),
        "MB/s",
    );
    console.tell(port as u32, PORT_OPEN, 0)?;
    device.reset()?;
    Ok(text!("{sent} bytes in {back} buffers"))
}

/// Sends back what arrives until the host closes the port; without ports, until a line says quit.
fn echo(device: Device, port: usize) -> Outcome {
    let (mut console, Some(mut data)) = Console::open(device, Some(port))? else {
        fail!("no queues")
    };
    data.post(BUFFER);
    let mut total = 0_u64;
    let mut last = tsc();
    loop {
        if let Some((head, length)) = data.receive.poll()? {
            ensure!(length <= BUFFER, "{length} bytes in a buffer of {BUFFER}");
            let at = data.buffers + u64::from(head) * u64::from(BUFFER);
            if length > 0 {
                data.send.run(&[from(at, length)], false)?;
            }
            total += u64::from(length);
            let quit = !console.multiport && bytes(at, length as usize).starts_with(b"quit");
            data.post(BUFFER);
            last = tsc();
            if quit {
                break;
            }
            continue;
        }
        if console.multiport {
            console.listen(100_000)?;
            if console.ports[port].was_open
                && !console.ports[port].open
                && data.receive.poll()?.is_none()
            {
                break;
            }
        }
        ensure!(
            tsc() - last < super::SECOND_OR_SO * 30,
            "nothing more arrives after {total} bytes"
        );
        pause();
    }
    console.tell(port as u32, PORT_OPEN, 0)?;
    device.reset()?;
    Ok(text!("{total} bytes"))
}
