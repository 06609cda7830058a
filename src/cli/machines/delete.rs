//! `vsc-run delete NAME`.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vsc::libvirt::{Virsh, VirshError, is_active};
use vsc::store::{Entry, Name, Remote, StoreError};

use super::super::Common;
use super::{StoreArgs, answer, failed};

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// The saved VM.
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Also deletes the disk images that were made for it, and whatever else is in its directory.
    #[arg(long)]
    disks: bool,
}

pub(in crate::cli) fn delete(args: &DeleteArgs, common: &Common) -> u8 {
    match remove(args, common) {
        Ok(disks) => {
            let mut text = format!("{} is deleted\n", args.name);
            for disk in &disks {
                text += &format!("{} is deleted\n", disk.display());
            }
            answer(common, &json!({"name": args.name, "deleted": disks}), &text);
            0
        }
        Err(e) => failed(&e),
    }
}

/// Why a VM is not deleted.
#[derive(Debug, thiserror::Error)]
enum DeleteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Virsh(#[from] VirshError),
    /// It runs.
    #[error("{name} is running on {host}: stop it first")]
    Running { name: String, host: String },
}

fn remove(args: &DeleteArgs, common: &Common) -> Result<Vec<PathBuf>, DeleteError> {
    let name = Name::existing(&args.name)?;
    let store = args.store.of(&name, common)?;
    if let Some(remote) = store.entry(&name)?.state.handed_to {
        // Nobody starts it meanwhile.
        let held = store.hold(&name)?;
        undefine(&held.entry, &remote)?;
    }
    Ok(store.delete(&name, args.disks)?)
}

/// A domain that is ours goes, one that others have defined under the same name since does not.
fn undefine(entry: &Entry, remote: &Remote) -> Result<(), DeleteError> {
    let virsh = Virsh::new(remote.url.as_str());
    let Some(state) = virsh.state(&entry.name)? else {
        return Ok(());
    };
    let uuid = virsh.run(&["domuuid", "--", &entry.name], None)?.stdout;
    if entry.state.uuid.as_deref() != Some(uuid.trim()) {
        return Ok(());
    }
    if is_active(&state) {
        return Err(DeleteError::Running {
            name: entry.name.clone(),
            host: remote.host.clone(),
        });
    }
    Ok(virsh.undefine(&entry.name)?)
}
