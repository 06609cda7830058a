//! `events` and `limits`: what follows when the guest ends, and when it must.

use vsc_vmm::resources;

use crate::diag::Diagnostic;
use crate::scenario::{Events, Limits, word};

use super::Problems;

/// What follows when the guest ends.
pub(super) fn compile(events: &Events, problems: &mut Problems) -> resources::Events {
    let Events {
        on_poweroff,
        on_reboot,
        on_crash,
        on_lockfailure,
        max_restarts,
    } = events;
    let defaults = resources::Events::default();
    let most = max_restarts.map_or(defaults.max_restarts, |m| {
        u32::try_from(m.value).unwrap_or(u32::MAX)
    });
    if let Some(word) = on_poweroff
        && word.value == "restart"
    {
        let d = Diagnostic::warning(
            "W-ENDLESS",
            word.span,
            "With `on_poweroff: restart` the machine would never end",
        );
        let stop = match most {
            0 => "events.max_restarts is 0, so it ends at the first power off after all".to_owned(),
            n => format!(
                "events.max_restarts ends it after {n} restarts here; libvirt has no such guard: virsh destroy"
            ),
        };
        problems.push(
            d.why("A power off is how a guest says that it is done")
                .help(stop),
        );
    }
    resources::Events {
        on_poweroff: word(*on_poweroff).unwrap_or(defaults.on_poweroff),
        on_reboot: word(*on_reboot).unwrap_or(defaults.on_reboot),
        on_crash: word(*on_crash).unwrap_or(defaults.on_crash),
        on_lockfailure: word(*on_lockfailure),
        max_restarts: most,
    }
}

/// Time limits.
pub(super) fn limits(limits: &Limits, problems: &mut Problems) -> resources::Limits {
    let Limits {
        timeout,
        boot_deadline,
        stop_grace,
        // What a cgroup limits is `limits`'s.
        memory_max: _,
        memory_high: _,
        cpu_max: _,
        pids_max: _,
        io_max: _,
        slice: _,
    } = limits;
    let defaults = resources::Limits::default();
    if let Some(grace) = stop_grace
        && grace.value.is_none()
    {
        let d = Diagnostic::error("E-VALUE", grace.span, "`limits.stop_grace` needs a time");
        problems.push(
            d.why("A guest that does not stop when asked would never end")
                .help("For example `stop_grace: 5s`"),
        );
    }
    if let (Some(total), Some(boot)) = (timeout, boot_deadline)
        && let (Some(total_time), Some(boot_time)) = (total.value, boot.value)
        && boot_time > total_time
    {
        let d = Diagnostic::warning(
            "W-DEADLINE",
            boot.span,
            "The boot deadline is after the timeout",
        );
        problems.push(
            d.also(total.span, "the timeout")
                .why("The run ends before the deadline can be missed"),
        );
    }
    resources::Limits {
        timeout: timeout.map_or(defaults.timeout, |t| t.value),
        boot_deadline: boot_deadline.map_or(defaults.boot_deadline, |t| t.value),
        stop_grace: stop_grace
            .and_then(|t| t.value)
            .unwrap_or(defaults.stop_grace),
    }
}
