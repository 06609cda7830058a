//! A run that is shown to others (`register: true`).

#![forbid(unsafe_code)]

use super::Common;
use crate::run::registration::Registration;
use crate::{run, say};

/// Shows the machine to others, if it is to be; where systemd-machined does not take it, that is said.
pub(super) fn registered(
    wanted: bool,
    name: &str,
    common: &Common,
) -> Result<Option<Registration>, String> {
    if !wanted {
        return Ok(None);
    }
    run::mark::set(name).map_err(|e| format!("cannot show the machine to others: {e}"))?;
    let registration = Registration::start(name);
    if let Err(why) = &registration
        && !common.quiet
    {
        say::warning(&format!(
            "machinectl does not list this machine: {why} (vsc-run ps --all does)"
        ));
    }
    Ok(registration.ok())
}
