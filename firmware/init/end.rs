//! The end of the machine.

use crate::control::Control;
use crate::run::{Finished, Outcome};
use crate::spec;
use crate::sys;

/// How long the host may take to take the status, in milliseconds, before the machine ends without.
const STATUS_WAIT: u64 = 5000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Restart,
}

/// Reports, writes back, ends. All output of the command has left before the status does: relays have given it to
/// their ports and closed them, and a terminal is drained here.
pub fn end(finished: Finished, wanted: spec::End, root_disk: bool, control: &mut Control) -> ! {
    if let Some(terminal) = finished.terminal {
        // tcdrain(3).
        let _ = sys::ioctl(terminal, sys::TCSBRK, 1);
    }
    if matches!(finished.outcome, Outcome::NotExecuted(..)) && !control.attached() {
        control.error(&finished.outcome);
    } else {
        control.say(&finished.outcome);
    }
    control.finish(STATUS_WAIT);
    sys::sync();
    if root_disk {
        // A journal that is closed needs no recovery at the next mount. Fails only where files are open for writing.
        let _ = sys::mount(c"", c"/", c"", sys::MS_REMOUNT | sys::MS_RDONLY, c"");
    }
    power_off(finished.ending.unwrap_or(match wanted {
        spec::End::PowerOff => Ending::PowerOff,
        spec::End::Restart => Ending::Restart,
    }))
}

/// Ends the machine in the wanted way, or in any that works.
pub fn power_off(ending: Ending) -> ! {
    // LINUX_REBOOT_CMD_* of include/uapi/linux/reboot.h.
    const POWER_OFF: usize = 0x4321_fedc;
    const RESTART: usize = 0x0123_4567;
    const HALT: usize = 0xcdef_0123;
    // Linux turns a power off that it cannot do into a halt, from which nothing returns: without ACPI, restart.
    let can_power_off =
        crate::ports::exists(c"/sys/firmware/acpi") || !crate::ports::exists(c"/sys/firmware");
    if ending == Ending::PowerOff && can_power_off {
        let _ = sys::reboot(POWER_OFF);
    }
    let _ = sys::reboot(RESTART);
    let _ = sys::reboot(HALT);
    loop {
        sys::poll(&mut [], -1);
    }
}
