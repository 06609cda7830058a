//! The built-in guest: the default payload of `vsc-run`, its self-test, and how devices are exercised without Linux.
//!
//! Enters 64-bit mode, drops to CPL 3 with every port open and everything mapped for it, and does all work there: on
//! hosts with software paging only CPL 3 runs natively, and nothing here needs more.

#![no_std]
#![no_main]

mod acpi;
mod arena;
mod boot;
mod clock;
mod cpu;
mod end;
mod irq;
mod mem;
mod out;
mod params;
mod smp;
mod sys;
mod uart;
mod virtio;

use out::{Out, ensure, text};
use params::{Ending, Mmio, Params};
use virtio::Device;

core::arch::global_asm!(include_str!("entry.s"), options(att_syntax));

/// Everything that lives as long as the machine. Only the first processor touches it, and never an interrupt.
struct World {
    out: Out,
    boot: boot::Boot,
    params: Params,
    acpi: acpi::Acpi,
    devices: [Option<Device>; params::MMIO_DEVICES],
    clock: clock::Clock,
}

static mut WORLD: World = World {
    out: Out::new(),
    boot: boot::Boot::new(),
    params: Params::new(),
    acpi: acpi::Acpi::new(),
    devices: [None; params::MMIO_DEVICES],
    clock: clock::Clock::new(),
};

/// The status of a run in which something failed.
const FAILED: u8 = 1;
/// A word of the command line was not understood (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// An exception or a panic of this program (EX_SOFTWARE).
const CRASHED: u8 = 70;

#[unsafe(no_mangle)]
extern "C" fn main(start_info: u64) -> ! {
    // SAFETY: called once, by entry.s; `fault` takes another reference only after this one is given up for good.
    let world = unsafe { &mut *core::ptr::addr_of_mut!(WORLD) };
    world.boot.read(start_info);
    world.out.silent = world
        .boot
        .cmdline()
        .split(|b| b.is_ascii_whitespace())
        .any(|word| word == b"silent");
    world.out.greet();
    sys::fill_idt();
    let status = run(world);
    let status = world.params.exit.unwrap_or(status);
    let ending = world.params.ending;
    // A greeting alone ends without a report: each byte costs an exit, and the status says it all.
    if world.out.lines > 0 || world.params.json {
        world.out.end(status);
    }
    match ending {
        Ending::Exit => end::exit(status),
        Ending::PowerOff => end::power_off(),
        Ending::Reboot => end::reboot(),
        Ending::Triple => end::triple(),
        Ending::Panic => end::panic(),
        Ending::Hang => sys::hang(),
        Ending::Spin => end::spin(),
        Ending::Fault => {
            sys::read::<u8>(1 << 46);
            end::exit(CRASHED)
        }
    }
}

fn run(world: &mut World) -> u8 {
    let World {
        out, boot, params, ..
    } = world;
    let mut unknown = 0;
    let mut first = text!("");
    params.parse(boot.cmdline(), |word| {
        unknown += 1;
        if unknown == 1 {
            first = text!("{}", out::Ascii(word));
        }
    });
    out.json = params.json;
    if unknown > 0 || boot.cmdline_cut {
        out.result(
            text!("parameters"),
            Err(out::Problem::Fail(text!(
                "{unknown} not understood, the first: {first}"
            ))),
        );
        return USAGE;
    }
    if params.read {
        read_line(out);
    }
    let params = &*params;
    let work = params.tests | params.evil | params.blk != 0 || params.echo || params.send > 0;
    if work {
        tests(world);
    }
    if world.out.failed > 0 { FAILED } else { 0 }
}

