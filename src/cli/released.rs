//! What is done for a confined run by the process beside it, and locks that are given up with its help.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use vsc::locks::lockspace::{self, Identity};
use vsc::locks::sanlock::Leases;
use vsc::locks::{Guard, LockPlan};
use vsc_vmm::resources::VmResources;

use crate::run::outside::{Errand, Errands, Outside};
use crate::say;

/// Starts the process that does what the confined one may not, if there is anything for it to do. To be called before
/// there is a second thread, and before this process is in a cgroup, which must be empty to go.
///
/// # Errors
/// The sentence.
pub(super) fn outside(
    confined: bool,
    mut errands: Errands<'_>,
    locks: &LockPlan,
) -> Result<Option<Outside>, String> {
    if !confined {
        return Ok(None);
    }
    // Their directories may be another user's.
    let files = locks.files();
    if !files.is_empty() {
        errands.add(Errand::Lock, move |text| {
            let (file, id): (PathBuf, Identity) =
                serde_json::from_slice(text).map_err(|e| e.to_string())?;
            match files.contains(&file) {
                true => lockspace::remove(&file, id).map_err(|e| e.to_string()),
                false => Err("it is none of this run's lock files".to_owned()),
            }
        });
    }
    Outside::start(errands).map_err(|e| format!("cannot start what writes the result: {e}"))
}

/// Takes the leases of a machine's images.
///
/// # Errors
/// The sentence.
pub(super) fn leases(locks: &LockPlan, machine: &VmResources) -> Result<Option<Leases>, String> {
    let lost = machine.events.on_lockfailure;
    let on_loss = lost.and_then(|_| crate::run::leases::on_loss());
    let leases = locks.take_leases(&machine.name, on_loss.as_ref(), &mut say::note_unkept);
    leases.map_err(|e| crate::run::chain(&e))
}

/// Gives the locks up, and removes their files.
pub(super) fn locks(locks: Guard, outside: &mut Option<Outside>) {
    locks.give_up(|file, id| {
        let asked = serde_json::to_vec(&(file, id)).unwrap_or_default();
        if let Some(outside) = outside {
            // What stays is an unlocked file, which `locks gc` removes.
            let _ = outside.run(Errand::Lock, &asked);
        }
    });
}
