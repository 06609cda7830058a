//! What a byte on a serial line and a megabyte on a console port cost, through the real registers and the real
//! loop. `cargo run --release -p vsc-devices --features testing --example stream_cost`

use std::error::Error;
use std::io::{Read, Write, pipe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vsc_devices::bus::BusDevice as _;
use vsc_devices::console_log::ConsoleLog;
use vsc_devices::irq::Unconnected;
use vsc_devices::legacy::{Serial, SerialSpec};
use vsc_devices::source::Stop;
use vsc_devices::stream::{Endpoint, HostEnds};
use vsc_devices::virtio::console::{Console, ConsoleSpec, PortSpec};
use vsc_devices::virtio::testing::Driver;
use vsc_devices::virtio::worker::{EventLoop as _, ThreadLoop, Worker};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(what: &str, unit: &str, values: Vec<f64>) -> Result<()> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    let mut out = std::io::stderr();
    let middle = median(values);
    Ok(writeln!(
        out,
        "{what:<44} {middle:>8.1} {unit}  ({least:.1} to {most:.1})"
    )?)
}

fn sink(mut from: impl Read + Send + 'static) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let (mut buf, mut total) = (vec![0; 1 << 16], 0);
        while let Ok(n) = from.read(&mut buf) {
            if n == 0 {
                break;
            }
            total += n;
        }
        total
    })
}

/// ns per byte, and a line every `line` bytes.
fn serial(to_pipe: bool, line: usize, total: usize) -> Result<f64> {
    let (host, end) = pipe()?;
    let mut ends = HostEnds::from([("o".to_owned(), end.into())]);
    let endpoint = if to_pipe {
        Endpoint::Given("o".into())
    } else {
        Endpoint::Null
    };
    let spec = SerialSpec {
        index: 0,
        endpoint,
        log: true,
    };
    let log = ConsoleLog::new();
    let line_irq = Arc::new(Unconnected);
    let (uart, source) = Serial::new(&spec, &mut ends, line_irq, Some(&log), &Stop::new()?)?;
    let events = ThreadLoop::start();
    if let Some(source) = source {
        events.handle().add(Worker::from_source(Box::new(source)))?;
    }
    let reader = sink(host);
    let start = Instant::now();
    for i in 0..total {
        let byte = if i % line == line - 1 { b'\n' } else { b'x' };
        let mut uart = uart.lock().map_err(|_| "poisoned")?;
        uart.write(0, &[byte]);
    }
    uart.lock()
        .map_err(|_| "poisoned")?
        .finish(Duration::from_secs(5));
    let elapsed = start.elapsed();
    drop((uart, events, ends));
    let _ = reader.join();
    Ok(elapsed.as_nanos() as f64 / total as f64)
}

/// MB/s from the guest to a pipe in chains of `size` bytes, `depth` in flight.
fn port_out(size: usize, depth: usize, total: usize) -> Result<f64> {
    let (host, end) = pipe()?;
    let reader = sink(host);
    let mut driver = console(("o", end.into()), false)?;
    let data = vec![b'x'; size];
    let start = Instant::now();
    let mut done = 0;
    while done < total {
        for _ in 0..depth {
            driver.add(1, &[&data], &[]);
        }
        driver.kick(1);
        for _ in 0..depth {
            driver.wait(1);
        }
        done += size * depth;
    }
    let elapsed = start.elapsed();
    drop(driver);
    let _ = reader.join();
    Ok(done as f64 / elapsed.as_secs_f64() / 1e6)
}

/// MB/s from a pipe to the guest.
fn port_in(size: u32, depth: usize, total: usize) -> Result<f64> {
    let (end, mut host) = pipe()?;
    let writer = thread::spawn(move || {
        let data = vec![b'x'; 1 << 16];
        while host.write_all(&data).is_ok() {}
    });
    let mut driver = console(("i", end.into()), true)?;
    let start = Instant::now();
    let mut done = 0;
    while done < total {
        for _ in 0..depth {
            driver.add(0, &[], &[size]);
        }
        driver.kick(0);
        for _ in 0..depth {
            done += driver.wait(0).written as usize;
        }
    }
    let elapsed = start.elapsed();
    drop(driver);
    let _ = writer.join();
    Ok(done as f64 / elapsed.as_secs_f64() / 1e6)
}

fn console(end: (&str, std::os::fd::OwnedFd), input: bool) -> Result<Driver> {
    let (name, fd) = end;
    let given = Endpoint::Given(name.to_owned());
    let (input, output) = if input {
        (given, Endpoint::Null)
    } else {
        (Endpoint::Null, given)
    };
    let port = PortSpec {
        name: None,
        console: true,
        input,
        output,
        log: false,
        kernel: false,
    };
    let mut ends = HostEnds::from([(name.to_owned(), fd)]);
    let console = Console::new(
        &ConsoleSpec {
            ports: vec![port],
            size: true,
        },
        &mut ends,
        None,
    )?;
    let mut driver = Driver::threaded(Box::new(console));
    driver.start(!0);
    Ok(driver)
}

fn main() -> Result<()> {
    let times = |run: &dyn Fn() -> Result<f64>| (0..ROUNDS).map(|_| run()).collect();
    let values: Result<Vec<f64>> = times(&|| serial(false, 80, 2_000_000));
    report("serial byte, log only", "ns", values?)?;
    let values: Result<Vec<f64>> = times(&|| serial(true, 80, 2_000_000));
    report("serial byte, pipe, lines of 80", "ns", values?)?;
    let values: Result<Vec<f64>> = times(&|| serial(true, usize::MAX, 2_000_000));
    report("serial byte, pipe, no lines", "ns", values?)?;
    for (size, depth) in [(4096, 1), (4096, 32), (32_768, 8)] {
        let values: Result<Vec<f64>> = times(&|| port_out(size, depth, 100_000_000));
        report(
            &format!("port to pipe, {size} bytes, {depth} in flight"),
            "MB/s",
            values?,
        )?;
        let values: Result<Vec<f64>> = times(&|| port_in(size as u32, depth, 100_000_000));
        report(
            &format!("pipe to port, {size} bytes, {depth} in flight"),
            "MB/s",
            values?,
        )?;
    }
    Ok(())
}