fn tests(world: &mut World) {
    let World {
        out,
        boot,
        params,
        acpi,
        devices,
        clock,
    } = world;
    let start = (sys::end_of_image() + 4095) & !4095;
    arena::set(start, boot.room_after(start));

    if params.has("mem") {
        out.info(
            "boot",
            text!(
                "pvh {} version {} modules {} rsdp {:#x} cmdline {} bytes",
                boot.magic,
                boot.version,
                boot.modules,
                boot.rsdp,
                boot.cmdline_length
            ),
        );
        mem::all(out, boot);
    }
    if params.has("cpu") {
        cpu::all(out);
    }
    let tables = acpi.read(boot.rsdp);
    if params.has("acpi") {
        out.result(text!("acpi"), tables);
        acpi.all(out);
    }
    let timed = ["rtc", "timer", "irq", "vcon"]
        .iter()
        .any(|t| params.has(t));
    if timed || params.blk != 0 || params.send > 0 {
        clock.find(acpi);
    }
    if params.has("console") {
        out.result(text!("uart"), uart::all());
    }
    if params.has("rtc") {
        out.result(text!("rtc"), clock.rtc());
    }
    if params.has("timer") {
        clock.all(out, acpi);
    }
    find_devices(out, params, acpi, devices);
    let present = || devices.iter().flatten().copied();
    if params.has("virtio") {
        for (i, mut device) in present().enumerate() {
            out.result(text!("virtio{i}"), virtio::generic(&mut device));
        }
    }
    if params.has("rng") {
        for (i, device) in present().filter(|d| d.id == virtio::ID_RNG).enumerate() {
            out.result(text!("rng{i}"), virtio::rng::all(device));
        }
    }
    if params.has("vcon") || params.echo || params.send > 0 {
        for (i, device) in present().filter(|d| d.id == virtio::ID_CONSOLE).enumerate() {
            virtio::vcon::all(out, i, device, params, clock);
        }
    }
    let disks = || present().filter(|d| d.id == virtio::ID_BLOCK);
    if params.has("blk") {
        for (i, device) in disks().enumerate() {
            virtio::blk::all(out, i, device, params.write);
        }
    }
    if params.blk != 0 {
        match disks().nth(params.disk.into()) {
            Some(device) => virtio::blkbench::all(out, device, params, clock),
            None => {
                let missing = text!("there is no disk {}", params.disk);
                out.result(text!("blk"), Err(out::Problem::Fail(missing)));
            }
        }
    }
    if params.evil != 0 {
        for (i, device) in present().enumerate() {
            virtio::evil::all(out, i, device, params);
        }
    }
    if params.has("irq") {
        irq::all(out, clock, acpi, devices);
    }
    if params.has("smp") {
        smp::all(out, acpi);
    }
}

/// Devices come from the command line, from the DSDT, or from both, which must then agree.
fn find_devices(out: &mut Out, params: &Params, acpi: &acpi::Acpi, devices: &mut [Option<Device>]) {
    let named = &params.mmio[..params.mmio_count];
    let declared = &acpi.mmio[..acpi.mmio_count];
    let (list, other): (&[Mmio], &[Mmio]) = if named.is_empty() {
        (declared, named)
    } else {
        (named, declared)
    };
    let mut slots = devices.iter_mut();
    for place in list {
        let outcome = (|| {
            if !other.is_empty() {
                let twin = other.iter().find(|o| o.base == place.base);
                ensure!(twin.is_some(), "{:#x} is not in the DSDT", place.base);
                let (gsi, size) = twin.map_or((0, 0), |t| (t.gsi, t.size));
                ensure!(
                    size == place.size,
                    "{:#x}: {} bytes, the DSDT says {size}",
                    place.base,
                    place.size
                );
                ensure!(
                    gsi == place.gsi,
                    "{:#x}: gsi {}, the DSDT says {gsi}",
                    place.base,
                    place.gsi
                );
            }
            let level = declared.iter().any(|d| d.base == place.base && d.level);
            Device::probe(place.base, place.gsi, level)
        })();
        match outcome {
            Ok(device) if device.id == 0 => {}
            Ok(device) => {
                if let Some(slot) = slots.next() {
                    *slot = Some(device);
                }
            }
            Err(problem) => {
                out.result(text!("probe"), Err(problem));
            }
        }
    }
}

/// Echoes serial input up to a newline or an end of transmission.
fn read_line(out: &mut Out) {
    out.raw(b"read\n");
    while let Some(byte) = out.receive(virtio::SECOND_OR_SO * 30) {
        if byte == 4 {
            out.raw(b"\n");
            return;
        }
        out.raw(&[if byte == b'\r' { b'\n' } else { byte }]);
        if matches!(byte, b'\n' | b'\r') {
            return;
        }
    }
    out.result(
        text!("read"),
        Err(out::Problem::Fail(text!("no end of line"))),
    );
}

/// Every exception ends here, at CPL 3, on a fresh stack.
#[unsafe(no_mangle)]
extern "C" fn fault(vector: u64, error: u64, rip: u64, cr2: u64, rsp: u64) -> ! {
    // SAFETY: the code that held the other reference never runs again.
    let world = unsafe { &mut *core::ptr::addr_of_mut!(WORLD) };
    world.out.shout(format_args!(
        "\nCRASH exception {vector} error {error:#x} rip {rip:#x} cr2 {cr2:#x} rsp {rsp:#x}"
    ));
    world.out.end(CRASHED);
    end::exit(CRASHED)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: as in `fault`.
    let world = unsafe { &mut *core::ptr::addr_of_mut!(WORLD) };
    let line = info.location().map_or(0, |l| l.line());
    let file = info.location().map_or("?", |l| l.file());
    world
        .out
        .shout(format_args!("\nCRASH panic at {file}:{line}"));
    world.out.end(CRASHED);
    end::exit(CRASHED)
}
