//! PID 1 of a vsc guest: prepares a Linux user space, runs one command, reports how it ended, ends the machine.
//!
//! Built by `build.rs` without libc and std; what it is told and how it talks to the host is described in
//! `firmware/src/init`. It never ends and never panics on purpose: what cannot be done is said on the kernel log and
//! on the port `vsc.ctl`, and the rest is done.
#![no_std]
#![no_main]

extern crate alloc;

mod control;
mod end;
mod machine;
mod memory;
mod ports;
mod relay;
mod run;
#[path = "../src/init/spec.rs"]
#[allow(dead_code)]
mod spec;
mod sys;

use control::Control;
use end::Ending;
use spec::{Spec, SpecError};

core::arch::global_asm!(
    // The System V ABI's process entry: no return address, arguments on the stack, which main does not need.
    ".globl _start",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

extern "C" fn main() -> ! {
    let mut control = Control::new();
    machine::mount_kernel_file_systems(&mut control);
    let spec = match read_spec() {
        Ok(spec) => spec,
        Err(why) => {
            control.error(&why);
            Spec::default()
        }
    };
    machine::set_up(&spec, &mut control);
    let outcome = run::run(&spec, &mut control);
    end::end(outcome, spec.end, spec.root.is_some(), &mut control)
}

fn read_spec() -> Result<Spec, alloc::string::String> {
    let path = c"/vsc/run";
    let bytes = sys::read_file(path, spec::LIMIT + 1)
        .map_err(|errno| alloc::format!("Cannot read /vsc/run: {errno}"))?;
    // It may hold secrets of the environment, and the command has no business with it.
    let _ = sys::unlink(path);
    Spec::decode(&bytes).map_err(|error: SpecError| alloc::format!("/vsc/run: {error}"))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // No allocation: running out of memory ends here too.
    let line = info.location().map_or(0, core::panic::Location::line);
    let mut text = *b"<2>vsc-init: internal error at line 00000\n";
    let mut rest = line;
    for place in (36..41).rev() {
        text[place] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    if let Ok(fd) = sys::open(c"/dev/kmsg", sys::O_WRONLY) {
        let _ = sys::write(fd, &text);
    }
    end::power_off(Ending::PowerOff)
}
